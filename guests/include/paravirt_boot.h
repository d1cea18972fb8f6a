/* What pykvm tells the paravirtual kernel (guests/paravirt) when it starts: one struct in guest RAM.
 *
 * The kernel and Python (pykvm/paravirt) read this file. The kernel is entered in 64-bit mode with the
 * struct's gpa in RDI. Addresses are gpas; everything that the struct points to lies below `ram[0].start`, and
 * files and the program begin on a page of their own, with zeros up to the next.
 */
#ifndef PYKVM_PARAVIRT_BOOT_H
#define PYKVM_PARAVIRT_BOOT_H

#define PARAVIRT_MAGIC 0x7669766b7670ull
#define PARAVIRT_VERSION 1
#define PARAVIRT_RAM_RANGES 2

/* The kernel's HC_MARK for a system call that it does not have, once for each: this, plus the number. */
#define PARAVIRT_MARK_ENOSYS 0x454e4f5359530000ull

/* What a device in the file set is: its paravirt_file.data. */
#define PARAVIRT_CONSOLE 1
#define PARAVIRT_NULL 2
#define PARAVIRT_ZERO 3
#define PARAVIRT_RANDOM 4
#define PARAVIRT_DISK 5 /* the machine's, a block device to read from */

#ifndef __ASSEMBLER__
#include <stdint.h>

struct paravirt_range {
    uint64_t start, end;
};

/* One file, directory or device of the read-only set, sorted by path; "/" is the first. */
struct paravirt_file {
    uint64_t path;      /* its path from / on, without a NUL */
    uint64_t path_hash; /* FNV-1a, 64 bit, of the path */
    uint64_t data;
    uint64_t size_bytes;
    int64_t mtime_s;
    uint32_t path_bytes;
    uint32_t mode;   /* as in st_mode */
    uint64_t parent; /* the index of its directory */
};

struct paravirt_boot {
    uint64_t magic;
    uint32_t version;
    uint32_t size_bytes; /* of this struct: a newer host appends */
    struct paravirt_range ram[2]; /* whole pages, all zero, free for the kernel; the second may be empty */
    uint64_t program, program_bytes; /* a static ELF file */
    uint64_t strings, strings_bytes; /* the arguments, then the environment, each with its NUL */
    uint64_t string_at;              /* uint32_t for each of them: its offset in `strings` */
    uint32_t argc, envc;
    uint64_t path, path_bytes; /* of the program's file, from / on: what /proc/self/exe points to */
    uint64_t files; /* struct paravirt_file for each */
    uint64_t file_count;
    uint64_t trace_records; /* capacity of the syscall ring that the host wants, a power of two; 0: none */
    int64_t realtime_ns;    /* added to HC_TIME it gives the time of day, ns since 1970 */
    uint8_t random[32];
};
#endif

#endif
