/* POPCNT in ring 0. Verdict 6: #UD; 13: #GP; 1: the count is wrong. */
#include "probe.h"

GUEST_START
        CATCH
        mov     $0xff00ff, %eax
        popcnt  %eax, %ecx
        cmp     $16, %ecx
        jne     1f
        VERDICT 0
1:      VERDICT 1

        CAUGHT_HERE
