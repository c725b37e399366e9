"""Short fuzzing runs with a fixed seed, and tests of the fuzzer itself.

`make fuzz` runs longer, with random seeds.
"""

import random
import subprocess
import sys
from typing import ClassVar

import pytest

from tests.fuzz import TARGETS
from tests.fuzz.driver import CORPUS, Target, fuzz
from tests.support.paths import ROOT

SECONDS = 3.0
"""Maximum time per target. On fast machines, a run ends earlier (see `RUNS`)."""

RUNS = {"messages": 250, "configuration": 250, "web_configuration": 300, "http": 120, "pieces": 250}
"""Maximum number of cases per target."""


def test_every_target_has_a_corpus():
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS) == set(RUNS)
    assert all(len(target().corpus()) >= 10 for target in TARGETS.values())


@pytest.mark.parametrize("name", TARGETS)
def test_short_run_has_no_findings(name):
    target = TARGETS[name]()
    result = fuzz(target, seconds=SECONDS, seed="make test", max_runs=RUNS[name])
    assert "".join(finding.traceback for finding in result.findings) == ""
    assert result.runs > len(target.corpus())


@pytest.mark.parametrize("name", TARGETS)
def test_cases_depend_only_on_the_seed(name):
    cases = [[TARGETS[name]().generate(random.Random(n)) for n in range(20)] for _ in range(2)]
    assert cases[0] == cases[1]
    assert len(set(cases[0])) > 10


class FaultyTarget(Target):
    """Fails on the byte 0x07 after the letter "a"."""

    name: ClassVar[str] = "faulty"

    def __exit__(self, *_):
        pass

    def corpus(self):
        return []

    def generate(self, rng):
        return bytes(rng.randrange(256) for _ in range(1000))

    def run(self, case):
        if b"a\x07" in case:
            raise ValueError("a bell")


def test_fault_is_found_and_reduced():
    result = fuzz(FaultyTarget(), seconds=20, seed="x")
    assert {finding.case for finding in result.findings} == {b"a\x07"}
    assert all("ValueError: a bell" in finding.traceback for finding in result.findings)


def test_finding_can_be_replayed(tmp_path):
    case = tmp_path / "web_configuration" / "case"
    case.parent.mkdir()
    case.write_bytes(b"rate_limit: 1\n")
    command = (sys.executable, "-m", "tests.fuzz", "--replay", str(case))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{case}: nothing found\n")
