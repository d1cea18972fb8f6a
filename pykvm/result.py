"""How a guest's run ended, as a value: the words, their exit statuses, and RunResult.

Every way to end has its own word and its own exit status of the command::

    word            status  what happened
    exit            0-255   the guest gave an exit code; the status is the code, 255 for a larger one
    halt            110     HLT with nothing that could wake the guest up
    reset           111     the guest asked for a reset (0x64, 0xcf9, 0x92)
    triple-fault    112     an exception inside the handling of a double fault; the CPU shut down
    panic           113     the guest reported its own crash
    unclaimed-io    114     the guest touched a port or address where nobody answers
    internal-error  115     KVM itself gave up (an instruction its emulator lacks, …)
    entry-failure   116     the hardware refused to enter the guest
    out-of-memory   117     the host had no memory for the guest
    bad-request     118     the guest gave a device or hypercall an address outside its memory
    unknown-exit    119     KVM returned for a reason that pykvm has no answer to
    power-off       120     the guest switched the machine off
    timeout         124     the time limit was reached
    interrupted     130     Ctrl-C, or Ctrl-A X on the guest's terminal

pykvm's own failures are exceptions; their statuses (125, 126, 127; 2 for wrong usage) stand in
`pykvm.errors`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pykvm.trace.record import TraceRecord

__all__ = ["CpuSnapshot", "EndReason", "Mark", "ProgramFault", "RunResult", "RunStats"]


class EndReason(enum.StrEnum):
    """The word for how a run ended."""

    EXIT = "exit"
    HALT = "halt"
    RESET = "reset"
    TRIPLE_FAULT = "triple-fault"
    PANIC = "panic"
    UNCLAIMED_IO = "unclaimed-io"
    INTERNAL_ERROR = "internal-error"
    ENTRY_FAILURE = "entry-failure"
    OUT_OF_MEMORY = "out-of-memory"
    BAD_REQUEST = "bad-request"
    UNKNOWN_EXIT = "unknown-exit"
    POWER_OFF = "power-off"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"

    @property
    def is_abnormal(self) -> bool:
        """Whether somebody will ask where the guest was."""
        return self not in _NORMAL

    def exit_status(self, code: int | None) -> int:
        """The command's exit status for this end; `code` is the guest's exit code, if it gave one."""
        if self is EndReason.EXIT:
            return min(code or 0, 255)
        return _STATUS[self]


_STATUS = {
    EndReason.HALT: 110,
    EndReason.RESET: 111,
    EndReason.TRIPLE_FAULT: 112,
    EndReason.PANIC: 113,
    EndReason.UNCLAIMED_IO: 114,
    EndReason.INTERNAL_ERROR: 115,
    EndReason.ENTRY_FAILURE: 116,
    EndReason.OUT_OF_MEMORY: 117,
    EndReason.BAD_REQUEST: 118,
    EndReason.UNKNOWN_EXIT: 119,
    EndReason.POWER_OFF: 120,
    EndReason.TIMEOUT: 124,
    EndReason.INTERRUPTED: 130,
}
_NORMAL = frozenset(
    {EndReason.EXIT, EndReason.HALT, EndReason.RESET, EndReason.POWER_OFF, EndReason.INTERRUPTED}
)


class Mark(NamedTuple):
    """A boot mark: the value the guest wrote to port 0x80, and when, in ns since the first KVM_RUN."""

    value: int
    time_ns: int


class CpuSnapshot(NamedTuple):
    """One vCPU at the end of an abnormal run.

    `regs` are the general registers, `special` the control registers, EFER and segment selectors;
    `code` the bytes at the linear address `code_at` before and behind `rip` that the guest's page tables
    show (empty where they show none); `bits` is 16, 32 or 64.
    """

    vcpu: int
    regs: Mapping[str, int]
    special: Mapping[str, int]
    bits: int
    linear_rip: int
    code_at: int
    code: bytes


class ProgramFault(NamedTuple):
    """Why a guest's kernel killed its program.

    `cause` tells it in words, `address` is what a page fault was about, `where` is RIP as symbol+offset (""
    if no symbol is known), `code` the bytes at RIP and `instruction` the first of them as text, both empty
    where RIP is behind the instruction that did it. Without `has_all_regs` only rip and rsp are known.
    """

    program: str
    signal: int
    signal_name: str
    cause: str
    address: int | None
    where: str
    regs: Mapping[str, int]
    has_all_regs: bool
    code: bytes
    instruction: str

    def __str__(self) -> str:
        at = f"{self.regs['rip']:#x}"
        place = f"{self.where} ({at})" if self.where else at
        doing = f": {self.instruction}" if self.instruction else ""
        return f"{self.program}: killed by {self.signal_name}: {self.cause}, at {place}{doing}"


class RunStats(NamedTuple):
    """What the run cost. Times in ns, summed over all vCPUs but for `wall_ns`.

    `guest_ns` is the time inside KVM_RUN, `own_ns` the exit loop's own, `answer_ns` that from exits to the
    guest going on (the exit loop's, Python's and `wait_ns`, in which a vCPU waited for the trace's reader).
    `skipped_steps` of the `exits` are single steps between those that a trace asked for; they have no record.
    """

    wall_ns: int
    guest_ns: int
    own_ns: int
    entries: int
    exits: int
    fast_exits: int
    unclaimed: int
    dropped_records: int
    answer_ns: int = 0
    wait_ns: int = 0
    skipped_steps: int = 0

    @property
    def own_ns_per_exit(self) -> float:
        """Mean ns that the C loop spent on one exit."""
        return self.own_ns / self.exits if self.exits else 0.0


class RunResult(NamedTuple):
    """Everything a run left behind. A plain value: it can be pickled, compared, printed.

    `exits` counts the returns of KVM_RUN by reason ("IO", "MMIO", "HLT" …). `last_exits` holds the
    newest records of each vCPU in order of time, `trace` all of them where the machine traced. `warnings`
    tells in one line each what did not end the run but went wrong beside it (a sink that failed). `fault` is
    why a program in the paravirtual kernel was killed. `kvm_counts` are KVM's own statistics, where the run
    was traced: how often each thing happened inside KVM, by the kernel's name for it.
    """

    reason: EndReason
    exit_code: int | None
    console: bytes
    exits: Mapping[str, int]
    stats: RunStats
    marks: tuple[Mark, ...] = ()
    detail: str = ""
    last_exits: Sequence[TraceRecord] = ()
    trace: Sequence[TraceRecord] = ()
    cpus: tuple[CpuSnapshot, ...] = ()
    kvm: str = ""
    warnings: tuple[str, ...] = ()
    fault: ProgramFault | None = None
    kvm_counts: Mapping[str, int] = {}  # by nobody changed

    @property
    def text(self) -> str:
        """The console as text; bytes that are no UTF-8 are replaced."""
        return self.console.decode(errors="replace")

    @property
    def exit_status(self) -> int:
        """The command's exit status for this result; the table is in this module's docstring."""
        return self.reason.exit_status(self.exit_code)

    def check(
        self,
        *,
        reason: str | None = None,
        exit_code: int | None = None,
        console: bytes | str | None = None,
        exits: Mapping[str, int] | None = None,
    ) -> None:
        """Raise AssertionError that lists everything that is not as given; None is not looked at.

        `exits` names the reasons that matter ({"IO": 30}); others may be there.
        """
        __tracebackhide__ = True  # pytest shows the test's line, not ours
        wanted = console.encode() if isinstance(console, str) else console
        pairs: list[tuple[str, object, object]] = [
            ("reason", reason, str(self.reason)),
            ("exit code", exit_code, self.exit_code),
            ("console", wanted, self.console),
            *((f"{name} exits", count, self.exits.get(name, 0)) for name, count in (exits or {}).items()),
        ]
        wrong = [f"{what}: {is_!r}, not {want!r}" for what, want, is_ in pairs if want not in (None, is_)]
        if wrong:
            raise AssertionError("; ".join([*wrong, f"the run ended with {self}"]))

    def __str__(self) -> str:
        word = f"{self.reason} {self.exit_code}" if self.exit_code is not None else str(self.reason)
        return f"{word}: {self.detail}" if self.detail else word
