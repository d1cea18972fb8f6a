"""Machines of several vCPUs: each has its thread, and the end of one is the end of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from machines import FREE_PORT, HLT, SPIN, TIMEOUT_S, Broken, leave, leaving_nothing, loop, out8

from pykvm import layout
from pykvm.machine import Machine
from pykvm.result import EndReason, RunResult

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def nothing_left() -> Iterator[None]:
    yield from leaving_nothing()


def smp(first: bytes, second: bytes) -> bytes:
    """32-bit code that starts the second CPU by INIT and SIPI; its 16-bit code begins the image."""
    init = b"\xc7\x05\x00\x03\xe0\xfe\x00\x45\x0c\x00"  # movl $0xc4500, 0xfee00300: INIT to all but self
    sipi = b"\xc7\x05\x00\x03\xe0\xfe\x02\x46\x0c\x00"  # movl $0xc4602, 0xfee00300: SIPI to 0x2000
    return second.ljust(0x100, HLT) + init + sipi + first


def run_smp(first: bytes, second: bytes, *, timeout: float = TIMEOUT_S, **options: Any) -> RunResult:
    with Machine(memory="1M", vcpus=2, **options) as machine:
        machine.ports.attach(range(FREE_PORT, FREE_PORT + 1), Broken())
        machine.load(smp(first, second), mode="prot32", address=0x2000, entry=0x2100)
        return machine.run(timeout=timeout)


LEAVE32 = b"\x66\xba" + layout.PLAIN_EXIT.start.to_bytes(2, "little") + b"\x31\xc0\xb0\x07\xef"  # exit code 7


@pytest.mark.needs("smp", "prot32")
@pytest.mark.usefixtures("nothing_left")
def test_the_first_cpu_s_end_stops_a_second_that_spins() -> None:
    """Its thread leaves the guest and ends."""
    wait = b"\x66\xba\xe9\x00\xb9\x00\x10\x00\x00\x49\x75\xfd"  # some 4096 steps for the second to get going
    result = run_smp(wait + LEAVE32, SPIN)
    assert (result.reason, result.exit_code) == (EndReason.EXIT, 7)


@pytest.mark.needs("smp", "prot32")
@pytest.mark.usefixtures("nothing_left")
def test_the_second_cpu_s_end_stops_a_first_that_spins() -> None:
    """Whoever ends the run, ends it for all."""
    result = run_smp(SPIN, leave(9))
    assert (result.reason, result.exit_code) == (EndReason.EXIT, 9)


@pytest.mark.needs("smp", "prot32")
@pytest.mark.usefixtures("nothing_left")
def test_the_second_cpu_s_end_stops_a_first_that_sleeps() -> None:
    """The first is in HLT inside the kernel."""
    assert run_smp(HLT + b"\xeb\xfd", leave(9)).exit_code == 9


@pytest.mark.needs("smp", "prot32")
@pytest.mark.usefixtures("nothing_left")
def test_what_a_device_raises_on_the_second_cpu_comes_out_of_run() -> None:
    """Carried from its thread to the caller's."""
    with pytest.raises(ZeroDivisionError):
        run_smp(SPIN, out8(FREE_PORT, 1) + SPIN)


@pytest.mark.needs("smp", "prot32")
@pytest.mark.usefixtures("nothing_left")
def test_a_time_limit_stops_all_cpus() -> None:
    """Two that spin."""
    assert run_smp(SPIN, SPIN, timeout=0.2).reason is EndReason.TIMEOUT


@pytest.mark.needs("smp", "prot32")
def test_two_cpus_print_without_losing_a_byte() -> None:
    """Both write to the fast port at once."""
    count = 300
    console = layout.DEBUG_CONSOLE.start
    first = b"\x66\xba" + console.to_bytes(2, "little") + b"\xb0a\xb9" + count.to_bytes(4, "little")
    first += b"\xee\x49\x75\xfc" + SPIN  # 1: out %al, %dx; dec %ecx; jnz 1b
    second = out8(console, ord("b")) + loop(count - 1, b"\xee") + SPIN
    heard = bytearray()

    def listen(piece: bytes) -> None:
        heard.extend(piece)
        if len(heard) >= 2 * count:
            machine.stop(EndReason.POWER_OFF)

    with Machine(memory="1M", vcpus=2, console=listen) as machine:
        machine.load(smp(first, second), mode="prot32", address=0x2000, entry=0x2100)
        result = machine.run(timeout=TIMEOUT_S)
    assert result.reason is EndReason.POWER_OFF
    assert (heard.count(b"a"), heard.count(b"b"), len(heard)) == (count, count, 2 * count)
    assert heard == result.console
