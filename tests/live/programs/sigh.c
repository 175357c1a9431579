/* sigh CHILDREN [fwd]: an init with a SIGTERM handler and children which have one too. Without
 * fwd the init just exits and the kernel kills the children; with fwd it passes the signal on
 * and waits for them. fwd is kill(-1, ...), which outside a pid namespace means the whole
 * machine: only as PID 1. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int forward;

static void child_stops(int signum)
{
	(void)signum;
	_exit(write(STDOUT_FILENO, "child graceful\n", 15) != 15);
}

static void init_stops(int signum)
{
	if (write(STDOUT_FILENO, "init TERM\n", 10) == 10 && forward)
		for (kill(-1, signum); wait(NULL) > 0;)
			;
	_exit(0);
}

int main(int argc, char **argv)
{
	forward = argc > 2;
	if (forward && getpid() != 1)
		return 2;
	signal(SIGTERM, child_stops); /* before the fork: no child is ever without it */
	for (int i = argc > 1 ? atoi(argv[1]) : 1; i > 0; i--)
		if (fork() == 0)
			for (;;)
				pause();
	signal(SIGTERM, init_stops);
	for (;;)
		pause();
}
