"""The structs that syscalls take and fill, one line each; `layout` says how they are spelled.

Fields are those of the kernel's user headers (include/uapi), as a program on x86-64 or on i386 sees them;
which of them are printed follows strace. Some print in a way of their own: `files`, `processes`, `times`.
"""

from __future__ import annotations

from functools import cache

from pykvm.trace.syscalls.layout import Layouts

__all__ = ["layouts"]


@cache
def layouts(*, is_64bit: bool) -> Layouts:
    """All structs, by name, for one width of program."""
    return Layouts(_STRUCTS, is_64bit=is_64bit)


_STRUCTS = """
timespec: tv_sec=long tv_nsec=ulong
timespec64: tv_sec=i64 tv_nsec=u64
timeval: tv_sec=long tv_usec=ulong
timezone: tz_minuteswest=i32 tz_dsttime=i32
itimerval: it_interval=timeval it_value=timeval
itimerspec: it_interval=timespec it_value=timespec
itimerspec64: it_interval=timespec64 it_value=timespec64
time_pair: access=long access_part=long change=long change_part=long
time_pair64: access=i64 access_part=i64 change=i64 change_part=i64
utimbuf: actime=long modtime=long
tms: tms_utime=long tms_stime=long tms_cutime=long tms_cstime=long
rusage: ru_utime=timeval ru_stime=timeval ... _rest=long[14]
rlimit: rlim_cur=ulong:word_rlim rlim_max=ulong:word_rlim
rlimit64: rlim_cur=u64:rlim64 rlim_max=u64:rlim64
timex: modes=u32:adjtimex_modes offset=long freq=long maxerror=long esterror=long status=i32:adjtimex_status
  constant=long precision=long tolerance=long time=timeval tick=long ppsfreq=long jitter=long shift=i32
  stabil=long jitcnt=long calcnt=long errcnt=long stbcnt=long tai=i32 _spare=i32[11]
timex64: modes=u32:adjtimex_modes _pad=u32 offset=i64 freq=i64 maxerror=i64 esterror=i64
  status=i32:adjtimex_status _pad2=u32 constant=i64 precision=i64 tolerance=i64 _sec=i64 _usec=i64 tick=i64
  ppsfreq=i64 jitter=i64 shift=i32 _pad3=u32 stabil=i64 jitcnt=i64 calcnt=i64 errcnt=i64 stbcnt=i64 tai=i32
  _spare=i32[11]
stat: st_dev=hlong st_ino=ulong st_nlink=ulong st_mode=u32 st_uid=u32 st_gid=u32 _pad=u32 st_rdev=ulong
  st_size=ulong _rest=ulong[11]
stat/32: st_dev=ulong st_ino=ulong st_mode=u16 st_nlink=u16 st_uid=u16 st_gid=u16 st_rdev=ulong
  st_size=ulong _rest=ulong[10]
stat64: st_dev=u64 _pad=u32 _ino=ulong st_mode=u32 st_nlink=u32 st_uid=ulong st_gid=ulong st_rdev=u64
  _pad3=u32 st_size=u64 _rest=ulong[9] st_ino=u64
statx: stx_mask=u32:statx_mask stx_blksize=u32 stx_attributes=u64:statx_attributes stx_nlink=u32 stx_uid=u32
  stx_gid=u32 stx_mode=u16 _spare=u16 stx_ino=u64 stx_size=u64 _rest=u64[26]
statfs: f_type=ulong:fs_magic f_bsize=ulong f_blocks=ulong f_bfree=ulong f_bavail=ulong f_files=ulong
  f_ffree=ulong f_fsid=fsid f_namelen=ulong f_frsize=ulong f_flags=ulong:statfs_flags _spare=ulong[4]
statfs64/packed: f_type=u32:fs_magic f_bsize=u32 f_blocks=u64 f_bfree=u64 f_bavail=u64 f_files=u64
  f_ffree=u64 f_fsid=fsid f_namelen=u32 f_frsize=u32 f_flags=u32:statfs_flags _spare=u32[4]
fsid: val=h32[2]
utsname: sysname=char[65] nodename=char[65] ... _rest=char[260]
sysinfo: uptime=long loads=ulong[3] totalram=ulong freeram=ulong sharedram=ulong bufferram=ulong
  totalswap=ulong freeswap=ulong procs=u16 _pad=u16 totalhigh=ulong freehigh=ulong mem_unit=u32
winsize: ws_row=u16 ws_col=u16 ws_xpixel=u16 ws_ypixel=u16
termios: c_iflag=u32:tty_iflag c_oflag=u32:tty_oflag c_cflag=u32:tty_cflag c_lflag=u32:tty_lflag ...
  _line=u8 _cc=char[19]
flock: l_type=u16:lock_type l_whence=u16:whence l_start=long l_len=long _pid=i32
flock_pid: l_type=u16:lock_type l_whence=u16:whence l_start=long l_len=long l_pid=i32
flock64: l_type=u16:lock_type l_whence=u16:whence l_start=i64 l_len=i64 _pid=i32
flock64_pid: l_type=u16:lock_type l_whence=u16:whence l_start=i64 l_len=i64 l_pid=i32
f_owner_ex: type=i32:owner_type pid=i32
open_how: flags=u64 mode=u64 resolve=u64
sched_attr: size=u32 sched_policy=u32:sched_policy sched_flags=u64:sched_flags sched_nice=i32
  sched_priority=u32 sched_runtime=u64 sched_deadline=u64 sched_period=u64
sched_attr_clamp: size=u32 sched_policy=u32:sched_policy sched_flags=u64:sched_flags sched_nice=i32
  sched_priority=u32 sched_runtime=u64 sched_deadline=u64 sched_period=u64 sched_util_min=u32
  sched_util_max=u32
sigaction: sa_handler=ptr sa_flags=hlong sa_restorer=ptr sa_mask=u64
old_sigaction: sa_handler=ptr sa_mask=u32 sa_flags=u32 sa_restorer=ptr
sigaltstack: ss_sp=ptr ss_flags=i32:ss_flags ss_size=ulong
siginfo: si_signo=i32:signal _errno=i32 si_code=i32 _pad=i32 _fields=i32[28]
siginfo/32: si_signo=i32:signal _errno=i32 si_code=i32 _fields=i32[29]
sigevent: _value=ptr sigev_signo=u32:signal sigev_notify=u32:sigev_notify
msghdr: name=ptr namelen=i32 iov=ptr iovlen=ulong control=ptr controllen=ulong flags=u32
mmsghdr: name=ptr namelen=i32 iov=ptr iovlen=ulong control=ptr controllen=ulong flags=u32 len=u32
ucred: pid=i32 uid=u32 gid=u32
linger: l_onoff=i32 l_linger=i32
fprog: len=u16 filter=ptr
mq_attr: mq_flags=long:pipe_flags mq_maxmsg=long mq_msgsize=long mq_curmsgs=long _spare=long[4]
cap_header: version=u32:cap_version pid=i32
clone_args: flags=u64 pidfd=u64 child_tid=u64 parent_tid=u64 exit_signal=u64 stack=u64 stack_size=u64
  tls=u64
mount_attr: attr_set=u64:mount_attr_flags attr_clr=u64:mount_attr_flags propagation=u64:mount_flags
  userns_fd=u64
landlock_ruleset: handled_access_fs=u64:landlock_fs
landlock_path/packed: allowed_access=u64:landlock_fs parent_fd=i32
io_uring_params: sq_entries=u32 cq_entries=u32 flags=u32 sq_thread_cpu=u32 sq_thread_idle=u32 features=u32
  _rest=u32[24]
perf_event_attr: type=u32:perf_type size=u32 config=h64 sample_period=u64 sample_type=h64 read_format=h64
  ... _rest=u64[3]
sembuf: sem_num=u16 sem_op=i16 sem_flg=u16:semop_flags
ipc_owner: key=h32 uid=u32 gid=u32 cuid=u32 cgid=u32 mode=u32:mode _seq=u32 _spare=ulong[2]
shm_stat: shm_perm=ipc_owner shm_segsz=ulong shm_atime=long shm_dtime=long shm_ctime=long shm_cpid=i32
  shm_lpid=i32 shm_nattch=ulong _spare=ulong[2]
shm_stat/32: shm_perm=ipc_owner shm_segsz=ulong shm_atime=u64 shm_dtime=u64 shm_ctime=u64 shm_cpid=i32
  shm_lpid=i32 shm_nattch=ulong _spare=ulong[2]
sem_stat: sem_perm=ipc_owner sem_otime=long _spare=ulong sem_ctime=long _spare2=ulong sem_nsems=ulong
  _rest=ulong[2]
msg_stat: msg_perm=ipc_owner msg_stime=long msg_rtime=long msg_ctime=long _bytes=ulong msg_qnum=ulong
  msg_qbytes=ulong msg_lspid=i32 msg_lrpid=i32 _spare=ulong[2]
msg_stat/32: msg_perm=ipc_owner msg_stime=u64 msg_rtime=u64 msg_ctime=u64 _bytes=ulong msg_qnum=ulong
  msg_qbytes=ulong msg_lspid=i32 msg_lrpid=i32 _spare=ulong[2]
user_desc: entry_number=u32:int base_addr=h32 limit=h32 flags=h32
io_event: data=h64 obj=h64 res=i64 res2=i64
iocb: aio_data=h64 _key=u32 _flags=u32 aio_lio_opcode=u16:iocb_cmd _prio=i16 aio_fildes=u32:int aio_buf=h64
  aio_nbytes=u64 aio_offset=i64 ... _rest=u64[2]
futex_waitv: val=h64 uaddr=h64 flags=u32:waitv_flags _reserved=u32
cachestat_range: off=u64 len=u64
cachestat: nr_cache=u64 nr_dirty=u64 nr_writeback=u64 nr_evicted=u64 nr_recently_evicted=u64
mnt_id_req: size=u32 _spare=u32 mnt_id=h64 param=h64
ustat: f_tfree=u32 f_tinode=ulong ... _rest=char[16]
file_clone_range: src_fd=i64 src_offset=u64 src_length=u64 dest_offset=u64
fstrim_range: start=h64 len=h64 minlen=h64
rtc_time: tm_sec=i32 tm_min=i32 tm_hour=i32 tm_mday=i32 tm_mon=i32 tm_year=i32 ... _rest=i32[3]
file_attr: fa_xflags=h64 fa_extsize=u32 fa_nextents=u32 fa_projid=u32 fa_cowextsize=u32
xattr_args: value=h64 size=u32 flags=u32:xattr_flags
"""
