/* What every guest needs: where pykvm's board listens, and one spelling of assembler for all CPU modes.
 *
 * A guest in assembler starts with GUEST_START. It sets the assembler to the mode's code size and
 * defines _start, where the machine enters with a stack ready. `ax_`, `bx_` … are the registers of the
 * mode's own width. A guest in C has a main(), and "start.S" in the `lib` of its guest.toml.
 */
#ifndef GUEST_H
#define GUEST_H

#define PORT_DEBUG_CONSOLE 0xe9 /* a byte written is a byte printed */
#define PORT_EXIT 0x500         /* the value written is the exit code */
#define PORT_DEBUG_EXIT 0xf4    /* isa-debug-exit: the exit code is (v << 1) | 1 */
#define PORT_PANIC 0x505        /* bit 0: this guest has crashed */
#define PORT_COM1 0x3f8         /* a 16550A UART, eight registers; interrupt line 4 */

/* Segment selectors of the descriptor table that the machine prepares; there is no IDT. */
#ifndef KERNEL_CODE64
#define KERNEL_CODE64 0x08
#define KERNEL_DATA 0x10
#define USER_CODE32 0x1b
#define USER_DATA 0x23
#define USER_CODE64 0x2b
#define TSS_SELECTOR 0x30
#define KERNEL_CODE32 0x40
#endif

#ifdef __ASSEMBLER__
#if MODE_REAL16
#define GUEST_START .code16; .section .text.start, "ax"; .globl _start; _start:
#define ax_ ax
#define bx_ bx
#define cx_ cx
#define dx_ dx
#define si_ si
#define di_ di
#define sp_ sp
#elif MODE_LONG64 || MODE_USER64
#define GUEST_START .code64; .section .text.start, "ax"; .globl _start; _start:
#define ax_ rax
#define bx_ rbx
#define cx_ rcx
#define dx_ rdx
#define si_ rsi
#define di_ rdi
#define sp_ rsp
#else
#define GUEST_START .code32; .section .text.start, "ax"; .globl _start; _start:
#define ax_ eax
#define bx_ ebx
#define cx_ ecx
#define dx_ edx
#define si_ esi
#define di_ edi
#define sp_ esp
#endif
#endif

#endif
