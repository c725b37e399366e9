"""The plan: which fields of a flow become labels and values, and how a page shows them.

The table is built from a plan and contains no names of labels or metrics; the decoder is built from
the paths in a plan (`skyfast.flows.fields`). A plan is immutable data, created by
`skyfast.flows.planner` from the labels and metrics of `skyfast.flows.catalog`.
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
    """Maps a value of the flow to a label value; for example, a dict with ``__missing__``.

    The table calls the mapper once for each flow that is not in the table yet. The mapper must
    accept every value: an exception aborts the update of the whole message.
    """

    def __getitem__(self, value: Any, /) -> str | int: ...


class Names(Protocol):
    """Maps a key to the values of several labels; the results can change.

    For each flow that is not in the table yet, the table looks up one key per `Lookup`. The mapping
    must accept every key: an exception aborts the update of the whole message. Lookups are fastest
    in a dict or in a subclass of dict with ``__missing__``. All tuples have the same length.
    """

    def __getitem__(self, key: str, /) -> tuple[str, ...] | None:
        """Return the label values, or None if they also depend on the flow: then use `resolve`."""

    def resolve(self, key: str, other: str, point: str, /) -> tuple[str, ...]:
        """Return the label values of an ambiguous key.

        ``other`` is the other address of the flow, and ``point`` is the flow's capture point.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lookup:
    """Looks up a field in ``names``, once for all labels of that field.

    The key is the string at ``key``, or empty if the part with the string is missing. If the result
    is None, the key is ambiguous: then the table calls ``names.resolve`` with the key and the two
    values at ``context`` (the other address and the capture point). If ``context`` is empty,
    results are never None.

    The table stores the key and the context of each live flow for `Table.relabel`. A field counts
    once against the maximum number of columns, however many labels and lookups use it.
    """

    names: Names
    key: FieldPath
    context: tuple[()] | tuple[FieldPath, FieldPath] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """A label. Views with the same label share one object. A column is equal only to itself.

    If ``lookup`` is set, the label's value is element ``index`` of the tuple that the lookup
    returns. In this case, ``path`` is ``lookup.key``, and there is no ``rewrite``. Columns that
    look up the same field share one lookup.

    If there is no ``lookup``, the label's value is the value at ``path``, mapped by ``rewrite`` if
    it is set. If the part with the value is missing, the label is empty. If ``rewrite`` maps a part
    or the whole flow, ``reads`` are the fields that ``rewrite`` needs.
    """

    name: str
    path: FieldPath
    rewrite: LabelMapper | None = None
    reads: tuple[FieldPath, ...] = ()
    lookup: Lookup | None = None
    index: int = 0

    @property
    def fields(self) -> tuple[FieldPath, ...]:
        """All fields of the flow that the label needs, and ``path``, which can be empty."""
        context = self.lookup.context if self.lookup is not None else ()
        return (self.path, *self.reads, *context)

    @property
    def is_field(self) -> bool:
        """Whether the label has the value at ``path``, unchanged."""
        return self.rewrite is None and self.lookup is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """The label that distinguishes the two series of a connection in one family.

    ``position`` is the index at which the label is inserted among the columns of the view.
    ``values`` are the label's values; the value of the initiator's direction is first.
    """

    name: str = "direction"
    position: int
    values: tuple[str, str] = (INITIATOR_TO_TARGET, TARGET_TO_INITIATOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A running total of a flow. A connection adds up the increases of its flows.

    ``paths`` has the field with the total since the flow started, or several fields to add up.
    ``last_update`` has the fields with the part of each total that belongs to the latest update. If
    Skydive does not send these parts, ``last_update`` is empty, and 0 is assumed. If ``optional``
    is true, flows can lack the counter. If all flows of a connection lack the counter, the
    connection has no series for the counter.
    """

    paths: tuple[FieldPath, ...]
    last_update: tuple[FieldPath, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A value of a flow. A connection keeps the value of one of its flows.

    While the values of all its flows are 0, the connection keeps no value.

    ``keep`` selects the value of the latest report, the minimum or the maximum.
    """

    path: FieldPath
    keep: Literal["latest", "least", "most"] = "latest"


@dataclass(frozen=True, slots=True)
class FlowCount:
    """The number of flows that a connection has now."""


@dataclass(frozen=True, slots=True)
class NewFlows:
    """A counter of the flows that began on a connection.

    A flow counts if its first report arrives, or if the flow certainly was not counted before. If
    a flow whose first report was missed creates a connection, the total of the flow can be counted,
    but the flow does not count as new.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """The distribution of a value over the flows of a row. Each flow is observed at most once.

    ``observes`` selects the value and the report:

    * "first": the first value above 0 of the only field in ``paths``.
    * "total": the sum of ``paths`` in the closing report.
    * "age": the time from the only field in ``paths`` to ``Last``, in the closing report.

    ``bounds`` are the upper bounds of all buckets except the last one, which has no bound. They
    are finite, above 0 and in increasing order. Bounds are in the unit of the page, and values are
    in the unit of the flow: see `Family.decimals`.
    """

    observes: Literal["first", "total", "age"]
    paths: tuple[FieldPath, ...]
    bounds: tuple[float, ...]

    @property
    def gauges(self) -> tuple[Gauge, ...]:
        """The fields in ``paths`` as gauges, the form in which the table reads them."""
        return tuple(Gauge(path=path) for path in self.paths)

    def limits(self, decimals: int) -> tuple[int, ...]:
        """For each bound, return the highest integer up to the bound, in the unit of the flow."""
        return tuple(int(Decimal(repr(bound)).scaleb(decimals)) for bound in self.bounds)

    @property
    def bound_texts(self) -> tuple[str, ...]:
        """The bounds as values of the label ``le``."""
        return tuple(map(bound_text, self.bounds))


Value = Counter | Gauge | FlowCount | NewFlows | Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(MetricFamily):
    """A metric family of the flows.

    ``values`` has two values if the metric and the view have two directions: initiator to target,
    then target to initiator. In all other cases, ``values`` has one value. Pages
    show values divided by ``10 ** decimals``, exactly.
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

    ``identifies_connection`` means that the labels include both addresses and both ports. In such a
    view, the flow that creates a row is the only flow of the row so far. So the total of this flow
    can be counted, even if its first report was missed. ``direction`` is None if both directions
    are added up.

    ``bytes`` and ``packets`` are the counters of these amounts: one for each direction, or one for
    the sum of both. Either is empty if no family and no bound uses its counters.
    """

    columns: tuple[Column, ...]
    direction: Direction | None
    families: tuple[Family, ...]
    identifies_connection: bool = False
    bytes: tuple[Counter, ...] = ()
    packets: tuple[Counter, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A flow that has none of the parts ``paths`` is skipped with ``reason``.

    If ``or_without`` is not empty, flows without the part ``or_without`` are exempt.
    """

    paths: tuple[FieldPath, ...]
    reason: str
    or_without: FieldPath = ()

    @property
    def reads(self) -> tuple[FieldPath, ...]:
        """All parts that the requirement tests."""
        return (*self.paths, self.or_without) if self.or_without else self.paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The fields that identify a conversation, and the field that identifies the capture point.

    A conversation is one connection in the network, which several capture points can report. Its
    identifying fields are the same at every capture point. ``ends`` are the two sides, each with
    the paths of address and port; the order of the sides is irrelevant.
    """

    protocol: FieldPath
    ends: tuple[tuple[FieldPath, FieldPath], tuple[FieldPath, FieldPath]]
    point: FieldPath

    @property
    def paths(self) -> tuple[FieldPath, ...]:
        """The identifying fields: protocol, then address and port of either end."""
        return (self.protocol, *self.ends[0], *self.ends[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Selects the conversations whose hash modulo ``count`` is ``index``.

    The hash is the same in every process and version, so that shares are disjoint.
    """

    conversation: Conversation
    index: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The fields of a flow that the table stores, and the families of its page.

    A row of the first view (a connection) expires with its last flow. Rows of other views have
    timeouts.

    * If ``conversation`` is set, each conversation is counted at one capture point: the first point
      that reports the conversation, until this point stops reporting it.
    * If ``overflow`` is set, flows that do not fit into the table are added up in one connection.
      The string in ``overflow`` is the value of all labels of this connection.
    * If ``share`` is set, flows of other shares are skipped.
    """

    views: tuple[View, ...]
    requirements: tuple[Requirement, ...]
    conversation: Conversation | None = None
    overflow: str | None = None
    share: Share | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of all views, without duplicates."""
        return tuple(dict.fromkeys(column for view in self.views for column in view.columns))

    @property
    def counters(self) -> tuple[Counter, ...]:
        """The counters of all views, without duplicates."""
        return tuple(value for value in self._values() if isinstance(value, Counter))

    @property
    def gauges(self) -> tuple[Gauge, ...]:
        """The gauges of all views and the first values of histograms, without duplicates."""
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
        """The values that histograms need from closing reports only, without duplicates."""
        gauges = [
            gauge
            for value in self.histograms
            if value.observes != "first"
            for gauge in value.gauges
        ]
        return tuple(dict.fromkeys(gauges))

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        """The histograms of all views, without duplicates."""
        return tuple(value for value in self._values() if isinstance(value, Histogram))

    @property
    def new_flows(self) -> tuple[NewFlows, ...]:
        """The counter of new flows, or nothing if no view has it."""
        return tuple(value for value in self._values() if isinstance(value, NewFlows))

    def _values(self) -> dict[Value, None]:
        shown = [
            value for view in self.views for family in view.families for value in family.values
        ]
        amounts = [value for view in self.views for value in (*view.bytes, *view.packets)]
        return dict.fromkeys([*shown, *amounts])
