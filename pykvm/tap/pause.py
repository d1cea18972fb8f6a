"""Holds all vCPUs of a machine for a moment, while its memory or its breakpoints are changed."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pykvm.vcpu import LoopResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pykvm.vcpu import Vcpu

__all__ = ["Gate"]

_LOOK_S = 0.0005
_KICK_AGAIN_S = 0.02


class Gate:
    """All vCPUs pass it on the way into the guest; closed() stops them there.

    Made before the machine runs. What is in the guest gets kicked; a vCPU whose exit is being answered in
    Python is out already, and meets the gate as soon as it wants in again.
    """

    def __init__(self, vcpus: Sequence[Vcpu]) -> None:
        self._vcpus = vcpus
        self._lock = threading.RLock()
        for vcpu in vcpus:
            vcpu.enter = self._guarded(vcpu.enter)

    def _guarded(self, enter: Callable[[], int]) -> Callable[[], int]:
        kicked, lock = int(LoopResult.KICKED), self._lock

        def guarded() -> int:
            result = enter()
            if result == kicked:
                with lock:
                    pass
            return result

        return guarded

    @contextmanager
    def closed(self) -> Iterator[None]:
        """While this lasts, no vCPU runs; from any thread, that of a vCPU as well."""
        with self._lock:
            me = threading.get_ident()
            others = [vcpu for vcpu in self._vcpus if vcpu.thread != me]
            for vcpu in others:
                vcpu.kick()
            again = time.monotonic() + _KICK_AGAIN_S
            while inside := [vcpu for vcpu in others if vcpu.fd >= 0 and vcpu.loop.tid]:
                if time.monotonic() > again:
                    again += _KICK_AGAIN_S
                    for vcpu in inside:
                        vcpu.kick()
                time.sleep(_LOOK_S)
            yield
