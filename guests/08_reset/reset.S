/* Asks for a reset, in a different way in each CPU mode: choose it with --mode.
 *
 * A PC has gathered several ways over the years; a reset ends the run. (The fourth way is a triple fault.)
 */
#include "guest.h"

GUEST_START
#if MODE_REAL16
        mov     $0xfe, %al              /* 1984: the keyboard controller pulses the CPU's reset line */
        out     %al, $0x64
#elif MODE_PROT32
        mov     $0x01, %al              /* 1987, the PS/2: bit 0 of system control port A */
        out     %al, $0x92
#else
        mov     $0xcf9, %dx             /* the chip sets since PCI: the reset control register */
        mov     $0x02, %al              /* a hard reset, please … */
        out     %al, %dx
        mov     $0x06, %al              /* … now: bit 2 goes from 0 to 1 */
        out     %al, %dx
#endif
        hlt                             /* never reached */
