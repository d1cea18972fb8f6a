/* The end of the BIOS's work: INT 19h loads the boot sector, INT 18h says that there is none. */
#include "bios.inc"

    .code16
    .text

#define BOOT_SIGNATURE 0xaa55           /* bytes 55h AAh at the end of a boot sector */

/* A program may call it too, to boot again: so it needs nothing from before but the data areas. */
    .globl int19_boot
int19_boot:
    cli
    xorw %ax, %ax
    movw %ax, %ss
    movw $STACK_TOP, %sp
    sti
    cld
    movw %ax, %es
    movw $SEG_BDA, %ax
    movw %ax, %ds
    MARK MARK_BOOT

    movw $text_no_disk, %si
    cmpb $0, BDA_DISKS
    je no_disk

    movw $0x0201, %ax                   # read one sector …
    movw $0x0001, %cx                   # … cylinder 0, sector 1 …
    movw $0x0080, %dx                   # … head 0, first fixed disk …
    movw $BOOT_SECTOR, %bx              # … to 0000:7C00
    int $0x13
    jc no_sector
    cmpw $BOOT_SIGNATURE, %es:BOOT_SECTOR + 510
    jne no_signature

    MARK MARK_JUMP
    xorl %eax, %eax                     # the boot sector starts with everything 0 …
    movl %eax, %ebx
    movl %eax, %ecx
    movl %eax, %esi
    movl %eax, %edi
    movl %eax, %ebp
    movw %ax, %ds
    movl $0x80, %edx                    # … but DL, the disk it came from
    ljmp $0, $BOOT_SECTOR

no_disk:
    call print_line
    MARK MARK_NO_DISK
    int $0x18
no_sector:
    movb %ah, %bl
    movw $text_no_sector, %si
    call print_line
    movb %bl, %al
    call print_hex_byte
    movw $text_no_sector_end, %si
    call print
    jmp 1f
no_signature:
    movw $text_no_signature, %si
    call print_line
1:  MARK MARK_NOT_BOOTABLE
    int $0x18

/* Nothing to boot. PCs of 1981 went on to BASIC in ROM. */
    .globl int18_no_boot
int18_no_boot:
    cld
    movw $text_no_boot, %si
    call print_line

/* The panic port tells the host; if nobody is there, wait for the reset button. */
    .globl stop
stop:
    movw $PORT_PANIC, %dx
    movb $1, %al
    outb %al, %dx
    cli
1:  hlt
    jmp 1b

    .section .rodata
text_no_disk:
    .asciz "pykvm BIOS: this machine has no disk.\r\n"
text_no_sector:
    .asciz "pykvm BIOS: the disk's first sector can not be read (INT 13h status "
text_no_sector_end:
    .asciz "h).\r\n"
text_no_signature:
    .asciz "pykvm BIOS: the disk's first sector is no boot sector: it does not end in the bytes 55 AA.\r\n"
text_no_boot:
    .asciz "pykvm BIOS: no bootable disk; stopped.\r\n"
