/* Halts with nothing that could wake it up: there is no interrupt controller, and interrupts are off.
 *
 * A real CPU would wait for ever. HLT is a VM exit here, and pykvm ends the run with the word "halt". On a
 * machine with an irqchip (--irqchip) it is none: KVM itself waits, until pykvm sees that it waits in vain.
 */
#include "guest.h"

GUEST_START
        cli
        hlt
