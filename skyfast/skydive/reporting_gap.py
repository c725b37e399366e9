"""Decides when to hold (stop) the clock, so that nothing expires while reports may be missing.

While a subscription does not deliver (see `Subscription.delivers`), the reports of live connections
do not arrive. Therefore no row expires until the subscription has delivered again for one reporting
interval of the agents (``flow.update``): by then, every live flow has been reported again. The time
for which the clock is held is bounded, because holding it also delays the expiry of ended
connections.

This module has no clock and no socket: its inputs are ``now`` and the states of the subscriptions
at regular intervals, and its output is whether to hold the clock.
"""

import math
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Final

SLACK_S: Final = 15.0
"""Time added to a reporting interval, because analyzers batch reports for up to 5 s, and the ticks
of agents drift."""

MISSING_UPDATES: Final = 2
"""A subscription is ignored after this many reporting intervals in which other subscriptions
deliver, but this subscription does not."""

INCIDENT_UPDATES: Final = 4
"""Maximum number of reporting intervals for which one subscription can hold the clock. All
subscriptions together have the same limit."""

MAX_FLOW_UPDATE_S: Final = 3600.0
"""Upper limit for values of ``flow.update``."""


@dataclass(slots=True)
class _Budget:
    """Adds up in ``spent_s`` how long the clock is held. A healthy interval resets ``spent_s``."""

    spent_s: float = 0.0
    calm_s: float = 0.0

    def pass_time(self, seconds: float, *, spending: bool, calm: bool, calm_s: float) -> None:
        self.calm_s = self.calm_s + seconds if calm else 0.0
        if self.calm_s >= calm_s:
            self.spent_s = 0.0
        if spending:
            self.spent_s += seconds


@dataclass(slots=True)
class _SubscriptionState:
    """The state of a subscription that has delivered at least once, at the latest check."""

    delivers: bool = True
    delivers_for_s: float = math.inf
    """How long the subscription has delivered since its last interruption; infinite if there was no
    interruption."""
    healthy: bool = True
    missing_s: float = 0.0
    """How long only other subscriptions have delivered since this subscription was last healthy."""
    counted: bool = False
    budget: _Budget = field(default_factory=_Budget)


class ReportingGap:
    """Decides from the states of the subscriptions whether to hold the clock.

    * A subscription is considered from its first message on. It is *healthy* once it has delivered
      without interruption for one reporting interval (``flow.update``) plus `SLACK_S`.
    * The clock is held while a considered subscription is not healthy. A removed subscription is
      treated as not delivering.
    * If a subscription does not deliver for `MISSING_UPDATES` intervals while others deliver, it is
      ignored until it is healthy again: after these intervals, the agents send their reports to the
      other analyzers.
    * A subscription that has held the clock for `INCIDENT_UPDATES` intervals is ignored, too. All
      subscriptions together also hold the clock for at most `INCIDENT_UPDATES` intervals. The limit
      of a subscription is reset after one interval in which the subscription was healthy. The
      common limit is reset after one interval in which all considered subscriptions were healthy.
    """

    def __init__(self, *, slack_s: float = SLACK_S) -> None:
        """Start without subscriptions."""
        self._slack_s = slack_s
        self._sources: dict[str, _SubscriptionState] = {}
        self._incident = _Budget()
        self._is_missing = False
        self._held = False
        self._checked_s = 0.0

    @property
    def causes(self) -> tuple[str, ...]:
        """The names of the subscriptions whose reports may be missing."""
        return tuple(name for name, source in self._sources.items() if source.counted)

    def update(
        self, now_s: float, *, delivering: Set[str], subscribed: Set[str], flow_update_s: float
    ) -> bool:
        """Return whether to hold the clock from ``now_s`` until the next call.

        ``now_s`` is the time of a clock that is never held. ``delivering`` are the names of the
        subscriptions that deliver; ``subscribed`` are the names of all configured subscriptions.
        Between two calls, all subscriptions are assumed to keep their states.
        """
        update_s = min(flow_update_s, MAX_FLOW_UPDATE_S)
        self._pass_time(now_s - self._checked_s, update_s)
        self._checked_s = now_s
        for name in delivering:
            source = self._sources.setdefault(name, _SubscriptionState())
            if not source.delivers:
                source.delivers, source.delivers_for_s = True, 0.0
        for name, source in self._sources.items():
            source.delivers = name in delivering
            self._update_state(source, update_s)
        self._forget(subscribed)
        self._is_missing = any(source.counted for source in self._sources.values())
        self._held = self._is_missing and self._incident.spent_s < INCIDENT_UPDATES * update_s
        return self._held

    def _pass_time(self, seconds: float, update_s: float) -> None:
        any_delivers = any(source.delivers for source in self._sources.values())
        for source in self._sources.values():
            if source.delivers:
                source.delivers_for_s += seconds
            elif any_delivers:
                source.missing_s += seconds
            source.budget.pass_time(
                seconds, spending=source.counted, calm=source.healthy, calm_s=update_s
            )
        self._incident.pass_time(
            seconds, spending=self._held, calm=not self._is_missing, calm_s=update_s
        )

    def _update_state(self, source: _SubscriptionState, update_s: float) -> None:
        source.healthy = source.delivers and source.delivers_for_s >= update_s + self._slack_s
        if source.healthy:
            source.missing_s = 0.0
        source.counted = (
            not source.healthy
            and source.missing_s < MISSING_UPDATES * update_s
            and source.budget.spent_s < INCIDENT_UPDATES * update_s
        )

    def _forget(self, subscribed: Set[str]) -> None:
        """Forget removed subscriptions that are ignored."""
        for name in self._sources.keys() - subscribed:
            if not self._sources[name].counted:
                del self._sources[name]
