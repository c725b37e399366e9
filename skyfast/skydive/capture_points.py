"""Finds the capture points of each capture: the interfaces on which the capture runs.

The statistics of a capture do not name these interfaces. Therefore this module finds the interfaces
in flows: each flow has the ID of its capture, and the ``NodeTID`` of its interface. To save time,
this module reads only the messages that `skyfast.skydive.report_checks` selects: about four per
second.
"""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from skyfast.flows.fields import UNDECODABLE

MAX_CAPTURES: Final = 1000
"""Maximum number of captures; further captures have no capture points."""

MAX_POINTS: Final = 20
"""Maximum number of capture points per capture. Above this number, the point that has been without
flows for the longest time is forgotten."""

MAX_ID_CHARS: Final = 1024
"""Maximum length of an ID; longer IDs are ignored."""

SILENCE_S: Final = 600.0
"""A capture point is forgotten if the messages read in this time contain no flow from it."""

FORGET_INTERVAL_S: Final = 60.0
"""Minimum time between two calls of `CapturePoints._forget_silent`. Each call takes up to 2 ms."""


class _Flow(msgspec.Struct, gc=False):
    capture_id: str = msgspec.field(default="", name="CaptureID")
    node_tid: str = msgspec.field(default="", name="NodeTID")


class _Message(msgspec.Struct, gc=False):
    flows: list[_Flow] | None = msgspec.field(default=None, name="Obj")


_decode = msgspec.json.Decoder(_Message).decode


class CapturePoints:
    """The capture points of all captures. Not thread-safe."""

    def __init__(self) -> None:
        self._points: dict[str, dict[str, float]] = {}
        self._forgot_s = -math.inf

    def message(self, data: bytes | bytearray | memoryview, now: float) -> None:
        """Remember the capture points of the flows in a message. Unusable messages are ignored."""
        if now - self._forgot_s >= FORGET_INTERVAL_S:
            self._forget_silent(now)
        try:
            flows = _decode(data).flows or ()
        except UNDECODABLE:
            return
        for flow in flows:
            if flow.capture_id and flow.node_tid:
                self._note(flow.capture_id, flow.node_tid, now)

    def _note(self, capture_id: str, tid: str, now: float) -> None:
        if max(len(capture_id), len(tid)) > MAX_ID_CHARS:
            return
        points = self._points.get(capture_id)
        if points is None:
            if len(self._points) >= MAX_CAPTURES:
                return
            points = self._points[capture_id] = {}
        # Dicts are ordered: move the point to the end.
        points.pop(tid, None)
        points[tid] = now
        if len(points) > MAX_POINTS:
            del points[next(iter(points))]

    def of(self, capture_id: str, now: float) -> Sequence[str]:
        """Return the capture points of a capture, as a sorted list of ``NodeTID``."""
        points = self._points.get(capture_id, {})
        return sorted(tid for tid, seen in points.items() if now - seen < SILENCE_S)

    def _forget_silent(self, now: float) -> None:
        self._forgot_s = now
        recent = {
            capture_id: {tid: seen for tid, seen in points.items() if now - seen < SILENCE_S}
            for capture_id, points in self._points.items()
        }
        self._points = {capture_id: points for capture_id, points in recent.items() if points}
