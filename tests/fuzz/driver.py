"""The code that all targets of the fuzzer share: time, seeds, hangs and findings.

A target first runs the cases in the files ``corpus/NAME``, and then generated cases. A case is a
byte string. If it raises an exception, hangs, or ends the process, it is a finding.
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
"""Maximum time of a case. Most cases take milliseconds."""

MAX_GROWTH_KIB = 300 * 1024
"""Maximum growth of the peak memory while generated cases run, after all cases of the corpus."""

MAX_FINDINGS = 5
"""Maximum number of findings in one run. Further findings are usually duplicates."""

MAX_REDUCTIONS = 300


class Target(ABC):
    """A part of skyfast that handles untrusted input. A context manager."""

    name: ClassVar[str]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.open(stack)
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def open(self, stack: ExitStack) -> None:  # noqa: B027 - optional
        """Create the resources that cases need, and register their cleanup in ``stack``."""

    @abstractmethod
    def generate(self, rng: random.Random) -> bytes: ...

    @abstractmethod
    def run(self, case: bytes) -> None:
        """Run a case. If a check fails, raise an exception."""

    def corpus(self) -> list[Path]:
        return sorted(path for path in (CORPUS / self.name).iterdir() if path.is_file())


@dataclass(frozen=True)
class Finding:
    """A case that failed, and the traceback of its exception."""

    case: bytes
    traceback: str


@dataclass
class Result:
    runs: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)


def fuzz(
    target: Target,
    *,
    seconds: float,
    seed: str,
    max_runs: int = sys.maxsize,
    on_case: Callable[[bytes], None] = lambda case: None,
) -> Result:
    """Run the corpus. Then run generated cases until ``seconds`` or ``max_runs`` is reached.

    ``on_case`` is called before each case.
    """
    result = Result()
    start_s = time.monotonic()
    with target:
        base_kib = 0
        for case in _cases(target, seed):
            if case is None:
                base_kib = _peak_kib()
                continue
            on_case(case)
            result.runs += 1
            if problem := attempt(target, case):
                smaller = _reduce(target, case, problem)
                result.findings.append(Finding(smaller, attempt(target, smaller) or problem))
            result.seconds = time.monotonic() - start_s
            if len(result.findings) == MAX_FINDINGS:
                break
            if base_kib and (result.seconds >= seconds or result.runs >= max_runs):
                break
        if base_kib and (growth := _peak_kib() - base_kib) > MAX_GROWTH_KIB:
            result.findings.append(Finding(b"", f"the process grew by {growth} KiB\n"))
    return result


def attempt(target: Target, case: bytes) -> str | None:
    """Run a case; return the traceback of its exception, or None."""
    faulthandler.dump_traceback_later(HANG_S, exit=True, file=sys.__stderr__)
    try:
        target.run(case)
    except Exception:  # noqa: BLE001 - every exception is a finding
        return traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
    return None


def _cases(target: Target, seed: str) -> Iterator[bytes | None]:
    """Yield the cases of the corpus, then None, then generated cases without end."""
    for path in target.corpus():
        yield path.read_bytes()
    yield None
    number = 0
    while True:
        # A case depends only on the seed, the target, and its own number.
        yield target.generate(random.Random(f"{seed}/{target.name}/{number}"))
        number += 1


def _reduce(target: Target, case: bytes, problem: str) -> bytes:
    """Return a smaller case with the same error."""
    error = problem.rstrip().rpartition("\n")[2].partition(":")[0]
    tries = 0
    size = len(case) // 2
    while size and tries < MAX_REDUCTIONS:
        start = 0
        while start < len(case) and tries < MAX_REDUCTIONS:
            shorter = case[:start] + case[start + size :]
            tries += 1
            new_problem = attempt(target, shorter)
            if new_problem and new_problem.rstrip().rpartition("\n")[2].startswith(error):
                case = shorter
            else:
                start += size
        size //= 2
    return case


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_finding(finding: Finding, name: str, directory: Path) -> Path:
    """Write the case of a finding to a file, and return its path."""
    path = directory / name / hashlib.sha256(finding.case).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(finding.case)
    return path
