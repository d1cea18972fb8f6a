/* A program in ring 3: three lines, one system call each, and a hundred that print nothing. */
#define SYS_WRITE 1
#define SYS_GETPID 39
#define SYS_EXIT 60

        .section .user, "awx"
        .globl  program, program_stack_end
program:
        mov     $100, %ebx
1:      mov     $SYS_GETPID, %eax
        syscall
        dec     %ebx
        jnz     1b

        mov     $3, %ebx
2:      mov     $SYS_WRITE, %eax
        mov     $1, %edi
        lea     text(%rip), %rsi
        mov     $(text_end - text), %edx
        syscall
        dec     %ebx
        jnz     2b

        xor     %edi, %edi
        mov     $SYS_EXIT, %eax
        syscall

text:   .ascii  "from the program to its kernel to pykvm\n"
text_end:
        .balign 16
        .skip   1024
program_stack_end:
