"""What the table keeps, looked at from inside after every operation, with and without memory.

Runs with the build `checked` of the core (`tests.support.core_builds`): it checks
row by row, fails chosen allocations, and grows in such small steps that a dozen flows take all.
"""

import gc
import sys
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from prometheus_client.parser import text_string_to_metric_families

from skyfast import _table
from skyfast.flows.fields import flow_types
from tests.model import DIRECTION, FAMILIES, LABELS, Label, Names, Spec, View, looked_up, make_flow
from tests.support import core_builds
from tests.support.table_adapter import ALL_ROWS, Core, read_all
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
"""More than any operation here needs."""

END_S = 1e7
"""When all flows and rows of all tables here have left."""


# Against the model


class CheckedMachine(TableMachine):
    """The table against the model, and against itself."""

    build = checked


TestChecked = CheckedMachine.TestCase
TestChecked.settings = settings(
    max_examples=5_000 if IS_THOROUGH else 20,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# Random operations, some of which find no memory

failing = st.one_of(st.just(0), st.integers(1, 12))
times = st.sampled_from((1, 1, 2, 1000))
limits = st.sampled_from((1, 2, 5, 1000))


class HungryMachine(RuleBasedStateMachine):
    """Everything that can be asked of a table, where any allocation may fail.

    What the table then shows is not compared with anything: a flow was or was not taken. But it
    is a table and its pages are pages, and nothing is lost or left.
    """

    def __init__(self):
        super().__init__()
        gc.collect()  # other tests have tables, too
        self.blocks = checked.blocks()

    @initialize(
        spec=specs(),
        slots=st.booleans(),
        births=st.sampled_from((0, 2**30 - 5, 2**31 - 5, 2**32 - 5)),
        now=st.sampled_from((0, 1_000_000)),
    )
    def start(self, spec, slots, births, now):
        NODE_NAMES.clear()
        OWNERS.clear()
        self.spec = spec
        self.core = Core(spec, slots=slots, build=checked)
        checked.age(self.core.table, births)
        self.now = now
        self.pages = []

    def hungrily(self, nth, times, operation):
        """Do something while the ``nth`` allocation fails; with 0, none does."""
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
        self.hungrily(nth, times, lambda: self.core.message(message, self.now))

    @rule(renaming=renamings, budget=st.sampled_from((0, 3, ALL_ROWS)), nth=failing, times=times)
    def rename(self, renaming, budget, nth, times):
        keys = renaming.apply()
        self.hungrily(nth, times, lambda: self.core.relabel(renaming.names, keys, budget))

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
        nth=failing,
    )
    def limit(self, max_connections, max_flows, timeout_s, memory_s, longer_s, nth):
        self.hungrily(
            nth,
            1,
            lambda: self.core.set_limits(
                max_connections=max_connections,
                max_flows=max_flows,
                timeout_s=timeout_s,
                memory_s=memory_s,
                view_timeouts_s=[timeout_s + longer_s] * (len(self.spec.views) - 1),
            ),
        )

    @rule(nth=failing)
    def use(self, nth):
        types = flow_types(self.core.plan, also=[("LayersPath",), ("Link", "B")])
        self.hungrily(nth, 1, lambda: self.core.set_flow_types(types))
        # The core's decoders stay those of its own types.
        self.core.set_flow_types(self.core.types)

    @rule(nth=failing, times=times, count=st.sampled_from((0, 1, 3, 100)))
    def look(self, nth, times, count):
        def operation():
            for label in self.core.label_values():
                self.core.cardinality(count, label)
            families = self.core.plan.views[0].families
            for at, family in enumerate(families):
                since = self.core.snapshot(at) if family.type == "counter" else None
                self.core.top(at, count, since, "1")
                self.core.top(at, count)

        self.hungrily(nth, times, operation)

    @rule(size=st.sampled_from((1, 100, 10_000)), openmetrics=st.booleans())
    def begin_page(self, size, openmetrics):
        self.pages.append(self.core.table.page(self.now, openmetrics=openmetrics))
        self.pages = self.pages[-3:]

    @precondition(lambda self: self.pages)
    @rule(size=st.sampled_from((1, 100, 10_000)))
    def read_on(self, size):
        for page in self.pages:
            page.read(size)

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
        # Flows whose time was over long ago became dormant only now.
        self.now += END_S
        while self.core.table.expire(self.now, 1000):
            pass
        checked.check(self.core.table)
        assert self.core.flows == self.core.dormant_flows == self.core.dormant_connections == 0
        # There is nothing left but the rows of what found no room.
        assert max(self.core.connections, *self.core.view_connections, 0) <= 1
        self.core = self.pages = None
        assert checked.blocks() == self.blocks


TestHungry = HungryMachine.TestCase
TestHungry.settings = TestChecked.settings


def assert_is_page(page):
    """Look whether an independent reader takes a page, and finds each series once."""
    seen = set()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            series = (sample.name, *sorted(sample.labels.items()))
            assert series not in seen
            seen.add(series)
            assert sample.value >= 0


# Each allocation of each operation

NAMES = Names()
NODE_NAME = looked_up("node_name", ("NodeTID",), NAMES)
CAPTURE = Label("capture", ("CaptureID",))
START_S = 80
"""When the flows come that are not dormant."""
LONG = 'a "long" label \\' + "x" * 100
SPEC = Spec(
    views=(
        View((*LABELS, NODE_NAME)),
        View((LABELS[0], DIRECTION), timeout_s=100),
        View((CAPTURE, NODE_NAME), timeout_s=100),
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
    """Return reports of the same flows with more, whose latest update was lost."""
    return [
        flow | {"Last": 900, "Metric": {name: n + 5 for name, n in flow["Metric"].items()}}
        for flow in flows
    ]


def with_flows():
    core = Core(SPEC, build=checked)
    core.begin(0)
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
    "known flows": lambda core: core.message(some_flows("a", 12), START_S + 1),
    "names": rename,
    "other types": lambda core: core.set_flow_types(core.types),
    "limits": lambda core: core.set_limits(
        max_connections=1, max_flows=1, timeout_s=200, view_timeouts_s=[5000, 5000]
    ),
    "label values": lambda core: core.label_values(),
    "values and their connections": lambda core: core.cardinality(3, "node_tid"),
    "top connections": lambda core: core.top(0, 5),
    "growth": watch,
    "a page": lambda core: read_all(core.table.page(START_S + 1), 100),
    "expiry": lambda core: core.expire(START_S + 80),
}


@pytest.mark.parametrize("times", [1, 10_000], ids=["once", "on and on"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_allocation_may_fail(name, times):
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
        if left == times:  # there was no such allocation
            break
    else:
        raise AssertionError("there is no end of allocations")
    assert failed or name in {"known flows", "limits", "a page", "expiry"}


def series(core):
    """Return what a page shows, without the values: a report may have been taken twice."""
    return {
        line.rpartition(" ")[0]
        for line in read_all(core.table.page(START_S + 1)).decode().splitlines()
        if "_rtt_" not in line
    }


def test_a_flow_without_memory_takes_no_conversation_over():
    spec = Spec(deduplicate="first", views=(View((CAPTURE, *LABELS[:2], DIRECTION)),))
    for nth in range(1, MAX_ALLOCATIONS):
        core = Core(spec, build=checked)
        known = make_flow("a1", (100, 0, 0, 0), last=1, node="node-1")
        core.message([known], 0)
        core.expire(START_S)
        # The next connection needs another slab.
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
            # It is still the flow that was dormant: what it adds counts.
            later = known | {"Last": 70_000, "Metric": {"ABBytes": 130}}
            core.message([later | {"LastUpdateMetric": {"Start": 60_000}}], START_S)
            assert any(" 130" in line for line in core.page(START_S)[FAMILIES[0].name])
        if left:  # there was no such allocation
            break
    else:
        raise AssertionError("there is no end of allocations")
    assert nth > 1


def test_a_text_that_a_forgotten_flow_leaves_during_a_batch_is_there_for_a_label():
    core = Core(max_flows=3, build=checked)
    core.message([make_flow("named like a node", node="node-1")], 0)
    core.message([make_flow("b2", node="node-2")], 1)
    core.expire(100)
    # The second flow takes the room of the first one; its name is the third one's label.
    nodes = ("node-3", "node-4", "named like a node")
    core.message([make_flow(f"{n + 5}", node=node) for n, node in enumerate(nodes)], 100)
    assert core.dormant_flows == 0
    core.expire(200)
    core.expire(10_000)


def test_a_table_for_which_there_is_no_memory_leaves_none_behind():
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


def test_tables_keep_nothing_of_what_they_were_made_of():
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
