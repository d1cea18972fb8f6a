/* Sleeps for three ticks of the real-time clock, a chip that pykvm plays itself.
 *
 * The clock -> line 8, on the second interrupt controller -> vector 0x28 -> our handler. The controllers and
 * the HLT are in the kernel, as in 17_pit_timer; but each touch of the clock is an exit, and the tick comes
 * from a thread of pykvm's beside the vCPU's.
 */
#include "console.h"
#include "interrupts.h"
#include "pic.h"

#define CMOS 0x70 /* the index; the data is at the next port */
#define REG_A 0x0a
#define REG_B 0x0b
#define REG_C 0x0c
#define RATE_64_HZ 0x2a
#define HOURS_24 0x02
#define PERIODIC_INTERRUPT 0x40
#define LINE 8

static volatile unsigned ticks;

static void write_cmos(uint8_t index, uint8_t value)
{
    out8(CMOS, index);
    out8(CMOS + 1, value);
}

static void on_tick(struct frame *frame __attribute__((unused)))
{
    ticks++;
    write_cmos(REG_B, HOURS_24); /* no more, so that the count of exits below is exact */
    out8(CMOS, REG_C);
    in8(CMOS + 1); /* what has happened; reading it lets the line go */
    pic_end(LINE);
}

int main(void)
{
    interrupts_init();
    on_vector(0x20 + LINE, on_tick);
    pic_init(0x20, 1 << LINE | 1 << PIC_CASCADE);
    write_cmos(REG_A, RATE_64_HZ);
    for (unsigned tick = 1; tick <= 3; tick++) {
        write_cmos(REG_B, HOURS_24 | PERIODIC_INTERRUPT);
        while (ticks < tick)
            wait_for_interrupt();
        printf("tick %u\n", tick);
    }
    return 0;
}
