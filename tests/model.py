"""The rules of the table in plain Python: slow, simple, and independent of the core.

Tests apply the same flows to this model and to skyfast, and compare the results. Each change of the
model needs a worked example in ``test_rules.py``.

docs/architecture.md describes most rules, and explains terms such as *horizon*. This docstring
lists the other rules. Times are in seconds. A flow is a decoded JSON object of a message.

Terms
-----

Rows:

* A *row* is a connection or an overflow connection of a view.
* The table *has overflow rows* if the option ``overflow`` is "other".
* The labels of a view *identify* a conversation if both addresses and both ports are labels,
  unchanged by rewrites. This is never the case with ``include_icmp`` or ``include_other``.
* *Saved counters* are the counters of a removed row of the first view.
* A view is *linked* (to the first view) if all its labels are labels of the first view.

Flows:

* An *unknown* flow is not stored in the table. All other flows are *live* or *dormant*.
* A flow has *ended* if its closing report (``FinishType`` 1) has arrived. Any other report with a
  higher ``Last`` reopens the flow. If the flow is dormant, an older report that is not late also
  reopens it.
* An unknown flow is *new* if the report that arrives is the first report of the flow, or if the
  flow began after the horizon.

Reports:

* *Objects* are JSON objects in a report, such as ``Network`` or ``TCPMetric``.
* *Deltas* are the increases that a report adds to the counters of rows.
* The *last update* is ``LastUpdateMetric``: the increases since the previous report.
* The *lifecycle times* are ``Start``, ``LastUpdateMetric.Start`` and ``LastUpdateMetric.Last``.
* A report is *late* if neither its ``Last`` nor any of its counters exceeds the stored value.
* A *repeat* is a closing report that repeats the last update of the previous report. In a repeat,
  ``LastUpdateMetric.Last`` is out of range, or differs from ``Last``.

Reports
-------

* The table checks a report in three steps. First, it skips reports with invalid strings, without a
  UUID or a required object, or with an excluded tag. Then it applies drop and keep rules. Finally,
  it checks the range of numbers and the length of strings.
* A dropped flow is counted under the name of the rule, and not as skipped.
* The table ignores values that it does not export. For example, a table without counters of bytes
  accepts a negative number of bytes.
* If a counter is the sum of both directions, only sums are compared. For example, 100 and 200 bytes
  are followed by 90 and 220 bytes: the flow does not restart, but adds 10 bytes.
* If a report lacks the object of a counter, this counter does not change. If the flow also restarts
  in this report, the table forgets the flow's total of this counter. For example, a counter from
  ``TCPMetric`` is 3. The flow restarts in a report without ``TCPMetric``, and its next report has
  the value 1. The counter is then 4.
* A computed label is validated after the computation. For example, port -1 is valid if it becomes
  "other". The key of a lookup is validated, too, because the table stores the key.

Omitted values
--------------

* Optional fields are ``FinishType``, the lifecycle times, and all fields of gauges and histograms.
  Fields of counters are optional if they are in an object other than ``Metric``.
* If an optional field is out of range, it is omitted, and counted once per report. If the report is
  skipped, its omitted fields are counted only if the reason is ``late``, ``ended`` or
  ``table_full``.
* If a counter is the sum of two fields, the first invalid field is counted. If only the sum is out
  of range, the second field is counted.
* Invalid lifecycle times are counted in closing reports of unknown flows. In other reports of
  unknown flows, they are counted if the deltas depend on them. They are also counted if a view
  shows new flows or first values. In reports of dormant flows, an invalid time is only counted if
  it is ``LastUpdateMetric.Last`` of a repeat.
* If an unknown flow has an invalid ``FinishType``, its report may be a repeat. Therefore the report
  adds nothing to existing rows, and the flow is not new.
* An invalid ``Start`` or ``LastUpdateMetric.Start`` has the same effect. There are two exceptions:
  repeats, and reports without ``LastUpdateMetric``.

Views
-----

* Flows that share a row of the first view also share a row of each linked view, or none of them has
  a row there. The first of these flows determines the row.
* If a flow becomes live while a view other than the first has no space for its row, the flow
  belongs to the overflow row of this view. If the table has no overflow rows, the flow has no row
  in this view. This does not change while the flow is live, even if the view has space again.
* Overflow rows do not count towards the limits, but are included in the number of rows. They never
  expire, and have no gauges. If a row already has the label values of the overflow row, it becomes
  the overflow row.
* If the table has overflow rows, a report that is skipped as ``table_full`` still adds its deltas.
  In the first view, the overflow row gets the deltas. In each other view, the row with the
  flow's labels gets the deltas, or the overflow row if the view is full. The row that gets the
  deltas also updates its gauges and its deadline, but not its number of flows.
* An unknown flow that creates a row adds its total if the labels identify its conversation. This
  rule does not apply if counters are saved for the row, or if any view has an overflow row: the
  saved counters or the overflow row may already contain a part of the total.

Names
-----

* When names change, flows move to the rows of their new labels. A *slice* is a group of flows that
  move in one step. First, all flows of the slice leave their old rows. Then they join their new
  rows. Therefore the order of the flows has no effect.
* The caller of `Model.relabel` chooses the flows of a slice. Between two slices, the table and the
  names can change. A slice uses the current names, as do flows that become live.
* Flows of a connection can be in different slices. For example, a connection with 300 bytes has two
  flows, and its name changes from "a" to "b". The first slice moves one flow: "b" starts at zero,
  and "a" keeps 300 bytes. Then the first flow adds 1 byte to "b", and the second flow adds 2 bytes
  to "a". The second slice moves the second flow: "b" keeps 1 byte, and "a" is removed with 302
  bytes.
* A slice ignores the limits. It extends the deadline of the new row as if this row had received the
  latest report of the flow.
* If the flow has a total of a counter, the new row gets a series for this counter. A series that
  the row did not have yet starts at zero.

Dormant flows
-------------

* A flow is live until `Model.expire` makes it dormant. Before that, its deadline may already have
  passed, so that no page shows its row.
* For a dormant flow, the table stores the time at which the flow became dormant, but not the time
  of its last report. It assumes that the last report came one timeout earlier.
* A report can leave its flow dormant: a late closing report, a repeat, or a report that is skipped
  as ``table_full``. The flow then counts as a flow that has just become dormant, unless it has a
  claim (see below). Other late reports change nothing.
* If there are too many flows, the table first forgets ended flows that have been dormant for at
  least 15 s. Then it forgets flows that have not ended, and finally the other ended flows. In each
  of these groups, the flow that became dormant first is forgotten first.
* The order of flows that became dormant in the same second is undefined. Therefore `Model.expire`
  has the argument ``order``.
* When `Model.expire` removes a row of the first view, it saves the counters of the row in three
  cases: they differ from the totals of the last flow; the view counts new flows, and their number
  is not 1; the labels do not identify the conversation. If ``flow_memory_s`` is 0, counters are
  never saved.
* Saved counters count as one flow towards ``max_flows``. They are forgotten like a flow that has
  not ended, and that became dormant just after the last flow of the row.
* A repeat does not create a row of the first view. It adds its deltas to an existing row or to
  saved counters. If neither exists, and the labels do not identify the conversation, the deltas
  become saved counters.

New flows
---------

* A new flow is counted in each of its rows, even in an overflow row.
* If a dormant flow creates a row of the first view, and this row starts with the totals of the
  flow, the row counts one new flow. The removed row also counted one new flow: otherwise its
  counters would have been saved.

Deduplication
-------------

These rules apply if the option ``deduplicate`` is "first".

* A capture point *owns* a conversation while its flow of this conversation is live, or has a claim
  (see below). Reports of other capture points are then *duplicates*, and are skipped. Their omitted
  values and their ``FinishType`` are not counted.
* If another capture point takes over the conversation of a dormant flow, the flow counts as
  unknown. The reason: the other capture point may have counted the same packets.
* If the report of a dormant flow is a duplicate, the flow is forgotten.
* If the report of a dormant flow is a repeat, or is added to the overflow row, the flow adds deltas
  but stays dormant. The flow then *claims* its conversation: no other capture point can count the
  same packets. Only these reports start or extend a claim.
* A claim lasts for one timeout, the time for which a live flow without reports owns its
  conversation. For example, the timeout is 75 s. At 100 s, a repeat from node-1 adds a packet from
  a lost report, and starts a claim. Reports from node-2 may contain the same packet until 175 s,
  and are duplicates until then.
* A flow with a claim counts as live towards ``max_flows``, and is not evicted.
* A claim also ends when another flow of the same capture point claims the conversation. At the end
  of a claim, the flow counts as a flow that has just become dormant.
* If a claim ends after one timeout, an ended flow is forgotten immediately.

Histograms
----------

* The first value of a dormant flow is observed in any report that is not late.
* A late closing report of a dormant flow is not observed if it has an invalid label. It is also not
  observed if another capture point has taken over the conversation.
* A total with an invalid field is not observed. An age is the time from another field to ``Last``.
  It is not observed if it is negative, or if one of the two fields is 0 or invalid.
* A report that is skipped as ``table_full`` is observed only if the table has overflow rows. If the
  table does not store the flow of this report, the same closing report is observed again when it is
  repeated.
* Reports that are skipped for any reason other than ``late``, ``ended`` and ``table_full`` are not
  observed.
* If a view has no row for a report, the view does not observe the report.

Bounds
------

* Bytes and packets of a row are sums of both directions. For example, with ``min_bytes`` 1000, a
  row with 400 and 599 bytes is hidden. After one more byte in the second direction, the page shows
  all series of the row, with 400 and 600 bytes.
* Otherwise, a hidden row is like a shown row. For example, it counts towards the limits, and
  expires.
* Bounds can change at any time.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

JSON = Mapping[str, Any]
Path = tuple[str, ...]

COUNTERS = ("ABBytes", "BABytes", "ABPackets", "BAPackets")
MAX_NUMBER = 2**62
MAX_SUM = 2**63 - 1
MAX_TEXT_BYTES = 1024
TIMEOUT_S = 75.0
VIEW_TIMEOUT_S = 3600.0
FLOW_MEMORY_S = 1290.0
FLOW_UPDATE_S = 60.0
MAX_REPORT_DELAY_S = 15.0
"""The maximum time from an agent's update to the arrival of the reports in this update."""
LIFECYCLE_TIMES = (("Start",), ("LastUpdateMetric", "Start"), ("LastUpdateMetric", "Last"))
CLOSING = 1
FINISHES = {CLOSING: "timeout", 2: "fin", 3: "rst"}
OTHER = "other"


# Options of a configuration


class Rewrite(Protocol):
    """Maps the value at a label's path (or the flow, if the path is empty) to a label value."""

    def __getitem__(self, value: Any, /) -> str | int: ...


class Names(dict[str, tuple[str, ...] | None]):
    """Maps addresses or capture points to tuples of ``count`` names. The mapping can change.

    An unknown key has empty names. If the value of a key is None, the key is ambiguous: several
    nodes have this address. ``contexts`` has the names of ambiguous keys in flows. It maps three
    values of a flow to names: the key, the flow's other address, and the capture point.
    """

    def __init__(
        self, known: Mapping[str, tuple[str, ...] | None] | None = None, *, count: int = 1
    ) -> None:
        super().__init__(known or {})
        self.count = count
        self.contexts: dict[tuple[str, str, str], tuple[str, ...]] = {}

    def __missing__(self, key: str) -> tuple[str, ...]:
        return ("",) * self.count

    def clear(self) -> None:
        super().clear()
        self.contexts.clear()

    def resolve(self, key: str, other: str, point: str) -> tuple[str, ...]:
        return self.contexts.get((key, other, point), ("",) * self.count)


@dataclass(frozen=True, eq=False)
class Lookup:
    """Looks up the value of the field ``key`` in ``names``. Labels can share a lookup.

    If keys can be ambiguous, ``context`` has the paths of the other address and of the capture
    point. If the object with the field ``key`` is missing, the empty string is looked up.
    """

    names: Names
    key: Path
    context: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.key, *self.context)

    def find(self, values: Mapping[Path, str]) -> tuple[str, ...]:
        """Return the names for a flow. ``values`` has the values of the flow, by path."""
        key, *context = (values[path] for path in self.paths)
        found = self.names[key]
        return self.names.resolve(key, *context) if found is None else found


@dataclass(frozen=True, eq=False)
class Label:
    """A label: its name, and the path of its value in a flow. An empty path means the whole flow.

    A missing value is 0 if ``number`` is true, otherwise "". If ``rewrite`` maps the whole flow,
    ``reads`` has the fields that ``rewrite`` reads. With a ``lookup``, the label value is item
    ``index`` of the names that the lookup finds. Labels are compared by identity.
    """

    name: str
    path: Path
    number: bool = False
    rewrite: Rewrite | None = None
    reads: tuple[Path, ...] = ()
    lookup: Lookup | None = None
    index: int = 0


@dataclass(frozen=True)
class Family:
    """A metric: the paths of its values from initiator to target and from target to initiator.

    An empty path stands for the number of new flows if ``type`` is "counter", otherwise for the
    number of flows. A gauge shows one of the values of its flows: ``keep`` is "latest", "least" or
    "most". A page shows values divided by ten to the power of ``decimals``.

    A histogram ``observes`` the "first" value above 0 of a flow, or the "total" or "age" in a
    closing report. ``buckets`` are the upper bounds as on the page, without "+Inf".
    """

    name: str
    type: str
    forward: Path
    backward: Path | None = None
    keep: str = "latest"
    decimals: int = 0
    observes: str = ""
    buckets: tuple[str, ...] = ()


ENDPOINTS = {("Network", "A"), ("Network", "B"), ("Transport", "A"), ("Transport", "B")}
DIRECTION = Label("direction", ())
LABELS = (
    Label("initiator_ip", ("Network", "A")),
    Label("target_ip", ("Network", "B")),
    Label("initiator_port", ("Transport", "A"), number=True),
    Label("target_port", ("Transport", "B"), number=True),
    DIRECTION,
    Label("node_tid", ("NodeTID",)),
    Label("protocol", ("Transport", "Protocol")),
)
DIRECTIONS = ("initiator_to_target", "target_to_initiator")

BYTES = "skydive_network_connection_total_bytes"
PACKETS = "skydive_network_connection_total_packets"
RTT = "skydive_network_connection_rtt_nanoseconds"
FAMILIES = (
    Family(BYTES, "counter", ("Metric", "ABBytes"), ("Metric", "BABytes")),
    Family(PACKETS, "counter", ("Metric", "ABPackets"), ("Metric", "BAPackets")),
    Family(RTT, "gauge", ("Metric", "RTT")),
)


@dataclass(frozen=True)
class View:
    """A set of rows with the same label names.


    Without the label `DIRECTION`, counters and histograms add up both directions. In views other
    than the first, rows expire ``timeout_s`` after their last report. No row may expire before its
    flows.

    The bounds are ``min_bytes`` and ``min_packets``; 0 means no bound. ``amounts`` are keys of
    `AMOUNTS`: counters that exist even if no family shows them. A view with bounds must count
    "bytes". A view with ``min_packets`` must also count "packets".
    """

    labels: Sequence[Label] = LABELS
    families: Sequence[Family] = FAMILIES
    timeout_s: float = VIEW_TIMEOUT_S
    amounts: Sequence[str] = ()
    min_bytes: int = 0
    min_packets: int = 0


AMOUNTS = {
    "bytes": (("Metric", "ABBytes"), ("Metric", "BABytes")),
    "packets": (("Metric", "ABPackets"), ("Metric", "BAPackets")),
}
"""The counters that are compared with bounds: for each name, the paths of both directions."""

Bounds = tuple[int, int]
"""The minimum numbers of bytes and of packets. 0 disables a bound."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The options of a table. Rules are dicts, as in a configuration file."""

    views: Sequence[View] = (View(),)
    max_connections: int = 1_000_000
    max_flows: int = 4_000_000
    timeout_s: float = TIMEOUT_S
    flow_memory_s: float = FLOW_MEMORY_S
    cluster_net_masks: Sequence[str] = ()
    excluded_tags: Sequence[str] = ()
    drop: Sequence[JSON] = ()
    keep: Sequence[JSON] = ()
    include_icmp: bool = False
    include_other: bool = False
    deduplicate: str = "none"
    overflow: str = "drop"


def one_view(
    *, labels: Sequence[Label] = LABELS, families: Sequence[Family] = FAMILIES, **others: Any
) -> Spec:
    return Spec(views=(View(labels, families),), **others)


def looked_up(name: str, key: Path, names: Names, context: tuple[Path, ...] = ()) -> Label:
    """Return a label whose value is the first name for the field ``key``, with its own lookup."""
    return Label(name, key, lookup=Lookup(names, key, context))


@dataclass(frozen=True)
class Mask:
    """Maps an address to its network. A prefix length of None leaves addresses unchanged."""

    ipv4: int | None = None
    ipv6: int | None = None

    def __getitem__(self, text: str) -> str:
        address = to_address(text)
        if address is None:
            return text
        bits = self.ipv4 if address.version == 4 else self.ipv6
        return text if bits is None else str(ipaddress.ip_network((address, bits), strict=False))


@dataclass(frozen=True)
class PortGrouping:
    """Maps ports to "other", except ports up to ``above`` and the ports in ``keep``."""

    above: int = -1
    keep: frozenset[int] = frozenset()

    def __getitem__(self, port: int) -> int | str:
        return port if 0 <= port <= self.above or port in self.keep else OTHER


@dataclass(frozen=True)
class Tags:
    """Maps a flow to its tag, such as "egress". ``masks`` are the networks of the cluster."""

    masks: Sequence[str]

    def __getitem__(self, flow: JSON) -> str:
        network = flow.get("Network") or {}
        a, b = (to_address(network.get(end, "")) for end in "AB")
        if a is None or b is None:
            return "other"
        if self._is_inside(a):
            return "internal" if self._is_inside(b) else "egress"
        return "ingress" if self._is_inside(b) else "other"

    def _is_inside(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in ipaddress.ip_network(mask) for mask in self.masks)


@dataclass(frozen=True)
class Protocols:
    """Maps a flow to its protocol: TCP, UDP, SCTP, ICMPV4 or ICMPV6.

    For all other protocols, the result is the flow's last layer if ``other`` is true, otherwise "".
    """

    other: bool = False

    def __getitem__(self, flow: JSON) -> str:
        if flow.get("Transport") is not None:
            return str(flow["Transport"].get("Protocol", ""))
        if flow.get("ICMP") is None:
            return str(flow.get("LayersPath", "")).split("/")[-1] if self.other else ""
        return "ICMPV6" if flow["Network"].get("Protocol") == "IPV6" else "ICMPV4"


PROTOCOL_OR_ICMP = Label(
    "protocol",
    (),
    rewrite=Protocols(),
    reads=(("Transport", "Protocol"), ("Network", "Protocol"), ("ICMP",)),
)


PROTOCOL_OR_OTHER = Label(
    "protocol",
    (),
    rewrite=Protocols(other=True),
    reads=(("Transport", "Protocol"), ("Network", "Protocol"), ("ICMP",), ("LayersPath",)),
)


def tag_label(masks: Sequence[str]) -> Label:
    return Label("tag", (), rewrite=Tags(masks), reads=(("Network", "A"), ("Network", "B")))


CONVERSATION = (
    ("Transport", "Protocol"),
    ("Network", "A"),
    ("Transport", "A"),
    ("Network", "B"),
    ("Transport", "B"),
    ("NodeTID",),
)
"""The fields that identify a conversation and its capture point."""

KNOWN_LABELS = {
    label.name: label
    for label in (
        *LABELS,
        Label("application", ("Application",)),
        Label("layers_path", ("LayersPath",)),
        Label("link_a", ("Link", "A")),
        Label("link_b", ("Link", "B")),
        Label("vlan", ("Link", "ID"), number=True),
        Label("capture_id", ("CaptureID",)),
        Label("tracking_id", ("TrackingID",)),
        Label("l3_tracking_id", ("L3TrackingID",)),
        Label("parent_uuid", ("ParentUUID",)),
        Label("icmp_type", ("ICMP", "Type")),
    )
}
"""The labels that are fields of a flow, by name."""


# Contents of the table


@dataclass(frozen=True)
class Total:
    """A counter: the total in a field of a flow, or the sum of several such totals."""

    paths: tuple[Path, ...]

    @property
    def is_optional(self) -> bool:
        return any(len(path) > 1 and path[0] != "Metric" for path in self.paths)

    def of(self, flow: JSON) -> int | None:
        """Return the total in a report; None if an object is missing or a value is omitted."""
        if self.is_optional and first_invalid(flow, self.paths):
            return None
        numbers = [value_at(flow, path, 0) for path in self.paths]
        return None if "" in numbers else sum(numbers)

    @property
    def last_update_paths(self) -> tuple[Path, ...]:
        """The paths of the last update of the counter; empty if reports do not contain it."""
        if any(path[0] != "Metric" for path in self.paths):
            return ()
        return tuple(("LastUpdateMetric", path[1]) for path in self.paths)

    def last_update(self, flow: JSON) -> int:
        """Return the increase in the last update; 0 if it is missing or invalid."""
        if first_invalid(flow, self.last_update_paths):
            return 0
        return sum(value_at(flow, path, 0) for path in self.last_update_paths)


NEW_FLOWS = Total(())
"""The counter of new flows. All rows have this counter, even if no page shows it."""


@dataclass(frozen=True)
class Gauge:
    """A gauge: the latest, the least or the greatest nonzero value of the flows of a row."""

    path: Path
    keep: str

    def merge(self, old: int, new: int) -> int:
        if not old or not new or self.keep == "latest":
            return new or old
        return min(old, new) if self.keep == "least" else max(old, new)


@dataclass(frozen=True)
class Distribution:
    """The values that a histogram observes (see `Family`)."""

    paths: tuple[Path, ...]
    observes: str

    def of(self, flow: JSON) -> int | None:
        """Return the value in a report; None if the report has no valid value."""
        numbers = [value_at(flow, path, 0) for path in self.paths]
        if first_invalid(flow, self.paths):
            return None
        if self.observes == "total":
            return sum(numbers)
        if self.observes == "first":
            return numbers[0] or None
        last = flow.get("Last", 0)
        return last - numbers[0] if 0 < numbers[0] <= last else None


Deltas = Mapping[Total, int]
Values = tuple[str, ...]
Ranked = tuple[int, Values, tuple[int | None, ...], bool]
Group = tuple[int | None, tuple[int | None, ...], int]


@dataclass(eq=False)
class Row:
    """The series of a view that have the same label values, apart from the direction.

    A row has no series for a counter or gauge that its flows never had. ``start_ms`` is the start
    time of the counters, in Unix milliseconds: 0 if it is unknown, None before the first report.
    """

    view: View
    values: Values
    totals: dict[Total, int] = field(default_factory=dict)
    gauges: dict[Gauge, int] = field(default_factory=dict)
    observed: dict[Distribution, list[int]] = field(default_factory=dict)
    flows: list[Flow] = field(default_factory=list)
    deadline_s: int = 0
    is_overflow: bool = False
    start_ms: int | None = None
    linked_rows: dict[int, Row | None] = field(default_factory=dict)
    """The rows in linked views, by number of the view; empty for rows of other views."""

    def add(self, deltas: Deltas) -> None:
        self.totals = added(self.totals, deltas)

    def set_start(self, start_ms: int) -> None:
        """Set the start time, unless the row already has one."""
        if self.start_ms is None:
            self.start_ms = start_ms

    def set_gauges(self, gauges: Mapping[Gauge, int]) -> None:
        for gauge, value in gauges.items():
            self.gauges[gauge] = gauge.merge(self.gauges.get(gauge, 0), value)

    def observe(self, flow: JSON, events: Collection[str]) -> bool:
        """Observe a report in the histograms that observe one of the ``events`` (see `event_of`).

        Return whether the row has such histograms.
        """
        distributions = [
            value
            for value in dict.fromkeys(values_of(self.view))
            if isinstance(value, Distribution) and event_of(value) in events
        ]
        for distribution in distributions:
            value = distribution.of(flow)
            if value is not None:
                self.observed.setdefault(distribution, []).append(value)
        return bool(distributions)

    def extend_deadline(self, reported_s: float, timeout_s: float) -> None:
        self.deadline_s = max(self.deadline_s, math.ceil(reported_s + timeout_s))


def event_of(distribution: Distribution) -> str:
    """Return "first" if a histogram observes the first value above 0, otherwise "closing"."""
    return "first" if distribution.observes == "first" else "closing"


Connection = Row
"""A row of the first view."""


@dataclass(eq=False)
class Flow:
    """A flow of Skydive: a conversation as seen by one capture point.

    ``rows`` has an entry for each view: a row, or None if the view was full. ``keys`` has the
    values with which names are looked up, by path. ``ends`` identifies the conversation by its
    protocol and its two endpoints in any order. ``point`` is the capture point.

    If the flow is dormant, ``rows`` is empty, and ``since_s`` is the time at which the flow became
    dormant. ``is_superseded`` means that another capture point has taken over the conversation.
    If ``has_first_value`` is true, histograms must not observe the first value any more. If
    ``is_closing_observed`` is true, they must not observe the closing report any more.
    """

    uuid: str
    rows: list[Row | None]
    totals: dict[Total, int]
    last_ms: int
    reported_s: float
    deadline_s: int
    keys: Mapping[Path, str]
    ends: tuple[Any, ...]
    point: str
    is_ended: bool = False
    is_dormant: bool = False
    is_superseded: bool = False
    is_claiming: bool = False
    has_first_value: bool = False
    is_closing_observed: bool = False
    since_s: int = 0


@dataclass(eq=False)
class SavedCounters:
    """The counters and the start time of a connection that was removed at ``since_s``."""

    values: Values
    totals: dict[Total, int]
    since_s: int
    start_ms: int


class Model:
    """The table. Its attributes have the same names as those of the core.

    Flows are counted in ``skipped`` by reason, and in ``filtered`` by the name of the rule that
    dropped them. ``values_skipped`` counts omitted values by field. ``finished`` counts reports by
    the meaning of their ``FinishType``, including late and rejected reports. ``created_total``,
    ``expired_total``, ``rejected_total`` and ``overflowed_total`` refer to the first view.

    ``horizon_s`` is None before `raise_horizon`. ``flow_update_s`` is the agents' ``flow.update``.
    ``wall_ms`` is the wall clock at the latest message, in Unix milliseconds; 0 if it is unknown.
    """

    def __init__(self, spec: Spec | None = None, **options: Any) -> None:
        """Create a table for ``spec`` or ``one_view(**options)``."""
        self.spec = spec or one_view(**options)
        self.views = tuple(self.spec.views)
        self.families = tuple(family for view in self.views for family in view.families)
        values = [value for view in self.views for value in values_of(view)]
        self.totals = [
            value for value in dict.fromkeys(values) if isinstance(value, Total) and value.paths
        ]
        self._distributions = [
            value for value in dict.fromkeys(values) if isinstance(value, Distribution)
        ]
        self._events = {event_of(distribution) for distribution in self._distributions}
        self._depends_on_new = NEW_FLOWS in values or "first" in self._events
        self.gauges = [value for value in dict.fromkeys(values) if isinstance(value, Gauge)]
        self._labels = list(
            dict.fromkeys(label for view in self.views for label in labels_of(view))
        )

        lookups = (label.lookup for label in self._labels if label.lookup)
        self._key_paths = list(dict.fromkeys(path for lookup in lookups for path in lookup.paths))
        self._deduplicates = self.spec.deduplicate == "first"

        self._rows: list[dict[Values, Row]] = [{} for _ in self.views]
        # by UUID; the core stores a hexadecimal UUID as a number
        self._flows: dict[str, Flow] = {}
        self._dormant: list[Flow | SavedCounters] = []
        self._ended: list[Flow] = []
        self._claiming: list[Flow] = []
        self._saved_counters: dict[Values, SavedCounters] = {}
        self.horizon_s: float | None = None
        self.flow_update_s = FLOW_UPDATE_S
        self.wall_ms = 0
        self._invalid: set[Path] = set()
        self.values_skipped: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.filtered: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.created_total = self.expired_total = 0
        self.rejected_total = self.overflowed_total = 0
        self._view_rejected = [0] * len(self.views)
        self.bounds = [(view.min_bytes, view.min_packets) for view in self.views]

    @property
    def connections(self) -> int:
        return len(self._rows[0])

    @property
    def view_connections(self) -> tuple[int, ...]:
        return tuple(len(rows) for rows in self._rows[1:])

    @property
    def view_rejected_totals(self) -> tuple[int, ...]:
        return tuple(self._view_rejected[1:])

    @property
    def flows(self) -> int:
        return sum(not flow.is_dormant for flow in self._flows.values())

    @property
    def dormant_flows(self) -> int:
        return len(self._flows) - self.flows

    @property
    def dormant_connections(self) -> int:
        return len(self._saved_counters)

    def dormant_uuids(self) -> list[str]:
        """Return the UUIDs of dormant flows: flows with a claim, then ended flows, then the others.

        In each of these groups, flows are in the order in which they became dormant.
        """
        entries = [*self._claiming, *self._ended, *self._dormant]
        return [entry.uuid for entry in entries if isinstance(entry, Flow)]

    def raise_horizon(self, now: float) -> None:
        """Move the horizon forward to ``now``."""
        self.horizon_s = max(self.horizon_s or now, now)

    # Reports

    def message(self, flows: Iterable[JSON], now: float, wall_ms: int = 0) -> None:
        for flow in flows:
            self.report(flow, now, wall_ms)

    def report(self, flow: JSON, now: float, wall_ms: int = 0) -> str | None:
        """Apply a report of a flow.

        Return None, the reason why the report was skipped, or the name of the rule that dropped it.
        """
        self.wall_ms = wall_ms
        self._invalid = set()
        reason = self._skip_reason_before_rules(flow)
        if reason is None and (rule := self._dropping_rule(flow)):
            self.filtered[rule] += 1
            return rule
        if reason is None:
            reason = self._skip_reason_after_rules(flow)
        finish = flow.get("FinishType", 0)
        if not in_range([finish]):
            self._invalid.add(("FinishType",))
            flow = {**flow, "FinishType": 0}
            finish = 0
        if reason is None:
            self._note_invalid_values(flow)
            known = self._flows.get(flow["UUID"])
            if known is None:
                reason = self._apply_unknown(flow, now)
            elif known.is_dormant:
                reason = self._apply_dormant(known, flow, now)
            else:
                reason = self._apply_live(known, flow, now)
        if reason is not None:
            self.skipped[reason] += 1
        if reason in (None, "late", "ended", "table_full"):
            self.values_skipped.update(".".join(path) for path in self._invalid)
            if finish:
                self.finished[FINISHES.get(finish, "other")] += 1
        return reason

    def _skip_reason_before_rules(self, flow: JSON) -> str | None:
        paths = [("UUID",), *CONVERSATION] if self._deduplicates else [("UUID",)]
        for label in self._labels:
            paths += [label.path, *label.reads]
        paths += self._key_paths
        paths += [path_of(name) for rule in (*self.spec.drop, *self.spec.keep) for name in rule]
        texts = [text for path in paths if isinstance(text := value_at(flow, path, ""), str)]
        if any(re.search("[\ud800-\udfff]", text) for text in texts):
            return "invalid"
        if not flow.get("UUID"):
            return "no_uuid"
        if flow.get("Network") is None:
            return "no_network"
        is_icmp = flow.get("ICMP") is not None
        can_lack = self.spec.include_icmp if is_icmp else self.spec.include_other
        if flow.get("Transport") is None and not can_lack:
            return "no_transport"
        if flow.get("Metric") is None:
            return "no_metric"
        if self.spec.excluded_tags and self.tag(flow) in self.spec.excluded_tags:
            return "excluded"
        return None

    def _dropping_rule(self, flow: JSON) -> str:
        for rule in self.spec.drop:
            if self._rule_matches(rule, flow):
                return str(rule["name"])
        if self.spec.keep and not any(self._rule_matches(rule, flow) for rule in self.spec.keep):
            return "keep"
        return ""

    def _rule_matches(self, rule: JSON, flow: JSON) -> bool:
        return all(
            matches(condition, self._field(name, flow))
            for name, condition in rule.items()
            if name != "name"
        )

    def _field(self, name: str, flow: JSON) -> Any:
        """Return the value to which a rule applies; None if the object of the field is missing."""
        if name == "tag":
            return self.tag(flow)
        path = path_of(name)
        if len(path) > 1 and flow.get(path[0]) is None:
            return None
        return value_at(flow, path, "" if is_text(path) else 0)

    def _skip_reason_after_rules(self, flow: JSON) -> str | None:
        needed = [total for total in self.totals if not total.is_optional]
        if any(first_invalid(flow, total.paths) for total in needed) or not in_range(
            [flow.get("Last", 0)]
        ):
            return "out_of_range"
        return "text_too_long" if is_too_long(flow["UUID"]) else None

    def _note_invalid_values(self, flow: JSON) -> None:
        for value in (*self.totals, *self.gauges):
            paths = value.paths if isinstance(value, Total) else (value.path,)
            self._invalid |= first_invalid(flow, paths)
        for distribution in self._distributions:
            if event_of(distribution) == "first" or flow.get("FinishType", 0) == CLOSING:
                for path in distribution.paths:
                    self._invalid |= first_invalid(flow, [path])

    def _labels_of(self, flow: JSON) -> dict[Label, str | int] | str:
        """Return the labels of a flow, or the reason to skip the flow if a label is invalid."""
        labels = {label: self._label(label, flow) for label in self._labels}
        looked_at = [
            *labels.values(),
            *self._keys_of(flow).values(),
            *(self._conversation(flow) if self._deduplicates else []),
        ]
        if not in_range(value for value in looked_at if isinstance(value, int)):
            return "out_of_range"
        if any(is_too_long(value) for value in looked_at if isinstance(value, str)):
            return "text_too_long"
        return labels

    def _keys_of(self, flow: JSON) -> dict[Path, str]:
        return {path: value_at(flow, path, "") for path in self._key_paths}

    def _conversation(self, flow: JSON) -> list[Any]:
        return [value_at(flow, path, "" if is_text(path) else 0) for path in CONVERSATION]

    def _ends(self, flow: JSON) -> tuple[Any, ...]:
        protocol, a, port_a, b, port_b, _ = self._conversation(flow)
        return (protocol, frozenset(((a, port_a), (b, port_b))))

    def _is_duplicate(self, flow: JSON) -> bool:
        ends, point = self._ends(flow), self._conversation(flow)[-1]
        return self._deduplicates and any(
            other.ends == ends and other.point != point
            for other in self._flows.values()
            if not other.is_dormant or other.is_claiming
        )

    def _apply_unknown(self, flow: JSON, now: float) -> str | None:
        labels = self._labels_of(flow)
        if isinstance(labels, str):
            return labels
        if self._is_duplicate(flow):
            return "duplicate"
        initial_delta = self._initial_delta(flow, now)
        if initial_delta == "ended":
            self._observe_ended(labels, flow, now)
            return initial_delta
        view_values = self._view_values(labels)
        totals = self._totals_of(flow)
        is_repeat = self._is_repeat(flow)
        is_full = self.flows + len(self._claiming) >= self.spec.max_flows
        has_room = self._has_room(0, view_values[0])
        if is_full or not (has_room or is_repeat):
            if self.spec.overflow == OTHER:
                deltas = with_new_flow(self._deltas_of_unknown(flow, initial_delta), initial_delta)
                rows = self._add_to_overflow(
                    flow, view_values, now, deltas, self._start(flow, initial_delta)
                )
                first = "observe" if initial_delta == "total" else ""
                self._observe(None, rows, flow, now, first=first)
                self.horizon_s = None if self.horizon_s is None else max(self.horizon_s, now)
            self.rejected_total += not has_room and not is_repeat
            return "table_full"
        known = self._flows[flow["UUID"]] = self._new_flow(flow, totals, now)
        if is_repeat:
            deltas = with_new_flow(totals, initial_delta)
            rows = self._add_closing_report(
                view_values, deltas, flow, now, self._start(flow, initial_delta)
            )
            self._observe(known, rows, flow, now)
            self._evict_surplus(now)
            self._store_ended(known, now)
        else:
            if self._depends_on_new:
                self._note_lifecycle_times(flow)
            self._make_live(known, labels, flow, now, initial_delta=initial_delta)
            first = "observe" if initial_delta == "total" else "mark"
            self._observe(known, known.rows, flow, now, first=first)
            self._evict_surplus(now)
        return None

    def _new_flow(self, flow: JSON, totals: dict[Total, int], now: float) -> Flow:
        return Flow(
            uuid=flow["UUID"],
            rows=[],
            totals=totals,
            last_ms=flow.get("Last", 0),
            reported_s=now,
            deadline_s=0,
            keys={},
            ends=(),
            point="",
        )

    def _view_values(self, labels: Mapping[Label, str | int]) -> list[Values]:
        """Return the label values of a flow's row in each view."""
        return [tuple(str(labels[label]) for label in labels_of(view)) for view in self.views]

    def _initial_delta(self, flow: JSON, now: float) -> str:
        """Return which deltas the report of an unknown flow adds to an existing row.

        The result is "total", "update" for the last update, or "nothing". It is "ended" if the
        report is skipped.
        """
        last_update = flow.get("LastUpdateMetric")
        lacks_finish_type = ("FinishType",) in self._invalid
        if last_update is None:
            return "nothing" if lacks_finish_type else "total"
        invalid = {path for path in LIFECYCLE_TIMES if not in_range([value_at(flow, path, 0)])}
        if flow.get("FinishType", 0) == CLOSING:
            self._invalid |= invalid
        if self._is_repeat(flow):
            return "total" if self._was_never_counted(flow, now) else "ended"
        if invalid - {LIFECYCLE_TIMES[2]} or lacks_finish_type:
            return "nothing"
        is_first = last_update.get("Start", 0) == flow.get("Start", 0)
        if is_first or self._was_never_counted(flow, now):
            return "total"
        return "update"

    def _is_repeat(self, flow: JSON) -> bool:
        last_update = flow.get("LastUpdateMetric")
        if flow.get("FinishType", 0) != CLOSING or last_update is None:
            return False
        last = last_update.get("Last", 0)
        return not in_range([last]) or last != flow.get("Last", 0)

    def _was_never_counted(self, flow: JSON, now: float) -> bool:
        """Return whether an unknown flow is certain to be new: it began after the horizon."""
        start, last = flow.get("Start", 0), value_at(flow, ("LastUpdateMetric", "Last"), 0)
        if (
            self._deduplicates
            or self.horizon_s is None
            or not in_range((start, last, last - start))
        ):
            return False
        return (
            now - (last - start) / 1000 - self.flow_update_s - MAX_REPORT_DELAY_S > self.horizon_s
        )

    def _deltas_of_unknown(self, flow: JSON, initial_delta: str) -> Deltas:
        totals = self._totals_of(flow)
        self._note_lifecycle_times(flow)
        if initial_delta == "total":
            return totals
        if initial_delta == "nothing":
            return dict.fromkeys(totals, 0)
        for total in self.totals:
            self._invalid |= first_invalid(flow, total.last_update_paths)
        return {total: total.last_update(flow) for total in totals}

    def _start(self, flow: JSON, initial_delta: str) -> int:
        """Return the start time of a row that an unknown flow creates.

        If the flow adds its total, the row starts with the flow, otherwise with the last update.
        """
        path = ("Start",) if initial_delta == "total" else ("LastUpdateMetric", "Start")
        start_ms = value_at(flow, path, 0)
        return self._clamp_to_now(start_ms if start_ms != "" and in_range([start_ms]) else 0)

    def _clamp_to_now(self, start_ms: int) -> int:
        """Return ``start_ms``, or the current time if the agent's clock is ahead."""
        return min(start_ms, self.wall_ms) if self.wall_ms else start_ms

    def _restored_start(self, flow: JSON, known: Flow, now: float) -> int:
        """Return the start time of a connection that a dormant flow creates again.

        It is not later than the last report of the removed connection.
        """
        start_ms = self._start(flow, "total")
        if not self.wall_ms:
            return start_ms
        reported_s = known.since_s - math.floor(self.spec.timeout_s)
        return max(0, min(start_ms, self.wall_ms - int((now - reported_s) * 1000)))

    def _note_lifecycle_times(self, flow: JSON) -> None:
        if flow.get("LastUpdateMetric") is not None:
            self._invalid |= {
                path for path in LIFECYCLE_TIMES if not in_range([value_at(flow, path, 0)])
            }

    def _make_live(
        self,
        known: Flow,
        labels: Mapping[Label, str | int],
        flow: JSON,
        now: float,
        *,
        initial_delta: str = "",
        deltas: Deltas | None = None,
        known_totals: Mapping[Total, int] | None = None,
        known_ms: int = 0,
    ) -> None:
        """Add a flow to its rows: an unknown flow, or a dormant flow that becomes live.

        For an unknown flow, ``initial_delta`` is the result of `_initial_delta`. For a dormant
        flow, ``deltas`` are the deltas of the report. ``known_totals`` and ``known_ms`` are the
        totals of a dormant flow, and its highest ``Last``, before the report.
        """
        view_values = self._view_values(labels)
        has_room = [self._has_room(n, values) for n, values in enumerate(view_values)]
        saved = self._saved_counters.get(view_values[0])
        # the new row cannot contain earlier traffic of the flow
        adds_whole_total = [
            deltas is None
            and self._is_complete(n)
            and has_room[n]
            and values not in self._rows[n]
            and not (n == 0 and saved)
            and not self._has_overflow_row()
            for n, values in enumerate(view_values)
        ]
        has_no_row = [self.spec.overflow == "drop" and not fits for fits in has_room]
        first = self._rows[0].get(view_values[0])
        is_new = first is None
        if first and not first.flows:
            first = None  # an overflow row without flows: its linked rows are out of date
        for n in self._linked_views() if first else ():
            adds_whole_total[n] = False
            has_no_row[n] = first.linked_rows.get(n) is None
        known.rows = []
        for n, values in enumerate(view_values):
            row = None
            if not (first and n in self._linked_views()):
                self._view_rejected[n] += not has_room[n]
            if not has_no_row[n]:
                row = first.linked_rows.get(n) if first and n in self._linked_views() else None
                row = row or (self._row(n, values) if has_room[n] else self._overflow_row(n))
                if n == 0 and is_new:
                    restored_start_ms = self._restored_start(flow, known, now)
                    self._restore_counters(row, saved, known_totals, restored_start_ms)
                if deltas is not None:
                    row_deltas = deltas
                    row.set_start(self._clamp_to_now(known_ms))
                else:
                    row_deltas = (
                        known.totals
                        if adds_whole_total[n]
                        else self._deltas_of_unknown(flow, initial_delta)
                    )
                    row_deltas = with_new_flow(row_deltas, initial_delta)
                    row.set_start(
                        self._start(flow, "total" if adds_whole_total[n] else initial_delta)
                    )
                self._add_to_row(row, row_deltas, flow, now)
                row.flows.append(known)
            known.rows.append(row)
        if not first:
            known.rows[0].linked_rows = {n: known.rows[n] for n in self._linked_views()}
        known.keys = self._keys_of(flow)
        self._take_over(known, flow)
        known.reported_s = now
        known.deadline_s = math.ceil(now + self.spec.timeout_s)
        known.is_dormant = False
        known.is_ended = flow.get("FinishType", 0) == CLOSING

    def _take_over(self, known: Flow, flow: JSON) -> None:
        known.ends, known.point = self._ends(flow), self._conversation(flow)[-1]
        for other in self._flows.values():
            if other.is_dormant and other.ends == known.ends and other.point != known.point:
                other.is_superseded = self._deduplicates

    def _restore_counters(
        self,
        row: Row,
        saved: SavedCounters | None,
        known_totals: Mapping[Total, int] | None,
        restored_start_ms: int,
    ) -> None:
        """Start a new row with saved counters, or with the totals of a dormant flow.

        If the row starts with these totals, ``restored_start_ms`` is its start time.
        """
        if saved:
            del self._saved_counters[saved.values]
            self._dormant.remove(saved)
            row.totals = dict(saved.totals)
            row.set_start(saved.start_ms)
        elif known_totals is not None and self._is_complete(0):
            row.add(with_new_flow(known_totals, "total"))
            row.set_start(restored_start_ms)

    # Dormant flows

    def _apply_dormant(self, known: Flow, flow: JSON, now: float) -> str | None:
        is_closing = flow.get("FinishType", 0) == CLOSING
        change = self._find_deltas(known, flow)
        if change is None:
            if is_closing:
                self._observe_dormant(known, flow, now)
            if is_closing and known.is_claiming:
                known.is_ended = True
            elif is_closing:
                self._remove_dormant(known)
                self._store_ended(known, now)
            return "late"
        labels = self._labels_of(flow)
        if isinstance(labels, str):
            return labels
        if self._is_duplicate(flow):
            self._forget(known)
            return "duplicate"
        if known.is_superseded:
            self._forget(known)
            return self._apply_unknown(flow, now)
        deltas, totals = change
        view_values = self._view_values(labels)
        known_ms = known.last_ms
        if is_closing and self._is_repeat(flow):
            last = ("LastUpdateMetric", "Last")
            self._invalid |= set() if in_range([value_at(flow, last, 0)]) else {last}
            rows = self._add_closing_report(
                view_values, deltas, flow, now, self._clamp_to_now(known_ms)
            )
            self._observe(known, rows, flow, now)
            self._store_totals(known, flow, totals)
            self._remove_dormant(known)
            self._evict_surplus(now)
            known.is_ended = True
            self._stay_dormant(known, flow, now)
        elif not self._has_room(0, view_values[0]):
            self.rejected_total += 1
            if self.spec.overflow == OTHER:
                rows = self._add_to_overflow(
                    flow, view_values, now, deltas, self._clamp_to_now(known_ms)
                )
                self._observe(known, rows, flow, now)
                self._store_totals(known, flow, totals)
                self._remove_dormant(known)
                known.is_ended = is_closing
                self._stay_dormant(known, flow, now)
            elif known.is_claiming:
                known.is_ended = is_closing
            else:
                self._remove_dormant(known)
                known.is_ended = is_closing
                self._append_dormant(known, now)
            return "table_full"
        else:
            self._remove_dormant(known)
            before = known.totals
            self._store_totals(known, flow, totals)
            self._make_live(
                known,
                labels,
                flow,
                now,
                deltas=deltas,
                known_totals=before,
                known_ms=known_ms,
            )
            self._observe(known, known.rows, flow, now)
            self._evict_surplus(now)
        return None

    def _stay_dormant(self, known: Flow, flow: JSON, now: float) -> None:
        """Keep a flow dormant after adding its deltas. With deduplication, start a claim."""
        if not self._deduplicates:
            self._append_dormant(known, now)
            return
        self._take_over(known, flow)
        for other in list(self._claiming):
            if other.ends == known.ends:
                self._remove_dormant(other)
                self._append_dormant(other, now)
        known.is_claiming = True
        known.since_s = math.ceil(now)
        self._claiming.append(known)

    def _append_dormant(self, known: Flow, now: float) -> None:
        known.since_s = math.floor(now)
        (self._ended if known.is_ended else self._dormant).append(known)

    def _remove_dormant(self, known: Flow) -> None:
        if known.is_claiming:
            self._claiming.remove(known)
            known.is_claiming = False
        else:
            (self._ended if known.is_ended else self._dormant).remove(known)

    def _store_totals(self, known: Flow, flow: JSON, totals: dict[Total, int]) -> None:
        known.totals = totals
        known.last_ms = max(flow.get("Last", 0), known.last_ms)

    def _store_ended(self, known: Flow, now: float) -> None:
        """Store a dormant and ended flow, because more reports of it may arrive."""
        known.is_dormant = known.is_ended = True
        self._append_dormant(known, now)

    def _add_closing_report(
        self, view_values: Sequence[Values], deltas: Deltas, flow: JSON, now: float, start_ms: int
    ) -> list[Row | None]:
        """Add the deltas of a closing report to all views, without creating a connection.

        ``start_ms`` is the start time of new rows. Return the rows of all views except the first.
        """
        first = self._rows[0].get(view_values[0])
        if first is not None:
            first.add(deltas)
        elif saved := self._saved_counters.get(view_values[0]):
            saved.totals = added(saved.totals, deltas)
        elif not self._is_complete(0):
            self._save_counters(view_values[0], added(self._zero_totals(), deltas), now, start_ms)
        rows = [self._row_of_closing(n, view_values) for n in range(1, len(view_values))]
        for row in rows:
            if row is not None:
                row.set_start(start_ms)
                self._add_to_row(row, deltas, flow, now)
        return rows

    def _row_of_closing(self, n: int, view_values: Sequence[Values]) -> Row | None:
        """Return the row of a closing report in view ``n``, which is not the first view.

        If the view is full, return its overflow row; None if there are no overflow rows.
        """
        first = self._rows[0].get(view_values[0])
        if first and first.flows and n in self._linked_views():
            return first.linked_rows.get(n)
        if self._has_room(n, view_values[n]):
            return self._row(n, view_values[n])
        self._view_rejected[n] += 1
        return self._overflow_row(n) if self.spec.overflow == OTHER else None

    def _save_counters(
        self, values: Values, totals: dict[Total, int], now: float, start_ms: int
    ) -> None:
        if self.spec.flow_memory_s:
            saved = self._saved_counters[values] = SavedCounters(
                values, totals, math.floor(now), start_ms
            )
            self._dormant.append(saved)

    def _make_dormant(self, flow: Flow, now: float) -> None:
        """Make a flow dormant. Remove its connection if it has no other flows."""
        first = flow.rows[0]
        assert first is not None
        for row in flow.rows:
            if row is not None:
                row.flows.remove(flow)
        flow.is_dormant = True
        self._append_dormant(flow, now)
        if not first.flows and not first.is_overflow:
            counters = counters_of(first.view)
            of_flow = with_new_flow(flow.totals, "total")
            is_like_its_flow = all(
                first.totals.get(total) == of_flow.get(total) for total in counters
            )
            if not (is_like_its_flow and self._is_complete(0)):
                assert first.start_ms is not None
                self._save_counters(first.values, dict(first.totals), now, first.start_ms)
                self._evict_surplus(now)
            del self._rows[0][first.values]
            self.expired_total += 1
        if not self.spec.flow_memory_s and not flow.is_ended:
            self._forget(flow)
        flow.rows = []

    def _forget(self, entry: Flow | SavedCounters) -> None:
        if isinstance(entry, SavedCounters):
            self._dormant.remove(entry)
            del self._saved_counters[entry.values]
            return
        self._remove_dormant(entry)
        del self._flows[entry.uuid]
        if not entry.is_ended and self.horizon_s is not None:
            reported_s = max(0, entry.since_s - math.floor(self.spec.timeout_s))
            self.horizon_s = max(self.horizon_s, reported_s)

    def _evict_surplus(self, now: float) -> None:
        """Forget dormant flows and saved counters until at most ``max_flows`` are left.

        Flows that have ended, and have been dormant for `MAX_REPORT_DELAY_S`, are forgotten first:
        their reports are no longer in transit.
        """
        while len(self._flows) + len(self._saved_counters) > self.spec.max_flows and (
            self._ended or self._dormant
        ):
            is_over = self._ended and self._ended[0].since_s + MAX_REPORT_DELAY_S <= math.floor(now)
            self._forget(self._ended[0] if is_over or not self._dormant else self._dormant[0])

    def _linked_views(self) -> list[int]:
        first = set(labels_of(self.views[0]))
        return [n for n, view in enumerate(self.views) if n and first >= set(labels_of(view))]

    def _label(self, label: Label, flow: JSON) -> str | int:
        if label.path == ():
            assert label.rewrite is not None
            return label.rewrite[flow]
        if label.lookup is not None:
            return label.lookup.find(self._keys_of(flow))[label.index]
        if len(label.path) > 1 and flow.get(label.path[0]) is None:
            return ""
        value = value_at(flow, label.path, 0 if label.number else "")
        return value if label.rewrite is None else label.rewrite[value]

    def _has_room(self, n: int, values: Values) -> bool:
        count = sum(not row.is_overflow for row in self._rows[n].values())
        return values in self._rows[n] or count < self.spec.max_connections

    def _is_complete(self, n: int) -> bool:
        paths = {label.path for label in labels_of(self.views[n]) if is_field(label)}
        return paths >= ENDPOINTS and not (self.spec.include_icmp or self.spec.include_other)

    def _has_overflow_row(self) -> bool:
        return any(row.is_overflow for rows in self._rows for row in rows.values())

    def _row(self, n: int, values: Values) -> Row:
        """Return the row with these label values, which is created if necessary."""
        view = self.views[n]
        if values not in self._rows[n]:
            self._rows[n][values] = Row(view, values, self._zero_totals())
            self.created_total += n == 0
        return self._rows[n][values]

    def _zero_totals(self) -> dict[Total, int]:
        return {total: 0 for total in (*self.totals, NEW_FLOWS) if not total.is_optional}

    def _overflow_row(self, n: int) -> Row:
        """Return the overflow row of a view, which is created if necessary."""
        row = self._row(n, tuple(OTHER for _ in labels_of(self.views[n])))
        row.is_overflow = True
        row.gauges.clear()
        return row

    def _add_to_row(self, row: Row, deltas: Deltas, flow: JSON, now: float) -> None:
        row.add(deltas)
        if not row.is_overflow:
            values = {gauge: value_at(flow, gauge.path, 0) or 0 for gauge in self.gauges}
            row.set_gauges({gauge: value for gauge, value in values.items() if in_range([value])})
        self._extend_deadline(row, now)

    def _extend_deadline(self, row: Row, reported_s: float) -> None:
        is_first = row.view is self.views[0]
        row.extend_deadline(reported_s, self.spec.timeout_s if is_first else row.view.timeout_s)

    def _add_to_overflow(
        self, flow: JSON, view_values: Sequence[Values], now: float, deltas: Deltas, start_ms: int
    ) -> list[Row | None]:
        rows: list[Row | None] = []
        for n, values in enumerate(view_values):
            fits = n > 0 and self._has_room(n, values)
            row = self._row(n, values) if fits else self._overflow_row(n)
            self._view_rejected[n] += not fits
            row.set_start(start_ms)
            self._add_to_row(row, deltas, flow, now)
            rows.append(row)
        self.overflowed_total += 1
        return rows

    # Histograms

    def _observe(
        self,
        known: Flow | None,
        rows: Iterable[Row | None],
        flow: JSON,
        now: float,
        *,
        first: str = "observe",
    ) -> None:
        """Observe a report in the histograms of its rows.

        ``known`` is None if the table does not store the flow. ``first`` applies to the first value
        of the flow: "observe" observes it, "mark" only sets ``has_first_value``, and "" ignores it.
        """
        events = set()
        has_value = any(
            value.of(flow) for value in self._distributions if event_of(value) == "first"
        )
        if has_value and first and not (known and known.has_first_value):
            events |= {"first"} if first == "observe" else set()
            if known:
                known.has_first_value = True
        if flow.get("FinishType", 0) == CLOSING and not (known and known.is_closing_observed):
            events.add("closing")
            if known:
                known.is_closing_observed = True
        for row in rows:
            if row is not None and row.observe(flow, events):
                self._extend_deadline(row, now)

    def _observe_dormant(self, known: Flow, flow: JSON, now: float) -> None:
        """Observe a late closing report."""
        labels = self._labels_of(flow)
        is_duplicate = self._is_duplicate(flow) or known.is_superseded
        if not (known.is_closing_observed or is_duplicate or isinstance(labels, str)):
            rows = self._rows_of_closing(labels, self._clamp_to_now(known.last_ms))
            self._observe(known, rows, flow, now, first="")

    def _observe_ended(self, labels: Mapping[Label, str | int], flow: JSON, now: float) -> None:
        """Observe a closing report that is skipped as ``ended``."""
        is_full = self.flows + len(self._claiming) >= self.spec.max_flows
        if (
            self._deduplicates
            or "closing" not in self._events
            or (is_full and self.spec.overflow != OTHER)
        ):
            return
        known = None if is_full else self._new_flow(flow, self._totals_of(flow), now)
        rows = self._rows_of_closing(labels, self._start(flow, "total"))
        self._observe(known, rows, flow, now, first="mark")
        if known:
            self._flows[known.uuid] = known
            self._evict_surplus(now)
            self._store_ended(known, now)

    def _rows_of_closing(
        self, labels: Mapping[Label, str | int], start_ms: int
    ) -> list[Row | None]:
        """Return the rows that observe a closing report without deltas.

        ``start_ms`` is the start time of new rows.
        """
        view_values = self._view_values(labels)
        rows = [
            self._row_of_closing(n, view_values)
            for n, view in enumerate(self.views)
            if any(
                isinstance(value, Distribution) and event_of(value) == "closing"
                for value in values_of(view)
            )
        ]
        for row in rows:
            if row is not None:
                row.set_start(start_ms)
        return rows

    def _totals_of(self, flow: JSON) -> dict[Total, int]:
        totals = {total: total.of(flow) for total in self.totals}
        return {total: number for total, number in totals.items() if number is not None}

    def _find_deltas(
        self, known: Flow, flow: JSON
    ) -> tuple[dict[Total, int], dict[Total, int]] | None:
        """Return the deltas of a report and the new totals; None if the report is late."""
        totals = self._totals_of(flow)
        old = {total: known.totals.get(total, 0) for total in totals}
        is_newer = flow.get("Last", 0) > known.last_ms
        if not is_newer and all(totals[total] <= old[total] for total in totals):
            return None
        if is_newer and any(totals[total] < old[total] for total in totals):
            return totals, totals  # the flow restarted
        deltas = {total: max(0, totals[total] - old[total]) for total in totals}
        highest = {total: max(totals[total], old[total]) for total in totals}
        return deltas, known.totals | highest

    def _apply_live(self, known: Flow, flow: JSON, now: float) -> str | None:
        is_closing = flow.get("FinishType", 0) == CLOSING
        change = self._find_deltas(known, flow)
        if change is None:
            known.is_ended |= is_closing
            self._observe(known, known.rows, flow, now, first="")
            return "late"
        is_newer = flow.get("Last", 0) > known.last_ms
        known.is_ended = is_closing if is_newer else known.is_ended or is_closing
        deltas, totals = change
        self._store_totals(known, flow, totals)
        known.reported_s = now
        known.deadline_s = max(known.deadline_s, math.ceil(now + self.spec.timeout_s))
        for row in known.rows:
            if row is not None:
                self._add_to_row(row, deltas, flow, now)
        self._observe(known, known.rows, flow, now)
        return None

    # Names

    def relabel(
        self,
        names: Names,
        keys: Iterable[str],
        uuids: Collection[str] | None = None,
        wall_ms: int = 0,
    ) -> None:
        """Move flows to the rows of their new labels after ``names`` have changed for ``keys``.

        ``uuids`` are the flows of the slice, by default all flows. ``wall_ms`` is the start time of
        new rows.
        """
        keys = frozenset(keys)
        linked_views = self._linked_views()

        def is_renamed(label: Label, flow: Flow) -> bool:
            lookup = label.lookup
            return lookup is not None and lookup.names is names and flow.keys[lookup.key] in keys

        def renamed(flow: Flow, row: Row | None) -> Values | None:
            if row is None or row.is_overflow:
                return None
            values = tuple(
                label.lookup.find(flow.keys)[label.index]
                if label.lookup and is_renamed(label, flow)
                else value
                for label, value in zip(labels_of(row.view), row.values, strict=True)
            )
            return None if values == row.values else values

        moves = []
        for flow in self._flows.values():
            if flow.is_dormant or (uuids is not None and flow.uuid not in uuids):
                continue
            view_values = [renamed(flow, row) for row in flow.rows]
            moving = [
                n for n in range(len(view_values)) if view_values[0 if n in linked_views else n]
            ]
            moves.append((flow, list(flow.rows), view_values, moving))
        for flow, old, _, moving in moves:
            for n in moving:
                if (row := old[n]) is not None:
                    row.flows.remove(flow)
        self._drop_rows(now=-math.inf)
        for flow, old, view_values, moving in moves:
            for n in moving:
                values = view_values[n]
                if n not in linked_views and values is not None:
                    is_new = values not in self._rows[n] or not self._rows[n][values].flows
                    saved = (
                        None if n or values in self._rows[0] else self._saved_counters.get(values)
                    )
                    row = flow.rows[n] = self._row(n, values)
                    if n == 0 and is_new:
                        self._restore_counters(row, saved, None, 0)
                        for number in linked_views:
                            wanted = view_values[number]
                            row.linked_rows[number] = old[number]
                            if wanted is not None:
                                row.linked_rows[number] = self._row(number, wanted)
            for n in moving:
                if n in linked_views:
                    assert flow.rows[0] is not None
                    flow.rows[n] = flow.rows[0].linked_rows.get(n)
                if (row := flow.rows[n]) is not None:
                    row.set_start(wall_ms)
                    row.add({total: 0 for total in self.totals if total in flow.totals})
                    self._extend_deadline(row, flow.reported_s)
                    row.flows.append(flow)

    # Time

    def expire(self, now: float, order: Sequence[str] = ()) -> None:
        """Make flows dormant after their deadlines. Remove expired rows, and forget old flows.

        Flows with the same deadline become dormant in the order of their UUIDs in ``order``.
        """
        positions = {uuid: position for position, uuid in enumerate(order)}
        due = [f for f in self._flows.values() if not f.is_dormant and f.deadline_s <= now]
        for flow in sorted(due, key=lambda f: (f.deadline_s, positions.get(f.uuid, -1))):
            self._make_dormant(flow, now)
        for flow in list(self._claiming):
            if flow.since_s + math.ceil(self.spec.timeout_s) <= math.floor(now):
                self._remove_dormant(flow)
                self._append_dormant(flow, now)
                if flow.is_ended or not self.spec.flow_memory_s:
                    self._forget(flow)
        for entry in [*self._dormant, *self._ended]:
            is_ended = isinstance(entry, Flow) and entry.is_ended
            memory_s = self.spec.timeout_s if is_ended else self.spec.flow_memory_s
            if entry.since_s + math.ceil(memory_s) <= math.floor(now):
                self._forget(entry)
        self._drop_rows(now)

    def _drop_rows(self, now: float) -> None:
        for n, rows in enumerate(self._rows):
            for values, row in list(rows.items()):
                is_over = not row.flows if n == 0 else row.deadline_s <= now
                if is_over and not row.is_overflow:
                    assert not row.flows, "the timeout of a view is too short"
                    del rows[values]
                    self.expired_total += n == 0

    # The page

    def unexpired(self, now: float) -> list[Row]:
        """Return the rows of all views that have not expired at ``now``, including hidden rows."""
        return [row for n in range(len(self.views)) for row in self._unexpired(n, now)]

    def _unexpired(self, n: int, now: float) -> list[Row]:
        return [row for row in self._rows[n].values() if row.is_overflow or row.deadline_s > now]

    def shown(self, now: float) -> list[Row]:
        """Return the rows of all views that a page at ``now`` shows."""
        return [
            row
            for n, bounds in enumerate(self.bounds)
            for row in self._unexpired(n, now)
            if reaches(row, bounds)
        ]

    def hidden(self, now: float) -> list[tuple[int, int] | None]:
        """Return the number and the bytes of the hidden rows of each view; None without bounds."""
        result: list[tuple[int, int] | None] = []
        for n, bounds in enumerate(self.bounds):
            rows = [row for row in self._unexpired(n, now) if not reaches(row, bounds)]
            hidden = len(rows), sum(amount_of(row, "bytes") for row in rows)
            result.append(hidden if any(bounds) else None)
        return result

    def forecast(self, now: float, n: int, bounds: Iterable[Bounds]) -> list[tuple[int, int, int]]:
        """Return the numbers of rows, series and bytes that view ``n`` would show.

        The result has an entry for each pair in ``bounds``.
        """
        result = []
        for bound in bounds:
            rows = [row for row in self._unexpired(n, now) if reaches(row, bound)]
            families = self.views[n].families
            lines = [line for row in rows for f in families for line in self.lines(f, row)]
            result.append((len(rows), len(lines), sum(amount_of(row, "bytes") for row in rows)))
        return result

    def page(
        self, now: float, *, part: int = 0, parts: int = 1, names: Iterable[str] | None = None
    ) -> dict[str, set[str]]:
        """Return the sample lines of a page, by family.

        The page has only the families in ``names`` (None means all families), and only the rows of
        part ``part`` of ``parts``.
        """
        shown = [row for row in self.shown(now) if part_of(row, parts) == part]
        return {
            family.name: {line for row in shown for line in self.lines(family, row)}
            for family in self.families
            if names is None or family.name in names
        }

    def starts(self, now: float) -> dict[str, int]:
        """Return the start times of counters and histograms on a page at ``now``, by series.

        A histogram has one entry, with the name of the family. Unknown start times are left out.
        """
        ends = {"counter": "", "histogram": "_count"}
        return {
            line.replace(family.name + ends[family.type], family.name, 1).rpartition(" ")[0]: (
                row.start_ms
            )
            for row in self.shown(now)
            if row.start_ms
            for family in self.families
            if family.type in ends
            for line in self.lines(family, row)
            if line.startswith(family.name + ends[family.type])
        }

    def ranked(self, n: int, family: Family) -> list[Ranked]:
        """Return the rows of view ``n`` that have a value of the family, in no particular order.

        Each entry has the rank, the label values, all values except histograms, and whether pages
        show the row.
        """
        return [
            (rank, tuple(map(str, row.values)), values, reaches(row, self.bounds[n]))
            for row, rank, values in self._ranks(n, family)
            if rank is not None
        ]

    def groups(self, n: int, family: Family, names: Sequence[str]) -> dict[Values, Group]:
        """Group the rows of view ``n`` by the values of the labels in ``names``.

        Each entry has the rank, all values except histograms, and the number of rows.
        """
        view = self.views[n]
        indexes = [[label.name for label in labels_of(view)].index(name) for name in names]
        members: dict[Values, list[tuple[int | None, tuple[int | None, ...]]]] = {}
        for row, rank, values in self._ranks(n, family):
            key = tuple(str(row.values[index]) for index in indexes)
            members.setdefault(key, []).append((rank, values))
        kinds = [value for f in view.families for value in family_values(f, view)]
        kinds = [value for value in kinds if not isinstance(value, Distribution)]
        return {
            key: (
                combined([rank for rank, _ in rows], family_values(family, view)[0]),
                tuple(
                    combined([values[i] for _, values in rows], kind)
                    for i, kind in enumerate(kinds)
                ),
                len(rows),
            )
            for key, rows in members.items()
        }

    def _ranks(
        self, n: int, family: Family
    ) -> Iterator[tuple[Row, int | None, tuple[int | None, ...]]]:
        for row in self._rows[n].values():
            values = {
                f: [
                    number_of(value, row)
                    for value in family_values(f, row.view)
                    if not isinstance(value, Distribution)
                ]
                for f in row.view.families
            }
            known = [value for value in values[family] if value is not None]
            rank = None
            if known:
                rank = max(known) if family.type == "gauge" else min(sum(known), MAX_SUM)
            yield row, rank, tuple(value for side in values.values() for value in side)

    def label_values(self) -> dict[str, set[str]]:
        """Return the distinct values of each label except the direction, in all views."""
        values: dict[str, set[str]] = {
            label.name: set() for view in self.views for label in labels_of(view)
        }
        for rows in self._rows:
            for row in rows.values():
                for label, value in zip(labels_of(row.view), row.values, strict=True):
                    values[label.name].add(str(value))
        return values

    def lines(self, family: Family, row: Row) -> Iterator[str]:
        """Yield the lines of a row in a family, in order."""
        if family not in row.view.families:
            return
        for direction, value in zip(DIRECTIONS, family_values(family, row.view), strict=False):
            values = iter(row.values)
            labels = [
                f'{label.name}="{escape(direction if label == DIRECTION else next(values))}"'
                for label in row.view.labels
            ]
            if isinstance(value, Distribution):
                yield from histogram_lines(family, row.observed.get(value, []), labels)
                continue
            number = number_of(value, row)
            if number is not None:
                series = series_text(family.name, labels)
                yield f"{series} {decimal(number, family.decimals)}"

    def tag(self, flow: JSON) -> str:
        return Tags(self.spec.cluster_net_masks)[flow]


def labels_of(view: View) -> list[Label]:
    """Return the labels of a view, except the direction."""
    return [label for label in view.labels if label != DIRECTION]


def is_field(label: Label) -> bool:
    """Return whether a label is an unchanged field."""
    return label.rewrite is None and label.lookup is None


def series_text(name: str, labels: Sequence[str]) -> str:
    return f"{name}{{{','.join(labels)}}}" if labels else name


def histogram_lines(
    family: Family, observed: Sequence[int], labels: Sequence[str]
) -> Iterator[str]:
    bounds = [*((text, Fraction(text) * 10**family.decimals) for text in family.buckets)]
    for text, bound in [*bounds, ("+Inf", math.inf)]:
        series = series_text(f"{family.name}_bucket", [*labels, f'le="{text}"'])
        yield f"{series} {sum(value <= bound for value in observed)}"
    total = decimal(min(sum(observed), MAX_SUM), family.decimals)
    yield f"{series_text(f'{family.name}_sum', labels)} {total}"
    yield f"{series_text(f'{family.name}_count', labels)} {len(observed)}"


def family_values(family: Family, view: View) -> list[Total | Gauge | Distribution | None]:
    """Return the counters, gauges or distributions of a family.

    There is one for each direction, or one for the sum of both. The value ``None`` stands for the
    number of live flows.
    """
    paths = [path for path in (family.forward, family.backward) if path is not None]
    if family.type == "histogram":
        if DIRECTION in view.labels:
            return [Distribution((path,), family.observes) for path in paths]
        return [Distribution(tuple(paths), family.observes)]
    if paths == [()]:
        return [NEW_FLOWS if family.type == "counter" else None]
    if family.type == "gauge":
        return [Gauge(path, family.keep) for path in paths]
    if DIRECTION in view.labels:
        return [Total((path,)) for path in paths]
    return [Total(tuple(paths))]


def counters_of(view: View) -> list[Total]:
    return [value for value in values_of(view) if isinstance(value, Total)]


def values_of(view: View) -> Iterator[Total | Gauge | Distribution | None]:
    """Yield the values of all families of a view, and the counters of its ``amounts``."""
    for family in view.families:
        yield from family_values(family, view)
    for name in view.amounts:
        yield from amount_totals(name, view)


def amount_totals(name: str, view: View) -> list[Total]:
    """Return the counters of an amount: one for each direction, or one for their sum."""
    if DIRECTION in view.labels:
        return [Total((path,)) for path in AMOUNTS[name]]
    return [Total(AMOUNTS[name])]


def counts_amount(name: str, view: View) -> bool:
    return set(amount_totals(name, view)) <= set(values_of(view))


def amount_of(row: Row, name: str) -> int:
    """Return an amount of a row: the sum of both directions, or 0 if the view lacks the amount."""
    if not counts_amount(name, row.view):
        return 0
    return sum(row.totals.get(total, 0) for total in amount_totals(name, row.view))


def reaches(row: Row, bounds: Bounds) -> bool:
    """Return whether a row is shown. If there are bounds, reaching one of them is enough."""
    min_bytes, min_packets = bounds
    return (
        row.is_overflow
        or not any(bounds)
        or 0 < min_bytes <= amount_of(row, "bytes")
        or 0 < min_packets <= amount_of(row, "packets")
    )


def number_of(value: Total | Gauge | None, row: Row) -> int | None:
    """Return a value of a row; None if the row has no series for the value."""
    if value is None:
        return len(row.flows)
    if isinstance(value, Total):
        return row.totals.get(value)
    return row.gauges.get(value) or None


def combined(values: Sequence[int | None], kind: Total | Gauge | Distribution | None) -> int | None:
    """Return the value of a group of rows with these values; None if no row has a value."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if isinstance(kind, Gauge):
        return min(known) if kind.keep == "least" else max(known)
    return min(sum(known), MAX_SUM)


PART_FACTOR = 0xD1B54A32D192ED03


def part_of(row: Row, parts: int) -> int:
    """Return the number of the page part that has a row, from 0 to ``parts`` - 1.

    Each label value has a 64-bit hash, whose seed depends on the position of the label. The sum of
    the hashes is mixed, and scaled to the number of parts.
    """

    def step(h: int, word: int) -> int:
        h = (h ^ word) * PART_FACTOR % 2**64
        return h ^ h >> 32

    total = 0
    for n, (label, value) in enumerate(zip(labels_of(row.view), row.values, strict=True), 1):
        h = n * PART_FACTOR % 2**64
        if label.number and value.isdecimal() and int(value) < 2**31:
            total += step(h, int(value))
            continue
        text = escape(value).encode()
        for start in range(0, max(len(text), 1), 8):
            h = step(h, int.from_bytes(text[start : start + 8], "little"))
        total += h
    return (mix64(total % 2**64) >> 32) * parts >> 32


def mix64(x: int) -> int:
    """Mix the bits of a 64-bit number, as the finalizer of splitmix64 does."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def decimal(number: int, decimals: int) -> str:
    """Divide a number by ten to the power of ``decimals``; return the exact decimal fraction."""
    whole, rest = divmod(number, 10**decimals)
    return f"{whole}.{rest:0{decimals}}".rstrip("0") if rest else str(whole)


def matches(condition: Any, value: Any) -> bool:
    """Return whether the value of a field matches a condition of a rule.

    A condition is a value, a list of conditions, ``{"regex": …}``, or ``{"not": …}``. A value with
    ``/`` is a network, and a value such as ``"1-5"`` is a range of integers. If the object of the
    field is missing, ``value`` is None, and matches only ``not``.
    """
    if isinstance(condition, Mapping):
        if "not" in condition:
            return not matches(condition["not"], value)
        return value is not None and re.search(condition["regex"], str(value)) is not None
    if isinstance(condition, list):
        return any(matches(alternative, value) for alternative in condition)
    if isinstance(condition, str) and isinstance(value, int):
        low, high = condition.split("-")
        return int(low) <= value <= int(high)
    if isinstance(condition, str) and "/" in condition:
        address = to_address(value)
        return address is not None and address in ipaddress.ip_network(condition)
    return bool(condition == value)


def to_address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an address. Return None if the text is not an address, or if it has a zone.

    An IPv4-mapped address becomes an IPv4 address.
    """
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return None if address.scope_id else address.ipv4_mapped or address
    return address


def value_at(flow: JSON, path: Path, default: Any) -> Any:
    """Return a field of a flow.

    If the field is missing, the result is ``default``. If the object of the field is missing, the
    result is "".
    """
    value: Any = flow
    for name in path:
        if value is None:
            return ""
        value = value.get(name)
    return default if value is None else value


def path_of(name: str) -> Path:
    """Return the path of a field in a rule: a known label, or a path with dots."""
    return KNOWN_LABELS[name].path if name in KNOWN_LABELS else tuple(name.split("."))


def is_text(path: Path) -> bool:
    """Return whether the field at a path is a string, not an integer."""
    *part, name = path
    is_port = part == ["Transport"] and name in "AB"
    numbers = ("ID", "Code", "Start", "Last", "FinishType", "RawPacketsCaptured")
    return not (is_port or name in numbers or (part and part[0].endswith("Metric")))


def in_range(numbers: Iterable[int]) -> bool:
    return all(0 <= number <= MAX_NUMBER for number in numbers)


def first_invalid(flow: JSON, paths: Sequence[Path]) -> set[Path]:
    """Return a set with the first field that is out of range, or that makes the sum too large.

    The set is empty if all fields and their sum are valid.
    """
    total = 0
    for path in paths:
        number = value_at(flow, path, 0) or 0
        total += number
        if not in_range((number, total)):
            return {path}
    return set()


def added(totals: Mapping[Total, int], deltas: Deltas) -> dict[Total, int]:
    """Add deltas to counters; return the new counters, which do not exceed `MAX_SUM`."""
    return dict(totals) | {
        total: min(MAX_SUM, totals.get(total, 0) + delta) for total, delta in deltas.items()
    }


def with_new_flow(deltas: Deltas, initial_delta: str) -> Deltas:
    """Add the number of new flows to deltas: 1 if ``initial_delta`` is "total", otherwise 0."""
    return {**deltas, NEW_FLOWS: int(initial_delta == "total")}


def is_too_long(text: str) -> bool:
    return len(text.encode()) > MAX_TEXT_BYTES


# Flows and pages for tests


def make_flow(
    uuid: str = "a1",
    total: Sequence[int] = (100, 200, 1, 2),
    *,
    last_update: Sequence[int] | None = None,
    update_start: int = 1_000,
    update_last: int | None = None,
    start: int = 1_000,
    last: int = 2_000,
    rtt: int = 0,
    finish: int = 0,
    a: str = "10.0.0.1",
    b: str = "10.0.0.2",
    ports: tuple[int, int] = (40_000, 443),
    protocol: str = "TCP",
    node: str = "node-1",
) -> dict[str, Any]:
    """Return a flow as an analyzer sends it. The defaults are those of a first report.

    ``total`` and ``last_update`` have numbers in the order of ``COUNTERS``. ``last_update`` (by
    default ``total``), ``update_start`` and ``update_last`` belong to ``LastUpdateMetric``. As in
    Skydive's messages, ``RTT`` and ``FinishType`` are omitted if they are 0.
    """
    metric = dict(zip(COUNTERS, total, strict=True)) | {"Start": start, "Last": last}
    update = dict(zip(COUNTERS, total if last_update is None else last_update, strict=True))
    update |= {"Start": update_start, "Last": last if update_last is None else update_last}
    if rtt:
        metric["RTT"] = update["RTT"] = rtt
    flow = {
        "UUID": uuid,
        "Network": {"Protocol": "IPV4", "A": a, "B": b, "ID": 0},
        "Transport": {"Protocol": protocol, "A": ports[0], "B": ports[1], "ID": 0},
        "LastUpdateMetric": update,
        "Metric": metric,
        "Start": start,
        "Last": last,
        "NodeTID": node,
    }
    if finish:
        flow["FinishType"] = finish
    return flow


def escape(value: str) -> str:
    """Escape a label value for the text format 0.0.4."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def read_page(page: bytes, families: Sequence[Family] = FAMILIES) -> dict[str, set[str]]:
    """Parse a page of connections; return the sample lines by family.

    Assert that the page is valid: it has all families in order, each with ``HELP`` and ``TYPE``,
    and no duplicate series.
    """
    text = page.decode()
    assert text.endswith("\n")
    lines = iter(text.removesuffix("\n").split("\n"))
    result: dict[str, set[str]] = {}
    line = next(lines, None)
    for family in families:
        assert line is not None, f"{family.name} is missing"
        assert re.fullmatch(rf"# HELP {family.name} \S.*", line), line
        assert next(lines) == f"# TYPE {family.name} {family.type}"
        samples = result[family.name] = set()
        series = set()
        in_order = []
        names = [f"{family.name}{suffix}" for suffix in SUFFIXES.get(family.type, ("",))]
        starts = tuple(f"{name}{end}" for name in names for end in "{ ")
        for line in lines:
            if not line.startswith(starts):
                break
            in_order.append(line)
            name, _, value = line.rpartition(" ")
            assert re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]*[1-9])?", value), line
            assert name not in series, f"{name} appears twice"
            series.add(name)
            samples.add(line)
        else:
            line = None
        if family.type == "histogram":
            check_histograms(family, in_order)
    assert line is None, f"unexpected line after the last family: {line!r}"
    return result


SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}
"""The suffixes of the samples of a family, by type."""


def check_histograms(family: Family, lines: Sequence[str]) -> None:
    """Assert that the lines of each histogram are adjacent, in order and consistent."""
    bounds = [*family.buckets, "+Inf"]
    size = len(bounds) + 2
    assert len(lines) % size == 0
    for start in range(0, len(lines), size):
        names, numbers = zip(
            *(line.rsplit(" ", 1) for line in lines[start : start + size]), strict=True
        )
        labels = names[-1].removeprefix(f"{family.name}_count").strip("{}")
        others = [labels] if labels else []
        expected = [series_text(f"{family.name}_bucket", [*others, f'le="{b}"']) for b in bounds]
        expected += [series_text(f"{family.name}_{part}", others) for part in ("sum", "count")]
        assert list(names) == expected
        counts = [*map(int, numbers[:-2]), int(numbers[-1])]
        assert counts == sorted(counts)
        assert counts[-2] == counts[-1]


INTERFACE_COUNTERS = {
    ("rx_bytes", "receive_bytes"): "RxBytes",
    ("tx_bytes", "transmit_bytes"): "TxBytes",
    ("rx_packets", "receive_packets"): "RxPackets",
    ("tx_packets", "transmit_packets"): "TxPackets",
    ("rx_dropped", "receive_dropped"): "RxDropped",
    ("tx_dropped", "transmit_dropped"): "TxDropped",
    ("rx_errors", "receive_errors"): "RxErrors",
    ("tx_errors", "transmit_errors"): "TxErrors",
    ("rx_missed_errors", "receive_missed_errors"): "RxMissedErrors",
    ("tx_missed_errors", ""): "",  # Skydive does not have this counter.
    ("collisions", "collisions"): "Collisions",
}
INTERFACE_FAMILIES = tuple(
    Family(f"skydive_network_interface_{name}", "counter", (counter,))
    for (name, _), counter in INTERFACE_COUNTERS.items()
)
STANDARD_INTERFACE_FAMILIES = tuple(
    Family(f"skydive_interface_{name}_total", "counter", (counter,))
    for (_, name), counter in INTERFACE_COUNTERS.items()
    if name
)


def interface_page(
    nodes: Sequence[JSON], families: Sequence[Family] = INTERFACE_FAMILIES
) -> dict[str, set[str]]:
    """Return the sample lines of interfaces, by family, from a response of the topology API."""
    page: dict[str, set[str]] = {family.name: set() for family in families}
    newest: dict[str, JSON] = {}
    for node in sorted(nodes, key=lambda node: node["UpdatedAt"]):
        data = node["Metadata"]
        values = {
            "interface_name": data.get("Name", ""),
            "host": node.get("Host", ""),
            "interface_type": data.get("Type", ""),
            "ipv4": (data.get("IPV4") or [""])[0],
            "ipv6": (data.get("IPV6") or [""])[0],
            "node_tid": data.get("TID") or node["ID"],
        }
        labels = ",".join(f'{name}="{escape(value)}"' for name, value in values.items())
        newest[labels] = data.get("Metric") or {}
    for family in families:
        for labels, counters in newest.items():
            page[family.name].add(f"{family.name}{{{labels}}} {counters.get(family.forward[0], 0)}")
    return page


def topology_labels(nodes: Sequence[JSON]) -> dict[str, Label]:
    """Return labels whose values come from a response of the topology API, by name of the label.

    ``nodes`` are the interfaces in the response, with different ``TID``s. The name of an address is
    the host of the interface that has the address.
    """
    names, hosts, types, owners = Names(), Names(), Names(), Names()
    for node in nodes:
        data = node["Metadata"]
        names[data["TID"]] = (data["Name"],)
        hosts[data["TID"]] = (node["Host"],)
        types[data["TID"]] = (data["Type"],)
        for address in (data.get("IPV4") or []) + (data.get("IPV6") or []):
            owners[address.partition("/")[0]] = (node["Host"],)
    return {
        name: looked_up(name, path, known)
        for name, path, known in (
            ("node_name", ("NodeTID",), names),
            ("node_host", ("NodeTID",), hosts),
            ("node_type", ("NodeTID",), types),
            ("initiator_name", ("Network", "A"), owners),
            ("target_name", ("Network", "B"), owners),
        )
    }
