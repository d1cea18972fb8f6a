/* Writes LSTAR and reads it back, for the MSR filter. Verdict 1: it reads something else than the host said. */
#include "probe.h"

#define MSR_LSTAR 0xc0000082

GUEST_START
        mov     $MSR_LSTAR, %ecx
        xor     %edx, %edx
        mov     $0x123000, %eax
        wrmsr
        rdmsr
        cmp     $0x456000, %eax
        jne     1f
        VERDICT 0
1:      VERDICT 1
