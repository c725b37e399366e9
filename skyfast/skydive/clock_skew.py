"""Detects flows with impossible times: the clock of an agent is wrong.

Of what is exported, only the metrics ``start`` and ``last`` show the agents' times. But whether a
report is late is told by them too, and a clock of ours that is wrong looks the same from here.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

import msgspec

from skyfast.flows.fields import CLOSING, UNDECODABLE
from skyfast.runtime.logs import LogLimit, printable
from skyfast.stats import AnalyzerStats, Stats

log = logging.getLogger("skyfast.clock_skew")

MAX_AHEAD_S: Final = 60.0
"""How far a flow's latest packet may lie in the future: what clocks that are set may differ by."""

MAX_UPDATES_BEHIND: Final = 2
MAX_SKEW_BEHIND_S: Final = 60.0
"""How far in the past: two ``flow.update``, and what clocks may differ by.

An agent reports a flow at the first tick after its latest packet, so within one ``flow.update``.
The other one allows for a ``flow.update`` that grows, and for messages that wait on the way."""

MAX_CLOSING_BEHIND_S: Final = 3600.0
"""How far in the past, in a closing report.

An agent sends it one to two times ``flow.expire`` (600 s) after the flow's latest packet."""

Flow = Any
"""A struct of the plan's flow types, which all have ``Last`` and ``FinishType``."""


class Dated(Protocol):
    """The part of the table that knows what the latest update was dated."""

    @property
    def times_ms(self) -> tuple[int, int]: ...


class _Origin(msgspec.Struct, gc=False):
    NodeTID: str = ""
    Last: int = 0


class _Message(msgspec.Struct, gc=False):
    Obj: list[_Origin] = []


_MESSAGE = msgspec.json.Decoder(_Message)


class ClockSkewCheck:
    """Looks at the times in each update of a table."""

    def __init__(
        self, table: Dated, *, stats: Stats, wall_clock: Callable[[], float] = time.time
    ) -> None:
        """Prepare; ``wall_clock`` gives Unix seconds, and ``stats`` the agents' ``flow.update``."""
        self._table = table
        self._stats = stats
        self._wall_clock = wall_clock
        self._limit = LogLimit()

    def check(
        self, flows: list[Flow], data: bytes | bytearray | memoryview, analyzer: AnalyzerStats
    ) -> None:
        """Count those of ``flows``, the table's latest update, that cannot be dated as they are.

        Where the table has stopped in the middle, ``flows`` are those before that. ``data`` is the
        message that they came in. This costs next to nothing where all are well. A closing report
        is dated earlier than others, so a message that has one is looked at flow by flow.
        """
        now_ms = self._wall_clock() * 1000
        behind_s = MAX_UPDATES_BEHIND * self._stats.flow_update_s + MAX_SKEW_BEHIND_S
        earliest_ms, latest_ms = now_ms - behind_s * 1000, now_ms + MAX_AHEAD_S * 1000
        oldest_ms, newest_ms = self._table.times_ms
        if newest_ms > latest_ms:
            # What is beyond the newest is no time at all: the table has skipped that flow.
            wrong = [flow for flow in flows if latest_ms < flow.Last <= newest_ms]
            self._report("ahead", wrong, data, analyzer)
        if oldest_ms < earliest_ms:
            earliest_closing_ms = now_ms - MAX_CLOSING_BEHIND_S * 1000
            wrong = [
                flow
                for flow in flows
                if oldest_ms <= flow.Last < earliest_ms
                and (flow.FinishType != CLOSING or flow.Last < earliest_closing_ms)
            ]
            self._report("behind", wrong, data, analyzer)

    def _report(
        self,
        reason: Literal["ahead", "behind"],
        wrong: list[Flow],
        data: bytes | bytearray | memoryview,
        analyzer: AnalyzerStats,
    ) -> None:
        if not wrong:
            return  # those that are come with the next update
        analyzer.misdated[reason] += len(wrong)
        self._limit.warn(
            log,
            (analyzer.name, reason),
            "analyzer %s: a flow from %s is %.0f s %s the local clock",
            analyzer.name,
            lambda: _origin(wrong[0], data),
            abs(wrong[0].Last / 1000 - self._wall_clock()),
            "ahead of" if reason == "ahead" else "behind",
        )


def _origin(flow: Flow, data: bytes | bytearray | memoryview) -> str:
    """Return where a flow of the message was captured, fit for a log."""
    name = getattr(flow, "NodeTID", "")  # not every plan has it
    if not name:
        try:
            origins = _MESSAGE.decode(data).Obj
        except UNDECODABLE:
            origins = []  # of a message that could be read flow by flow only
        name = next((origin.NodeTID for origin in origins if origin.Last == flow.Last), "")
    return f"node_tid {printable(name)}" if name else "an unknown interface"
