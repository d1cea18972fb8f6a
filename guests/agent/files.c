/* Files of a container for the host: archives in and out, by a process of their own, and TCP connections. */
#include "container.h"

#include <linux/resource.h>
#include <linux/signal.h>

int container_root(const struct container *container)
{
	const char *path = container->state == RUNNING || container->state == CREATED ? PATH("/proc/%d/root", container->pid) : container->rootfs;
	return (int)SYS(openat, AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
}

struct tar_job { struct tar_plan plan; struct maps maps; const char *path; bool follow, is_in; };

static const char *last_part(const char *path)
{
	static char name[256];
	size_t end = strlen(path), start;
	while (end && path[end - 1] == '/')
		end--;
	for (start = end; start && path[start - 1] != '/'; start--)
		;
	if (end - start >= sizeof name)
		start = end - (sizeof name - 1);
	memcpy(name, path + start, end - start);
	name[end - start] = 0;
	return *name && !same(name, "..") ? name : ".";
}

__attribute__((noreturn)) static void tar_body(const void *argument)
{
	const struct tar_job *job = argument;
	uint64_t files[2] = {4096, 4096};
	long failed;
	explaining = false;
	SYS(prlimit64, 0, RLIMIT_NOFILE, files, 0);
	if (job->is_in) {
		failed = tar_read(&job->maps, KEPT_FD, job->path);
	} else if (job->path) {
		int fd = inside(KEPT_FD, job->path, O_PATH | O_CLOEXEC | (job->follow ? 0 : O_NOFOLLOW));
		failed = fd < 0 ? trouble_set(fd, "openat2", "%s", job->path) : tar_write(&job->plan, fd, last_part(job->path));
	} else {
		failed = tar_write(&job->plan, KEPT_FD, NULL);
	}
	if (failed < 0)
		give_up();
	SYS(exit_group, 0);
	__builtin_unreachable();
}

static int top_of(const struct container *container, const char *operation)
{
	if (same(operation, "diff"))
		return container->upper[0] ? (int)SYS(openat, AT_FDCWD, container->upper, O_PATH | O_DIRECTORY | O_CLOEXEC, 0) : -EOPNOTSUPP;
	if (same(operation, "export"))
		return (int)SYS(openat, AT_FDCWD, container->rootfs, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	return container_root(container);
}

void ask_tar(struct asker asker, struct container *container, const struct json *request, const char *operation)
{
	static struct tar_job job;
	bool is_copy = starts(operation, "copy");
	const char *path = json_string(json_get(request, "path"), NULL);
	if (is_copy && !path)
		return answer_error(asker, -EINVAL, operation, "there is no path");
	int top = top_of(container, operation);
	if (top < 0)
		return answer_error(asker, top, operation, "the root of %s", container->name);
	job = (struct tar_job){.maps = container->maps, .path = is_copy ? path : NULL, .follow = json_true(json_get(request, "follow")), .is_in = same(operation, "copy_in")};
	job.plan = (struct tar_plan){.maps = &job.maps, .is_layer = same(operation, "diff"), .without_content = json_get(request, "content")->type == JSON_BOOL && !json_true(json_get(request, "content"))};
	struct spawn how = {.role = HELPER, .container = container, .owner = asker, .cgroup = -1, .keep = top, .input = job.is_in, .output = !job.is_in,
			    .body = tar_body, .argument = &job};
	struct process *made = spawn(&how);
	SYS(close, top);
	if (made)
		answer_empty(asker);
	else
		answer_trouble(asker);
}

void ask_stat(struct asker asker, struct container *container, const struct json *request)
{
	const char *path = json_string(json_get(request, "path"), "");
	bool follow = json_true(json_get(request, "follow"));
	struct text text = TEXT(answer_bytes);
	char target[PATH_MOST] = {0}, real[PATH_MOST] = {0};
	struct stat about;
	int root = container_root(container), fd = root < 0 ? root : inside(root, path, O_PATH | O_CLOEXEC | (follow ? 0 : O_NOFOLLOW));
	if (root >= 0)
		SYS(close, root);
	if (fd < 0)
		return answer_error(asker, fd, "stat", "%s", path);
	SYS(fstat, fd, &about);
	if ((about.st_mode & S_IFMT) == S_IFLNK)
		SYS(readlinkat, fd, "", target, sizeof target - 1);
	SYS(readlink, PATH("/proc/self/fd/%d", fd), real, sizeof real - 1);
	SYS(close, fd);
	const char *shown = starts(real, container->rootfs) ? real + strlen(container->rootfs) : real;
	text_format(&text, "{\"mode\":%d,\"size\":%l", (int)about.st_mode, (int64_t)about.st_size);
	text_format(&text, ",\"uid\":%l,\"gid\":%l", (int64_t)id_inside(container->maps.uid, container->maps.uids, about.st_uid),
		    (int64_t)id_inside(container->maps.gid, container->maps.gids, about.st_gid));
	text_format(&text, ",\"mtime\":%l,\"target\":%j,\"path\":%j}", (int64_t)about.st_mtime, target, *shown ? shown : "/");
	answer(asker, &text);
}

/* ---- connections into containers -------------------------------------------------------------------------- */

enum { AF_INET = 2, SOCK_STREAM = 1, SOCK_NONBLOCK = O_NONBLOCK, SOCK_CLOEXEC = O_CLOEXEC, DIALS = 64, SOL_SOCKET = 1, SO_ERROR = 4, IPPROTO_TCP = 6, TCP_SYNCNT = 7, SYN_TRIES = 2 };

/* One that is being made. Its watch ends when it is, or is refused. */
static struct dial { struct watch watch; struct asker asker; } dials[DIALS];

static void dialled(struct watch *watch, uint32_t events)
{
	struct dial *dial = (struct dial *)watch;
	struct asker asker = dial->asker;
	int error = 0, fd = watch->fd;
	uint32_t size = sizeof error;
	(void)events;
	SYS(getsockopt, fd, SOL_SOCKET, SO_ERROR, &error, &size);
	int other = error ? -1 : (int)SYS(fcntl, fd, F_DUPFD_CLOEXEC, 4);
	watch->ready = NULL;
	loop_change(watch, 0);
	watch->fd = -1;
	if (error || !asker.connection || other < 0) {
		SYS(close, fd);
		if (other >= 0)
			SYS(close, other);
		return answer_error(asker, error ? -error : -EAGAIN, "connect", "the container");
	}
	answer_empty(asker);
	stream_out(asker.connection, asker.id, STREAM_OUT, fd);
	struct stream *in = stream_in(asker.connection, asker.id, other);
	if (in)
		in->is_socket = true;
}

void dials_forget(const struct connection *connection)
{
	for (struct dial *one = dials; one < dials + DIALS; one++)
		if (one->asker.connection == connection)
			one->asker.connection = NULL;
}

void ask_dial(struct asker asker, const struct json *request)
{
	struct dial *dial = dials;
	int64_t port = json_number(json_get(request, "port"), 0);
	uint32_t address;
	int prefix;
	if (!parse_address(json_string(json_get(request, "address"), ""), &address, &prefix) || port < 1 || port > 65535)
		return answer_error(asker, -EINVAL, "dial", "an address and a port");
	while (dial < dials + DIALS && dial->watch.ready)
		dial++;
	if (dial == dials + DIALS)
		return answer_error(asker, -EAGAIN, "dial", "%d are being made already", DIALS);
	struct { uint16_t family, port; uint32_t address; uint8_t zero[8]; } to = {AF_INET, (uint16_t)((port & 0xff) << 8 | port >> 8), address, {0}};
	int fd = (int)SYS(socket, AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	SYS(setsockopt, fd, IPPROTO_TCP, TCP_SYNCNT, &(int){SYN_TRIES}, sizeof(int)); /* nobody at that address: known after 7 s */
	long failed = fd < 0 ? fd : SYS(connect, fd, &to, sizeof to);
	if (failed < 0 && failed != -EINPROGRESS) {
		if (fd >= 0)
			SYS(close, fd);
		return answer_error(asker, failed, "connect", "%s", json_string(json_get(request, "address"), ""));
	}
	dial->asker = asker;
	loop_add(&dial->watch, fd, EPOLLOUT, dialled);
}
