"""Messages of recordings, and the format of golden files."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

from tests.support.paths import RECORDINGS

SHOWN_SAMPLES = 100
"""Number of samples per family in a golden file. For a larger family, a hash is added."""


def recorded(name, which):
    """Yield a tuple for each message of a recording: its time, ``which``, its JSON text, its flows.

    The time of a message, in Unix milliseconds, is the highest ``LastUpdateMetric.Last`` of all
    flows so far. ``which`` is the argument of this function.
    """
    sent_ms = 0
    for line in (RECORDINGS / name).read_text().splitlines():
        message = json.loads(line)
        flows = message["Obj"] if message["Type"] == "store" else []
        sent_ms = max([sent_ms, *(flow["LastUpdateMetric"]["Last"] for flow in flows)])
        yield sent_ms, which, line, flows


def golden_lines(families: Iterable[tuple[Sequence[str], Sequence[str]]]) -> Iterator[str]:
    """Yield the lines of a golden file. ``families`` has comments and sorted samples per family.

    If a family has more than `SHOWN_SAMPLES` samples, its last line has the number of omitted
    samples and the SHA-256 hash of all samples. In the hashed text, each sample ends with a line
    feed.
    """
    for comments, samples in families:
        yield from comments
        yield from samples[:SHOWN_SAMPLES]
        if len(samples) > SHOWN_SAMPLES:
            digest = hashlib.sha256("".join(f"{line}\n" for line in samples).encode()).hexdigest()
            omitted = len(samples) - SHOWN_SAMPLES
            yield f"# and {omitted} more samples; sha256 of all {len(samples)}: {digest}"
