/* golike: catches every signal and dies of it by raising it again with the default action, as
 * Go's runtime does. The kernel ignores that raise in a PID 1, so it ends by exit status 2 and
 * not by the signal. */
#include <signal.h>
#include <unistd.h>

static void die(int signum)
{
	signal(signum, SIG_DFL);
	raise(signum);
	usleep(1000);
	_exit(2);
}

int main(void)
{
	/* Without SA_NODEFER the raise would only be pending until the handler returns. */
	struct sigaction action = { .sa_handler = die, .sa_flags = SA_NODEFER };

	/* The kernel refuses 9 and 19, the C library 32 and 33. */
	for (int signum = 1; signum <= 64; signum++)
		sigaction(signum, &action, NULL);
	for (;;)
		pause();
}
