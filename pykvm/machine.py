"""Machine: a board put together from the parts. load() an image, run() it, get a RunResult."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pykvm import layout
from pykvm._native import ffi, lib
from pykvm.boards import Board, attach_board
from pykvm.boot import Image, load
from pykvm.boot.firmware import FirmwareDisk, insert_disk
from pykvm.boot.placement import Placement, Platform, place
from pykvm.bus import Bus
from pykvm.call_rings import CallRings
from pykvm.console import Console
from pykvm.console_input import ConsoleInput
from pykvm.cpu_features import parse_features
from pykvm.cpuid import policy
from pykvm.errors import ConfigError, ImageNotFoundError
from pykvm.exits import HypercallExit
from pykvm.fast_ports import fast_port, share_slots
from pykvm.guests import find_named
from pykvm.hypercall import Hypercalls
from pykvm.kvm import Kvm
from pykvm.memory import GuestMemory, parse_size
from pykvm.regs import CpuMode
from pykvm.result import EndReason, Mark, RunResult
from pykvm.runner import Ending, VcpuRunner
from pykvm.spec import MachineSpec
from pykvm.supervisor import Supervisor
from pykvm.tally import cpu_snapshots, exit_counts, run_stats
from pykvm.timers import DeviceTimers
from pykvm.trace.clock import TscClock
from pykvm.tracing import FLIGHT_RECORDS, Tracing
from pykvm.transports import Marks, Transports
from pykvm.vm import GsiLine, Vm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pykvm.devices.virtio.console import Console as VirtioConsole
    from pykvm.exits import Exit
    from pykvm.guests import Guest
    from pykvm.paravirt.guest import Paravirt
    from pykvm.trace.event import Sink, Source, TraceEvent
    from pykvm.trace.iterate import TraceIterator
    from pykvm.trace.select import Selection
    from pykvm.vcpu import Vcpu
    from pykvm.virtio import VirtioBoard

__all__ = ["Machine", "MachineSpec"]

_REST_S = 0.01
_CTRL_D = b"\x04"
_TERMINAL_READY = 0xC5
_LOOK_S = (0.3, 8.0)  # how seldom to look whether the guest has halted for good; Linux is seldom looked at


class Machine:
    """A virtual machine, from its parts to its result.

    >>> with Machine(memory="2M") as machine:
    ...     machine.load("01_hello")
    ...     result = machine.run(timeout=5)
    >>> result.reason, result.exit_code
    (<EndReason.EXIT: 'exit'>, 0)

    `memory` is a size ("64M", bytes); the other options are those of MachineSpec. `console` is called
    with each piece of output as it comes. `handlers` maps kinds of Exit to functions (vcpu, exit)
    that replace the machine's own answer. A machine runs once.
    """

    def __init__(
        self,
        memory: str | int = "64M",
        vcpus: int = 1,
        *,
        console: Callable[[bytes], None] | None = None,
        handlers: dict[type[Exit], Callable[[Vcpu, Any], None]] | None = None,
        **options: Any,
    ) -> None:
        """Raises ConfigError for what can't be built and KvmUnavailableError where there is no KVM."""
        self.spec = MachineSpec(parse_size(memory), vcpus, **options)
        self.spec.check()
        self.handlers = dict(handlers or {})
        self.ports = Bus("ports")
        self.mmio = Bus("MMIO")
        self.unclaimed = 0
        self.image: Image | None = None
        self.source: Path | bytes = b""
        self._placement = Placement()
        self._problems: list[str] = []
        self._lock = threading.RLock()  # a listener may type on the console that a device prints on
        self._tracing = Tracing(self, self._lock)
        self.vcpus: list[Vcpu] = []
        self.vm: Vm | None = None
        self.disk: FirmwareDisk | None = None
        self.paravirt: Paravirt | None = None
        self.input = ConsoleInput()
        self._transports: Transports | None = None
        self._virtio: VirtioBoard | None = None
        """The virtio devices; add() them before load()."""
        self.terminal: VirtioConsole | None = None
        self.panics_before: int | None = None
        """A restart before this boot mark is a panic: nobody is there yet who could want one."""
        self.name_container: Callable[[str], str] = str
        """What a syscall tap calls the container whose cgroup has this name; from any thread."""
        self.has_tty = False
        """Whether the guest's own terminal driver makes \\r\\n of \\n."""
        self.on_mark: Callable[[int], object] = lambda _: None
        """Called with each boot mark that is written to port 0x80, by the thread of the vCPU."""
        self._supervisor: Supervisor | None = None
        self._listens = console is not None
        self.kvm = Kvm()
        try:
            self.memory = GuestMemory(self.spec.memory_bytes)
            self._shared = ffi.new("struct loop_shared *")
            self._marks = Marks(ffi.addressof(self._shared, "marks"))
            self._ending = Ending(self._wake)
            self._timers = DeviceTimers(self._lock, self._ending.fail)
            self._console = Console(ffi.addressof(self._shared, "console"), console, self._lock)
        except BaseException:
            self.kvm.close()
            raise

    @classmethod
    def from_spec(cls, spec: MachineSpec, **more: Any) -> Self:
        """A machine from a MachineSpec; `more` are console and handlers."""
        return cls(spec.memory_bytes, spec.vcpus, **spec.options, **more)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the machine apart: vCPUs, VM, memory, fds. Nothing of it stays."""
        if self.kvm.fd < 0:
            return
        self._tracing.abandon()
        if self._supervisor:
            self._supervisor.stop()
        if self._transports:
            self._transports.stop()
        self._timers.close()
        for part in (
            *self.vcpus,
            self._tracing,
            self._transports,
            self.vm,
            self.disk,
            self.paravirt,
            self._virtio,
        ):
            if part:
                part.close()
        self.memory.close()
        self.kvm.close()

    # ---- loading

    def load(
        self,
        source: str | Path | bytes,
        *,
        mode: str | CpuMode | None = None,
        address: int | None = None,
        entry: int | None = None,
        cmdline: str = "",
        modules: list[tuple[bytes, str]] | None = None,
        initrd: bytes = b"",
        disk: str | Path | bytes | None = None,
        read_only: bool = False,
        snapshot: bool = False,
        boot: str = "elf",
    ) -> Image:
        """Put an image into memory: a guest's name, a file, or the bytes themselves.

        `mode` is a word of CpuMode, `address` and `entry` are gpas. `cmdline` is for Linux and multiboot
        kernels, `modules` (contents and command line) for the latter, `initrd` for Linux. A disk image boots
        through the firmware; for other images `disk` is one, a file or the bytes, that the guest finds with
        the block calls of the paravirtual ABI. `read_only` refuses the guest's writes to it, `snapshot`
        forgets them at close(). `boot` is how a Linux kernel is entered: "elf", "packed" or "pvh".
        A guest by name brings the machine it asks for, as far as nothing else was said. Raises ImageError
        with one line that says what is wrong.
        """
        if self.vm is not None:
            raise ConfigError("this machine has been loaded already; make a new one")
        mode = CpuMode(mode) if isinstance(mode, str) else mode
        if isinstance(source, str):
            guest = _guest_or_file(source)
            if guest:
                snapshot = True  # the guests that travel with pykvm stay as they are
                self.spec = self.spec.with_wishes(guest.machine)
                source, mode = _chosen(guest, mode)
            else:
                source = Path(source)
        self.source = source
        is_testdev = self.spec.board == "testdev"
        self.image = load(
            source,
            mode=mode,
            address=address,
            entry=entry,
            limit_bytes=self.spec.memory_bytes,
            ignore_video=is_testdev,
            boot=boot,
        )
        if self.image.kind != "linux" and self._virtio and self._virtio.slots():
            raise ConfigError(
                f"{self.image.name}: virtio devices are for Linux kernels, which are told of them"
            )
        if self.image.kind == "linux":  # it looks for hardware, and has its interrupts from KVM's chips
            board = "linux" if self.spec.board == "pykvm" else self.spec.board
            self.spec = self.spec._replace(irqchip=True, unclaimed="float", board=board)
            self.has_tty = True
            self.memory.use_huge_pages()
        if self.image.kind == "bootsector":
            if disk is not None:
                raise ConfigError(
                    "a disk image that boots is the machine's disk; there is no room for another"
                )
            self._insert_disk(source, read_only=read_only, snapshot=snapshot)
        elif disk is not None:
            self.disk = FirmwareDisk(disk, read_only, snapshot=snapshot)
        if is_testdev:  # whose kernels take the first word for their own name
            cmdline = f"{self.image.name} {cmdline}".rstrip()
        self._placement = place(
            self.image,
            self.memory,
            cmdline=cmdline,
            modules=modules or [],
            initrd=initrd,
            platform=Platform(self.spec.vcpus, self._virtio.slots() if self._virtio else ()),
        )
        self._build()
        return self.image

    def load_program(
        self,
        program: str | Path | bytes,
        args: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, Path | bytes | str] | None = None,
        stdin: bytes | int | None = b"",
        disk: str | Path | bytes | None = None,
    ) -> Image:
        """Put the paravirtual kernel into memory, with a static Linux ELF program that it is to run.

        `args` are the words behind the program's own name. `files` is all of its file system, read-only:
        path in the guest -> file of the host, or bytes. `stdin` is what it reads, or a file descriptor that
        is read as it asks; None: what send() types until end_input(). `disk`, a file or the bytes, is what it
        reads at /dev/disk, in whole sectors of 512 bytes. The run's exit code is the program's,
        or 128 and the signal that killed it: RunResult.fault says why. Raises ImageError for a program that
        can't run, ConfigError for what does not fit.
        """
        from pykvm.paravirt.boot_info import Wanted  # noqa: PLC0415 - who runs no program does not pay
        from pykvm.paravirt.guest import Paravirt, kernel_path  # noqa: PLC0415 - as above
        from pykvm.paravirt.program import read_program  # noqa: PLC0415 - as above

        if self.vm is not None:
            raise ConfigError("this machine has been loaded already; make a new one")
        if self.spec.vcpus != 1 or self.spec.board != "pykvm":
            raise ConfigError("a program in the paravirtual kernel runs on one vCPU, on pykvm's own board")
        source = Path(program) if isinstance(program, str) else program
        checked = read_program(source, limit_bytes=self.spec.memory_bytes)
        wanted = Wanted(checked, (checked.name, *args), env or {}, files or {})
        if stdin is not None:
            self.input = ConsoleInput(fd=stdin) if isinstance(stdin, int) else ConsoleInput(stdin)
        if isinstance(stdin, bytes):
            self.input.end()
        if disk is not None:
            self.disk = FirmwareDisk(disk, read_only=True)
        self.paravirt = Paravirt(self.memory, wanted)
        self.source = kernel_path()
        self.image, self._placement = self.paravirt.place()
        self._build()
        return self.image

    def _insert_disk(self, source: Path | bytes, *, read_only: bool, snapshot: bool) -> None:
        """Give the machine its firmware and the disk to boot from."""
        spec = self.spec
        memory, self.disk = insert_disk(
            source,
            memory_bytes=spec.memory_bytes,
            board=spec.board,
            irqchip=spec.irqchip,
            read_only=read_only,
            snapshot=snapshot,
        )
        self.memory.close()
        self.memory = memory
        self.spec = spec._replace(irqchip=True)

    # ---- building

    def _build(self) -> None:
        spec = self.spec
        if self.image and self.image.kind == "linux":
            self.image = self.image.without_data()  # tens of MiB, which are the guest's now
        self.vm = vm = Vm(self.kvm)
        if spec.vcpus > (most := max(vm.check_extension("KVM_CAP_MAX_VCPUS"), 1)):
            raise ConfigError(f"{spec.vcpus} vCPUs: this KVM allows {most}")
        for number, slot in enumerate(self.memory.slots):
            vm.set_memory_slot(number, slot)
        vm.set_tss_address()
        vm.set_identity_map_address()
        if spec.has_irqchip:
            vm.create_irqchip()
            vm.create_pit()
        self._attach(most)
        share_slots(self._shared, self.memory)
        for number in range(spec.vcpus):
            self.vcpus.append(vm.create_vcpu(number))  # before anything else can fail, so that close() has it
            self._set_up_vcpu(self.vcpus[number], number)

    def _attach(self, max_vcpus: int) -> None:
        vm = self.vm
        assert vm is not None  # noqa: S101 - for the type checker; _build() made it
        rings = CallRings(
            vm,
            self.memory,
            self._shared,
            lock=self._lock,
            drain=lambda: self._drain(len(self.vcpus)),
            on_start=self._add_lane,
            on_failure=self._ending.fail,
        )
        self._transports = transports = Transports(
            vm, self.vcpus, self._shared, rings, only=self.spec.transport, has_disk=self.disk is not None
        )
        calls = Hypercalls(
            self.memory,
            output=self._console.write,
            on_exit=lambda code: self._ending.finish(EndReason.EXIT, code=code),
            on_mark=self._marks.add,
            record=self._open_record,
            read=self._read_input,
            wait=self._rest,
            more=transports.more_calls() | self._more_calls(),
        )
        board = Board(
            ports=self.ports,
            mmio=self.mmio,
            memory=self.memory,
            vcpus=self.spec.vcpus,
            max_vcpus=max_vcpus,
            output=self._console.write,
            irq_line=lambda gsi: GsiLine(vm, gsi) if vm.has_irqchip else None,
            timers=self._timers,
            end=self._on_end,
            mark=self._on_post,
            flush_page=self._flush_page,
            attach_calls=lambda: transports.attach(self.ports, self.mmio, calls),
        )
        self.serial = attach_board(self.spec.board, board)
        if self.spec.board in ("pykvm", "linux"):
            self.fast_port(layout.DEBUG_CONSOLE, lib.VERB_APPEND)
            self.fast_port(layout.HYPERCALL, lib.VERB_HYPERCALL)
        if self._virtio:
            self._virtio.build(vm, self.mmio, self.memory, self._lock, len(self.memory.slots))

    def _on_end(self, reason: EndReason, code: int | None, detail: str) -> None:
        """A device ends the run."""
        if reason is EndReason.RESET and self.panics_before is not None:
            reason, detail = (
                EndReason.PANIC,
                "the kernel restarted before its first process had begun to work",
            )
        self._ending.finish(reason, code=code, detail=detail)

    def _on_post(self, value: int) -> None:
        """A boot mark; one of them says that somebody reads the console."""
        self._marks.add(value)
        if value == self.panics_before:
            self.panics_before = None
        self.on_mark(value)
        if self.terminal and value == _TERMINAL_READY:
            self.terminal.release()

    def _more_calls(self) -> dict[int, Callable[[Any], int]]:
        """The hypercalls that only this machine's guest makes."""
        disk = self.disk.calls(self.memory) if self.disk else {}
        return disk | (self.paravirt.calls() if self.paravirt else {})

    def fast_port(self, where: range, verb: int, *, doorbell_fd: int = -1) -> int:
        """Let the C exit loop answer writes to the ports of `where` with a VERB_*; its index.

        Before run() only. VERB_APPEND appends to the console; a doorbell signals `doorbell_fd`. Raises
        ConfigError if the table is full or a port is fast already.
        """
        return fast_port(self._shared, where, verb, doorbell_fd=doorbell_fd)

    def _set_up_vcpu(self, vcpu: Vcpu, number: int) -> None:
        spec = self.spec
        rows = policy(
            self.kvm.supported_cpuid(),
            apic_id=number,
            vcpus=spec.vcpus,
            irqchip=spec.has_irqchip,
            vendor=spec.vendor,
            features=parse_features(spec.cpu),
        )
        vcpu.set_cpuid(rows)
        vcpu.share(self._shared)
        vcpu.sync_registers(special=spec.trace)
        self._tracing.add_vcpu(vcpu.loop)
        if number == 0:
            vcpu.apply(self._placement.state)

    def _add_lane(self) -> None:
        """Make room for the records of calls that come by ring; those of vCPU n stand in lane n before it."""
        assert self._transports is not None  # noqa: S101 - for the type checker; it calls
        loop = self._transports.rings.worker.loop
        loop.vcpu = len(self.vcpus)
        self._tracing.add_loop(loop)

    def _flush_page(self, gpa: int) -> None:
        """Take the page's slot away and give it back: KVM drops its page tables with it."""
        vm = self.vm
        assert vm is not None  # noqa: S101 - for the type checker; devices come after the VM
        for number, slot in enumerate(self.memory.slots):
            if slot.gpa <= gpa < slot.end:
                vm.delete_memory_slot(number)
                vm.set_memory_slot(number, slot)

    # ---- tracing

    def add_sink(
        self, sink: Sink | Callable[[TraceEvent], object], selection: Selection | None = None
    ) -> None:
        """Send the run's events to `sink`, or call it with each if it is a function; before run().

        Events come in order of time, from a thread of the tracer's. A sink that raises is switched off and
        named in RunResult.warnings. Without a sink none of this is imported, and nothing costs.
        """
        self._tracing.recorder.add_sink(sink, selection)

    def add_source(self, source: Source) -> None:
        """Take events for the sinks from another producer too; see pykvm.trace.event."""
        self._tracing.recorder.add_source(source)

    def trace_detail(self, *, disassemble: bool = False, step: int = 0) -> None:
        """Ask for more than the events: the instruction that led to each, every `step`-th instruction.

        Raises ConfigError where this KVM can't single-step.
        """
        recording = self._tracing.recorder
        recording.disassemble, recording.step = disassemble, step

    def trace(self, *, timeout: float | None = None, selection: Selection | None = None) -> TraceIterator:
        """Run the guest and iterate over its events as they come; the iterator has the `result` afterwards.

        A loop that is left early ends the run at the end of the machine's `with` block, or by the
        iterator's close(). Raises what run() raises.
        """
        return self._tracing.iterate(timeout, selection)

    def allow_attach(self) -> None:
        """Let attach() come while the guest runs; between load() and run().

        Until somebody comes it costs a tenth of a microsecond at exits that Python answers, and nothing at
        others. Raises ConfigError for a machine that keeps all records itself (`trace`).
        """
        self._tracing.allow_attach()

    def attach(self, sink: Sink | Callable[[TraceEvent], object], selection: Selection | None = None) -> Sink:
        """Send what happens from now on to `sink`, while the guest runs; from any thread. For detach().

        Raises ConfigError without allow_attach() before run(), and if the run is over or has not begun.
        """
        return self._tracing.attach(sink, selection)

    def detach(self, sink: Sink) -> None:
        """Nothing more goes to what attach() gave; it is closed. Later calls do nothing."""
        self._tracing.detach(sink)

    # ---- running

    def run(self, *, timeout: float | None = None, registers: bool = False) -> RunResult:
        """Run the guest to its end, at most `timeout` seconds, and say how it ended.

        The vCPUs' registers are in the result of an abnormal run or, with `registers`, of any. Ctrl-C ends
        the run with EndReason.INTERRUPTED. Raises ConfigError if nothing is loaded or the machine has run
        before, and KvmError where KVM itself fails.
        """
        if self.vm is None or self._supervisor:
            raise ConfigError("a machine runs once, after load(); make a new one")
        is_linux = self.spec.board == "linux"
        self._supervisor = Supervisor(
            [self._make_runner(vcpu) for vcpu in self.vcpus],
            ending=self._ending,
            drain=self._drain_all,
            irqchip=self.spec.has_irqchip,
            # Linux prints by devices, at once, and is seldom halted for good: an idle one is to be left alone
            listens=self._listens and not is_linux,
            longest_look_s=_LOOK_S[is_linux],
            timeout=timeout,
        )
        self._tracing.begin()
        supervisor = self._supervisor
        return self._tracing.around(lambda: self._run(supervisor, registers=registers), self.vcpus)

    def _run(self, supervisor: Supervisor, *, registers: bool) -> RunResult:
        clock = TscClock()
        if self.paravirt and self.vm:
            self.paravirt.start(self.vm, self.vcpus[0], clock, traced=self._tracing.is_on)
        if self._virtio:
            self._virtio.start(self._ending.fail)
        start_ns = time.monotonic_ns()
        try:
            supervisor.run()
        finally:
            self._problems = self._virtio.stop() if self._virtio else []
            self._tracing.freeze()
        if self._transports:
            self._transports.stop()
            self._console.pump()
        for vcpu in self.vcpus:
            lib.exit_loop_settle(vcpu.loop)
        wall_ns = time.monotonic_ns() - start_ns
        if self._ending.failure:
            raise self._ending.failure
        clock.settle()
        if self.paravirt:
            self.paravirt.finish()
        return self._result(clock, start_ns, wall_ns, registers=registers)

    def _make_runner(self, vcpu: Vcpu) -> VcpuRunner:
        return VcpuRunner(
            vcpu,
            ports=self.ports,
            mmio=self.mmio,
            ending=self._ending,
            lock=self._lock,
            unclaimed=self._on_unclaimed,
            drain=self._drain,
            handlers={HypercallExit: self._transports.on_vmcall, **self.handlers}
            if self._transports
            else self.handlers,
        )

    @property
    def is_over(self) -> bool:
        """Whether it is known how the run ends; the time limit is looked at. From any thread."""
        return self._supervisor.is_over() if self._supervisor else self._ending.is_over

    @property
    def end(self) -> EndReason | None:
        """How the run ends; None as long as that is not known."""
        return self._ending.reason if self._ending.is_over else None

    def stop(self, reason: EndReason = EndReason.INTERRUPTED, detail: str = "") -> None:
        """End the run from any thread."""
        self._ending.finish(reason, detail=detail)

    def press_power_button(self) -> None:
        """Ask a Linux guest to switch itself off, from any thread: an ACPI event, which it may ignore.

        Raises ConfigError where the board has no such button.
        """
        if self.vm is None or self.spec.board != "linux":
            raise ConfigError("only a loaded Linux guest's board has a power button")
        line = GsiLine(self.vm, layout.ACPI_EVENT_GSI)
        line.set_level(True)  # the line is edge-triggered
        line.set_level(False)

    def send(self, data: bytes) -> int:
        """Type `data` on the guest's console, from any thread: how many bytes it took.

        Fewer than all means that the guest has left its input unread: try the rest later. The console is
        the serial port, or for a guest that reads by hypercall its input.
        """
        with self._lock:
            if self.paravirt or self.input.is_wanted:
                return self.input.feed(data)
            if self.terminal:
                return self.terminal.receive(data)
            return self.serial.receive(data)

    @property
    def virtio(self) -> VirtioBoard:
        """The board's virtio devices; add() them before load()."""
        if self._virtio is None:
            from pykvm.virtio import VirtioBoard  # noqa: PLC0415 - only Linux pays

            self._virtio = VirtioBoard()
        return self._virtio

    def add_console(self, *, columns: int = 0, rows: int = 0, hold: bool = False) -> VirtioConsole:
        """A virtio console, which is where send() types from now on; before load().

        With `hold`, what is typed waits until the guest writes the mark 0xc5 to port 0x80.
        """
        from pykvm.devices.virtio.console import Console as VirtioConsole  # noqa: PLC0415 - only Linux pays

        self.terminal = VirtioConsole(self._console.write, columns=columns, rows=rows, hold=hold)
        self.virtio.add(self.terminal)
        return self.terminal

    def watch_console(self, viewer: Callable[[bytes], None], *, recent: int = 0) -> bytes:
        """Have `viewer` called with what is printed from now on, from any thread, until unwatch_console().

        It may not wait. Up to `recent` bytes of what was printed before are returned. Where the guest prints
        without pykvm's vCPU stopping, pump_console() hands it on.
        """
        return self._console.watch(viewer, recent=recent)

    def unwatch_console(self, viewer: Callable[[bytes], None]) -> None:
        """The end of watch_console()."""
        self._console.unwatch(viewer)

    def pump_console(self) -> None:
        """Hand on what the guest has printed so far."""
        self._console.pump()

    def end_input(self) -> None:
        """Nothing more will be typed: a guest that reads by hypercall finds the end of its input.

        On a virtio console it is Ctrl-D, as on any terminal.
        """
        self.input.end()
        if self.terminal:
            self.terminal.receive(_CTRL_D)

    def _read_input(self, size: int) -> bytes | None:
        """What HC_CONSOLE_READ reads; for the first time also what was typed before anybody knew."""
        if not self.input.is_wanted and not self.paravirt:
            self.input.feed(self.serial.hand_over())
        return self.input.read(size)

    def _rest(self, limit_ns: int | None, wants_input: bool) -> None:
        """What HC_YIELD does: let the vCPU's thread rest, with the machine's lock free.

        The thread of vCPU 0 looks around as it does while the guest runs.
        """
        supervisor = self._supervisor
        looks = supervisor is not None and threading.get_ident() == self.vcpus[0].thread
        end = time.monotonic() + limit_ns / 1e9 if limit_ns is not None else float("inf")
        self._lock.release()  # held by the thread that answers the exit
        try:
            while not self._ending.is_over and not (wants_input and self.input.is_ready()):
                if supervisor and looks:
                    supervisor.tick()
                left = min(end - time.monotonic(), _REST_S)
                if left <= 0:
                    return
                if wants_input:
                    self.input.wait(left)
                else:
                    time.sleep(left)
        finally:
            self._lock.acquire()

    def _drain(self, number: int) -> None:
        """Empty the rings that stopped vCPU `number`; called by its thread."""
        self._console.pump()
        self._tracing.drain(number, lambda: self._supervisor is None or self._supervisor.is_over())

    def _drain_all(self) -> None:
        self._console.pump()
        if self.paravirt:
            self.paravirt.drain()
        self._tracing.drain_all()

    def _open_record(self) -> Any:
        """The trace record of the exit that the calling thread answers, NULL if there is none."""
        me = threading.get_ident()
        found = next((vcpu.loop for vcpu in self.vcpus if vcpu.thread == me), None)
        if not found and self._transports:
            found = self._transports.rings.loop_of(me)
        return lib.record_current(found) if found else ffi.NULL

    def _wake(self) -> None:
        """Have the thread in run() see that the run is over; it stops the others."""
        if self.vcpus:
            self.vcpus[0].kick()

    def _on_unclaimed(self, what: str) -> None:
        self.unclaimed += 1
        if self.spec.unclaimed == "stop":
            self._ending.finish(EndReason.UNCLAIMED_IO, detail=what)

    # ---- the result

    def _result(self, clock: TscClock, start_ns: int, wall_ns: int, *, registers: bool) -> RunResult:
        records = self._tracing.records(clock)
        reason = self._ending.reason
        return RunResult(
            reason=reason,
            exit_code=self._ending.code,
            console=self._console.contents(),
            exits=exit_counts(self.vcpus),
            stats=run_stats(
                self.vcpus,
                clock,
                wall_ns=wall_ns,
                unclaimed=self.unclaimed,
                dropped_records=self._tracing.dropped,
            ),
            marks=tuple(Mark(value, at - start_ns) for value, at in self._marks.all()),
            detail=self._ending.detail,
            fault=self.paravirt.fault if self.paravirt else None,
            last_exits=records[-FLIGHT_RECORDS:],
            trace=records if self.spec.trace else (),
            cpus=cpu_snapshots(self.vcpus, self.memory) if registers or reason.is_abnormal else (),
            kvm=self.kvm.module(),
            warnings=self._warnings(),
        )

    def _warnings(self) -> tuple[str, ...]:
        """What went wrong beside the run: the console's, the marks', the disk's, what virtio drivers did."""
        broken = tuple(f"the guest's driver broke the rules: {what}" for what in self._problems)
        disk = self.disk.warnings if self.disk else ()
        return self._console.warnings + self._marks.warnings() + disk + broken


def _guest_or_file(name: str) -> Guest | None:
    """The guest that `name` means; None: a file. Raises ImageNotFoundError where there is neither."""
    guest = find_named(name)
    if guest is None and "/" not in name and not Path(name).exists():
        raise ImageNotFoundError(f"{name}: no such file and no such guest; `pykvm guests` lists the guests")
    return guest


def _chosen(guest: Guest, mode: CpuMode | None) -> tuple[Path, CpuMode | None]:
    """The guest's image for `mode`, by default its first one, and the mode that goes with it."""
    word = mode.value if mode else next(iter(guest.images))
    return guest.image(word), mode if mode or word == "reset" else CpuMode(word)
