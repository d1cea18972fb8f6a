"""A server of the FUSE protocol for a folder of the host: one method an operation, by a table.

Source: the kernel's include/uapi/linux/fuse.h, version 7.31. What the table has not is answered ENOSYS, and
Linux does without it: extended attributes, locks (which are then the guest's own), ioctl.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pykvm.devices.virtio.host_folder import check_name, failure, magic_link

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.devices.virtio.host_folder import HostFolder

__all__ = ["IN_HEADER", "NO_ANSWER", "OUT_HEADER", "FuseServer", "Request"]

IN_HEADER = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, …
OUT_HEADER = struct.Struct("<IiQ")
_MAJOR, _MINOR = 7, 31
_ASYNC_READ, _ATOMIC_TRUNC, _BIG_WRITES = 1 << 0, 1 << 3, 1 << 5
_AUTO_INVAL, _PARALLEL_DIROPS, _MAX_PAGES = 1 << 12, 1 << 18, 1 << 22
_FLAGS = _ASYNC_READ | _ATOMIC_TRUNC | _BIG_WRITES | _AUTO_INVAL | _PARALLEL_DIROPS | _MAX_PAGES
_PAGES = 256
MOST_BYTES = _PAGES * 4096
_VALID_S = 1  # how long the guest may believe names and attributes: the host may change them
_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME, _FH, _ATIME_NOW, _MTIME_NOW = (1 << n for n in range(9))
_DIRENT = struct.Struct("<QQII")
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_HANDLES_MOST = 1 << 16
NO_ANSWER = object()


class Request(NamedTuple):
    """What the guest asks: the node it is about, what stands behind the header, and room for an answer.

    `data` are the pieces behind the first `head`, which holds at most 8 KiB; `room` is the answer's, behind
    its header.
    """

    node: int
    head: bytes
    data: Sequence[memoryview]
    room: Sequence[memoryview]


class FuseServer:
    """The operations on one HostFolder; answer() gives the bytes of an answer, or how many are in `room`."""

    def __init__(self, folder: HostFolder) -> None:
        self._folder = folder
        self._files: dict[int, int] = {}
        self._folders: dict[int, list[tuple[bytes, int, int]]] = {}
        self._handle = 0
        self._operations: dict[int, Callable[[Request], object]] = {
            1: self._lookup,
            2: self._forget,
            3: self._getattr,
            4: self._setattr,
            5: self._readlink,
            6: self._symlink,
            8: self._mknod,
            9: self._mkdir,
            10: self._unlink,
            11: self._rmdir,
            12: self._rename,
            13: self._link,
            14: self._open,
            15: self._read,
            16: self._write,
            17: self._statfs,
            18: self._release,
            20: self._fsync,
            26: self._init,
            27: self._opendir,
            28: self._readdir,
            29: self._releasedir,
            30: lambda _: b"",  # fsyncdir: a folder's names are the host's to keep
            35: self._create,
            36: lambda _: NO_ANSWER,  # interrupt: what waits here does not wait long
            38: self._destroy,
            42: self._batch_forget,
            43: self._fallocate,
            45: self._rename2,
        }

    def close(self) -> None:
        """Close all that the guest has open."""
        for fd in self._files.values():
            os.close(fd)
        self._files, self._folders = {}, {}
        self._folder.forget_all()

    def answer(self, opcode: int, request: Request) -> object:
        """The answer's bytes, how many of them are in `room` already, or NO_ANSWER. Raises OSError."""
        operation = self._operations.get(opcode)
        if operation is None:
            raise failure(errno.ENOSYS)
        try:
            return operation(request)
        except (struct.error, ValueError, OverflowError):  # too short, or numbers that no call takes
            raise failure(errno.EINVAL) from None

    # ---- the session

    def _init(self, request: Request) -> bytes:
        major, minor, readahead, flags = struct.unpack_from("<IIII", request.head)
        if major < _MAJOR:
            raise failure(errno.EPROTO)
        minor = min(minor, _MINOR)
        accepted = flags & _FLAGS
        self.close()
        return struct.pack(
            "<IIIIHHIIHHI28x",
            *(_MAJOR, minor, min(readahead, MOST_BYTES), accepted, 16, 12, MOST_BYTES, 1, _PAGES, 0, 0),
        )

    def _destroy(self, _: Request) -> bytes:
        self.close()
        return b""

    def _forget(self, request: Request) -> object:
        (count,) = struct.unpack_from("<Q", request.head)
        self._folder.forget(request.node, count)
        return NO_ANSWER

    def _batch_forget(self, request: Request) -> object:
        (count,) = struct.unpack_from("<I", request.head)
        whole = request.head + b"".join(request.data)
        for at in range(8, min(8 + 16 * count, len(whole) - 15), 16):
            self._folder.forget(*struct.unpack_from("<QQ", whole, at))
        return NO_ANSWER

    # ---- names

    def _name(self, data: bytes, count: int = 1) -> list[bytes]:
        """The NUL-terminated strings in `data`. Raises EINVAL if there are fewer."""
        parts = data.split(b"\0")
        if len(parts) <= count - (not data.endswith(b"\0")):
            raise failure(errno.EINVAL)
        return parts[:count]

    def _writable(self) -> None:
        if self._folder.is_read_only:
            raise failure(errno.EROFS)

    def _entry(self, parent: int, name: bytes) -> bytes:
        number, about = self._folder.look_up(parent, name)
        return struct.pack("<QQQQII", number, 0, _VALID_S, _VALID_S, 0, 0) + self._attributes(about)

    def _lookup(self, request: Request) -> bytes:
        (name,) = self._name(request.head)
        return self._entry(request.node, name)

    def _readlink(self, request: Request) -> bytes:
        return os.readlink(b"", dir_fd=self._folder.fd(request.node))

    def _symlink(self, request: Request) -> bytes:
        name, target = self._name(request.head, 2)
        self._writable()
        os.symlink(target, check_name(name), dir_fd=self._folder.fd(request.node))
        return self._entry(request.node, name)

    def _mknod(self, request: Request) -> bytes:
        (mode,) = struct.unpack_from("<I", request.head)
        (name,) = self._name(request.head[16:])
        self._writable()
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise failure(errno.EPERM)  # no devices
        os.mknod(check_name(name), mode, dir_fd=self._folder.fd(request.node))
        return self._entry(request.node, name)

    def _mkdir(self, request: Request) -> bytes:
        (mode,) = struct.unpack_from("<I", request.head)
        (name,) = self._name(request.head[8:])
        self._writable()
        os.mkdir(check_name(name), mode, dir_fd=self._folder.fd(request.node))
        return self._entry(request.node, name)

    def _unlink(self, request: Request) -> bytes:
        (name,) = self._name(request.head)
        self._writable()
        os.unlink(check_name(name), dir_fd=self._folder.fd(request.node))
        return b""

    def _rmdir(self, request: Request) -> bytes:
        (name,) = self._name(request.head)
        self._writable()
        os.rmdir(check_name(name), dir_fd=self._folder.fd(request.node))
        return b""

    def _rename(self, request: Request) -> bytes:
        (folder,) = struct.unpack_from("<Q", request.head)
        return self._move(request.node, folder, request.head[8:], 0)

    def _rename2(self, request: Request) -> bytes:
        folder, flags = struct.unpack_from("<QI", request.head)
        return self._move(request.node, folder, request.head[16:], flags)

    def _move(self, from_node: int, to_node: int, names: bytes, flags: int) -> bytes:
        old, new = self._name(names, 2)
        self._writable()
        source, target = self._folder.fd(from_node), self._folder.fd(to_node)
        check_name(old), check_name(new)
        if not flags:
            os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
        elif flags not in (_RENAME_NOREPLACE, _RENAME_EXCHANGE):
            raise failure(errno.EINVAL)
        elif ctypes.CDLL(None, use_errno=True).renameat2(source, old, target, new, flags):
            raise failure(ctypes.get_errno())  # Python's os has no renameat2
        return b""

    def _link(self, request: Request) -> bytes:
        (node,) = struct.unpack_from("<Q", request.head)
        (name,) = self._name(request.head[8:])
        self._writable()
        if stat.S_ISLNK(self._folder.stat(node).st_mode):
            raise failure(errno.EPERM)
        source, target = magic_link(self._folder.fd(node)), self._folder.fd(request.node)
        os.link(source, check_name(name), dst_dir_fd=target, follow_symlinks=True)
        return self._entry(request.node, name)

    # ---- attributes

    def _attributes(self, about: os.stat_result) -> bytes:
        return _attributes(about, *self._folder.shown_owner(about))

    def _getattr(self, request: Request) -> bytes:
        return struct.pack("<QII", _VALID_S, 0, 0) + self._attributes(self._folder.stat(request.node))

    def _setattr(self, request: Request) -> bytes:
        fields = struct.unpack_from("<IIQQQQQQIIIIIIII", request.head)
        valid, size, mode, uid, gid = fields[0], fields[3], fields[11], fields[13], fields[14]
        self._writable()
        path = magic_link(self._folder.fd(request.node))
        if stat.S_ISLNK(self._folder.stat(request.node).st_mode):
            raise failure(errno.EOPNOTSUPP)
        if valid & _MODE:
            Path(path).chmod(stat.S_IMODE(mode))
        if valid & (_UID | _GID):
            uid, gid = self._folder.real_owner(uid, gid)
            os.chown(path, uid if valid & _UID else -1, gid if valid & _GID else -1)
        if valid & _SIZE:
            fd = self._folder.reopen(request.node, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.ftruncate(fd, size)
            finally:
                os.close(fd)
        if valid & (_ATIME | _MTIME):
            self._set_times(path, request.node, fields)
        return self._getattr(request)

    def _set_times(self, path: str, node: int, fields: Sequence[int]) -> None:
        valid, now = fields[0], os.fstat(self._folder.fd(node))

        def one(wanted: int, at_once: int, seconds: int, ns: int, before: int) -> int:
            if not valid & wanted:
                return before
            return time.time_ns() if valid & at_once else seconds * 1_000_000_000 + ns

        accessed = one(_ATIME, _ATIME_NOW, fields[5], fields[8], now.st_atime_ns)
        modified = one(_MTIME, _MTIME_NOW, fields[6], fields[9], now.st_mtime_ns)
        os.utime(path, ns=(accessed, modified))

    def _statfs(self, request: Request) -> bytes:
        about = os.fstatvfs(self._folder.fd(request.node))
        counts = (about.f_blocks, about.f_bfree, about.f_bavail, about.f_files, about.f_ffree)
        return struct.pack("<5Q4I24x", *counts, about.f_bsize, about.f_namemax, about.f_frsize, 0)

    # ---- files

    def _new_handle(self) -> int:
        if len(self._files) + len(self._folders) >= _HANDLES_MOST:
            raise failure(errno.ENFILE)
        self._handle += 1
        return self._handle

    def _file(self, handle: int) -> int:
        if handle not in self._files:
            raise failure(errno.EBADF)
        return self._files[handle]

    def _flags(self, flags: int) -> int:
        """Those of open(2) that are ours to obey: the guest has its own page cache and positions."""
        access = flags & os.O_ACCMODE
        if access != os.O_RDONLY or flags & os.O_TRUNC:
            self._writable()
        if access == os.O_WRONLY:
            access = os.O_RDWR  # the guest's cache reads what it writes a part of
        return access | flags & os.O_TRUNC | os.O_NONBLOCK

    def _opened(self, fd: int) -> bytes:
        try:
            handle = self._new_handle()
        except OSError:
            os.close(fd)
            raise
        self._files[handle] = fd
        return struct.pack("<QII", handle, 0, 0)

    def _open(self, request: Request) -> bytes:
        (wanted,) = struct.unpack_from("<I", request.head)
        flags = self._flags(wanted)
        try:
            return self._opened(self._folder.reopen(request.node, flags))
        except PermissionError:
            if flags & os.O_ACCMODE == wanted & os.O_ACCMODE:
                raise
        return self._opened(self._folder.reopen(request.node, os.O_WRONLY | flags & ~os.O_ACCMODE))

    def _create(self, request: Request) -> bytes:
        wanted, mode = struct.unpack_from("<II", request.head)
        (name,) = self._name(request.head[16:])
        self._writable()
        flags = self._flags(wanted) | os.O_CREAT | wanted & os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(check_name(name), flags, stat.S_IMODE(mode), dir_fd=self._folder.fd(request.node))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise failure(errno.EPERM)
        try:
            entry = self._entry(request.node, name)
        except OSError:
            os.close(fd)
            raise
        return entry + self._opened(fd)

    def _read(self, request: Request) -> int:
        handle, offset, size = struct.unpack_from("<QQI", request.head)
        pieces = _cut(request.room, min(size, MOST_BYTES))
        return os.preadv(self._file(handle), pieces, offset) if pieces else 0

    def _write(self, request: Request) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", request.head)
        fd = self._file(handle)
        self._writable()
        if len(request.head) > 40:
            raise failure(errno.EINVAL)
        pieces = _cut(request.data, min(size, MOST_BYTES))
        done = os.pwritev(fd, pieces, offset) if pieces else 0
        return struct.pack("<II", done, 0)

    def _release(self, request: Request) -> bytes:
        (handle,) = struct.unpack_from("<Q", request.head)
        fd = self._file(handle)
        del self._files[handle]
        os.close(fd)
        return b""

    def _fsync(self, request: Request) -> bytes:
        handle, only_data = struct.unpack_from("<QI", request.head)
        (os.fdatasync if only_data & 1 else os.fsync)(self._file(handle))
        return b""

    def _fallocate(self, request: Request) -> bytes:
        handle, offset, size, mode = struct.unpack_from("<QQQI", request.head)
        self._writable()
        if mode:
            raise failure(errno.EOPNOTSUPP)
        os.posix_fallocate(self._file(handle), offset, size)
        return b""

    # ---- folders

    def _opendir(self, request: Request) -> bytes:
        handle = self._new_handle()
        self._folders[handle] = self._listing(request.node)
        return struct.pack("<QII", handle, 0, 0)

    def _listing(self, node: int) -> list[tuple[bytes, int, int]]:
        """(name, inode, type) of all in a folder, with itself and a parent of which it tells nothing."""
        fd = self._folder.reopen(node, os.O_RDONLY | os.O_DIRECTORY)
        try:
            own = os.fstat(fd).st_ino
            found = [(b".", own, stat.S_IFDIR >> 12), (b"..", own, stat.S_IFDIR >> 12)]
            with os.scandir(fd) as entries:
                found += [(os.fsencode(entry.name), entry.inode(), _kind(entry)) for entry in entries]
        finally:
            os.close(fd)
        return found

    def _readdir(self, request: Request) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", request.head)
        if handle not in self._folders:
            raise failure(errno.EBADF)
        if offset == 0:
            self._folders[handle] = self._listing(request.node)
        out = bytearray()
        size = min(size, sum(map(len, request.room)))
        for index, (name, inode, kind) in enumerate(self._folders[handle][offset:], start=offset + 1):
            entry = _DIRENT.pack(inode, index, len(name), kind) + name
            entry += bytes(-len(entry) % 8)
            if len(out) + len(entry) > size:
                break
            out += entry
        return bytes(out)

    def _releasedir(self, request: Request) -> bytes:
        (handle,) = struct.unpack_from("<Q", request.head)
        if self._folders.pop(handle, None) is None:
            raise failure(errno.EBADF)
        return b""


def _kind(entry: os.DirEntry[str]) -> int:
    """Its type as struct fuse_dirent has it; 0 where it is none of the usual ones."""
    if entry.is_symlink():
        return stat.S_IFLNK >> 12
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR >> 12
    return stat.S_IFREG >> 12 if entry.is_file(follow_symlinks=False) else 0


def _attributes(about: os.stat_result, uid: int, gid: int) -> bytes:
    """struct fuse_attr."""
    times = (about.st_atime_ns, about.st_mtime_ns, about.st_ctime_ns)
    return struct.pack(
        "<6Q10I",
        *(about.st_ino, about.st_size, about.st_blocks),
        *(t // 1_000_000_000 & (1 << 64) - 1 for t in times),
        *(t % 1_000_000_000 for t in times),
        *(about.st_mode, about.st_nlink, uid, gid, about.st_rdev & 0xFFFFFFFF),
        *(about.st_blksize, 0),
    )


def _cut(pieces: Sequence[memoryview], size: int) -> list[memoryview]:
    """The first `size` bytes of `pieces`."""
    out = []
    for piece in pieces:
        if size <= 0:
            break
        out.append(piece[:size])
        size -= len(piece)
    return out
