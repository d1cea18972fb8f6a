"""Every syscall of x86-64 Linux in one line: number, name, the kinds of its arguments.

Numbers and names are those of arch/x86/entry/syscalls/syscall_64.tbl, up to Linux 7.0; arguments are
those of the man pages (section 2) and of include/linux/syscalls.h, in the kernel's order. How kinds are
spelled is told in the package's docstring. `-> kind` says how the result is printed, where it is not a
number; a line of a syscall that no kernel has any more ends after its name.
"""

from __future__ import annotations

__all__ = ["X86_64"]

X86_64 = """
0 read fd >buf@r size
1 write fd buf@3 size
2 open path oflags omode
3 close fd
4 stat path >stat
5 fstat fd >stat
6 lstat path >stat
7 poll pollfds@2 uint int -> polled
8 lseek fd long whence
9 mmap ptr size prot mapflags fd hex -> ptr
10 mprotect ptr size prot
11 munmap ptr size
12 brk ptr -> ptr
13 rt_sigaction signal sigaction >sigaction size
14 rt_sigprocmask sighow sigset@4 >sigset@4 size
15 rt_sigreturn -> hidden
16 ioctl fd ioctl_request ptr
17 pread64 fd >buf@r size long
18 pwrite64 fd buf@3 size long
19 readv fd ^filled_iovec@3 size
20 writev fd iovec@3 size
21 access path access_mode
22 pipe >fd_pair
23 select int fd_set@1 fd_set@1 fd_set@1 timeval -> selected
24 sched_yield
25 mremap ptr size size mremap_flags mremap_target -> ptr
26 msync ptr size msync_flags
27 mincore ptr size >page_states@2
28 madvise ptr size advice
29 shmget ipc_key size shm_get_flags
30 shmat int ptr shmat_flags -> ptr
31 shmctl int shmctl_cmd ptr
32 dup fd
33 dup2 fd fd
34 pause
35 nanosleep timespec !timespec
36 getitimer itimer >itimerval
37 alarm uint
38 setitimer itimer itimerval >itimerval
39 getpid
40 sendfile fd fd ~longp size
41 socket family socktype protocol
42 connect fd sockaddr@3 int
43 accept fd >filled_sockaddr@3 ~lenp
44 sendto fd buf@3 size msg_flags sockaddr@6 uint
45 recvfrom fd >buf@r size msg_flags >filled_sockaddr@6 ~lenp
46 sendmsg fd message msg_flags
47 recvmsg fd >filled_message msg_flags
48 shutdown fd shutdown_how
49 bind fd sockaddr@3 int
50 listen fd int
51 getsockname fd >filled_sockaddr@3 ~lenp
52 getpeername fd >filled_sockaddr@3 ~lenp
53 socketpair family socktype protocol >fd_pair
54 setsockopt fd sol so_option option_value@5 int
55 getsockopt fd sol so_option >filled_option@5 ~lenp
56 clone child_stack=2:ptr flags=1:clone_flags parent_tid=3:^ptid tls=5:tls child_tidptr=4:ctid
57 fork
58 vfork
59 execve path argv environment
60 exit int -> never
61 wait4 pid >wait_status wait_options >rusage
62 kill pid signal
63 uname >utsname
64 semget ipc_key int sem_get_flags
65 semop int sembufs@3 size
66 semctl int int semctl_cmd ptr
67 shmdt ptr
68 msgget ipc_key sem_get_flags
69 msgsnd int message_text@3 size ipc_flags
70 msgrcv int >message_text@r size long msgrcv_flags
71 msgctl int msgctl_cmd ptr
72 fcntl fd fcntl_cmd hex
73 flock fd flock_op
74 fsync fd
75 fdatasync fd
76 truncate path long
77 ftruncate fd long
78 getdents fd >dirents@r uint
79 getcwd >path size
80 chdir path
81 fchdir fd
82 rename path path
83 mkdir path mode
84 rmdir path
85 creat path mode
86 link path path
87 unlink path
88 symlink path path
89 readlink path >buf@r size
90 chmod path mode
91 fchmod fd mode
92 chown path id id
93 fchown fd id id
94 lchown path id id
95 umask mode -> octal
96 gettimeofday >timeval >timezone
97 getrlimit resource >rlimit
98 getrusage rusage_who >rusage
99 sysinfo >sysinfo
100 times >tms
101 ptrace ptrace_request pid ptr ptr
102 getuid
103 syslog syslog_action >buf@r int
104 getgid
105 setuid id
106 setgid id
107 geteuid
108 getegid
109 setpgid pid pid
110 getppid
111 getpgrp
112 setsid
113 setreuid id id
114 setregid id id
115 getgroups int >ids@r
116 setgroups int ids@1
117 setresuid id id id
118 getresuid >idp >idp >idp
119 setresgid id id id
120 getresgid >idp >idp >idp
121 getpgid pid
122 setfsuid id
123 setfsgid id
124 getsid pid
125 capget cap_header >capabilities
126 capset cap_header capabilities
127 rt_sigpending >sigset@2 size
128 rt_sigtimedwait sigset@4 >siginfo timespec size -> dec:signal
129 rt_sigqueueinfo pid signal siginfo
130 rt_sigsuspend sigset@2 size
131 sigaltstack sigaltstack >sigaltstack
132 utime path utimbuf
133 mknod path node_mode node_dev
134 uselib path
135 personality personality -> hex:personality
136 ustat dev >ustat
137 statfs path >statfs
138 fstatfs fd >statfs
139 sysfs int hex hex
140 getpriority priority_which int
141 setpriority priority_which int int
142 sched_setparam pid intp
143 sched_getparam pid >intp
144 sched_setscheduler pid sched_policy intp
145 sched_getscheduler pid -> dec:sched_policy
146 sched_get_priority_max sched_policy
147 sched_get_priority_min sched_policy
148 sched_rr_get_interval pid >timespec
149 mlock ptr size
150 munlock ptr size
151 mlockall mlockall_flags
152 munlockall
153 vhangup
154 modify_ldt int ptr size
155 pivot_root path path
156 _sysctl ptr
157 prctl prctl_option hex hex hex hex
158 arch_prctl arch_prctl_option hex
159 adjtimex >timex -> dec:adjtimex_state
160 setrlimit resource rlimit
161 chroot path
162 sync
163 acct path
164 settimeofday timeval timezone
165 mount path path str mount_flags str
166 umount2 path umount_flags
167 swapon path swap_flags
168 swapoff path
169 reboot reboot_magic1 reboot_magic2 reboot_cmd reboot_text
170 sethostname buf@2 uint
171 setdomainname buf@2 uint
172 iopl int
173 ioperm hex hex int
174 create_module
175 init_module ptr size str
176 delete_module str delete_module_flags
177 get_kernel_syms
178 query_module
179 quotactl hex32 path int ptr
180 nfsservctl
181 getpmsg
182 putpmsg
183 afs_syscall
184 tuxcall
185 security
186 gettid
187 readahead fd long size
188 setxattr path str buf@4 size xattr_flags
189 lsetxattr path str buf@4 size xattr_flags
190 fsetxattr fd str buf@4 size xattr_flags
191 getxattr path str >buf@r size
192 lgetxattr path str >buf@r size
193 fgetxattr fd str >buf@r size
194 listxattr path >buf@r size
195 llistxattr path >buf@r size
196 flistxattr fd >buf@r size
197 removexattr path str
198 lremovexattr path str
199 fremovexattr fd str
200 tkill pid signal
201 time >time -> time
202 futex ptr futex_op int hex ptr hex
203 sched_setaffinity pid size cpus@2
204 sched_getaffinity pid size >cpus@r
205 set_thread_area ptr
206 io_setup uint >hexp
207 io_destroy hex
208 io_getevents hex long long >io_events@r timespec
209 io_submit hex long ptrs@2
210 io_cancel hex iocb >io_event
211 get_thread_area ptr
212 lookup_dcookie hex >buf@r size
213 epoll_create int
214 epoll_ctl_old
215 epoll_wait_old
216 remap_file_pages ptr size prot size mapflags
217 getdents64 fd >dirents64@r uint
218 set_tid_address ptr
219 restart_syscall
220 semtimedop int sembufs@3 size timespec
221 fadvise64 fd long size fadvice
222 timer_create clockid sigevent >intp
223 timer_settime int timer_flags itimerspec >itimerspec
224 timer_gettime int >itimerspec
225 timer_getoverrun int
226 timer_delete int
227 clock_settime clock timespec
228 clock_gettime clock >timespec
229 clock_getres clock >timespec
230 clock_nanosleep clock timer_flags timespec !timespec
231 exit_group int -> never
232 epoll_wait fd >epoll_list@r int int
233 epoll_ctl fd epoll_op fd epoll_event
234 tgkill pid pid signal
235 utimes path timevals
236 vserver
237 mbind ptr size mempolicy_mode nodes@5 size mbind_flags
238 set_mempolicy mempolicy_mode nodes@3 size
239 get_mempolicy >intp >nodes@3 size ptr mempolicy_flags
240 mq_open str oflags omode mq_attr_if_new
241 mq_unlink str
242 mq_timedsend int buf@3 size uint timespec
243 mq_timedreceive int >buf@r size >uintp timespec
244 mq_notify int sigevent
245 mq_getsetattr int mq_attr >mq_attr
246 kexec_load ptr size ptr kexec_load_flags
247 waitid idtype pid >siginfo wait_options >rusage
248 add_key str str buf@4 size keyring
249 request_key str str str keyring
250 keyctl keyctl_op hex hex hex hex
251 ioprio_set ioprio_who int ioprio
252 ioprio_get ioprio_who int -> dec:ioprio
253 inotify_init
254 inotify_add_watch fd path inotify_mask
255 inotify_rm_watch fd int
256 migrate_pages pid size nodes@2 nodes@2
257 openat dirfd path oflags openat_mode
258 mkdirat dirfd path mode
259 mknodat dirfd path node_mode nodeat_dev
260 fchownat dirfd path id id at_flags
261 futimesat dirfd path timevals
262 newfstatat dirfd path >stat at_flags
263 unlinkat dirfd path unlink_flags
264 renameat dirfd path dirfd path
265 linkat dirfd path dirfd path at_flags
266 symlinkat path dirfd path
267 readlinkat dirfd path >buf@r size
268 fchmodat dirfd path mode
269 faccessat dirfd path access_mode
270 pselect6 int fd_set@1 fd_set@1 fd_set@1 timespec select_mask -> pselected
271 ppoll pollfds@2 uint timespec sigset@5 size -> ppolled
272 unshare unshare_flags
273 set_robust_list ptr size
274 get_robust_list pid >ptrp >ulongp
275 splice fd ~i64p fd ~i64p size splice_flags
276 tee fd fd size splice_flags
277 sync_file_range fd long long sync_range_flags
278 vmsplice fd iovec@3 size splice_flags
279 move_pages pid size ptrs@2 fds@2 >page_status@2 mbind_flags
280 utimensat dirfd path timespecs at_flags
281 epoll_pwait fd >epoll_list@r int int sigset@6 size
282 signalfd fd sigset@3 size
283 timerfd_create clockid timerfd_flags
284 eventfd uint
285 fallocate fd falloc_mode long long
286 timerfd_settime fd timerfd_set_flags itimerspec >itimerspec
287 timerfd_gettime fd >itimerspec
288 accept4 fd >filled_sockaddr@3 ~lenp sock_flags
289 signalfd4 fd sigset@3 size signalfd_flags
290 eventfd2 uint eventfd_flags
291 epoll_create1 epoll_flags
292 dup3 fd fd dup_flags
293 pipe2 >fd_pair pipe_flags
294 inotify_init1 inotify_flags
295 preadv fd ^filled_iovec@3 size long
296 pwritev fd iovec@3 size long
297 rt_tgsigqueueinfo pid pid signal siginfo
298 perf_event_open perf_event_attr pid int fd perf_flags
299 recvmmsg fd >filled_messages@r uint msg_flags timespec
300 fanotify_init fanotify_init_flags oflags
301 fanotify_mark fd fanotify_mark_flags fanotify_mask dirfd path
302 prlimit64 pid resource rlimit64 >rlimit64
303 name_to_handle_at dirfd path ~handle_space >intp handle_flags
304 open_by_handle_at fd file_handle oflags
305 clock_adjtime clock >timex -> dec:adjtimex_state
306 syncfs fd
307 sendmmsg fd messages@3 uint msg_flags
308 setns fd unshare_flags
309 getcpu >uintp >uintp ptr
310 process_vm_readv pid ^filled_iovec@3 size iovec_addresses@5 size size
311 process_vm_writev pid iovec@3 size iovec_addresses@5 size size
312 kcmp pid pid kcmp_type hex hex
313 finit_module fd str module_init_flags
314 sched_setattr pid sched_attr uint
315 sched_getattr pid >sched_attr uint uint
316 renameat2 dirfd path dirfd path rename_flags
317 seccomp seccomp_op uint ptr
318 getrandom >random@r size getrandom_flags
319 memfd_create str memfd_flags
320 kexec_file_load fd fd size str kexec_file_flags
321 bpf bpf_cmd ptr uint
322 execveat dirfd path argv environment at_flags
323 userfaultfd userfaultfd_flags
324 membarrier membarrier_cmd membarrier_flags
325 mlock2 ptr size mlock2_flags
326 copy_file_range fd ~i64p fd ~i64p size uint
327 preadv2 fd ^filled_iovec@3 size long 6:rwf_flags
328 pwritev2 fd iovec@3 size long 6:rwf_flags
329 pkey_mprotect ptr size prot int
330 pkey_alloc hex pkey_rights
331 pkey_free int
332 statx dirfd path statx_flags statx_mask >statx
333 io_pgetevents hex long long >io_events@r timespec select_mask
334 rseq ptr hex32 rseq_flags hex32
335 uretprobe
336 uprobe
424 pidfd_send_signal fd signal siginfo pidfd_signal_flags
425 io_uring_setup uint ^io_uring_params
426 io_uring_enter fd uint uint io_uring_enter_flags sigset@6 size
427 io_uring_register fd io_uring_op ptr uint
428 open_tree dirfd path open_tree_flags
429 move_mount dirfd path dirfd path move_mount_flags
430 fsopen str fsopen_flags
431 fsconfig fd fsconfig_cmd str ptr int
432 fsmount fd fsmount_flags mount_attr_flags
433 fspick dirfd path fspick_flags
434 pidfd_open pid pidfd_flags
435 clone3 ^clone_args@2 size
436 close_range uint uint close_range_flags
437 openat2 dirfd path open_how size
438 pidfd_getfd fd fd hex32
439 faccessat2 dirfd path access_mode faccess_flags
440 process_madvise fd iovec_addresses@3 size advice hex32
441 epoll_pwait2 fd >epoll_list@r int timespec sigset@6 size
442 mount_setattr dirfd path at_flags mount_attr size
443 quotactl_fd fd hex32 int ptr
444 landlock_create_ruleset landlock_ruleset size landlock_create_flags
445 landlock_add_rule fd landlock_rule landlock_path hex32
446 landlock_restrict_self fd hex32
447 memfd_secret memfd_secret_flags
448 process_mrelease fd hex32
449 futex_waitv waiters@2 uint hex32 timespec clockid
450 set_mempolicy_home_node ptr size size hex
451 cachestat fd cachestat_range >cachestat hex32
452 fchmodat2 dirfd path mode at_flags
453 map_shadow_stack ptr size shadow_stack_flags -> ptr
454 futex_wake ptr hex int futex2_flags
455 futex_wait ptr hex hex futex2_flags timespec clockid
456 futex_requeue waiters@2 uint int int
457 statmount mnt_id_req ptr size hex32
458 listmount mnt_id_req ptr size hex32
459 lsm_get_self_attr uint ptr >uintp hex32
460 lsm_set_self_attr uint ptr uint hex32
461 lsm_list_modules ptr >uintp hex32
462 mseal ptr size hex
463 setxattrat dirfd path at_flags str xattr_args size
464 getxattrat dirfd path at_flags str xattr_args size
465 listxattrat dirfd path at_flags >buf@r size
466 removexattrat dirfd path at_flags str
467 open_tree_attr dirfd path open_tree_flags mount_attr size
468 file_getattr dirfd path >file_attr size at_flags
469 file_setattr dirfd path file_attr size at_flags
470 listns ptr ptr size hex32
471 rseq_slice_yield
"""
