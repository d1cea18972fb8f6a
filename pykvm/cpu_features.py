"""Features of x86 CPUs by the names that Linux gives them in /proc/cpuinfo, and where CPUID tells of each.

Source: SDM vol. 2A and APM vol. 3, CPUID; for names the kernel's arch/x86/include/asm/cpufeatures.h, for the
hypervisor's the kernel's Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

import difflib
from functools import cache

from pykvm.errors import ConfigError

__all__ = ["parse_features", "places_of"]

_EAX, _EBX, _ECX, _EDX = 3, 4, 5, 6
# names from bit 0 on; "-" is a bit that has none
_NAMES = (
    (
        1,
        0,
        _ECX,
        """
        pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca
        sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand hypervisor
        """,
    ),
    (
        1,
        0,
        _EDX,
        """
        fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi
        mmx fxsr sse sse2 ss ht tm ia64 pbe
        """,
    ),
    (6, 0, _EAX, "dtherm ida arat"),
    (
        7,
        0,
        _EBX,
        """
        fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f
        avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni
        avx512bw avx512vl
        """,
    ),
    (
        7,
        0,
        _ECX,
        """
        - avx512vbmi umip pku ospke waitpkg avx512_vbmi2 - gfni vaes vpclmulqdq avx512_vnni
        avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri
        movdir64b enqcmd sgx_lc
        """,
    ),
    (
        7,
        0,
        _EDX,
        """
        - - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear - - - serialize -
        tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 - - flush_l1d
        arch_capabilities
        """,
    ),
    (7, 1, _EAX, "- - - - avx_vnni avx512_bf16"),
    (0xD, 1, _EAX, "xsaveopt xsavec xgetbv1 xsaves"),
    (
        0x4000_0001,
        0,
        _EAX,
        """
        kvmclock kvm_nopiodelay - kvmclock kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt -
        kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control kvm_pv_sched_yield
        kvm_asyncpf_int kvm_msi_ext_dest_id - kvm_migration_control - - - - - - kvmclock_stable
        """,
    ),
    (
        0x8000_0001,
        0,
        _ECX,
        """
        lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop
        skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc
        perfctr_llc mwaitx
        """,
    ),
    (
        0x8000_0001,
        0,
        _EDX,
        """
        - - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm
        3dnowext 3dnow
        """,
    ),
    (0x8000_0007, 0, _EDX, "- - - - - - - - constant_tsc"),
    (0x8000_0008, 0, _EBX, "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd"),
)


@cache
def _places() -> dict[str, list[tuple[int, int, int, int]]]:
    found: dict[str, list[tuple[int, int, int, int]]] = {}
    for function, index, register, names in _NAMES:
        for bit, name in enumerate(names.split()):
            if name != "-":
                found.setdefault(name, []).append((function, index, register, bit))
    return found


def places_of(name: str) -> list[tuple[int, int, int, int]]:
    """(function, index, register's place in a row, bit) of each. Raises ConfigError for an unknown name."""
    found = _places()
    if name not in found:
        near = difflib.get_close_matches(name, found, 3)
        hint = f"; do you mean {' or '.join(near)}?" if near else "; names are those of /proc/cpuinfo"
        raise ConfigError(f"--cpu: there is no feature {name!r}{hint}")
    return found[name]


def parse_features(text: str) -> dict[str, bool]:
    """{name: whether the guest is to have it} of "+avx2,-smap"; the last word on a name counts.

    Raises ConfigError for a word without its sign, and for unknown names.
    """
    found: dict[str, bool] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        sign, name = word[0], word[1:]
        if sign not in "+-":
            raise ConfigError(f"--cpu {word}: say +{word} to add it or -{word} to take it away")
        places_of(name)
        found.pop(name, None)
        found[name] = sign == "+"
    return found
