"""``python -m tests.fuzz`` fuzzes each target for a while, in a separate process.

If a case fails, the exit code is 1, and the case is written to ``build/fuzz``. A line that starts
with ``FOUND:`` shows the command that runs the case again.
"""

import argparse
import logging
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

from tests.fuzz import TARGETS
from tests.fuzz.driver import Finding, attempt, fuzz, write_finding
from tests.support.paths import ROOT

FINDINGS_DIR = ROOT / "build" / "fuzz"
STOP_S = 120
"""Additional time for a target to start, run its corpus and reduce its findings."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60, help="total time for all targets")
    parser.add_argument(
        "--seed",
        default=secrets.token_hex(4),
        help="with the same seed, each run generates the same cases",
    )
    parser.add_argument("--target", choices=TARGETS, help="fuzz only this target, in this process")
    parser.add_argument("--replay", type=Path, nargs="+", help="run only the cases in these files")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)  # hides the many warnings that cases cause
    if options.replay:
        return replay(options.replay)
    if options.target:
        return run(options.target, options.seconds, options.seed)
    print(f"fuzzing for {options.seconds:g} s, --seed {options.seed}", flush=True)
    target_s = options.seconds / len(TARGETS)
    return max([run_in_process(name, target_s, options.seed) for name in TARGETS])


def run_in_process(name: str, seconds: float, seed: str) -> int:
    """Fuzz a target in another process. Report the current case if the process crashes or hangs."""
    arguments = (*("--target", name), *("--seconds", str(seconds)), *("--seed", seed))
    command = (sys.executable, "-m", "tests.fuzz", *arguments)
    try:
        code = subprocess.run(command, timeout=seconds + STOP_S, check=False).returncode
        if code in {0, 1} and not current(name).exists():
            return code
        problem = f"{name}: the process exited with code {code}\n"
    except subprocess.TimeoutExpired:
        problem = f"{name}: the process did not end within {seconds + STOP_S:g} s\n"
    report(name, Finding(current(name).read_bytes(), problem))
    return 1


def run(name: str, seconds: float, seed: str) -> int:
    """Fuzz a target in this process. If the process crashes, the file of the case remains."""
    path = current(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = fuzz(TARGETS[name](), seconds=seconds, seed=seed, on_case=path.write_bytes)
    path.unlink()
    for finding in result.findings:
        report(name, finding)
    rate = result.runs / result.seconds
    outcome = f"{len(result.findings)} findings" if result.findings else "nothing found"
    print(f"{name}: {result.runs} cases, {rate:.0f} a second, {outcome}", flush=True)
    return 1 if result.findings else 0


def report(name: str, finding: Finding) -> None:
    path = write_finding(finding, name, FINDINGS_DIR)
    command = ("python", "-m", "tests.fuzz", "--replay", str(path.relative_to(ROOT)))
    print(f"{finding.traceback}FOUND: {shlex.join(command)}", flush=True)


def replay(paths: list[Path]) -> int:
    """Run cases from files. The directory of a file has the name of the target."""
    failed = 0
    for path in paths:
        with TARGETS[path.resolve().parent.name]() as target:
            problem = attempt(target, path.read_bytes())
        print(f"{path}: {problem or 'nothing found'}")
        failed |= problem is not None
    return failed


def current(name: str) -> Path:
    """Return the path of the file with the current case of a target."""
    return FINDINGS_DIR / f"{name}.current"


if __name__ == "__main__":
    sys.exit(main())
