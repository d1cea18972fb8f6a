/* Where a guest in C begins: calls main() and ends the run with what it returns as the exit code. */
#include "guest.h"

GUEST_START
#if MODE_REAL16
        calll   main                    /* gcc's 16-bit code returns with a 32-bit RET */
#else
        call    main
#endif
        mov     $PORT_EXIT, %dx
        out     %eax, %dx               /* the machine stops here */
1:      hlt
        jmp     1b
