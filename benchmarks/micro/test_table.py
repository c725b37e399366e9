"""What does a flow cost in the table, without decoding?

Not measured: waiting for the lock during a scrape.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.core import Parts
from benchmarks.flows import FIRST_ROUND, FLOWS_PER_MESSAGE, Flows
from benchmarks.harness import LARGE, SCALE
from benchmarks.micro.conftest import PerFlow

KNOWN_ROUNDS = 2_000
"""Maximum number of measured messages with known flows. Each flow is reported once."""

LATER_S = 10_000.0
"""After this time, all flows have expired and are forgotten."""

SIZES = [pytest.param(size, id=f"{size:,} connections") for size in (SCALE, LARGE)]

Decoded = Iterator[tuple[list[Any], float]]
"""The arguments of successive calls of `Table.update`."""


class Filled:
    """A table of known flows."""

    def __init__(self, size: int, *, slots: bool = True) -> None:
        self.flows = Flows(size)
        self.parts = Parts(slots=slots)
        self.parts.take_new(self.flows.messages(range(size), FIRST_ROUND))
        self._round = FIRST_ROUND

    def known(self, *, in_order: bool) -> Decoded:
        """Yield the next report of every flow."""
        self._round += 1
        size = self.flows.count
        numbers = range(size) if in_order else self.flows.sample(size, size)
        for message in self.flows.messages(numbers, self._round):
            yield self.parts.decode_known(message), self.parts.now_s


@pytest.fixture(scope="module", params=SIZES)
def filled(request: pytest.FixtureRequest) -> Filled:
    return Filled(request.param)


def _random_order(size: int) -> str:
    """Return the ID of the benchmark with which others of the same table size are compared."""
    return f"known flows in random order: {size:,} connections"


def _known_rounds(size: int) -> int:
    return min(KNOWN_ROUNDS, size // FLOWS_PER_MESSAGE - 1)


def test_known_flows_in_random_order(per_flow: PerFlow, filled: Filled) -> None:
    size = filled.flows.count
    reports = filled.known(in_order=False)
    at_most = {100_000: 180, 1_000_000: 300}.get(size)
    per_flow(filled.parts.table.update, reports, rounds=_known_rounds(size), at_most=at_most)


def test_known_flows_in_row_order(per_flow: PerFlow, filled: Filled) -> None:
    size = filled.flows.count
    per_flow(
        filled.parts.table.update,
        filled.known(in_order=True),
        rounds=_known_rounds(size),
        to=_random_order(size),
    )


def test_known_flows_with_fields_read_as_attributes(per_flow: PerFlow) -> None:
    filled = Filled(SCALE, slots=False)
    rounds = _known_rounds(SCALE)
    per_flow(
        filled.parts.table.update,
        filled.known(in_order=False),
        rounds=rounds,
        to=_random_order(SCALE),
    )


@pytest.mark.parametrize("size", SIZES)
def test_new_flows(per_flow: PerFlow, size: int) -> None:
    """While the table grows, the kernel provides memory, and the index is extended."""
    parts = Parts()
    new = _new(parts, Flows(size))
    rounds = size // FLOWS_PER_MESSAGE
    per_flow(parts.table.update, new, rounds=rounds, mean=True, to=_random_order(size))


def test_new_flows_in_freed_rows(per_flow: PerFlow) -> None:
    """As in a table of constant size, new flows reuse the rows of expired flows."""
    parts = Parts(memory_s=0)
    flows = Flows(SCALE)
    parts.take_new(flows.messages(range(SCALE), FIRST_ROUND))
    parts.now_s += LATER_S
    while parts.table.expire(parts.now_s, SCALE):
        pass
    assert parts.table.connections == 0
    new = _new(parts, flows)
    rounds = SCALE // FLOWS_PER_MESSAGE
    to = f"new flows: {SCALE:,} connections"
    per_flow(parts.table.update, new, rounds=rounds, mean=True, to=to)


def _new(parts: Parts, flows: Flows) -> Decoded:
    """Yield the first report of every flow."""
    for message in flows.messages(range(flows.count), FIRST_ROUND):
        yield parts.decode_new(message), parts.now_s
