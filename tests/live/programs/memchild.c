/* memchild MB: a child touches MB MiB and exits; PID 1 says how it ended and lives on, OOM kill
 * or not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int status = 0;

	if (fork() == 0) {
		for (int i = argc > 1 ? atoi(argv[1]) : 1; i > 0; i--) {
			char *piece = malloc(1 << 20);

			if (!piece)
				_exit(3);
			memset(piece, 'x', 1 << 20);
		}
		_exit(0);
	}
	wait(&status);
	if (WIFSIGNALED(status))
		printf("child killed by signal %d\n", WTERMSIG(status));
	else
		printf("child exited %d\n", WEXITSTATUS(status));
	fflush(stdout);
	for (;;)
		pause();
}
