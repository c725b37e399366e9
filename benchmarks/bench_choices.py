"""What do views, labels and optional metrics cost?

Not measured: the savings in Prometheus, which are larger.
"""

from collections import defaultdict
from collections.abc import Iterator

from benchmarks.core import DEFAULT, Parts, in_batches, tidy, trim
from benchmarks.flows import FIRST_ROUND, Flows
from benchmarks.harness import SCALE, Remote, Report

RTT = "{name: rtt, type: histogram, buckets: [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1]}"
SIZES = "{name: flow_bytes, type: histogram, buckets: [1e3, 1e4, 1e5, 1e6, 1e7]}"
OF_ADDRESSES = f"{{prefix: a, labels: [initiator_ip], metrics: [{RTT}, {SIZES}]}}"

CHOICES = {
    "default": (DEFAULT, ""),
    "no view": ("{views: []}", "default"),
    "three labels": ("{labels: [target_ip, target_port, direction]}", "default"),
    "three labels, no view": (
        "{labels: [target_ip, target_port, direction], views: []}",
        "no view",
    ),
    "new_flows": ("{metrics: [bytes, packets, rtt, new_flows]}", "default"),
    "rtt histogram": (
        f"{{views: [{{prefix: a, labels: [node_tid, direction], metrics: [bytes, {RTT}]}}]}}",
        "default",
    ),
    "histograms only": (
        f"{{labels: [protocol], metrics: [flows], views: [{OF_ADDRESSES}]}}",
        "no view",
    ),
}
"""Maps each configuration to its YAML, and to the configuration with which it is compared. The
default is not compared.
"""

MESSAGES = 25
"""Number of messages per turn and table."""

ROUNDS = 2
"""Number of rounds of known flows."""

PAGES = 9

Samples = dict[str, list[float]]


class Choices:
    """A decoder and table (`Parts`) per configuration, all with the same messages.

    The tables take turns. Each turn begins with another table, so that the order favors no table.
    """

    def __init__(self, count: int) -> None:
        self._flows = Flows(count)
        self._parts = {name: Parts(chosen) for name, (chosen, _) in CHOICES.items()}
        self._turn = 0
        tidy()

    def take(self, round_: int) -> tuple[Samples, Samples]:
        """Process a round.

        Return the ns per flow for decoding, and the ns per flow for the table, each by
        configuration.
        """
        count = self._flows.count
        is_first = round_ == FIRST_ROUND
        numbers = range(count) if is_first else self._flows.sample(count, count)
        decode_ns: Samples = defaultdict(list)
        update_ns: Samples = defaultdict(list)
        for messages in in_batches(self._flows.messages(numbers, round_), MESSAGES):
            for name, parts in self._in_turn():
                take = parts.take_new if is_first else parts.take_known
                flows, decode, update = take(messages)
                decode_ns[name].append(decode / flows)
                update_ns[name].append(update / flows)
        trim()
        return decode_ns, update_ns

    def render(self) -> Samples:
        """Return, by configuration, the time to render each of `PAGES` pages, in ms."""
        ms: Samples = defaultdict(list)
        for _ in range(PAGES):
            for name, parts in self._in_turn():
                ms[name].append(parts.render() * 1e3)
        return ms

    def connections(self) -> Samples:
        return {name: [parts.connections()] for name, parts in self._parts.items()}

    def page_mb(self) -> Samples:
        return {name: [parts.page()[0] / 1e6] for name, parts in self._parts.items()}

    def series_ns(self, ms: Samples) -> Samples:
        series = {name: parts.page()[1] for name, parts in self._parts.items()}
        return {name: [s * 1e6 / series[name] for s in samples] for name, samples in ms.items()}

    def _in_turn(self) -> Iterator[tuple[str, Parts]]:
        names = list(self._parts)
        self._turn = (self._turn + 1) % len(names)
        for name in names[self._turn :] + names[: self._turn]:
            yield name, self._parts[name]


def run(report: Report) -> None:
    with Remote(Choices, SCALE) as choices:
        _, new_ns = choices.call(Choices.take, FIRST_ROUND)
        decode_ns: Samples = defaultdict(list)
        known_ns: Samples = defaultdict(list)
        for round_ in range(FIRST_ROUND + 1, FIRST_ROUND + 1 + ROUNDS):
            figures = choices.call(Choices.take, round_)
            for total, part in zip((decode_ns, known_ns), figures, strict=True):
                for name, samples in part.items():
                    total[name] += samples
        _add(report, "decoding", decode_ns, "ns per flow")
        _add(report, "known flows in the table", known_ns, "ns per flow")
        _add(report, "new flows in the table", new_ns, "ns per flow")
        _add(report, "number of connections", choices.call(Choices.connections), "")
        _add(report, "page size", choices.call(Choices.page_mb), "MB")
        rendering_ms = choices.call(Choices.render)
        _add(report, "rendering", rendering_ms, "ms")
        series_ns = choices.call(Choices.series_ns, rendering_ms)
        _add(report, "rendering a series", series_ns, "ns per series")


def _add(report: Report, what: str, figures: Samples, unit: str) -> None:
    for name, (_, peer) in CHOICES.items():
        over = figures[peer] if peer else None
        report.add(f"{what}, {name}", figures[name], unit, to=peer, over=over)
