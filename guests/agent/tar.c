/* Archives written: a walk through folders that may change, or be made to mislead, while it goes on. Every name is looked up in the
 * folder that is held open, and no symbolic link is followed. */
#include "tar.h"

#include <linux/limits.h>
#include <linux/mman.h>

#include "step.h"

enum { BLOCK = 512, BUFFER = 65536, NAMES = 16384, LINKS = 16384, RECORDS = 262144, LEVELS = 1024, OUT = 1 };

struct entry { uint64_t inode; int64_t offset; uint16_t size; uint8_t type; char name[]; };

static struct { uint64_t device, inode; char *name; } links[LINKS];
static struct { const struct tar_plan *plan; char path[PATH_MOST]; size_t used; int links; } walk;
static struct { uint8_t bytes[BUFFER]; size_t used; } out;
static char records[RECORDS], target[PATH_MOST + 1];

uint32_t id_outside(const struct map *map, int count, uint32_t id)
{
	for (int n = 0; n < count; n++)
		if (id >= map[n].inside && id - map[n].inside < map[n].count)
			return map[n].outside + (id - map[n].inside);
	return id;
}

uint32_t id_inside(const struct map *map, int count, uint32_t id)
{
	for (int n = 0; n < count; n++)
		if (id >= map[n].outside && id - map[n].outside < map[n].count)
			return map[n].inside + (id - map[n].outside);
	return id;
}

static void *memory(size_t size)
{
	long at = SYS(mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return at < 0 && at > -4096 ? NULL : (void *)at;
}

/* ---- bytes ------------------------------------------------------------------------------------------------ */

static long flush(void)
{
	long failed = write_all(OUT, out.bytes, out.used);
	out.used = 0;
	return failed < 0 ? trouble_set(failed, "write", "the archive") : 0;
}

static long put(const void *bytes, size_t size)
{
	const uint8_t *from = bytes;
	while (size) {
		size_t part = size < BUFFER - out.used ? size : BUFFER - out.used;
		memcpy(out.bytes + out.used, from, part);
		out.used += part;
		from += part;
		size -= part;
		if (out.used == BUFFER && flush() < 0)
			return -EIO;
	}
	return 0;
}

static long pad(uint64_t size)
{
	static const uint8_t zeros[BLOCK];
	return put(zeros, (BLOCK - size % BLOCK) % BLOCK);
}

/* ---- headers ---------------------------------------------------------------------------------------------- */

unsigned tar_sum(const struct tar_header *header)
{
	const unsigned char *bytes = (const unsigned char *)header;
	unsigned sum = 0;
	for (size_t n = 0; n < sizeof *header; n++)
		sum += n >= offsetof(struct tar_header, sum) && n < offsetof(struct tar_header, type) ? ' ' : bytes[n];
	return sum;
}

/* False when it needs more digits than there are. */
static bool octal(char *field, size_t size, uint64_t value)
{
	for (size_t n = size - 1; n--; value >>= 3)
		field[n] = (char)('0' + (value & 7));
	return !value;
}

static long put_header(struct tar_header *header)
{
	memcpy(header->magic, "ustar\0" "00", 8);
	octal(header->sum, 7, tar_sum(header));
	header->sum[7] = ' ';
	return put(header, sizeof *header);
}

/* "LENGTH KEY=VALUE\n", whose length counts itself. */
static void record(struct text *to, const char *key, const void *value, size_t size)
{
	size_t length = strlen(key) + size + 3, digits = 1, whole;
	for (size_t rest = length + digits; rest >= 10; rest /= 10)
		digits++;
	whole = length + digits;
	if (whole >= to->size - to->used)
		return;
	char text[24];
	if (strlen(format(text, sizeof text, "%l", (int64_t)whole)) != digits)
		format(text, sizeof text, "%l", (int64_t)++whole);
	text_format(to, "%s %s=", text, key);
	text_bytes(to, value, size);
	text_add(to, "\n");
}

static void number_record(struct text *to, const char *key, uint64_t value)
{
	char text[24];
	format(text, sizeof text, "%l", (int64_t)value);
	record(to, key, text, strlen(text));
}

static void add_attributes(struct text *to, int fd)
{
	static char names[NAMES], value[65536], key[300];
	char path[32];
	format(path, sizeof path, "/proc/self/fd/%d", fd);
	long size = SYS(listxattr, path, names, sizeof names - 1);
	names[size > 0 ? size : 0] = 0;
	for (char *name = names; name < names + size; name += strlen(name) + 1) {
		if (starts(name, "trusted.overlay."))
			continue; /* overlay's own notes */
		long got = SYS(getxattr, path, name, value, sizeof value);
		if (got >= 0)
			record(to, format(key, sizeof key, "SCHILY.xattr.%s", name), value, (size_t)got);
	}
}

static long put_records(const struct text *text)
{
	struct tar_header header = {.name = "PaxHeaders/entry", .type = 'x'};
	if (!text->used)
		return 0;
	octal(header.mode, 8, 0644);
	octal(header.uid, 8, 0);
	octal(header.gid, 8, 0);
	octal(header.size, 12, text->used);
	octal(header.mtime, 12, 0);
	long failed = put_header(&header);
	if (failed >= 0)
		failed = put(text->bytes, text->used);
	return failed < 0 ? failed : pad(text->used);
}

/* A header, and before it what does not fit into one. `fd` is -1 for a thing without attributes. */
static long put_entry(const char *name, const struct stat *about, char type, const char *link, uint64_t size, int fd)
{
	struct tar_header header = {.type = type};
	struct text more = {records, 0, sizeof records, false};
	const struct maps *maps = walk.plan->maps;
	uint32_t uid = id_inside(maps->uid, maps->uids, about->st_uid), gid = id_inside(maps->gid, maps->gids, about->st_gid);
	size_t name_size = strlen(name), link_size = strlen(link);
	memcpy(header.name, name, name_size < 100 ? name_size : 100);
	memcpy(header.link, link, link_size < 100 ? link_size : 100);
	if (name_size > 100)
		record(&more, "path", name, name_size);
	if (link_size > 100)
		record(&more, "linkpath", link, link_size);
	octal(header.mode, 8, about->st_mode & 07777);
	if (!octal(header.uid, 8, uid))
		number_record(&more, "uid", uid);
	if (!octal(header.gid, 8, gid))
		number_record(&more, "gid", gid);
	if (!octal(header.size, 12, size))
		number_record(&more, "size", size);
	octal(header.mtime, 12, (int64_t)about->st_mtime > 0 ? about->st_mtime : 0);
	if (type == '3' || type == '4') {
		octal(header.major, 8, (about->st_rdev >> 8 & 0xfff));
		octal(header.minor, 8, (about->st_rdev & 0xff) | (about->st_rdev >> 12 & 0xfff00));
	}
	if (walk.plan->without_content && type == '0')
		number_record(&more, "PYKVM.size", (uint64_t)about->st_size);
	if (fd >= 0)
		add_attributes(&more, fd);
	long failed = put_records(&more);
	return failed < 0 ? failed : put_header(&header);
}

/* ---- files ------------------------------------------------------------------------------------------------ */

/* As many bytes as were announced, whatever becomes of the file meanwhile. */
static long put_content(int file, uint64_t size)
{
	static uint8_t bytes[BUFFER];
	for (uint64_t left = size; left;) {
		long got = SYS(read, file, bytes, left < BUFFER ? left : BUFFER);
		if (got <= 0) {
			got = left < BUFFER ? (long)left : BUFFER;
			memset(bytes, 0, (size_t)got);
		}
		if (put(bytes, (size_t)got) < 0)
			return -EIO;
		left -= (uint64_t)got;
	}
	return pad(size);
}

static const char *linked_before(const struct stat *about)
{
	if (about->st_nlink < 2 || (about->st_mode & S_IFMT) == S_IFDIR)
		return NULL;
	for (int n = 0; n < walk.links; n++)
		if (links[n].device == about->st_dev && links[n].inode == about->st_ino)
			return links[n].name;
	char *name = walk.links < LINKS ? memory(walk.used + 1) : NULL;
	if (name) {
		memcpy(name, walk.path, walk.used + 1);
		links[walk.links].device = about->st_dev;
		links[walk.links].inode = about->st_ino;
		links[walk.links++].name = name;
	}
	return NULL;
}

static long put_file(int fd, const struct stat *about)
{
	uint64_t size = walk.plan->without_content ? 0 : (uint64_t)about->st_size;
	char path[32];
	int file = size ? (int)SYS(openat, AT_FDCWD, format(path, sizeof path, "/proc/self/fd/%d", fd), O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0) : -1;
	if (size && file < 0)
		return trouble_set(file, "openat", "%s", walk.path);
	long failed = put_entry(walk.path, about, '0', "", size, fd);
	if (failed >= 0)
		failed = put_content(file, size);
	if (file >= 0)
		SYS(close, file);
	return failed;
}

static long put_folder(int fd, int level);

/* "a/b" becomes "a/.wh.b" */
static long put_whiteout(const struct stat *about)
{
	char name[PATH_MOST + 8];
	size_t at = walk.used;
	while (at && walk.path[at - 1] != '/')
		at--;
	memcpy(name, walk.path, at);
	format(name + at, sizeof name - at, ".wh.%s", walk.path + at);
	struct stat empty = {.st_mode = 0600, .st_mtime = about->st_mtime};
	return put_entry(name, &empty, '0', "", 0, -1);
}

static long put_one(int fd, int level)
{
	struct stat about;
	long size = SYS(fstat, fd, &about);
	if (size < 0)
		return trouble_set(size, "fstat", "%s", walk.path);
	const char *first = linked_before(&about);
	if (first)
		return put_entry(walk.path, &about, '1', first, 0, -1);
	switch (about.st_mode & S_IFMT) {
	case S_IFREG:
		return put_file(fd, &about);
	case S_IFDIR:
		return put_folder(fd, level);
	case S_IFLNK:
		size = SYS(readlinkat, fd, "", target, PATH_MOST);
		target[size > 0 ? size : 0] = 0;
		return put_entry(walk.path, &about, '2', target, 0, -1);
	case S_IFCHR:
		if (walk.plan->is_layer && !about.st_rdev)
			return put_whiteout(&about);
		return put_entry(walk.path, &about, '3', "", 0, fd);
	case S_IFBLK:
		return put_entry(walk.path, &about, '4', "", 0, fd);
	case S_IFIFO:
		return put_entry(walk.path, &about, '6', "", 0, fd);
	default:
		return 0; /* a socket is nothing without its process */
	}
}

static long put_named(int folder, const char *name, int level)
{
	size_t used = walk.used, size = strlen(name);
	if (used + size + 2 > PATH_MOST)
		return trouble_set(-ENAMETOOLONG, "tar", "%s", walk.path);
	memcpy(walk.path + used, name, size + 1);
	walk.used += size;
	int fd = (int)SYS(openat, folder, name, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0);
	long failed = fd == -ENOENT ? 0 : fd < 0 ? trouble_set(fd, "openat", "%s", walk.path) : put_one(fd, level);
	if (fd >= 0)
		SYS(close, fd);
	walk.used = used;
	walk.path[used] = 0;
	return failed;
}

static long put_content_of(int fd, int level)
{
	char path[32];
	int folder = (int)SYS(openat, AT_FDCWD, format(path, sizeof path, "/proc/self/fd/%d", fd), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	char *bytes = folder < 0 || level > LEVELS ? NULL : memory(NAMES);
	long failed = folder < 0 ? folder : bytes ? 0 : -ENAMETOOLONG, got;
	if (failed < 0)
		trouble_set(failed, "openat", "%s", walk.path);
	while (failed >= 0 && (got = SYS(getdents64, folder, bytes, NAMES)) > 0)
		for (long at = 0; at < got && failed >= 0;) {
			struct entry *entry = (struct entry *)(bytes + at);
			at += entry->size;
			if (!same(entry->name, ".") && !same(entry->name, ".."))
				failed = put_named(folder, entry->name, level + 1);
		}
	if (bytes)
		SYS(munmap, bytes, NAMES);
	if (folder >= 0)
		SYS(close, folder);
	return failed;
}

static bool is_opaque(int fd)
{
	char path[32], value[4];
	return SYS(getxattr, format(path, sizeof path, "/proc/self/fd/%d", fd), "trusted.overlay.opaque", value, sizeof value) > 0 && *value == 'y';
}

static long put_folder(int fd, int level)
{
	struct stat about;
	size_t used = walk.used;
	SYS(fstat, fd, &about);
	memcpy(walk.path + walk.used++, "/", 2);
	long failed = put_entry(walk.path, &about, '5', "", 0, fd);
	if (failed >= 0 && walk.plan->is_layer && is_opaque(fd)) {
		char name[PATH_MOST + 16];
		struct stat empty = {.st_mode = 0600};
		failed = put_entry(format(name, sizeof name, "%s.wh..wh..opq", walk.path), &empty, '0', "", 0, -1);
	}
	if (failed >= 0)
		failed = put_content_of(fd, level);
	walk.used = used;
	walk.path[used] = 0;
	return failed;
}

long tar_write(const struct tar_plan *plan, int top, const char *name)
{
	static const uint8_t zeros[2 * BLOCK];
	walk.plan = plan;
	walk.used = 0;
	walk.links = 0;
	walk.path[0] = 0;
	out.used = 0;
	long failed;
	if (name) {
		format(walk.path, sizeof walk.path, "%s", name);
		walk.used = strlen(walk.path);
		failed = put_one(top, 0);
	} else {
		failed = put_content_of(top, 0);
	}
	if (failed >= 0)
		failed = put(zeros, sizeof zeros);
	return failed < 0 ? failed : flush();
}
