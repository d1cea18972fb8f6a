/* What the guests of `pykvm doctor` share.
 *
 * A probe's guest says how it went with one OUT to PORT_EXIT: 0, all is as the manuals have it; any other
 * value is explained in its source. An OUT to PORT_STAGE says how far it has come. The build defines
 * BOOT, MMIO and the selectors from pykvm's own address map.
 *
 *   0x100000  the guest            0x200000  USER: 2 MiB for ring 3 (see OPEN_RING3)
 *   0x1f0000  KERNEL_STACK's end   0x400000  EXTRA: a memory slot of its own, behind RAM
 */
#ifndef PROBE_H
#define PROBE_H
#include "guest.h"

#define PORT_STAGE 0x80
#define PORT_NOTIFY 0x600
#define USER 0x200000
#define KERNEL_STACK 0x1f0000
#define EXTRA 0x400000

#define TSS_RSP0 (BOOT + 0x804)
#define PML4 (BOOT + 0x2000)
#define PDPT (BOOT + 0x3000)
#define DIRECTORY (BOOT + 0x4000)

/* The local APIC's registers, addressed from LAPIC in %r8: it is out of reach of a 32-bit displacement. */
#define LAPIC 0xfee00000
#define EOI 0x0b0
#define SPURIOUS 0x0f0
#define ICR 0x300
#define LVT_TIMER 0x320
#define LVT_LINT0 0x350
#define TIMER_COUNT 0x380
#define TIMER_DIVIDE 0x3e0

#define INTERRUPT_GATE 0x8e00      /* present, DPL 0 */
#define INTERRUPT_GATE_USER 0xee00 /* present, DPL 3: INT n from ring 3 may use it */

/* The end: say `value` and stop. */
.macro VERDICT value
        mov     $\value, %eax
        mov     $PORT_EXIT, %dx
        out     %eax, %dx
        hlt
.endm

.macro STAGE value
        mov     $\value, %al
        out     %al, $PORT_STAGE
.endm

/* Write a gate of the IDT that IDT_HERE reserves, and load the table with LOAD_IDT. Both use %eax. */
#if MODE_LONG64
.macro GATE vector, handler, attributes=INTERRUPT_GATE
        mov     $\handler, %eax
        mov     %ax, idt + 16 * \vector
        movw    $KERNEL_CODE64, idt + 16 * \vector + 2
        movw    $\attributes, idt + 16 * \vector + 4
        shr     $16, %eax
        mov     %ax, idt + 16 * \vector + 6
.endm
#else
.macro GATE vector, handler, attributes=INTERRUPT_GATE
        mov     $\handler, %eax
        mov     %ax, idt + 8 * \vector
        movw    $KERNEL_CODE32, idt + 8 * \vector + 2
        movw    $\attributes, idt + 8 * \vector + 4
        shr     $16, %eax
        mov     %ax, idt + 8 * \vector + 6
.endm
#endif

.macro LOAD_IDT
        lidt    idt_register
.endm

.macro IDT_HERE
        .balign 16
idt:    .fill   64 * 16, 1, 0           /* vectors 0 to 63 */
idt_register:
        .word   64 * 16 - 1
        .long   idt, 0
.endm

/* For an instruction that a CPU may refuse: #UD and #GP are verdicts 6 and 13, not a triple fault. */
.macro CATCH
        GATE    6, undefined
        GATE    13, protection
        LOAD_IDT
.endm

.macro CAUGHT_HERE
undefined:
        VERDICT 6
protection:
        VERDICT 13
        IDT_HERE
.endm

/* Open the 2 MiB at USER to ring 3, copy the code between `user` and `user_end` there, and give the task
 * register a kernel stack for the way back. That code must not depend on where it lies. */
.macro OPEN_RING3
        orb     $4, PML4                /* U/S in every level that leads there; */
        orb     $4, PDPT
        orb     $4, DIRECTORY + 8 * (USER >> 21) /* the other pages stay the kernel's */
        mov     %cr3, %rax
        mov     %rax, %cr3
        mov     $user, %esi
        mov     $USER, %edi
        mov     $(user_end - user), %ecx
        rep movsb
        movq    $KERNEL_STACK, TSS_RSP0
        mov     $TSS_SELECTOR, %eax
        ltr     %ax
.endm

.macro ENTER_RING3 rflags=2
        pushq   $USER_DATA
        pushq   $(USER + 0x10000)
        pushq   $\rflags
        pushq   $USER_CODE64
        pushq   $USER
        iretq
.endm

/* Enable the local APIC and leave its address in %r8. */
.macro OPEN_LAPIC
        mov     $LAPIC, %r8d
        movl    $0x1ff, SPURIOUS(%r8)   /* enabled; spurious vector 0xff */
.endm

/* Let the PIC's interrupts through the local APIC, and the PIC's lines 0-7 arrive as vectors 0x20-0x27. */
.macro OPEN_PIC mask
        OPEN_LAPIC
        movl    $0x700, LVT_LINT0(%r8)  /* ExtINT, not masked */
        mov     $0x11, %al
        out     %al, $0x20              /* ICW1: edge, cascade, ICW4 follows */
        mov     $0x20, %al
        out     %al, $0x21              /* ICW2: vectors from 0x20 on */
        mov     $0x04, %al
        out     %al, $0x21              /* ICW3: the other PIC is on line 2 */
        mov     $0x01, %al
        out     %al, $0x21              /* ICW4: 8086 mode */
        mov     $\mask, %al
        out     %al, $0x21              /* OCW1: the lines with a 0 may interrupt */
.endm

#endif
