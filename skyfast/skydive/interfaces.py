"""Exports the counters of network interfaces as metric families."""

import heapq
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import msgspec

from skyfast.skydive.topology_nodes import Counters, InterfaceNode, NodesResponse
from skyfast.stats import INTERFACE_SKIPS, TopologyStats
from skyfast.text_format import MetricFamily, label_text, with_unknown_starts

MAX_INTERFACES: Final = 20_000
"""Maximum number of interfaces; further interfaces are counted as ``too_many``."""

MAX_LABEL_CHARS: Final = 1024
"""Maximum length of a label value; nodes with longer values are counted as ``text_too_long``."""

MAX_LABELS_CHARS: Final = 8 * 1024 * 1024
"""Maximum total length of the labels of all interfaces; further nodes are counted as ``too_many``.

Every metric family repeats the labels. Therefore this limit bounds the page size, even if names are
long."""

MAX_COUNTER: Final = 2**63 - 1
"""The largest value of int64, which is the type of Skydive's counters. Samples below 0 or above
this limit are left out and counted as ``out_of_range``."""


MAX_BUSIEST: Final = 50
"""Maximum number of interfaces that `Interfaces.busiest` returns."""

Naming = Literal["compatible", "standard"]


@dataclass(frozen=True, slots=True)
class Interface:
    labels: dict[str, str]
    received_bytes: int
    transmitted_bytes: int
    dropped_packets: int
    errors: int


class InterfaceName(NamedTuple):
    host: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family(MetricFamily):
    counter: str
    """The field of `Counters` that the family exports. If Skydive does not have the counter, this
    is "", and all exported values are 0."""


_COUNTERS: Final = (
    ("rx_bytes", "receive_bytes", "Bytes received by the interface."),
    ("tx_bytes", "transmit_bytes", "Bytes sent by the interface."),
    ("rx_packets", "receive_packets", "Packets received by the interface."),
    ("tx_packets", "transmit_packets", "Packets sent by the interface."),
    ("rx_dropped", "receive_dropped", "Received packets dropped by the interface."),
    ("tx_dropped", "transmit_dropped", "Outgoing packets dropped by the interface."),
    ("rx_errors", "receive_errors", "Packets received with an error."),
    ("tx_errors", "transmit_errors", "Packets that could not be sent."),
    (
        "rx_missed_errors",
        "receive_missed_errors",
        "Packets missed due to a full receive buffer.",
    ),
    ("tx_missed_errors", "", "Always 0, because Skydive has no such counter."),
    ("collisions", "collisions", "Collisions while sending."),
)
"""Each entry has three elements:

1. The end of the compatible metric name. If Skydive has the counter, this is also the name of its
   field in `Counters`.
2. A part of the standard metric name, or "" if Skydive does not have the counter.
3. The help text.
"""

_FAMILIES: Final[dict[Naming, tuple[_Family, ...]]] = {
    "compatible": tuple(
        _Family(
            name=f"skydive_network_interface_{name}",
            type="counter",
            help=text,
            counter=name if standard else "",
        )
        for name, standard, text in _COUNTERS
    ),
    "standard": tuple(
        _Family(name=f"skydive_interface_{standard}_total", type="counter", help=text, counter=name)
        for name, standard, text in _COUNTERS
        if standard
    ),
}

_LABELS: Final = ("interface_name", "host", "interface_type", "ipv4", "ipv6", "node_tid")
_NO_TRAFFIC: Final = Counters()


@dataclass(frozen=True)
class _Page:
    text: bytes
    """All metric families in the text format 0.0.4."""
    families: tuple[tuple[_Family, slice], ...]
    """Each family, and the slice of ``text`` that contains the family's samples."""
    busiest: tuple[Interface, ...]
    names: Mapping[str, InterfaceName]
    """The names of interfaces by ``node_tid``."""
    expires_at: float
    _openmetrics: dict[tuple[int, bool], bytes] = field(default_factory=dict)

    def in_openmetrics(self, version: int, *, created: bool) -> bytes:
        """Return the page in OpenMetrics, rendered on first use.

        `Interfaces.page` explains the arguments.
        """
        key = version, version == 1 and created
        if key not in self._openmetrics:
            text = memoryview(self.text)
            page = b"".join(
                part
                for family, samples in self.families
                for part in (family.head(openmetrics=version).encode(), text[samples])
            )
            self._openmetrics[key] = with_unknown_starts(page) if key[1] else page
        return self._openmetrics[key]


_NOTHING: Final = _Page(b"", (), (), {}, 0.0)


class Interfaces:
    """The interfaces in the latest response of the topology API, as metric families.

    Interfaces that are missing from a new response are removed at once. Without a new response, the
    interfaces expire after three polling intervals or ``connection_timeout_s``, whichever is
    longer.

    If several nodes have identical labels, their common series has the values of the node with the
    newest ``UpdatedAt``. If a device resets its counters, the exported values are reset too.

    All methods are thread-safe. An update can take a second, but does not block other methods.
    """

    def __init__(
        self,
        *,
        interval_s: float,
        connection_timeout_s: float,
        stats: TopologyStats,
        naming: Naming = "compatible",
    ) -> None:
        self.set_lifetime(interval_s=interval_s, connection_timeout_s=connection_timeout_s)
        self._stats = stats
        self._families = _FAMILIES[naming]
        # The page is replaced atomically, so that readers need no lock.
        self._page = _NOTHING
        self._writing = threading.Lock()

    def set_lifetime(self, *, interval_s: float, connection_timeout_s: float) -> None:
        """Change the lifetime of interfaces, starting with the next response."""
        self._lifetime_s = max(3 * interval_s, connection_timeout_s)

    def update(self, response: NodesResponse, now: float) -> None:
        """Replace the interfaces; count unusable nodes in ``stats.skipped``."""
        skipped = dict.fromkeys(INTERFACE_SKIPS, 0)
        skipped["invalid"] = response.invalid
        skipped["text_too_long"] = response.too_long
        skipped["too_many"] = response.excess
        rows = _rows(response.nodes, skipped)
        page = _render(self._families, rows, skipped, now + self._lifetime_s) if rows else _NOTHING
        with self._writing:
            self._page = page
            self._stats.skipped = skipped
            self._stats.interfaces = len(rows)

    def expire(self, now: float) -> None:
        with self._writing:
            if now >= self._page.expires_at:
                self._page = _NOTHING
                self._stats.interfaces = 0

    def page(self, now: float, openmetrics: int = 0, *, created: bool = False) -> bytes:
        """Return the metric families, or nothing if there are no interfaces.

        The page does not end with ``# EOF``.

        * ``openmetrics`` is 0 for the text format 0.0.4, 1 for OpenMetrics 1.0, or 2 for
          OpenMetrics 2.0. Pass 1 only with ``naming: standard``.
        * If ``created`` is true, each counter in OpenMetrics 1.0 has the start time 0 ("unknown"),
          because devices do not report when a counter started.
        """
        page = self._page
        if now >= page.expires_at:
            return b""
        return page.in_openmetrics(openmetrics, created=created) if openmetrics else page.text

    def busiest(self, now: float) -> tuple[Interface, ...]:
        """Return the `MAX_BUSIEST` interfaces with the most traffic in bytes, busiest first."""
        page = self._page
        return () if now >= page.expires_at else page.busiest

    @property
    def names(self) -> Mapping[str, InterfaceName]:
        """The names of interfaces by ``node_tid``."""
        return self._page.names


class _Row(msgspec.Struct, gc=False, frozen=True):
    text: str
    """The labels in the text format. No two rows have the same text."""
    labels: tuple[str, ...]
    counters: Counters


def _rows(nodes: list[InterfaceNode], skipped: dict[str, int]) -> list[_Row]:
    """Return the rows of the usable nodes, and count the other nodes in ``skipped``."""
    newest: dict[tuple[str, ...], InterfaceNode] = {}
    for node in nodes:
        labels = _labels(node)
        if not labels[-1]:
            skipped["no_id"] += 1
        elif max(map(len, labels)) > MAX_LABEL_CHARS:
            skipped["text_too_long"] += 1
        elif labels not in newest:
            newest[labels] = node
        else:
            skipped["duplicate"] += 1
            if (node.updated_at or 0) > (newest[labels].updated_at or 0):
                newest[labels] = node
    rows: list[_Row] = []
    capacity = MAX_LABELS_CHARS
    for labels, node in newest.items():
        text = label_text(dict(zip(_LABELS, labels, strict=True)))
        if len(rows) == MAX_INTERFACES or len(text) > capacity:
            skipped["too_many"] += 1
            continue
        capacity -= len(text)
        rows.append(_Row(text, labels, node.metadata.metric or _NO_TRAFFIC))
    return rows


def _labels(node: InterfaceNode) -> tuple[str, ...]:
    """Return the label values in the order of ``_LABELS``; missing values are empty."""
    metadata = node.metadata
    return (
        metadata.name or "",
        node.host or "",
        metadata.type or "",
        metadata.ipv4[0] if metadata.ipv4 else "",
        metadata.ipv6[0] if metadata.ipv6 else "",
        node.tid,
    )


def _render(
    families: tuple[_Family, ...],
    rows: list[_Row],
    skipped: dict[str, int],
    expires_at: float,
) -> _Page:
    parts: list[bytes] = []
    positions: list[tuple[_Family, slice]] = []
    end = 0
    for family in families:
        head, samples = family.head(openmetrics=False).encode(), _samples(family, rows, skipped)
        begin = end + len(head)
        end = begin + len(samples)
        parts += (head, samples)
        positions.append((family, slice(begin, end)))
    names = {tid: InterfaceName(host, name) for name, host, *_, tid in (row.labels for row in rows)}
    return _Page(b"".join(parts), tuple(positions), _busiest(rows), names, expires_at)


def _busiest(rows: list[_Row]) -> tuple[Interface, ...]:
    def traffic(row: _Row) -> int:
        return _sum(row.counters.rx_bytes, row.counters.tx_bytes)

    return tuple(
        Interface(
            labels=dict(zip(_LABELS, row.labels, strict=True)),
            received_bytes=_sum(row.counters.rx_bytes),
            transmitted_bytes=_sum(row.counters.tx_bytes),
            dropped_packets=_sum(row.counters.rx_dropped, row.counters.tx_dropped),
            errors=_sum(row.counters.rx_errors, row.counters.tx_errors),
        )
        for row in heapq.nlargest(MAX_BUSIEST, rows, key=traffic)
    )


def _sum(*values: int) -> int:
    """Return the sum of ``values``, without those below 0 or above `MAX_COUNTER`."""
    return sum(value for value in values if 0 <= value <= MAX_COUNTER)


def _samples(family: _Family, rows: list[_Row], skipped: dict[str, int]) -> bytes:
    # For 20,000 interfaces, `MetricFamily.lines` would take a quarter longer than this loop.
    lines = []
    for row in rows:
        value = getattr(row.counters, family.counter) if family.counter else 0
        if 0 <= value <= MAX_COUNTER:
            lines.append(f"{family.name}{row.text} {value}\n")
        else:
            skipped["out_of_range"] += 1
    return "".join(lines).encode()
