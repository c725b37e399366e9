"""The decoder and the table alone, without sockets, in processes that have nothing else."""

import ctypes
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from benchmarks.flows import FIRST_ROUND, FLOWS_PER_MESSAGE, Flows
from benchmarks.harness import LARGE
from skyfast._table import Table
from skyfast.config import loader
from skyfast.config.model import Config
from skyfast.flows.fields import FlowTypes, flow_types
from skyfast.flows.plan import Plan
from skyfast.flows.planner import make_plan
from skyfast.runtime import memory
from skyfast.skydive.name_index import NameIndex
from skyfast.web.exposition import CHUNK_BYTES

NOW_S = 1_000.0
"""The table's clock, which stands still unless a benchmark moves it."""

MESSAGES = 100
"""Made at a time, about 8 MB."""

DEFAULT = "{}"
"""What is chosen below ``prom_sky_con`` where a benchmark does not ask about choices."""


def configured(chosen: str) -> tuple[Config, Plan, FlowTypes]:
    """Return what the connector makes of the YAML below ``prom_sky_con``."""
    file = f"pipeline: {{store: {{prom_sky_con: {chosen}}}}}"
    configuration = loader.parse(file, {}, source="-")
    plan = make_plan(
        configuration.export, names=NameIndex(keep_s=0, k8s_labels=configuration.export.k8s_labels)
    )
    return configuration, plan, flow_types(plan)


_, PLAN, TYPES = configured(DEFAULT)


def decoder(flow: type[msgspec.Struct] = TYPES.Update) -> msgspec.json.Decoder[Any]:
    """Return the decoder of messages that the connector has, for flows of this type."""
    fields = [("Namespace", str, ""), ("Type", str, ""), ("Obj", list[flow] | None, None)]  # type: ignore[valid-type]
    return msgspec.json.Decoder(msgspec.defstruct("Message", fields, gc=False))


def tidy() -> None:
    """Keep memory as the connector does, and nothing of the preparations."""
    memory.tune_malloc()
    memory.freeze()
    trim()


def trim() -> None:
    """Give back what is free at the top of the heap, so that a process has what it holds."""
    # glibc's own; elsewhere a connection's bytes are a little less exact.
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def in_batches(messages: Iterator[bytes], size: int = MESSAGES) -> Iterator[list[bytes]]:
    """Make some messages at a time, so that it does not come between two that are measured."""
    while made := list(itertools.islice(messages, size)):
        yield made


class Parts:
    """The decoders and the table that the connector has where this is chosen.

    As there, new flows are decoded with what tells how much they are worth, known ones without.
    What takes messages returns the number of their flows, and the ns of decoding and of the table.
    ``memory_s`` is for how long flows are remembered, where that is not what the connector does.
    """

    def __init__(
        self, chosen: str = DEFAULT, *, slots: bool = True, memory_s: float | None = None
    ) -> None:
        configuration, plan, types = configured(chosen)
        limits = configuration.limits
        self.now_s = NOW_S
        self._decode_new = decoder(types.FirstReport).decode
        self._decode_known = decoder(types.Update).decode
        self.table = Table(
            plan,
            types,
            max_connections=LARGE,
            max_flows=4 * LARGE,
            timeout_s=limits.timeout_s,
            memory_s=limits.flow_memory_s if memory_s is None else memory_s,
            view_timeouts_s=limits.view_timeouts_s,
            slots=slots,
        )
        assert self.table.reads_slots == slots

    def take_new(self, messages: Iterable[bytes]) -> tuple[int, int, int]:
        """Take first reports."""
        before = self.table.flows
        figures = self._take(messages, self._decode_new)
        assert self.table.flows == before + figures[0], "a flow was not new"
        return figures

    def take_known(self, messages: Iterable[bytes]) -> tuple[int, int, int]:
        """Take reports of flows that are known."""
        before = self.table.flows
        late = self.table.skipped["late"]
        figures = self._take(messages, self._decode_known)
        assert self.table.flows == before, "a flow was not known"
        assert self.table.skipped["late"] == late, "a round was not newer than the last"
        return figures

    def _take(
        self, messages: Iterable[bytes], decode: Callable[[bytes], Any]
    ) -> tuple[int, int, int]:
        update, clock_ns = self.table.update, time.thread_time_ns
        count = taken = decode_ns = update_ns = 0
        for message in messages:
            began_ns = clock_ns()
            flows = decode(message).Obj
            decoded_ns = clock_ns()
            taken += update(flows, self.now_s)
            update_ns += clock_ns() - decoded_ns
            decode_ns += decoded_ns - began_ns
            count += len(flows)
        assert taken == count, "the table did not take every flow"
        return count, decode_ns, update_ns

    def connections(self) -> int:
        return self.table.connections

    def held_bytes(self) -> int:
        """Return what the table says that it holds."""
        return self.table.bytes

    def page(self) -> tuple[int, int]:
        """Return the numbers of bytes and of series of a page."""
        page = self.table.page(self.now_s)
        size = series = 0
        for chunk in iter(lambda: page.read(CHUNK_BYTES), b""):
            size += len(chunk)
            series += sum(not line.startswith(b"#") for line in chunk.splitlines())
        return size, series

    def render(self) -> float:
        """Render a page and do nothing with it; return the seconds.

        Nothing comes in between, not even counting: the cache is rendering's alone.
        """
        began_ns = time.thread_time_ns()
        page = self.table.page(self.now_s)
        while page.read(CHUNK_BYTES):
            pass
        return (time.thread_time_ns() - began_ns) / 1e9


class Core(Parts):
    """The parts, filled by themselves, in a process that has nothing else."""

    def __init__(self, count: int, slots: bool = True) -> None:
        super().__init__(slots=slots)
        self._flows = Flows(count)
        tidy()

    def fill(self, stop: int) -> tuple[float, float]:
        """Take first reports until ``stop`` connections are there.

        Returns the ns a flow of decoding and of the table.
        """
        new = range(self.table.connections, stop)
        figures = self._in_batches(self.take_new, self._flows.messages(new, FIRST_ROUND))
        assert self.table.connections == stop
        return figures

    def report(self, count: int, round_: int, in_order: bool) -> tuple[float, float]:
        """Take one more report of so many of the flows; return likewise."""
        connections = self.table.connections
        known = range(count) if in_order else self._flows.some(count, connections)
        return self._in_batches(self.take_known, self._flows.messages(known, round_))

    def _in_batches(
        self, take: Callable[[list[bytes]], tuple[int, int, int]], messages: Iterator[bytes]
    ) -> tuple[float, float]:
        batches = in_batches(messages)
        count, decode_ns, update_ns = map(sum, zip(*map(take, batches), strict=True))
        trim()
        return decode_ns / count, update_ns / count


class Decoder:
    """Decodes what known flows need and does nothing with it: what is not the connector's doing."""

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
