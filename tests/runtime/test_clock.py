"""The clock stands still while the process is paused, and while the clock is held."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from skyfast.runtime.clock import PAUSE_S, Clock


class FakeMonotonicClock:
    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("origin", [0.0, 1e-9, 123_456_789.25])
def test_clock_follows_source_without_pauses(origin: float) -> None:
    source = FakeMonotonicClock(origin)
    clock = Clock(source)
    start_s = clock.now()
    for _ in range(100):
        source.now_s += PAUSE_S - 0.5
        clock.now()
    assert clock.now() - start_s == pytest.approx(100 * (PAUSE_S - 0.5))
    assert clock.paused_s == 0


def test_pause_is_excluded() -> None:
    source = FakeMonotonicClock(1000.0)
    clock = Clock(source)
    source.now_s += 2
    before = clock.now()
    source.now_s += 3600
    assert clock.now() == before
    source.now_s += 1.5
    assert clock.now() == pytest.approx(before + 1.5)
    assert clock.paused_s == 3600


def test_clock_never_runs_backwards() -> None:
    source = FakeMonotonicClock(0.0)
    clock = Clock(source)
    seen = []
    for step in (0.1, 4.9, 5.1, 0.0, 30, 0.5, 5.0, 1e6, 0.25):
        source.now_s += step
        seen.append(clock.now())
    assert seen == sorted(seen)


def test_clock_stops_while_held() -> None:
    source = FakeMonotonicClock(1000.0)
    clock = Clock(source)
    source.now_s += 2
    before = clock.now()
    clock.hold(True)
    for _ in range(50):
        source.now_s += 2
        clock.hold(True)
        assert clock.now() == before
    assert clock.held
    assert clock.held_s == pytest.approx(100)
    assert clock.running() == pytest.approx(before + 100)
    source.now_s += 1
    clock.hold(False)
    clock.hold(False)
    assert not clock.held
    assert clock.now() == pytest.approx(before)
    source.now_s += 1.5
    assert clock.now() == pytest.approx(before + 1.5)
    assert clock.held_s == pytest.approx(101)
    assert clock.paused_s == 0


def test_clock_includes_the_time_before_a_hold() -> None:
    source = FakeMonotonicClock(0.0)
    clock = Clock(source)
    source.now_s += 3
    clock.hold(True)
    source.now_s += 1
    assert clock.now() == 3


def test_pause_during_a_hold_counts_as_a_pause() -> None:
    source = FakeMonotonicClock(0.0)
    clock = Clock(source)
    clock.hold(True)
    source.now_s += 3600
    assert clock.now() == 0
    source.now_s += 2
    clock.hold(False)
    assert clock.now() == 0
    assert (clock.paused_s, clock.held_s) == (3600, 2)
    source.now_s += 1
    assert clock.now() == 1


@given(
    origin=st.floats(0, 1e9),
    steps=st.lists(
        st.tuples(st.floats(0, 20), st.sampled_from(["now", "running", "hold", "release"]))
    ),
)
def test_clock_never_runs_backwards_with_pauses_and_holds(
    origin: float, steps: list[tuple[float, str]]
) -> None:
    source = FakeMonotonicClock(origin)
    clock = Clock(source)
    start_s = clock.now()
    last, last_running, held = start_s, start_s, False
    expected = 0.0
    for seconds, action in steps:
        # A step close to `PAUSE_S` can count as a pause or not, because of rounding.
        assume(abs(seconds - PAUSE_S) > 1e-6)
        source.now_s += seconds
        match action:
            case "now":
                clock.now()
            case "running":
                clock.running()
            case "hold" | "release":
                clock.hold(action == "hold")
        if not held and seconds <= PAUSE_S:
            expected += seconds
        held = action == "hold" if action in ("hold", "release") else held
        now, running = clock.now(), clock.running()
        assert now >= last
        assert running >= last_running or running == pytest.approx(last_running)
        assert now - start_s == pytest.approx(expected, abs=1e-5)
        assert clock.held == held
        last, last_running = now, running
