/* The boot sector of the Intel lab's first disk: it reads a Linux kernel to where it runs, and enters it.
 *
 * The disk is read through the ATA registers, 32 bits at a time, straight to memory at any address. The sectors
 * after this one are the low block, made by bootdisk.py: boot_params, the command line, the list of what to
 * read, and page tables. The BIOS is asked for one thing only, the memory map. Linux is entered by its 64-bit
 * boot protocol (Documentation/arch/x86/boot.rst): long mode, memory identity-mapped, RSI at boot_params. What
 * goes wrong is one letter on the first serial port, and the end.
 */
	LOW = 0x10000           /* where the low block goes; the same in bootdisk.py */
	LOW_SECTORS = 72
	PARAMS = LOW
	LIST = LOW + 0x2000     /* the entry, 8 bytes; then sector, sectors, address, 4 bytes each; sectors 0 ends it */
	PAGE_TABLES = LOW + 0x3000
	MAP = 0x8000            /* the BIOS's memory map, up to 128 entries of 20 bytes */
	MAP_ENTRY = 20
	MAP_MOST = 128
	PARAMS_MAP = 0x2d0      /* boot_params.e820_table */
	PARAMS_MAP_COUNT = 0x1e8 /* boot_params.e820_entries */
	COM1 = 0x3f8
	ATA = 0x1f0             /* data; then features, sector count, LBA 0-7, 8-15, 16-23, device, command */
	ATA_CONTROL = 0x3f6
	READ_SECTORS = 0x20
	BUSY = 0x80
	REQUEST = 0x08
	ERROR = 0x21            /* error, or device fault */
	CODE32 = 0x08
	CODE64 = 0x10           /* Linux's __BOOT_CS */
	DATA = 0x18             /* Linux's __BOOT_DS */
	EFER = 0xc0000080

	.code16
	.globl _start
_start:
	cli
	cld
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$0x7c00, %esp

	/* the memory map: int 0x15, EAX 0xe820, until EBX is 0 again */
	xorl	%ebx, %ebx
	movw	$MAP, %di
1:	movl	$0xe820, %eax
	movl	$0x534d4150, %edx
	movl	$MAP_ENTRY, %ecx
	int	$0x15
	movb	$'M', %al
	jc	fail16
	addw	$MAP_ENTRY, %di
	cmpw	$MAP + MAP_MOST * MAP_ENTRY, %di
	jae	2f
	testl	%ebx, %ebx
	jnz	1b
2:	cli
	inb	$0x92, %al      /* the A20 gate */
	orb	$2, %al
	andb	$0xfe, %al
	outb	%al, $0x92
	lgdtl	table
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$CODE32, $protected

fail16:
	movw	$COM1, %dx
	outb	%al, %dx
3:	hlt
	jmp	3b

	.code32
protected:
	movw	$DATA, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movzwl	%di, %ebp       /* the end of the memory map */
	movw	$ATA_CONTROL, %dx
	movb	$2, %al         /* no interrupts: the disk is polled */
	outb	%al, %dx

	movl	$1, %eax
	movl	$LOW_SECTORS, %ecx
	movl	$LOW, %edi
	call	read
	movl	$LIST + 8, %esi
next_part:
	movl	(%esi), %eax
	movl	4(%esi), %ebx
	movl	8(%esi), %edi
	testl	%ebx, %ebx
	jz	loaded
next_command:
	movl	$256, %ecx      /* the most that one command reads, written as 0 */
	cmpl	%ecx, %ebx
	cmovbl	%ebx, %ecx
	call	read
	addl	%ecx, %eax
	subl	%ecx, %ebx
	jnz	next_command
	addl	$12, %esi
	jmp	next_part

/* Read ECX sectors from sector EAX to EDI, which moves on. */
read:
	pushal
	movl	%eax, %ebx
	movw	$ATA + 7, %dx
1:	inb	%dx, %al
	testb	$BUSY, %al
	jnz	1b
	movl	%ebx, %eax
	shrl	$24, %eax
	orb	$0xe0, %al      /* LBA, master */
	movw	$ATA + 6, %dx
	outb	%al, %dx
	movb	%cl, %al
	movw	$ATA + 2, %dx
	outb	%al, %dx
	movb	%bl, %al
	incl	%edx
	outb	%al, %dx
	movb	%bh, %al
	incl	%edx
	outb	%al, %dx
	movl	%ebx, %eax
	shrl	$16, %eax
	incl	%edx
	outb	%al, %dx
	movb	$READ_SECTORS, %al
	movw	$ATA + 7, %dx
	outb	%al, %dx
	movl	%ecx, %ebx
2:	movw	$ATA + 7, %dx
	inb	%dx, %al
	testb	$BUSY, %al
	jnz	2b
	testb	$ERROR, %al
	jnz	fail32
	testb	$REQUEST, %al
	jz	2b
	movw	$ATA, %dx
	movl	$512 / 4, %ecx
	rep insl
	decl	%ebx
	jnz	2b
	movl	%edi, (%esp)    /* the EDI that popal takes */
	popal
	ret

fail32:
	movb	$'D', %al
	movw	$COM1, %dx
	outb	%al, %dx
3:	hlt
	jmp	3b

loaded:
	movl	$MAP, %esi
	movl	$PARAMS + PARAMS_MAP, %edi
	movl	%ebp, %ecx
	subl	%esi, %ecx
	movl	%ecx, %eax
	rep movsb
	xorl	%edx, %edx
	movl	$MAP_ENTRY, %ecx
	divl	%ecx
	movb	%al, PARAMS + PARAMS_MAP_COUNT

	movl	%cr4, %eax
	orl	$1 << 5, %eax   /* PAE */
	movl	%eax, %cr4
	movl	$PAGE_TABLES, %eax
	movl	%eax, %cr3
	movl	$EFER, %ecx
	rdmsr
	orl	$1 << 8, %eax   /* LME */
	wrmsr
	movl	%cr0, %eax
	orl	$1 << 31, %eax  /* PG */
	movl	%eax, %cr0
	ljmpl	$CODE64, $long_mode

	.code64
long_mode:
	movl	$PARAMS, %esi
	movl	$LIST, %eax
	jmp	*(%rax)

	.balign 8
gdt:	.quad	0
	.quad	0x00cf9b000000ffff
	.quad	0x00af9b000000ffff
	.quad	0x00cf93000000ffff
table:	.word	table - gdt - 1
	.long	gdt

	.org	0x1fe
	.word	0xaa55
