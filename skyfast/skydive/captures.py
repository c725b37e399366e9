"""Metric families from the statistics that agents send about their captures.

What a report holds was read in Skydive's sources (``flow/table.go``, ``flow/probes``) and seen in
recordings. Each flow table of an agent, which is one capture point (a capture on an interface),
sends one every 10 s to a randomly chosen analyzer, and that passes it to its subscribers:

* ``FlowDropped`` and ``KernelFlowDropped`` are amounts since the point's previous report. They are
  added up here, for all points of a capture: counters that begin with the first report. What is
  in a report that got lost on the way (agents send it in a UDP datagram by default) is missing.
* ``FlowCount`` is the size of the point's flow table at that moment.
* ``PacketsReceived`` and ``PacketsDropped`` are neither totals nor amounts. Once a second
  (``agent.capture.stats_update``) the agent reads the socket's totals since the capture began, adds
  *these* up, and sends the sum of the ten readings. So a tenth is shown: the mean of the totals
  that were read in those 10 s. Only probes that read packets from a socket have them.

A report names its capture and not its point, and a capture has a point on every interface that
its query matches, on all hosts. Of several points' reports nobody can tell which belong together,
and the number of readings in one varies now and then, so no counter can be made of the totals.
The three figures that cannot be added up are gauges, those of the point where each is highest,
in the reports of the latest 12 s or some more. The number of reports is a counter, so that
its ``rate`` times 10 s is the number of points.

Like the table, this has no clock and no socket: reports and ``now`` go in, a page comes out.
"""

from dataclasses import dataclass, replace
from functools import reduce
from typing import Final, Literal

import msgspec

from skyfast.flows.fields import UNDECODABLE
from skyfast.stats import CaptureStats
from skyfast.text_format import MetricFamily, label_text

SILENCE_S: Final = 60.0
"""A capture leaves when there was no report of it for so long: six in a row."""

SLOT_S: Final = 3.0
"""The highest figures are kept for each slot of this time."""

SLOTS: Final = 5
"""How many slots are shown: 12 to 15 s up to the latest report, so that each point is in them."""

READINGS: Final = 10
"""How many readings of a total are added up in a report."""

MAX_CAPTURES: Final = 1000
"""Captures on the page at most; reports of others are counted as ``too_many``."""

MAX_ID_CHARS: Final = 1024
"""Longest ID of a capture; reports with a longer one are counted as ``text_too_long``."""

MAX_AMOUNT: Final = 2**62
"""The largest number that is believed; reports with others are counted as ``out_of_range``."""

MAX_TOTAL: Final = 2**63 - 1
"""Where sums stay."""


class _Report(msgspec.Struct, gc=False, rename="pascal"):
    capture_id: str = msgspec.field(default="", name="CaptureID")
    flow_count: int = 0
    flow_dropped: int = 0
    kernel_flow_dropped: int = 0
    packets_dropped: int = 0
    packets_received: int = 0


_decode = msgspec.json.Decoder(_Report).decode


@dataclass(frozen=True, slots=True)
class _Figures:
    """The figures of which the highest are shown."""

    packets_received: int = 0
    packets_dropped: int = 0
    flows: int = 0


def _highest(one: _Figures, other: _Figures) -> _Figures:
    return _Figures(
        packets_received=max(one.packets_received, other.packets_received),
        packets_dropped=max(one.packets_dropped, other.packets_dropped),
        flows=max(one.flows, other.flows),
    )


class _Capture:
    """What is known of one capture."""

    def __init__(self) -> None:
        self.reported_at = 0.0
        self.reports = 0
        self.flows_dropped = 0
        self.kernel_flows_dropped = 0
        # By the number of their slot. Replaced and never changed: a page may be reading it.
        self._slots: dict[int, _Figures] = {}

    @property
    def highest(self) -> _Figures:
        """The highest of the latest reports, of which there is one at least."""
        return reduce(_highest, self._slots.values())

    def add(self, report: _Report, now: float, running: float) -> None:
        figures = _Figures(report.packets_received, report.packets_dropped, report.flow_count)
        now_slot = int(running // SLOT_S)
        slots = {slot: kept for slot, kept in self._slots.items() if slot > now_slot - SLOTS}
        slots[now_slot] = _highest(slots.get(now_slot, figures), figures)
        self._slots = slots
        self.reported_at = now
        self.reports += 1
        self.flows_dropped = min(self.flows_dropped + report.flow_dropped, MAX_TOTAL)
        self.kernel_flows_dropped = min(
            self.kernel_flows_dropped + report.kernel_flow_dropped, MAX_TOTAL
        )


_MEAN: Final = (
    "since the capture started, at the capture point with the most: average of the last ten"
    " readings."
)

_FAMILIES: Final = (
    MetricFamily(
        name="skydive_capture_packets_received",
        type="gauge",
        help=f"Packets received {_MEAN}",
    ),
    MetricFamily(
        name="skydive_capture_packets_dropped",
        type="gauge",
        help=f"Packets dropped by the agent {_MEAN}",
    ),
    MetricFamily(
        name="skydive_capture_kernel_flows_dropped",
        type="counter",
        help="Flows dropped because the kernel's table was full, at all capture points.",
    ),
    MetricFamily(
        name="skydive_capture_flows",
        type="gauge",
        help="Flows in the agent's table, at the capture point with the most.",
    ),
    MetricFamily(
        name="skydive_capture_flows_dropped",
        type="counter",
        help="Flows dropped because the agents' tables were full, at all capture points.",
    ),
    MetricFamily(
        name="skydive_capture_reports",
        type="counter",
        help="Reports received, one every 10 s from each capture point.",
    ),
)


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """What is told of a single capture; the docstring of the module says of what each is."""

    capture_id: str
    packets_received: float
    packets_dropped: float
    kernel_flows_dropped: int
    flows: int
    flows_dropped: int
    reports: int


class Captures:
    """The captures that agents report about.

    Messages and expiry belong to one thread; any thread may ask for a page.
    """

    def __init__(self, *, naming: Literal["compatible", "standard"], stats: CaptureStats) -> None:
        """Begin without captures; with ``standard``, the counters' names end with ``_total``."""
        ending = "_total" if naming == "standard" else ""
        self._families = tuple(
            replace(family, name=family.name + ending) if family.type == "counter" else family
            for family in _FAMILIES
        )
        self._stats = stats
        self._captures: dict[str, _Capture] = {}

    def message(self, raw: msgspec.Raw | bytes, now: float, running: float | None = None) -> None:
        """Take a report, the ``Obj`` of a message. Never raises; counts what it cannot use.

        ``now`` may stand still, so that captures stay while reports of them may be missing.
        ``running`` does not, where it is another: the gauges go by it.
        """
        try:
            report = _decode(raw)
        except UNDECODABLE as error:
            huge = str(error).startswith("Integer value out of range")
            self._stats.skipped["out_of_range" if huge else "invalid"] += 1
            return
        if reason := self._refusal(report):
            self._stats.skipped[reason] += 1
            return
        capture = self._captures.get(report.capture_id) or _Capture()
        capture.add(report, now, now if running is None else running)
        self._captures[report.capture_id] = capture
        self._stats.captures = len(self._captures)

    def _refusal(self, report: _Report) -> str:
        """Return the reason why ``report`` is not used, or an empty text."""
        capture_id, *amounts = msgspec.structs.astuple(report)
        if not capture_id:
            return "no_id"
        if len(capture_id) > MAX_ID_CHARS:
            return "text_too_long"
        if not all(0 <= amount <= MAX_AMOUNT for amount in amounts):
            return "out_of_range"
        if capture_id not in self._captures and len(self._captures) >= MAX_CAPTURES:
            return "too_many"
        return ""

    def expire(self, now: float) -> None:
        """Forget the captures of which there was no report for `SILENCE_S`."""
        silent = [key for key, capture in self._captures.items() if _is_silent(capture, now)]
        for key in silent:
            del self._captures[key]
        self._stats.captures = len(self._captures)

    def page(self, now: float, openmetrics: bool = False) -> bytes:
        """Return the families, or nothing where there is no capture."""
        rows = [
            (label_text({"capture_id": capture_id}), _values(capture))
            for capture_id, capture in self._known(now)
        ]
        if not rows:
            return b""
        lines = []
        for index, family in enumerate(self._families):
            lines.append(family.head(openmetrics=openmetrics))
            lines.append(family.lines((labels, values[index]) for labels, values in rows))
        return "".join(lines).encode()

    def first(self, count: int, now: float) -> list[CaptureReport]:
        """Return ``count`` captures, or as many as there are, in the order of their IDs."""
        return [
            CaptureReport(
                capture_id=capture_id,
                packets_received=capture.highest.packets_received / READINGS,
                packets_dropped=capture.highest.packets_dropped / READINGS,
                kernel_flows_dropped=capture.kernel_flows_dropped,
                flows=capture.highest.flows,
                flows_dropped=capture.flows_dropped,
                reports=capture.reports,
            )
            for capture_id, capture in self._known(now)[:count]
        ]

    def _known(self, now: float) -> list[tuple[str, _Capture]]:
        # The list is made in one step, which no other thread can come between.
        captures = sorted(list(self._captures.items()))  # noqa: C414
        return [each for each in captures if not _is_silent(each[1], now)]


def _is_silent(capture: _Capture, now: float) -> bool:
    return now - capture.reported_at >= SILENCE_S


def _values(capture: _Capture) -> tuple[str, ...]:
    """Return the texts of a capture's values, in the order of the families."""
    highest = capture.highest
    return (
        _mean(highest.packets_received),
        _mean(highest.packets_dropped),
        str(capture.kernel_flows_dropped),
        str(highest.flows),
        str(capture.flows_dropped),
        str(capture.reports),
    )


def _mean(readings: int) -> str:
    """Return the mean of added-up readings, exactly."""
    whole, tenths = divmod(readings, READINGS)
    return f"{whole}.{tenths}" if tenths else str(whole)
