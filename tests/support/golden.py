"""Messages of recordings, and the format of golden files."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

from tests.support.paths import RECORDINGS

SHOWN_SAMPLES = 100
"""Maximum number of samples per family in a golden file."""


def recorded(name, which):
    """Yield a tuple for each message of a recording: time, ``which``, JSON text, and flows.

    The time is the highest ``LastUpdateMetric.Last`` so far, in Unix milliseconds.
    """
    sent_ms = 0
    for line in (RECORDINGS / name).read_text().splitlines():
        message = json.loads(line)
        flows = message["Obj"] if message["Type"] == "store" else []
        sent_ms = max([sent_ms, *(flow["LastUpdateMetric"]["Last"] for flow in flows)])
        yield sent_ms, which, line, flows


def golden_lines(families: Iterable[tuple[Sequence[str], Sequence[str]]]) -> Iterator[str]:
    """Yield the lines of a golden file, from the comments and the sorted samples of each family.

    A family with more than `SHOWN_SAMPLES` samples ends with a hash of all its samples.
    """
    for comments, samples in families:
        yield from comments
        yield from samples[:SHOWN_SAMPLES]
        if len(samples) > SHOWN_SAMPLES:
            digest = hashlib.sha256("".join(f"{line}\n" for line in samples).encode()).hexdigest()
            omitted = len(samples) - SHOWN_SAMPLES
            yield f"# and {omitted} more samples; sha256 of all {len(samples)}: {digest}"
