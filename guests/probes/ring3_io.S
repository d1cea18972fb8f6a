/* May ring 3 use IN and OUT where IOPL is 3? Verdict 1, from ring 0: #GP. */
#include "probe.h"

GUEST_START
        OPEN_RING3
        GATE    13, protection
        LOAD_IDT
        STAGE   1
        ENTER_RING3 0x3002              /* RFLAGS with IOPL 3 */

protection:
        VERDICT 1

user:   mov     $PORT_EXIT, %dx
        xor     %eax, %eax
        out     %eax, %dx
user_end:
        IDT_HERE
