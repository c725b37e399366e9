"""Every rule of the table by an example worked by hand, asked of the model and of the core."""

from functools import partial

import pytest

from tests.core import Core
from tests.model import (
    BYTES,
    COUNTERS,
    DIRECTION,
    FAMILIES,
    LABELS,
    MAX_NUMBER,
    MAX_SUM,
    PACKETS,
    RTT,
    TIMEOUT_S,
    Label,
    Model,
    make_flow,
)


@pytest.fixture(
    params=[Model, Core, partial(Core, slots=False)], ids=["model", "core", "core-attributes"]
)
def make(request):
    """Return what makes a table; the core also in the way that reads attributes, not slots."""
    return request.param


def sums(table, now=0.0):
    """Return the counters of the only connection on the page, in the order of COUNTERS."""
    page = table.page(now)
    found = []
    for family in (BYTES, PACKETS):
        lines = sorted(page[family])
        assert len(lines) == 2
        assert "initiator_to_target" in lines[0]
        assert "target_to_initiator" in lines[1]
        found += [int(line.rpartition(" ")[2]) for line in lines]
    return found


def rtt_ns(table, now=0.0):
    """Return the RTT of the only connection on the page, None where it has no series."""
    lines = [int(line.rpartition(" ")[2]) for line in table.page(now)[RTT]]
    assert len(lines) <= 1
    return lines[0] if lines else None


# Known flows


def test_an_update_adds_what_is_new_since_the_last_report(make):
    table = make()
    assert table.report(make_flow(total=(100, 200, 1, 2), last=1), 0) is None
    assert table.report(make_flow(total=(150, 200, 3, 2), last=2), 0) is None
    assert sums(table) == [150, 200, 3, 2]
    assert table.flows == table.connections == 1


def test_two_flows_of_a_connection_add_up(make):
    table = make()
    table.report(make_flow("a1", (100, 200, 1, 2), last=1), 0)
    table.report(make_flow("b2", (10, 20, 3, 4), last=1), 0)
    table.report(make_flow("a1", (101, 200, 1, 2), last=2), 0)
    assert sums(table) == [111, 220, 4, 6]
    assert (table.flows, table.connections) == (2, 1)


def test_two_capture_points_are_two_connections(make):
    table = make()
    table.report(make_flow("a1", node="node-1"), 0)
    table.report(make_flow("b2", node="node-2"), 0)
    assert (table.flows, table.connections) == (2, 2)
    assert len(table.page(0)[BYTES]) == 4


def test_the_same_report_again_is_late(make):
    table = make()
    table.report(make_flow(last=5), 0)
    assert table.report(make_flow(last=5), 0) == "late"
    assert sums(table) == [100, 200, 1, 2]


def test_older_news_without_a_higher_counter_changes_nothing(make):
    table = make()
    table.report(make_flow(total=(100, 200, 1, 2), last=5), 0)
    assert table.report(make_flow(total=(90, 190, 1, 1), last=4, rtt=7), 60) == "late"
    assert sums(table) == [100, 200, 1, 2]
    assert rtt_ns(table) is None
    assert table.page(TIMEOUT_S - 1)[BYTES]
    assert not table.page(TIMEOUT_S)[BYTES]


@pytest.mark.parametrize("counter", range(len(COUNTERS)))
def test_older_news_with_one_higher_counter_counts_that_one(make, counter):
    table = make()
    old = [100, 200, 10, 20]
    new = [50, 60, 7, 8]
    new[counter] = old[counter] + 3
    best = [max(pair) for pair in zip(old, new, strict=True)]
    table.report(make_flow(total=old, last=5), 0)
    assert table.report(make_flow(total=new, last=4, rtt=7), 60) is None
    assert sums(table) == best
    assert rtt_ns(table) == 7
    assert table.page(60 + TIMEOUT_S - 1)[BYTES]
    # What the row knows has not gone back: neither its counters nor its time.
    assert table.report(make_flow(total=best, last=5), 60) == "late"
    assert table.report(make_flow(total=[n + 1 for n in best], last=6), 60) is None
    assert sums(table) == [n + 1 for n in best]


def test_newer_news_with_nothing_changed_keeps_the_row(make):
    table = make()
    table.report(make_flow(last=5), 0)
    assert table.report(make_flow(last=6), 60) is None
    assert sums(table) == [100, 200, 1, 2]
    assert table.page(60 + TIMEOUT_S - 1)[BYTES]


@pytest.mark.parametrize("counter", range(len(COUNTERS)))
def test_a_lower_counter_in_newer_news_means_that_the_flow_started_over(make, counter):
    table = make()
    old = [100, 200, 10, 20]
    new = [101, 201, 11, 21]
    new[counter] = old[counter] - 1
    table.report(make_flow(total=old, last=5), 0)
    assert table.report(make_flow(total=new, last=6), 0) is None
    expected = [sum(pair) for pair in zip(old, new, strict=True)]
    assert sums(table) == expected
    # The next difference is taken from the new totals.
    table.report(make_flow(total=[n + 1 for n in new], last=7), 0)
    assert sums(table) == [n + 1 for n in expected]


def test_a_known_flow_stays_with_its_connection(make):
    table = make()
    table.report(make_flow(total=(100, 200, 1, 2), last=1), 0)
    table.report(make_flow(total=(110, 210, 2, 3), last=2, node="node-2"), 0)
    table.report(make_flow(total=(120, 210, 2, 3), last=3, node="x" * 2000, ports=(-1, 1)), 0)
    assert sums(table) == [120, 210, 2, 3]


# Unknown flows

KNOWN = make_flow("1", (1, 1, 1, 1))
"""A first flow of the connection, so that rule (b) is not for the next one."""

LATER = {"newest": (5, 6, 7, 8), "newest_start": 60_000, "newest_last": 70_000, "last": 70_000}
"""Fields that make a flow no first report."""


def test_rule_a_a_first_report_counts_whole(make):
    table = make()
    table.report(KNOWN, 0)
    table.report(make_flow(newest=(0, 0, 0, 0), newest_start=1_000, start=1_000), 0)
    assert sums(table) == [101, 201, 2, 3]


@pytest.mark.parametrize("start", [{}, {"Start": 0}, {"Start": 1}])
def test_rule_a_no_last_update_metric_counts_whole(make, start):
    table = make()
    table.report(KNOWN, 0)
    flow = make_flow() | start
    del flow["LastUpdateMetric"]
    table.report(flow, 0)
    assert sums(table) == [101, 201, 2, 3]


def test_rule_b_what_creates_the_connection_counts_whole(make):
    table = make()
    table.report(make_flow(**LATER), 0)
    assert sums(table) == [100, 200, 1, 2]


@pytest.mark.parametrize("missing", [label for label in LABELS if label != DIRECTION])
def test_rule_b_needs_both_addresses_and_both_ports_as_labels(make, missing):
    table = make(labels=[label for label in LABELS if label != missing])
    table.report(make_flow(**LATER), 0)
    is_endpoint = missing.name.endswith(("_ip", "_port"))
    assert sums(table) == ([5, 6, 7, 8] if is_endpoint else [100, 200, 1, 2])


def test_rule_c_counts_the_newest_amount(make):
    table = make()
    table.report(KNOWN, 0)
    table.report(make_flow(**LATER), 0)
    assert sums(table) == [6, 7, 8, 9]
    # The totals are known from now on.
    table.report(make_flow(total=(101, 200, 1, 2), last=80_000), 0)
    assert sums(table) == [7, 7, 8, 9]


@pytest.mark.parametrize("finish", [1, 2, 3])
def test_rule_c_a_closing_report_that_repeats_counts_nothing(make, finish):
    table = make()
    table.report(KNOWN, 0)
    table.report(make_flow(**LATER | {"newest_last": 69_999}, finish=finish), 0)
    assert sums(table) == [1, 1, 1, 1]
    assert table.flows == 2


@pytest.mark.parametrize(("finish", "newest_last"), [(1, 70_000), (0, 69_999)])
def test_rule_c_counts_a_closing_report_that_is_new_and_any_other(make, finish, newest_last):
    table = make()
    table.report(KNOWN, 0)
    table.report(make_flow(**LATER | {"newest_last": newest_last}, finish=finish), 0)
    assert sums(table) == [6, 7, 8, 9]


def test_any_text_is_a_key_of_its_own(make):
    hexadecimal = ["0", "a", "ffffffffffffffff", "1000000000000000"]
    other = ["00", "0a", "A", "0x1", "+1", "-1", "1.0", "10000000000000000", "fffffffffffffffff"]
    other += [" ", "a ", "a\n", "\0", "é", "e\u0301", "\U0001f600", "x" * 16, "x" * 17, "x" * 1024]
    uuids = hexadecimal + other
    table = make()
    for uuid in uuids:
        assert table.report(make_flow(uuid, (1, 0, 0, 0), last=1), 0) is None
    assert table.flows == len(uuids)
    for n, uuid in enumerate(uuids):
        assert table.report(make_flow(uuid, (1 + 2**n, 0, 0, 0), last=2), 0) is None
        assert table.report(make_flow(uuid, (1 + 2**n, 0, 0, 0), last=2), 0) == "late"
    assert table.flows == len(uuids)
    assert sums(table)[0] == len(uuids) + 2 ** len(uuids) - 1


def test_finish_is_counted_and_shortens_nothing(make):
    table = make()
    table.report(make_flow(last=1), 0)
    table.report(make_flow(total=(101, 200, 1, 2), last=2, finish=1), 60)
    table.report(make_flow(total=(101, 200, 1, 2), last=2, finish=1), 61)
    for n, finish in enumerate((2, 3, 3, 7)):
        table.report(make_flow(str(n), finish=finish), 61)
    table.report(make_flow("", finish=2), 0)
    table.report(make_flow("wild", (-1, 0, 0, 0), finish=2), 0)
    assert table.finished == {"timeout": 2, "fin": 1, "rst": 2, "other": 1}
    assert len(table.page(60 + TIMEOUT_S - 1)[BYTES]) == 2


# RTT


def test_the_latest_rtt_that_is_not_zero_wins(make):
    table = make()
    table.report(make_flow("a1", last=1), 0)
    assert rtt_ns(table) is None
    table.report(make_flow("a1", last=2, rtt=500), 0)
    assert rtt_ns(table) == 500
    table.report(make_flow("b2", last=1, rtt=300), 0)
    table.report(make_flow("a1", last=3), 0)
    assert rtt_ns(table) == 300


# Time


def test_a_flow_leaves_when_its_time_is_over_and_the_connection_with_the_last_one(make):
    table = make()
    table.report(make_flow("a1"), 0)
    table.report(make_flow("b2"), 10)
    table.expire(TIMEOUT_S - 0.0625)
    assert table.flows == 2
    table.expire(TIMEOUT_S)
    assert (table.flows, table.connections) == (1, 1)
    assert sums(table, TIMEOUT_S) == [200, 400, 2, 4]
    assert table.page(TIMEOUT_S + 9.9375)[BYTES]
    assert not table.page(TIMEOUT_S + 10)[BYTES]
    table.expire(TIMEOUT_S + 10)
    assert table.flows == table.connections == 0
    assert (table.created_total, table.expired_total) == (1, 1)


def test_a_connection_that_comes_back_starts_from_what_is_new(make):
    table = make()
    table.report(make_flow(total=(100, 200, 1, 2), rtt=5), 0)
    table.expire(TIMEOUT_S)
    table.report(make_flow(total=(110, 210, 2, 3), last=3_000), TIMEOUT_S)
    assert sums(table, TIMEOUT_S) == [110, 210, 2, 3]
    assert rtt_ns(table, TIMEOUT_S) is None
    assert table.created_total == 2


def test_a_report_before_the_row_was_swept_goes_on_with_it(make):
    table = make()
    table.report(make_flow(total=(100, 200, 1, 2)), 0)
    assert not table.page(TIMEOUT_S + 1)[BYTES]
    table.report(make_flow(total=(110, 210, 2, 3), last=3_000), TIMEOUT_S + 1)
    table.expire(TIMEOUT_S + 1)
    assert sums(table, TIMEOUT_S + 1) == [110, 210, 2, 3]
    assert table.created_total == 1


# Limits


def test_at_the_limit_of_connections_the_known_ones_go_on(make):
    table = make(max_connections=1)
    table.report(make_flow("a1"), 0)
    assert table.report(make_flow("b2", a="10.0.0.3"), 0) == "table_full"
    assert table.report(make_flow("b2", a="10.0.0.3"), 0) == "table_full"
    assert table.report(make_flow("c3"), 0) is None
    assert table.rejected_total == 2
    assert (table.flows, table.connections) == (2, 1)
    assert sums(table) == [200, 400, 2, 4]


def test_at_both_limits_what_would_be_a_new_connection_is_counted(make):
    table = make(max_connections=1, max_flows=1)
    table.report(make_flow("a1"), 0)
    assert table.report(make_flow("b2", a="10.0.0.3"), 0) == "table_full"
    assert table.report(make_flow("c3"), 0) == "table_full"
    assert table.rejected_total == 1


def test_at_the_limit_of_flows_the_known_ones_go_on(make):
    table = make(max_flows=1)
    table.report(make_flow("a1", last=1), 0)
    assert table.report(make_flow("b2"), 0) == "table_full"
    assert table.report(make_flow("c3", a="10.0.0.3"), 0) == "table_full"
    assert table.report(make_flow("a1", (101, 200, 1, 2), last=2), 0) is None
    assert table.rejected_total == 0
    assert (table.flows, table.connections) == (1, 1)
    assert sums(table) == [101, 200, 1, 2]
    table.expire(TIMEOUT_S)
    assert table.report(make_flow("b2"), TIMEOUT_S) is None


def test_for_what_finds_no_room_the_newest_amount_is_not_looked_at(make):
    table = make(max_flows=1)
    table.report(make_flow("a1"), 0)
    assert table.report(make_flow("b2", **LATER | {"newest": (-1, 0, 0, 0)}), 0) == "table_full"
    assert table.report(make_flow("b2", start=-1), 0) == "table_full"


def test_sums_saturate(make):
    table = make()
    table.report(make_flow("a1", (MAX_NUMBER, MAX_NUMBER, 1, 1)), 0)
    table.report(make_flow("b2", (MAX_NUMBER - 1, MAX_NUMBER, 1, 1)), 0)
    assert sums(table) == [MAX_SUM, MAX_SUM, 2, 2]
    table.report(make_flow("c3", (1, 1, 1, 1)), 0)
    table.report(make_flow("c3", (2**62, 2**62, 2, 2), last=3_000), 0)
    assert sums(table) == [MAX_SUM, MAX_SUM, 4, 4]


def test_values_are_exact(make):
    numbers = (2**62, 2**62 - 1, 2**53 + 1, 9_999_999_999_999_999)
    table = make()
    table.report(make_flow(total=numbers, rtt=2**61 + 1), 0)
    assert sums(table) == list(numbers)
    assert rtt_ns(table) == 2**61 + 1


@pytest.mark.parametrize(
    "number", [0, *(10**n - 1 for n in range(1, 19)), *(10**n for n in range(19))]
)
def test_values_of_every_length(make, number):
    table = make()
    numbers = (number, number + 1, max(0, number - 1), number)
    if max(numbers) > MAX_NUMBER:
        numbers = (number, number, number, number)
    table.report(make_flow(total=numbers), 0)
    assert sums(table) == list(numbers)


# Flows that are not taken


def without(*names):
    flow = make_flow()
    for name in names:
        del flow[name]
    return flow


def with_number(group, name, number):
    flow = make_flow("b2")
    (flow[group] if group else flow)[name] = number
    return flow


WILD_NUMBERS = (-1, MAX_NUMBER + 1, 2**63, 2**64, 10**22, -(2**63), -(10**22))
NUMBERS = [*(("Metric", name) for name in (*COUNTERS, "RTT")), ("", "Last"), ("", "FinishType")]


@pytest.mark.parametrize(
    ("flow", "reason"),
    [
        (without("UUID", "Network"), "no_uuid"),
        (make_flow(""), "no_uuid"),
        (without("Network", "Transport"), "no_network"),
        (without("Transport", "Metric"), "no_transport"),
        (without("Metric"), "no_metric"),
        (make_flow() | {"Metric": None}, "no_metric"),
        (make_flow("x" * 1025), "text_too_long"),
        (make_flow(node="é" * 512 + "e"), "text_too_long"),
        (make_flow(protocol="x" * 10_000_000), "text_too_long"),
        *[
            (with_number(group, name, number), "out_of_range")
            for group, name in NUMBERS
            for number in WILD_NUMBERS
        ],
        *[
            (with_number("Transport", name, number), "out_of_range")
            for name in "AB"
            for number in WILD_NUMBERS
        ],
    ],
)
def test_what_cannot_be_taken_leaves_no_trace(make, flow, reason):
    table = make()
    assert table.report(flow, 0) == reason
    assert table.connections == table.flows == table.created_total == 0
    assert table.page(0) == make().page(0)


@pytest.mark.parametrize(
    "flow",
    [
        make_flow("x" * 1024),
        make_flow(node="é" * 512),
        make_flow(node="", protocol="", a="", b=""),
        *[
            with_number(group, name, number)
            for group, name in NUMBERS
            for number in (0, MAX_NUMBER)
        ],
        *[with_number("Transport", name, number) for name in "AB" for number in (0, MAX_NUMBER)],
    ],
)
def test_what_is_just_within_the_limits_is_taken(make, flow):
    table = make()
    assert table.report(flow, 0) is None
    assert table.report(flow, 0) == "late"
    assert (table.connections, table.flows) == (1, 1)


@pytest.mark.parametrize("number", WILD_NUMBERS)
@pytest.mark.parametrize(("group", "name"), NUMBERS)
def test_a_wild_number_in_an_update_changes_nothing(make, group, name, number):
    table = make()
    table.report(make_flow("b2", (1, 1, 1, 1), last=1), 0)
    assert table.report(with_number(group, name, number), 60) == "out_of_range"
    assert sums(table) == [1, 1, 1, 1]
    assert not table.page(TIMEOUT_S)[BYTES]


def test_the_start_is_looked_at_only_where_it_says_whether_a_report_is_the_first(make):
    table = make()
    assert table.report(make_flow("a1", start=-1), 0) is None
    assert table.report(make_flow("b2", start=-1), 0) == "out_of_range"
    assert table.report(make_flow("c3", start=10**22), 0) == "out_of_range"
    assert table.report(make_flow("a1", start=-1, last=3_000), 0) is None
    # And so it is whatever else is in the message.
    table.message([make_flow("d4", **LATER), make_flow("a1", start=-1, last=4_000)], 0)
    assert table.skipped["out_of_range"] == 2


@pytest.mark.parametrize("number", WILD_NUMBERS)
@pytest.mark.parametrize("name", [*COUNTERS, "Start", "Last"])
def test_the_newest_amount_is_looked_at_only_where_it_counts(make, name, number):
    def flow(uuid, **fields):
        flow = make_flow(uuid, **LATER | fields)
        flow["LastUpdateMetric"][name] = number
        return flow

    table = make()
    assert table.report(flow("a1"), 0) is None
    assert table.report(flow("b2"), 0) == "out_of_range"
    assert table.report(flow("b2", finish=1), 0) == "out_of_range"
    assert table.report(flow("a1", last=80_000), 0) is None
    if name != "Start":
        assert table.report(flow("c3", newest_start=1_000), 0) is None
    # And so it is whatever else is in the message.
    table.message([make_flow("d4", **LATER), flow("a1", last=90_000)], 0)
    assert table.skipped["out_of_range"] == 2


# The page


def test_a_page(make):
    table = make()
    table.report(make_flow(total=(10, 20, 1, 2), rtt=2**62, a="fd77::1", b="fd77::2"), 0)
    labels = (
        'initiator_ip="fd77::1",target_ip="fd77::2",initiator_port="40000",target_port="443",'
        'direction="{}",node_tid="node-1",protocol="TCP"'
    )
    there, back = labels.format("initiator_to_target"), labels.format("target_to_initiator")
    assert table.page(0) == {
        BYTES: {f"{BYTES}{{{there}}} 10", f"{BYTES}{{{back}}} 20"},
        PACKETS: {f"{PACKETS}{{{there}}} 1", f"{PACKETS}{{{back}}} 2"},
        RTT: {f"{RTT}{{{there}}} 4611686018427387904"},
    }


def test_a_page_without_connections_has_its_families(make):
    assert make().page(0) == {BYTES: set(), PACKETS: set(), RTT: set()}


def test_other_labels_and_missing_values(make):
    number = Label("vlan", ("Link", "ID"), number=True)
    table = make(labels=(Label("app", ("Application",)), number, DIRECTION))
    table.report(make_flow(), 0)
    table.report(make_flow("b2") | {"Link": {"ID": 7}, "Application": 'a"b\\c\nd'}, 0)
    assert table.page(0)[PACKETS] == {
        f'{PACKETS}{{app="",vlan="0",direction="initiator_to_target"}} 1',
        f'{PACKETS}{{app="",vlan="0",direction="target_to_initiator"}} 2',
        f'{PACKETS}{{app="a\\"b\\\\c\\nd",vlan="7",direction="initiator_to_target"}} 1',
        f'{PACKETS}{{app="a\\"b\\\\c\\nd",vlan="7",direction="target_to_initiator"}} 2',
    }


def test_the_direction_alone(make):
    table = make(labels=(DIRECTION,))
    for n in range(5):
        table.report(make_flow(f"{n + 1:x}", a=f"10.0.0.{n}"), 0)
    assert table.page(0)[PACKETS] == {
        f'{PACKETS}{{direction="initiator_to_target"}} 5',
        f'{PACKETS}{{direction="target_to_initiator"}} 10',
    }


@pytest.mark.parametrize("position", range(len(LABELS)))
def test_the_direction_anywhere(make, position):
    labels = [label for label in LABELS if label != DIRECTION]
    labels.insert(position, DIRECTION)
    table = make(labels=labels)
    table.report(make_flow(), 0)
    values = {"initiator_ip": "10.0.0.1", "target_ip": "10.0.0.2", "initiator_port": "40000",
              "target_port": "443", "node_tid": "node-1", "protocol": "TCP"}  # fmt: skip
    expected = set()
    for direction, value in (("initiator_to_target", 100), ("target_to_initiator", 200)):
        texts = values | {"direction": direction}
        pairs = ",".join(f'{label.name}="{texts[label.name]}"' for label in labels)
        expected.add(f"{BYTES}{{{pairs}}} {value}")
    assert table.page(0)[BYTES] == expected


def test_other_families(make):
    rtt, packets = FAMILIES[2], FAMILIES[1]
    table = make(families=(rtt, packets))
    table.report(make_flow(rtt=8), 0)
    page = table.page(0)
    assert list(page) == [RTT, PACKETS]
    assert [len(lines) for lines in page.values()] == [1, 2]
