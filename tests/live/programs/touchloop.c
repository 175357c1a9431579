/* touchloop MIB [PASSES]: touches all of that much memory again and again, or so many times and
 * then sleeps. */
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	size_t size = (size_t)atoi(argv[1]) << 20;
	long passes = argc > 2 ? atol(argv[2]) : -1;
	char *memory = malloc(size);

	for (long done = 0; memory && done != passes; done++)
		for (size_t page = 0; page < size; page += 4096)
			((volatile char *)memory)[page] = (char)done;
	for (;;)
		pause();
}
