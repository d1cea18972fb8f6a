"""DeviceTimers: devices that act by themselves, at the times they name."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DeviceTimers", "TimedDevice"]


class TimedDevice(Protocol):
    """A device with something to do later."""

    def next_event_ns(self) -> int | None:
        """When, in ns since 1970, tick() is due; None: not before the guest speaks to the device again."""

    def tick(self) -> None:
        """Do what is due by now."""


class DeviceTimers:
    """Calls each device's tick() when it is due, in one thread that starts when the first device asks.

    A device that nobody asked for interrupts costs nothing: most guests never start the thread.
    """

    def __init__(
        self,
        lock: Any,
        failed: Callable[[BaseException], None],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`lock` is the machine's RLock, held while a device works; `failed` hears what a tick() raises."""
        self._changed = threading.Condition(lock)
        self._failed = failed
        self._clock_ns = clock_ns
        self._devices: list[TimedDevice] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, device: TimedDevice) -> None:
        """Look after `device` from now on."""
        self._devices.append(device)

    def look(self) -> None:
        """A device's next event may have changed; with the lock held, as a device that answers has it."""
        if self._thread is None and not self._closed and self._next_ns() is not None:
            self._thread = threading.Thread(target=self._run, name="pykvm-timers", daemon=True)
            self._thread.start()
        self._changed.notify()

    def close(self) -> None:
        """End the thread; the devices rest from then on."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread:
            self._thread.join()

    def _next_ns(self) -> int | None:
        due = (device.next_event_ns() for device in self._devices)
        return min((at for at in due if at is not None), default=None)

    def _run(self) -> None:
        try:
            with self._changed:
                while not self._closed:
                    self._wait()
                    self._tick()
        except Exception as error:  # noqa: BLE001 - the machine raises it in run()
            self._failed(error)

    def _tick(self) -> None:
        """All devices, without a look at their times: what was due lies in the past now."""
        for device in () if self._closed else self._devices:
            device.tick()

    def _wait(self) -> None:
        """Until the next event, or until a device speaks up."""
        due = self._next_ns()
        if due is None:
            self._changed.wait()
        elif (left_ns := due - self._clock_ns()) > 0:
            self._changed.wait(left_ns / 1e9)
