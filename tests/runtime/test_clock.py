"""The clock: pauses and holds do not count, everything else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfast.runtime.clock import PAUSE_S, Clock


class Source:
    """A monotonic clock that a test moves."""

    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


@pytest.mark.parametrize("origin", [0.0, 1e-9, 123_456_789.25])
def test_time_passes_as_it_does_outside(origin: float) -> None:
    source = Source(origin)
    clock = Clock(source)
    began = clock.now()
    for _ in range(100):
        source.at += PAUSE_S - 0.5
        clock.now()
    assert clock.now() - began == pytest.approx(100 * (PAUSE_S - 0.5))
    assert clock.paused_s == 0


def test_a_pause_does_not_count() -> None:
    source = Source(1000.0)
    clock = Clock(source)
    source.at += 2
    before = clock.now()
    source.at += 3600
    assert clock.now() == before
    source.at += 1.5
    assert clock.now() == pytest.approx(before + 1.5)
    assert clock.paused_s == 3600


def test_it_never_runs_backwards() -> None:
    source = Source(0.0)
    clock = Clock(source)
    seen = []
    for step in (0.1, 4.9, 5.1, 0.0, 30, 0.5, 5.0, 1e6, 0.25):
        source.at += step
        seen.append(clock.now())
    assert seen == sorted(seen)


def test_it_stands_still_while_it_is_held() -> None:
    source = Source(1000.0)
    clock = Clock(source)
    source.at += 2
    before = clock.now()
    clock.hold(True)
    for _ in range(50):
        source.at += 2
        clock.hold(True)
        assert clock.now() == before
    assert clock.held
    assert clock.held_s == pytest.approx(100)
    assert clock.running() == pytest.approx(before + 100)
    source.at += 1
    clock.hold(False)
    clock.hold(False)
    assert not clock.held
    assert clock.now() == pytest.approx(before)
    source.at += 1.5
    assert clock.now() == pytest.approx(before + 1.5)
    assert clock.held_s == pytest.approx(101)
    assert clock.paused_s == 0


def test_time_passes_up_to_the_moment_of_the_hold() -> None:
    source = Source(0.0)
    clock = Clock(source)
    source.at += 3
    clock.hold(True)
    source.at += 1
    assert clock.now() == 3


def test_a_pause_while_it_is_held_is_no_hold() -> None:
    source = Source(0.0)
    clock = Clock(source)
    clock.hold(True)
    source.at += 3600
    assert clock.now() == 0
    source.at += 2
    clock.hold(False)
    assert clock.now() == 0
    assert (clock.paused_s, clock.held_s) == (3600, 2)
    source.at += 1
    assert clock.now() == 1


@given(
    origin=st.floats(0, 1e9),
    steps=st.lists(
        st.tuples(st.floats(0, 20), st.sampled_from(["now", "running", "hold", "release"]))
    ),
)
def test_it_never_runs_backwards_whatever_happens(
    origin: float, steps: list[tuple[float, str]]
) -> None:
    source = Source(origin)
    clock = Clock(source)
    began = clock.now()
    last, ran, held = began, began, False
    expected = 0.0
    for seconds, what in steps:
        source.at += seconds
        match what:
            case "now":
                clock.now()
            case "running":
                clock.running()
            case "hold" | "release":
                clock.hold(what == "hold")
        if not held and seconds <= PAUSE_S:
            expected += seconds
        held = what == "hold" if what in ("hold", "release") else held
        now, running = clock.now(), clock.running()
        assert now >= last
        assert running >= ran or running == pytest.approx(ran)
        assert now - began == pytest.approx(expected, abs=1e-5)
        assert clock.held == held
        last, ran = now, running
