/* Archives unpacked into a container. Both are hostile: the archive may name anything, and the container may change the folders
 * meanwhile. Names are resolved in the container's root by the kernel, and the last part of each never through a link. */
#include "tar.h"

#include <linux/time.h>

#include "step.h"

enum { BLOCK = 512, BUFFER = 65536, RECORDS = 262144, IN = 0, ATTRIBUTES = 32 };

struct attribute { const char *name, *value; size_t size; };

/* What stands in an entry and in the records before it. */
static struct member {
	char name[PATH_MOST], link[PATH_MOST];
	int64_t size, uid, gid, mtime;
	uint32_t mode, device;
	char type;
	bool has_name, has_link, has_size, has_uid, has_gid;
	struct attribute attributes[ATTRIBUTES];
	size_t attribute_count;
} member;
static char records[RECORDS + 1];
static struct { const struct maps *maps; int root; const char *where; } place;

/* ---- bytes ------------------------------------------------------------------------------------------------ */

static long take(void *bytes, size_t size)
{
	uint8_t *to = bytes;
	while (size) {
		long got = SYS(read, IN, to, size);
		if (got == -EINTR)
			continue;
		if (got <= 0)
			return trouble_set(got < 0 ? got : -EIO, "read", "the archive ends too early");
		to += got;
		size -= (size_t)got;
	}
	return 0;
}

static long drop(int64_t size)
{
	static uint8_t bytes[BUFFER];
	long failed = 0;
	for (; size > 0 && failed >= 0; size -= BUFFER)
		failed = take(bytes, size < BUFFER ? (size_t)size : BUFFER);
	return failed;
}

static int64_t padded(int64_t size)
{
	return size + (BLOCK - size % BLOCK) % BLOCK;
}

/* Octal digits, or GNU's base 256; -1 for what is no number. */
static int64_t number(const char *field, size_t size)
{
	uint64_t value = 0;
	size_t n = 0;
	if (field[0] & 0x80) {
		for (n = 1; n < size; n++) {
			if (value >> 55)
				return -1;
			value = value << 8 | (uint8_t)field[n];
		}
		return field[0] == (char)0x80 ? (int64_t)value : -1;
	}
	while (n < size && field[n] == ' ')
		n++;
	for (; n < size && field[n] >= '0' && field[n] <= '7'; n++)
		value = value << 3 | (uint64_t)(field[n] - '0');
	return n == size || !field[n] || field[n] == ' ' ? (int64_t)value : -1;
}

static bool copy_name(char *to, const char *from, size_t size)
{
	size_t used = 0;
	while (used < size && from[used])
		used++;
	if (used >= PATH_MOST)
		return false;
	memcpy(to, from, used);
	to[used] = 0;
	return true;
}

/* ---- pax records ------------------------------------------------------------------------------------------ */

static bool obey(const char *key, const char *value, size_t size)
{
	if (same(key, "path"))
		return member.has_name = copy_name(member.name, value, size);
	if (same(key, "linkpath"))
		return member.has_link = copy_name(member.link, value, size);
	if (same(key, "size"))
		return member.has_size = (member.size = number_of(value)) >= 0;
	if (same(key, "uid"))
		return member.has_uid = (member.uid = number_of(value)) >= 0;
	if (same(key, "gid"))
		return member.has_gid = (member.gid = number_of(value)) >= 0;
	if (starts(key, "SCHILY.xattr.") && member.attribute_count < ATTRIBUTES)
		member.attributes[member.attribute_count++] = (struct attribute){key + 13, value, size};
	return true;
}

/* "LENGTH KEY=VALUE\n" one behind the other. Values get an end in place of the newline. */
static bool read_records(char *at, size_t size)
{
	for (char *end = at + size; at < end;) {
		int64_t length = number_of(at);
		if (length < 5 || length > end - at || at[length - 1] != '\n')
			return false;
		char *key = at, *stop = at + length - 1;
		while (key < stop && *key != ' ')
			key++;
		char *value = key;
		while (value < stop && *value != '=')
			value++;
		if (key >= stop || value >= stop)
			return false;
		*value = *stop = 0;
		if (!obey(key + 1, value + 1, (size_t)(stop - value - 1)))
			return false;
		at = stop + 1;
	}
	return true;
}

/* ---- putting things in place ------------------------------------------------------------------------------ */

/* The folder that holds the member, made where it is missing, and the member's own name in it. */
static int parent_of(char *name, char **last)
{
	char path[2 * PATH_MOST];
	struct text text = TEXT(path);
	text_format(&text, "%s", place.where);
	int fd = inside(place.root, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	while (*name == '/')
		name++;
	for (;;) {
		char *end = name;
		while (*end && *end != '/')
			end++;
		char *next = end;
		while (*next == '/')
			next++;
		bool is_last = !*next;
		*end = 0;
		if (same(name, "..")) {
			if (fd >= 0)
				SYS(close, fd);
			return -EXDEV;
		}
		*last = name;
		if (is_last || fd < 0)
			return fd;
		if (*name && !same(name, ".")) {
			if (SYS(mkdirat, fd, name, 0755) >= 0)
				SYS(fchownat, fd, name, id_outside(place.maps->uid, place.maps->uids, 0), id_outside(place.maps->gid, place.maps->gids, 0), AT_SYMLINK_NOFOLLOW);
			text_format(&text, "/%s", name);
			SYS(close, fd);
			fd = inside(place.root, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
		}
		name = next;
	}
}

static long give(int fd, const char *name, bool is_link)
{
	const struct maps *maps = place.maps;
	char path[32];
	struct { int64_t seconds, ns; } times[2] = {{member.mtime, 0}, {member.mtime, 0}};
	long failed = SYS(fchownat, fd, name, id_outside(maps->uid, maps->uids, (uint32_t)member.uid), id_outside(maps->gid, maps->gids, (uint32_t)member.gid),
			  AT_SYMLINK_NOFOLLOW);
	if (failed >= 0 && !is_link) {
		int own = (int)SYS(openat, fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0);
		format(path, sizeof path, "/proc/self/fd/%d", own);
		for (size_t n = 0; n < member.attribute_count && own >= 0 && failed >= 0; n++)
			failed = SYS(setxattr, path, member.attributes[n].name, member.attributes[n].value, member.attributes[n].size, 0);
		failed = failed == -EOPNOTSUPP ? 0 : failed;
		if (failed >= 0)
			failed = own < 0 ? own : SYS(fchmodat, AT_FDCWD, path, member.mode & 07777);
		SYS(close, own);
	}
	SYS(utimensat, fd, name, times, AT_SYMLINK_NOFOLLOW);
	return failed;
}

/* What is there makes room, unless it is a folder. */
static long make_room(int fd, const char *name)
{
	long failed = SYS(unlinkat, fd, name, 0);
	return failed == -ENOENT ? 0 : failed;
}

static long put_file(int fd, const char *name)
{
	static uint8_t bytes[BUFFER];
	long failed = make_room(fd, name);
	int file = failed < 0 ? (int)failed : (int)SYS(openat, fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (file < 0)
		return file;
	for (int64_t left = member.size; left > 0 && failed >= 0; left -= BUFFER) {
		size_t part = left < BUFFER ? (size_t)left : BUFFER;
		failed = take(bytes, part);
		if (failed >= 0)
			failed = write_all(file, bytes, part);
	}
	SYS(close, file);
	if (failed >= 0)
		failed = drop(padded(member.size) - member.size);
	return failed < 0 ? failed : give(fd, name, false);
}

static long put_folder(int fd, const char *name)
{
	if (!*name || same(name, "."))
		return 0;
	long failed = SYS(mkdirat, fd, name, 0700);
	if (failed == -EEXIST) {
		int own = (int)SYS(openat, fd, name, O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC, 0);
		if (own < 0)
			return own;
		SYS(close, own);
		failed = 0;
	}
	return failed < 0 ? failed : give(fd, name, false);
}

static long put_link(int fd, const char *name)
{
	char path[2 * PATH_MOST];
	char *last;
	int folder = parent_of(member.link, &last), from;
	if (folder < 0)
		return folder;
	from = (int)SYS(openat, folder, last, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0);
	SYS(close, folder);
	if (from < 0)
		return from;
	long failed = make_room(fd, name);
	if (failed >= 0)
		failed = SYS(linkat, AT_FDCWD, format(path, sizeof path, "/proc/self/fd/%d", from), fd, name, AT_SYMLINK_FOLLOW);
	SYS(close, from);
	return failed;
}

static long put_node(int fd, const char *name)
{
	uint32_t type = member.type == '3' ? S_IFCHR : member.type == '4' ? S_IFBLK : S_IFIFO;
	long failed = make_room(fd, name);
	if (failed >= 0)
		failed = SYS(mknodat, fd, name, type | 0600, member.device);
	return failed < 0 ? failed : give(fd, name, false);
}

static long put_member(void)
{
	char *name, shown[PATH_MOST];
	memcpy(shown, member.name, PATH_MOST);
	int fd = parent_of(member.name, &name);
	long failed = fd;
	if (fd >= 0)
		switch (member.type) {
		case '0': case 0: case '7':
			failed = put_file(fd, name);
			break;
		case '1':
			failed = put_link(fd, name);
			break;
		case '2':
			failed = make_room(fd, name);
			if (failed >= 0)
				failed = SYS(symlinkat, member.link, fd, name);
			if (failed >= 0)
				failed = give(fd, name, true);
			break;
		case '3': case '4': case '6':
			failed = put_node(fd, name);
			break;
		case '5':
			failed = put_folder(fd, name);
			break;
		default:
			failed = drop(padded(member.size));
		}
	if (fd >= 0)
		SYS(close, fd);
	return failed < 0 ? trouble_set(failed, "tar", "%s", shown) : 0;
}

/* ---- headers ---------------------------------------------------------------------------------------------- */

static long bad(const char *why)
{
	return trouble_set(-EINVAL, "tar", "%s", why);
}

static bool read_header(const struct tar_header *header)
{
	int64_t mode = number(header->mode, 8), uid = number(header->uid, 8), gid = number(header->gid, 8), size = number(header->size, 12);
	int64_t major = number(header->major, 8), minor = number(header->minor, 8);
	char name[300];
	bool is_ustar = !memcmp(header->magic, "ustar\0", 6);
	if (number(header->sum, 8) != tar_sum(header) || mode < 0 || uid < 0 || gid < 0 || size < 0)
		return false;
	if (!member.has_name) {
		size_t used = 0, n = 0;
		while (is_ustar && n < 155 && header->prefix[n])
			name[used++] = header->prefix[n++];
		if (used)
			name[used++] = '/';
		for (n = 0; n < 100 && header->name[n]; n++)
			name[used++] = header->name[n];
		name[used] = 0;
		copy_name(member.name, name, sizeof name);
	}
	if (!member.has_link)
		copy_name(member.link, header->link, 100);
	if (!member.has_size)
		member.size = size;
	if (!member.has_uid)
		member.uid = uid;
	if (!member.has_gid)
		member.gid = gid;
	member.mode = (uint32_t)mode;
	member.mtime = number(header->mtime, 12);
	member.device = major < 0 || minor < 0 ? 0 : (uint32_t)((minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12);
	member.type = header->type;
	if (member.type >= '1' && member.type <= '6')
		member.size = 0;
	return true;
}

/* Records, and GNU's long names, for the member that follows. */
static long read_extra(const struct tar_header *header)
{
	int64_t size = number(header->size, 12);
	if (number(header->sum, 8) != tar_sum(header) || size < 0 || padded(size) > RECORDS)
		return bad("a damaged or very long extended header");
	long failed = take(records, (size_t)padded(size));
	records[size] = 0;
	if (failed < 0)
		return failed;
	if (header->type == 'x' && !read_records(records, (size_t)size))
		return bad("a damaged extended header");
	if (header->type == 'L' && !(member.has_name = copy_name(member.name, records, (size_t)size)))
		return bad("a name that is too long");
	if (header->type == 'K' && !(member.has_link = copy_name(member.link, records, (size_t)size)))
		return bad("a name that is too long");
	return 0;
}

static void forget(void)
{
	member.has_name = member.has_link = member.has_size = member.has_uid = member.has_gid = false;
	member.attribute_count = 0;
}

long tar_read(const struct maps *maps, int root, const char *where)
{
	static struct tar_header header;
	static const struct tar_header zeros;
	long failed = 0;
	place.maps = maps;
	place.root = root;
	place.where = where;
	int fd = inside(root, where, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return trouble_set(fd, "openat2", "%s", where);
	SYS(close, fd);
	forget();
	while (failed >= 0) {
		failed = take(&header, sizeof header);
		if (failed < 0)
			break;
		if (!memcmp(&header, &zeros, sizeof header)) { /* the end; what may follow is read, so that its sender can finish */
			static uint8_t rest[BUFFER];
			while (SYS(read, IN, rest, sizeof rest) > 0)
				;
			return 0;
		}
		if (header.type == 'x' || header.type == 'g' || header.type == 'L' || header.type == 'K') {
			failed = read_extra(&header);
			continue;
		}
		failed = read_header(&header) ? put_member() : bad("a damaged header");
		forget();
	}
	return failed;
}
