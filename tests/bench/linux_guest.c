/* What the bench of Linux guests runs inside them: one measurement a word, one line of figures for each.
 * As /init it prints "init" and ends the run.
 *
 *   read DISK | write DISK    sequential, 1 MiB a request, past the page cache: bytes and nanoseconds
 *   random DISK               4 KiB reads at random places: requests and nanoseconds
 *   print TTY BYTES           lines of 64 bytes, numbered, on a terminal that is there or comes
 *   send IP | receive         one stream of TCP over port 99: bytes and nanoseconds
 *   tree DIR                  every file below it read: bytes and nanoseconds
 *   now                       what time it is, by the monotonic clock: nanoseconds, and 0
 *   from PROGRAM …            the same, and then PROGRAM instead of this one
 *   fill BYTES                so many bytes on stdout, by 64 KiB
 *   drain                     stdin read up to its end: bytes and nanoseconds since the first of them */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <linux/fs.h>

enum { MEBI = 1 << 20, PAGE = 4096, RANDOM_READS = 2000, PORT = 99, STREAM_MEBI = 16, PLAIN_EXIT = 0x500 };

static int64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void told(const char *what, int64_t count, int64_t from)
{
	printf("bench %s %lld %lld\n", what, (long long)count, (long long)(now_ns() - from));
	fflush(stdout);
}

static void disk(const char *what, const char *path)
{
	int is_write = !strcmp(what, "write"), fd = open(path, (is_write ? O_RDWR : O_RDONLY) | O_DIRECT);
	char *buffer = mmap(0, MEBI, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t size = 0, dice = 88172645463325252ull;
	int64_t from, done = 0;
	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size) < 0)
		fail(path);
	memset(buffer, 0x5a, MEBI);
	from = now_ns();
	if (!strcmp(what, "random")) {
		for (; done < RANDOM_READS; done++) {
			dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
			if (pread(fd, buffer, PAGE, (off_t)(dice % (size / PAGE) * PAGE)) != PAGE)
				fail(path);
		}
	} else {
		for (; done + MEBI <= (int64_t)size; done += MEBI)
			if ((is_write ? pwrite(fd, buffer, MEBI, done) : pread(fd, buffer, MEBI, done)) != MEBI)
				fail(path);
		if (is_write && fsync(fd))
			fail(path);
	}
	told(what, done, from);
}

static void print(const char *tty, long bytes)
{
	char lines[64 * 64 + 1];
	struct termios mode;
	int64_t from;
	int fd;
	while ((fd = open(tty, O_WRONLY | O_NOCTTY)) < 0)
		usleep(10000); /* its driver may still start */
	tcgetattr(fd, &mode);
	mode.c_oflag &= ~(tcflag_t)OPOST;
	tcsetattr(fd, TCSANOW, &mode);
	from = now_ns();
	for (long line = 0; line < bytes / 64;) {
		int used = 0;
		for (; used < 64 * 64 && line < bytes / 64; line++)
			used += sprintf(lines + used, "%063lx\n", line);
		for (int at = 0, step; at < used; at += step)
			if ((step = (int)write(fd, lines + at, (size_t)(used - at))) <= 0)
				fail(tty);
	}
	tcdrain(fd);
	told("print", bytes, from);
}

static void stream(const char *to)
{
	static char buffer[1 << 16];
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT)};
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1, from_fd = fd;
	int64_t from, done = 0, step;
	if (to) {
		inet_pton(AF_INET, to, &address.sin_addr);
		while (connect(fd, (void *)&address, sizeof address)) {
			close(fd);
			usleep(200000);
			fd = socket(AF_INET, SOCK_STREAM, 0);
		}
		from = now_ns();
		for (; done < (int64_t)STREAM_MEBI * MEBI; done += step)
			if ((step = write(fd, buffer, sizeof buffer)) <= 0)
				fail("send");
		shutdown(fd, SHUT_WR);
		(void)!read(fd, buffer, 1); /* until the other side has it all */
		told("send", done, from);
		return;
	}
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, (void *)&address, sizeof address) || listen(fd, 1) || (from_fd = accept(fd, 0, 0)) < 0)
		fail("receive");
	from = now_ns();
	while ((step = read(from_fd, buffer, sizeof buffer)) > 0)
		done += step;
	told("receive", done, from);
}

static int64_t tree_bytes;

static int read_one(const char *path, const struct stat *about, int kind)
{
	static char buffer[1 << 17];
	ssize_t step;
	int fd = kind == FTW_F && S_ISREG(about->st_mode) ? open(path, O_RDONLY) : -1;
	if (fd < 0)
		return kind == FTW_F && S_ISREG(about->st_mode);
	while ((step = read(fd, buffer, sizeof buffer)) > 0)
		tree_bytes += step;
	close(fd);
	return step < 0;
}

static void tree(const char *path)
{
	int64_t from = now_ns();
	if (ftw(path, read_one, 16))
		fail(path);
	told("tree", tree_bytes, from);
}

static void now(const char *what)
{
	printf("bench %s %lld 0\n", what, (long long)now_ns());
	fflush(stdout);
}

static void fill(int64_t bytes)
{
	static char buffer[1 << 16];
	for (int64_t done = 0, step; done < bytes; done += step) {
		step = bytes - done < (int64_t)sizeof buffer ? bytes - done : (int64_t)sizeof buffer;
		if ((step = write(1, buffer, (size_t)step)) <= 0)
			fail("fill");
	}
}

static void drain(void)
{
	static char buffer[1 << 16];
	int64_t done = 0, step, from = 0;
	while ((step = read(0, buffer, sizeof buffer)) > 0) {
		from = from ? from : now_ns();
		done += step;
	}
	told("drain", done, from);
}

static void boot(void)
{
	printf("init\n");
	fflush(stdout);
	ioperm(PLAIN_EXIT, 4, 1);
	outl(0, PLAIN_EXIT);
	for (;;)
		pause();
}

int main(int count, char **words)
{
	if (getpid() == 1 && count == 1)
		boot();
	if (count > 2 && !strcmp(words[1], "from")) {
		now("from");
		execv(words[2], words + 2);
		fail(words[2]);
	}
	for (int at = 1; at < count; at++) {
		const char *word = words[at], *next = at + 1 < count ? words[at + 1] : "";
		if (!strcmp(word, "receive"))
			stream(0);
		else if (!strcmp(word, "send"))
			stream(next), at++;
		else if (!strcmp(word, "print"))
			print(next, at + 2 < count ? atol(words[at + 2]) : 0), at += 2;
		else if (!strcmp(word, "tree"))
			tree(next), at++;
		else if (!strcmp(word, "now"))
			now("now");
		else if (!strcmp(word, "fill"))
			fill(atol(next)), at++;
		else if (!strcmp(word, "drain"))
			drain();
		else
			disk(word, next), at++;
	}
	return 0;
}
