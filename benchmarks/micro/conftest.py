"""Fixtures of the microbenchmarks.

A round is one message of 100 flows. The arguments of a round are prepared just before the
measurement, so they are in the CPU cache, as in skyfast. Each time is the CPU time of the thread
per flow.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks import core
from benchmarks.flows import FIRST_ROUND, FLOWS_PER_MESSAGE, Flows

MESSAGES = 100


class PerFlow:
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
        """Measure calls of ``function``, each with the next item of ``arguments``.

        If ``mean`` is true, the report shows the mean instead of the median, because the mean
        includes work that only a few calls do. ``to`` is the ID of the benchmark to compare with,
        and ``at_most`` is the target in ns.
        """
        self._benchmark.extra_info.update(mean=mean, to=to, at_most=at_most)
        self._benchmark.pedantic(function, setup=lambda: (next(arguments), {}), rounds=rounds)


@pytest.fixture(scope="session", autouse=True)
def _memory_settings() -> None:
    core.tidy()


@pytest.fixture(scope="session")
def messages() -> list[bytes]:
    count = MESSAGES * FLOWS_PER_MESSAGE
    return list(Flows(count).messages(range(count), FIRST_ROUND))


@pytest.fixture
def per_flow(benchmark: Any) -> PerFlow:
    return PerFlow(benchmark)


def pytest_benchmark_scale_unit(unit: str, **_: object) -> tuple[str, float]:
    """Show ns per flow, and thousands of flows per second."""
    if unit == "seconds":
        return "n", 1e9 / FLOWS_PER_MESSAGE
    return "K", FLOWS_PER_MESSAGE / 1e3
