/* Free page frames, and the page tables that point to them. */
#include "cpu.h"
#include "kernel.h"

#define LARGE_PAGE 0x200000ul
#define GIB (1ul << 30)
#define PAGE_SIZE_BIT 0x80ul
#define LOW_END (4 * GIB) /* what the machine's first tables map */
#define FORGET_EACH 32    /* pages up to which forgetting one by one is cheaper than all */

static struct paravirt_range ranges[PARAVIRT_RAM_RANGES]; /* never used yet: the host gave them as zeros */
static uint64_t free_list; /* gpas; each free frame holds that of the next */
static uint64_t total;

/* The last table that entry_of() looked at: nearly always the next one too. Tables are never freed. */
static uint64_t last_part = ~0ul, *last_table;

/* Let DIRECT show the RAM above 4 GiB as well. */
static void map_high(uint64_t end)
{
    uint64_t *pdpt = direct(((uint64_t *)direct(read_cr3()))[DIRECT >> 39 & 511] & FRAME);
    for (uint64_t at = LOW_END; at < end; at += GIB) {
        uint64_t gpa = frame_alloc(), *directory = direct(gpa);
        for (unsigned i = 0; i < PAGE / sizeof *directory; i++)
            directory[i] = (at + i * LARGE_PAGE) | PRESENT | WRITABLE | PAGE_SIZE_BIT;
        pdpt[at / GIB] = gpa | PRESENT | WRITABLE;
    }
}

void frames_init(void)
{
    ranges[0] = boot->ram[0];
    total = ranges[0].end - ranges[0].start;
    if (boot->ram[1].end) {
        map_high(boot->ram[1].end);
        ranges[1] = boot->ram[1];
        total += ranges[1].end - ranges[1].start;
    }
}

uint64_t frames_total(void)
{
    return total;
}

uint64_t frames_reserve(uint64_t bytes)
{
    uint64_t gpa = ranges[0].start;
    bytes = (bytes + PAGE - 1) & ~(uint64_t)(PAGE - 1);
    if (bytes > ranges[0].end - gpa)
        return 0;
    ranges[0].start += bytes;
    return gpa;
}

uint64_t frame_alloc(void)
{
    uint64_t gpa;
    for (unsigned i = 0; i < PARAVIRT_RAM_RANGES; i++) {
        gpa = ranges[i].start;
        if (gpa < ranges[i].end) {
            ranges[i].start = gpa + PAGE;
            return gpa;
        }
    }
    gpa = free_list;
    if (gpa) {
        free_list = *(uint64_t *)direct(gpa);
        fill(direct(gpa), 0, PAGE);
    }
    return gpa;
}

void frame_free(uint64_t gpa)
{
    *(uint64_t *)direct(gpa) = free_list;
    free_list = gpa;
}

uint64_t *entry_of(uint64_t address, int create)
{
    uint64_t *table;
    if (address / LARGE_PAGE == last_part)
        return &last_table[address / PAGE % 512];
    table = direct(read_cr3());
    for (unsigned shift = 39; shift > 12; shift -= 9) {
        uint64_t *entry = &table[address >> shift & 511];
        if (!(*entry & PRESENT)) {
            uint64_t gpa = create ? frame_alloc() : 0;
            if (!gpa)
                return 0;
            *entry = gpa | PRESENT | WRITABLE | USER;
        }
        table = direct(*entry & FRAME);
    }
    last_part = address / LARGE_PAGE;
    last_table = table;
    return &table[address / PAGE % 512];
}

void forget(uint64_t start, uint64_t end)
{
    user_forget();
    if (end - start > FORGET_EACH * PAGE)
        write_cr3(read_cr3());
    else
        for (; start < end; start += PAGE)
            asm volatile("invlpg (%0)" : : "r"(start) : "memory");
}
