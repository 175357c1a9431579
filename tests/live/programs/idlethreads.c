/* idlethreads N: starts up to N sleeping threads, says which errno stopped it: live tasks, no
 * zombies. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *idle(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	int wanted = argc > 1 ? atoi(argv[1]) : 1, started = 0, error = 0;
	pthread_attr_t small;
	pthread_t thread;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 64 * 1024);
	while (started < wanted && !(error = pthread_create(&thread, &small, idle, NULL)))
		started++;
	printf("threads %d of %d: %s\n", started, wanted, strerror(error));
	fflush(stdout);
	idle(NULL);
}
