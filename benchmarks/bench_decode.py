"""What does it cost to decode a flow, and how much of this cost is due to the fields in use?"""

import json
import time
from collections.abc import Callable

import msgspec

from benchmarks.core import TYPES, decoder
from benchmarks.flows import FIRST_ROUND, FLOWS_PER_MESSAGE, Flows
from benchmarks.harness import Report
from skyfast.flows.fields import Envelope

MESSAGES = 100
REPEATS = 9


def run(report: Report) -> None:
    count = MESSAGES * FLOWS_PER_MESSAGE
    messages = list(Flows(count).messages(range(count), FIRST_ROUND))
    size = sum(map(len, messages)) / count
    decoders: dict[str, Callable[[bytes], object]] = {
        "msgspec, used fields": decoder().decode,
        "used fields and LastUpdateMetric": decoder(TYPES.FullReport).decode,
        "msgspec, envelope only": msgspec.json.Decoder(Envelope).decode,
        "msgspec, into dicts": msgspec.json.Decoder().decode,
        "json, into dicts": json.loads,
    }
    ns: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(REPEATS):
        for name, decode in decoders.items():
            began_s = time.process_time()
            for message in messages:
                decode(message)
            ns[name].append((time.process_time() - began_s) / count * 1e9)
    typed = ns["msgspec, used fields"]
    for name, samples in ns.items():
        peer = None if samples is typed else typed
        report.add(name, samples, "ns per flow", to="used fields" if peer else "", over=peer)
    report.add("msgspec, used fields, as a rate", [size / ns_ * 1e3 for ns_ in typed], "MB/s")
    report.add("size of a flow", [size], "bytes")
