/* threads [N]: N busy threads and no signal handler: as PID 1 it cannot be stopped, only killed. */
#include <pthread.h>
#include <stdlib.h>

static void *burn(void *unused)
{
	for (volatile unsigned long turns = 0;; turns++)
		;
	return unused;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 1;
	pthread_t thread;

	while (--threads > 0)
		if (pthread_create(&thread, NULL, burn, NULL))
			return 1;
	burn(NULL);
}
