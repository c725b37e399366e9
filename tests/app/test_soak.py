"""Long life: thirty days of churn in virtual time, and sums at the ends of what counters hold.

The soaks themselves are in `tests.support.soak`, each in a process of its own. Longer ones are
nightly.
"""

import asyncio
import subprocess
import sys

import pytest

from skyfast.skydive import ingest
from tests.model import BYTES, FAMILIES, MAX_NUMBER, MAX_SUM, make_flow
from tests.support.paths import ROOT
from tests.support.soak import play
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
def test_thirty_days_hold_no_more_than_two() -> None:
    assert "day 30: " in soak("virtual", "--per-day=3000", "--remembered=768")


@pytest.mark.nightly
def test_thirty_full_days_hold_no_more_than_two() -> None:
    assert "day 30: 3,000,000 conversations" in soak("virtual")


@pytest.mark.nightly
def test_minutes_of_churn_for_real() -> None:
    assert "held" in soak("real", "--seconds=120", "--flows-per-s=1000")


def test_a_memory_that_grows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    monkeypatch.setattr(ingest, "kept", kept, raising=False)
    original = ingest.Ingest.message

    def leaking(self: ingest.Ingest, data: bytes, analyzer: ingest.AnalyzerStats) -> None:
        kept.append("x")
        original(self, data, analyzer)

    monkeypatch.setattr(ingest.Ingest, "message", leaking)
    wrong = asyncio.run(play(days=3, per_day=100, remembered=64))
    (entries,) = (
        text for text in wrong if text.startswith("entries of skyfast.skydive.ingest.kept: ")
    )
    assert " on the second day, " in entries
    assert entries.endswith(" times")


SUMS_OF_FLOW = [
    ((100, 200, 1, 2), (100, 200, 1, 2)),
    ((2**32 - 1, 200, 1, 2), (2**32 - 1, 200, 1, 2)),
    # The first has wrapped: what it had until then stays, what it has since then is added.
    ((50, 300, 2, 3), (2**32 + 49, 500, 3, 5)),
    ((2**32 - 1, 400, 2, 3), (2**33 - 2, 600, 3, 5)),
    ((0, 400, 2, 3), (2**33 - 2, 1_000, 5, 8)),
]


def test_a_flow_whose_counter_of_32_bits_wraps_starts_over() -> None:
    core = Core()
    for last, (total, expected) in enumerate(SUMS_OF_FLOW, 1):
        core.report(make_flow(total=total, last=last), 0)
        assert numbers(core) == list(expected)


def test_the_first_by_sums_of_both_directions_at_their_end() -> None:
    core = Core()
    for uuid, last in (("a1", 1), ("b2", 1), ("c3", 1)):
        core.report(make_flow(uuid, (MAX_NUMBER, MAX_NUMBER, 1, 1), last=last), 0)
    core.report(make_flow("d4", (MAX_NUMBER, MAX_NUMBER - 2, 1, 1), a="10.0.0.3"), 0)
    family = [family.name for family in FAMILIES].index(BYTES)
    (most, _, values), (second, *_) = core.top(family, 2)
    assert (most, second) == (MAX_SUM, MAX_SUM - 1)
    assert values[:2] == (MAX_SUM, MAX_SUM)


def numbers(core: Core) -> list[int]:
    """Return what the only connection of the page has of bytes and packets, there and back."""
    found = []
    for family in list(FAMILIES)[:2]:
        lines = core.page(0)[family.name]
        found += [int(line.rpartition(" ")[2]) for line in sorted(lines)]
    return found
