/* The lab's relay without a lab: it serves one job on the device that is its argument, a pseudo-terminal. */
#include "../../pykvm/lab/init.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

void stage(const char *format, ...)
{
	(void)format;
}

_Noreturn void power_off(void)
{
	exit(3);
}

_Noreturn void fail(const char *format, ...)
{
	char line[512];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	channel_send(FAIL, 0, line, strlen(line));
	exit(4);
}

int main(int count, char **arguments)
{
	if (count != 2)
		return 5;
	prctl(PR_SET_CHILD_SUBREAPER, 1); /* orphans come to us, as they do to process 1 */
	channel_open(arguments[1], arguments[1], 1);
	struct job job = receive_job();
	struct ending end = run_command(&job);
	unsigned char payload[2] = {(unsigned char)end.how, (unsigned char)end.value};
	channel_send(EXIT, 0, payload, sizeof payload);
	channel_await_hangup(5);
	return 0;
}
