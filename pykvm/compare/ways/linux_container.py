"""The work in a container in a Linux guest: namespaces in the guest's kernel, and the guest around them.

The machine is made once and kept from run to run; each run is a container of its own. Its image is one layer,
with the program. Counts are of the time from the order to start it, once it has been made, to its end.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pykvm.compare.model import Absent, Column
from pykvm.compare.parts import ALL, TIMEOUT_S, built, kvm_exits_of, lacks, resident_bytes
from pykvm.compare.ptrace import mark_begin, mark_end
from pykvm.compare.ways import Done, Job, Look, vmm_command
from pykvm.compare.ways.linux import NEEDS, cached
from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pykvm.containers.calls import AgentClient, Call
    from pykvm.containers.layer_files import LayerFile
    from pykvm.trace.event import TraceEvent

__all__ = ["way"]

_NAME = "compare"
_PROGRAM = "program"
_FIRST_ID = 100_000
_ANSWER_S = 60.0


class _LinuxContainer:
    column = Column(
        "linux-container",
        "container in a Linux guest",
        "a container, made by pykvm's agent on Debian's kernel in a guest; timed from its start to its end",
        "container in\na Linux guest",
    )
    order = 40
    marks_work = True
    cannot = ALL

    def __init__(self) -> None:
        self._guest: _Guest | None = None

    def lacks(self) -> str:
        """Asks the KVM, once, and the cache."""
        if why := lacks(NEEDS):
            return why
        return "" if cached() else "there is no kernel for Linux guests; `pykvm kernel fetch` gets one"

    def run(self, job: Job, look: Look) -> Done:
        """Run a container in the machine, which is booted when there is none."""
        if self._guest and self._guest.disk != job.disk:
            self.close()
        if self._guest is None:
            self._guest = _Guest(job.disk).__enter__()
        return self._guest.run(job, look)

    def close(self) -> None:
        """End the machine."""
        guest, self._guest = self._guest, None
        if guest:
            guest.__exit__()

    def counted(self, jobs: Sequence[Job]) -> list[list[str]]:
        """One process of ours for all jobs."""
        return [vmm_command("linux-container", jobs)]


class _Guest:
    """A machine that runs, with the agent in it. `boot_ns`: from nothing to the agent's first answer."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self.boot_ns = 0
        self._stack = ExitStack()
        self._calls: Counter[str] = Counter()
        self._client: AgentClient | None = None

    def __enter__(self) -> Self:
        try:
            start = time.monotonic_ns()
            self._boot()
            self.boot_ns = time.monotonic_ns() - start
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(PykvmError, TimeoutError):
            self._ask("shutdown")
        self._stack.close()

    def _boot(self) -> None:
        from pykvm.containers.dialling import connect_agent  # noqa: PLC0415 - who has no KVM does not pay
        from pykvm.containers.guest_boot import load_agent  # noqa: PLC0415 - as above
        from pykvm.containers.layer_disk import LayerDisk, partition_name  # noqa: PLC0415 - as above
        from pykvm.devices.virtio.block import Block  # noqa: PLC0415 - as above
        from pykvm.devices.virtio.vsock import Vsock  # noqa: PLC0415 - as above
        from pykvm.machine import Machine  # noqa: PLC0415 - as above

        kit = cached()
        if kit is None:
            raise PykvmError("there is no kernel for Linux guests; `pykvm kernel fetch` gets one")
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="pykvm-compare-")))
        layer = _layer(folder, self.disk)
        self._machine = self._stack.enter_context(Machine(memory="256M"))
        self._machine.virtio.add(Block(LayerDisk([layer])))
        self._machine.virtio.add(Vsock(3, folder / "v"))
        load_agent(self._machine, kit, "compare")
        self._machine.allow_attach()
        self._thread = threading.Thread(target=self._run, name="compare", daemon=True)
        self._thread.start()
        self._stack.callback(self._end)
        self._client = connect_agent(folder / "v")
        self._stack.callback(self._client.close)
        self._ask("rescan")
        self._layer = partition_name(layer)

    def _run(self) -> None:
        self._machine.run(timeout=TIMEOUT_S)
        if self._client:
            self._client.close()  # who waits for an answer hears that none will come

    def _end(self) -> None:
        self._thread.join(_ANSWER_S)
        if self._thread.is_alive():
            self._machine.stop()
            self._thread.join()

    def _count(self, event: TraceEvent) -> None:
        if event.kind == "syscall" and event.task.startswith(f"{_PROGRAM}[") and event.name != "execve":
            self._calls[event.name] += 1

    @property
    def _agent(self) -> AgentClient:
        if self._client is None:
            raise PykvmError("the guest has no agent that answers")
        return self._client

    def _ask(self, what: str, **words: Any) -> None:
        self._agent.ask(what, _ANSWER_S, **words)

    # ---- one container

    def run(self, job: Job, look: Look) -> Done:
        """From `create` to the news of its end; the work is from `start` on."""
        from pykvm.trace.select import Selection  # noqa: PLC0415 - as above

        begin = time.monotonic_ns()
        call = self._agent.open("create", **_wish(job, self._layer))
        call.answer(_ANSWER_S)
        self._calls.clear()
        tracer = None
        if look is Look.CALLS:
            tracer = self._machine.attach(self._count, Selection(only=["syscall"]))
        before = self._look_at(look)
        if look is Look.HOST:
            mark_begin()
        start = time.monotonic_ns()
        self._ask("start", name=_NAME)
        output, status = _follow(call)
        work_ns = time.monotonic_ns() - start
        if look is Look.HOST:
            mark_end()
        exits, kvm = self._more_than(before, look)
        self._ask("delete", name=_NAME, force=True)
        wall_ns = self.boot_ns + time.monotonic_ns() - begin
        if tracer:
            self._machine.detach(tracer)
        if status:
            raise PykvmError(f"{job.workload}: the container in the guest ended with status {status}")
        memory = resident_bytes(self._machine) if look is Look.TIME else None
        return Done(output, wall_ns, Counter(self._calls), {}, exits, kvm, work_ns, memory)

    def _look_at(self, look: Look) -> tuple[Mapping[str, int], Mapping[str, int] | Absent]:
        from pykvm.tally import exit_counts  # noqa: PLC0415 - as above

        if look is not Look.EXITS:
            return {}, {}
        return exit_counts(self._machine.vcpus), kvm_exits_of(self._machine)

    def _more_than(
        self, before: tuple[Mapping[str, int], Mapping[str, int] | Absent], look: Look
    ) -> tuple[Mapping[str, int], Mapping[str, int] | Absent]:
        now, kvm = self._look_at(look)
        exits = Counter(now) - Counter(before[0])
        if isinstance(kvm, Absent) or isinstance(before[1], Absent):
            return exits, kvm
        return exits, Counter(kvm) - Counter(before[1])


def _layer(folder: Path, disk: Path) -> LayerFile:
    """The image: one layer, with the program and the disk as a file."""
    from pykvm.containers.erofs import write_erofs  # noqa: PLC0415 - as above
    from pykvm.containers.layer import LayerReader  # noqa: PLC0415 - as above
    from pykvm.containers.layer_files import LayerFile  # noqa: PLC0415 - as above
    from pykvm.containers.limits import Limits  # noqa: PLC0415 - as above

    tar, path = io.BytesIO(), folder / "layer.erofs"
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, mode, file in (("program", 0o755, built("compare_program.elf")), ("disk", 0o644, disk)):
            data = file.read_bytes()
            member = tarfile.TarInfo(name)
            member.mode, member.size = mode, len(data)
            archive.addfile(member, io.BytesIO(data))
    digest = hashlib.sha256(tar.getbuffer()).hexdigest()
    tar.seek(0)
    with path.open("wb") as image:
        write_erofs(LayerReader(tar, "compare", Limits()), image, bytes.fromhex(digest[:32]), folder)
    return LayerFile(f"sha256:{digest}", f"sha256:{digest}", path, path.stat().st_size)


def _wish(job: Job, layer: str) -> dict[str, Any]:
    """The agent's `create`: docker's defaults, one layer."""
    from pykvm.containers.oci_config import Place, oci_config  # noqa: PLC0415 - as above
    from pykvm.containers.run_options import RunOptions  # noqa: PLC0415 - as above
    from pykvm.containers.seccomp import compile_filter  # noqa: PLC0415 - as above
    from pykvm.containers.users import User  # noqa: PLC0415 - as above

    words = ("/program", job.workload, str(job.operations), "/disk")
    config = oci_config({}, RunOptions(command=words), User(0, 0, (), ""), Place("box", _FIRST_ID, (6, 1)))
    wish = {"name": _NAME, "config": config, "layers": [layer], "start": False}
    if profile := config["linux"].pop("seccomp", None):
        wish["seccomp"] = compile_filter(profile).hex()
    return wish


def _follow(call: Call) -> tuple[bytes, int]:
    """What it prints until its end, and its status."""
    output, status, open_streams = bytearray(), None, {1, 2}
    for item in call:
        if isinstance(item, dict):
            status = item["status"] if item.get("event") == "exit" else status
        elif item.data:
            output += item.data if item.stream == 1 else b""
        else:
            open_streams.discard(item.stream)
        if status is not None and not open_streams:
            return bytes(output), int(status)
    raise PykvmError("the guest ended while the container ran")


way = _LinuxContainer()
