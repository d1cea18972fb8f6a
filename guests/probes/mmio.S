/* Does a read and a write where no memory is come to user space? The host answers the read with a number,
 * and gets it back plus 1. */
#include "probe.h"

GUEST_START
        mov     $MMIO, %ebx
        mov     (%rbx), %eax
        inc     %eax
        mov     %eax, 8(%rbx)
        VERDICT 0
