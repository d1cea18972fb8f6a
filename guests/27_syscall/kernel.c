/* A kernel that serves system calls, and counts them.
 *
 * A system call is between a program and its kernel. Both are in the guest: no hypervisor hears of it. Only
 * what the kernel then does with a device leaves the guest.
 */
#include "console.h"
#include "cpu.h"
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
    case SYS_GETPID:
        return 100;
    case SYS_WRITE:
        if (at < start || at > end || size > end - at)
            return -EFAULT;
        console_write((const char *)at, size); /* a byte is a port access, and that is a VM exit */
        return arg2;
    case SYS_EXIT:
        guest_exit((uint32_t)arg0);
    }
    return -ENOSYS;
}

int main(void)
{
    interrupts_init();
    ring3_init();
    enter_ring3(program, (void *)program_stack_end);
}
