/* forks N: wants N idle children; asks for all at once, and then ten times a second for one of
 * those that it was refused. */
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int wanted = argc > 1 ? atoi(argv[1]) : 1, have = 0;

	for (int asked = 0;; asked++) {
		pid_t child = have < wanted ? fork() : -1;

		if (child == 0)
			for (;;)
				pause();
		have += child > 0;
		if (asked >= wanted)
			usleep(100000);
	}
}
