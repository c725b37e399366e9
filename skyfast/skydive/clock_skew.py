"""Detects flows with impossible times. Such times show that the clock of an agent is wrong.

Wrong times matter: the metrics ``start`` and ``last`` export them, and the table uses them to
detect late reports. If the local clock is wrong, the clocks of all agents seem to be wrong.
"""

import logging
from typing import Any, Final, Literal, Protocol

import msgspec

from skyfast.flows.fields import CLOSING, UNDECODABLE
from skyfast.runtime.logs import LogLimit, printable
from skyfast.stats import AnalyzerStats, Stats

log = logging.getLogger("skyfast.clock_skew")

MAX_AHEAD_S: Final = 60.0
"""The latest packet of a flow may be this far in the future, because clocks are not exact."""

MAX_UPDATES_BEHIND: Final = 2
MAX_SKEW_BEHIND_S: Final = 60.0
"""The latest packet of a flow may be as old as this time plus `MAX_UPDATES_BEHIND` reporting
intervals (``flow.update``).

Agents report a packet within one reporting interval. A second interval is allowed, because messages
can be delayed, and because skyfast does not notice an increase of ``flow.update`` at once."""

MAX_CLOSING_BEHIND_S: Final = 3600.0
"""In a closing report, the latest packet may be this old.

An agent sends a closing report when a flow has had no packet for 600 to 1,200 s: one to two times
the default ``flow.expire``."""

Flow = Any
"""A flow report. Its type is one of the plan's `FlowTypes`, and has ``Last`` and ``FinishType``."""


class Dated(Protocol):
    @property
    def times_ms(self) -> tuple[int, int]:
        """The oldest and the newest ``Last`` among the flows of the latest update."""


class _Origin(msgspec.Struct, gc=False):
    UUID: str = ""
    NodeTID: str = ""
    Last: int = 0


class _Message(msgspec.Struct, gc=False):
    Obj: list[_Origin] = []


_MESSAGE = msgspec.json.Decoder(_Message)


class ClockSkewCheck:
    def __init__(self, table: Dated, *, stats: Stats) -> None:
        self._table = table
        self._stats = stats
        self._limit = LogLimit()

    def check(
        self,
        flows: list[Flow],
        data: bytes | bytearray | memoryview,
        analyzer: AnalyzerStats,
        now_ms: float,
    ) -> None:
        """Count flows with impossible times.

        ``flows`` are the flows that the latest update of the table applied. ``data`` is the message
        that contains these flows. The message arrived at ``now_ms`` (Unix milliseconds).
        """
        behind_s = MAX_UPDATES_BEHIND * self._stats.flow_update_s + MAX_SKEW_BEHIND_S
        earliest_ms, latest_ms = now_ms - behind_s * 1000, now_ms + MAX_AHEAD_S * 1000
        oldest_ms, newest_ms = self._table.times_ms
        if newest_ms > latest_ms:
            # Leave out flows whose ``Last`` is above ``newest_ms``: the table has skipped them as
            # out of range.
            misdated = [flow for flow in flows if latest_ms < flow.Last <= newest_ms]
            self._report("ahead", misdated, data, analyzer, now_ms)
        if oldest_ms < earliest_ms:
            earliest_closing_ms = now_ms - MAX_CLOSING_BEHIND_S * 1000
            misdated = [
                flow
                for flow in flows
                if oldest_ms <= flow.Last < earliest_ms
                and (flow.FinishType != CLOSING or flow.Last < earliest_closing_ms)
            ]
            self._report("behind", misdated, data, analyzer, now_ms)

    def _report(
        self,
        reason: Literal["ahead", "behind"],
        misdated: list[Flow],
        data: bytes | bytearray | memoryview,
        analyzer: AnalyzerStats,
        now_ms: float,
    ) -> None:
        if not misdated:
            # The table has seen an impossible time, but ``misdated`` can be empty for two reasons:
            # * Only closing reports are older than ``earliest_ms``. Such reports may be this old.
            # * The table has not applied the flow with the impossible time, because it needs more
            #   fields of this flow. The caller decodes the flow again, and calls `check` after the
            #   next update.
            return
        analyzer.misdated[reason] += len(misdated)
        self._limit.warn(
            log,
            (analyzer.name, reason),
            "analyzer %s: the latest packet of a flow from %s is dated %.0f s %s the local clock",
            analyzer.name,
            lambda: _origin(misdated[0], data),
            abs(misdated[0].Last - now_ms) / 1000,
            "ahead of" if reason == "ahead" else "behind",
        )


def _origin(flow: Flow, data: bytes | bytearray | memoryview) -> str:
    """Return log text that names the capture point of a flow, such as ``node_tid 1a2b``."""
    name = getattr(flow, "NodeTID", "")  # not all flow types have this field
    if not name:
        try:
            origins = _MESSAGE.decode(data).Obj
        except UNDECODABLE:
            origins = []  # the message cannot be decoded as a whole
        name = next(
            (
                origin.NodeTID
                for origin in origins
                if (origin.UUID, origin.Last) == (flow.UUID, flow.Last)
            ),
            "",
        )
    return f"node_tid {printable(name)}" if name else "an unknown interface"
