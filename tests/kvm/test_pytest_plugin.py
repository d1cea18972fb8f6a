"""The pytest plugin: what a user's test file sees."""

from __future__ import annotations

import pytest

from pykvm.kvm import Kvm

pytest_plugins = ["pytester"]


def _run(pytester: pytest.Pytester, text: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(text)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)


def test_a_few_lines_of_assembler_boot_and_are_judged(pytester: pytest.Pytester) -> None:
    """boot.asm() gives a result whose end, console and exits can be asserted."""
    result = _run(
        pytester,
        """
        def test_it(boot):
            result = boot.asm("mov $'!', %al; out %al, $0xe9; hlt", mode="real16")
            result.check(reason="halt", console="!", exits={"IO": 1, "HLT": 1})
        """,
    )
    result.assert_outcomes(passed=1)


def test_c_text_boots_and_its_return_value_is_the_exit_code(pytester: pytest.Pytester) -> None:
    """boot.c() compiles a main() against the guests' library."""
    result = _run(
        pytester,
        """
        def test_it(boot):
            boot.c("int main(void) { return 42; }").check(reason="exit", exit_code=42)
        """,
    )
    result.assert_outcomes(passed=1)


def test_a_failing_test_shows_registers_code_and_exits(pytester: pytest.Pytester) -> None:
    """The report of a failed test names the wrong thing and disassembles the guest where it died."""
    result = _run(
        pytester,
        """
        def test_it(boot):
            boot.asm("mov $0x1234, %ebx; hlt").check(reason="exit")
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*reason: 'halt', not 'exit'*",
            "*guest 1: halt*",
            "*rbx=*1234*",
            "*  0x*hlt*",
            "*> 0x*",
            "last * exits",
        ]
    )


def test_the_time_limit_of_a_test_ends_its_guest(pytester: pytest.Pytester) -> None:
    """A guest that never exits ends with the word timeout, by marker or by option."""
    text = """
        import pytest
        @pytest.mark.pykvm_timeout(0.2)
        def test_marker(boot):
            boot.asm("jmp .").check(reason="timeout")
        def test_option(boot):
            boot.asm("jmp .").check(reason="timeout")
        """
    _run(pytester, text, "--pykvm-timeout=0.2").assert_outcomes(passed=2)


@pytest.mark.parametrize(("option", "outcome"), [("-q", "skipped"), ("--pykvm-required", "errors")])
def test_without_kvm_a_test_is_skipped_or_by_option_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: str, outcome: str
) -> None:
    """No /dev/kvm gives one clear reason, never a pass."""
    monkeypatch.setattr(Kvm.__init__, "__defaults__", ("/nonexistent/kvm",))
    result = _run(pytester, "def test_it(boot):\n    assert boot\n", option, "-rA")
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines(["*no KVM: /nonexistent/kvm: No such file or directory*"])


def test_bad_assembler_gives_the_line_of_the_text(pytester: pytest.Pytester) -> None:
    """The assembler's complaint counts lines from the text's first."""
    result = _run(pytester, "def test_it(boot):\n    boot.asm('nop\\nmovv')\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ToolchainError*assembler text:2*movv*"])
