"""What this machine's KVM can do: which KVM it is, its capabilities, and functional probes.

::

    examine ── host        module, device, CPU, kernel
       │    ── probe ── catalogue   the probes by name
       │                  └─ cpu_probes, kvm_probes, debug_probes
       │          │            └─ rig      a tiny machine around a guest of guests/probes
       │          └─ child      each probe in a process of its own, with a time limit
       ▼
    Report ──── features    what pykvm can do here
           ──── render      as text

The names of the probes are what tests and guests call their needs.
"""

from __future__ import annotations

from pykvm.doctor.catalogue import PROBES, Probe
from pykvm.doctor.features import lacking, names_in
from pykvm.doctor.outcome import Figure, Outcome, Result
from pykvm.doctor.report import Report, examine, probe

__all__ = [
    "PROBES",
    "Figure",
    "Outcome",
    "Probe",
    "Report",
    "Result",
    "examine",
    "lacking",
    "names_in",
    "probe",
]
