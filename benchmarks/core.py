"""The decoder and the table alone, without sockets, in processes that have nothing else."""

import ctypes
import itertools
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from benchmarks.flows import FIRST_ROUND, FLOWS_PER_MESSAGE, Flows
from benchmarks.harness import LARGE
from skyfast import memory
from skyfast._table import Table
from skyfast.exposition import CHUNK_BYTES
from skyfast.plan import default_plan
from skyfast.wire import flow_types

TIMEOUT_S = 75.0
NOW_S = 1_000.0
"""The table's clock, which stands still."""

MESSAGES = 100
"""Made at a time, about 8 MB."""

PLAN = default_plan()
TYPES = flow_types(PLAN)


def decoder(flow: type[msgspec.Struct] = TYPES.Flow) -> msgspec.json.Decoder[Any]:
    """Return the decoder of messages that the connector has, for flows of this type."""
    fields = [("Namespace", str, ""), ("Type", str, ""), ("Obj", list[flow] | None, None)]  # type: ignore[valid-type]
    return msgspec.json.Decoder(msgspec.defstruct("Message", fields, gc=False))


def new_table(*, slots: bool = True) -> Table:
    return Table(
        PLAN, TYPES, max_connections=LARGE, max_flows=4 * LARGE, timeout_s=TIMEOUT_S, slots=slots
    )


def tidy() -> None:
    """Keep memory as the connector does, and nothing of the preparations."""
    memory.keep_heap()
    memory.freeze()
    trim()


def trim() -> None:
    """Give back what is free at the top of the heap, so that a process has what it holds."""
    # glibc's own; elsewhere a connection's bytes are a little less exact.
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class Core:
    """A table that is filled here, and what its parts cost on the way."""

    def __init__(self, count: int, slots: bool = True) -> None:
        self._flows = Flows(count)
        self._decode = decoder().decode
        self._table = new_table(slots=slots)
        assert self._table.reads_slots == slots
        tidy()

    def fill(self, stop: int) -> tuple[float, float]:
        """Take first reports until ``stop`` connections are there.

        Returns the ns a flow of decoding and of the table.
        """
        new = range(self._table.connections, stop)
        figures = self._take(self._flows.messages(new, FIRST_ROUND), len(new))
        assert self._table.connections == stop
        return figures

    def report(self, count: int, round_: int, in_order: bool) -> tuple[float, float]:
        """Take one more report of so many of the flows; return likewise."""
        connections = self._table.connections
        known = range(count) if in_order else self._flows.some(count, connections)
        return self._take(self._flows.messages(known, round_), len(known))

    def _take(self, messages: Iterable[bytes], count: int) -> tuple[float, float]:
        decode, update, clock_ns = self._decode, self._table.update, time.thread_time_ns
        decode_ns = update_ns = taken = 0
        late = self._table.skipped["late"]
        messages = iter(messages)
        # Some at a time, so that making them does not come between two that are measured.
        while made := list(itertools.islice(messages, MESSAGES)):
            for message in made:
                began_ns = clock_ns()
                flows = decode(message).Obj
                decoded_ns = clock_ns()
                taken += update(flows, NOW_S)
                update_ns += clock_ns() - decoded_ns
                decode_ns += decoded_ns - began_ns
        trim()
        assert taken == count, "the table did not take every flow"
        assert self._table.skipped["late"] == late, "a round was not newer than the last"
        return decode_ns / count, update_ns / count

    def held_bytes(self) -> int:
        """Return what the table says that it holds."""
        return self._table.bytes

    def series(self) -> int:
        """Return the number of series on a page."""
        page = self._table.page(NOW_S)
        chunks = iter(lambda: page.read(CHUNK_BYTES), b"")
        return sum(not line.startswith(b"#") for chunk in chunks for line in chunk.splitlines())

    def render(self) -> float:
        """Render a page and do nothing with it; return the seconds.

        Nothing comes in between, not even counting: the cache is rendering's alone.
        """
        began_ns = time.thread_time_ns()
        page = self._table.page(NOW_S)
        while page.read(CHUNK_BYTES):
            pass
        return (time.thread_time_ns() - began_ns) / 1e9


class Decoder:
    """Decodes and does nothing with it: the part of the cost that is not the connector's."""

    def __init__(self, count: int) -> None:
        self._messages = list(Flows(count).messages(range(count), FIRST_ROUND))
        self._decode = decoder().decode
        tidy()

    def run(self) -> float:
        """Return the CPU time a flow, in ns."""
        decode, clock_ns = self._decode, time.thread_time_ns
        total_ns = 0
        for message in self._messages:
            # What was received is in the cache when it is decoded.
            received = bytes(bytearray(message))
            began_ns = clock_ns()
            decode(received)
            total_ns += clock_ns() - began_ns
        return total_ns / len(self._messages) / FLOWS_PER_MESSAGE
