"""The table must be consistent after every operation, even if an allocation fails.

The tests use the build `checked` of the core (`tests.support.core_builds`). This build can check
every row, and can make chosen allocations fail. Its tables grow in small steps, so a dozen flows
are enough to make them grow.
"""

import gc
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from prometheus_client.parser import text_string_to_metric_families

from skyfast import _table
from skyfast.flows.fields import flow_types
from tests.model import (
    DIRECTION,
    FAMILIES,
    LABELS,
    Family,
    Label,
    Lookup,
    Names,
    Spec,
    View,
    looked_up,
    make_flow,
)
from tests.support import core_builds
from tests.support.deflated import deflate_all, read_deflated
from tests.support.table_adapter import ALL_ROWS, Core, many_flows, read_all
from tests.support.table_machine import (
    IS_THOROUGH,
    NODE_NAMES,
    OWNERS,
    TableMachine,
    flows,
    renamings,
    specs,
)

checked = _table if hasattr(_table, "check") else core_builds.load(core_builds.built("checked"))

MAX_ALLOCATIONS = 200
"""A number of allocations that no operation in these tests reaches."""

END_S = 1e7
"""A time at which all flows and rows of these tests have expired."""


# Comparison with the model


class CheckedMachine(TableMachine):
    """Compares the table with the model, and checks the consistency of the table."""

    build = checked


TestChecked = CheckedMachine.TestCase
TestChecked.settings = settings(
    max_examples=5_000 if IS_THOROUGH else 20,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# Random operations with failed allocations

failing = st.one_of(st.just(0), st.integers(1, 12))
times = st.sampled_from((1, 1, 2, 1000))
limits = st.sampled_from((1, 2, 5, 1000))


class AllocationFailureMachine(RuleBasedStateMachine):
    """Runs all operations of a table, with failed allocations.

    Checks that the table is consistent, that its pages are valid, and that no memory leaks. After a
    failure, the test does not know which flows were applied, so it does not compare pages with the
    model.
    """

    def __init__(self):
        super().__init__()
        gc.collect()  # free the tables of other tests, because their blocks would be counted
        self.blocks = checked.blocks()

    @initialize(
        spec=specs(),
        slots=st.booleans(),
        next_seq=st.sampled_from((0, 2**30 - 5, 2**31 - 5, 2**32 - 5)),
        now=st.sampled_from((0, 1_000_000)),
    )
    def start(self, spec, slots, next_seq, now):
        NODE_NAMES.clear()
        OWNERS.clear()
        self.spec = spec
        self.core = Core(spec, slots=slots, build=checked)
        checked.set_next_seq(self.core.table, next_seq)
        self.now = now
        self.pages = []

    def with_failures(self, nth, times, operation):
        """Call an operation in which allocation number ``nth`` and the next ones fail.

        ``times`` is the number of failures. If ``nth`` is 0, no allocation fails.
        """
        if nth == 0:
            operation()
            return
        checked.fail_allocation(nth, times)
        try:
            with suppress(MemoryError):
                operation()
        finally:
            checked.stop_failing()

    @rule(message=st.lists(flows(), min_size=1, max_size=8), nth=failing, times=times)
    def receive(self, message, nth, times):
        self.with_failures(nth, times, lambda: self.core.message(message, self.now))

    @rule(renaming=renamings, budget=st.sampled_from((0, 3, ALL_ROWS)), nth=failing, times=times)
    def rename(self, renaming, budget, nth, times):
        keys = renaming.apply()
        self.with_failures(nth, times, lambda: self.core.relabel(renaming.names, keys, budget))

    @rule(
        seconds=st.sampled_from((0, 1, 2, 40, 75, 1290, 100_000)),
        max_rows=st.sampled_from((1, 3, ALL_ROWS)),
    )
    def pass_time(self, seconds, max_rows):
        self.now += seconds
        self.core.table.expire(self.now, max_rows)

    @rule(
        max_connections=limits,
        max_flows=limits,
        timeout_s=st.sampled_from((0.5, 1, 75)),
        memory_s=st.sampled_from((0, 0.3, 40, 1290)),
        longer_s=st.sampled_from((0, 0.3, 50)),
        bound=st.sampled_from((0, 1, 5, 2**40)),
        nth=failing,
    )
    def limit(self, max_connections, max_flows, timeout_s, memory_s, longer_s, bound, nth):
        bounds = [
            (bound if view.bytes else 0, bound if view.packets else 0)
            for view in self.core.plan.views
        ]
        self.with_failures(
            nth,
            1,
            lambda: self.core.set_limits(
                max_connections=max_connections,
                max_flows=max_flows,
                timeout_s=timeout_s,
                memory_s=memory_s,
                view_timeouts_s=[timeout_s + longer_s] * (len(self.spec.views) - 1),
                bounds=bounds,
            ),
        )

    @rule(nth=failing)
    def use(self, nth):
        types = flow_types(self.core.plan, also=[("LayersPath",), ("Link", "B")])
        self.with_failures(nth, 1, lambda: self.core.set_flow_types(types))
        # Restore the original types, because `core.message` decodes flows as these types.
        self.core.set_flow_types(self.core.types)

    @rule(nth=failing, times=times, count=st.sampled_from((0, 1, 3, 100)))
    def look(self, nth, times, count):
        def operation():
            for label in self.core.label_values():
                self.core.cardinality(count, label)
                self.core.table.page(self.now).distinct_values(label)
            self.core.table.hidden(self.now)
            for number, view in enumerate(self.core.plan.views):
                pairs = [(n if view.bytes else 0, 0) for n in range(count)]
                self.core.table.forecast(self.now, number, pairs)
            ranked = [(view, family) for view in self.core.plan.views for family in view.families]
            for at, (view, family) in enumerate(ranked):
                if family.type == "histogram":
                    continue
                labels = [column.name for column in view.columns]
                also = [(label, b"a\nTCP\n10.0.0.1\n") for label in labels]
                since = self.core.snapshot(at) if family.type == "counter" else None
                self.core.top(at, count, since, "1", also)
                self.core.top(at, count)
                for label in labels:
                    self.core.top_groups(at, count, [label], since, max_groups=2)

        self.with_failures(nth, times, operation)

    @rule(size=st.sampled_from((1, 100, 10_000)), openmetrics=st.booleans())
    def begin_page(self, size, openmetrics):
        self.pages.append(self.core.table.page(self.now, openmetrics=openmetrics))
        self.pages = self.pages[-3:]

    @precondition(lambda self: self.pages)
    @rule(size=st.sampled_from((1, 100, 10_000)))
    def read_on(self, size):
        for page in self.pages:
            page.read(size)

    @rule(
        nth=failing,
        times=times,
        size=st.sampled_from((1, 100, 10_000)),
        openmetrics=st.sampled_from((0, 1, 2)),
    )
    def compress(self, nth, times, size, openmetrics):
        page = self.core.table.page(self.now, openmetrics, created=True)
        lines = []
        self.with_failures(nth, times, lambda: lines.append(bytes(page.deflate(size)[0])))
        lines.append(deflate_all(page, size)[0])
        other = self.core.table.page(self.now, openmetrics, created=True)
        assert b"".join(lines) == read_all(other)

    @invariant()
    def all_agrees(self):
        checked.check(self.core.table)
        page = read_all(self.core.table.page(self.now)).decode()
        assert_is_page(page)

    def teardown(self):
        if not hasattr(self, "core"):
            return
        self.now += END_S
        while self.core.table.expire(self.now, 1000):
            pass
        checked.check(self.core.table)
        # The first loop made live flows dormant. The next loop forgets the dormant flows.
        self.now += END_S
        while self.core.table.expire(self.now, 1000):
            pass
        checked.check(self.core.table)
        assert self.core.flows == self.core.dormant_flows == self.core.dormant_connections == 0
        # Only the overflow rows are left.
        assert max(self.core.connections, *self.core.view_connections, 0) <= 1
        self.core = self.pages = None
        assert checked.blocks() == self.blocks


TestAllocationFailures = AllocationFailureMachine.TestCase
TestAllocationFailures.settings = TestChecked.settings


def assert_is_page(page):
    """Assert that an independent parser accepts a page and finds no duplicate series."""
    seen = set()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            series = (sample.name, *sorted(sample.labels.items()))
            assert series not in seen
            seen.add(series)
            assert sample.value >= 0


# Failure of each allocation of each operation

NAMES = Names()
NODE_NAME = looked_up("node_name", ("NodeTID",), NAMES)
OWNERS_OF_SPEC = Names(count=2)
OWNER = Lookup(OWNERS_OF_SPEC, ("Network", "A"), (("Network", "B"), ("NodeTID",)))
OWNER_LABELS = tuple(
    Label(f"owner_{index}", OWNER.key, lookup=OWNER, index=index) for index in range(2)
)
CAPTURE = Label("capture", ("CaptureID",))
START_S = 80
"""The time at which the live flows are reported. At this time, all earlier flows are dormant."""
LONG = 'a "long" label \\' + "x" * 100
SIZES = Family(
    "sizes",
    "histogram",
    ("Metric", "ABBytes"),
    ("Metric", "BABytes"),
    observes="total",
    buckets=("1.0", "10.0"),
)
SPEC = Spec(
    views=(
        View((*LABELS, NODE_NAME, OWNER_LABELS[1])),
        View((LABELS[0], DIRECTION), timeout_s=100),
        View((CAPTURE, NODE_NAME, *OWNER_LABELS), (*FAMILIES, SIZES), timeout_s=100),
    ),
    deduplicate="first",
    overflow="other",
    max_connections=24,
    max_flows=30,
)


def some_flows(prefix, count):
    return [
        make_flow(
            f"{prefix}-{'u' * (n % 3 * 40)}{n}" if n % 2 else f"{ord(prefix):x}{n:x}",
            (n, 0, n, 0),
            a=f"10.0.{ord(prefix)}.{n % 5}",
            node=LONG + prefix if n % 4 == 0 else f"node-{n % 3}",
            ports=(n, 2**40 if n % 7 == 0 else 443),
            last=n,
        )
        | {"CaptureID": f"capture {prefix} {n % 3}"}
        for n in range(count)
    ]


def later(flows):
    """Return later reports of the flows, after one report of each flow was lost."""
    return [
        flow | {"Last": 900, "Metric": {name: n + 5 for name, n in flow["Metric"].items()}}
        for flow in flows
    ]


def with_flows():
    core = Core(SPEC, build=checked)
    core.raise_horizon(0)
    core.message(some_flows("d", 6), 0)
    core.expire(START_S)
    assert core.dormant_flows == 6
    core.message(some_flows("a", 12), START_S)
    return core


def rename(core):
    NAMES.update({"node-1": (LONG + "of node 1",), "node-2": ("two",), LONG + "a": ("three",)})
    try:
        core.relabel(NAMES, NAMES.keys())
    finally:
        NAMES.clear()


def rename_ambiguous(core):
    flows = some_flows("a", 12)
    addresses = sorted({flow["Network"]["A"] for flow in flows})
    OWNERS_OF_SPEC.update(dict.fromkeys(addresses))
    for n, flow in enumerate(flows):
        context = (flow["Network"]["A"], flow["Network"]["B"], flow["NodeTID"])
        OWNERS_OF_SPEC.contexts[context] = (LONG + f"owner {n}", f"namespace {n % 3}")
    try:
        core.relabel(OWNERS_OF_SPEC, addresses, 8)
    finally:
        OWNERS_OF_SPEC.clear()


def watch(core):
    since = core.snapshot(0)
    core.message(some_flows("a", 12), START_S + 1)
    return core.top(0, 5, since)


OPERATIONS = {
    "new flows": lambda core: core.message(some_flows("b", 9), START_S + 1),
    "flows beyond the limits": lambda core: core.message(some_flows("c", 24), START_S + 1),
    "dormant flows": lambda core: core.message(later(some_flows("d", 6)), START_S + 1),
    "closing reports": lambda core: core.message(
        [flow | {"FinishType": 1} for flow in later(some_flows("d", 6) + some_flows("e", 3))],
        START_S + 1,
    ),
    "late closing reports": lambda core: core.message(
        [flow | {"FinishType": 1, "CaptureID": LONG} for flow in some_flows("d", 6)], START_S + 1
    ),
    "known flows": lambda core: core.message(some_flows("a", 12), START_S + 1),
    "new names": rename,
    "new ambiguous names": rename_ambiguous,
    "new flow types": lambda core: core.set_flow_types(core.types),
    "new limits": lambda core: core.set_limits(
        max_connections=1, max_flows=1, timeout_s=200, view_timeouts_s=[5000, 5000]
    ),
    "number of label values": lambda core: core.label_values(),
    "most frequent label values": lambda core: core.cardinality(3, "node_tid"),
    "label values on a page": lambda core: core.table.page(START_S + 1).distinct_values("node_tid"),
    "top connections": lambda core: core.top(0, 5),
    "matching connections": lambda core: core.top(0, 5, None, "x", [("node_tid", b"a\nb\n")]),
    "top groups": lambda core: core.top_groups(0, 5, ["node_tid"], None, "1", (), 2),
    "top connections since a snapshot": watch,
    "a page": lambda core: read_all(core.table.page(START_S + 1), 100),
    "a compressed page": lambda core: read_deflated(core.table.page(START_S + 1), 100),
    "expiry": lambda core: core.expire(START_S + 80),
}


@pytest.mark.parametrize("times", [1, 10_000], ids=["once", "all"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_survive_any_failed_allocation(name, times):
    operation = OPERATIONS[name]
    gc.collect()
    before = checked.blocks()
    fed = with_flows()
    operation(fed)
    expected = series(fed)
    fed = None
    failed = 0
    for nth in range(1, MAX_ALLOCATIONS):
        core = with_flows()
        checked.fail_allocation(nth, times)
        try:
            operation(core)
        except MemoryError:
            failed += 1
        finally:
            left = checked.stop_failing()
        checked.check(core.table)
        operation(core)
        checked.check(core.table)
        assert series(core) == expected
        core = None
        assert checked.blocks() == before
        if left == times:  # the operation has fewer than ``nth`` allocations
            break
    else:
        raise AssertionError("MAX_ALLOCATIONS is too small")
    assert failed or name in {"known flows", "new limits", "a page", "expiry"}


@pytest.mark.parametrize("times", [1, 10_000], ids=["once", "all"])
def test_closing_reports_of_unknown_flows_survive_any_failed_allocation(times):
    others = replace(SIZES, name="others")
    spec = Spec(views=(View(), View((CAPTURE,), (SIZES,)), View((LABELS[1],), (others,))))
    closing = [
        flow | {"FinishType": 1, "CaptureID": f"{LONG} {n}", "Last": 500}
        for n, flow in enumerate(some_flows("a", 5))
    ]
    gc.collect()
    before = checked.blocks()
    failed = 0
    for nth in range(1, MAX_ALLOCATIONS):
        core = Core(spec, build=checked)
        checked.fail_allocation(nth, times)
        try:
            core.message(closing, 0)
        except MemoryError:
            failed += 1
        finally:
            left = checked.stop_failing()
        checked.check(core.table)
        core.message(closing, 0)
        checked.check(core.table)
        page = core.page(0)
        counts = [line for name in ("sizes", "others") for line in page[name] if "_count" in line]
        assert sorted(line.rpartition(" ")[2] for line in counts) == ["1"] * 5 + ["5"]
        core = None
        assert checked.blocks() == before
        if left == times:
            break
    else:
        raise AssertionError("MAX_ALLOCATIONS is too small")
    assert failed


SCANS = {
    "cardinality": lambda core: core.cardinality(1)[0],
    "top": lambda core: len(core.top(0, 1000)),
    "top groups": lambda core: core.top_groups(0, 0, ["node_tid"])[1][0],
}


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS.keys())
@pytest.mark.parametrize("slices", [1, 3])
def test_scan_skips_connections_created_after_its_last_slice(scan, slices):
    core = Core(build=checked)
    core.message(many_flows(3 * slices), 0)
    unlocks = 0

    def add_connections():
        nonlocal unlocks
        unlocks += 1
        if unlocks == slices:
            core.message(many_flows(10, first=1000), 0)

    checked.after_unlock(add_connections)
    try:
        connections = scan(core)
    finally:
        checked.after_unlock(None)
    assert core.connections == 3 * slices + 10
    assert connections == 3 * slices


def test_scan_omits_strings_that_reuse_the_numbers_of_removed_strings():
    """A scan finds numbers of strings, releases its lock, and then reads the strings."""
    core = Core(build=checked)
    core.message([make_flow(f"{n}", node=f"old-{n}") for n in range(1, 4)], 0)
    page = core.table.page(0)

    def replace_strings():
        checked.after_unlock(None)
        core.expire(END_S)
        core.message([make_flow(f"{n}", node=f"new-{n}") for n in range(4, 7)], END_S)

    checked.after_unlock(replace_strings)
    try:
        values = page.distinct_values("node_tid")
    finally:
        checked.after_unlock(None)
    assert values == []
    assert core.connections == 3
    assert read_all(page).count(b"\n") == 2 * len(core.families)


def series(core):
    """Return the series of a page without their values, and without round-trip times.

    The values can differ, because reports are applied again after a failure.
    """
    return {
        line.rpartition(" ")[0]
        for line in read_all(core.table.page(START_S + 1)).decode().splitlines()
        if "_rtt_" not in line
    }


def test_failed_report_does_not_take_over_a_conversation():
    spec = Spec(deduplicate="first", views=(View((CAPTURE, *LABELS[:2], DIRECTION)),))
    for nth in range(1, MAX_ALLOCATIONS):
        core = Core(spec, build=checked)
        known = make_flow("a1", (100, 0, 0, 0), last=1, node="node-1")
        core.message([known], 0)
        core.expire(START_S)
        # These flows fill a block of memory, so the next connection allocates another block.
        core.message([make_flow(f"c{n}", a=f"10.0.1.{n}") for n in range(3)], START_S)
        checked.fail_allocation(nth)
        failed = False
        try:
            core.message([make_flow("b2", node=LONG) | {"CaptureID": LONG}], START_S)
        except MemoryError:
            failed = True
        finally:
            left = checked.stop_failing()
        if failed:
            # Flow a1 is still dormant, so its next report adds only the increase.
            later = known | {"Last": 70_000, "Metric": {"ABBytes": 130}}
            core.message([later | {"LastUpdateMetric": {"Start": 60_000}}], START_S)
            assert any(" 130" in line for line in core.page(START_S)[FAMILIES[0].name])
        if left:  # the message needs fewer than ``nth`` allocations
            break
    else:
        raise AssertionError("MAX_ALLOCATIONS is too small")
    assert nth > 1


def test_uuid_of_an_evicted_flow_can_be_a_label_value_in_the_same_message():
    core = Core(max_flows=3, build=checked)
    core.message([make_flow("named like a node", node="node-1")], 0)
    core.message([make_flow("b2", node="node-2")], 1)
    core.expire(100)
    # The second flow of this message evicts the flow whose UUID is a label of the third flow.
    nodes = ("node-3", "node-4", "named like a node")
    core.message([make_flow(f"{n + 5}", node=node) for n, node in enumerate(nodes)], 100)
    assert core.dormant_flows == 0
    core.expire(200)
    core.expire(10_000)


def test_failed_construction_frees_all_memory():
    gc.collect()
    before = checked.blocks()
    references = sys.getrefcount(NAMES)
    failed = 0
    for nth in range(1, MAX_ALLOCATIONS):
        checked.fail_allocation(nth)
        try:
            Core(SPEC, build=checked)
        except MemoryError:
            failed += 1
        else:
            break
        finally:
            checked.stop_failing()
        assert checked.blocks() == before
    assert failed > 50
    assert failed < MAX_ALLOCATIONS - 1
    assert checked.blocks() == before
    assert sys.getrefcount(NAMES) == references


def test_destroyed_tables_release_all_references():
    name = "".join(["the name", " of node 1"])
    gc.collect()
    before = sys.getrefcount(NAMES), sys.getrefcount(name)
    for _ in range(10):
        core = with_flows()
        NAMES["node-1"] = (name,)
        core.message(some_flows("b", 9), START_S + 1)
        core.relabel(NAMES, ["node-1"])
        core.set_flow_types(core.types)
        NAMES.clear()
    core = None
    gc.collect()
    assert (sys.getrefcount(NAMES), sys.getrefcount(name)) == before


# Saved counters: the number of new flows and the start time are packed into one number


@pytest.mark.parametrize("start_ms", [0, 1, 1_700_000_000_000, 2**42 - 1])
@pytest.mark.parametrize("new_flows", [0, 1, 2**21 - 1])
def test_saved_counters_contain_the_number_of_new_flows_and_the_start_time(new_flows, start_ms):
    assert checked.pack_and_unpack(new_flows, start_ms) == (new_flows, start_ms)


@pytest.mark.parametrize(
    ("new_flows", "start_ms"),
    [(2**21, 1), (2**62, 1), (2**63 - 1, 1), (0, -1), (0, 2**42), (5, 2**63 - 1)],
)
def test_start_time_is_not_saved_if_one_of_the_packed_numbers_is_out_of_range(new_flows, start_ms):
    assert checked.pack_and_unpack(new_flows, start_ms) == (new_flows, 0)
