/* vforkd N SECONDS: N children each call vfork; the child of that executes nothing for so long, and
 * its parent waits in D. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void stop(int signum)
{
	(void)signum;
	_exit(0);
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 6;
	int seconds = argc > 2 ? atoi(argv[2]) : 600;

	for (int i = 0; i < count; i++) {
		if (fork() == 0) {
			if (vfork() == 0) {
				sleep(seconds);
				_exit(0);
			}
			for (;;)
				pause();
		}
	}
	signal(SIGTERM, stop);
	for (;;)
		if (wait(NULL) < 0)
			pause();
}
