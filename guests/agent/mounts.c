/* What a container sees as its files: mounts, devices, what is hidden from it. It runs in the container's first process, before
 * the program. Paths are the image's, which may hold any symbolic link: each is resolved so that it cannot leave the root. */
#include "container.h"

#include <linux/mount.h>

static int root_fd = -1;

/* The folder, made with those above it where they are missing. */
static int folder(const char *path)
{
	char part[PATH_MOST];
	struct text text = TEXT(part);
	int fd = inside(root_fd, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd != -ENOENT)
		return fd;
	fd = inside(root_fd, ".", O_PATH | O_CLOEXEC);
	part[0] = 0;
	while (*path) {
		size_t size = 0;
		while (path[size] && path[size] != '/')
			size++;
		char name[256] = {0};
		if (size >= sizeof name)
			return SYS(close, fd), -ENAMETOOLONG;
		memcpy(name, path, size);
		path += size + (path[size] == '/');
		if (!size)
			continue;
		if (!same(name, "..") && !same(name, "."))
			SYS(mkdirat, fd, name, 0755);
		SYS(close, fd);
		text_format(&text, "/%s", name);
		fd = inside(root_fd, part, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0)
			return fd;
	}
	return fd;
}

/* A file to mount on. */
static int file(const char *path)
{
	int fd = inside(root_fd, path, O_PATH | O_CLOEXEC), at;
	char above[PATH_MOST];
	size_t size = strlen(path);
	if (fd != -ENOENT || size >= sizeof above)
		return fd;
	while (size && path[size - 1] != '/')
		size--;
	memcpy(above, path, size);
	above[size] = 0;
	at = folder(above);
	if (at < 0)
		return at;
	SYS(close, SYS(openat, at, path + size, O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY | O_CLOEXEC, 0644));
	SYS(close, at);
	return inside(root_fd, path, O_PATH | O_CLOEXEC);
}

static char *of_fd(int fd)
{
	static char path[32];
	return format(path, sizeof path, "/proc/self/fd/%d", fd);
}

/* ---- config.mounts ---------------------------------------------------------------------------------------- */

struct wish { uint64_t flags, propagation; bool is_bind, recursive; char data[1024]; };

static bool flag_of(const char *word, struct wish *wish)
{
	static const struct { const char *word; uint64_t set, clear; } words[] = {
		{"ro", MS_RDONLY, 0}, {"rw", 0, MS_RDONLY}, {"nosuid", MS_NOSUID, 0}, {"suid", 0, MS_NOSUID}, {"nodev", MS_NODEV, 0},
		{"dev", 0, MS_NODEV}, {"noexec", MS_NOEXEC, 0}, {"exec", 0, MS_NOEXEC}, {"sync", MS_SYNCHRONOUS, 0}, {"noatime", MS_NOATIME, 0},
		{"relatime", MS_RELATIME, 0}, {"strictatime", MS_STRICTATIME, 0}, {"nodiratime", MS_NODIRATIME, 0}, {"defaults", 0, 0},
		{"async", 0, 0}, {"atime", 0, 0}, {"diratime", 0, 0}, {"nosymfollow", MS_NOSYMFOLLOW, 0}};
	static const struct { const char *word; uint64_t flags; } kinds[] = {
		{"private", MS_PRIVATE}, {"rprivate", MS_PRIVATE | MS_REC}, {"shared", MS_SHARED}, {"rshared", MS_SHARED | MS_REC},
		{"slave", MS_SLAVE}, {"rslave", MS_SLAVE | MS_REC}, {"unbindable", MS_UNBINDABLE}};
	for (size_t n = 0; n < COUNT(words); n++)
		if (same(words[n].word, word)) {
			wish->flags = (wish->flags | words[n].set) & ~words[n].clear;
			return true;
		}
	for (size_t n = 0; n < COUNT(kinds); n++)
		if (same(kinds[n].word, word)) {
			wish->propagation = kinds[n].flags;
			return true;
		}
	if (same(word, "bind") || same(word, "rbind")) {
		wish->is_bind = true;
		wish->recursive = *word == 'r';
		return true;
	}
	return false;
}

static long read_wish(const struct json *mount, struct wish *wish)
{
	struct text data = {wish->data, 0, sizeof wish->data, false};
	*wish = (struct wish){.data = ""};
	JSON_EACH(one, json_get(mount, "options")) {
		const char *word = json_string(one, "");
		if (!flag_of(word, wish))
			text_format(&data, data.used ? ",%s" : "%s", word);
	}
	return data.full ? trouble_set(-E2BIG, "mount", "options of %s", json_string(json_get(mount, "destination"), "")) : 0;
}

/* For people: "ro,nosuid". */
static const char *flag_names(uint64_t flags)
{
	static const struct { uint64_t flag; const char *name; } names[] = {
		{MS_RDONLY, "ro"}, {MS_NOSUID, "nosuid"}, {MS_NODEV, "nodev"}, {MS_NOEXEC, "noexec"}};
	static char bytes[64];
	struct text text = TEXT(bytes);
	bytes[0] = 0;
	for (size_t n = 0; n < COUNT(names); n++)
		if (flags & names[n].flag)
			text_format(&text, text.used ? ",%s" : "%s", names[n].name);
	return bytes;
}

static long bind(const char *source, int from, int to, const char *where, const struct wish *wish, const char *effect)
{
	char path[32];
	uint64_t first = MS_BIND | (wish->recursive ? MS_REC : 0);
	format(path, sizeof path, "/proc/self/fd/%d", from);
	TRY("mount", effect, SYS(mount, path, of_fd(to), "", first, ""), "bind %s → %s", source, where);
	if (wish->flags) { /* a bind takes them only when it is there; `to` is what lies below it */
		int top = inside(root_fd, where, O_PATH | O_CLOEXEC);
		long failed = STEP("mount", wish->flags & MS_RDONLY ? "and there only to be read" : "and there with less rights",
				   SYS(mount, "", of_fd(top), "", MS_REMOUNT | MS_BIND | wish->flags, ""), "remount %s %s", where, flag_names(wish->flags));
		SYS(close, top);
		return failed;
	}
	return 0;
}

static bool is_folder(int fd)
{
	struct stat about;
	return SYS(fstat, fd, &about) >= 0 && (about.st_mode & S_IFMT) == S_IFDIR;
}

static long bind_from(const struct json *mount, const char *where, const struct wish *wish, bool is_share)
{
	const char *source = json_string(json_get(mount, "source"), "");
	char path[PATH_MOST];
	long from = is_share ? share_path(source, path) : SYS(openat, AT_FDCWD, source, O_PATH | O_CLOEXEC, 0);
	if (from < 0)
		return trouble_set(from, "mount", "the source %s", source);
	int to = is_folder((int)from) ? folder(where) : file(where);
	long failed = to < 0 ? trouble_set(to, "mount", "the place %s", where) : bind(source, (int)from, to, where, wish, "the same files seen at a second place");
	SYS(close, from);
	SYS(close, to);
	return failed;
}

static const char *effect_of(const char *type)
{
	static const struct { const char *type, *effect; } effects[] = {
		{"proc", "the processes of its PID namespace"}, {"sysfs", "the kernel's devices, and those of its network namespace"},
		{"tmpfs", "files in memory that nobody else sees"}, {"devpts", "terminals of its own"},
		{"mqueue", "the message queues of its IPC namespace"}, {"cgroup2", "its own cgroup, seen as the topmost"}};
	for (size_t n = 0; n < COUNT(effects); n++)
		if (same(effects[n].type, type))
			return effects[n].effect;
	return "a file system of its own";
}

static long mount_one(const struct json *mount)
{
	const char *where = json_string(json_get(mount, "destination"), ""), *type = json_string(json_get(mount, "type"), "bind");
	struct wish wish;
	long failed = read_wish(mount, &wish);
	bool is_share = same(type, "virtiofs");
	if (failed < 0)
		return failed;
	if (is_share || wish.is_bind || same(type, "bind"))
		return bind_from(mount, where, &wish, is_share);
	type = same(type, "cgroup") ? "cgroup2" : type;
	int to = folder(where);
	if (to < 0)
		return trouble_set(to, "mount", "the place %s", where);
	failed = STEP("mount", effect_of(type), SYS(mount, json_string(json_get(mount, "source"), type), of_fd(to), type, wish.flags, wish.data),
		      "%s → %s %s %s", type, where, flag_names(wish.flags), wish.data);
	SYS(close, to);
	if (failed >= 0 && wish.propagation) {
		to = inside(root_fd, where, O_PATH | O_CLOEXEC);
		SYS(mount, "", of_fd(to), "", wish.propagation, "");
		SYS(close, to);
	}
	return failed;
}

/* ---- devices ---------------------------------------------------------------------------------------------- */

/* In a user namespace no device can be made: the guest's own node is bound instead. */
static long device(int dev, const char *name, uint32_t type, uint32_t number, uint32_t mode, bool bound)
{
	long failed = bound ? -EPERM : SYS(mknodat, dev, name, type | mode, number);
	if (failed == -EEXIST)
		return 0;
	if (failed >= 0)
		return SYS(fchmodat, dev, name, mode);
	if (failed != -EPERM)
		return trouble_set(failed, "mknodat", "/dev/%s", name);
	char where[96];
	int from = (int)SYS(openat, AT_FDCWD, PATH("/dev/%s", name), O_PATH | O_CLOEXEC, 0), to = file(format(where, sizeof where, "/dev/%s", name));
	failed = from < 0 ? from : to < 0 ? to : bind(PATH("/dev/%s", name), from, to, where, &(struct wish){.flags = 0},
									       "the guest's own device: in a user namespace none can be made");
	SYS(close, from);
	SYS(close, to);
	return failed < 0 ? trouble_set(failed, "mount", "/dev/%s", name) : 0;
}

static uint32_t number(uint32_t major, uint32_t minor)
{
	return (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

static long devices(const struct json *config, bool bound)
{
	static const struct { const char *name; uint32_t major, minor; } nodes[] = {
		{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
	static const char *const links[][2] = {{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
					       {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}};
	int dev = folder("/dev");
	long failed = dev < 0 ? trouble_set(dev, "openat2", "/dev") : 0;
	uint64_t start = step_start();
	for (size_t n = 0; n < COUNT(nodes) && failed >= 0; n++)
		failed = device(dev, nodes[n].name, S_IFCHR, number(nodes[n].major, nodes[n].minor), 0666, bound);
	if (bound) /* each has been told */
		start = step_start();
	for (size_t n = 0; n < COUNT(links) && failed >= 0; n++)
		SYS(symlinkat, links[n][0], dev, links[n][1]);
	JSON_EACH(one, json_path(config, "linux.devices")) {
		const char *path = json_string(json_get(one, "path"), ""), *type = json_string(json_get(one, "type"), "c");
		if (failed < 0 || !starts(path, "/dev/"))
			continue;
		failed = device(dev, path + 5, *type == 'b' ? S_IFBLK : *type == 'p' ? S_IFIFO : S_IFCHR,
				number((uint32_t)json_number(json_get(one, "major"), 0), (uint32_t)json_number(json_get(one, "minor"), 0)),
				(uint32_t)json_number(json_get(one, "fileMode"), 0666), bound);
	}
	step_done(start, bound ? "symlinkat" : "mknodat", bound ? "links to its own descriptors" : "devices without content, and links", failed,
		  bound ? "/dev/fd stdin stdout stderr ptmx" : "/dev/null zero full random urandom tty fd stdin stdout stderr ptmx");
	SYS(close, dev);
	return failed;
}

/* ---- terminal --------------------------------------------------------------------------------------------- */

/* What is at the end of `master` becomes our input and output; the agent gets the other end. */
long terminal_take(int master, const struct json *size)
{
	int unlocked = 0;
	uint16_t window[4] = {(uint16_t)json_number(json_get(size, "height"), 0), (uint16_t)json_number(json_get(size, "width"), 0), 0, 0};
	if (master < 0)
		return trouble_set(master, "openat2", "/dev/pts/ptmx");
	SYS(ioctl, master, TIOCSPTLCK, &unlocked);
	long slave = STEP("ioctl", "a terminal: the host has one end, the program the other", SYS(ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC), "TIOCGPTPEER");
	if (slave < 0)
		return slave;
	if (window[0] && window[1])
		SYS(ioctl, slave, TIOCSWINSZ, window);
	for (int n = 0; n < 3; n++)
		SYS(dup3, slave, n, 0);
	SYS(ioctl, 0, TIOCSCTTY, 0);
	long failed = tell_terminal(master);
	SYS(close, master);
	return failed < 0 ? trouble_set(failed, "sendmsg", "the terminal to the agent") : slave;
}

static long terminal(const struct json *config)
{
	long slave = terminal_take(inside(root_fd, "/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), json_path(config, "process.consoleSize"));
	if (slave < 0)
		return slave;
	int to = file("/dev/console");
	long failed = to < 0 ? to : bind("the terminal", (int)slave, to, "/dev/console", &(struct wish){.flags = 0}, "its terminal is its console");
	SYS(close, to);
	SYS(close, slave);
	return failed;
}

/* ---- all of it -------------------------------------------------------------------------------------------- */

long mounts_make(const struct container *container, const struct json *config, bool wants_terminal)
{
	TRY("mount", "what is mounted from here on stays in this container", SYS(mount, "", "/", "", MS_REC | MS_PRIVATE, ""), "MS_REC|MS_PRIVATE /");
	TRY("mount", "a root must be a mount of its own", SYS(mount, container->rootfs, container->rootfs, "", MS_BIND | MS_REC, ""), "bind %s", container->rootfs);
	root_fd = (int)SYS(openat, AT_FDCWD, container->rootfs, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	if (root_fd < 0)
		return trouble_set(root_fd, "openat", "%s", container->rootfs);
	JSON_EACH(one, json_get(config, "mounts")) {
		long failed = mount_one(one);
		if (failed < 0)
			return failed;
	}
	long failed = devices(config, container->maps.uids);
	return failed >= 0 && wants_terminal ? terminal(config) : failed;
}

/* Files that the host gives, which lie beside the upper layer, so that no diff shows them. */
long mounts_files(const struct container *container, const struct json *files)
{
	int n = 0;
	JSON_EACH(one, files) {
		const char *where = json_string(json_get(one, "path"), "");
		char path[128];
		format(path, sizeof path, RUN "/c/%d/f%d", (int)(container - containers), n++);
		int from = (int)SYS(openat, AT_FDCWD, path, O_PATH | O_CLOEXEC, 0), to = file(where);
		long failed = from < 0 ? from : to < 0 ? to : bind(path, from, to, where, &(struct wish){.flags = 0}, "written for this container; no layer has it");
		SYS(close, from);
		SYS(close, to);
		if (failed < 0)
			return trouble_set(failed, "mount", "the file %s", where);
	}
	return 0;
}

long mounts_mask(const struct json *config)
{
	int nothing = (int)SYS(openat, AT_FDCWD, "/dev/null", O_PATH | O_CLOEXEC, 0);
	char empty[32];
	format(empty, sizeof empty, "/proc/self/fd/%d", nothing);
	JSON_EACH(one, json_path(config, "linux.maskedPaths")) {
		const char *path = json_string(one, "");
		int to = inside(root_fd, path, O_PATH | O_CLOEXEC);
		if (to < 0)
			continue; /* this kernel has no such file */
		long failed;
		if (is_folder(to))
			failed = STEP("mount", "hidden: an empty folder instead", SYS(mount, "tmpfs", of_fd(to), "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=0"), "tmpfs → %s", path);
		else
			failed = STEP("mount", "hidden: a file that would tell of the guest, or change it", SYS(mount, empty, of_fd(to), "", MS_BIND, ""), "/dev/null → %s", path);
		SYS(close, to);
		if (failed < 0)
			return failed;
	}
	SYS(close, nothing);
	JSON_EACH(one, json_path(config, "linux.readonlyPaths")) {
		const char *path = json_string(one, "");
		int to = inside(root_fd, path, O_PATH | O_CLOEXEC);
		if (to < 0)
			continue;
		struct wish wish = {.flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, .recursive = true};
		long failed = bind(path, to, to, path, &wish, "a mount of its own, so that it can have rights of its own");
		SYS(close, to);
		if (failed < 0)
			return failed;
	}
	return 0;
}

long root_enter(void)
{
	TRY("fchdir", "into the new root", SYS(fchdir, root_fd), "%d", root_fd);
	TRY("pivot_root", "the container's root is / now; the guest's lies on top of it", SYS(pivot_root, ".", "."), ". .");
	TRY("umount2", "and is gone: nothing leads back", SYS(umount2, ".", MNT_DETACH), ". MNT_DETACH");
	SYS(close, root_fd);
	root_fd = -1;
	return SYS(chdir, "/");
}
