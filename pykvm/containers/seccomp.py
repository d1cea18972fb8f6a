"""A seccomp profile in docker's JSON, as a filter that the kernel runs at each syscall (classic BPF).

::

    docker's profile ──resolve()──► OCI's linux.seccomp ──compile_filter()──► struct sock_filter[]
    includes, excludes: capabilities,     names, conditions on            for x86-64, and i386 where the
    architecture, kernel's version        arguments, actions              profile has it

Rules of one syscall are tried in their order and the first that fits decides; those whose action is the
default's are left out; conditions on the same argument are alternatives, those on different ones must all be
met. Names that no kernel for x86 has are passed over: profiles are written for many architectures. A call by
another architecture's numbers kills the process; one by those of x32 is ENOSYS, as in kernels without it.
With a default of SCMP_ACT_ERRNO a syscall newer than our table is ENOSYS as well, so that programs take an
older one instead. Conditions see registers only: on i386 socketcall and ipc are rules of their own.

Sources: the OCI runtime specification (config-linux, seccomp), seccomp(2), docker's seccomp documentation.
"""

from __future__ import annotations

import errno
import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pykvm.containers.bpf import Assembler, Code
from pykvm.containers.limits import JSON_BYTES
from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["Condition", "compile_filter", "parse_profile", "resolve", "syscall_numbers"]

_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_AUDIT = {"SCMP_ARCH_X86_64": 0xC000_003E, "SCMP_ARCH_X86": 0x4000_0003}
_X32 = 0x4000_0000
_KILL_PROCESS, _ENOSYS = 0x8000_0000, 0x0005_0000 | errno.ENOSYS
_ACTIONS = {
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL_PROCESS": _KILL_PROCESS,
    "SCMP_ACT_TRAP": 0x0003_0000,
    "SCMP_ACT_ERRNO": 0x0005_0000,
    "SCMP_ACT_TRACE": 0x7FF0_0000,
    "SCMP_ACT_LOG": 0x7FFC_0000,
    "SCMP_ACT_ALLOW": 0x7FFF_0000,
}
_WITH_ERRNO = frozenset({"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"})
_OPS = frozenset(f"SCMP_CMP_{name}" for name in "NE LT LE EQ GE GT MASKED_EQ".split())
_WORD = 0xFFFF_FFFF
_KERNEL = re.compile(r"(\d+)\.(\d+)")


class Condition(NamedTuple):
    """What an argument must be. For MASKED_EQ: (argument & value) == value_two."""

    argument: int
    op: str
    value: int
    value_two: int = 0


class _Rule(NamedTuple):
    result: int
    ways: tuple[tuple[Condition, ...], ...]
    """One of these must be met in all its conditions."""


def parse_profile(text: bytes | str, where: str) -> dict[str, Any]:
    """A profile, from its JSON. Raises ConfigError, naming `where`, for what can't be one."""
    try:
        if len(text) > JSON_BYTES:
            raise ConfigError(f"{where}: a seccomp profile of {len(text)} bytes; {JSON_BYTES} are allowed")
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: decoding seccomp profile failed: {str(error)[:100]}") from None
    if not isinstance(found, dict) or not isinstance(found.get("syscalls") or [], list):
        raise ConfigError(f"{where}: a seccomp profile is an object with a list `syscalls`")
    if found.get("architectures") and found.get("archMap"):
        raise ConfigError(f"{where}: both 'architectures' and 'archMap' are specified; use one")
    try:
        compile_filter(resolve(found, (), (99, 0)))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return found


def resolve(profile: Mapping[str, Any], caps: Collection[str], kernel: tuple[int, int]) -> dict[str, Any]:
    """The profile for a container with these capabilities on this kernel, as OCI's linux.seccomp.

    Raises ConfigError for what makes no sense.
    """
    found: dict[str, Any] = {
        "defaultAction": profile.get("defaultAction"),
        "architectures": _architectures(profile),
        "syscalls": [],
    }
    if profile.get("defaultErrnoRet") is not None:
        found["defaultErrnoRet"] = profile["defaultErrnoRet"]
    for at, call in enumerate(profile.get("syscalls") or []):
        if not isinstance(call, dict):
            raise ConfigError(f"syscalls[{at}]: is no object")
        if call.get("name") and call.get("names"):
            raise ConfigError(f"syscalls[{at}]: both 'name' and 'names' are specified; use one")
        if _applies(call, caps, kernel):
            names = [call["name"]] if call.get("name") else call.get("names") or []
            kept = {key: call[key] for key in ("action", "errnoRet", "args") if call.get(key) is not None}
            found["syscalls"].append({"names": names, **kept})
    return found


def _architectures(profile: Mapping[str, Any]) -> list[str]:
    if given := profile.get("architectures"):
        return [str(one) for one in given] if isinstance(given, list) else []
    rows = profile.get("archMap") or []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("architecture") == "SCMP_ARCH_X86_64":
            return ["SCMP_ARCH_X86_64", *map(str, row.get("subArchitectures") or [])]
    return ["SCMP_ARCH_X86_64"]


def _applies(call: Mapping[str, Any], caps: Collection[str], kernel: tuple[int, int]) -> bool:
    """Whether what a rule includes is there, and nothing of what it excludes."""
    wanted, unwanted = _filter(call, "includes"), _filter(call, "excludes")
    if wanted.get("arches") and "amd64" not in wanted["arches"]:
        return False
    if any(cap not in caps for cap in wanted.get("caps") or ()) or not _is_new(wanted, kernel):
        return False
    if "amd64" in (unwanted.get("arches") or ()) or any(cap in caps for cap in unwanted.get("caps") or ()):
        return False
    return not unwanted.get("minKernel") or not _is_new(unwanted, kernel)


def _filter(call: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = call.get(key) or {}
    if not isinstance(found, dict) or any(
        not isinstance(found.get(part) or [], list) for part in ("caps", "arches")
    ):
        raise ConfigError(f"{key}: is an object with lists `caps` and `arches`")
    return found


def _is_new(part: Mapping[str, Any], kernel: tuple[int, int]) -> bool:
    if not (said := part.get("minKernel")):
        return True
    version = _KERNEL.match(str(said))
    if not version:
        raise ConfigError(f"minKernel: {said!r} is no version; 4.8 is")
    return kernel >= (int(version[1]), int(version[2]))


@lru_cache(maxsize=2)
def syscall_numbers(architecture: str) -> dict[str, int]:
    """Syscalls by name: those of SCMP_ARCH_X86_64 or SCMP_ARCH_X86."""
    from pykvm.trace.syscalls.table import X86_64  # noqa: PLC0415 - the tables are long
    from pykvm.trace.syscalls.table_i386 import i386_rows  # noqa: PLC0415 - as above

    rows = X86_64.strip().splitlines() if architecture == "SCMP_ARCH_X86_64" else i386_rows()
    return {name: int(number) for number, name, *_ in (row.split() for row in rows)}


def compile_filter(seccomp: Mapping[str, Any]) -> bytes:
    """The filter that OCI's linux.seccomp describes, as an array of struct sock_filter.

    Raises ConfigError for unknown actions and comparisons, and for what is too long for the kernel.
    """
    default = _action(seccomp.get("defaultAction"), seccomp.get("defaultErrnoRet"), "defaultAction")
    rules = _rules(seccomp, default)
    newer = _ENOSYS if default >> 16 == _ACTIONS["SCMP_ACT_ERRNO"] >> 16 else default
    assembler = Assembler()
    start = assembler.result(_KILL_PROCESS)
    names = seccomp.get("architectures") or ["SCMP_ARCH_X86_64"]
    for architecture in [one for one in _AUDIT if one in names]:
        numbers = syscall_numbers(architecture)
        tree = _dispatch(assembler, numbers, rules, default, newer)
        if architecture == "SCMP_ARCH_X86_64":
            tree = assembler.test(Code.AT_LEAST, _X32, assembler.result(_ENOSYS), tree)
        mine = assembler.load(_NR, tree)
        start = assembler.test(Code.EQUAL, _AUDIT[architecture], mine, start)
    return assembler.encoded(assembler.load(_ARCH, start))


def _rules(seccomp: Mapping[str, Any], default: int) -> dict[str, list[_Rule]]:
    found: dict[str, list[_Rule]] = {}
    for at, call in enumerate(seccomp.get("syscalls") or []):
        where = f"syscalls[{at}]"
        result = _action(call.get("action"), call.get("errnoRet"), where)
        conditions = [_condition(one, where) for one in call.get("args") or []]
        several = len({one.argument for one in conditions}) < len(conditions)
        ways = tuple((one,) for one in conditions) if several else (tuple(conditions),)
        if result == default:
            continue
        for name in call.get("names") or []:
            found.setdefault(str(name), []).append(_Rule(result, ways))
    return found


def _action(name: object, number: object, where: str) -> int:
    if not isinstance(name, str) or name not in _ACTIONS:
        hint = "; nobody here answers notifications" if name == "SCMP_ACT_NOTIFY" else ""
        raise ConfigError(f"{where}: {name!r} is no action of seccomp for a container{hint}")
    if number is None:
        number = errno.EPERM
    if not isinstance(number, int) or not 0 <= number <= 4095:
        raise ConfigError(f"{where}: {number!r} is no error number")
    return _ACTIONS[name] | (number if name in _WITH_ERRNO else 0)


def _condition(said: object, where: str) -> Condition:
    if not isinstance(said, dict):
        raise ConfigError(f"{where}: an argument's condition is no object")
    index, op = said.get("index"), said.get("op")
    values = [said.get("value") or 0, said.get("valueTwo") or 0]
    if not isinstance(index, int) or not 0 <= index <= 5 or op not in _OPS:
        raise ConfigError(f"{where}: no argument {index!r}, or no comparison {op!r}")
    if any(not isinstance(value, int) or not 0 <= value < 1 << 64 for value in values):
        raise ConfigError(f"{where}: a value that is no number of 64 bits")
    return Condition(index, str(op), *values)


def _dispatch(
    assembler: Assembler,
    numbers: Mapping[str, int],
    rules: Mapping[str, Sequence[_Rule]],
    default: int,
    newer: int,
) -> int:
    """The label of a binary search by number, whose leaves try the rules of a syscall."""
    by_number = {numbers[name]: tuple(some) for name, some in rules.items() if name in numbers}
    last = max(numbers.values())
    leaves: dict[tuple[_Rule, ...], int] = {}
    steps: list[tuple[int, int]] = []  # from this number on, this leaf
    for number in range(last + 1):
        some = by_number.get(number, ())
        if some not in leaves:
            leaves[some] = _leaf(assembler, some, default)
        if not steps or steps[-1][1] != leaves[some]:
            steps.append((number, leaves[some]))
    steps.append((last + 1, assembler.result(newer)))
    return _search(assembler, steps)


def _search(assembler: Assembler, steps: Sequence[tuple[int, int]]) -> int:
    if len(steps) == 1:
        return steps[0][1]
    middle = len(steps) // 2
    high, low = _search(assembler, steps[middle:]), _search(assembler, steps[:middle])
    return assembler.test(Code.AT_LEAST, steps[middle][0], high, low)


def _leaf(assembler: Assembler, rules: Sequence[_Rule], default: int) -> int:
    otherwise = assembler.result(default)
    for rule in reversed(rules):
        fits = assembler.result(rule.result)
        for way in reversed(rule.ways):
            label = fits
            for condition in reversed(way):
                label = _compare(assembler, condition, label, otherwise)
            otherwise = label
    return otherwise


def _compare(assembler: Assembler, condition: Condition, yes: int, no: int) -> int:
    """A comparison of 64 bits in words of 32, the upper one first."""
    _, op, value, value_two = condition
    at = _ARGS + 8 * condition.argument
    if op == "SCMP_CMP_MASKED_EQ":
        label = _masked_equal(assembler, at, value & _WORD, value_two & _WORD, (yes, no))
        return _masked_equal(assembler, at + 4, value >> 32, value_two >> 32, (label, no))
    if op in {"SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE"}:  # each is another one's opposite
        yes, no = no, yes
    code = {"NE": Code.EQUAL, "EQ": Code.EQUAL, "GT": Code.GREATER, "LE": Code.GREATER}.get(
        op.removeprefix("SCMP_CMP_"), Code.AT_LEAST
    )
    low = assembler.load(at, assembler.test(code, value & _WORD, yes, no))
    if code is Code.EQUAL:
        high = assembler.test(Code.EQUAL, value >> 32, low, no)
    else:
        same = assembler.test(Code.EQUAL, value >> 32, low, no)
        high = assembler.test(Code.GREATER, value >> 32, yes, same)
    return assembler.load(at + 4, high)


def _masked_equal(assembler: Assembler, at: int, mask: int, value: int, ends: tuple[int, int]) -> int:
    return assembler.load(at, assembler.mask(mask, assembler.test(Code.EQUAL, value, *ends)))
