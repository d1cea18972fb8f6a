/* How long is a step of a loop in ring 0? Asks PORT_EXIT for a number of steps, does them, answers 0, again
 * and again. */
#include "probe.h"

GUEST_START
        mov     $PORT_EXIT, %dx
1:      in      %dx, %eax
        mov     %eax, %ecx
2:      dec     %ecx
        jnz     2b
        xor     %eax, %eax
        out     %eax, %dx
        jmp     1b
