/* The program in ring 3: prints, fails to raise a page fault by hand, ends. */
#define SYS_EXIT 1
#define SYS_WRITE 4
#define PAGE_FAULT 14

        .section .user, "awx"
        .globl  user_program, user_stack_end
user_program:
        mov     $SYS_WRITE, %eax
        mov     $1, %ebx                /* standard output */
        lea     hello(%rip), %rcx
        mov     $(hello_end - hello), %edx
        int     $0x80
        int     $PAGE_FAULT             /* a gate for ring 0 alone: #GP */
        lea     -(hello_end - hello)(%rax), %ebx /* all was written: exit code 0 */
        mov     $SYS_EXIT, %eax
        int     $0x80

hello:  .ascii  "Hello through INT 0x80!\n"
hello_end:
        .balign 16
        .skip   1024
user_stack_end:
