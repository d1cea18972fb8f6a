/* The channel to the host: frames on a device, in and out (they are drawn in the docstring of pykvm.lab).
 *
 * Frames to the host are written whole and block: the host always reads. */
#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/serial.h>
#include <linux/serial_reg.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 4 };

static struct {
	int in, out; /* -1: not open */
	bool e9;     /* out is the I/O port */
	uint8_t frame[HEADER + MAX_PAYLOAD];
	size_t have;
} channel = {.in = -1, .out = -1};

bool channel_is_open(void)
{
	return channel.in >= 0;
}

static int open_device(const char *path, int seconds)
{
	struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
	for (int tries = seconds * 50;; tries--) {
		int fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
		if (fd >= 0)
			return fd;
		if (tries <= 0)
			fail("%s: %s", path, strerror(errno));
		nanosleep(&pause, NULL);
	}
}

/* A UART with a FIFO may lose bytes: an emulator that takes them from a file puts one in whenever a byte's
 * time is over, room or not. Without the FIFO it waits until the byte before was read. Linux can't be told (a
 * change of the type by TIOCSSERIAL leaves the FIFO on), but it minds the register only when the speed is set. */
static void take_fifo_away(int fd)
{
	struct serial_struct uart;
	if (ioctl(fd, TIOCGSERIAL, &uart) < 0 || uart.io_type != SERIAL_IO_PORT || !uart.port)
		return;
	if (ioperm(uart.port + UART_FCR, 1, 1) < 0)
		fail("the serial port's FIFO: %s", strerror(errno));
	outb(0, (unsigned short)(uart.port + UART_FCR));
}

static void make_raw(int fd)
{
	struct termios line;
	if (!isatty(fd) || tcgetattr(fd, &line) < 0)
		return;
	cfmakeraw(&line);
	cfsetspeed(&line, B115200);
	line.c_cflag |= CLOCAL;
	tcsetattr(fd, TCSANOW, &line);
	take_fifo_away(fd);
}

static void write_all(const uint8_t *data, size_t length)
{
	if (channel.e9)
		outsb(E9_PORT, data, length);
	while (length && !channel.e9) {
		ssize_t done = write(channel.out, data, length);
		if (done < 0 && errno == EAGAIN)
			poll(&(struct pollfd){.fd = channel.out, .events = POLLOUT}, 1, -1);
		else if (done < 0 && errno != EINTR)
			power_off(); /* the host hung up: nobody is left to report to */
		if (done > 0) {
			data += done;
			length -= (size_t)done;
		}
	}
}

void channel_open(const char *in, const char *out, int seconds)
{
	struct utsname kernel;
	uint8_t hello[4 + sizeof kernel.release] = {PROTOCOL};
	signal(SIGPIPE, SIG_IGN); /* whoever closes a stream is seen where it is written */
	int fd = open_device(in, seconds);
	make_raw(fd);
	if (strcmp(out, "port:0xe9") == 0) {
		if (ioperm(E9_PORT, 1, 1) < 0)
			fail("port 0xe9: %s", strerror(errno));
		channel.e9 = true;
		write_all((const uint8_t *)PORT_PREAMBLE, strlen(PORT_PREAMBLE));
	} else {
		channel.out = strcmp(in, out) == 0 ? fd : open_device(out, seconds);
		make_raw(channel.out);
	}
	channel.in = fd;
	uname(&kernel);
	memcpy(hello + 4, kernel.release, strlen(kernel.release));
	channel_send(HELLO, 0, hello, 4 + strlen(kernel.release));
}

void channel_send(enum kind kind, unsigned stream, const void *payload, size_t length)
{
	uint8_t frame[HEADER + MAX_PAYLOAD] = {(uint8_t)kind, (uint8_t)stream, length & 0xff, (uint8_t)(length >> 8)};
	memcpy(frame + HEADER, payload, length);
	write_all(frame, HEADER + length);
}

void channel_await_hangup(int seconds)
{
	struct timespec pause = {.tv_nsec = 50 * 1000 * 1000};
	uint8_t dropped[256];
	for (int tries = seconds * 20; tries > 0; tries--) {
		ssize_t got = read(channel.in, dropped, sizeof dropped);
		if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
			return;
		nanosleep(&pause, NULL);
	}
}

int channel_descriptor(void)
{
	return channel.in;
}

bool channel_receive(struct frame *frame)
{
	for (;;) {
		size_t length = channel.frame[2] | (size_t)channel.frame[3] << 8;
		size_t want = channel.have < HEADER ? HEADER : HEADER + length;
		if (want > sizeof channel.frame)
			fail("the channel is damaged: a frame of %zu bytes", length);
		if (channel.have >= HEADER && channel.have == want) {
			channel.have = 0;
			*frame = (struct frame){channel.frame[0], channel.frame[1], channel.frame + HEADER, length};
			return true;
		}
		ssize_t got = read(channel.in, channel.frame + channel.have, want - channel.have);
		if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
			power_off();
		if (got < 0)
			return false;
		channel.have += (size_t)got;
	}
}
