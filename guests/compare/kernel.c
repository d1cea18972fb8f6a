/* A kernel for a PC that it takes for a real one: loads the program into ring 3 and serves it with drivers.
 *
 * It makes no hypercall and knows no device of pykvm's own. What the host wants of it, it takes from its memory,
 * by the symbols at the top: the program's words are there before it starts, the counts when it is over.
 */
#include <elf.h>

#include "cpu.h"
#include "drivers.h"
#include "interrupts.h"
#include "ring3.h"

enum { SYS_READ = 0, SYS_WRITE = 1, SYS_OPEN = 2, SYS_LSEEK = 8, SYS_GETPID = 39, SYS_EXIT = 60 };
enum { SYS_UNAME = 63, SYS_CLOCK_GETTIME = 228 };
enum { EIO = 5, EBADF = 9, EFAULT = 14, EINVAL = 22, ENXIO = 6, ENOSYS = 38 };
#define DISK_FD 3
#define KEYBOARD_COMMAND 0x64
#define RESET 0xfe
#define WORDS 4
#define CALLS 512
#define NAME 65

char words[WORDS][16] = {"program"};     /* argv; the host writes the others */
uint64_t syscall_counts[CALLS];          /* of each number, for the host to read */
extern const char program[];             /* program.S: the ELF file */
extern char program_stack_end[];
static uint32_t sectors, next_sector;

/* ---- the end: a PC has no exit code */

static _Noreturn void power_down(int is_well)
{
    if (!is_well)
        out8(KEYBOARD_COMMAND, RESET);
    for (;;)
        asm volatile("cli; hlt");
}

/* ---- system calls */

static int is_programs(long address, unsigned long size)
{
    unsigned long start = (unsigned long)user_start, end = (unsigned long)user_end, at = (unsigned long)address;
    return at >= start && at <= end && size <= end - at;
}

static long sys_write(long fd, long from, unsigned long size)
{
    if (fd != 1 && fd != 2)
        return -EBADF;
    if (!is_programs(from, size))
        return -EFAULT;
    uart_write((const char *)from, size);
    return (long)size;
}

static long sys_open(void)
{
    sectors = disk_init();
    return sectors ? DISK_FD : -ENXIO;
}

static long sys_read(long fd, long to, unsigned long size)
{
    if (fd != DISK_FD || !sectors)
        return -EBADF;
    if (size != SECTOR || to % 2)
        return -EINVAL;
    if (!is_programs(to, size))
        return -EFAULT;
    if (next_sector >= sectors)
        return 0;
    return disk_read(next_sector++, (uint16_t *)to) ? -EIO : SECTOR;
}

static long sys_lseek(long fd, long to, long from)
{
    if (fd != DISK_FD)
        return -EBADF;
    if (from || to < 0 || to % SECTOR || to / SECTOR > sectors)
        return -EINVAL;
    next_sector = (uint32_t)(to / SECTOR);
    return to;
}

static long sys_clock_gettime(long clock, long to)
{
    int64_t *time = (int64_t *)to;
    if (clock) /* CLOCK_REALTIME is the one there is */
        return -EINVAL;
    if (to % 8 || !is_programs(to, 2 * sizeof *time))
        return -EFAULT;
    time[0] = rtc_seconds();
    time[1] = 0; /* the chip knows no more */
    return 0;
}

static long sys_uname(long to)
{
    static const char name[6][NAME] = {"drivers", "pc", "1", "1", "x86_64", ""}; /* struct new_utsname */
    char *at = (char *)to;
    if (!is_programs(to, sizeof name))
        return -EFAULT;
    for (unsigned i = 0; i < sizeof name; i++)
        at[i] = ((const char *)name)[i];
    return 0;
}

long handle_syscall(long number, long arg0, long arg1, long arg2)
{
    if (number >= 0 && number < CALLS)
        syscall_counts[number]++;
    switch (number) {
    case SYS_READ:
        return sys_read(arg0, arg1, (unsigned long)arg2);
    case SYS_WRITE:
        return sys_write(arg0, arg1, (unsigned long)arg2);
    case SYS_OPEN:
        return sys_open();
    case SYS_LSEEK:
        return sys_lseek(arg0, arg1, arg2);
    case SYS_GETPID:
        return 1; /* there is no other */
    case SYS_UNAME:
        return sys_uname(arg0);
    case SYS_CLOCK_GETTIME:
        return sys_clock_gettime(arg0, arg1);
    case SYS_EXIT:
        power_down(!arg0);
    }
    return -ENOSYS;
}

/* ---- the program */

static void on_fault(struct frame *frame __attribute__((unused)))
{
    power_down(0);
}

static const void *load(void)
{
    const Elf64_Ehdr *elf = (const Elf64_Ehdr *)program;
    const Elf64_Phdr *part = (const Elf64_Phdr *)(program + elf->e_phoff);
    for (const Elf64_Phdr *end = part + elf->e_phnum; part < end; part++) {
        void *to = (void *)part->p_vaddr;
        const void *from = program + part->p_offset;
        uint64_t size = part->p_filesz;
        if (part->p_type == PT_LOAD)
            asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
    }
    return (const void *)elf->e_entry;
}

/* As every Linux program finds it: the number of words, their addresses, a NULL. */
static void *push_words(void)
{
    uint64_t end = (uint64_t)program_stack_end;
    char(*copy)[sizeof *words] = (void *)(end - sizeof words);
    uint64_t *stack = (uint64_t *)copy - (2 + WORDS);
    for (unsigned i = 0; i < WORDS; i++) {
        for (unsigned at = 0; at < sizeof *words; at++)
            copy[i][at] = words[i][at];
        stack[1 + i] = (uint64_t)copy[i];
    }
    stack[0] = WORDS;
    stack[1 + WORDS] = 0;
    return stack;
}

int main(void)
{
    uart_init();
    interrupts_init();
    for (unsigned vector = 0; vector < 32; vector++)
        on_vector(vector, on_fault);
    ring3_init();
    enter_ring3(load(), push_words());
}
