/* Builds its own four levels of page tables, shows one page at two addresses, and maps a third on demand.
 *
 * An address has five parts here: 9 bits each to index PML4, PDPT, PD and PT, and 12 bits into the page.
 * The machine's own tables map everything to itself. Ours are small:
 *
 *     0x00000000  2 MiB to itself: this program, its stack, the descriptor tables
 *     0x40000000  a page            0x40002000  nothing, until somebody asks
 *     0x40001000  the same page
 */
#include "console.h"
#include "cpu.h"
#include "interrupts.h"

enum { PRESENT = 1, WRITABLE = 2, LARGE = 0x80 };
typedef uint64_t table[512] __attribute__((aligned(4096)));
static table pml4, pdpt, low_pd, high_pd, pt;
static char page[4096] __attribute__((aligned(4096)));

static void map_on_demand(struct frame *frame)
{
    printf("page fault at %lx, error code %lx: mapped\n", read_cr2(), frame->error);
    pt[2] = (uint64_t)page | PRESENT; /* the instruction runs again, and finds it */
}

int main(void)
{
    pml4[0] = (uint64_t)pdpt | PRESENT | WRITABLE;
    pdpt[0] = (uint64_t)low_pd | PRESENT | WRITABLE;
    pdpt[1] = (uint64_t)high_pd | PRESENT | WRITABLE; /* each entry covers 1 GiB */
    low_pd[0] = 0 | PRESENT | WRITABLE | LARGE;       /* 2 MiB, and no fourth level */
    high_pd[0] = (uint64_t)pt | PRESENT | WRITABLE;
    pt[0] = pt[1] = (uint64_t)page | PRESENT | WRITABLE;
    interrupts_init();
    on_vector(PAGE_FAULT, map_on_demand);
    write_cr3((uint64_t)pml4);

    *(volatile int *)0x40000000 = 42;
    printf("written at 40000000, read at 40001000: %d\n", *(volatile int *)0x40001000);
    printf("read at 40002000: %d\n", *(volatile int *)0x40002000);
    return 0;
}
