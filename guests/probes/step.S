/* One-byte instructions to step over and to stop at. */
#include "probe.h"

GUEST_START
        nop
        nop
        nop
        nop
        VERDICT 0
