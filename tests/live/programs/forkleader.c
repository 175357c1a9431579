/* forkleader: a child whose main thread has exited while two others live: State Z, and not a
 * zombie. */
#include <pthread.h>
#include <unistd.h>

static void *live_on(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(void)
{
	pthread_t thread;

	if (fork() == 0) {
		for (int i = 0; i < 2; i++)
			if (pthread_create(&thread, NULL, live_on, NULL))
				_exit(1);
		pthread_exit(NULL);
	}
	live_on(NULL);
}
