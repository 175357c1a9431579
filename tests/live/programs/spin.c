/* spin [THREADS]: burns one CPU per thread for ever, and exits 0 on SIGTERM as a good service
 * does. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static void stop(int signum)
{
	(void)signum;
	_exit(0);
}

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

	signal(SIGTERM, stop);
	while (--threads > 0)
		if (pthread_create(&thread, NULL, burn, NULL))
			return 1;
	burn(NULL);
}
