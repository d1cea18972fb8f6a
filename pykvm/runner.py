"""Runs one vCPU: enter, decode, dispatch by one table, until the run is over."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Any

from pykvm.errors import GuestError, KvmError, UnclaimedIoError
from pykvm.exits import (
    EntryFailExit,
    Exit,
    HltExit,
    InternalErrorExit,
    IoExit,
    MmioExit,
    ShutdownExit,
    SystemEventExit,
    UnknownExit,
    decode,
)
from pykvm.result import EndReason
from pykvm.vcpu import LoopResult

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pykvm.bus import Bus
    from pykvm.vcpu import Vcpu

__all__ = ["Ending", "VcpuRunner"]

_SUBERRORS = {
    1: "KVM's emulator lacks this instruction",
    2: "an exception came while another was delivered",
    3: "KVM could not deliver an event",
    4: "an exit that KVM did not expect",
}
_SYSTEM_EVENTS = {1: EndReason.POWER_OFF, 2: EndReason.RESET, 3: EndReason.PANIC}
_NO_MEMORY = frozenset({errno.ENOMEM, errno.EFAULT})


class Ending:
    """How a run ends: the first word counts, from whichever thread it comes."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` makes the thread of vCPU 0 look at `is_over`."""
        self._wake = wake
        self._words: dict[str, tuple[EndReason, int | None, str]] = {}
        self._failures: dict[str, BaseException] = {}
        self.is_over = False  # an attribute: it is read at every exit

    def finish(self, reason: EndReason, *, code: int | None = None, detail: str = "") -> None:
        """End the run for `reason`; from any thread, and from a signal's handler."""
        word = (reason, code, detail)
        # One step: a lock could meet itself in a signal's handler. Who comes second ends the run as well: the
        # first may not have got any further.
        is_first = self._words.setdefault("first", word) is word
        self.is_over = True
        if is_first:
            self._wake()

    @property
    def reason(self) -> EndReason:
        """Why the run ended; INTERRUPTED as long as nobody has said."""
        return self._word[0]

    @property
    def code(self) -> int | None:
        """The guest's exit code, if it gave one."""
        return self._word[1]

    @property
    def detail(self) -> str:
        """More about the reason, or nothing."""
        return self._word[2]

    @property
    def _word(self) -> tuple[EndReason, int | None, str]:
        return self._words.get("first", (EndReason.INTERRUPTED, None, ""))

    def fail(self, failure: BaseException) -> None:
        """End the run because pykvm itself failed; run() raises the first such `failure`."""
        self._failures.setdefault("first", failure)
        self.finish(EndReason.INTERRUPTED)

    @property
    def failure(self) -> BaseException | None:
        """What made pykvm itself fail, if anything did."""
        return self._failures.get("first")


class VcpuRunner:
    """One vCPU and its dispatch table: kind of Exit -> what to do.

    run() is the loop, in the calling thread; start() does it in one of its own.

    `handlers` of the machine come on top of the table below: a tap puts its own there.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        *,
        ports: Bus,
        mmio: Bus,
        ending: Ending,
        lock: AbstractContextManager[Any],
        unclaimed: Callable[[str], None],
        drain: Callable[[int], None],
        handlers: dict[type[Exit], Callable[[Vcpu, Any], None]],
    ) -> None:
        """`lock` is held while a device works; `unclaimed` hears of I/O to nobody; `drain` empties rings."""
        self.vcpu = vcpu
        self._ports = ports
        self._mmio = mmio
        self._ending = ending
        self._lock = lock
        self._unclaimed = unclaimed
        self._drain = drain
        self.is_halted_for_good = False  # what the last kick found
        self._handlers: dict[type[Exit], Callable[[Any], None]] = {
            IoExit: self._on_io,
            MmioExit: self._on_mmio,
            HltExit: lambda _: ending.finish(EndReason.HALT),
            ShutdownExit: lambda _: ending.finish(EndReason.TRIPLE_FAULT),
            InternalErrorExit: self._on_internal_error,
            EntryFailExit: self._on_entry_fail,
            SystemEventExit: self._on_system_event,
            UnknownExit: lambda e: ending.finish(EndReason.UNKNOWN_EXIT, detail=f"{e.name} ({e.reason})"),
        }
        for kind, handler in handlers.items():
            self._handlers[kind] = lambda e, handler=handler: handler(vcpu, e)  # type: ignore[misc]
        self._thread: threading.Thread | None = None

    # ---- the loop

    def start(self) -> None:
        """Run the vCPU in a thread of its own."""
        self._thread = threading.Thread(target=self._main, name=f"vcpu{self.vcpu.number}", daemon=True)
        self._thread.start()

    def is_running(self) -> bool:
        """Whether its own thread still runs."""
        return self._thread is not None and self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait for its thread to end, at most `timeout_s`."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _main(self) -> None:
        try:
            self.run()
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread, which raises it
            self._ending.fail(error)

    def run(self, tick: Callable[[], None] | None = None) -> None:
        """Run the vCPU until the run is over; `tick` is called whenever a signal or a kick interrupted it.

        Raises KvmError if KVM_RUN fails, and what a device raises.
        """
        vcpu, ending, handlers, lock = self.vcpu, self._ending, self._handlers, self._lock
        vcpu.thread = threading.get_ident()
        view, enter, exited = vcpu.view, vcpu.enter, int(LoopResult.EXIT)
        while not ending.is_over:
            result = enter()
            if result == exited:
                exit_ = decode(view)
                handler = handlers.get(type(exit_))
                if handler is None:
                    ending.finish(EndReason.UNKNOWN_EXIT, detail=f"no answer to {exit_}")
                    return
                with lock:
                    try:
                        handler(exit_)
                    except GuestError as error:
                        self._on_guest_error(error)
            else:
                self._on_other(result, tick)

    def _on_other(self, result: int, tick: Callable[[], None] | None) -> None:
        """Everything enter() returns for but an exit."""
        if result in (LoopResult.KICKED, LoopResult.SIGNAL):
            if tick:
                tick()
            elif result == LoopResult.KICKED:
                self.is_halted_for_good = self.vcpu.is_halted_for_good()
        elif result in (LoopResult.TRACE_FULL, LoopResult.CONSOLE_FULL):
            self._drain(self.vcpu.number)
        elif result == LoopResult.ERROR:
            error = KvmError(self.vcpu.loop.error, "KVM_RUN", "")
            if error.errno not in _NO_MEMORY:
                raise error
            self._ending.finish(EndReason.OUT_OF_MEMORY, detail=str(error))

    def _on_guest_error(self, error: GuestError) -> None:
        unclaimed = isinstance(error, UnclaimedIoError)
        self._ending.finish(EndReason.UNCLAIMED_IO if unclaimed else EndReason.BAD_REQUEST, detail=str(error))

    # ---- exits

    def _on_io(self, io: IoExit) -> None:
        found = self._ports.find(io.port)
        size = io.size
        if found is None:
            self._nobody("port", io.port, io.size, io.data[:size] if io.is_write else None)
            if not io.is_write:
                self.vcpu.view.answer_io(b"\xff" * (size * io.count))
            return
        device, offset = found
        if io.count == 1:
            if io.is_write:
                device.write(offset, io.data)
            else:
                self.vcpu.view.answer_io(device.read(offset, size))
        elif io.is_write:
            for at in range(0, len(io.data), size):
                device.write(offset, io.data[at : at + size])
        else:
            self.vcpu.view.answer_io(b"".join(device.read(offset, size) for _ in range(io.count)))

    def _on_mmio(self, mmio: MmioExit) -> None:
        found = self._mmio.find(mmio.gpa)
        if found is None:
            self._nobody("address", mmio.gpa, mmio.size, mmio.data if mmio.is_write else None)
            if not mmio.is_write:
                self.vcpu.view.answer_mmio(b"\xff" * mmio.size)
            return
        device, offset = found
        if mmio.is_write:
            device.write(offset, mmio.data)
        else:
            self.vcpu.view.answer_mmio(device.read(offset, mmio.size))

    def _nobody(self, space: str, address: int, size: int, data: bytes | None) -> None:
        rip = self.vcpu.view.synced.regs.rip
        did = (
            f"wrote {int.from_bytes(data, 'little'):#x} to" if data is not None else f"read {size} bytes from"
        )
        self._unclaimed(f"guest {did} {space} {address:#x} at rip={rip:#x}, where no device answers")

    def _on_internal_error(self, error: InternalErrorExit) -> None:
        word = _SUBERRORS.get(error.suberror, "see KVM_INTERNAL_ERROR_* in the kernel's kvm.h")
        self._ending.finish(EndReason.INTERNAL_ERROR, detail=f"KVM's suberror {error.suberror}: {word}")

    def _on_entry_fail(self, error: EntryFailExit) -> None:
        self._ending.finish(EndReason.ENTRY_FAILURE, detail=f"hardware reason {error.hardware_reason:#x}")

    def _on_system_event(self, event: SystemEventExit) -> None:
        reason = _SYSTEM_EVENTS.get(event.kind, EndReason.UNKNOWN_EXIT)
        self._ending.finish(reason, detail=f"system event {event.kind}")
