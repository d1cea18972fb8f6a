/* Walks over all of RAM, below 4 GiB and above, and touches each page once.
 *
 * How much there is stands in the CMOS memory, as firmware leaves it there. The machine's page tables map
 * 4 GiB; for what lies above, one page directory is a window that is moved on by 1 GiB at a time.
 */
#include "console.h"
#include "cpu.h"

enum { PRESENT = 1, WRITABLE = 2, LARGE = 0x80 };
#define KIB 1024ul
#define MIB (KIB * KIB)
#define GIB (KIB * MIB)
#define WINDOW 4 /* the entry of the second-level table for 4 GiB to 5 GiB */

static uint64_t window[512] __attribute__((aligned(4096)));
static unsigned long step, touched, not_empty;

static unsigned long cmos(unsigned index, unsigned bytes)
{
    unsigned long value = 0;
    while (bytes--) {
        out8(0x70, (uint8_t)(index + bytes));
        value = value << 8 | in8(0x71);
    }
    return value;
}

static void walk(unsigned long at, unsigned long size)
{
    for (unsigned long end = at + size; at < end; at += step, touched++)
        not_empty += *(volatile char *)at && at >= 2 * MIB; /* this program and its tables lie below */
}

int main(void)
{
    unsigned long above_16m = cmos(0x34, 2) * 64 * KIB, high = cmos(0x5b, 3) * 64 * KIB;
    unsigned long low = above_16m ? 16 * MIB + above_16m : MIB + cmos(0x30, 2) * KIB;
    uint64_t *pml4 = (uint64_t *)read_cr3(), *pdpt = (uint64_t *)(pml4[0] & ~0xffful);
    step = low + high > GIB ? 2 * MIB : 4 * KIB; /* a large memory by large pages */
    walk(0, low);
    pdpt[WINDOW] = (uint64_t)window | PRESENT | WRITABLE;
    for (unsigned long gpa = 4 * GIB, end = gpa + high; gpa < end; gpa += GIB) {
        for (unsigned i = 0; i < 512; i++)
            window[i] = (gpa + i * 2 * MIB) | PRESENT | WRITABLE | LARGE;
        write_cr3(read_cr3());
        walk(WINDOW * GIB, end - gpa < GIB ? end - gpa : GIB);
    }
    printf("%lu touched in steps of %lu KiB, %lu not empty\n", touched, step / KIB, not_empty);
    return 0;
}
