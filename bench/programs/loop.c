/* loop: do one thing so many times: loop syscalls|packets|execs|opens|writes|denials|signals|spin N.
 * What it costs is measured from outside, by the control group it runs in. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static char *self;

static void syscalls(long n)
{
	int zero = open("/dev/zero", O_RDONLY);
	char byte;

	while (n--)
		if (read(zero, &byte, 1) != 1)
			exit(1);
}

static void packets(long n)
{
	struct sockaddr_in nobody = { .sin_family = AF_INET, .sin_port = htons(9) };
	int udp = socket(AF_INET, SOCK_DGRAM, 0);

	nobody.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	while (n--) /* every second one fails with the ICMP error of the first */
		sendto(udp, "x", 1, 0, (void *)&nobody, sizeof(nobody));
}

static void execs(long n)
{
	while (n--) {
		pid_t child = vfork();

		if (!child)
			_exit(execl(self, self, "nothing", "0", NULL));
		waitpid(child, NULL, 0);
	}
}

static void opens(long n)
{
	while (n--)
		close(open("/dev/null", O_RDONLY));
}

static void writes(long n)
{
	void *page = aligned_alloc(4096, 4096);
	int file = open("/var/tmp/loop", O_RDWR | O_CREAT | O_DIRECT, 0600);

	memset(page, 1, 4096);
	for (long at = 0; at < n; at++)
		if (pwrite(file, page, 4096, at % 1024 * 4096) != 4096)
			exit(1);
	unlink("/var/tmp/loop");
}

static void pages(long n)
{
	static char mebibyte[1 << 20];
	int file = open("/var/tmp/loop", O_RDWR | O_CREAT, 0600);

	while (n--)
		if (write(file, mebibyte, sizeof(mebibyte)) != sizeof(mebibyte))
			exit(1);
	unlink("/var/tmp/loop");
}

static void denials(long n)
{
	while (n--)
		if (!sethostname("x", 1))
			exit(1);
}

static void signals(long n)
{
	while (n--) /* ignored by default: the kernel drops it */
		kill(getpid(), SIGWINCH);
}

static void spin(long n)
{
	volatile long count = n * 1000;

	while (count--)
		;
}

static void nothing(long n)
{
}

static const struct {
	const char *name;
	void (*body)(long);
} LOOPS[] = {
	{ "syscalls", syscalls }, { "packets", packets }, { "execs", execs },
	{ "opens", opens },	  { "writes", writes },	  { "pages", pages },
	{ "denials", denials },	  { "signals", signals }, { "spin", spin },
	{ "nothing", nothing },
};

int main(int argc, char **argv)
{
	self = argv[0];
	for (unsigned i = 0; argc == 3 && i < sizeof(LOOPS) / sizeof(*LOOPS); i++)
		if (!strcmp(argv[1], LOOPS[i].name)) {
			LOOPS[i].body(atol(argv[2]));
			return 0;
		}
	return 2;
}
