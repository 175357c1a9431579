/*
 * shmgets BYTES [MOST]: asks for one more shared memory segment, five times a second, keeps all, and
 * asks for none when it has MOST.
 */
#include <stdlib.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	size_t bytes = strtoul(argv[1], NULL, 10);
	int most = argc > 2 ? atoi(argv[2]) : -1;

	while (most) {
		if (shmget(IPC_PRIVATE, bytes, IPC_CREAT | 0600) >= 0)
			most--;
		usleep(200000);
	}
	for (;;)
		pause();
}
