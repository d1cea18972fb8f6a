"""The console: everything the guest prints, once and in order, whoever prints and whoever listens."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import console as console_module
from pykvm._native import ffi, lib
from pykvm.console import Console


class Loop:
    """The C side of a console: what the exit loop does with a printed byte."""

    def __init__(self) -> None:
        self.ring = ffi.new("struct byte_ring *")

    def prints(self, data: bytes) -> bool:
        return bool(lib.byte_ring_append(self.ring, ffi.from_buffer(data), len(data)))


def make(listener: Any = None) -> tuple[Loop, Console]:
    loop = Loop()
    return loop, Console(loop.ring, listener, threading.RLock())


def test_the_loop_and_the_devices_print_in_order() -> None:
    """A device's bytes come behind what the loop took before them."""
    loop, console = make()
    loop.prints(b"one ")
    console.write(b"two ")
    loop.prints(b"three ")
    console.write(b"four")
    assert console.contents() == b"one two three four"


def test_a_listener_hears_everything_as_it_comes() -> None:
    """Pieces in order; what the loop holds is handed on by pump()."""
    heard: list[bytes] = []
    loop, console = make(heard.append)
    loop.prints(b"a")
    assert heard == []
    console.pump()
    console.pump()
    console.write(b"b")
    assert heard == [b"a", b"b"]


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=3000))))
def test_nothing_is_lost_or_doubled(pieces: list[tuple[bool, bytes]]) -> None:
    """Whatever mixture of loop and devices: the contents are the sum, and the listener's too."""
    heard: list[bytes] = []
    loop, console = make(heard.append)
    for by_loop, data in pieces:
        if by_loop:
            while not loop.prints(data):
                console.pump()
        else:
            console.write(data)
    console.pump()
    whole = b"".join(data for _, data in pieces)
    assert console.contents() == whole
    assert b"".join(heard) == whole


def test_a_full_ring_takes_nothing_of_what_does_not_fit() -> None:
    """All or none, and after a pump() there is room again."""
    loop, console = make()
    size = console_module._RING_BYTES
    assert loop.prints(b"x" * (size - 1))
    assert not loop.prints(b"yz")
    assert loop.prints(b"y")
    assert not loop.prints(b"z")
    console.pump()
    assert loop.prints(b"z")
    console.pump()
    assert console.contents() == b"x" * (size - 1) + b"yz"


def test_beyond_the_limit_output_is_handed_on_and_counted_but_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A guest that floods the console does not fill the host's memory."""
    monkeypatch.setattr(console_module, "_KEPT_BYTES", 10)
    heard: list[bytes] = []
    _, console = make(heard.append)
    console.write(b"0123456")
    console.write(b"789abc")
    console.write(b"def")
    assert console.contents() == b"0123456789"
    assert console.cut_bytes == 6
    assert b"".join(heard) == b"0123456789abcdef"


def test_what_a_listener_raises_reaches_the_caller_and_loses_nothing() -> None:
    """The bytes are kept before they are handed on, and the next pump() goes on behind them."""
    loop, console = make()

    def refuse(_: bytes) -> None:
        raise BrokenPipeError

    console._listener = refuse
    loop.prints(b"kept")
    with pytest.raises(BrokenPipeError):
        console.pump()
    console._listener = None
    loop.prints(b" and more")
    console.pump()
    assert console.contents() == b"kept and more"


def test_a_listener_may_print_itself() -> None:
    """It runs under the machine's lock, which its own thread may take again: an echo does not hang."""
    echoed: list[bytes] = []

    def echo(data: bytes) -> None:
        echoed.append(data)
        if data == b"?":
            console.write(b"!")

    loop, console = make(echo)
    loop.prints(b"?")
    console.pump()
    assert console.contents() == b"?!"
    assert echoed == [b"?", b"!"]


def test_threads_that_print_at_once_lose_nothing() -> None:
    """Several vCPUs through the ring and a device beside them, while somebody pumps."""
    loop, console = make()
    lines = 300

    def vcpu(name: bytes) -> None:
        for _ in range(lines):
            while not loop.prints(name * 40):
                console.pump()

    def device() -> None:
        for _ in range(lines):
            console.write(b"d" * 40)

    threads = [threading.Thread(target=vcpu, args=(name,)) for name in (b"a", b"b")]
    threads.append(threading.Thread(target=device))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    console.pump()
    found = console.contents()
    assert len(found) == 3 * lines * 40
    pieces = [found[i : i + 40] for i in range(0, len(found), 40)]
    assert {piece: pieces.count(piece) for piece in set(pieces)} == {
        c * 40: lines for c in (b"a", b"b", b"d")
    }
