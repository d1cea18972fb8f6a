/* Does KVM answer VMCALL? 100 times with a number that no KVM knows; the answer is -1000, KVM_ENOSYS.
 * Verdict 1: another answer. KVM turns VMCALL into VMMCALL where the CPU wants that. */
#include "probe.h"

GUEST_START
        STAGE   1
        mov     $100, %esi
1:      mov     $0x7fff, %eax
        vmcall
        cmp     $-1000, %rax
        jne     2f
        dec     %esi
        jnz     1b
        VERDICT 0
2:      VERDICT 1
