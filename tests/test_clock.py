"""The clock: pauses do not count, everything else does."""

import pytest

from skyfast.clock import PAUSE_S, Clock


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
