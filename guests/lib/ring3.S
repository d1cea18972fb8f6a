/* The ways between ring 0 and ring 3. */
#include "guest.h"

        .code64
        .text

        .globl  enter_ring3             /* (code, stack_end): as if ring 3 had been interrupted there */
enter_ring3:
        push    $USER_DATA              /* SS */
        push    %rsi                    /* RSP */
        push    $2                      /* RFLAGS: bit 1 is always set; interrupts off, IOPL 0 */
        push    $USER_CODE64            /* CS */
        push    %rdi                    /* RIP */
        iretq

/* SYSCALL has put the return address into RCX and the flags into R11. It has changed neither RSP nor
 * memory, so the stack is still that of ring 3: not to be trusted, not to be used. */
        .globl  syscall_entry
syscall_entry:
        mov     %rsp, user_rsp(%rip)
        lea     kernel_stack_end(%rip), %rsp
        push    %rcx
        push    %r11
        mov     %rdx, %rcx              /* from the registers of a system call … */
        mov     %rsi, %rdx
        mov     %rdi, %rsi
        mov     %rax, %rdi              /* … to those of a C call */
        call    handle_syscall
        pop     %r11
        pop     %rcx
        mov     user_rsp(%rip), %rsp
        sysretq

/* For kvm_pvm alone, a KVM that works without the CPU's virtualization. There a SYSCALL arrives at its
 * entry still in ring 3, which may not execute that page: a page fault, with RIP at the entry and all
 * else as SYSCALL left it. So go there in ring 0. On any other KVM ring 3 comes here only with real
 * page faults, and by jumping to the entry, which buys it nothing that SYSCALL would not. */
        .globl  page_fault_entry
page_fault_entry:                       /* on the stack: error code, RIP, CS, RFLAGS, RSP, SS */
        cmpq    $syscall_entry, 8(%rsp)
        jne     1f
        testb   $3, 16(%rsp)            /* from ring 3? */
        jz      1f
        incl    syscalls_by_fault(%rip)
        mov     32(%rsp), %rsp
        jmp     syscall_entry
1:      jmp     interrupt_stubs + 14 * 16

        .globl  syscalls_by_fault, kernel_stack_end
        .bss
syscalls_by_fault:                      /* how many came that way */
        .skip   8
user_rsp:
        .skip   8
        .skip   4096
kernel_stack_end:
