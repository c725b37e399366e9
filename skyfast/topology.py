"""Network interfaces: asked from the topology API, kept, and rendered as metric families.

:class:`Interfaces` holds the state and has neither clock nor socket: answers and ``now`` go in,
a page comes out. :class:`TopologyPoller` asks the analyzers. Nothing here knows of flows, so
a topology API that fails cannot harm them.
"""

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from skyfast.selfmetrics import INTERFACE_SKIPS, TopologyStats

QUERY: Final = "G.V().Has('EncapType', 'ether')"
"""The Gremlin query for every network interface."""

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Longest answer that is read, before and after decompression: about 20,000 real interfaces.

This is a security limit: an answer may be a gzip bomb."""

MAX_INTERFACES: Final = 20_000
"""Interfaces on the page at most; the others are counted as ``too_many``."""

MAX_LABEL_CHARS: Final = 1024
"""Longest label value, in characters; a node with a longer one is counted as ``text_too_long``."""

MAX_LABELS_CHARS: Final = 8 * 1024 * 1024
"""All label texts together, in characters; beyond this, nodes are counted as ``too_many``.

The page repeats them for every family, so this bounds the page's size where names are long."""

MAX_COUNTER: Final = 2**63 - 1
"""Skydive's counters are int64. A value outside 0 to this is left out as ``out_of_range``."""


class MalformedAnswerError(ValueError):
    """An answer is no JSON list, so nothing of it can be used."""


class _Counters(msgspec.Struct, gc=False, rename="pascal"):
    """``Metric``: each counter is left out where it is zero."""

    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    rx_dropped: int = 0
    tx_dropped: int = 0
    rx_errors: int = 0
    tx_errors: int = 0
    rx_missed_errors: int = 0
    collisions: int = 0


class _Metadata(msgspec.Struct, gc=False, rename="pascal"):
    name: str | None = None
    type: str | None = None
    tid: str | None = msgspec.field(default=None, name="TID")
    ipv4: list[str] | None = msgspec.field(default=None, name="IPV4")
    ipv6: list[str] | None = msgspec.field(default=None, name="IPV6")
    metric: _Counters | None = None


class _Node(msgspec.Struct, gc=False, rename="pascal"):
    metadata: _Metadata
    id: str | None = msgspec.field(default=None, name="ID")
    host: str | None = None
    updated_at: int | None = None


_decode_nodes = msgspec.json.Decoder(list[_Node] | None).decode
_decode_node = msgspec.json.Decoder(_Node).decode
_split = msgspec.json.Decoder(list[msgspec.Raw] | None).decode


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    help: str
    counter: str
    """The field of :class:`_Counters`; empty where Skydive has none, which shows 0."""


_FAMILIES: Final = tuple(
    _Family(f"skydive_network_interface_{name}", help_, counter)
    for name, help_, counter in (
        ("rx_bytes", "Bytes the interface has received.", "rx_bytes"),
        ("tx_bytes", "Bytes the interface has sent.", "tx_bytes"),
        ("rx_packets", "Packets the interface has received.", "rx_packets"),
        ("tx_packets", "Packets the interface has sent.", "tx_packets"),
        ("rx_dropped", "Received packets the interface has dropped.", "rx_dropped"),
        ("tx_dropped", "Packets to be sent the interface has dropped.", "tx_dropped"),
        ("rx_errors", "Packets received with an error.", "rx_errors"),
        ("tx_errors", "Packets whose sending failed.", "tx_errors"),
        ("rx_missed_errors", "Packets missed for lack of room to receive.", "rx_missed_errors"),
        ("tx_missed_errors", "Always 0: Skydive has no such counter.", ""),
        ("collisions", "Collisions seen while sending.", "collisions"),
    )
)

_LABELS: Final = ("interface_name", "host", "interface_type", "ipv4", "ipv6", "node_tid")
_LABEL_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_NO_TRAFFIC: Final = _Counters()

# The JSON escapes of a text: pairs of surrogates are left alone, group 1 is half of one.
_ESCAPES: Final = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)


class Interfaces:
    """The interfaces of the last answer, rendered.

    An answer replaces everything: an interface that it does not name leaves at once. While no
    answer comes, the interfaces stay for three intervals or ``connection_timeout_s``, whichever
    is longer.

    An interface is known by its ``TID``, or by its node's ``ID`` where there is none: this is
    the label ``node_tid``. Nodes whose labels are all the same are one series, that of the
    newest ``UpdatedAt``. Counters are the devices' own: they start over when the device does.

    One thread at a time may update; :meth:`page` may be called from any.
    """

    def __init__(
        self, *, interval_s: float, connection_timeout_s: float, stats: TopologyStats
    ) -> None:
        """Begin without interfaces. ``stats`` is kept up to date with every answer."""
        self._lifetime_s = max(3 * interval_s, connection_timeout_s)
        self._stats = stats
        # Replaced as one, never changed: readers in other threads see one answer or the other.
        self._page: tuple[bytes, float] = (b"", 0.0)

    def update(self, answer: bytes, now: float) -> None:
        """Show the interfaces of ``answer``, the JSON text of a list of nodes.

        Nodes that cannot be shown are left out and counted in ``stats.skipped``. Raises
        MalformedAnswerError, and changes nothing, where ``answer`` as a whole is not usable.
        """
        skipped = dict.fromkeys(INTERFACE_SKIPS, 0)
        rows = _rows(_nodes(answer, skipped), skipped)
        page = b"".join(_render(family, rows, skipped) for family in _FAMILIES) if rows else b""
        self._page = (page, now + self._lifetime_s)
        self._stats.skipped = skipped
        self._stats.interfaces = len(rows)

    def expire(self, now: float) -> None:
        """Forget the interfaces where the last answer is too old."""
        if not self.page(now):
            self._page = (b"", 0.0)
            self._stats.interfaces = 0

    def page(self, now: float) -> bytes:
        """Return the families in text format 0.0.4, or nothing where there is no interface."""
        page, leaves_at = self._page
        return page if now < leaves_at else b""


def _nodes(answer: bytes, skipped: dict[str, int]) -> list[_Node]:
    """Return the usable nodes of ``answer``, and count the others."""
    try:
        return _decode_nodes(answer) or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Rare, so it may be slow: node by node, with every text made readable.
        text = _ESCAPES.sub(_readable, answer.decode(errors="replace"))
    try:
        parts = _split(text) or []
    except (msgspec.MsgspecError, RecursionError) as error:
        raise MalformedAnswerError(str(error)) from None
    nodes = []
    for part in parts:
        try:
            nodes.append(_decode_node(part))
        except msgspec.MsgspecError:
            skipped["invalid"] += 1
    return nodes


def _readable(escape: re.Match[str]) -> str:
    return "\\ufffd" if escape[1] else escape[0]


def _rows(nodes: list[_Node], skipped: dict[str, int]) -> list[tuple[str, _Counters]]:
    """Return the label text, unique, and the counters of what is shown; count what is not."""
    newest: dict[tuple[str, ...], _Node] = {}
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
    rows: list[tuple[str, _Counters]] = []
    room = MAX_LABELS_CHARS
    for labels, node in newest.items():
        text = _label_text(labels)
        if len(rows) == MAX_INTERFACES or len(text) > room:
            skipped["too_many"] += 1
            continue
        room -= len(text)
        rows.append((text, node.metadata.metric or _NO_TRAFFIC))
    return rows


def _labels(node: _Node) -> tuple[str, ...]:
    """Return the label values in the order of ``_LABELS``; what is missing is empty."""
    metadata = node.metadata
    return (
        metadata.name or "",
        node.host or "",
        metadata.type or "",
        metadata.ipv4[0] if metadata.ipv4 else "",
        metadata.ipv6[0] if metadata.ipv6 else "",
        metadata.tid or node.id or "",
    )


def _label_text(values: tuple[str, ...]) -> str:
    """Return ``{name="value",...}``, escaped by the rules of the text format."""
    pairs = zip(_LABELS, (value.translate(_LABEL_ESCAPES) for value in values), strict=True)
    return "{" + ",".join(f'{name}="{value}"' for name, value in pairs) + "}"


def _render(family: _Family, rows: list[tuple[str, _Counters]], skipped: dict[str, int]) -> bytes:
    lines = [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} counter"]
    for labels, counters in rows:
        value = getattr(counters, family.counter) if family.counter else 0
        if 0 <= value <= MAX_COUNTER:
            lines.append(f"{family.name}{labels} {value}")
        else:
            skipped["out_of_range"] += 1
    return ("\n".join(lines) + "\n").encode()
