/* System calls as Linux made them before there was SYSCALL: a software interrupt, INT 0x80.
 *
 * Its gate is open to ring 3 (DPL 3), unlike those of the exceptions: a program can't fake a page fault.
 * The CPU takes the kernel's stack from the TSS and saves the program's state there.
 */
#include "console.h"
#include "cpu.h"
#include "interrupts.h"
#include "ring3.h"

enum { SYS_EXIT = 1, SYS_WRITE = 4, VECTOR = 0x80 }; /* the numbers of 32-bit Linux */

extern const char user_program[], user_stack_end[]; /* user.S */

long handle_syscall(long number __attribute__((unused)), long arg0 __attribute__((unused)),
                    long arg1 __attribute__((unused)), long arg2 __attribute__((unused)))
{
    return -38; /* nobody comes by SYSCALL */
}

static void on_int80(struct frame *frame)
{
    uint64_t start = (uint64_t)user_start, end = (uint64_t)user_end, text = frame->rcx, size = frame->rdx;
    if (frame->rax == SYS_EXIT)
        guest_exit((uint32_t)frame->rbx);
    frame->rax = (uint64_t)-14;
    if (text < start || text > end || size > end - text)
        return;
    console_write((const char *)text, size);
    frame->rax = size;
}

static void on_protection(struct frame *frame) /* INT to a gate that is not open to ring 3 */
{
    printf("kernel: ring %lu tried to fake a page fault\n", frame->cs & 3);
    frame->rip += 2; /* behind the INT */
}

int main(void)
{
    interrupts_init();
    on_vector(GENERAL_PROTECTION, on_protection);
    on_vector(VECTOR, on_int80);
    open_gate(VECTOR);
    ring3_init();
    enter_ring3(user_program, (void *)user_stack_end);
}
