"""Tests that skyfast *holds* (stops) the clock of the table only while reports may be missing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfast.skydive.reporting_gap import (
    INCIDENT_UPDATES,
    MAX_FLOW_UPDATE_S,
    MISSING_UPDATES,
    SLACK_S,
    ReportingGap,
)

UPDATE_S = 60.0
AFTER_S = UPDATE_S + SLACK_S
STEP_S = 0.5


class GapScenario:
    """Subscriptions that start and stop delivering, and the time for which the clock was held."""

    def __init__(self, *names: str, update_s: float = UPDATE_S) -> None:
        self.gap = ReportingGap()
        self.delivering: set[str] = set()
        self.subscribed = set(names)
        self.update_s = update_s
        self.now_s = 1000.0
        self.held_s = 0.0
        self.held = False

    def run(self, seconds: float, *delivering: str) -> float:
        """Return how long the clock is held while only ``delivering`` deliver."""
        before_s = self.held_s
        self.delivering = set(delivering)
        self._update()
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            self.held_s += STEP_S * self.held
            self._update()
        return self.held_s - before_s

    def _update(self) -> None:
        self.held = self.gap.update(
            self.now_s,
            delivering=self.delivering,
            subscribed=self.subscribed,
            flow_update_s=self.update_s,
        )


def test_clock_is_not_held_before_first_delivery() -> None:
    scenario = GapScenario("a", "b")
    assert scenario.run(600) == 0
    assert scenario.run(600, "a") == 0
    assert not scenario.gap.causes


def test_clock_is_held_for_one_update_interval_after_an_interruption() -> None:
    scenario = GapScenario("a")
    scenario.run(100, "a")
    assert scenario.run(0) == 0
    assert scenario.held
    assert scenario.gap.causes == ("a",)
    assert scenario.run(30) == 30
    assert scenario.run(600, "a") == AFTER_S
    assert not scenario.gap.causes


def test_further_interruption_extends_the_hold() -> None:
    scenario = GapScenario("a")
    scenario.run(100, "a")
    assert scenario.run(1) == 1
    assert scenario.run(70, "a") == 70
    assert scenario.run(1) == 1
    assert scenario.run(600, "a") == AFTER_S


def test_hold_times_follow_the_update_interval() -> None:
    scenario = GapScenario("a", update_s=10.0)
    scenario.run(100, "a")
    assert scenario.run(5) == 5
    assert scenario.run(100, "a") == 10 + SLACK_S
    very_long = GapScenario("a", update_s=1e9)
    very_long.run(100, "a")
    assert very_long.run(5 * MAX_FLOW_UPDATE_S) == INCIDENT_UPDATES * MAX_FLOW_UPDATE_S


def test_subscription_that_stays_down_holds_the_clock_for_two_update_intervals() -> None:
    scenario = GapScenario("a", "b")
    scenario.run(100, "a", "b")
    assert scenario.run(1000, "a") == MISSING_UPDATES * UPDATE_S
    # When "b" delivers again, no report is missing: agents have sent all reports to "a".
    assert scenario.run(1000, "a", "b") == 0
    assert scenario.run(10, "a") == 10
    assert scenario.run(1000, "a", "b") == AFTER_S


def test_subscription_that_returns_before_the_limit_holds_the_clock() -> None:
    scenario = GapScenario("a", "b")
    scenario.run(100, "a", "b")
    assert scenario.run(110, "a") == 110
    assert scenario.run(1000, "a", "b") == AFTER_S


def test_clock_is_held_for_four_update_intervals_if_nothing_is_delivered() -> None:
    scenario = GapScenario("a", "b")
    scenario.run(100, "a", "b")
    assert scenario.run(3600) == INCIDENT_UPDATES * UPDATE_S
    assert scenario.run(1000, "a", "b") == 0
    assert scenario.run(10, "a") == 10


def test_removed_subscription_counts_as_down_until_it_is_forgotten() -> None:
    scenario = GapScenario("a", "b")
    scenario.run(100, "a", "b")
    scenario.subscribed = {"a"}
    assert scenario.run(1000, "a") == MISSING_UPDATES * UPDATE_S
    scenario.subscribed = {"a", "b"}
    assert scenario.run(1000, "a") == 0  # "b" has not delivered since it was removed
    assert scenario.run(1000, "a", "b") == 0


def test_names_of_removed_subscriptions_are_forgotten() -> None:
    scenario = GapScenario()
    for number in range(200):
        scenario.subscribed = {"a", f"b-{number}"}
        scenario.run(10, *scenario.subscribed)
    assert len(scenario.gap._states) <= 4 + INCIDENT_UPDATES * UPDATE_S / 10
    scenario.subscribed = {"a"}
    scenario.run(600, "a")
    assert set(scenario.gap._states) == {"a"}


def test_replacing_all_subscriptions_holds_the_clock() -> None:
    scenario = GapScenario("a", "b")
    scenario.run(100, "a", "b")
    scenario.subscribed = {"c"}
    assert scenario.run(10) == 10
    assert scenario.run(1000, "c") == MISSING_UPDATES * UPDATE_S


def test_consecutive_outages_are_one_incident() -> None:
    names = "abcdefgh"
    scenario = GapScenario(*names)
    scenario.run(100, *names)
    held_s = sum(scenario.run(50, *set(names) - {down}) for down in names)
    assert held_s == INCIDENT_UPDATES * UPDATE_S
    assert scenario.run(1000, *names) == 0
    assert scenario.run(10, *names[1:]) == 10


@pytest.mark.parametrize(("down_s", "up_s"), [(1, 30), (10, 10), (1, 80), (30, 90), (60, 100)])
def test_flapping_subscription_does_not_hold_the_clock_forever(down_s: float, up_s: float) -> None:
    scenario = GapScenario("a", "b")
    scenario.run(100, "a", "b")
    for _ in range(20):
        scenario.run(down_s, "b")
        scenario.run(up_s, "a", "b")
    for _ in range(20):
        assert scenario.run(down_s, "b") == 0
        assert scenario.run(up_s, "a", "b") == 0
    assert scenario.held_s <= INCIDENT_UPDATES * UPDATE_S
    # An outage of the other subscription still holds the clock.
    assert scenario.run(10, "a") == 10
    scenario.run(1000, "a", "b")
    # After a calm period, an outage of the flapping subscription holds the clock again.
    assert scenario.run(10, "b") == 10


def test_limit_is_reset_after_one_calm_update_interval() -> None:
    scenario = GapScenario("a")
    scenario.run(100, "a")
    assert scenario.run(300) == INCIDENT_UPDATES * UPDATE_S
    scenario.run(AFTER_S + UPDATE_S - 2, "a")
    assert scenario.run(1) == 0
    scenario.run(AFTER_S + UPDATE_S + 2, "a")
    assert scenario.run(1) == 1


# Random scenarios --------------------------------------------------------------------------------


@dataclass
class ReferenceModel:
    """The rules of `ReportingGap`, evaluated from the complete history at every call."""

    checks: list[tuple[float, frozenset[str], frozenset[str]]] = field(default_factory=list)
    counted: list[set[str]] = field(default_factory=list)
    missing: list[bool] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)
    known: dict[str, int] = field(default_factory=dict)
    """For each subscription, the index of the check at which it first delivered."""

    def update(
        self, now_s: float, delivering: Iterable[str], subscribed: Iterable[str], update_s: float
    ) -> bool:
        self.checks.append((now_s, frozenset(delivering), frozenset(subscribed)))
        last = len(self.checks) - 1
        for name in delivering:
            self.known.setdefault(name, last)
        counted = {name for name in self.known if self._counts(name, last, update_s)}
        self.counted.append(counted)
        for name in set(self.known) - set(subscribed) - counted:
            del self.known[name]
        spent_s = self._spent_s([not missing for missing in self.missing], self.held, 0, update_s)
        self.missing.append(bool(counted))
        self.held.append(bool(counted) and spent_s < INCIDENT_UPDATES * update_s)
        return self.held[-1]

    def _seconds(self, index: int) -> float:
        """Return the seconds from this check to the next one."""
        return self.checks[index + 1][0] - self.checks[index][0]

    def _is_well(self, name: str, index: int, update_s: float) -> bool:
        first = self.known[name]
        delivers = [name in delivering for _, delivering, _ in self.checks[first : index + 1]]
        if not delivers[-1]:
            return False
        if all(delivers):
            return True
        back = max(i for i, (old, new) in enumerate(pairwise(delivers)) if new and not old) + 1
        delivers_for_s = sum(self._seconds(i) for i in range(first + back, index))
        return delivers_for_s >= update_s + SLACK_S

    def _counts(self, name: str, index: int, update_s: float) -> bool:
        first = self.known[name]
        well = [self._is_well(name, i, update_s) for i in range(first, index + 1)]
        if well[-1]:
            return False
        since = first + max((i for i, is_well in enumerate(well) if is_well), default=0)
        without_s = sum(
            self._seconds(i)
            for i in range(since, index)
            if self.checks[i][1] and name not in self.checks[i][1]
        )
        if without_s >= MISSING_UPDATES * update_s:
            return False
        counted = [name in names for names in self.counted[first:index]]
        return self._spent_s(well[:-1], counted, first, update_s) < INCIDENT_UPDATES * update_s

    def _spent_s(
        self, calm: Sequence[bool], spent: Sequence[bool], first: int, update_s: float
    ) -> float:
        """Return the time that counts towards the limit.

        After a calm period of ``update_s`` seconds, this time starts again from zero.
        """
        total_s = calm_s = 0.0
        for i, (is_calm, is_spent) in enumerate(zip(calm, spent, strict=True)):
            calm_s = calm_s + self._seconds(first + i) if is_calm else 0.0
            if calm_s >= update_s:
                total_s = 0.0
            total_s += self._seconds(first + i) if is_spent else 0.0
        return total_s


NAMES = frozenset("abc")
STATES = st.tuples(
    st.sampled_from([1, 5, 20, 40, 60, 75, 120, 240, 300]),
    st.frozensets(st.sampled_from("abc")),
    st.sampled_from([NAMES, NAMES, NAMES, frozenset("ab"), frozenset("c")]),
)


@given(scenario=st.lists(STATES, max_size=40), update_s=st.sampled_from([10, 60]))
def test_decisions_match_the_reference_model(
    scenario: list[tuple[int, frozenset[str], frozenset[str]]], update_s: int
) -> None:
    gap, reference = ReportingGap(), ReferenceModel()
    now_s, held_s, run_s = 500, 0, 0
    held = False
    for seconds, delivering, subscribed in scenario:
        # To take less time, the test checks less often than skyfast.
        for _ in range(0, seconds, max(1, seconds // 4)):
            now_s += max(1, seconds // 4)
            delivering &= subscribed
            held_s = held_s + max(1, seconds // 4) if held else 0
            held = gap.update(
                now_s, delivering=delivering, subscribed=subscribed, flow_update_s=update_s
            )
            assert held == reference.update(now_s, delivering, subscribed, update_s)
            assert bool(gap.causes) == reference.missing[-1]
            run_s = max(run_s, held_s)
    # A step lasts up to 75 s. Therefore, the clock can be held up to 75 s beyond the limit.
    assert run_s <= INCIDENT_UPDATES * update_s + 75
