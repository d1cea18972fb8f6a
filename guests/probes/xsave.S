/* XSAVE in ring 0, of x87 and SSE state. Verdict 2: CPUID
 * does not show it; 6: #UD; 13: #GP; 1: nothing was saved. */
#include "probe.h"

GUEST_START
        CATCH
        mov     $1, %eax
        cpuid
        test    $(1 << 26), %ecx
        jz      2f
        mov     %cr4, %rax
        or      $(1 << 18), %rax        /* OSXSAVE */
        mov     %rax, %cr4
        STAGE   1
        mov     $3, %eax
        xor     %edx, %edx
        xsave   area
        cmpw    $0x37f, area            /* the x87 control word */
        jne     1f
        VERDICT 0
1:      VERDICT 1
2:      VERDICT 2

        CAUGHT_HERE

        .balign 64
area:   .fill   576, 1, 0
