"""Detects subscriptions that receive nothing for longer than chance can explain.

Every 10 s, each capture point (a capture on one interface) sends a ``stats`` message to a random
analyzer. In Skydive's sources, see ``flow/table.go`` and ``flow/client/flow_client.go``. If n
``stats`` are sent to N analyzers, a given analyzer receives none of them with the probability
(1 - 1/N)^n. A subscription without a message is *suspect* if this probability is below
`SUSPECT_CHANCE`, and *silent* if the probability is below `SILENT_CHANCE`. The section "Silence" of
``docs/architecture.md`` explains how n is estimated.

A subscription can also get ``stats`` but no flows. When a subscriber disconnects, the analyzer
stops sending to all its subscribers until another client subscribes. If this client subscribes only
to ``stats``, all subscribers get only ``stats``. A subscription without flows also counts as silent
if ``stats`` show that captures receive packets.

Time is measured in ticks (regular calls of `SilenceDetector.update`). A pause of the process counts
as one tick, so the pause does not seem to be silence.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from skyfast.flows.fields import UNDECODABLE
from skyfast.skydive.reporting_gap import MAX_FLOW_UPDATE_S, SLACK_S

SUSPECT_CHANCE: Final = 1e-3
"""If the probability of a silence is less than this value, the subscription is suspect.

A false suspicion only delays the expiry of connections."""

SILENT_CHANCE: Final = 1e-6
"""If the probability of a silence is less than this value, skyfast reconnects.

A reconnection interrupts all subscribers of the analyzer."""

LOST: Final = 0.01
"""UDP may lose this share of the ``stats``; a few lost ``stats`` must not count as silence."""

WINDOW_S: Final = 30.0
"""``stats`` are counted in windows of this length."""

WINDOWS: Final = 4
"""The number of capture points is estimated from the highest count in the last four windows.

With the default ``silence_timeout``, a silent subscription does not reduce the estimate, because
skyfast reconnects before four windows have passed. When captures end, the estimate decreases within
2 minutes."""

ENDED_SHARE: Final = 0.5
"""If one subscription receives no messages, and the others receive less than this share of their
expected ``stats``, some captures have probably ended.

This is only checked while all the others receive messages."""

IDLE_SHARE: Final = 0.1
"""If at most this share of the reports shows received packets (see `Activity`), the captures may be
idle."""

IDLE_REPORTS: Final = 3
"""After its last packet, a capture point sends up to this many reports in which ``PacketsReceived``
still changes."""

MEMORY_S: Final = 60.0
"""Reported values of ``PacketsReceived`` are remembered for at least this time. A capture point
sends six reports in this time."""

MAX_VALUES: Final = 20_000
"""Maximum number of values that are remembered in `MEMORY_S`. At the limit, the values of further
reports are ignored."""

READINGS: Final = (9, 10, 11)
"""``PacketsReceived`` is the sum of nine, ten or eleven readings of a packet counter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SilenceTiming:
    """The times that decide when a subscription is suspect or silent.

    Only tests change the defaults.
    """

    statistics_s: float = 10.0
    """Interval between two ``stats`` of a capture point."""
    suspect_s: float = 15.0
    """Minimum time without a message until a subscription is suspect."""
    silent_s: float = 20.0
    """Minimum time without a message until a subscription is silent."""
    slack_s: float = SLACK_S
    """Maximum time from the end of a reporting interval until its reports have arrived."""


class _PacketReport(msgspec.Struct, gc=False):
    CaptureID: str = ""
    FlowCount: int = 0
    PacketsReceived: int = 0


class Activity:
    """Detects from ``stats`` whether captures receive packets.

    ``PacketsReceived`` is the sum of 9, 10 or 11 readings of a capture point's packet counter. If
    the capture point is idle, all readings are equal. Example: if the counter is 100, the sum is
    900, 1,000 or 1,100. Two sums match if both are possible with the same counter. If a sum matches
    none of the capture's remembered sums, the capture receives packets. Captures that do not count
    packets (eBPF, sFlow, NetFlow) always report 0.
    """

    def __init__(self) -> None:
        self.capture_id = ""
        """The only capture to consider. If empty, all captures are considered."""
        self.reports = 0
        self.changes = 0
        """Number of reports that show received packets."""
        self._decode = msgspec.json.Decoder(_PacketReport).decode
        self._values: set[tuple[int, int]] = set()
        self._older: set[tuple[int, int]] = set()
        self._kept_until_s = -math.inf

    def message(self, raw: msgspec.Raw | bytes, now: float) -> None:
        """Process a report, which is the ``Obj`` of a message. Invalid reports are ignored."""
        try:
            report = self._decode(raw)
        except UNDECODABLE:
            return
        if self.capture_id and report.CaptureID != self.capture_id:
            return
        if now >= self._kept_until_s:
            self._older, self._values = self._values, set()
            self._kept_until_s = now + MEMORY_S
        self.reports += 1
        received, capture = report.PacketsReceived, hash(report.CaptureID)
        if received <= 0 or report.FlowCount <= 0 or len(self._values) >= MAX_VALUES:
            return
        if not self._is_known(capture, received):
            self.changes += 1
        self._values.add((capture, received))

    def _is_known(self, capture: int, received: int) -> bool:
        return any(
            received * known % now == 0
            and (
                (capture, received * known // now) in self._values
                or (capture, received * known // now) in self._older
            )
            for now in READINGS
            for known in READINGS
        )


class FlowUpdate(Protocol):
    """The estimate of the agents' ``flow.update``."""

    @property
    def flow_update_s(self) -> float: ...
    @property
    def flow_update_known(self) -> bool: ...


class Reporting:
    """State shared by all subscriptions: their number, and how many ``stats`` they receive."""

    def __init__(
        self,
        *,
        updates: FlowUpdate,
        activity: Activity | None = None,
        timing: SilenceTiming | None = None,
    ) -> None:
        self.updates = updates
        self.activity = activity or Activity()
        self.timing = timing or SilenceTiming()
        self.analyzers = 1
        """Number of configured subscriptions, up or down."""
        self.statistics = 0
        """Number of ``stats`` that all subscriptions have received."""
        self.detectors: set[SilenceDetector] = set()
        """The detectors of the subscriptions that are up."""
        self._counts: deque[int] = deque([0], maxlen=WINDOWS)
        self._window_ends_s = -math.inf

    @property
    def capture_points(self) -> float:
        """The estimated number of capture points; initially 0."""
        return max(self._counts) * self.timing.statistics_s / self._window_s

    @property
    def _window_s(self) -> float:
        return WINDOW_S * self.timing.statistics_s / SilenceTiming().statistics_s

    def add(self, statistics: int, now_s: float) -> None:
        """Add the number of ``stats`` that a subscription has just received."""
        if now_s >= self._window_ends_s:
            self._counts.append(0)
            self._window_ends_s = now_s + self._window_s
        self._counts[-1] += statistics
        self.statistics += statistics


class SilenceDetector:
    """Decides whether a subscription is suspect or silent.

    Without messages, a subscription is suspect after ``longest_s`` at the latest, and silent after
    ``longest_s`` times ``stretch`` at the latest. If ``longest_s`` is 0, the subscription is never
    suspect or silent.
    """

    def __init__(
        self, reporting: Reporting, *, longest_s: float, stretch: float = 1.0, tick_s: float
    ) -> None:
        self.suspect = False
        """Whether the subscription is suspect now, or becomes suspect before the next tick."""
        self.delivered = False
        """Whether a message has arrived so far."""
        self.silent_s = 0.0
        self._reporting = reporting
        self._longest_s = longest_s or math.inf
        self._stretch = stretch
        self._tick_s = tick_s
        self._sent_before = 0
        self._missing_flows = _MissingFlows(reporting)

    @property
    def delivers(self) -> bool:
        return self.delivered and not self.suspect

    def update(self, *, received: bool, statistics: int, flows: bool, now_s: float) -> str:
        """Update once per tick; return why the subscription is silent, or an empty string.

        All arguments except ``now_s`` describe the messages since the previous tick. ``statistics``
        is the number of ``stats``; ``flows`` is true if any message had flows.
        """
        self._reporting.add(statistics, now_s)
        if received:
            self.delivered = True
            self.silent_s = 0.0
            self._sent_before = self._reporting.statistics
        elif self.delivered:
            self.silent_s += self._tick_s
        self._missing_flows.update(flows=flows, tick_s=self._tick_s)
        if not self.delivered or self._longest_s == math.inf:
            return ""
        if self._is_silent():
            return f"no message for {self.silent_s:.0f} s"
        if not self._is_quiet() and self._missing_flows.is_silent(self._stretch):
            seconds = self._missing_flows.seconds
            return f"no flows for {seconds:.0f} s, although captures receive packets"
        self.suspect = self._is_suspect() or self._missing_flows.is_suspect(self._tick_s)
        return ""

    def _is_quiet(self) -> bool:
        return self.silent_s > self._reporting.timing.statistics_s + self._tick_s

    def _is_suspect(self) -> bool:
        seconds = self.silent_s + self._tick_s
        least_s = self._reporting.timing.suspect_s
        return seconds >= min(least_s, self._longest_s) and (
            seconds >= self._longest_s or self._is_improbable(seconds, SUSPECT_CHANCE, lost=0.0)
        )

    def _is_silent(self) -> bool:
        seconds = self.silent_s / self._stretch
        return seconds >= self._longest_s or (
            seconds >= self._reporting.timing.silent_s
            and self._is_improbable(seconds, SILENT_CHANCE, lost=LOST)
        )

    def _is_improbable(self, seconds: float, chance: float, *, lost: float) -> bool:
        """Return whether ``seconds`` without a message are less probable than ``chance``."""
        reporting, analyzers = self._reporting, self._reporting.analyzers
        sent = reporting.capture_points * seconds / reporting.timing.statistics_s
        others = [detector for detector in reporting.detectors if detector is not self]
        if len(others) == analyzers - 1 > 0 and all(
            other.delivered and not other._is_quiet() for other in others
        ):
            seen = reporting.statistics - self._sent_before
            if seen < ENDED_SHARE * sent * (analyzers - 1) / analyzers:
                sent = seen  # captures have ended
        return is_improbable(sent, chance, analyzers=analyzers, lost=lost)


def is_improbable(sent: float, chance: float, *, analyzers: int, lost: float = 0.0) -> bool:
    """Return whether the probability that an analyzer gets no message is at most ``chance``.

    ``sent`` is the number of messages. Each message goes to one of ``analyzers`` analyzers at
    random. ``lost`` is the share of lost messages.
    """
    missed = 1 - (1 - lost) / analyzers
    if missed <= 0:
        return sent > 0
    return sent * math.log(missed) <= math.log(chance)


class _MissingFlows:
    """Tracks how long a subscription has received no flows, and whether flows were due."""

    def __init__(self, reporting: Reporting) -> None:
        self._reporting = reporting
        self._begin()

    def _begin(self) -> None:
        activity = self._reporting.activity
        self.seconds = 0.0
        self._reports, self._changes = activity.reports, activity.changes
        self._shown = 0.0
        """How many more reports show received packets than is normal for idle captures."""
        self._suspect_after_s = self._silent_after_s = math.inf
        """The value of ``seconds`` when flows became due; infinity if they are not due yet."""

    def update(self, *, flows: bool, tick_s: float) -> None:
        if flows:
            self._begin()
            return
        activity = self._reporting.activity
        self.seconds += tick_s
        changes, reports = activity.changes - self._changes, activity.reports - self._reports
        self._changes, self._reports = activity.changes, activity.reports
        self._shown = max(0.0, self._shown + changes - IDLE_SHARE * reports)
        if self._shown > 0:
            self._suspect_after_s = min(self._suspect_after_s, self._due_since(SUSPECT_CHANCE))
            self._silent_after_s = min(self._silent_after_s, self._due_since(SILENT_CHANCE))

    def _due_since(self, chance: float) -> float:
        """Return the current value of ``self.seconds`` if flows are due, else infinity.

        Flows are due if enough reports have shown received packets.
        """
        reporting = self._reporting
        # Once per reporting interval, a capture point that receives packets sends flows to one
        # analyzer.
        reports_each = self._update_s / reporting.timing.statistics_s
        idle = IDLE_REPORTS * reporting.analyzers * reporting.capture_points
        sent = (self._shown - idle) / reports_each
        is_due = sent > 0 and is_improbable(sent, chance, analyzers=reporting.analyzers)
        return self.seconds if is_due else math.inf

    @property
    def _update_s(self) -> float:
        return min(self._reporting.updates.flow_update_s, MAX_FLOW_UPDATE_S)

    def is_suspect(self, tick_s: float) -> bool:
        after_s = self._update_s + self._reporting.timing.slack_s
        known = self._reporting.updates.flow_update_known
        return known and self._suspect_after_s < math.inf and self.seconds + tick_s >= after_s

    def is_silent(self, stretch: float) -> bool:
        after_s = self._update_s + self._reporting.timing.slack_s
        return (
            self._reporting.updates.flow_update_known
            and self.seconds >= after_s * self._reporting.analyzers * stretch
            and self.seconds >= self._silent_after_s + after_s
        )
