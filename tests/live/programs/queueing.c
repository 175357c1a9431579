/* queueing PORT BACKLOG MS: listens, and accepts one connection every MS milliseconds; -1: none.
 * Exits 0 on SIGTERM. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void stop(int signum)
{
	(void)signum;
	_exit(0);
}

int main(int argc, char **argv)
{
	struct sockaddr_in local = { .sin_family = AF_INET };
	int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	if (argc < 4)
		return 2;
	signal(SIGTERM, stop);
	local.sin_port = htons(atoi(argv[1]));
	setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(server, (struct sockaddr *)&local, sizeof(local)) ||
	    listen(server, atoi(argv[2]))) {
		perror("listen");
		return 1;
	}
	while (atoi(argv[3]) < 0)
		pause();
	for (;;) {
		close(accept(server, NULL, NULL));
		usleep(1000 * atoi(argv[3]));
	}
}
