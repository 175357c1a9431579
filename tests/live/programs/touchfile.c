/* touchfile PATH [DELAY_S]: waits, opens PATH for appending, writes one byte, sleeps; prints
 * what the open took. On a file of an image layer it is the open, not the write, which copies
 * the whole file up. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct timespec before, after;
	int file;

	if (argc < 2)
		return 2;
	sleep(argc > 2 ? atoi(argv[2]) : 2);
	clock_gettime(CLOCK_MONOTONIC, &before);
	file = open(argv[1], O_WRONLY | O_APPEND);
	clock_gettime(CLOCK_MONOTONIC, &after);
	if (file < 0 || write(file, "x", 1) != 1) {
		perror(argv[1]);
		return 1;
	}
	printf("open took %ld us\n", (after.tv_sec - before.tv_sec) * 1000000L
	       + (after.tv_nsec - before.tv_nsec) / 1000);
	fflush(stdout);
	for (;;)
		pause();
}
