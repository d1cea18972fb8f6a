/* Registers to be read and changed through kvm_run at the stage mark. Verdict 1: the change is not seen. */
#include "probe.h"

GUEST_START
        mov     $0x1234, %ebx
        STAGE   1
        cmp     $0x5678, %ebx
        jne     1f
        VERDICT 0
1:      VERDICT 1
