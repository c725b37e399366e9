"""Thirty days of churn in virtual time, and counters at their limits.

Each test of `tests.support.soak` runs in its own process. CI runs longer tests every night.
"""

import asyncio
import subprocess
import sys

import pytest

from skyfast.skydive import ingest
from tests.model import BYTES, FAMILIES, MAX_NUMBER, MAX_SUM, make_flow
from tests.support.paths import ROOT
from tests.support.soak import run_virtual
from tests.support.table_adapter import Core

SOAK_S = 600


def soak(*arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.soak", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SOAK_S,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


@pytest.mark.slow
def test_memory_does_not_grow_in_thirty_days() -> None:
    assert "day 30: " in soak("virtual", "--per-day=3000", "--remembered=768")


@pytest.mark.nightly
def test_memory_does_not_grow_in_thirty_days_of_full_traffic() -> None:
    assert "day 30: 3,000,000 conversations" in soak("virtual")


@pytest.mark.nightly
def test_memory_does_not_grow_and_totals_are_right_in_real_time() -> None:
    assert "held" in soak("real", "--seconds=120", "--flows-per-s=1000")


def test_soak_test_detects_a_list_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    monkeypatch.setattr(ingest, "kept", kept, raising=False)
    original = ingest.Ingest.message

    def leaking(self: ingest.Ingest, data: bytes, analyzer: ingest.AnalyzerStats) -> None:
        kept.append("x")
        original(self, data, analyzer)

    monkeypatch.setattr(ingest.Ingest, "message", leaking)
    problems = asyncio.run(run_virtual(days=3, per_day=100, remembered=64))
    (entries,) = (
        text for text in problems if text.startswith("entries of skyfast.skydive.ingest.kept: ")
    )
    assert " on the second day, " in entries
    assert entries.endswith(" times")


SUMS_OF_FLOW = [
    ((100, 200, 1, 2), (100, 200, 1, 2)),
    ((2**32 - 1, 200, 1, 2), (2**32 - 1, 200, 1, 2)),
    # The first counter has wrapped, so its whole new value is added.
    ((50, 300, 2, 3), (2**32 + 49, 500, 3, 5)),
    ((2**32 - 1, 400, 2, 3), (2**33 - 2, 600, 3, 5)),
    ((0, 400, 2, 3), (2**33 - 2, 1_000, 5, 8)),
]


def test_wrapped_32_bit_counter_continues_its_sum() -> None:
    core = Core()
    for last, (total, expected) in enumerate(SUMS_OF_FLOW, 1):
        core.report(make_flow(total=total, last=last), 0)
        assert numbers(core) == list(expected)


def test_connections_with_the_largest_possible_sums_are_ranked() -> None:
    core = Core()
    for uuid, last in (("a1", 1), ("b2", 1), ("c3", 1)):
        core.report(make_flow(uuid, (MAX_NUMBER, MAX_NUMBER, 1, 1), last=last), 0)
    core.report(make_flow("d4", (MAX_NUMBER, MAX_NUMBER - 2, 1, 1), a="10.0.0.3"), 0)
    family = [family.name for family in FAMILIES].index(BYTES)
    (most, _, values, _), (second, *_) = core.top(family, 2)
    assert (most, second) == (MAX_SUM, MAX_SUM - 1)
    assert values[:2] == (MAX_SUM, MAX_SUM)


def numbers(core: Core) -> list[int]:
    """Return the bytes and packets of the only connection, per direction."""
    values = []
    for family in list(FAMILIES)[:2]:
        lines = core.page(0)[family.name]
        values += [int(line.rpartition(" ")[2]) for line in sorted(lines)]
    return values
