"""When the clock is held, by times alone: `skyfast.skydive.reporting_gap` has neither clock nor
socket."""

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


class Story:
    """Lets subscriptions come and go, and keeps for how long the clock was held."""

    def __init__(self, *names: str, update_s: float = UPDATE_S) -> None:
        self.gap = ReportingGap()
        self.delivering: set[str] = set()
        self.subscribed = set(names)
        self.update_s = update_s
        self.now_s = 1000.0
        self.held_s = 0.0
        self.held = False

    def for_s(self, seconds: float, *delivering: str) -> float:
        """Let these deliver and no others, and return for how long the clock was held."""
        before_s = self.held_s
        self.delivering = set(delivering)
        self._look()
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            self.held_s += STEP_S * self.held
            self._look()
        return self.held_s - before_s

    def _look(self) -> None:
        self.held = self.gap.update(
            self.now_s,
            delivering=self.delivering,
            subscribed=self.subscribed,
            flow_update_s=self.update_s,
        )


def test_nothing_is_held_before_anybody_has_delivered() -> None:
    story = Story("a", "b")
    assert story.for_s(600) == 0
    assert story.for_s(600, "a") == 0
    assert not story.gap.causes


def test_it_is_held_at_once_and_until_a_whole_update_was_listened_to() -> None:
    story = Story("a")
    story.for_s(100, "a")
    assert story.for_s(0) == 0
    assert story.held
    assert story.gap.causes == ("a",)
    assert story.for_s(30) == 30
    assert story.for_s(600, "a") == AFTER_S
    assert not story.gap.causes


def test_what_interrupts_the_time_after_begins_it_again() -> None:
    story = Story("a")
    story.for_s(100, "a")
    assert story.for_s(1) == 1
    assert story.for_s(70, "a") == 70
    assert story.for_s(1) == 1
    assert story.for_s(600, "a") == AFTER_S


def test_the_times_are_those_of_the_agents() -> None:
    story = Story("a", update_s=10.0)
    story.for_s(100, "a")
    assert story.for_s(5) == 5
    assert story.for_s(100, "a") == 10 + SLACK_S
    endless = Story("a", update_s=1e9)
    endless.for_s(100, "a")
    assert endless.for_s(5 * MAX_FLOW_UPDATE_S) == INCIDENT_UPDATES * MAX_FLOW_UPDATE_S


def test_one_that_stays_down_while_another_delivers_counts_for_two_updates() -> None:
    story = Story("a", "b")
    story.for_s(100, "a", "b")
    assert story.for_s(1000, "a") == MISSING_UPDATES * UPDATE_S
    # When it is there again, nothing was missed: agents have used the other one.
    assert story.for_s(1000, "a", "b") == 0
    # From then on it counts again.
    assert story.for_s(10, "a") == 10
    assert story.for_s(1000, "a", "b") == AFTER_S


def test_one_that_comes_back_just_in_time_is_waited_for() -> None:
    story = Story("a", "b")
    story.for_s(100, "a", "b")
    assert story.for_s(110, "a") == 110
    assert story.for_s(1000, "a", "b") == AFTER_S


def test_where_nobody_delivers_it_is_held_for_four_updates() -> None:
    story = Story("a", "b")
    story.for_s(100, "a", "b")
    assert story.for_s(3600) == INCIDENT_UPDATES * UPDATE_S
    assert story.for_s(1000, "a", "b") == 0
    assert story.for_s(10, "a") == 10


def test_one_that_is_taken_away_counts_as_down_and_is_forgotten() -> None:
    story = Story("a", "b")
    story.for_s(100, "a", "b")
    story.subscribed = {"a"}
    assert story.for_s(1000, "a") == MISSING_UPDATES * UPDATE_S
    story.subscribed = {"a", "b"}
    assert story.for_s(1000, "a") == 0  # it never delivered since
    assert story.for_s(1000, "a", "b") == 0


def test_names_that_come_and_go_for_ever_are_forgotten() -> None:
    story = Story()
    for number in range(200):
        story.subscribed = {"a", f"b-{number}"}
        story.for_s(10, *story.subscribed)
    assert len(story.gap._sources) <= 4 + INCIDENT_UPDATES * UPDATE_S / 10
    story.subscribed = {"a"}
    story.for_s(600, "a")
    assert set(story.gap._sources) == {"a"}


def test_all_are_replaced() -> None:
    story = Story("a", "b")
    story.for_s(100, "a", "b")
    story.subscribed = {"c"}
    assert story.for_s(10) == 10
    assert story.for_s(1000, "c") == MISSING_UPDATES * UPDATE_S


def test_several_down_in_turn_are_one_incident() -> None:
    names = "abcdefgh"
    story = Story(*names)
    story.for_s(100, *names)
    held_s = sum(story.for_s(50, *set(names) - {down}) for down in names)
    assert held_s == INCIDENT_UPDATES * UPDATE_S
    assert story.for_s(1000, *names) == 0
    assert story.for_s(10, *names[1:]) == 10


@pytest.mark.parametrize(("down_s", "up_s"), [(1, 30), (10, 10), (1, 80), (30, 90), (60, 100)])
def test_one_that_flaps_for_ever_does_not_hold_it_for_ever(down_s: float, up_s: float) -> None:
    story = Story("a", "b")
    story.for_s(100, "a", "b")
    for _ in range(20):
        story.for_s(down_s, "b")
        story.for_s(up_s, "a", "b")
    for _ in range(20):
        assert story.for_s(down_s, "b") == 0
        assert story.for_s(up_s, "a", "b") == 0
    assert story.held_s <= INCIDENT_UPDATES * UPDATE_S
    # Another one's trouble holds it all the same...
    assert story.for_s(10, "a") == 10
    story.for_s(1000, "a", "b")
    # ... and after a time in which all was well, so does its own.
    assert story.for_s(10, "b") == 10


def test_after_the_bound_all_must_be_well_for_an_update() -> None:
    story = Story("a")
    story.for_s(100, "a")
    assert story.for_s(300) == INCIDENT_UPDATES * UPDATE_S
    story.for_s(AFTER_S + UPDATE_S - 2, "a")
    assert story.for_s(1) == 0
    story.for_s(AFTER_S + UPDATE_S + 2, "a")
    assert story.for_s(1) == 1


# Any story ------------------------------------------------------------------------------------


@dataclass
class Plain:
    """The same rules, by looking at all that ever happened, again each time."""

    looks: list[tuple[float, frozenset[str], frozenset[str]]] = field(default_factory=list)
    counted: list[set[str]] = field(default_factory=list)
    missing: list[bool] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)
    known: dict[str, int] = field(default_factory=dict)
    """By name, the number of the look at which it delivered first."""

    def update(
        self, now_s: float, delivering: Iterable[str], subscribed: Iterable[str], update_s: float
    ) -> bool:
        self.looks.append((now_s, frozenset(delivering), frozenset(subscribed)))
        last = len(self.looks) - 1
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

    def _seconds(self, look: int) -> float:
        """From a look to the next one."""
        return self.looks[look + 1][0] - self.looks[look][0]

    def _is_well(self, name: str, look: int, update_s: float) -> bool:
        first = self.known[name]
        delivers = [name in delivering for _, delivering, _ in self.looks[first : look + 1]]
        if not delivers[-1]:
            return False
        if all(delivers):
            return True
        back = max(i for i, (one, other) in enumerate(pairwise(delivers)) if other and not one) + 1
        for_s = sum(self._seconds(i) for i in range(first + back, look))
        return for_s >= update_s + SLACK_S

    def _counts(self, name: str, look: int, update_s: float) -> bool:
        first = self.known[name]
        well = [self._is_well(name, i, update_s) for i in range(first, look + 1)]
        if well[-1]:
            return False
        since = first + max((i for i, each in enumerate(well) if each), default=0)
        without_s = sum(
            self._seconds(i)
            for i in range(since, look)
            if self.looks[i][1] and name not in self.looks[i][1]
        )
        if without_s >= MISSING_UPDATES * update_s:
            return False
        counted = [name in each for each in self.counted[first:look]]
        return self._spent_s(well[:-1], counted, first, update_s) < INCIDENT_UPDATES * update_s

    def _spent_s(
        self, calm: Sequence[bool], spent: Sequence[bool], first: int, update_s: float
    ) -> float:
        """What was spent since the last time that all of an update was calm."""
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


@given(story=st.lists(STATES, max_size=40), update_s=st.sampled_from([10, 60]))
def test_any_story_is_judged_as_the_rules_say(
    story: list[tuple[int, frozenset[str], frozenset[str]]], update_s: int
) -> None:
    gap, plain = ReportingGap(), Plain()
    now_s, held_s, run_s = 500, 0, 0
    held = False
    for seconds, delivering, subscribed in story:
        # Nobody looks less often than the clock would take for a pause; here it would be slow.
        for _ in range(0, seconds, max(1, seconds // 4)):
            now_s += max(1, seconds // 4)
            delivering &= subscribed
            held_s = held_s + max(1, seconds // 4) if held else 0
            held = gap.update(
                now_s, delivering=delivering, subscribed=subscribed, flow_update_s=update_s
            )
            assert held == plain.update(now_s, delivering, subscribed, update_s)
            assert bool(gap.causes) == plain.missing[-1]
            run_s = max(run_s, held_s)
    # The look that finds the bound comes late by no more than one step.
    assert run_s <= INCIDENT_UPDATES * update_s + 75
