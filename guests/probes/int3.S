/* INT3 in ring 0, as a software breakpoint puts it there; and without a debugger, as #BP through the IDT. */
#include "probe.h"

GUEST_START
        GATE    3, handler
        LOAD_IDT
        STAGE   1
here:   int3
        VERDICT 0

handler:
        VERDICT 1
        IDT_HERE
