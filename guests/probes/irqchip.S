/* Do the interrupt controllers and timers in the kernel work? Stage 1: three ticks of the PIT through PIC and
 * LINT0; stage 2: one of the local APIC's timer. HLT waits for each. */
#include "probe.h"

#define PIT_1_KHZ 1193

GUEST_START
        GATE    0x20, pit_tick
        GATE    0x31, apic_tick
        LOAD_IDT
        OPEN_PIC 0xfe                   /* line 0: the PIT */
        mov     $0x34, %al              /* channel 0, low and high byte, rate generator */
        out     %al, $0x43
        mov     $(PIT_1_KHZ & 0xff), %al
        out     %al, $0x40
        mov     $(PIT_1_KHZ >> 8), %al
        out     %al, $0x40
        STAGE   1
1:      sti
        hlt
        cli
        cmpb    $3, pit_ticks
        jb      1b

        mov     $0xff, %al
        out     %al, $0x21              /* no more of the PIT */
        STAGE   2
        movl    $0x31, LVT_TIMER(%r8)   /* one shot */
        movl    $0x0b, TIMER_DIVIDE(%r8) /* by 1 */
        movl    $100000, TIMER_COUNT(%r8)
2:      sti
        hlt
        cli
        cmpb    $1, apic_ticks
        jb      2b
        VERDICT 0

pit_tick:
        push    %rax
        incb    pit_ticks
        mov     $0x20, %al
        out     %al, $0x20              /* end of interrupt */
        pop     %rax
        iretq

apic_tick:
        incb    apic_ticks
        movl    $0, EOI(%r8)
        iretq

pit_ticks:
        .byte   0
apic_ticks:
        .byte   0
        IDT_HERE
