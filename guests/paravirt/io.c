/* Reading and writing: files from guest memory, all else by asking the host. */
#include "files.h"
#include "kernel.h"
#include "linux.h"

#define MOST 0x7ffff000ul  /* what one call moves, as on Linux */
#define AT_ONCE 32768ul    /* what one hypercall moves */
#define VECTORS_MOST 1024

/* ---- one piece of the program's memory, in a row in ours */

static int64_t read_console(void *to, uint64_t size, unsigned flags)
{
    for (;;) {
        int64_t result = ask(HC_CONSOLE_READ, gpa_of(to), size);
        if (result != HC_EAGAIN || flags & O_NONBLOCK)
            return result;
        ask(HC_YIELD, ~0ul, HC_YIELD_INPUT);
    }
}

static int64_t read_piece(const struct open_file *open, void *to, uint64_t size, uint64_t offset)
{
    switch (open->kind) {
    case KIND_CONSOLE:
        return read_console(to, size, open->flags);
    case KIND_RANDOM:
        return ask(HC_RANDOM, gpa_of(to), size);
    case KIND_ZERO:
        fill(to, 0, size);
        return (int64_t)size;
    case KIND_FILE:
        if (offset >= open->file->size_bytes)
            return 0;
        size = size < open->file->size_bytes - offset ? size : open->file->size_bytes - offset;
        copy(to, direct(open->file->data + offset), size);
        return (int64_t)size;
    case KIND_DIRECTORY:
        return -EISDIR;
    default:
        return 0;
    }
}

static int64_t write_piece(const struct open_file *open, const void *from, uint64_t size)
{
    if (open->kind == KIND_CONSOLE)
        return ask(HC_CONSOLE_WRITE, gpa_of(from), size);
    return open->kind == KIND_FILE || open->kind == KIND_DIRECTORY ? -EBADF : (int64_t)size;
}

/* Whole sectors at whole sectors, as with O_DIRECT on Linux: they go straight into the program's pages, but for
 * those that lie across two pages that are not neighbours. */
static int64_t read_disk(uint64_t address, uint64_t size, uint64_t *offset)
{
    static char sector[HC_BLOCK_SECTOR];
    uint64_t done = 0;
    if ((size | *offset) % sizeof sector)
        return -EINVAL;
    while (done < size && *offset < disk_bytes) {
        uint64_t left = disk_bytes - *offset, n = size - done < AT_ONCE ? size - done : AT_ONCE;
        void *to = user_bytes(address + done, &n, 1);
        int split = n < sizeof sector;
        int64_t result = -EFAULT;
        n = split ? sizeof sector : (n < left ? n : left) / sizeof sector * sizeof sector;
        if (to)
            result = ask3(HC_BLOCK_READ, *offset / sizeof sector, n / sizeof sector, gpa_of(split ? sector : to));
        if (result > 0 && split && !user_write(address + done, sector, n))
            result = -EFAULT;
        if (result <= 0)
            return done ? (int64_t)done : result;
        *offset += n;
        done += n;
    }
    return (int64_t)done;
}

/* ---- all of it, piece by piece */

static int64_t transfer(struct open_file *open, uint64_t address, uint64_t size, uint64_t *offset, int write)
{
    uint64_t done = 0;
    size = size < MOST ? size : MOST;
    if (!open || (write ? O_RDONLY : O_WRONLY) == (open->flags & O_ACCMODE))
        return -EBADF;
    if (open->kind == KIND_DISK)
        return read_disk(address, size, offset);
    while (done < size) {
        uint64_t n = size - done < AT_ONCE ? size - done : AT_ONCE;
        void *bytes = user_bytes(address + done, &n, !write);
        int64_t result = !bytes ? -EFAULT
                         : write ? write_piece(open, bytes, n)
                                 : read_piece(open, bytes, n, *offset);
        if (result <= 0)
            return done ? (int64_t)done : result;
        *offset += (uint64_t)result;
        done += (uint64_t)result;
        if ((uint64_t)result < n || (!write && open->kind == KIND_CONSOLE))
            break; /* that is all there is now */
    }
    return (int64_t)done;
}

int64_t sys_read(const syscall_t *call)
{
    struct open_file *open = file_at((int64_t)call->arg[0]);
    return open ? transfer(open, call->arg[1], call->arg[2], &open->offset, 0) : -EBADF;
}

int64_t sys_write(const syscall_t *call)
{
    struct open_file *open = file_at((int64_t)call->arg[0]);
    return open ? transfer(open, call->arg[1], call->arg[2], &open->offset, 1) : -EBADF;
}

int64_t sys_pread64(const syscall_t *call)
{
    struct open_file *open = file_at((int64_t)call->arg[0]);
    uint64_t offset = call->arg[3];
    if (!open)
        return -EBADF;
    if ((int64_t)offset < 0)
        return -EINVAL;
    return open->kind == KIND_CONSOLE ? -ESPIPE : transfer(open, call->arg[1], call->arg[2], &offset, 0);
}

static int64_t transfer_all(const syscall_t *call, int write)
{
    struct open_file *open = file_at((int64_t)call->arg[0]);
    int64_t done = 0;
    if (!open)
        return -EBADF;
    if (call->arg[2] > VECTORS_MOST)
        return -EINVAL;
    for (uint64_t i = 0; i < call->arg[2]; i++) {
        struct iovec piece;
        int64_t result = -EFAULT;
        if (user_read(&piece, call->arg[1] + i * sizeof piece, sizeof piece))
            result = transfer(open, (uint64_t)piece.iov_base, piece.iov_len, &open->offset, write);
        if (result < 0)
            return done ? done : result;
        done += result;
        if ((uint64_t)result < piece.iov_len)
            break;
    }
    return done;
}

int64_t sys_readv(const syscall_t *call)
{
    return transfer_all(call, 0);
}

int64_t sys_writev(const syscall_t *call)
{
    return transfer_all(call, 1);
}

int64_t sys_lseek(const syscall_t *call)
{
    struct open_file *open = file_at((int64_t)call->arg[0]);
    uint64_t from;
    if (!open)
        return -EBADF;
    if (open->kind == KIND_CONSOLE)
        return -ESPIPE;
    if (call->arg[2] > SEEK_END)
        return -EINVAL;
    from = open->kind == KIND_DISK ? disk_bytes : open->file->size_bytes;
    from = call->arg[2] == SEEK_CUR ? open->offset : call->arg[2] == SEEK_END ? from : 0;
    if ((int64_t)(from + call->arg[1]) < 0)
        return -EINVAL;
    return (int64_t)(open->offset = from + call->arg[1]);
}

int64_t sys_ioctl(const syscall_t *call) /* the console is no terminal to programs: their output comes in blocks */
{
    return file_at((int64_t)call->arg[0]) ? -ENOTTY : -EBADF;
}

/* ---- waiting for several */

static short ready(const struct pollfd *wanted)
{
    const struct open_file *open = file_at(wanted->fd);
    short events = POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM;
    if (wanted->fd < 0)
        return 0;
    if (!open)
        return POLLNVAL;
    if (open->kind == KIND_CONSOLE && ask(HC_CONSOLE_READ, gpa_of(open), 0) == HC_EAGAIN)
        events = POLLOUT | POLLWRNORM;
    return wanted->events & events;
}

int64_t sys_poll(const syscall_t *call)
{
    int64_t timeout_ns = (int32_t)call->arg[2] * 1000000l, end = 0, left = -1, found = 0;
    if (call->arg[1] > FILES_MAX)
        return -EINVAL;
    for (;;) {
        for (uint64_t i = 0; i < call->arg[1]; i++) {
            uint64_t at = call->arg[0] + i * sizeof(struct pollfd);
            struct pollfd one;
            if (!user_read(&one, at, sizeof one))
                return -EFAULT;
            one.revents = ready(&one);
            found += one.revents != 0;
            if (!user_write(at, &one, sizeof one))
                return -EFAULT;
        }
        if (found || !timeout_ns)
            return found;
        if (timeout_ns > 0) {
            int64_t now = ask(HC_TIME, 0, 0);
            end = end ? end : now + timeout_ns;
            left = end - now;
            if (left <= 0)
                return 0;
        }
        ask(HC_YIELD, (uint64_t)left, HC_YIELD_INPUT);
    }
}

/* ---- directories: the set is sorted by path, so that a directory's children follow it */

static int64_t put_entry(uint64_t to, uint64_t room, const struct paravirt_file *file, uint64_t from, uint64_t next)
{
    struct {
        uint64_t inode, next;
        uint16_t bytes;
        uint8_t type;
    } __attribute__((packed)) head = {next + 1, next, 0, (uint8_t)(file->mode >> 12)};
    uint64_t name = file->path_bytes - from;
    head.bytes = (uint16_t)((sizeof head + name + 1 + 7) & ~7ul);
    if (head.bytes > room)
        return 0;
    if (!user_write(to, &head, sizeof head) || !user_write(to + sizeof head, direct(file->path + from), name) ||
        !user_write(to + sizeof head + name, "\0\0\0\0\0\0\0", head.bytes - sizeof head - name))
        return -EFAULT;
    return head.bytes;
}

int64_t sys_getdents64(const syscall_t *call)
{
    struct open_file *open = file_at((int64_t)call->arg[0]);
    const struct paravirt_file *files = direct(boot->files);
    uint64_t done = 0, prefix;
    if (!open)
        return -EBADF;
    if (open->kind != KIND_DIRECTORY)
        return -ENOTDIR;
    prefix = open->file->path_bytes > 1 ? open->file->path_bytes : 0;
    for (; open->offset < boot->file_count; open->offset++) {
        const struct paravirt_file *file = &files[open->offset];
        int64_t result;
        if (file == open->file || file->parent != (uint64_t)(open->file - files))
            continue;
        result = put_entry(call->arg[1] + done, call->arg[2] - done, file, prefix + 1, open->offset + 1);
        if (result <= 0)
            return done ? (int64_t)done : result ? result : -EINVAL;
        done += (uint64_t)result;
    }
    return (int64_t)done;
}
