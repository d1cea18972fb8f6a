/* A file system mounted nowhere: only who has the descriptor sees it, and it goes when that is closed.
   Source: fsopen(2), fsconfig(2), fsmount(2), of Linux 5.2; the numbers are for older headers. */
#include "detached_mount.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_fsopen
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif

enum { OPEN_CLOEXEC = 1, CMD_CREATE = 6, MOUNT_CLOEXEC = 1 };

/* The root of a mount of `type`, or -errno. */
int detached_mount(const char *type)
{
    long mount = -1, error = 0;
    long context = syscall(SYS_fsopen, type, OPEN_CLOEXEC);
    if (context < 0)
        return -errno;
    if (syscall(SYS_fsconfig, context, CMD_CREATE, NULL, NULL, 0) == 0)
        mount = syscall(SYS_fsmount, context, MOUNT_CLOEXEC, 0);
    if (mount < 0)
        error = errno;
    close((int)context);
    return (int)(mount < 0 ? -error : mount);
}
