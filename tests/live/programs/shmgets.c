/* shmgets BYTES: asks for one more shared memory segment, five times a second, and keeps all. */
#include <stdlib.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	for (;;) {
		shmget(IPC_PRIVATE, strtoul(argv[1], NULL, 10), IPC_CREAT | 0600);
		usleep(200000);
	}
}
