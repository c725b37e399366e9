"""The decoder and the table alone, without sockets, in processes that have nothing else."""

import gc
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from benchmarks.flows import FIRST_ROUND, FLOWS_PER_MESSAGE, Flows
from benchmarks.harness import LARGE
from skyfast._table import Table
from skyfast.plan import default_plan
from skyfast.wire import flow_types

TIMEOUT_S = 75.0
NOW_S = 1_000.0
"""The table's clock, which stands still."""

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


class Core:
    """A table that is filled here, and what its parts cost on the way."""

    def __init__(self, count: int, slots: bool = True) -> None:
        self._flows = Flows(count)
        self._decode = decoder().decode
        self._table = new_table(slots=slots)
        assert self._table.reads_slots == slots
        gc.collect()
        gc.freeze()

    def fill(self) -> tuple[float, float]:
        """Take every flow's first report; return the ns a flow of decoding and of the table."""
        figures = self._take(
            self._flows.messages(range(self._flows.count), FIRST_ROUND), self._flows.count
        )
        assert self._table.connections == self._flows.count
        return figures

    def report(self, count: int, round_: int, in_order: bool) -> tuple[float, float]:
        """Report some of the flows again; return likewise."""
        numbers = list(range(count)) if in_order else self._flows.some(count)
        return self._take(self._flows.messages(numbers, round_), len(numbers))

    def _take(self, messages: Iterable[bytes], count: int) -> tuple[float, float]:
        decode, update, clock_ns = self._decode, self._table.update, time.thread_time_ns
        decode_ns = update_ns = taken = 0
        late = self._table.skipped["late"]
        for message in messages:
            began_ns = clock_ns()
            flows = decode(message).Obj
            decoded_ns = clock_ns()
            taken += update(flows, NOW_S)
            update_ns += clock_ns() - decoded_ns
            decode_ns += decoded_ns - began_ns
        assert taken == count, "the table did not take every flow"
        assert self._table.skipped["late"] == late, "a round was not newer than the last"
        return decode_ns / count, update_ns / count

    def bytes(self) -> int:
        return self._table.bytes

    def render(self, chunk_bytes: int) -> tuple[float, int]:
        """Render a page; return the seconds, and the page's size."""
        page = self._table.page(NOW_S)
        size = 0
        began_s = time.perf_counter()
        while chunk := page.read(chunk_bytes):
            size += len(chunk)
        return time.perf_counter() - began_s, size


class Decoder:
    """Decodes and does nothing with it: the part of the cost that is not the connector's."""

    def __init__(self, count: int) -> None:
        self._messages = list(Flows(count).messages(range(count), FIRST_ROUND))
        self._decode = decoder().decode
        gc.collect()
        gc.freeze()

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
