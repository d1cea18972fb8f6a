/* One process with one thread: who it is, what time it is, what signals do, and how it ends. */
#include "cpu.h"
#include "kernel.h"
#include "linux.h"

#define PARENT_PID 1
#define NS 1000000000l
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define SIGNALS 64
#define STACK_LIMIT (8ul << 20)
#define FILES_LIMIT 64
#define FUTEX_OPERATION 0x7f

static const struct {
    char is[6][65];
} name = {{"Linux", "pykvm", "6.1.0-pykvm", "#1 pykvm's paravirtual kernel", "x86_64", "(none)"}};

/* ---- the end */

_Noreturn void end_program(unsigned code)
{
    for (;;)
        ask(HC_EXIT, code, 0);
}

_Noreturn void kill_program(unsigned kind, unsigned signal, const struct frame *frame, const syscall_t *call)
{
    static struct program_fault fault;
    const void *code;
    uint64_t bytes = sizeof fault.code;
    fault.kind = kind;
    fault.signal = signal;
    fault.load_base = exec_base;
    if (frame) {
        fault.vector = (uint32_t)frame->vector, fault.error = frame->error;
        fault.address = frame->vector == PAGE_FAULT ? read_cr2() : 0;
        fault.rip = frame->rip, fault.rflags = frame->rflags, fault.rsp = frame->rsp;
        fault.rax = frame->rax, fault.rbx = frame->rbx, fault.rcx = frame->rcx, fault.rdx = frame->rdx;
        fault.rsi = frame->rsi, fault.rdi = frame->rdi, fault.rbp = frame->rbp;
        fault.r8 = frame->r8, fault.r9 = frame->r9, fault.r10 = frame->r10, fault.r11 = frame->r11;
        fault.r12 = frame->r12, fault.r13 = frame->r13, fault.r14 = frame->r14, fault.r15 = frame->r15;
    } else {
        fault.rip = call->rip, fault.rsp = call->rsp;
    }
    code = user_bytes(fault.rip, &bytes, 0);
    if (code) {
        fault.code_bytes = (uint32_t)bytes;
        copy(fault.code, code, bytes);
    }
    ask(HC_FAULT, gpa_of(&fault), sizeof fault);
    end_program(128 + signal);
}

int64_t sys_exit(const syscall_t *call)
{
    trace_syscall(call, 0, 0);
    end_program(call->arg[0] & 0xff);
}

/* ---- time */

static int64_t clock_ns(uint64_t clock)
{
    static int64_t start;
    int64_t now = ask(HC_TIME, 0, 0);
    start = start ? start : now;
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
        return now + boot->realtime_ns;
    case CLOCK_PROCESS_CPUTIME_ID:
    case CLOCK_THREAD_CPUTIME_ID:
        return now - start; /* nobody else has the CPU */
    default:
        return now;
    }
}

static int is_clock(uint64_t clock)
{
    return clock <= CLOCK_BOOTTIME;
}

static int64_t put_time(uint64_t address, int64_t ns, int64_t fractions)
{
    int64_t time[2] = {ns / NS, ns % NS / (NS / fractions)};
    return !address || user_write(address, time, sizeof time) ? 0 : -EFAULT;
}

int64_t sys_clock_gettime(const syscall_t *call)
{
    return is_clock(call->arg[0]) ? put_time(call->arg[1], clock_ns(call->arg[0]), NS) : -EINVAL;
}

int64_t sys_clock_getres(const syscall_t *call)
{
    return is_clock(call->arg[0]) ? put_time(call->arg[1], 1, NS) : -EINVAL;
}

int64_t sys_gettimeofday(const syscall_t *call)
{
    uint64_t none = 0;
    if (call->arg[1] && !user_write(call->arg[1], &none, sizeof none)) /* the time zone */
        return -EFAULT;
    return put_time(call->arg[0], clock_ns(CLOCK_REALTIME), 1000000);
}

int64_t sys_time(const syscall_t *call)
{
    int64_t now = clock_ns(CLOCK_REALTIME) / NS;
    return !call->arg[0] || user_write(call->arg[0], &now, sizeof now) ? now : -EFAULT;
}

static int64_t get_time(uint64_t address, int64_t *ns) /* as much as fits */
{
    int64_t time[2];
    if (!user_read(time, address, sizeof time))
        return -EFAULT;
    if (time[0] < 0 || time[1] < 0 || time[1] >= NS)
        return -EINVAL;
    *ns = time[0] < INT64_MAX / NS ? time[0] * NS + time[1] : INT64_MAX;
    return 0;
}

int64_t sys_nanosleep(const syscall_t *call)
{
    int64_t ns, failed = get_time(call->arg[0], &ns);
    return failed ? failed : ask(HC_YIELD, (uint64_t)ns, 0);
}

int64_t sys_clock_nanosleep(const syscall_t *call)
{
    int64_t ns, failed = is_clock(call->arg[0]) ? get_time(call->arg[2], &ns) : -EINVAL;
    if (failed)
        return failed;
    if (call->arg[1] & 1) /* TIMER_ABSTIME */
        ns -= clock_ns(call->arg[0]);
    return ns > 0 ? ask(HC_YIELD, (uint64_t)ns, 0) : 0;
}

int64_t sys_sched_yield(const syscall_t *call __attribute__((unused)))
{
    return 0; /* there is nobody else */
}

/* With one thread nobody changes the word and nobody wakes: to wait is to sleep. */
int64_t sys_futex(const syscall_t *call)
{
    uint64_t operation = call->arg[1] & FUTEX_OPERATION;
    int64_t ns = -1, failed;
    uint32_t word;
    if (operation == FUTEX_WAKE || operation == FUTEX_WAKE_BITSET)
        return 0;
    if (operation != FUTEX_WAIT && operation != FUTEX_WAIT_BITSET)
        return -ENOSYS;
    if (call->arg[0] % 4)
        return -EINVAL;
    if (!user_read(&word, call->arg[0], sizeof word))
        return -EFAULT;
    if (word != (uint32_t)call->arg[2])
        return -EAGAIN;
    if (call->arg[3]) {
        failed = get_time(call->arg[3], &ns);
        if (failed)
            return failed;
        if (operation == FUTEX_WAIT_BITSET) /* then it is a moment, not a duration */
            ns -= clock_ns(call->arg[1] & FUTEX_CLOCK_REALTIME ? CLOCK_REALTIME : CLOCK_MONOTONIC);
        ns = ns < 0 ? 0 : ns;
    }
    do
        ask(HC_YIELD, (uint64_t)ns, 0);
    while (ns < 0);
    return -ETIMEDOUT;
}

/* ---- identity and limits */

int64_t sys_getpid(const syscall_t *call __attribute__((unused)))
{
    return PID;
}

int64_t sys_getppid(const syscall_t *call __attribute__((unused)))
{
    return PARENT_PID;
}

int64_t sys_zero(const syscall_t *call __attribute__((unused))) /* user and group ids; what needs no doing */
{
    return 0;
}

int64_t sys_absent(const syscall_t *call __attribute__((unused))) /* what programs ask for and do without */
{
    return -ENOSYS;
}

int64_t sys_umask(const syscall_t *call __attribute__((unused)))
{
    return 022;
}

int64_t sys_uname(const syscall_t *call)
{
    return user_write(call->arg[0], &name, sizeof name) ? 0 : -EFAULT;
}

static int64_t put_limit(uint64_t resource, uint64_t address)
{
    uint64_t most = resource == RLIMIT_STACK    ? STACK_LIMIT
                    : resource == RLIMIT_NOFILE ? FILES_LIMIT
                    : resource == RLIMIT_CORE   ? 0
                                                : ~0ul;
    uint64_t limit[2] = {most, most};
    if (resource >= RLIM_NLIMITS)
        return -EINVAL;
    return !address || user_write(address, limit, sizeof limit) ? 0 : -EFAULT;
}

int64_t sys_getrlimit(const syscall_t *call)
{
    return put_limit(call->arg[0], call->arg[1]);
}

int64_t sys_prlimit64(const syscall_t *call)
{
    if (call->arg[0] && call->arg[0] != PID)
        return -ESRCH;
    return call->arg[2] ? -EPERM : put_limit(call->arg[1], call->arg[3]);
}

int64_t sys_sched_getaffinity(const syscall_t *call)
{
    uint64_t cpus = 1;
    if (call->arg[1] < sizeof cpus)
        return -EINVAL;
    return user_write(call->arg[2], &cpus, sizeof cpus) ? (int64_t)sizeof cpus : -EFAULT;
}

int64_t sys_getrandom(const syscall_t *call)
{
    uint64_t done = 0, size = call->arg[1] < 0x7ffff000 ? call->arg[1] : 0x7ffff000;
    while (done < size) {
        uint64_t n = size - done;
        void *to = user_bytes(call->arg[0] + done, &n, 1);
        int64_t result = to ? ask(HC_RANDOM, gpa_of(to), n < (1 << 20) ? n : 1 << 20) : -EFAULT;
        if (result <= 0)
            return done ? (int64_t)done : result;
        done += (uint64_t)result;
    }
    return (int64_t)done;
}

int64_t sys_arch_prctl(const syscall_t *call)
{
    uint64_t value = call->arg[1], base;
    switch (call->arg[0]) {
    case ARCH_SET_FS:
    case ARCH_SET_GS:
        if (value >= USER_END)
            return -EPERM;
        write_msr(call->arg[0] == ARCH_SET_FS ? MSR_FS_BASE : MSR_GS_BASE, value);
        return 0;
    case ARCH_GET_FS:
    case ARCH_GET_GS:
        base = read_msr(call->arg[0] == ARCH_GET_FS ? MSR_FS_BASE : MSR_GS_BASE);
        return user_write(value, &base, sizeof base) ? 0 : -EFAULT;
    default:
        return -EINVAL;
    }
}

/* ---- signals: kept and told, but no handler of the program is ever called */

struct action {
    uint64_t handler, flags, restorer, mask;
};

static struct action actions[SIGNALS + 1];
static uint64_t blocked;

int64_t sys_rt_sigaction(const syscall_t *call)
{
    uint64_t signal = call->arg[0];
    struct action new;
    if (signal < 1 || signal > SIGNALS || call->arg[3] != 8)
        return -EINVAL;
    if (call->arg[1] && (signal == SIGKILL || signal == SIGSTOP))
        return -EINVAL;
    if (call->arg[1] && !user_read(&new, call->arg[1], sizeof new))
        return -EFAULT;
    if (call->arg[2] && !user_write(call->arg[2], &actions[signal], sizeof new))
        return -EFAULT;
    if (call->arg[1])
        actions[signal] = new;
    return 0;
}

int64_t sys_rt_sigprocmask(const syscall_t *call)
{
    uint64_t set, was = blocked;
    if (call->arg[3] != 8)
        return -EINVAL;
    if (call->arg[1]) {
        if (!user_read(&set, call->arg[1], sizeof set))
            return -EFAULT;
        switch (call->arg[0]) {
        case SIG_BLOCK:
            blocked |= set;
            break;
        case SIG_UNBLOCK:
            blocked &= ~set;
            break;
        case SIG_SETMASK:
            blocked = set;
            break;
        default:
            return -EINVAL;
        }
    }
    return !call->arg[2] || user_write(call->arg[2], &was, sizeof was) ? 0 : -EFAULT;
}

int64_t sys_sigaltstack(const syscall_t *call)
{
    stack_t none = {.ss_flags = 2}; /* SS_DISABLE */
    return !call->arg[1] || user_write(call->arg[1], &none, sizeof none) ? 0 : -EFAULT;
}

static int64_t raise(uint64_t signal, const syscall_t *call)
{
    const uint64_t ignored = 1ul << SIGCHLD | 1ul << SIGCONT | 1ul << SIGURG | 1ul << SIGWINCH;
    if (signal > SIGNALS)
        return -EINVAL;
    if (!signal || actions[signal].handler == (uint64_t)SIG_IGN)
        return 0;
    if (actions[signal].handler != (uint64_t)SIG_DFL)
        return -ENOSYS;
    if (signal < 64 && ignored >> signal & 1)
        return 0;
    trace_syscall(call, 0, 0);
    kill_program(FAULT_RAISED, (unsigned)signal, 0, call);
}

int64_t sys_kill(const syscall_t *call) /* and tkill() */
{
    return (int32_t)call->arg[0] == PID || !(int32_t)call->arg[0] ? raise(call->arg[1], call) : -ESRCH;
}

int64_t sys_tgkill(const syscall_t *call)
{
    return (int32_t)call->arg[0] == PID && (int32_t)call->arg[1] == PID ? raise(call->arg[2], call) : -ESRCH;
}
