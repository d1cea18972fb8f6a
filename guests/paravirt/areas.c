/* What the program has mapped: a sorted table of areas. Pages come when they are touched. */
#include "areas.h"

#include "linux.h"

#define AROUND 16ul /* a fault brings this many pages at once: a fault is dear, a page is not */

struct area areas[AREAS_MAX + 1];
unsigned area_count;
static unsigned last; /* where area_above() has been */

/* ---- the table */

unsigned area_above(uint64_t address)
{
    unsigned low = 0, high = area_count;
    if (last < area_count && areas[last].end > address && (!last || areas[last - 1].end <= address))
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

struct area *area_at(uint64_t address)
{
    struct area *area = &areas[area_above(address)];
    return area < areas + area_count && area->start <= address ? area : 0;
}

int areas_are_free(uint64_t start, uint64_t end)
{
    unsigned i = area_above(start);
    return i == area_count || areas[i].start >= end;
}

static void move(unsigned from, unsigned to) /* the table's tail */
{
    if (to > from)
        for (unsigned i = area_count; i-- > from;)
            areas[i + to - from] = areas[i];
    else
        copy(&areas[to], &areas[from], (area_count - from) * sizeof *areas);
    area_count += to - from;
}

static int can_join(const struct area *low, const struct area *high)
{
    return low->end == high->start && !low->file && !high->file && low->prot == high->prot &&
           low->flags == high->flags;
}

void area_join(unsigned i)
{
    if (i + 1 < area_count && can_join(&areas[i], &areas[i + 1])) {
        areas[i].end = areas[i + 1].end;
        areas[i].touched |= areas[i + 1].touched;
        move(i + 2, i + 1);
    }
    if (i && i < area_count && can_join(&areas[i - 1], &areas[i])) {
        areas[i - 1].end = areas[i].end;
        areas[i - 1].touched |= areas[i].touched;
        move(i + 1, i);
    }
}

/* Let no area reach over `address`; needs room for one more. */
static void split(uint64_t address)
{
    unsigned i = area_above(address);
    struct area *low = &areas[i], *high = low + 1;
    uint64_t before = address - low->start;
    if (i == area_count || low->start >= address)
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

int areas_cut(uint64_t start, uint64_t end)
{
    if (area_count + is_inside(start) + is_inside(end) > AREAS_MAX)
        return 0;
    split(start);
    split(end);
    return 1;
}

void areas_drop(uint64_t start, uint64_t end)
{
    for (uint64_t at = start; at < end; at += PAGE) {
        uint64_t *entry = entry_of(at, 0);
        if (!entry) {
            at |= TABLE_REST; /* nothing in these 2 MiB */
            continue;
        }
        if (*entry & OWNED)
            frame_free(*entry & FRAME);
        *entry = 0;
    }
    forget(start, end);
}

int areas_unmap(uint64_t start, uint64_t end)
{
    unsigned i, n;
    if (!areas_cut(start, end))
        return -ENOMEM;
    for (i = n = area_above(start); n < area_count && areas[n].end <= end; n++)
        if (areas[n].touched)
            areas_drop(areas[n].start, areas[n].end);
    if (n > i)
        move(n, i);
    return 0;
}

int area_map(uint64_t start, uint64_t end, unsigned prot, unsigned flags, uint64_t file, uint64_t file_bytes)
{
    int failed = areas_are_free(start, end) ? 0 : areas_unmap(start, end);
    unsigned i = area_above(start);
    if (failed || area_count + 1 > AREAS_MAX)
        return -ENOMEM;
    move(i, i + 1);
    areas[i] = (struct area){start, end, file, file_bytes, prot, flags, 0};
    area_join(i);
    return 0;
}

/* ---- page faults */

uint64_t page_rights(unsigned prot)
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
    uint64_t window = area->file && !shared ? PAGE : AROUND * PAGE, bits = page_rights(area->prot);
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
    struct area *next = &areas[area_above(address)];
    return next < areas + area_count && next->flags & AREA_STACK && next->start > address &&
           next->start - address <= STACK_GUARD;
}
