/* Reads the extra slot, which the host made read-only, then writes it. Verdict 1: it reads something else than
 * the host put there. */
#include "probe.h"

GUEST_START
        cmpl    $0x600d600d, EXTRA
        jne     1f
        STAGE   1
        movl    $0xbad, EXTRA
        VERDICT 0
1:      VERDICT 1
