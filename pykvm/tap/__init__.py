"""The syscall tap: the system calls of an unmodified Linux guest, seen from outside."""

from __future__ import annotations

from pykvm.tap.calls import CallSource
from pykvm.tap.options import TAP_WORDS, add_tap
from pykvm.tap.sites import Site, TapError, find_sites
from pykvm.tap.tap import METHODS, SyscallTap

__all__ = ["METHODS", "TAP_WORDS", "CallSource", "Site", "SyscallTap", "TapError", "add_tap", "find_sites"]
