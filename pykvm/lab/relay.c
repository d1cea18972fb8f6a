/* Takes the job from the host, runs the command, and carries its streams.
 *
 * What would block for long, the command's own streams, is guarded by windows (see the docstring of pykvm.lab):
 * who does not read his stream stops that one and nothing else. */
#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { REAP_SECONDS = 3 };

static struct {
	pid_t pid;
	bool terminal, ended;
	int status;
	int input, output[3];    /* our ends; -1: closed */
	uint32_t credit[3];      /* what the host has room for */
	uint8_t waiting[WINDOW]; /* input that the command has not taken yet, a ring */
	size_t first, count;
	uint32_t taken; /* not reported to the host yet */
	bool input_ends;
} command;

/* ---- the job ------------------------------------------------------------------------------------------ */

static char *receive_strings(size_t *length)
{
	char *text = NULL;
	for (*length = 0;;) {
		struct frame frame;
		if (!channel_receive(&frame)) {
			poll(&(struct pollfd){.fd = channel_descriptor(), .events = POLLIN}, 1, -1);
		} else if (frame.kind == PING) {
			channel_send(PING, 0, frame.payload, frame.length);
		} else if (frame.kind == JOB && frame.length == 0) {
			return text;
		} else if (frame.kind == JOB) {
			text = realloc(text, *length + frame.length);
			if (!text || *length + frame.length > MAX_JOB)
				fail("the command and its environment are longer than %d bytes", MAX_JOB);
			memcpy(text + *length, frame.payload, frame.length);
			*length += frame.length;
		}
	}
}

struct job receive_job(void)
{
	struct job job = {0};
	size_t length, arguments = 0, variables = 0;
	char *text = receive_strings(&length);
	if (!length || text[length - 1])
		fail("the job is damaged");
	/* each string is at least one byte: no more pointers than bytes */
	job.argv = calloc(length / 5 + 2, sizeof *job.argv);
	job.env = calloc(length / 5 + 2, sizeof *job.env);
	if (!job.argv || !job.env)
		fail("no memory for the job");
	for (char *at = text; at < text + length; at += strlen(at) + 1) {
		if (strncmp(at, "arg=", 4) == 0)
			job.argv[arguments++] = at + 4;
		else if (strncmp(at, "env=", 4) == 0)
			job.env[variables++] = at + 4;
		else if (strncmp(at, "cwd=", 4) == 0)
			job.cwd = at + 4;
		else if (strncmp(at, "share=", 6) == 0)
			job.share = at + 6;
		else if (strncmp(at, "tty=", 4) == 0)
			sscanf(at + 4, "%hux%hu", &job.rows, &job.columns);
		else if (strcmp(at, "merge=1") == 0)
			job.merge = true;
		else
			fail("the job says %.40s, which this init does not know", at);
	}
	if (!arguments || !job.cwd)
		fail("the job has no command or no directory");
	return job;
}

/* ---- the command -------------------------------------------------------------------------------------- */

struct start_error {
	int error;
	bool directory; /* it was chdir that failed, not exec */
};

static _Noreturn void become(const struct job *job, const int fds[3], int report)
{
	struct start_error why = {0};
	sigset_t none;
	setsid();
	if (job->rows)
		ioctl(fds[0], TIOCSCTTY, 0);
	for (int fd = 0; fd < 3; fd++)
		dup2(fds[fd], fd);
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	environ = job->env;
	why.directory = chdir(job->cwd) < 0;
	if (!why.directory)
		execvp(job->argv[0], job->argv);
	why.error = errno;
	if (write(report, &why, sizeof why) != sizeof why)
		_exit(125);
	_exit(126);
}

static void need(int result, const char *what)
{
	if (result < 0)
		fail("%s: %s", what, strerror(errno));
}

/* Open the three streams: theirs for the command, ours in `command`. */
static void open_streams(const struct job *job, int theirs[3])
{
	command.terminal = job->rows != 0;
	if (command.terminal) {
		struct winsize size = {.ws_row = job->rows, .ws_col = job->columns};
		int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
		need(master, "/dev/ptmx");
		need(unlockpt(master), "unlockpt");
		theirs[0] = theirs[1] = theirs[2] = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
		need(theirs[0], "the terminal");
		ioctl(master, TIOCSWINSZ, &size);
		command.input = command.output[1] = master;
		command.output[2] = -1;
	} else {
		int in[2], out[2], errors[2] = {-1, -1};
		need(pipe2(in, O_CLOEXEC), "pipe");
		need(pipe2(out, O_CLOEXEC), "pipe");
		if (!job->merge)
			need(pipe2(errors, O_CLOEXEC), "pipe");
		theirs[0] = in[0];
		theirs[1] = out[1];
		theirs[2] = job->merge ? out[1] : errors[1];
		command.input = in[1];
		command.output[1] = out[0];
		command.output[2] = errors[0];
	}
	/* the open file of their end is another one, so the command's own streams stay blocking */
	need(fcntl(command.input, F_SETFL, O_NONBLOCK), "fcntl");
	for (int stream = 1; stream < 3; stream++)
		if (command.output[stream] >= 0)
			need(fcntl(command.output[stream], F_SETFL, O_NONBLOCK), "fcntl");
}

static struct start_error start(const struct job *job)
{
	struct start_error why = {0};
	int theirs[3], report[2];
	open_streams(job, theirs);
	need(pipe2(report, O_CLOEXEC), "pipe");
	command.pid = fork();
	need(command.pid, "fork");
	if (command.pid == 0)
		become(job, theirs, report[1]);
	close(report[1]);
	close(theirs[0]);
	if (theirs[1] != theirs[0])
		close(theirs[1]);
	if (theirs[2] != theirs[1])
		close(theirs[2]);
	if (read(report[0], &why, sizeof why) != sizeof why)
		why.error = 0; /* closed by a successful exec */
	close(report[0]);
	return why;
}

/* ---- its streams -------------------------------------------------------------------------------------- */

static void close_output(int stream)
{
	if (!command.terminal)
		close(command.output[stream]);
	command.output[stream] = -1;
	channel_send(DATA, (unsigned)stream, "", 0);
}

/* Carry what the command wrote, as far as the host has room. False: there is nothing more now. */
static bool carry_output(int stream)
{
	uint8_t data[MAX_PAYLOAD];
	size_t room = command.credit[stream] < sizeof data ? command.credit[stream] : sizeof data;
	ssize_t got = room ? read(command.output[stream], data, room) : -1;
	if (!room || (got < 0 && (errno == EAGAIN || errno == EINTR)))
		return false;
	if (got <= 0) { /* a terminal that nobody has open reads as EIO */
		close_output(stream);
		return false;
	}
	command.credit[stream] -= (uint32_t)got;
	channel_send(DATA, (unsigned)stream, data, (size_t)got);
	return true;
}

static void close_input(void)
{
	if (command.terminal) {
		struct termios line;
		uint8_t end = tcgetattr(command.input, &line) == 0 ? line.c_cc[VEOF] : 4;
		if (write(command.input, &end, 1) != 1)
			stage("the terminal took no end of input");
	} else {
		close(command.input);
	}
	command.input = -1;
}

/* Give the command its input, and the host credit for it. Input that nobody will read is dropped. */
static void carry_input(void)
{
	while (command.count && command.input >= 0) {
		size_t run = WINDOW - command.first < command.count ? WINDOW - command.first : command.count;
		ssize_t done = write(command.input, command.waiting + command.first, run);
		if (done < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (done < 0) {
			close(command.input);
			command.input = -1;
			break;
		}
		command.first = (command.first + (size_t)done) % WINDOW;
		command.count -= (size_t)done;
		command.taken += (uint32_t)done;
	}
	if (command.input < 0) {
		command.taken += (uint32_t)command.count;
		command.count = 0;
	}
	if (!command.count && command.input_ends && command.input >= 0)
		close_input();
	if (command.taken >= WINDOW / 4) {
		channel_send(CREDIT, 0, &command.taken, sizeof command.taken);
		command.taken = 0;
	}
}

static void queue_input(const uint8_t *data, size_t length)
{
	if (length > WINDOW - command.count)
		fail("the host sent more input than there was room for");
	command.input_ends |= length == 0;
	for (size_t n = 0; n < length; n++)
		command.waiting[(command.first + command.count + n) % WINDOW] = data[n];
	command.count += length;
	carry_input();
}

static void deliver_signal(int number)
{
	pid_t group = -1;
	if (!command.terminal || ioctl(command.output[1], TIOCGPGRP, &group) < 0 || group <= 0)
		group = command.pid;
	kill(-group, number);
}

static void take_frame(const struct frame *frame)
{
	uint32_t number = 0;
	memcpy(&number, frame->payload, frame->length < sizeof number ? frame->length : sizeof number);
	switch (frame->kind) {
	case DATA:
		queue_input(frame->payload, frame->length);
		break;
	case CREDIT:
		if (frame->stream == 1 || frame->stream == 2)
			command.credit[frame->stream] += number;
		break;
	case SIGNAL:
		deliver_signal((int)number);
		break;
	case SIZE:
		if (command.terminal && command.output[1] >= 0)
			ioctl(command.output[1], TIOCSWINSZ,
			      &(struct winsize){.ws_row = number & 0xffff, .ws_col = (unsigned short)(number >> 16)});
		break;
	case PING:
		channel_send(PING, 0, frame->payload, frame->length);
		break;
	default:
		fail("the channel is damaged: a frame of kind %#x", frame->kind);
	}
}

/* ---- its life ----------------------------------------------------------------------------------------- */

static void reap(void)
{
	int status;
	for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
		if (pid == command.pid) {
			command.ended = true;
			command.status = status;
		}
}

static void wait_for_events(int children)
{
	struct pollfd wait[5] = {{.fd = channel_descriptor(), .events = POLLIN}, {.fd = children, .events = POLLIN}};
	int count = 2;
	for (int stream = 1; stream < 3; stream++)
		if (command.output[stream] >= 0 && command.credit[stream])
			wait[count++] = (struct pollfd){.fd = command.output[stream], .events = POLLIN};
	if (command.input >= 0 && command.count)
		wait[count++] = (struct pollfd){.fd = command.input, .events = POLLOUT};
	poll(wait, (nfds_t)count, -1);
}

static void take_frames(void)
{
	for (struct frame frame; channel_receive(&frame);)
		take_frame(&frame);
}

/* What the command left running would outlive it: end it, so that its streams end too. */
static void end_the_rest(void)
{
	struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
	kill(getpid() == 1 ? -1 : -command.pid, SIGKILL); /* a test runs this as no process 1 */
	for (int tries = REAP_SECONDS * 100; tries > 0; tries--) {
		pid_t pid = waitpid(-1, NULL, WNOHANG);
		if (pid < 0)
			return;
		if (pid == 0)
			nanosleep(&pause, NULL);
	}
}

/* The rest of the output, as the host makes room for it. Every writer is gone: it ends. */
static void drain(int children)
{
	for (int stream = 1; stream < 3; stream++)
		while (command.output[stream] >= 0) {
			if (carry_output(stream))
				continue;
			if (command.output[stream] >= 0 && command.credit[stream]) {
				close_output(stream); /* somebody who can't be killed still has it open */
				break;
			}
			if (command.output[stream] >= 0) {
				wait_for_events(children);
				take_frames();
			}
		}
}

static struct ending ending(void)
{
	struct ending end = {.how = EXITED, .value = WEXITSTATUS(command.status)};
	if (WIFSIGNALED(command.status)) {
		end.how = SIGNALLED;
		end.value = WTERMSIG(command.status);
	}
	return end;
}

struct ending run_command(const struct job *job)
{
	sigset_t child;
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	int children = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	need(children, "signalfd");
	command.credit[1] = command.credit[2] = WINDOW;

	struct start_error why = start(job);
	if (why.directory)
		fail("the current directory %s does not exist in the lab: %s", job->cwd, strerror(why.error));
	if (why.error) {
		struct ending end = {.how = NOT_STARTED, .value = why.error};
		snprintf(end.text, sizeof end.text, "%s: %s", job->argv[0], strerror(why.error));
		return end;
	}
	while (!command.ended) {
		struct signalfd_siginfo dropped[4];
		wait_for_events(children);
		take_frames();
		carry_input();
		for (int stream = 1; stream < 3; stream++)
			if (command.output[stream] >= 0)
				carry_output(stream);
		if (read(children, dropped, sizeof dropped) > 0)
			reap();
	}
	end_the_rest();
	drain(children);
	return ending();
}
