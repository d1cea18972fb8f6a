/* Asks the BIOS for every service and checks the answers: a disk image of 64 sectors.
 *
 * Prints the name of each group before it tries it; the exit code is 0, or the number of the group that
 * failed. Keys are expected on the serial line: "q", then the arrow up, then a line feed.
 */
#include "guest.h"

drive = 0x600                           /* free memory: the image itself does not change */
group = 0x602

.macro GROUP number, name
        movw    $\number, group
        mov     $name\@, %si
        call    print
        jmp     start\@
name\@:  .asciz  "\name\r\n"
start\@:
.endm

.macro MUST condition                   /* the last comparison must have come out so */
        j\condition held\@
        call    failed
held\@:
.endm

GUEST_START
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %sp
        mov     %dl, drive
        cmp     $0x80, %dl
        jne     tests                   /* started by hand, without a disk */
        mov     $0x0218, %ax            /* 24 sectors, by cylinder, head and sector */
        mov     $0x0002, %cx
        mov     $0, %dh
        mov     $0x7e00, %bx
        int     $0x13
        jc      halt
        cmp     $24, %al
        jne     halt
        jmp     tests
halt:   mov     $PORT_PANIC, %dx
        mov     $1, %al
        out     %al, %dx
1:      hlt
        jmp     1b

print:  push    %ax
1:      lodsb
        test    %al, %al
        jz      2f
        mov     $0x0e, %ah
        int     $0x10
        jmp     1b
2:      pop     %ax
        ret

failed: pop     %bx                     /* where */
        movzwl  group, %eax
end:    mov     $PORT_EXIT, %dx
        out     %eax, %dx
        jmp     halt

        .org    510
        .byte   0x55, 0xaa

tests:
        GROUP   1, "equipment, memory size"
        int     $0x11
        and     $0x0e32, %ax            /* x87, 80x25, one serial port */
        cmp     $0x0222, %ax
        MUST    e
        int     $0x12
        cmp     $639, %ax
        MUST    e
        cmp     %ax, 0x413
        MUST    e

        GROUP   2, "memory map"         /* in order, no overlap, 20 bytes each, an end */
        xor     %ebx, %ebx
        movl    $0, map_end
        movl    $0, map_end + 4
        mov     $0, %bp
1:      mov     $0xe820, %eax
        mov     $0x534d4150, %edx
        mov     $24, %ecx
        mov     $entry, %di
        int     $0x15
        MUST    nc
        cmp     $0x534d4150, %eax
        MUST    e
        cmp     $20, %ecx
        MUST    e
        mov     entry, %eax
        mov     entry + 4, %edx
        sub     map_end, %eax
        sbb     map_end + 4, %edx
        MUST    ae
        mov     entry, %eax
        mov     entry + 4, %edx
        add     entry + 8, %eax
        adc     entry + 12, %edx
        mov     %eax, map_end
        mov     %edx, map_end + 4
        inc     %bp
        test    %ebx, %ebx
        jnz     1b
        cmp     $6, %bp
        MUST    ae
        mov     $99, %ebx               /* past the end, and without the signature: refused */
        mov     $0xe820, %eax
        mov     $0x534d4150, %edx
        int     $0x15
        MUST    c
        xor     %ebx, %ebx
        xor     %edx, %edx
        mov     $0xe820, %eax
        int     $0x15
        MUST    c

        GROUP   3, "memory sizes"       /* of 64 MiB */
        mov     $0xe801, %ax
        int     $0x15
        MUST    nc
        cmp     $15*1024, %ax
        MUST    e
        cmp     $15*1024, %cx
        MUST    e
        cmp     $48*16, %bx
        MUST    e
        cmp     $48*16, %dx
        MUST    e
        mov     $0x88, %ah
        int     $0x15
        MUST    nc
        cmp     $63*1024, %ax
        MUST    e

        GROUP   4, "block move"         /* to 2 MiB and back */
        mov     $0x00200000, %edx
        mov     $0x7c00, %eax
        call    block_move
        mov     $0x00200000, %eax
        mov     $buffer, %edx
        call    block_move
        mov     $0x7c00, %si
        mov     $buffer, %di
        mov     $512, %cx
        repe cmpsb
        MUST    e
        mov     $0x8001, %cx
        mov     $0x87, %ah
        int     $0x15
        MUST    c

        GROUP   5, "A20"
        mov     $0x2402, %ax
        int     $0x15
        MUST    nc
        cmp     $1, %al
        MUST    e
        mov     $0x2403, %ax
        int     $0x15
        MUST    nc
        cmp     $2, %bx
        MUST    e
        mov     $0x2400, %ax
        int     $0x15
        MUST    nc
        mov     $0x2402, %ax
        int     $0x15
        cmp     $0, %al
        MUST    e
        mov     $0x2401, %ax
        int     $0x15
        MUST    nc
        mov     $0x2402, %ax
        int     $0x15
        cmp     $1, %al
        MUST    e

        GROUP   6, "configuration, no APM"
        mov     $0xc0, %ah
        int     $0x15
        MUST    nc
        cmpb    $0xfc, %es:2(%bx)
        MUST    e
        mov     $0xc1, %ah
        int     $0x15
        MUST    nc
        cmpb    $1, %es:0               /* the EBDA says its size in KiB */
        MUST    e
        xor     %ax, %ax
        mov     %ax, %es
        mov     $0x5300, %ax
        int     $0x15
        MUST    c
        cmp     $0x86, %ah
        MUST    e

        GROUP   7, "ticks, waiting"
        mov     $0, %ah
        int     $0x1a
        push    %dx
        mov     $0x86, %ah              /* 200 ms are 3.6 ticks */
        mov     $200000 >> 16, %cx
        mov     $200000 & 0xffff, %dx
        int     $0x15
        MUST    nc
        mov     $0, %ah
        int     $0x1a
        pop     %bx
        sub     %bx, %dx
        cmp     $3, %dx
        MUST    ae

        GROUP   8, "clock"
        mov     $0x02, %ah
        int     $0x1a
        MUST    nc
        cmp     $0x24, %ch
        MUST    b
        cmp     $0x60, %cl
        MUST    b
        cmp     $0x60, %dh
        MUST    b
        mov     $0x04, %ah
        int     $0x1a
        MUST    nc
        cmp     $0x20, %ch
        MUST    e
        cmp     $0x12, %dh
        MUST    be
        mov     $0x0b, %ah              /* no such function */
        int     $0x1a
        MUST    c

        GROUP   9, "video"
        mov     $0x0f, %ah
        int     $0x10
        cmp     $80*256 + 3, %ax
        MUST    e
        mov     $0x03, %ah
        mov     $0, %bh
        int     $0x10
        cmp     $0, %dl                 /* all lines ended with CR */
        MUST    e
        push    %dx
        mov     $0x1301, %ax
        mov     $7, %bx
        mov     $string_end - string, %cx
        mov     $string, %bp
        int     $0x10
        mov     $0x03, %ah
        int     $0x10
        pop     %ax
        add     $string_end - string, %al
        cmp     %ax, %dx
        MUST    e
        mov     $0x02, %ah              /* to the place where it is: sends nothing */
        int     $0x10
        mov     $0x0e0d, %ax
        int     $0x10
        mov     $0x0e0a, %ax
        int     $0x10

        GROUP   10, "serial"
        xor     %cx, %cx                /* what was sent before takes its time on a real line */
1:      mov     $0x03, %ah
        mov     $0, %dx
        int     $0x14
        test    $0x20, %ah
        loopz   1b
        MUST    nz
        mov     $0x0153, %ax            /* "S" */
        mov     $0, %dx
        int     $0x14
        test    $0x80, %ah
        MUST    z
        mov     $0x03, %ah
        mov     $1, %dx                 /* there is no COM2 */
        int     $0x14
        cmp     $0x80, %ah
        MUST    e
        mov     $crlf, %si
        call    print

        GROUP   11, "keyboard"
        mov     $0x05, %ah
        mov     $0x1e61, %cx            /* "a", typed by ourselves */
        int     $0x16
        cmp     $0, %al
        MUST    e
        mov     $0x01, %ah
        int     $0x16
        MUST    nz
        cmp     $0x1e61, %ax
        MUST    e
        mov     $0x00, %ah
        int     $0x16
        cmp     $0x1e61, %ax
        MUST    e
        mov     $keys, %si
1:      mov     $0x00, %ah              /* waits */
        int     $0x16
        cmp     (%si), %ax
        MUST    e
        add     $2, %si
        cmp     $keys_end, %si
        jne     1b
        mov     $0x11, %ah
        int     $0x16
        MUST    z
        mov     $0x02, %ah
        int     $0x16
        cmp     $0, %al
        MUST    e
        mov     $16, %bp                /* the ring holds 15 */
1:      mov     $0x05, %ah
        mov     $0x3920, %cx
        int     $0x16
        dec     %bp
        cmp     $1, %al
        jne     1b
        cmp     $0, %bp
        MUST    e
        mov     $15, %bp
1:      mov     $0x10, %ah
        int     $0x16
        dec     %bp
        jnz     1b
        mov     $0x11, %ah
        int     $0x16
        MUST    z

        GROUP   12, "an interrupt nobody serves"
        int     $0x60
        cmpb    $0x80, drive
        je      disk_tests
        mov     $0, %ah                 /* no disk: refused, and its type is "none" */
        mov     $0x80, %dl
        int     $0x13
        MUST    c
        mov     $0x1500, %ax
        mov     $0x80, %dl
        int     $0x13
        MUST    nc
        cmp     $0, %ah
        MUST    e
        jmp     done

disk_tests:
        GROUP   13, "disk: what it is"
        mov     $0x41, %ah
        mov     $0x55aa, %bx
        call    disk
        MUST    nc
        cmp     $0xaa55, %bx
        MUST    e
        cmp     $1, %cx
        MUST    e
        mov     $0x08, %ah
        call    disk
        MUST    nc
        cmp     $63, %cx                /* 1 cylinder, 63 sectors a track … */
        MUST    e
        cmp     $0x0f01, %dx            /* … 16 heads, 1 disk */
        MUST    e
        mov     $0x15, %ah
        call    disk
        MUST    nc
        cmp     $3, %ah
        MUST    e
        cmp     $0, %cx
        MUST    e
        cmp     $64, %dx                /* sectors */
        MUST    e
        mov     $parameters, %si
        mov     $0x48, %ah
        call    disk
        MUST    nc
        cmpl    $64, parameters + 16
        MUST    e
        cmpw    $512, parameters + 24
        MUST    e

        GROUP   14, "disk: moves"
        mov     $0x0301, %ax            /* write the boot sector to cylinder 0, head 0, sector 60 */
        mov     $60, %cx
        mov     $0, %dh
        mov     $0x7c00, %bx
        call    disk
        MUST    nc
        movl    $59, packet + 8         /* which is sector 59; read it to 3 MiB by a flat address */
        movl    $-1, packet + 4
        movl    $0x00300000, packet + 16
        movb    $24, packet
        call    packet_read
        MUST    nc
        mov     $0x00300000, %eax
        mov     $buffer, %edx
        call    block_move
        mov     $0x7c00, %si
        mov     $buffer, %di
        mov     $512, %cx
        repe cmpsb
        MUST    e
        mov     $0x0401, %ax            /* verify it */
        mov     $60, %cx
        mov     $0, %dh
        call    disk
        MUST    nc

        GROUP   15, "disk: refusals"
        mov     $0x0201, %ax
        mov     $0, %cx                 /* there is no sector 0 */
        mov     $0, %dh
        mov     $buffer, %bx
        call    disk
        MUST    c
        cmp     $0x04, %ah
        MUST    e
        cmp     $0, %al
        MUST    e
        mov     $0x01, %ah              /* the status stays */
        call    disk
        MUST    c
        cmp     $0x04, %ah
        MUST    e
        mov     $0, %ah                 /* until the disk is used again */
        call    disk
        MUST    nc
        movl    $64, packet + 8         /* behind the end */
        call    packet_read
        MUST    c
        cmp     $0x04, %ah
        MUST    e
        cmpw    $0, packet + 2
        MUST    e
        movw    $2, packet + 2          /* the last one and one more */
        movl    $63, packet + 8
        call    packet_read
        MUST    c
        mov     $0x44, %ah
        mov     $packet, %si
        movw    $2, packet + 2
        call    disk
        MUST    c
        movw    $1, packet + 2
        movl    $0x7fff0000, packet + 16 /* no RAM there */
        call    packet_read
        MUST    c
        cmp     $0x09, %ah
        MUST    e
        movw    $1, packet + 2
        movl    $0xffff0000, packet + 16 /* the ROM */
        call    packet_read
        MUST    c
        cmp     $0x09, %ah
        MUST    e
        movb    $8, packet              /* no packet is so small */
        call    packet_read
        MUST    c
        cmp     $0x01, %ah
        MUST    e
        mov     $0, %ah
        mov     $0x81, %dl              /* no second disk */
        int     $0x13
        MUST    c
        mov     $0x50, %ah              /* no such function */
        call    disk
        MUST    c

done:   xor     %eax, %eax
        jmp     end

/* Copy 512 bytes from EAX to EDX. */
block_move:
        pushl   %edx
        mov     $table, %di
        mov     $6*8/2, %cx
        push    %ax
        xor     %ax, %ax
        rep stosw
        pop     %ax
        mov     $table + 0x10, %di
        call    descriptor
        popl    %eax
        mov     $table + 0x18, %di
        call    descriptor
        mov     $table, %si
        mov     $256, %cx
        mov     $0x87, %ah
        int     $0x15
        MUST    nc
        cmp     $0, %ah
        MUST    e
        ret

descriptor:
        movw    $0xffff, (%di)
        movl    %eax, 2(%di)
        movb    $0x93, 5(%di)
        shr     $24, %eax
        movb    %al, 7(%di)
        ret

disk:   mov     drive, %dl
        int     $0x13
        ret

packet_read:
        mov     $packet, %si
        mov     $0x42, %ah
        jmp     disk

string: .ascii  "by INT 10h/13h"
string_end:
crlf:   .asciz  "\r\n"
keys:   .word   0x1071, 0x4800, 0x1c0d  /* q, arrow up, Enter */
keys_end:
packet: .byte   16, 0
        .word   1, 0, 0
        .quad   0, 0
parameters:
        .word   26
        .fill   24
        .balign 4
map_end:
        .quad   0
entry:  .fill   24
table:  .fill   48
buffer: .fill   512
        .org    64*512
