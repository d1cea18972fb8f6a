/* The interrupt vector table, the handlers of last resort, and the way into a service.
 *
 * In real mode vector n is a far pointer at address n * 4. INT n, a CPU exception and a device's
 * interrupt all use the same 256 vectors: that is why INT 10h may be "video" and also "x87 error", and
 * why 08h-0Fh are timer, serial port, … and also double fault and general protection.
 */
#include "bios.inc"

    .code16
    .text

#define STUB_BYTES 6                    /* PUSH and JMP, see below */

/* Every vector first gets its own stub, then those that somebody serves are replaced. */
    .globl vectors_init
vectors_init:
    xorw %di, %di
    movw %di, %es
    movl $(SEG_BIOS << 16) + stubs, %eax
    movw $256, %cx
1:  stosl
    addl $STUB_BYTES, %eax
    loop 1b

    movw $services, %si
2:  xorw %di, %di
    movb %cs:(%si), %al
    testb %al, %al                      # vector 0 ends the list
    jz 3f
    movzbw %al, %di
    shlw $2, %di
    movw %cs:1(%si), %ax
    movw %ax, %es:(%di)
    addw $3, %si
    jmp 2b
3:  ret

services:
    ROW 0x08, int08_timer               # timer.S; IRQ 0
    ROW 0x0c, int0c_serial              # keyboard.S; IRQ 4
    ROW 0x10, int10_video               # console.S
    ROW 0x11, int11_equipment           # memory.S
    ROW 0x12, int12_memory              # memory.S
    ROW 0x13, int13_disk                # disk.S
    ROW 0x14, int14_serial              # serial.S
    ROW 0x15, int15_system              # system.S
    ROW 0x16, int16_keyboard            # keyboard.S
    ROW 0x17, int17_printer             # serial.S
    ROW 0x18, int18_no_boot             # boot.S
    ROW 0x19, int19_boot                # boot.S
    ROW 0x1a, int1a_time                # timer.S
    ROW 0x05, nothing                   # print screen
    ROW 0x1b, nothing                   # Ctrl-Break: programs hang themselves in here
    ROW 0x1c, nothing                   # called on every tick: the same
    ROW 0x1e, diskette_parameters       # no code: a pointer to a table
    ROW 0x4a, nothing                   # alarm
    .byte 0

nothing:
    iretw

/* Boot sectors of diskettes copy these 11 bytes: step rate, motor time, 512-byte sectors, 18 a track … */
diskette_parameters:
    .byte 0xaf, 0x02, 0x25, 0x02, 0x12, 0x1b, 0xff, 0x6c, 0xf6, 0x0f, 0x08

/* ---- nobody's interrupts ----------------------------------------------------------------------------
 * 256 stubs that differ in the number they push: the only way for common code to know its vector.
 */
stubs:
    .set vector, 0
    .rept 256
    .byte 0x68                          # PUSH imm16, spelled out so that all stubs have one size
    .word vector
    .byte 0xe9                          # JMP rel16
    .word unexpected - . - 2
    .set vector, vector + 1
    .endr

#define F_VECTOR 36                     /* the stub pushed it below IP: IP, CS, FLAGS move up by 2 */

unexpected:
    ENTER
    movb F_VECTOR(%bp), %bl
    call acknowledge                    # a device's? then the controller must hear that it is served
    jc 1f
    call is_fault
    je fault
1:  MARK MARK_UNEXPECTED
    movb %bl, %al
    outb %al, $PORT_POST
    popal
    popw %ds
    popw %es
    addw $2, %sp                        # the stub's number
    iretw

/* BL = vector. If it is a hardware interrupt in service, end it; carry: it was one. */
acknowledge:
    movw $PORT_PIC1, %dx
    movb %bl, %cl
    subb $0x08, %cl                     # 08h-0Fh: IRQ 0-7
    cmpb $8, %cl
    jb 1f
    movw $PORT_PIC2, %dx
    movb %bl, %cl
    subb $0x70, %cl                     # 70h-77h: IRQ 8-15
    cmpb $8, %cl
    jae 2f
1:  movb $0x0b, %al                     # OCW3: the next read gives the in-service bits
    outb %al, %dx
    inb %dx, %al
    incb %cl
    shrb %cl, %al                       # our bit falls into the carry flag
    jnc 2f                              # not in service: an exception, a program's INT, or a ghost
    movb $0x20, %al                     # OCW2: end of interrupt
    outb %al, %dx
    cmpw $PORT_PIC1, %dx
    je 3f
    outb %al, $PORT_PIC1                # the second controller hangs on IRQ 2 of the first
3:  stc
    ret
2:  clc
    ret

/* BL = vector. Equal: going back from it would run into the same fault again, for ever. */
is_fault:
    testb %bl, %bl                      # divide error
    je 1f
    cmpb $0x06, %bl                     # invalid opcode
    je 1f
    cmpb $0x07, %bl                     # no x87
    je 1f
    cmpb $0x0d, %bl                     # general protection: past a segment's end, LOCK misplaced …
1:  ret

fault:
    MARK MARK_EXCEPTION
    movb %bl, %al
    outb %al, $PORT_POST
    movw $text_exception, %si
    call print_line
    movb %bl, %al
    call print_hex_byte
    movw $text_at, %si
    call print
    movw F_CS+2(%bp), %ax
    call print_hex_word
    movb $':', %al
    call put_char
    movw F_IP+2(%bp), %ax
    call print_hex_word
    movw $text_stop, %si
    call print
    jmp stop                            # boot.S

    .section .rodata
text_exception:
    .asciz "pykvm BIOS: nobody handles CPU exception "
text_at:
    .asciz "h, raised at "
text_stop:
    .asciz "; stopped.\r\n"
    .text

/* ---- the way into a service -------------------------------------------------------------------------
 * SI = table of ROWs. Jumps to the handler for the caller's AH; the handler ends with RET.
 */
    .globl dispatch
dispatch:
    movb F_AH(%bp), %al
1:  movb %cs:(%si), %ah
    cmpb %al, %ah
    je 2f
    addw $3, %si
    cmpb $0xff, %ah
    jne 1b
    subw $3, %si
2:  jmp *%cs:1(%si)
