/* A boot sector: the BIOS has read these 512 bytes to 0000:7C00 and jumped here, DL = the disk.
 *
 * 512 bytes are not enough for anything, so it reads its second stage, the sectors behind it, by a packet
 * of INT 13h/42h, and goes on there.
 */
#include "guest.h"

GUEST_START
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7c00, %sp            /* the stack grows down from here */
        mov     $greeting, %si
        call    print
        mov     $packet, %si
        mov     $0x42, %ah              /* read; DL still is the disk we came from */
        int     $0x13
        jc      failed
        ljmp    $0, $0x8000             /* stage2.S */

failed: mov     $complaint, %si
        call    print
        mov     $PORT_EXIT, %dx
        mov     $1, %eax
        out     %eax, %dx

#include "print.inc"

packet:         .byte   16, 0           /* its size */
                .word   4               /* sectors … */
                .word   0x8000, 0       /* … to 0000:8000 … */
                .quad   1               /* … from the second one on */
greeting:       .asciz  "Hello from a boot sector!\r\n"
complaint:      .asciz  "The second stage can not be read.\r\n"

        .org    510
        .byte   0x55, 0xaa              /* the BIOS boots nothing without this */
