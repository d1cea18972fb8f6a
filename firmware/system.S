/* INT 15h: everything else. Memory is in memory.S, waiting in timer.S; here are A20 and the small ones. */
#include "bios.inc"

    .code16
    .text

    .globl int15_system
int15_system:
    ENTER
    movw $int15_table, %si
    call dispatch
    LEAVE

int15_table:
    ROW 0xe8, int15_memory_sizes        # E801h, E820h
    ROW 0x24, int15_a20
    ROW 0x88, int15_extended_memory
    ROW 0x87, int15_block_move
    ROW 0x86, int15_wait
    ROW 0xc0, int15_configuration
    ROW 0xc1, int15_ebda
    ROW 0x90, int15_accept              # "a device is busy": a chance for a multitasker, nothing for us
    ROW 0x91, int15_accept              # "it is ready"
    OTHERWISE int15_unsupported         # 53h too: there is no APM

    .globl int15_unsupported
int15_unsupported:
    movb $0x86, F_AH(%bp)
    FAIL
    ret

int15_accept:
    movb $0, F_AH(%bp)
    SUCCEED
    ret

/* ---- A20 ------------------------------------------------------------------------------------------------
 * The 8086 had 20 address lines: FFFF:0010 was address 0 again, and some programs relied on it. The AT
 * has more lines and a gate to hold line 20 at 0. The BIOS opens it at once. A virtual CPU may know no such
 * gate, so whether port 92h pretends to close it is read back, not assumed.
 */
    .globl a20_open
a20_open:
    inb $PORT_SYSTEM_CONTROL, %al
    orb $0x02, %al
    andb $~0x01, %al                    # bit 0 would reset the CPU
    outb %al, $PORT_SYSTEM_CONTROL
    ret

int15_a20:
    cmpb $0x03, F_AL(%bp)
    ja int15_unsupported
    je 3f
    inb $PORT_SYSTEM_CONTROL, %al
    cmpb $0x02, F_AL(%bp)
    je 2f
    andb $~0x03, %al
    cmpb $0x01, F_AL(%bp)
    jne 1f
    orb $0x02, %al
1:  outb %al, $PORT_SYSTEM_CONTROL
    movb %al, %ah
    inb $PORT_SYSTEM_CONTROL, %al
    xorb %al, %ah
    testb $0x02, %ah
    jz int15_accept
    movb $0x01, F_AH(%bp)               # the gate did not move
    FAIL
    ret
2:  shrb $1, %al                        # 2402h -> AL = 1: open
    andb $1, %al
    movb %al, F_AL(%bp)
    jmp int15_accept
3:  movw $0x0002, F_BX(%bp)             # 2403h -> bit 1: by port 92h
    jmp int15_accept

/* ---- what kind of PC this is ------------------------------------------------------------------------- */

/* -> ES:BX = table. */
int15_configuration:
    movw $SEG_BIOS, F_ES(%bp)
    movw $configuration, F_BX(%bp)
    jmp int15_accept
configuration:
    .word 8                             # bytes that follow
    .byte 0xfc, 0x01, 0x00              # model, submodel, BIOS revision
    .byte 0x64                          # second interrupt controller, clock, EBDA
    .byte 0, 0, 0, 0

/* -> ES = segment of the extended BIOS data area. */
int15_ebda:
    movw BDA_EBDA, %ax
    movw %ax, F_ES(%bp)
    jmp int15_accept
