"""Devices that act by themselves: when they are asked, and what is left when the machine is closed."""

from __future__ import annotations

import threading

import pytest

from pykvm.timers import DeviceTimers

PATIENCE_S = 10


class Alarm:
    """A device that is due once, at a time on the host's clock."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.due: int | None = None
        self.rang = threading.Event()
        self.failure = failure

    def next_event_ns(self) -> int | None:
        return self.due

    def tick(self) -> None:
        if self.due is not None:
            self.due = None
            self.rang.set()
            if self.failure:
                raise self.failure


def no_failure(error: BaseException) -> None:
    pytest.fail(str(error))


def test_a_device_without_wishes_costs_no_thread() -> None:
    """The thread starts when somebody is due."""
    lock, before = threading.RLock(), threading.active_count()
    timers = DeviceTimers(lock, no_failure)
    timers.add(Alarm())
    with lock:
        timers.look()
    assert threading.active_count() == before
    timers.close()


def test_each_event_comes_also_the_second() -> None:
    """The thread rests between them and is woken by look()."""
    lock, alarm = threading.RLock(), Alarm()
    timers = DeviceTimers(lock, no_failure, clock_ns=lambda: 0)
    timers.add(alarm)
    for due in (0, 1_000_000):
        alarm.rang.clear()
        with lock:
            alarm.due = due
            timers.look()
        assert alarm.rang.wait(PATIENCE_S)
    timers.close()


def test_the_end_does_not_wait_for_what_is_due_later() -> None:
    """Closing wakes the thread, and nothing starts it again."""
    alarm, before = Alarm(), threading.active_count()
    lock = threading.RLock()
    timers = DeviceTimers(lock, no_failure, clock_ns=lambda: 0)
    timers.add(alarm)
    with lock:
        alarm.due = 3600 * 10**9
        timers.look()
    timers.close()
    with lock:
        timers.look()
    assert threading.active_count() == before
    assert not alarm.rang.is_set()


def test_what_a_device_raises_reaches_the_machine() -> None:
    """It does not end in a thread that nobody watches."""
    heard: list[BaseException] = []
    lock, alarm = threading.RLock(), Alarm(OSError("the line is gone"))
    timers = DeviceTimers(lock, heard.append, clock_ns=lambda: 0)
    timers.add(alarm)
    with lock:
        alarm.due = 0
        timers.look()
    assert alarm.rang.wait(PATIENCE_S)
    timers.close()
    assert str(heard[0]) == "the line is gone"
