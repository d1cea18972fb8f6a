"""The exit loop, built with sanitizers and an invented kernel in place of KVM_RUN, keeps its promises."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HARNESS = Path(__file__).with_name("exit_loop_harness.c")
SANITIZERS = {"memory": "address,undefined", "threads": "thread"}


@pytest.fixture(scope="session")
def harnesses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The harness compiled once for each family of sanitizers; both at a time."""
    folder = tmp_path_factory.mktemp("harness")
    builds = {}
    for name, flags in SANITIZERS.items():
        command = [
            "gcc",
            "-g",
            "-O1",
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-missing-field-initializers",
        ]
        command += [f"-fsanitize={flags}", "-fno-sanitize-recover=all", f"-I{ROOT / 'pykvm'}"]
        command += [f"-I{ROOT / 'guests' / 'include'}", str(HARNESS), "-o", str(folder / name), "-lpthread"]
        builds[name] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for name, build in builds.items():
        _, complaint = build.communicate()
        assert build.returncode == 0, f"{name}: {complaint}"
    return {name: folder / name for name in builds}


def check(harness: Path, scenario: str, seed: int, count: int) -> None:
    command = [str(harness), scenario, str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if (
        "unexpected memory mapping" in done.stderr
    ):  # the thread sanitizer on a host that scatters mappings widely
        command = ["setarch", "-R", *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mode", ["overwrite", "stop", "drop"])
def test_any_exit_is_survived_counted_and_recorded(harnesses: dict[str, Path], mode: str, seed: int) -> None:
    """Whatever reason, port, size, count and data offset the kernel tells, and in each mode of a full ring.

    Each exit is counted once, and recorded, dropped or pending once; nothing outside the mapping is touched.
    """
    check(harnesses["memory"], mode, seed, 20000)


@pytest.mark.parametrize("seed", range(4))
def test_a_hypercall_touches_only_what_it_may(harnesses: dict[str, Path], seed: int) -> None:
    """Wild pointers, wrapping lengths, ROM, text that overlaps its own request; by OUT, store and VMCALL.

    C answers exactly the calls that lie in memory; only the result changes; the text is printed as it was.
    """
    check(harnesses["memory"], "hypercalls", seed, 5000)


@pytest.mark.parametrize("seed", range(3))
def test_rings_of_calls_are_served_exactly(harnesses: dict[str, Path], seed: int) -> None:
    """Each call that was handed over is done once and recorded once, whatever it asks.

    A ring that claims more calls than it holds is left alone, and says so; full rings of records and console
    bytes lose nothing.
    """
    check(harnesses["memory"], "call-rings", seed, 1000)


@pytest.mark.parametrize("seed", range(2))
def test_a_ring_that_changes_under_the_host_is_survived(harnesses: dict[str, Path], seed: int) -> None:
    """Another CPU of the guest rewrites heads, calls and everything else of the rings at random meanwhile."""
    check(harnesses["memory"], "hostile-rings", seed, 1000)


@pytest.mark.parametrize("mode", ["read-stop", "read-drop"])
@pytest.mark.parametrize("build", SANITIZERS)
def test_a_reader_beside_the_vcpu_gets_whole_records_in_order(
    harnesses: dict[str, Path], build: str, mode: str
) -> None:
    """A ring that stops loses nothing, one that drops counts its drops, and no read races with a write."""
    check(harnesses[build], mode, 1, 4000)


@pytest.mark.parametrize("build", SANITIZERS)
def test_no_kick_gets_lost(harnesses: dict[str, Path], build: str) -> None:
    """Every kick of another thread takes the vCPU out, before, while and after it enters the guest."""
    check(harnesses[build], "kicks", 1, 10000)


@pytest.mark.parametrize("build", SANITIZERS)
def test_ticks_go_on_until_they_are_stopped(harnesses: dict[str, Path], build: str) -> None:
    """A tick that falls between two entries is followed by another."""
    check(harnesses[build], "ticks", 1, 200)


@pytest.mark.parametrize("build", SANITIZERS)
def test_the_console_ring_is_exact_under_several_writers(harnesses: dict[str, Path], build: str) -> None:
    """Each append lands whole or not at all, none is doubled, and each writer's stay in order."""
    check(harnesses[build], "console", 1, 20000)


def test_a_closed_vcpu_is_an_error_and_not_a_crash(harnesses: dict[str, Path]) -> None:
    """exit_loop_run(), exit_loop_kick() and exit_loop_settle() without a kvm_run touch nothing."""
    check(harnesses["memory"], "closed", 1, 1)
