"""Seccomp profiles become filters that decide as the profile says, by a BPF machine of the test's own."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.containers import capabilities
from pykvm.containers.bpf import MOST_INSTRUCTIONS
from pykvm.containers.seccomp import compile_filter, parse_profile, resolve, syscall_numbers
from pykvm.containers.seccomp_default import default_profile
from pykvm.errors import ConfigError

X86_64, I386, ARM64 = 0xC000003E, 0x40000003, 0xC00000B7
ALLOW, KILL, KILL_PROCESS = 0x7FFF0000, 0, 0x80000000
NUMBERS = syscall_numbers("SCMP_ARCH_X86_64")
BIG = st.integers(0, (1 << 64) - 1) | st.sampled_from([0, 1, 5, 0xFFFFFFFF, 1 << 32, (5 << 32) | 1])
OPS = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]


def fails(number: int) -> int:
    """SECCOMP_RET_ERRNO with that error."""
    return 0x00050000 | number


def decide(program: bytes, nr: int, args: tuple[int, ...] = (), arch: int = X86_64) -> int:
    """What the filter returns: the kernel's interpreter, as far as filters use it, with its checks."""
    data = struct.pack("<IIQ6Q", nr, arch, 0, *(args + (0,) * 6)[:6])
    insns = list(struct.iter_unpack("<HBBI", program))
    assert 0 < len(insns) <= MOST_INSTRUCTIONS
    at = accumulator = 0
    while True:
        code, if_true, if_false, k = insns[at]
        at += 1
        if code == 0x06:
            return int(k)
        if code == 0x20:
            assert k % 4 == 0
            assert k < len(data)
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif code == 0x54:
            accumulator &= k
        elif code == 0x05:
            at += k
        else:
            test = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}[code]
            at += if_true if test else if_false


def holds(condition: dict[str, Any], args: tuple[int, ...]) -> bool:
    """The meaning of a comparison."""
    arg, value, two = args[condition["index"]], condition["value"], condition["valueTwo"]
    found: bool = {
        "NE": arg != value,
        "LT": arg < value,
        "LE": arg <= value,
        "EQ": arg == value,
        "GE": arg >= value,
        "GT": arg > value,
        "MASKED_EQ": arg & value == two,
    }[condition["op"].removeprefix("SCMP_CMP_")]
    return found


def expected(seccomp: dict[str, Any], name: str, args: tuple[int, ...]) -> int:
    """The meaning of a profile for a syscall that there is."""
    default = ALLOW if seccomp["defaultAction"] == "SCMP_ACT_ALLOW" else fails(errno.EPERM)
    for rule in seccomp["syscalls"]:
        result = ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else fails(rule["errnoRet"])
        if name not in rule["names"] or result == default:
            continue
        conditions = rule["args"]
        several = len({one["index"] for one in conditions}) < len(conditions)
        if (any if several else all)([holds(one, args) for one in conditions]):
            return result
    return default


CONDITION = st.fixed_dictionaries(
    {
        "index": st.integers(0, 5),
        "value": BIG,
        "valueTwo": BIG,
        "op": st.sampled_from([f"SCMP_CMP_{op}" for op in OPS]),
    }
)
RULE = st.fixed_dictionaries(
    {
        "names": st.lists(
            st.sampled_from(["read", "write", "clone", "statx", "socket", "no_such"]), max_size=3
        ),
        "action": st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"]),
        "errnoRet": st.integers(0, 4095),
        "args": st.lists(CONDITION, max_size=3),
    }
)
PROFILE = st.fixed_dictionaries(
    {
        "defaultAction": st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"]),
        "syscalls": st.lists(RULE, max_size=6),
    }
)


@settings(max_examples=150, deadline=None)
@given(PROFILE, st.data())
def test_a_filter_decides_as_the_profile_says(profile: dict[str, Any], data: st.DataObject) -> None:
    """Actions, errors, all comparisons of 64 bits, several rules and conditions; also next to each value."""
    program = compile_filter(profile)
    values = [c[key] for rule in profile["syscalls"] for c in rule["args"] for key in ("value", "valueTwo")]
    near = [max(0, value + step) & ((1 << 64) - 1) for value in values for step in (-1, 0, 1)]
    for name in ("read", "write", "clone", "statx", "socket", "close"):
        args = tuple(data.draw(st.tuples(*[st.sampled_from(near) | BIG if near else BIG] * 6)))
        assert decide(program, NUMBERS[name], args) == expected(profile, name, args)


def test_numbers_of_other_tables_never_pass_by_mistake() -> None:
    """Another architecture kills; x32 is ENOSYS; i386 has its own numbers, and only where it is named."""
    rules = [{"names": ["read", "getpid"], "action": "SCMP_ACT_ALLOW"}]
    only = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}
    both = {**only, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]}
    program = compile_filter(both)
    assert decide(program, 0) == decide(program, 3, arch=I386) == decide(program, 20, arch=I386) == ALLOW
    assert decide(program, 39) == ALLOW
    assert decide(program, 20) == decide(program, 0, arch=I386) == fails(errno.EPERM)
    assert decide(program, 0, arch=ARM64) == decide(compile_filter(only), 3, arch=I386) == KILL_PROCESS
    for x32 in (0x40000000, 0x40000027, 0xFFFFFFFF):
        assert decide(program, x32) == fails(errno.ENOSYS)
    newest = max(NUMBERS.values())
    assert decide(program, newest) == fails(errno.EPERM)
    assert decide(program, newest + 1) == fails(errno.ENOSYS)  # programs then take an older one
    assert decide(compile_filter({"defaultAction": "SCMP_ACT_KILL", "syscalls": rules}), newest + 1) == KILL


def test_a_long_filter_jumps_as_far_as_it_must() -> None:
    """Rules of their own for each of 300 syscalls: tests reach 255 instructions, jumps all."""
    names = [name for name, _ in sorted(NUMBERS.items(), key=lambda pair: pair[1])][:300]
    rules = [
        {
            "names": [name],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1 + at,
            "args": [{"index": 1, "value": at << 33, "op": "SCMP_CMP_GT"}],
        }
        for at, name in enumerate(names)
    ]
    program = compile_filter({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
    for at, name in enumerate(names):
        assert decide(program, NUMBERS[name], (0, (at << 33) + 1)) == fails(1 + at)
        assert decide(program, NUMBERS[name], (0, at << 33)) == ALLOW
    ways = [{"index": 0, "value": at, "op": "SCMP_CMP_EQ"} for at in range(2000)]
    with pytest.raises(ConfigError, match=r"needs .* instructions; Linux takes 4096"):
        compile_filter(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "args": ways}],
            }
        )


def test_rules_hang_on_capabilities_architecture_and_kernel() -> None:
    """What includes and excludes say decides which rules there are."""
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"name": "sync", "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
            {"name": "brk", "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
            {"name": "read", "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
        ],
    }

    def allowed(caps: list[str], kernel: tuple[int, int]) -> set[str]:
        found = resolve(profile, caps, kernel)
        program = compile_filter(found)
        return {name for name, number in NUMBERS.items() if decide(program, number) == ALLOW}

    assert allowed([], (6, 1)) == {"clone", "ptrace", "read"}
    assert allowed(["CAP_SYS_ADMIN"], (4, 7)) == {"mount", "read"}
    found = resolve(profile, [], (6, 1))
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert decide(compile_filter(found), NUMBERS["sync"]) == fails(38)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "decoding seccomp profile failed"),
        ("[]", "is an object"),
        ('{"defaultAction":"SCMP_ACT_NO"}', "'SCMP_ACT_NO' is no action"),
        ('{"defaultAction":"SCMP_ACT_NOTIFY"}', "nobody here answers"),
        ('{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}', "no error number"),
        ('{"architectures":["a"],"archMap":[1]}', "use one"),
        ('{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[1]}', "no object"),
        (
            '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_LOG","args":[{"index":6}]}]}',
            "no argument 6",
        ),
        (
            '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"includes":{"minKernel":"x"}}]}',
            "is no version",
        ),
        ('{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"]}]}', "use one"),
    ],
)
def test_a_bad_profile_is_refused_in_one_line(text: str, message: str) -> None:
    """The line names the file and what is wrong."""
    with pytest.raises(ConfigError, match=message) as caught:
        parse_profile(text, "p.json")
    assert str(caught.value).startswith("p.json: ")


def test_the_default_profile_keeps_what_only_the_guest_may_do() -> None:
    """Ordinary programs' calls pass; those that reach the whole guest need their capability or never pass."""

    def results(caps: list[str]) -> dict[str, int]:
        program = compile_filter(resolve(default_profile(), caps, (6, 1)))
        return {name: decide(program, number) for name, number in NUMBERS.items()}

    plain = results(capabilities.chosen())
    everyday = (
        "read write openat execve clone mmap futex epoll_wait socket fork wait4 rt_sigaction statx chown"
    )
    assert {plain[name] for name in everyday.split()} == {ALLOW}
    kept = "mount umount2 pivot_root bpf init_module kexec_load reboot swapon setns unshare keyctl add_key "
    kept += "userfaultfd perf_event_open open_by_handle_at settimeofday acct iopl quotactl io_uring_setup"
    assert {plain[name] for name in kept.split()} == {fails(errno.EPERM)}
    assert plain["clone3"] == fails(errno.ENOSYS)  # its flags are in memory, which no filter sees
    admin = results([*capabilities.chosen(), "CAP_SYS_ADMIN"])
    assert {admin[name] for name in ("mount", "setns", "unshare", "clone3", "bpf")} == {ALLOW}
    assert {admin[name] for name in ("kexec_load", "init_module", "add_key")} == {fails(errno.EPERM)}
    program = compile_filter(resolve(default_profile(), capabilities.chosen(), (6, 1)))
    for flag in (0x10000000, 0x20000000, 0x40000000, 0x20000, 0x02000000, 0x04000000, 0x08000000):
        assert decide(program, NUMBERS["clone"], (flag | 17,)) == fails(errno.EPERM)
        assert decide(program, 120, (flag | 17,), I386) == fails(errno.EPERM)
    af_vsock, af_alg = 40, 38
    for family in (af_vsock, af_alg):  # the way to the host, and to the kernel's ciphers
        assert decide(program, NUMBERS["socket"], (family, 1, 0)) == fails(errno.EPERM)
    assert decide(program, NUMBERS["socket"], (2, 1, 0)) == ALLOW
    assert decide(program, NUMBERS["personality"], (0x0008,)) == ALLOW
    assert decide(program, NUMBERS["personality"], (0x0040000,)) == fails(errno.EPERM)
    assert decide(program, 3, arch=I386) == ALLOW


def test_capabilities_are_chosen_as_docker_does() -> None:
    """Fourteen by default; ALL; names with and without CAP_, in any case; none that there is not."""
    chosen = capabilities.chosen
    assert len(capabilities.ALL) == 41
    assert capabilities.number_of("CAP_SYS_ADMIN") == 21
    assert set(chosen()) == capabilities.DEFAULT
    assert len(chosen()) == 14
    assert chosen(["net_admin"], ["ALL"]) == ["CAP_NET_ADMIN"]
    assert chosen(["ALL"], ["CAP_SYS_ADMIN"]) == [one for one in capabilities.ALL if one != "CAP_SYS_ADMIN"]
    assert "CAP_MKNOD" not in chosen([], ["mknod"])
    assert chosen(privileged=True) == list(capabilities.ALL)
    with pytest.raises(ConfigError, match="invalid capability: 'SYS_NOTHING'"):
        chosen(["SYS_NOTHING"])
