"""Every ioctl number is the kernel header's; an ioctl that fails says which, why, and what to do next."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from pykvm import ioctls
from pykvm._native import ffi, lib
from pykvm.errors import KvmError

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBER_BITS = 0xFFFFFFFF


class FakeKernel:
    """Stands in for the compiled extension: answers ioctls from a list and remembers them."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[int, int, int]] = []

    def kvm_ioctl(self, fd: int, number: int, argument: Any) -> int:
        self.seen.append((fd, number, int(ffi.cast("uintptr_t", argument))))
        return self.answers.pop(0)


@pytest.fixture
def null_fd() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("name", sorted(ioctls.ALL))
def test_each_number_is_the_headers(name: str) -> None:
    """ioctl-opt, from direction, number and size, gives what the C compiler makes of the macro."""
    assert ioctls.ALL[name].number == getattr(lib, name) & NUMBER_BITS
    assert ioctls.ALL[name].name == name


def test_no_name_is_listed_twice() -> None:
    """The table has one row per ioctl."""
    names = [row[0] for row in ioctls._TABLE]
    assert len(names) == len(set(names)) == len(ioctls.ALL)


def test_a_result_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel answers, 0 or more, is the result."""
    monkeypatch.setattr(ioctls, "lib", FakeKernel(0, 12))
    assert ioctls.call(3, "KVM_RUN") == 0
    assert ioctls.call(3, "KVM_GET_API_VERSION") == 12


def test_an_int_travels_as_a_value_and_nothing_as_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM_SET_TSS_ADDR takes the address itself; an ioctl without argument gets 0; a struct its address."""
    kernel = FakeKernel(0, 0, 0)
    monkeypatch.setattr(ioctls, "lib", kernel)
    struct = ffi.new("struct kvm_regs *")
    ioctls.call(3, "KVM_SET_TSS_ADDR", 0xFEFFD000)
    ioctls.call(3, "KVM_RUN")
    ioctls.call(3, "KVM_GET_REGS", struct)
    assert [argument for _, _, argument in kernel.seen] == [0xFEFFD000, 0, int(ffi.cast("uintptr_t", struct))]


@pytest.mark.parametrize(("name", "code"), sorted(ioctls._HINTS))
def test_a_known_failure_says_the_next_step(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """The error names the ioctl, the kernel's reason and the hint, in one line, and keeps errno."""
    monkeypatch.setattr(ioctls, "lib", FakeKernel(-code))
    with pytest.raises(KvmError) as caught:
        ioctls.call(3, name)
    assert caught.value.errno == code
    assert caught.value.call == name
    assert str(caught.value) == f"{name}: {os.strerror(code)}; {ioctls._HINTS[name, code]}"
    assert "\n" not in str(caught.value)


def test_the_kernel_s_own_refusal_comes_back_as_its_errno(null_fd: int) -> None:
    """/dev/null knows no ioctl of KVM's, and a closed fd none at all."""
    with pytest.raises(KvmError) as caught:
        ioctls.call(null_fd, "KVM_CREATE_VM")
    assert caught.value.errno == errno.ENOTTY
    with pytest.raises(KvmError) as caught:
        ioctls.call(1 << 20, "KVM_CREATE_VM")
    assert caught.value.errno == errno.EBADF


class CountingKernel:
    """Wants room for `entries`: E2BIG for less, as KVM_GET_SUPPORTED_CPUID does."""

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self.rooms: list[int] = []

    def kvm_ioctl(self, fd: int, number: int, argument: Any) -> int:
        self.rooms.append(argument.nent)
        if argument.nent < self.entries:
            return -errno.E2BIG
        argument.nent = self.entries
        return 0


@pytest.mark.parametrize("entries", [1, 4, 5, 8, 9, 1000])
def test_a_list_grows_until_it_fits(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    """E2BIG doubles the room; the answer tells how many there are."""
    kernel = CountingKernel(entries)
    monkeypatch.setattr(ioctls, "lib", kernel)
    found = ioctls.call_sized(3, "KVM_GET_SUPPORTED_CPUID", "struct kvm_cpuid2", "nent", 4)
    assert found.nent == entries
    assert kernel.rooms == sorted(set(kernel.rooms))
    assert kernel.rooms[-1] < 2 * max(entries, 4)


def test_a_list_without_end_is_an_error_and_not_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that never has enough is asked a bounded number of times."""
    kernel = CountingKernel(1 << 30)
    monkeypatch.setattr(ioctls, "lib", kernel)
    with pytest.raises(KvmError) as caught:
        ioctls.call_sized(3, "KVM_GET_SUPPORTED_CPUID", "struct kvm_cpuid2", "nent", 4)
    assert caught.value.errno == errno.E2BIG
    assert len(kernel.rooms) < 20


def test_another_failure_of_a_list_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only E2BIG means "more room"."""
    kernel = FakeKernel(-errno.EFAULT)
    monkeypatch.setattr(ioctls, "lib", kernel)
    with pytest.raises(KvmError) as caught:
        ioctls.call_sized(3, "KVM_GET_MSR_INDEX_LIST", "struct kvm_msr_list", "nmsrs", 4)
    assert caught.value.errno == errno.EFAULT
    assert len(kernel.seen) == 1
