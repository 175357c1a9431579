/* signalfd: blocks SIGTERM and reads it from a signalfd in an epoll loop. The masks of blk, and
 * healthy. */
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

int main(void)
{
	struct epoll_event event = { .events = EPOLLIN };
	struct signalfd_siginfo info;
	sigset_t term;
	int signals, loop = epoll_create1(EPOLL_CLOEXEC);

	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	sigprocmask(SIG_BLOCK, &term, NULL);
	signals = signalfd(-1, &term, SFD_CLOEXEC);
	if (loop < 0 || signals < 0 || epoll_ctl(loop, EPOLL_CTL_ADD, signals, &event))
		return 1;
	while (epoll_wait(loop, &event, 1, -1) != 1)
		;
	return read(signals, &info, sizeof(info)) == sizeof(info) ? 0 : 1;
}
