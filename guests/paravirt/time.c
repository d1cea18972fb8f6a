/* What time it is, and waiting: the host knows both. */
#include "kernel.h"
#include "linux.h"

#define NS 1000000000l
#define FUTEX_OPERATION 0x7f

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

int64_t sys_getrusage(const syscall_t *call) /* RUSAGE_SELF, RUSAGE_THREAD: nobody else has the CPU */
{
    struct rusage usage = {.ru_maxrss = 0};
    int64_t ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    if ((int32_t)call->arg[0] < RUSAGE_CHILDREN || (int32_t)call->arg[0] > RUSAGE_THREAD)
        return -EINVAL;
    if ((int32_t)call->arg[0] != RUSAGE_CHILDREN)
        usage.ru_utime.tv_sec = ns / NS, usage.ru_utime.tv_usec = ns % NS / 1000;
    return user_write(call->arg[1], &usage, sizeof usage) ? 0 : -EFAULT;
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
