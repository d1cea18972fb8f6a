/* Hello: writes a greeting to the debug console, byte by byte, and ends the run with exit code 0.
 *
 * The same source is assembled for four CPU modes. Each OUT is a VM exit; nothing else here is.
 */
#include "guest.h"

GUEST_START
        mov     $greeting, %si_
        mov     $(greeting_end - greeting), %cx_
        mov     $PORT_DEBUG_CONSOLE, %dx
1:      mov     (%si_), %al
        out     %al, %dx                /* one VM exit per byte */
        inc     %si_
        dec     %cx_
        jnz     1b

        mov     $PORT_EXIT, %dx
        xor     %eax, %eax
        out     %eax, %dx               /* exit code 0; the machine stops here */
        hlt

greeting:
#if MODE_REAL16
        .ascii  "Hello from 16-bit real mode!\n"
#elif MODE_PROT32
        .ascii  "Hello from 32-bit protected mode!\n"
#elif MODE_PAGED32
        .ascii  "Hello from 32-bit paged mode!\n"
#else
        .ascii  "Hello from 64-bit long mode!\n"
#endif
greeting_end:
