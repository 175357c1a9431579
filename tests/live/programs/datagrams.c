/* datagrams to ADDRESS PORT SIZE: sends 250 datagrams a second.
 * datagrams at PORT: has a UDP port with a small receive buffer and never reads.
 * Exits 0 on SIGTERM. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void stop(int signum)
{
	(void)signum;
	_exit(0);
}

int main(int argc, char **argv)
{
	struct sockaddr_in other = { .sin_family = AF_INET };
	int socket_ = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), room = 8192;
	static char data[1 << 16];

	signal(SIGTERM, stop);
	if (argc == 3 && !strcmp(argv[1], "at")) {
		other.sin_port = htons(atoi(argv[2]));
		setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
		if (bind(socket_, (struct sockaddr *)&other, sizeof(other))) {
			perror("bind");
			return 1;
		}
		for (;;)
			pause();
	}
	if (argc != 5 || strcmp(argv[1], "to") || inet_pton(AF_INET, argv[2], &other.sin_addr) != 1)
		return 2;
	other.sin_port = htons(atoi(argv[3]));
	for (;;) {
		for (int n = 0; n < 25; n++)
			sendto(socket_, data, atoi(argv[4]), 0, (struct sockaddr *)&other,
			       sizeof(other));
		usleep(100000);
	}
}
