/* The program of test_paravirt.py: an ordinary Linux program. Its first argument says what to do; what goes as it
 * should is "ok" and status 0, and what does not is one line and status 1. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define CHECK(is_true)                                                            \
    do {                                                                          \
        if (!(is_true)) {                                                         \
            printf("line %d: %s (errno %d)\n", __LINE__, #is_true, errno);        \
            exit(1);                                                              \
        }                                                                         \
    } while (0)
#define FAILS(error, call)      \
    do {                        \
        errno = 0;              \
        CHECK((call) == -1);    \
        CHECK(errno == (error)); \
    } while (0)

#define PAGE 4096ul
#define KERNEL 0xffffffff80100000ul
#define DIRECT 0xffff800000100000ul

extern char **environ;
static int argc;
static char **argv;

static int ok(void)
{
    puts("ok");
    return 0;
}

static unsigned long number(int i) { return argc > i ? strtoul(argv[i], NULL, 0) : 0; }

static void *pages(unsigned long count, int prot)
{
    void *at = mmap(NULL, count * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

/* ---- plain life */

static int do_hello(void)
{
    printf("hello, %s\n", argc > 2 ? argv[2] : "world");
    return (int)number(3);
}

static int do_words(void)
{
    for (int i = 2; i < argc; i++)
        printf("%d=%s\n", i, argv[i]);
    for (char **word = environ; *word; word++)
        puts(*word);
    return 0;
}

static __thread int of_this_thread = 41;

static int do_floats(void)
{
    double sum = 0;
    float line[256], many = 0;
    of_this_thread++;
    for (int i = 1; i <= 1000; i++)
        sum += sqrt(i) * sin(i);
    for (int i = 0; i < 256; i++)
        line[i] = (float)i;
    for (int i = 0; i < 256; i++)
        many += line[i] * line[255 - i];
    printf("%.9f %.1f %.3Lf %d\n", sum, many, 1.0L / 3, of_this_thread);
    return 0;
}

static int do_heap(void)
{
    static unsigned char *block[500];
    static size_t size[500];
    uint64_t seed = 1, total = 0;
    for (int i = 0; i < 4000; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        unsigned at = seed >> 33 & 255, shift = seed >> 50 & 15;
        size_t wanted = 1 + (seed >> 40) % (16u << (shift > 13 ? 13 : shift));
        for (size_t n = 0; n < size[at]; n += 97)
            CHECK(block[at][n] == (unsigned char)(at + n));
        block[at] = realloc(block[at], wanted);
        CHECK(block[at]);
        size[at] = wanted;
        for (size_t n = 0; n < wanted; n += 97)
            block[at][n] = (unsigned char)(at + n);
        total += wanted;
    }
    for (int i = 0; i < 500; i++)
        free(block[i]);
    printf("%lu\n", (unsigned long)total);
    return 0;
}

static int do_identity(void)
{
    struct utsname name;
    struct rlimit limit;
    char text[100] = "";
    CHECK(!uname(&name) && !strcmp(name.sysname, "Linux") && !strcmp(name.machine, "x86_64"));
    CHECK(getpid() == gettid() && getpid() > 1 && getppid() == 1 && !getuid() && !getegid());
    CHECK(!getrlimit(RLIMIT_STACK, &limit) && limit.rlim_cur == 8 << 20);
    CHECK(getcwd(text, sizeof text) && !strcmp(text, "/"));
    CHECK(readlink("/proc/self/exe", text, sizeof text) == (long)strlen(argv[2]) && !memcmp(text, argv[2], strlen(argv[2])));
    CHECK(!isatty(0) && errno == ENOTTY && !isatty(1));
    CHECK(sysconf(_SC_NPROCESSORS_ONLN) == 1 && sysconf(_SC_PAGESIZE) == 4096);
    FAILS(EINVAL, setpriority(99, 0, 0) == -1 && errno == ENOSYS ? (errno = EINVAL, -1) : 0);
    return ok();
}

static int do_time(void)
{
    struct timespec start, now, nap = {0, 20000000};
    struct timeval day;
    time_t seconds = time(NULL);
    CHECK(!clock_gettime(CLOCK_MONOTONIC, &start));
    CHECK(!nanosleep(&nap, NULL));
    CHECK(!clock_gettime(CLOCK_MONOTONIC, &now));
    long slept = (now.tv_sec - start.tv_sec) * 1000000000 + now.tv_nsec - start.tv_nsec;
    CHECK(slept >= nap.tv_nsec);
    CHECK(!gettimeofday(&day, NULL) && day.tv_sec - seconds >= 0 && day.tv_sec - seconds < 60);
    FAILS(EINVAL, clock_gettime(99, &now));
    printf("%ld\n", (long)seconds);
    return 0;
}

static int do_random(void)
{
    unsigned char one[64], other[64];
    int fd = open("/dev/urandom", O_RDONLY);
    CHECK(getrandom(one, sizeof one, 0) == sizeof one && read(fd, other, sizeof other) == sizeof other);
    CHECK(memcmp(one, other, sizeof one));
    unsigned char *much = pages(1024, PROT_READ | PROT_WRITE);
    CHECK(getrandom(much, 1024 * PAGE, 0) == 1024 * PAGE && much[1024 * PAGE - 1] + much[1024 * PAGE - 2] * 256 + much[PAGE]);
    return ok();
}

/* ---- output and input */

static int do_print(void) /* `size` bytes in pieces of `piece` */
{
    unsigned long size = number(2), piece = number(3);
    char *text = malloc(piece);
    for (unsigned long i = 0; i < piece; i++)
        text[i] = i % 64 == 63 ? '\n' : 'a' + i / 64 % 26;
    for (unsigned long done = 0; done < size; done += piece)
        CHECK(write(1, text, piece) == (long)piece);
    return 0;
}

static int do_writev(void)
{
    static char large[200000];
    struct iovec parts[3] = {{"one ", 4}, {large, sizeof large}, {" three\n", 7}};
    memset(large, '2', sizeof large);
    CHECK(writev(1, parts, 3) == 4 + 7 + (long)sizeof large);
    CHECK(writev(1, NULL, 0) == 0);
    FAILS(EINVAL, writev(1, parts, -1));
    parts[1].iov_base = (void *)8;
    CHECK(writev(1, parts, 3) == 4);
    return 0;
}

static int do_echo(void)
{
    char line[200];
    for (int n = 1; fgets(line, sizeof line, stdin); n++)
        printf("%d %s", n, line);
    CHECK(feof(stdin) && !ferror(stdin));
    return 7;
}

static int do_ask(void) /* says so when it waits */
{
    char text[100];
    struct pollfd input = {0, POLLIN, 0};
    CHECK(poll(&input, 1, 0) == 0 && poll(&input, 1, 1) == 0);
    CHECK(write(1, "? ", 2) == 2);
    CHECK(poll(&input, 1, -1) == 1 && input.revents == POLLIN);
    long n = read(0, text, sizeof text);
    CHECK(n > 0 && write(1, text, n) == n);
    CHECK(read(0, text, sizeof text) == 0);
    return 0;
}

/* ---- files */

static int do_cat(void)
{
    static char text[3000];
    int fd = open(argv[2], O_RDONLY);
    long n;
    struct stat about;
    CHECK(fd == 3 && !fstat(fd, &about) && S_ISREG(about.st_mode));
    while ((n = read(fd, text, sizeof text)) > 0)
        CHECK(write(1, text, n) == n);
    CHECK(n == 0 && lseek(fd, 0, SEEK_CUR) == about.st_size);
    return 0;
}

static int do_files(void) /* /data: 10,000 bytes, each its offset modulo 251 */
{
    struct stat about, same;
    unsigned char byte[8], *map;
    int fd = open("data", O_RDONLY), other;
    CHECK(fd == 3 && !fstat(fd, &about) && about.st_size == 10000 && (about.st_mode & S_IFMT) == S_IFREG);
    CHECK(!stat("/folder/../data", &same) && same.st_ino == about.st_ino);
    CHECK(pread(fd, byte, 8, 9998) == 2 && byte[1] == 9999 % 251 && pread(fd, byte, 8, 10000) == 0);
    CHECK(lseek(fd, -3, SEEK_END) == 9997 && read(fd, byte, 8) == 3 && byte[0] == 9997 % 251);
    FAILS(EINVAL, lseek(fd, -1, SEEK_SET));
    FAILS(ESPIPE, lseek(1, 0, SEEK_SET));
    map = mmap(NULL, 4 * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(map != MAP_FAILED && map[9999] == 9999 % 251 && map[10000] == 0 && map[3 * PAGE - 1] == 0);
    FAILS(EFAULT, write(1, map + 3 * PAGE, 1)); /* behind the end of the file */
    map = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, PAGE);
    CHECK(map != MAP_FAILED && map[0] == PAGE % 251);
    map[0] = 99;
    CHECK(pread(fd, byte, 1, PAGE) == 1 && byte[0] == PAGE % 251 && map[0] == 99);
    FAILS(EACCES, (long)mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, fd, 0));
    FAILS(EBADF, (long)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, 99, 0));
    CHECK(lseek(fd, 5, SEEK_SET) == 5 && (other = dup(fd)) == 4 && read(other, byte, 1) == 1 && byte[0] == 5);
    CHECK(read(fd, byte, 1) == 1 && byte[0] == 6); /* one offset for both */
    CHECK(dup2(fd, 20) == 20 && !close(fd) && read(20, byte, 1) == 1 && byte[0] == 7 && !close(20));
    FAILS(EBADF, read(fd, byte, 1));
    FAILS(EBADF, close(fd));
    CHECK(fcntl(4, F_DUPFD, 10) == 10 && fcntl(4, F_GETFL) == O_RDONLY && !fcntl(4, F_SETFD, FD_CLOEXEC));
    CHECK(fcntl(4, F_GETFD) == FD_CLOEXEC);
    FAILS(ENOENT, open("/nothing", O_RDONLY));
    FAILS(ENOENT, open("", O_RDONLY));
    FAILS(EROFS, open("/nothing", O_CREAT | O_WRONLY, 0644));
    FAILS(EROFS, open("/data", O_RDWR));
    FAILS(EROFS, access("/data", W_OK));
    FAILS(ENOTDIR, open("/data", O_RDONLY | O_DIRECTORY));
    FAILS(EBADF, write(4, "x", 1));
    FAILS(EINVAL, readlink("/data", (char *)byte, 8));
    CHECK(!access("/data", R_OK) && !access("/folder", F_OK));
    CHECK((fd = open("/folder", O_RDONLY | O_DIRECTORY)) == 3 && (other = openat(fd, "inner.txt", O_RDONLY)) == 5);
    CHECK(read(other, byte, 8) == 5 && !memcmp(byte, "inner", 5));
    FAILS(EISDIR, read(fd, byte, 1));
    CHECK(open("/dev/null", O_WRONLY) == 6 && write(6, byte, 8) == 8 && open("/dev/zero", O_RDONLY) == 7);
    CHECK(read(7, byte, 8) == 8 && !byte[0] && !byte[7]);
    while (open("/data", O_RDONLY) >= 0)
        ;
    CHECK(errno == EMFILE || errno == ENFILE);
    return ok();
}

static int do_disk(void) /* 40 sectors, in which byte i is i * 7 >> 3: to any address, at its end */
{
    int fd = open("/dev/disk", O_RDONLY);
    unsigned char *to = pages(10, PROT_READ | PROT_WRITE);
    struct stat about;
    if (argc > 2) { /* there is none */
        CHECK(fd < 0 && errno == ENXIO);
        return ok();
    }
    for (unsigned page = 10; page--;)
        to[page * PAGE] = 0; /* from the last on: what are neighbours here are none in the guest's memory */
    CHECK(!fstat(fd, &about) && S_ISBLK(about.st_mode) && lseek(fd, 0, SEEK_END) == 40 * 512);
    for (unsigned at = 0; at < 700; at += 99) {
        CHECK(pread(fd, to + at, 20 * 512, 3 * 512) == 20 * 512);
        for (unsigned i = 0; i < 20 * 512; i++)
            CHECK(to[at + i] == (unsigned char)((i + 3 * 512) * 7 >> 3));
    }
    CHECK(pread(fd, to, 4 * 512, 38 * 512) == 2 * 512 && pread(fd, to, 512, 40 * 512) == 0);
    FAILS(EINVAL, pread(fd, to, 100, 0));
    FAILS(EINVAL, pread(fd, to, 512, 100));
    FAILS(EFAULT, pread(fd, (void *)KERNEL, 512, 0));
    FAILS(EROFS, open("/dev/disk", O_RDWR));
    FAILS(EBADF, write(fd, to, 512));
    return ok();
}

static int do_list(void)
{
    DIR *folder = opendir(argv[2]);
    CHECK(folder);
    for (struct dirent *entry; (entry = readdir(folder));)
        printf("%s%s\n", entry->d_name, entry->d_type == DT_DIR ? "/" : "");
    return 0;
}

/* ---- memory */

static int do_memory(void)
{
    unsigned char *at = pages(4, PROT_READ | PROT_WRITE), *to;
    CHECK(!at[0] && !at[4 * PAGE - 1]);
    memset(at, 7, 4 * PAGE);
    CHECK(!munmap(at + PAGE, PAGE)); /* a hole */
    FAILS(EFAULT, write(1, at + PAGE, 1));
    CHECK(write(1, at + PAGE - 1, 2) == 1); /* what is there before the hole */
    CHECK(mmap(at + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at + PAGE);
    CHECK(at[PAGE] == 0 && at[2 * PAGE] == 7);
    FAILS(EEXIST, (long)mmap(at, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
    FAILS(EFAULT, getrandom(at + PAGE, 8, 0)); /* not to be written */
    CHECK(!mprotect(at, 4 * PAGE, PROT_NONE));
    FAILS(EFAULT, write(1, at, 1));
    CHECK(!mprotect(at, 4 * PAGE, PROT_READ | PROT_WRITE) && at[0] == 7 && at[3 * PAGE] == 7);
    at[PAGE] = 8;
    CHECK(!madvise(at, PAGE, MADV_DONTNEED) && at[0] == 0 && at[PAGE] == 8);
    to = mremap(at, 4 * PAGE, 40 * PAGE, MREMAP_MAYMOVE);
    CHECK(to != MAP_FAILED && to[PAGE] == 8 && to[2 * PAGE] == 7 && to[39 * PAGE] == 0);
    FAILS(EINVAL, munmap((void *)1, PAGE));
    FAILS(EINVAL, munmap(at, 0));
    FAILS(EINVAL, (long)mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    FAILS(ENOMEM, (long)mmap(NULL, 1ul << 46, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    FAILS(ENOMEM, mprotect((void *)KERNEL, PAGE, PROT_READ));
    FAILS(EINVAL, munmap((void *)KERNEL, PAGE));
    FAILS(ENOMEM, (long)mmap((void *)0x7ffffffff000, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    CHECK(mmap(NULL, 1ul << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
    for (int i = 0; i < 30; i++) { /* used frames come back as zeros */
        unsigned char *again = pages(64, PROT_READ | PROT_WRITE);
        CHECK(!again[i % 64 * PAGE + (unsigned)i * 13 % PAGE]);
        memset(again, 0xff, 64 * PAGE);
        CHECK(!munmap(again, 64 * PAGE));
    }
    return ok();
}

static int do_areas(void) /* more areas than the kernel has room for: an error, and life goes on */
{
    char *at = pages(4000, PROT_READ | PROT_WRITE);
    int failed = 0;
    for (unsigned long i = 0; i < 4000 && !failed; i += 2)
        failed = mprotect(at + i * PAGE, PAGE, PROT_READ);
    CHECK(failed == -1 && errno == ENOMEM && !munmap(at, 4000 * PAGE));
    return ok();
}

static int do_exhaust(void)
{
    for (;;)
        memset(pages(16, PROT_READ | PROT_WRITE), 1, 16 * PAGE);
    return 0;
}

/* ---- system calls with bad arguments */

static int do_efault(void)
{
    static const uint64_t wild[] = {0, 8, 0xfff, KERNEL, DIRECT, ~0ul, ~0ul - 7, 1ul << 47, 0x8000000000000ul,
                                    0x7ffffffff000, 0x7ffffffffff8, 1ul << 63};
    struct timespec now;
    for (unsigned i = 0; i < sizeof wild / sizeof *wild; i++) {
        void *bad = (void *)wild[i];
        FAILS(EFAULT, write(1, bad, 16));
        FAILS(EFAULT, write(1, bad, ~0ul));
        FAILS(EFAULT, syscall(SYS_clock_gettime, 1, wild[i] ? bad : (void *)16));
        FAILS(EFAULT, syscall(SYS_uname, bad));
        FAILS(EFAULT, syscall(SYS_open, bad, 0));
        FAILS(EFAULT, syscall(SYS_newfstatat, AT_FDCWD, bad, &now, 0));
        FAILS(EFAULT, syscall(SYS_stat, "/", bad));
        FAILS(EFAULT, syscall(SYS_getrandom, bad, 16, 0));
        FAILS(EFAULT, syscall(SYS_writev, 1, bad, 1));
        FAILS(EFAULT, syscall(SYS_poll, bad, 1, 0));
        FAILS(EFAULT, syscall(SYS_nanosleep, bad, 0));
        FAILS(EFAULT, syscall(SYS_getcwd, bad, 100));
        FAILS(EFAULT, syscall(SYS_read, 0, bad, 10));
        FAILS(EFAULT, syscall(SYS_pread64, open("/dev/zero", 0), bad, 10, 0));
        FAILS(EFAULT, syscall(SYS_rt_sigaction, SIGUSR1, wild[i] ? bad : (void *)16, 0, 8));
        FAILS(EFAULT, syscall(SYS_futex, wild[i] & ~3ul, 0, 0, 0));
        FAILS(EFAULT, syscall(SYS_getdents64, open("/", 0), bad, 1000));
        close(3), close(4);
    }
    FAILS(EFAULT, syscall(SYS_uname, do_efault)); /* our own code may be read, not written */
    FAILS(EFAULT, syscall(SYS_arch_prctl, 0x1003, do_efault));
    FAILS(EPERM, syscall(SYS_arch_prctl, 0x1002, KERNEL));
    FAILS(EPERM, syscall(SYS_arch_prctl, 0x1002, 1ul << 47));
    return ok();
}

static int do_enosys(void)
{
    static const long missing[] = {SYS_fork, SYS_vfork, SYS_clone, SYS_execve, SYS_socket, SYS_ptrace, 333, 511, 512, 100000};
    for (unsigned i = 0; i < sizeof missing / sizeof *missing; i++)
        FAILS(ENOSYS, syscall(missing[i], 0, 0, 0, 0, 0, 0));
    FAILS(ENOSYS, syscall(-1));
    FAILS(ENOSYS, syscall(1ul << 32 | SYS_getpid));
    FAILS(ENOSYS, syscall(SYS_rseq, 0, 0, 0, 0));
    return ok();
}

static int do_registers(void) /* a system call changes RAX, RCX and R11 alone */
{
    uint64_t before[12], after[13], here, flags;
    for (int i = 0; i < 12; i++)
        before[i] = 0x1111111111111111ul * (unsigned)(i + 1);
    asm volatile(
        "push %%rbp\n push %%rcx\n"
        "mov 0(%%rax), %%rbx\n mov 8(%%rax), %%rdx\n mov 16(%%rax), %%rsi\n mov 24(%%rax), %%rdi\n"
        "mov 32(%%rax), %%rbp\n mov 40(%%rax), %%r8\n mov 48(%%rax), %%r9\n mov 56(%%rax), %%r10\n"
        "mov 64(%%rax), %%r12\n mov 72(%%rax), %%r13\n mov 80(%%rax), %%r14\n mov 88(%%rax), %%r15\n"
        "mov $39, %%eax\n stc\n syscall\n"
        "1: pop %%rax\n"
        "mov %%rbx, 0(%%rax)\n mov %%rdx, 8(%%rax)\n mov %%rsi, 16(%%rax)\n mov %%rdi, 24(%%rax)\n"
        "mov %%rbp, 32(%%rax)\n mov %%r8, 40(%%rax)\n mov %%r9, 48(%%rax)\n mov %%r10, 56(%%rax)\n"
        "mov %%r12, 64(%%rax)\n mov %%r13, 72(%%rax)\n mov %%r14, 80(%%rax)\n mov %%r15, 88(%%rax)\n"
        "mov %%rcx, 96(%%rax)\n lea 1b(%%rip), %%rcx\n mov %%r11, %%rdx\n pop %%rbp\n"
        : "=c"(here), "=d"(flags)
        : "a"(before), "c"(after)
        : "rbx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    CHECK(!memcmp(before, after, sizeof before));
    CHECK(after[12] == here && flags & 1);
    return ok();
}

/* ---- the end of it */

static volatile int zero;
static int deep(int n)
{
    volatile char room[1000];
    room[0] = (char)n;
    return n < 0 ? 0 : deep(n + 1) + room[0];
}

static int do_die(void)
{
    const char *how = argv[2];
    unsigned char *code = pages(1, PROT_READ | PROT_WRITE);
    printf("%s\n", how);
    fflush(stdout);
    code[0] = 0xc3;
    if (!strcmp(how, "null"))
        *(volatile int *)(uintptr_t)zero = 42;
    if (!strcmp(how, "text"))
        *(volatile char *)do_die = 0;
    if (!strcmp(how, "constant"))
        *(volatile char *)"constant" = 0;
    if (!strcmp(how, "data"))
        ((void (*)(void))code)();
    if (!strcmp(how, "stack-code"))
        ((void (*)(void))(uintptr_t)__builtin_frame_address(0))();
    if (!strcmp(how, "kernel"))
        return *(volatile char *)KERNEL;
    if (!strcmp(how, "direct"))
        return *(volatile char *)DIRECT;
    if (!strcmp(how, "wild"))
        return *(volatile char *)(uintptr_t)(1ul << 63 | (unsigned)zero);
    if (!strcmp(how, "ud2"))
        __builtin_trap();
    if (!strcmp(how, "divide"))
        asm volatile("idivl %0" : : "r"(zero), "a"(1), "d"(0));
    if (!strcmp(how, "int3"))
        asm volatile("int3");
    if (!strcmp(how, "hlt"))
        asm volatile("hlt");
    if (!strcmp(how, "port"))
        asm volatile("outl %%eax, %%dx" : : "a"(0), "d"(0x500));
    if (!strcmp(how, "msr"))
        asm volatile("rdmsr" : : "c"(0xc0000082) : "eax", "edx");
    if (!strcmp(how, "cr3"))
        asm volatile("mov %%cr3, %%rax" : : : "rax");
    if (!strcmp(how, "stack"))
        return deep(0);
    if (!strcmp(how, "abort"))
        abort();
    if (!strcmp(how, "raise"))
        raise(SIGUSR1);
    if (!strcmp(how, "entry")) { /* the kernel's way in, with flags and a return address that SYSCALL never makes */
        uint64_t out = 0;
        asm volatile("lea 1f(%%rip), %%rcx\n mov $0x3202, %%r11\n mov $39, %%eax\n jmp *%1\n 1: pushf\n pop %0\n"
                     : "=r"(out) : "r"(number(3)) : "rax", "rcx", "r11", "memory");
        printf("flags %lx\n", out & 0x3000);
        fflush(stdout);
        asm volatile("outl %%eax, %%dx" : : "a"(0), "d"(0x500));
    }
    if (!strcmp(how, "return"))
        asm volatile("mov $1, %%rcx\n shl $47, %%rcx\n mov $2, %%r11d\n mov $39, %%eax\n jmp *%0"
                     : : "r"(number(3)) : "rax", "rcx", "r11");
    return 1;
}

static int do_calls(void)
{
    for (unsigned long i = 0; i < number(2); i++)
        syscall(SYS_getppid);
    return 5;
}

int main(int words, char **word)
{
    static const struct {
        const char *name;
        int (*run)(void);
    } all[] = {
        {"hello", do_hello},       {"words", do_words},   {"floats", do_floats}, {"heap", do_heap},
        {"identity", do_identity}, {"time", do_time},     {"random", do_random}, {"print", do_print},
        {"writev", do_writev},     {"echo", do_echo},     {"ask", do_ask},       {"cat", do_cat},
        {"disk", do_disk},
        {"files", do_files},       {"list", do_list},     {"memory", do_memory}, {"areas", do_areas},
        {"exhaust", do_exhaust},   {"efault", do_efault}, {"enosys", do_enosys}, {"registers", do_registers},
        {"die", do_die},           {"calls", do_calls},
    };
    argc = words;
    argv = word;
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        if (argc > 1 && !strcmp(all[i].name, argv[1]))
            return all[i].run();
    return 2;
}
