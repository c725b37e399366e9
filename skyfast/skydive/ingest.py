"""Decodes messages and applies their flows to the table.

Unusable messages and flows are counted and skipped. No content of a message raises an exception.
"""

import functools
import logging
import time
from collections.abc import Callable, Container, Iterable
from typing import Any, Protocol

import msgspec

from skyfast.flows.fields import UNDECODABLE, Envelope, FlowTypes
from skyfast.flows.filters import FlowFilter
from skyfast.runtime.logs import LogLimit, printable
from skyfast.skydive.capture_points import CapturePoints
from skyfast.skydive.clock_skew import ClockSkewCheck
from skyfast.skydive.data_age import DataAge
from skyfast.skydive.json_repair import (
    MAX_REPAIRED_TOKENS,
    mark_lone_surrogates,
    prune_depth,
)
from skyfast.skydive.partial_decoder import PartialDecoder
from skyfast.skydive.report_checks import ReportChecker
from skyfast.stats import MESSAGE_TYPES, NAMESPACES, AnalyzerStats, Stats

MAX_PARTIAL_FLOWS = 1_000
"""In each message, at most this many flows are decoded field by field, because some of their values
have wrong types. Further flows with wrong types are skipped.

Decoding a flow field by field takes 10 µs. Analyzers put at most 100 flows into a message, so they
never reach this limit."""

AVERAGED_MESSAGES = 32
"""The share of messages with unknown flows is a moving average. The latest message weighs 1/32.

A flow is unknown while the table does not contain it."""

MAX_UNKNOWN_SHARE = 1 / 16
"""Above this share of messages with unknown flows, the fields of labels are always decoded.

At twice this share, omitting these fields would save no time, because every message with an unknown
flow would be decoded twice."""

SHOWN_BYTES = 80
"""A log line shows this many bytes from the start of an unusable message."""

log = logging.getLogger("skyfast.ingest")

Flow = Any
"""A flow report. Its type is one of the plan's `FlowTypes`, which are created at run time."""


class Updatable(Protocol):
    def update(self, flows: list[Flow], now: float, start: int = 0, *, wall_ms: int = 0) -> int: ...
    @property
    def met_unknown_flow(self) -> bool: ...
    @property
    def times_ms(self) -> tuple[int, int]: ...


class StatsSink(Protocol):
    def message(self, raw: msgspec.Raw, now: float) -> None: ...


class Ingest:
    """Decodes only the fields that the table will probably need; see `_Decoders`.

    If the table needs more fields of a message, the message is decoded again with all fields.
    """

    def __init__(
        self,
        *,
        types: FlowTypes,
        table: Updatable,
        flow_filter: FlowFilter,
        captures: StatsSink,
        checker: ReportChecker,
        stats: Stats,
        now: Callable[[], float],
        capture_points: CapturePoints | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """``checker`` selects a sample of the messages.

        The messages in the sample are decoded with all fields, checked for lost reports, and passed
        to ``capture_points``. ``now`` is the table's clock, in seconds; ``wall_clock`` returns Unix
        seconds.
        """
        self._table = table
        self._captures = captures
        self._capture_points = capture_points
        self._checker = checker
        self._now = now
        self._wall_clock = wall_clock
        self._skipped = stats.flows_skipped
        self._flow_filter = flow_filter
        self._clock_skew = ClockSkewCheck(table, stats=stats)
        self._data_age = DataAge()
        self._decoders = _Decoders(types)
        self._full_flow = msgspec.json.Decoder(types.FullReport)
        self._types = types
        self._envelope = msgspec.json.Decoder(Envelope)
        self._raw_list = msgspec.json.Decoder(list[msgspec.Raw])
        self._limit = LogLimit()

    @functools.cached_property
    def _partial_flow(self) -> PartialDecoder:
        # Created on first use, because it is rarely needed.
        return PartialDecoder(self._types)

    def message(self, data: bytes | bytearray | memoryview, analyzer: AnalyzerStats) -> None:
        """Apply the flows of a message, and count the message for its analyzer.

        Keeps no reference to ``data``.
        """
        is_checked = self._checker.should_check()
        decoder = self._decoders.full if is_checked else self._decoders.next
        try:
            message = decoder.decode(data)
        except UNDECODABLE:
            self._recover(bytes(data), analyzer)
            return
        match _kind(message.Namespace, message.Type, analyzer):
            case "flow", "store" if is_checked:
                self._apply_checked(message.Obj or [], data, analyzer)
                return
            case "flow", "store":
                self._apply(message.Obj or [], data, analyzer)
            case "stats", "stats":
                self._captures.message(self._envelope.decode(bytes(data)).Obj, self._now())
        if is_checked:
            self._checker.refund()

    def _apply(
        self, flows: list[Flow], data: bytes | bytearray | memoryview, analyzer: AnalyzerStats
    ) -> None:
        analyzer.flows += len(flows)
        admitted = self._flow_filter(flows)
        now_ms = self._wall_clock() * 1000
        self._data_age.observe(admitted, analyzer, now_ms)
        done = self._update(admitted, now_ms)
        if done == len(admitted):
            self._check_applied(admitted, data, analyzer, now_ms)
            self._decoders.choose_next(met_unknown_flow=self._table.met_unknown_flow)
        else:
            self._check_applied(admitted[:done], data, analyzer, now_ms)
            self._decode_fully(bytes(data), _position(admitted[done], flows), analyzer, now_ms)
            self._decoders.choose_next(met_unknown_flow=True)

    def _apply_checked(
        self, flows: list[Flow], data: bytes | bytearray | memoryview, analyzer: AnalyzerStats
    ) -> None:
        """Apply flows that were decoded with all fields. Check them for lost reports."""
        analyzer.flows += len(flows)
        admitted = self._flow_filter(flows)
        now_ms = self._wall_clock() * 1000
        self._data_age.observe(admitted, analyzer, now_ms)
        sample = self._checker.sample(admitted)
        self._update(admitted, now_ms)
        self._checker.check(sample, analyzer)
        if self._capture_points is not None:
            self._capture_points.message(data, self._now())
        self._check_applied(admitted, data, analyzer, now_ms)

    def _check_applied(
        self,
        flows: list[Flow],
        data: bytes | bytearray | memoryview,
        analyzer: AnalyzerStats,
        now_ms: float,
    ) -> None:
        self._clock_skew.check(flows, data, analyzer, now_ms)
        if self._checker.has_unsettled:
            self._checker.note_late(flows)

    def _decode_fully(
        self, data: bytes, position: int, analyzer: AnalyzerStats, now_ms: float
    ) -> None:
        """Decode all fields of the flows from ``position`` on, and apply these flows.

        The flows are not counted as received or filtered, because `_apply` has already counted
        them.
        """
        try:
            flows = self._decoders.full.decode(data).Obj[position:]
        except UNDECODABLE:
            raws = self._raw_list.decode(self._envelope.decode(data).Obj)
            flows = self._one_by_one(raws[position:])
        admitted = self._flow_filter.refilter(flows)
        self._update(admitted, now_ms)
        self._check_applied(admitted, data, analyzer, now_ms)

    def _recover(self, data: bytes, analyzer: AnalyzerStats) -> None:
        """Apply the usable flows of a message that cannot be decoded as a whole."""
        try:
            envelope = self._open(data)
        except msgspec.ValidationError:
            self._drop(data, analyzer, "not_a_message")
            return
        except UNDECODABLE:
            self._drop(data, analyzer, "malformed")
            return
        match _kind(envelope.Namespace, envelope.Type, analyzer):
            case "flow", "store":
                self._apply_singly(envelope.Obj, data, analyzer)
            case "stats", "stats":
                self._captures.message(envelope.Obj, self._now())

    def _apply_singly(self, obj: msgspec.Raw, data: bytes, analyzer: AnalyzerStats) -> None:
        try:
            raws = self._raw_list.decode(obj)
        except UNDECODABLE:
            self._drop(data, analyzer, "not_a_list")
            return
        analyzer.flows += len(raws)
        admitted = self._flow_filter(self._one_by_one(raws))
        now_ms = self._wall_clock() * 1000
        self._data_age.observe(admitted, analyzer, now_ms)
        self._update(admitted, now_ms)
        self._check_applied(admitted, data, analyzer, now_ms)

    def _update(self, flows: list[Flow], now_ms: float) -> int:
        return self._table.update(flows, self._now(), wall_ms=int(now_ms))

    def _drop(self, data: bytes, analyzer: AnalyzerStats, reason: str) -> None:
        analyzer.errors[reason] += 1
        self._limit.warn(
            log,
            (analyzer.name, reason),
            "analyzer %s: dropped a message of %d bytes (%s) starting with %s",
            analyzer.name,
            len(data),
            reason,
            lambda: printable(data[:SHOWN_BYTES].decode("ascii", "backslashreplace")),
        )

    def _open(self, data: bytes) -> Envelope:
        try:
            return self._envelope.decode(data)
        except msgspec.ValidationError:
            raise
        except UNDECODABLE:
            marked = mark_lone_surrogates(data, max_escapes=MAX_REPAIRED_TOKENS)
            return self._envelope.decode(prune_depth(marked))

    def _one_by_one(self, raws: Iterable[msgspec.Raw]) -> list[Flow]:
        """Decode each flow separately; skip and count flows that cannot be decoded."""
        flows = []
        partial = 0
        for raw in raws:
            try:
                flows.append(self._full_flow.decode(raw))
                continue
            except UNDECODABLE as error:
                # Store only the text: the exception would keep the received data in memory.
                problem = str(error)
            if partial < MAX_PARTIAL_FLOWS:
                partial += 1
                try:
                    flows.append(self._partial_flow.decode(raw))
                    continue
                except UNDECODABLE as error:
                    problem = str(error)
            # msgspec raises this error for integers with more than a few thousand digits.
            huge = problem.startswith("Integer value out of range")
            self._skipped["out_of_range" if huge else "invalid"] += 1
        return flows


class _Decoders:
    """The decoders of messages. ``full`` decodes all fields.

    ``next`` is the decoder for the next message. The messages so far decide which of the following
    fields it decodes:

    * If the latest message had unknown flows: the fields of labels, and the fields that identify
      the first report of a flow.
    * Otherwise, if the share of messages with unknown flows is above `MAX_UNKNOWN_SHARE`: the
      fields of labels.
    * In all other cases: none of these fields. Decoding then takes about a tenth less time, but a
      message with unknown flows must be decoded twice.
    """

    def __init__(self, types: FlowTypes) -> None:
        self._known, self._update, self._first, self.full = (
            msgspec.json.Decoder(_message_type(flow))
            for flow in (types.KnownReport, types.Update, types.FirstReport, types.FullReport)
        )
        self.next = self._first
        self._unknown_share = 1.0

    def choose_next(self, *, met_unknown_flow: bool) -> None:
        self._unknown_share += (met_unknown_flow - self._unknown_share) / AVERAGED_MESSAGES
        if met_unknown_flow:
            self.next = self._first
        elif self._unknown_share > MAX_UNKNOWN_SHARE:
            self.next = self._update
        else:
            self.next = self._known


def _message_type(flow: Any) -> Any:
    fields = [("Namespace", str, ""), ("Type", str, ""), ("Obj", list[flow] | None, None)]
    return msgspec.defstruct("Message", fields, gc=False)


def _kind(namespace: str, message_type: str, analyzer: AnalyzerStats) -> tuple[str, str]:
    """Count a message by its namespace and type. Return both.

    Unknown namespaces and types become ``other``.
    """
    kind = namespace, message_type
    if kind not in analyzer.messages:
        kind = (
            "flow" if namespace.startswith("flow/") else _known(namespace, NAMESPACES),
            _known(message_type, MESSAGE_TYPES),
        )
        analyzer.messages.setdefault(kind, 0)
    analyzer.messages[kind] += 1
    return kind


def _known(name: str, names: Container[str]) -> str:
    return name if name in names else "other"


def _position(wanted: Flow, flows: list[Flow]) -> int:
    return next(i for i, flow in enumerate(flows) if flow is wanted)
