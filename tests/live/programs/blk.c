/* blk: blocks SIGTERM and never takes it: it stays pending (SigBlk 4000, ShdPnd 4000). */
#include <signal.h>
#include <unistd.h>

int main(void)
{
	sigset_t term;

	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	sigprocmask(SIG_BLOCK, &term, NULL);
	for (;;)
		pause();
}
