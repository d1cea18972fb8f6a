"""What a syscall returned, in words: errors by name, results as strace prints them.

A result from -4095 to -1 is an error (MAX_ERRNO in the kernel's include/linux/err.h). Numbers from 512 on
never reach a program: they tell the kernel how to go on after a signal (include/linux/errno.h), and
whoever watches from outside sees them.
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache

__all__ = ["MAX_ERRNO", "errno_name", "error_text", "is_error"]

MAX_ERRNO = 4095

# what the C library's aliases hide: the kernel's own name of the number
_KERNELS = {errno.EDEADLK: "EDEADLK", errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EAGAIN: "EAGAIN"}

_RESTARTS = {
    512: ("ERESTARTSYS", "To be restarted if SA_RESTART is set"),
    513: ("ERESTARTNOINTR", "To be restarted"),
    514: ("ERESTARTNOHAND", "To be restarted if no handler"),
    516: ("ERESTART_RESTARTBLOCK", "Interrupted by signal"),
}
_INTERNAL = {515: "ENOIOCTLCMD", 517: "EPROBE_DEFER", 518: "EOPENSTALE", 519: "ENOPARAM", 524: "ENOTSUPP"}


def is_error(result: int) -> bool:
    """Whether a result, as a signed number, is an error."""
    return -MAX_ERRNO <= result < 0


def errno_name(number: int) -> str:
    """The name: "ENOENT" for 2; "" for a number without a name."""
    if number in _RESTARTS:
        return _RESTARTS[number][0]
    return _KERNELS.get(number) or _INTERNAL.get(number) or errno.errorcode.get(number, "")


@lru_cache(MAX_ERRNO)
def error_text(number: int) -> str:
    """The result in words: "-1 ENOENT (No such file or directory)", "? ERESTARTSYS (…)" for a pause."""
    if number in _RESTARTS:
        name, meaning = _RESTARTS[number]
        return f"? {name} ({meaning})"
    name = errno_name(number)
    if not name:
        return f"-1 (errno {number})"
    return f"-1 {name} ({os.strerror(number)})"
