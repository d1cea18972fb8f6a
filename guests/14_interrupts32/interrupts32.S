/* A software interrupt in 32-bit protected mode: INT goes through a gate of the IDT, IRET comes back.
 *
 * The same as in 64-bit mode, but for the gate: 8 bytes, and the CPU pushes three words of 4 bytes.
 */
#include "guest.h"
#define VECTOR 0x30

GUEST_START
        mov     $handler, %eax          /* a gate holds the handler's address in two halves */
        mov     %ax, gate
        shr     $16, %eax
        mov     %ax, gate + 6
        lidt    idt
        mov     $before, %esi
        call    print
        int     $VECTOR
        mov     $after, %esi
        call    print
        mov     $PORT_EXIT, %dx
        xor     %eax, %eax
        out     %eax, %dx
        hlt

handler:                                /* on the stack: EIP, CS, EFLAGS */
        mov     $inside, %esi
        call    print
        iret

print:  lodsb                           /* the text at ESI, up to its zero byte */
        out     %al, $PORT_DEBUG_CONSOLE
        cmpb    $0, (%esi)
        jne     print
        ret

        .balign 8
gate:   .word   0, KERNEL_CODE32, 0x8e00, 0 /* 0x8e: present, ring 0, 32-bit interrupt gate */
idt:    .word   VECTOR * 8 + 7          /* the limit: entry VECTOR is the last */
        .long   gate - VECTOR * 8       /* the base; what lies before `gate` is never used as one */
before: .asciz  "before INT\n"
inside: .asciz  "in the handler\n"
after:  .asciz  "after IRET\n"
