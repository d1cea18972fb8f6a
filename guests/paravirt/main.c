/* From the boot information to the program's first instruction. */
#include "console.h"
#include "cpu.h"
#include "kernel.h"
#include "linux.h"

#define TSS_AVAILABLE 0x89ul /* a TSS descriptor's type, with the present bit */
#define FLAGS_OFF 0x47700    /* by SYSCALL: TF, IF, DF, IOPL, NT, AC */
#define EFER_NXE 0x800
#define CR0_MP 0x2
#define CR0_EM 0x4
#define CR0_TS 0x8
#define CR4_FSGSBASE 0x10000
#define CR4_OSXSAVE 0x40000
#define CPUID_XSAVE (1u << 26)   /* leaf 1, ECX */
#define CPUID_FSGSBASE 1u        /* leaf 7, EBX */
#define XCR0_AVX 0x7             /* x87, SSE, AVX */
#define XCR0_AVX512 0xe0         /* its mask registers, upper halves, upper registers: all or none */
#define SLOT 0x200000ul          /* what one entry of a page directory maps */

enum { FAULT_BY_WRITE = 2, FAULT_BY_FETCH = 16 }; /* in a page fault's error code */

const struct paravirt_boot *boot;

/* ---- the host: one struct is enough for one CPU */

uint64_t gpa_of(const void *kernel_address)
{
    uint64_t at = (uint64_t)kernel_address;
    return at - (at >= KERNEL_BASE ? KERNEL_BASE : DIRECT);
}

int64_t ask3(uint32_t number, uint64_t arg0, uint64_t arg1, uint64_t arg2)
{
    static struct hypercall call = {.abi = HYPERCALL_ABI_VERSION};
    call.number = number;
    call.arg[0] = arg0;
    call.arg[1] = arg1;
    call.arg[2] = arg2;
    out32(HYPERCALL_PORT, (uint32_t)gpa_of(&call));
    return *(volatile int64_t *)&call.result; /* the host has written it */
}

int64_t ask(uint32_t number, uint64_t arg0, uint64_t arg1)
{
    return ask3(number, arg0, arg1, 0);
}

void console_write(const char *bytes, unsigned long size) /* for printf(), from our own stack */
{
    ask(HC_CONSOLE_WRITE, gpa_of(bytes), size);
}

/* ---- the CPU */

/* SDM Vol. 3A, figure 8-11. Of it all the CPU needs here is the stack for coming into ring 0. */
static struct {
    uint32_t reserved;
    uint64_t rsp0;
    uint64_t others[11];
    uint16_t reserved2, io_map;
} __attribute__((packed)) tss = {.io_map = sizeof tss}; /* no I/O map: ring 3 may use no port */

static void load_tables(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) gdt;
    uint64_t at = (uint64_t)&tss, *descriptor;
    asm volatile("sgdt %0" : "=m"(gdt));
    gdt.base += DIRECT; /* the lower half will be the program's */
    asm volatile("lgdt %0" : : "m"(gdt));
    tss.rsp0 = (uint64_t)kernel_stack_end;
    descriptor = (uint64_t *)(gdt.base + TSS_SELECTOR);
    descriptor[0] = (sizeof tss - 1) | (at & 0xffffff) << 16 | TSS_AVAILABLE << 40 | (at >> 24 & 0xff) << 56;
    descriptor[1] = at >> 32;
    asm volatile("ltr %w0" : : "r"(TSS_SELECTOR));
}

static void switch_features_on(void)
{
    uint64_t cr0, cr4;
    asm volatile("mov %%cr0, %0" : "=r"(cr0));
    asm volatile("mov %0, %%cr0" : : "r"((cr0 | CR0_MP) & ~(uint64_t)(CR0_EM | CR0_TS)));
    asm volatile("mov %%cr4, %0" : "=r"(cr4)); /* the machine has set OSFXSR and OSXMMEXCPT */
    if (cpuid(0, 0).eax >= 7 && cpuid(7, 0).ebx & CPUID_FSGSBASE)
        cr4 |= CR4_FSGSBASE;
    if (cpuid(1, 0).ecx & CPUID_XSAVE)
        cr4 |= CR4_OSXSAVE;
    asm volatile("mov %0, %%cr4" : : "r"(cr4));
    if (cr4 & CR4_OSXSAVE) {
        uint32_t has = cpuid(0xd, 0).eax, use = has & XCR0_AVX;
        if ((has & XCR0_AVX512) == XCR0_AVX512 && use == XCR0_AVX)
            use |= XCR0_AVX512;
        asm volatile("xsetbv" : : "a"(use), "d"(0), "c"(0));
    }
}

static void open_syscalls(void)
{
    write_msr(MSR_STAR, (uint64_t)USER_CODE32 << 48 | (uint64_t)KERNEL_CODE64 << 32);
    write_msr(MSR_LSTAR, (uint64_t)syscall_entry);
    write_msr(MSR_FMASK, FLAGS_OFF);
    write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_SCE | EFER_NXE);
}

/* Our own pages one by one, with the rights that they need; and no lower half any more. */
static void close_pages(void)
{
    static uint64_t tables[3][PAGE / 8] __attribute__((aligned(PAGE)));
    uint64_t *pml4 = direct(read_cr3()), text_end = gpa_of(kernel_text_end), end = gpa_of(kernel_end);
    for (uint64_t at = gpa_of(kernel_start); at < end && at < SLOT; at += PAGE)
        tables[2][at / PAGE] = at | PRESENT | (at < text_end ? 0 : WRITABLE | NO_EXECUTE);
    tables[1][0] = gpa_of(tables[2]) | PRESENT | WRITABLE;
    tables[0][510] = gpa_of(tables[1]) | PRESENT | WRITABLE;
    pml4[256] |= NO_EXECUTE;
    pml4[511] = gpa_of(tables[0]) | PRESENT | WRITABLE;
    pml4[0] = 0;
    write_cr3(read_cr3());
}

/* ---- exceptions */

static unsigned signal_of(uint64_t vector)
{
    switch (vector) {
    case DIVIDE_ERROR:
    case 16: /* x87 */
    case 19: /* SSE */
        return SIGFPE;
    case 1:
    case BREAKPOINT:
        return SIGTRAP;
    case INVALID_OPCODE:
        return SIGILL;
    case 17: /* alignment */
        return SIGBUS;
    default:
        return SIGSEGV;
    }
}

static void on_page_fault(struct frame *frame)
{
    uint64_t address = read_cr2();
    unsigned prot = frame->error & FAULT_BY_FETCH   ? PROT_EXEC
                    : frame->error & FAULT_BY_WRITE ? PROT_WRITE
                                                    : PROT_READ;
    switch (area_fault(address, prot)) {
    case FAULT_OK:
        return;
    case FAULT_PAST_FILE:
        kill_program(FAULT_FILE_END, SIGBUS, frame, 0);
    case FAULT_NO_FRAME:
        kill_program(FAULT_NO_MEMORY, SIGKILL, frame, 0);
    default:
        kill_program(area_is_below_stack(address) ? FAULT_STACK : FAULT_EXCEPTION, SIGSEGV, frame, 0);
    }
}

static void on_exception(struct frame *frame)
{
    if (!(frame->cs & 3)) { /* our own mistake */
        printf("paravirtual kernel: exception %lu, error code %lx, at %lx, cr2 %lx\n", frame->vector, frame->error,
               frame->rip, read_cr2());
        out8(PORT_PANIC, 1);
    } else if (frame->vector == PAGE_FAULT) {
        on_page_fault(frame);
    } else {
        kill_program(FAULT_EXCEPTION, signal_of(frame->vector), frame, 0);
    }
}

static void catch_exceptions(void)
{
    interrupts_init();
    for (unsigned vector = 0; vector < 32; vector++)
        on_vector(vector, on_exception);
    set_gate(PAGE_FAULT, page_fault_entry);
    open_gate(BREAKPOINT);
}

void kernel_main(uint64_t boot_gpa) /* called by start.S */
{
    struct start start;
    catch_exceptions();
    load_tables();
    switch_features_on();
    open_syscalls();
    boot = direct(boot_gpa);
    if (!boot_gpa || boot->magic != PARAVIRT_MAGIC || boot->version != PARAVIRT_VERSION) {
        printf("paravirtual kernel: no boot information; start it with `pykvm run --paravirt PROGRAM`\n");
        out8(PORT_PANIC, 1);
    }
    close_pages();
    frames_init();
    trace_init();
    files_init();
    if (exec_load(&start)) {
        printf("paravirtual kernel: the program does not fit into memory; give the guest more\n");
        end_program(127);
    }
    enter_ring3(start.rip, start.rsp);
}
