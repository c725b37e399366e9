"""Decides when to hold (stop) the table's clock: nothing must expire while reports may be missing.

While a subscription does not deliver (see `Subscription.delivers`), reports of live flows do not
arrive. Therefore no row expires until the subscription has delivered again for one reporting
interval (``flow.update``). By then, every live flow has been reported again. The clock is held only
for a limited time, because ended connections do not expire while it is held.
"""

import math
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Final

SLACK_S: Final = 15.0
"""Time added to a reporting interval: analyzers batch reports for up to 5 s, and the reporting
times of agents drift."""

MISSING_UPDATES: Final = 2
"""A subscription is ignored if it does not deliver for this many reporting intervals, while another
subscription delivers."""

INCIDENT_UPDATES: Final = 4
"""Maximum number of reporting intervals for which one subscription can hold the clock. All
subscriptions together have the same maximum."""

MAX_FLOW_UPDATE_S: Final = 3600.0
"""Upper limit for values of ``flow.update``."""


@dataclass(slots=True)
class _Budget:
    """Measures how long one subscription, or all subscriptions together, hold the clock."""

    spent_s: float = 0.0
    """How long the clock has been held. Reset to 0 when ``healthy_s`` reaches one reporting
    interval."""
    healthy_s: float = 0.0
    """How long the subscription has been healthy. For all subscriptions: how long none of them has
    been a reason to hold the clock."""

    def pass_time(
        self, seconds: float, *, holding: bool, healthy: bool, reset_after_s: float
    ) -> None:
        self.healthy_s = self.healthy_s + seconds if healthy else 0.0
        if self.healthy_s >= reset_after_s:
            self.spent_s = 0.0
        if holding:
            self.spent_s += seconds


@dataclass(slots=True)
class _SubscriptionState:
    """The latest state of a subscription that has delivered at least once."""

    delivers: bool = True
    delivers_for_s: float = math.inf
    """How long the subscription has delivered since its last interruption; infinite if there was no
    interruption."""
    healthy: bool = True
    missing_s: float = 0.0
    """The total time in which another subscription delivered, but this subscription did not. Reset
    to 0 while this subscription is healthy."""
    is_cause: bool = False
    """Whether to hold the clock because of this subscription: its reports may be missing, and its
    ``budget`` is not spent."""
    budget: _Budget = field(default_factory=_Budget)


class ReportingGap:
    """Decides from the states of the subscriptions whether to hold the clock.

    * A subscription is considered from its first message on. If it stops delivering, it is
      *unhealthy* until it has delivered again for one reporting interval (``flow.update``) plus
      `SLACK_S`.
    * The clock is held while a considered subscription is unhealthy. A removed subscription counts
      as not delivering.
    * If a subscription does not deliver while another one does, it is ignored after
      `MISSING_UPDATES` intervals. By then, the agents send all reports to the other analyzers. Once
      the subscription is healthy, it is considered again.
    * A subscription is also ignored if it has held the clock for `INCIDENT_UPDATES` intervals. This
      time is counted from 0 again after one interval in which the subscription was healthy.
    * All subscriptions together can hold the clock for `INCIDENT_UPDATES` intervals. This time is
      counted from 0 again after one interval in which no subscription was a reason to hold the
      clock.
    """

    def __init__(self, *, slack_s: float = SLACK_S) -> None:
        self._slack_s = slack_s
        self._states: dict[str, _SubscriptionState] = {}
        self._incident = _Budget()
        self._is_missing = False
        self._held = False
        self._checked_s = 0.0

    @property
    def causes(self) -> tuple[str, ...]:
        """The names of the subscriptions whose reports may be missing."""
        return tuple(name for name, state in self._states.items() if state.is_cause)

    def update(
        self, now_s: float, *, delivering: Set[str], subscribed: Set[str], flow_update_s: float
    ) -> bool:
        """Return whether to hold the clock from ``now_s`` until the next call.

        ``now_s`` is the time of a clock that is never held. ``delivering`` has the names of the
        subscriptions that deliver, and ``subscribed`` has the names of all configured
        subscriptions. Between two calls, all subscriptions are assumed to keep their states.
        """
        update_s = min(flow_update_s, MAX_FLOW_UPDATE_S)
        self._pass_time(now_s - self._checked_s, update_s)
        self._checked_s = now_s
        for name in delivering:
            state = self._states.setdefault(name, _SubscriptionState())
            if not state.delivers:
                state.delivers, state.delivers_for_s = True, 0.0
        for name, state in self._states.items():
            state.delivers = name in delivering
            self._update_state(state, update_s)
        self._forget_removed(subscribed)
        self._is_missing = any(state.is_cause for state in self._states.values())
        self._held = self._is_missing and self._incident.spent_s < INCIDENT_UPDATES * update_s
        return self._held

    def _pass_time(self, seconds: float, update_s: float) -> None:
        any_delivers = any(state.delivers for state in self._states.values())
        for state in self._states.values():
            if state.delivers:
                state.delivers_for_s += seconds
            elif any_delivers:
                state.missing_s += seconds
            state.budget.pass_time(
                seconds, holding=state.is_cause, healthy=state.healthy, reset_after_s=update_s
            )
        self._incident.pass_time(
            seconds, holding=self._held, healthy=not self._is_missing, reset_after_s=update_s
        )

    def _update_state(self, state: _SubscriptionState, update_s: float) -> None:
        state.healthy = state.delivers and state.delivers_for_s >= update_s + self._slack_s
        if state.healthy:
            state.missing_s = 0.0
        state.is_cause = (
            not state.healthy
            and state.missing_s < MISSING_UPDATES * update_s
            and state.budget.spent_s < INCIDENT_UPDATES * update_s
        )

    def _forget_removed(self, subscribed: Set[str]) -> None:
        for name in self._states.keys() - subscribed:
            if not self._states[name].is_cause:
                del self._states[name]
