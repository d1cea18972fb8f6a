"""The syscall tap: the system calls of an unmodified Linux guest, seen from outside."""

from __future__ import annotations

from pykvm.tap.calls import CallSource
from pykvm.tap.sites import Site, TapError, find_sites
from pykvm.tap.tap import METHODS, SyscallTap

__all__ = ["METHODS", "CallSource", "Site", "SyscallTap", "TapError", "find_sites"]
