"""Exports metric families from the statistics that agents send about their captures.

A capture runs on every interface that its query matches, on all hosts. A *capture point* is one
capture on one interface. Each agent has one flow table for each of its capture points. Every 10 s,
each capture point sends a report to a random analyzer, which forwards the report to its
subscribers. According to recordings and to Skydive's sources (``flow/table.go`` and
``flow/probes``), a report has these fields:

* ``FlowDropped`` and ``KernelFlowDropped``: flows dropped since the capture point's previous
  report. skyfast exports the sum over all reports of a capture as a counter. By default, agents
  send reports in UDP datagrams. If a datagram is lost, the counter is too low.
* ``FlowCount``: the current size of the capture point's flow table.
* ``PacketsReceived`` and ``PacketsDropped``: once a second (``agent.capture.stats_update``), the
  agent reads how many packets the capture's socket has received and dropped since the start of the
  capture. A report has the sum of the readings since the previous report. Usually, there are ten
  readings. Example: ten readings of 100 packets give 1,000. skyfast exports a tenth of the sum,
  which is usually the mean. Because the number of readings varies, skyfast cannot export exact
  totals as counters. If a capture does not read from a socket, its reports lack these fields.

A report does not name its capture point. Therefore skyfast cannot sum ``FlowCount``,
``PacketsReceived`` and ``PacketsDropped`` over the capture points of a capture. Instead, a gauge
for each field shows the highest value that any capture point has reported in the last 12 to 15 s.
The number of reports is exported as a counter. The ``rate`` of this counter, multiplied by 10 s, is
the number of capture points.
"""

from dataclasses import dataclass, replace
from functools import reduce
from typing import Final, Literal

import msgspec

from skyfast.flows.fields import UNDECODABLE
from skyfast.stats import CaptureStats
from skyfast.text_format import MetricFamily, label_text, with_unknown_starts

SILENCE_S: Final = 60.0
"""A capture expires after this time without a report. Each capture point sends six reports in this
time."""

SLOT_S: Final = 3.0
"""Length of a time slot. Only the highest values of each slot are stored."""

SLOTS: Final = 5
"""Number of slots per capture. Five slots cover the last 12 to 15 s, in which every capture point
sends a report."""

READINGS: Final = 10
"""Assumed number of readings whose sum is in one report."""

MAX_CAPTURES: Final = 1000
"""Maximum number of captures; reports of further captures are counted as ``too_many``."""

MAX_ID_CHARS: Final = 1024
"""Maximum length of a capture ID; reports with longer IDs are counted as ``text_too_long``."""

MAX_VALUE: Final = 2**62
"""Maximum value of a field; reports with larger values are counted as ``out_of_range``."""

MAX_TOTAL: Final = 2**63 - 1
"""Maximum value of an exported counter."""


class _PointReport(msgspec.Struct, gc=False, rename="pascal"):
    capture_id: str = msgspec.field(default="", name="CaptureID")
    flow_count: int = 0
    flow_dropped: int = 0
    kernel_flow_dropped: int = 0
    packets_dropped: int = 0
    packets_received: int = 0


_decode = msgspec.json.Decoder(_PointReport).decode


@dataclass(frozen=True, slots=True)
class _Figures:
    """The values of a report, or the highest value of each field in several reports."""

    packets_received: int = 0
    packets_dropped: int = 0
    flows: int = 0


def _highest(first: _Figures, second: _Figures) -> _Figures:
    return _Figures(
        packets_received=max(first.packets_received, second.packets_received),
        packets_dropped=max(first.packets_dropped, second.packets_dropped),
        flows=max(first.flows, second.flows),
    )


class _Capture:
    def __init__(self) -> None:
        self.reported_at = 0.0
        self.reports = 0
        self.flows_dropped = 0
        self.kernel_flows_dropped = 0
        # Maps the number of a slot to the highest values in this slot. The dict is replaced, never
        # modified, because another thread may read it.
        self._slots: dict[int, _Figures] = {}

    @property
    def highest(self) -> _Figures:
        """The highest value of each field, over all slots. Requires at least one report."""
        return reduce(_highest, self._slots.values())

    def add(self, report: _PointReport, now: float, running: float) -> None:
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
    "since the capture started: the highest value of all capture points. Each value is the mean of"
    " the last ten readings."
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
        help="Flows dropped because the capture's table in the kernel was full; summed over the"
        " capture points.",
    ),
    MetricFamily(
        name="skydive_capture_flows",
        type="gauge",
        help="Flows in the agent's flow table; the highest value among the capture points.",
    ),
    MetricFamily(
        name="skydive_capture_flows_dropped",
        type="counter",
        help="Flows dropped because the agent's flow table was full; summed over the capture"
        " points.",
    ),
    MetricFamily(
        name="skydive_capture_reports",
        type="counter",
        help="Reports of these statistics. Each capture point sends one report every 10 s.",
    ),
)


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """The exported values of a capture; the docstring of the module explains them."""

    capture_id: str
    packets_received: float
    packets_dropped: float
    kernel_flows_dropped: int
    flows: int
    flows_dropped: int
    reports: int


class Captures:
    """The statistics of all captures.

    Only one thread may call `message` and `expire`; any thread may call the other methods.
    """

    def __init__(self, *, naming: Literal["compatible", "standard"], stats: CaptureStats) -> None:
        """With ``naming="standard"``, counter names end with ``_total``."""
        ending = "_total" if naming == "standard" else ""
        self._families = tuple(
            replace(family, name=family.name + ending) if family.type == "counter" else family
            for family in _FAMILIES
        )
        self._stats = stats
        self._captures: dict[str, _Capture] = {}

    def message(self, raw: msgspec.Raw | bytes, now: float, running: float | None = None) -> None:
        """Process a report, which is the ``Obj`` of a message.

        * ``now``: the time of the clock by which captures expire. This clock stops while reports
          may be missing.
        * ``running``: the time of the clock by which values of gauges expire. This clock does
          not stop while reports may be missing. The default is ``now``.
        """
        try:
            report = _decode(raw)
        except UNDECODABLE as error:
            huge = str(error).startswith("Integer value out of range")
            self._stats.skipped["out_of_range" if huge else "invalid"] += 1
            return
        if reason := self._skip_reason(report):
            self._stats.skipped[reason] += 1
            return
        capture = self._captures.get(report.capture_id) or _Capture()
        capture.add(report, now, now if running is None else running)
        self._captures[report.capture_id] = capture
        self._stats.captures = len(self._captures)

    def _skip_reason(self, report: _PointReport) -> str:
        capture_id, *values = msgspec.structs.astuple(report)
        if not capture_id:
            return "no_id"
        if len(capture_id) > MAX_ID_CHARS:
            return "text_too_long"
        if not all(0 <= value <= MAX_VALUE for value in values):
            return "out_of_range"
        if capture_id not in self._captures and len(self._captures) >= MAX_CAPTURES:
            return "too_many"
        return ""

    def expire(self, now: float) -> None:
        silent = [key for key, capture in self._captures.items() if _is_silent(capture, now)]
        for key in silent:
            del self._captures[key]
        self._stats.captures = len(self._captures)

    def page(self, now: float, openmetrics: int = 0, *, created: bool = False) -> bytes:
        """Return the metric families, or nothing if there are no captures.

        If ``created`` is true, each counter in OpenMetrics 1.0 has the start time 0 ("unknown").
        """
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
        page = "".join(lines).encode()
        return with_unknown_starts(page) if openmetrics == 1 and created else page

    def first(self, count: int, now: float) -> list[CaptureReport]:
        """Return the first ``count`` captures, ordered by ID."""
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
        # No other thread can modify the dict while list() copies it.
        captures = sorted(list(self._captures.items()))  # noqa: C414
        return [(key, capture) for key, capture in captures if not _is_silent(capture, now)]


def _is_silent(capture: _Capture, now: float) -> bool:
    return now - capture.reported_at >= SILENCE_S


def _values(capture: _Capture) -> tuple[str, ...]:
    """Return the exported values of a capture as text, in the order of `_FAMILIES`."""
    highest = capture.highest
    return (
        _mean(highest.packets_received),
        _mean(highest.packets_dropped),
        str(capture.kernel_flows_dropped),
        str(highest.flows),
        str(capture.flows_dropped),
        str(capture.reports),
    )


def _mean(sum_of_readings: int) -> str:
    """Return the exact mean of ten readings as text."""
    whole, tenths = divmod(sum_of_readings, READINGS)
    return f"{whole}.{tenths}" if tenths else str(whole)
