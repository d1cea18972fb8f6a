/* A container on this very kernel: contain PROGRAM WORKLOAD N [DISK], without a C library.
 *
 * The program gets namespaces of its own, a root with itself and the disk in it, and no way back; then it is
 * executed as ever. Root is not needed: a user namespace gives the right to all the others. Its status is ours, 125
 * and a line if a step fails.
 */
#include <stddef.h>
#include <stdint.h>

#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <linux/signal.h>

enum { FAILED = 125, ROOT_MODE = 0755, WALL = 0x40000000, MOST = 1 << 30 };
#define NAMESPACES                                                                                                 \
    (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWNET)
#define PLACE "/tmp" /* ours alone, once a file system of our own is mounted there */

static long ask(long number, long a, long b, long c, long d, long e)
{
    register long r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = 0;
    asm volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return number;
}

#define ASK(name, a, b, c, d, e) ask(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

static size_t length(const char *text)
{
    size_t n = 0;
    while (text[n])
        n++;
    return n;
}

static void say(const char *text)
{
    ASK(write, 2, text, length(text), 0, 0);
}

static _Noreturn void leave(long status)
{
    for (;;)
        ASK(exit_group, status, 0, 0, 0, 0);
}

/* The end if a step has failed: it says which, and the error's number. */
static long need(long result, const char *step)
{
    char digits[] = ": error 000\n";
    if (result >= 0)
        return result;
    for (long at = 10, number = -result; at >= 8; at--, number /= 10)
        digits[at] = (char)('0' + number % 10);
    say(step);
    say(digits);
    leave(FAILED);
}

static void write_file(const char *path, const char *text)
{
    long fd = need(ASK(open, path, O_WRONLY | O_CLOEXEC, 0, 0, 0), path);
    need(ASK(write, fd, text, length(text), 0, 0), path);
    ASK(close, fd, 0, 0, 0, 0);
}

/* "0 UID 1": root inside is who we are outside. */
static void map_to(const char *path, long id)
{
    char text[32] = "0 ", digits[16];
    size_t n = 0, at = 2;
    do
        digits[n++] = (char)('0' + id % 10);
    while (id /= 10);
    while (n)
        text[at++] = digits[--n];
    text[at++] = ' ', text[at++] = '1';
    write_file(path, text);
}

static void copy(long source, const char *to)
{
    long target = need(ASK(open, to, O_WRONLY | O_CREAT | O_CLOEXEC, ROOT_MODE, 0, 0), to);
    while (need(ASK(sendfile, target, source, 0, MOST, 0), "sendfile") > 0)
        ;
    ASK(close, target, 0, 0, 0, 0);
    ASK(close, source, 0, 0, 0, 0);
}

/* The first process of the new namespaces. What it mounts ends with it. */
static _Noreturn void contained(char **words)
{
    char *argv[] = {"/program", words[1], words[2], words[3] ? "/disk" : 0, 0}, *none[] = {0};
    long program = need(ASK(open, words[0], O_RDONLY | O_CLOEXEC, 0, 0, 0), words[0]), disk = -1;
    if (words[3]) /* now: they may be below PLACE */
        disk = need(ASK(open, words[3], O_RDONLY | O_CLOEXEC, 0, 0, 0), words[3]);
    need(ASK(sethostname, "box", 3, 0, 0, 0), "sethostname");
    need(ASK(mount, 0, "/", 0, MS_REC | MS_PRIVATE, 0), "mount private");
    need(ASK(mount, "root", PLACE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755"), "mount tmpfs");
    copy(program, PLACE "/program");
    if (words[3])
        copy(disk, PLACE "/disk");
    ASK(mkdir, PLACE "/proc", ROOT_MODE, 0, 0, 0);
    ASK(mount, "proc", PLACE "/proc", "proc", 0, 0); /* some hosts that are containers forbid it */
    need(ASK(chdir, PLACE, 0, 0, 0, 0), "chdir");
    need(ASK(pivot_root, ".", ".", 0, 0, 0), "pivot_root");
    need(ASK(umount2, ".", 2, 0, 0, 0), "umount2");
    need(ASK(execve, argv[0], argv, none, 0, 0), "execve");
    leave(FAILED);
}

static long contain(char **words)
{
    struct clone_args how = {.flags = NAMESPACES, .exit_signal = SIGCHLD};
    long uid = ASK(getuid, 0, 0, 0, 0, 0), gid = ASK(getgid, 0, 0, 0, 0, 0), child;
    int status = 0;
    child = need(ASK(clone3, &how, sizeof how, 0, 0, 0), "clone3 with namespaces");
    if (!child) {
        write_file("/proc/self/setgroups", "deny");
        map_to("/proc/self/uid_map", uid);
        map_to("/proc/self/gid_map", gid);
        contained(words);
    }
    need(ASK(wait4, child, &status, WALL, 0, 0), "wait4");
    return status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff;
}

void begin(long *stack) /* called by _start */
{
    leave(stack[0] < 4 ? FAILED : contain((char **)(stack + 2)));
}

asm(".section .text.start, \"ax\"\n .globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call begin\n ud2");
