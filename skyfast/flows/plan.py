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
    """Maps a value of the flow to a label value. A dict with ``__missing__`` can be a mapper.

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
    """Looks up the field ``key`` in ``names``. Labels of the same field share one lookup.

    If the flow lacks the field, the table looks up an empty string. If the result is None, the
    field's value is ambiguous. In this case, the table calls ``names.resolve`` with this value and
    the two fields in ``context``: the other address and the capture point. If ``context`` is empty,
    results are never None.

    For `Table.relabel`, the table stores the fields ``key`` and ``context`` of each flow that has
    not expired. Each of these fields counts once towards the maximum number of columns.
    """

    names: Names
    key: FieldPath
    context: tuple[()] | tuple[FieldPath, FieldPath] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """A label. Columns are compared by identity: views with the same label share a column.

    If ``lookup`` is set, the label's value is element ``index`` of the tuple that the lookup
    returns. In this case, ``path`` is ``lookup.key``, and there is no ``rewrite``.

    Otherwise, the label's value is the value at ``path``, or empty if the flow lacks it. If there
    is a ``rewrite``, it maps this value to the label's value. If ``rewrite`` maps a part of the
    flow or the whole flow, ``reads`` are the fields that ``rewrite`` needs.
    """

    name: str
    path: FieldPath
    rewrite: LabelMapper | None = None
    reads: tuple[FieldPath, ...] = ()
    lookup: Lookup | None = None
    index: int = 0

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
    """The label that distinguishes the two series of a connection in one family.

    ``position`` is the index at which the label is inserted among the columns of the view.
    """

    name: str = "direction"
    position: int
    values: tuple[str, str] = (INITIATOR_TO_TARGET, TARGET_TO_INITIATOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A running total of a flow. A row adds up the increases of its flows.

    ``paths`` has the field with the total since the flow started, or several fields to add up. For
    each total, ``last_update`` has a field with the increase in the latest update. If Skydive sends
    no such fields, ``last_update`` is empty, and an increase of 0 is assumed. If ``optional`` is
    true, flows can lack the counter. If all flows of a row lack the counter, the row has no series
    for it.
    """

    paths: tuple[FieldPath, ...]
    last_update: tuple[FieldPath, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A value of a flow. A row keeps the value of one of its flows.

    ``keep`` selects the value of the latest report, the minimum or the maximum. If the values of
    all flows are 0, the row has no value.
    """

    path: FieldPath
    keep: Literal["latest", "least", "most"] = "latest"


@dataclass(frozen=True, slots=True)
class FlowCount:
    """The number of flows that a row has now."""


@dataclass(frozen=True, slots=True)
class NewFlows:
    """A counter of the new flows of a row.

    A flow counts as new if the table gets the first report of the flow, or if the flow was
    certainly never counted before (see `Table.horizon_s`). Other flows do not count, even if they
    create a row and add their total.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """The distribution of a value over the flows of a row. Each flow is observed at most once.

    ``observes`` selects the value and the report:

    * "first": the first value above 0. ``paths`` contains one field.
    * "total": the sum of the fields ``paths`` in the closing report.
    * "age": the time from the field in ``paths`` to ``Last``, both in the closing report. ``paths``
      contains one field.

    ``bounds`` are the upper bounds of all buckets except the last bucket, which has no bound. The
    bounds are finite, above 0 and in increasing order. Bounds are in the unit of the page, and
    values are in the unit of the flow: see `Family.decimals`.
    """

    observes: Literal["first", "total", "age"]
    paths: tuple[FieldPath, ...]
    bounds: tuple[float, ...]

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
    """A metric family that is computed from flows.

    If the metric and the view have two directions, ``values`` has two elements: initiator to
    target, then target to initiator. In all other cases, there is one element. Pages show the
    numbers divided by ``10 ** decimals``, without rounding.
    """

    values: tuple[Value, ...]
    decimals: int = 0

    @property
    def series(self) -> int:
        """The maximum number of series of a row."""
        return sum(
            len(value.bounds) + 3 if isinstance(value, Histogram) else 1 for value in self.values
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A set of series with the same label names: one row for each tuple of label values.

    ``direction`` is None if both directions are added up. ``bytes`` and ``packets`` have a counter
    for each direction, or one counter for the sum. They are empty if no family and no bound needs
    them.

    ``identifies_connection`` means that every flow has ports, and that the labels include both
    addresses and both ports. In such a view, flows of different connections rarely share a row.
    An exception is a TCP and a UDP flow with the same addresses and ports. So if a flow creates a
    row, its total can be counted, even if its first report was missed.
    """

    columns: tuple[Column, ...]
    direction: Direction | None
    families: tuple[Family, ...]
    identifies_connection: bool = False
    bytes: tuple[Counter, ...] = ()
    packets: tuple[Counter, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A flow must have at least one of the parts ``paths``; otherwise, the table skips the flow.

    ``reason`` is the reason under which the table counts skipped flows. If ``unless_missing`` is
    set, the requirement does not apply to flows without this part.
    """

    paths: tuple[FieldPath, ...]
    reason: str
    unless_missing: FieldPath = ()

    @property
    def reads(self) -> tuple[FieldPath, ...]:
        return (*self.paths, self.unless_missing) if self.unless_missing else self.paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The fields that identify a conversation, and the field that identifies the capture point.

    A conversation is one connection in the network, which several capture points can report.
    ``ends`` has the address field and the port field of each end; the order of the two ends is
    irrelevant.
    """

    protocol: FieldPath
    ends: tuple[tuple[FieldPath, FieldPath], tuple[FieldPath, FieldPath]]
    point: FieldPath

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
    """The fields of a flow that the table stores, and the families of the table's page.

    A row of the first view (a connection) expires with its last flow. Rows of other views expire
    after a timeout.

    * If ``conversation`` is set, each conversation is counted at the first capture point that
      reports it, until this point stops reporting it.
    * If ``overflow`` is set, flows that do not fit into the table are added up in one connection.
      The string in ``overflow`` is the value of all labels of this connection.
    * If ``shard`` is set, flows of other shards are skipped.
    """

    views: tuple[View, ...]
    requirements: tuple[Requirement, ...]
    conversation: Conversation | None = None
    overflow: str | None = None
    shard: ShardSelector | None = None

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
        """The values that histograms need only from closing reports, without duplicates."""
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
        """The counter of new flows; empty if no view has it."""
        return tuple(value for value in self._values() if isinstance(value, NewFlows))

    def _values(self) -> dict[Value, None]:
        shown = [
            value for view in self.views for family in view.families for value in family.values
        ]
        amounts = [value for view in self.views for value in (*view.bytes, *view.packets)]
        return dict.fromkeys([*shown, *amounts])
