/* A program in ring 3: asks its kernel a thousand times for its process id, and says so. */
#define SYS_WRITE 1
#define SYS_GETPID 39
#define SYS_EXIT 60

        .section .user, "awx"
        .globl  program, program_stack_end
program:
        mov     $1000, %ebx             /* a register that a system call leaves alone */
1:      mov     $SYS_GETPID, %eax
        syscall                         /* to the kernel, and back behind it */
        dec     %ebx
        jnz     1b

        mov     $SYS_WRITE, %eax
        mov     $1, %edi
        lea     text(%rip), %rsi
        mov     $(text_end - text), %edx
        syscall

        xor     %edi, %edi
        mov     $SYS_EXIT, %eax
        syscall

text:   .ascii  "asked 1000 times\n"
text_end:
        .balign 16
        .skip   1024
program_stack_end:
