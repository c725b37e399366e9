"""Do the time per flow and the memory per connection stay constant as the table grows?

Not measured: sockets.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from benchmarks import naive, programs
from benchmarks.core import Core, tidy, trim
from benchmarks.flows import FIRST_ROUND, Flows
from benchmarks.harness import LARGE, SCALE, Remote, Report, ratio_at_most

STEPS = (SCALE // 10, 3 * SCALE // 10, SCALE, 3 * SCALE, LARGE)
"""Numbers of connections."""

REPORTS = SCALE // 2
"""Maximum number of known flows reported at each step."""
REPEATS = 3

BOUND = 1.6


class Growing(Protocol):
    """See `Core` for the methods."""

    def held_bytes(self) -> int: ...
    def fill(self, stop: int, /) -> tuple[float, ...]: ...
    def report(self, count: int, round_: int, in_order: bool, /) -> tuple[float, ...]: ...


class Naive:
    """`benchmarks.naive` without sockets."""

    def __init__(self, count: int) -> None:
        self._flows = Flows(count)
        self._connector = naive.Connector()
        self._connections = 0
        tidy()
        self._empty_bytes = programs.memory(os.getpid())

    def held_bytes(self) -> int:
        return programs.memory(os.getpid()) - self._empty_bytes

    def fill(self, stop: int) -> tuple[float]:
        new = range(self._connections, stop)
        self._connections = stop
        return self._take(self._flows.messages(new, FIRST_ROUND), len(new))

    def report(self, count: int, round_: int, _in_order: bool) -> tuple[float]:
        known = self._flows.sample(count, self._connections)
        return self._take(self._flows.messages(known, round_), len(known))

    def _take(self, messages: Iterable[bytes], count: int) -> tuple[float]:
        total_ns = 0
        for message in messages:
            began_ns = time.thread_time_ns()
            self._connector.message(message)
            total_ns += time.thread_time_ns() - began_ns
        trim()
        return (total_ns / count,)


@dataclass(frozen=True, slots=True)
class Measurement:
    connections: int
    new_ns: float
    """CPU time per new flow."""
    known_ns: list[float]
    """CPU time per known flow, for each repeat."""
    bytes_: float
    """Memory per connection."""


def measure(
    connector: Callable[[int], Growing], *, reports: int, repeats: int
) -> list[Measurement]:
    """Measure a connector without sockets at each number of connections in `STEPS`."""
    points = []
    with Remote(connector, LARGE) as remote:
        for step, connections in enumerate(STEPS):
            new_ns = sum(remote.call(Growing.fill, connections))
            bytes_ = remote.call(Growing.held_bytes) / connections
            first = FIRST_ROUND + 1 + step * repeats
            rounds = range(first, first + repeats)
            known_ns = [
                sum(remote.call(Growing.report, reports, round_, False)) for round_ in rounds
            ]
            points.append(Measurement(connections, new_ns, known_ns, bytes_))
    return points


def run(report: Report) -> None:
    points = measure(Core, reports=REPORTS, repeats=REPEATS)
    least = points[0]
    base = next(point for point in points if point.connections == SCALE)
    bound = ratio_at_most(BOUND)
    for point in points[1:]:
        what = f"known flow, {point.connections:,} connections"
        ns = point.known_ns
        to = f"{least.connections:,} connections"
        report.add(what, ns, "ns per flow", to=to, over=least.known_ns, target=bound)
    for point in points[1:]:
        what = f"new flow, {point.connections:,} connections"
        to = f"{least.connections:,} connections"
        report.add(what, [point.new_ns], "ns per flow", to=to, over=[least.new_ns])
    for point in points:
        is_larger = point.connections > SCALE
        report.add(
            f"memory, {point.connections:,} connections",
            [point.bytes_],
            "bytes per connection",
            to=f"{SCALE:,} connections" if is_larger else "",
            over=[base.bytes_] if is_larger else None,
            target=bound if is_larger else None,
        )
