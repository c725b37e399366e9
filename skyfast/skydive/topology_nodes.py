"""Decodes the nodes in responses of the topology API, for the interface metrics.

The only exception that a response can raise is :class:`MalformedResponseError`.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from skyfast.flows.fields import UNDECODABLE
from skyfast.skydive._json_split import ArraySplitter
from skyfast.skydive.json_repair import prune_depth, replace_unreadable

MAX_ELEMENT_BYTES: Final = 1024 * 1024
"""Maximum size of a node or edge; longer ones are skipped. Most are a few kilobytes long.

Nodes of Kubernetes objects fit, because Kubernetes stores no larger objects."""

MAX_ELEMENTS: Final = 100_000
"""At most this many nodes or edges of a response are kept. Further ones are skipped."""


class MalformedResponseError(ValueError):
    """A response is not a JSON list, or one of its elements is not JSON."""


class Counters(msgspec.Struct, gc=False, rename="pascal"):
    """The counters of an interface. Skydive omits counters that are zero."""

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


class InterfaceMetadata(msgspec.Struct, gc=False, rename="pascal"):
    """Addresses have a prefix length: ``10.0.0.1/24``.

    Addresses are in tuples, because the garbage collector ignores tuples of strings, but not lists.
    """

    name: str | None = None
    type: str | None = None
    encap_type: str | None = None
    tid: str | None = msgspec.field(default=None, name="TID")
    ipv4: tuple[str, ...] | None = msgspec.field(default=None, name="IPV4")
    ipv6: tuple[str, ...] | None = msgspec.field(default=None, name="IPV6")
    metric: Counters | None = None


class InterfaceNode(msgspec.Struct, gc=False, rename="pascal"):
    metadata: InterfaceMetadata
    id: str | None = msgspec.field(default=None, name="ID")
    host: str | None = None
    updated_at: int | None = None
    """In milliseconds."""

    @property
    def tid(self) -> str:
        """The ``NodeTID`` in flows: the ``TID``, or else the ``ID``, or else ""."""
        return self.metadata.tid or self.id or ""


@dataclass(frozen=True, slots=True)
class NodesResponse:
    """The usable nodes of a response, in order, and the numbers of skipped nodes."""

    nodes: list[InterfaceNode]
    invalid: int = 0
    """Number of nodes with values of wrong types."""
    too_long: int = 0
    """Number of nodes longer than `MAX_ELEMENT_BYTES`."""
    excess: int = 0
    """Number of nodes beyond `MAX_ELEMENTS`."""


_decode_node = msgspec.json.Decoder(InterfaceNode).decode
_check_syntax = msgspec.json.Decoder(msgspec.Raw).decode


class NodesReader:
    def __init__(self) -> None:
        self._nodes: list[InterfaceNode] = []
        self._invalid = 0
        self._too_long = 0
        self._excess = 0

    def add(self, element: bytes) -> None:
        """Decode ``element``, the JSON text of a node.

        Raises:
            MalformedResponseError: ``element`` is not JSON.

        """
        try:
            node = _decode_node(element)
        except UNDECODABLE:
            recovered = _recover(element)
            if recovered is None:
                self._invalid += 1
                return
            node = recovered
        if len(self._nodes) < MAX_ELEMENTS:
            self._nodes.append(node)
        else:
            self._excess += 1

    def skip(self, count: int) -> None:
        self._too_long += count

    def response(self) -> NodesResponse:
        return NodesResponse(self._nodes, self._invalid, self._too_long, self._excess)


def _recover(element: bytes) -> InterfaceNode | None:
    """Decode a node after replacing invalid text; return None if values have wrong types."""
    text = readable(element)
    try:
        return _decode_node(text)
    except UNDECODABLE:
        return None


def readable(element: bytes) -> bytes:
    """Return ``element`` without parts that are nested too deeply. Invalid text becomes U+FFFD.

    Raises:
        MalformedResponseError: ``element`` is not JSON.

    """
    text = replace_unreadable(element)
    try:
        try:
            _check_syntax(text)
        except RecursionError:
            text = prune_depth(text)
            _check_syntax(text)
    except msgspec.MsgspecError as error:
        raise MalformedResponseError(str(error)) from None
    return text


def read(response: bytes) -> NodesResponse:
    """Decode ``response``, the JSON text of a list of nodes.

    Raises:
        MalformedResponseError: ``response`` is not a JSON list, or an element is not JSON.

    """
    splitter, reader = ArraySplitter(max_element_bytes=MAX_ELEMENT_BYTES), NodesReader()
    try:
        for element in splitter.feed(response):
            reader.add(element)
        splitter.close()
    except MalformedResponseError:
        raise
    except ValueError as error:
        raise MalformedResponseError(str(error)) from None
    reader.skip(splitter.skipped)
    return reader.response()
