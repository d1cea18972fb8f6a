/* The serial port: its set-up, a byte out, INT 14h for programs, and INT 17h (there is no printer). */
#include "bios.inc"

    .code16
    .text

/* Find the UART and set it to 115200 baud, 8 data bits, no parity, 1 stop bit. DS = BDA. */
    .globl serial_init
serial_init:
    movw $PORT_COM1 + UART_LSR, %dx
    inb %dx, %al
    cmpb $0xff, %al                     # nobody answers: all bits read as 1
    je 1f
    movw $PORT_COM1, BDA_COM
    orw $1 << 9, BDA_EQUIPMENT          # bits 9-11: one serial port
    movb $10, BDA_COM_TIMEOUT
    movb $0x80, %al                     # let the divisor appear at 0 and 1
    movw $1, %cx                        # 115200 / 1
    call set_line
    movw $PORT_COM1 + UART_IER, %dx
    xorb %al, %al                       # no interrupts: whoever wants some asks
    outb %al, %dx
    movw $PORT_COM1 + UART_FCR, %dx
    movb $0x07, %al                     # FIFOs on and empty
    outb %al, %dx
    movw $PORT_COM1 + UART_MCR, %dx
    movb $0x0b, %al                     # DTR, RTS, and OUT2: its interrupt reaches the controller
    outb %al, %dx
1:  ret

/* CX = divisor; 8N1. */
set_line:
    movw $PORT_COM1 + UART_LCR, %dx
    movb $0x80, %al
    outb %al, %dx
    movw $PORT_COM1 + UART_DATA, %dx
    movb %cl, %al
    outb %al, %dx
    incw %dx
    movb %ch, %al
    outb %al, %dx
    movw $PORT_COM1 + UART_LCR, %dx
    movb $0x03, %al
    outb %al, %dx
    ret

/* AL = byte to send, DS = BDA. Carry: it did not go out. Changes nothing else. */
    .globl serial_put
serial_put:
    cmpw $0, BDA_COM
    je 3f
    pushw %ax
    pushw %cx
    pushw %dx
    movb %al, %ah
    movw $PORT_COM1 + UART_LSR, %dx
    xorw %cx, %cx                       # 65536 looks, then give up: a BIOS must not hang
1:  inb %dx, %al
    testb $LSR_THR_EMPTY, %al
    loopz 1b
    jz 2f
    movw $PORT_COM1 + UART_DATA, %dx
    movb %ah, %al
    outb %al, %dx
    popw %dx
    popw %cx
    popw %ax
    clc
    ret
2:  popw %dx
    popw %cx
    popw %ax
3:  stc
    ret

/* AL = line status; zero: no byte is waiting. DS = BDA. */
    .globl serial_ready
serial_ready:
    xorb %al, %al
    cmpw $0, BDA_COM
    je 1f
    pushw %dx
    movw $PORT_COM1 + UART_LSR, %dx
    inb %dx, %al
    popw %dx
1:  testb $LSR_DATA_READY, %al
    ret

/* AL = the byte that waits. */
    .globl serial_get
serial_get:
    pushw %dx
    movw $PORT_COM1 + UART_DATA, %dx
    inb %dx, %al
    popw %dx
    ret

/* ---- INT 14h: DX = 0 for COM1 ------------------------------------------------------------------------ */
    .globl int14_serial
int14_serial:
    ENTER
    cmpw $0, F_DX(%bp)
    jne 1f
    cmpw $0, BDA_COM
    je 1f
    movw $int14_table, %si
    call dispatch
    LEAVE
1:  movb $0x80, F_AH(%bp)               # time-out: there is no such port
    LEAVE

int14_table:
    ROW 0x00, int14_set
    ROW 0x01, int14_send
    ROW 0x02, int14_receive
    ROW 0x03, int14_status
    OTHERWISE int14_timeout

/* AL = parameters: 8N1 is the only frame of a virtual line, bits 5-7 are the speed. */
int14_set:
    movzbw F_AL(%bp), %bx
    shrw $5, %bx
    shlw $1, %bx
    movw %cs:divisors(%bx), %cx
    call set_line
int14_status:
    movw $PORT_COM1 + UART_LSR, %dx
    inb %dx, %al
    movb %al, F_AH(%bp)
    incw %dx
    inb %dx, %al
    movb %al, F_AL(%bp)
    ret
divisors:                               # 110, 150, 300, 600, 1200, 2400, 4800, 9600 baud
    .word 1047, 768, 384, 192, 96, 48, 24, 12

int14_send:
    movb F_AL(%bp), %al
    call serial_put
    jc int14_timeout
    movw $PORT_COM1 + UART_LSR, %dx
    inb %dx, %al
    movb %al, F_AH(%bp)
    ret

int14_receive:                          # does not wait: a caller that wants to wait calls again
    call serial_ready
    jz int14_timeout
    andb $0x1e, %al                     # the error bits of the line status
    movb %al, F_AH(%bp)
    call serial_get
    movb %al, F_AL(%bp)
    ret

int14_timeout:
    movb $0x80, F_AH(%bp)
    ret

/* INT 17h: AH = 01h, the printer's time-out. */
    .globl int17_printer
int17_printer:
    movb $0x01, %ah
    iretw
