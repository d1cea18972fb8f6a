/* Where does SYSCALL from ring 3 arrive? 1,000 round trips with SYSRETQ, then the verdict:
 * 0: at LSTAR in ring 0, as the manuals have it.
 * 1: at LSTAR still in ring 3. The kernel's pages are closed to it, so that is a #PF with error 5 and RIP and
 *    CR2 equal to LSTAR; its handler takes the user's stack pointer back and goes on as if it were LSTAR.
 * 2: RCX is not the return address; 3: R11 has not the flags; 4: #UD or #GP; 5: another #PF. */
#include "probe.h"

#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_FMASK 0xc0000084
#define ROUNDS 1000

.macro WRITE_MSR number, high, low
        mov     $\number, %ecx
        mov     $\high, %edx
        mov     $\low, %eax
        wrmsr
.endm

GUEST_START
        OPEN_RING3
        GATE    6, no_syscall
        GATE    13, no_syscall
        GATE    14, page_fault
        LOAD_IDT
        WRITE_MSR MSR_STAR, (USER_CODE32 << 16 | KERNEL_CODE64), 0
        WRITE_MSR MSR_LSTAR, 0, entry
        WRITE_MSR MSR_FMASK, 0, 0x47700
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $1, %eax                /* SCE: SYSCALL is on */
        wrmsr
        STAGE   1
        ENTER_RING3

page_fault:                             /* error code, RIP, CS, RFLAGS, RSP, SS */
        cmpq    $5, (%rsp)
        jne     other_fault
        cmpq    $entry, 8(%rsp)
        jne     other_fault
        mov     %cr2, %rdx
        cmp     $entry, %rdx
        jne     other_fault
        movb    $1, by_page_fault
        mov     32(%rsp), %rsp
entry:                                  /* RCX: return address, R11: flags */
        test    %eax, %eax
        jnz     finish
        cmp     $(USER + returned - user), %rcx
        jne     wrong_rcx
        test    $1, %r11d
        jz      wrong_r11
        sysretq

finish: movzbl  by_page_fault, %eax
        mov     $PORT_EXIT, %dx
        out     %eax, %dx
        hlt
wrong_rcx:
        VERDICT 2
wrong_r11:
        VERDICT 3
no_syscall:
        VERDICT 4
other_fault:
        VERDICT 5

user:   mov     $ROUNDS, %ebx
1:      xor     %eax, %eax
        stc                             /* to be found in R11 */
        syscall
returned:
        dec     %ebx
        jnz     1b
        mov     $1, %eax
        syscall
user_end:

by_page_fault:
        .byte   0
        IDT_HERE
