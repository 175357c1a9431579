/* zombie N [wait]: forks N children which exit at once, and waits for none of them, or for all
 * of them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int wanted = argc > 1 ? atoi(argv[1]) : 1, forked = 0, error = 0;

	while (forked < wanted && !error) {
		pid_t child = fork();

		if (child == 0)
			_exit(0);
		if (child < 0)
			error = errno;
		else
			forked++;
		if (argc > 2)
			wait(NULL);
	}
	printf("forked %d of %d: %s\n", forked, wanted, strerror(error));
	fflush(stdout);
	for (;;)
		pause();
}
