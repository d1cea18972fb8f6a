/* String I/O: one instruction reads or writes a port many times, to or from memory.
 *
 * A VM exit may then stand for many accesses: it carries a count, and the host moves count * size bytes.
 * Reads come in batches like that; KVM hands on the writes one by one.
 */
#include "guest.h"
#define COUNT 32

GUEST_START
        cld                             /* upwards in memory */
        mov     $(PORT_COM1 + 7), %dx   /* the UART's scratch register: keeps a byte */
        mov     $'=', %al
        out     %al, %dx

        mov     $line, %di_
        mov     $COUNT, %cx_
        rep insb                        /* read it COUNT times: a line of '=' in memory */

        mov     $line, %si_
        mov     $(COUNT + 1), %cx_
        mov     $PORT_DEBUG_CONSOLE, %dx
        rep outsb                       /* print the line and its line feed */

        mov     $PORT_EXIT, %dx
        xor     %eax, %eax
        out     %eax, %dx
        hlt

line:   .skip   COUNT, '?'
        .byte   '\n'
