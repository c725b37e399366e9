"""Runs benchmarks by name.

A benchmark fails if it raises an exception, but not if a figure misses its target.
"""

import importlib
import signal
import sys
import time
import traceback
from types import FrameType

from benchmarks import harness, microbenchmarks

MICRO = ("decode", "filters", "table")
"""The benchmarks in ``benchmarks/micro``. All others are in ``benchmarks``."""

NAMES = (
    *MICRO,
    "lookups",
    "choices",
    "ingest",
    "bursts",
    "scrape",
    "memory",
    "dormant",
    "stall",
    "status",
    "growth",
    "names",
    "own_names",
    "start",
)

ON_REQUEST = ("storage",)
"""Benchmarks that `all` does not include, because they take long or need other programs."""

LIMIT_S = 180
"""Time limit of a benchmark whose module has no ``LIMIT_S``."""


def _time_out(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("exceeded its time limit")


def module_name(name: str) -> str:
    return f"benchmarks.micro.test_{name}" if name in MICRO else f"benchmarks.bench_{name}"


def _run(name: str) -> bool:
    module = importlib.import_module(module_name(name))
    report = harness.Report(name, str(module.__doc__).splitlines()[0])
    signal.signal(signal.SIGALRM, _time_out)
    signal.alarm(getattr(module, "LIMIT_S", LIMIT_S))
    try:
        if name in MICRO:
            microbenchmarks.run(name, report)
        else:
            module.run(report)
    except Exception:  # noqa: BLE001  # the other benchmarks still run
        traceback.print_exc()
        return False
    finally:
        signal.alarm(0)
        report.finish()
    return True


def main(arguments: list[str]) -> int:
    names = NAMES if arguments in ([], ["all"]) else tuple(arguments)
    if unknown := set(names) - {*NAMES, *ON_REQUEST}:
        known = " ".join(["all", *NAMES, *ON_REQUEST])
        print(f"unknown benchmark {', '.join(unknown)}; known: {known}")
        return 2
    began_s = time.monotonic()
    print(harness.header())
    failed = [name for name in names if not _run(name)]
    print(f"\n{time.monotonic() - began_s:.0f} s in total")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
