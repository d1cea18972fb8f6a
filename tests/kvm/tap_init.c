/* The first process of a Linux guest whose system calls are counted from outside: it makes known ones, counts
 * them itself, prints how many, and has the machine restarted. It uses no library: every call is one of these.
 *
 * The kernel's command line gives LOOPS, as "loops=10000": so many getpid() in each of two processes at once. */
enum {
    READ = 0, WRITE = 1, OPEN = 2, PIPE = 22, NANOSLEEP = 35, GETPID = 39, FORK = 57,
    EXECVE = 59, EXIT = 60, WAIT4 = 61, KILL = 62, SIGACTION = 13, SIGRETURN = 15,
    GETPPID_32 = 64, ALARM = 37, PAUSE = 34, REBOOT = 169,
};
enum { SIGALRM = 14, SA_RESTORER = 0x4000000 };
#define RESTART 0x1234567

__attribute__((used)) volatile unsigned long count;

static long call4(long number, long a, long b, long c, long d)
{
    register long r10 __asm__("r10") = d;
    long result;
    count++;
    __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}

static long call(long number, long a, long b, long c)
{
    return call4(number, a, b, c, 0);
}

static long call_by_interrupt(long number)
{
    long result;
    count++;
    __asm__ volatile("int $0x80" : "=a"(result) : "0"(number) : "memory");
    return result;
}

static void put(const char *text)
{
    long length = 0;
    while (text[length])
        length++;
    call(WRITE, 1, (long)text, length);
}

static void put_number(unsigned long value)
{
    char text[24];
    int at = sizeof text;
    do
        text[--at] = '0' + value % 10;
    while (value /= 10);
    call(WRITE, 1, (long)text + at, sizeof text - at);
}

static void on_alarm(int number)
{
    (void)number;
}

__attribute__((naked)) static void restore(void)
{
    __asm__("lock incq count(%rip); mov $15, %eax; syscall");
}

static void interrupted_sleep(void)
{
    struct { void *handler; unsigned long flags; void (*restorer)(void); unsigned long mask; } action = {
        on_alarm, SA_RESTORER, restore, 0};
    struct { long seconds, ns; } long_time = {100, 0};
    call4(SIGACTION, SIGALRM, (long)&action, 0, 8);
    call(ALARM, 1, 0, 0);
    call(NANOSLEEP, (long)&long_time, 0, 0); /* -EINTR, by way of the handler and its rt_sigreturn */
}

static unsigned long number_of(const char *text)
{
    unsigned long value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (unsigned long)(*text++ - '0');
    return value;
}

/* "loops=N" of the environment: Linux puts unknown words of its command line there. */
static unsigned long loops_wanted(char **environment)
{
    for (; *environment; environment++) {
        const char *key = "loops=", *at = *environment;
        while (*key && *key == *at)
            key++, at++;
        if (!*key)
            return number_of(at);
    }
    return 1000;
}

__attribute__((used)) static void start(long *stack)
{
    char **environment = (char **)stack + 1 + stack[0] + 1;
    unsigned long loops = loops_wanted(environment), of_child = 0;
    int ends[2], status = 0;
    long child;
    call(PIPE, (long)ends, 0, 0);
    child = call(FORK, 0, 0, 0);
    if (!child)
        count = 0;
    for (unsigned long i = 0; i < loops; i++)
        call(GETPID, 0, 0, 0);
    if (!child) {
        unsigned long in_all = count + 2; /* with the write, and the exit that does not return */
        call(WRITE, ends[1], (long)&in_all, sizeof in_all);
        call(EXIT, 7, 0, 0);
    }
    call(READ, ends[0], (long)&of_child, sizeof of_child);
    call4(WAIT4, child, (long)&status, 0, 0);
    call(OPEN, (long)"/nowhere", 0, 0);
    call_by_interrupt(GETPPID_32);
    interrupted_sleep();
    put("\ncalls ");
    put_number(count + of_child + 3); /* with this, the end of the line, and the restart */
    put("\n");
    call4(REBOOT, 0xfee1dead, 672274793, RESTART, 0);
    for (;;)
        ;
}

__attribute__((naked, used)) void _start(void)
{
    __asm__("mov %rsp, %rdi; and $-16, %rsp; call start");
}
