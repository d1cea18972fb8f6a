/* Where a PC starts: the reset vector, and the power-on sequence (POST).
 *
 * After reset an x86 CPU is in real mode and fetches its first instruction 16 bytes below 4 GiB, at
 * FFFFFFF0h: CS holds the selector F000h, but its hidden base is FFFF0000h. The board shows the same ROM
 * there and at F0000h, below 1 MiB. The first far jump loads CS anew, its base becomes F0000h, and from
 * then on the CPU behaves like an 8086 that may use 32-bit registers.
 *
 * Read this file first; each step is a call into the file that is named beside it.
 */
#include "bios.inc"

    .code16

    .section .reset, "ax"
    .globl reset_vector
reset_vector:                           # F000:FFF0
    ljmp $SEG_BIOS, $post
    .ascii "11/23/26"                   # F000:FFF5: the BIOS date, where PC software looks for it
    .byte 0                             # F000:FFFD
    .byte 0xfc                          # F000:FFFE: model byte, "AT or later"
    .byte 0

    .text
post:
    cli                                 # no vectors yet: an interrupt would jump to nowhere
    cld
    MARK MARK_RESET

    /* Memory exists, but until SS:SP points to it there is no PUSH and no CALL. */
    xorw %ax, %ax
    movw %ax, %ss
    movw $STACK_TOP, %sp
    MARK MARK_STACK

    call a20_open                       # system.S
    call data_areas_init                # memory.S
    call memory_map_init                # memory.S
    MARK MARK_MEMORY
    call vectors_init                   # vectors.S
    MARK MARK_VECTORS
    call screen_init                    # console.S
    call serial_init                    # serial.S
    call keyboard_init                  # keyboard.S
    MARK MARK_SERIAL
    call interrupts_init                # interrupts.S
    call timer_init                     # timer.S
    MARK MARK_TIMER
    sti                                 # the first tick may come now
    call disk_init                      # disk.S
    MARK MARK_DISK

    int $0x19                           # boot.S: load the boot sector, never come back
