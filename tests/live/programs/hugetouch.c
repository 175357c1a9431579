/* hugetouch MB [NORESERVE]: child after child maps that much in huge pages and touches all of it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	size_t bytes = (size_t)atoi(argv[1]) << 20;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (argc > 2 ? MAP_NORESERVE : 0);

	for (;;) {
		if (!fork()) {
			char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);

			if (memory == MAP_FAILED)
				_exit(2);
			for (size_t at = 0; at < bytes; at += 2 << 20)
				memory[at] = 1;
			_exit(0);
		}
		wait(NULL);
		usleep(200000);
	}
}
