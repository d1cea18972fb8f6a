"""Syscalls that are many: the command in one argument says what the others are.

::

    fcntl 2: F_GETLK: fd fcntl_cmd ~flock_pid

reads: where the second argument of fcntl is F_GETLK, its kinds are these, instead of those in the table.
Several commands stand before one colon; `2&0x7f` looks at some bits of the argument only. Names of
commands are those of the argument's own kind. What has no line here goes by the table.
"""

from __future__ import annotations

__all__ = ["VARIANTS"]

VARIANTS = """
fcntl 2: F_GETFD: fd fcntl_cmd -> flags:fd_flags
fcntl 2: F_GETFL: fd fcntl_cmd -> flags:oflags
fcntl 2: F_GETOWN F_GETPIPE_SZ: fd fcntl_cmd
fcntl 2: F_GETSIG: fd fcntl_cmd -> dec:signal
fcntl 2: F_GETLEASE: fd fcntl_cmd -> hex:lock_type
fcntl 2: F_GET_SEALS: fd fcntl_cmd -> flags:seals
fcntl 2: F_DUPFD F_DUPFD_CLOEXEC F_SETPIPE_SZ F_SETOWN F_DUPFD_QUERY: fd fcntl_cmd int
fcntl 2: F_SETFD: fd fcntl_cmd fd_flags
fcntl 2: F_SETFL: fd fcntl_cmd oflags
fcntl 2: F_SETLK F_SETLKW F_OFD_SETLK F_OFD_SETLKW: fd fcntl_cmd flock
fcntl 2: F_GETLK F_OFD_GETLK: fd fcntl_cmd ^flock_pid
fcntl 2: F_SETLK64 F_SETLKW64: fd fcntl_cmd flock64
fcntl 2: F_GETLK64: fd fcntl_cmd ^flock64_pid
fcntl 2: F_SETSIG: fd fcntl_cmd signal
fcntl 2: F_SETLEASE: fd fcntl_cmd lock_type
fcntl 2: F_NOTIFY: fd fcntl_cmd notify_flags
fcntl 2: F_ADD_SEALS: fd fcntl_cmd seals
fcntl 2: F_SETOWN_EX: fd fcntl_cmd f_owner_ex
fcntl 2: F_GETOWN_EX: fd fcntl_cmd >f_owner_ex
ioctl 2: TCGETS: fd ioctl_request >termios
ioctl 2: TCSETS TCSETSW TCSETSF: fd ioctl_request termios
ioctl 2: TIOCGWINSZ: fd ioctl_request >winsize
ioctl 2: TIOCSWINSZ: fd ioctl_request winsize
ioctl 2: FIONREAD TIOCOUTQ TIOCGPGRP TIOCGSID TIOCGPTN TIOCGETD TIOCMGET TIOCGPTLCK TIOCGEXCL TIOCGPKT: fd
  ioctl_request >intp
ioctl 2: BLKROGET BLKSSZGET BLKIOMIN BLKIOOPT BLKPBSZGET BLKDISCARDZEROES SIOCATMARK SIOCGPGRP FIOGETOWN: fd
  ioctl_request >intp
ioctl 2: FIONBIO FIOASYNC TIOCSPGRP TIOCSPTLCK TIOCSETD TIOCMBIS TIOCMBIC TIOCMSET TIOCPKT SIOCSPGRP: fd
  ioctl_request intp
ioctl 2: TCSBRK TCSBRKP TCXONC TIOCSCTTY FICLONE LOOP_SET_FD TUNSETPERSIST: fd ioctl_request int
ioctl 2: TCFLSH: fd ioctl_request flush_queue
ioctl 2: FIOCLEX FIONCLEX TIOCEXCL TIOCNXCL TIOCNOTTY TIOCCONS TIOCSBRK TIOCCBRK BLKFLSBUF BLKRRPART
  KVM_RUN: fd ioctl_request hex
ioctl 2: KVM_GET_API_VERSION KVM_CREATE_VM KVM_GET_VCPU_MMAP_SIZE KVM_CREATE_VCPU KVM_CREATE_IRQCHIP: fd
  ioctl_request hex
ioctl 2: BLKGETSIZE: fd ioctl_request >ulongp
ioctl 2: BLKGETSIZE64: fd ioctl_request >i64p
ioctl 2: FITRIM: fd ioctl_request ~fstrim_range
ioctl 2: FICLONERANGE: fd ioctl_request file_clone_range
ioctl 2: RTC_RD_TIME: fd ioctl_request >rtc_time
ioctl 2: RTC_SET_TIME: fd ioctl_request rtc_time
ioctl 2: SIOCGIFFLAGS SIOCSIFFLAGS SIOCGIFADDR SIOCSIFADDR SIOCGIFNETMASK SIOCSIFNETMASK SIOCGIFMTU
  SIOCSIFMTU: fd ioctl_request ifreq
ioctl 2: SIOCGIFHWADDR SIOCSIFHWADDR SIOCGIFINDEX SIOCGIFBRDADDR SIOCGIFTXQLEN SIOCSIFTXQLEN TUNSETIFF: fd
  ioctl_request ifreq
futex 2&0x7f: FUTEX_WAIT FUTEX_LOCK_PI FUTEX_LOCK_PI2: ptr futex_op uint timespec
futex 2&0x7f: FUTEX_WAKE FUTEX_FD: ptr futex_op uint
futex 2&0x7f: FUTEX_UNLOCK_PI FUTEX_TRYLOCK_PI: ptr futex_op
futex 2&0x7f: FUTEX_REQUEUE: ptr futex_op uint uint ptr
futex 2&0x7f: FUTEX_CMP_REQUEUE FUTEX_CMP_REQUEUE_PI: ptr futex_op uint uint ptr uint
futex 2&0x7f: FUTEX_WAKE_OP: ptr futex_op uint uint ptr futex_wake_op
futex 2&0x7f: FUTEX_WAIT_BITSET: ptr futex_op uint timespec 6:futex_bitset
futex 2&0x7f: FUTEX_WAKE_BITSET: ptr futex_op uint 6:futex_bitset
futex 2&0x7f: FUTEX_WAIT_REQUEUE_PI: ptr futex_op uint timespec ptr
futex_time64 2&0x7f: FUTEX_WAIT FUTEX_LOCK_PI FUTEX_LOCK_PI2: ptr futex_op uint timespec64
futex_time64 2&0x7f: FUTEX_WAKE FUTEX_FD: ptr futex_op uint
futex_time64 2&0x7f: FUTEX_UNLOCK_PI FUTEX_TRYLOCK_PI: ptr futex_op
futex_time64 2&0x7f: FUTEX_REQUEUE: ptr futex_op uint uint ptr
futex_time64 2&0x7f: FUTEX_CMP_REQUEUE FUTEX_CMP_REQUEUE_PI: ptr futex_op uint uint ptr uint
futex_time64 2&0x7f: FUTEX_WAIT_BITSET: ptr futex_op uint timespec64 6:futex_bitset
futex_time64 2&0x7f: FUTEX_WAKE_BITSET: ptr futex_op uint 6:futex_bitset
prctl 1: PR_SET_NAME: prctl_option task_name
prctl 1: PR_GET_NAME: prctl_option >task_name
prctl 1: PR_SET_PDEATHSIG: prctl_option signal
prctl 1: PR_GET_PDEATHSIG: prctl_option >signalp
prctl 1: PR_GET_DUMPABLE: prctl_option -> dec:dumpable
prctl 1: PR_SET_DUMPABLE: prctl_option dumpable
prctl 1: PR_GET_KEEPCAPS PR_GET_SECCOMP PR_GET_TIMERSLACK PR_GET_TIMING PR_TASK_PERF_EVENTS_DISABLE:
  prctl_option
prctl 1: PR_TASK_PERF_EVENTS_ENABLE: prctl_option
prctl 1: PR_SET_KEEPCAPS PR_SET_TIMERSLACK PR_SET_CHILD_SUBREAPER PR_SET_TIMING: prctl_option long
prctl 1: PR_GET_CHILD_SUBREAPER PR_GET_TSC: prctl_option >intp
prctl 1: PR_GET_TID_ADDRESS: prctl_option >ptrp
prctl 1: PR_GET_SECUREBITS: prctl_option -> hex:securebits
prctl 1: PR_SET_SECUREBITS: prctl_option securebits
prctl 1: PR_CAPBSET_READ PR_CAPBSET_DROP: prctl_option capability
prctl 1: PR_CAP_AMBIENT: prctl_option prctl_ambient capability hex hex
prctl 1: PR_SET_SECCOMP: prctl_option prctl_seccomp fprog
prctl 1: PR_SET_NO_NEW_PRIVS: prctl_option long hex hex hex
prctl 1: PR_SET_VMA: prctl_option prctl_vma ptr size str
prctl 1: PR_SET_MM: prctl_option prctl_mm hex hex hex
arch_prctl 1: ARCH_GET_FS ARCH_GET_GS: arch_prctl_option >ptrp
arch_prctl 1: ARCH_SET_FS ARCH_SET_GS: arch_prctl_option ptr
arch_prctl 1: ARCH_GET_CPUID: arch_prctl_option
shmctl 2: IPC_STAT SHM_STAT SHM_STAT_ANY: int shmctl_cmd >shm_stat
semctl 3: IPC_STAT SEM_STAT SEM_STAT_ANY: int int semctl_cmd >sem_stat
msgctl 2: IPC_STAT MSG_STAT MSG_STAT_ANY: int msgctl_cmd >msg_stat
seccomp 1: SECCOMP_SET_MODE_STRICT: seccomp_op uint ptr
seccomp 1: SECCOMP_SET_MODE_FILTER: seccomp_op seccomp_filter_flags fprog
seccomp 1: SECCOMP_GET_ACTION_AVAIL: seccomp_op uint seccomp_actionp
fsconfig 2: FSCONFIG_SET_FLAG: fd fsconfig_cmd str ptr int
fsconfig 2: FSCONFIG_SET_STRING: fd fsconfig_cmd str str int
fsconfig 2: FSCONFIG_SET_BINARY: fd fsconfig_cmd str buf@5 int
fsconfig 2: FSCONFIG_SET_PATH FSCONFIG_SET_PATH_EMPTY: fd fsconfig_cmd str path dirfd
fsconfig 2: FSCONFIG_SET_FD: fd fsconfig_cmd str ptr fd
fsconfig 2: FSCONFIG_CMD_CREATE FSCONFIG_CMD_RECONFIGURE: fd fsconfig_cmd ptr ptr int
kcmp 3: KCMP_FILE: pid pid kcmp_type int int
kcmp 3: KCMP_VM KCMP_FILES KCMP_FS KCMP_SIGHAND KCMP_IO KCMP_SYSVSEM: pid pid kcmp_type
keyctl 1: KEYCTL_GET_KEYRING_ID: keyctl_op keyring int
keyctl 1: KEYCTL_JOIN_SESSION_KEYRING: keyctl_op str
keyctl 1: KEYCTL_REVOKE KEYCTL_CLEAR KEYCTL_INVALIDATE: keyctl_op keyring
keyctl 1: KEYCTL_READ KEYCTL_DESCRIBE: keyctl_op keyring >buf@r size
keyctl 1: KEYCTL_UPDATE: keyctl_op keyring buf@4 size
keyctl 1: KEYCTL_LINK KEYCTL_UNLINK: keyctl_op keyring keyring
keyctl 1: KEYCTL_SETPERM: keyctl_op keyring hex32
keyctl 1: KEYCTL_SEARCH: keyctl_op keyring str str keyring
membarrier 1: MEMBARRIER_CMD_QUERY: membarrier_cmd membarrier_flags -> hex:membarrier_bits
io_uring_register 2: IORING_REGISTER_BUFFERS: fd io_uring_op iovec_addresses@4 uint
io_uring_register 2: IORING_REGISTER_FILES: fd io_uring_op fds@4 uint
io_uring_register 2: IORING_REGISTER_EVENTFD IORING_REGISTER_EVENTFD_ASYNC: fd io_uring_op fds@4 uint
syslog 1: SYSLOG_ACTION_CLOSE SYSLOG_ACTION_OPEN SYSLOG_ACTION_CLEAR SYSLOG_ACTION_CONSOLE_OFF:
  syslog_action
syslog 1: SYSLOG_ACTION_CONSOLE_ON SYSLOG_ACTION_SIZE_UNREAD SYSLOG_ACTION_SIZE_BUFFER: syslog_action
"""
