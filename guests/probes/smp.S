/* Does INIT, then SIPI, from the first CPU's local APIC start the second? It writes a byte from real mode,
 * for which the first waits. */
#include "probe.h"

#define AP_START 0x8000                 /* SIPI's vector is its page number, 8 */
#define FLAG 0x7ff0

GUEST_START
        mov     $ap, %esi
        mov     $AP_START, %edi
        mov     $(ap_end - ap), %ecx
        rep movsb
        movb    $0, FLAG
        OPEN_LAPIC
        STAGE   1
        movl    $0xc4500, ICR(%r8)      /* INIT to all but me */
        movl    $(0xc4600 | AP_START >> 12), ICR(%r8) /* SIPI */
1:      pause
        cmpb    $1, FLAG
        jne     1b
        VERDICT 0

        .code16
ap:     movb    $1, FLAG
1:      cli
        hlt
        jmp     1b
ap_end:
