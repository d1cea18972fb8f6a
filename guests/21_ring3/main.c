/* A program in ring 3 and a kernel of forty lines: system calls by SYSCALL, and protection that holds.
 *
 * The numbers and registers are Linux's: RAX = 1 is write, 60 is exit. A system call is between the program
 * and its kernel; the hypervisor takes no part in it and sees no exit, only what the kernel then prints.
 */
#include "console.h"
#include "cpu.h"
#include "interrupts.h"
#include "ring3.h"

enum { SYS_WRITE = 1, SYS_EXIT = 60 };
#define EFAULT 14
#define ENOSYS 38

extern const char user_program[], user_stack_end[]; /* user.S */

long handle_syscall(long number, long arg0, long arg1, long arg2)
{
    unsigned long start = (unsigned long)user_start, end = (unsigned long)user_end;
    unsigned long text = (unsigned long)arg1, size = (unsigned long)arg2;
    switch (number) {
    case SYS_WRITE: /* arg0 is a file descriptor: all are the console */
        if (text < start || text > end || size > end - text)
            return -EFAULT; /* else a program could read the kernel */
        console_write((const char *)text, size);
        return arg2;
    case SYS_EXIT:
        guest_exit((uint32_t)arg0);
    }
    return -ENOSYS;
}

static void on_fault(struct frame *frame)
{
    printf("kernel: ring %lu tried %s\n", frame->cs & 3,
           frame->vector == PAGE_FAULT ? "to read the kernel's memory" : "HLT");
    frame->rip = frame->rbx; /* the program has put there where it wants to go on */
}

int main(void)
{
    interrupts_init();
    on_vector(GENERAL_PROTECTION, on_fault);
    on_vector(PAGE_FAULT, on_fault);
    ring3_init();
    enter_ring3(user_program, (void *)user_stack_end);
}
