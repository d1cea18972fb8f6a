/* Sleeps for three ticks of the timer that every CPU has for itself, in its local APIC.
 *
 * The local APIC's registers are memory at 0xfee00000, but nobody's RAM: KVM has it in the kernel, so these
 * loads and stores come no further than there. No interrupt controller takes part.
 */
#include "console.h"
#include "cpu.h"
#include "interrupts.h"
#include "lapic.h"

#define TIMER_VECTOR 0x40
#define SPURIOUS_VECTOR 0xff
#define TICK 10000000 /* KVM's timer counts nanoseconds: 10 ms; a real one counts its bus clock */

static volatile unsigned ticks;

static void on_tick(struct frame *frame __attribute__((unused)))
{
    ticks++;
    lapic_write(LAPIC_EOI, 0);
}

int main(void)
{
    interrupts_init();
    on_vector(TIMER_VECTOR, on_tick);
    lapic_write(LAPIC_SPURIOUS, LAPIC_ON | SPURIOUS_VECTOR);
    lapic_write(LAPIC_TIMER_DIVIDE, LAPIC_DIVIDE_BY_1);
    lapic_write(LAPIC_TIMER, LAPIC_PERIODIC | TIMER_VECTOR);
    lapic_write(LAPIC_TIMER_START, TICK);
    for (unsigned tick = 1; tick <= 3; tick++) {
        while (ticks < tick)
            wait_for_interrupt();
        printf("tick %u\n", tick);
    }
    return 0;
}
