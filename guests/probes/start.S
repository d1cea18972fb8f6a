/* Does code run at all in this mode? A loop, a call, the stack and a string instruction in ring 0.
 * Verdict 1: the sum is wrong; 2: the copy is wrong; 3 (64-bit): the upper halves of registers are lost. */
#include "probe.h"

GUEST_START
        xor     %ax_, %ax_
        mov     $10, %cx_
1:      call    add_cx
        dec     %cx_
        jnz     1b
        cmp     $55, %ax_
        jne     wrong_sum

        cld
        mov     $word, %si_
        mov     $copy, %di_
        mov     $4, %cx_
        rep movsb
        cmpl    $0x6d766b70, copy
        jne     wrong_copy

#if MODE_LONG64
        mov     $1, %eax
        shl     $40, %rax
        push    %rax
        pop     %rbx
        shr     $40, %rbx
        cmp     $1, %ebx
        jne     wrong_width
#endif
        VERDICT 0

wrong_sum:
        VERDICT 1
wrong_copy:
        VERDICT 2
#if MODE_LONG64
wrong_width:
        VERDICT 3
#endif

add_cx: add     %cx_, %ax_
        ret

word:   .ascii  "pkvm"
copy:   .long   0
