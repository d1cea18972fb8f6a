/* Sleeps for three ticks of the PC's oldest timer, the 8254 PIT.
 *
 * PIT -> line 0 of the interrupt controller -> vector 0x20 -> our handler. All of it is in the kernel:
 * pykvm sees what the guest prints, and neither the timer's ports, nor the ticks, nor the HLT.
 */
#include "console.h"
#include "interrupts.h"
#include "pic.h"

#define PIT_CHANNEL_0 0x40
#define PIT_COMMAND 0x43
#define PIT_RATE 0x34 /* channel 0, low byte then high byte, mode 2: a tick, and again */
#define PIT_HZ 1193182
#define DIVISOR (PIT_HZ / 100) /* a tick each 10 ms */
#define VECTORS 0x20
#define LINE 0

static volatile unsigned ticks;

static void on_tick(struct frame *frame __attribute__((unused)))
{
    ticks++;
    pic_end(LINE);
}

int main(void)
{
    interrupts_init();
    on_vector(VECTORS + LINE, on_tick);
    pic_init(VECTORS, 1 << LINE);
    out8(PIT_COMMAND, PIT_RATE);
    out8(PIT_CHANNEL_0, DIVISOR & 0xff);
    out8(PIT_CHANNEL_0, DIVISOR >> 8);
    for (unsigned tick = 1; tick <= 3; tick++) {
        while (ticks < tick)
            wait_for_interrupt();
        printf("tick %u\n", tick);
    }
    return 0;
}
