/* Does a write to an eventfd on the host interrupt the guest? Stage 1 asks for it; GSI 5 is the PIC's line 5. */
#include "probe.h"

GUEST_START
        GATE    0x25, handler
        LOAD_IDT
        OPEN_PIC 0xdf                   /* line 5 */
        STAGE   1
1:      sti
        hlt
        cli
        cmpb    $1, handled
        jb      1b
        VERDICT 0

handler:
        push    %rax
        incb    handled
        mov     $0x20, %al
        out     %al, $0x20
        pop     %rax
        iretq

handled:
        .byte   0
        IDT_HERE
