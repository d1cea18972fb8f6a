/* SSE arithmetic in ring 0. Verdict 6: #UD; 13: #GP; 1: the sum is wrong. */
#include "probe.h"

GUEST_START
        CATCH
        movups  one, %xmm0
        movups  one, %xmm1
        STAGE   1
        addps   %xmm1, %xmm0
        movups  %xmm0, sum
        cmpl    $0x40000000, sum        /* 2.0 */
        jne     1f
        VERDICT 0
1:      VERDICT 1

        CAUGHT_HERE

one:    .long   0x3f800000, 0x3f800000, 0x3f800000, 0x3f800000
sum:    .fill   16, 1, 0
