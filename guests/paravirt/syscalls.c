/* The table of system calls, and the way of each. */
#include "kernel.h"
#include "linux.h"

typedef int64_t handler(const syscall_t *call);

#define COUNT 512 /* a little more than Linux has */

extern handler sys_access, sys_absent, sys_arch_prctl, sys_brk, sys_clock_getres, sys_clock_gettime,
    sys_clock_nanosleep, sys_close, sys_dup, sys_dup3, sys_exit, sys_faccessat, sys_fcntl, sys_fstat, sys_futex,
    sys_getcwd, sys_getdents64, sys_getpid, sys_getppid, sys_getrandom, sys_getrlimit, sys_getrusage, sys_gettimeofday, sys_ioctl,
    sys_kill, sys_lseek, sys_madvise, sys_mmap, sys_mprotect, sys_mremap, sys_munmap, sys_nanosleep, sys_newfstatat,
    sys_open, sys_openat, sys_poll, sys_pread64, sys_prlimit64, sys_read, sys_readlink, sys_readlinkat, sys_readv,
    sys_rt_sigaction, sys_rt_sigprocmask, sys_sched_getaffinity, sys_sched_yield, sys_sigaltstack, sys_stat, sys_sysinfo,
    sys_tgkill, sys_time, sys_umask, sys_uname, sys_write, sys_writev, sys_zero;

static handler *const table[COUNT] = {
    /* files */
    [__NR_open] = sys_open, [__NR_openat] = sys_openat, [__NR_close] = sys_close,
    [__NR_read] = sys_read, [__NR_readv] = sys_readv, [__NR_pread64] = sys_pread64,
    [__NR_write] = sys_write, [__NR_writev] = sys_writev, [__NR_lseek] = sys_lseek,
    [__NR_stat] = sys_stat, [__NR_lstat] = sys_stat, [__NR_fstat] = sys_fstat,
    [__NR_newfstatat] = sys_newfstatat, [__NR_access] = sys_access,
    [__NR_faccessat] = sys_faccessat, [__NR_faccessat2] = sys_faccessat,
    [__NR_readlink] = sys_readlink, [__NR_readlinkat] = sys_readlinkat,
    [__NR_getdents64] = sys_getdents64, [__NR_getcwd] = sys_getcwd, [__NR_umask] = sys_umask,
    [__NR_dup] = sys_dup, [__NR_dup2] = sys_dup3, [__NR_dup3] = sys_dup3, [__NR_fcntl] = sys_fcntl,
    [__NR_ioctl] = sys_ioctl, [__NR_poll] = sys_poll,
    /* memory */
    [__NR_mmap] = sys_mmap, [__NR_munmap] = sys_munmap, [__NR_mprotect] = sys_mprotect,
    [__NR_mremap] = sys_mremap, [__NR_madvise] = sys_madvise, [__NR_brk] = sys_brk,
    /* time */
    [__NR_clock_gettime] = sys_clock_gettime, [__NR_clock_getres] = sys_clock_getres,
    [__NR_gettimeofday] = sys_gettimeofday, [__NR_time] = sys_time,
    [__NR_nanosleep] = sys_nanosleep, [__NR_clock_nanosleep] = sys_clock_nanosleep,
    [__NR_sched_yield] = sys_sched_yield,
    /* the process */
    [__NR_exit] = sys_exit, [__NR_exit_group] = sys_exit, [__NR_getpid] = sys_getpid,
    [__NR_gettid] = sys_getpid, [__NR_getppid] = sys_getppid, [__NR_getpgrp] = sys_getpid,
    [__NR_set_tid_address] = sys_getpid, [__NR_set_robust_list] = sys_zero, [__NR_rseq] = sys_absent,
    [__NR_getuid] = sys_zero, [__NR_geteuid] = sys_zero, [__NR_getgid] = sys_zero, [__NR_getegid] = sys_zero,
    [__NR_getgroups] = sys_zero,
    [__NR_uname] = sys_uname, [__NR_arch_prctl] = sys_arch_prctl, [__NR_futex] = sys_futex,
    [__NR_getrlimit] = sys_getrlimit, [__NR_prlimit64] = sys_prlimit64,
    [__NR_getrusage] = sys_getrusage, [__NR_sysinfo] = sys_sysinfo,
    [__NR_sched_getaffinity] = sys_sched_getaffinity, [__NR_getrandom] = sys_getrandom,
    [__NR_rt_sigaction] = sys_rt_sigaction, [__NR_rt_sigprocmask] = sys_rt_sigprocmask,
    [__NR_sigaltstack] = sys_sigaltstack, [__NR_kill] = sys_kill, [__NR_tkill] = sys_kill,
    [__NR_tgkill] = sys_tgkill,
};

/* ---- the way of each call */

static int64_t unknown(uint64_t number)
{
    static uint8_t told[COUNT];
    if (number < COUNT && !told[number]) {
        told[number] = 1;
        ask(HC_MARK, PARAVIRT_MARK_ENOSYS + number, 0);
    }
    return -ENOSYS;
}

int64_t handle_syscall(const syscall_t *call) /* called by start.S */
{
    handler *handle = call->number < COUNT ? table[call->number] : 0;
    int64_t result;
    if (!trace_is_on)
        return handle ? handle(call) : unknown(call->number);
    trace_start();
    result = handle ? handle(call) : unknown(call->number);
    trace_end(call, result, handle ? SYSCALL_DONE : SYSCALL_DONE | SYSCALL_UNKNOWN);
    return result;
}
