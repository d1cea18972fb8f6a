/* What the parts of the lab's init share: init.c boots, channel.c speaks with the host, relay.c runs the command.
 * The channel's frames and /lab.conf are described in the docstring of pykvm.lab. */
#ifndef PYKVM_LAB_INIT_H
#define PYKVM_LAB_INIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	PROTOCOL = 1,
	MAX_PAYLOAD = 16 * 1024,
	WINDOW = 256 * 1024,
	MAX_JOB = 8 * 1024 * 1024,
	E9_PORT = 0xe9,
};

#define PORT_PREAMBLE "\npykvm lab\n" /* others may write to an I/O port before us */

enum kind {
	HELLO = 'H', STAGE = 'L', FAIL = 'F', DATA = 'D', CREDIT = 'W', EXIT = 'X',
	PING = 'P', JOB = 'J', SIGNAL = 'S', SIZE = 'Z',
};

enum how { EXITED = 0, SIGNALLED = 1, NOT_STARTED = 2 };

/* The command and how to run it. The strings belong to the job's own buffer. */
struct job {
	char **argv, **env;
	const char *cwd, *share;
	unsigned short rows, columns; /* 0: no terminal */
	bool merge;
};

/* How it ended, for EXIT. */
struct ending {
	enum how how;
	int value;
	char text[256];
};

/* init.c */
void stage(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void power_off(void);

/* channel.c */
struct frame {
	uint8_t kind, stream;
	const uint8_t *payload; /* until the next one is received */
	size_t length;
};
void channel_open(const char *in, const char *out, int seconds);
bool channel_is_open(void);
void channel_send(enum kind kind, unsigned stream, const void *payload, size_t length);
void channel_await_hangup(int seconds);
int channel_descriptor(void);              /* to wait for frames at */
bool channel_receive(struct frame *frame); /* false: none is complete now */

/* relay.c */
struct job receive_job(void);
struct ending run_command(const struct job *job);

#endif
