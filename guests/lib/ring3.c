/* What long mode wants before ring 3 can run and come back: page rights, a TSS, four MSRs. */
#include "ring3.h"

#include "cpu.h"
#include "interrupts.h"

#define PAGE_USER 4ul
#define PAGE_ADDRESS 0xffffffffff000ul
#define LARGE_PAGE 0x200000ul
#define TSS_AVAILABLE 0x89ul /* a TSS descriptor's type, with the present bit */
#define FLAGS_OFF 0x700      /* TF, IF, DF: no single step, no interrupts, strings go upwards */

extern char kernel_stack_end[], syscall_entry[], page_fault_entry[]; /* ring3.S */

/* SDM Vol. 3A, figure 8-11. Of it all the CPU needs here is the stack for coming into ring 0. */
static struct {
    uint32_t reserved;
    uint64_t rsp0;
    uint64_t others[11];
    uint16_t reserved2, io_map;
} __attribute__((packed)) tss = {.io_map = sizeof tss}; /* no I/O map: ring 3 may use no port */

static void load_tss(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) gdt;
    uint64_t at = (uint64_t)&tss, *descriptor;
    tss.rsp0 = (uint64_t)kernel_stack_end;
    asm volatile("sgdt %0" : "=m"(gdt));
    descriptor = (uint64_t *)(gdt.base + TSS_SELECTOR);
    descriptor[0] = (sizeof tss - 1) | (at & 0xffffff) << 16 | TSS_AVAILABLE << 40 | (at >> 24 & 0xff) << 56;
    descriptor[1] = at >> 32;
    asm volatile("ltr %w0" : : "r"(TSS_SELECTOR));
}

/* Ring 3 may touch a page only if the entries of all levels allow it. The machine's tables map 4 GiB
 * with 2 MiB pages, so there are three levels; all but ours stay for ring 0 alone. */
static void open_pages(uint64_t from, uint64_t to)
{
    uint64_t *pml4 = (uint64_t *)read_cr3();
    uint64_t *pdpt = (uint64_t *)(pml4[0] & PAGE_ADDRESS);
    uint64_t *pd = (uint64_t *)(pdpt[0] & PAGE_ADDRESS);
    pml4[0] |= PAGE_USER;
    pdpt[0] |= PAGE_USER;
    for (; from < to; from += LARGE_PAGE)
        pd[from / LARGE_PAGE] |= PAGE_USER;
    write_cr3(read_cr3());
}

void ring3_init(void)
{
    open_pages((uint64_t)user_start, (uint64_t)user_end);
    load_tss();
    write_msr(MSR_STAR, (uint64_t)USER_CODE32 << 48 | (uint64_t)KERNEL_CODE64 << 32);
    write_msr(MSR_LSTAR, (uint64_t)syscall_entry);
    write_msr(MSR_FMASK, FLAGS_OFF);
    write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_SCE);
    set_gate(PAGE_FAULT, page_fault_entry);
}
