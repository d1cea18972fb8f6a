"""The instruction that led to an exit, with the values of what it read: "out dx, al   ; dx=0x3f8 al=0x48".

Where RIP is at an exit depends on the exit and on the KVM: some KVMs have moved it past an OUT when they
hand it to userspace, some have not. So the instruction is looked for at RIP and before it, and must be one
that can have caused this very exit: its port, or the guest-physical address of its operand, has to fit.
"""

from __future__ import annotations

import re
import subprocess
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import capstone
from capstone import x86_const

from pykvm import paging
from pykvm._native import lib
from pykvm.errors import GuestAddressError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Disassembler", "SourceLines"]

_LONGEST = 15  # bytes of an x86 instruction
_HEAD = Struct("<24xQ8xI")  # address, reason
_STATE_AT = 56
_STATE = Struct("<18Q5Q")
_NAMES = "rip rsp rflags rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split()
_SPECIAL = "cr0 cr3 cr4 efer cs_base".split()
_FLAGS_AT, _CODE_BITS_AT = 51, 54
_MODES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
# prefixes, then IN or OUT: of an immediate port, of DX, or of a string
_PORT_IO = re.compile(
    rb"[\x26\x2e\x36\x3e\x64-\x67\xf2\xf3]*[\x40-\x4f]?(?:[\xe4-\xe7](.)|[\xec-\xef\x6c-\x6f])", re.DOTALL
)
_HLT = b"\xf4"
_STRING = ("movs", "stos", "lods", "cmps", "scas")
_KNOWN_MAX = 1 << 14


def _parts() -> dict[str, tuple[str, int]]:
    """Register name -> the 64-bit register it is part of, and its mask."""
    found: dict[str, tuple[str, int]] = {}
    for letter in "abcd":
        full = f"r{letter}x"
        found |= {full: (full, 1 << 64), f"e{letter}x": (full, 1 << 32), f"{letter}x": (full, 1 << 16)}
        found |= {f"{letter}l": (full, 1 << 8)}
    for name in ("si", "di", "bp", "sp", "ip"):
        found |= {f"r{name}": (f"r{name}", 1 << 64), f"e{name}": (f"r{name}", 1 << 32)}
        found |= {name: (f"r{name}", 1 << 16), f"{name}l": (f"r{name}", 1 << 8)}
    for number in range(8, 16):
        for end, size in (("", 64), ("d", 32), ("w", 16), ("b", 8)):
            found[f"r{number}{end}"] = (f"r{number}", 1 << size)
    return found


_PARTS = _parts()
_HIGH = {f"{letter}h": f"r{letter}x" for letter in "abcd"}


class _Cpu(NamedTuple):
    """What a record knows of the CPU at an exit."""

    reason: int
    address: int
    is_write: bool
    bits: int
    regs: dict[str, int]
    special: dict[str, int]

    @property
    def linear(self) -> int:
        """RIP as a linear address."""
        rip = self.regs["rip"]
        return rip if self.bits == 64 else (rip + self.special["cs_base"]) & 0xFFFFFFFF

    @property
    def control(self) -> tuple[int, int, int, int]:
        """CR0, CR3, CR4 and EFER: what a walk through the page tables needs."""
        special = self.special
        return special["cr0"], special["cr3"], special["cr4"], special["efer"]

    def value(self, name: str) -> int | None:
        """A register or a part of one; None for what a record does not hold."""
        if name in _HIGH:
            return self.regs[_HIGH[name]] >> 8 & 0xFF
        part = _PARTS.get(name)
        return self.regs[part[0]] & (part[1] - 1) if part else None


def _cpu(record: memoryview) -> _Cpu | None:
    bits = record[_CODE_BITS_AT]
    if bits not in _MODES:
        return None
    address, reason = _HEAD.unpack_from(record)
    values = _STATE.unpack_from(record, _STATE_AT)
    regs = dict(zip(_NAMES, values[:18], strict=True))
    is_write = bool(record[_FLAGS_AT] & lib.RECORD_WRITE)
    return _Cpu(reason, address, is_write, bits, regs, dict(zip(_SPECIAL, values[18:], strict=True)))


class Disassembler:
    """From raw trace records to instructions as text; "" where there is none to be found."""

    def __init__(self, read: Callable[[int, int], bytes], lines: Callable[[int], str] = lambda _: "") -> None:
        """`read` gives guest memory by gpa and size, `lines` the source line of a linear address."""
        self._read = read
        self._lines = lines
        self._fits = {
            lib.KVM_EXIT_IO: self._port_fits,
            lib.KVM_EXIT_MMIO: self._address_fits,
            lib.KVM_EXIT_HLT: self._halt_fits,
        }
        self._moved: dict[
            tuple[int, bool], bool
        ] = {}  # whether RIP is behind the instruction, as seen before
        self._engines: dict[int, Any] = {}
        self._known: dict[tuple[int, bytes], Any] = {}

    def __call__(self, record: memoryview) -> str:
        """The instruction of a struct trace_record whose registers are valid."""
        cpu = _cpu(record)
        if cpu is None:
            return ""
        instruction = self._cause(cpu)
        if instruction is None:
            return ""
        text = f"{instruction.mnemonic} {instruction.op_str}".strip()
        values = " ".join(self._values(instruction, cpu))
        line = self._lines(instruction.address)
        return text + (f"   ; {values}" if values else "") + (f"   {line}" if line else "")

    # ---- which instruction it was

    def _cause(self, cpu: _Cpu) -> Any:
        linear = cpu.linear
        fits = self._fits.get(cpu.reason)
        here = self._decode(cpu, linear, self._bytes(cpu, linear, _LONGEST))
        if fits is None:
            return here
        before = self._before(cpu, linear, fits)
        if here is None or not fits(here, cpu):
            self._moved[cpu.reason, cpu.is_write] = before is not None
            return before
        # both would do (the same OUT twice in a row): as it was where only one did
        is_moved = before is not None and self._moved.get((cpu.reason, cpu.is_write), False)
        return before if is_moved else here

    def _before(self, cpu: _Cpu, linear: int, fits: Callable[[Any, _Cpu], bool]) -> Any:
        """The longest instruction that ends at `linear` and fits."""
        start = max(linear - _LONGEST, 0)
        code = self._bytes(cpu, start, linear - start)
        if len(code) < linear - start:  # the page before is not there: what is there begins with this one
            start = linear & -paging.PAGE_BYTES
            code = self._bytes(cpu, start, linear - start)
        for at in range(len(code)):
            found = self._decode(cpu, start + at, code[at:])
            if found is not None and found.size == len(code) - at and fits(found, cpu):
                return found
        return None

    @staticmethod
    def _halt_fits(instruction: Any, _cpu: _Cpu) -> bool:
        return bytes(instruction.bytes) == _HLT

    @staticmethod
    def _port_fits(instruction: Any, cpu: _Cpu) -> bool:
        code = bytes(instruction.bytes)
        found = _PORT_IO.fullmatch(code)
        if not found or bool(code[found.start(1) - 1 if found[1] else -1] & 2) != cpu.is_write:
            return False
        port = found[1][0] if found[1] else cpu.regs["rdx"] & 0xFFFF
        return port == cpu.address

    def _address_fits(self, instruction: Any, cpu: _Cpu) -> bool:
        wanted = capstone.CS_AC_WRITE if cpu.is_write else capstone.CS_AC_READ
        is_string = instruction.mnemonic.split()[-1][:4] in _STRING
        for operand in instruction.operands:
            if operand.type == x86_const.X86_OP_MEM and operand.access & wanted:
                gpa = self._gpa(instruction, operand, cpu)
                if gpa is None:
                    continue
                # a string instruction's pointer has moved on by up to a page when the exit comes
                if (
                    abs(gpa - cpu.address) < paging.PAGE_BYTES
                    if is_string
                    else gpa <= cpu.address < gpa + operand.size
                ):
                    return True
        return False

    def _gpa(self, instruction: Any, operand: Any, cpu: _Cpu) -> int | None:
        gva = _effective(instruction, operand, cpu)
        if gva is None:
            return None
        found = paging.walk(self._safe_read, *cpu.control, gva)
        return found.gpa if found else None

    # ---- bytes and instructions

    def _safe_read(self, gpa: int, size: int) -> bytes:
        try:
            return self._read(gpa, size)
        except GuestAddressError:
            return b""

    def _bytes(self, cpu: _Cpu, gva: int, size: int) -> bytes:
        return paging.read_virtual(self._safe_read, *cpu.control, gva, size)

    def _decode(self, cpu: _Cpu, address: int, code: bytes) -> Any:
        key = (address << 8 | cpu.bits, code)
        if key not in self._known:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[key] = next(self._engine(cpu.bits).disasm(code, address, 1), None)
        return self._known[key]

    def _engine(self, bits: int) -> Any:
        engine = self._engines.get(bits)
        if engine is None:
            engine = self._engines[bits] = capstone.Cs(capstone.CS_ARCH_X86, _MODES[bits])
            engine.detail = True
        return engine

    @staticmethod
    def _values(instruction: Any, cpu: _Cpu) -> list[str]:
        """What the instruction read: registers, and the addresses of its operands in memory."""
        found: dict[str, str] = {}
        for number in instruction.regs_access()[0]:
            name = instruction.reg_name(number)
            value = cpu.value(name)
            if value is None or name in ("rip", "eip", "ip"):
                continue
            whole = _HIGH.get(name) or _PARTS[name][0]
            if len(found.get(whole, "")) < len(f"{name}={value:#x}"):  # of rsi and esi, rsi
                found[whole] = f"{name}={value:#x}"
        for operand in instruction.operands:
            if operand.type == x86_const.X86_OP_MEM and (operand.mem.base or operand.mem.index):
                address = _effective(instruction, operand, cpu)
                if address is not None:
                    found[f"[{address}]"] = f"[{address:#x}]"
        return list(found.values())


def _effective(instruction: Any, operand: Any, cpu: _Cpu) -> int | None:
    """The address of an operand in memory; None where a segment's base is not in the record."""
    memory = operand.mem
    if memory.segment in (x86_const.X86_REG_FS, x86_const.X86_REG_GS):
        return None
    address = memory.disp
    for number, scale in ((memory.base, 1), (memory.index, memory.scale)):
        if number:
            name = instruction.reg_name(number)
            value = instruction.address + instruction.size if name in ("rip", "eip") else cpu.value(name)
            if value is None:
                return None
            address += value * scale
    size = 16 if instruction.addr_size == 2 else 32 if instruction.addr_size == 4 else 64
    return int(address) & (1 << size) - 1


class SourceLines:
    """The source line of an address, by binutils' addr2line where that is installed; "" where unknown."""

    def __init__(self, path: Path) -> None:
        """`path` is an ELF file. The helper process ends with close(), or with a `with` block."""
        self._known: dict[int, str] = {}
        command = ["addr2line", "-s", "-e", str(path)]
        try:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                bufsize=1,
            )
        except OSError:
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __call__(self, address: int) -> str:
        """File and line, such as hello.c:12."""
        found = self._known.get(address)
        if found is None:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            found = self._known[address] = self._ask(address)
        return found

    def _ask(self, address: int) -> str:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return ""
        try:
            process.stdin.write(f"{address:#x}\n")
            line = process.stdout.readline().strip().split(" ")[0]
        except (OSError, ValueError):
            return ""
        return "" if "?" in line or line.endswith(":0") else line

    def close(self) -> None:
        """End the helper."""
        process, self._process = self._process, None
        if process is not None:
            process.communicate()
