"""Where there is no usable /dev/kvm, the error says why and what to do; nothing is left open."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pykvm import kvm as kvm_module
from pykvm._native import ffi, lib
from pykvm.errors import (
    ConfigError,
    GuestAddressError,
    GuestError,
    ImageError,
    ImageNotFoundError,
    KvmError,
    KvmUnavailableError,
    LabError,
    LabTimeoutError,
    PykvmError,
    ToolchainError,
    UnclaimedIoError,
)
from pykvm.kvm import Kvm, capability_names, get_msrs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def no_fd_left() -> Iterator[None]:
    """Every test leaves as many fds as it found."""
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def refused(code: int, monkeypatch: pytest.MonkeyPatch) -> KvmUnavailableError:
    """The error where open() says `code`."""

    def no(*_: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", no)
    with pytest.raises(KvmUnavailableError) as caught:
        Kvm()
    return caught.value


@pytest.mark.parametrize("code", sorted(kvm_module._UNAVAILABLE))
def test_each_way_to_have_no_kvm_says_the_next_step(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Absent, not permitted, no module, busy: errno is kept and one line tells what to do."""
    error = refused(code, monkeypatch)
    assert error.errno == code
    assert str(error) == f"/dev/kvm: {os.strerror(code)}; {kvm_module._UNAVAILABLE[code]}"
    assert "\n" not in str(error)
    assert isinstance(error, OSError)


def test_an_unforeseen_way_keeps_the_kernel_s_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hint is no reason to lose the error."""
    assert str(refused(errno.EMFILE, monkeypatch)) == f"/dev/kvm: {os.strerror(errno.EMFILE)}"


def test_no_device_at_all(tmp_path: Path) -> None:
    """A path where nothing is."""
    with pytest.raises(KvmUnavailableError) as caught:
        Kvm(str(tmp_path / "kvm"))
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("what", ["file", "fifo", "null"])
def test_something_else_under_that_name(tmp_path: Path, what: str) -> None:
    """A file, a pipe or another device is not KVM, and is closed again."""
    path = tmp_path / "kvm"
    if what == "file":
        path.write_bytes(b"")
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path = Path(os.devnull)
    with pytest.raises(KvmUnavailableError, match="this is not KVM's device") as caught:
        Kvm(str(path))
    assert caught.value.errno == errno.ENOTTY


def test_a_directory_under_that_name(tmp_path: Path) -> None:
    """It can't be opened for writing, and that is what is said."""
    with pytest.raises(KvmUnavailableError) as caught:
        Kvm(str(tmp_path))
    assert caught.value.errno == errno.EISDIR


class FakeCall:
    """Answers ioctls by name; an exception among the answers is raised."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {
            name: answer if isinstance(answer, list) else [answer] for name, answer in answers.items()
        }
        self.count = 0

    def __call__(self, fd: int, name: str, argument: Any = None) -> int:
        self.count += 1
        answers = self.answers[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return int(answer(argument)) if callable(answer) else int(answer)


@pytest.mark.parametrize("version", [0, 11, 13, 1 << 20])
def test_a_foreign_api_version_is_refused(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """The kernel's document: any version but 12 is not to be used."""
    monkeypatch.setattr(
        kvm_module, "call", FakeCall(KVM_GET_API_VERSION=version, KVM_GET_VCPU_MMAP_SIZE=8192)
    )
    with pytest.raises(KvmUnavailableError, match=f"its API version is {version}, pykvm needs 12"):
        Kvm(os.devnull)


def fake_kvm(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> tuple[Kvm, FakeCall]:
    call = FakeCall(KVM_GET_API_VERSION=lib.KVM_API_VERSION, KVM_GET_VCPU_MMAP_SIZE=8192, **answers)
    monkeypatch.setattr(kvm_module, "call", call)
    return Kvm(os.devnull), call


def test_closing_twice_closes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second close() does not hit an fd that has become somebody else's."""
    kvm, _ = fake_kvm(monkeypatch)
    kvm.close()
    other = os.open(os.devnull, os.O_RDONLY)
    kvm.close()
    os.close(other)


def test_a_signal_while_a_vm_is_made_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM_CREATE_VM is asked again after EINTR, and only then."""
    interrupted = KvmError(errno.EINTR, "KVM_CREATE_VM")
    with fake_kvm(monkeypatch, KVM_CREATE_VM=[interrupted, interrupted, 7])[0] as kvm:
        assert kvm.create_vm() == 7
    busy = KvmError(errno.EBUSY, "KVM_CREATE_VM")
    with fake_kvm(monkeypatch, KVM_CREATE_VM=busy)[0] as kvm, pytest.raises(KvmError) as caught:
        kvm.create_vm()
    assert caught.value.errno == errno.EBUSY


def test_unreadable_msrs_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM_GET_MSRS stops at one it can't read; those behind it are read all the same."""
    unreadable = {2, 3, 6}

    def answer(msrs: Any) -> int:
        for i in range(msrs.nmsrs):
            if msrs.entries[i].index in unreadable:
                return i
            msrs.entries[i].data = msrs.entries[i].index * 10
        return int(msrs.nmsrs)

    monkeypatch.setattr(kvm_module, "call", FakeCall(KVM_GET_MSRS=answer))
    assert get_msrs(0, [1, 2, 3, 4, 5, 6]) == {1: 10, 4: 40, 5: 50}
    assert get_msrs(0, []) == {}


def test_capabilities_have_the_header_s_numbers() -> None:
    """Names and numbers come from the header that pykvm was compiled against."""
    names = capability_names()
    assert names["KVM_CAP_IRQCHIP"] == 0
    assert names["KVM_CAP_SYNC_REGS"] == lib.KVM_CAP_SYNC_REGS
    assert len(names) > 100


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (PykvmError, 125),
        (ConfigError, 125),
        (ImageError, 126),
        (ImageNotFoundError, 127),
        (LabError, 125),
        (LabTimeoutError, 124),
        (ToolchainError, 125),
        (GuestError, 125),
        (GuestAddressError, 125),
        (UnclaimedIoError, 125),
        (KvmError, 125),
        (KvmUnavailableError, 125),
    ],
)
def test_each_error_has_its_exit_status(kind: type[PykvmError], status: int) -> None:
    """The statuses are those that errors.py draws."""
    assert kind.exit_status == status
    assert issubclass(kind, PykvmError)


@pytest.mark.parametrize("kind", [KvmError, KvmUnavailableError])
def test_an_error_survives_pickling(kind: type[KvmError]) -> None:
    """errno, the ioctl's name and the hint come out of another process as they went in."""
    error = kind(errno.EBUSY, "KVM_CREATE_VM", "close the other one")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is kind
    assert (again.errno, again.call, again.hint, str(again)) == (
        error.errno,
        error.call,
        error.hint,
        str(error),
    )


def test_cpuid_rows_are_in_the_struct_s_order() -> None:
    """(function, index, flags, eax, ebx, ecx, edx): the order in which set_cpuid() fills the struct."""
    entry = ffi.new("struct kvm_cpuid_entry2 *", (1, 2, 3, 4, 5, 6, 7))
    assert kvm_module.cpuid_row(entry) == (1, 2, 3, 4, 5, 6, 7)
    assert (entry.function, entry.index, entry.flags, entry.edx) == (1, 2, 3, 7)
