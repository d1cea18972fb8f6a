/* The system calls that change what is mapped. */
#include "areas.h"
#include "linux.h"

#define MMAP_LOWEST 0x10000ul

static uint64_t heap_start, heap_end; /* what brk() moves */

static uint64_t gap(uint64_t bytes) /* the highest free place, or 0 */
{
    uint64_t top = USER_END;
    for (unsigned i = area_count; i--; top = areas[i].start - (areas[i].flags & AREA_STACK ? STACK_GUARD : 0))
        if (areas[i].end <= top && top - areas[i].end >= bytes)
            return top - bytes;
    return top >= MMAP_LOWEST + bytes ? top - bytes : 0;
}

int64_t sys_mmap(const syscall_t *call)
{
    uint64_t at = call->arg[0], bytes = page_up(call->arg[1]), offset = call->arg[5], file = 0, file_bytes = 0;
    unsigned prot = call->arg[2] & (PROT_READ | PROT_WRITE | PROT_EXEC), flags = (unsigned)call->arg[3];
    int fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE), kind = flags & MAP_TYPE;
    if (!call->arg[1] || offset % PAGE || (kind != MAP_PRIVATE && kind != MAP_SHARED) || (fixed && at % PAGE))
        return -EINVAL;
    if (offset > USER_END)
        return -EOVERFLOW;
    if (!(flags & MAP_ANONYMOUS)) {
        file = file_of((int64_t)call->arg[4], &file_bytes);
        if (!file)
            return -EBADF;
        if (kind == MAP_SHARED && prot & PROT_WRITE)
            return -EACCES;
        file += offset;
        file_bytes = file_bytes > offset ? file_bytes - offset : 0;
    }
    if (!bytes || bytes > USER_END || (prot && !file && bytes > frames_total()))
        return -ENOMEM;
    at &= ~(uint64_t)(PAGE - 1);
    if (fixed && (at < MMAP_LOWEST || at > USER_END - bytes))
        return at > USER_END - bytes ? -ENOMEM : -EPERM;
    if (flags & MAP_FIXED_NOREPLACE && !areas_are_free(at, at + bytes))
        return -EEXIST;
    if (!fixed && (at < MMAP_LOWEST || at > USER_END - bytes || !areas_are_free(at, at + bytes)))
        at = gap(bytes);
    return at ? (area_map(at, at + bytes, prot, file ? AREA_FILE : 0, file, file_bytes) ?: (int64_t)at) : -ENOMEM;
}

static int is_range(uint64_t start, uint64_t bytes) /* of whole pages of the program's half */
{
    return !(start % PAGE) && bytes <= USER_END && page_up(bytes) <= USER_END && start <= USER_END - page_up(bytes);
}

static int is_mapped(uint64_t start, uint64_t end)
{
    for (struct area *area; start < end; start = area->end)
        if (!(area = area_at(start)))
            return 0;
    return 1;
}

int64_t sys_munmap(const syscall_t *call)
{
    uint64_t start = call->arg[0], bytes = call->arg[1];
    if (!bytes || !is_range(start, bytes))
        return -EINVAL;
    return areas_unmap(start, start + page_up(bytes));
}

/* Give present pages new rights. One that is the file's own goes if it becomes writable: it has to be copied. */
static void change_pages(uint64_t start, uint64_t end, unsigned prot)
{
    for (uint64_t at = start; at < end; at += PAGE) {
        uint64_t *entry = entry_of(at, 0);
        if (!entry)
            at |= TABLE_REST;
        else if (*entry)
            *entry = !(*entry & OWNED) && prot & PROT_WRITE ? 0 : (*entry & (FRAME | OWNED)) | page_rights(prot);
    }
    forget(start, end);
}

int64_t sys_mprotect(const syscall_t *call)
{
    uint64_t start = call->arg[0], bytes = call->arg[1], end = start + page_up(bytes);
    unsigned prot = (unsigned)call->arg[2];
    if (start % PAGE || prot & ~(unsigned)(PROT_READ | PROT_WRITE | PROT_EXEC))
        return -EINVAL;
    if (!bytes)
        return 0;
    if (!is_range(start, bytes) || !is_mapped(start, end) || !areas_cut(start, end))
        return -ENOMEM;
    for (unsigned i = area_above(start); i < area_count && areas[i].start < end; i++) {
        areas[i].prot = prot;
        if (areas[i].touched)
            change_pages(areas[i].start, areas[i].end, prot);
    }
    area_join(area_above(end - 1));
    area_join(area_above(start));
    return 0;
}

int64_t sys_madvise(const syscall_t *call)
{
    uint64_t start = call->arg[0], bytes = call->arg[1];
    if (!is_range(start, bytes))
        return -EINVAL;
    if (!is_mapped(start, start + page_up(bytes)))
        return -ENOMEM;
    if (call->arg[2] == MADV_DONTNEED)
        areas_drop(start, start + page_up(bytes)); /* they come again as they were first */
    return 0;
}

static int make_tables(uint64_t start, uint64_t end) /* so that nothing can fail halfway */
{
    for (uint64_t at = start; at < end; at = (at | TABLE_REST) + PAGE)
        if (!entry_of(at, 1))
            return 0;
    return 1;
}

/* Grow by moving: the page tables' entries go to a larger place, the frames stay where they are. */
int64_t sys_mremap(const syscall_t *call)
{
    uint64_t from = call->arg[0], old = page_up(call->arg[1]), new = page_up(call->arg[2]), to;
    struct area *area = from < USER_END && old <= USER_END ? area_at(from) : 0, was;
    if (from % PAGE || !old || !new || new > USER_END || call->arg[3] & ~(uint64_t)MREMAP_MAYMOVE)
        return -EINVAL;
    if (!area || area->end < from + old)
        return -EFAULT;
    if (new <= old)
        return new == old ? (int64_t)from : (areas_unmap(from + new, from + old) ?: (int64_t)from);
    was = *area;
    to = gap(new);
    if (was.file || !to || !(call->arg[3] & MREMAP_MAYMOVE) || new > frames_total() || area_count + 3 > AREAS_MAX ||
        !make_tables(to, to + old))
        return -ENOMEM;
    area_map(to, to + new, was.prot, was.flags, 0, 0); /* there is room, also for the parts of the old one */
    area_at(to)->touched = 1;
    for (uint64_t at = 0; at < old; at += PAGE) {
        uint64_t *source = entry_of(from + at, 0);
        if (!source || !*source)
            continue;
        *entry_of(to + at, 0) = *source;
        *entry_of(from + at, 0) = 0;
    }
    forget(from, from + old);
    return areas_unmap(from, from + old) ?: (int64_t)to;
}

void heap_init(uint64_t start)
{
    heap_start = heap_end = page_up(start);
}

int64_t sys_brk(const syscall_t *call)
{
    uint64_t wanted = call->arg[0], from = page_up(heap_end), to = page_up(wanted);
    if (wanted < heap_start || wanted > USER_END || wanted - heap_start > frames_total())
        return (int64_t)heap_end;
    if (to > from && (!areas_are_free(from, to) || area_map(from, to, PROT_READ | PROT_WRITE, 0, 0, 0)))
        return (int64_t)heap_end;
    if (to < from && areas_unmap(to, from))
        return (int64_t)heap_end;
    return (int64_t)(heap_end = wanted);
}
