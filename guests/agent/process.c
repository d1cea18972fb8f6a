/* Processes that the agent starts: their streams, what they tell before they execute a program, their end. */
#include "container.h"

#include <linux/close_range.h>
#include <linux/prctl.h>
#include <linux/signal.h>
#include <linux/wait.h>

enum { AF_UNIX = 1, SOCK_SEQPACKET = 5, SOCK_CLOEXEC = O_CLOEXEC, MSG_DONTWAIT = 0x40, MSG_NOSIGNAL = 0x4000, MSG_CMSG_CLOEXEC = 0x40000000 };
enum { SOL_SOCKET = 1, SCM_RIGHTS = 1, MESSAGE_MOST = 4096, PTMX = 0x502, PIPE_BYTES = 1 << 18 };

struct piece { void *at; size_t size; };
struct message {
	void *name;
	uint32_t name_size, pad;
	struct piece *pieces;
	size_t piece_count;
	void *control;
	size_t control_size;
	uint32_t flags, pad2;
};
struct rights { size_t size; int32_t level, type, fd, pad; };

struct process processes[PROCESSES];

/* ---- the child's side ------------------------------------------------------------------------------------- */

static void tell(char what, const void *bytes, size_t size)
{
	struct piece pieces[2] = {{&what, 1}, {(void *)(uintptr_t)bytes, size}};
	struct message message = {.pieces = pieces, .piece_count = 2};
	SYS(sendmsg, STATUS_FD, &message, MSG_NOSIGNAL);
}

static void tell_step(const char *json, size_t size)
{
	tell('S', json, size);
}

void give_up(void)
{
	char json[768];
	struct text text = TEXT(json);
	trouble_json(&text);
	tell('E', json, text.used);
	SYS(exit_group, 127);
	__builtin_unreachable();
}

void tell_ready(void)
{
	char byte;
	tell('R', "", 0);
	if (SYS(read, STATUS_FD, &byte, 1) != 1)
		SYS(exit_group, 127);
}

void tell_begin(void)
{
	tell('X', "", 0);
}

void tell_pid(int pid)
{
	tell('P', &pid, sizeof pid);
}

long tell_terminal(int fd)
{
	char what = 'T';
	struct rights rights = {sizeof rights - 4, SOL_SOCKET, SCM_RIGHTS, fd, 0};
	struct piece piece = {&what, 1};
	struct message message = {.pieces = &piece, .piece_count = 1, .control = &rights, .control_size = sizeof rights};
	return SYS(sendmsg, STATUS_FD, &message, MSG_NOSIGNAL);
}

/* Descriptors 0 to 3 and no other; a container's process never sees the agent's. */
__attribute__((noreturn)) static void in_child(const struct spawn *how, const int ends[3], int status)
{
	uint64_t none = 0;
	int from[4] = {ends[0], ends[1], ends[2], status};
	SYS(prctl, PR_SET_DUMPABLE, 0);
	for (int n = 0; n < 4; n++) /* all are above 4: the agent holds 0 to 4 itself */
		SYS(dup3, from[n], n, n == STATUS_FD ? O_CLOEXEC : 0);
	if (how->keep >= 0)
		SYS(dup3, how->keep, KEPT_FD, O_CLOEXEC);
	SYS(close_range, how->keep >= 0 ? KEPT_FD + 1 : KEPT_FD, ~0u, 0);
	SYS(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
	explaining = how->explain;
	explain_to = tell_step;
	explain_who = how->role == FIRST ? "container" : "exec";
	trouble_clear();
	how->body(how->argument);
}

/* ---- the agent's side ------------------------------------------------------------------------------------- */

static void status_ready(struct watch *watch, uint32_t events);

static struct process *process_new(void)
{
	for (struct process *one = processes; one < processes + PROCESSES; one++)
		if (!one->used) {
			memset(one, 0, sizeof *one);
			one->used = true;
			one->status.fd = -1;
			return one;
		}
	trouble_set(-EAGAIN, "spawn", "%d processes already", PROCESSES);
	return NULL;
}

static int null_fd(void)
{
	static int fd = -1;
	if (fd < 0)
		fd = (int)SYS(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
	return fd;
}

/* A pipe, one of whose ends is for the child. Everything else has /dev/null. */
static long open_ends(const struct spawn *how, int ends[3], int mine[3])
{
	bool wanted[3] = {how->input, how->output, how->error};
	for (int n = 0; n < 3; n++) {
		int both[2];
		ends[n] = null_fd();
		mine[n] = -1;
		if (!wanted[n] || how->terminal)
			continue;
		TRY("pipe2", "a stream between the process and the host", SYS(pipe2, both, O_CLOEXEC), "stream %d", n);
		SYS(fcntl, both[0], F_SETPIPE_SZ, PIPE_BYTES); /* fewer turns between the process and us; else it is smaller */
		ends[n] = both[n ? 1 : 0];
		mine[n] = both[n ? 0 : 1];
		if (n == 0)
			SYS(fcntl, mine[n], F_SETFL, O_WRONLY | O_NONBLOCK);
	}
	return 0;
}

static void close_ends(const int ends[3], const int mine[3], bool all)
{
	for (int n = 0; n < 3; n++)
		if (mine[n] >= 0) {
			SYS(close, ends[n]);
			if (all)
				SYS(close, mine[n]);
		}
}

static void attach(struct process *process, const int mine[3])
{
	struct asker owner = process->owner;
	if (mine[0] >= 0)
		stream_in(owner.connection, owner.id, mine[0]);
	if (mine[1] >= 0)
		stream_out(owner.connection, owner.id, STREAM_OUT, mine[1]);
	if (mine[2] >= 0)
		stream_out(owner.connection, owner.id, STREAM_ERR, mine[2]);
}

static void names_of(uint64_t flags, struct text *to)
{
	static const struct { uint64_t flag; const char *name; } names[] = {
		{CLONE_NEWUSER, "CLONE_NEWUSER"}, {CLONE_NEWNS, "CLONE_NEWNS"}, {CLONE_NEWPID, "CLONE_NEWPID"},
		{CLONE_NEWNET, "CLONE_NEWNET"}, {CLONE_NEWIPC, "CLONE_NEWIPC"}, {CLONE_NEWUTS, "CLONE_NEWUTS"},
		{CLONE_NEWTIME, "CLONE_NEWTIME"}, {CLONE_INTO_CGROUP, "CLONE_INTO_CGROUP"}, {CLONE_PIDFD, "CLONE_PIDFD"}};
	for (size_t n = 0; n < COUNT(names); n++)
		if (flags & names[n].flag)
			text_format(to, to->used ? "|%s" : "%s", names[n].name);
}

static long clone_into(const struct spawn *how, const int ends[3], int status)
{
	struct clone_args args = {.flags = how->flags, .exit_signal = SIGCHLD};
	char names[256];
	struct text text = TEXT(names);
	long pid;
	if (how->cgroup >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)how->cgroup;
	}
	if (how->pidfd) {
		args.flags |= CLONE_PIDFD;
		args.pidfd = (uintptr_t)how->pidfd;
	}
	names[0] = 0;
	names_of(args.flags, &text);
	uint64_t start = step_start();
	pid = SYS(clone3, &args, sizeof args);
	if (!pid)
		in_child(how, ends, status);
	return step_done(start, "clone3", how->role == FIRST ? "the container's first process, in namespaces of its own and in its cgroup"
							     : "a process", pid, "%s", names);
}

struct process *spawn(const struct spawn *how)
{
	int ends[3], mine[3], pair[2];
	long pid;
	struct process *process = process_new();
	if (!process)
		return NULL;
	process->role = how->role;
	process->container = how->container;
	process->owner = how->owner;
	process->has_terminal = how->terminal;
	pid = STEP("socketpair", "the process tells its steps and errors here", SYS(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), "");
	if (pid >= 0) {
		pid = open_ends(how, ends, mine);
		if (pid >= 0)
			pid = clone_into(how, ends, pair[1]);
		close_ends(ends, mine, pid < 0);
		SYS(close, pair[1]);
		if (pid < 0)
			SYS(close, pair[0]);
	}
	if (pid < 0) {
		process->used = false;
		return NULL;
	}
	process->pid = (int)pid;
	attach(process, mine);
	loop_add(&process->status, pair[0], EPOLLIN, status_ready);
	return process;
}

struct process *process_find(const struct container *container, int pid)
{
	for (struct process *one = processes; one < processes + PROCESSES; one++)
		if (one->used && one->pid == pid && one->container == container && !one->exited && one->role != HELPER)
			return one;
	return NULL;
}

long process_go(struct process *process)
{
	process->gated = false;
	return SYS(sendto, process->status.fd, "g", 1, MSG_NOSIGNAL, 0, 0);
}

void resize(const struct process *process, int rows, int columns)
{
	uint16_t size[4] = {(uint16_t)rows, (uint16_t)columns, 0, 0};
	int fd = process->terminal_out && !process->output_gone ? process->terminal_out->watch.fd : -1;
	if (fd >= 0)
		SYS(ioctl, fd, TIOCSWINSZ, size);
}

/* What a process calls its terminal is a claim: a container's /dev/ptmx may be anything. */
static void take_terminal(struct process *process, int fd)
{
	struct stat about;
	struct asker owner = process->owner;
	if (process->terminal_out || SYS(fstat, fd, &about) < 0 || (about.st_mode & S_IFMT) != S_IFCHR || about.st_rdev != PTMX) {
		SYS(close, fd);
		return;
	}
	int other = (int)SYS(fcntl, fd, F_DUPFD_CLOEXEC, 4);
	SYS(fcntl, fd, F_SETFL, O_RDWR | O_NONBLOCK);
	if ((process->terminal_out = stream_out(owner.connection, owner.id, STREAM_OUT, fd)))
		process->terminal_out->gone = &process->output_gone;
	if ((process->terminal_in = stream_in(owner.connection, owner.id, other))) {
		process->terminal_in->is_terminal = true;
		process->terminal_in->gone = &process->input_gone;
	}
}

static void finish(struct process *process);

static void answer_pid(struct process *process)
{
	char bytes[256];
	struct text text = TEXT(bytes);
	struct asker asker = process->waiting;
	process->waiting.connection = NULL;
	text_format(&text, "{\"pid\":%d", process->pid);
	if (process->role == FIRST)
		text_format(&text, ",\"cgroup\":\"/pykvm/%s\",\"at_ns\":%l", process->container->name, (int64_t)process->container->asked_ns);
	text_add(&text, "}");
	answer(asker, &text);
}

/* It has executed its program, or given up. */
static void settled(struct process *process)
{
	loop_close(&process->status);
	if (process->failed || !process->begins)
		return; /* told when it has been reaped */
	process->executed = true;
	if (process->role == FIRST)
		process->container->state = RUNNING;
	if (process->role != HELPER)
		answer_pid(process);
}

/* The process that counts is another one, which has become our child. */
static void adopt(struct process *process, const void *bytes)
{
	struct container *container = process->container;
	memcpy(&process->pid, bytes, sizeof(int));
	if (process->role != FIRST)
		return;
	SYS(close, container->pidfd);
	container->pid = process->pid;
	container->pidfd = (int)SYS(pidfd_open, process->pid, 0);
}

static void message_of(struct process *process, char *bytes, size_t size, int fd)
{
	struct text body = {bytes + 1, size - 1, size, false};
	bytes[size] = 0;
	switch (bytes[0]) {
	case 'S':
		event(process->owner, &body);
		break;
	case 'E':
		process->failed = true;
		format(process->failure, sizeof process->failure, "%s", bytes + 1);
		break;
	case 'R':
		process->gated = true;
		if (process->role == FIRST)
			process->container->state = CREATED;
		answer_pid(process);
		break;
	case 'X':
		process->begins = true;
		break;
	case 'P':
		if (size == 1 + sizeof(int))
			adopt(process, bytes + 1);
		break;
	case 'T':
		if (fd >= 0)
			take_terminal(process, fd);
		fd = -1;
		break;
	}
	if (fd >= 0)
		SYS(close, fd);
}

/* False when there is no more, for now or for ever. */
static bool hear(struct process *process)
{
	static char bytes[MESSAGE_MOST + 1];
	struct rights rights = {.fd = -1};
	struct piece piece = {bytes, MESSAGE_MOST};
	struct message message = {.pieces = &piece, .piece_count = 1, .control = &rights, .control_size = sizeof rights};
	long got = SYS(recvmsg, process->status.fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (got == -EAGAIN || got == -EINTR)
		return false;
	if (got <= 0) {
		settled(process);
		return false;
	}
	bool has_fd = message.control_size >= sizeof rights - 4 && rights.level == SOL_SOCKET && rights.type == SCM_RIGHTS;
	message_of(process, bytes, (size_t)got, has_fd ? rights.fd : -1);
	return true;
}

static void status_ready(struct watch *watch, uint32_t events)
{
	struct process *process = (struct process *)((char *)watch - offsetof(struct process, status));
	(void)events;
	while (process->status.fd >= 0 && hear(process))
		;
}

static void send_failure(struct process *process, struct asker asker)
{
	char bytes[900];
	struct text text = TEXT(bytes);
	text_format(&text, "{\"error\":%s}", process->failure);
	answer(asker, &text);
}

static void tell_exit(struct process *process)
{
	char bytes[128];
	struct text text = TEXT(bytes);
	int status = process->wait_status, number = status & 0x7f;
	text_format(&text, "{\"event\":\"exit\",\"status\":%d", number ? 128 + number : status >> 8 & 0xff);
	if (number)
		text_format(&text, ",\"signal\":%d", number);
	text_format(&text, ",\"oom_kills\":%l}", process->container ? cgroup_oom_kills(process->container) : 0);
	event(process->owner, &text);
}

static void tell_end(struct process *process)
{
	char bytes[900];
	struct text text = TEXT(bytes);
	text_add(&text, "{\"event\":\"end\"");
	if (process->failed)
		text_format(&text, ",\"error\":%s", process->failure);
	else if (process->wait_status)
		text_format(&text, ",\"error\":{\"errno\":5,\"step\":\"tar\",\"text\":\"it ended with %x\"}", (unsigned)process->wait_status);
	text_add(&text, "}");
	event(process->owner, &text);
}

static void finish(struct process *process)
{
	struct container *container = process->container;
	process->exited = true;
	if (process->terminal_in && !process->input_gone)
		stream_close(process->terminal_in);
	if (process->terminal_out && !process->output_gone)
		process->terminal_out->gone = NULL; /* its last words are still in it */
	if (process->role == HELPER) {
		tell_end(process);
	} else if (process->begins && !process->failed && !process->executed) {
		settled(process); /* of another runtime, which may be slower than what it has started */
	} else if (!process->executed && !process->failed && !process->gated) {
		process->failed = true; /* killed on its way */
		format(process->failure, sizeof process->failure, "{\"errno\":%d,\"step\":\"start\",\"text\":\"the process ended before its program began (status %x)\"}",
		       EIO, (unsigned)process->wait_status);
	}
	if (process->role == FIRST)
		container_ended(container, process->failed ? 127 << 8 : process->wait_status);
	else if (process->role == EXECUTED && !process->failed)
		tell_exit(process);
	if (process->failed && process->role != HELPER)
		send_failure(process, process->waiting);
	loop_close(&process->status);
	process->used = false;
}

void reap(void)
{
	int status;
	long pid;
	while ((pid = SYS(wait4, -1, &status, WNOHANG, 0)) > 0) {
		for (struct process *one = processes; one < processes + PROCESSES; one++)
			if (one->used && one->status.fd >= 0)
				status_ready(&one->status, EPOLLIN); /* which may say what its pid is */
		for (struct process *one = processes; one < processes + PROCESSES; one++)
			if (one->used && one->pid == pid) {
				one->wait_status = status;
				finish(one);
				break;
			}
	}
}
