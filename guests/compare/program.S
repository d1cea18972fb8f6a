/* The program's file, as the host runs it too; and in section .user the place that it is linked for. */
        .section .rodata
        .globl  program
        .balign 8
program:
        .incbin "compare_program.elf"

        .section .user, "aw", @nobits
        .globl  program_stack_end
        .skip   0x100000
program_stack_end:
        .section .note.GNU-stack, "", @progbits
