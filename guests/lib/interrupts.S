/* One stub for each vector: makes every stack look like a struct frame, then calls the handler in C.
 *
 * The CPU has pushed SS, RSP, RFLAGS, CS and RIP, and for some exceptions an error code; the others
 * get a 0 in its place.
 */
        .code64
        .text

        .balign 16
        .globl  interrupt_stubs
interrupt_stubs:
        vector = 0
        .rept   256
        .balign 16
        .if     vector != 8 && vector != 17 && vector != 21 && vector != 29 && vector != 30 && (vector < 10 || vector > 14)
        push    $0
        .endif
        push    $vector
        jmp     save_and_dispatch
        vector = vector + 1
        .endr

save_and_dispatch:
        .irp    register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
        push    %\register
        .endr
        mov     %rsp, %rdi              /* the struct frame */
        cld
        call    interrupt_dispatch
        .irp    register, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax
        pop     %\register
        .endr
        add     $16, %rsp               /* vector and error code */
        iretq
