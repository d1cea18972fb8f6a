/* Time: the tick of 18.2 Hz, waiting, and the clock in CMOS RAM. */
#include "bios.inc"

    .code16
    .text

#define TICKS_PER_DAY 0x1800b0

/* DS = BDA. */
    .globl timer_init
timer_init:
    movb $0x34, %al                     # channel 0, low byte then high byte, mode 2: count down, reload
    outb %al, $PORT_PIT_COMMAND
    xorb %al, %al                       # 0 means 65536
    outb %al, $PORT_PIT
    outb %al, $PORT_PIT

    call read_clock                     # CH:CL:DH = hours, minutes, seconds, BCD
    movb %ch, %al                       # ticks since midnight = seconds * 1193182 / 65536
    call from_bcd
    movzbl %al, %eax
    imull $60, %eax, %ebx
    movb %cl, %al
    call from_bcd
    movzbl %al, %eax
    addl %eax, %ebx
    imull $60, %ebx, %ebx
    movb %dh, %al
    call from_bcd
    movzbl %al, %eax
    addl %ebx, %eax
    movl $PIT_HZ, %ebx
    mull %ebx                           # EDX:EAX
    shrdl $16, %edx, %eax
    cmpl $TICKS_PER_DAY, %eax
    jb 3f
    xorl %eax, %eax                     # a clock that shows 25 o'clock
3:  movl %eax, BDA_TICKS
    ret

/* IRQ 0: count, and let programs that hang in INT 1Ch know. */
    .globl int08_timer
int08_timer:
    pushw %ds
    pushl %eax
    movw $SEG_BDA, %ax
    movw %ax, %ds
    movl BDA_TICKS, %eax
    incl %eax
    cmpl $TICKS_PER_DAY, %eax
    jb 1f
    xorl %eax, %eax
    incb BDA_MIDNIGHT
1:  movl %eax, BDA_TICKS
    int $0x1c
    cli
    movb $0x20, %al                     # end of interrupt
    outb %al, $PORT_PIC1
    popl %eax
    popw %ds
    iretw

/* ---- INT 1Ah ------------------------------------------------------------------------------------------ */
    .globl int1a_time
int1a_time:
    ENTER
    movw $int1a_table, %si
    call dispatch
    LEAVE

int1a_table:
    ROW 0x00, time_get_ticks
    ROW 0x01, time_set_ticks
    ROW 0x02, time_get_clock
    ROW 0x04, time_get_date
    OTHERWISE time_unsupported          # setting the clock and alarms; PCI and TPM services

time_unsupported:
    FAIL
    ret

/* -> CX:DX = ticks since midnight, AL: midnight has passed since the last call. */
time_get_ticks:
    cli
    movw BDA_TICKS, %ax
    movw %ax, F_DX(%bp)
    movw BDA_TICKS+2, %ax
    movw %ax, F_CX(%bp)
    movw $0, F_AX(%bp)
    movb BDA_MIDNIGHT, %al
    movb %al, F_AL(%bp)
    movb $0, BDA_MIDNIGHT
    SUCCEED
    ret

time_set_ticks:
    movw F_DX(%bp), %ax
    movw %ax, BDA_TICKS
    movw F_CX(%bp), %ax
    movw %ax, BDA_TICKS+2
    movb $0, BDA_MIDNIGHT
    SUCCEED
    ret

/* -> CH = hours, CL = minutes, DH = seconds, all BCD; DL = 0: no daylight saving. */
time_get_clock:
    call read_clock
    jc time_unsupported
    movw %cx, F_CX(%bp)
    movb $0, %dl
    movw %dx, F_DX(%bp)
    SUCCEED
    ret

/* -> CH = century, CL = year, DH = month, DL = day, all BCD. */
time_get_date:
    call clock_settled
    jc time_unsupported
    movb $CMOS_CENTURY, %al
    call clock_byte
    movb %al, F_CH(%bp)
    movb $CMOS_YEAR, %al
    call clock_byte
    movb %al, F_CL(%bp)
    movb $CMOS_MONTH, %al
    call clock_byte
    movb %al, F_DH(%bp)
    movb $CMOS_DAY, %al
    call clock_byte
    movb %al, F_DL(%bp)
    SUCCEED
    ret

/* CH = hours, CL = minutes, DH = seconds, BCD; carry: the clock never settled. */
read_clock:
    call clock_settled
    jc 1f
    movb $CMOS_HOURS, %al
    call clock_byte
    movb %al, %ch
    movb $CMOS_MINUTES, %al
    call clock_byte
    movb %al, %cl
    movb $CMOS_SECONDS, %al
    call clock_byte
    movb %al, %dh
    clc
1:  ret

/* Wait until no update is under way; an update takes 2 ms, a look a microsecond at least. */
clock_settled:
    pushw %cx
    movw $10000, %cx
1:  movb $CMOS_STATUS_A, %al
    call cmos_byte
    testb $0x80, %al                    # clears carry
    loopnz 1b
    popw %cx
    jz 2f
    stc
2:  ret

/* AL = CMOS index of a part of the time -> AL in BCD, whichever way the clock keeps it. */
clock_byte:
    pushw %bx
    call cmos_byte
    movb %al, %bl
    movb $CMOS_STATUS_B, %al
    call cmos_byte
    testb $0x04, %al
    movb %bl, %al
    popw %bx
    jz 1f
    aam                                 # AH = AL / 10, AL = AL % 10
    shlb $4, %ah
    orb %ah, %al
1:  ret

/* AL from BCD. */
from_bcd:
    pushw %cx
    movb %al, %ch
    shrb $4, %ch
    andb $0x0f, %al
    xchgb %al, %ch
    movb $10, %cl
    mulb %cl                            # AX = tens * 10
    addb %ch, %al
    popw %cx
    ret

/* ---- INT 15h/86h: wait CX:DX microseconds -------------------------------------------------------------
 * The timer counts down all the time; the counts that pass between two looks add up. While more than a
 * tick is left, the CPU sleeps until the next one.
 */
    .globl int15_wait
int15_wait:
    movw F_CX(%bp), %ax
    shll $16, %eax
    movw F_DX(%bp), %ax
    movl $PIT_HZ / 10, %ebx
    mull %ebx                           # microseconds * 119318 …
    movl %eax, %esi
    movl %edx, %eax                     # … / 100000, in two steps: the result has 33 bits
    xorl %edx, %edx
    movl $100000, %ebx
    divl %ebx
    movl %eax, %edi
    movl %esi, %eax
    divl %ebx
    movl %eax, %esi                     # EDI:ESI = counts to wait
    call pit_count
    movw %ax, %bx
1:  sti
    testl %edi, %edi
    jnz 2f
    cmpl $0x10000, %esi
    jb 3f
2:  inb $PORT_PIC1+1, %al
    testb $1, %al                       # masked by the program: then nothing would wake us
    jnz 3f
    hlt
3:  cli
    call pit_count
    xchgw %ax, %bx
    subw %bx, %ax                       # counts that have passed; it counts down
    movzwl %ax, %eax
    subl %eax, %esi
    sbbl $0, %edi
    jnc 1b
    SUCCEED
    ret

/* AX = what channel 0 shows now. */
    .globl pit_count
pit_count:
    xorb %al, %al                       # latch channel 0: the two bytes belong together
    outb %al, $PORT_PIT_COMMAND
    inb $PORT_PIT, %al
    movb %al, %ah
    inb $PORT_PIT, %al
    xchgb %al, %ah
    ret
