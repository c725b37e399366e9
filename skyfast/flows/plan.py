"""The plan: which fields of a flow become labels and values, and how a page shows them.

The table and the decoder (`skyfast.flows.fields`) are built from a plan, so they need no
definitions of labels or metrics.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Protocol

from skyfast.text_format import MetricFamily, bound_text

FieldPath = tuple[str, ...]
"""The path of a value in a flow: names of JSON fields, outermost first.

The empty path is the flow itself."""

INITIATOR_TO_TARGET = "initiator_to_target"
TARGET_TO_INITIATOR = "target_to_initiator"


class LabelMapper(Protocol):
    """Maps a value of a flow to a label value. A dict with ``__missing__`` can be a mapper.

    The table calls the mapper once for each flow that is not in the table yet. The mapper must
    accept every value: an exception aborts the update of the whole message.
    """

    def __getitem__(self, value: Any, /) -> str | int: ...


class Names(Protocol):
    """Maps an address or a capture point to the current values of several labels.

    For each flow that is not in the table yet, the table looks up one key per `Lookup`. The mapping
    must accept every key: an exception aborts the update of the whole message. Lookups are fastest
    in a dict or in a subclass of dict with ``__missing__``. All tuples have the same length.
    """

    def __getitem__(self, key: str, /) -> tuple[str, ...] | None:
        """Return the label values, or None if ``key`` is ambiguous (see `resolve`)."""

    def resolve(self, key: str, other: str, point: str, /) -> tuple[str, ...]:
        """Return the label values of an ambiguous key for one flow.

        ``other`` is the other address of the flow, and ``point`` is the flow's capture point.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lookup:
    """Looks up a field of a flow in ``names``. Labels that look up the same field share one lookup.

    For `Table.relabel`, the table stores the fields ``key`` and ``context`` of each flow that has
    not expired. Each of these fields counts once towards the maximum number of columns.
    """

    names: Names
    key: FieldPath
    """The field to look up. If a flow lacks this field, the table looks up an empty string."""
    context: tuple[()] | tuple[FieldPath, FieldPath] = ()
    """If ``key`` is an address: the field with the flow's other address, and the field with its
    capture point. Otherwise empty.

    If ``names`` maps a value of ``key`` to None, the value is ambiguous. The table then calls
    ``names.resolve`` with this value and the values of the two fields. If ``context`` is empty, no
    value is ambiguous."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """A label. Columns are compared by identity: views with the same label share a column.

    The label's value is found in one of three ways:

    * With a ``lookup``, it is element ``index`` of the tuple that the lookup returns.
    * With a ``rewrite``, this mapper maps the value at ``path`` to the label's value. If the flow
      lacks the part that contains the field, the label is empty, and the mapper is not called.
    * With neither, it is the value at ``path``, or an empty string if the flow lacks the value.
    """

    name: str
    path: FieldPath
    """The field of the label, or the part of the flow that ``rewrite`` maps. With a lookup, the
    same as ``lookup.key``."""
    rewrite: LabelMapper | None = None
    reads: tuple[FieldPath, ...] = ()
    """If ``rewrite`` maps the whole flow or a part of it: the fields that ``rewrite`` needs."""
    lookup: Lookup | None = None
    index: int = 0
    """The index of the label's value in the tuple that ``lookup`` returns."""

    @property
    def fields(self) -> tuple[FieldPath, ...]:
        """All fields that the label needs, including ``path``, which can be empty."""
        context = self.lookup.context if self.lookup is not None else ()
        return (self.path, *self.reads, *context)

    @property
    def is_field(self) -> bool:
        """Whether the label shows the field at ``path`` unchanged."""
        return self.rewrite is None and self.lookup is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """The label that distinguishes the two series that a connection has in one family."""

    name: str = "direction"
    position: int
    """The index of this label among all labels of the view."""
    values: tuple[str, str] = (INITIATOR_TO_TARGET, TARGET_TO_INITIATOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A running total of a flow. A row adds up the increases of its flows."""

    paths: tuple[FieldPath, ...]
    """The field with the total since the flow started, or several such fields to add up."""
    last_update: tuple[FieldPath, ...] = ()
    """For each field in ``paths``, the field with the increase in the latest update. Empty if
    Skydive sends no such fields: the table then assumes an increase of 0."""
    optional: bool = False
    """Whether a flow can lack the counter. If all flows of a row lack it, the row has no series for
    the counter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A value of a flow. A row keeps the value of one of its flows.

    If the values of all flows are 0, the row has no value.
    """

    path: FieldPath
    keep: Literal["latest", "least", "most"] = "latest"
    """Which value the row keeps: that of the latest report, the minimum or the maximum."""


@dataclass(frozen=True, slots=True)
class FlowCount:
    """The current number of flows of a row."""


@dataclass(frozen=True, slots=True)
class NewFlows:
    """A counter of the new flows of a row.

    A flow is new in two cases:

    * The table gets the first report of the flow.
    * The flow began so late that it was certainly never counted before: see `Table.horizon_s`.

    No other flow is counted as new, even if it creates a row and adds its total.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """The distribution of a value over the flows of a row. Each flow is observed at most once."""

    observes: Literal["first", "total", "age"]
    """Which value of a flow is observed:

    * "first": the first value above 0 of the field in ``paths``
    * "total": the sum of the fields in ``paths``, in the closing report
    * "age": in the closing report, the time in ``Last`` minus the time in the field in ``paths``
    """
    paths: tuple[FieldPath, ...]
    """A single field, except for "total", which can add up several fields."""
    bounds: tuple[float, ...]
    """The upper bounds of all buckets except the last bucket, which has no bound. All bounds are
    finite, above 0 and in increasing order.

    Bounds are in the unit of the page. Observed values are in the unit of the flow: see
    `Family.decimals`."""

    @property
    def gauges(self) -> tuple[Gauge, ...]:
        """A gauge for each field in ``paths``: the table reads the observed values as gauges."""
        return tuple(Gauge(path=path) for path in self.paths)

    def limits(self, decimals: int) -> tuple[int, ...]:
        """Return the bounds in the unit of the flow, rounded down to integers."""
        return tuple(int(Decimal(repr(bound)).scaleb(decimals)) for bound in self.bounds)

    @property
    def bound_texts(self) -> tuple[str, ...]:
        return tuple(map(bound_text, self.bounds))


Value = Counter | Gauge | FlowCount | NewFlows | Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(MetricFamily):
    """A metric family that is computed from flows."""

    values: tuple[Value, ...]
    """The values of a row: two (initiator to target, then target to initiator) if both the metric
    and the view have two directions, otherwise one."""
    decimals: int = 0
    """Pages show the values of flows divided by ``10 ** decimals``, without rounding."""

    @property
    def series(self) -> int:
        """The maximum number of series that one row has in this family."""
        return sum(
            len(value.bounds) + 3 if isinstance(value, Histogram) else 1 for value in self.values
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A set of series with the same label names: one row for each tuple of label values."""

    columns: tuple[Column, ...]
    direction: Direction | None
    """The label of the direction; None if both directions are added up."""
    families: tuple[Family, ...]
    identifies_connection: bool = False
    """Whether every flow has ports, and the labels include both addresses and both ports.

    A row of such a view has the flows of a single conversation, except in rare cases: for example,
    if a TCP and a UDP flow have the same addresses and ports. Therefore a flow that creates a row
    adds its whole total, even if its first report was missed."""
    bytes: tuple[Counter, ...] = ()
    """The counter of bytes for each direction, or one counter for the sum. Empty if no family and
    no bound needs bytes."""
    packets: tuple[Counter, ...] = ()
    """The counter of packets for each direction, or one counter for the sum. Empty if no family and
    no bound needs packets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A requirement for flows: the table skips flows that do not meet it."""

    paths: tuple[FieldPath, ...]
    """The flow must have at least one of these parts."""
    reason: str
    """The reason under which the table counts the skipped flows."""
    unless_missing: FieldPath = ()
    """If set, the requirement does not apply to flows without this part."""

    @property
    def reads(self) -> tuple[FieldPath, ...]:
        return (*self.paths, self.unless_missing) if self.unless_missing else self.paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The fields that identify a conversation, and the field that identifies the capture point.

    A conversation is one connection in the network. Several capture points can report it.
    """

    protocol: FieldPath
    ends: tuple[tuple[FieldPath, FieldPath], tuple[FieldPath, FieldPath]]
    """The address field and the port field of each end. The order of the two ends is irrelevant."""
    point: FieldPath
    """The field that identifies the capture point."""

    @property
    def paths(self) -> tuple[FieldPath, ...]:
        return (self.protocol, *self.ends[0], *self.ends[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSelector:
    """Selects the conversations whose hash modulo ``count`` is ``index``.

    All versions of skyfast use the same hash function, so shards with different versions do not
    overlap.
    """

    conversation: Conversation
    index: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The fields of a flow that the table stores, and the families of the table's page."""

    views: tuple[View, ...]
    """The views; the rows of the first view are the connections. A connection expires with its last
    flow. Rows of other views expire after a timeout."""
    requirements: tuple[Requirement, ...]
    conversation: Conversation | None = None
    """If set, each conversation is counted at the first capture point that reports it, until this
    capture point stops reporting it."""
    overflow: str | None = None
    """If set, flows that do not fit into the table are added up in one connection, whose labels all
    have this string as their value."""
    shard: ShardSelector | None = None
    """If set, flows of other shards are skipped."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return tuple(dict.fromkeys(column for view in self.views for column in view.columns))

    @property
    def counters(self) -> tuple[Counter, ...]:
        return tuple(value for value in self._values() if isinstance(value, Counter))

    @property
    def gauges(self) -> tuple[Gauge, ...]:
        """The gauges of all views and of histograms that observe "first", without duplicates."""
        shown = [value for value in self._values() if isinstance(value, Gauge)]
        first = [
            gauge
            for value in self.histograms
            if value.observes == "first"
            for gauge in value.gauges
        ]
        return tuple(dict.fromkeys([*shown, *first]))

    @property
    def closing_gauges(self) -> tuple[Gauge, ...]:
        """The gauges that histograms need only from closing reports, without duplicates."""
        gauges = [
            gauge
            for value in self.histograms
            if value.observes != "first"
            for gauge in value.gauges
        ]
        return tuple(dict.fromkeys(gauges))

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        return tuple(value for value in self._values() if isinstance(value, Histogram))

    @property
    def new_flows(self) -> tuple[NewFlows, ...]:
        """A tuple with the counter of new flows; empty if no view has this counter."""
        return tuple(value for value in self._values() if isinstance(value, NewFlows))

    def _values(self) -> dict[Value, None]:
        shown = [
            value for view in self.views for family in view.families for value in family.values
        ]
        amounts = [value for view in self.views for value in (*view.bytes, *view.packets)]
        return dict.fromkeys([*shown, *amounts])
