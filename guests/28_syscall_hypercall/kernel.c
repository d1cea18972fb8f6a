/* A kernel between two doors: system calls come in from its program, hypercalls go out to pykvm. */
#include "hypercall.h"
#include "interrupts.h"
#include "ring3.h"

enum { SYS_WRITE = 1, SYS_GETPID = 39, SYS_EXIT = 60 };
#define EFAULT 14
#define ENOSYS 38

extern const char program[], program_stack_end[]; /* program.S */
uint64_t served; /* nobody in the guest reads it: pykvm can */

long handle_syscall(long number, long arg0, long arg1, long arg2)
{
    unsigned long at = (unsigned long)arg1, size = (unsigned long)arg2;
    unsigned long start = (unsigned long)user_start, end = (unsigned long)user_end;
    served++;
    switch (number) {
    case SYS_GETPID: /* the kernel knows that by itself */
        return 100;
    case SYS_WRITE: /* this it can't do alone: the whole text, in one exit */
        if (at < start || at > end || size > end - at)
            return -EFAULT;
        return hypercall(HC_CONSOLE_WRITE, at, size);
    case SYS_EXIT:
        hypercall(HC_EXIT, (uint64_t)arg0, 0);
    }
    return -ENOSYS;
}

int main(void)
{
    interrupts_init();
    ring3_init();
    enter_ring3(program, (void *)program_stack_end);
}
