"""When reports may be missing: how long the table's clock is held because of that.

Who was not listened to cannot say that a connection lives. So while a subscription that had
delivered does not, no row expires, and none for one more update of the agents after it is well
again: only then was every live flow reported to somebody who listens. All of it is bounded, for a
clock that stands still also keeps what has ended.

There is no clock and no socket here: looks and ``now`` go in, a decision comes out.
"""

import math
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Final

SLACK_S: Final = 15.0
"""Beyond ``flow.update``: analyzers hold reports back for up to 5 s, and agents' ticks drift."""

MISSING_UPDATES: Final = 2
"""A subscription that does not deliver while others do counts for so many ``flow.update``."""

INCIDENT_UPDATES: Final = 4
"""The clock is held for so many ``flow.update`` at most, because of all or of any one."""

MAX_FLOW_UPDATE_S: Final = 3600.0
"""The bounds are multiples of ``flow.update``, but of no more than this."""


@dataclass(slots=True)
class _Budget:
    """Time that can be spent, up to a bound; it is there again after a time of calm."""

    spent_s: float = 0.0
    calm_s: float = 0.0

    def pass_time(self, seconds: float, *, spending: bool, calm: bool, calm_s: float) -> None:
        self.calm_s = self.calm_s + seconds if calm else 0.0
        if self.calm_s >= calm_s:
            self.spent_s = 0.0
        if spending:
            self.spent_s += seconds


@dataclass(slots=True)
class _Source:
    """A subscription that has delivered, as it was at the latest look."""

    delivers: bool = True
    delivers_for_s: float = math.inf
    """Since it does again; endless where it always did."""
    well: bool = True
    missing_s: float = 0.0
    """Time without it in which others delivered, since it was well."""
    counted: bool = False
    budget: _Budget = field(default_factory=_Budget)


class ReportingGap:
    """Decides by the subscriptions' states whether the clock is held.

    * A subscription counts from its first message on. It is *well* while it delivers, and has
      done so for ``flow.update`` and `SLACK_S` since it last did not.
    * The clock is held while one that counts is not well. One that was taken away is one that
      does not deliver.
    * One that does not deliver for `MISSING_UPDATES` ``flow.update`` while others do counts no
      longer, until it is well: agents have turned to the others, or never will.
    * Neither does one that has held the clock for `INCIDENT_UPDATES`, and the clock is not held
      for longer than that because of several. Both bounds begin again only after all of one
      ``flow.update`` in which that subscription, or whatever counts, was well.
    """

    def __init__(self, *, slack_s: float = SLACK_S) -> None:
        """Begin with nobody who delivers."""
        self._slack_s = slack_s
        self._sources: dict[str, _Source] = {}
        self._incident = _Budget()
        self._is_missing = False
        self._held = False
        self._looked_s = 0.0

    @property
    def causes(self) -> tuple[str, ...]:
        """The subscriptions because of which reports may be missing."""
        return tuple(name for name, source in self._sources.items() if source.counted)

    def look(
        self, now_s: float, *, delivering: Set[str], subscribed: Set[str], flow_update_s: float
    ) -> bool:
        """Return whether the clock is held from ``now_s`` until the next look.

        ``now_s`` is a clock that is not held. ``delivering`` are the names of the subscriptions
        that deliver, ``subscribed`` of all that there should be; each look takes what the one
        before has found for the time between the two.
        """
        update_s = min(flow_update_s, MAX_FLOW_UPDATE_S)
        self._pass_time(now_s - self._looked_s, update_s)
        self._looked_s = now_s
        for name in delivering:
            source = self._sources.setdefault(name, _Source())
            if not source.delivers:
                source.delivers, source.delivers_for_s = True, 0.0
        for name, source in self._sources.items():
            source.delivers = name in delivering
            self._judge(source, update_s)
        self._forget(subscribed)
        self._is_missing = any(source.counted for source in self._sources.values())
        self._held = self._is_missing and self._incident.spent_s < INCIDENT_UPDATES * update_s
        return self._held

    def _pass_time(self, seconds: float, update_s: float) -> None:
        anybody = any(source.delivers for source in self._sources.values())
        for source in self._sources.values():
            if source.delivers:
                source.delivers_for_s += seconds
            elif anybody:
                source.missing_s += seconds
            source.budget.pass_time(
                seconds, spending=source.counted, calm=source.well, calm_s=update_s
            )
        self._incident.pass_time(
            seconds, spending=self._held, calm=not self._is_missing, calm_s=update_s
        )

    def _judge(self, source: _Source, update_s: float) -> None:
        source.well = source.delivers and source.delivers_for_s >= update_s + self._slack_s
        if source.well:
            source.missing_s = 0.0
        source.counted = (
            not source.well
            and source.missing_s < MISSING_UPDATES * update_s
            and source.budget.spent_s < INCIDENT_UPDATES * update_s
        )

    def _forget(self, subscribed: Set[str]) -> None:
        """Forget those that were taken away and do not count any more."""
        for name in self._sources.keys() - subscribed:
            if not self._sources[name].counted:
                del self._sources[name]
