/* POPCNT in ring 0. Verdict 1: the count is wrong. */
#include "probe.h"

GUEST_START
        mov     $0xff00ff, %eax
        popcnt  %eax, %ecx
        cmp     $16, %ecx
        jne     1f
        VERDICT 0
1:      VERDICT 1
