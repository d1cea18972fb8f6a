"""Every syscall of i386 Linux, which 32-bit programs reach by INT 0x80 or SYSENTER.

Numbers and names are those of arch/x86/entry/syscalls/syscall_32.tbl, up to Linux 7.0. Most have the
arguments of the syscall of that name on x86-64, in words of 32 bits; the others are spelled below: 64-bit
numbers come in two words, times may have 32 or 64 bits, users and groups may have 16.
"""

from __future__ import annotations

from pykvm.trace.syscalls.table import X86_64

__all__ = ["i386_rows"]


def i386_rows() -> list[str]:
    """The lines of the table, spelled as those of x86-64."""
    same = {line.split()[1]: line.split(maxsplit=2)[2:] for line in X86_64.strip().splitlines()}
    own = {line.split()[0]: line.split(maxsplit=1)[1:] for line in _OTHERS.strip().splitlines()}
    found = []
    for line in _NAMES.strip().splitlines():
        first, *names = line.split()
        for number, name in enumerate(names, int(first)):
            kinds = own[name] if name in own else same.get(name, [])
            found.append(" ".join([str(number), name, *kinds]))
    return found


# a number, and the names from there on
_NAMES = """
0 restart_syscall exit fork read write open close waitpid creat link unlink execve chdir time mknod chmod
16 lchown break oldstat lseek getpid mount umount setuid getuid stime ptrace alarm oldfstat pause utime stty
32 gtty access nice ftime sync kill rename mkdir rmdir dup pipe times prof brk setgid getgid signal geteuid
50 getegid acct umount2 lock ioctl fcntl mpx setpgid ulimit oldolduname umask chroot ustat dup2 getppid
65 getpgrp setsid sigaction sgetmask ssetmask setreuid setregid sigsuspend sigpending sethostname setrlimit
76 getrlimit getrusage gettimeofday settimeofday getgroups setgroups select symlink oldlstat readlink uselib
87 swapon reboot readdir mmap munmap truncate ftruncate fchmod fchown getpriority setpriority profil statfs
100 fstatfs ioperm socketcall syslog setitimer getitimer stat lstat fstat olduname iopl vhangup idle vm86old
114 wait4 swapoff sysinfo ipc fsync sigreturn clone setdomainname uname modify_ldt adjtimex mprotect
126 sigprocmask create_module init_module delete_module get_kernel_syms quotactl getpgid fchdir bdflush
135 sysfs personality afs_syscall setfsuid setfsgid _llseek getdents _newselect flock msync readv writev
147 getsid fdatasync _sysctl mlock munlock mlockall munlockall sched_setparam sched_getparam
156 sched_setscheduler sched_getscheduler sched_yield sched_get_priority_max sched_get_priority_min
161 sched_rr_get_interval nanosleep mremap setresuid getresuid vm86 query_module poll nfsservctl setresgid
171 getresgid prctl rt_sigreturn rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo
179 rt_sigsuspend pread64 pwrite64 chown getcwd capget capset sigaltstack sendfile getpmsg putpmsg vfork
191 ugetrlimit mmap2 truncate64 ftruncate64 stat64 lstat64 fstat64 lchown32 getuid32 getgid32 geteuid32
202 getegid32 setreuid32 setregid32 getgroups32 setgroups32 fchown32 setresuid32 getresuid32 setresgid32
211 getresgid32 chown32 setuid32 setgid32 setfsuid32 setfsgid32 pivot_root mincore madvise getdents64
221 fcntl64
224 gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr
234 flistxattr removexattr lremovexattr fremovexattr tkill sendfile64 futex sched_setaffinity
242 sched_getaffinity set_thread_area get_thread_area io_setup io_destroy io_getevents io_submit io_cancel
250 fadvise64
252 exit_group lookup_dcookie epoll_create epoll_ctl epoll_wait remap_file_pages set_tid_address
259 timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime clock_gettime
266 clock_getres clock_nanosleep statfs64 fstatfs64 tgkill utimes fadvise64_64 vserver mbind get_mempolicy
276 set_mempolicy mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr kexec_load waitid
286 add_key request_key keyctl ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch
294 migrate_pages openat mkdirat mknodat fchownat futimesat fstatat64 unlinkat renameat linkat symlinkat
305 readlinkat fchmodat faccessat pselect6 ppoll unshare set_robust_list get_robust_list splice
314 sync_file_range tee vmsplice move_pages getcpu epoll_pwait utimensat signalfd timerfd_create eventfd
324 fallocate timerfd_settime timerfd_gettime signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1
333 preadv pwritev rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64
341 name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg setns process_vm_readv
348 process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create
357 bpf execveat socket socketpair bind connect listen accept4 getsockopt setsockopt getsockname getpeername
369 sendto sendmsg recvfrom recvmsg shutdown userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2
380 pkey_mprotect pkey_alloc pkey_free statx arch_prctl io_pgetevents rseq
393 semget semctl shmget shmctl shmat shmdt msgget msgsnd msgrcv msgctl clock_gettime64 clock_settime64
405 clock_adjtime64 clock_getres_time64 clock_nanosleep_time64 timer_gettime64 timer_settime64
410 timerfd_gettime64 timerfd_settime64 utimensat_time64 pselect6_time64 ppoll_time64
416 io_pgetevents_time64 recvmmsg_time64 mq_timedsend_time64 mq_timedreceive_time64 semtimedop_time64
421 rt_sigtimedwait_time64 futex_time64 sched_rr_get_interval_time64 pidfd_send_signal io_uring_setup
426 io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount fspick pidfd_open clone3
436 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd
444 landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret process_mrelease
449 futex_waitv set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait
456 futex_requeue statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat
464 getxattrat listxattrat removexattrat open_tree_attr file_getattr file_setattr listns rseq_slice_yield
"""

# name and kinds, where they are not those of x86-64
_OTHERS = """
waitpid pid >wait_status wait_options
umount path
stime intp
signal signal hex -> hex
sigaction signal old_sigaction >old_sigaction
sgetmask
ssetmask hex
sigsuspend hex hex hex
sigpending >old_sigset
sigprocmask sighow old_sigset >old_sigset
sigreturn -> hidden
rt_sigreturn -> hidden
readdir fd ptr uint
nice int
socketcall socket_call socket_args
ipc ipc_call int int int ptr int
olduname ptr
oldolduname ptr
oldstat path ptr
oldlstat path ptr
oldfstat fd ptr
vm86 hex hex
vm86old ptr
_llseek fd 3:long_pair@2 4:>i64p 5:whence
_newselect int fd_set@1 fd_set@1 fd_set@1 timeval -> selected
select ptr
ugetrlimit resource >rlimit
mmap ptr -> ptr
mmap2 ptr size prot mapflags fd pages -> ptr
truncate64 path 2:long_pair@3
ftruncate64 fd 2:long_pair@3
stat64 path >stat64
lstat64 path >stat64
fstat64 fd >stat64
fstatat64 dirfd path >stat64 at_flags
statfs64 path size >statfs64
fstatfs64 fd size >statfs64
chown path id16 id16
fchown fd id16 id16
lchown path id16 id16
setuid id16
setgid id16
setreuid id16 id16
setregid id16 id16
setresuid id16 id16 id16
setresgid id16 id16 id16
getresuid >id16p >id16p >id16p
getresgid >id16p >id16p >id16p
getgroups int >ids16@r
setgroups int ids16@1
setfsuid id16
setfsgid id16
chown32 path id id
fchown32 fd id id
lchown32 path id id
getuid32
getgid32
geteuid32
getegid32
setuid32 id
setgid32 id
setreuid32 id id
setregid32 id id
setresuid32 id id id
setresgid32 id id id
getresuid32 >idp >idp >idp
getresgid32 >idp >idp >idp
getgroups32 int >ids@r
setgroups32 int ids@1
setfsuid32 id
setfsgid32 id
fcntl64 fd fcntl_cmd hex
pread64 fd >buf@r size 4:long_pair@5
pwrite64 fd buf@3 size 4:long_pair@5
preadv fd ^filled_iovec@3 size 4:long_pair@5
pwritev fd iovec@3 size 4:long_pair@5
preadv2 fd ^filled_iovec@3 size 4:long_pair@5 6:rwf_flags
pwritev2 fd iovec@3 size 4:long_pair@5 6:rwf_flags
readahead fd 2:long_pair@3 4:size
fadvise64 fd 2:long_pair@3 4:size 5:fadvice
fadvise64_64 fd 2:long_pair@3 4:long_pair@5 6:fadvice
fallocate fd falloc_mode 3:long_pair@4 5:long_pair@6
sync_file_range fd 2:long_pair@3 4:long_pair@5 6:sync_range_flags
fanotify_mark fd fanotify_mark_flags 3:fanotify_mask 5:dirfd 6:path
lookup_dcookie 1:long_pair@2 3:>buf@r 4:size
sendfile64 fd fd ~i64p size
clone child_stack=2:ptr flags=1:clone_flags parent_tid=3:^ptid tls=4:tls child_tidptr=5:ctid
set_thread_area ~user_desc
get_thread_area ~user_desc
clock_gettime64 clock >timespec64
clock_settime64 clock timespec64
clock_adjtime64 clock >timex64 -> dec:adjtimex_state
clock_getres_time64 clock >timespec64
clock_nanosleep_time64 clock timer_flags timespec64 !timespec64
timer_gettime64 int >itimerspec64
timer_settime64 int timer_flags itimerspec64 >itimerspec64
timerfd_gettime64 fd >itimerspec64
timerfd_settime64 fd timerfd_set_flags itimerspec64 >itimerspec64
utimensat_time64 dirfd path timespecs64 at_flags
pselect6_time64 int fd_set@1 fd_set@1 fd_set@1 timespec64 select_mask -> pselected64
ppoll_time64 pollfds@2 uint timespec64 sigset@5 size -> ppolled64
io_pgetevents_time64 hex long long >io_events@r timespec64 select_mask
recvmmsg_time64 fd >filled_messages@r uint msg_flags timespec64
mq_timedsend_time64 int buf@3 size uint timespec64
mq_timedreceive_time64 int >buf@r size >uintp timespec64
semtimedop_time64 int sembufs@3 size timespec64
rt_sigtimedwait_time64 sigset@4 >siginfo timespec64 size -> dec:signal
futex_time64 ptr futex_op int hex ptr hex
sched_rr_get_interval_time64 pid >timespec64
"""
