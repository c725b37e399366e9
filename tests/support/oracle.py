"""Computes the expected counters of a page from the delivered reports alone.

`Oracle` adds up the highest total of each flow. A page may show less for two kinds of flows: those
that the table forgot, and those whose first reports were lost.

Times are in seconds of the table's clock. Flows are JSON objects, as analyzers send them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.model import DIRECTION, DIRECTIONS, Spec, View, labels_of, value_at
from tests.support.skydive import COUNTERS, JSON, TIMEOUT, is_counted

MAX_REPORT_DELAY_S = 15.0
"""Maximum delay of a report after the agent's update tick."""

ENDED_S = 75.0
"""Minimum time for which a flow is kept after its closing report."""

NEW_FLOWS = "NewFlows"
"""This counter is not a field of ``Metric``. Each flow is counted once."""

Values = tuple[str, ...]
Counters = Counter[str]


def is_repeat(report: JSON) -> bool:
    """Whether this is a closing report without packets since the latest update tick."""
    return (
        report.get("FinishType") == TIMEOUT and report["LastUpdateMetric"]["Last"] != report["Last"]
    )


def is_first(report: JSON) -> bool:
    """Whether this is the agent's first report of the flow."""
    return not is_repeat(report) and report["LastUpdateMetric"]["Start"] == report["Start"]


def read_counters(page: Mapping[str, set[str]], view: View) -> dict[Values, Counters]:
    """Return the counters of a view's connections, by label values without the direction.

    The view must have the label `DIRECTION`. Counters are named by the fields of ``Metric``, or
    `NEW_FLOWS`.
    """
    counters: dict[Values, Counters] = {}
    position = list(view.labels).index(DIRECTION)
    for family in view.families:
        if family.type == "counter":
            names = {DIRECTIONS[0]: NEW_FLOWS}
            if family.forward != ():
                assert family.backward is not None
                names = dict(zip(DIRECTIONS, (family.forward[1], family.backward[1]), strict=True))
            for line in page[family.name]:
                series, _, number = line.rpartition(" ")
                values = re.findall(r'="([^"]*)"', series)
                direction = values.pop(position)
                counters.setdefault(tuple(values), Counter())[names[direction]] = int(number)
    return counters


@dataclass(frozen=True)
class Range:
    """A lower and an upper bound for each counter."""

    low: Counters
    high: Counters

    def __add__(self, other: Range) -> Range:
        low, high = self.low.copy(), self.high.copy()
        low.update(other.low)
        high.update(other.high)
        return Range(low, high)

    def __contains__(self, counters: Counters) -> bool:
        names = (*COUNTERS, NEW_FLOWS)
        return all(self.low[name] <= counters[name] <= self.high[name] for name in names)


def exactly(counters: Counters) -> Range:
    return Range(counters, counters)


NOTHING = exactly(Counter())


@dataclass
class FlowState:
    """The state of a flow according to its delivered reports."""

    values: Sequence[Values]
    totals: Counters
    renewed_s: float
    """The time of the latest report that increased a counter."""
    closed_s: float | None = None


@dataclass(frozen=True)
class Increase:
    """The deltas that a report adds to each view."""

    report: JSON
    values: Sequence[Values]
    deltas: Range
    totals: Counters
    is_known: bool
    """Whether the flow was reported before this message and cannot have been forgotten since."""

    @property
    def is_nonzero(self) -> bool:
        return self.deltas.high.total() > 0

    @property
    def makes_visible(self) -> bool:
        return self.is_nonzero and not is_repeat(self.report)


@dataclass
class ShownConnection:
    """A connection: its counters on the latest page that showed it, and the deltas since then.

    The connection expires one timeout after ``renewed_s`` at the earliest, and one timeout after
    ``touched_s`` at the latest. A closing report that repeats the last update does not renew the
    connection: it changes only ``touched_s``.
    """

    counters: Counters = field(default_factory=Counter)
    deltas: Range = NOTHING
    renewed_s: float = -math.inf
    touched_s: float = -math.inf


@dataclass(kw_only=True)
class Oracle:
    """Checks the pages of a table before and after each message. All views must count new flows.

    ``horizon_s`` is the time of the latest report of all flows that the table may have forgotten.
    ``least_horizon_s`` is the same for the flows that it must have forgotten. Both begin at the
    first subscription. If ``is_exact`` is false, the table can reject and evict flows, so only
    upper bounds are checked.
    """

    spec: Spec
    horizon_s: float
    flow_update_s: float
    flow_memory_s: float
    is_exact: bool = True
    least_horizon_s: float = field(init=False)
    flows: dict[str, FlowState] = field(default_factory=dict)
    sums: list[dict[Values, Range]] = field(default_factory=list)
    shown: dict[Values, ShownConnection] = field(default_factory=dict)
    visible: dict[Values, Counters] = field(default_factory=dict)
    """The connections on the latest page."""

    def __post_init__(self) -> None:
        self.least_horizon_s = self.horizon_s
        self.sums = [{} for _ in self.spec.views]
        self._paths = [[label.path for label in labels_of(view)] for view in self.spec.views]
        self.is_complete = {("Network", "A"), ("Transport", "A")} <= {*self._paths[0]}

    # Reports

    def message(self, reports: Sequence[JSON], now: float) -> list[Increase]:
        """Apply the flows of a message, and return the increase by each report."""
        known = {uuid for uuid, state in self.flows.items() if self._is_remembered(state, now)}
        forgotten = [
            math.ceil(state.renewed_s)
            for uuid, state in self.flows.items()
            if state.closed_s is None and uuid not in known
        ]
        self.horizon_s = max([self.horizon_s, *forgotten])
        memory_s = max(self.flow_memory_s, ENDED_S) + self.spec.timeout_s + 1
        surely_forgotten = [at_s for at_s in forgotten if now >= at_s + memory_s]
        self.least_horizon_s = max([self.least_horizon_s, *surely_forgotten])
        increases = [
            self._report(report, now, is_known=report["UUID"] in known)
            for report in reports
            if is_counted(report)
        ]
        for increase in increases:
            for sums, values in zip(self.sums, increase.values, strict=True):
                sums[values] = sums.get(values, NOTHING) + increase.deltas
        return increases

    def _report(self, report: JSON, now: float, *, is_known: bool) -> Increase:
        totals = Counter({name: report["Metric"][name] for name in COUNTERS} | {NEW_FLOWS: 1})
        state = self.flows.get(report["UUID"])
        if state is None:
            values = [
                tuple(str(value_at(report, path, "")) for path in paths) for paths in self._paths
            ]
            counts = is_first(report) or self._was_never_counted(report, now, self.horizon_s)
            can_count = counts or self._was_never_counted(report, now, self.least_horizon_s)
            low = totals if counts else self._lowest_deltas(report)
            high = Counter(totals)
            high[NEW_FLOWS] = int(can_count)
            deltas = Range(low, high)
            if is_repeat(report) and not counts:
                # The repeated report may still be in transit, so the table does not store the flow.
                return Increase(report, values, deltas, totals, is_known)
            self.flows[report["UUID"]] = state = FlowState(values, totals, now)
        else:
            growth = totals - state.totals
            is_remembered = self._is_remembered(state, now)
            low = growth if is_remembered else growth & self._lowest_deltas(report)
            deltas = Range(low, growth)
            if is_repeat(report) and not is_remembered:
                return Increase(report, state.values, deltas, totals, is_known)
            state.totals = state.totals | totals
            if growth:
                state.renewed_s = now
        if report.get("FinishType") == TIMEOUT and state.closed_s is None:
            state.closed_s = now
        return Increase(report, state.values, deltas, totals, is_known)

    def _lowest_deltas(self, report: JSON) -> Counters:
        """Return the lowest deltas that the report of an unknown flow can add."""
        if is_repeat(report):
            return Counter()
        return Counter({name: report["LastUpdateMetric"][name] for name in COUNTERS})

    def _is_remembered(self, state: FlowState, now: float) -> bool:
        if state.closed_s is not None:
            return now < state.closed_s + ENDED_S
        return now < state.renewed_s + max(self.flow_memory_s, ENDED_S)

    def _was_never_counted(self, report: JSON, now: float, horizon_s: float) -> bool:
        """Return whether a flow began after ``horizon_s`` (see `Oracle`).

        The horizons leave out closed flows, because these flows are never reported again.
        """
        age_s = (report["LastUpdateMetric"]["Last"] - report["Start"]) / 1000
        began_s = now - age_s - self.flow_update_s - MAX_REPORT_DELAY_S
        return age_s >= 0 and began_s > horizon_s

    # Pages

    def check_before(self, page: Mapping[str, set[str]], now: float) -> None:
        """Check the page before a message: only connections that were due may have expired."""
        if not self.is_exact:
            return
        visible = read_counters(page, self.spec.views[0])
        for values, counters in visible.items():
            assert self.visible.get(values) == counters, f"{values} changed without a report"
            assert now <= self.shown[values].touched_s + self.spec.timeout_s + 1, values
        for values in self.visible.keys() - visible.keys():
            assert now >= self.shown[values].renewed_s + self.spec.timeout_s, (
                f"{values} expired too early"
            )
        self.visible = visible

    def check_after(
        self, page: Mapping[str, set[str]], increases: Sequence[Increase], now: float
    ) -> None:
        for view, sums in zip(self.spec.views, self.sums, strict=True):
            counters = read_counters(page, view)
            if view is self.spec.views[0] and self.is_exact:
                self._check_connections(counters, increases, now)
            else:
                self._check_sums(counters, sums)

    def _check_sums(self, page: dict[Values, Counters], sums: dict[Values, Range]) -> None:
        for values in page.keys() | sums.keys():
            expected, counters = sums.get(values, NOTHING), page.get(values, Counter())
            if not self.is_exact:
                expected = Range(Counter(), expected.high)
            assert counters in expected, f"{values}: {counters} is not {expected}"

    def _check_connections(
        self, after: dict[Values, Counters], increases: Sequence[Increase], now: float
    ) -> None:
        by_values: dict[Values, list[Increase]] = {}
        for increase in increases:
            by_values.setdefault(increase.values[0], []).append(increase)
        for values, counters in after.items():
            if values not in by_values:
                assert self.visible.get(values) == counters, f"{values} changed without a report"
        assert self.visible.keys() <= after.keys(), "a connection disappeared because of a message"
        for values, of_connection in by_values.items():
            added = NOTHING
            for increase in of_connection:
                added += increase.deltas
            shown = self.shown.setdefault(values, ShownConnection())
            shown.deltas += added
            becomes_visible = any(increase.makes_visible for increase in of_connection)
            if values not in after:
                assert not becomes_visible, f"{values} is missing"
                continue
            counters = after[values]
            if values in self.visible:
                expected = exactly(shown.counters) + shown.deltas
                assert counters in expected, f"{values}: {counters} is not {expected}"
            else:
                assert becomes_visible, f"{values} is back without new packets"
                self._check_new_connection(values, counters, of_connection, shown, now)
            shown.counters, shown.deltas = counters, NOTHING
            if becomes_visible:
                shown.renewed_s = now
            if any(increase.is_nonzero for increase in of_connection):
                shown.touched_s = now
        self.visible = after

    def _check_new_connection(
        self,
        values: Values,
        counters: Counters,
        increases: Sequence[Increase],
        shown: ShownConnection,
        now: float,
    ) -> None:
        """Check a connection that was not on the previous page.

        If the table still knows a flow of the connection, the counters must continue. Otherwise,
        they may restart from the flows of this message.
        """
        expected = exactly(shown.counters) + shown.deltas
        if counters in expected:
            return
        remembered = (
            any(increase.is_known and increase.makes_visible for increase in increases)
            if self.is_complete
            else any(
                state.values[0] == values
                and state.closed_s is None
                and self._is_remembered(state, now)
                and state.renewed_s < now
                for state in self.flows.values()
            )
        )
        assert not remembered, f"{values}: {counters} is not {expected}"
        restarted = NOTHING
        for increase in increases:
            # A closing report may leave its connection invisible. If so, it counts later only if
            # the table keeps the counters of expired connections.
            counts = increase.makes_visible or (self.flow_memory_s > 0 and not self.is_complete)
            low = increase.deltas.low & increase.totals if counts else Counter()
            restarted += Range(low, increase.totals)
        if not self.is_complete:
            # Closing reports may have been added while the connection was not visible.
            restarted = Range(restarted.low, expected.high)
        assert counters in restarted, f"{values}: {counters} is not {restarted}"
