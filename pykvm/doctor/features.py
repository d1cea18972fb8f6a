"""What pykvm can do on a KVM, judged by its probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pykvm.doctor.outcome import Outcome

__all__ = ["FEATURES", "LINUX", "Feature", "Finding", "findings", "lacking", "names_in"]

LINUX = (
    *("long64", "long64_interrupts", "irqchip", "ring3_code", "ring3_exceptions", "ring3_syscall"),
    *("sse_cpl0", "cmpxchg16b_cpl0", "popcnt_cpl0"),
)
"""The needs of an unmodified Linux."""


@dataclass(frozen=True, slots=True)
class Feature:
    """Something pykvm does, and the needs that must be met for it."""

    name: str
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a feature is there: its needs that are not met, and why; probes that stand in for others."""

    name: str
    lacks: dict[str, str]
    by: tuple[str, ...]


FEATURES = (
    Feature("tiny guests in 16-bit, 32-bit and 64-bit mode", ("real16", "prot32", "long64")),
    Feature("32-bit guests with paging", ("paged32",)),
    Feature("32-bit guests with interrupts", ("prot32_interrupts", "irqchip")),
    Feature("64-bit guests with interrupts and timers", ("long64_interrupts", "irqchip")),
    Feature("guests with several CPUs", ("smp",)),
    Feature("programs in ring 3", ("ring3_code", "ring3_exceptions")),
    Feature("system calls of ring 3", ("ring3_code", "ring3_syscall|ring3_syscall_by_pf")),
    Feature("firmware and disk images", ("real16", "readonly_memory")),
    Feature("64-bit test kernels on --board testdev", ("prot32", "long64", "long64_interrupts", "irqchip")),
    Feature("32-bit test kernels on --board testdev", ("prot32", "prot32_interrupts", "irqchip")),
    Feature("an unmodified Linux", LINUX),
    Feature("system calls of Linux, tapped by patching its entry", (*LINUX, "msr_filter")),
    Feature("system calls of Linux, tapped by breakpoints", (*LINUX, "hw_breakpoint")),
    Feature("hypercalls by OUT", ("pio",)),
    Feature("hypercalls by MMIO", ("mmio",)),
    Feature("hypercalls by VMCALL", ("hypercall_exit",)),
    Feature("hypercalls by a shared ring", ("ioeventfd",)),
    Feature("hypercalls by a shared ring that interrupts", ("ioeventfd", "irqfd", "irqchip")),
    Feature("devices that work beside the vCPUs", ("ioeventfd", "irqfd")),
    Feature("stepping through a guest", ("single_step",)),
    Feature("breakpoints in a guest", ("hw_breakpoint",)),
    Feature("snapshots that copy only what changed", ("dirty_log",)),
)


def names_in(need: str) -> list[str]:
    """The probes that a need names: one, or several of which one is enough ("a|b")."""
    return need.split("|")


def lacking(needs: Iterable[str], outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """The needs that are not met, each with the reason. Raises ConfigError for a probe that was not asked."""
    reasons = {}
    for need in needs:
        names = names_in(need)
        if missing := [name for name in names if name not in outcomes]:
            raise ConfigError(f"the need {need!r}: the probe {missing[0]!r} was not run")
        if not any(outcomes[name].works for name in names):
            reasons[need] = "; ".join(str(outcomes[name]) for name in names)
    return reasons


def findings(outcomes: Mapping[str, Outcome]) -> list[Finding]:
    """What pykvm can do by these outcomes; features of which a probe was not run are left out."""
    asked = (f for f in FEATURES if all(n in outcomes for need in f.needs for n in names_in(need)))
    return [Finding(f.name, lacking(f.needs, outcomes), _stand_ins(f.needs, outcomes)) for f in asked]


def _stand_ins(needs: Iterable[str], outcomes: Mapping[str, Outcome]) -> tuple[str, ...]:
    """The probes that meet a need although they are not its first choice."""
    met = (next((n for n in names_in(need) if outcomes[n].works), None) for need in needs)
    return tuple(name for name, need in zip(met, needs, strict=True) if name and name != names_in(need)[0])
