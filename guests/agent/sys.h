/* System calls of x86-64 Linux without a C library. A result below 0 is -errno. Numbers and structs are the kernel's own. */
#ifndef SYS_H
#define SYS_H

#include <stddef.h>
#include <stdint.h>

#include <asm/ioctls.h>
#include <asm/stat.h>
#include <asm/termbits.h>
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

#define SYS_SIX(name, a, b, c, d, e, f, ...) \
	call6(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define SYS(name, ...) SYS_SIX(name __VA_OPT__(, ) __VA_ARGS__, 0, 0, 0, 0, 0, 0)

enum { MNT_DETACH = 2 };

#endif
