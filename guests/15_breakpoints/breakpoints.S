/* Calls one function three times: something to set a breakpoint on, and to step through.
 *
 * A debugger on the host stops the vCPU at `target`, with a debug register or with an INT3 in place of its
 * first byte. The guest can't tell, but by its clock.
 */
#include "guest.h"
        .globl  target, after

GUEST_START
        mov     $3, %ebx
1:      call    target
after:  dec     %ebx
        jnz     1b
        mov     $PORT_EXIT, %dx
        xor     %eax, %eax
        out     %eax, %dx
        hlt

target: mov     $'*', %al
        out     %al, $PORT_DEBUG_CONSOLE
        ret
