/* Do exceptions from ring 3 come to ring 0 with the right vector and error code, and can it go on behind them?
 * #UD, #GP, #PF, #BP and #UD again. Verdict 0x100 + vector: that one came when another was due, or with a
 * wrong error code or CS. */
#include "probe.h"

GUEST_START
        OPEN_RING3
        GATE    3, breakpoint, INTERRUPT_GATE_USER
        GATE    6, undefined
        GATE    13, protection
        GATE    14, page_fault
        LOAD_IDT
        STAGE   1
        ENTER_RING3

breakpoint:
        pushq   $0
        pushq   $3
        jmp     check
undefined:
        pushq   $0
        pushq   $6
        jmp     check
protection:
        pushq   $13
        jmp     check
page_fault:
        pushq   $14
check:                                  /* vector, error code, RIP, CS, … */
        mov     due, %rbx
        movzbl  (%rbx), %eax
        cmp     %rax, (%rsp)
        jne     wrong
        movzbl  1(%rbx), %eax
        cmp     %rax, 8(%rsp)
        jne     wrong
        cmpq    $USER_CODE64, 24(%rsp)
        jne     wrong
        movzbl  2(%rbx), %eax
        add     %rax, 16(%rsp)          /* go on behind the instruction */
        add     $3, %rbx
        cmp     $list_end, %rbx
        je      all_seen
        mov     %rbx, due
        add     $16, %rsp
        iretq
all_seen:
        VERDICT 0
wrong:  mov     (%rsp), %eax
        or      $0x100, %eax
        mov     $PORT_EXIT, %dx
        out     %eax, %dx
        hlt

user:   ud2
        hlt                             /* privileged: #GP(0) */
load:   movb    _start, %al             /* the kernel's page: #PF, error 5 = present, user */
load_end:
        int3
        ud2
user_end:

list:   .byte   6, 0, 2                 /* vector, error code, bytes to step over */
        .byte   13, 0, 1
        .byte   14, 5, load_end - load
        .byte   3, 0, 0                 /* #BP is a trap: RIP is behind it already */
        .byte   6, 0, 2
list_end:
due:    .quad   list
        IDT_HERE
