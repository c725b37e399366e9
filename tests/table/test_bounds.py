"""Worked examples of bounds: a row is hidden until it has enough bytes or packets."""

from dataclasses import replace

import pytest

from skyfast._table import MAX_PARTS
from tests.model import (
    BYTES,
    DIRECTION,
    FAMILIES,
    KNOWN_LABELS,
    LABELS,
    MAX_SUM,
    PACKETS,
    RTT,
    TIMEOUT_S,
    Model,
    Names,
    Spec,
    View,
    looked_up,
    make_flow,
)
from tests.support.model_specs import compatible, labelled, standard
from tests.support.table_adapter import Core, many_flows, read_all

MIN_BYTES = 1000


@pytest.fixture(params=[Model, Core], ids=["model", "core"])
def make(request):
    return request.param


def bounded(min_bytes=0, min_packets=0, *, families=FAMILIES, labels=LABELS, **others):
    """Return a spec with bounds in the first view, and all traffic in the second view."""
    amounts = ("bytes", "packets")
    view = View(labels, families, amounts=amounts, min_bytes=min_bytes, min_packets=min_packets)
    totals = View((KNOWN_LABELS["protocol"],), standard("all", "bytes"))
    return Spec(views=(view, totals), **others)


def values(table, family, now=0.0):
    return [int(line.rpartition(" ")[2]) for line in sorted(table.page(now)[family])]


def test_connection_is_shown_after_it_reaches_the_bound(make):
    table = make(bounded(MIN_BYTES))
    table.report(make_flow(total=(400, 599, 1, 2), rtt=7, last=1), 0)
    assert not any(table.page(0)[family.name] for family in FAMILIES)
    assert values(table, "all_bytes_total") == [999]
    assert table.hidden(0) == [(1, 999), None]
    # The bound applies to the sum of both directions.
    table.report(make_flow(total=(400, 600, 1, 2), rtt=7, last=2), 0)
    assert values(table, BYTES) == [400, 600]
    assert values(table, PACKETS) == [1, 2]
    assert values(table, RTT) == [7]
    assert table.hidden(0) == [(0, 0), None]
    assert (table.connections, table.flows) == (1, 1)


@pytest.mark.parametrize(
    ("min_bytes", "min_packets", "is_shown"),
    [
        (0, 0, True),
        (300, 0, True),
        (301, 0, False),
        (0, 3, True),
        (0, 4, False),
        (300, 4, True),
        (301, 3, True),
        (301, 4, False),
        (MAX_SUM, MAX_SUM, False),
    ],
)
def test_row_that_reaches_either_bound_is_shown(make, min_bytes, min_packets, is_shown):
    table = make(bounded(min_bytes, min_packets))
    table.report(make_flow(total=(100, 200, 1, 2)), 0)
    assert values(table, BYTES) == ([100, 200] if is_shown else [])
    no_bounds = min_bytes == min_packets == 0
    hidden = (0, 0) if is_shown else (1, 300)
    assert table.hidden(0) == [None if no_bounds else hidden, None]


@pytest.mark.parametrize("direction", [(DIRECTION,), ()])
@pytest.mark.parametrize("names", [("rtt",), ("flows", "new_flows"), ("packets", "tcp_bytes")])
def test_bytes_count_towards_the_bound_even_if_no_metric_shows_them(make, names, direction):
    labels = (*labelled("initiator_ip", "target_ip"), *direction)
    table = make(bounded(301, families=compatible(*names), labels=labels))
    flow = make_flow(total=(100, 200, 1, 2), rtt=5, last=1)
    table.report(flow, 0)
    assert not any(table.page(0)[family.name] for family in compatible(*names))
    table.report(make_flow(total=(101, 200, 1, 2), rtt=5, last=2), 0)
    shown = table.page(0)
    assert shown[compatible(*names)[0].name]
    assert set(shown) == {*(family.name for family in compatible(*names)), "all_bytes_total"}


def test_bytes_of_all_flows_of_a_connection_count_towards_the_bound(make):
    table = make(bounded(MIN_BYTES))
    table.report(make_flow("a1", (300, 300, 1, 1)), 0)
    table.report(make_flow("b2", (300, 99, 1, 1)), 0)
    assert values(table, BYTES) == []
    table.report(make_flow("b2", (300, 100, 1, 1), last=3_000), 0)
    assert values(table, BYTES) == [600, 400]


def test_bounds_can_change(make):
    table = make(bounded(MIN_BYTES))
    table.report(make_flow(total=(100, 200, 1, 2)), 0)
    table.bounds = [(300, 0), (0, 0)]
    assert values(table, BYTES) == [100, 200]
    table.bounds = [(301, 0), (0, 0)]
    assert values(table, BYTES) == []
    table.bounds = [(301, 3), (0, 0)]
    assert values(table, BYTES) == [100, 200]
    table.bounds = [(301, 4), (301, 0)]
    assert (values(table, BYTES), values(table, "all_bytes_total")) == ([], [])
    assert table.hidden(0) == [(1, 300), (1, 300)]
    table.bounds = [(0, 0), (0, 0)]
    assert (values(table, BYTES), values(table, "all_bytes_total")) == ([100, 200], [300])


def test_shown_connection_is_still_shown_when_it_returns(make):
    table = make(bounded(MIN_BYTES, flow_memory_s=300))
    table.report(make_flow("a1", (900, 0, 1, 0), last=1), 0)
    table.report(make_flow("b2", (100, 0, 1, 0), last=1), 0)
    assert values(table, BYTES) == [1000, 0]
    table.expire(TIMEOUT_S)
    assert table.connections == 0
    table.report(make_flow("a1", (901, 0, 1, 0), last=2), 200)
    assert values(table, BYTES, 200) == [1001, 0]


def test_returning_connection_keeps_bytes_that_no_metric_shows(make):
    table = make(bounded(MIN_BYTES, families=compatible("rtt"), flow_memory_s=300))
    table.report(make_flow("a1", (600, 0, 1, 0), rtt=7, last=1), 0)
    table.report(make_flow("b2", (399, 0, 1, 0), last=1), 0)
    assert values(table, RTT) == []
    table.expire(TIMEOUT_S)
    table.report(make_flow("a1", (601, 0, 1, 0), rtt=9, last=2), 200)
    assert values(table, RTT, 200) == [9]


def test_forgotten_connection_starts_with_the_total_of_its_next_flow(make):
    table = make(bounded(MIN_BYTES, flow_memory_s=0))
    table.report(make_flow(total=(1000, 0, 1, 0), last=1), 0)
    assert values(table, BYTES) == [1000, 0]
    table.expire(TIMEOUT_S)
    later = make_flow("a2", (2000, 0, 2, 0), last_update=(20, 0, 1, 0), update_start=60_000, last=2)
    table.report(later, 200)
    # The labels identify the connection, so it starts with the total of the flow.
    assert values(table, BYTES, 200) == [2000, 0]


def test_overflow_connection_is_always_shown(make):
    table = make(bounded(MIN_BYTES, overflow="other", max_connections=1))
    table.report(make_flow("a1", (1, 0, 1, 0)), 0)
    table.report(make_flow("b2", (2, 0, 1, 0), a="10.0.0.9"), 0)
    assert values(table, BYTES) == [2, 0]
    assert table.hidden(0) == [(1, 1), None]
    assert table.forecast(0, 0, [(0, 0), (MIN_BYTES, 0)]) == [(2, 8, 3), (1, 4, 2)]


def test_bound_of_a_view_applies_to_the_rows_of_that_view(make):
    by_port = View(
        labelled("target_port"), standard("port", "packets"), amounts=("bytes",), min_bytes=500
    )
    table = make(Spec(views=(View(), by_port)))
    table.report(make_flow("a1", (100, 200, 1, 2)), 0)
    assert (values(table, BYTES), values(table, "port_packets_total")) == ([100, 200], [])
    assert table.hidden(0) == [None, (1, 300)]
    table.report(make_flow("b2", (100, 100, 1, 2), a="10.0.0.9"), 0)
    assert values(table, "port_packets_total") == [6]


def test_new_flows_of_hidden_connections_are_counted(make):
    table = make(bounded(MIN_BYTES, families=compatible("new_flows")))
    table.report(make_flow("a1", (400, 0, 1, 0)), 0)
    name = compatible("new_flows")[0].name
    assert values(table, name) == []
    table.report(make_flow("b2", (600, 0, 1, 0)), 0)
    assert values(table, name) == [2]


def test_connection_with_a_new_name_starts_below_the_bound(make):
    names = Names({"node-1": ("old",)})
    labels = (looked_up("node_name", ("NodeTID",), names), DIRECTION)
    table = make(bounded(MIN_BYTES, labels=labels))
    table.report(make_flow(total=(1000, 0, 1, 0), last=1), 0)
    assert values(table, BYTES) == [1000, 0]
    names["node-1"] = ("new",)
    table.relabel(names, ["node-1"])
    table.expire(0)
    assert values(table, BYTES) == []
    table.report(make_flow(total=(2000, 0, 1, 0), last=2), 0)
    assert values(table, BYTES) == [1000, 0]


def test_hidden_rows_expire(make):
    table = make(bounded(MIN_BYTES))
    table.report(make_flow(), 0)
    assert table.hidden(TIMEOUT_S - 1) == [(1, 300), None]
    assert table.hidden(TIMEOUT_S) == [(0, 0), None]
    table.expire(TIMEOUT_S)
    assert table.connections == 0


def test_parts_of_a_page_omit_hidden_rows(make):
    table = make(bounded(50))
    for n, flow in enumerate(many_flows(60)):
        table.report({**flow, "Metric": {**flow["Metric"], "ABBytes": n, "BABytes": 0}}, 0)
    whole = table.page(0)[BYTES]
    assert len(whole) == 20
    parts = [table.page(0, part=part, parts=7)[BYTES] for part in range(7)]
    assert sum(map(len, parts)) == 20
    assert set().union(*parts) == whole
    assert table.hidden(0) == [(50, sum(range(50))), None]


def test_forecast_counts_rows_series_and_bytes_for_each_pair_of_bounds(make):
    table = make(bounded(MIN_BYTES, families=compatible("bytes", "rtt")))
    table.report(make_flow("a1", (90, 0, 10, 0)), 0)
    table.report(make_flow("b2", (500, 400, 2, 2), rtt=5, a="10.0.0.8"), 0)
    table.report(make_flow("c3", (5000, 5000, 2, 2), a="10.0.0.9"), 0)
    # Each connection has two series of bytes, and one connection also has a round-trip time.
    pairs = [(0, 0), (91, 0), (900, 0), (901, 0), (10_001, 0), (91, 10), (0, 5)]
    assert table.forecast(0, 0, pairs) == [
        (3, 7, 10_990),
        (2, 5, 10_900),
        (2, 5, 10_900),
        (1, 2, 10_000),
        (0, 0, 0),
        (3, 7, 10_990),
        (1, 2, 90),
    ]
    assert table.forecast(0, 1, [(0, 0)]) == [(1, 1, 10_990)]
    assert table.forecast(TIMEOUT_S, 0, [(0, 0)]) == [(0, 0, 0)]


def test_sums_of_bytes_do_not_overflow(make):
    table = make(bounded(MAX_SUM, 2))
    for n in range(4):
        for uuid in "abcde":
            flow = make_flow(f"{uuid}{n}", (2**61, 2**61, 0, 0), a=f"10.0.0.{n}")
            table.report(flow, 0)
    assert table.forecast(0, 0, [(0, 0), (MAX_SUM, 0)]) == [(4, 16, 8 * MAX_SUM)] * 2
    table.bounds = [(0, 2), (0, 0)]
    assert table.hidden(0) == [(4, 8 * MAX_SUM), None]


def test_page_uses_the_bounds_that_applied_at_its_start():
    core = Core(bounded(MIN_BYTES))
    core.report(make_flow(total=(400, 600, 1, 2)), 0)
    page = core.table.page(0)
    core.bounds = [(0, 5000), (0, 0)]
    assert b" 400\n" in read_all(page)
    assert values(core, BYTES) == []


def test_page_has_all_families_of_a_connection_or_none():
    core = Core(bounded(MIN_BYTES))
    core.report(make_flow(total=(400, 599, 1, 2), rtt=7, last=1), 0)
    page = core.table.page(0)
    before = page.read(1)  # the HELP and TYPE lines of the first family
    core.report(make_flow(total=(400, 600, 1, 2), rtt=7, last=2), 0)
    assert BYTES.encode() in before
    assert b"{" not in read_all(page).split(b"# HELP all_bytes_total")[0]


@pytest.mark.parametrize(
    "bounds", [[(0, 0)], [(0, 0)] * 3, [(-1, 0), (0, 0)], [(2**63, 0), (0, 0)], [(0, 0), (0, 1)]]
)
def test_invalid_bounds_are_rejected(bounds):
    core = Core(bounded(MIN_BYTES))
    core.report(make_flow(), 0)
    with pytest.raises(ValueError, match=r"bounds"):
        core.bounds = bounds
    assert core.table.hidden(0) == [(1, 300), None]


def test_invalid_forecasts_are_rejected():
    core = Core(bounded(MIN_BYTES))
    with pytest.raises(IndexError):
        core.table.forecast(0, 2, [])
    with pytest.raises(ValueError, match="counters"):
        core.table.forecast(0, 1, [(0, 1)])
    assert core.table.forecast(0, 0, []) == []


def test_bounds_need_memory_only_for_counters_that_no_metric_shows():
    plain = Core(Spec(views=(View(),)))
    shown = Core(Spec(views=(View(amounts=("bytes", "packets"), min_bytes=1, min_packets=1),)))
    assert plain.table.row_bytes == shown.table.row_bytes
    hidden = replace(View(families=compatible("rtt")), amounts=("bytes",), min_bytes=1)
    without = Core(Spec(views=(View(families=compatible("rtt")),)))
    # two counters of the row and two totals of the flow, with 8 bytes each
    assert Core(Spec(views=(hidden,))).table.row_bytes == without.table.row_bytes + 32


@pytest.mark.parametrize("parts", [1, MAX_PARTS])
def test_memory_of_an_unfinished_page_with_bounds_is_freed(parts):
    core = Core(bounded(MIN_BYTES))
    core.message(many_flows(1000), 0)
    for _ in range(100):
        core.table.page(0, parts=parts).read(1)
