/* The IDT (SDM Vol. 3A, section 6.14.1), and who handles which vector. */
#include "interrupts.h"

#include "console.h"
#include "cpu.h"

#define VECTORS 256
#define EXCEPTIONS 32
#define STUB_BYTES 16
#define INTERRUPT_GATE 0x8e /* present, and interrupts are off inside */
#define FOR_RING_3 0x60     /* DPL: who may come here with INT */

struct gate {
    uint16_t offset_0_15, selector;
    uint8_t stack, type;
    uint16_t offset_16_31;
    uint32_t offset_32_63, zero;
};

extern char interrupt_stubs[]; /* interrupts.S: one for each vector, STUB_BYTES apart */
static struct gate idt[VECTORS];
static void (*handlers[VECTORS])(struct frame *);

void set_gate(unsigned vector, const void *code)
{
    uint64_t at = (uint64_t)code;
    idt[vector] = (struct gate){
        .offset_0_15 = (uint16_t)at,
        .offset_16_31 = (uint16_t)(at >> 16),
        .offset_32_63 = (uint32_t)(at >> 32),
        .selector = KERNEL_CODE64,
        .type = INTERRUPT_GATE,
    };
}

void open_gate(unsigned vector)
{
    idt[vector].type |= FOR_RING_3;
}

void on_vector(unsigned vector, void (*handler)(struct frame *))
{
    handlers[vector] = handler;
    set_gate(vector, interrupt_stubs + vector * STUB_BYTES);
}

static void unexpected(struct frame *frame)
{
    printf("exception %lu, error code %lx, at %lx, cr2 %lx\n", frame->vector, frame->error, frame->rip,
           read_cr2());
    out8(PORT_PANIC, 1);
}

void interrupts_init(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) where = {sizeof idt - 1, (uint64_t)idt};
    for (unsigned vector = 0; vector < EXCEPTIONS; vector++)
        on_vector(vector, unexpected);
    asm volatile("lidt %0" : : "m"(where));
}

void interrupt_dispatch(struct frame *frame) /* called by interrupts.S */
{
    handlers[frame->vector](frame);
}
