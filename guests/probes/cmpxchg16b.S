/* CMPXCHG16B in ring 0. Verdict 6: #UD; 13: #GP; 1: it did not exchange. */
#include "probe.h"

GUEST_START
        CATCH
        xor     %eax, %eax
        xor     %edx, %edx
        mov     $1, %ebx
        mov     $2, %ecx
        cmpxchg16b pair
        jnz     1f
        cmpl    $2, pair + 8
        jne     1f
        VERDICT 0
1:      VERDICT 1

        CAUGHT_HERE

        .balign 16
pair:   .quad   0, 0
