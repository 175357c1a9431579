/* memalloc MB [DELAY_MS] [HOLD_S]: touches MB MiB, DELAY_MS before each, keeps them HOLD_S
 * seconds, exits 0. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int wanted = argc > 1 ? atoi(argv[1]) : 1;

	for (int i = 0; i < wanted; i++) {
		char *piece = malloc(1 << 20);

		if (argc > 2)
			usleep(atoi(argv[2]) * 1000);
		if (!piece) {
			printf("malloc failed at %d MiB\n", i);
			return 3;
		}
		memset(piece, 'x', 1 << 20);
	}
	printf("touched %d MiB\n", wanted);
	fflush(stdout);
	if (argc > 3)
		sleep(atoi(argv[3]));
	return 0;
}
