/* Brings the CPU down: an exception, no handler for it, and no handler for that either.
 *
 * 1. UD2 raises #UD. The CPU looks for entry 6 of the IDT, which has no entries: that is a #GP.
 * 2. An exception while delivering an exception is a double fault, #DF: entry 8 is not there either.
 * 3. The CPU gives up and shuts down. A PC's board resets then; KVM returns KVM_EXIT_SHUTDOWN.
 */
#include "guest.h"

GUEST_START
        lidt    no_idt
        ud2

        .balign 16
no_idt: .word   0                       /* the limit: its last byte's offset … */
        .quad   0                       /* … from this base */
