/* chmodmany DIRECTORY [DELAY_S]: waits, then gives every file in it another mode: many small
 * copy-ups. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	DIR *directory = argc > 1 ? opendir(argv[1]) : NULL;
	struct dirent *entry;
	int changed = 0;

	if (!directory || chdir(argv[1]))
		return 2;
	sleep(argc > 2 ? atoi(argv[2]) : 2);
	while ((entry = readdir(directory)))
		if (entry->d_type == DT_REG && chmod(entry->d_name, 0600) == 0)
			changed++;
	printf("changed %d files\n", changed);
	fflush(stdout);
	for (;;)
		pause();
}
