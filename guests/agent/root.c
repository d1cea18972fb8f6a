/* A container's root: read-only layers, each an erofs image in a partition of its own, under one writable layer.
 *
 *   /run/pykvm/l/N      a layer, mounted once; with a user namespace once more for each mapping of ids
 *   /run/pykvm/b/UID    the lowest layer of all: the folders and files that a runtime mounts on, for images without them
 *   /run/pykvm/c/N      a container's: u the upper layer, w overlay's work, r the union, f files that are bound into it
 *   /run/pykvm/d/NAME   a disk for upper layers        /run/pykvm/s/TAG   a share
 *
 * The agent's working directory is /run/pykvm/l: names in overlay's options are short, since all must fit in a page. */
#include "container.h"

#include <linux/mount.h>
#include <linux/wait.h>
#include <linux/signal.h>

enum { DEVICES = 512, LAYERS = 1024, NAMESPACES = 16, BLKPG = 0x1269, BLKPG_ADD_PARTITION = 1 };

static struct device { char name[40], device[32]; } devices[DEVICES];
static int device_count;
static struct layer { char name[40], device[32]; int map; } layers[LAYERS];
static int layer_count;
static struct { struct maps maps; int fd; } namespaces[NAMESPACES]; /* held for mapping ids; [0] is the guest's own */
static int namespace_count = 1;

const char *layer_name(int layer) { return layers[layer].name; }
const char *layer_device(int layer) { return layers[layer].device; }

const char *layer_path(int layer)
{
	static char path[32];
	return format(path, sizeof path, RUN "/l/%d", layer);
}

/* ---- which partitions there are --------------------------------------------------------------------------- */

struct entry { uint64_t inode, offset; uint16_t size; uint8_t type; char name[]; };
struct guid_header { char magic[8]; uint8_t rest[64]; uint64_t table; uint32_t count, size; uint8_t more[420]; }; /* UEFI, 5.3.2 */
struct guid_entry { uint8_t type[16], guid[16]; uint64_t first, last, attributes; uint16_t name[36]; };      /* 5.3.3 */
struct partition { int64_t start, size; int number; char names[128]; };
struct partition_order { int operation, flags, size; struct partition *partition; };

static _Alignas(4096) uint8_t table[1 << 16];

/* A partition that the kernel has not seen, because the disk has grown and is in use. */
static void add_partition(int disk, const char *name, int number, const struct guid_entry *entry)
{
	struct partition partition = {.start = (int64_t)entry->first * 512, .size = (int64_t)(entry->last - entry->first + 1) * 512, .number = number};
	struct partition_order order = {BLKPG_ADD_PARTITION, 0, sizeof partition, &partition};
	if (SYS(access, PATH("/sys/class/block/%s%d", name, number), 0) < 0)
		SYS(ioctl, disk, BLKPG, &order);
}

static void note_partition(int disk, const char *name, int number, const struct guid_entry *entry)
{
	struct device *one = &devices[device_count];
	size_t used = 0;
	if (!entry->first || entry->last < entry->first || device_count == DEVICES)
		return;
	while (used < 36 && entry->name[used] && entry->name[used] < 128)
		one->name[used] = (char)entry->name[used], used++;
	one->name[used] = 0;
	format(one->device, sizeof one->device, "%s%d", name, number);
	add_partition(disk, name, number, entry);
	device_count++;
}

/* Past the kernel's cache: the host may have changed the table. */
static void read_table(const char *name)
{
	const struct guid_header *head = (const struct guid_header *)(table + 512);
	int disk = (int)SYS(openat, AT_FDCWD, PATH("/dev/%s", name), O_RDONLY | O_DIRECT | O_CLOEXEC, 0);
	if (disk < 0)
		return;
	bool is_table = SYS(pread64, disk, table, 4096, 0) == 4096 && !memcmp(head->magic, "EFI PART", 8) && head->size == sizeof(struct guid_entry);
	uint32_t count = is_table ? head->count : 0;
	uint64_t at = is_table ? head->table * 512 : 0;
	if (count > sizeof table / sizeof(struct guid_entry))
		count = sizeof table / sizeof(struct guid_entry);
	long got = count ? SYS(pread64, disk, table, (count * sizeof(struct guid_entry) + 511) & ~511ul, at) : 0;
	for (uint32_t n = 0; n < count && (long)((n + 1) * sizeof(struct guid_entry)) <= got; n++)
		note_partition(disk, name, (int)n + 1, (const struct guid_entry *)table + n);
	SYS(close, disk);
}

/* Virtual disks: vda, vdb, …, not their partitions. */
static bool is_disk(const char *name)
{
	const char *at = name + 2;
	while (*at >= 'a' && *at <= 'z')
		at++;
	return starts(name, "vd") && !*at;
}

long layers_scan(struct text *names)
{
	static char bytes[16384];
	int folder = (int)SYS(openat, AT_FDCWD, "/sys/class/block", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	long got;
	if (folder < 0)
		return trouble_set(folder, "openat", "/sys/class/block");
	device_count = 0;
	while ((got = SYS(getdents64, folder, bytes, sizeof bytes)) > 0)
		for (long at = 0; at < got;) {
			struct entry *entry = (struct entry *)(bytes + at);
			if (is_disk(entry->name))
				read_table(entry->name);
			at += entry->size;
		}
	SYS(close, folder);
	for (int n = 0; n < device_count && names; n++)
		text_format(names, n ? ",%j" : "%j", devices[n].name);
	return got;
}

static const char *device_of(const char *name)
{
	for (int again = 0; again < 2; again++) {
		for (int n = 0; n < device_count; n++)
			if (same(devices[n].name, name))
				return devices[n].device;
		if (!again)
			layers_scan(NULL);
	}
	return NULL;
}

/* ---- ids -------------------------------------------------------------------------------------------------- */

static char *map_text(const struct map *map, int count)
{
	static char bytes[512];
	struct text text = TEXT(bytes);
	bytes[0] = 0;
	for (int n = 0; n < count; n++)
		text_format(&text, "%l %l %l\n", (int64_t)map[n].inside, (int64_t)map[n].outside, (int64_t)map[n].count);
	return bytes;
}

long maps_write(int pid, const struct maps *maps)
{
	TRY("write", "root in the container is nobody in the guest: its ids are these", write_file(AT_FDCWD, PATH("/proc/%d/uid_map", pid), map_text(maps->uid, maps->uids)),
	    "/proc/%d/uid_map %s", pid, map_text(maps->uid, maps->uids));
	TRY("write", "and its groups", write_file(AT_FDCWD, PATH("/proc/%d/gid_map", pid), map_text(maps->gid, maps->gids)),
	    "/proc/%d/gid_map %s", pid, map_text(maps->gid, maps->gids));
	return 0;
}

/* A user namespace that lives by its descriptor alone. */
static long namespace_make(const struct maps *maps)
{
	struct clone_args args = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
	int status;
	long pid = STEP("clone3", "a user namespace, held only to say how ids are mapped", SYS(clone3, &args, sizeof args), "CLONE_NEWUSER");
	if (!pid)
		for (;;)
			SYS(pause);
	if (pid < 0)
		return pid;
	long fd = maps_write((int)pid, maps);
	if (fd >= 0)
		fd = SYS(openat, AT_FDCWD, PATH("/proc/%d/ns/user", (int)pid), O_RDONLY | O_CLOEXEC, 0);
	SYS(kill, pid, SIGKILL);
	SYS(wait4, pid, &status, 0, 0);
	return fd;
}

static long map_of(const struct maps *maps)
{
	if (!maps->uids)
		return 0;
	for (int n = 1; n < namespace_count; n++)
		if (!memcmp(&namespaces[n].maps, maps, sizeof *maps))
			return n;
	if (namespace_count == NAMESPACES)
		return trouble_set(-ENOSPC, "idmap", "%d mappings of ids already", NAMESPACES);
	long fd = namespace_make(maps);
	if (fd < 0)
		return fd;
	namespaces[namespace_count].maps = *maps;
	namespaces[namespace_count].fd = (int)fd;
	return namespace_count++;
}

/* ---- layers ----------------------------------------------------------------------------------------------- */

static long layer_new(const char *name, const char *device, int map)
{
	if (layer_count == LAYERS)
		return trouble_set(-ENOSPC, "mount", "%d layers already", LAYERS);
	struct layer *one = &layers[layer_count];
	format(one->name, sizeof one->name, "%s", name);
	format(one->device, sizeof one->device, "%s", device);
	one->map = map;
	SYS(mkdir, layer_path(layer_count), 0755);
	return layer_count;
}

static long layer_plain(const char *name)
{
	for (int n = 0; n < layer_count; n++)
		if (!layers[n].map && same(layers[n].name, name))
			return n;
	const char *device = device_of(name);
	if (!device)
		return trouble_set(-ENOENT, "layer", "no disk has a partition %s", name);
	long made = layer_new(name, device, 0);
	if (made < 0)
		return made;
	TRY("mount", "a layer of the image, as it lies on its partition", SYS(mount, PATH("/dev/%s", device), layer_path((int)made), "erofs", MS_RDONLY | MS_NODEV, ""),
	    "erofs /dev/%s → %s (%s)", device, layer_path((int)made), name);
	layer_count++;
	return made;
}

static long layer_mapped(const char *name, int map)
{
	for (int n = 0; n < layer_count; n++)
		if (layers[n].map == map && same(layers[n].name, name))
			return n;
	long plain = layer_plain(name);
	if (plain < 0 || !map)
		return plain;
	struct mount_attr attributes = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t)namespaces[map].fd};
	long fd = TRY("open_tree", "a second view of the layer", SYS(open_tree, AT_FDCWD, layer_path((int)plain), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC), "%s", layer_path((int)plain));
	long done = STEP("mount_setattr", "whose owners are those of the user namespace", SYS(mount_setattr, fd, "", AT_EMPTY_PATH, &attributes, sizeof attributes), "MOUNT_ATTR_IDMAP");
	long made = done < 0 ? done : layer_new(name, layers[plain].device, map);
	if (made >= 0) {
		done = STEP("move_mount", "put where overlay finds it", SYS(move_mount, fd, "", AT_FDCWD, layer_path((int)made), MOVE_MOUNT_F_EMPTY_PATH), "%s", layer_path((int)made));
		made = done < 0 ? done : made;
	}
	SYS(close, fd);
	layer_count += made >= 0;
	return made;
}

static void own(const char *path, const struct maps *maps)
{
	if (maps->uids)
		SYS(fchownat, AT_FDCWD, path, id_outside(maps->uid, maps->uids, 0), id_outside(maps->gid, maps->gids, 0), AT_SYMLINK_NOFOLLOW);
}

/* The lowest layer; its name as overlay's options want it. */
static const char *base_layer(const struct maps *maps)
{
	static const char *const folders[] = {"", "/dev", "/proc", "/sys", "/etc", "/tmp"};
	static const char *const files[] = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"};
	static char name[64];
	char top[64];
	int64_t id = maps->uids ? id_outside(maps->uid, maps->uids, 0) : 0;
	format(name, sizeof name, "../b/%l", id);
	format(top, sizeof top, RUN "/b/%l", id);
	if (SYS(access, top, 0) >= 0)
		return name;
	for (size_t n = 0; n < COUNT(folders); n++) {
		SYS(mkdir, PATH("%s%s", top, folders[n]), 0755);
		own(PATH("%s%s", top, folders[n]), maps);
	}
	SYS(chmod, PATH("%s/tmp", top), 01777);
	for (size_t n = 0; n < COUNT(files); n++) {
		SYS(close, SYS(openat, AT_FDCWD, PATH("%s%s", top, files[n]), O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
		own(PATH("%s%s", top, files[n]), maps);
	}
	return name;
}

/* ---- the writable layer ----------------------------------------------------------------------------------- */

static bool is_name(const char *text)
{
	if (!*text || *text == '.' || strlen(text) > NAME_MOST)
		return false;
	for (; *text; text++)
		if (!(*text >= '0' && *text <= '9') && !((*text | 32) >= 'a' && (*text | 32) <= 'z') && *text != '_' && *text != '-' && *text != '.')
			return false;
	return true;
}

static long disk_upper(const struct json *upper, char *where)
{
	const char *device = json_string(json_get(upper, "device"), ""), *folder = json_string(json_get(upper, "dir"), "");
	if (!is_name(device) || !is_name(folder))
		return trouble_set(-EINVAL, "upper", "an ext4 upper has a device and a dir");
	if (SYS(mkdir, PATH(RUN "/d/%s", device), 0700) >= 0)
		TRY("mount", "the disk for writable layers", SYS(mount, PATH("/dev/%s", device), PATH(RUN "/d/%s", device), "ext4", MS_NODEV | MS_NOATIME, ""),
		    "ext4 /dev/%s → " RUN "/d/%s", device, device);
	format(where, 256, RUN "/d/%s/%s", device, folder);
	SYS(mkdir, where, 0711);
	return 0;
}

static long make_top(struct container *container, const struct json *upper, char *top)
{
	char options[96];
	int64_t size = json_number(json_get(upper, "size"), -1);
	format(top, 64, RUN "/c/%d", (int)(container - containers));
	TRY("mkdir", "the container's folder in the guest", EXCEPT(EEXIST, SYS(mkdir, top, 0711)), "%s", top);
	format(options, sizeof options, size > 0 ? "mode=711,size=%l" : "mode=711", size);
	TRY("mount", "memory that the container's own files live in", SYS(mount, "upper", top, "tmpfs", MS_NODEV, options), "tmpfs → %s %s", top, options);
	format(container->rootfs, sizeof container->rootfs, "%s/r", top);
	TRY("mkdir", "the place of the container's root", SYS(mkdir, container->rootfs, 0755), "%s", container->rootfs);
	return 0;
}

static long make_upper(struct container *container, const struct json *upper, const char *top, char *where)
{
	format(where, 256, "%s", top);
	if (same(json_string(json_get(upper, "type"), "tmpfs"), "ext4")) {
		long failed = disk_upper(upper, where);
		if (failed < 0)
			return failed;
	}
	format(container->upper, sizeof container->upper, "%s/u", where);
	TRY("mkdir", "the upper layer: every change goes here", EXCEPT(EEXIST, SYS(mkdir, container->upper, 0755)), "%s", container->upper);
	TRY("mkdir", "where overlay prepares its changes", EXCEPT(EEXIST, SYS(mkdir, PATH("%s/w", where), 0700)), "%s/w", where);
	own(container->upper, &container->maps);
	return 0;
}

static long union_of(struct container *container, const struct json *request, const char *where)
{
	static char options[4096];
	struct text text = TEXT(options);
	long map = map_of(&container->maps);
	if (map < 0)
		return map;
	container->layer_count = 0;
	JSON_EACH(one, json_get(request, "layers")) {
		if (container->layer_count == LAYERS_MOST)
			return trouble_set(-E2BIG, "layers", "more than %d", LAYERS_MOST);
		long layer = layer_mapped(json_string(one, ""), (int)map);
		if (layer < 0)
			return layer;
		container->layers[container->layer_count++] = (int)layer;
	}
	text_add(&text, "lowerdir=");
	for (int n = container->layer_count; n--;)
		text_format(&text, "%d:", container->layers[n]);
	text_format(&text, "%s,upperdir=%s,workdir=%s/w,redirect_dir=off,metacopy=off", base_layer(&container->maps), container->upper, where);
	if (text.full)
		return trouble_set(-E2BIG, "mount", "overlay's options are longer than a page");
	TRY("mount", "the union of all layers, the topmost winning", SYS(mount, "overlay", container->rootfs, "overlay", 0, options),
	    "overlay → %s %s", container->rootfs, options);
	return 0;
}

/* ---- shares ----------------------------------------------------------------------------------------------- */

long share_path(const char *text, char *path)
{
	char tag[NAME_MOST + 1];
	size_t size = 0;
	while (text[size] && text[size] != '/' && size < NAME_MOST)
		tag[size] = text[size], size++;
	tag[size] = 0;
	if (!is_name(tag))
		return trouble_set(-EINVAL, "share", "%s is no TAG/FOLDER", text);
	char top[128];
	format(top, sizeof top, RUN "/s/%s", tag);
	if (SYS(mkdir, top, 0700) >= 0) {
		long failed = STEP("mount", "a folder of the host", SYS(mount, tag, top, "virtiofs", MS_NODEV, ""), "virtiofs %s → %s", tag, top);
		if (failed < 0) {
			SYS(rmdir, top);
			return failed;
		}
	}
	format(path, PATH_MOST, "%s%s", top, text + size);
	int share = (int)SYS(openat, AT_FDCWD, top, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	long found = share < 0 ? share : inside(share, text[size] ? text + size + 1 : ".", O_PATH | O_CLOEXEC);
	SYS(close, share);
	return found < 0 ? trouble_set(found, "openat2", "%s on the share", text) : found;
}

/* Mounts the shares that a container's mounts name: it could not do that itself, in its user namespace. */
long shares_mount(const struct json *mounts)
{
	char path[PATH_MOST];
	JSON_EACH(one, mounts) {
		if (!same(json_string(json_get(one, "type"), ""), "virtiofs"))
			continue;
		long fd = share_path(json_string(json_get(one, "source"), ""), path);
		if (fd < 0)
			return fd;
		SYS(close, (int)fd);
	}
	return 0;
}

static long bind_share(struct container *container, const char *source)
{
	char path[PATH_MOST];
	long fd = share_path(source, path);
	if (fd < 0)
		return fd;
	container->upper[0] = 0;
	long failed = STEP("mount", "the share's folder is the container's root", SYS(mount, PATH("/proc/self/fd/%d", (int)fd), container->rootfs, "", MS_BIND, ""),
			   "bind %s → %s", path, container->rootfs);
	SYS(close, fd);
	return failed;
}

long root_make(struct container *container, const struct json *request)
{
	const struct json *upper = json_get(request, "upper");
	const char *share = json_string(json_get(request, "rootfs"), NULL);
	char top[64], where[256];
	long failed = make_top(container, upper, top);
	if (failed < 0 || share)
		return failed < 0 ? failed : bind_share(container, share);
	failed = make_upper(container, upper, top, where);
	return failed < 0 ? failed : union_of(container, request, where);
}

void root_remove(const struct container *container)
{
	char top[64];
	format(top, sizeof top, RUN "/c/%d", (int)(container - containers));
	SYS(umount2, container->rootfs, MNT_DETACH);
	SYS(umount2, top, MNT_DETACH);
	SYS(rmdir, top);
}

/* Files that the host gives; they live beside the upper layer, so that no diff shows them. */
long files_write(const struct container *container, const struct json *files)
{
	int n = 0;
	JSON_EACH(one, files) {
		const char *content = json_string(json_get(one, "text"), "");
		char path[128];
		format(path, sizeof path, RUN "/c/%d/f%d", (int)(container - containers), n++);
		long fd = SYS(openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, json_number(json_get(one, "mode"), 0644));
		if (fd < 0)
			return trouble_set(fd, "openat", "%s", path);
		long failed = write_all((int)fd, content, strlen(content));
		SYS(fchown, fd, id_outside(container->maps.uid, container->maps.uids, 0), id_outside(container->maps.gid, container->maps.gids, 0));
		SYS(close, fd);
		if (failed < 0)
			return trouble_set(failed, "write", "%s", path);
	}
	return 0;
}
