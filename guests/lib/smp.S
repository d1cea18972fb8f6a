/* From real mode to C on a CPU that has just been started. */
#include "guest.h"

#define AP_STACK_BYTES 2048
#define AP_STACKS 255
#define CR0_PE_PG 0x80000001
#define CR4_PAE 0x20
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100

/* A copy of this runs at the page of the SIPI, with CS at that page and IP 0; it may name its own
 * addresses only relative to the page. Two switches in one: into protected mode and on into long mode. */
        .text
        .code16
        .globl  ap_start, ap_start_end, ap_gdt, ap_cr3
ap_start:
        cli
        mov     %cs:(ap_cr3 - ap_start), %eax
        mov     %eax, %cr3
        mov     $CR4_PAE, %eax
        mov     %eax, %cr4
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $EFER_LME, %eax
        wrmsr
        lgdtl   %cs:(ap_gdt - ap_start)
        mov     %cr0, %eax
        or      $CR0_PE_PG, %eax
        mov     %eax, %cr0
        ljmpl   $KERNEL_CODE64, $ap_long /* not in the copy: the guest itself */
ap_gdt: .skip   10
ap_cr3: .skip   4
ap_start_end:

        .code64
ap_long:
        mov     $KERNEL_DATA, %eax
        mov     %eax, %ss
        mov     %eax, %ds
        mov     %eax, %es
        mov     $1, %eax
        lock xadd %eax, aps_started(%rip)
        cmp     $AP_STACKS, %eax        /* all waiting CPUs hear the same message: there may be more */
        jae     1f
        inc     %eax                    /* the first one's stack ends behind the first block */
        imul    $AP_STACK_BYTES, %rax, %rax
        lea     ap_stacks(%rax), %rsp
        call    *ap_entry(%rip)
1:      cli
        hlt
        jmp     1b

        .bss
        .balign 16
aps_started:
        .skip   16
ap_stacks:
        .skip   AP_STACKS * AP_STACK_BYTES
