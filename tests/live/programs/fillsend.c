/* fillsend ADDRESS PORT SNDBUF: writes to a connection until there is no room for half a second, then
 * sets SO_SNDBUF, if that is not 0, and keeps the connection. Exits 0 on SIGTERM. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void stop(int signum)
{
	(void)signum;
	_exit(0);
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	struct timeval half = { .tv_usec = 500000 };
	int out = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), size;
	static char data[1 << 16];

	if (argc < 4 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
		return 2;
	signal(SIGTERM, stop);
	to.sin_port = htons(atoi(argv[2]));
	size = atoi(argv[3]);
	if (connect(out, (struct sockaddr *)&to, sizeof(to))) {
		perror("connect");
		return 1;
	}
	setsockopt(out, SOL_SOCKET, SO_SNDTIMEO, &half, sizeof(half));
	while (send(out, data, sizeof(data), MSG_NOSIGNAL) > 0)
		;
	if (size)
		setsockopt(out, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	for (;;)
		pause();
}
