/* Does INT n from ring 3 reach ring 0, and IRETQ go back? Verdict 1: #UD; 2: #GP; 3: CS on the stack is wrong. */
#include "probe.h"

GUEST_START
        OPEN_RING3
        GATE    6, undefined
        GATE    13, protection
        GATE    0x30, handler, INTERRUPT_GATE_USER
        LOAD_IDT
        STAGE   1
        ENTER_RING3

handler:
        cmpq    $USER_CODE64, 8(%rsp)
        jne     wrong_cs
        test    %eax, %eax
        jnz     finish
        iretq
finish: VERDICT 0
undefined:
        VERDICT 1
protection:
        VERDICT 2
wrong_cs:
        VERDICT 3

user:   xor     %eax, %eax
        int     $0x30
        inc     %eax
        int     $0x30
user_end:
        IDT_HERE
