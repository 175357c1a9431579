/* orphan N: makes N grandchildren which outlive their parent and exit 0.2 s later: the init of
 * the pid namespace inherits them, and here (as PID 1) it never waits. */
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	for (int i = argc > 1 ? atoi(argv[1]) : 1; i > 0; i--) {
		pid_t child = fork();

		if (child == 0) {
			if (fork() == 0)
				usleep(200000);
			_exit(0);
		}
		if (child > 0)
			waitpid(child, NULL, 0);
	}
	for (;;)
		pause();
}
