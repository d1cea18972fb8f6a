/* From a device's wire to the CPU: the two interrupt controllers (8259A) of the AT, and the local APIC that
 * stands between them and every later CPU.
 */
#include "bios.inc"

    .code16
    .text

#define CPUID_HAS_APIC (1 << 9)         /* leaf 1, EDX */
#define EFLAGS_ID (1 << 21)             /* can be changed: there is CPUID */
#define LAPIC 0xfee00000
#define LAPIC_SPURIOUS 0xf0             /* bit 8: software enable */
#define LAPIC_LINT0 0x350               /* the wire of the 8259As */
#define LAPIC_LINT1 0x360               /* the wire of NMI */
#define DELIVER_EXTINT 0x700            /* ask the 8259A for the vector */
#define DELIVER_NMI 0x400

    .globl interrupts_init
interrupts_init:
    movw $pic_words, %si
1:  movzbw %cs:(%si), %dx
    testw %dx, %dx
    jz local_apic_init
    movb %cs:1(%si), %al
    outb %al, %dx
    addw $2, %si
    jmp 1b

/* Four initialization command words each, then the masks: port, value. */
pic_words:
    .byte PORT_PIC1, 0x11               # ICW1: edge-triggered, two controllers, ICW4 follows
    .byte PORT_PIC1 + 1, 0x08           # ICW2: IRQ 0-7 are vectors 08h-0Fh
    .byte PORT_PIC1 + 1, 0x04           # ICW3: the second controller is on IRQ 2
    .byte PORT_PIC1 + 1, 0x01           # ICW4: 8086
    .byte PORT_PIC2, 0x11
    .byte PORT_PIC2 + 1, 0x70           # IRQ 8-15 are vectors 70h-77h
    .byte PORT_PIC2 + 1, 0x02           # it is on IRQ 2
    .byte PORT_PIC2 + 1, 0x01
    .byte PORT_PIC1 + 1, 0xfa           # masks: only the tick (0) and the second controller (2)
    .byte PORT_PIC2 + 1, 0xff
    .byte 0

/* Virtual wire mode: the local APIC lets the 8259As through as if it were not there. After reset its two
 * wires are masked, and they stay so while it is not enabled. DS = BDA before and after. */
local_apic_init:
    pushfl                              # 386 and early 486: no CPUID, no APIC
    popl %eax
    movl %eax, %ecx
    xorl $EFLAGS_ID, %eax
    pushl %eax
    popfl
    pushfl
    popl %eax
    cmpl %eax, %ecx
    je 1f
    movl $1, %eax
    cpuid
    testl $CPUID_HAS_APIC, %edx
    jz 1f

    pushw %ds
    pushw %es
    call flat_enter                     # memory.S: its registers are far above 1 MiB
    movl $LAPIC, %ebx
    movl $0x1ff, LAPIC_SPURIOUS(%ebx)   # enabled, spurious interrupts are vector FFh
    movl $DELIVER_EXTINT, LAPIC_LINT0(%ebx)
    movl $DELIVER_NMI, LAPIC_LINT1(%ebx)
    call flat_leave
    popw %es
    popw %ds
1:  ret
