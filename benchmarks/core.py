"""skyfast's decoder and table, without sockets."""

import ctypes
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from isal import isal_zlib

from benchmarks.flows import FIRST_ROUND, FLOWS_PER_MESSAGE, Flows
from benchmarks.harness import LARGE
from skyfast._table import Table
from skyfast.config import loader
from skyfast.config.model import Config
from skyfast.flows.fields import FlowTypes, flow_types
from skyfast.flows.plan import Names, Plan
from skyfast.flows.planner import make_plan
from skyfast.runtime import memory
from skyfast.skydive.name_index import NameIndex
from skyfast.web.exposition import CHUNK_BYTES, GZIP_LEVEL, GZIP_WBITS

NOW_S = 1_000.0
"""The time that tables get, unless a benchmark advances it."""

MESSAGES = 100
"""Number of messages in a batch of about 8 MB."""

DEFAULT = "{}"
"""The YAML below the key ``prom_sky_con``, unless a benchmark compares configurations."""


def configured(chosen: str) -> tuple[Config, Plan, FlowTypes]:
    """Return the configuration, plan and flow types for the YAML ``chosen`` (see `DEFAULT`)."""
    file = f"pipeline: {{store: {{prom_sky_con: {chosen}}}}}"
    configuration = loader.parse(file, {}, source="-")
    plan = make_plan(configuration.export, names=NameIndex.of(configuration.export, keep_s=0))
    return configuration, plan, flow_types(plan)


_, PLAN, TYPES = configured(DEFAULT)


def decoder(flow: type[msgspec.Struct] = TYPES.Update) -> msgspec.json.Decoder[Any]:
    """Return a decoder like skyfast's, for messages with flows of the type ``flow``."""
    fields = [("Namespace", str, ""), ("Type", str, ""), ("Obj", list[flow] | None, None)]  # type: ignore[valid-type]
    return msgspec.json.Decoder(msgspec.defstruct("Message", fields, gc=False))


def tidy() -> None:
    """Configure memory management as skyfast does, and free memory that is no longer used."""
    memory.tune_malloc()
    memory.freeze()
    trim()


def trim() -> None:
    """Return free memory to the kernel, so that it does not count as resident memory."""
    # Only glibc has malloc_trim. Without it, the measured bytes per connection are less exact.
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def in_batches(messages: Iterator[bytes], size: int = MESSAGES) -> Iterator[list[bytes]]:
    """Yield messages in batches. Each batch is complete before the caller measures its messages."""
    while batch := list(itertools.islice(messages, size)):
        yield batch


class Parts:
    """skyfast's decoders and table.

    As in skyfast, the decoder of first reports reads more fields than the decoder of later reports.
    """

    def __init__(
        self,
        chosen: str = DEFAULT,
        *,
        change: Callable[[Plan], Plan] | None = None,
        slots: bool = True,
        memory_s: float | None = None,
    ) -> None:
        """``change`` modifies the plan of the configuration ``chosen`` (see `DEFAULT`).

        ``memory_s`` overrides ``flow_memory``.
        """
        configuration, plan, types = configured(chosen)
        if change is not None:
            plan = change(plan)
            types = flow_types(plan)
        limits = configuration.limits
        self.now_s = NOW_S
        self._limits: dict[str, Any] = {
            "max_connections": LARGE,
            "max_flows": 4 * LARGE,
            "timeout_s": limits.timeout_s,
            "memory_s": limits.flow_memory_s if memory_s is None else memory_s,
            "view_timeouts_s": limits.view_timeouts_s,
        }
        self._new = decoder(types.FirstReport)
        self._known = decoder(types.KnownReport)
        self.table = Table(
            plan,
            types,
            **self._limits,
            bounds=limits.bounds,
            slots=slots,
        )
        assert self.table.reads_slots == slots

    def decode_new(self, message: bytes) -> list[Any]:
        flows: list[Any] = self._new.decode(message).Obj
        return flows

    def decode_known(self, message: bytes) -> list[Any]:
        flows: list[Any] = self._known.decode(message).Obj
        return flows

    def take_new(self, messages: Iterable[bytes]) -> tuple[int, int, int]:
        """Process first reports.

        Returns the number of reports, the ns to decode them, and the ns to update the table.
        """
        before = self.table.flows
        figures = self._take(messages, self._new.decode)
        assert self.table.flows == before + figures[0], "a flow was not new"
        return figures

    def take_known(self, messages: Iterable[bytes]) -> tuple[int, int, int]:
        """Like `take_new`, but for reports of known flows."""
        before = self.table.flows
        late = self.table.skipped["late"]
        figures = self._take(messages, self._known.decode)
        assert self.table.flows == before, "a flow was not known"
        assert self.table.skipped["late"] == late, "a round was not newer than the previous round"
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
        assert taken == count, "the table skipped a flow"
        return count, decode_ns, update_ns

    def relabel(self, names: Names, keys: Iterable[str], budget: int) -> list[float]:
        """Relabel flows in slices of ``budget`` flows, and return the ms of each slice."""
        relabeling = self.table.relabel(names, keys)
        ms = []
        more = True
        while more:
            began_ns = time.thread_time_ns()
            more = relabeling.step(budget)
            ms.append((time.thread_time_ns() - began_ns) / 1e6)
        return ms

    def connections(self) -> int:
        return self.table.connections

    def held_bytes(self) -> int:
        """Return the size in bytes that the table itself computes."""
        return self.table.bytes

    def page(self) -> tuple[int, int]:
        """Return the number of bytes and the number of series of a page."""
        page = self.table.page(self.now_s)
        size = series = 0
        for chunk in iter(lambda: page.read(CHUNK_BYTES), b""):
            size += len(chunk)
            series += sum(not line.startswith(b"#") for line in chunk.splitlines())
        return size, series

    def bound(self, min_bytes: int) -> None:
        """Set ``min_bytes`` of the first view, and remove all other bounds."""
        others = [(0, 0)] * len(self.table.view_connections)
        self.table.set_limits(**self._limits, bounds=[(min_bytes, 0), *others])

    def render(self, parts: int = 1, openmetrics: int = 0, created: bool = False) -> float:
        """Render and discard a page in ``parts`` parts. Return the seconds for all parts.

        See `Table.page` for ``openmetrics`` and ``created``. Unlike in skyfast, no other code uses
        the CPU cache between two reads.
        """
        began_ns = time.thread_time_ns()
        for part in range(parts):
            page = self.table.page(self.now_s, openmetrics, created=created, part=part, parts=parts)
            while page.read(CHUNK_BYTES):
                pass
        return (time.thread_time_ns() - began_ns) / 1e9

    def deflate(self, openmetrics: int = 0) -> tuple[float, int]:
        """Render and compress a page, and compute its checksum.

        Returns the time in seconds and the compressed size in bytes.
        """
        began_ns = time.thread_time_ns()
        page = self.table.page(self.now_s, openmetrics, created=True)
        size = checksum = 0
        text = True
        while text:
            lines, blocks = page.deflate(CHUNK_BYTES)
            checksum = isal_zlib.crc32(lines, checksum)
            size += len(blocks)
            text = len(lines) > 0
        return (time.thread_time_ns() - began_ns) / 1e9, size

    def compress(self, openmetrics: int = 0) -> tuple[float, int]:
        """Compress the page of `deflate` with isal, in chunks of skyfast's size.

        Returns the time in seconds, excluding rendering, and the compressed size in bytes.
        """
        page = self.table.page(self.now_s, openmetrics, created=True)
        compressor = isal_zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WBITS)
        ns = size = 0
        while chunk := page.read(CHUNK_BYTES):
            began_ns = time.thread_time_ns()
            size += len(compressor.compress(chunk))
            ns += time.thread_time_ns() - began_ns
        return ns / 1e9, size + len(compressor.flush())


class Core(Parts):
    """Runs in another process, and generates its own messages."""

    def __init__(self, count: int, slots: bool = True) -> None:
        super().__init__(slots=slots)
        self._flows = Flows(count)
        tidy()

    def fill(self, stop: int) -> tuple[float, float]:
        """Process first reports until the table has ``stop`` connections.

        Returns the ns per flow to decode reports, and the ns per flow to update the table.
        """
        new = range(self.table.connections, stop)
        figures = self._in_batches(self.take_new, self._flows.messages(new, FIRST_ROUND))
        assert self.table.connections == stop
        return figures

    def report(self, count: int, round_: int, in_order: bool) -> tuple[float, float]:
        """Like `fill`, but process another report of each of ``count`` known flows."""
        connections = self.table.connections
        known = range(count) if in_order else self._flows.sample(count, connections)
        return self._in_batches(self.take_known, self._flows.messages(known, round_))

    def _in_batches(
        self, take: Callable[[list[bytes]], tuple[int, int, int]], messages: Iterator[bytes]
    ) -> tuple[float, float]:
        batches = in_batches(messages)
        count, decode_ns, update_ns = map(sum, zip(*map(take, batches), strict=True))
        trim()
        return decode_ns / count, update_ns / count


class Decoder:
    """Decodes known flows and discards them, as a baseline."""

    def __init__(self, count: int, flows_per_message: int = FLOWS_PER_MESSAGE) -> None:
        flows = Flows(count, flows_per_message)
        self._messages = list(flows.messages(range(count), FIRST_ROUND))
        self._count = count
        self._decode = decoder().decode
        tidy()

    def run(self) -> float:
        """Return the CPU time to decode all messages, in ns per flow."""
        decode, clock_ns = self._decode, time.thread_time_ns
        total_ns = 0
        for message in self._messages:
            # Decode a copy, which is in the CPU cache, like a message that was just received.
            received = bytes(bytearray(message))
            began_ns = clock_ns()
            decode(received)
            total_ns += clock_ns() - began_ns
        return total_ns / self._count
