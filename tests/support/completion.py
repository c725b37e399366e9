"""Writes the shell completions in ``skyfast/data``, for ``make completion``."""

import argparse

import shtab

from skyfast import cli
from skyfast.config.parsers import LEVELS

FILES = ("CONFIG", "FILE")
"""Placeholders for file names in the help text."""


def generate(shell: str) -> str:
    parser = cli._parser()
    for action in parser._actions:
        if action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar == "LEVEL" and action.help != argparse.SUPPRESS:
            action.choices = tuple(LEVELS)
    text = shtab.complete(parser, shell)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def main() -> None:
    for shell in cli.SHELLS:
        cli.COMPLETION.with_suffix(f".{shell}").write_text(generate(shell))


if __name__ == "__main__":
    main()
