/* The screen, as far as there is one: INT 10h speaks to the serial port.
 *
 * Text goes out as it is. The cursor is kept in the BIOS data area and follows the text; a program that
 * sets it makes a terminal escape sequence, and so does one that clears the screen. Programs that only
 * print therefore leave a plain log. A video BIOS, when a board has one, takes INT 10h over.
 */
#include "bios.inc"

    .code16
    .text

#define COLUMNS 80
#define ROWS 25
#define ESCAPE 0x1b

/* DS = BDA. */
    .globl screen_init
screen_init:
    movb $3, BDA_VIDEO_MODE             # 80x25 text, 16 colours
    movw $COLUMNS, BDA_COLUMNS
    movw $0x1000, BDA_PAGE_BYTES
    movw $0x0607, BDA_CURSOR_SHAPE
    movb $ROWS - 1, BDA_LAST_ROW
    movw $16, BDA_FONT_HEIGHT
    ret

/* ---- words from the BIOS itself ---------------------------------------------------------------------- */

/* AL = character, DS = BDA. Changes no register. */
    .globl put_char
put_char:
#ifdef DEBUG_CONSOLE
    outb %al, $PORT_DEBUG_CONSOLE       # whoever built it so reads the BIOS there, and only there
    ret
#else
    jmp teletype
#endif

/* SI = text in the BIOS, ends with 0. On a line of its own: a program may have left the cursor anywhere. */
    .globl print_line
print_line:
    pushw %ax
    pushw %ds
    movw $SEG_BDA, %ax
    movw %ax, %ds
    cmpb $0, BDA_CURSOR
    popw %ds
    popw %ax
    je print
    pushw %si
    movw $text_new_line, %si
    call print
    popw %si

/* SI = text in the BIOS, ends with 0. Changes SI alone. */
    .globl print
print:
    pushw %ax
    pushw %ds
    movw $SEG_BDA, %ax
    movw %ax, %ds
1:  movb %cs:(%si), %al
    incw %si
    testb %al, %al
    jz 2f
    call put_char
    jmp 1b
2:  popw %ds
    popw %ax
    ret

    .section .rodata
text_new_line:
    .asciz "\r\n"
    .text

    .globl print_hex_word, print_hex_byte
print_hex_word:                         # AX
    xchgb %al, %ah
    call print_hex_byte
    xchgb %al, %ah
print_hex_byte:                         # AL
    pushw %ax
    shrb $4, %al
    call print_hex_digit
    popw %ax
    pushw %ax
    andb $0x0f, %al
    call print_hex_digit
    popw %ax
    ret
print_hex_digit:
    addb $'0', %al
    cmpb $'9', %al
    jbe put_char
    addb $'a' - '9' - 1, %al
    jmp put_char

/* ---- the terminal ------------------------------------------------------------------------------------ */

/* Send AL and let the cursor follow. DS = BDA. */
teletype:
    pushw %dx
    call serial_put
    movw BDA_CURSOR, %dx                # DL = column, DH = row
    cmpb $0x07, %al                     # bell
    je 5f
    cmpb $0x08, %al                     # backspace
    je 2f
    cmpb $'\r', %al
    je 3f
    cmpb $'\n', %al
    je 4f
    incb %dl
    cmpb $COLUMNS, %dl
    jb 5f
    xorb %dl, %dl                       # a screen wraps here
    jmp 4f
2:  subb $1, %dl
    jnc 5f
3:  xorb %dl, %dl
    jmp 5f
4:  cmpb $ROWS - 1, %dh
    jae 5f                              # a screen scrolls here
    incb %dh
5:  movw %dx, BDA_CURSOR
    popw %dx
    ret

/* Send the cursor's place: ESC [ row ; column H, counted from 1. */
send_cursor:
    movb $ESCAPE, %al
    call serial_put
    movb $'[', %al
    call serial_put
    movb BDA_CURSOR+1, %al
    call send_number
    movb $';', %al
    call serial_put
    movb BDA_CURSOR, %al
    call send_number
    movb $'H', %al
    jmp serial_put

/* AL + 1 in decimal, AL below 99. */
send_number:
    incb %al
    aam                                 # AH = AL / 10, AL = AL % 10
    addw $0x3030, %ax                   # '0' in both
    pushw %ax
    movb %ah, %al
    call serial_put
    popw %ax
    jmp serial_put

/* ---- INT 10h ----------------------------------------------------------------------------------------- */
    .globl int10_video
int10_video:
    ENTER
    movw $int10_table, %si
    call dispatch
    LEAVE

int10_table:
    ROW 0x0e, video_teletype            # first: nearly every call is this one
    ROW 0x13, video_write_string
    ROW 0x02, video_set_cursor
    ROW 0x03, video_get_cursor
    ROW 0x09, video_repeat
    ROW 0x0a, video_repeat
    ROW 0x00, video_set_mode
    ROW 0x0f, video_get_mode
    ROW 0x01, video_cursor_shape
    ROW 0x06, video_scroll
    ROW 0x07, video_scroll
    ROW 0x08, video_read
    OTHERWISE video_nothing             # pages, palettes, fonts: accepted and without effect

video_nothing:
    ret

/* AL = character. */
video_teletype:
    movb F_AL(%bp), %al
    jmp teletype

/* AL = mode. Only the text modes exist, so 40 columns count as 80. It moves the cursor home. */
video_set_mode:
    movw $0, BDA_CURSOR
    movb $0x30, F_AL(%bp)               # what a VGA BIOS leaves there for a text mode
    ret

video_get_mode:
    movb BDA_VIDEO_MODE, %al
    movb $COLUMNS, %ah
    movw %ax, F_AX(%bp)
    movb $0, F_BH(%bp)                  # the page
    ret

/* CX = shape: remembered and given back. */
video_cursor_shape:
    movw F_CX(%bp), %ax
    movw %ax, BDA_CURSOR_SHAPE
    ret

/* DH = row, DL = column. */
video_set_cursor:
    movw F_DX(%bp), %dx
    cmpb $COLUMNS, %dl
    jae 1f
    cmpb $ROWS, %dh
    jae 1f                              # off the screen: programs hide the cursor so
    cmpw %dx, BDA_CURSOR
    je 1f
    movw %dx, BDA_CURSOR
    jmp send_cursor
1:  ret

video_get_cursor:
    movw BDA_CURSOR, %ax
    movw %ax, F_DX(%bp)
    movw BDA_CURSOR_SHAPE, %ax
    movw %ax, F_CX(%bp)
    movw $0, F_AX(%bp)
    ret

/* AL = character, CX = times; the cursor stays. More than the rest of the screen is not sent. */
video_repeat:
    movw F_CX(%bp), %cx
    jcxz 2f
    cmpw $COLUMNS * ROWS, %cx
    ja 2f
    pushw BDA_CURSOR
1:  movb F_AL(%bp), %al
    call teletype
    loop 1b
    popw BDA_CURSOR
    jmp send_cursor
2:  ret

/* AL = lines, 0: the whole window. Clearing the whole screen is what nearly all callers mean. */
video_scroll:
    cmpb $0, F_AL(%bp)
    jne 3f
    cmpw $0, F_CX(%bp)                  # from the upper left corner
    jne 3f
    movw $clear_sequence, %si
1:  movb %cs:(%si), %al
    incw %si
    testb %al, %al
    jz 2f
    call serial_put
    jmp 1b
2:  jmp send_cursor
3:  ret
clear_sequence:
    .byte ESCAPE
    .asciz "[2J"

/* The screen can not be read back: a blank in light grey. */
video_read:
    movw $0x0720, F_AX(%bp)
    ret

/* AL bit 0: move the cursor, bit 1: attributes between the characters; CX = length, DX = where,
 * ES:BP = text. */
video_write_string:
    pushw BDA_CURSOR
    call video_set_cursor
    movw F_CX(%bp), %cx
    jcxz 3f
    movw F_ES(%bp), %es
    movw F_BP(%bp), %si
1:  movb %es:(%si), %al
    incw %si
    call teletype
    testb $0x02, F_AL(%bp)
    jz 2f
    incw %si                            # skip the attribute: a log has no colours
2:  loop 1b
3:  popw %ax
    testb $0x01, F_AL(%bp)
    jnz 4f
    movw %ax, BDA_CURSOR
    jmp send_cursor
4:  ret
