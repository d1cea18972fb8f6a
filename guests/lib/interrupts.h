/* Exceptions and interrupts of long mode: an IDT, and handlers in C. */
#ifndef INTERRUPTS_H
#define INTERRUPTS_H

#include <stdint.h>

enum {
    DIVIDE_ERROR = 0,
    BREAKPOINT = 3,
    INVALID_OPCODE = 6,
    DOUBLE_FAULT = 8,
    GENERAL_PROTECTION = 13,
    PAGE_FAULT = 14,
};

/* What lies on the stack while a handler runs: our stub pushed the upper part, the CPU the lower.
 * What a handler changes here is in force when it returns: `rip`, for one, is where the guest goes on. */
struct frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    uint64_t vector;
    uint64_t error; /* 0 where the exception has none */
    uint64_t rip, cs, rflags, rsp, ss;
};

/* Load the IDT. An exception that has no handler prints where it was and goes to the panic port. */
void interrupts_init(void);

/* Call `handler` for `vector` from now on. */
void on_vector(unsigned vector, void (*handler)(struct frame *frame));

/* Enter at `code` instead, with nothing saved. */
void set_gate(unsigned vector, const void *code);

/* Let ring 3 come to `vector` with an INT instruction. */
void open_gate(unsigned vector);

#endif
