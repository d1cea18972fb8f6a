/* Says that it has crashed, as a Linux guest with the pvpanic driver does in its last breath.
 *
 * The run ends with the word "panic" and a report: registers, the code around RIP, the last exits.
 */
#include "guest.h"

GUEST_START
        mov     $PORT_PANIC, %dx
        in      %dx, %al                /* the events that the host understands … */
        and     $1, %al                 /* … bit 0: "I have panicked" */
        out     %al, %dx
        hlt                             /* never reached */
