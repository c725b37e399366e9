"""Worked examples of the start times of counters, checked against the model and the core."""

import itertools
import re
from functools import partial

import pytest

from tests.model import (
    BYTES,
    DIRECTION,
    FAMILIES,
    FLOW_MEMORY_S,
    LABELS,
    MAX_NUMBER,
    TIMEOUT_S,
    VIEW_TIMEOUT_S,
    Model,
    Names,
    Spec,
    View,
    looked_up,
    make_flow,
)
from tests.support.model_specs import labelled, standard
from tests.support.table_adapter import Core, read_all

CLOCK_MS = 1_700_000_000_000
"""The wall-clock time at which the table's clock is 0."""

START_MS = CLOCK_MS - 500_000
UPDATE_MS = CLOCK_MS - 60_000
LAST_MS = CLOCK_MS - 1_000
A_WHILE_S = 275

NODE = View(labelled("node_tid"), standard("node", "bytes", "flows", "new_flows", "rtt"))
PORT = View(labelled("target_port"), standard("port", "bytes"))
BOTH = Spec(views=(View(LABELS, FAMILIES), NODE))
SHARED = Spec(
    views=(View(labelled("initiator_ip", "target_ip"), standard("a", "bytes", "new_flows")), NODE)
)


@pytest.fixture(
    params=[Model, Core, partial(Core, slots=False)], ids=["model", "core", "core-attributes"]
)
def make(request):
    return request.param


def report(table, flow, now=0):
    return table.report(flow, now, CLOCK_MS + 1000 * now)


def first_report(uuid="a1", total=(100, 200, 1, 2), *, start=START_MS, last=LAST_MS, **changes):
    return make_flow(uuid, total, start=start, update_start=start, last=last, **changes)


def later_report(
    uuid="a1", total=(300, 400, 3, 4), last_update=(7, 8, 1, 1), *, last=LAST_MS, **changes
):
    return make_flow(
        uuid,
        total,
        last_update=last_update,
        start=START_MS,
        update_start=UPDATE_MS,
        last=last,
        **changes,
    )


def starts(table, family, now=0):
    """Return the start times in a family, by label values without the direction."""
    result = {}
    for series, start_ms in table.starts(now).items():
        if re.split(r"\W", series)[0] == family:
            values = re.findall(r'="([^"]*)"', re.sub('direction="[a-z_]*",?', "", series))
            assert result.setdefault(",".join(values), start_ms) == start_ms
    return result


def start(table, family, now=0):
    """Return the start time of the only connection in a family; None if it is unknown."""
    times = [*starts(table, family, now).values()]
    assert len(times) <= 1
    return times[0] if times else None


# Unknown flows


def test_counters_that_add_a_total_start_with_the_flow(make):
    table = make(BOTH)
    report(table, first_report(rtt=5))
    assert start(table, BYTES) == START_MS
    assert start(table, "node_bytes_total") == START_MS
    assert start(table, "node_new_flows_total") == START_MS
    # Gauges have no start time.
    assert {series.partition("{")[0] for series in table.starts(0)} == {
        *(family.name for family in FAMILIES if family.type == "counter"),
        *("node_bytes_total", "node_new_flows_total"),
    }


def test_counters_that_add_only_the_last_update_start_with_that_update(make):
    # The labels of the first view identify the connection, so this view adds the total.
    table = make(BOTH)
    report(table, later_report())
    assert start(table, BYTES) == START_MS
    assert start(table, "node_bytes_total") == UPDATE_MS


def test_counters_of_a_flow_that_was_never_counted_start_with_the_flow(make):
    table = make(SHARED)
    table.raise_horizon(0)
    flow = later_report(last=UPDATE_MS + 1)
    assert table.report(flow, 1000, CLOCK_MS) is None
    assert start(table, "node_bytes_total", 1000) == START_MS


def test_report_without_last_update_is_a_first_report(make):
    table = make(BOTH)
    flow = first_report()
    del flow["LastUpdateMetric"]
    report(table, flow)
    assert start(table, BYTES) == start(table, "node_bytes_total") == START_MS


def test_start_time_never_changes(make):
    table = make(BOTH)
    report(table, first_report())
    report(table, first_report("b2", start=START_MS - 1))
    report(table, first_report("c3", start=START_MS + 1, ports=(40_001, 443)))
    report(table, later_report(last=LAST_MS + 1), 30)
    assert starts(table, "node_bytes_total", 30) == {"node-1": START_MS}
    assert starts(table, BYTES, 30) == {
        "10.0.0.1,10.0.0.2,40000,443,node-1,TCP": START_MS,
        "10.0.0.1,10.0.0.2,40001,443,node-1,TCP": START_MS + 1,
    }


def test_row_that_a_later_flow_creates_starts_with_that_flow(make):
    table = make(Spec(views=(*SHARED.views, PORT)))
    report(table, first_report())
    report(table, first_report("b2", start=START_MS + 7, ports=(40_000, 80)))
    assert starts(table, "a_bytes_total") == {"10.0.0.1,10.0.0.2": START_MS}
    assert starts(table, "port_bytes_total") == {"443": START_MS, "80": START_MS + 7}


# The clock


def test_start_time_is_not_later_than_the_arrival_of_the_report(make):
    table = make(BOTH)
    report(table, first_report(start=CLOCK_MS + 50_000), 40)
    assert start(table, BYTES, 40) == start(table, "node_bytes_total", 40) == CLOCK_MS + 40_000
    # The wall clock is now past the start that the agent reported.
    report(table, later_report(last=LAST_MS + 1), 60)
    assert start(table, BYTES, 60) == CLOCK_MS + 40_000


def test_start_time_is_not_limited_if_the_wall_clock_is_unknown(make):
    table = make()
    table.report(first_report(start=CLOCK_MS + 50_000), 0)
    assert start(table, BYTES) == CLOCK_MS + 50_000


@pytest.mark.parametrize("start_ms", [0, -1, MAX_NUMBER + 1])
def test_counters_without_a_valid_start_have_no_start_time(make, start_ms):
    table = make(BOTH)
    flow = first_report() | {"Start": start_ms}
    report(table, flow)
    assert start(table, BYTES) is None
    assert len(table.page(0)[BYTES]) == 2
    # A row without a start time does not get the start of flow b2.
    report(table, first_report("b2"))
    assert start(table, BYTES) is None


@pytest.mark.parametrize("start_ms", [-1, MAX_NUMBER + 1])
def test_counters_that_add_an_update_without_a_valid_start_have_no_start_time(make, start_ms):
    table = make(BOTH)
    flow = later_report()
    flow["LastUpdateMetric"]["Start"] = start_ms
    report(table, flow)
    assert start(table, BYTES) == START_MS
    assert start(table, "node_bytes_total") is None


# Dormant flows


def test_returning_connection_keeps_its_start_time(make):
    table = make(BOTH)
    report(table, first_report())
    table.expire(TIMEOUT_S)
    assert (table.connections, table.dormant_connections) == (0, 0)
    now = A_WHILE_S
    report(table, later_report(last=LAST_MS + 1000 * now), now)
    assert start(table, BYTES, now) == START_MS
    assert start(table, "node_bytes_total", now) == START_MS


def test_start_time_limited_by_the_clock_stays_when_the_connection_returns(make):
    # The agent's clock is an hour ahead.
    table = make(BOTH)
    report(table, first_report(start=CLOCK_MS + 3_600_000))
    assert start(table, BYTES) == CLOCK_MS
    table.expire(TIMEOUT_S)
    now = A_WHILE_S
    flow = later_report(last=CLOCK_MS + 3_700_000) | {"Start": CLOCK_MS + 3_600_000}
    report(table, flow, now)
    assert start(table, BYTES, now) == CLOCK_MS


def test_row_that_a_returning_flow_creates_starts_at_the_previous_report(make):
    table = make(Spec(views=BOTH.views, flow_memory_s=2 * VIEW_TIMEOUT_S))
    report(table, first_report())
    table.expire(TIMEOUT_S)
    now = int(VIEW_TIMEOUT_S) + 100
    table.expire(now)
    assert table.view_connections == (0,)
    report(table, later_report(last=CLOCK_MS + 1000 * now), now)
    assert start(table, "node_bytes_total", now) == LAST_MS
    assert start(table, BYTES, now) == START_MS


def test_counters_saved_for_a_removed_connection_keep_their_start_time(make):
    table = make(SHARED)
    report(table, first_report())
    report(table, first_report("b2", start=START_MS + 9, ports=(40_001, 443)))
    table.expire(TIMEOUT_S)
    assert table.dormant_connections == 1
    now = A_WHILE_S
    report(table, first_report("c3", start=CLOCK_MS, ports=(40_002, 443)), now)
    assert start(table, "a_bytes_total", now) == START_MS
    assert [line.rpartition(" ")[2] for line in table.page(now)["a_new_flows_total"]] == ["3"]
    # When the saved counters are forgotten, the start time is that of the next flow.
    table.expire(now + TIMEOUT_S)
    now += TIMEOUT_S + FLOW_MEMORY_S
    table.expire(now)
    assert (table.connections, table.dormant_connections) == (0, 0)
    report(table, first_report("d4", start=CLOCK_MS + 5, ports=(40_002, 443)), now)
    assert start(table, "a_bytes_total", now) == CLOCK_MS + 5


def test_saved_counters_without_a_start_time_never_get_a_start_time(make):
    table = make(SHARED)
    report(table, first_report(start=0))
    table.expire(TIMEOUT_S)
    report(table, first_report("b2"), A_WHILE_S)
    assert start(table, "a_bytes_total", A_WHILE_S) is None


def test_row_created_by_a_closing_report_starts_with_the_flow(make):
    table = make(SHARED)
    table.raise_horizon(0)
    closing = later_report(update_last=UPDATE_MS, finish=1)
    assert table.report(closing, 1000, CLOCK_MS) is None
    assert (table.connections, table.dormant_connections) == (0, 1)
    assert start(table, "node_bytes_total", 1000) == START_MS
    # The connection starts with the saved counters of the closing report.
    assert table.report(first_report("b2", start=LAST_MS), 1001, CLOCK_MS) is None
    assert start(table, "a_bytes_total", 1001) == START_MS


def test_closing_report_of_a_dormant_flow_starts_rows_at_the_previous_report(make):
    table = make(Spec(views=SHARED.views, flow_memory_s=2 * VIEW_TIMEOUT_S))
    report(table, first_report())
    table.expire(TIMEOUT_S)
    now = int(VIEW_TIMEOUT_S) + 100
    table.expire(now)
    closing = later_report(last=LAST_MS + 9, update_last=LAST_MS, finish=1)
    assert report(table, closing, now) is None
    assert (table.connections, table.view_connections) == (0, (1,))
    assert start(table, "node_bytes_total", now) == LAST_MS


def test_report_after_the_deadline_keeps_the_start_time(make):
    table = make(BOTH)
    report(table, first_report())
    assert start(table, BYTES, TIMEOUT_S) is None
    report(table, later_report(last=LAST_MS + 1), TIMEOUT_S)
    assert start(table, BYTES, TIMEOUT_S) == START_MS


# Overflow


def test_overflow_row_starts_with_its_first_report(make):
    table = make(Spec(views=BOTH.views, max_connections=1, overflow="other"))
    report(table, first_report())
    report(table, later_report("b2", a="10.0.0.3"))
    report(table, first_report("c3", a="10.0.0.4", start=START_MS - 1))
    assert starts(table, BYTES) == {
        "10.0.0.1,10.0.0.2,40000,443,node-1,TCP": START_MS,
        "other,other,other,other,other,other": UPDATE_MS,
    }
    # The second view is full, too.
    report(table, first_report("d4", a="10.0.0.5", node="node-2", start=START_MS + 3))
    assert starts(table, "node_bytes_total") == {"node-1": START_MS, "other": START_MS + 3}


def test_overflow_row_of_a_returning_flow_starts_at_the_previous_report(make):
    table = make(Spec(views=BOTH.views, max_connections=1, overflow="other"))
    report(table, first_report())
    table.expire(TIMEOUT_S)
    report(table, first_report("b2", a="10.0.0.3"), A_WHILE_S)
    report(table, later_report(last=LAST_MS + 9), A_WHILE_S)
    assert starts(table, BYTES, A_WHILE_S)["other,other,other,other,other,other"] == LAST_MS


# Names


def test_connection_with_new_names_starts_at_the_current_time(make):
    names = Names({"node-1": ("eth0",)})
    label = looked_up("name", ("NodeTID",), names)
    table = make(Spec(views=(View((label, DIRECTION), FAMILIES), NODE)))
    report(table, first_report())
    names["node-1"] = ("eth1",)
    table.relabel(names, ["node-1"], wall_ms=CLOCK_MS + 5_000)
    assert starts(table, BYTES, 5) == {"eth1": CLOCK_MS + 5_000}
    assert starts(table, "node_bytes_total", 5) == {"node-1": START_MS}


def test_connection_that_returns_with_its_old_names_gets_a_new_start_time(make):
    names = Names({"node-1": ("eth0",)})
    label = looked_up("name", ("NodeTID",), names)
    table = make(Spec(views=(View((label, DIRECTION), FAMILIES),)))
    report(table, first_report())
    for name, seconds in (("eth1", 5), ("eth0", 9)):
        names["node-1"] = (name,)
        table.relabel(names, ["node-1"], wall_ms=CLOCK_MS + 1000 * seconds)
    assert table.dormant_connections == 0
    assert starts(table, BYTES, 9) == {"eth0": CLOCK_MS + 9_000}


def test_moved_flow_restores_saved_counters_with_their_start_time(make):
    names = Names({"node-1": ("eth0",), "node-2": ("eth1",)})
    label = looked_up("name", ("NodeTID",), names)
    table = make(Spec(views=(View((label, DIRECTION), FAMILIES),)))
    report(table, first_report())
    report(table, first_report("b2", start=START_MS + 9))
    table.expire(TIMEOUT_S)
    assert table.dormant_connections == 1
    now = A_WHILE_S
    report(table, first_report("c3", node="node-2", start=CLOCK_MS), now)
    names["node-2"] = ("eth0",)
    table.relabel(names, ["node-2"], wall_ms=CLOCK_MS + 1000 * now)
    assert starts(table, BYTES, now) == {"eth0": START_MS}


def test_row_of_a_view_with_new_names_starts_at_the_current_time(make):
    names = Names({"node-1": ("eth0",)})
    label = looked_up("name", ("NodeTID",), names)
    table = make(Spec(views=(View(LABELS, FAMILIES), View((label,), standard("v", "bytes")))))
    report(table, first_report())
    names["node-1"] = ("eth1",)
    table.relabel(names, ["node-1"], wall_ms=CLOCK_MS + 5_000)
    assert starts(table, "v_bytes_total", 5) == {
        "eth0": START_MS,
        "eth1": CLOCK_MS + 5_000,
    }
    assert start(table, BYTES, 5) == START_MS


def test_new_names_have_no_start_time_if_the_wall_clock_is_unknown(make):
    names = Names({"node-1": ("eth0",)})
    label = looked_up("name", ("NodeTID",), names)
    table = make(Spec(views=(View((label, DIRECTION), FAMILIES),)))
    report(table, first_report())
    names["node-1"] = ("eth1",)
    table.relabel(names, ["node-1"])
    assert starts(table, BYTES) == {}
    assert len(table.page(0)[BYTES]) == 2


# Pages of the core


def test_both_versions_of_openmetrics_show_the_same_start_times():
    """In OpenMetrics 1.0, only pages with ``created`` have start times."""
    view = View(
        labelled("node_tid"),
        standard("node", "bytes", "rtt"),
    )
    directed = View((*labelled("node_tid"), DIRECTION), standard("d", "bytes"))
    core = Core(Spec(views=(view, directed)))
    report(core, first_report(start=START_MS + 120, node='a "b"\\\n', rtt=1))
    node = r'node_tid="a \"b\"\\\n"'
    time_s = "1699999500.12"
    sides = (
        ("initiator_to_target", 100),
        ("target_to_initiator", 200),
    )
    assert samples(core.table.page(0, 2)) == [
        f"node_bytes_total{{{node}}} 300 st@{time_s}",
        f"node_rtt_seconds{{{node}}} 0.000000001",
        *(f'd_bytes_total{{{node},direction="{side}"}} {n} st@{time_s}' for side, n in sides),
    ]
    assert samples(core.table.page(0, 1, created=True)) == [
        f"node_bytes_total{{{node}}} 300",
        f"node_bytes_created{{{node}}} {time_s}",
        f"node_rtt_seconds{{{node}}} 0.000000001",
        *(
            line
            for side, n in sides
            for line in (
                f'd_bytes_total{{{node},direction="{side}"}} {n}',
                f'd_bytes_created{{{node},direction="{side}"}} {time_s}',
            )
        ),
    ]
    plain = samples(core.table.page(0))
    assert plain == samples(core.table.page(0, 1)) == samples(core.table.page(0, created=True))
    with pytest.raises(ValueError, match="openmetrics"):
        core.table.page(0, 3)


def samples(page):
    return [line for line in read_all(page).decode().splitlines() if line[0] != "#"]


def test_series_of_the_second_direction_has_a_start_time_if_it_is_the_only_series():
    family = standard("t", "tcp_out_of_order")
    core = Core(Spec(views=(View((*labelled("node_tid"), DIRECTION), family),)))
    flow = first_report() | {"TCPMetric": {"ABSegmentOutOfOrder": -1, "BASegmentOutOfOrder": 5}}
    report(core, flow)
    series = '{node_tid="node-1",direction="target_to_initiator"}'
    assert samples(core.table.page(0, 2)) == [f"t_tcp_out_of_order_total{series} 5 st@1699999500"]
    assert samples(core.table.page(0, 1, created=True)) == [
        f"t_tcp_out_of_order_total{series} 5",
        f"t_tcp_out_of_order_created{series} 1699999500",
    ]


def test_pages_read_in_small_chunks_have_the_same_lines():
    core = Core(BOTH)
    for number in range(30):
        report(core, first_report(f"{number + 1:x}", a=f"10.0.1.{number}", start=START_MS + number))
    for openmetrics in (1, 2):
        whole = read_all(core.table.page(0, openmetrics, created=True))
        assert read_all(core.table.page(0, openmetrics, created=True), 1) == whole
        parts = [
            samples(core.table.page(0, openmetrics, created=True, part=part, parts=3))
            for part in range(3)
        ]
        lines = samples(core.table.page(0, openmetrics, created=True))
        assert sorted(itertools.chain(*parts)) == sorted(lines)
