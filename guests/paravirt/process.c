/* One process with one thread: who it is, what it may, what signals do, and how it ends. */
#include "cpu.h"
#include "kernel.h"
#include "linux.h"

#define PARENT_PID 1
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define SIGNALS 64
#define STACK_LIMIT (8ul << 20)
#define FILES_LIMIT 64

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
    trace_end(call, 0, 0);
    end_program(call->arg[0] & 0xff);
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

int64_t sys_sysinfo(const syscall_t *call)
{
    struct sysinfo info = {.totalram = frames_total(), .procs = 1, .mem_unit = 1};
    info.uptime = ask(HC_TIME, 0, 0) / 1000000000;
    return user_write(call->arg[0], &info, sizeof info) ? 0 : -EFAULT;
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
    trace_end(call, 0, 0);
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
