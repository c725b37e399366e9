"""Decodes responses of the topology API, which are lists of nodes.

No response raises an exception other than :class:`MalformedAnswerError`.
"""

from dataclasses import dataclass

import msgspec

from skyfast.flows.fields import UNDECODABLE
from skyfast.skydive.json_repair import prune_depth, replace_unreadable


class MalformedAnswerError(ValueError):
    """A response is not a JSON list."""


class Counters(msgspec.Struct, gc=False, rename="pascal"):
    """``Metric``; Skydive omits counters that are zero."""

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


class Metadata(msgspec.Struct, gc=False, rename="pascal"):
    """``Metadata``. The addresses have a prefix length: ``10.0.0.1/24``."""

    name: str | None = None
    type: str | None = None
    encap_type: str | None = None
    tid: str | None = msgspec.field(default=None, name="TID")
    ipv4: list[str] | None = msgspec.field(default=None, name="IPV4")
    ipv6: list[str] | None = msgspec.field(default=None, name="IPV6")
    metric: Counters | None = None


class Node(msgspec.Struct, gc=False, rename="pascal"):
    """A node of the topology. ``updated_at`` is in milliseconds."""

    metadata: Metadata
    id: str | None = msgspec.field(default=None, name="ID")
    host: str | None = None
    updated_at: int | None = None

    @property
    def tid(self) -> str:
        """The ``NodeTID`` in flows: the ``TID``, or the ``ID`` if there is none, or ""."""
        return self.metadata.tid or self.id or ""


@dataclass(frozen=True, slots=True)
class Answer:
    """The usable nodes, in no particular order, and the number of unusable ones."""

    nodes: list[Node]
    invalid: int


_decode_nodes = msgspec.json.Decoder(list[Node] | None).decode
_decode_node = msgspec.json.Decoder(Node).decode
_split = msgspec.json.Decoder(list[msgspec.Raw] | None).decode


def read(answer: bytes) -> Answer:
    """Decode ``answer``, the JSON text of a list of nodes.

    Raises:
        MalformedAnswerError: ``answer`` is not a JSON list.

    """
    try:
        return Answer(_decode_nodes(answer) or [], 0)
    except UNDECODABLE:
        # Rare, so it may be slow: decode node by node, with invalid text replaced.
        text = replace_unreadable(answer)
    try:
        parts = _parts(text)
    except msgspec.MsgspecError as error:
        raise MalformedAnswerError(str(error)) from None
    nodes = []
    for part in parts:
        try:
            nodes.append(_decode_node(part))
        except msgspec.MsgspecError:
            pass
    return Answer(nodes, len(parts) - len(nodes))


def _parts(text: bytes) -> list[msgspec.Raw]:
    try:
        return _split(text) or []
    except RecursionError:
        return _split(prune_depth(text)) or []
