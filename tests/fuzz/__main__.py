"""``python -m tests.fuzz``: tries every target for a while, each in a process of its own.

Ends with 1 where there was a finding. What reproduces it is then under ``build/fuzz``, and the
command that does so is on the last line.
"""

import argparse
import logging
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

from tests.fuzz import TARGETS
from tests.fuzz.driver import Finding, attempt, fuzz, written
from tests.support.paths import ROOT

FOUND = ROOT / "build" / "fuzz"
STOP_S = 120
"""How long after its time a target may take: to begin, to try its corpus, to make cases smaller."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="makes the same cases again")
    parser.add_argument("--target", choices=TARGETS, help="this one alone, in this process")
    parser.add_argument("--replay", type=Path, nargs="+", help="try these files and nothing else")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)  # what is warned of is as it should be
    if options.replay:
        return replay(options.replay)
    if options.target:
        return run(options.target, options.seconds, options.seed)
    print(f"fuzzing for {options.seconds:g} s, --seed {options.seed}", flush=True)
    each_s = options.seconds / len(TARGETS)
    return max([run_apart(name, each_s, options.seed) for name in TARGETS])


def run_apart(name: str, seconds: float, seed: str) -> int:
    """Try a target in a process that may crash, and report the case with which it did."""
    arguments = (*("--target", name), *("--seconds", str(seconds)), *("--seed", seed))
    command = (sys.executable, "-m", "tests.fuzz", *arguments)
    try:
        code = subprocess.run(command, timeout=seconds + STOP_S, check=False).returncode
        if code in {0, 1} and not current(name).exists():
            return code
        problem = f"{name}: the process ended with {code}\n"
    except subprocess.TimeoutExpired:
        problem = f"{name}: no end in {seconds + STOP_S:g} s\n"
    report(name, Finding(current(name).read_bytes(), problem))
    return 1


def run(name: str, seconds: float, seed: str) -> int:
    """Try a target in this process, with the case at hand in a file."""
    path = current(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = fuzz(TARGETS[name](), seconds=seconds, seed=seed, beginning=path.write_bytes)
    path.unlink()
    for finding in result.findings:
        report(name, finding)
    rate = result.runs / result.seconds
    found = f"{len(result.findings)} findings" if result.findings else "nothing found"
    print(f"{name}: {result.runs} cases, {rate:.0f} a second, {found}", flush=True)
    return 1 if result.findings else 0


def report(name: str, finding: Finding) -> None:
    path = written(finding, name, FOUND)
    command = ("python", "-m", "tests.fuzz", "--replay", str(path.relative_to(ROOT)))
    print(f"{finding.traceback}FOUND: {shlex.join(command)}", flush=True)


def replay(paths: list[Path]) -> int:
    """Try files, whose directories are named like their targets."""
    failed = 0
    for path in paths:
        with TARGETS[path.resolve().parent.name]() as target:
            problem = attempt(target, path.read_bytes())
        print(f"{path}: {problem or 'nothing found'}")
        failed |= problem is not None
    return failed


def current(name: str) -> Path:
    """Return where the case is that a target is trying."""
    return FOUND / f"{name}.current"


if __name__ == "__main__":
    sys.exit(main())
