"""Blobs are files named by the SHA-256 of what they hold; one is there complete or not at all.

What comes in is written to a temporary file, synced, and renamed. What goes out is hashed again on its way.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pykvm.errors import ImageError, ImageNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import WriteableBuffer

__all__ = ["Blobs", "Ingest", "VerifyingReader", "digest_of", "parse_digest", "sync_directory", "write_whole"]

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of(data: bytes) -> str:
    """`sha256:` and the hexadecimal digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse_digest(text: object, where: str) -> str:
    """`text`, if it is a digest; it becomes part of a path. Raises ImageError naming `where`."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise ImageError(f"{where}: {str(text)[:80]!r} is no sha256 digest")
    return text


def sync_directory(path: Path) -> None:
    """Make the names in a directory last through a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Ingest:
    """One blob on its way in: `write` it, then `commit`."""

    def __init__(self, file: IO[bytes], target: Blobs) -> None:
        self._file = file
        self._target = target
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    @property
    def digest(self) -> str:
        """Of what has been written so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size_bytes += len(data)

    def drop(self) -> None:
        """Remove what has been written: it is of no use."""
        with suppress(FileNotFoundError):
            os.unlink(self._file.name)  # noqa: PTH108 - the name is a str

    def commit(self, expected: str = "", size_bytes: int | None = None) -> str:
        """Keep it under its digest, which is returned. Raises ImageError if another was expected."""
        digest = self.digest
        if size_bytes is not None and self.size_bytes != size_bytes:
            raise ImageError(f"{expected}: it has {self.size_bytes} bytes and not {size_bytes}")
        if expected and digest != expected:
            raise ImageError(f"{expected}: damaged or forged: its content has {digest}")
        self._file.flush()
        self._file.truncate(self.size_bytes)
        os.fsync(self._file.fileno())
        self._target.keep(self._file, digest)
        return digest


class VerifyingReader(io.RawIOBase):
    """A blob's bytes; reading its end raises ImageError if they are not what the digest says."""

    def __init__(self, file: IO[bytes], digest: str) -> None:
        self._file = file
        self._digest = digest
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view)  # type: ignore[attr-defined]  # IO lacks what FileIO has
        if count:
            self._hash.update(view[:count])
        elif len(view) and f"sha256:{self._hash.hexdigest()}" != self._digest:
            raise ImageError(
                f"{self._digest}: the blob is damaged; run `pykvm image verify --repair`, "
                "then load or pull its image again"
            )
        return int(count or 0)

    def close(self) -> None:
        self._file.close()
        super().close()


class Blobs:
    """The directory of blobs below `root`, as in an OCI image layout: blobs/sha256/HEX."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "blobs" / "sha256"
        self.incoming = root / "incoming"

    def path(self, digest: str) -> Path:
        """Where the blob is or would be."""
        return self.directory / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """Bytes of a blob. Raises ImageNotFoundError."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise _missing(digest) from None

    def open(self, digest: str) -> VerifyingReader:
        """The blob, verified when it has been read to its end. Raises ImageNotFoundError."""
        try:
            return VerifyingReader(self.path(digest).open("rb", buffering=0), digest)
        except FileNotFoundError:
            raise _missing(digest) from None

    def read(self, digest: str, limit: int) -> bytes:
        """All of a small blob, verified. Raises ImageError if it is larger than `limit` bytes."""
        if self.size(digest) > limit:
            raise ImageError(f"{digest}: larger than the {limit} bytes that such a document may have")
        with self.open(digest) as blob:
            return blob.readall()

    def put(self, data: bytes) -> str:
        """Keep `data`, of a few MB at most, also where damage is in its place; its digest."""
        digest = digest_of(data)
        if not self._holds(digest, data):
            with self.ingest() as incoming:
                incoming.write(data)
                incoming.commit(digest)
        return digest

    def _holds(self, digest: str, data: bytes) -> bool:
        try:
            return self.path(digest).read_bytes() == data
        except FileNotFoundError:
            return False

    @contextmanager
    def ingest(self) -> Iterator[Ingest]:
        """Take in one blob; nothing of it stays unless it is committed."""
        with self.temporary() as file:
            yield Ingest(file, self)

    @contextmanager
    def resumed(self, digest: str) -> Iterator[tuple[Ingest, IO[bytes]]]:
        """Take in one blob of which an earlier try may have left a part: what writes it, and that part.

        The part stays when the block ends without `commit`, for the next try. Who else takes in the same blob
        waits here.
        """
        path = self.incoming / f"part-{digest.removeprefix('sha256:')}"
        with path.open("ab") as made:
            fcntl.flock(made, fcntl.LOCK_EX)
            path.touch()  # whoever held it may have renamed it
            with open(str(path), "r+b") as file, path.open("rb") as part:  # noqa: PTH123 - its `name` is this str
                yield Ingest(file, self), part
            with suppress(FileNotFoundError):
                if not path.stat().st_size:
                    path.unlink()

    @contextmanager
    def temporary(self) -> Iterator[IO[bytes]]:
        """An unfinished file on the same file system, removed at the end unless renamed; held by a lock."""
        with _temporary(self.incoming) as file:
            yield file

    def keep(self, file: IO[bytes], digest: str) -> None:
        """Give a synced temporary file its name."""
        os.replace(file.name, self.path(digest))  # noqa: PTH105 - the name is a str
        sync_directory(self.directory)

    def sweep(self) -> int:
        """Remove all unfinished blobs, while nobody is at work on any; the bytes that are free now."""
        freed = 0
        for path in self.incoming.iterdir():
            freed += sum(one.lstat().st_size for one in [path, *path.rglob("*")] if not one.is_dir())
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        return freed


@contextmanager
def write_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears at `path` when the block ends without an error, synced; else nothing changes."""
    try:
        with _temporary(path.parent) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)  # noqa: PTH105 - the name is a str
            sync_directory(path.parent)
    except OSError as error:
        if error.filename is None or Path(str(error.filename)).name.startswith(".new-"):
            error.filename = str(path)  # that is the name the user knows
        raise


@contextmanager
def _temporary(directory: Path) -> Iterator[IO[bytes]]:
    fd, name = tempfile.mkstemp(prefix=".new-", dir=directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.fchmod(fd, 0o644)
        with open(name, "r+b", closefd=True) as file:  # noqa: PTH123 - its `name` must be this str
            yield file
    finally:
        os.close(fd)
        with suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108 - the name is a str


def _missing(digest: str) -> ImageNotFoundError:
    return ImageNotFoundError(f"{digest}: this blob is not in the store; load or pull its image again")
