/* The second stage: asks the BIOS for the memory map, writes a sector and reads it back, ends the run.
 *
 * Exit code 0: all was as it should be; 2: the map has no RAM at 1 MiB; 3: the disk failed or lied.
 */
#include "guest.h"

GUEST_START
        mov     %ds, %ax
        mov     %ax, %es
        push    %dx                     /* the disk */
        xor     %ebx, %ebx              /* the first entry of the map */
1:      mov     $0xe820, %eax
        mov     $0x534d4150, %edx       /* "SMAP" */
        mov     $20, %ecx
        mov     $entry, %di
        mov     $2, %bp                 /* the exit code, should it fail */
        int     $0x15                   /* EBX = the next entry, 0 after the last one */
        jc      end
        cmpl    $0x100000, entry        /* base */
        je      2f
        test    %ebx, %ebx
        jnz     1b
2:      cmpl    $1, entry + 16          /* type: RAM */
        jne     end
        mov     $map_text, %si
        call    print

        pop     %dx
        inc     %bp
        mov     $packet, %si
        mov     $0x4300, %ax            /* write `pattern` to the disk's sector 8 … */
        int     $0x13
        jc      end
        movw    $back, packet + 4
        mov     $0x42, %ah              /* … and read that to `back` */
        int     $0x13
        jc      end
        mov     $pattern, %si
        mov     $back, %di
        mov     $512, %cx
        repe cmpsb
        jne     end
        mov     $disk_text, %si
        call    print
        xor     %bp, %bp
end:    mov     $PORT_EXIT, %dx
        movzwl  %bp, %eax
        out     %eax, %dx

#include "print.inc"

map_text:       .asciz  "The memory map is good.\r\n"
disk_text:      .asciz  "A sector was written and read back.\r\n"
packet:         .byte   16, 0
                .word   1, pattern, 0
                .quad   8
pattern:        .fill   128, 4, 0x6d766b70
entry = . + 512                         /* behind the image: an entry of the map, and a sector */
back = entry + 24
