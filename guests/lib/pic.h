/* The PC's two 8259A interrupt controllers: sixteen lines, the second chip behind line 2 of the first. */
#ifndef PIC_H
#define PIC_H

#include "cpu.h"

#define PIC1 0x20
#define PIC2 0xa0
#define PIC_CASCADE 2
#define PIC_END_OF_INTERRUPT 0x20

/* Line n comes as vector `base` + n from now on, away from the exceptions; of all lines only those whose
 * bit is in `lines` are let through. */
static inline void pic_init(uint8_t base, uint16_t lines)
{
    out8(PIC1, 0x11); /* ICW1: begin, ICW4 follows */
    out8(PIC2, 0x11);
    out8(PIC1 + 1, base); /* ICW2: the first vector */
    out8(PIC2 + 1, base + 8);
    out8(PIC1 + 1, 1 << PIC_CASCADE); /* ICW3: how the two are joined */
    out8(PIC2 + 1, PIC_CASCADE);
    out8(PIC1 + 1, 0x01); /* ICW4: x86 */
    out8(PIC2 + 1, 0x01);
    out8(PIC1 + 1, (uint8_t)~lines); /* OCW1: the mask */
    out8(PIC2 + 1, (uint8_t)(~lines >> 8));
}

/* The handler of line `line` is done: the next one may come. */
static inline void pic_end(unsigned line)
{
    if (line >= 8)
        out8(PIC2, PIC_END_OF_INTERRUPT);
    out8(PIC1, PIC_END_OF_INTERRUPT);
}

#endif
