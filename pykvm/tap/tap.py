"""SyscallTap: puts itself into a running guest's kernel, and takes itself out without a trace.

::

    guest's program: syscall ──> entry_SYSCALL_64 ──> `out %al, $0xee` where `mov %rsp, %rdi` was, or DR0
                                                       │  VM exit
    vcpu_run.c ── syscall_tap.c: registers from the kernel's stack, filter, record, the mov, on
                                                       │  records, in bulk
    CallSource: each return meets its call ──> TraceEvent ──> the tracer's sinks
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.errors import ConfigError, GuestAddressError, KvmError, UnclaimedIoError
from pykvm.exits import DebugExit, MsrExit
from pykvm.paging import read_virtual, walk
from pykvm.tap.btf import task_layout
from pykvm.tap.calls import ABIS, CallSource, Record
from pykvm.tap.pause import Gate
from pykvm.tap.places import Places
from pykvm.tap.sites import ENTRY_BYTES, Site, TapError, find_sites, gate_address, stack_offset
from pykvm.trace.syscalls import SyscallText, describe, syscall_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pykvm.machine import Machine
    from pykvm.tap.btf import PlaceLayout
    from pykvm.vcpu import Vcpu

__all__ = ["METHODS", "SyscallTap"]

METHODS = ("auto", "patch", "breakpoint")
_LSTAR = 0xC000_0082
_OTHERS = {0xC000_0083: "SYSCALL of 32-bit code", 0x176: "SYSENTER"}  # CSTAR, IA32_SYSENTER_EIP
_INT80 = 0x80
_KERNEL_BYTES = 128 << 20
_RECORDS = 1 << 13
_BACKLOG = 1 << 16
_WAIT_S = 0.05
_LONGEST_S = 2.0
_TEXTS_MAX = 1 << 14
_OUT_IMM8 = 0xE6
_NOP = 0x90
_DEBUG_REGISTERS = 4
_NAMES_MOST = lib.TAP_PROCESSES_MAX


class _Patch:
    """A site's bytes in guest memory: what was there, what is there now."""

    def __init__(self, site: Site, gpa: int) -> None:
        self.site, self.gpa = site, gpa
        self.bytes = bytes([_OUT_IMM8, layout.SYSCALL_TAP.start]) + bytes([_NOP]) * (len(site.code) - 2)


class SyscallTap:
    """Sees every system call of the Linux in `machine`: number, arguments, result, process, time.

    Made after load() and before run(). It attaches by itself as soon as the guest tells its CPU where system
    calls go (MSR_LSTAR), or, with `wait`, when attach() is called. `method` "patch" replaces two of the
    kernel's instructions, "breakpoint" uses two debug registers; "auto" is patch, which every KVM can do.

    `only` are names of syscalls, `processes` Linux's process numbers, `cr3s` page tables' gpas; what they
    leave out costs an exit or two, but no Python. With `words`, what arguments point to is read as strace
    does, which takes the time of an exit to Python; without, pointers stay addresses.

    The calls go to the machine's sinks, as events of kind "syscall". With `gate`, which is closed meanwhile,
    the tap is made for a machine that runs already: it patches, waits for attach(), and its events are for
    who asks for them by listen().

    Events say which container a call is from, where the guest's kernel describes its structures (BTF): see
    pykvm.tap.places. `machine.name_container` makes a name of the cgroup's.

    Raises ConfigError for what can't be chosen. What the guest does to its entry code later is told in an
    event "note".
    """

    def __init__(
        self,
        machine: Machine,
        method: str = "auto",
        *,
        only: Iterable[str] = (),
        processes: Iterable[int] = (),
        cr3s: Iterable[int] = (),
        words: bool = True,
        wait: bool = False,
        gate: Gate | None = None,
    ) -> None:
        if method not in METHODS:
            raise ConfigError(f"method={method!r}: a syscall tap's is {', '.join(METHODS)}")
        if machine.vm is None or machine.is_over:
            raise ConfigError("a syscall tap is made after load() and before the run is over")
        self.method = "patch" if method == "auto" else method
        self._machine = machine
        self._lock = threading.RLock()
        self._patches: list[_Patch] = []
        self._entries: dict[str, int] = {}
        self._breakpoints: list[int] = []
        self._sites: list[Site] = []
        self._wants_in = not wait
        self._was_in = False
        self._notes: deque[str] = deque()
        self._records: deque[Record] = deque()
        self._taken = threading.Condition()
        self._turns = 0
        self._texts: dict[int, SyscallText] = {}
        self._places = Places(machine.name_container)
        self._place_layout: PlaceLayout | None = None
        self._tap = ffi.new("struct syscall_tap *")
        self._ring = ffi.new("struct tap_record[]", _RECORDS)
        self._out = ffi.new("struct tap_record[]", _RECORDS)
        self._fill(only, tuple(processes), tuple(cr3s), words=words)
        self._gate = gate or Gate(machine.vcpus)
        self._connect(machine)
        self.source = self._new_source()
        if gate:
            self.method, self._wants_in = "patch", False
        else:
            self._hear_of_entries(machine)
            machine.add_source(self.source)

    def listen(self) -> CallSource:
        """Events from now on, for one more tracer after another; the tap is not attached, no vCPU runs."""
        with self._taken:
            self._records.clear()
        self._texts.clear()
        self._tap.tail, self._tap.sequence = self._tap.head, 0
        self.source = self._new_source()
        return self.source

    def _new_source(self) -> CallSource:
        return CallSource(self._take, self._look, last=self._last, container=self._places.name)

    def _fill(
        self, only: Iterable[str], processes: Sequence[int], cr3s: Sequence[int], *, words: bool
    ) -> None:
        tap = self._tap
        tap.port = layout.SYSCALL_TAP.start
        tap.current_at = tap.name_at = tap.process_at = tap.thread_at = tap.id_at = lib.TAP_NO_OFFSET
        tap.records, tap.capacity = self._ring, _RECORDS
        if len(processes) > _NAMES_MOST or len(cr3s) > _NAMES_MOST:
            raise ConfigError(f"a syscall tap takes at most {_NAMES_MOST} processes")
        tap.process_count, tap.cr3_count = len(processes), len(cr3s)
        tap.processes[0 : len(processes)] = processes
        tap.cr3s[0 : len(cr3s)] = cr3s
        chosen = list(only)
        for abi, name in ABIS.items():
            choice = tap.choices[abi]
            numbers = {syscall_number(word, name) for word in chosen} - {None}
            choice.wants_all = not chosen
            _set_bits(choice.wanted, numbers)
            if words:
                _set_bits(choice.in_words, _looking(name))
        for word in chosen:
            if all(syscall_number(word, name) is None for name in ABIS.values()):
                raise ConfigError(f"{word!r} is no system call of Linux on x86")

    def _connect(self, machine: Machine) -> None:
        """Have the machine's OUTs come here."""
        machine.ports.attach(layout.SYSCALL_TAP, self)
        machine.fast_port(layout.SYSCALL_TAP, lib.VERB_TAP)
        for vcpu in machine.vcpus:
            vcpu.sync_registers(special=True)
            vcpu.loop.shared.tap = self._tap

    def _hear_of_entries(self, machine: Machine) -> None:
        """Have the breakpoints come here, and what the guest says of LSTAR: before the machine runs."""
        machine.handlers.setdefault(DebugExit, self._on_debug)
        if machine.vm is None:
            return
        machine.handlers[MsrExit] = self._on_msr
        try:
            machine.vm.filter_msrs([_LSTAR, *_OTHERS])
        except KvmError as error:
            del machine.handlers[MsrExit]
            self._note(f"this KVM does not tell when a guest sets its syscall entry ({error}); use attach()")

    # ---- figures

    @property
    def is_attached(self) -> bool:
        """Whether the tap is in the guest's kernel now."""
        return bool(self._entries)

    @property
    def calls(self) -> int:
        """System calls that passed the tap, wanted or not."""
        return int(self._tap.calls)

    @property
    def returns(self) -> int:
        """Returns that passed the tap, wanted or not."""
        return int(self._tap.returns)

    # ---- in and out

    def attach(self) -> None:
        """Put the tap in now; from any thread, and while the guest runs.

        Raises TapError with one line if the guest has set no entry yet or its code is not recognised.
        """
        with self._lock:
            self._wants_in = True
            with self._gate.closed():
                vcpu = self._machine.vcpus[0]
                msrs = vcpu.get_msrs([_LSTAR, *_OTHERS])
                if not msrs.get(_LSTAR):
                    raise TapError(
                        "syscall tap: the guest has set no entry for calls yet (MSR_LSTAR is 0); attach later"
                    )
                self._attach(vcpu, msrs)

    def detach(self) -> None:
        """Take the tap out: the guest's bytes and debug registers are as they were."""
        with self._lock:
            self._wants_in = False
            with self._gate.closed():
                self._detach()

    def _attach(self, vcpu: Vcpu, msrs: Mapping[int, int]) -> None:
        """Attach to the entries that `msrs` tell and INT 0x80, by the tables of `vcpu`; no vCPU runs.

        Raises TapError for LSTAR's; the others, which hardly a program uses, become a note.
        """
        if (entry := msrs.get(_LSTAR, 0)) and self._entries.get("SYSCALL") != entry:
            self._detach()
            self._put("SYSCALL", entry, lib.TAP_64, vcpu)
        others = {name: msrs.get(index, 0) for index, name in _OTHERS.items()}
        others["INT 0x80"] = gate_address(self._machine.memory.read, vcpu.get_sregs(), _INT80)
        for name, address in others.items():
            if not address or not self._entries or self._entries.get(name) == address:
                continue
            try:
                self._put(name, address, lib.TAP_32, vcpu)
            except TapError as error:
                self._entries[name] = address
                self._note(f"{error}; {name} is not tapped")

    def _put(self, name: str, entry: int, abi: int, vcpu: Vcpu) -> None:
        memory, sregs = self._machine.memory, vcpu.get_sregs()
        tables = sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer
        code = read_virtual(memory.read, *tables, entry, ENTRY_BYTES)
        if not code:
            raise TapError(f"syscall tap: the guest's entry {entry:#x} ({name}) is in none of its pages")
        sites = find_sites(entry, code, abi)
        patches = []
        for site in sites:
            first = walk(memory.read, *tables, site.address)
            last = walk(memory.read, *tables, site.address + len(site.code) - 1)
            if not first or not last or last.gpa - first.gpa != len(site.code) - 1:
                raise TapError(f"syscall tap: the instruction at {site.address:#x} lies on two pages")
            patches.append(_Patch(site, first.gpa))
        if abi == lib.TAP_64:
            self._find_tasks(patches[0].gpa, code)
        self._publish(sites)
        if self.method == "patch":
            self._patch(patches)
        else:
            self._break(sites)
        self._entries[name] = entry
        self._was_in = True

    def _find_tasks(self, gpa: int, code: bytes) -> None:
        """Learn from the kernel's own description where its tasks and their names are."""
        stack = stack_offset(code)
        slot = next((slot for slot in self._machine.memory.slots if slot.gpa <= gpa < slot.end), None)
        if self._tap.current_at != lib.TAP_NO_OFFSET or stack is None or slot is None:
            return
        low, high = max(gpa - _KERNEL_BYTES, slot.gpa), min(gpa + _KERNEL_BYTES, slot.end)
        found = task_layout(slot.view[low - slot.gpa : high - slot.gpa], stack)
        tap = self._tap
        if found:
            tap.name_at, tap.process_at, tap.thread_at = found.name, found.process, found.thread
            tap.current_at = found.current
            self._find_places(found.place)
        elif tap.process_count:
            self._note("this kernel does not tell where its tasks are (it has no BTF): no process is chosen")

    def _find_places(self, place: PlaceLayout | None) -> None:
        self._place_layout = place
        if place is None:
            return
        tap = self._tap
        tap.node_steps, tap.proxy_at = place.node_steps, place.proxy
        tap.namespace_at, tap.number_at = place.pid_namespace, place.pid_number
        tap.id_at = place.node_id

    def _patch(self, patches: list[_Patch]) -> None:
        memory = self._machine.memory
        for patch in patches:
            if memory.read(patch.gpa, len(patch.bytes)) != patch.site.code:
                raise TapError(f"syscall tap: the code at {patch.site.address:#x} has just changed")
        for patch in patches:
            memory.write(patch.gpa, patch.bytes)
        self._patches += patches

    def _break(self, sites: Sequence[Site]) -> None:
        wanted = [*self._breakpoints, *(site.address for site in sites)]
        if len(wanted) > _DEBUG_REGISTERS:
            raise TapError(f"syscall tap: all {_DEBUG_REGISTERS} debug registers are in use")
        for vcpu in self._machine.vcpus:
            vcpu.guest_debug(step=bool(vcpu.loop.step_period), breakpoints=wanted)
        self._breakpoints = wanted

    def _publish(self, sites: Sequence[Site]) -> None:
        """Tell C, which keeps the sites of before: a vCPU may have left the guest at one of them."""
        tap = self._tap
        new = {site.address for site in sites}
        self._sites = [*sites, *(site for site in self._sites if site.address not in new)][
            : lib.TAP_SITES_MAX
        ]
        for number, site in enumerate(self._sites):
            step = site.step if self.method == "patch" else lib.TAP_STEP_NONE
            values = (site.address, site.next, site.kind, site.abi, step, *site[6:])
            tap.sites[number] = dict(zip(_SITE_FIELDS, values, strict=True))
        tap.site_count = len(self._sites)

    def _detach(self) -> None:
        memory = self._machine.memory
        for patch in self._patches:
            with suppress(GuestAddressError):
                if memory.read(patch.gpa, len(patch.bytes)) == patch.bytes:
                    memory.write(patch.gpa, patch.site.code)
        if self._breakpoints:
            for vcpu in self._machine.vcpus:
                steps = bool(vcpu.loop.step_period)
                vcpu.guest_debug(step=steps, enable=steps)
        self._patches, self._entries, self._breakpoints = [], {}, []

    # ---- what the guest does

    def _on_msr(self, vcpu: Vcpu, exit_: MsrExit) -> None:
        """The guest sets its entry: let it, and follow."""
        vcpu.view.msr.error = 0
        try:
            vcpu.set_msrs({exit_.index: exit_.data})
        except KvmError:  # no canonical address: #GP, as the CPU has it
            vcpu.view.msr.error = 1
            return
        if self._wants_in and exit_.data:
            self._follow(vcpu, exit_.index, exit_.data)

    def _follow(self, vcpu: Vcpu, index: int, entry: int) -> None:
        with self._lock, self._gate.closed():
            before = self._entries.get("SYSCALL", entry)
            if index == _LSTAR and before != entry:
                self._note(f"the guest has moved its syscall entry to {entry:#x}; the tap goes with it")
            try:
                self._attach(vcpu, {index: entry})
            except TapError as error:
                self._detach()
                self._note(f"{error}; the tap is off")

    def _look(self) -> Sequence[str]:
        """Called now and then: has the guest rewritten what was patched? The remarks since the last time."""
        with self._lock:
            if self._patches and not self._is_whole():
                self._again()
        notes = list(self._notes)
        for _ in notes:
            self._notes.popleft()
        return notes

    def _last(self) -> Sequence[str]:
        """The run is over: what there is to say of a tap that has seen nothing, or not everything."""
        found = []
        if not self._was_in:
            found.append("the guest has set no entry for system calls: the tap had nothing to do")
        if self._tap.wild:
            found.append(f"{self._tap.wild} system calls passed the tap with their registers in no memory")
        return found

    def _is_whole(self) -> bool:
        memory = self._machine.memory
        try:
            return all(memory.read(patch.gpa, len(patch.bytes)) == patch.bytes for patch in self._patches)
        except GuestAddressError:  # the machine has been taken apart
            return True

    def _again(self) -> None:
        self._note(
            "the guest has rewritten its syscall entry; calls meanwhile are lost, the tap goes in again"
        )
        with self._gate.closed():
            vcpu = self._machine.vcpus[0]
            self._detach()
            try:
                self._attach(vcpu, vcpu.get_msrs([_LSTAR, *_OTHERS]))
            except TapError as error:
                self._note(f"{error}; the tap is off")

    def _note(self, text: str) -> None:
        self._notes.append(text)

    # ---- exits that C does not answer alone

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - the protocol's
        """As a device on the bus: nobody reads here."""
        return b"\xff" * size

    def write(self, offset: int, data: bytes) -> None:  # noqa: ARG002 - the protocol's
        """As a device on the bus: an OUT that C did not answer."""
        me = threading.get_ident()
        vcpu = next(vcpu for vcpu in self._machine.vcpus if vcpu.thread == me)
        if not self._answer(vcpu) and self._machine.spec.unclaimed == "stop":
            rip = vcpu.view.synced.regs.rip
            raise UnclaimedIoError(
                f"guest wrote {data.hex()} to port {layout.SYSCALL_TAP.start:#x} at rip={rip:#x}: it is the "
                "syscall tap's, and not from there"
            )

    def _on_debug(self, vcpu: Vcpu, exit_: DebugExit) -> None:
        if not self._answer(vcpu):
            self._machine.stop(detail=f"a debug exit at {exit_.pc:#x} that nobody asked for")

    def _answer(self, vcpu: Vcpu) -> bool:
        """Put a call or a return into words, or wait for room in the ring; False: it is none of ours."""
        loop = vcpu.loop
        raw = ffi.new("struct tap_record *")
        found = lib.tap_look(loop, raw)
        if found == lib.TAP_FOREIGN:
            return False
        if found == lib.TAP_IN_WORDS and self._see_place(loop, raw):
            found = lib.tap_look(loop, raw)
        if found == lib.TAP_IN_WORDS:
            self._in_words(loop, raw)
        elif found == lib.TAP_WANTED:
            while not lib.tap_put(self._tap, raw):
                self._wait_for_reader()
                self._drain()
        lib.tap_go_on(loop)
        return True

    def _see_place(self, loop: Any, raw: Any) -> bool:
        """Have a name for where the record is from; whether there is one."""
        place = raw.group, raw.pid_namespace
        if self._place_layout is None or not any(place):
            return False
        if not self._places.is_known(place):
            self._places.see(place, self._place_layout, raw.node, raw.proxy, _reader(loop))
        lib.tap_know(self._tap, raw)
        return True

    def _in_words(self, loop: Any, raw: Any) -> None:
        read = _reader(loop)
        record = Record.of(raw, sequence=0)
        texts = self._texts
        if record.kind == lib.TAP_CALL:
            if len(texts) >= _TEXTS_MAX:
                texts.pop(next(iter(texts)))
            texts[record.task] = describe(record.number, record.args, read=read, abi=ABIS[record.abi])
            words = texts.get(record.task)
        else:
            begun = texts.pop(record.task, None)
            words = begun.returned(record.result, read=read) if begun else None
        with self._taken:
            self._records.append(record._replace(sequence=lib.tap_number(self._tap), words=words))
        if len(self._records) > _BACKLOG:
            self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        """Let the tracer catch up: as long as its sinks need, but not for ever.

        The machine's lock is held here, and a sink may want it: then memory has to grow instead.
        """
        until = time.monotonic() + _LONGEST_S
        with self._taken:
            turn = self._turns
            while self._turns == turn and time.monotonic() < until and not self._machine.is_over:
                self._taken.wait(_WAIT_S)

    def _drain(self) -> None:
        with self._taken:
            count = lib.tap_take(self._tap, self._out, _RECORDS)
            self._records.extend(Record.of(self._out[i]) for i in range(count))

    def _take(self) -> Sequence[Record]:
        """All records since the last time; called by the tracer's thread."""
        self._drain()
        with self._taken:
            found = list(self._records)
            self._records.clear()
            self._turns += 1
            self._taken.notify_all()
        return found


_MASK = (1 << 64) - 1
_SITE_FIELDS = ("rip", "next", "kind", "abi", "step", "source", "target", "offset", "bytes")


def _reader(loop: Any) -> Callable[[int, int], bytes]:
    """Reads the guest's memory by linear address, as the vCPU that stands still sees it."""

    def read(gva: int, size: int) -> bytes:
        buffer = ffi.new("uint8_t[]", size)
        return bytes(ffi.buffer(buffer, lib.tap_read(loop, gva & _MASK, buffer, size)))

    return read


def _set_bits(words: Any, numbers: Iterable[int | None]) -> None:
    for number in numbers:
        if number is not None and 0 <= number < lib.TAP_NUMBERS:
            words[number // 64] |= 1 << number % 64


@cache
def _looking(abi: str) -> frozenset[int]:
    """The numbers of the calls whose words depend on the program's memory: found by trying each."""
    asked: list[int] = []

    def read(gva: int, size: int) -> bytes:
        asked.append(gva)
        return bytes(size)

    found = set()
    for number in range(lib.TAP_NUMBERS):
        asked.clear()
        words = describe(number, (0x10000,) * 6, read=read, abi=abi)
        words.returned(0, read=read)
        words.returned(1, read=read)
        if asked or (words.plan and words.plan.variants):
            found.add(number)
    return frozenset(found)
