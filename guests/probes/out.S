/* 1,000 OUTs to PORT_NOTIFY between a stage mark and the verdict: what one costs. */
#include "probe.h"

GUEST_START
        STAGE   1
        mov     $1000, %ecx
        mov     $PORT_NOTIFY, %dx
1:      out     %al, %dx
        dec     %ecx
        jnz     1b
        VERDICT 0
