"""Random sequences of operations, applied to the table and to the model in plain Python."""

import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from skyfast import _table
from skyfast._table import Page
from tests.model import (
    AMOUNTS,
    DIRECTION,
    FAMILIES,
    LABELS,
    MAX_NUMBER,
    PROTOCOL_OR_ICMP,
    PROTOCOL_OR_OTHER,
    Connection,
    Family,
    Label,
    Lookup,
    Mask,
    Model,
    Names,
    PortGrouping,
    Spec,
    View,
    counts_amount,
    escape,
    labels_of,
    make_flow,
    part_of,
    read_page,
    tag_label,
)
from tests.support.deflated import inflate, read_deflated
from tests.support.table_adapter import ALL_ROWS, Core, Relabeling, read_all, samples_of

IS_THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
MAX_SLOW_PAGES = 3
MANY = 1000
"""A limit that is never reached."""

EVER = float("-inf")
LABEL_VALUE = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
"""Matches a label. The groups are the name and the escaped value."""

IP_A, IP_B, PORT_A, PORT_B, _, NODE, PROTOCOL = LABELS
APPLICATION = Label("application", ("Application",))
CAPTURE = Label("capture", ("CaptureID",))
ICMP_TYPE = Label("icmp_type", ("ICMP", "Type"))
VLAN = Label("vlan", ("Link", "ID"), number=True)
NETWORK_A = Label("network_a", ("Network", "A"), rewrite=Mask(ipv4=24))
SERVICE = Label("service", ("Transport", "B"), number=True, rewrite=PortGrouping(above=443))
TAG = tag_label(("10.0.0.0/31",))
A, B, POINT = ("Network", "A"), ("Network", "B"), ("NodeTID",)
NODE_NAMES, OWNERS = Names(count=2), Names(count=3)
NODE_LOOKUP = Lookup(NODE_NAMES, POINT)
A_LOOKUP, B_LOOKUP = Lookup(OWNERS, A, (B, POINT)), Lookup(OWNERS, B, (A, POINT))
NAME_LABELS = (
    Label("node_name", POINT, lookup=NODE_LOOKUP),
    Label("node_host", POINT, lookup=NODE_LOOKUP, index=1),
    Label("name_a", A, lookup=A_LOOKUP),
    Label("pod_a", A, lookup=A_LOOKUP, index=2),
    Label("name_b", B, lookup=B_LOOKUP),
    Label("host_b", B, lookup=B_LOOKUP, index=1),
)

LABEL_SETS = (
    LABELS,
    (DIRECTION,),
    (IP_A, IP_B, PORT_B, DIRECTION, PROTOCOL),
    (DIRECTION, PORT_A, NODE),
    (VLAN, DIRECTION),
    (APPLICATION, PORT_B, IP_B, ICMP_TYPE, PORT_A, IP_A, VLAN, CAPTURE, NODE, DIRECTION),
)

ANY_LABELS = st.lists(
    st.sampled_from(
        (
            *(IP_A, IP_B, PORT_A, PORT_B, NODE, PROTOCOL, PROTOCOL_OR_ICMP, PROTOCOL_OR_OTHER),
            *(APPLICATION, CAPTURE, ICMP_TYPE, VLAN, NETWORK_A, SERVICE, TAG),
            *NAME_LABELS,
            *(DIRECTION, DIRECTION, DIRECTION),
        )
    ),
    unique_by=lambda label: label.name,
    max_size=9,
)

NEW_FLOWS = Family("new_flows", "counter", ())
FAMILY_SETS = (FAMILIES, FAMILIES[:1], FAMILIES[::-1], (*FAMILIES, NEW_FLOWS))

METRICS = (
    *FAMILIES,
    Family("flows", "gauge", ()),
    NEW_FLOWS,
    Family("start", "gauge", ("Start",), keep="least", decimals=3),
    Family("last", "gauge", ("Last",), keep="most", decimals=3),
    Family(
        "skipped", "counter", ("TCPMetric", "ABSegmentSkipped"), ("TCPMetric", "BASegmentSkipped")
    ),
    Family("ttl", "gauge", ("TCPMetric", "ABSynTTL"), ("TCPMetric", "BASynTTL")),
    Family("fragments", "counter", ("IPMetric", "Fragments")),
    Family("rtt_seconds", "gauge", ("Metric", "RTT"), decimals=9),
)

HISTOGRAMS = (
    Family(
        "rtt_distribution",
        "histogram",
        ("Metric", "RTT"),
        observes="first",
        decimals=9,
        buckets=("5e-09", "6e-09", "1.0"),
    ),
    Family(
        "sizes",
        "histogram",
        ("Metric", "ABBytes"),
        ("Metric", "BABytes"),
        observes="total",
        buckets=("0.5", "2.0", "1e+06"),
    ),
    Family(
        "ages", "histogram", ("Start",), observes="age", decimals=3, buckets=("0.0019", "59.999")
    ),
)


bounds = st.sampled_from((1, 2, 5, 10, 2**40, 2**63 - 1))
bounded = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"amounts": st.just(("bytes",)), "min_bytes": bounds}),
    st.fixed_dictionaries(
        {
            "amounts": st.just(("packets", "bytes")),
            "min_packets": bounds,
            "min_bytes": st.one_of(st.just(0), bounds),
        }
    ),
)
"""Arguments of `View` that set bounds, if any."""


@st.composite
def views(draw, number):
    """``number`` makes the names of the families unique."""
    known = (*METRICS, *HISTOGRAMS, *HISTOGRAMS) if number else METRICS
    chosen = draw(st.lists(st.sampled_from(known), min_size=1, max_size=4, unique=True))
    labels = tuple(draw(ANY_LABELS))
    if DIRECTION not in labels:  # without directions, a gauge has one value
        chosen = [replace(f, backward=None) if f.type == "gauge" else f for f in chosen]
    return View(
        labels,
        tuple(replace(family, name=f"v{number}_{family.name}") for family in chosen),
        timeout_s=draw(st.sampled_from((75, 76, 200))),
        **draw(bounded),
    )


@st.composite
def specs(draw):
    """One spec in four has the default labels."""
    limits = {
        "max_connections": draw(st.sampled_from((1, 3, 1000))),
        "max_flows": draw(st.sampled_from((1, 4, MANY))),
        "timeout_s": draw(st.sampled_from((1, 75))),
        "flow_memory_s": draw(st.sampled_from((0, 40, 1290, 1290))),
    }
    if draw(st.integers(0, 3)) == 0:
        labels, families = draw(st.sampled_from(LABEL_SETS)), draw(st.sampled_from(FAMILY_SETS))
        view = View(labels, families, **draw(bounded))
        return Spec(views=(view,), **limits)
    return Spec(
        views=tuple(draw(views(number)) for number in range(draw(st.integers(1, 3)))),
        include_icmp=draw(st.booleans()),
        include_other=draw(st.booleans()),
        deduplicate=draw(st.sampled_from(("none", "first"))),
        overflow=draw(st.sampled_from(("drop", "other"))),
        **limits,
    )


UUIDS = ("1", "2", "3", "a", "A", "0a", "ffffffffffffffff", "8000000000000001", "xyz", "é" * 30)
ODD_TEXTS = ("", 'a "quoted"\\\nname', "é" * 24, "x" * 48, "x" * 49, "x" * 1024)

CONVERSATIONS = (
    {"a": "10.0.0.1", "node": "node-1"},
    {"a": "10.0.0.1", "node": "node-2"},
    {"a": "10.0.0.1", "node": "node-1", "ports": (0, 443)},
    {"a": "10.0.0.1", "node": "node-1", "ports": (65535, 443)},
    {"a": "10.0.0.3", "b": "10.0.0.1", "protocol": "UDP"},
    *({"a": text, "b": text, "node": text} for text in ODD_TEXTS),
)

KEYS = ("node-1", "node-2", "10.0.0.1", "10.0.0.2", *ODD_TEXTS)
CONTEXTS = tuple(
    context
    for flow in (make_flow(**conversation) for conversation in CONVERSATIONS)
    for a, b in (("A", "B"), ("B", "A"))
    for context in [(flow["Network"][a], flow["Network"][b], flow["NodeTID"])]
)
"""Contexts of lookups: an address, the flow's other address, and the capture point."""

three_names = st.tuples(*[st.sampled_from(("", "eth0", "other", 'a "name"', "n" * 100))] * 3)


@dataclass(frozen=True)
class Renaming:
    """A change of ``names``.

    ``keys`` maps each key to its new names, or to None if the key becomes ambiguous. ``contexts``
    maps the contexts of ambiguous keys to new names.
    """

    names: Names
    keys: dict[str, tuple[str, ...] | None]
    contexts: dict[tuple[str, str, str], tuple[str, ...]]

    def apply(self) -> list[str]:
        """Return the keys whose names may have changed."""
        count = self.names.count
        self.names.update({key: names and names[:count] for key, names in self.keys.items()})
        self.names.contexts.update(self.contexts)
        return sorted({*self.keys, *(key for key, _, _ in self.contexts)})


renamings = st.one_of(
    st.builds(
        Renaming,
        st.just(NODE_NAMES),
        st.dictionaries(st.sampled_from(KEYS), three_names, min_size=1),
        st.just({}),
    ),
    st.builds(
        Renaming,
        st.just(OWNERS),
        st.dictionaries(st.sampled_from(KEYS), st.one_of(three_names, st.none()), min_size=1),
        st.dictionaries(st.sampled_from(CONTEXTS), three_names),
    ),
)

PARTS = ("Network", "Transport", "Metric", "LastUpdateMetric", "NodeTID", "Start", "Last", "UUID")
small = st.integers(0, 5)
numbers = st.one_of(small, small, small, st.sampled_from((MAX_NUMBER, MAX_NUMBER - 1, 2**53 + 1)))
wild_numbers = st.sampled_from((-1, MAX_NUMBER + 1, 2**63, 2**64 + 1, 10**22))
conversations = st.one_of(st.sampled_from(CONVERSATIONS[:3]), st.sampled_from(CONVERSATIONS))
four = st.tuples(numbers, numbers, numbers, numbers)


@st.composite
def flows(draw):
    """Some flows lack a field, and some have an invalid value."""
    flow = make_flow(
        draw(st.sampled_from(UUIDS)),
        draw(four),
        last_update=draw(four),
        start=draw(st.integers(0, 1)),
        update_start=draw(st.integers(0, 1)),
        last=draw(st.one_of(small, small, st.integers(60_000, 60_003))),
        update_last=draw(st.one_of(small, small, st.integers(60_000, 60_003))),
        rtt=draw(st.sampled_from((0, 0, 5, 7, MAX_NUMBER))),
        finish=draw(st.sampled_from((0, 0, 0, 1, 2, 3, 4))),
        **draw(conversations),
    )
    oddity = draw(st.integers(0, 9))
    if oddity == 1:
        flow.pop(draw(st.sampled_from(PARTS)), None)
    elif oddity == 3:
        flow["Link"] = {"ID": draw(small)}
        flow["ICMP"] = {"Type": draw(st.sampled_from(ODD_TEXTS))}
        flow["Application"] = draw(st.sampled_from(ODD_TEXTS))
        flow["IPMetric"] = {"Fragments": draw(numbers)}
    elif oddity == 2:
        flow["TCPMetric"] = {
            name: draw(small)
            for name in ("ABSegmentSkipped", "BASegmentSkipped", "ABSynTTL", "BASynTTL")
            if draw(st.booleans())
        }
        if flow["TCPMetric"] and draw(st.booleans()):
            flow["TCPMetric"][draw(st.sampled_from(sorted(flow["TCPMetric"])))] = draw(wild_numbers)
        without_ports = draw(st.sampled_from(("", "ICMP", "GRE", "Fragment")))
        if without_ports:
            del flow["Transport"]
            flow["LayersPath"] = f"Ethernet/IPv4/{without_ports}"
        if without_ports == "ICMP":
            flow["ICMP"] = {"Type": "ECHO"}
    elif oddity == 4:
        part = draw(st.sampled_from(("Metric", "LastUpdateMetric")))
        flow[part][draw(st.sampled_from(sorted(flow[part])))] = draw(wild_numbers)
    elif oddity == 6:
        part = draw(st.sampled_from(("Network", "Transport", "Metric", "LastUpdateMetric")))
        flow[part].pop(draw(st.sampled_from(sorted(flow[part]))))
    elif oddity == 5:
        name = draw(st.sampled_from(("UUID", "Start", "Last", "FinishType", "NodeTID", "Port")))
        if name == "Port":
            flow["Transport"]["A"] = draw(wild_numbers)
        else:
            is_text = name in ("UUID", "NodeTID")
            flow[name] = "x" * 1025 if is_text else draw(wild_numbers)
    return flow


def series_of(line):
    return line.rpartition(" ")[0]


@dataclass(eq=False)
class SlowPage:
    """A page that is being read, with its required and allowed content.

    ``existing`` has the connections at the start of the page, and ``required`` has their series. If
    a connection still exists at the end of the page, the page must show its series. ``allowed`` has
    a line for each value that a series has had since the start. ``values`` has the escaped label
    values at the start. The page must not show any other label value.
    """

    page: Page
    now: float
    existing: list[Connection]
    required: list[tuple[Family, Connection, str]]
    values: dict[str, set[str]]
    openmetrics: int
    is_deflated: bool
    pieces: list[bytes] = field(default_factory=list)
    blocks: list[bytes] = field(default_factory=list)
    allowed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def read(self, size: int) -> bytes:
        if self.is_deflated:
            lines, blocks = self.page.deflate(size)
            self.blocks.append(blocks)
        else:
            lines = self.page.read(size)
        self.pieces.append(bytes(lines))
        return self.pieces[-1]

    def read_all(self) -> bytes:
        while self.read(1000):
            pass
        lines = b"".join(self.pieces)
        if self.is_deflated:
            assert inflate(b"".join(self.blocks)) == lines
        return lines


class TableMachine(RuleBasedStateMachine):
    """Applies the same operations to the table and to the model, and compares all results."""

    build = _table

    @initialize(
        spec=specs(),
        slots=st.booleans(),
        now=st.sampled_from((0, 1_000_000)),
        wall_ms=st.sampled_from((None, 1, 2, 59_000, 10**12)),
    )
    def start(self, spec, slots, now, wall_ms):
        NODE_NAMES.clear()
        OWNERS.clear()
        self.model = Model(spec)
        self.core = Core(spec, slots=slots, build=self.build)
        self.now = now
        self.ahead_ms = None if wall_ms is None else wall_ms - 1000 * now
        self.slow_pages: dict[int, SlowPage] = {}
        self.renamed: list[tuple[Names, Relabeling]] = []

    @property
    def wall_ms(self):
        """Unix milliseconds, or 0 if the wall clock is unknown."""
        return 0 if self.ahead_ms is None else self.ahead_ms + 1000 * self.now

    @rule(message=st.lists(flows(), min_size=1, max_size=5))
    def receive(self, message):
        # If dormant flows can be evicted, apply one flow per second. Flows that became dormant in
        # the same second would be evicted in an undefined order.
        spec = self.model.spec
        is_tight = spec.flow_memory_s > 0 and spec.max_flows < MANY
        for part in [[flow] for flow in message] if is_tight else [message]:
            self.core.message(part, self.now, self.wall_ms)
            self.model.message(part, self.now, self.wall_ms)
            self.now += is_tight
        self.note_lines()

    @rule(renaming=renamings)
    def rename(self, renaming):
        keys = renaming.apply()
        self.renamed.append((renaming.names, self.core.relabeling(renaming.names, keys)))

    @precondition(lambda self: self.renamed)
    @rule(budget=st.sampled_from((0, 1, 2, 3, 5, ALL_ROWS, ALL_ROWS)), number=st.integers(0, 1))
    def relabel(self, budget, number):
        # A step depends only on the current names, so relabelings can continue in any order.
        names, relabeling = self.renamed[number % len(self.renamed)]
        step = relabeling.step(budget, self.wall_ms)
        self.model.relabel(names, step.keys, step.uuids, self.wall_ms)
        self.note_lines()
        if not relabeling.has_more:
            self.renamed.pop(number % len(self.renamed))

    @rule()
    def begin(self):
        self.core.raise_horizon(self.now)
        self.model.raise_horizon(self.now)

    @rule(seconds=st.sampled_from((0, 60)))
    def update_every(self, seconds):
        self.core.flow_update_s = self.model.flow_update_s = seconds

    @rule(data=st.data())
    def change_bounds(self, data):
        # Unfinished pages would use the old bounds.
        either = st.one_of(st.just(0), bounds)
        self.slow_pages.clear()
        self.core.bounds = self.model.bounds = [
            tuple(
                data.draw(either)
                if counts_amount("bytes", view) and counts_amount(name, view)
                else 0
                for name in AMOUNTS
            )
            for view in self.model.views
        ]

    @rule(data=st.data())
    def forecast(self, data):
        model, core = self.model, self.core
        n = data.draw(st.integers(0, len(model.views) - 1))
        counts = [counts_amount(name, model.views[n]) for name in AMOUNTS]
        pairs = data.draw(
            st.lists(
                st.tuples(*(st.one_of(st.just(0), bounds) if c else st.just(0) for c in counts))
            )
        )
        forecasts = core.table.forecast(self.now, n, pairs)
        if counts[0]:
            assert forecasts == model.forecast(self.now, n, pairs)
        self.core.bounds = self.model.bounds = [
            data.draw(st.sampled_from(pairs)) if i == n and pairs else current
            for i, current in enumerate(model.bounds)
        ]
        self.slow_pages.clear()
        for pair, (_, series, bytes_) in zip(pairs, forecasts, strict=True):
            if pair == model.bounds[n]:
                page = core.page(self.now)
                lines = [line for f in model.views[n].families for line in page[f.name]]
                assert len(lines) == series
                assert bytes_ >= 0

    @rule(data=st.data())
    def rank(self, data):
        model, table = self.model, self.core.table
        n = data.draw(st.integers(0, len(model.views) - 1))
        ranked = [
            (number, family)
            for number, (view, family) in enumerate(
                (view, family) for view in model.views for family in view.families
            )
            if view is model.views[n] and family.type != "histogram"
        ]
        if not ranked:
            return
        number, family = data.draw(st.sampled_from(ranked))
        rows = table.top(number, MANY)
        assert Counter(rows) == Counter(model.ranked(n, family))
        ranks = [rank for rank, *_ in rows]
        assert ranks == sorted(ranks, reverse=True)
        names = [label.name for label in labels_of(model.views[n])]
        if not names:
            return
        group = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        groups = model.groups(n, family, group)
        entries, (others, *_), count, is_incomplete = table.top_groups(number, MANY, group)
        assert (count, is_incomplete) == (len(groups), False)
        assert {key: (rank, values, size) for rank, key, values, size in entries} == {
            key: entry for key, entry in groups.items() if entry[0] is not None
        }
        assert others == sum(size for rank, _, size in groups.values() if rank is None)

    @rule(seconds=st.sampled_from((1, 1, 2, 40, 74, 75, 90, 1290, 100_000)))
    def wait(self, seconds):
        self.now += seconds

    @rule(max_rows=st.sampled_from((1, 2, 3, ALL_ROWS)))
    def expire(self, max_rows):
        # Pages omit expired rows even before the table removes them. Gauges that count flows are
        # not compared, because they include expired flows until the table makes them dormant.
        counts = {
            family.name
            for family in self.model.families
            if family.forward == () and family.type == "gauge"
        }
        page = self.model.page(self.now)
        while self.core.table.expire(self.now, max_rows):
            current = self.core.page(self.now)
            assert all(current[name] == page[name] for name in page.keys() - counts)
        self.model.expire(self.now, self.core.dormant_uuids())
        self.note_lines()

    @rule(parts=st.sampled_from((1, 2, 3, 7, 64)), data=st.data())
    def read_parts(self, parts, data):
        families = [family.name for family in self.model.families]
        names = data.draw(st.one_of(st.none(), st.sets(st.sampled_from(families), min_size=1)))
        whole = self.model.page(self.now, names=names)
        for part in range(parts):
            page = self.core.page(self.now, part=part, parts=parts, names=names)
            assert page == self.model.page(self.now, part=part, parts=parts, names=names)
            for name, lines in page.items():
                assert lines <= whole[name]
                whole[name] -= lines
        assert not any(whole.values())

    @rule(
        scraper=st.integers(0, MAX_SLOW_PAGES - 1),
        size=st.sampled_from((1, 200, 1000)),
        parts=st.sampled_from((1, 1, 2)),
        openmetrics=st.sampled_from((0, 1, 2)),
    )
    def read_slowly(self, scraper, size, parts, openmetrics):
        if scraper in self.slow_pages:
            self.slow_pages[scraper].read(size)
            return
        required = [
            (family, connection, series_of(line))
            for family in self.model.families
            for connection in self.model.shown(self.now)
            if part_of(connection, parts) == 0
            for line in self.model.lines(family, connection)
        ]
        page = self.core.table.page(self.now, openmetrics, created=True, parts=parts)
        existing = [row for row in self.model.unexpired(EVER) if part_of(row, parts) == 0]
        values = {
            name: set(map(escape, page.distinct_values(name))) for name in self.model.label_values()
        }
        self.slow_pages[scraper] = SlowPage(
            page, self.now, existing, required, values, openmetrics, is_deflated=scraper > 0
        )
        self.note_lines()

    @rule(scraper=st.integers(0, MAX_SLOW_PAGES - 1))
    def read_to_the_end(self, scraper):
        slow = self.slow_pages.pop(scraper, None)
        if slow is None:
            return
        page = slow.read_all()
        if slow.openmetrics == 0:
            read_page(page, self.model.families)
        lines = samples_of(page)
        assert {*lines} <= set().union(*slow.allowed.values())
        for label, value in LABEL_VALUE.findall("".join(lines)):
            assert label in (DIRECTION.name, "le") or value in slow.values[label]
        shown = {*map(series_of, lines)}
        stayed = self.model.unexpired(EVER)
        for family, connection, series in slow.required:
            if connection in stayed and series in map(
                series_of, self.model.lines(family, connection)
            ):
                assert series in shown

    def note_lines(self):
        for slow in self.slow_pages.values():
            for connection in self.model.shown(slow.now):
                if connection in slow.existing:
                    for family in self.model.families:
                        slow.allowed[family.name].update(self.model.lines(family, connection))

    @invariant()
    def table_matches_model(self):
        model, core = self.model, self.core
        for name in (
            *("connections", "view_connections", "flows", "dormant_flows", "dormant_connections"),
            *("created_total", "expired_total", "rejected_total", "overflowed_total"),
            *("view_rejected_totals", "horizon_s"),
        ):
            actual, expected = getattr(core, name), getattr(model, name)
            assert actual == expected, f"{name}: {actual} {expected}"
        for name in ("skipped", "finished", "values_skipped"):
            actual, expected = +Counter(getattr(core, name)), +getattr(model, name)
            assert actual == expected, f"{name}: {actual} {expected}"
        assert core.page(self.now) == model.page(self.now)
        assert core.table.hidden(self.now) == model.hidden(self.now)
        assert core.starts(self.now) == model.starts(self.now)
        for openmetrics in range(3):
            page = core.table.page(self.now, openmetrics, created=True)
            other = core.table.page(self.now, openmetrics, created=True)
            assert read_deflated(page) == read_all(other)
        page = core.table.page(self.now)
        for name, values in model.label_values().items():
            assert sorted(page.distinct_values(name)) == sorted(values)
        assert core.dormant_uuids() == model.dormant_uuids()


REPORTS = st.fixed_dictionaries(
    {
        "behind": st.sampled_from((0, 0, 0, 3)),
        "finish": st.sampled_from((0, 1)),
        "repeats": st.booleans(),
        "a": st.sampled_from(("10.0.0.1", "10.0.0.1", "10.0.0.3")),
        "node": st.sampled_from(("node-1", "node-1", "node-2")),
    }
)


class DeduplicatingMachine(TableMachine):
    """Tests ``deduplicate: first``, with many closing reports of dormant flows.

    All flows share one running total, which grows with each report. ``behind=3`` reports the total
    of three reports earlier.
    """

    rename = relabel = begin = update_every = None

    @initialize(
        spec=specs(),
        memory_s=st.sampled_from((0, 200, 200, 1290)),
        slots=st.booleans(),
        now=st.just(0),
        wall_ms=st.sampled_from((None, 5, 10**12)),
    )
    def start(self, spec, memory_s, slots, now, wall_ms):
        spec = replace(spec, deduplicate="first", timeout_s=75, flow_memory_s=memory_s)
        super().start(spec=spec, slots=slots, now=now, wall_ms=wall_ms)
        self.total = 10

    @rule(flows=st.lists(st.tuples(st.sampled_from(UUIDS[:4]), REPORTS), min_size=1, max_size=3))
    def receive(self, flows):
        self.apply([self.flow(uuid, **report) for uuid, report in flows])

    @precondition(lambda self: self.model.dormant_uuids())
    @rule(reports=st.lists(st.tuples(st.integers(0, 3), REPORTS), min_size=1, max_size=3))
    def receive_dormant(self, reports):
        uuids = self.model.dormant_uuids()
        self.apply([self.flow(uuids[n % len(uuids)], **report) for n, report in reports])

    def apply(self, flows):
        # Apply one flow per second. If an ended flow and another flow became dormant in the same
        # second, it would be undefined which was the last one.
        for flow in flows:
            super().receive(message=[flow])
            self.now += 1

    def flow(self, uuid, *, behind, finish, repeats, a, node):
        self.total += 1
        last = self.total - behind
        return make_flow(
            uuid,
            (last, 1, 0, last),
            last_update=(1, 0, 0, 1),
            update_start=last - 1,
            last=last,
            update_last=last + repeats,
            finish=finish,
            a=a,
            node=node,
        )

    @rule(seconds=st.sampled_from((1, 20, 75, 76, 90)), max_rows=st.sampled_from((1, 3, ALL_ROWS)))
    def wait(self, seconds, max_rows):
        self.now += seconds
        super().expire(max_rows=max_rows)


NAMED_VIEWS = st.lists(
    st.lists(
        st.sampled_from((*NAME_LABELS, *NAME_LABELS, IP_A, PORT_A)),
        unique=True,
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=3,
)
ADDRESSES = ("10.0.0.1", "10.0.0.2")
NAMES = st.sampled_from(("a", "b", "c"))
RENAMINGS = st.one_of(
    st.builds(
        Renaming,
        st.just(NODE_NAMES),
        st.dictionaries(st.just("node-1"), st.tuples(NAMES, NAMES, NAMES), min_size=1),
        st.just({}),
    ),
    st.builds(
        Renaming,
        st.just(OWNERS),
        st.dictionaries(
            st.sampled_from(ADDRESSES),
            st.one_of(st.tuples(NAMES, NAMES, NAMES), st.none()),
            min_size=1,
        ),
        st.dictionaries(
            st.tuples(st.sampled_from(ADDRESSES), st.sampled_from(ADDRESSES), st.just("node-1")),
            st.tuples(NAMES, NAMES, NAMES),
        ),
    ),
)


class RelabelingMachine(TableMachine):
    """Tests names that change all the time, with flows that share few addresses.

    No relabeling step may increase a series. After the last step, all labels must be current.
    """

    begin = update_every = None

    @initialize(
        views=NAMED_VIEWS,
        slots=st.booleans(),
        max_connections=st.sampled_from((2, 1000)),
        max_flows=st.sampled_from((4, MANY, MANY)),
        memory_s=st.sampled_from((0, 200, 1290)),
        overflow=st.sampled_from(("drop", "other")),
    )
    def start(self, views, slots, max_connections, max_flows, memory_s, overflow):
        families = (METRICS[0], METRICS[3], METRICS[6])
        spec = Spec(
            views=tuple(
                View(
                    (*labels, DIRECTION),
                    tuple(replace(family, name=f"v{n}_{family.name}") for family in families),
                    timeout_s=200,
                )
                for n, labels in enumerate(views)
            ),
            max_connections=max_connections,
            max_flows=max_flows,
            flow_memory_s=memory_s,
            overflow=overflow,
        )
        super().start(spec=spec, slots=slots, now=0, wall_ms=10**12)
        self.reports = 0
        self.highest = Counter()

    @rule(
        flows=st.lists(
            st.tuples(
                st.sampled_from(("1", "2", "3", "a", "xyz")),
                st.sampled_from(ADDRESSES),
                st.sampled_from(ADDRESSES),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def receive(self, flows):
        self.reports += 1
        super().receive(
            message=[
                make_flow(uuid, (self.reports, 1, 0, 1), last=self.reports, a=a, b=b)
                for uuid, a, b in flows
            ]
        )

    @rule(renaming=RENAMINGS)
    def rename(self, renaming):
        super().rename(renaming=renaming)

    @precondition(lambda self: self.renamed)
    @rule(budget=st.integers(1, 5), number=st.integers(0, 1))
    def relabel(self, budget, number):
        self.note_highest()
        super().relabel(budget=budget, number=number)
        for series, value in self.counters():
            assert value <= self.highest[series], series
        if not self.renamed:
            page = self.model.page(self.now)
            for names in (NODE_NAMES, OWNERS):
                self.model.relabel(names, KEYS)
            assert self.model.page(self.now) == page

    @rule(seconds=st.sampled_from((1, 20, 75, 200)), max_rows=st.sampled_from((1, 3, ALL_ROWS)))
    def wait(self, seconds, max_rows):
        self.note_highest()
        self.now += seconds
        super().expire(max_rows=max_rows)

    def counters(self):
        page = self.core.page(self.now)
        for family in self.model.families:
            if family.type == "counter":
                for line in page[family.name]:
                    series, _, value = line.rpartition(" ")
                    yield series, int(value)

    def note_highest(self):
        for series, value in self.counters():
            self.highest[series] = max(self.highest[series], value)


FIRST_VIEWS = ((IP_A, NODE, DIRECTION), LABELS, (PORT_B,))
VIEWS_WITH_HISTOGRAMS = ((NODE, DIRECTION), (APPLICATION,), (APPLICATION, NODE), ())
CLOSABLE = st.fixed_dictionaries(
    {
        "uuid": st.sampled_from(("1", "2", "3", "xyz")),
        "total": st.sampled_from(((0, 0, 0, 0), (1, 1, 0, 0), (1, 2, 1, 0), (3, 2, 1, 0))),
        "last": st.sampled_from((0, 1, 2, 60_000)),
        "start": st.sampled_from((0, 1, 1, 1, 3, -1)),
        "update_start": st.sampled_from((1, 1, 2)),
        "update_last": st.sampled_from((1, 2, 60_000)),
        "rtt": st.sampled_from((0, 0, 5, 7, -1)),
        "finish": st.sampled_from((0, 1, 1, 2)),
        "node": st.sampled_from(("node-1", "node-1", "node-2")),
    }
)


class HistogramMachine(TableMachine):
    """Tests histograms of all kinds, with few flows and few different values."""

    rename = relabel = update_every = read_parts = read_slowly = read_to_the_end = expire = None

    @initialize(
        first=st.sampled_from(FIRST_VIEWS),
        others=st.lists(st.sampled_from(VIEWS_WITH_HISTOGRAMS), min_size=1, max_size=2),
        chosen=st.lists(st.sampled_from(HISTOGRAMS), min_size=1, max_size=3, unique=True),
        spec=st.builds(
            Spec,
            max_connections=st.sampled_from((1, 2, 1000)),
            max_flows=st.sampled_from((1, 3, MANY, MANY)),
            flow_memory_s=st.sampled_from((0, 200, 1290)),
            deduplicate=st.sampled_from(("none", "none", "first")),
            overflow=st.sampled_from(("drop", "other")),
        ),
        slots=st.booleans(),
        now=st.just(0),
        wall_ms=st.sampled_from((None, 5, 10**12)),
    )
    def start(self, first, others, chosen, spec, slots, now, wall_ms):
        others = [
            View(
                labels,
                tuple(replace(family, name=f"v{n}_{family.name}") for family in chosen),
                timeout_s=(75, 200)[n],
            )
            for n, labels in enumerate(others)
        ]
        spec = replace(spec, views=(View(first, FAMILIES[:1]), *others))
        super().start(spec=spec, slots=slots, now=now, wall_ms=wall_ms)

    @rule(
        message=st.lists(
            st.tuples(CLOSABLE, st.sampled_from(("DNS", "DNS", "TLS", "x" * 1025))),
            min_size=1,
            max_size=4,
        )
    )
    def receive(self, message):
        flows = [make_flow(**fields) | {"Application": text} for fields, text in message]
        super().receive(message=flows)

    @rule(seconds=st.sampled_from((1, 76, 76, 150)), max_rows=st.sampled_from((1, 3, ALL_ROWS)))
    def wait(self, seconds, max_rows):
        self.now += seconds
        super().expire(max_rows=max_rows)
