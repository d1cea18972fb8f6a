/* Where the kernel begins, and the ways between ring 0 and ring 3. */
#include "guest.h"
#include "kernel.h"

#define ENTRY_BYTES 8
#define DIRECT_ENTRY 256                /* of the top table: DIRECT */
#define KERNEL_ENTRY 511                /* of the top table, and 510 of the next: KERNEL_BASE */
#define FLAGS_FROM_USER 0x240dd5        /* what SYSRET may take from R11: no IOPL, no interrupt flag */

/* Entered at our gpa, where the machine's first page tables map 4 GiB one to one. Make the same tables
 * appear in the upper half as well, and go on there: main.c takes the lower half away. */
        .section .text.start, "ax"
        .code64
        .globl  _start
_start:
        mov     %cr3, %rax
        mov     (%rax), %rbx
        mov     %rbx, DIRECT_ENTRY * ENTRY_BYTES(%rax)
        mov     %rbx, KERNEL_ENTRY * ENTRY_BYTES(%rax)
        and     $~(PAGE - 1), %rbx
        mov     (%rbx), %rcx
        mov     %rcx, (KERNEL_ENTRY - 1) * ENTRY_BYTES(%rbx)
        mov     $1f, %rax
        jmp     *%rax
1:      lea     kernel_stack_end(%rip), %rsp
        call    kernel_main             /* (boot information's gpa) */

        .text
        .globl  enter_ring3             /* (rip, rsp): as if ring 3 had been interrupted there */
enter_ring3:
        push    $USER_DATA              /* SS */
        push    %rsi                    /* RSP */
        push    $2                      /* RFLAGS: bit 1 is always set; interrupts off, IOPL 0 */
        push    $USER_CODE64            /* CS */
        push    %rdi                    /* RIP */
        .irp    register, eax, ebx, ecx, edx, esi, edi, ebp, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d
        xor     %\register, %\register  /* nothing of ours; RDX = 0: no function for exit to call */
        .endr
        iretq

/* SYSCALL has put the return address into RCX and the flags into R11; RSP is still the program's, not to be
 * trusted and not to be used. The pushes make a syscall_t. A system call keeps all registers but RAX, RCX, R11. */
        .balign 16
        .globl  syscall_entry
syscall_entry:
        mov     %rsp, user_rsp(%rip)
        lea     kernel_stack_end(%rip), %rsp
        push    user_rsp(%rip)
        push    %rcx
        push    %r11
        push    %r9
        push    %r8
        push    %r10
        push    %rdx
        push    %rsi
        push    %rdi
        push    %rax
        mov     %rsp, %rdi
        call    handle_syscall          /* (the syscall_t): the result in RAX */
        add     $8, %rsp
        pop     %rdi
        pop     %rsi
        pop     %rdx
        pop     %r10
        pop     %r8
        pop     %r9
        pop     %r11
        pop     %rcx
        pop     %rsp
        sysretq

/* For kvm_pvm alone, a KVM that works without the CPU's virtualization. There a SYSCALL arrives at its entry
 * still in ring 3, which may not execute that page: a page fault, with RIP at the entry and all else as SYSCALL
 * left it. So go there in ring 0. On any other KVM ring 3 comes here only with real page faults, or by a jump
 * to the entry. That buys a program nothing: RCX and R11, which SYSCALL would have set, are made harmless. */
        .balign 16
        .globl  page_fault_entry
page_fault_entry:                       /* on the stack: error code, RIP, CS, RFLAGS, RSP, SS */
        cmpq    $syscall_entry, 8(%rsp)
        jne     1f
        testb   $3, 16(%rsp)            /* from ring 3? */
        jz      1f
        cmp     user_end(%rip), %rcx    /* SYSRET to an address that can't be faults in ring 0 */
        jae     1f
        and     $FLAGS_FROM_USER, %r11
        incl    syscalls_by_fault(%rip)
        mov     32(%rsp), %rsp
        jmp     syscall_entry
1:      jmp     interrupt_stubs + 14 * 16

        .section .rodata
        .balign 8
user_end:
        .quad   USER_END

        .globl  syscalls_by_fault, kernel_stack_end
        .bss
        .balign 16
user_rsp:
        .skip   8
syscalls_by_fault:                      /* how many came that way */
        .skip   8
        .skip   16384
kernel_stack_end:
