/* The program in ring 3: prints, tries two things that it may not do, and one that its kernel refuses. */
#define SYS_WRITE 1
#define SYS_EXIT 60
#define EFAULT 14
#define KERNEL 0x100000

        .section .user, "awx"
        .globl  user_program, user_stack_end
user_program:
        mov     $SYS_WRITE, %eax
        mov     $1, %edi                /* standard output */
        lea     hello(%rip), %rsi
        mov     $(hello_end - hello), %edx
        syscall

        lea     1f(%rip), %rbx          /* where the kernel lets us go on */
        hlt                             /* for ring 0 alone: #GP */
1:      lea     2f(%rip), %rbx
        mov     KERNEL, %eax            /* a page for ring 0 alone: #PF */

2:      mov     $SYS_WRITE, %eax        /* so ask the kernel to print it */
        mov     $1, %edi
        mov     $KERNEL, %esi
        mov     $16, %edx
        syscall

        lea     EFAULT(%rax), %edi      /* refused with -EFAULT: exit code 0 */
        mov     $SYS_EXIT, %eax
        syscall

hello:  .ascii  "Hello from ring 3!\n"
hello_end:
        .balign 16
        .skip   1024
user_stack_end:
