/* The local APIC: every CPU sees its own at this address (SDM Vol. 3A, chapter 11). */
#ifndef LAPIC_H
#define LAPIC_H

#include <stdint.h>

#define LAPIC_BASE 0xfee00000ul
#define LAPIC_EOI 0x0b0           /* any value: the handler is done */
#define LAPIC_SPURIOUS 0x0f0      /* bit 8: the APIC is on; bits 7-0: a vector for interrupts that vanish */
#define LAPIC_COMMAND 0x300       /* a write sends an interrupt to other CPUs */
#define LAPIC_TIMER 0x320         /* the timer's vector and mode */
#define LAPIC_TIMER_START 0x380   /* counts down from here */
#define LAPIC_TIMER_DIVIDE 0x3e0

#define LAPIC_ON 0x100
#define LAPIC_PERIODIC 0x20000
#define LAPIC_DIVIDE_BY_1 0xb
#define LAPIC_INIT_OTHERS 0xc4500  /* all CPUs but this one: reset, and wait for a start-up message */
#define LAPIC_START_OTHERS 0xc4600 /* … begin in real mode at page number bits 7-0 */

static inline void lapic_write(unsigned offset, uint32_t value)
{
    *(volatile uint32_t *)(LAPIC_BASE + offset) = value;
}

#endif
