/* Does INT n in ring 0 call the handler, and does IRET come back? Verdict 1: the handler was not called. */
#include "probe.h"

#if MODE_LONG64
#define IRET iretq
#else
#define IRET iret
#endif

GUEST_START
        GATE    0x30, handler
        LOAD_IDT
        STAGE   1
        int     $0x30
        cmpb    $1, handled
        jne     1f
        VERDICT 0
1:      VERDICT 1

handler:
        incb    handled
        IRET

handled:
        .byte   0
        IDT_HERE
