/* System calls of x86-64 Linux, without a C library: all that process 1 of our initramfs asks its kernel for.
 * Numbers and structs: the kernel's include/uapi. A result below 0 is -errno. */
#ifndef SYS_H
#define SYS_H

#include <stddef.h>
#include <stdint.h>

enum {
	SYS_read = 0, SYS_write = 1, SYS_open = 2, SYS_close = 3, SYS_rt_sigaction = 13, SYS_rt_sigreturn = 15, SYS_ioctl = 16, SYS_dup2 = 33, SYS_socket = 41,
	SYS_nanosleep = 35, SYS_fork = 57, SYS_execve = 59, SYS_exit = 60, SYS_wait4 = 61, SYS_chdir = 80,
	SYS_mkdir = 83, SYS_symlink = 88, SYS_setsid = 112, SYS_sync = 162, SYS_mount = 165, SYS_umount2 = 166,
	SYS_reboot = 169, SYS_sethostname = 170, SYS_ioperm = 173, SYS_finit_module = 313,
};

enum { O_RDONLY = 0, O_RDWR = 2, O_CLOEXEC = 02000000 };
enum { MS_RDONLY = 1, MS_NOSUID = 2, MS_NODEV = 4, MS_NOEXEC = 8 };
enum { MNT_DETACH = 2 };
enum { ENOENT = 2, EINTR = 4, ENXIO = 6, EEXIST = 17, ENODEV = 19, EINVAL = 22 };
enum { TIOCSCTTY = 0x540E, TIOCSWINSZ = 0x5414 };
enum { TCGETS = 0x5401, TCSETS = 0x5402, OPOST = 1, ECHO = 8 };
enum { AF_INET = 2, SOCK_DGRAM = 2, SIOCSIFFLAGS = 0x8914, IFF_UP = 1, IFF_RUNNING = 0x40 };
enum { SIGUSR1 = 10, SIGUSR2 = 12, SIGTERM = 15, SA_RESTORER = 0x4000000 };

#define REBOOT_MAGIC 0xfee1dead
#define REBOOT_MAGIC2 672274793
#define REBOOT_POWER_OFF 0x4321fedc
#define REBOOT_RESTART 0x01234567

struct timespec { int64_t seconds, ns; };
struct sigaction { void (*handler)(int); uint64_t flags; void (*restorer)(void); uint64_t mask; };
struct termios { uint32_t input, output, control, local; uint8_t line, characters[19]; };
struct ifreq { char name[16]; uint16_t flags; char rest[22]; };
struct winsize { uint16_t rows, columns, x, y; };

static inline long call5(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
}

static inline long call3(long number, long a, long b, long c)
{
	return call5(number, a, b, c, 0, 0);
}

#define PTR(p) ((long)(uintptr_t)(p))

#endif
