"""Runs benchmarks by name; fails when one of them fails, never for a figure over its target."""

import importlib
import signal
import sys
import time
import traceback
from types import FrameType

from benchmarks import harness

NAMES = (
    "decode",
    "filters",
    "table",
    "choices",
    "ingest",
    "scrape",
    "memory",
    "dormant",
    "stall",
    "status",
    "growth",
    "start",
)

ON_REQUEST = ("storage",)
"""Not among `all`: they take long, or programs that are not Python's."""

LIMIT_S = 180
"""For one benchmark; on a machine that has nothing else to do, all take less than five minutes.

One that takes longer has a ``LIMIT_S`` of its own."""


def _late(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("took more than its limit")


def _run(name: str) -> bool:
    module = importlib.import_module(f"benchmarks.bench_{name}")
    report = harness.Report(name, str(module.__doc__).splitlines()[0])
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(getattr(module, "LIMIT_S", LIMIT_S))
    try:
        module.run(report)
    except Exception:  # noqa: BLE001  # the others are to run
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
        print(f"no benchmark {', '.join(unknown)}; there are: {known}")
        return 2
    began_s = time.monotonic()
    print(harness.header())
    failed = [name for name in names if not _run(name)]
    print(f"\n{time.monotonic() - began_s:.0f} s altogether")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
