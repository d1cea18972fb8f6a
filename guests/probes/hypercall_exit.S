/* Does VMCALL number 12, KVM_HC_MAP_GPA_RANGE, come to user space? The verdict is what comes back in EAX. */
#include "probe.h"

GUEST_START
        STAGE   1
        mov     $12, %eax
        mov     $0x3000, %ebx           /* a gpa, page-aligned */
        mov     $1, %ecx                /* pages */
        mov     $0x10, %edx             /* attributes: encrypted, 4 KiB pages */
        vmcall
        mov     $PORT_EXIT, %dx
        out     %eax, %dx
        hlt
