"""MachineSpec: what a machine is made of, as a plain value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pykvm.cpu_features import parse_features
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TRANSPORTS", "MachineSpec"]

TRANSPORTS = ("out", "mmio", "vmcall", "ring")
"""The ways of a hypercall to pykvm; see guests/include/hypercall_abi.h."""


class MachineSpec(NamedTuple):
    """What a machine is made of; a plain value that can be pickled.

    `memory_bytes` of RAM; `irqchip` None means: where it is needed (several vCPUs, the testdev board).
    `unclaimed` is "stop" or "float". `trace` keeps a record of every exit, with cr3 and cpl.
    `cpu` has features to add or take away, as in "+avx2,-smap".
    `drop_records`: where records come faster than they are read, lose some and count them, not the time.
    `transport` is one of TRANSPORTS: offer the guest that one alone for its hypercalls; None: all there are.
    """

    memory_bytes: int = 64 << 20
    vcpus: int = 1
    board: str = "pykvm"
    irqchip: bool | None = None
    unclaimed: str = "stop"
    trace: bool = False
    drop_records: bool = False
    vendor: str | None = None
    cpu: str = ""
    transport: str | None = None

    @property
    def has_irqchip(self) -> bool:
        """Whether the machine gets an in-kernel irqchip and PIT."""
        if self.irqchip is None:
            return self.vcpus > 1 or self.board == "testdev"
        return self.irqchip

    @property
    def options(self) -> dict[str, Any]:
        """All but the first two fields, as Machine's keyword arguments."""
        return {name: getattr(self, name) for name in self._fields[2:]}

    def with_wishes(self, wishes: Mapping[str, Any]) -> Self:
        """Take over those of `wishes` that are for options which still have their default."""
        unset = {
            name: wishes[name]
            for name in self._fields[2:]
            if name in wishes and getattr(self, name) == self._field_defaults[name]
        }
        return self._replace(**unset)

    def check(self) -> None:
        """Raise ConfigError for what can't be built anywhere."""
        if self.vcpus < 1:
            raise ConfigError(f"{self.vcpus} vCPUs: a machine has at least 1")
        if self.vendor not in (None, "intel", "amd"):
            raise ConfigError(f"vendor={self.vendor!r}: it is 'intel' or 'amd', or None for the host's own")
        parse_features(self.cpu)
        if self.transport not in (None, *TRANSPORTS):
            raise ConfigError(f"transport={self.transport!r}: it is one of {', '.join(TRANSPORTS)}")
        if self.transport and self.board != "pykvm":
            raise ConfigError(
                f"transport {self.transport}: hypercalls are for the board pykvm, not {self.board}"
            )
        if self.unclaimed not in ("stop", "float"):
            raise ConfigError(f"unclaimed={self.unclaimed!r}: it is 'stop' or 'float'")
        if self.vcpus > 1 and self.irqchip is False:
            raise ConfigError(
                f"{self.vcpus} vCPUs need the irqchip: the guest starts them through its local APICs"
            )
