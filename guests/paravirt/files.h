/* What files.c and io.c share. */
#ifndef FILES_H
#define FILES_H

#include "paravirt_boot.h"

#define FILES_MAX 64

enum kind { /* of a device, its paravirt_file.data */
    KIND_CONSOLE = PARAVIRT_CONSOLE,
    KIND_NULL = PARAVIRT_NULL,
    KIND_ZERO = PARAVIRT_ZERO,
    KIND_RANDOM = PARAVIRT_RANDOM,
    KIND_DISK = PARAVIRT_DISK,
    KIND_FILE,
    KIND_DIRECTORY,
};

struct open_file { /* several descriptors may share one, and its offset */
    enum kind kind;
    unsigned references, flags;
    const struct paravirt_file *file; /* 0: the console that a program begins with */
    uint64_t offset;                  /* of a directory: the index of the next entry */
};

struct open_file *file_at(int64_t fd);
extern uint64_t disk_bytes; /* of the machine's disk, known since it was opened */

#endif
