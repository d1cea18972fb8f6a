"""Everything doctor finds out about one KVM, as a value that travels as JSON."""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pykvm.doctor.catalogue import PROBES
from pykvm.doctor.child import run_in_child
from pykvm.doctor.features import Finding, findings
from pykvm.doctor.host import Host, next_step, survey
from pykvm.doctor.outcome import Outcome, Result
from pykvm.errors import ConfigError, KvmUnavailableError
from pykvm.kvm import Kvm, capability_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Report", "examine", "probe"]


@dataclass(frozen=True, slots=True)
class Report:
    """One KVM: the host, why it can't be used (or nothing), API version, capabilities, probes."""

    host: Host
    problem: str
    api_version: int = 0
    capabilities: dict[str, int] = field(default_factory=dict)
    probes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether pykvm can use this KVM at all."""
        return not self.problem

    def features(self) -> list[Finding]:
        """What pykvm can do here, as far as it was probed."""
        return findings(self.probes)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, which from_json() takes."""
        return {
            "usable": self.usable,
            "problem": self.problem,
            "host": asdict(self.host),
            "api_version": self.api_version,
            "capabilities": self.capabilities,
            "probes": {name: outcome.as_json() for name, outcome in self.probes.items()},
            "features": [{"works": not found.lacks, **asdict(found)} for found in self.features()],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """The report that as_json() wrote. Raises KeyError, TypeError or ValueError for anything else."""
        probes = {name: Outcome.from_json(outcome) for name, outcome in found["probes"].items()}
        return cls(
            Host(**found["host"]), found["problem"], found["api_version"], found["capabilities"], probes
        )


def examine(names: Iterable[str] | None = None, *, started: Callable[[str], None] | None = None) -> Report:
    """Look at this host and its KVM, and run the probes `names` (all by default).

    A host without a KVM is a Report too, with the problem and the next step in it. `started` is called
    with the name of each probe. Raises ConfigError for a name that is no probe.
    """
    try:
        with Kvm() as kvm:
            host = survey(kvm.module())
            version = kvm.api_version()
            capabilities = {name: kvm.check_extension(name) for name in sorted(capability_names())}
    except KvmUnavailableError as error:
        host = survey("none")
        hint = next_step(host) if error.errno == errno.ENOENT else error.hint
        return Report(host, str(KvmUnavailableError(error.errno or 0, error.call, hint)))
    return Report(host, "", version, capabilities, probe(names, started=started))


def probe(
    names: Iterable[str] | None = None, *, started: Callable[[str], None] | None = None
) -> dict[str, Outcome]:
    """Ask KVM what `names` stand for (all by default): name -> outcome, in the order of PROBES.

    Each runs in a process of its own, with a time limit, and again if it hangs. `started` is called with
    each name. Raises ConfigError for an unknown name, and KvmUnavailableError where there is no KVM to ask.
    """
    wanted = set(PROBES if names is None else names)
    if unknown := sorted(wanted - set(PROBES)):
        raise ConfigError(f"there is no probe {unknown[0]!r}; there are {', '.join(PROBES)}")
    Kvm().close()
    outcomes = {}
    for name in PROBES:
        if name in wanted:
            if started:
                started(name)
            outcome = run_in_child(PROBES[name].run)
            if outcome.result is Result.HANGS:  # a host too busy to go on looks like that, once
                outcome = run_in_child(PROBES[name].run)
            outcomes[name] = outcome
    return outcomes
