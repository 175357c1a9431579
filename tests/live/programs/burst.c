/* burst THREADS BURN_US PAUSE_US: all threads burn BURN_US of CPU at once, then pause, for ever, as
 * a server does that answers in parallel: small mean use, and a quota stops it all the same. */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static long burn_us, pause_us;
static pthread_barrier_t together;

static long cpu_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static void *work(void *unused)
{
	for (;; usleep(pause_us)) {
		pthread_barrier_wait(&together);
		for (long until = cpu_us() + burn_us; cpu_us() < until;)
			;
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	if (argc < 4)
		return 2;
	burn_us = atol(argv[2]);
	pause_us = atol(argv[3]);
	pthread_barrier_init(&together, NULL, atoi(argv[1]));
	for (int i = atoi(argv[1]); i > 1; i--)
		pthread_create(&thread, NULL, work, NULL);
	work(NULL);
}
