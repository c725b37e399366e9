"""The shell completions, which shtab generates from the argument parser."""

import os
import pty
import select
import shutil
import subprocess
from pathlib import Path

import pytest

from skyfast import cli
from tests.support import completion
from tests.support.process import run

COMPLETE = {
    "bash": """
        source "$1"
        shift
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        _shtab_skyfast
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "fish": """
        source $argv[1]
        complete -C (string join " " -- $argv[2..])
    """,
}
"""For each shell, a script that prints the candidates for the last argument."""

needs_shell = pytest.mark.parametrize(
    "shell",
    [
        pytest.param(
            shell,
            marks=pytest.mark.skipif(
                shutil.which(shell) is None, reason=f"{shell} is not installed"
            ),
        )
        for shell in cli.SHELLS
    ],
)


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_files_are_up_to_date(shell: str) -> None:
    """If this test fails, run ``make completion``."""
    result = run("--print-completion", shell)
    assert result.returncode == 0
    assert result.stdout == completion.generate(shell)


def test_unknown_shell_is_an_error() -> None:
    result = run("--print-completion", "csh")
    assert result.returncode == 2
    assert "invalid choice: 'csh'" in result.stderr


@needs_shell
def test_shell_accepts_the_syntax_of_its_completion(shell: str) -> None:
    file = cli.COMPLETION.with_suffix(f".{shell}")
    result = subprocess.run([shell, "-n", file], capture_output=True, text=True, timeout=20)
    assert (result.returncode, result.stderr) == (0, "")


def candidates(shell: str, directory: Path, *words: str) -> set[str]:
    script = COMPLETE[shell]
    file = cli.COMPLETION.with_suffix(f".{shell}")
    options = ["-c", script, "sh"] if shell == "bash" else ["--no-config", "-c", script]
    result = subprocess.run(
        [shell, *options, file, "skyfast", *words],
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return {line.partition("\t")[0] for line in result.stdout.splitlines()}


@needs_shell
def test_shell_completes_options_values_and_files(shell: str, tmp_path: Path) -> None:
    if shell == "zsh":
        pytest.skip("test_zsh_completes_in_a_terminal tests zsh")
    (tmp_path / "prom_sky_con.yml").touch()
    assert candidates(shell, tmp_path, "--log.") == {"--log.level", "--log.format"}
    assert candidates(shell, tmp_path, "--log.format", "") == {"text", "json"}
    assert candidates(shell, tmp_path, "--log.level", "wa") == {"warning"}
    assert candidates(shell, tmp_path, "pro") == {"prom_sky_con.yml"}
    assert candidates(shell, tmp_path, "--web.config.file", "pro") == {"prom_sky_con.yml"}


ZSH = """
fpath=($PWD $fpath); autoload -U compinit; compinit -D -u
skyfast() { print -r -- "<$*>" }; echo READY
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_in_a_terminal(tmp_path: Path) -> None:
    """zsh has no command that prints candidates, so this test presses the Tab key."""
    (tmp_path / "prom_sky_con.yml").touch()
    shutil.copy(cli.COMPLETION.with_suffix(".zsh"), tmp_path / "_skyfast")
    terminal, child = pty.openpty()
    process = subprocess.Popen(
        ["zsh", "-f", "-i"],
        stdin=child,
        stdout=child,
        stderr=child,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(child)
    try:
        type_until(terminal, ZSH, "\r\nREADY")
        for typed, completed in (
            ("--log.f\t", "--log.format"),
            ("--log.format t\t", "--log.format text"),
            ("--log.level wa\t", "--log.level warning"),
            ("pro\t", "prom_sky_con.yml"),
        ):
            type_until(terminal, f"skyfast {typed}\n", f"<{completed}>")
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def type_until(terminal: int, typed: str, expected: str) -> None:
    """Type into the terminal, and wait until it shows the expected text."""
    os.write(terminal, typed.encode())
    shown = ""
    while expected not in shown:
        readable, _, _ = select.select([terminal], [], [], 10)
        assert readable, shown
        shown += os.read(terminal, 4096).decode()
