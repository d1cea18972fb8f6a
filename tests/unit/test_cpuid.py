"""CPUID policy: what the guest is told is what KVM supports, but for what the machine decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.cpu_features import parse_features
from pykvm.cpuid import RULES, policy
from pykvm.errors import ConfigError

Row = tuple[int, ...]
FUNCTION, INDEX, FLAGS, EAX, EBX, ECX, EDX = range(7)
HYPERVISOR, TSC_DEADLINE, X2APIC, HTT = 1 << 31, 1 << 24, 1 << 21, 1 << 28
OWN_LEAVES = {0, 0x80000000} | {rule.function for rule in RULES}

words = st.integers(0, (1 << 32) - 1)
rows = st.tuples(words, words, words, words, words, words, words)

HOST: list[Row] = [
    (0, 0, 0, 0x16, 0x756E6547, 0x6C65746E, 0x49656E69),
    (1, 0, 0, 0x306A9, 0xFF000800, 0, 0x178BFBFF),
    (4, 0, 1, 0x1C00_4121, 2, 3, 4),
    (4, 1, 1, 0x1C03_C163, 6, 7, 8),
    (4, 2, 1, 0, 6, 7, 8),
    (7, 0, 1, 0, 9, 10, 11),
    (0xA, 0, 0, 0x7300403, 0, 0, 0x603),
    (0xB, 0, 1, 99, 99, 99, 99),
    (0xB, 1, 1, 99, 99, 99, 99),
    (0xB, 2, 1, 99, 99, 99, 99),
    (0x80000000, 0, 0, 0x80000008, 0x756E6547, 0x6C65746E, 0x49656E69),
    (0x80000001, 0, 0, 0, 0, 0x121, 0x2C100800),
    (0x80000008, 0, 0, 0x3028, 0, 0x3007, 0),
    (0x8000001E, 0, 0, 99, 99, 99, 99),
    (0x40000000, 0, 0, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D),
    (0x40000001, 0, 0, 0x0100_7EFB, 0, 0, 0),
]


def told(function: int, index: int = 0, **options: object) -> Row:
    wanted: dict[str, object] = {"apic_id": 0, "vcpus": 1, "irqchip": True, **options}
    found = [r for r in policy(HOST, **wanted) if r[:2] == (function, index)]  # type: ignore[arg-type]
    assert len(found) == 1
    return found[0]


def test_the_hypervisor_bit_is_always_set() -> None:
    """Without it Linux looks for no kvmclock."""
    assert told(1)[ECX] & HYPERVISOR
    assert told(1, irqchip=False)[ECX] & HYPERVISOR


def test_timer_and_x2apic_come_with_the_irqchip_alone() -> None:
    """Only an in-kernel local APIC has TSC-deadline and x2APIC."""
    assert told(1, irqchip=True)[ECX] & (TSC_DEADLINE | X2APIC) == TSC_DEADLINE | X2APIC
    assert told(1, irqchip=False)[ECX] & (TSC_DEADLINE | X2APIC) == 0


@pytest.mark.parametrize(("apic_id", "vcpus"), [(0, 1), (0, 2), (1, 2), (3, 4), (7, 8), (254, 255)])
def test_each_vcpu_has_its_own_apic_id(apic_id: int, vcpus: int) -> None:
    """In leaf 1 and in leaf 0xb, with the number of CPUs; the cache line size stays the host's."""
    leaf = told(1, apic_id=apic_id, vcpus=vcpus)
    assert leaf[EBX] >> 24 == apic_id
    assert leaf[EBX] >> 16 & 0xFF == vcpus
    assert leaf[EBX] & 0xFFFF == 0x0800
    for level in range(3):
        assert told(0xB, level, apic_id=apic_id, vcpus=vcpus)[EDX] == apic_id


def test_an_apic_id_beyond_8_bits_is_whole_where_there_is_room() -> None:
    """Leaf 1 has 8 bits for it; the x2APIC leaf and AMD's have 32."""
    assert told(1, apic_id=0x123, vcpus=300)[EBX] == 0x23FF0800
    assert told(0xB, apic_id=0x123, vcpus=300)[EDX] == 0x123
    assert told(0x8000001E, apic_id=0x123, vcpus=300)[EAX] == 0x123


@pytest.mark.parametrize("vcpus", [1, 2])
def test_the_number_of_cpus_counts_where_there_are_several(vcpus: int) -> None:
    """1.EDX[28], HTT, whatever the host has."""
    assert bool(told(1, vcpus=vcpus)[EDX] & HTT) == (vcpus > 1)


def test_amd_s_own_topology_leaf_has_each_vcpu_s_id() -> None:
    """APM vol. 3, 8000_001E: APIC id, core id with one thread per core, node 0 of 1."""
    assert told(0x8000001E, apic_id=5, vcpus=8)[EAX:] == (5, 5, 0, 0)


@pytest.mark.parametrize(("vcpus", "shift"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (255, 8)])
def test_topology_is_one_package_of_single_threaded_cores(vcpus: int, shift: int) -> None:
    """SDM, CPUID leaf 0xb: threads, then cores, then an end; the shift makes room for every APIC id."""
    thread, core, end = (told(0xB, level, vcpus=vcpus) for level in range(3))
    assert (thread[EAX], thread[EBX], thread[ECX]) == (0, 1, 1 << 8)
    assert (core[EAX], core[EBX], core[ECX]) == (shift, vcpus, 2 << 8 | 1)
    assert (end[EAX], end[EBX], end[ECX] >> 8) == (0, 0, 0)


def test_performance_counters_are_not_offered() -> None:
    """Leaf 0xa is all zero: its registers may not work."""
    assert told(0xA)[EAX:] == (0, 0, 0, 0)


@pytest.mark.parametrize(("vendor", "name"), [("intel", b"GenuineIntel"), ("amd", b"AuthenticAMD")])
def test_the_vendor_can_be_chosen(vendor: str, name: bytes) -> None:
    """Both vendor leaves name it, in EBX, EDX, ECX; the highest leaves stay."""
    for function in (0, 0x80000000):
        leaf = told(function, vendor=vendor)
        assert b"".join(leaf[i].to_bytes(4, "little") for i in (EBX, EDX, ECX)) == name
        assert leaf[EAX] == told(function)[EAX]


def test_the_host_s_vendor_is_the_default() -> None:
    """Nothing is pretended that nobody asked for."""
    assert told(0) == HOST[0]


@given(st.lists(rows, max_size=30), st.integers(0, 1023), st.integers(1, 1024), st.booleans())
def test_all_other_leaves_pass_unchanged_and_in_order(
    host: list[Row], apic_id: int, vcpus: int, irqchip: bool
) -> None:
    """One row for each of the host's, the same function, index and flags, and every word in 32 bits."""
    found = policy(host, apic_id=apic_id, vcpus=vcpus, irqchip=irqchip)
    assert [row[:3] for row in found] == [row[:3] for row in host]
    for ours, theirs in zip(found, host, strict=True):
        assert ours[FUNCTION] in OWN_LEAVES or ours == theirs
        assert all(0 <= word < 1 << 32 for word in ours)


def test_each_rule_says_why() -> None:
    """Once each: two rules never take the same bits of one place."""
    taken: set[tuple[int, int | None, int, int]] = set()
    for rule in RULES:
        assert rule.why
        for bit in range(32):
            if rule.mask >> bit & 1:
                place = (rule.function, rule.subleaf, rule.register, bit)
                assert place not in taken
                taken.add(place)


def test_caches_and_amd_s_cores_are_counted_for_this_machine() -> None:
    """Levels 1 and 2 are a core's own, level 3 everybody's; AMD's leaves only where the CPU is one."""
    first, last, end = (told(4, index, vcpus=4)[EAX] for index in range(3))
    assert (first >> 26, first >> 14 & 0xFFF) == (3, 0)
    assert (last >> 26, last >> 14 & 0xFFF) == (3, 3)
    assert end == 0
    assert first & 0x3FFF == 0x0121
    assert told(0x80000008, vcpus=4)[ECX] == 0x3007
    assert told(0x80000008, vcpus=4, vendor="amd")[ECX] == 0x2003
    assert told(0x80000001, vcpus=4, vendor="amd")[ECX] == 0x123
    assert told(0x80000001, vcpus=4)[ECX] == 0x121


def test_what_hypercalls_of_an_apic_need_comes_with_the_irqchip_alone() -> None:
    """KVM offers them in any case; the clock stays."""
    assert told(0x40000001)[EAX] == 0x0100_7EFB
    assert told(0x40000001, irqchip=False)[EAX] == 0x0100_362B


def test_features_are_added_and_taken_away_by_name() -> None:
    """In every place that a name has; what the policy took away can be had back, what KVM lacks can't."""
    change = parse_features(" -kvmclock, +x2apic,-hypervisor ,+avx2,-avx2,")
    assert change == {"kvmclock": False, "x2apic": True, "hypervisor": False, "avx2": False}
    with pytest.raises(ConfigError, match=r"\+x2apic: this KVM can't"):
        told(1, features=change)
    del change["x2apic"]
    assert told(0x40000001, features=change)[EAX] == 0x0100_7EF2
    assert not told(1, features=change)[ECX] & HYPERVISOR
    assert told(1, irqchip=False, vcpus=1, features={"ht": True})[EDX] & HTT
    assert told(7, features={"fsgsbase": True})[EBX] == 9


@pytest.mark.parametrize(
    ("text", "said"), [("avx2", r"say \+avx2"), ("+avx3", "do you mean"), ("-qqqqqq", "/proc/cpuinfo")]
)
def test_words_that_are_no_features(text: str, said: str) -> None:
    """One line with what would be right."""
    with pytest.raises(ConfigError, match=said):
        parse_features(text)
