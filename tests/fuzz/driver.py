"""What all targets share: time, seeds, hangs, findings and how one is made smaller.

A target makes cases of a random generator, and tries them. A case is bytes, so that whatever it
is about, it can be a file: those under ``corpus/NAME`` are tried first, and a finding is written
likewise. A case is a finding when trying it raises, does not come to an end, or ends the process.
"""

import faulthandler
import hashlib
import random
import resource
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from tests.support.paths import TESTS

CORPUS = TESTS / "fuzz" / "corpus"
HANG_S = 30.0
"""For one case. They take milliseconds."""

MAX_GROWTH_KIB = 300 * 1024
"""Of the process, from when every file of the corpus was tried."""

MAX_FINDINGS = 5
"""Of one run: more of them are mostly the same."""

MAX_REDUCTIONS = 300


class Target(ABC):
    """Something that is fed with what strangers send. Open while it is used."""

    name: ClassVar[str]

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self.open(opened)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def open(self, opened: ExitStack) -> None:  # noqa: B027 - many need nothing
        """Make what a case needs; ``opened`` closes it in the end."""

    @abstractmethod
    def generate(self, rng: random.Random) -> bytes:
        """Make a case."""

    @abstractmethod
    def run(self, case: bytes) -> None:
        """Try a case; raise whatever shows that something is wrong."""

    def corpus(self) -> list[Path]:
        """Return the cases that are tried each time, in order."""
        return sorted(path for path in (CORPUS / self.name).iterdir() if path.is_file())


@dataclass(frozen=True)
class Finding:
    """A case that is wrong, and what it was that told."""

    case: bytes
    traceback: str


@dataclass
class Result:
    """What came out of a target's time."""

    runs: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)


def fuzz(
    target: Target,
    *,
    seconds: float,
    seed: str,
    max_runs: int = sys.maxsize,
    beginning: Callable[[bytes], None] = lambda case: None,
) -> Result:
    """Try the corpus, then cases until the time is over; ``beginning`` is told each beforehand."""
    result = Result()
    began = time.monotonic()
    with target:
        before = 0
        for case in _cases(target, seed):
            if case is None:
                before = _peak_kib()
                continue
            beginning(case)
            result.runs += 1
            if problem := attempt(target, case):
                smaller = _reduced(target, case, problem)
                result.findings.append(Finding(smaller, attempt(target, smaller) or problem))
            result.seconds = time.monotonic() - began
            if len(result.findings) == MAX_FINDINGS:
                break
            if before and (result.seconds >= seconds or result.runs >= max_runs):
                break
        if before and (growth := _peak_kib() - before) > MAX_GROWTH_KIB:
            result.findings.append(Finding(b"", f"the process grew by {growth} KiB\n"))
    return result


def attempt(target: Target, case: bytes) -> str | None:
    """Try a case, and return what was wrong with it as a traceback, or None."""
    faulthandler.dump_traceback_later(HANG_S, exit=True, file=sys.__stderr__)
    try:
        target.run(case)
    except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
        return traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
    return None


def _cases(target: Target, seed: str) -> Iterator[bytes | None]:
    """Yield the corpus, None once it is through, and then cases without end."""
    for path in target.corpus():
        yield path.read_bytes()
    yield None
    number = 0
    while True:
        # Each has a generator of its own, so that a case depends on its number alone.
        yield target.generate(random.Random(f"{seed}/{target.name}/{number}"))
        number += 1


def _reduced(target: Target, case: bytes, problem: str) -> bytes:
    """Return a shorter case that ends in the same way, as far as leaving parts out goes."""
    last = problem.rstrip().rpartition("\n")[2].partition(":")[0]
    tries = 0
    size = len(case) // 2
    while size and tries < MAX_REDUCTIONS:
        at = 0
        while at < len(case) and tries < MAX_REDUCTIONS:
            shorter = case[:at] + case[at + size :]
            tries += 1
            again = attempt(target, shorter)
            if again and again.rstrip().rpartition("\n")[2].startswith(last):
                case = shorter
            else:
                at += size
        size //= 2
    return case


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def written(finding: Finding, name: str, directory: Path) -> Path:
    """Write what reproduces a finding, and return where."""
    path = directory / name / hashlib.sha256(finding.case).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(finding.case)
    return path
