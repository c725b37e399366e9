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
    "stall",
    "growth",
    "start",
)

LIMIT_S = 180
"""For one benchmark; on a machine that has nothing else to do, all take less than five minutes."""


def _late(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"took more than {LIMIT_S} s")


def _run(name: str) -> bool:
    module = importlib.import_module(f"benchmarks.bench_{name}")
    report = harness.Report(name, str(module.__doc__).splitlines()[0])
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(LIMIT_S)
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
    if unknown := set(names) - set(NAMES):
        print(f"no benchmark {', '.join(unknown)}; there are: all {' '.join(NAMES)}")
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
