/* Ring 3 of long mode: a program in section .user, and the way back by SYSCALL. */
#ifndef RING3_H
#define RING3_H

extern char user_start[], user_end[]; /* what ring 3 may touch: section .user, placed by guest.ld */

/* Open section .user to ring 3, load a TSS, and make SYSCALL come to handle_syscall(). Call it after
 * interrupts_init() and on_vector(PAGE_FAULT, …). */
void ring3_init(void);

/* Go on in ring 3 at `code`, with interrupts off and a stack that ends at `stack_end`. */
_Noreturn void enter_ring3(const void *code, void *stack_end);

/* The guest's own: serves one call, with number and arguments in the registers that Linux uses (RAX, RDI,
 * RSI, RDX; the result in RAX). As after any C call, RCX, RSI, RDI and R8 to R11 are lost. */
long handle_syscall(long number, long arg0, long arg1, long arg2);

#endif
