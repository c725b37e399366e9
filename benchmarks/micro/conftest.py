"""Fixtures of the microbenchmarks.

A round is one message of 100 flows. The arguments of a round are prepared before the clock starts,
so they are in the CPU cache, as in skyfast. The clock is the CPU time of the thread.
pytest-benchmark shows the time per flow; see `pytest_benchmark_scale_unit`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks import core
from benchmarks.flows import FIRST_ROUND, FLOWS_PER_MESSAGE, Flows

MESSAGES = 100


class PerFlow:
    """Measures functions; see `__call__`."""

    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark

    def __call__(
        self,
        function: Callable[..., object],
        arguments: Iterator[tuple[Any, ...]],
        *,
        rounds: int,
        mean: bool = False,
        to: str = "",
        at_most: float | None = None,
    ) -> None:
        """Call ``function`` with the next ``arguments`` in each round, and measure the calls.

        If ``mean`` is true, the report shows the mean instead of the median. Unlike the median, the
        mean includes work that only a few rounds do. ``to`` is the ID of the benchmark to compare
        with, and ``at_most`` is the target in ns.
        """
        self._benchmark.extra_info.update(mean=mean, to=to, at_most=at_most)
        self._benchmark.pedantic(function, setup=lambda: (next(arguments), {}), rounds=rounds)


@pytest.fixture(scope="session", autouse=True)
def _memory_settings() -> None:
    core.tidy()


@pytest.fixture(scope="session")
def messages() -> list[bytes]:
    """Return messages with the first reports of 10,000 flows."""
    count = MESSAGES * FLOWS_PER_MESSAGE
    return list(Flows(count).messages(range(count), FIRST_ROUND))


@pytest.fixture
def per_flow(benchmark: Any) -> PerFlow:
    """Return the object that measures a function."""
    return PerFlow(benchmark)


def pytest_benchmark_scale_unit(unit: str, **_: object) -> tuple[str, float]:
    """Show the ns per flow, and the thousands of flows per second."""
    if unit == "seconds":
        return "n", 1e9 / FLOWS_PER_MESSAGE
    return "K", FLOWS_PER_MESSAGE / 1e3
