/* Memory: how much there is, where the BIOS keeps its own data, and the map that systems ask for.
 *
 * A BIOS of old found memory by writing and reading back. Here, as on other virtual boards, the host
 * tells the sizes in CMOS RAM. The map of the first MiB:
 *
 *   00000 - 003ff  interrupt vectors           9fc00 - 9ffff  extended BIOS data area (EBDA)
 *   00400 - 004ff  BIOS data area (BDA)        a0000 - bffff  video memory, when there is a screen
 *   00500 - 9fbff  free; boot sector at 7c00   c0000 - effff  option ROMs;  f0000 - fffff  this BIOS
 */
#include "bios.inc"

    .code16
    .text

/* AL = CMOS index -> AL. */
    .globl cmos_byte
cmos_byte:
    outb %al, $PORT_CMOS
    inb $PORT_CMOS+1, %al
    ret

/* AL = CMOS index of the low byte -> AX. */
cmos_word:
    pushw %bx
    movb %al, %bl
    incb %al
    call cmos_byte
    movb %al, %bh
    movb %bl, %al
    call cmos_byte
    movb %bh, %ah
    popw %bx
    ret

/* Zero both data areas and fill in what old software looks for. -> ES = EBDA, DS = BDA. */
    .globl data_areas_init
data_areas_init:
    movb $CMOS_BASE_KIB, %al
    call cmos_word
    testw %ax, %ax
    jz 1f
    cmpw $640, %ax
    jbe 2f
1:  movw $640, %ax                      # the board does not say: a PC has 640 KiB
2:  subw $EBDA_KIB, %ax
    movw %ax, %dx                       # KiB that are left to programs

    movw $SEG_BDA, %ax
    movw %ax, %ds
    movw %ax, %es
    xorw %di, %di
    xorl %eax, %eax
    movw $256/4, %cx
    rep stosl
    movw %dx, BDA_BASE_KIB
    shlw $6, %dx                        # KiB * 1024 / 16: a segment
    movw %dx, BDA_EBDA
    movw $0x0022, BDA_EQUIPMENT         # x87; 80x25 colour text. serial.S adds its port

    movw %dx, %es
    xorw %di, %di
    movw $EBDA_KIB*1024/4, %cx
    rep stosl
    movb $EBDA_KIB, %es:0
    ret

/* ES = EBDA; from inside a service, where DS is the BDA. */
    .globl load_ebda
load_ebda:
    movw BDA_EBDA, %es
    ret

/* EAX = KiB of RAM from 1 MiB up to the hole below 4 GiB. */
extended_kib:
    xorl %eax, %eax
    movb $CMOS_ABOVE_16M, %al
    call cmos_word
    shll $6, %eax                       # 64 KiB blocks
    jz 1f
    addl $15*1024, %eax                 # what lies between 1 and 16 MiB
    ret
1:  movb $CMOS_EXTENDED_KIB, %al        # less than 16 MiB
    call cmos_word                      # the upper half of EAX is 0
    ret

/* ---- the map of INT 15h/E820h, built once ------------------------------------------------------------ */
#define RAM 1
#define RESERVED 2

/* Append an entry: EAX = base, EBX = length in bytes, CX = type; all below 4 GiB. ES:DI moves on. */
add_range:
    testl %ebx, %ebx
    jz 1f                               # nothing there, no entry
    stosl
    xorl %eax, %eax
    stosl
    movl %ebx, %eax
    stosl
    xorl %eax, %eax
    stosl
    movzwl %cx, %eax
    stosl
    incw %es:EBDA_MAP_ENTRIES
1:  ret

/* ES = EBDA, DS = BDA. */
    .globl memory_map_init
memory_map_init:
    movw $EBDA_MAP, %di
    xorl %eax, %eax
    movzwl BDA_BASE_KIB, %ebx
    shll $10, %ebx
    movw $RAM, %cx
    call add_range
    movzwl BDA_BASE_KIB, %eax
    shll $10, %eax
    movl $EBDA_KIB*1024, %ebx
    movw $RESERVED, %cx
    call add_range
    movl $SEG_BIOS*16, %eax
    movl $0x10000, %ebx
    call add_range
    call extended_kib
    movl %eax, %ebx
    shll $10, %ebx
    movl $0x100000, %eax
    movw $RAM, %cx
    call add_range
    movl $0xfeffc000, %eax              # four pages that Intel's KVM keeps for itself
    movl $0x4000, %ebx
    movw $RESERVED, %cx
    call add_range
    movl $0xffff0000, %eax              # this ROM, as the reset vector sees it
    movl $0x10000, %ebx
    call add_range

    /* RAM from 4 GiB: the length has up to 40 bits. */
    movb $CMOS_ABOVE_4G + 2, %al
    call cmos_byte
    movzbl %al, %ebx
    shll $16, %ebx
    movb $CMOS_ABOVE_4G, %al
    call cmos_word
    movw %ax, %bx                       # EBX = 64 KiB blocks
    testl %ebx, %ebx
    jz 1f
    xorl %eax, %eax
    stosl                               # base 1_0000_0000h
    incl %eax
    stosl
    movl %ebx, %eax
    shll $16, %eax
    stosl                               # length, low half
    movl %ebx, %eax
    shrl $16, %eax
    stosl                               # and high half
    movl $RAM, %eax
    stosl
    incw %es:EBDA_MAP_ENTRIES
1:  ret

/* INT 15h/E820h: EBX = 0 for the first entry, else what the last call gave back; ES:DI = 20 bytes. */
    .globl int15_memory_map
int15_memory_map:
    cmpw $0xe820, F_AX(%bp)
    jne int15_unsupported
    cmpl $0x534d4150, F_EDX(%bp)        # "SMAP": the caller knows what it asks for
    jne int15_unsupported
    cmpl $20, F_ECX(%bp)
    jb int15_unsupported
    call load_ebda
    movl F_EBX(%bp), %eax
    movzwl %es:EBDA_MAP_ENTRIES, %ecx
    cmpl %ecx, %eax
    jae int15_unsupported               # past the end
    movw $20, %si
    pushw %ax
    mulw %si
    movw %ax, %si
    popw %ax
    addw $EBDA_MAP, %si
    incw %ax
    cmpw %cx, %ax
    jb 1f
    xorw %ax, %ax                       # that was the last one
1:  movw %ax, F_BX(%bp)                 # the upper half of EBX is 0: it was a valid index
    movw %es, %ax
    movw %ax, %ds
    movw F_ES(%bp), %es
    movw F_DI(%bp), %di
    movw $20/4, %cx
    rep movsl
    movl $20, F_ECX(%bp)
    movl $0x534d4150, F_EAX(%bp)
    SUCCEED
    ret

/* INT 15h/E801h: AX = CX = KiB from 1 to 16 MiB, BX = DX = 64 KiB blocks above 16 MiB. */
    .globl int15_memory_sizes
int15_memory_sizes:
    cmpb $0x01, F_AL(%bp)
    jne int15_memory_map                # E820h shares its AH with us
    call extended_kib
    xorl %ebx, %ebx
    subl $15*1024, %eax
    jb 1f
    movl %eax, %ebx
    shrl $6, %ebx
    xorl %eax, %eax
1:  addl $15*1024, %eax
    movw %ax, F_AX(%bp)
    movw %ax, F_CX(%bp)
    movw %bx, F_BX(%bp)
    movw %bx, F_DX(%bp)
    SUCCEED
    ret

/* INT 15h/88h: AX = KiB from 1 MiB, as far as 16 bits reach. */
    .globl int15_extended_memory
int15_extended_memory:
    call extended_kib
    cmpl $0xffff, %eax
    jbe 1f
    movw $0xffff, %ax
1:  movw %ax, F_AX(%bp)
    SUCCEED
    ret

/* INT 11h -> AX = equipment; INT 12h -> AX = KiB of RAM that programs may use, from 0. */
    .globl int11_equipment, int12_memory
int11_equipment:
    pushw %ds
    movw $SEG_BDA, %ax
    movw %ax, %ds
    movw BDA_EQUIPMENT, %ax
    popw %ds
    iretw
int12_memory:
    pushw %ds
    movw $SEG_BDA, %ax
    movw %ax, %ds
    movw BDA_BASE_KIB, %ax
    popw %ds
    iretw

/* ---- reaching above 1 MiB ----------------------------------------------------------------------------
 * Real-mode addresses end a little above 1 MiB. In protected mode a segment is what its descriptor says, so
 * flat_enter goes there, with interrupts off, and gives DS and ES all 4 GiB; flat_leave comes back.
 */
#define GDT_CODE 0x08
#define GDT_FLAT 0x10
#define GDT_REAL 0x18

    .section .rodata
    .balign 8
gdt:                                    # limit 0-15, base 0-23, access, flags + limit 16-19, base 24-31
    .quad 0                             # "accessed" is set in all: the CPU can not write it into a ROM
    .word 0xffff, 0, 0x9b0f, 0          # code: base F0000h and 64 KiB, so our offsets stay the same
    .word 0xffff, 0, 0x9300, 0x008f     # data: base 0, limit in pages: 4 GiB
    .word 0xffff, 0, 0x9300, 0          # data: base 0, 64 KiB: the limit that real mode expects
gdt_pointer:
    .word . - gdt - 1
    .long SEG_BIOS * 16 + gdt
    .text

/* Interrupts must be off. DS and ES cover everything from 0, until flat_leave. Changes EAX, DS, ES. */
    .globl flat_enter, flat_leave
flat_enter:
    lgdt %cs:gdt_pointer
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmp $GDT_CODE, $1f                 # protected mode is complete when CS is loaded
1:  movw $GDT_FLAT, %ax
    movw %ax, %ds
    movw %ax, %es
    ret                                 # SS was not touched: the stack goes on working

/* DS and ES must be loaded anew afterwards. */
flat_leave:
    movw $GDT_REAL, %ax                 # what CR0 does not reset: a limit stays with its segment register
    movw %ax, %ds
    movw %ax, %es
    movl %cr0, %eax
    andb $~1, %al
    movl %eax, %cr0
    ljmp $SEG_BIOS, $1f
1:  ret

/* INT 15h/87h: CX = words, ES:SI = the caller's descriptor table, of which only the bases of entries 2
 * (source) and 3 (destination) count: its limits and access bytes may be anything. */
    .globl int15_block_move
int15_block_move:
    cli
    movzwl F_CX(%bp), %ecx
    cmpl $0x8000, %ecx                  # 64 KiB
    ja 1f
    movw F_ES(%bp), %ds
    movw F_SI(%bp), %si
    addw $0x10, %si
    call descriptor_base
    pushl %eax
    addw $0x08, %si
    call descriptor_base
    movl %eax, %edi
    popl %esi
    call flat_enter
    addr32 rep movsw                    # ESI, EDI and ECX in a segment of 16-bit code
    call flat_leave
    movb $0, F_AH(%bp)
    orb $FLAG_ZERO, F_FLAGS(%bp)
    SUCCEED
    ret
1:  movb $0x02, F_AH(%bp)               # "exception": the classical answer to a bad request
    andb $~FLAG_ZERO, F_FLAGS(%bp)
    FAIL
    ret

/* DS:SI = descriptor -> EAX = base. */
descriptor_base:
    movl 2(%si), %eax                   # base 0-23, and the access byte …
    shll $8, %eax                       # … which falls off
    movb 7(%si), %al                    # base 24-31 …
    rorl $8, %eax                       # … goes to the top
    ret
