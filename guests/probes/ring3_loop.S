/* Does code run in ring 3, and how long is a step of a loop there? As loop.S, but each loop is in ring 3 behind
 * an IRETQ, and UD2 ends it. It answers with the privilege level that it had, which is 3. */
#include "probe.h"

GUEST_START
        OPEN_RING3
        GATE    6, done
        LOAD_IDT
again:  mov     $PORT_EXIT, %dx
        in      %dx, %eax
        mov     %eax, %ecx
        ENTER_RING3

done:   mov     8(%rsp), %eax           /* the CS that was interrupted */
        and     $3, %eax
        mov     $PORT_EXIT, %dx
        out     %eax, %dx
        jmp     again

user:   dec     %ecx
        jnz     user
        ud2
user_end:
        IDT_HERE
