/* fds N [same|inotify]: wants N descriptors more than it has, sockets, or one file again and again,
 * or inotify instances, and keeps those it gets. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int wanted = argc > 1 ? atoi(argv[1]) : 1, have = 0, error = 0;
	const char *what = argc > 2 ? argv[2] : "";

	for (; have < wanted && !error; have++) {
		int fd = !strcmp(what, "same") ? open("/etc/passwd", O_RDONLY) :
			 !strcmp(what, "inotify") ? inotify_init1(0) :
						    socket(AF_UNIX, SOCK_STREAM, 0);

		error = fd < 0 ? errno : 0;
	}
	printf("opened %d of %d: %s\n", have - !!error, wanted, strerror(error));
	fflush(stdout);
	for (;;)
		pause();
}
