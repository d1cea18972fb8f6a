/* Are exceptions delivered through the IDT, and does IRET go back? Twice: #UD, whose handler steps over the
 * instruction, and #DE. Verdict 1: the handler was not called as often. */
#include "probe.h"

#if MODE_LONG64
#define IRET iretq
#else
#define IRET iret
#endif

GUEST_START
        GATE    0, divided
        GATE    6, undefined
        LOAD_IDT
        STAGE   1
        ud2                             /* 2 bytes */
        STAGE   2
        xor     %edx, %edx
        xor     %ecx, %ecx
        div     %ecx                    /* 2 bytes */
        cmpb    $2, handled
        jne     1f
        VERDICT 0
1:      VERDICT 1

divided:
undefined:
        incb    handled
        addl    $2, (%sp_)              /* the saved RIP: go on behind the instruction */
        IRET

handled:
        .byte   0
        IDT_HERE
