/* The work that `pykvm compare` measures: program WORKLOAD N [DISK], a Linux program without a C library.
 *
 * The same file runs everywhere: as a process of the host, on a kernel that drives emulated devices, and on one
 * that makes hypercalls. It makes system calls and no more, so all that differs is what they turn into.
 */
#include <stdint.h>

enum { SYS_READ = 0, SYS_WRITE = 1, SYS_OPEN = 2, SYS_CLOSE = 3, SYS_FSTAT = 5, SYS_LSEEK = 8, SYS_GETPID = 39, SYS_EXIT = 60 };
enum { SYS_UNAME = 63, SYS_READLINK = 89, SYS_CLOCK_GETTIME = 228 };
enum { LINE = 64, SECTOR = 512, ROUNDS = 10000, NAME = 65, STAT_WORDS = 18 };
#define YEAR_2020 1577836800

static long ask(long number, long arg0, long arg1, long arg2)
{
    asm volatile("syscall"
                 : "+a"(number), "+D"(arg0), "+S"(arg1), "+d"(arg2)
                 :
                 : "rcx", "r8", "r9", "r10", "r11", "memory");
    return number;
}

static void put_number(char *to, unsigned digits, uint64_t n, unsigned base)
{
    while (digits--) {
        to[digits] = "0123456789abcdef"[n % base];
        n /= base;
    }
}

static int put_sum(uint64_t sum) /* what the work came to: the same in every column */
{
    char line[] = "0123456789abcdef\n";
    put_number(line, 16, sum, 16);
    return ask(SYS_WRITE, 1, (long)line, 17) != 17;
}

/* ---- the workloads: 0 is success */

static int print(unsigned long n, const char *disk __attribute__((unused)))
{
    char line[] = "line 00000000: the same text, and a system call to print it ...\n";
    _Static_assert(sizeof line == LINE + 1, "a line has LINE bytes");
    for (unsigned long i = 0; i < n; i++) {
        put_number(line + 5, 8, i, 10);
        if (ask(SYS_WRITE, 1, (long)line, LINE) != LINE)
            return 1;
    }
    return 0;
}

static int blocks(unsigned long n, const char *disk)
{
    static uint64_t sector[SECTOR / 8] __attribute__((aligned(SECTOR)));
    long fd = ask(SYS_OPEN, (long)disk, 0, 0);
    uint64_t sum = 0;
    if (fd < 0)
        return 1;
    for (unsigned long i = 0; i < n; i++) {
        long got = ask(SYS_READ, fd, (long)sector, SECTOR);
        if (!got) { /* the end: from the beginning again */
            ask(SYS_LSEEK, fd, 0, 0);
            got = ask(SYS_READ, fd, (long)sector, SECTOR);
        }
        if (got != SECTOR)
            return 2;
        for (unsigned word = 0; word < SECTOR / 8; word++)
            sum = (sum ^ sector[word]) * 0x100000001b3;
    }
    return put_sum(sum);
}

static int ask_time(unsigned long n, const char *disk __attribute__((unused)))
{
    int64_t now[2] = {YEAR_2020, 0}, last = 0;
    for (unsigned long i = 0; i < n; i++) {
        if (ask(SYS_CLOCK_GETTIME, 0, (long)now, 0) || now[0] < YEAR_2020 || now[0] < last)
            return 1;
        last = now[0];
    }
    return 0;
}

static int compute(unsigned long n, const char *disk __attribute__((unused)))
{
    uint64_t x = 88172645463325252; /* xorshift64 of G. Marsaglia, "Xorshift RNGs", 2003 */
    for (unsigned long i = 0; i < n * ROUNDS; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    return put_sum(x);
}

static int getpid(unsigned long n, const char *disk __attribute__((unused)))
{
    for (unsigned long i = 0; i < n; i++)
        if (ask(SYS_GETPID, 0, 0, 0) <= 0)
            return 1;
    return 0;
}

static int files(unsigned long n, const char *disk __attribute__((unused))) /* a name is looked up in what is mounted */
{
    uint64_t about[STAT_WORDS];
    for (unsigned long i = 0; i < n; i++) {
        long fd = ask(SYS_OPEN, (long)"/", 0, 0);
        if (fd < 0 || ask(SYS_FSTAT, fd, (long)about, 0) || ask(SYS_CLOSE, fd, 0, 0))
            return 1;
    }
    return 0;
}

static void put_line(const char *text)
{
    long size = 0;
    while (text[size])
        size++;
    ask(SYS_WRITE, 1, (long)text, size);
    ask(SYS_WRITE, 1, (long)"\n", 1);
}

static void put_line_of(const char *path, int is_link) /* an empty line where there is no /proc */
{
    char text[128];
    long got, fd = is_link ? -1 : ask(SYS_OPEN, (long)path, 0, 0);
    got = is_link ? ask(SYS_READLINK, (long)path, (long)text, sizeof text - 1) : ask(SYS_READ, fd, (long)text, sizeof text - 1);
    text[got > 0 ? got : 0] = 0;
    for (char *at = text; *at; at++)
        if (*at == '\n')
            *at = 0;
    put_line(text);
}

static int look(unsigned long n __attribute__((unused)), const char *disk __attribute__((unused))) /* where am I? */
{
    static char name[6][NAME]; /* struct new_utsname */
    char pid[] = "00000000";
    if (ask(SYS_UNAME, (long)name, 0, 0))
        return 1;
    put_line(name[0]);
    put_line(name[2]);
    put_line(name[1]);
    put_number(pid, 8, (uint64_t)ask(SYS_GETPID, 0, 0, 0), 10);
    put_line(pid);
    put_line_of("/proc/self/ns/pid", 1);
    put_line_of("/proc/self/statm", 0);
    return 0;
}

static const struct {
    char name[8];
    int (*run)(unsigned long n, const char *disk);
} workloads[] = {{"print", print}, {"blocks", blocks}, {"time", ask_time}, {"compute", compute},
                 {"getpid", getpid}, {"files", files}, {"look", look}};

static int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static int start(long words, char **word)
{
    unsigned long n = 0;
    if (words < 3)
        return 100;
    for (const char *digit = word[2]; *digit; digit++)
        n = n * 10 + (unsigned)(*digit - '0');
    for (unsigned i = 0; i < sizeof workloads / sizeof *workloads; i++)
        if (same(word[1], workloads[i].name))
            return workloads[i].run(n, words > 3 ? word[3] : "");
    return 101;
}

void begin(long *stack) /* called by _start: the words' number and addresses, as every kernel leaves them */
{
    ask(SYS_EXIT, start(stack[0], (char **)(stack + 1)), 0, 0);
}

asm(".section .text.start, \"ax\"\n .globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call begin\n ud2");
