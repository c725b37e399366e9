"""Worked examples of all rules of the table, checked against the model and the core.

``docs/architecture.md`` explains terms such as *late*, *dormant*, *horizon* and *overflow*.
"""

import re
from dataclasses import replace
from functools import partial

import pytest

from tests.model import (
    BYTES,
    COUNTERS,
    DIRECTION,
    FAMILIES,
    KNOWN_LABELS,
    LABELS,
    MAX_NUMBER,
    MAX_SUM,
    PACKETS,
    PROTOCOL_OR_ICMP,
    PROTOCOL_OR_OTHER,
    RTT,
    TIMEOUT_S,
    Family,
    Label,
    Mask,
    Model,
    Names,
    PortGrouping,
    Spec,
    View,
    looked_up,
    make_flow,
    tag_label,
)
from tests.support.model_specs import labelled, standard
from tests.support.table_adapter import Core


@pytest.fixture(
    params=[Model, Core, partial(Core, slots=False)], ids=["model", "core", "core-attributes"]
)
def make(request):
    return request.param


def sums(table, now=0.0):
    """Return the counters of the only connection on the page, in the order of COUNTERS."""
    page = table.page(now)
    result = []
    for family in (BYTES, PACKETS):
        lines = sorted(page[family])
        assert len(lines) == 2
        assert "initiator_to_target" in lines[0]
        assert "target_to_initiator" in lines[1]
        result += [int(line.rpartition(" ")[2]) for line in lines]
    return result


def rtt_ns(table, now=0.0):
    """Return the RTT of the only connection on the page, or None if there is no RTT series."""
    lines = [int(line.rpartition(" ")[2]) for line in table.page(now)[RTT]]
    assert len(lines) <= 1
    return lines[0] if lines else None


# Known flows


def test_known_flow_adds_its_deltas(make):
    table = make()
    assert table.report(make_flow(total=(100, 200, 1, 2), last=1), 0) is None
    assert table.report(make_flow(total=(150, 200, 3, 2), last=2), 0) is None
    assert sums(table) == [150, 200, 3, 2]
    assert table.flows == table.connections == 1


def test_counters_of_a_connection_are_the_sums_of_its_flows(make):
    table = make()
    table.report(make_flow("a1", (100, 200, 1, 2), last=1), 0)
    table.report(make_flow("b2", (10, 20, 3, 4), last=1), 0)
    table.report(make_flow("a1", (101, 200, 1, 2), last=2), 0)
    assert sums(table) == [111, 220, 4, 6]
    assert (table.flows, table.connections) == (2, 1)


def test_flows_of_two_capture_points_are_separate_connections(make):
    table = make()
    table.report(make_flow("a1", node="node-1"), 0)
    table.report(make_flow("b2", node="node-2"), 0)
    assert (table.flows, table.connections) == (2, 2)
    assert len(table.page(0)[BYTES]) == 4


def test_repeated_report_is_late(make):
    table = make()
    table.report(make_flow(last=5), 0)
    assert table.report(make_flow(last=5), 0) == "late"
    assert sums(table) == [100, 200, 1, 2]


def test_older_report_without_higher_counter_is_late(make):
    table = make()
    table.report(make_flow(total=(100, 200, 1, 2), last=5), 0)
    assert table.report(make_flow(total=(90, 190, 1, 1), last=4, rtt=7), 60) == "late"
    assert sums(table) == [100, 200, 1, 2]
    assert rtt_ns(table) is None
    assert table.page(TIMEOUT_S - 1)[BYTES]
    assert not table.page(TIMEOUT_S)[BYTES]


@pytest.mark.parametrize("counter", range(len(COUNTERS)))
def test_older_report_adds_only_its_higher_counter(make, counter):
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
    # The stored totals and the stored ``Last`` have not decreased.
    assert table.report(make_flow(total=best, last=5), 60) == "late"
    assert table.report(make_flow(total=[n + 1 for n in best], last=6), 60) is None
    assert sums(table) == [n + 1 for n in best]


def test_newer_report_without_changes_extends_the_deadline(make):
    table = make()
    table.report(make_flow(last=5), 0)
    assert table.report(make_flow(last=6), 60) is None
    assert sums(table) == [100, 200, 1, 2]
    assert table.page(60 + TIMEOUT_S - 1)[BYTES]


@pytest.mark.parametrize("counter", range(len(COUNTERS)))
def test_lower_counter_in_newer_report_restarts_the_flow(make, counter):
    table = make()
    old = [100, 200, 10, 20]
    new = [101, 201, 11, 21]
    new[counter] = old[counter] - 1
    table.report(make_flow(total=old, last=5), 0)
    assert table.report(make_flow(total=new, last=6), 0) is None
    expected = [sum(pair) for pair in zip(old, new, strict=True)]
    assert sums(table) == expected
    table.report(make_flow(total=[n + 1 for n in new], last=7), 0)
    assert sums(table) == [n + 1 for n in expected]


def test_known_flow_stays_in_its_connection_if_label_values_change(make):
    table = make()
    table.report(make_flow(total=(100, 200, 1, 2), last=1), 0)
    table.report(make_flow(total=(110, 210, 2, 3), last=2, node="node-2"), 0)
    table.report(make_flow(total=(120, 210, 2, 3), last=3, node="x" * 2000, ports=(-1, 1)), 0)
    assert sums(table) == [120, 210, 2, 3]


# Unknown flows

KNOWN = make_flow("1", (1, 1, 1, 1))
"""Tests report this flow first. Its connection then already exists when other flows arrive."""

LATER = {"last_update": (5, 6, 7, 8), "update_start": 60_000, "update_last": 70_000, "last": 70_000}
"""Fields of a report that is not the first report of its flow."""


def test_first_report_adds_its_total(make):
    table = make()
    table.report(KNOWN, 0)
    table.report(make_flow(last_update=(0, 0, 0, 0), update_start=1_000, start=1_000), 0)
    assert sums(table) == [101, 201, 2, 3]


@pytest.mark.parametrize("start", [{}, {"Start": 0}, {"Start": 1}])
def test_report_without_last_update_metric_adds_its_total(make, start):
    table = make()
    table.report(KNOWN, 0)
    flow = make_flow() | start
    del flow["LastUpdateMetric"]
    table.report(flow, 0)
    assert sums(table) == [101, 201, 2, 3]


def test_report_that_creates_the_connection_adds_its_total(make):
    table = make()
    table.report(make_flow(**LATER), 0)
    assert sums(table) == [100, 200, 1, 2]


@pytest.mark.parametrize("missing", [label for label in LABELS if label != DIRECTION])
def test_labels_without_addresses_and_ports_do_not_identify_a_connection(make, missing):
    table = make(labels=[label for label in LABELS if label != missing])
    table.report(make_flow(**LATER), 0)
    is_endpoint = missing.name.endswith(("_ip", "_port"))
    assert sums(table) == ([5, 6, 7, 8] if is_endpoint else [100, 200, 1, 2])


def test_unknown_flow_of_existing_connection_adds_its_last_update(make):
    table = make()
    table.report(KNOWN, 0)
    table.report(make_flow(**LATER), 0)
    assert sums(table) == [6, 7, 8, 9]
    # The next report adds only the increase.
    table.report(make_flow(total=(101, 200, 1, 2), last=80_000), 0)
    assert sums(table) == [7, 7, 8, 9]


def test_closing_report_that_repeats_the_last_update_is_skipped(make):
    table = make()
    table.report(KNOWN, 0)
    repeat = make_flow(**LATER | {"update_last": 69_999}, finish=1)
    assert table.report(repeat, 0) == "ended"
    assert sums(table) == [1, 1, 1, 1]
    assert (table.flows, table.dormant_flows) == (1, 0)
    assert table.finished["timeout"] == 1


def test_closing_report_that_repeats_the_only_update_is_not_a_first_report(make):
    # If a protocol has its own timeout, the closing report of a flow repeats the last update.
    table = make()
    repeat = make_flow(start=1_000, update_start=1_000, last=5_000, update_last=10_000, finish=1)
    assert table.report(repeat, 0) == "ended"
    assert (table.connections, table.flows) == (0, 0)


@pytest.mark.parametrize(
    ("finish", "update_last"), [(1, 70_000), (0, 69_999), (2, 69_999), (3, 69_999), (4, 69_999)]
)
def test_report_that_does_not_repeat_an_update_adds_its_last_update(make, finish, update_last):
    table = make()
    table.report(KNOWN, 0)
    table.report(make_flow(**LATER | {"update_last": update_last}, finish=finish), 0)
    assert sums(table) == [6, 7, 8, 9]


def test_different_uuids_identify_different_flows(make):
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


def test_finish_type_is_counted_and_does_not_change_the_timeout(make):
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


def test_rtt_is_the_latest_nonzero_value(make):
    table = make()
    table.report(make_flow("a1", last=1), 0)
    assert rtt_ns(table) is None
    table.report(make_flow("a1", last=2, rtt=500), 0)
    assert rtt_ns(table) == 500
    table.report(make_flow("b2", last=1, rtt=300), 0)
    table.report(make_flow("a1", last=3), 0)
    assert rtt_ns(table) == 300


# Time


def test_connection_expires_with_its_last_flow(make):
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


def test_returning_connection_continues_its_counters_but_not_its_gauges(make):
    table = make()
    table.report(make_flow(total=(100, 200, 1, 2), rtt=5), 0)
    table.expire(TIMEOUT_S)
    table.report(make_flow(total=(110, 210, 2, 3), last=3_000), TIMEOUT_S)
    assert sums(table, TIMEOUT_S) == [110, 210, 2, 3]
    assert rtt_ns(table, TIMEOUT_S) is None
    assert table.created_total == 2


def test_report_after_the_timeout_but_before_removal_continues_the_row(make):
    table = make()
    table.report(make_flow(total=(100, 200, 1, 2)), 0)
    assert not table.page(TIMEOUT_S + 1)[BYTES]
    table.report(make_flow(total=(110, 210, 2, 3), last=3_000), TIMEOUT_S + 1)
    table.expire(TIMEOUT_S + 1)
    assert sums(table, TIMEOUT_S + 1) == [110, 210, 2, 3]
    assert table.created_total == 1


# Limits


def test_known_connections_are_updated_at_max_connections(make):
    table = make(max_connections=1)
    table.report(make_flow("a1"), 0)
    assert table.report(make_flow("b2", a="10.0.0.3"), 0) == "table_full"
    assert table.report(make_flow("b2", a="10.0.0.3"), 0) == "table_full"
    assert table.report(make_flow("c3"), 0) is None
    assert table.rejected_total == 2
    assert (table.flows, table.connections) == (2, 1)
    assert sums(table) == [200, 400, 2, 4]


def test_table_at_both_limits_counts_only_new_connections_as_rejected(make):
    table = make(max_connections=1, max_flows=1)
    table.report(make_flow("a1"), 0)
    assert table.report(make_flow("b2", a="10.0.0.3"), 0) == "table_full"
    assert table.report(make_flow("c3"), 0) == "table_full"
    assert table.rejected_total == 1


def test_known_flows_are_updated_at_max_flows(make):
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


def test_last_update_of_a_rejected_flow_is_not_validated(make):
    table = make(max_flows=1)
    table.report(make_flow("a1"), 0)
    assert (
        table.report(make_flow("b2", **LATER | {"last_update": (-1, 0, 0, 0)}), 0) == "table_full"
    )
    assert table.report(make_flow("b2", start=-1), 0) == "table_full"


def test_counters_saturate(make):
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
def test_values_can_have_any_number_of_digits(make, number):
    table = make()
    numbers = (number, number + 1, max(0, number - 1), number)
    if max(numbers) > MAX_NUMBER:
        numbers = (number, number, number, number)
    table.report(make_flow(total=numbers), 0)
    assert sums(table) == list(numbers)


# Skipped flows


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
NUMBERS = [*(("Metric", name) for name in COUNTERS), ("", "Last")]
LEFT_OUT = [("Metric", "RTT"), ("", "FinishType")]


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
def test_skipped_flow_changes_nothing(make, flow, reason):
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
            for group, name in (*NUMBERS, *LEFT_OUT)
            for number in (0, MAX_NUMBER)
        ],
        *[with_number("Transport", name, number) for name in "AB" for number in (0, MAX_NUMBER)],
    ],
)
def test_values_at_the_limits_are_accepted(make, flow):
    table = make()
    assert table.report(flow, 0) is None
    assert table.report(flow, 0) == "late"
    assert (table.connections, table.flows) == (1, 1)


@pytest.mark.parametrize("number", WILD_NUMBERS)
@pytest.mark.parametrize(("group", "name"), NUMBERS)
def test_out_of_range_number_in_a_later_report_changes_nothing(make, group, name, number):
    table = make()
    table.report(make_flow("b2", (1, 1, 1, 1), last=1), 0)
    assert table.report(with_number(group, name, number), 60) == "out_of_range"
    assert sums(table) == [1, 1, 1, 1]
    assert not table.page(TIMEOUT_S)[BYTES]


def test_start_is_ignored_unless_it_can_identify_a_first_report(make):
    table = make()
    assert table.report(make_flow("a1", start=-1), 0) is None
    assert table.values_skipped["Start"] == 0
    # Without a valid start, earlier reports of the flow may have been counted.
    assert table.report(make_flow("b2", start=-1), 0) is None
    assert table.report(make_flow("c3", start=10**22), 0) is None
    assert sums(table) == [100, 200, 1, 2]
    assert table.report(make_flow("a1", start=-1, last=3_000), 0) is None
    # Flow a1 is known, so its start is not read.
    table.message([make_flow("d4", **LATER), make_flow("a1", start=-1, last=4_000)], 0)
    assert table.values_skipped["Start"] == 2
    table.report(make_flow("b2", (101, 202, 4, 6), start=-1, last=3_000), 0)
    assert sums(table) == [106, 208, 11, 14]


@pytest.mark.parametrize("number", WILD_NUMBERS)
def test_report_with_invalid_finish_type_is_not_a_first_report(make, number):
    table = make()
    table.report(make_flow("a1"), 0)
    # Each report may be a closing report that repeats an update, so the table adds nothing.
    for uuid, changes in (("b2", {}), ("c3", LATER), ("d4", {"update_last": 9_000})):
        assert table.report(make_flow(uuid, **changes, finish=number), 0) is None
    unmarked = make_flow("e5", finish=number)
    del unmarked["LastUpdateMetric"]
    assert table.report(unmarked, 0) is None
    assert sums(table) == [100, 200, 1, 2]
    assert table.values_skipped["FinishType"] == 4
    table.report(make_flow("e5", (101, 202, 4, 6), last=3_000, finish=number), 0)
    assert sums(table) == [101, 202, 4, 6]


@pytest.mark.parametrize("number", WILD_NUMBERS)
@pytest.mark.parametrize("name", [*COUNTERS, "Start", "Last"])
def test_last_update_is_ignored_unless_the_table_adds_it(make, name, number):
    def flow(uuid, **fields):
        flow = make_flow(uuid, **LATER | fields)
        flow["LastUpdateMetric"][name] = number
        return flow

    field = f"LastUpdateMetric.{name}"
    table = make()
    assert table.report(flow("a1"), 0) is None
    assert table.values_skipped[field] == 0
    assert table.report(flow("b2"), 0) is None
    assert table.values_skipped[field] == 1
    added = [5, 6, 7, 8]
    if name == "Start":
        added = [0, 0, 0, 0]
    elif name in COUNTERS:
        added[COUNTERS.index(name)] = 0
    assert sums(table) == [a + b for a, b in zip((100, 200, 1, 2), added, strict=True)]
    assert table.report(flow("a1", last=80_000), 0) is None
    if name in COUNTERS:
        assert table.report(flow("c3", update_start=1_000), 0) is None
    # Flow a1 is known, so its last update is not read.
    table.message([make_flow("d4", **LATER), flow("a1", last=90_000)], 0)
    assert table.values_skipped[field] == 1
    assert not table.skipped["out_of_range"]


# The page


def test_page_has_all_families(make):
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


def test_page_without_connections_has_help_and_type_lines(make):
    assert make().page(0) == {BYTES: set(), PACKETS: set(), RTT: set()}


def test_any_field_can_be_a_label_even_if_reports_omit_it(make):
    number = Label("vlan", ("Link", "ID"), number=True)
    table = make(labels=(Label("app", ("Application",)), number, DIRECTION))
    table.report(make_flow(), 0)
    table.report(make_flow("b2") | {"Link": {"ID": 7}, "Application": 'a"b\\c\nd'}, 0)
    table.report(make_flow("c3") | {"Link": {"A": "02:00:00:00:00:01"}}, 0)
    assert table.page(0)[PACKETS] == {
        f'{PACKETS}{{app="",vlan="",direction="initiator_to_target"}} 1',
        f'{PACKETS}{{app="",vlan="",direction="target_to_initiator"}} 2',
        f'{PACKETS}{{app="",vlan="0",direction="initiator_to_target"}} 1',
        f'{PACKETS}{{app="",vlan="0",direction="target_to_initiator"}} 2',
        f'{PACKETS}{{app="a\\"b\\\\c\\nd",vlan="7",direction="initiator_to_target"}} 1',
        f'{PACKETS}{{app="a\\"b\\\\c\\nd",vlan="7",direction="target_to_initiator"}} 2',
    }


def test_direction_can_be_the_only_label_of_a_view(make):
    table = make(labels=(DIRECTION,))
    for n in range(5):
        table.report(make_flow(f"{n + 1:x}", a=f"10.0.0.{n}"), 0)
    assert table.page(0)[PACKETS] == {
        f'{PACKETS}{{direction="initiator_to_target"}} 5',
        f'{PACKETS}{{direction="target_to_initiator"}} 10',
    }


@pytest.mark.parametrize("position", range(len(LABELS)))
def test_label_direction_can_be_at_any_position(make, position):
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


def test_families_can_be_customized(make):
    rtt, packets = FAMILIES[2], FAMILIES[1]
    table = make(families=(rtt, packets))
    table.report(make_flow(rtt=8), 0)
    page = table.page(0)
    assert list(page) == [RTT, PACKETS]
    assert [len(lines) for lines in page.values()] == [1, 2]


# Views

IP_A, IP_B, PORT_A, PORT_B, _, NODE, PROTOCOL = LABELS
APPLICATION = KNOWN_LABELS["application"]
VIEW_TIMEOUT_S = 1000.0


def view(prefix, labels, *metrics):
    """Return a view with families such as ``{prefix}_bytes_total``."""
    return View(labels, standard(prefix, *metrics), VIEW_TIMEOUT_S)


def samples(table, family, now=0.0):
    """Return the values of a family, by label values such as "node-1,>"."""
    result = {}
    for line in table.page(now)[family]:
        series, _, number = line.rpartition(" ")
        values = ",".join(re.findall(r'="([^"]*)"', series))
        values = values.replace("initiator_to_target", ">").replace("target_to_initiator", "<")
        result[values] = number
    return result


def tcp(flow, out_of_order=(0, 0)):
    names = ("ABSegmentOutOfOrder", "BASegmentOutOfOrder")
    return flow | {"TCPMetric": dict(zip(names, out_of_order, strict=True))}


def icmp(flow, version="IPV4"):
    flow = flow | {"ICMP": {"Type": "ECHO", "ID": 7}, "Network": flow["Network"] | {}}
    flow["Network"]["Protocol"] = version
    del flow["Transport"]
    return flow


def test_all_views_add_the_same_deltas(make):
    table = make(
        Spec(
            views=(
                view("a", (IP_A, DIRECTION), "bytes"),
                view("b", (NODE,), "packets"),
                view("c", (DIRECTION, PROTOCOL), "bytes"),
            )
        )
    )
    table.report(make_flow("a1", (100, 200, 1, 2), last=1), 0)
    table.report(make_flow("b2", (10, 20, 3, 4), last=1, a="10.0.0.3"), 0)
    table.report(make_flow("c3", (5, 5, 5, 5), last=1, a="10.0.0.3", protocol="UDP"), 0)
    table.report(make_flow("a1", (101, 205, 2, 2), last=2), 0)
    assert samples(table, "a_bytes_total") == {
        "10.0.0.1,>": "101",
        "10.0.0.1,<": "205",
        "10.0.0.3,>": "15",
        "10.0.0.3,<": "25",
    }
    assert samples(table, "b_packets_total") == {"node-1": "21"}
    assert samples(table, "c_bytes_total") == {
        ">,TCP": "111",
        "<,TCP": "225",
        ">,UDP": "5",
        "<,UDP": "5",
    }
    assert (table.connections, table.view_connections) == (2, (1, 2))


def test_each_view_adds_the_total_or_the_last_update_of_an_unknown_flow(make):
    table = make(
        Spec(
            views=(
                View(),
                view("node", (NODE,), "bytes"),
                view("all", LABELS[:4], "bytes"),
                view("sum", (*LABELS[:4], NODE), "bytes"),
            )
        )
    )
    # The labels of the view "node" do not identify a connection. Therefore this view adds only the
    # last update of an unknown flow, not its total.
    table.report(make_flow("a1", (100, 200, 1, 2), **LATER), 0)
    assert sums(table) == [100, 200, 1, 2]
    assert samples(table, "node_bytes_total") == {"node-1": "11"}
    assert samples(table, "all_bytes_total") == {"10.0.0.1,10.0.0.2,40000,443": "300"}
    # In the view "all", the row already exists, so this view adds the last update.
    table.report(make_flow("b2", (1000, 2000, 1, 2), node="node-2", **LATER), 0)
    assert samples(table, "node_bytes_total") == {"node-1": "11", "node-2": "11"}
    assert samples(table, "all_bytes_total") == {"10.0.0.1,10.0.0.2,40000,443": "311"}
    assert samples(table, "sum_bytes_total") == {
        "10.0.0.1,10.0.0.2,40000,443,node-1": "300",
        "10.0.0.1,10.0.0.2,40000,443,node-2": "3000",
    }
    table.report(make_flow("c3", (1, 2, 0, 0)), 0)
    assert samples(table, "node_bytes_total") == {"node-1": "14", "node-2": "11"}


@pytest.mark.parametrize("name", ["Start", "Last", *COUNTERS])
def test_last_update_is_read_if_any_view_needs_it(make, name):
    flow = make_flow(**LATER)
    flow["LastUpdateMetric"][name] = -1
    field = f"LastUpdateMetric.{name}"
    table = make(Spec(views=(View(),)))
    assert table.report(flow, 0) is None
    assert table.values_skipped[field] == 0
    table = make(Spec(views=(View(), view("node", (NODE,), "bytes"))))
    assert table.report(flow, 0) is None
    assert table.values_skipped[field] == 1
    assert samples(table, "node_bytes_total") == {
        "node-1": "0" if name in ("Start", "ABBytes", "BABytes") else "11"
    }


def test_rows_of_a_view_expire_after_the_timeout_of_the_view(make):
    table = make(Spec(views=(View(), view("node", (NODE,), "bytes", "flows", "rtt"))))
    table.report(make_flow("a1", (100, 200, 1, 2), last=1, rtt=1_500_000_000), 0)
    table.report(make_flow("a1", (110, 200, 1, 2), last=2), 50)
    table.expire(50 + TIMEOUT_S)
    assert (table.connections, table.flows, table.view_connections) == (0, 0, (1,))
    now = 50 + VIEW_TIMEOUT_S - 1
    assert samples(table, "node_bytes_total", now) == {"node-1": "310"}
    assert samples(table, "node_flows", now) == {"node-1": "0"}
    assert samples(table, "node_rtt_seconds", now) == {"node-1": "1.5"}
    assert samples(table, "node_bytes_total", now + 1) == {}
    table.expire(now)
    assert table.view_connections == (1,)
    table.expire(now + 1)
    assert table.view_connections == (0,)


def test_row_of_a_view_continues_its_counters_until_it_expires(make):
    table = make(Spec(views=(View(), view("node", (NODE,), "bytes", "flows"))))
    table.report(make_flow("a1", (100, 200, 1, 2), last=1), 0)
    table.expire(900)
    table.report(make_flow("b2", (10, 20, 1, 2), last=1), 900)
    assert samples(table, "node_bytes_total", 900) == {"node-1": "330"}
    assert samples(table, "node_flows", 900) == {"node-1": "1"}
    table.expire(900 + VIEW_TIMEOUT_S)
    table.report(make_flow("c3", (1, 2, 1, 2), last=1), 900 + VIEW_TIMEOUT_S)
    assert samples(table, "node_bytes_total", 900 + VIEW_TIMEOUT_S) == {"node-1": "3"}


def test_late_reports_do_not_extend_deadlines(make):
    table = make(Spec(views=(View(), view("node", (NODE,), "bytes"))))
    table.report(make_flow(last=5), 0)
    assert table.report(make_flow(last=5), 70) == "late"
    assert samples(table, "node_bytes_total", VIEW_TIMEOUT_S) == {}
    assert samples(table, "node_bytes_total", VIEW_TIMEOUT_S - 1) == {"node-1": "300"}


def test_timeout_is_rounded_up_to_a_full_second(make):
    table = make(Spec(views=(View(), view("node", (NODE,), "bytes"))))
    table.report(make_flow(), 0.25)
    assert samples(table, "node_bytes_total", VIEW_TIMEOUT_S + 0.75) == {"node-1": "300"}
    assert samples(table, "node_bytes_total", VIEW_TIMEOUT_S + 1) == {}
    assert table.page(TIMEOUT_S + 0.75)[BYTES]
    assert not table.page(TIMEOUT_S + 1)[BYTES]


def test_unused_fields_are_not_read(make):
    table = make(Spec(views=(view("node", (NODE,), "packets"),)))
    table.report(make_flow(total=(100, 200, 1, 2), last=1), 0)
    assert table.report(make_flow(total=(1, -1, 2, 2), last=2, rtt=-1), 0) is None
    assert table.report(make_flow(total=(9, 9, 2, 2), last=2), 0) == "late"
    assert samples(table, "node_packets_total") == {"node-1": "4"}


# Counters that add both directions


SUM = Spec(views=(view("node", (NODE,), "bytes", "rtt"),))


def test_counter_can_be_the_sum_of_both_directions(make):
    table = make(SUM)
    table.report(make_flow("a1", (100, 200, 1, 2), last=1, rtt=7), 0)
    table.report(make_flow("b2", **LATER), 0)
    table.report(make_flow("a1", (150, 201, 1, 2), last=2), 0)
    assert samples(table, "node_bytes_total") == {"node-1": "362"}
    assert samples(table, "node_rtt_seconds") == {"node-1": "0.000000007"}


def test_only_the_sum_of_a_summed_counter_is_compared_with_the_previous_report(make):
    table = make(SUM)
    table.report(make_flow(total=(100, 200, 1, 2), last=5), 0)
    assert table.report(make_flow(total=(200, 100, 1, 2), last=4), 0) == "late"
    assert table.report(make_flow(total=(90, 220, 1, 2), last=6), 0) is None
    assert samples(table, "node_bytes_total") == {"node-1": "310"}
    assert table.report(make_flow(total=(90, 219, 1, 2), last=7), 0) is None
    assert samples(table, "node_bytes_total") == {"node-1": "619"}


def test_restarted_flow_adds_its_totals_to_all_views(make):
    table = make(Spec(views=(view("a", (NODE, DIRECTION), "bytes"), view("b", (NODE,), "bytes"))))
    table.report(make_flow(total=(100, 200, 1, 2), last=1), 0)
    table.report(make_flow(total=(90, 210, 1, 2), last=2), 0)
    assert samples(table, "a_bytes_total") == {"node-1,>": "190", "node-1,<": "410"}
    assert samples(table, "b_bytes_total") == {"node-1": "600"}


def test_sum_must_be_in_range(make):
    half = 2**61
    table = make(SUM)
    assert table.report(make_flow("a1", (half + 1, half, 0, 0)), 0) == "out_of_range"
    assert table.report(make_flow("a1", (half, half, 0, 0), last=1), 0) is None
    assert table.report(make_flow("a1", (half + 1, half, 0, 0), last=2), 0) == "out_of_range"
    sum_too_large = LATER | {"last_update": (half, half + 1, 0, 0)}
    assert table.report(make_flow("b2", **sum_too_large), 0) is None
    assert table.values_skipped["LastUpdateMetric.BABytes"] == 1
    assert samples(table, "node_bytes_total") == {"node-1": str(2**62)}
    # Twice 2^62 exceeds MAX_SUM by one.
    table.report(make_flow("c3", (half, half, 0, 0)), 0)
    assert samples(table, "node_bytes_total") == {"node-1": str(MAX_SUM)}


# Optional counters


OPTIONAL = Spec(views=(view("tcp", (NODE, DIRECTION), "packets", "tcp_out_of_order"),))


def test_optional_counter_without_values_has_no_series(make):
    table = make(OPTIONAL)
    table.report(make_flow("a1", node="node-1"), 0)
    table.report(tcp(make_flow("b2", node="node-2"), (3, 4)), 0)
    table.report(make_flow("c3", node="node-2"), 0)
    table.report(tcp(make_flow("d4", node="node-3")), 0)
    table.report(make_flow("e5", node="node-4") | {"TCPMetric": {}}, 0)
    assert samples(table, "tcp_tcp_out_of_order_total") == {
        "node-2,>": "3",
        "node-2,<": "4",
        "node-3,>": "0",
        "node-3,<": "0",
        "node-4,>": "0",
        "node-4,<": "0",
    }
    assert len(samples(table, "tcp_packets_total")) == 8


def test_report_that_omits_an_object_keeps_the_counters_of_that_object(make):
    table = make(OPTIONAL)
    table.report(tcp(make_flow(total=(0, 0, 1, 2), last=1), (3, 4)), 0)
    assert table.report(make_flow(total=(0, 0, 5, 2), last=2), 0) is None
    assert table.report(make_flow(total=(0, 0, 5, 2), last=2), 0) == "late"
    assert samples(table, "tcp_tcp_out_of_order_total") == {"node-1,>": "3", "node-1,<": "4"}
    table.report(tcp(make_flow(total=(0, 0, 5, 2), last=2), (3, 5)), 0)
    assert samples(table, "tcp_tcp_out_of_order_total") == {"node-1,>": "3", "node-1,<": "5"}
    assert samples(table, "tcp_packets_total") == {"node-1,>": "5", "node-1,<": "2"}


def test_object_that_appears_in_a_later_report_adds_its_totals(make):
    table = make(OPTIONAL)
    table.report(make_flow(last=1), 0)
    assert table.report(tcp(make_flow(last=1), (0, 0)), 0) == "late"
    assert samples(table, "tcp_tcp_out_of_order_total") == {}
    assert table.report(tcp(make_flow(last=1), (3, 0)), 0) is None
    assert samples(table, "tcp_tcp_out_of_order_total") == {"node-1,>": "3", "node-1,<": "0"}


def test_restart_without_an_object_resets_the_totals_of_that_object(make):
    table = make(OPTIONAL)
    table.report(tcp(make_flow(total=(0, 0, 9, 9), last=1), (3, 4)), 0)
    table.report(make_flow(total=(0, 0, 1, 1), last=2), 0)
    assert samples(table, "tcp_packets_total") == {"node-1,>": "10", "node-1,<": "10"}
    assert samples(table, "tcp_tcp_out_of_order_total") == {"node-1,>": "3", "node-1,<": "4"}
    table.report(tcp(make_flow(total=(0, 0, 2, 2), last=3), (1, 1)), 0)
    assert samples(table, "tcp_packets_total") == {"node-1,>": "11", "node-1,<": "11"}
    assert samples(table, "tcp_tcp_out_of_order_total") == {"node-1,>": "4", "node-1,<": "5"}


def test_lower_optional_counter_restarts_the_flow(make):
    table = make(OPTIONAL)
    table.report(tcp(make_flow(total=(0, 0, 1, 2), last=1), (3, 4)), 0)
    table.report(tcp(make_flow(total=(0, 0, 1, 2), last=2), (3, 3)), 0)
    assert samples(table, "tcp_packets_total") == {"node-1,>": "2", "node-1,<": "4"}
    assert samples(table, "tcp_tcp_out_of_order_total") == {"node-1,>": "6", "node-1,<": "7"}


def test_unknown_flow_adds_zero_to_counters_without_a_last_update(make):
    table = make(Spec(views=(*OPTIONAL.views, view("ip", (NODE,), "ip_fragments"))))
    first = tcp(make_flow("a1"), (3, 4)) | {"IPMetric": {"Fragments": 5}}
    later = tcp(make_flow("b2", **LATER), (30, 40)) | {"IPMetric": {"Fragments": 50}}
    table.report(first, 0)
    table.report(later, 0)
    assert samples(table, "tcp_packets_total") == {"node-1,>": "8", "node-1,<": "10"}
    assert samples(table, "tcp_tcp_out_of_order_total") == {"node-1,>": "3", "node-1,<": "4"}
    assert samples(table, "ip_ip_fragments_total") == {"node-1": "5"}
    update = tcp(make_flow("b2", **LATER | {"last": 80_000}), (31, 42))
    table.report(update | {"IPMetric": {"Fragments": 51}}, 0)
    assert samples(table, "tcp_tcp_out_of_order_total") == {"node-1,>": "4", "node-1,<": "6"}
    assert samples(table, "ip_ip_fragments_total") == {"node-1": "6"}


def test_report_that_creates_the_connection_adds_totals_without_a_last_update(make):
    families = (*FAMILIES, *OPTIONAL.views[0].families[1:])
    table = make(Spec(views=(View(LABELS, families),)))
    table.report(tcp(make_flow(**LATER), (30, 40)), 0)
    assert samples(table, "tcp_tcp_out_of_order_total") == {
        "10.0.0.1,10.0.0.2,40000,443,>,node-1,TCP": "30",
        "10.0.0.1,10.0.0.2,40000,443,<,node-1,TCP": "40",
    }


@pytest.mark.parametrize("number", WILD_NUMBERS)
def test_out_of_range_number_in_an_optional_counter_is_omitted(make, number):
    table = make(OPTIONAL)
    table.report(tcp(make_flow(total=(1, 1, 1, 1), last=1), (1, 0)), 0)
    assert table.report(tcp(make_flow(total=(1, 1, 5, 6), last=2), (2, number)), 0) is None
    assert samples(table, "tcp_tcp_out_of_order_total") == {"node-1,>": "2", "node-1,<": "0"}
    assert samples(table, "tcp_packets_total") == {"node-1,>": "5", "node-1,<": "6"}
    assert table.values_skipped["TCPMetric.BASegmentOutOfOrder"] == 1
    # The next valid value adds the increase since the last valid value.
    table.report(tcp(make_flow(total=(1, 1, 5, 6), last=3), (2, 7)), 0)
    assert samples(table, "tcp_tcp_out_of_order_total") == {"node-1,>": "2", "node-1,<": "7"}


def test_counter_of_one_direction_has_one_series(make):
    table = make(
        Spec(
            views=(
                View((NODE, DIRECTION), (Family("there", "counter", ("Metric", "ABBytes")),)),
                View((NODE,), (Family("sum", "counter", ("Metric", "ABBytes")),)),
            )
        )
    )
    table.report(make_flow(total=(100, 200, 1, 2)), 0)
    assert samples(table, "there") == {"node-1,>": "100"}
    assert samples(table, "sum") == {"node-1": "100"}


# Gauges


def test_flow_count_is_a_gauge_of_live_flows(make):
    table = make(
        Spec(views=(view("a", (IP_A, DIRECTION), "flows"), view("b", (PROTOCOL,), "flows")))
    )
    table.report(make_flow("a1", last=1), 0)
    table.report(make_flow("b2", last=1), 10)
    table.report(make_flow("c3", last=1, a="10.0.0.3"), 20)
    table.report(make_flow("a1", last=2), 30)
    assert samples(table, "a_flows", 30) == {"10.0.0.1,>": "2", "10.0.0.3,>": "1"}
    assert samples(table, "b_flows", 30) == {"TCP": "3"}
    table.expire(10 + TIMEOUT_S)
    assert samples(table, "a_flows", 10 + TIMEOUT_S) == {"10.0.0.1,>": "1", "10.0.0.3,>": "1"}
    table.expire(30 + TIMEOUT_S)
    assert samples(table, "a_flows", 30 + TIMEOUT_S) == {}
    assert samples(table, "b_flows", 30 + TIMEOUT_S) == {"TCP": "0"}


def test_gauges_show_the_earliest_start_and_the_latest_packet(make):
    table = make(Spec(views=(view("a", (NODE, DIRECTION), "start", "last", "packets"),)))

    def times():
        return (
            samples(table, "a_start_timestamp_seconds").get("node-1,>"),
            samples(table, "a_last_timestamp_seconds").get("node-1,>"),
        )

    table.report(make_flow("a1", start=0, update_start=0, last=0), 0)
    assert times() == (None, None)
    table.report(make_flow("b2", start=1_600_000_000_123, last=1_600_000_009_000), 0)
    assert times() == ("1600000000.123", "1600000009")
    table.report(make_flow("c3", start=1_600_000_000_100, last=1_600_000_001_000), 0)
    assert times() == ("1600000000.1", "1600000009")
    table.report(make_flow("d4", start=1_600_000_000_200, last=1_600_000_010_020), 0)
    assert times() == ("1600000000.1", "1600000010.02")
    table.report(make_flow("d4", start=1, last=1_600_000_010_020), 0)
    table.report(make_flow("a1", start=0, update_start=0, last=1), 0)
    assert times() == ("1600000000.1", "1600000010.02")
    assert table.report(make_flow("e5", start=-1), 0) is None
    assert times() == ("1600000000.1", "1600000010.02")
    assert table.values_skipped["Start"] == 1


@pytest.mark.parametrize(
    ("rtt_ns", "shown"),
    [
        (1, "0.000000001"),
        (1_000, "0.000001"),
        (999_999_999, "0.999999999"),
        (1_000_000_000, "1"),
        (1_000_000_001, "1.000000001"),
        (10_000_000_000, "10"),
        (2**62, "4611686018.427387904"),
    ],
)
def test_values_in_seconds_are_exact(make, rtt_ns, shown):
    table = make(Spec(views=(view("a", (NODE, DIRECTION), "rtt"),)))
    table.report(make_flow(rtt=rtt_ns), 0)
    assert samples(table, "a_rtt_seconds") == {"node-1,>": shown}


def test_view_can_have_only_gauges(make):
    table = make(Spec(views=(view("a", (NODE,), "flows", "rtt"),)))
    assert table.report(make_flow(last=1, rtt=5), 0) is None
    assert table.report(make_flow(last=1, rtt=6), 0) == "late"
    assert table.report(make_flow(last=2, rtt=7), 0) is None
    assert samples(table, "a_rtt_seconds") == {"node-1": "0.000000007"}


def test_gauge_can_have_a_value_per_direction(make):
    family = Family("ttl", "gauge", ("TCPMetric", "ABSynTTL"), ("TCPMetric", "BASynTTL"))
    table = make(Spec(views=(View((NODE, DIRECTION), (family, *FAMILIES[1:2])),)))
    table.report(make_flow("a1"), 0)
    assert samples(table, "ttl") == {}
    table.report(make_flow("b2") | {"TCPMetric": {"ABSynTTL": 64}}, 0)
    assert samples(table, "ttl") == {"node-1,>": "64"}
    table.report(make_flow("c3") | {"TCPMetric": {"BASynTTL": 63}}, 0)
    assert samples(table, "ttl") == {"node-1,>": "64", "node-1,<": "63"}


# Computed labels


def masked(ipv4=None, ipv6=None):
    return Label("initiator_ip", ("Network", "A"), rewrite=Mask(ipv4, ipv6))


@pytest.mark.parametrize(
    ("mask", "address", "shown"),
    [
        (masked(24), "10.1.2.3", "10.1.2.0/24"),
        (masked(0), "10.1.2.3", "0.0.0.0/0"),
        (masked(32), "10.1.2.3", "10.1.2.3/32"),
        (masked(24), "fd77::1", "fd77::1"),
        (masked(24, 64), "fd77:0:0:1::1", "fd77:0:0:1::/64"),
        (masked(None, 16), "10.1.2.3", "10.1.2.3"),
        (masked(24), "", ""),
        (masked(24), "no address", "no address"),
    ],
)
def test_addresses_are_masked(make, mask, address, shown):
    table = make(Spec(views=(view("a", (mask,), "bytes"),)))
    table.report(make_flow(a=address), 0)
    assert samples(table, "a_bytes_total") == {shown: "300"}


@pytest.mark.parametrize(
    ("fold", "port", "shown"),
    [
        (PortGrouping(above=1023), 1023, "1023"),
        (PortGrouping(above=1023), 1024, "other"),
        (PortGrouping(above=1023), 0, "0"),
        (PortGrouping(above=1023), -1, "other"),
        (PortGrouping(above=1023), 10**22, "other"),
        (PortGrouping(keep=frozenset({53, 8080})), 53, "53"),
        (PortGrouping(keep=frozenset({53, 8080})), 54, "other"),
        (PortGrouping(above=100, keep=frozenset({8080})), 8080, "8080"),
        (PortGrouping(above=100, keep=frozenset({8080})), 53, "53"),
    ],
)
def test_ports_are_unchanged_or_replaced_by_other(make, fold, port, shown):
    label = Label("target_port", ("Transport", "B"), number=True, rewrite=fold)
    table = make(Spec(views=(view("a", (label,), "bytes"),)))
    table.report(make_flow(ports=(1, port)), 0)
    assert samples(table, "a_bytes_total") == {shown: "300"}


def test_ports_replaced_by_other_merge_connections_and_do_not_identify_them(make):
    port = Label(
        "initiator_port", ("Transport", "A"), number=True, rewrite=PortGrouping(above=1023)
    )
    table = make(Spec(views=(view("a", (IP_A, IP_B, port, PORT_B), "bytes"),)))
    table.report(make_flow("a1", **LATER), 0)
    assert samples(table, "a_bytes_total") == {"10.0.0.1,10.0.0.2,other,443": "11"}
    table.report(make_flow("b2", (1, 2, 0, 0), ports=(40_001, 443)), 0)
    assert samples(table, "a_bytes_total") == {"10.0.0.1,10.0.0.2,other,443": "14"}


def test_views_can_show_an_address_and_its_network(make):
    table = make(Spec(views=(view("a", (IP_A,), "bytes"), view("b", (masked(24),), "bytes"))))
    table.report(make_flow("a1", a="10.0.0.1"), 0)
    table.report(make_flow("b2", a="10.0.0.2"), 0)
    assert samples(table, "a_bytes_total") == {"10.0.0.1": "300", "10.0.0.2": "300"}
    assert samples(table, "b_bytes_total") == {"10.0.0.0/24": "600"}


def test_tag_can_be_a_label(make):
    table = make(Spec(views=(view("a", (tag_label(["10.0.0.0/24"]),), "bytes"),)))
    for n, (a, b) in enumerate(
        [("10.0.0.1", "10.0.0.2"), ("10.0.0.1", "1.1.1.1"), ("1.1.1.1", "10.0.0.1"), ("", "")]
    ):
        table.report(make_flow(str(n), (1 + n, 0, 0, 0), a=a, b=b), 0)
    assert samples(table, "a_bytes_total") == {
        "internal": "1",
        "egress": "2",
        "ingress": "3",
        "other": "4",
    }


# ICMP


ICMP = Spec(
    include_icmp=True,
    views=(
        view("a", (*LABELS[:4], PROTOCOL_OR_ICMP), "bytes"),
        view("b", (PROTOCOL_OR_ICMP, *labelled("icmp_type"), DIRECTION), "bytes", "rtt"),
    ),
)


def test_icmp_flows_are_connections_without_ports(make):
    table = make(ICMP)
    table.report(icmp(make_flow("a1", rtt=5)), 0)
    table.report(icmp(make_flow("b2", a="fd77::1", b="fd77::2"), "IPV6"), 0)
    table.report(make_flow("c3"), 0)
    assert samples(table, "a_bytes_total") == {
        "10.0.0.1,10.0.0.2,,,ICMPV4": "300",
        "fd77::1,fd77::2,,,ICMPV6": "300",
        "10.0.0.1,10.0.0.2,40000,443,TCP": "300",
    }
    assert samples(table, "b_bytes_total") == {
        "ICMPV4,ECHO,>": "100",
        "ICMPV4,ECHO,<": "200",
        "ICMPV6,ECHO,>": "100",
        "ICMPV6,ECHO,<": "200",
        "TCP,,>": "100",
        "TCP,,<": "200",
    }
    assert samples(table, "b_rtt_seconds") == {"ICMPV4,ECHO,>": "0.000000005"}


def test_flow_without_transport_and_icmp_is_skipped(make):
    assert make(ICMP).report(without("Transport"), 0) == "no_transport"
    assert make(ICMP).report(without("Transport") | {"ICMP": None}, 0) == "no_transport"
    assert make(ICMP).report(without("Transport") | {"ICMP": {}}, 0) is None
    assert make().report(icmp(make_flow()), 0) == "no_transport"


def test_include_icmp_separates_connections_of_protocols_with_the_same_addresses(make):
    table = make(ICMP)
    table.report(icmp(make_flow("a1", **LATER)), 0)
    assert samples(table, "a_bytes_total") == {"10.0.0.1,10.0.0.2,,,ICMPV4": "11"}


# Other protocols


WITH_OTHER = Spec(
    include_other=True,
    views=(
        view("a", (*LABELS[:4], PROTOCOL_OR_OTHER), "bytes"),
        view("b", (PROTOCOL_OR_OTHER, DIRECTION), "bytes", "flows"),
    ),
)


def portless(path, flow=None, **changes):
    """Return a flow without ports, of a protocol other than TCP, UDP, SCTP and ICMP."""
    flow = dict(flow or make_flow(), LayersPath=path, **changes)
    del flow["Transport"]
    return flow


def test_protocol_without_transport_is_the_last_layer(make):
    table = make(WITH_OTHER)
    table.report(portless("Ethernet/IPv4/GRE", make_flow("a1")), 0)
    table.report(portless("Ethernet/Dot1Q/IPv4/Fragment", make_flow("b2")), 0)
    table.report(portless("Ethernet/IPv4/Fragment", make_flow("c3", a="10.0.0.3")), 0)
    table.report(portless("IPv6", make_flow("d4", a="fd77::1", b="fd77::2")), 0)
    table.report(portless("", make_flow("e5")), 0)
    table.report(make_flow("f6"), 0)
    assert samples(table, "a_bytes_total") == {
        "10.0.0.1,10.0.0.2,,,GRE": "300",
        "10.0.0.1,10.0.0.2,,,Fragment": "300",
        "10.0.0.3,10.0.0.2,,,Fragment": "300",
        "fd77::1,fd77::2,,,IPv6": "300",
        "10.0.0.1,10.0.0.2,,,": "300",
        "10.0.0.1,10.0.0.2,40000,443,TCP": "300",
    }
    assert samples(table, "b_bytes_total")["Fragment,>"] == "200"
    assert samples(table, "b_flows")["Fragment,>"] == "2"


def test_protocol_without_layers_path_is_empty(make):
    table = make(WITH_OTHER)
    flow = portless("")
    del flow["LayersPath"]
    table.report(flow, 0)
    assert samples(table, "a_bytes_total") == {"10.0.0.1,10.0.0.2,,,": "300"}


@pytest.mark.parametrize("with_icmp", [False, True])
@pytest.mark.parametrize("with_other", [False, True])
def test_icmp_and_other_protocols_are_separate_options(make, with_icmp, with_other):
    table = make(replace(WITH_OTHER, include_icmp=with_icmp, include_other=with_other))
    ping = icmp(make_flow("a1")) | {"LayersPath": "Ethernet/IPv4/ICMPv4"}
    assert table.report(ping, 0) == (None if with_icmp else "no_transport")
    gre = portless("Ethernet/IPv4/GRE", make_flow("b2"))
    assert table.report(gre, 0) == (None if with_other else "no_transport")
    assert table.report(make_flow("c3"), 0) is None
    assert samples(table, "b_flows") == {
        **({"ICMPV4,>": "1"} if with_icmp else {}),
        **({"GRE,>": "1"} if with_other else {}),
        "TCP,>": "1",
    }


def test_flows_of_other_protocols_require_network_and_metric(make):
    table = make(WITH_OTHER)
    assert table.report(portless("Ethernet/ARP", Network=None), 0) == "no_network"
    assert table.report(portless("Ethernet/IPv4/GRE", Metric=None), 0) == "no_metric"


def test_transport_takes_precedence_over_icmp(make):
    table = make(WITH_OTHER)
    table.report(make_flow() | {"ICMP": {"Type": "ECHO"}, "LayersPath": "a/b"}, 0)
    assert samples(table, "b_flows") == {"TCP,>": "1"}


def test_include_other_separates_connections_of_protocols_with_the_same_addresses(make):
    table = make(WITH_OTHER)
    table.report(portless("Ethernet/IPv4/GRE", make_flow("a1", **LATER)), 0)
    table.report(make_flow("b2", **LATER), 0)
    assert samples(table, "a_bytes_total") == {
        "10.0.0.1,10.0.0.2,,,GRE": "11",
        "10.0.0.1,10.0.0.2,40000,443,TCP": "11",
    }


def test_only_the_last_layer_of_the_layers_path_is_validated(make):
    table = make(WITH_OTHER)
    assert table.report(portless("x" * 1025 + "/GRE", make_flow("a1")), 0) is None
    assert table.report(portless("GRE/" + "x" * 1025, make_flow("b2")), 0) == "text_too_long"


def test_conversations_of_other_protocols_have_no_ports(make):
    table = make(replace(WITH_OTHER, deduplicate="first"))
    assert table.report(portless("Ethernet/IPv4/GRE", make_flow("a1", node="node-1")), 0) is None
    back = make_flow("b2", a="10.0.0.2", b="10.0.0.1", node="node-2")
    assert table.report(portless("Ethernet/IPv4/GRE", back), 0) == "duplicate"
    esp = portless("Ethernet/IPv4/IPSecESP", make_flow("c3", node="node-2"))
    assert table.report(esp, 0) == "duplicate"
    assert table.report(make_flow("d4", node="node-2"), 0) is None


# Names


@pytest.fixture
def names():
    return Names({"node-1": ("eth0",), "node-2": ("eth1",)})


def named(names):
    label = looked_up("node_name", ("NodeTID",), names)
    return Spec(
        views=(
            view("a", (label, DIRECTION), "bytes", "rtt", "tcp_out_of_order"),
            view("b", (IP_A, label), "bytes", "flows", "start"),
            view("c", (IP_A,), "bytes", "flows"),
        )
    )


def test_node_names_are_looked_up(make, names):
    table = make(named(names))
    table.report(make_flow("a1", node="node-1"), 0)
    table.report(make_flow("b2", node="node-2"), 0)
    table.report(make_flow("c3", node="node-3"), 0)
    assert samples(table, "b_bytes_total") == {
        "10.0.0.1,eth0": "300",
        "10.0.0.1,eth1": "300",
        "10.0.0.1,": "300",
    }


def test_renamed_node_moves_flows_to_connections_that_start_at_zero(make, names):
    table = make(named(names))
    table.report(tcp(make_flow("a1", (100, 200, 1, 2), last=1_000, rtt=7), (1, 1)), 0)
    table.report(make_flow("b2", (10, 20, 1, 2), last=1_000, node="node-2"), 0)
    names["node-1"] = ("bond0",)
    # The flow stays in the row with its old name until `relabel` is called.
    table.report(tcp(make_flow("a1", (101, 200, 1, 2), last=2_000, rtt=8), (1, 1)), 0)
    assert samples(table, "a_bytes_total") == {
        "eth0,>": "101",
        "eth0,<": "200",
        "eth1,>": "10",
        "eth1,<": "20",
    }
    table.relabel(names, {"node-1"})
    assert samples(table, "a_bytes_total") == {
        "bond0,>": "0",
        "bond0,<": "0",
        "eth1,>": "10",
        "eth1,<": "20",
    }
    assert samples(table, "a_rtt_seconds") == {}
    assert samples(table, "a_tcp_out_of_order_total") == {"bond0,>": "0", "bond0,<": "0"}
    # In the view "b", the row with the old name outlives its flow.
    assert samples(table, "b_bytes_total") == {
        "10.0.0.1,eth0": "301",
        "10.0.0.1,bond0": "0",
        "10.0.0.1,eth1": "30",
    }
    assert samples(table, "b_flows") == {
        "10.0.0.1,eth0": "0",
        "10.0.0.1,bond0": "1",
        "10.0.0.1,eth1": "1",
    }
    assert samples(table, "b_start_timestamp_seconds") == {
        "10.0.0.1,eth0": "1",
        "10.0.0.1,eth1": "1",
    }
    assert samples(table, "c_bytes_total") == {"10.0.0.1": "331"}
    assert samples(table, "c_flows") == {"10.0.0.1": "2"}
    assert (table.connections, table.view_connections, table.flows) == (2, (3, 1), 2)
    assert (table.created_total, table.expired_total) == (3, 1)
    table.report(tcp(make_flow("a1", (105, 210, 1, 2), last=3_000, rtt=9), (2, 1)), 0)
    assert samples(table, "a_bytes_total") == {
        "bond0,>": "4",
        "bond0,<": "10",
        "eth1,>": "10",
        "eth1,<": "20",
    }
    assert samples(table, "a_rtt_seconds") == {"bond0,>": "0.000000009"}
    assert samples(table, "a_tcp_out_of_order_total") == {"bond0,>": "1", "bond0,<": "0"}
    assert samples(table, "b_start_timestamp_seconds")["10.0.0.1,bond0"] == "1"
    assert samples(table, "c_bytes_total") == {"10.0.0.1": "345"}


def test_flows_join_the_existing_row_of_their_new_name(make, names):
    table = make(named(names))
    table.report(make_flow("a1", (100, 200, 1, 2), last=1, node="node-1"), 0)
    table.report(make_flow("b2", (10, 20, 1, 2), last=1, node="node-2"), 0)
    names["node-1"] = ("eth1",)
    table.relabel(names, {"node-1", "node-2", "node-9"})
    assert samples(table, "a_bytes_total") == {"eth1,>": "10", "eth1,<": "20"}
    table.report(make_flow("a1", (101, 201, 1, 2), last=2, node="node-1"), 0)
    assert samples(table, "a_bytes_total") == {"eth1,>": "11", "eth1,<": "21"}


def test_row_keeps_flows_that_are_not_renamed(make, names):
    names["node-2"] = ("eth0",)
    table = make(named(names))
    table.report(make_flow("a1", (100, 200, 1, 2), last=1, node="node-1"), 0)
    table.report(make_flow("b2", (10, 20, 1, 2), last=1, node="node-2"), 0)
    del names["node-1"]
    table.relabel(names, ["node-1"])
    assert samples(table, "a_bytes_total") == {
        "eth0,>": "110",
        "eth0,<": "220",
        ",>": "0",
        ",<": "0",
    }
    assert samples(table, "b_flows") == {"10.0.0.1,eth0": "1", "10.0.0.1,": "1"}


def test_swapped_names_do_not_mix_counters(make, names):
    table = make(named(names))
    table.report(make_flow("a1", (100, 200, 1, 2), last=1, node="node-1"), 0)
    table.report(make_flow("b2", (10, 20, 1, 2), last=1, node="node-2"), 0)
    names |= {"node-1": ("eth1",), "node-2": ("eth0",)}
    table.relabel(names, ["node-1", "node-2"])
    assert set(samples(table, "a_bytes_total").values()) == {"0"}
    # In the view "b", each name keeps its row, because rows outlive their flows.
    assert samples(table, "b_bytes_total") == {"10.0.0.1,eth0": "300", "10.0.0.1,eth1": "30"}
    table.report(make_flow("a1", (107, 200, 1, 2), last=2, node="node-1"), 0)
    assert samples(table, "b_bytes_total") == {"10.0.0.1,eth0": "300", "10.0.0.1,eth1": "37"}


def test_one_mapping_can_have_names_for_both_addresses(make):
    owners = Names({"10.0.0.1": ("web",), "10.0.0.2": ("db",)})
    labels = (
        looked_up("initiator_name", ("Network", "A"), owners),
        looked_up("target_name", ("Network", "B"), owners),
    )
    table = make(Spec(views=(view("a", labels, "bytes"),)))
    table.report(make_flow("a1", (1, 0, 0, 0), last=1), 0)
    table.report(make_flow("b2", (2, 0, 0, 0), last=1, a="10.0.0.2", b="10.0.0.1"), 0)
    table.report(make_flow("c3", (4, 0, 0, 0), last=1, a="10.0.0.2", b="10.0.0.2"), 0)
    table.report(make_flow("d4", (8, 0, 0, 0), last=1, a="10.0.0.9", b="10.0.0.1"), 0)
    assert samples(table, "a_bytes_total") == {
        "web,db": "1",
        "db,web": "2",
        "db,db": "4",
        ",web": "8",
    }
    owners["10.0.0.2"] = ("cache",)
    table.relabel(owners, {"10.0.0.2"})
    assert samples(table, "a_bytes_total") == {
        "web,cache": "0",
        "cache,web": "0",
        "cache,cache": "0",
        ",web": "8",
    }


def test_row_of_a_new_name_expires_after_the_latest_report(make, names):
    table = make(named(names))
    table.report(make_flow("a1", last=1), 0)
    table.report(make_flow("a1", last=2), 30)
    table.expire(60)
    names["node-1"] = ("bond0",)
    table.relabel(names, {"node-1"})
    assert table.page(30 + TIMEOUT_S - 1)["a_bytes_total"]
    assert not table.page(30 + TIMEOUT_S)["a_bytes_total"]
    assert len(samples(table, "b_bytes_total", 30 + VIEW_TIMEOUT_S - 1)) == 2
    assert samples(table, "b_bytes_total", 30 + VIEW_TIMEOUT_S) == {}


def test_relabeling_ignores_max_connections(make):
    names = Names({"node-1": ("eth0",), "node-2": ("eth0",)})
    table = make(Spec(views=named(names).views[:2], max_connections=1))
    table.report(make_flow("a1", last=1), 0)
    table.report(make_flow("b2", last=1, node="node-2"), 0)
    names["node-2"] = ("bond0",)
    table.relabel(names, {"node-2"})
    table.report(make_flow("b2", (101, 202, 1, 2), last=2, node="node-2"), 0)
    assert samples(table, "a_bytes_total") == {
        "eth0,>": "200",
        "eth0,<": "400",
        "bond0,>": "1",
        "bond0,<": "2",
    }
    assert samples(table, "b_bytes_total") == {"10.0.0.1,eth0": "600", "10.0.0.1,bond0": "3"}
    assert table.report(make_flow("c3", node="node-3"), 0) == "table_full"


def test_lookup_keys_and_names_are_validated(make, names):
    table = make(named(names))
    assert table.report(make_flow(node="x" * 1025), 0) == "text_too_long"
    names["node-1"] = ("x" * 1025,)
    assert table.report(make_flow(), 0) == "text_too_long"
    assert (table.connections, table.flows) == (0, 0)


# Conversations captured at several points


FIRST = Spec(deduplicate="first", views=(view("a", (NODE,), "bytes", "flows"),))


def test_only_flows_of_the_first_capture_point_are_counted(make):
    table = make(FIRST)
    assert table.report(make_flow("a1", last=1, node="node-1"), 0) is None
    assert table.report(make_flow("b2", last=1, node="node-2"), 0) == "duplicate"
    assert table.report(make_flow("b2", last=2, node="node-2", finish=1), 0) == "duplicate"
    assert samples(table, "a_bytes_total") == {"node-1": "300"}
    assert table.skipped["duplicate"] == 2
    assert not table.finished.get("timeout")


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"a": "10.0.0.2", "b": "10.0.0.1", "ports": (443, 40_000)}, "duplicate"),
        ({"a": "10.0.0.2", "b": "10.0.0.1"}, None),
        ({"ports": (40_001, 443)}, None),
        ({"protocol": "UDP"}, None),
        ({"start": 5_000, "update_start": 5_000}, "duplicate"),
    ],
)
def test_conversation_is_identified_by_endpoints_and_protocol(make, other, reason):
    table = make(FIRST)
    table.report(make_flow("a1", node="node-1"), 0)
    assert table.report(make_flow("b2", node="node-2", **other), 0) == reason


def test_first_capture_point_can_report_several_flows(make):
    table = make(FIRST)
    table.report(make_flow("a1", node="node-1"), 0)
    assert table.report(make_flow("c3", node="node-1"), 50) is None
    table.expire(TIMEOUT_S)
    assert table.report(make_flow("b2", node="node-2"), TIMEOUT_S) == "duplicate"
    # When all flows of the first capture point are dormant, another capture point takes over.
    table.expire(50 + TIMEOUT_S)
    assert table.report(make_flow("b2", node="node-2"), 50 + TIMEOUT_S) is None
    assert table.dormant_flows == 2
    again = make_flow("c3", node="node-1", last=3_000)
    assert table.report(again, 50 + TIMEOUT_S) == "duplicate"
    # A dormant flow is forgotten if its next report is a duplicate.
    assert table.dormant_flows == 1


def test_flows_without_node_tid_belong_to_one_capture_point(make):
    table = make(FIRST)
    nameless = make_flow("a1")
    del nameless["NodeTID"]
    assert table.report(nameless, 0) is None
    assert table.report(make_flow("b2"), 0) == "duplicate"
    assert table.report(nameless | {"UUID": "c3"}, 0) is None


def test_conversations_of_icmp_have_no_ports(make):
    table = make(Spec(deduplicate="first", include_icmp=True, views=FIRST.views))
    assert table.report(icmp(make_flow("a1", node="node-1")), 0) is None
    back = icmp(make_flow("b2", a="10.0.0.2", b="10.0.0.1", node="node-2"))
    assert table.report(back, 0) == "duplicate"
    assert table.report(make_flow("c3", node="node-2"), 0) is None


@pytest.mark.parametrize(
    ("flow", "reason"),
    [
        (make_flow(a="x" * 1025), "text_too_long"),
        (make_flow(b="x" * 1025), "text_too_long"),
        (make_flow(protocol="x" * 1025), "text_too_long"),
        (make_flow(ports=(-1, 1)), "out_of_range"),
        (make_flow(ports=(1, 2**62 + 1)), "out_of_range"),
    ],
)
def test_fields_of_a_conversation_are_validated(make, flow, reason):
    assert make(FIRST).report(flow, 0) == reason
    assert make(Spec(views=FIRST.views)).report(flow, 0) is None


def test_reason_duplicate_takes_precedence_over_reason_table_full(make):
    table = make(Spec(deduplicate="first", views=FIRST.views, max_connections=1))
    table.report(make_flow("a1", node="node-1"), 0)
    assert table.report(make_flow("b2", node="node-2"), 0) == "duplicate"
    assert table.report(make_flow("b2", node="node-2", a="10.0.0.3"), 0) == "table_full"
    # A rejected flow does not take over the conversation.
    assert table.report(make_flow("c3", node="node-1", a="10.0.0.3"), 0) is None


# Full tables and views


def test_rejected_flow_is_not_counted_in_any_view(make):
    table = make(Spec(max_connections=1, views=(View(), view("a", (NODE,), "bytes"))))
    table.report(make_flow("a1"), 0)
    assert table.report(make_flow("b2", a="10.0.0.3"), 0) == "table_full"
    assert samples(table, "a_bytes_total") == {"node-1": "300"}
    assert (table.rejected_total, table.overflowed_total) == (1, 0)


def test_view_at_max_connections_omits_new_flows(make):
    table = make(
        Spec(max_connections=1, views=(view("a", (NODE,), "bytes"), view("b", (IP_A,), "bytes")))
    )
    table.report(make_flow("a1", last=1), 0)
    assert table.report(make_flow("b2", (1, 2, 0, 0), last=1, a="10.0.0.3"), 0) is None
    assert samples(table, "a_bytes_total") == {"node-1": "303"}
    assert samples(table, "b_bytes_total") == {"10.0.0.1": "300"}
    # The flow stays omitted even after the view has room again.
    table.report(make_flow("b2", (1, 2, 0, 0), last=2, a="10.0.0.3"), 60)
    table.expire(VIEW_TIMEOUT_S - 1)
    assert (table.rejected_total, table.view_connections) == (0, (1,))


def test_linked_view_at_max_connections_omits_all_flows_of_a_connection(make):
    table = make(
        Spec(
            max_connections=1, views=(view("a", (IP_A, NODE), "bytes"), view("b", (NODE,), "bytes"))
        )
    )
    table.report(make_flow("a1", node="node-1"), 0)
    table.expire(TIMEOUT_S)
    # The second view is full until the row of node-1 expires.
    for n in range(20):
        now = 100 + 60 * n
        table.expire(now)
        assert table.report(make_flow("b2", (1 + n, 0, 0, 0), last=n, node="node-2"), now) is None
    assert now > VIEW_TIMEOUT_S
    assert table.view_connections == (0,)
    assert table.report(make_flow("c3", (5, 0, 0, 0), node="node-2"), now) is None
    assert samples(table, "a_bytes_total", now) == {"10.0.0.1,node-2": "25"}
    assert samples(table, "b_bytes_total", now) == {}
    table.expire(now + TIMEOUT_S)
    table.report(make_flow("d4", (7, 0, 0, 0), node="node-2"), now + TIMEOUT_S)
    assert samples(table, "b_bytes_total", now + TIMEOUT_S) == {"node-2": "7"}


OVERFLOW = Spec(
    overflow="other",
    max_connections=1,
    views=(
        View(LABELS, (*FAMILIES, *standard("main", "flows", "tcp_out_of_order"))),
        view("a", (NODE, DIRECTION), "bytes", "flows", "last"),
    ),
)
OTHERS = "other,other,other,other,{},other,other"


def test_rejected_flows_are_added_to_the_overflow_row(make):
    table = make(OVERFLOW)
    table.report(make_flow("a1", (100, 200, 1, 2), last=1_000), 0)
    assert samples(table, BYTES).keys() == {
        f"10.0.0.1,10.0.0.2,40000,443,{direction},node-1,TCP" for direction in "<>"
    }
    assert table.report(make_flow("b2", (10, 20, 1, 2), a="10.0.0.3", rtt=5), 0) == "table_full"
    assert samples(table, BYTES)[OTHERS.format(">")] == "10"
    assert samples(table, BYTES)[OTHERS.format("<")] == "20"
    later = make_flow("b2", (15, 26, 8, 10), a="10.0.0.3", **LATER)
    repeat = LATER | {"update_last": 69_999, "finish": 1}
    assert table.report(later, 0) == "table_full"
    assert table.report(make_flow("b2", (15, 26, 8, 10), a="10.0.0.3", **repeat), 0) == "ended"
    assert samples(table, BYTES)[OTHERS.format(">")] == "15"
    assert samples(table, BYTES)[OTHERS.format("<")] == "26"
    assert samples(table, PACKETS)[OTHERS.format("<")] == "10"
    assert OTHERS.format(">") not in samples(table, RTT)
    assert samples(table, "main_flows")[OTHERS.format(">")] == "0"
    assert samples(table, "main_tcp_out_of_order_total") == {}
    # The second view has room. Its row adds the deltas of flow b2, but does not count flow b2.
    assert samples(table, "a_bytes_total") == {"node-1,>": "115", "node-1,<": "226"}
    assert samples(table, "a_flows") == {"node-1,>": "1"}
    assert samples(table, "a_last_timestamp_seconds") == {"node-1,>": "70"}
    assert (table.rejected_total, table.overflowed_total) == (2, 2)
    assert table.skipped["table_full"] == 2
    assert (table.connections, table.flows) == (2, 1)
    assert table.finished["timeout"] == 1


def test_overflow_row_never_expires(make):
    table = make(OVERFLOW)
    table.report(make_flow("a1"), 0)
    table.report(make_flow("b2", (10, 20, 1, 2), a="10.0.0.3"), 0)
    table.expire(10 * VIEW_TIMEOUT_S)
    assert samples(table, BYTES, 10 * VIEW_TIMEOUT_S) == {
        OTHERS.format(">"): "10",
        OTHERS.format("<"): "20",
    }
    assert samples(table, "a_bytes_total", 10 * VIEW_TIMEOUT_S) == {}
    assert (table.created_total, table.expired_total) == (2, 1)


def test_accepted_flow_adds_only_its_last_update_if_it_overflowed_earlier(make):
    table = make(OVERFLOW)
    table.report(make_flow("a1", **LATER), 0)
    assert samples(table, BYTES)["10.0.0.1,10.0.0.2,40000,443,>,node-1,TCP"] == "100"
    table.report(make_flow("b2", (10, 20, 1, 2), a="10.0.0.3"), 0)
    table.expire(TIMEOUT_S)
    # The overflow row does not count towards max_connections.
    later = make_flow("b2", (15, 26, 8, 10), a="10.0.0.3", **LATER)
    assert table.report(later, TIMEOUT_S) is None
    assert samples(table, BYTES, TIMEOUT_S) == {
        "10.0.0.3,10.0.0.2,40000,443,>,node-1,TCP": "5",
        "10.0.0.3,10.0.0.2,40000,443,<,node-1,TCP": "6",
        OTHERS.format(">"): "10",
        OTHERS.format("<"): "20",
    }
    # A first report adds its total, although other flows overflowed earlier.
    table.expire(2 * TIMEOUT_S)
    table.report(make_flow("c3", (7, 8, 1, 1)), 2 * TIMEOUT_S)
    assert samples(table, BYTES, 2 * TIMEOUT_S)["10.0.0.1,10.0.0.2,40000,443,>,node-1,TCP"] == "7"


def test_flows_beyond_max_flows_are_added_to_the_overflow_row(make):
    table = make(Spec(overflow="other", max_flows=1, views=OVERFLOW.views))
    table.report(make_flow("a1", last=1), 0)
    # A new flow is added to the overflow row even if its connection already exists.
    assert table.report(make_flow("b2", (10, 20, 1, 2)), 0) == "table_full"
    assert samples(table, BYTES)[OTHERS.format(">")] == "10"
    assert samples(table, BYTES)["10.0.0.1,10.0.0.2,40000,443,>,node-1,TCP"] == "100"
    assert (table.rejected_total, table.overflowed_total) == (0, 1)


def test_view_at_max_connections_adds_flows_to_its_overflow_row(make):
    spec = Spec(
        overflow="other",
        max_connections=1,
        views=(view("a", (PROTOCOL,), "bytes"), view("b", (IP_A,), "bytes", "flows", "rtt")),
    )
    table = make(spec)
    table.report(make_flow("a1", last=1, rtt=1), 0)
    assert table.report(make_flow("b2", (1, 2, 0, 0), last=1, a="10.0.0.3", rtt=2), 0) is None
    table.report(make_flow("b2", (2, 4, 0, 0), last=2, a="10.0.0.3", rtt=3), 0)
    assert samples(table, "a_bytes_total") == {"TCP": "306"}
    assert samples(table, "b_bytes_total") == {"10.0.0.1": "300", "other": "6"}
    assert samples(table, "b_flows") == {"10.0.0.1": "1", "other": "1"}
    assert samples(table, "b_rtt_seconds") == {"10.0.0.1": "0.000000001"}
    assert (table.overflowed_total, table.view_connections) == (0, (2,))
    table.report(make_flow("c3", (4, 4, 0, 0), a="10.0.0.4", protocol="UDP"), 0)
    assert samples(table, "a_bytes_total") == {"TCP": "306", "other": "8"}
    assert samples(table, "b_bytes_total") == {"10.0.0.1": "300", "other": "14"}
    table.expire(VIEW_TIMEOUT_S)
    assert samples(table, "b_bytes_total", VIEW_TIMEOUT_S) == {"other": "14"}
    assert samples(table, "b_flows", VIEW_TIMEOUT_S) == {"other": "0"}


@pytest.mark.parametrize("has_closing_report", [False, True])
def test_new_connection_adds_the_flow_total_even_if_another_view_overflows(
    make, has_closing_report
):
    table = make(
        Spec(
            overflow="other",
            max_connections=1,
            views=(view("a", (IP_A, IP_B, PORT_A, PORT_B), "bytes"), view("b", (NODE,), "bytes")),
        )
    )
    table.raise_horizon(0)
    table.report(make_flow("a1", (1, 0, 0, 0), last=1), 0)
    table.expire(TIMEOUT_S)
    if has_closing_report:
        closing = an_update(
            "b2", (7, 0, 0, 0), age_s=1, last_update=(0, 0, 0, 0), finish=1, last_s=9, node="node-2"
        )
        assert table.report(closing, 100) is None
        assert samples(table, "b_bytes_total", 100) == {"node-1": "1", "other": "7"}
    first = make_flow("c3", (100, 0, 0, 0), node="node-2", a="10.0.0.9", **LATER)
    assert table.report(first, 100) is None
    # If the closing report has created an overflow row, this row may contain earlier traffic of
    # flow c3.
    counted = 11 if has_closing_report else 100
    assert samples(table, "a_bytes_total", 100) == {"10.0.0.9,10.0.0.2,40000,443": f"{counted}"}
    assert samples(table, "b_bytes_total", 100)["other"] == ("18" if has_closing_report else "11")


def test_connection_labelled_other_is_the_overflow_row(make):
    fold = Label("target_port", ("Transport", "B"), number=True, rewrite=PortGrouping(above=1023))
    table = make(
        Spec(overflow="other", max_connections=2, views=(view("a", (fold,), "bytes", "flows"),))
    )
    table.report(make_flow("a1", (1, 0, 0, 0), ports=(1, 2000)), 0)
    table.report(make_flow("b2", (2, 0, 0, 0), ports=(1, 80)), 0)
    assert samples(table, "a_bytes_total") == {"other": "1", "80": "2"}
    assert table.report(make_flow("c3", (4, 0, 0, 0), ports=(1, 81)), 0) == "table_full"
    assert samples(table, "a_bytes_total") == {"other": "5", "80": "2"}
    assert samples(table, "a_flows") == {"other": "1", "80": "1"}
    # The overflow row "other" no longer counts towards ``max_connections``.
    assert table.report(make_flow("d5", (8, 0, 0, 0), ports=(1, 443)), 0) is None
    table.expire(TIMEOUT_S)
    assert samples(table, "a_bytes_total", TIMEOUT_S) == {"other": "5"}


@pytest.mark.parametrize("name", ["Start", "Last", *COUNTERS])
def test_invalid_last_update_is_not_added_to_the_overflow_row(make, name):
    table = make(OVERFLOW)
    table.report(make_flow("a1"), 0)
    flow = make_flow("b2", a="10.0.0.3", **LATER)
    flow["LastUpdateMetric"][name] = -1
    assert table.report(flow, 0) == "table_full"
    assert table.values_skipped[f"LastUpdateMetric.{name}"] == 1
    shown = {
        ">": "0" if name in ("Start", "ABBytes") else "5",
        "<": "0" if name in ("Start", "BABytes") else "6",
    }
    for direction, value in shown.items():
        assert samples(table, BYTES)[OTHERS.format(direction)] == value
    assert (table.connections, table.rejected_total, table.overflowed_total) == (2, 1, 1)


# Omitted values


@pytest.mark.parametrize("number", WILD_NUMBERS)
@pytest.mark.parametrize(("group", "name"), LEFT_OUT)
def test_out_of_range_optional_number_is_omitted(make, group, name, number):
    table = make()
    field = f"{group}.{name}" if group else name
    assert table.report(make_flow("a1", (1, 2, 1, 2), last=1, rtt=7), 0) is None
    wild = with_number(group, name, number)
    wild = wild | {"UUID": "a1", "Last": 2, "Metric": wild["Metric"] | {"ABBytes": 11}}
    assert table.report(wild, 60) is None
    assert sums(table)[0] == 11
    assert rtt_ns(table) == 7
    assert table.values_skipped[field] == 1
    assert table.page(60 + TIMEOUT_S - 1)[BYTES]
    assert not table.finished.get("other")


def test_negative_rtt_has_no_series(make):
    # Skydive computes a flow's RTT once, from the wall-clock times of two packets. If the clock was
    # set back between the packets, all reports of the flow have the same negative RTT.
    table = make()
    flow = make_flow("a1", (10, 20, 1, 2))
    flow["Metric"]["RTT"] = -5
    assert table.report(flow, 0) is None
    assert sums(table) == [10, 20, 1, 2]
    assert rtt_ns(table) is None
    assert table.values_skipped["Metric.RTT"] == 1


def test_omitted_values_of_a_report_skipped_as_out_of_range_are_not_counted(make):
    table = make()
    flow = make_flow("a1", (-1, 0, 0, 0))
    flow["Metric"]["RTT"] = -5
    assert table.report(flow, 0) == "out_of_range"
    assert table.values_skipped["Metric.RTT"] == 0


def test_omitted_field_is_counted_once(make):
    table = make(Spec(views=(view("a", (NODE,), "start", "packets"),)))
    table.report(make_flow("a1"), 0)
    assert table.report(make_flow("b2", start=-1), 0) is None
    assert table.values_skipped["Start"] == 1


# Dormant flows


MEMORY = Spec(views=(View(), view("node", (NODE,), "bytes")), flow_memory_s=300)
SHARED = Spec(views=(view("a", (IP_A, IP_B), "bytes", "flows"), view("node", (NODE,), "bytes")))
A_WHILE_S = 120.0


def test_deltas_of_a_lost_report_are_counted_with_the_next_report(make):
    table = make(MEMORY)
    table.report(make_flow("a1", (100, 200, 1, 2), last=1), 0)
    # The report at 60 s is lost.
    table.expire(TIMEOUT_S)
    assert (table.flows, table.dormant_flows, table.connections) == (0, 1, 0)
    later = make_flow(
        "a1", (130, 260, 3, 4), last_update=(10, 20, 1, 1), update_start=60_000, last=2
    )
    assert table.report(later, A_WHILE_S) is None
    assert sums(table, A_WHILE_S) == [130, 260, 3, 4]
    assert samples(table, "node_bytes_total", A_WHILE_S) == {"node-1": "390"}
    assert (table.flows, table.dormant_flows) == (1, 0)
    assert (table.created_total, table.expired_total) == (2, 1)


def test_flow_counts_exclude_dormant_flows(make):
    table = make(
        Spec(views=(view("a", (NODE,), "flows"), view("b", (PROTOCOL,), "bytes", "flows")))
    )
    table.report(make_flow("a1"), 0)
    table.report(make_flow("b2", last=1), 50)
    table.expire(TIMEOUT_S)
    assert samples(table, "a_flows", TIMEOUT_S) == {"node-1": "1"}
    assert samples(table, "b_flows", TIMEOUT_S) == {"TCP": "1"}
    assert (table.connections, table.flows, table.dormant_flows) == (1, 1, 1)


@pytest.mark.parametrize("total", [(100, 200, 1, 2), (90, 200, 1, 2)])
def test_late_report_does_not_make_a_dormant_flow_live(make, total):
    table = make(MEMORY)
    table.report(make_flow("a1", last=5), 0)
    table.expire(TIMEOUT_S)
    assert table.report(make_flow("a1", total, last=5), TIMEOUT_S) == "late"
    assert (table.connections, table.flows, table.dormant_flows) == (0, 0, 1)


def test_restarted_dormant_flow_adds_its_totals(make):
    table = make(MEMORY)
    table.report(make_flow("a1", (100, 200, 1, 2), last=1), 0)
    table.expire(TIMEOUT_S)
    table.report(make_flow("a1", (10, 20, 3, 4), last=2), A_WHILE_S)
    assert samples(table, "node_bytes_total", A_WHILE_S) == {"node-1": "330"}
    assert sums(table, A_WHILE_S) == [110, 220, 4, 6]


def test_dormant_flow_is_forgotten_after_flow_memory_s(make):
    table = make(MEMORY)
    table.report(make_flow("a1", last=1), 0)
    table.expire(TIMEOUT_S)
    table.expire(TIMEOUT_S + 299)
    assert table.dormant_flows == 1
    table.expire(TIMEOUT_S + 300)
    assert table.dormant_flows == 0
    table.report(make_flow("a1", (130, 260, 3, 4), **LATER), TIMEOUT_S + 300)
    assert samples(table, "node_bytes_total", TIMEOUT_S + 300) == {"node-1": "311"}


def test_flows_are_forgotten_at_once_if_flow_memory_s_is_zero(make):
    table = make(Spec(views=MEMORY.views, flow_memory_s=0))
    table.report(make_flow("a1", last=1), 0)
    table.expire(TIMEOUT_S)
    assert table.dormant_flows == 0
    table.report(make_flow("a1", (130, 260, 3, 4), **LATER), A_WHILE_S)
    assert samples(table, "node_bytes_total", A_WHILE_S) == {"node-1": "311"}


def test_new_flow_evicts_the_flow_that_became_dormant_first(make):
    table = make(Spec(views=MEMORY.views, max_flows=2))
    table.report(make_flow("a1", (1, 0, 0, 0), last=1, node="node-1"), 0)
    table.report(make_flow("b2", (1, 0, 0, 0), last=1, node="node-2"), 1)
    table.expire(TIMEOUT_S + 1)
    assert (table.flows, table.dormant_flows) == (0, 2)
    assert table.report(make_flow("c3", node="node-3"), A_WHILE_S) is None
    assert (table.flows, table.dormant_flows) == (1, 1)
    assert table.dormant_uuids() == ["b2"]
    # Flow b2 becomes live in its own row, although the table is full.
    assert table.report(make_flow("b2", (4, 0, 0, 0), last=2, node="node-2"), A_WHILE_S) is None
    assert samples(table, "node_bytes_total", A_WHILE_S)["node-2"] == "4"
    assert table.report(make_flow("d4", node="node-4"), A_WHILE_S) == "table_full"


def test_ended_flows_are_evicted_first(make):
    table = make(Spec(views=MEMORY.views, max_flows=2))
    table.report(make_flow("a1", last=1), 0)
    table.expire(TIMEOUT_S)
    table.report(make_flow("b2", last=1), TIMEOUT_S)
    table.report(make_flow("b2", last=1, finish=1, update_last=5), TIMEOUT_S)
    table.expire(2 * TIMEOUT_S)
    assert table.dormant_uuids() == ["b2", "a1"]
    table.report(make_flow("c3"), 2 * TIMEOUT_S + 15)
    assert table.dormant_uuids() == ["a1"]


def test_recently_ended_flow_is_not_evicted(make):
    # The table must remember the flow, because its last update can arrive after its closing report.
    table = make(Spec(views=MEMORY.views, max_flows=2))
    table.raise_horizon(0)
    table.report(make_flow("a1", last=1, node="node-1"), 1_000)
    table.expire(1_000 + TIMEOUT_S)
    closing = an_update(
        "b2", (30, 3, 0, 0), age_s=60, last_update=(0, 0, 0, 0), finish=1, last_s=20
    )
    assert table.report(closing, 1_100) is None
    assert table.report(make_flow("c3", node="node-3"), 1_114) is None
    assert table.dormant_uuids() == ["b2"]
    update = an_update("b2", (30, 3, 0, 0), age_s=60, last_update=(30, 3, 0, 0), last_s=20)
    assert table.report(update, 1_114) == "late"


def test_returning_connection_of_several_flows_continues_its_counters(make):
    table = make(SHARED)
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 0)
    table.report(make_flow("b2", (10, 0, 0, 0), last=1, ports=(40_001, 443)), 0)
    table.expire(TIMEOUT_S)
    assert (table.connections, table.dormant_flows, table.dormant_connections) == (0, 2, 1)
    table.report(make_flow("b2", (15, 0, 0, 0), last=2, ports=(40_001, 443)), A_WHILE_S)
    assert samples(table, "a_bytes_total", A_WHILE_S) == {"10.0.0.1,10.0.0.2": "115"}
    table.report(make_flow("c3", (1, 0, 0, 0), last=2, ports=(40_002, 443)), A_WHILE_S)
    table.report(make_flow("a1", (102, 0, 0, 0), last=2), A_WHILE_S)
    assert samples(table, "a_bytes_total", A_WHILE_S) == {"10.0.0.1,10.0.0.2": "118"}
    assert samples(table, "node_bytes_total", A_WHILE_S) == {"node-1": "118"}
    assert table.dormant_connections == 0


def test_unknown_flow_continues_counters_of_a_removed_connection(make):
    # One connection can have several flows, for example after an agent restarted.
    table = make()
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 0)
    table.report(make_flow("b2", (10, 0, 0, 0), last=1), 0)
    table.expire(TIMEOUT_S)
    assert table.dormant_connections == 1
    table.report(make_flow("c3", (7, 0, 0, 0), last=1, last_update=(7, 0, 0, 0)), A_WHILE_S)
    assert sums(table, A_WHILE_S)[0] == 117
    # The saved counters may include earlier traffic of flow d4, so it adds only its last update.
    table.expire(A_WHILE_S + TIMEOUT_S)
    table.report(make_flow("d4", (1000, 0, 0, 0), **LATER), 4 * A_WHILE_S)
    assert sums(table, 4 * A_WHILE_S)[0] == 122


def test_saved_counters_are_forgotten_after_flow_memory_s(make):
    table = make(Spec(views=SHARED.views, flow_memory_s=300, max_flows=3))
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 0)
    table.expire(TIMEOUT_S)
    assert (table.dormant_flows, table.dormant_connections) == (1, 1)
    table.expire(TIMEOUT_S + 300)
    assert (table.dormant_flows, table.dormant_connections) == (0, 0)
    # Saved counters count towards max_flows.
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 400)
    table.expire(400 + TIMEOUT_S)
    table.report(make_flow("b2", (1, 0, 0, 0), last=1, a="10.0.0.9"), 500)
    table.report(make_flow("c3", (1, 0, 0, 0), last=1, a="10.0.0.9"), 500)
    assert (table.flows, table.dormant_flows, table.dormant_connections) == (2, 0, 1)


def test_closing_report_without_deltas_ends_a_dormant_flow(make):
    table = make(MEMORY)
    table.report(make_flow("a1", last=1_500, update_last=2_000), 0)
    table.expire(TIMEOUT_S)
    closing = make_flow("a1", last=1_500, update_last=2_000, finish=1)
    assert table.report(closing, A_WHILE_S) == "late"
    assert table.finished["timeout"] == 1
    assert (table.connections, table.dormant_flows) == (0, 1)
    # The ended flow is remembered while reports of it can be in transit.
    table.expire(A_WHILE_S + TIMEOUT_S - 1)
    assert table.dormant_flows == 1
    table.expire(A_WHILE_S + TIMEOUT_S)
    assert table.dormant_flows == 0


def test_closing_report_with_deltas_does_not_create_a_connection(make):
    table = make(MEMORY)
    table.report(make_flow("a1", (100, 200, 1, 2), last=1_500), 0)
    table.expire(TIMEOUT_S)
    # The report that this closing report repeats was lost.
    closing = make_flow(
        "a1", (130, 260, 3, 4), last_update=(30, 60, 2, 2), update_start=2_000, update_last=62_000,
        last=2_500, finish=1,
    )  # fmt: skip
    assert table.report(closing, 700) is None
    assert (table.connections, table.flows, table.dormant_flows) == (0, 0, 1)
    assert samples(table, "node_bytes_total", 700) == {"node-1": "390"}
    assert table.finished["timeout"] == 1
    assert table.report(closing, 701) == "late"


def test_closing_report_with_new_packets_creates_the_connection(make):
    # When an agent stops, its closing reports have the packets since the latest update.
    table = make(MEMORY)
    table.report(make_flow("a1", (100, 200, 1, 2), last=1_500), 0)
    table.expire(TIMEOUT_S)
    closing = make_flow(
        "a1", (130, 260, 3, 4), last_update=(30, 60, 2, 2), update_start=2_000, last=2_500, finish=1
    )
    assert table.report(closing, A_WHILE_S) is None
    assert sums(table, A_WHILE_S) == [130, 260, 3, 4]
    assert (table.connections, table.flows, table.dormant_flows) == (1, 1, 0)
    # An ended flow is kept for one timeout after it became dormant.
    table.expire(A_WHILE_S + TIMEOUT_S)
    assert table.dormant_flows == 1
    table.expire(A_WHILE_S + 2 * TIMEOUT_S)
    assert table.dormant_flows == 0


def test_closing_report_adds_to_saved_counters(make):
    table = make(SHARED)
    table.report(make_flow("a1", (100, 0, 0, 0), last=1_500), 0)
    table.report(make_flow("b2", (10, 0, 0, 0), last=1_500, ports=(40_001, 443)), 0)
    table.expire(TIMEOUT_S)
    closing = make_flow("a1", (105, 0, 0, 0), last=2_500, update_last=62_000, finish=1)
    assert table.report(closing, A_WHILE_S) is None
    assert table.connections == 0
    table.report(make_flow("b2", (11, 0, 0, 0), last=2_500, ports=(40_001, 443)), A_WHILE_S)
    assert samples(table, "a_bytes_total", A_WHILE_S) == {"10.0.0.1,10.0.0.2": "116"}
    assert samples(table, "node_bytes_total", A_WHILE_S) == {"node-1": "116"}


@pytest.mark.parametrize("overflow", ["drop", "other"])
def test_dormant_flow_is_rejected_at_max_connections(make, overflow):
    table = make(Spec(views=MEMORY.views, max_connections=1, overflow=overflow))
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 0)
    table.expire(TIMEOUT_S)
    table.report(make_flow("b2", (1, 0, 0, 0), last=1, a="10.0.0.9"), TIMEOUT_S)
    woken = make_flow("a1", (130, 0, 0, 0), last=2)
    assert table.report(woken, A_WHILE_S) == "table_full"
    assert (table.dormant_flows, table.rejected_total) == (1, 1)
    assert table.overflowed_total == (overflow == "other")
    node = {"drop": "101", "other": "131"}[overflow]
    assert samples(table, "node_bytes_total", A_WHILE_S) == {"node-1": node}
    if overflow == "other":
        assert samples(table, BYTES, A_WHILE_S)[OTHERS.format(">")] == "30"
    # When the first view has room again, the flow adds the increase since its last counted report.
    table.expire(TIMEOUT_S + TIMEOUT_S)
    table.report(make_flow("a1", (140, 0, 0, 0), last=3), 200)
    assert samples(table, "node_bytes_total", 200) == {"node-1": "141"}


def test_relabeled_connection_continues_its_counters_when_it_returns(make):
    names = Names({"node-1": ("old",)})
    name = looked_up("name", ("NodeTID",), names)
    table = make(Spec(views=(View((*LABELS, name)),)))
    table.report(make_flow("a1", (100, 200, 1, 2), last=1), 0)
    names["node-1"] = ("new",)
    table.relabel(names, ["node-1"])
    table.report(make_flow("a1", (110, 220, 1, 2), last=2), 10)
    assert sums(table, 10) == [10, 20, 0, 0]
    table.expire(10 + TIMEOUT_S)
    # The counters are saved, because they are lower than the totals of the flow.
    assert table.dormant_connections == 1
    table.report(make_flow("a1", (111, 222, 1, 2), last=3), A_WHILE_S)
    assert sums(table, A_WHILE_S) == [11, 22, 0, 0]


def test_relabeled_flow_continues_the_counters_of_a_removed_connection(make):
    names = Names()
    name = looked_up("name", ("NodeTID",), names)
    table = make(Spec(views=(view("a", (name,), "bytes"),)))
    names["node-1"] = ("eth0",)
    table.report(make_flow("a1", (100, 0, 0, 0), last=1, node="node-1"), 0)
    table.expire(TIMEOUT_S)
    assert table.dormant_connections == 1
    table.report(make_flow("b2", (7, 0, 0, 0), last=1, node="node-2"), 80)
    names["node-2"] = ("eth0",)
    table.relabel(names, ["node-2"])
    assert table.dormant_connections == 0
    table.report(make_flow("b2", (9, 0, 0, 0), last=2, node="node-2"), 81)
    assert samples(table, "a_bytes_total", 81) == {"eth0": "102"}
    # When the connection is removed again, its counters are saved only once.
    table.expire(81 + TIMEOUT_S)
    assert table.dormant_connections == 1
    table.report(make_flow("a1", (101, 0, 0, 0), last=3, node="node-1"), 200)
    assert samples(table, "a_bytes_total", 200) == {"eth0": "103"}


# New flows


BOTH = Spec(
    views=(
        View(LABELS, (*FAMILIES, *standard("main", "new_flows"))),
        view("node", (NODE,), "bytes", "new_flows"),
        view("port", (PORT_B, DIRECTION), "new_flows"),
    ),
    flow_memory_s=300,
)
"""The labels of the first view identify a connection."""

SERVICES = Spec(views=(view("a", (IP_B, PORT_B), "bytes", "new_flows"),), flow_memory_s=300)
SERVICE = "10.0.0.2,443"


def new_flows(table, prefix, now=0.0):
    """Return the number of new flows in the only row of a view; None if the view has no row."""
    values = [*samples(table, f"{prefix}_new_flows_total", now).values()]
    assert len(values) <= 1
    return int(values[0]) if values else None


def test_first_reports_are_counted_as_new_flows(make):
    table = make(BOTH)
    table.report(make_flow("a1", last=1_500), 0)
    assert [new_flows(table, prefix) for prefix in ("main", "node", "port")] == [1, 1, 1]
    # There is one series per row, even if the view has the label ``direction``.
    assert samples(table, "port_new_flows_total") == {"443,>": "1"}
    table.report(make_flow("b2", last=1_500), 0)
    assert [new_flows(table, prefix) for prefix in ("main", "node", "port")] == [2, 2, 2]
    table.report(make_flow("a1", last=1_500), 1)  # a late report
    table.report(make_flow("a1", (101, 201, 2, 3), last=1_600), 2)  # more bytes
    table.report(make_flow("a1", (1, 1, 1, 1), last=1_700), 3)  # lower totals: the flow restarts
    table.report(make_flow("a1", (2, 2, 2, 2), last=1_800, finish=1), 4)  # the closing report
    assert [new_flows(table, prefix, 4) for prefix in ("main", "node", "port")] == [2, 2, 2]


def test_new_flows_can_be_the_only_metric_of_a_view(make):
    table = make(Spec(views=(view("a", (PORT_B,), "new_flows"),)))
    for number in range(3):
        table.report(make_flow(f"a{number}", ports=(number, 443)), 0)
    table.report(make_flow("b2", **LATER), 0)
    assert samples(table, "a_new_flows_total") == {"443": "3"}


def test_flow_without_a_first_report_is_not_new(make):
    table = make(BOTH)
    table.report(make_flow("a1", **LATER), 0)
    assert sums(table) == [100, 200, 1, 2]
    assert samples(table, "node_bytes_total") == {"node-1": "11"}
    assert [new_flows(table, prefix) for prefix in ("main", "node", "port")] == [0, 0, 0]
    table.report(KNOWN, 0)
    assert [new_flows(table, prefix) for prefix in ("main", "node", "port")] == [1, 1, 1]


def test_metric_new_flows_requires_the_field_start(make):
    # The labels identify the connection, so only the metric ``new_flows`` requires ``Start``.
    table = make(families=(*FAMILIES, *standard("main", "new_flows")))
    table.message([make_flow("a1", **LATER), make_flow("b2", a="10.0.0.3")], 0)
    assert sorted(samples(table, "main_new_flows_total").values()) == ["0", "1"]
    assert table.values_skipped["Start"] == 0
    table.message([make_flow("c3", a="10.0.0.4", start=-1)], 0)
    assert sorted(samples(table, "main_new_flows_total").values()) == ["0", "0", "1"]
    assert table.values_skipped["Start"] == 1


def test_flow_that_cannot_have_been_counted_is_new(make):
    table = make(BOTH)
    table.raise_horizon(BEGAN)
    now = BEGAN + 200
    table.report(an_update("a1", (30, 3, 0, 0), age_s=124, last_update=(10, 1, 0, 0)), now)
    assert [new_flows(table, prefix, now) for prefix in ("main", "node")] == [1, 1]
    table.report(an_update("b2", (30, 3, 0, 0), age_s=125, last_update=(10, 1, 0, 0)), now)
    assert [new_flows(table, prefix, now) for prefix in ("main", "node")] == [1, 1]


def test_flow_with_only_a_closing_report_can_be_new(make):
    table = make(BOTH)
    table.raise_horizon(BEGAN)
    now = BEGAN + 1_000
    repeat = an_update("a1", (30, 3, 0, 0), age_s=660, last_update=(0, 0, 0, 0), finish=1, last_s=9)
    assert table.report(repeat, now) is None
    assert table.report(repeat, now) == "late"
    assert [new_flows(table, prefix, now) for prefix in ("main", "node")] == [None, 1]
    # The first view counts flow c3, because the connection of c3 exists. It did not count flow a1,
    # which had no connection.
    table.report(make_flow("b2", last=1), now)
    repeat = an_update("c3", (30, 3, 0, 0), age_s=660, last_update=(0, 0, 0, 0), finish=1, last_s=9)
    table.report(repeat, now)
    assert [new_flows(table, prefix, now) for prefix in ("main", "node")] == [2, 3]
    # A flow that began before the horizon may have been counted.
    repeat = an_update("d4", (3, 3, 0, 0), age_s=960, last_update=(0, 0, 0, 0), finish=1, last_s=9)
    assert table.report(repeat, now) == "ended"
    assert [new_flows(table, prefix, now) for prefix in ("main", "node")] == [2, 3]


def test_connection_counts_new_flows_that_had_only_closing_reports(make):
    table = make(SERVICES)
    table.raise_horizon(BEGAN)
    now = BEGAN + 1_000
    for uuid in ("a1", "b2"):
        repeat = an_update(
            uuid, (9, 0, 0, 0), age_s=660, last_update=(0, 0, 0, 0), finish=1, last_s=9
        )
        table.report(repeat, now)
    assert (table.connections, table.dormant_connections) == (0, 1)
    table.report(make_flow("c3", last=1), now)
    assert samples(table, "a_new_flows_total", now) == {SERVICE: "3"}


def test_dormant_flow_that_becomes_live_is_not_new(make):
    table = make(BOTH)
    table.report(make_flow("a1", last=1), 0)
    table.expire(TIMEOUT_S)
    # No counters are saved: they equal the totals of the flow, and the number of new flows is 1.
    assert (table.connections, table.dormant_flows, table.dormant_connections) == (0, 1, 0)
    table.report(make_flow("a1", (101, 201, 2, 3), last=2), A_WHILE_S)
    assert sums(table, A_WHILE_S) == [101, 201, 2, 3]
    assert [new_flows(table, prefix, A_WHILE_S) for prefix in ("main", "node", "port")] == [1, 1, 1]


def test_returning_connection_can_have_zero_new_flows(make):
    table = make(BOTH)
    table.report(make_flow("a1", (100, 200, 1, 2), **LATER), 0)
    table.expire(TIMEOUT_S)
    # The counters are saved, because the number of new flows is not 1.
    assert (table.dormant_flows, table.dormant_connections) == (1, 1)
    table.report(make_flow("a1", (101, 201, 2, 3), last=80_000), A_WHILE_S)
    assert sums(table, A_WHILE_S) == [101, 201, 2, 3]
    assert [new_flows(table, prefix, A_WHILE_S) for prefix in ("main", "node", "port")] == [0, 0, 0]


def test_returning_connection_keeps_its_number_of_new_flows(make):
    table = make(SERVICES)
    for number in range(3):
        table.report(make_flow(f"a{number}", (10, 0, 0, 0), ports=(number, 443), last=1), 0)
    table.expire(TIMEOUT_S)
    assert table.dormant_connections == 1
    table.report(make_flow("a2", (11, 0, 0, 0), ports=(2, 443), last=2), A_WHILE_S)
    assert samples(table, "a_new_flows_total", A_WHILE_S) == {SERVICE: "3"}
    table.expire(A_WHILE_S + TIMEOUT_S)
    table.report(make_flow("b2", (1, 0, 0, 0), ports=(9, 443), last=1), 2 * A_WHILE_S)
    assert samples(table, "a_new_flows_total", 2 * A_WHILE_S) == {SERVICE: "4"}
    assert samples(table, "a_bytes_total", 2 * A_WHILE_S) == {SERVICE: "32"}


def test_closing_report_of_a_dormant_flow_is_not_new(make):
    table = make(SERVICES)
    table.report(make_flow("a1", (100, 0, 0, 0), last=1_500), 0)
    table.expire(TIMEOUT_S)
    closing = make_flow("a1", (105, 0, 0, 0), last=2_500, update_last=62_000, finish=1)
    assert table.report(closing, A_WHILE_S) is None
    table.report(make_flow("b2", (1, 0, 0, 0), ports=(9, 443)), A_WHILE_S)
    assert samples(table, "a_new_flows_total", A_WHILE_S) == {SERVICE: "2"}
    assert samples(table, "a_bytes_total", A_WHILE_S) == {SERVICE: "106"}


def test_new_flows_are_counted_from_zero_after_the_row_expired(make):
    table = make(BOTH)
    table.report(make_flow("a1", last=1), 0)
    table.expire(VIEW_TIMEOUT_S)
    assert new_flows(table, "node", VIEW_TIMEOUT_S) is None
    table.report(make_flow("b2", last=1), VIEW_TIMEOUT_S)
    assert new_flows(table, "node", VIEW_TIMEOUT_S) == 1


def test_new_flows_of_a_full_table_are_counted_in_the_overflow_row(make):
    main = View(LABELS, (*FAMILIES, *standard("main", "new_flows")))
    table = make(
        Spec(
            overflow="other",
            max_connections=1,
            views=(main, view("a", (NODE,), "new_flows"), view("b", (IP_A,), "new_flows")),
        )
    )
    table.report(make_flow("a1", last=1), 0)
    assert table.report(make_flow("b2", a="10.0.0.3", last=1), 0) == "table_full"
    assert table.report(make_flow("b2", a="10.0.0.3", **LATER), 0) == "table_full"
    own = "10.0.0.1,10.0.0.2,40000,443,>,node-1,TCP"
    assert samples(table, "main_new_flows_total") == {own: "1", OTHERS.format(">"): "1"}
    assert samples(table, "a_new_flows_total") == {"node-1": "2"}
    assert samples(table, "b_new_flows_total") == {"10.0.0.1": "1", "other": "1"}


def test_dormant_flow_added_to_the_overflow_row_is_not_new(make):
    views = (view("a", (IP_A,), "bytes", "new_flows"),)
    table = make(Spec(overflow="other", max_connections=1, views=views, flow_memory_s=300))
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 0)
    table.expire(TIMEOUT_S)
    table.report(make_flow("b2", (1, 0, 0, 0), last=1, a="10.0.0.9"), TIMEOUT_S)
    woken = make_flow("a1", (130, 0, 0, 0), last=2)
    assert table.report(woken, A_WHILE_S) == "table_full"
    assert samples(table, "a_bytes_total", A_WHILE_S) == {"10.0.0.9": "1", "other": "30"}
    assert samples(table, "a_new_flows_total", A_WHILE_S) == {"10.0.0.9": "1", "other": "0"}


def test_rejected_flow_is_new_when_it_is_accepted(make):
    views = (view("a", (IP_A,), "new_flows"),)
    table = make(Spec(max_connections=1, views=views, flow_memory_s=300))
    table.raise_horizon(BEGAN)
    table.report(make_flow("a1", last=1), BEGAN + 190)
    first = an_update("b2", (10, 1, 0, 0), age_s=60, last_update=(10, 1, 0, 0), a="10.0.0.9")
    assert table.report(first, BEGAN + 200) == "table_full"
    table.expire(BEGAN + 190 + TIMEOUT_S)
    second = an_update("b2", (30, 3, 0, 0), age_s=150, last_update=(5, 1, 0, 0), a="10.0.0.9")
    assert table.report(second, BEGAN + 290) is None
    assert samples(table, "a_new_flows_total", BEGAN + 290) == {"10.0.0.9": "1"}


def test_relabeled_flow_is_not_new(make):
    names = Names({"node-1": ("old",)})
    name = looked_up("name", ("NodeTID",), names)
    table = make(Spec(views=(view("a", (name,), "new_flows"), view("b", (NODE,), "new_flows"))))
    table.report(make_flow("a1", last=1), 0)
    names["node-1"] = ("new",)
    table.relabel(names, ["node-1"])
    assert samples(table, "a_new_flows_total") == {"new": "0"}
    table.report(make_flow("b2", last=1, ports=(9, 443)), 1)
    assert samples(table, "a_new_flows_total", 1) == {"new": "1"}
    # When flow c3 gets the name "new", the connection starts with the saved number of new flows.
    table.expire(1 + TIMEOUT_S)
    table.report(make_flow("c3", last=1, node="node-2"), A_WHILE_S)
    names["node-2"] = ("new",)
    table.relabel(names, ["node-2"])
    assert samples(table, "a_new_flows_total", A_WHILE_S) == {"new": "1"}
    assert samples(table, "b_new_flows_total", A_WHILE_S) == {"node-1": "2", "node-2": "1"}


def test_duplicate_is_not_a_new_flow(make):
    views = (view("a", (NODE,), "new_flows"), view("b", (PORT_B,), "new_flows"))
    table = make(Spec(deduplicate="first", views=views))
    table.report(make_flow("a1", node="node-1"), 0)
    assert table.report(make_flow("b2", node="node-2"), 0) == "duplicate"
    assert samples(table, "b_new_flows_total") == {"443": "1"}
    # Flow b2 takes over the conversation. It is not new, because it began earlier.
    table.expire(TIMEOUT_S)
    table.report(make_flow("b2", node="node-2", **LATER), TIMEOUT_S)
    assert samples(table, "a_new_flows_total", TIMEOUT_S) == {"node-2": "0"}
    assert samples(table, "b_new_flows_total", TIMEOUT_S) == {"443": "1"}


def test_saturated_counters_do_not_affect_new_flows(make):
    table = make(SERVICES)
    for number in range(5):
        flow = make_flow(f"a{number}", (MAX_NUMBER // 2, 0, 0, 0), ports=(number, 443), last=1)
        table.report(flow, 0)
    assert samples(table, "a_bytes_total") == {SERVICE: str(min(MAX_SUM, 5 * (MAX_NUMBER // 2)))}
    assert samples(table, "a_new_flows_total") == {SERVICE: "5"}


@pytest.mark.parametrize("mark", ["Start", "LastUpdateMetric.Start"])
def test_flow_with_invalid_times_is_not_new(make, mark):
    table = make(BOTH)
    flow = make_flow("a1")
    if mark == "Start":
        flow["Start"] = -1
    else:
        flow["LastUpdateMetric"]["Start"] = -1
    assert table.report(flow, 0) is None
    assert [new_flows(table, prefix) for prefix in ("main", "node", "port")] == [0, 0, 0]
    assert table.values_skipped[mark] == 1


# Flows that cannot have been counted before


BEGAN = 1_000_000.0
"""The time at which reports begin to arrive."""


def an_update(uuid, total, *, age_s, last_update, finish=0, last_s=None, **fields):
    """Return a report whose last update ends ``age_s`` seconds after the start of the flow."""
    start = 5_000_000
    update = start + round(age_s * 1000)
    return make_flow(
        uuid,
        total,
        last_update=last_update,
        start=start,
        update_start=update - 60_000,
        update_last=update,
        last=update - 500 if last_s is None else start + last_s * 1000,
        finish=finish,
        **fields,
    )


@pytest.mark.parametrize(("age_s", "counted"), [(120, 33), (124, 33), (125, 11), (3_600, 11)])
def test_unknown_flow_adds_its_total_if_it_began_after_the_horizon(make, age_s, counted):
    table = make(MEMORY)
    table.raise_horizon(BEGAN)
    # 200 s after the horizon, only flows younger than 125 s have certainly never been counted. The
    # table subtracts the update interval of agents (60 s) and the maximum delay (15 s).
    report = an_update("a1", (30, 3, 0, 0), age_s=age_s, last_update=(10, 1, 0, 0))
    assert table.report(report, BEGAN + 200) is None
    assert samples(table, "node_bytes_total", BEGAN + 200) == {"node-1": str(counted)}


def test_age_limit_for_adding_a_total_depends_on_the_update_interval(make):
    table = make(MEMORY)
    table.raise_horizon(BEGAN)
    table.flow_update_s = 10
    report = an_update("a1", (30, 3, 0, 0), age_s=170, last_update=(10, 1, 0, 0))
    assert table.report(report, BEGAN + 200) is None
    assert samples(table, "node_bytes_total", BEGAN + 200) == {"node-1": "33"}


def test_unknown_flow_adds_its_last_update_if_the_table_has_no_horizon(make):
    table = make(MEMORY)
    report = an_update("a1", (30, 3, 0, 0), age_s=1, last_update=(10, 1, 0, 0))
    table.report(report, BEGAN)
    assert table.horizon_s is None
    assert samples(table, "node_bytes_total", BEGAN) == {"node-1": "11"}


def test_forgotten_flow_moves_the_horizon_to_its_latest_report(make):
    table = make(MEMORY)
    table.raise_horizon(BEGAN)
    table.report(make_flow("a1", last=1), BEGAN + 100)
    table.expire(BEGAN + 100 + TIMEOUT_S)
    assert table.horizon_s == BEGAN
    table.expire(BEGAN + 100 + TIMEOUT_S + 300)
    assert table.horizon_s == BEGAN + 100
    # An ended flow does not move the horizon, because no more reports of it can arrive.
    table.report(make_flow("b2", last=1_500, update_last=2_000), BEGAN + 600)
    table.report(make_flow("b2", last=1_500, update_last=2_000, finish=1), BEGAN + 610)
    table.expire(BEGAN + 900)
    assert table.dormant_flows == 1
    table.expire(BEGAN + 1_000)
    assert table.dormant_flows == 0
    assert table.horizon_s == BEGAN + 100


def test_report_added_to_the_overflow_row_moves_the_horizon(make):
    table = make(OVERFLOW)
    table.raise_horizon(BEGAN)
    table.report(make_flow("a1", (1, 1, 0, 0), last=1), BEGAN + 1)
    first = an_update("b2", (30, 3, 0, 0), age_s=100, last_update=(10, 1, 0, 0), a="10.0.0.9")
    assert table.report(first, BEGAN + 300) == "table_full"
    assert samples(table, BYTES, BEGAN + 300)[OTHERS.format(">")] == "30"
    assert table.horizon_s == BEGAN + 300
    second = an_update("b2", (37, 3, 0, 0), age_s=160, last_update=(7, 0, 0, 0), a="10.0.0.9")
    assert table.report(second, BEGAN + 360) == "table_full"
    assert samples(table, BYTES, BEGAN + 360)[OTHERS.format(">")] == "37"


def test_flow_with_only_a_closing_report_is_counted_without_a_connection(make):
    table = make(MEMORY)
    table.raise_horizon(BEGAN)
    closing = an_update(
        "a1", (30, 3, 0, 0), age_s=660, last_update=(0, 0, 0, 0), finish=1, last_s=20
    )
    assert table.report(closing, BEGAN + 1_000) is None
    assert samples(table, "node_bytes_total", BEGAN + 1_000) == {"node-1": "33"}
    assert (table.connections, table.flows, table.dormant_flows) == (0, 0, 1)
    # Flow a1 is now known, so its delayed earlier report is late.
    lost = an_update("a1", (30, 3, 0, 0), age_s=60, last_update=(30, 3, 0, 0), last_s=20)
    assert table.report(lost, BEGAN + 1_005) == "late"
    assert samples(table, "node_bytes_total", BEGAN + 1_005) == {"node-1": "33"}
    # Flow b2 began before the horizon, so it may have been counted.
    old = an_update("b2", (30, 3, 0, 0), age_s=1_500, last_update=(0, 0, 0, 0), finish=1, last_s=20)
    assert table.report(old, BEGAN + 1_000) == "ended"
    assert samples(table, "node_bytes_total", BEGAN + 1_000) == {"node-1": "33"}


def test_horizon_does_not_apply_with_deduplication(make):
    table = make(FIRST)
    table.raise_horizon(BEGAN)
    report = an_update("a1", (30, 3, 0, 0), age_s=100, last_update=(10, 1, 0, 0))
    table.report(report, BEGAN + 1_000)
    assert sum(int(v) for v in samples(table, "a_bytes_total", BEGAN + 1_000).values()) == 11


# How flows end


REMEMBERED_S = 200.0
"""A time at which the table has forgotten ended flows, but not the other dormant flows."""


@pytest.mark.parametrize("finish", [2, 3])
def test_report_with_finish_type_fin_or_rst_does_not_end_the_flow(make, finish):
    table = make(MEMORY)
    table.report(make_flow("a1", last=1, finish=finish), 0)
    table.report(make_flow("a1", (130, 260, 3, 4), last=2, finish=finish), 1)
    # With FinishType 1, a report with these times would repeat the last update, and be skipped.
    update = LATER | {"update_last": 80_000, "finish": finish}
    assert table.report(make_flow("b2", a="10.0.0.9", **update), 1) is None
    assert (table.connections, table.flows) == (2, 2)
    table.expire(1 + TIMEOUT_S)
    table.expire(REMEMBERED_S)
    assert table.dormant_flows == 2


def test_report_after_the_closing_report_reopens_the_flow(make):
    table = make(MEMORY)
    table.report(make_flow("a1", last=5, finish=1), 0)
    table.report(make_flow("a1", (130, 260, 3, 4), last=6), 1)
    # An older report does not reopen the flow.
    table.report(make_flow("b2", last=5, a="10.0.0.9", finish=1), 1)
    table.report(make_flow("b2", (101, 200, 1, 2), last=4, a="10.0.0.9"), 1)
    table.expire(1 + TIMEOUT_S)
    table.expire(REMEMBERED_S)
    assert table.dormant_uuids() == ["a1"]


def test_returning_ended_flow_is_reopened(make):
    table = make(MEMORY)
    table.report(make_flow("a1", last=5, finish=1), 0)
    table.expire(TIMEOUT_S)
    table.report(make_flow("a1", (130, 260, 3, 4), last=6), 80)
    table.expire(80 + TIMEOUT_S)
    table.expire(80 + REMEMBERED_S)
    assert table.dormant_flows == 1


def test_ended_flow_is_kept_for_one_timeout_even_if_flow_memory_s_is_zero(make):
    table = make(Spec(views=MEMORY.views, flow_memory_s=0))
    table.report(make_flow("a1", last=5, finish=1), 0)
    table.expire(TIMEOUT_S)
    assert table.report(make_flow("a1", last=4), TIMEOUT_S) == "late"
    assert table.dormant_flows == 1
    table.expire(2 * TIMEOUT_S)
    assert table.dormant_flows == 0


def test_omitted_values_of_a_skipped_closing_report_are_counted(make):
    table = make(MEMORY)
    closing = make_flow("a1", **LATER | {"update_last": -1, "finish": 1})
    assert table.report(closing, 0) == "ended"
    assert table.values_skipped["LastUpdateMetric.Last"] == 1


@pytest.mark.parametrize("finish", [0, 1])
def test_rejected_closing_report_ends_its_flow(make, finish):
    table = make(Spec(views=MEMORY.views, flow_memory_s=300, max_connections=1))
    table.report(make_flow("a1", (100, 0, 0, 0), last=1, finish=1 - finish), 0)
    table.report(make_flow("b2", last=1, a="10.0.0.9"), 0)
    table.expire(TIMEOUT_S)
    table.report(make_flow("c3", last=1, a="10.0.0.8"), TIMEOUT_S)
    woken = make_flow("a1", (130, 0, 0, 0), last=2, finish=finish)
    assert table.report(woken, 80) == "table_full"
    table.expire(80 + TIMEOUT_S)
    assert ("a1" in table.dormant_uuids()) == (finish == 0)
    table.expire(80 + 300)
    assert table.dormant_uuids() == ["c3"]


def test_closing_report_adds_to_other_views_if_the_first_view_is_full(make):
    table = make(Spec(views=MEMORY.views, max_connections=1))
    table.raise_horizon(BEGAN)
    table.report(make_flow("a1", (1, 1, 0, 0), last=1), BEGAN)
    closing = an_update(
        "b2", (30, 3, 0, 0), age_s=660, last_update=(0, 0, 0, 0), finish=1, last_s=20, a="10.0.0.9"
    )
    assert table.report(closing, BEGAN + 1_000) is None
    assert samples(table, "node_bytes_total", BEGAN + 1_000) == {"node-1": "35"}
    # No counters are saved, because the labels identify the conversation.
    assert (table.dormant_flows, table.dormant_connections) == (1, 0)
    table.expire(BEGAN + 1_000 + TIMEOUT_S)
    assert table.dormant_uuids() == ["a1"]


def test_connection_starts_with_deltas_of_earlier_closing_reports(make):
    labels = (IP_A, IP_B)
    table = make(Spec(views=(view("a", labels, "bytes", "tcp_out_of_order"),)))
    table.raise_horizon(BEGAN)
    now = BEGAN + 1_000
    for uuid in ("a1", "b2"):
        closing = an_update(
            uuid, (30, 3, 0, 0), age_s=660, last_update=(0, 0, 0, 0), finish=1, last_s=9
        )
        assert table.report(closing, now) is None
    assert (table.connections, table.dormant_connections) == (0, 1)
    table.report(make_flow("c3", (7, 0, 0, 0), last=1), now)
    assert samples(table, "a_bytes_total", now) == {"10.0.0.1,10.0.0.2": "73"}
    assert samples(table, "a_tcp_out_of_order_total", now) == {}
    # An existing connection adds the deltas of a closing report immediately.
    closing = an_update(
        "d4", (30, 3, 0, 0), age_s=660, last_update=(0, 0, 0, 0), finish=1, last_s=9
    )
    assert table.report(closing, now) is None
    assert samples(table, "a_bytes_total", now) == {"10.0.0.1,10.0.0.2": "106"}


def test_rejected_flow_adds_its_total_when_it_is_accepted(make):
    table = make(Spec(views=MEMORY.views, max_connections=1))
    table.raise_horizon(BEGAN)
    table.report(make_flow("a1", (1, 1, 0, 0), last=1), BEGAN + 190)
    first = an_update("b2", (10, 1, 0, 0), age_s=60, last_update=(10, 1, 0, 0), a="10.0.0.9")
    assert table.report(first, BEGAN + 200) == "table_full"
    table.expire(BEGAN + 190 + TIMEOUT_S)
    second = an_update("b2", (30, 3, 0, 0), age_s=150, last_update=(5, 1, 0, 0), a="10.0.0.9")
    assert table.report(second, BEGAN + 290) is None
    assert samples(table, "node_bytes_total", BEGAN + 290) == {"node-1": "35"}


def test_flow_is_unknown_after_another_capture_point_took_over_its_conversation(make):
    table = make(FIRST)
    table.report(make_flow("a1", (100, 0, 0, 0), last=1, node="node-1"), 0)
    table.expire(TIMEOUT_S)
    table.report(make_flow("b2", (120, 0, 0, 0), last=1, node="node-2"), TIMEOUT_S)
    table.expire(2 * TIMEOUT_S)
    # The other capture point has counted the packets that were sent after flow a1 became dormant.
    later = make_flow("a1", (125, 0, 0, 0), last_update=(5, 0, 0, 0), update_start=9, last=10)
    assert table.report(later, 2 * TIMEOUT_S) is None
    assert samples(table, "a_bytes_total", 2 * TIMEOUT_S) == {"node-1": "105"}


LOST = {"last_update": (0, 0, 0, 0), "update_start": 90_000, "update_last": 95_000, "finish": 1}
"""Fields of the closing report of a flow whose last update was lost."""

ONCE = Spec(deduplicate="first", views=MEMORY.views)


def test_closing_report_of_a_dormant_flow_claims_its_conversation(make):
    table = make(ONCE)
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 0)
    table.expire(80)
    closing = make_flow("a1", (130, 0, 0, 0), last=60_000, **LOST)
    assert table.report(closing, 100.5) is None
    assert (table.connections, table.flows, table.dormant_flows) == (0, 0, 1)
    assert table.dormant_uuids() == ["a1"]
    # The last update of flow b2 may contain some bytes of the closing report.
    other = make_flow("b2", (130, 0, 0, 0), node="node-2", **LATER)
    for now in (110, 175.9):
        table.expire(now)
        assert table.report(other, now) == "duplicate"
    # The claim ends after a timeout, and the ended flow is forgotten.
    table.expire(176)
    assert table.dormant_uuids() == []
    assert table.report(other, 176) is None
    assert samples(table, "node_bytes_total", 176) == {"node-1": "130", "node-2": "11"}


def test_closing_report_adds_nothing_if_another_capture_point_owns_the_conversation(make):
    table = make(ONCE)
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 0)
    table.expire(80)
    table.report(make_flow("b2", (130, 0, 0, 0), last=1, node="node-2"), 80)
    closing = make_flow("a1", (130, 0, 0, 0), last=60_000, **LOST)
    assert table.report(closing, 100) == "duplicate"
    assert samples(table, "node_bytes_total", 100) == {"node-1": "100", "node-2": "130"}


@pytest.mark.parametrize("memory_s", [200, 1290])
def test_closing_report_adds_nothing_after_another_capture_point_took_over(make, memory_s):
    table = make(Spec(deduplicate="first", views=ONCE.views, flow_memory_s=memory_s))
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 0)
    table.expire(80)
    table.report(make_flow("b2", (130, 0, 0, 0), last=1, node="node-2"), 80)
    table.report(make_flow("b2", (130, 0, 0, 0), last=1, node="node-2", finish=1), 90)
    table.expire(155)
    table.expire(230)  # the ended flow is forgotten, and so is its capture point
    closing = make_flow("a1", (130, 0, 0, 0), last=60_000, **LOST)
    assert table.report(closing, 230) == "ended"
    assert table.dormant_flows == 0
    # The closing report does not claim the conversation, so another capture point can take over.
    other = make_flow("c3", (5, 0, 0, 0), last=1, node="node-3")
    assert table.report(other, 230) is None


def test_late_closing_report_does_not_claim_the_conversation(make):
    table = make(ONCE)
    table.report(make_flow("a1", (100, 0, 0, 0), last=60_000), 0)
    table.expire(80)
    assert table.report(make_flow("a1", (100, 0, 0, 0), last=60_000, **LOST), 100) == "late"
    other = make_flow("b2", (30, 0, 0, 0), last=1, node="node-2")
    assert table.report(other, 101) is None


def test_next_closing_report_extends_the_claim_on_the_conversation(make):
    table = make(ONCE)
    for uuid in ("a1", "b2"):
        table.report(make_flow(uuid, (100, 0, 0, 0), last=1), 0)
    table.expire(80)
    first = make_flow("a1", (130, 0, 0, 0), last=60_000, **LOST)
    second = make_flow("b2", (107, 0, 0, 0), last=60_000, **LOST)
    table.message([first, second], 100)
    assert table.dormant_uuids() == ["b2", "a1"]
    # Late reports do not extend the claim.
    assert table.report(second, 120) == "late"
    assert table.report(first, 130) == "late"
    third = make_flow("b2", (108, 0, 0, 0), last=61_000, **LOST)
    assert table.report(third, 140) is None
    other = make_flow("c3", (30, 0, 0, 0), last=1, node="node-2")
    table.expire(214)
    assert table.dormant_uuids() == ["b2"]
    assert table.report(other, 214) == "duplicate"
    table.expire(215)
    assert table.report(other, 215) is None
    assert samples(table, "node_bytes_total", 215) == {"node-1": "238", "node-2": "30"}


def test_flow_that_claims_its_conversation_can_become_live_again(make):
    table = make(ONCE)
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 0)
    table.expire(80)
    table.report(make_flow("a1", (130, 0, 0, 0), last=60_000, **LOST), 100)
    assert table.report(make_flow("a1", (131, 0, 0, 0), last=70_000), 110) is None
    assert (table.flows, table.dormant_flows) == (1, 0)
    other = make_flow("b2", (30, 0, 0, 0), last=1, node="node-2")
    table.expire(184)
    assert table.report(other, 184) == "duplicate"
    table.expire(185)
    assert table.report(other, 185) is None


def test_flow_that_claims_its_conversation_is_not_evicted(make):
    table = make(Spec(deduplicate="first", views=ONCE.views, max_flows=2))
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 0)
    table.expire(80)
    table.report(make_flow("a1", (130, 0, 0, 0), last=60_000, **LOST), 100)
    assert table.report(make_flow("b2", last=1, a="10.0.0.8"), 120) is None
    assert table.report(make_flow("c3", last=1, a="10.0.0.9"), 120) == "table_full"
    other = make_flow("d4", (30, 0, 0, 0), last=1, node="node-2")
    assert table.report(other, 120) == "duplicate"
    table.expire(175)
    assert table.report(make_flow("c3", last=1, a="10.0.0.9"), 175) is None


@pytest.mark.parametrize("finish", [0, 1])
@pytest.mark.parametrize("memory_s", [0, 300])
def test_dormant_flow_added_to_the_overflow_row_claims_its_conversation(make, finish, memory_s):
    table = make(
        Spec(
            deduplicate="first",
            overflow="other",
            views=FIRST.views,
            max_connections=1,
            flow_memory_s=memory_s,
        )
    )
    table.report(make_flow("a1", (100, 0, 0, 0), last=1, finish=1), 0)
    table.expire(80)
    table.report(make_flow("b2", (1, 0, 0, 0), last=1, a="10.0.0.9", node="node-3"), 80)
    woken = make_flow("a1", (130, 0, 0, 0), last=60_000, finish=finish)
    assert table.report(woken, 100) == "table_full"
    other = make_flow("c3", (30, 0, 0, 0), last=1, node="node-2")
    assert table.report(other, 174) == "duplicate"
    assert samples(table, "a_bytes_total", 100) == {"node-3": "1", "other": "30"}
    table.expire(175)
    assert table.dormant_uuids() == ([] if not memory_s else ["b2"] if finish else ["b2", "a1"])
    assert table.report(other, 175) is None


@pytest.mark.parametrize("finish", [0, 1])
def test_rejected_report_does_not_end_the_claim_on_the_conversation(make, finish):
    table = make(Spec(deduplicate="first", views=ONCE.views, max_connections=1))
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 0)
    table.expire(80)
    table.report(make_flow("a1", (130, 0, 0, 0), last=60_000, **LOST), 100)
    table.report(make_flow("b2", (1, 0, 0, 0), last=1, a="10.0.0.9", node="node-3"), 101)
    again = make_flow("a1", (7, 0, 0, 0), last=70_000, finish=finish)
    assert table.report(again, 110) == "table_full"
    other = make_flow("c3", (30, 0, 0, 0), last=1, node="node-2")
    assert table.report(other, 174) == "duplicate"
    table.expire(175)
    assert table.dormant_uuids() == ([] if finish else ["a1"])


def test_closing_report_with_new_addresses_claims_the_new_conversation(make):
    table = make(ONCE)
    table.report(make_flow("a1", (100, 0, 0, 0), last=1), 0)
    table.report(make_flow("b2", (100, 0, 0, 0), last=1, a="10.0.0.9", node="node-2"), 0)
    table.expire(80)
    # The closing report of flow a1 has the addresses of flow b2.
    moved = make_flow("a1", (130, 0, 0, 0), last=60_000, a="10.0.0.9", **LOST)
    assert table.report(moved, 100) is None
    owner = make_flow("b2", (130, 0, 0, 0), last=60_000, a="10.0.0.9", node="node-2")
    assert table.report(owner, 110) == "duplicate"
    other = make_flow("c3", (30, 0, 0, 0), last=1, node="node-2")
    assert table.report(other, 110) is None


def test_renamed_flow_that_becomes_live_adds_only_its_deltas(make):
    names = Names({"node-1": ("old",)})
    name = looked_up("name", ("NodeTID",), names)
    table = make(Spec(views=(view("a", (name,), "bytes", "flows"),)))
    for number, uuid in enumerate(("a1", "b2", "c3")):
        table.report(make_flow(uuid, (100, 0, 0, 0), last=1), 10 * number)
    table.expire(10 + TIMEOUT_S)
    assert (table.flows, table.dormant_flows) == (1, 2)
    names["node-1"] = ("new",)
    table.relabel(names, ["node-1"])
    # Dormant flows get their new names when they become live again.
    assert samples(table, "a_flows", 50) == {"new": "1"}
    table.report(make_flow("c3", (101, 0, 0, 0), last=2), 90)
    table.expire(90 + TIMEOUT_S)
    table.report(make_flow("b2", (105, 0, 0, 0), last=2), 170)
    assert samples(table, "a_bytes_total", 170) == {"new": "6"}
    names["node-1"] = ("newer",)
    table.expire(170 + TIMEOUT_S)
    table.report(make_flow("b2", (107, 0, 0, 0), last=3), 250)
    assert samples(table, "a_bytes_total", 250) == {"newer": "2"}


def test_uuid_of_an_evicted_flow_can_be_a_label_value(make):
    table = make(Spec(views=(view("a", (NODE, IP_A), "bytes"),), max_flows=3))
    table.report(make_flow("no number", (1, 0, 0, 0), last=1), 0)
    table.report(make_flow("nor this", (1, 0, 0, 0), last=1), 0)
    table.expire(TIMEOUT_S)
    assert (table.dormant_flows, table.dormant_connections) == (2, 1)
    # Flow b2 evicts a flow whose UUID is also a label of flow c3.
    takes = make_flow("b2", (2, 0, 0, 0), last=1, a="10.0.0.8")
    named = make_flow("c3", (4, 0, 0, 0), last=1, node="no number", a="10.0.0.9")
    table.message([takes, named], TIMEOUT_S)
    assert samples(table, "a_bytes_total", TIMEOUT_S) == {
        "node-1,10.0.0.8": "2",
        "no number,10.0.0.9": "4",
    }


def test_invalid_second_field_of_a_sum_is_counted_under_its_own_name(make):
    table = make(Spec(views=(view("a", (NODE,), "bytes"),)))
    table.report(make_flow("a1", (1, 0, 0, 0)), 0)
    flow = make_flow("b2", **LATER)
    flow["LastUpdateMetric"]["BABytes"] = -1
    assert table.report(flow, 0) is None
    assert table.values_skipped["LastUpdateMetric.BABytes"] == 1
    assert table.values_skipped["LastUpdateMetric.ABBytes"] == 0


def test_omitted_optional_counter_has_no_series(make):
    table = make(Spec(views=(view("a", (NODE, DIRECTION), "bytes", "tcp_out_of_order"),)))
    flow = tcp(make_flow("a1"), (-1, 3))
    assert table.report(flow, 0) is None
    assert table.values_skipped["TCPMetric.ABSegmentOutOfOrder"] == 1
    assert samples(table, "a_tcp_out_of_order_total") == {"node-1,<": "3"}


@pytest.mark.parametrize("mark", ["Start", "LastUpdateMetric.Start"])
def test_flow_with_invalid_times_does_not_add_its_total(make, mark):
    table = make(MEMORY)
    table.raise_horizon(BEGAN)
    now = BEGAN + 1_000
    report = an_update("a1", (30, 3, 0, 0), age_s=100, last_update=(10, 1, 0, 0))
    if mark == "Start":
        report["Start"] = -1
    else:
        report["LastUpdateMetric"]["Start"] = -1
    assert table.report(report, now) is None
    assert samples(table, "node_bytes_total", now) == {"node-1": "0"}


def test_longer_timeout_does_not_move_the_horizon_back():
    table = Core(MEMORY)
    table.raise_horizon(BEGAN)
    table.report(make_flow("a1", last=1), BEGAN + 100)
    table.set_limits(max_connections=10, max_flows=10, timeout_s=150, memory_s=300,
                view_timeouts_s=[VIEW_TIMEOUT_S])  # fmt: skip
    table.expire(BEGAN + 100 + TIMEOUT_S)
    table.expire(BEGAN + 100 + TIMEOUT_S + 300)
    assert table.horizon_s == BEGAN + 100


def test_connections_that_differ_only_in_a_port_keep_separate_counters(make):
    table = make(Spec(views=(view("a", (IP_A, PORT_B), "bytes"),)))
    table.report(make_flow("a1", (100, 0, 0, 0), last=1, ports=(1, 443)), 0)
    table.report(make_flow("b2", (7, 0, 0, 0), last=1, ports=(1, 80)), 0)
    table.expire(TIMEOUT_S)
    for number in range(2):  # flows return in the order of removal, then in reverse order
        now = 80 + 80 * number
        flows = [
            make_flow("a1", (101 + number, 0, 0, 0), last=now, ports=(1, 443)),
            make_flow("b2", (9 + number, 0, 0, 0), last=now, ports=(1, 80)),
        ]
        table.message(flows[:: 1 - 2 * number], now)
        assert samples(table, "a_bytes_total", now) == {
            "10.0.0.1,443": f"{101 + number}",
            "10.0.0.1,80": f"{9 + number}",
        }
        table.expire(now + TIMEOUT_S)
