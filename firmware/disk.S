/* INT 13h: the disk. Programs ask by cylinder, head and sector (CHS, as in 1981) or by sector number in
 * a packet (LBA, since 1995). Both become one request to the host, in disk_request at the end: a board
 * with another kind of disk needs another disk_request and nothing else.
 *
 * There is one disk, number 80h. Inside a service ES is the extended BIOS data area.
 */
#include "bios.inc"
#include "hypercall_abi.h"

    .code16
    .text

#define FIRST_DISK 0x80
#define SECTORS_PER_TRACK 63
#define LBA EBDA_REQUEST + HC_ARG0      /* u64 */
#define COUNT EBDA_REQUEST + HC_ARG1    /* u64 */
#define BUFFER EBDA_REQUEST + HC_ARG2   /* u64: guest-physical address */

/* What INT 13h answers in AH. */
#define DISK_OK 0x00
#define DISK_BAD_COMMAND 0x01
#define DISK_WRITE_PROTECTED 0x03
#define DISK_NOT_FOUND 0x04             /* no such sector */
#define DISK_BAD_BUFFER 0x09            /* the data do not fit where they should go */
#define DISK_FAILED 0x20
#define DISK_NOT_READY 0x80

/* ---- the packet of INT 13h/42h-44h, at the caller's DS:SI ---- */
#define PACKET_BYTES 0                  /* u8: 16, or 24 with the flat address */
#define PACKET_COUNT 2                  /* u16: sectors; answered: sectors moved */
#define PACKET_OFFSET 4                 /* u16 */
#define PACKET_SEGMENT 6                /* u16; FFFF:FFFF: see PACKET_FLAT */
#define PACKET_LBA 8                    /* u64 */
#define PACKET_FLAT 16                  /* u64: guest-physical address */

/* Ask the host for the disk and invent a geometry for it. DS = BDA. */
    .globl disk_init
disk_init:
    call load_ebda
    xorl %eax, %eax
    movl %eax, %es:EBDA_REQUEST + HC_ARG0       # no struct block_info: the number of sectors will do
    movl %eax, %es:EBDA_REQUEST + HC_ARG0 + 4
    movb $HC_BLOCK_INFO, %al
    call disk_request
    js 9f                               # no disk: EBDA_SECTORS stays 0
    movl %eax, %es:EBDA_SECTORS
    movl %edx, %es:EBDA_SECTORS+4
    orl %edx, %eax
    jz 9f
    movb $1, BDA_DISKS

    /* 63 sectors a track and as few heads as 1024 cylinders allow: what all BIOSes came to. */
    movw $16, %bx                       # heads
1:  movzwl %bx, %ecx
    imull $SECTORS_PER_TRACK, %ecx      # sectors of a cylinder
    movl %es:EBDA_SECTORS, %eax
    movl %es:EBDA_SECTORS+4, %edx
    cmpl %ecx, %edx
    jae 2f                              # the quotient would not fit in 32 bits
    divl %ecx
    cmpl $1024, %eax
    jbe 3f
2:  movl $1024, %eax                    # CHS reaches only the first part
    cmpw $255, %bx
    je 3f
    shlw $1, %bx
    cmpw $256, %bx
    jne 1b
    decw %bx                            # 256 heads stopped MS-DOS: 255
    jmp 1b
3:  cmpl $1, %eax
    adcl $0, %eax                       # a disk smaller than a cylinder has one
    movl %eax, %es:EBDA_CYLINDERS
    movw %bx, %es:EBDA_HEADS
9:  ret

/* ---- INT 13h ------------------------------------------------------------------------------------------ */
    .globl int13_disk
int13_disk:
    ENTER
    call load_ebda
    cmpb $FIRST_DISK, F_DL(%bp)
    jne 1f
    cmpb $0, BDA_DISKS
    je 1f
    movw $int13_table, %si
    call dispatch
    LEAVE
1:  cmpb $0x15, F_AH(%bp)               # "which type is it" has an answer for "there is none": AH = 0
    movb $DISK_OK, %ah
    je 2f
    movb $DISK_BAD_COMMAND, %ah
2:  call disk_done
    LEAVE

int13_table:
    ROW 0x42, disk_packet_read
    ROW 0x02, disk_read
    ROW 0x43, disk_packet_write
    ROW 0x03, disk_write
    ROW 0x04, disk_verify
    ROW 0x44, disk_packet_verify
    ROW 0x47, disk_packet_verify        # seek: nothing moves, but the place must exist
    ROW 0x00, disk_fine                 # reset
    ROW 0x01, disk_status
    ROW 0x08, disk_parameters
    ROW 0x15, disk_type
    ROW 0x41, disk_extensions
    ROW 0x48, disk_packet_parameters
    ROW 0x09, disk_fine                 # initialize the controller
    ROW 0x0c, disk_fine                 # seek
    ROW 0x0d, disk_fine                 # reset, the fixed disk alone
    ROW 0x10, disk_fine                 # is it ready?
    ROW 0x11, disk_fine                 # recalibrate
    OTHERWISE disk_unsupported

disk_unsupported:
    movb $DISK_BAD_COMMAND, %ah
    jmp disk_done
disk_fine:
    movb $DISK_OK, %ah

/* AH = status: the caller's AH and carry, and the BIOS data area for function 01h. */
disk_done:
    movb %ah, F_AH(%bp)
    movb %ah, BDA_DISK_STATUS
    testb %ah, %ah
    jnz 1f
    SUCCEED
    ret
1:  FAIL
    ret

disk_status:
    movb BDA_DISK_STATUS, %ah
    jmp disk_done

/* ---- by cylinder, head, sector -------------------------------------------------------------------------
 * AL = count, CH and CL bits 6-7 = cylinder, CL bits 0-5 = sector from 1, DH = head, ES:BX = data
 * -> AL = sectors moved.
 */
disk_read:
    movb $HC_BLOCK_READ, %al
    jmp 1f
disk_write:
    movb $HC_BLOCK_WRITE, %al
1:  pushw %ax
    call load_chs
    popw %bx
    jnz 2f
    movb %bl, %al
    call disk_move
2:  testb %ah, %ah
    jz disk_done                        # AL still is what the caller asked for
    movb $0, F_AL(%bp)
    jmp disk_done

disk_verify:
    call load_chs
    jnz disk_done
    call check_range
    jmp disk_done

/* Fill the request from the caller's registers. AH = status, and not zero if that is not DISK_OK. */
load_chs:
    movzbl F_AL(%bp), %eax
    movb $DISK_BAD_COMMAND, %dl
    testb %al, %al
    jz 1f
    movl %eax, %es:COUNT
    movl $0, %es:COUNT+4
    movzwl F_ES(%bp), %eax
    shll $4, %eax
    movzwl F_BX(%bp), %ecx
    addl %ecx, %eax
    movl %eax, %es:BUFFER
    movl $0, %es:BUFFER+4

    movb $DISK_NOT_FOUND, %dl
    movzbw F_DH(%bp), %bx               # head
    cmpw %es:EBDA_HEADS, %bx
    jae 1f
    movw F_CX(%bp), %cx
    movb %ch, %al                       # cylinder, low 8 bits
    movb %cl, %ah
    shrb $6, %ah                        # and high 2 bits
    movzwl %ax, %eax
    andw $0x3f, %cx                     # sector, from 1
    jz 1f
    cmpl %es:EBDA_CYLINDERS, %eax
    jae 1f
    movzwl %es:EBDA_HEADS, %esi
    imull %esi, %eax
    movzwl %bx, %ebx
    addl %ebx, %eax
    imull $SECTORS_PER_TRACK, %eax
    movzwl %cx, %ecx
    leal -1(%eax,%ecx), %eax            # sector number = (cylinder * heads + head) * 63 + sector - 1
    movl %eax, %es:LBA
    movl $0, %es:LBA+4
    movb $DISK_OK, %dl
1:  movb %dl, %ah
    testb %ah, %ah
    ret

/* -> CX, DH = the largest cylinder, sector, head, packed as above; DL = how many disks. */
disk_parameters:
    movw %es:EBDA_CYLINDERS, %ax
    decw %ax
    movb %al, F_CH(%bp)
    shlb $6, %ah
    orb $SECTORS_PER_TRACK, %ah
    movb %ah, F_CL(%bp)
    movw %es:EBDA_HEADS, %ax
    decw %ax
    movb %al, F_DH(%bp)
    movb $1, F_DL(%bp)
    movw $0, F_AX(%bp)
    jmp disk_fine

/* -> AH = 3: a fixed disk; CX:DX = sectors, as far as 32 bits reach. */
disk_type:
    call sectors_32
    movw %ax, F_DX(%bp)
    shrl $16, %eax
    movw %ax, F_CX(%bp)
    call disk_fine
    movb $3, F_AH(%bp)
    ret

/* EAX = sectors of the disk, FFFFFFFFh if there are more. */
sectors_32:
    movl %es:EBDA_SECTORS, %eax
    cmpl $0, %es:EBDA_SECTORS+4
    je 1f
    movl $-1, %eax
1:  ret

/* ---- by packet ---------------------------------------------------------------------------------------- */

/* BX = 55AAh -> BX = AA55h, AH = version, CX bit 0: functions 42h-44h, 47h, 48h are here. */
disk_extensions:
    cmpw $0x55aa, F_BX(%bp)
    jne disk_unsupported
    movw $0xaa55, F_BX(%bp)
    movw $0x0001, F_CX(%bp)
    call disk_fine
    movb $0x30, F_AH(%bp)               # EDD 3.0: the packet may hold a flat address
    ret

disk_packet_read:
    movb $HC_BLOCK_READ, %al
    jmp 1f
disk_packet_write:                      # AL = 1, 2: verify too; what the host has taken is written
    movb $HC_BLOCK_WRITE, %al
1:  pushw %ax
    call load_packet
    popw %bx
    jnz 2f
    cmpl $0, %es:COUNT
    je 2f                               # no sectors: done
    movb %bl, %al
    call disk_move
2:  testb %ah, %ah
    jz disk_done
    pushw %ds
    movw F_DS(%bp), %ds
    movw F_SI(%bp), %si
    movw $0, PACKET_COUNT(%si)
    popw %ds
    jmp disk_done

disk_packet_verify:
    call load_packet
    jnz disk_done
    call check_range
    jmp disk_done

/* Fill the request from the packet. AH = status, and not zero if that is not DISK_OK. */
load_packet:
    pushw %ds
    movw F_DS(%bp), %ds
    movw F_SI(%bp), %si
    movb $DISK_BAD_COMMAND, %ah
    cmpb $16, PACKET_BYTES(%si)
    jb 2f
    movl PACKET_LBA(%si), %eax
    movl %eax, %es:LBA
    movl PACKET_LBA+4(%si), %eax
    movl %eax, %es:LBA+4
    movzwl PACKET_COUNT(%si), %eax
    movl %eax, %es:COUNT
    movl $0, %es:COUNT+4
    cmpl $-1, PACKET_OFFSET(%si)        # offset and segment in one look
    jne 1f
    cmpb $24, PACKET_BYTES(%si)
    jb 1f
    movl PACKET_FLAT(%si), %eax
    movl PACKET_FLAT+4(%si), %edx
    jmp 3f
1:  movzwl PACKET_SEGMENT(%si), %eax
    shll $4, %eax
    movzwl PACKET_OFFSET(%si), %edx
    addl %edx, %eax
    xorl %edx, %edx
3:  movl %eax, %es:BUFFER
    movl %edx, %es:BUFFER+4
    movb $DISK_OK, %ah
2:  popw %ds
    testb %ah, %ah
    ret

/* AH = DISK_OK if the sectors of the request exist. */
check_range:
    movl %es:EBDA_SECTORS, %eax
    movl %es:EBDA_SECTORS+4, %edx
    subl %es:LBA, %eax
    sbbl %es:LBA+4, %edx                # sectors from there to the end
    jb 1f
    testl %edx, %edx
    jnz 2f
    cmpl %es:COUNT, %eax
    jae 2f
1:  movb $DISK_NOT_FOUND, %ah
    ret
2:  movb $DISK_OK, %ah
    ret

/* DS:SI = where the answer goes; its first word says how much room there is. */
disk_packet_parameters:
    pushw %ds
    movw F_DS(%bp), %ds
    movw F_SI(%bp), %si
    movb $DISK_BAD_COMMAND, %ah
    cmpw $26, (%si)
    jb 1f
    movw $26, 0(%si)                    # bytes that are valid
    movw $0x0002, 2(%si)                # the geometry is valid
    movl %es:EBDA_CYLINDERS, %eax
    movl %eax, 4(%si)
    movzwl %es:EBDA_HEADS, %eax
    movl %eax, 8(%si)
    movl $SECTORS_PER_TRACK, 12(%si)
    movl %es:EBDA_SECTORS, %eax
    movl %eax, 16(%si)
    movl %es:EBDA_SECTORS+4, %eax
    movl %eax, 20(%si)
    movw $HC_BLOCK_SECTOR, 24(%si)
    movb $DISK_OK, %ah
1:  popw %ds
    jmp disk_done

/* ---- the host ----------------------------------------------------------------------------------------- */

/* AL = HC_BLOCK_READ or HC_BLOCK_WRITE; moves what the request says. AH = status. */
disk_move:
    call disk_request
    movb $DISK_OK, %ah
    jns 2f
    movw $statuses, %si
1:  movw %cs:(%si), %cx
    addw $2, %si
    movb %ch, %ah
    testb %cl, %cl                      # the row for all other errors
    jz 2f
    cmpb %cl, %al
    jne 1b
2:  ret

statuses:                               # low byte of the host's error, INT 13h status
    .byte HC_EINVAL & 0xff, DISK_NOT_FOUND
    .byte HC_EFAULT & 0xff, DISK_BAD_BUFFER
    .byte HC_EROFS & 0xff, DISK_WRITE_PROTECTED
    .byte HC_ENODEV & 0xff, DISK_NOT_READY
    .byte HC_ENOSYS & 0xff, DISK_NOT_READY
    .byte 0, DISK_FAILED

/* AL = number of the call; the rest of the request stands in the EBDA. EDX:EAX = result, sign flag: it is
 * an error. The OUT ends when the host is done, so there is nothing to wait for. */
disk_request:
    movzbl %al, %eax
    movl %eax, %es:EBDA_REQUEST + HC_NUMBER
    movl $HYPERCALL_ABI_VERSION, %es:EBDA_REQUEST + HC_ABI
    movl $HC_ENOSYS, %es:EBDA_REQUEST + HC_RESULT   # what remains if nobody listens at the port
    movl $-1, %es:EBDA_REQUEST + HC_RESULT + 4
    xorl %eax, %eax
    movl %eax, %es:EBDA_REQUEST + HC_ARG3
    movl %eax, %es:EBDA_REQUEST + HC_ARG3 + 4
    movw %es, %ax
    shll $4, %eax
    addl $EBDA_REQUEST, %eax            # its guest-physical address
    movw $HYPERCALL_PORT, %dx
    outl %eax, %dx
    movl %es:EBDA_REQUEST + HC_RESULT, %eax
    movl %es:EBDA_REQUEST + HC_RESULT + 4, %edx
    testl %edx, %edx
    ret
