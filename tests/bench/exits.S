/* What the bench runs: 64 times RCX writes of one byte to port DX, then exit code 0. The host sets both. */
#include "guest.h"

GUEST_START
        mov     $'.', %al
1:      .rept   64
        out     %al, %dx
        .endr
        dec     %ecx
        jnz     1b

        mov     $PORT_EXIT, %dx
        xor     %eax, %eax
        out     %eax, %dx
