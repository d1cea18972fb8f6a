/* The keyboard is the other end of the serial line: INT 16h turns received bytes into keys.
 *
 * The UART is only looked at when a program asks for keys, so a system that drives the port by itself
 * loses nothing to us. Who waits for a key sleeps: the UART's interrupt, or the next tick, wakes it.
 */
#include "bios.inc"

    .code16
    .text

/* DS = BDA. */
    .globl keyboard_init
keyboard_init:
    movw $BDA_KEYS, BDA_KEY_HEAD
    movw $BDA_KEYS, BDA_KEY_TAIL
    movw $BDA_KEYS, BDA_KEYS_FROM
    movw $BDA_KEYS_END, BDA_KEYS_TO
    ret

    .globl int16_keyboard
int16_keyboard:
    ENTER
    movw $int16_table, %si
    call dispatch
    LEAVE

int16_table:
    ROW 0x00, key_wait
    ROW 0x01, key_look
    ROW 0x02, key_shift
    ROW 0x10, key_wait                  # 1xh: the same for keyboards of 101 keys
    ROW 0x11, key_look
    ROW 0x12, key_shift
    ROW 0x05, key_push
    OTHERWISE key_nothing

key_nothing:
    ret

/* -> AH = scan code, AL = character. */
key_wait:
    call keys_from_line
    call key_peek
    jnz 1f
    call sleep_until_input
    jmp key_wait
1:  movw %ax, F_AX(%bp)
    movw BDA_KEY_HEAD, %bx
    call key_next_place
    movw %bx, BDA_KEY_HEAD
    ret

/* -> zero flag: no key; else AX = the next one, which stays. */
key_look:
    call keys_from_line
    orb $FLAG_ZERO, F_FLAGS(%bp)
    call key_peek
    jz 1f
    movw %ax, F_AX(%bp)
    andb $~FLAG_ZERO, F_FLAGS(%bp)
1:  ret

/* -> AL = shift keys. A serial line does not tell them. */
key_shift:
    movb BDA_KEY_SHIFT, %al
    movb %al, F_AL(%bp)
    ret

/* CX = key, as if typed -> AL = 0, or 1: the buffer is full. */
key_push:
    movw F_CX(%bp), %ax
    call key_store
    sbbb %al, %al                       # carry becomes FFh …
    negb %al                            # … becomes 1
    movb %al, F_AL(%bp)
    ret

/* ---- the ring of 15 keys in the BIOS data area ------------------------------------------------------- */

/* AX = the next key; zero: there is none. */
key_peek:
    movw BDA_KEY_HEAD, %bx
    cmpw BDA_KEY_TAIL, %bx
    je 1f
    movw (%bx), %ax
1:  ret

/* BX = the place after BX. */
key_next_place:
    addw $2, %bx
    cmpw BDA_KEYS_TO, %bx
    jb 1f
    movw BDA_KEYS_FROM, %bx
1:  ret

/* Carry: no room, AX was not stored. */
key_store:
    movw BDA_KEY_TAIL, %bx
    movw %bx, %si
    call key_next_place
    cmpw BDA_KEY_HEAD, %bx
    stc
    je 1f
    movw %ax, (%si)
    movw %bx, BDA_KEY_TAIL
    clc
1:  ret

/* ---- from the line ----------------------------------------------------------------------------------- */

/* Move what has arrived into the ring, as long as there is room. */
keys_from_line:
    movw BDA_KEY_TAIL, %bx
    call key_next_place
    cmpw BDA_KEY_HEAD, %bx
    je 2f                               # full: the rest waits in the UART
    call serial_ready
    jz 2f
    call serial_get
    cmpb $0x1b, %al
    je 3f
1:  call translate
    call key_store
    jmp keys_from_line
2:  ret

/* Arrow keys arrive as three bytes, ESC [ A. If nothing follows, it was the Esc key itself. */
3:  call serial_ready_soon
    movb $0x1b, %al
    jz 1b
    call serial_get
    cmpb $'[', %al
    je 4f
    pushw %ax
    movb $0x1b, %al
    call translate
    call key_store
    popw %ax
    jmp 1b
4:  call serial_ready_soon
    jz 2b
    call serial_get
    movw $arrows, %si
5:  movw %cs:(%si), %bx
    addw $2, %si
    testb %bl, %bl
    jz keys_from_line                   # a key that we do not know
    cmpb %al, %bl
    jne 5b
    xorb %al, %al                       # no character …
    movb %bh, %ah                       # … only a scan code
    call key_store
    jmp keys_from_line

arrows:                                 # up, down, right, left, home, end
    .byte 'A', 0x48, 'B', 0x50, 'C', 0x4d, 'D', 0x4b, 'H', 0x47, 'F', 0x4f, 0, 0

/* As serial_ready, but what belongs to an escape sequence has 10 ms to follow. */
serial_ready_soon:
    pushw %bx
    pushw %cx
    call pit_count                      # timer.S
    movw %ax, %bx
    xorw %cx, %cx                       # 65536 looks at most: a program may have stopped the timer
1:  call serial_ready
    jnz 2f
    call pit_count
    negw %ax
    addw %bx, %ax                       # counts that have passed
    cmpw $PIT_HZ / 100, %ax
    jae 2f
    loop 1b
2:  call serial_ready
    popw %cx
    popw %bx
    ret

/* AL = byte from the line -> AH = scan code of an American keyboard, AL = character. */
translate:
    cmpb $'\n', %al
    jne 1f
    movb $'\r', %al                     # a pipe ends its lines so; the key is Enter
1:  cmpb $0x7f, %al
    jne 2f
    movb $0x08, %al                     # what terminals send for backspace
2:  movb $0, %ah
    testb %al, %al
    js 3f                               # beyond ASCII: a character without a key
    movzbw %al, %bx
    movb %cs:scan_codes(%bx), %ah
3:  ret

scan_codes:
    .byte 0x03, 0x1e, 0x30, 0x2e, 0x20, 0x12, 0x21, 0x22    /* ctrl-@ ctrl-a … */
    .byte 0x0e, 0x0f, 0x24, 0x25, 0x26, 0x1c, 0x31, 0x18    /* backspace tab … enter */
    .byte 0x19, 0x10, 0x13, 0x1f, 0x14, 0x16, 0x2f, 0x11
    .byte 0x2d, 0x15, 0x2c, 0x01, 0x2b, 0x1b, 0x07, 0x0c    /* escape */
    .byte 0x39, 0x02, 0x28, 0x04, 0x05, 0x06, 0x08, 0x28    /* space ! " # $ % & ' */
    .byte 0x0a, 0x0b, 0x09, 0x0d, 0x33, 0x0c, 0x34, 0x35    /* ( ) * + , - . / */
    .byte 0x0b, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08    /* 0 to 7 */
    .byte 0x09, 0x0a, 0x27, 0x27, 0x33, 0x0d, 0x34, 0x35    /* 8 9 : ; < = > ? */
    .byte 0x03, 0x1e, 0x30, 0x2e, 0x20, 0x12, 0x21, 0x22    /* @ A to G */
    .byte 0x23, 0x17, 0x24, 0x25, 0x26, 0x32, 0x31, 0x18
    .byte 0x19, 0x10, 0x13, 0x1f, 0x14, 0x16, 0x2f, 0x11
    .byte 0x2d, 0x15, 0x2c, 0x1a, 0x2b, 0x1b, 0x07, 0x0c    /* X Y Z [ \ ] ^ _ */
    .byte 0x29, 0x1e, 0x30, 0x2e, 0x20, 0x12, 0x21, 0x22    /* ` a to g */
    .byte 0x23, 0x17, 0x24, 0x25, 0x26, 0x32, 0x31, 0x18
    .byte 0x19, 0x10, 0x13, 0x1f, 0x14, 0x16, 0x2f, 0x11
    .byte 0x2d, 0x15, 0x2c, 0x1a, 0x2b, 0x1b, 0x29, 0x0e    /* x y z { | } ~ delete */

/* ---- sleeping ---------------------------------------------------------------------------------------- */

/* Let the UART interrupt on input, and halt until any interrupt comes. */
sleep_until_input:
    call load_ebda
    movw $PORT_COM1 + UART_IER, %dx
    inb %dx, %al
    movb %al, %es:EBDA_UART_IER         # a program may have set what it wants
    inb $PORT_PIC1+1, %al
    pushw %ax
    andb $~(1 << 4), %al                # IRQ 4
    outb %al, $PORT_PIC1+1
    movb $1, %al
    outb %al, %dx
    sti                                 # takes effect after the next instruction: the interrupt that
    hlt                                 # ends HLT can not slip in before it
    cli
    movb %es:EBDA_UART_IER, %al
    outb %al, %dx
    popw %ax
    outb %al, $PORT_PIC1+1
    ret

/* IRQ 4: it has woken the sleeper, who will read the byte. Silence the line so that it does not repeat. */
    .globl int0c_serial
int0c_serial:
    pushw %ax
    pushw %dx
    movw $PORT_COM1 + UART_IER, %dx
    xorb %al, %al
    outb %al, %dx
    movb $0x20, %al                     # end of interrupt
    outb %al, $PORT_PIC1
    popw %dx
    popw %ax
    iretw
