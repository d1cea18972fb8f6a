/* INIT and SIPI: how a PC starts its other CPUs (SDM Vol. 3A, section 9.4.4). */
#include "smp.h"

#include "lapic.h"

#define AP_PAGE 0x8000 /* below 1 MiB, as the real mode they wake up in wants it */

struct table {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed));

extern char ap_start[], ap_start_end[]; /* smp.S */
extern uint32_t ap_cr3;
extern struct table ap_gdt;
void (*ap_entry)(void);

void start_other_cpus(void (*entry)(void))
{
    char *page = (char *)AP_PAGE;
    ap_entry = entry;
    ap_cr3 = (uint32_t)read_cr3(); /* they take over our page tables and segments */
    asm volatile("sgdt %0" : "=m"(ap_gdt));
    for (unsigned long i = 0; i < (unsigned long)(ap_start_end - ap_start); i++)
        page[i] = ap_start[i];
    lapic_write(LAPIC_SPURIOUS, LAPIC_ON | 0xff);
    lapic_write(LAPIC_COMMAND, LAPIC_INIT_OTHERS); /* real boards want 10 ms here, KVM none */
    lapic_write(LAPIC_COMMAND, LAPIC_START_OTHERS | AP_PAGE >> 12);
}
