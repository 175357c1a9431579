/* listen ADDRESS PORT: a small healthy server: says hello to each connection, exits 0 on
 * SIGTERM. */
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

	if (argc < 3 || inet_pton(AF_INET, argv[1], &local.sin_addr) != 1)
		return 2;
	signal(SIGTERM, stop);
	local.sin_port = htons(atoi(argv[2]));
	setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(server, (struct sockaddr *)&local, sizeof(local)) || listen(server, 128)) {
		perror("listen");
		return 1;
	}
	for (;;) {
		int client = accept(server, NULL, NULL);

		if (client >= 0 && send(client, "hello\n", 6, MSG_NOSIGNAL) < 0)
			perror("send");
		close(client);
	}
}
