"""Linux's syscalls in words, as strace prints them: for x86-64 (SYSCALL) and for i386 (INT 0x80, SYSENTER).

::

    call = describe(number, args, read=read)     close(3), when the program makes it
    call.returned(result, read=read)             close(3)                                = 0

`read(gva, size_bytes)` is the only way to the program's memory, for a guest its page tables
(`pykvm.paging.read_virtual`). What can't be read is printed as an address.

How arguments are spelled
-------------------------
A syscall is one line of `table` (or `table_i386`): its number, its name, and one word an argument::

    257 openat dirfd path oflags openat_mode
    0   read fd >buf@r size
    9   mmap ptr size prot mapflags fd hex -> ptr

A word is `[label=][n:][when]kind[@m]`:

=========== ===========================================================================================
`kind`      what the argument is: fd, path, prot, timespec, …
`n:`        it is the nth argument of the kernel's, counted from 1; without, they stand in order
`label=`    it is printed with a name before it, as clone's are
`>kind`     the kernel fills it in: an address at first, its content once the call has succeeded
`!kind`     the kernel fills it in when a signal interrupts the call (the time that is left)
`~kind`     the kernel changes it: printed as "before => after"
`^kind`     the kernel changes it: what it was is replaced by what it is
`kind@m`    argument m says how many there are; `kind@r`: the result does
`-> kind`   how the result is printed, at the end of the line: ptr, octal, hex:KIND, … (`results`)
=========== ===========================================================================================

Where a command says what the other arguments are (fcntl, ioctl, prctl, futex, …), `variants` has a line
for the command.

How to add one
--------------
- A syscall: a line in `table`, at its number, and the name in `table_i386`. A test compares both with the
  kernel's header and says which are missing.
- Names for a number: a line in `flags` (bits) or `values` (one of several); its name is the kind. Another
  test compares every number with the kernel's headers.
- A struct: a line in `structs`; its name is the kind.
- Anything else: a function `(call, value) -> str | None`, or `(call, gva, count) -> str` for kinds with
  `@`, in the table at the end of its module: `scalars` (numbers), `strings`, `lists`, `events` (poll, select,
  epoll), `files`, `processes`, `times`, `sockets`, `messages`, `specials` (what hangs on its neighbours). It
  reads by `call.exactly()`, `call.up_to()` and `call.words()`, which never raise and end after a while; it
  never raises itself, whatever it finds there. None leaves the argument out.
"""

from __future__ import annotations

from pykvm.trace.syscalls.decode import (
    STRING_BYTES,
    SyscallText,
    describe,
    result_text,
    syscall_name,
    syscall_number,
)

__all__ = ["STRING_BYTES", "SyscallText", "describe", "result_text", "syscall_name", "syscall_number"]
