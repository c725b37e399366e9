"""Gives the compiled table the interface of the model, so tests can compare the two."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from skyfast import _table
from skyfast._table import Page, Table
from skyfast.flows.fields import flow_types
from skyfast.flows.plan import (
    Column,
    Conversation,
    Counter,
    Direction,
    FlowCount,
    Gauge,
    Histogram,
    Lookup,
    NewFlows,
    Plan,
    Requirement,
    ShardSelector,
    Value,
)
from skyfast.flows.plan import Family as PlanFamily
from skyfast.flows.plan import View as PlanView
from tests.model import (
    CONVERSATION,
    DIRECTION,
    NEW_FLOWS,
    OTHER,
    Bounds,
    Distribution,
    Family,
    Label,
    Names,
    Spec,
    Total,
    View,
    amount_totals,
    counts_amount,
    family_values,
    is_field,
    labels_of,
    make_flow,
    one_view,
    read_page,
)
from tests.model import Gauge as ModelGauge
from tests.model import Lookup as ModelLookup

ALL_ROWS = 2**31 - 1
CHUNK_BYTES = 256 * 1024
JOIN_S = 20
MAX_CHECKED_ROWS = 300
"""`Core.check` skips tables that have ever had more rows than this, because a check takes long."""


class _OfFlow:
    """Calls a rewrite of the model with a flow as a dict."""

    def __init__(self, rewrite: Any) -> None:
        self._rewrite = rewrite

    def __getitem__(self, flow: msgspec.Struct) -> str | int:
        result: str | int = self._rewrite[msgspec.to_builtins(flow)]
        return result


def plan_of(spec: Spec, *, shard: tuple[int, int] | None = None) -> Plan:
    """``shard`` has the index of the shard and the number of shards."""
    columns: dict[Label, Column] = {}
    lookups: dict[ModelLookup, Lookup] = {}
    for view in spec.views:
        for label in labels_of(view):
            columns.setdefault(label, _column(label, lookups))
    transport: tuple[tuple[str, ...], ...] = (("Transport",),)
    if spec.include_icmp:
        transport += (("ICMP",),)
    no_icmp = ("ICMP",) if spec.include_other else ()
    requirement = Requirement(paths=transport, unless_missing=no_icmp, reason="no_transport")
    protocol, a, a_port, b, b_port, point = CONVERSATION
    conversation = Conversation(protocol=protocol, ends=((a, a_port), (b, b_port)), point=point)
    return Plan(
        views=tuple(_view(view, columns, spec) for view in spec.views),
        requirements=(
            Requirement(paths=(("Network",),), reason="no_network"),
            *(() if spec.include_icmp and spec.include_other else (requirement,)),
            Requirement(paths=(("Metric",),), reason="no_metric"),
        ),
        conversation=conversation if spec.deduplicate == "first" else None,
        overflow=OTHER if spec.overflow == OTHER else None,
        shard=(
            ShardSelector(conversation=conversation, index=shard[0], count=shard[1])
            if shard
            else None
        ),
    )


def _column(label: Label, lookups: dict[ModelLookup, Lookup]) -> Column:
    if label.lookup is not None:
        theirs = label.lookup
        lookup = lookups.setdefault(theirs, _lookup(theirs))
        return Column(name=label.name, path=lookup.key, lookup=lookup, index=label.index)
    rewrite = label.rewrite if label.path or label.rewrite is None else _OfFlow(label.rewrite)
    return Column(name=label.name, path=label.path, rewrite=rewrite, reads=label.reads)


def _lookup(lookup: ModelLookup) -> Lookup:
    return Lookup(names=lookup.names, key=lookup.key, context=lookup.context)  # type: ignore[arg-type]


def _view(view: View, columns: dict[Label, Column], spec: Spec) -> PlanView:
    unchanged = {label.path for label in labels_of(view) if is_field(label)}
    labels = list(view.labels)
    return PlanView(
        columns=tuple(columns[label] for label in labels_of(view)),
        direction=Direction(position=labels.index(DIRECTION)) if DIRECTION in labels else None,
        families=tuple(
            PlanFamily(
                name=family.name,
                help="Help.",
                type=family.type,  # type: ignore[arg-type]
                values=tuple(_value(value, family) for value in family_values(family, view)),
                decimals=family.decimals,
            )
            for family in view.families
        ),
        identifies_connection=not (spec.include_icmp or spec.include_other)
        and unchanged
        >= {("Network", "A"), ("Network", "B"), ("Transport", "A"), ("Transport", "B")},
        bytes=_amount("bytes", view),
        packets=_amount("packets", view),
    )


def _amount(name: str, view: View) -> tuple[Counter, ...]:
    if not counts_amount(name, view):
        return ()
    return tuple(_counter(total) for total in amount_totals(name, view))


def _value(value: Total | ModelGauge | Distribution | None, family: Family) -> Value:
    if isinstance(value, Distribution):
        bounds = tuple(float(text) for text in family.buckets)
        return Histogram(observes=value.observes, paths=value.paths, bounds=bounds)  # type: ignore[arg-type]
    if value is None:
        return FlowCount()
    if value == NEW_FLOWS:
        return NewFlows()
    if isinstance(value, ModelGauge):
        return Gauge(path=value.path, keep=value.keep)  # type: ignore[arg-type]
    return _counter(value)


def _counter(value: Total) -> Counter:
    has_last_update = all(path[0] == "Metric" for path in value.paths)
    return Counter(
        paths=value.paths,
        last_update=tuple(("LastUpdateMetric", path[1]) for path in value.paths)
        if has_last_update
        else (),
        optional=value.is_optional,
    )


@dataclass(frozen=True)
class Slice:
    """The result of a relabeling step.

    ``taken`` has the changed keys that the step read. ``keys`` has the keys whose flows the step
    visited: ``taken`` or, if it is empty, the keys of the previous step.
    """

    taken: list[str]
    keys: list[str]
    uuids: list[str]


class Relabeling:
    def __init__(self, core: Core, names: Names, keys: Iterable[str]) -> None:
        self._core = core
        self._noted: list[str] = []
        self._keys: list[str] = []
        self._relabeling = core.table.relabel(names, _noted(keys, self._noted))
        self.has_more = True

    def step(self, budget: int, wall_ms: int = 0) -> Slice:
        self._noted.clear()
        self.has_more = self._relabeling.step(budget, wall_ms=wall_ms)
        self._core.check()
        taken = list(self._noted)
        self._keys = taken or self._keys
        return Slice(taken, self._keys, self._relabeling.visited())


class Core:
    """A table that accepts flows as JSON objects and decodes them like skyfast.

    In a build with consistency checks (`tests.support.core_builds`), each operation ends with a
    check of the table.
    """

    def __init__(
        self,
        spec: Spec | None = None,
        *,
        slots: bool = True,
        shard: tuple[int, int] | None = None,
        build: Any = _table,
        **options: Any,
    ) -> None:
        """Make a table for ``spec`` or ``one_view(**options)``, without drop and keep rules."""
        spec = spec or one_view(**options)
        self.plan = plan_of(spec, shard=shard)
        self.families = tuple(family for view in spec.views for family in view.families)
        self.types = types = flow_types(self.plan)
        self._decodes = [
            msgspec.json.Decoder(list[flow_type]).decode  # type: ignore[valid-type]
            for flow_type in (types.KnownReport, types.Update, types.FirstReport, types.FullReport)
        ]
        self._build = build
        self._bounds = [(view.min_bytes, view.min_packets) for view in spec.views]
        self._limits = {
            "max_connections": spec.max_connections,
            "max_flows": spec.max_flows,
            "timeout_s": spec.timeout_s,
            "memory_s": spec.flow_memory_s,
            "view_timeouts_s": [view.timeout_s for view in spec.views[1:]],
        }
        self.table: Table = build.Table(
            self.plan,
            types,
            **self._limits,
            bounds=self._bounds,
            slots=slots,
        )

    @property
    def bounds(self) -> list[Bounds]:
        """The bounds of each view, which tests can set."""
        return self._bounds

    @bounds.setter
    def bounds(self, bounds: list[Bounds]) -> None:
        self._bounds = bounds
        self.table.set_limits(**self._limits, bounds=bounds)
        self.check()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    def check(self) -> None:
        """Check the consistency of a small table, if the build has consistency checks."""
        if hasattr(self._build, "check") and self._build.peak_rows(self.table) <= MAX_CHECKED_ROWS:
            self._build.check(self.table)

    def message(self, flows: Sequence[dict[str, Any]], now: float, wall_ms: int = 0) -> None:
        """Apply a message.

        If a flow needs more fields, this flow and all later flows are decoded with a larger type.
        """
        obj = json.dumps(flows).encode()
        done = 0
        for decode in self._decodes:
            done = self.table.update(decode(obj), now, done, wall_ms=wall_ms)
            self.check()
        assert done == len(flows)

    def report(self, flow: dict[str, Any], now: float, wall_ms: int = 0) -> str | None:
        """Return the reason if the table skipped the flow, else None."""
        before = self.skipped
        self.message([flow], now, wall_ms)
        (*reasons,) = (reason for reason, n in self.skipped.items() if n != before[reason])
        assert len(reasons) <= 1
        return reasons[0] if reasons else None

    def relabel(
        self, names: Names, keys: Iterable[str], budget: int = ALL_ROWS, wall_ms: int = 0
    ) -> list[Slice]:
        relabeling = self.relabeling(names, keys)
        slices = []
        while relabeling.has_more:
            slices.append(relabeling.step(budget, wall_ms))
        return slices

    def relabeling(self, names: Names, keys: Iterable[str]) -> Relabeling:
        return Relabeling(self, names, keys)

    @property
    def flow_update_s(self) -> float:
        return self.table.flow_update_s

    @flow_update_s.setter
    def flow_update_s(self, seconds: float) -> None:
        self.table.flow_update_s = seconds

    def expire(self, now: float) -> None:
        assert not self.table.expire(now, ALL_ROWS)
        self.check()

    def page(
        self, now: float, *, part: int = 0, parts: int = 1, names: Collection[str] | None = None
    ) -> dict[str, set[str]]:
        """Return the sample lines by family."""
        page = self.table.page(now, part=part, parts=parts, names=names)
        families = [family for family in self.families if names is None or family.name in names]
        return read_page(read_all(page), families)

    def starts(self, now: float) -> dict[str, int]:
        """Return the start times of counters and histograms, by series.

        Both versions of OpenMetrics must show the same start times.
        """
        page = read_all(self.table.page(now, 2)).decode()
        starts = read_inline_starts(page)
        assert read_created(read_all(self.table.page(now, 1, created=True)).decode()) == starts
        # Without start times, the samples must equal those of the text format.
        assert samples_of(read_all(self.table.page(now))) == samples_of(page.encode())
        return starts


def _noted(keys: Iterable[str], taken: list[str]) -> Iterator[str]:
    """Yield ``keys``, and append each of them to ``taken`` before it is yielded."""
    for key in keys:
        taken.append(key)
        yield key


@contextmanager
def beside(function: Callable[[], None], *, threads: int = 2) -> Iterator[None]:
    """Call ``function`` repeatedly in other threads, and fail if a call raises an exception."""
    stop = threading.Event()
    rounds = [0] * threads
    errors: list[BaseException] = []

    def call_repeatedly(thread: int) -> None:
        try:
            while not stop.is_set():
                function()
                rounds[thread] += 1
        except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
            errors.append(error)

    workers = [
        threading.Thread(target=call_repeatedly, args=(thread,)) for thread in range(threads)
    ]
    for thread in workers:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in workers:
            thread.join(JOIN_S)
    assert not [thread for thread in workers if thread.is_alive()], "a thread is blocked"
    assert not errors
    assert all(rounds), "a thread has not called the function"


def read_all(page: Page, size: int = CHUNK_BYTES) -> bytes:
    return b"".join(iter(lambda: page.read(size), b""))


def read_inline_starts(page: str) -> dict[str, int]:
    """Return the start times on an OpenMetrics 2.0 page, in milliseconds, by series."""
    starts = {}
    for line in page.splitlines():
        rest, _, last = line.rpartition(" ")
        if line[0] != "#" and last.startswith("st@"):
            starts[rest.rpartition(" ")[0]] = to_ms(last.removeprefix("st@"))
    return starts


def without_start(line: str) -> list[str]:
    """Convert a sample of OpenMetrics 2.0 to lines of the text format."""
    if line.rpartition(" ")[2].startswith("st@"):
        line = line.rpartition(" ")[0]
    series, _, value = line.rpartition(" ")
    histogram = re.fullmatch(r"\{count:(.*),sum:(.*),bucket:\[(.*)\]\}", value)
    if not histogram:
        return [line]
    name, brace, labels = series.partition("{")
    inner = labels.removesuffix("}") + "," if brace else ""
    count, total, buckets = histogram.groups()
    pairs = (bucket.split(":") for bucket in buckets.split(","))
    return [
        *(f'{name}_bucket{{{inner}le="{bound}"}} {number}' for bound, number in pairs),
        f"{name}_sum{brace}{labels} {total}",
        f"{name}_count{brace}{labels} {count}",
    ]


def samples_of(page: bytes) -> list[str]:
    """Return the samples of a page, in any format, as lines of the text format."""
    return [
        plain_line
        for line in page.decode().splitlines()
        if line[0] != "#" and not re.match(r"\w+_created[{ ]", line)
        for plain_line in without_start(line)
    ]


def read_created(page: str) -> dict[str, int]:
    """Return the start times on an OpenMetrics 1.0 page, in milliseconds, by series.

    Assert that each start time directly follows the sample of its series.
    """
    starts = {}
    series = ""
    for line in page.splitlines():
        if line[0] == "#":
            continue
        name, separator, rest = line.partition("{" if "{" in line else " ")
        if name.endswith("_created"):
            labels, _, text = f"{separator}{rest}".rpartition(" ")
            family = name.removesuffix("_created")
            if series == f"{family}_count{labels}":
                series = f"{family}{labels}"
            assert series in (f"{family}{labels}", f"{family}_total{labels}")
            starts[series] = to_ms(text)
        series = line.rpartition(" ")[0]
    return starts


def to_ms(seconds: str) -> int:
    """Parse a time in seconds with up to three decimals, without rounding."""
    whole, _, decimals = seconds.partition(".")
    assert len(decimals) <= 3
    return int(whole) * 1000 + int(decimals.ljust(3, "0"))


def many_flows(count, *, total=(1, 2, 3, 4), first=0, last=1_000, **fields):
    """Return ``count`` flows of different connections."""
    return [
        make_flow(
            f"{n + 1:x}", total, last=last, a=f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", **fields
        )
        for n in range(first, first + count)
    ]


ODD_TEXTS = (
    "",
    " ",
    "\\",
    '"',
    "\n",
    '\\"\n' * 300,
    'a="b",c="d"} 7 # TYPE x counter',
    "\r\t\0\x7f",
    "é\u2028\ufeff\U0001f600",
    *("x" * length for length in (1, 7, 8, 15, 16, 17, 47, 48, 49, 63, 64, 65, 1023, 1024)),
    *('"' * length for length in (23, 24, 25, 512, 1024)),
    "é" * 512,
)
