"""Pages of recordings, and the form in which the expected ones are kept."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

from tests.support.paths import RECORDINGS

SHOWN_SAMPLES = 100
"""Samples of a family that stand in a golden file; the others are in the family's digest alone."""


def recorded(name, which):
    """Yield the messages of one analyzer with the time they were sent at, in Unix ms.

    ``LastUpdateMetric.Last`` is the time of the agent's update. What is no flow has no time of
    its own, and is sent with what came before it.
    """
    sent_ms = 0
    for line in (RECORDINGS / name).read_text().splitlines():
        message = json.loads(line)
        flows = message["Obj"] if message["Type"] == "store" else []
        sent_ms = max([sent_ms, *(flow["LastUpdateMetric"]["Last"] for flow in flows)])
        yield sent_ms, which, line, flows


def golden_lines(families: Iterable[tuple[Sequence[str], Sequence[str]]]) -> Iterator[str]:
    """Yield the lines of a golden file, of families of (comments, sorted samples).

    A family of more than `SHOWN_SAMPLES` samples ends with how many were left out, and the SHA-256
    of them all, each with a line feed behind it.
    """
    for comments, samples in families:
        yield from comments
        yield from samples[:SHOWN_SAMPLES]
        if len(samples) > SHOWN_SAMPLES:
            digest = hashlib.sha256("".join(f"{line}\n" for line in samples).encode()).hexdigest()
            left_out = len(samples) - SHOWN_SAMPLES
            yield f"# and {left_out} more samples; sha256 of all {len(samples)}: {digest}"
