/* What the program has mapped: a sorted table of areas. Pages come when they are touched. */
#include "kernel.h"
#include "linux.h"

#define AREAS_MAX 1024
#define AROUND 16ul                   /* a fault brings this many pages at once: a fault is dear, a page is not */
#define STACK_GUARD (1ul << 20)       /* nothing is placed that close to the stack */
#define MMAP_LOWEST 0x10000ul

struct area {
    uint64_t start, end;
    uint64_t file;       /* the gpa of what is mapped at `start`; 0: zeros */
    uint64_t file_bytes; /* of it, zeros behind; may be more than the area has */
    unsigned prot, flags;
    unsigned touched;    /* it has had pages; else there is nothing to look for */
};

static struct area areas[AREAS_MAX + 1];
static unsigned count, last;          /* `last`: where area_at() has been */
static uint64_t heap_start, heap_end; /* what brk() moves */

static inline uint64_t page_up(uint64_t n) { return (n + PAGE - 1) & ~(uint64_t)(PAGE - 1); }

/* ---- the table */

/* The first area that ends above `address`. */
static unsigned first_above(uint64_t address)
{
    unsigned low = 0, high = count;
    if (last < count && areas[last].end > address && (!last || areas[last - 1].end <= address))
        return last;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (areas[middle].end > address)
            high = middle;
        else
            low = middle + 1;
    }
    return last = low;
}

static struct area *area_at(uint64_t address)
{
    struct area *area = &areas[first_above(address)];
    return area < areas + count && area->start <= address ? area : 0;
}

static int is_free(uint64_t start, uint64_t end)
{
    unsigned i = first_above(start);
    return i == count || areas[i].start >= end;
}

static void move(unsigned from, unsigned to) /* the table's tail */
{
    if (to > from)
        for (unsigned i = count; i-- > from;)
            areas[i + to - from] = areas[i];
    else
        copy(&areas[to], &areas[from], (count - from) * sizeof *areas);
    count += to - from;
}

static int can_join(const struct area *low, const struct area *high)
{
    return low->end == high->start && !low->file && !high->file && low->prot == high->prot &&
           low->flags == high->flags;
}

static void join(unsigned i) /* the i-th with its neighbours */
{
    if (i + 1 < count && can_join(&areas[i], &areas[i + 1])) {
        areas[i].end = areas[i + 1].end;
        areas[i].touched |= areas[i + 1].touched;
        move(i + 2, i + 1);
    }
    if (i && i < count && can_join(&areas[i - 1], &areas[i])) {
        areas[i - 1].end = areas[i].end;
        areas[i - 1].touched |= areas[i].touched;
        move(i + 1, i);
    }
}

/* Let no area reach over `address`; needs room for one more. */
static void split(uint64_t address)
{
    unsigned i = first_above(address);
    struct area *low = &areas[i], *high = low + 1;
    uint64_t before = address - low->start;
    if (i == count || low->start >= address)
        return;
    move(i, i + 1);
    *low = *high;
    low->end = high->start = address;
    if (high->file) {
        high->file += before;
        high->file_bytes = high->file_bytes > before ? high->file_bytes - before : 0;
    }
}

static unsigned is_inside(uint64_t address) /* an area reaches over it */
{
    struct area *area = area_at(address);
    return area && area->start < address;
}

/* Let no area reach over either end; 0 if the table has no room for the parts. */
static int cut(uint64_t start, uint64_t end)
{
    if (count + is_inside(start) + is_inside(end) > AREAS_MAX)
        return 0;
    split(start);
    split(end);
    return 1;
}

static void drop_pages(uint64_t start, uint64_t end)
{
    for (uint64_t at = start; at < end; at += PAGE) {
        uint64_t *entry = entry_of(at, 0);
        if (!entry) {
            at |= 0x1ff000; /* no table: nothing in these 2 MiB */
            continue;
        }
        if (*entry & OWNED)
            frame_free(*entry & FRAME);
        *entry = 0;
    }
    forget(start, end);
}

static int unmap(uint64_t start, uint64_t end)
{
    unsigned i, n;
    if (!cut(start, end))
        return -ENOMEM;
    for (i = n = first_above(start); n < count && areas[n].end <= end; n++)
        if (areas[n].touched)
            drop_pages(areas[n].start, areas[n].end);
    if (n > i)
        move(n, i);
    return 0;
}

int area_map(uint64_t start, uint64_t end, unsigned prot, unsigned flags, uint64_t file, uint64_t file_bytes)
{
    int failed = is_free(start, end) ? 0 : unmap(start, end);
    unsigned i = first_above(start);
    if (failed || count + 1 > AREAS_MAX)
        return -ENOMEM;
    move(i, i + 1);
    areas[i] = (struct area){start, end, file, file_bytes, prot, flags, 0};
    join(i);
    return 0;
}

/* ---- page faults */

static uint64_t rights(unsigned prot)
{
    return (prot ? PRESENT | USER : 0) | (prot & PROT_WRITE ? WRITABLE : 0) | (prot & PROT_EXEC ? 0 : NO_EXECUTE);
}

/* A frame of the page's own, with what the file has for it. */
static uint64_t fresh(const struct area *area, uint64_t page)
{
    uint64_t behind = page - area->start, gpa = frame_alloc();
    if (gpa && area->file && area->file_bytes > behind) {
        uint64_t bytes = area->file_bytes - behind;
        copy(direct(gpa), direct(area->file + behind), bytes < PAGE ? bytes : PAGE);
    }
    return gpa;
}

/* Pages that need no copy come together with their neighbours, in one row of frames. */
static enum fault bring(struct area *area, uint64_t page)
{
    int shared = area->file && !(area->prot & PROT_WRITE) && !(area->flags & AREA_COPY);
    uint64_t window = area->file && !shared ? PAGE : AROUND * PAGE, bits = rights(area->prot);
    uint64_t at = page & ~(window - 1), end = at + window;
    uint64_t *entry = entry_of(page, 1);
    if (!entry)
        return FAULT_NO_FRAME;
    at = at < area->start ? area->start : at;
    end = end > area->end ? area->end : end;
    entry -= (page - at) / PAGE; /* a window lies in one table */
    area->touched = 1;
    for (; at < end; at += PAGE, entry++) {
        if (*entry)
            continue;
        if (shared && area->file_bytes > at - area->start) {
            *entry = (area->file + (at - area->start)) | bits;
        } else if (!shared || !(area->flags & AREA_FILE)) {
            uint64_t gpa = fresh(area, at);
            if (!gpa)
                break;
            *entry = gpa | bits | OWNED;
        }
    }
    return *entry_of(page, 0) ? FAULT_OK : FAULT_NO_FRAME;
}

enum fault area_fault(uint64_t address, unsigned prot)
{
    struct area *area = address < USER_END ? area_at(address) : 0;
    unsigned has = area ? area->prot : 0;
    has |= has ? PROT_READ : 0; /* the CPU knows no page that can't be read */
    if (!(has & prot))
        return FAULT_BAD;
    address &= ~(uint64_t)(PAGE - 1);
    if (area->flags & AREA_FILE && address - area->start >= page_up(area->file_bytes))
        return FAULT_PAST_FILE;
    return bring(area, address);
}

int area_is_below_stack(uint64_t address)
{
    struct area *next = &areas[first_above(address)];
    return next < areas + count && next->flags & AREA_STACK && next->start > address &&
           next->start - address <= STACK_GUARD;
}

/* ---- system calls */

static uint64_t gap(uint64_t bytes) /* the highest free place, or 0 */
{
    uint64_t top = USER_END;
    for (unsigned i = count; i--; top = areas[i].start - (areas[i].flags & AREA_STACK ? STACK_GUARD : 0))
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
    if (flags & MAP_FIXED_NOREPLACE && !is_free(at, at + bytes))
        return -EEXIST;
    if (!fixed && (at < MMAP_LOWEST || at > USER_END - bytes || !is_free(at, at + bytes)))
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
    return unmap(start, start + page_up(bytes));
}

/* Give present pages new rights. One that is the file's own goes if it becomes writable: it has to be copied. */
static void change_pages(uint64_t start, uint64_t end, unsigned prot)
{
    for (uint64_t at = start; at < end; at += PAGE) {
        uint64_t *entry = entry_of(at, 0);
        if (!entry)
            at |= 0x1ff000;
        else if (*entry)
            *entry = !(*entry & OWNED) && prot & PROT_WRITE ? 0 : (*entry & (FRAME | OWNED)) | rights(prot);
    }
    forget(start, end);
}

int64_t sys_mprotect(const syscall_t *call)
{
    uint64_t start = call->arg[0], bytes = call->arg[1], end = start + page_up(bytes);
    unsigned prot = (unsigned)call->arg[2];
    if (start % PAGE || prot & ~(unsigned)(PROT_READ | PROT_WRITE | PROT_EXEC))
        return -EINVAL;
    if (!is_range(start, bytes) || !is_mapped(start, end) || !cut(start, end))
        return -ENOMEM;
    for (unsigned i = first_above(start); i < count && areas[i].start < end; i++) {
        areas[i].prot = prot;
        if (areas[i].touched)
            change_pages(areas[i].start, areas[i].end, prot);
    }
    join(first_above(end - (bytes > 0)));
    join(first_above(start));
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
        drop_pages(start, start + page_up(bytes)); /* they come again as they were first */
    return 0;
}

static int make_tables(uint64_t start, uint64_t end) /* so that nothing can fail halfway */
{
    for (uint64_t at = start; at < end; at = (at | 0x1fffff) + 1)
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
        return new == old ? (int64_t)from : (unmap(from + new, from + old) ?: (int64_t)from);
    was = *area;
    to = gap(new);
    if (was.file || !to || !(call->arg[3] & MREMAP_MAYMOVE) || new > frames_total() || count + 3 > AREAS_MAX ||
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
    return unmap(from, from + old) ?: (int64_t)to;
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
    if (to > from && (!is_free(from, to) || area_map(from, to, PROT_READ | PROT_WRITE, 0, 0, 0)))
        return (int64_t)heap_end;
    if (to < from && unmap(to, from))
        return (int64_t)heap_end;
    return (int64_t)(heap_end = wanted);
}
