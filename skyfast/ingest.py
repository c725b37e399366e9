"""From a message's bytes to updates of the table: decoding, filters, counts, salvage.

Whatever a message holds, nothing is raised for it: what cannot be used is counted, and
costs neither the other flows of its message nor the subscription.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any, Protocol

import msgspec

from skyfast.config import Config
from skyfast.selfmetrics import MESSAGE_TYPES, NAMESPACES, AnalyzerStats, Stats
from skyfast.wire import Envelope, FlowTypes

MAX_DEPTH = 64
"""Levels of nesting that are kept of a message which has more than the decoder can follow.

A flow has 3 to 5 below the message's own two."""

MAX_REPAIRED_TOKENS = 500_000
"""Escapes, or strings and brackets, looked at to save the rest of a message.

They take 0.2 s, a small part of what a pong may take; such a message of 100 flows has 10,000."""

MAX_CLASSIFIED = 65_536
"""Addresses whose place inside or outside the cluster is remembered."""

# msgspec raises more than its own errors: bad UTF-8 and deep nesting have Python's.
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# A string, whole or unfinished, or a bracket. Possessive, so that no input makes it backtrack.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)

# An escape; the group holds one that is half of a surrogate pair without the other half.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)

Flow = Any
"""A struct of the plan's flow types: which fields it has is known at run time only."""


class Updatable(Protocol):
    """The part of the table that is written to."""

    def update(self, flows: list[Flow], now: float, start: int = 0) -> int: ...


class Ingest:
    """Decodes messages and applies their flows.

    :param types: the flow types of the table's plan.
    :param now: the table's clock, in seconds.
    """

    def __init__(
        self,
        *,
        config: Config,
        types: FlowTypes,
        table: Updatable,
        stats: Stats,
        now: Callable[[], float],
    ) -> None:
        self._table = table
        self._now = now
        self._skipped = stats.flows_skipped
        self._admitted = admission(config)
        self._messages = msgspec.json.Decoder(_message_type(types.Flow))
        self._full_messages = msgspec.json.Decoder(_message_type(types.FullFlow))
        self._full_flow = msgspec.json.Decoder(types.FullFlow)
        self._envelope = msgspec.json.Decoder(Envelope)
        self._raw_list = msgspec.json.Decoder(list[msgspec.Raw])

    def message(self, data: bytes | bytearray, analyzer: AnalyzerStats) -> None:
        """Apply one message, as received; count it under its analyzer."""
        try:
            message = self._messages.decode(data)
        except _UNDECODABLE:
            self._salvage(bytes(data), analyzer)
            return
        if not _carries_flows(message.Namespace, message.Type, analyzer) or not message.Obj:
            return
        flows = message.Obj
        analyzer.flows += len(flows)
        admitted = self._admitted(flows)
        self._skipped["excluded"] += len(flows) - len(admitted)
        done = self._table.update(admitted, self._now())
        if done < len(admitted):
            self._decode_fully(bytes(data), _position(admitted[done], flows))

    def _decode_fully(self, data: bytes, position: int) -> None:
        """Apply the message's flows from ``position`` on, which were not applied or counted yet."""
        try:
            flows = self._full_messages.decode(data).Obj[position:]
        except _UNDECODABLE:
            raws = self._raw_list.decode(self._envelope.decode(data).Obj)
            flows = self._one_by_one(raws[position:])
        self._table.update(self._admitted(flows), self._now())

    def _salvage(self, data: bytes, analyzer: AnalyzerStats) -> None:
        """Apply what is good in a message that is not, as a whole, one of flows."""
        try:
            envelope = self._open(data)
        except msgspec.ValidationError:
            analyzer.errors["not_a_message"] += 1
            return
        except _UNDECODABLE:
            analyzer.errors["malformed"] += 1
            return
        if not _carries_flows(envelope.Namespace, envelope.Type, analyzer):
            return
        try:
            raws = self._raw_list.decode(envelope.Obj)
        except _UNDECODABLE:
            analyzer.errors["not_a_list"] += 1
            return
        analyzer.flows += len(raws)
        flows = self._one_by_one(raws)
        admitted = self._admitted(flows)
        self._skipped["excluded"] += len(flows) - len(admitted)
        self._table.update(admitted, self._now())

    def _open(self, data: bytes) -> Envelope:
        try:
            return self._envelope.decode(data)
        except msgspec.ValidationError:
            raise
        except _UNDECODABLE:
            # Two things stop the decoder that do not make the JSON's structure wrong.
            return self._envelope.decode(pruned(unpaired_marked(data)))

    def _one_by_one(self, raws: Iterable[msgspec.Raw]) -> list[Flow]:
        """Decode flows each on its own; those that cannot be are counted."""
        flows = []
        for raw in raws:
            try:
                flows.append(self._full_flow.decode(raw))
            except _UNDECODABLE as error:
                # msgspec takes integers of any size up to some thousand digits.
                huge = str(error).startswith("Integer value out of range")
                self._skipped["out_of_range" if huge else "invalid"] += 1
        return flows


def _message_type(flow: Any) -> Any:
    fields = [("Namespace", str, ""), ("Type", str, ""), ("Obj", list[flow] | None, None)]
    return msgspec.defstruct("Message", fields, gc=False)


def _carries_flows(namespace: str, message_type: str, analyzer: AnalyzerStats) -> bool:
    """Count the message under its kind, and tell whether flows are to be read from it."""
    if namespace.startswith("flow/"):
        namespace = "flow"
    key = (
        namespace if namespace in NAMESPACES else "other",
        message_type if message_type in MESSAGE_TYPES else "other",
    )
    analyzer.messages[key] = analyzer.messages.get(key, 0) + 1
    return key == ("flow", "store")


def _position(wanted: Flow, flows: list[Flow]) -> int:
    return next(i for i, flow in enumerate(flows) if flow is wanted)


def unpaired_marked(data: bytes) -> bytes:
    r"""Return a message in which halves of surrogate pairs are bytes that are no UTF-8.

    RFC 8259 allows ``"\\ud800"`` in a text, the decoder takes it for the end of the message. With
    a wrong byte instead, only the flow that holds it is wrong.
    """

    def marked(escape: re.Match[bytes]) -> bytes:
        return b"\xff" if escape[1] else escape[0]

    return _ESCAPE.sub(marked, data, count=MAX_REPAIRED_TOKENS)


def pruned(data: bytes) -> bytes:
    """Return a message without what is nested deeper than `MAX_DEPTH`.

    :raises msgspec.DecodeError: it has more than `MAX_REPAIRED_TOKENS` strings and brackets.
    """
    kept = bytearray()
    depth = 0
    kept_to = 0
    for count, token in enumerate(_TOKEN.finditer(data)):
        if count == MAX_REPAIRED_TOKENS:
            raise msgspec.DecodeError("too long for its depth")
        match token[0]:
            case b"[" | b"{":
                depth += 1
                if depth == MAX_DEPTH:
                    kept += data[kept_to : token.end()]
                    kept_to = len(data)
            case b"]" | b"}":
                if depth == MAX_DEPTH:
                    kept_to = token.start()
                depth -= 1
    return bytes(kept + data[kept_to:])


def admission(config: Config) -> Callable[[list[Flow]], list[Flow]]:
    """Return what picks the flows that ``filter.excluded_tags`` lets in.

    A flow is ``internal`` when both its addresses lie in ``classify.cluster_net_masks``,
    ``egress`` or ``ingress`` when only the initiator's or the target's does, and ``other`` when
    neither does or one is no address. Flows that lack a part pass: the table counts them.
    """
    excluded = config.filter.excluded_tags
    if not excluded:
        return lambda flows: flows
    masks = config.classify.cluster_net_masks

    @lru_cache(MAX_CLASSIFIED)
    def in_cluster(text: str) -> bool | None:
        try:
            address = ip_address(text)
        except ValueError:
            return None
        if isinstance(address, IPv6Address):
            if address.scope_id is not None:
                return None
            address = address.ipv4_mapped or address
        return any(address in mask for mask in masks)

    def admits(flow: Flow) -> bool:
        if flow.Network is None or flow.Transport is None or flow.Metric is None or not flow.UUID:
            return True
        return tag(in_cluster(flow.Network.A), in_cluster(flow.Network.B)) not in excluded

    return lambda flows: [flow for flow in flows if admits(flow)]


def tag(initiator_inside: bool | None, target_inside: bool | None) -> str:
    """Return the classification of a flow; None stands for an address that is none."""
    match initiator_inside, target_inside:
        case (None, _) | (_, None) | (False, False):
            return "other"
        case True, True:
            return "internal"
        case True, _:
            return "egress"
        case _:
            return "ingress"
