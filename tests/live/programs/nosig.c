/* nosig: sleeps without any handler. As PID 1 it is deaf: the kernel drops signals an init does
 * not catch. */
#include <unistd.h>

int main(void)
{
	for (;;)
		pause();
}
