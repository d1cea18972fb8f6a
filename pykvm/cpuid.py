"""CPUID policy: what a guest is told about its CPU, made from what KVM supports by one table of rules.

Rows are (function, index, flags, eax, ebx, ecx, edx). A rule takes some bits of a register, says what they
are, and why; bits without a rule are KVM's. What the user adds or takes away (`--cpu`) comes last.

Source: SDM vol. 2A, CPUID; APM vol. 3, appendix E; the kernel's Documentation/virt/kvm/x86/cpuid.rst for the
hypervisor leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pykvm.cpu_features import places_of
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["RULES", "Rule", "policy"]

Row = tuple[int, ...]
EAX, EBX, ECX, EDX = 3, 4, 5, 6
_ALL = 0xFFFF_FFFF
_ANY = None
_VENDORS = {"intel": b"GenuineIntel", "amd": b"AuthenticAMD"}


class _Cpu(NamedTuple):
    """The vCPU that the rules are about."""

    apic_id: int
    vcpus: int
    irqchip: bool
    is_amd: bool


class Rule(NamedTuple):
    """The bits `mask` of one register are what `value` makes of the vCPU and of the row that KVM gave."""

    function: int
    subleaf: int | None
    register: int
    mask: int
    value: Callable[[_Cpu, Row], int]
    why: str


def _set(_: _Cpu, __: Row) -> int:
    return _ALL


def _clear(_: _Cpu, __: Row) -> int:
    return 0


def _with_irqchip(cpu: _Cpu, _: Row) -> int:
    return _ALL if cpu.irqchip else 0


def _if_irqchip(cpu: _Cpu, row: Row) -> int:
    return row[EAX] if cpu.irqchip else 0


def _sharing(cpu: _Cpu, row: Row) -> int:
    """The caches of level 1 and 2 are a core's own, one of level 3 is all cores'; type 0 ends the list."""
    level, kind = row[EAX] >> 5 & 7, row[EAX] & 0x1F
    shared = min(cpu.vcpus, 0x1000) - 1 if kind and level >= 3 else 0
    cores = min(cpu.vcpus, 64) - 1 if kind and not cpu.is_amd else 0
    return cores << 26 | shared << 14


def _id_bits(vcpus: int) -> int:
    return max(vcpus - 1, 0).bit_length()


def _topology(function: int) -> tuple[Rule, ...]:
    """Leaf 0xb or 0x1f: a level of threads, one a core, then one of cores, then nothing."""
    why = "one package of cores with one thread each, and the vCPU's own x2APIC id"
    return (
        Rule(function, 0, EAX, _ALL, _clear, why),
        Rule(function, 0, EBX, _ALL, lambda _, __: 1, why),
        Rule(function, 0, ECX, _ALL, lambda _, __: 1 << 8, why),
        Rule(function, 1, EAX, _ALL, lambda cpu, _: _id_bits(cpu.vcpus), why),
        Rule(function, 1, EBX, _ALL, lambda cpu, _: cpu.vcpus, why),
        Rule(function, 1, ECX, _ALL, lambda _, __: 2 << 8 | 1, why),
        Rule(function, _ANY, EAX, _ALL, lambda _, row: row[EAX] if row[1] < 2 else 0, why),
        Rule(function, _ANY, EBX, _ALL, lambda _, row: row[EBX] if row[1] < 2 else 0, why),
        Rule(function, _ANY, ECX, _ALL, lambda _, row: row[ECX] if row[1] < 2 else row[1], why),
        Rule(function, _ANY, EDX, _ALL, lambda cpu, _: cpu.apic_id, why),
    )


RULES: tuple[Rule, ...] = (
    Rule(1, _ANY, ECX, 1 << 31, _set, "a hypervisor is present: without it Linux looks for no kvmclock"),
    Rule(1, _ANY, ECX, 1 << 24 | 1 << 21, _with_irqchip, "TSC deadline, x2APIC: an in-kernel APIC has them"),
    Rule(1, _ANY, EBX, 0xFF << 24, lambda cpu, _: cpu.apic_id << 24, "the vCPU's APIC id, as far as it fits"),
    Rule(1, _ANY, EBX, 0xFF << 16, lambda cpu, _: min(cpu.vcpus, 255) << 16, "the CPUs of the package"),
    Rule(1, _ANY, EDX, 1 << 28, lambda cpu, _: (cpu.vcpus > 1) << 28, "HTT: that number counts"),
    Rule(4, _ANY, EAX, 0xFFFF_C000, _sharing, "which CPUs share a cache; the host has others"),
    *(Rule(0xA, _ANY, register, _ALL, _clear, "no counters: their registers may not work here")
      for register in (EAX, EBX, ECX, EDX)),
    *_topology(0xB),
    *_topology(0x1F),
    Rule(0x4000_0001, _ANY, EAX, 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 14 | 1 << 15, _if_irqchip,
         "asynchronous faults, EOI, kicks and IPIs by hypercall, 15-bit ids: an in-kernel APIC has them"),
    Rule(0x8000_0001, _ANY, ECX, 1 << 1, lambda cpu, row: (cpu.vcpus > 1) << 1 if cpu.is_amd else row[ECX],
         "CmpLegacy: on AMD several CPUs of a package are cores, no threads"),
    Rule(0x8000_0008, _ANY, ECX, 0xF0FF,
         lambda cpu, row: _id_bits(cpu.vcpus) << 12 | min(cpu.vcpus, 256) - 1 if cpu.is_amd else row[ECX],
         "AMD's number of cores, and how many bits of an APIC id tell them apart"),
    Rule(0x8000_001D, _ANY, EAX, 0x03FF_C000, _sharing, "AMD's leaf 4"),
    Rule(0x8000_001E, _ANY, EAX, _ALL, lambda cpu, _: cpu.apic_id, "AMD's topology: the extended APIC id"),
    Rule(0x8000_001E, _ANY, EBX, _ALL, lambda cpu, _: cpu.apic_id & 0xFF, "core ids, one thread a core"),
    Rule(0x8000_001E, _ANY, ECX, _ALL, _clear, "node 0 of one"),
    Rule(0x8000_001E, _ANY, EDX, _ALL, _clear, "reserved"),
)  # fmt: skip
"""The policy. All that is not in it is as KVM_GET_SUPPORTED_CPUID has it."""

_BY_FUNCTION: dict[int, list[Rule]] = {}
for _rule in RULES:
    _BY_FUNCTION.setdefault(_rule.function, []).append(_rule)


def policy(
    supported: Iterable[Row],
    *,
    apic_id: int,
    vcpus: int,
    irqchip: bool,
    vendor: str | None = None,
    features: Mapping[str, bool] | None = None,
) -> list[Row]:
    """The rows for the vCPU with `apic_id` of `vcpus`; `vendor` "intel" or "amd" overrides the host's.

    `features` says of names whether the guest has them: what this KVM does not support can't be added, and
    raises ConfigError.
    """
    rows = list(supported)
    is_amd = vendor == "amd" if vendor else any(row[0] == 0 and _is_amd(row) for row in rows)
    cpu = _Cpu(apic_id, vcpus, irqchip, is_amd)
    found = [_ruled(row, cpu, vendor) for row in rows]
    return _changed(found, rows, features) if features else found


def _is_amd(row: Row) -> bool:
    return row[EBX:] == _vendor_words("amd")


def _ruled(row: Row, cpu: _Cpu, vendor: str | None) -> Row:
    if vendor and row[0] in (0, 0x8000_0000):
        return (*row[:EBX], *_vendor_words(vendor))
    rules = _BY_FUNCTION.get(row[0])
    if not rules:
        return row
    words = list(row)
    for rule in rules:
        if rule.subleaf in (_ANY, row[1]):
            register = rule.register
            value = rule.value(cpu, (*words,))
            words[register] = words[register] & ~rule.mask | value & rule.mask
    return (*words,)


def _changed(rows: list[Row], supported: list[Row], features: Mapping[str, bool]) -> list[Row]:
    """What the user wants of single features. A feature with several places is had where one of them is."""
    here = {row[:2]: row for row in supported}
    found = {row[:2]: [*row] for row in rows}
    for name, is_wanted in features.items():
        had = False
        for function, index, register, bit in places_of(name):
            key = (function, index)
            if key not in found:
                continue
            if not is_wanted:
                found[key][register] &= ~(1 << bit)
            elif here[key][register] >> bit & 1:
                found[key][register] |= 1 << bit
                had = True
        if is_wanted and not had:
            raise ConfigError(
                f"--cpu +{name}: this KVM can't give it to a guest; `grep {name} /proc/cpuinfo` tells "
                "whether the host has it"
            )
    return [(*found[row[:2]],) for row in rows]


def _vendor_words(vendor: str) -> tuple[int, int, int]:
    """EBX, ECX, EDX of leaf 0: the name's letters stand in EBX, EDX, ECX."""
    name = _VENDORS[vendor]
    word = [int.from_bytes(name[i : i + 4], "little") for i in (0, 4, 8)]
    return word[0], word[2], word[1]
