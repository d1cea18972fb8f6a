/* Never exits by itself, and causes no VM exit either: only the host can end it.
 *
 *     pykvm run --timeout 0.5 endless_loop
 *
 * The watchdog sends the vCPU's thread a signal, KVM_RUN returns, and the report shows where the guest was.
 */
#include "guest.h"

GUEST_START
        mov     $0xc0ffee, %ebx         /* something to find in the report */
forever:
        jmp     forever
