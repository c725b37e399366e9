"""Checks a random sample of messages for lost reports.

By default, agents send reports to analyzers in UDP datagrams, which can get lost. Reports also get
lost when a subscriber disconnects, because the analyzer then stops sending for a while. If a report
is lost, the next report of the flow reveals the loss. Its ``LastUpdateMetric`` has only the
increases since the lost report, but the totals have increased by more since the last received
report. A report that reveals a loss has a *gap*. Gaps are counted so that operators notice lost
reports. The counters of the table stay correct, because the table adds the whole increase.

The sample also shows the agents' ``flow.update``, the time between two reports of a busy flow.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from skyfast._table import MAX_NUMBER
from skyfast.flows.fields import CLOSING
from skyfast.flows.plan import FieldPath, Plan
from skyfast.skydive.reporting_gap import MAX_FLOW_UPDATE_S, SLACK_S
from skyfast.stats import AnalyzerStats, Stats

SAMPLES_PER_S: Final = 4.0
"""Average rate of checked messages. Checking a message of 100 flows takes about 0.4 ms."""

MAX_SAMPLES_AT_ONCE: Final = 8
"""Maximum number of checked messages in a burst."""

FIRST_PROBABILITY: Final = 0.25
"""A message is checked with this probability until the rate of messages is known."""

RATE_PERIOD_S: Final = 10.0
"""Interval at which the probability of a check is adjusted to the rate of messages."""

SETTLE_S: Final = SLACK_S
"""If two reports of a flow arrive in the wrong order, the older one is at most this late. Analyzers
batch reports for up to 5 s, and messages can be delayed."""

MAX_UNSETTLED: Final = 10_000
"""Maximum number of gaps that wait for a late report. Above this number, the oldest gap is counted
immediately."""

UPDATE_PERIOD_S: Final = 60.0
UPDATE_PERIODS: Final = 60
"""``flow.update`` is estimated from the longest interval of each of the last 60 minutes.

An interval is the time from ``Start`` to ``Last`` in a ``LastUpdateMetric``. The estimate is the
second longest of the 60 intervals. The longest interval is not reliable: if the clock of an agent
is adjusted, all intervals that end at the agent's next update seem longer or shorter."""

OUR_SKIPS: Final = ("invalid", "out_of_range", "text_too_long", "table_full")
"""Of the reasons for which skyfast skips a report, only these cause gaps.

A report that is skipped as ``late`` contains no new traffic. All other reasons apply to flows that
are not in the table."""

Flow = Any
"""A flow report of the plan's type ``FullReport``."""

Reason = Literal["lost", "ours"]


class KnownFlows(Protocol):
    def known_totals(self, uuid: str) -> tuple[tuple[int, ...], int, float] | None: ...
    @property
    def skipped(self) -> dict[str, int]: ...
    @property
    def late_total(self) -> int: ...
    @property
    def horizon_s(self) -> float | None: ...
    @property
    def flow_update_s(self) -> float: ...
    @flow_update_s.setter
    def flow_update_s(self, seconds: float, /) -> None: ...


@dataclass(frozen=True, slots=True)
class _Total:
    """A counter whose increase since the previous report is in ``LastUpdateMetric``."""

    index: int
    """The index of the counter in ``plan.counters``."""
    paths: tuple[FieldPath, ...]
    last_update: tuple[FieldPath, ...]


@dataclass(frozen=True, slots=True)
class _Gap:
    """A gap that a late report can still close."""

    uuid: str
    last_ms: int
    """``Last`` of the report with the gap."""
    analyzer: AnalyzerStats
    reason: Reason
    due_s: float
    """The time at which the gap is counted, unless the missing report arrives earlier."""


Sample = list[tuple[Flow, tuple[tuple[int, ...], int, float] | None]]
"""Each flow of a message, with the flow's state in the table before the message was applied. The
state is None if the table did not contain the flow."""


class ReportChecker:
    def __init__(
        self,
        *,
        plan: Plan,
        table: KnownFlows,
        stats: Stats,
        now: Callable[[], float],
        running: Callable[[], float],
        held_s: Callable[[], float] = lambda: 0.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``now`` is the table's clock, which is held (stands still) while reports may be missing.

        ``held_s`` returns the total time for which this clock was held. ``running`` is a clock that
        is never held. All times are in seconds.
        """
        self._totals = tuple(
            _Total(index, counter.paths, counter.last_update)
            for index, counter in enumerate(plan.counters)
            if counter.last_update
        )
        # With deduplication, a flow that the table does not contain shows nothing about lost
        # reports: the table may have skipped its earlier reports as duplicates.
        self._checks_unknown = plan.conversation is None
        self._table = table
        self._stats = stats
        self._now = now
        self._running = running
        self._held_s = held_s
        self._chance = chance
        self._probability = FIRST_PROBABILITY
        self._tokens = float(MAX_SAMPLES_AT_ONCE)
        self._checked_s = self._period_began_s = running()
        self._messages = 0
        self._unsettled: dict[str, _Gap] = {}
        self._late_total = table.late_total
        self._ours_s = float("-inf")
        self._ours = self._own_losses()
        self._updates: deque[tuple[float, float]] = deque()

    def should_check(self) -> bool:
        """Return whether to decode the next message fully and check it."""
        self._messages += 1
        if self._chance() >= self._probability:
            return False
        now = self._running()
        tokens = self._tokens + SAMPLES_PER_S * (now - self._checked_s)
        self._tokens = min(tokens, float(MAX_SAMPLES_AT_ONCE))
        self._checked_s = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def refund(self) -> None:
        """Allow one more check. Must be called if the message that was chosen last has no flows."""
        self._tokens += 1.0

    def sample(self, flows: Sequence[Flow]) -> Sample:
        """Return each flow of a chosen message with the known totals of the flow.

        Must be called before the table is updated.
        """
        known = self._table.known_totals
        return [(flow, known(flow.UUID)) for flow in flows]

    def check(self, sample: Sample, analyzer: AnalyzerStats) -> None:
        """Check ``sample`` for gaps. The table must have applied the flows of the sample."""
        now = self._now()
        self._note_own_losses(now)
        seen: set[str] = set()
        for flow, known in sample:
            if flow.UUID in seen:
                continue  # a second report of the flow: ``known`` is outdated
            seen.add(flow.UUID)
            if flow.Metric is None or flow.LastUpdateMetric is None:
                continue
            totals = [_sum(flow, total.paths) for total in self._totals]
            deltas = [_sum(flow, total.last_update) for total in self._totals]
            if not totals or not all(0 <= number <= MAX_NUMBER for number in totals + deltas):
                continue
            self._learn_update(flow, now)
            if known is not None:
                self._check_known(flow, known, totals, deltas, analyzer, now)
            elif self._checks_unknown:
                self._check_unknown(flow, totals, deltas, analyzer, now)

    def note_late(self, flows: Sequence[Flow]) -> None:
        """Remove gaps whose missing report is in ``flows``, which the table has just applied."""
        if self._table.late_total == self._late_total:
            return
        self._late_total = self._table.late_total
        for flow in flows:
            gap = self._unsettled.get(flow.UUID)
            if gap is not None and flow.Last < gap.last_ms:
                del self._unsettled[flow.UUID]

    @property
    def has_unsettled(self) -> bool:
        """Whether late reports can still close a gap."""
        return bool(self._unsettled)

    def tick(self) -> None:
        """Count gaps whose missing report did not arrive in time; adjust the probability of checks.

        Must be called about once a second.
        """
        now = self._running()
        if now - self._period_began_s >= RATE_PERIOD_S:
            rate = self._messages / (now - self._period_began_s)
            self._probability = SAMPLES_PER_S / max(rate, SAMPLES_PER_S)
            self._messages = 0
            self._period_began_s = now
        self._settle(now)

    def _settle(self, now: float) -> None:
        while self._unsettled:
            gap = next(iter(self._unsettled.values()))
            if gap.due_s > now and len(self._unsettled) <= MAX_UNSETTLED:
                return
            del self._unsettled[gap.uuid]
            gap.analyzer.report_gaps[gap.reason] += 1

    def _check_known(
        self,
        flow: Flow,
        known: tuple[tuple[int, ...], int, float],
        totals: Sequence[int],
        deltas: Sequence[int],
        analyzer: AnalyzerStats,
        now: float,
    ) -> None:
        known_totals, last_ms, reported_s = known
        growth = [
            new - max(known_totals[total.index], 0)
            for new, total in zip(totals, self._totals, strict=True)
        ]
        is_newer = flow.Last > last_ms
        if min(growth) < 0 or (not is_newer and max(growth) <= 0):
            return  # the flow restarted, or the report is late
        analyzer.reports_checked += 1
        added = [0] * len(deltas) if _is_repeat(flow) else deltas
        if any(grew > delta for grew, delta in zip(growth, added, strict=True)):
            self._record_gap(flow, analyzer, since_s=reported_s, now=now)

    def _check_unknown(
        self,
        flow: Flow,
        totals: Sequence[int],
        deltas: Sequence[int],
        analyzer: AnalyzerStats,
        now: float,
    ) -> None:
        horizon_s = self._table.horizon_s
        age_s = (flow.LastUpdateMetric.Last - flow.Start) / 1000
        if (
            horizon_s is None
            or age_s < 0
            or now - age_s - self._table.flow_update_s - SETTLE_S <= horizon_s
            or self._table.known_totals(flow.UUID) is None
        ):
            return  # skyfast may have counted and forgotten the flow, or the table skipped it
        analyzer.reports_checked += 1
        grew = any(total > delta for total, delta in zip(totals, deltas, strict=True))
        if grew or _is_repeat(flow):
            self._record_gap(flow, analyzer, since_s=now - age_s, now=now)

    def _record_gap(
        self, flow: Flow, analyzer: AnalyzerStats, *, since_s: float, now: float
    ) -> None:
        reason: Reason = "ours" if self._ours_s >= since_s - SETTLE_S else "lost"
        # Dicts are ordered: move the flow to the end.
        self._unsettled.pop(flow.UUID, None)
        self._unsettled[flow.UUID] = _Gap(
            uuid=flow.UUID,
            last_ms=flow.Last,
            analyzer=analyzer,
            reason=reason,
            due_s=self._running() + SETTLE_S,
        )
        if len(self._unsettled) > MAX_UNSETTLED:
            self._settle(self._running())

    def _own_losses(self) -> tuple[float, int]:
        """Return how long the clock was held, and how many reports and messages were skipped.

        Both values are totals since the start.
        """
        skipped = self._table.skipped
        lost = sum(
            self._stats.flows_skipped.get(reason, 0) + skipped.get(reason, 0)
            for reason in OUR_SKIPS
        )
        lost += sum(sum(stats.errors.values()) for stats in self._stats.analyzers.values())
        return self._held_s(), lost

    def _note_own_losses(self, now: float) -> None:
        ours = self._own_losses()
        if ours != self._ours:
            self._ours = ours
            self._ours_s = now

    def _learn_update(self, flow: Flow, now: float) -> None:
        newest = flow.LastUpdateMetric
        update_s = (newest.Last - newest.Start) / 1000
        if (
            flow.FinishType == CLOSING
            or newest.Start == flow.Start
            or not 0 < update_s <= MAX_FLOW_UPDATE_S
        ):
            return
        began_s = now // UPDATE_PERIOD_S * UPDATE_PERIOD_S
        if not self._updates or self._updates[-1][0] != began_s:
            self._updates.append((began_s, update_s))
            while len(self._updates) > UPDATE_PERIODS:
                self._updates.popleft()
            self._use_update()
        elif update_s > self._updates[-1][1]:
            self._updates[-1] = (began_s, update_s)
            self._use_update()

    def _use_update(self) -> None:
        longest = sorted(seconds for _, seconds in self._updates)
        update_s = longest[-2] if len(longest) > 1 else longest[0]
        self._stats.flow_update_s = update_s
        self._table.flow_update_s = update_s


def _sum(flow: Flow, paths: tuple[FieldPath, ...]) -> int:
    return sum(getattr(getattr(flow, part), name) for part, name in paths)


def _is_repeat(flow: Flow) -> bool:
    """Return whether a closing report repeats the ``LastUpdateMetric`` of the previous report."""
    return bool(flow.FinishType == CLOSING and flow.LastUpdateMetric.Last != flow.Last)
