"""Hypercalls by every transport that this KVM has: answers, traces, rings, and what a hostile guest gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm._native import ffi, lib
from pykvm.guests import all_guests
from pykvm.hypercall import CALLS
from pykvm.machine import Machine

if TYPE_CHECKING:
    from pykvm.pytest_plugin import Boot
    from pykvm.result import RunResult
    from pykvm.trace.event import TraceEvent

TIMEOUT_S = 30
MIB = 1 << 20

BY = {
    "out": pytest.param("out", "IO", "OUT", id="out"),
    "mmio": pytest.param("mmio", "MMIO", "a store", id="mmio", marks=pytest.mark.needs("mmio")),
    "vmcall": pytest.param(
        "vmcall", "HYPERCALL", "VMCALL", id="vmcall", marks=pytest.mark.needs("hypercall_exit")
    ),
    "ring": pytest.param("ring", "RING", "a ring", id="ring", marks=pytest.mark.needs("ioeventfd")),
}
ABOUT_TRANSPORTS = ("features", "call_ring")


def run_guest(boot: Boot, name: str, **options: Any) -> RunResult:
    """A guest that travels with pykvm, in the machine that it asks for."""
    return boot.image(name, **{"timeout": TIMEOUT_S, **all_guests()[name].machine, **options})


def checks(source: str) -> str:
    """C text of a guest whose exit code is the number of the first CHECK that is not so."""
    head = """
    #include "transport.c"
    #define CHECK(number, is_true) do { if (!(is_true)) return number; } while (0)
    """
    return head + source


# ---- each transport


@pytest.mark.parametrize(("transport", "via", "name"), BY.values())
def test_one_transport_does_all_calls(boot: Boot, transport: str, via: str, name: str) -> None:
    """With that one alone the library chooses it, and each call stands in the trace with its result."""
    result = run_guest(boot, "26_transports", transport=transport, trace=True)
    assert result.exit_code == 0
    assert result.text.startswith("every way that is offered gives the same answers\n")
    assert result.text.endswith(f"done by {name}\n")
    calls = [(record.reason, str(record.call)) for record in result.trace if record.call]
    names = {call.partition("(")[0] for reason, call in calls if reason == via}
    assert {"time", "version", "call 0xbad", "random", "console_write"} <= names
    elsewhere = {call.partition("(")[0] for reason, call in calls if reason not in (via, "IO")}
    assert not elsewhere
    refused = {r.call.result for r in result.trace if r.call and r.call.number == 0xBAD}
    assert refused == {lib.HC_ENOSYS}


@pytest.mark.needs("ioeventfd")
def test_a_ring_s_calls_are_events_of_their_own() -> None:
    """A tracer gets them in order of time, with their ring: hypercalls, but no exits."""
    found: list[TraceEvent] = []
    with Machine("2M", transport="ring") as machine:
        machine.load("26_transports")
        machine.add_sink(found.append)
        result = machine.run(timeout=TIMEOUT_S)
    rings = [event for event in found if event.via == "RING"]
    assert {event.kind for event in rings} == {"hypercall"}
    assert {(event.vcpu, event.guest_ns) for event in rings} == {(None, None)}
    assert {event.thread for event in rings} == {"ring 0", "ring 1"}
    batch = [event for event in rings if event.thread == "ring 1"]
    assert [(event.name, event.result) for event in batch] == [
        ("console_write", 1 + i % 4) for i in range(32)
    ]
    assert [event.time_ns for event in found] == sorted(event.time_ns for event in found)
    assert len([event for event in found if event.via not in ("RING", "")]) == result.stats.exits


def test_a_guest_of_version_1_still_runs(boot: Boot) -> None:
    """Numbers, offsets and answers as they were before there was a second version."""
    result = boot.asm(
        """
        .macro CALL number, arg0=0, arg1=0
            movl $\\number, call            # offsets and numbers of version 1, not those of a header
            movl $1, call + 4
            movq $-99, call + 8
            movq $\\arg0, call + 16
            movq $\\arg1, call + 24
            mov $0x510c, %edx
            mov $call, %eax
            out %eax, %dx
            mov call + 8, %rax
        .endm
            CALL 0
            cmp $1, %rax
            jne bad
            CALL 2, text, 6
            cmp $6, %rax
            jne bad
            CALL 3
            test %rax, %rax
            jle bad
            CALL 4, 77
            test %rax, %rax
            jne bad
            CALL 0x10, 0x12345678, 0x77    # what stands in the arguments has no meaning yet
            cmp $-19, %rax
            jne bad
            CALL 0xbad
            cmp $-38, %rax
            jne bad
            CALL 1, 42
        bad:
            CALL 1, 1
            .balign 8
        call: .skip 48
        text: .ascii "hello\\n"
        """
    )
    result.check(exit_code=42, console="hello\n")
    assert [mark.value for mark in result.marks] == [77]


@pytest.mark.needs("hypercall_exit")
def test_vmcall_answers_for_a_struct_that_is_nowhere(boot: Boot) -> None:
    """In RAX, and the run goes on; the trace names the address."""
    result = boot.c(
        checks(
            """
            int main(void)
            {
                int64_t result = HYPERCALL_VMCALL;
                CHECK(1, transport_use(HC_HAS_VMCALL));
                asm volatile("vmmcall" : "+a"(result) : "b"(HYPERCALL_VMCALL_KEY), "c"(1), "d"(1ul << 40));
                CHECK(2, result == HC_EFAULT);
                result = HYPERCALL_VMCALL;
                asm volatile("vmmcall" : "+a"(result) : "b"(0x3000), "c"(1), "d"(0x10));
                CHECK(3, result == -1000);
                return 0;
            }
            """
        ),
        trace=True,
    )
    result.check(exit_code=0)
    (told,) = [r.call for r in result.trace if r.call and r.call.number == lib.HC_NOTHING]
    assert (told.args[0], told.result) == (1 << 40, lib.HC_EFAULT)


# ---- what the calls do


def test_disk_memory_map_and_statistics(boot: Boot, tmp_path: Any) -> None:
    """A tiny guest reads and writes its disk, finds its memory, and counts its own exits."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes([1]) * 512 + bytes([2]) * 512 + bytes([3]) * 512)
    source = checks(
        """
        static char sector[512];
        static struct block_info info;
        static struct memory_range ranges[4];
        static struct host_stats before, after;
        #define AT(what) (unsigned long)(what)
        int main(void)
        {
            CHECK(1, transports_offered() & HC_HAS_DISK);
            CHECK(2, hypercall_by(HC_BLOCK_INFO, AT(&info), sizeof info, 0) == 3);
            CHECK(3, info.sectors == 3 && info.sector_bytes == 512 && !info.flags);
            CHECK(4, hypercall_by(HC_BLOCK_READ, 1, 1, AT(sector)) == 1 && sector[0] == 2);
            for (int i = 0; i < 512; i++)
                sector[i] = 7;
            CHECK(5, hypercall_by(HC_BLOCK_WRITE, 2, 1, AT(sector)) == 1);
            CHECK(6, hypercall_by(HC_BLOCK_READ, 3, 1, AT(sector)) == HC_EINVAL);
            CHECK(7, hypercall_by(HC_BLOCK_READ, 0, 1, 1ul << 40) == HC_EFAULT);
            CHECK(8, hypercall_by(HC_MEMORY_MAP, AT(ranges), sizeof ranges, 0) == 1);
            CHECK(9, ranges[0].start == 0 && ranges[0].size_bytes == 4 << 20 && ranges[0].kind == MEMORY_RAM);
            CHECK(10, hypercall_by(HC_STATS, AT(&before), sizeof before, 0) == sizeof before);
            for (int i = 0; i < 10; i++)
                hypercall_by(HC_TIME, 0, 0, 0);
            CHECK(11, hypercall_by(HC_STATS, AT(&after), sizeof after, 0) == sizeof after);
            CHECK(12, after.exits - before.exits == 11 && after.io_exits - before.io_exits == 11);
            CHECK(13, after.fast_exits - before.fast_exits == 10);
            return 0;
        }
        """
    )
    boot.c(source, memory="4M", disk=disk).check(exit_code=0)
    assert disk.read_bytes() == bytes([1]) * 512 + bytes([2]) * 512 + bytes([7]) * 512


# ---- rings


@pytest.mark.needs("ioeventfd", "irqfd", "irqchip", "long64_interrupts")
def test_a_ring_wakes_the_guest_by_an_interrupt(tmp_path: Any) -> None:
    """The guest sleeps in HLT until its calls are done; no exit but its announcement and the end."""
    from pykvm.guests import built_folder
    from pykvm.toolchain import compile_program

    source = checks(
        """
        #include "interrupts.h"
        #include "pic.h"
        static volatile unsigned interrupts;
        static struct ring calls;
        static void on_ring(struct frame *frame)
        {
            (void)frame;
            interrupts++;
            pic_end(CALL_RING_GSI);
        }
        int main(void)
        {
            interrupts_init();
            pic_init(0x20, 1 << CALL_RING_GSI);
            on_vector(0x20 + CALL_RING_GSI, on_ring);
            CHECK(1, transports_offered() & HC_HAS_RING_INTERRUPT);
            CHECK(2, ring_open(&calls, CALL_RING_INTERRUPT) == 0);
            for (unsigned i = 0; i < RING_CALLS; i++)
                calls.call[i] = (struct hypercall){.number = HC_VERSION, .abi = 1};
            for (unsigned round = 0; round < 5; round++) {
                unsigned before = interrupts;
                ring_submit(&calls, 10);
                while (calls.header.head != *(volatile uint64_t *)&calls.header.tail || interrupts == before)
                    wait_for_interrupt();
            }
            for (unsigned i = 0; i < 50; i++)
                CHECK(3, calls.call[i].result == 1);
            return 0;
        }
        """
    )
    (tmp_path / "guest.c").write_text(source)
    root = built_folder()
    parts = [root / "lib" / name for name in ("start.S", "console.c", "interrupts.c", "interrupts.S")]
    image = compile_program([tmp_path / "guest.c", *parts], tmp_path / "guest.elf", mode="long64", root=root)
    with Machine("4M", irqchip=True) as machine:
        machine.load(image)
        result = machine.run(timeout=TIMEOUT_S)
    result.check(exit_code=0, exits={"IO": 3, "HLT": 0})


@pytest.mark.needs("ioeventfd")
def test_what_is_in_a_ring_when_the_guest_ends_is_done(boot: Boot) -> None:
    """Nothing that was handed over gets lost, although nobody waits for it."""
    result = boot.c(
        checks(
            """
            static struct ring ring;
            static const char text[] = "nobody waits for this\\n";
            int main(void)
            {
                CHECK(1, ring_open(&ring, 0) == 0);
                struct hypercall print = {HC_CONSOLE_WRITE, 2, 0, {(unsigned long)text, sizeof text - 1}};
                for (unsigned i = 0; i < RING_CALLS; i++)
                    ring.call[i] = print;
                ring_submit(&ring, RING_CALLS);
                return 0;
            }
            """
        )
    )
    result.check(exit_code=0, console="nobody waits for this\n" * 64)


MARKS = checks(
    """
    static struct ring ring;
    int main(void)
    {
        CHECK(1, ring_open(&ring, 0) == 0);
        for (unsigned n = 0; n < 1600; n += 32) {
            for (unsigned i = n; i < n + 32; i++)
                ring.call[i % RING_CALLS] = (struct hypercall){.number = HC_MARK, .arg = {i}};
            ring_submit(&ring, 32);
            CHECK(2, ring_wait(&ring) == 0);
        }
        return 0;
    }
    """
)


@pytest.mark.needs("ioeventfd")
def test_no_call_of_a_ring_is_lost_or_late(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,600 calls are 1,600 marks and 1,600 records, in order, although a ring of 64 fills up each time."""
    monkeypatch.setattr("pykvm.tracing._TRACE_RECORDS", 64)
    result = boot.c(MARKS, trace=True)
    result.check(exit_code=0)
    assert [mark.value for mark in result.marks] == list(range(1600))
    calls = [record.call.args[0] for record in result.trace if record.call and record.reason == "RING"]
    assert calls == list(range(1600))
    assert result.stats.dropped_records == 0


@pytest.mark.needs("ioeventfd")
def test_a_call_in_a_ring_may_end_the_run(boot: Boot) -> None:
    """HC_EXIT by the rings' thread stops a vCPU that never leaves the guest."""
    result = boot.c(
        checks(
            """
            int main(void)
            {
                CHECK(1, transport_use(HC_HAS_RING));
                hypercall_by(HC_EXIT, 5, 0, 0);
                for (;;)
                    pause();
            }
            """
        )
    )
    result.check(exit_code=5)


# ---- guests that mean harm


@pytest.mark.needs("irqchip", "smp", "mmio", "ioeventfd")
def test_several_cpus_in_one_struct(boot: Boot) -> None:
    """Each sees its own and the others' changes at any moment; every call is answered, and the run ends."""
    result = run_guest(boot, "29_hypercall_fuzz", vcpus=3)
    result.check(exit_code=0, console="0 wrong answers\n16 rings were damaged\n", exits={"MMIO": 400})


TABLE = 0x18_0000
_TABLE_GUEST = f"""
        mov ${TABLE:#x}, %ebx
        mov count, %ecx
    1:  mov $0x510c, %edx
        mov %ebx, %eax
        test $1, %ecx
        jz 2f
        mov $0xd0001000, %edx
        mov %rbx, (%rdx)                # a store of 8 bytes
        jmp 3f
    2:  out %eax, %dx
    3:  add $48, %ebx
        dec %ecx
        jnz 1b
        mov $0x500, %edx
        xor %eax, %eax
        out %eax, %dx
"""
_FREE = 0x1C_0000  # from here on guest memory may be overwritten; below are the guest and its table
_ADDRESSES = st.integers(_FREE, 2 * MIB + 64) | st.integers(2 * MIB, (1 << 64) - 1)
_SIZES = st.integers(0, (1 << 64) - 1) | st.integers(0, 100) | st.sampled_from([MIB, 1 << 32, 1 << 63])
_NUMBERS = [n for n in CALLS if n not in (lib.HC_EXIT, lib.HC_YIELD, lib.HC_RANDOM, lib.HC_CONSOLE_READ)]


@pytest.fixture(scope="module")
def table_guest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A guest that makes the calls in a table, by OUT and by a store in turn; how many are at 0x17_fff8."""
    from pykvm.guests import built_folder
    from pykvm.toolchain import compile_program

    folder = tmp_path_factory.mktemp("table")
    text = _TABLE_GUEST.replace("count", f"{TABLE - 8:#x}")
    (folder / "table.S").write_text(f'#include "guest.h"\nGUEST_START\n{text}\n')
    out = folder / "table.elf"
    return compile_program([folder / "table.S"], out, mode="long64", root=built_folder())


@pytest.mark.needs("mmio")
@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from(_NUMBERS) | st.integers(0x100, (1 << 32) - 1), _ADDRESSES, _SIZES, _ADDRESSES
        ),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=12)  # each boots a guest
def test_any_calls_of_a_guest_are_answered(table_guest: Any, asked: list[tuple[int, ...]]) -> None:
    """Any numbers and arguments: each gets a result, the guest ends its run itself, and memory is whole."""
    with Machine("2M") as machine:
        machine.load(table_guest)
        before = machine.memory.read(0, TABLE - 8)
        machine.memory.write(TABLE - 8, len(asked).to_bytes(8, "little"))
        for i, (number, *args) in enumerate(asked):
            fields = {"number": number, "abi": 2, "result": 0x5A5A, "arg": args}
            machine.memory.write(TABLE + 48 * i, ffi.buffer(ffi.new("struct hypercall *", fields)))
        result = machine.run(timeout=TIMEOUT_S)
        raw = machine.memory.read(TABLE, 48 * len(asked))
        after = machine.memory.read(0, TABLE - 8)
    assert (str(result.reason), result.exit_code) == ("exit", 0)
    assert sum(result.exits.values()) == len(asked) + 1
    calls = ffi.from_buffer("struct hypercall[]", raw)
    assert 0x5A5A not in {call.result for call in calls}
    assert after == before
