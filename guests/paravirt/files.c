/* The read-only file set that pykvm brought along, and the program's file descriptors. */
#include "files.h"

#include "kernel.h"
#include "linux.h"

#define PATH_BYTES 1024
#define FNV_START 0xcbf29ce484222325ul
#define FNV_PRIME 0x100000001b3ul
#define CONSOLE_DEVICE 0x501 /* major 5, minor 1 */

static struct open_file opened[FILES_MAX];
static uint8_t descriptors[FILES_MAX];  /* 1 + index in `opened`; 0: free */
static uint8_t close_on_exec[FILES_MAX]; /* kept for fcntl() alone */
static const struct paravirt_file *files;
uint64_t disk_bytes;

/* ---- paths */

/* Append `from` to the normal path `path` of `length` bytes (without / at its end): no //, no . and no .. */
static int64_t walk(char *path, uint64_t length, const char *from)
{
    while (*from) {
        uint64_t n = 0;
        while (from[n] && from[n] != '/')
            n++;
        if (n == 2 && from[0] == '.' && from[1] == '.') {
            while (length && path[--length] != '/')
                ;
        } else if (n && !(n == 1 && from[0] == '.')) {
            if (length + 1 + n > PATH_BYTES)
                return -ENAMETOOLONG;
            path[length++] = '/';
            copy(path + length, from, n);
            length += n;
        }
        from += n + (from[n] == '/');
    }
    return (int64_t)length;
}

static const struct paravirt_file *find(const char *path, uint64_t length)
{
    uint64_t hash = FNV_START;
    if (!length)
        path = "/", length = 1;
    for (uint64_t i = 0; i < length; i++)
        hash = (hash ^ (uint8_t)path[i]) * FNV_PRIME;
    for (uint64_t i = 0; i < boot->file_count; i++)
        if (files[i].path_hash == hash && files[i].path_bytes == length) {
            const char *other = direct(files[i].path);
            uint64_t same = 0;
            while (same < length && other[same] == path[same])
                same++;
            if (same == length)
                return &files[i];
        }
    return 0;
}

/* The file that the program means with `address`, its path; -ENOENT and others. `empty`: "" is `dirfd` itself. */
static int64_t look_up(int64_t dirfd, uint64_t address, int empty, const struct paravirt_file **found)
{
    static char text[PATH_BYTES], path[PATH_BYTES];
    const struct open_file *base = 0;
    int64_t length = user_string(text, address, sizeof text);
    if (length < 0)
        return length;
    if (!length && !empty)
        return -ENOENT;
    if (text[0] != '/' && (int32_t)dirfd != AT_FDCWD) {
        base = file_at(dirfd);
        if (!base)
            return -EBADF;
        if (!base->file || (length && !S_ISDIR(base->file->mode)))
            return -ENOTDIR;
    }
    if (base)
        copy(path, direct(base->file->path), base->file->path_bytes);
    length = walk(path, base && base->file->path_bytes > 1 ? base->file->path_bytes : 0, text);
    *found = length < 0 ? 0 : find(path, (uint64_t)length);
    return length < 0 ? length : *found ? 0 : -ENOENT;
}

/* ---- descriptors */

struct open_file *file_at(int64_t fd)
{
    return (uint32_t)fd < FILES_MAX && descriptors[(uint32_t)fd] ? &opened[descriptors[(uint32_t)fd] - 1] : 0;
}

uint64_t file_of(int64_t fd, uint64_t *size_bytes)
{
    const struct open_file *open = file_at(fd);
    if (!open || open->kind != KIND_FILE)
        return 0;
    *size_bytes = open->file->size_bytes;
    return open->file->data;
}

static int64_t set_descriptor(uint64_t lowest, unsigned index, int cloexec)
{
    for (uint64_t fd = lowest; fd < FILES_MAX; fd++)
        if (!descriptors[fd]) {
            descriptors[fd] = (uint8_t)(index + 1);
            close_on_exec[fd] = (uint8_t)cloexec;
            opened[index].references++;
            return (int64_t)fd;
        }
    return -EMFILE;
}

static int64_t open_one(enum kind kind, const struct paravirt_file *file, unsigned flags)
{
    for (unsigned i = 0; i < FILES_MAX; i++)
        if (!opened[i].references) {
            opened[i] = (struct open_file){.kind = kind, .flags = flags & ~(unsigned)O_CLOEXEC, .file = file};
            return set_descriptor(0, i, !!(flags & O_CLOEXEC));
        }
    return -ENFILE;
}

void files_init(void)
{
    files = direct(boot->files);
    open_one(KIND_CONSOLE, 0, O_RDWR);
    set_descriptor(1, 0, 0);
    set_descriptor(2, 0, 0);
}

static int64_t open_disk(const struct paravirt_file *file, unsigned flags)
{
    int64_t sectors = ask(HC_BLOCK_INFO, 0, 0);
    if (sectors <= 0)
        return -ENXIO; /* the machine has none */
    disk_bytes = (uint64_t)sectors * HC_BLOCK_SECTOR;
    return (flags & O_ACCMODE) != O_RDONLY ? -EROFS : open_one(KIND_DISK, file, flags);
}

static int64_t open_path(int64_t dirfd, uint64_t path, unsigned flags)
{
    const struct paravirt_file *file;
    int64_t failed = look_up(dirfd, path, 0, &file);
    if (failed == -ENOENT && flags & O_CREAT)
        return -EROFS;
    if (failed)
        return failed;
    if (flags & O_CREAT && flags & O_EXCL)
        return -EEXIST;
    if (S_ISCHR(file->mode))
        return open_one((enum kind)file->data, file, flags);
    if (S_ISBLK(file->mode))
        return open_disk(file, flags);
    if (S_ISDIR(file->mode))
        return (flags & O_ACCMODE) != O_RDONLY ? -EISDIR : open_one(KIND_DIRECTORY, file, flags);
    if (flags & O_DIRECTORY)
        return -ENOTDIR;
    return (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC ? -EROFS : open_one(KIND_FILE, file, flags);
}

int64_t sys_open(const syscall_t *call)
{
    return open_path(AT_FDCWD, call->arg[0], (unsigned)call->arg[1]);
}

int64_t sys_openat(const syscall_t *call)
{
    return open_path((int64_t)call->arg[0], call->arg[1], (unsigned)call->arg[2]);
}

int64_t sys_close(const syscall_t *call)
{
    struct open_file *open = file_at((int64_t)call->arg[0]);
    if (!open)
        return -EBADF;
    open->references--;
    descriptors[(uint32_t)call->arg[0]] = 0;
    return 0;
}

static int64_t duplicate(int64_t fd, uint64_t lowest, int cloexec)
{
    struct open_file *open = file_at(fd);
    return open ? set_descriptor(lowest, (unsigned)(open - opened), cloexec) : -EBADF;
}

int64_t sys_dup(const syscall_t *call)
{
    return duplicate((int64_t)call->arg[0], 0, 0);
}

int64_t sys_dup3(const syscall_t *call) /* and dup2(), which has no flags and allows what changes nothing */
{
    uint32_t to = (uint32_t)call->arg[1];
    int with_flags = call->number == __NR_dup3, cloexec = with_flags && call->arg[2] & O_CLOEXEC;
    if (!file_at((int64_t)call->arg[0]) || to >= FILES_MAX)
        return -EBADF;
    if (to == (uint32_t)call->arg[0])
        return with_flags ? -EINVAL : (int64_t)to;
    if (descriptors[to])
        opened[descriptors[to] - 1].references--, descriptors[to] = 0;
    return duplicate((int64_t)call->arg[0], to, cloexec);
}

int64_t sys_fcntl(const syscall_t *call)
{
    struct open_file *open = file_at((int64_t)call->arg[0]);
    uint32_t fd = (uint32_t)call->arg[0];
    if (!open)
        return -EBADF;
    switch (call->arg[1]) {
    case F_DUPFD:
    case F_DUPFD_CLOEXEC:
        return call->arg[2] < FILES_MAX ? duplicate(fd, call->arg[2], call->arg[1] != F_DUPFD) : -EINVAL;
    case F_GETFD:
        return close_on_exec[fd];
    case F_SETFD:
        close_on_exec[fd] = call->arg[2] & FD_CLOEXEC;
        return 0;
    case F_GETFL:
        return open->flags;
    case F_SETFL:
        open->flags = (open->flags & O_ACCMODE) | ((unsigned)call->arg[2] & (O_APPEND | O_NONBLOCK));
        return 0;
    default:
        return -EINVAL;
    }
}

/* ---- what is there */

static int64_t fill_stat(uint64_t address, const struct paravirt_file *file)
{
    struct stat stat = {.st_dev = 1, .st_ino = 1, .st_nlink = 1, .st_blksize = PAGE, .st_mode = S_IFCHR | 0620,
                        .st_rdev = CONSOLE_DEVICE};
    if (file) {
        stat.st_ino = (uint64_t)(file - files) + 2;
        stat.st_mode = file->mode;
        stat.st_size = (int64_t)file->size_bytes;
        stat.st_blocks = (stat.st_size + 511) / 512;
        stat.st_atime = stat.st_mtime = stat.st_ctime = (uint64_t)file->mtime_s;
        stat.st_rdev = S_ISCHR(file->mode) || S_ISBLK(file->mode) ? 0x100 | file->data : 0;
    }
    return user_write(address, &stat, sizeof stat) ? 0 : -EFAULT;
}

int64_t sys_fstat(const syscall_t *call)
{
    const struct open_file *open = file_at((int64_t)call->arg[0]);
    return open ? fill_stat(call->arg[1], open->file) : -EBADF;
}

int64_t sys_stat(const syscall_t *call) /* and lstat(): there are no symbolic links */
{
    const struct paravirt_file *file;
    return look_up(AT_FDCWD, call->arg[0], 0, &file) ?: fill_stat(call->arg[1], file);
}

int64_t sys_newfstatat(const syscall_t *call)
{
    const struct paravirt_file *file = 0;
    const struct open_file *open = file_at((int64_t)call->arg[0]);
    int empty = call->arg[3] & AT_EMPTY_PATH;
    char first = 0;
    if (empty && open && user_read(&first, call->arg[1], 1) && !first)
        return fill_stat(call->arg[2], open->file);
    return look_up((int64_t)call->arg[0], call->arg[1], empty, &file) ?: fill_stat(call->arg[2], file);
}

static int64_t may(int64_t dirfd, uint64_t path, unsigned mode)
{
    const struct paravirt_file *file;
    int64_t failed = look_up(dirfd, path, 0, &file);
    if (failed)
        return failed;
    if (mode & 2 && !S_ISCHR(file->mode))
        return -EROFS;
    return mode & 1 && !(file->mode & 0111) ? -EACCES : 0;
}

int64_t sys_access(const syscall_t *call)
{
    return may(AT_FDCWD, call->arg[0], (unsigned)call->arg[1]);
}

int64_t sys_faccessat(const syscall_t *call)
{
    return may((int64_t)call->arg[0], call->arg[1], (unsigned)call->arg[2]);
}

static int64_t read_link(int64_t dirfd, uint64_t path, uint64_t to, uint64_t size)
{
    static const char self[] = "/proc/self/exe";
    const struct paravirt_file *file;
    char text[sizeof self];
    int64_t failed;
    if (user_read(text, path, sizeof text)) {
        unsigned same = 0;
        while (same < sizeof self && text[same] == self[same])
            same++;
        if (same == sizeof self) {
            size = size < boot->path_bytes ? size : boot->path_bytes;
            return user_write(to, direct(boot->path), size) ? (int64_t)size : -EFAULT;
        }
    }
    failed = look_up(dirfd, path, 0, &file);
    return failed ? failed : -EINVAL; /* there, and no link */
}

int64_t sys_readlink(const syscall_t *call)
{
    return read_link(AT_FDCWD, call->arg[0], call->arg[1], call->arg[2]);
}

int64_t sys_readlinkat(const syscall_t *call)
{
    return read_link((int64_t)call->arg[0], call->arg[1], call->arg[2], call->arg[3]);
}

int64_t sys_getcwd(const syscall_t *call)
{
    if (call->arg[1] < 2)
        return -ERANGE;
    return user_write(call->arg[0], "/", 2) ? 2 : -EFAULT;
}
