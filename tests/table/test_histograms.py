"""Worked examples of histograms, checked against the model and the core.

``docs/architecture.md`` explains terms such as *late*, *dormant*, *horizon* and *overflow*.
"""

import re
from functools import partial

import pytest

from tests.model import (
    DIRECTION,
    KNOWN_LABELS,
    MAX_NUMBER,
    MAX_SUM,
    TIMEOUT_S,
    VIEW_TIMEOUT_S,
    Family,
    Model,
    Names,
    Spec,
    View,
    looked_up,
    make_flow,
)
from tests.support.model_specs import standard
from tests.support.table_adapter import Core, plan_of

NODE = KNOWN_LABELS["node_tid"]
IP_A = KNOWN_LABELS["initiator_ip"]
APPLICATION = KNOWN_LABELS["application"]

RTT = Family(
    "rtt",
    "histogram",
    ("Metric", "RTT"),
    observes="first",
    decimals=9,
    buckets=("0.001", "0.005", "1.0"),
)
SIZE = Family(
    "size",
    "histogram",
    ("Metric", "ABBytes"),
    ("Metric", "BABytes"),
    observes="total",
    buckets=("100.0", "1e+06"),
)
DURATION = Family(
    "duration", "histogram", ("Start",), observes="age", decimals=3, buckets=("0.5", "60.0")
)

MS = 1_000_000
"""A millisecond, in nanoseconds."""

NOT_FIRST = {
    "last_update": (5, 6, 7, 8),
    "update_start": 60_000,
    "update_last": 70_000,
    "last": 70_000,
}
"""Fields of a report that is not the first report of its flow."""

CLOSING = {"finish": 1, "update_last": 70_000, "update_start": 60_000, "last": 65_000}
"""Fields of a closing report that repeats the last update of a flow. The flow lasts 64 s."""


@pytest.fixture(
    params=[Model, Core, partial(Core, slots=False)], ids=["model", "core", "core-attributes"]
)
def make(request):
    return request.param


def spec_of(*families, labels=(NODE,), **options):
    """Return a spec whose second view has the histograms ``families``."""
    return Spec(views=(View(), View(labels, families)), **options)


def observed(table, name="rtt", now=0.0, part=""):
    """Return the cumulative counts and the sum of the only histogram with ``part`` in its labels.

    Return None if there is no such histogram.
    """
    counts, sums = [], []
    for line in table.page(now)[name]:
        series, _, number = line.rpartition(" ")
        if part not in series:
            continue
        if bound := re.search(r'le="(.*)"', series):
            counts.append((float(bound[1]), int(number)))
        elif "_sum" in series:
            sums.append(number)
    assert len(sums) <= 1
    return ([count for _, count in sorted(counts)], sums[0]) if sums else None


# Buckets


def test_histogram_has_buckets_a_sum_and_a_count(make):
    table = make(spec_of(RTT, labels=(NODE, DIRECTION)))
    table.report(make_flow(rtt=2 * MS), 0)
    labels = 'node_tid="node-1",direction="initiator_to_target"'
    assert table.page(0)["rtt"] == {
        f'rtt_bucket{{{labels},le="0.001"}} 0',
        f'rtt_bucket{{{labels},le="0.005"}} 1',
        f'rtt_bucket{{{labels},le="1.0"}} 1',
        f'rtt_bucket{{{labels},le="+Inf"}} 1',
        f"rtt_sum{{{labels}}} 0.002",
        f"rtt_count{{{labels}}} 1",
    }


def test_histogram_without_labels_has_only_the_label_le(make):
    table = make(spec_of(DURATION, labels=()))
    table.report(make_flow(start=1_000, last=3_000, finish=1), 0)
    assert table.page(0)["duration"] == {
        'duration_bucket{le="0.5"} 0',
        'duration_bucket{le="60.0"} 1',
        'duration_bucket{le="+Inf"} 1',
        "duration_sum 2",
        "duration_count 1",
    }


def test_bucket_bounds_are_inclusive_and_exact(make):
    table = make(spec_of(RTT))
    for uuid, rtt in enumerate((MS, MS + 1, 5 * MS, 5 * MS + 1, 1000 * MS, 1000 * MS + 1), 1):
        table.report(make_flow(f"{uuid:x}", rtt=rtt), 0)
    assert observed(table) == ([1, 3, 5, 6], "2.012000003")


def test_bucket_bounds_can_be_between_two_integers(make):
    buckets = ("1e-10", "1.5e-09", "2.9e-09", "1e+300")
    table = make(spec_of(Family(**{**vars(RTT), "buckets": buckets})))
    for uuid, rtt in enumerate((1, 2, 3, MAX_NUMBER), 1):
        table.report(make_flow(f"{uuid:x}", rtt=rtt), 0)
    assert observed(table)[0] == [0, 1, 2, 4, 4]


def test_sum_of_a_histogram_stays_at_its_maximum(make):
    table = make(spec_of(RTT))
    for uuid in range(1, 5):
        table.report(make_flow(f"{uuid:x}", rtt=MAX_NUMBER), 0)
    assert observed(table) == ([0, 0, 0, 4], f"{MAX_SUM // 10**9}.{MAX_SUM % 10**9:09}")


def test_new_row_has_an_empty_histogram(make):
    table = make(spec_of(RTT, SIZE, DURATION))
    table.report(make_flow(), 0)
    assert observed(table) == ([0, 0, 0, 0], "0")
    assert observed(table, "size") == ([0, 0, 0], "0")
    assert observed(table, "duration") == ([0, 0, 0], "0")


def test_rows_have_separate_histograms(make):
    table = make(spec_of(RTT, *standard("a", "bytes", "rtt", "new_flows")))
    table.report(make_flow("a1", rtt=2 * MS), 0)
    table.report(make_flow("b2", rtt=7 * MS, node="node-2"), 0)
    assert observed(table, part="node-1") == ([0, 1, 1, 1], "0.002")
    assert observed(table, part="node-2") == ([0, 0, 1, 1], "0.007")
    assert table.page(0)["a_new_flows_total"] == {
        'a_new_flows_total{node_tid="node-1"} 1',
        'a_new_flows_total{node_tid="node-2"} 1',
    }


def test_first_view_cannot_have_histograms():
    with pytest.raises(ValueError, match="the first view cannot have histograms"):
        Core(families=(RTT,))


@pytest.mark.parametrize("count", [0, 21])
def test_number_of_buckets_is_limited(count):
    buckets = tuple(f"{n}.0" for n in range(1, count + 1))
    with pytest.raises(ValueError, match="must have 1 to 20 bounds"):
        Core(spec_of(Family(**{**vars(RTT), "buckets": buckets})))


def test_all_histograms_of_first_values_must_read_the_same_field():
    other = Family(**{**vars(RTT), "name": "other", "forward": ("Metric", "ABBytes")})
    with pytest.raises(ValueError, match="must have the same field"):
        Core(spec_of(RTT, other))


def test_histogram_of_ages_must_read_exactly_one_field():
    two = Family(**{**vars(DURATION), "backward": ("Last",)})
    with pytest.raises(ValueError, match="too many fields"):
        Core(spec_of(two))


def test_plan_has_a_list_of_fields_that_are_only_read_in_closing_reports():
    plan = plan_of(spec_of(RTT, SIZE, DURATION))
    assert [gauge.path for gauge in plan.gauges] == [("Metric", "RTT")]
    fields = [("Metric", "ABBytes"), ("Metric", "BABytes"), ("Start",)]
    assert [gauge.path for gauge in plan.closing_gauges] == fields


# First values


def test_round_trip_time_of_a_new_flow_is_observed(make):
    table = make(spec_of(RTT))
    table.report(make_flow(rtt=2 * MS, last=1), 0)
    table.report(make_flow(total=(200, 200, 2, 2), rtt=3 * MS, last=2), 1)
    assert observed(table) == ([0, 1, 1, 1], "0.002")


def test_first_round_trip_time_of_a_known_flow_is_observed(make):
    table = make(spec_of(RTT))
    table.report(make_flow(last=1), 0)
    table.report(make_flow(total=(200, 200, 2, 2), last=2), 1)
    table.report(make_flow(total=(300, 200, 2, 2), rtt=3 * MS, last=3), 2)
    table.report(make_flow(total=(400, 200, 2, 2), rtt=4 * MS, last=4), 3)
    assert observed(table) == ([0, 1, 1, 1], "0.003")


def test_late_report_is_not_observed(make):
    table = make(spec_of(RTT))
    table.report(make_flow(last=2), 0)
    assert table.report(make_flow(rtt=MS, last=2), 0) == "late"
    assert observed(table) == ([0, 0, 0, 0], "0")
    # The first value is that of the next report, not that of the late report.
    table.report(make_flow(total=(200, 200, 2, 2), rtt=2 * MS, last=3), 0)
    assert observed(table) == ([0, 1, 1, 1], "0.002")


def test_value_that_may_have_been_observed_before_is_not_observed(make):
    table = make(spec_of(RTT))
    table.report(make_flow("a1", rtt=2 * MS, **NOT_FIRST), 0)
    table.report(make_flow("a1", (200, 200, 9, 9), rtt=3 * MS, last=80_000), 0)
    assert observed(table) == ([0, 0, 0, 0], "0")
    # The first report of flow b2 has no round-trip time, so the second report has the first value.
    table.report(make_flow("b2", **NOT_FIRST), 0)
    table.report(make_flow("b2", (200, 200, 9, 9), rtt=3 * MS, last=80_000), 0)
    assert observed(table) == ([0, 1, 1, 1], "0.003")


def test_flow_that_began_after_the_horizon_is_observed(make):
    table = make(spec_of(RTT))
    table.raise_horizon(0)
    late_start = {**NOT_FIRST, "start": 69_000}
    table.report(make_flow(rtt=2 * MS, **late_start), 1_000)
    assert observed(table, now=1_000) == ([0, 1, 1, 1], "0.002")


def test_returning_flow_is_not_observed_again(make):
    table = make(spec_of(RTT))
    table.report(make_flow("a1", rtt=2 * MS, last=1), 0)
    table.report(make_flow("b2", last=1), 0)
    table.expire(100)
    assert table.dormant_flows == 2
    for uuid in ("a1", "b2"):
        table.report(make_flow(uuid, (200, 200, 2, 2), rtt=3 * MS, last=2), 101)
    assert observed(table, now=101) == ([0, 2, 2, 2], "0.005")


def test_restarted_flow_is_not_observed_again(make):
    table = make(spec_of(RTT))
    table.report(make_flow(total=(200, 200, 2, 2), rtt=2 * MS, last=1), 0)
    table.report(make_flow(total=(1, 1, 1, 1), rtt=3 * MS, last=2), 0)
    assert observed(table) == ([0, 1, 1, 1], "0.002")


def test_invalid_round_trip_time_is_not_observed(make):
    table = make(spec_of(RTT))
    table.report(make_flow(rtt=MAX_NUMBER + 1, last=1), 0)
    assert observed(table) == ([0, 0, 0, 0], "0")
    assert table.values_skipped["Metric.RTT"] == 1
    table.report(make_flow(total=(200, 200, 2, 2), rtt=2 * MS, last=2), 0)
    assert observed(table) == ([0, 1, 1, 1], "0.002")


def test_first_value_of_a_flow_without_a_valid_start_is_not_observed(make):
    table = make(spec_of(RTT))
    table.report(make_flow(rtt=2 * MS, start=-1), 0)
    assert observed(table) == ([0, 0, 0, 0], "0")
    assert table.values_skipped["Start"] == 1


# Closing reports


def test_size_and_duration_are_observed_in_the_closing_report_of_a_live_flow(make):
    table = make(spec_of(SIZE, DURATION))
    table.report(make_flow(total=(90, 200, 1, 2), start=1_000, last=2_000), 0)
    assert observed(table, "size")[0] == observed(table, "duration")[0] == [0, 0, 0]
    closing = make_flow(total=(95, 300, 2, 2), start=1_000, last=65_000, finish=1)
    assert table.report(closing, 1) is None
    assert observed(table, "size", 1) == ([0, 1, 1], "395")
    assert observed(table, "duration", 1) == ([0, 0, 1], "64")


def test_size_of_each_direction_is_observed(make):
    table = make(spec_of(SIZE, DURATION, labels=(NODE, DIRECTION)))
    table.report(make_flow(total=(90, 200, 1, 2), last=65_000, finish=1), 0)
    assert observed(table, "size", part="initiator_to") == ([1, 1, 1], "90")
    assert observed(table, "size", part="target_to") == ([0, 1, 1], "200")
    assert observed(table, "duration", part="initiator_to") == ([0, 0, 1], "64")
    assert observed(table, "duration", part="target_to") is None


def test_reports_with_other_finish_types_are_not_closing_reports(make):
    table = make(spec_of(SIZE, DURATION))
    for finish in (0, 2, 3, 4, MAX_NUMBER + 1):
        table.report(make_flow(f"a{finish}", finish=finish), 0)
    assert observed(table, "size")[0] == observed(table, "duration")[0] == [0, 0, 0]


def test_late_closing_report_of_a_live_flow_is_observed_once(make):
    table = make(spec_of(SIZE, DURATION))
    flow = {"start": 1_000, "last": 65_000}
    table.report(make_flow(**flow), 0)
    assert table.report(make_flow(finish=1, **flow), 1) == "late"
    assert observed(table, "size", 1) == ([0, 1, 1], "300")
    assert observed(table, "duration", 1) == ([0, 0, 1], "64")
    assert table.report(make_flow(finish=1, **flow), 2) == "late"
    assert observed(table, "size", 2) == ([0, 1, 1], "300")


def test_late_closing_report_of_a_dormant_flow_is_observed_once(make):
    table = make(spec_of(SIZE, DURATION))
    flow = {"start": 1_000, "last": 65_000}
    table.report(make_flow(**flow), 0)
    table.expire(600)
    assert (table.flows, table.dormant_flows) == (0, 1)
    assert table.report(make_flow(finish=1, **flow), 600) == "late"
    assert observed(table, "size", 600) == ([0, 1, 1], "300")
    assert observed(table, "duration", 600) == ([0, 0, 1], "64")
    # No other closing report of this flow is observed.
    assert table.report(make_flow(finish=1, **flow), 601) == "late"
    assert table.report(make_flow(total=(200, 200, 2, 2), last=66_000), 602) is None
    assert table.report(make_flow(total=(300, 200, 2, 2), last=67_000, finish=1), 603) is None
    assert observed(table, "size", 603) == ([0, 1, 1], "300")


def test_closing_report_that_leaves_its_flow_dormant_is_observed_once(make):
    table = make(spec_of(SIZE, DURATION, *standard("a", "bytes")))
    table.report(make_flow(last=2_000), 0)
    table.expire(600)
    # The flow stays dormant, because the closing report repeats the last update.
    assert table.report(make_flow(total=(150, 200, 2, 2), **CLOSING), 600) is None
    assert table.flows == 0
    assert observed(table, "size", 600) == ([0, 1, 1], "350")
    assert observed(table, "duration", 600) == ([0, 0, 1], "64")
    assert table.page(600)["a_bytes_total"] == {'a_bytes_total{node_tid="node-1"} 350'}
    assert table.report(make_flow(total=(150, 200, 2, 2), **CLOSING), 601) == "late"
    assert observed(table, "size", 601) == ([0, 1, 1], "350")


def test_closing_report_that_makes_a_dormant_flow_live_is_observed(make):
    table = make(spec_of(SIZE))
    table.report(make_flow(last=2_000), 0)
    table.expire(600)
    assert table.report(make_flow(total=(150, 200, 2, 2), last=65_000, finish=1), 600) is None
    assert table.flows == 1
    assert observed(table, "size", 600) == ([0, 1, 1], "350")


def test_closing_report_of_an_unknown_flow_is_observed_once(make):
    table = make(spec_of(SIZE, DURATION, RTT, *standard("a", "bytes")))
    closing = make_flow(rtt=2 * MS, **CLOSING)
    assert table.report(closing, 0) == "ended"
    assert (table.connections, table.flows, table.dormant_flows) == (0, 0, 1)
    assert observed(table, "size") == ([0, 1, 1], "300")
    assert observed(table, "duration") == ([0, 0, 1], "64")
    # The round-trip time and the bytes may have been counted before a restart of skyfast.
    assert observed(table) == ([0, 0, 0, 0], "0")
    assert table.page(0)["a_bytes_total"] == {'a_bytes_total{node_tid="node-1"} 0'}
    # The table has stored the flow, so these reports are late.
    assert table.report(closing, 1) == "late"
    assert table.report(make_flow(rtt=2 * MS, total=(90, 90, 1, 1), last=60_000), 1) == "late"
    assert observed(table, "size", 1) == ([0, 1, 1], "300")
    table.expire(1 + TIMEOUT_S)
    assert table.dormant_flows == 0


def test_flow_stored_after_its_closing_report_adds_later_bytes(make):
    table = make(spec_of(RTT, SIZE, *standard("a", "bytes")))
    table.report(make_flow(rtt=2 * MS, **CLOSING), 0)
    assert table.report(make_flow(total=(150, 200, 2, 2), rtt=2 * MS, last=80_000), 1) is None
    assert table.page(1)["a_bytes_total"] == {'a_bytes_total{node_tid="node-1"} 50'}
    assert observed(table, now=1) == ([0, 0, 0, 0], "0")


def test_closing_report_of_a_flow_that_began_after_the_horizon_is_observed_once(make):
    table = make(spec_of(SIZE, RTT, *standard("a", "bytes", "new_flows")))
    table.raise_horizon(0)
    assert table.report(make_flow(rtt=2 * MS, **CLOSING), 1_000) is None
    assert observed(table, "size", 1_000) == ([0, 1, 1], "300")
    assert observed(table, "rtt", 1_000) == ([0, 1, 1, 1], "0.002")
    assert table.report(make_flow(rtt=2 * MS, **CLOSING), 1_001) == "late"
    assert observed(table, "size", 1_001) == ([0, 1, 1], "300")


def test_flow_with_only_a_closing_report_is_observed(make):
    table = make(spec_of(SIZE, DURATION, RTT))
    assert table.report(make_flow(rtt=2 * MS, last=65_000, finish=1), 0) is None
    assert observed(table, "size") == ([0, 1, 1], "300")
    assert observed(table, "duration") == ([0, 0, 1], "64")
    assert observed(table) == ([0, 1, 1, 1], "0.002")


def test_ended_flow_is_not_stored_if_no_histogram_observes_closing_reports(make):
    table = make(spec_of(RTT))
    assert table.report(make_flow(**CLOSING), 0) == "ended"
    assert table.dormant_flows == 0
    assert table.view_connections == (0,)


def test_views_without_histograms_get_no_rows_from_ended_flows(make):
    views = (View(), View((NODE,), (SIZE,)), View((IP_A,), standard("a", "bytes")))
    table = make(Spec(views=views))
    assert table.report(make_flow(**CLOSING), 0) == "ended"
    assert table.view_connections == (1, 0)


@pytest.mark.parametrize(
    ("start", "last", "expected"),
    [
        (1_000, 1_000, ([1, 1, 1], "0")),
        (1_000, 1_500, ([1, 1, 1], "0.5")),
        (1_000, 1_501, ([0, 1, 1], "0.501")),
        (1_000, 61_001, ([0, 0, 1], "60.001")),
        (1_000, 999, ([0, 0, 0], "0")),
        (0, 65_000, ([0, 0, 0], "0")),
        (1_000, 0, ([0, 0, 0], "0")),
        (-1, 65_000, ([0, 0, 0], "0")),
    ],
)
def test_duration_is_observed_if_both_times_are_valid(make, start, last, expected):
    table = make(spec_of(DURATION))
    flow = make_flow(update_start=1_000, update_last=max(last, 0), last=last, finish=1)
    table.report(flow | {"Start": start}, 0)
    assert observed(table, "duration") == expected


def test_flow_without_start_has_no_duration(make):
    table = make(spec_of(DURATION))
    flow = make_flow(last=65_000, finish=1)
    del flow["Start"]
    table.report(flow, 0)
    assert observed(table, "duration") == ([0, 0, 0], "0")


def test_size_with_an_invalid_field_is_not_observed(make):
    table = make(Spec(views=(View(families=standard("a", "flows")), View((NODE,), (SIZE,)))))
    for number in (-1, MAX_NUMBER + 1):
        table.report(make_flow(f"a{number}", (number, 1, 1, 1), finish=1), 0)
    assert observed(table, "size") == ([0, 0, 0], "0")
    assert table.values_skipped["Metric.ABBytes"] == 2
    table.report(make_flow("b2", (-1, 1, 1, 1)), 0)
    assert table.values_skipped["Metric.ABBytes"] == 2
    # Both fields are valid, but their sum is out of range.
    table.report(make_flow("c3", (MAX_NUMBER, 1, 1, 1), finish=1), 0)
    assert observed(table, "size") == ([0, 0, 0], "0")
    table.report(make_flow("d4", (MAX_NUMBER, 0, 1, 1), finish=1), 0)
    assert observed(table, "size") == ([0, 0, 1], str(MAX_NUMBER))


# Rows


def test_closing_report_extends_the_deadline_of_its_row(make):
    table = make(spec_of(SIZE))
    table.report(make_flow(last=2_000), 0)
    assert table.report(make_flow(last=2_000, finish=1), 50) == "late"
    assert observed(table, "size", VIEW_TIMEOUT_S + 49) == ([0, 1, 1], "300")
    assert observed(table, "size", VIEW_TIMEOUT_S + 50) is None


def test_row_is_created_for_a_closing_report(make):
    views = (View(), View((NODE,), (SIZE,), timeout_s=100))
    table = make(Spec(views=views))
    table.report(make_flow(last=2_000), 0)
    table.expire(600)
    assert table.view_connections == (0,)
    assert table.report(make_flow(last=2_000, finish=1), 600) == "late"
    assert observed(table, "size", 600) == ([0, 1, 1], "300")


def test_flows_are_observed_in_linked_and_unlinked_views(make):
    # The first view has the label ``node_tid``, but not ``application``.
    labels = ((NODE,), (APPLICATION,))
    views = [
        View(labels_, (Family(**{**vars(SIZE), "name": f"v{n}"}),))
        for n, labels_ in enumerate(labels)
    ]
    table = make(Spec(views=(View(), *views)))
    flow = make_flow(last=2_000) | {"Application": "DNS"}
    table.report(flow, 0)
    table.report(flow | {"FinishType": 1}, 1)
    assert observed(table, "v0", 1) == observed(table, "v1", 1) == ([0, 1, 1], "300")
    table.expire(600)
    other = make_flow("b2", last=2_000) | {"Application": "DNS"}
    table.report(other, 600)
    table.expire(700)
    assert table.report(other | {"FinishType": 1}, 1_200) == "late"
    assert observed(table, "v0", 1_200) == observed(table, "v1", 1_200) == ([0, 2, 2], "600")


def test_observations_stay_in_the_old_row_when_a_flow_gets_new_labels(make):
    names = Names({"node-1": ("eth0",)})
    table = make(spec_of(RTT, SIZE, labels=(looked_up("name", ("NodeTID",), names),)))
    table.report(make_flow(rtt=2 * MS, last=2_000), 0)
    names["node-1"] = ("eth1",)
    table.relabel(names, ["node-1"])
    assert observed(table, part="eth0") == ([0, 1, 1, 1], "0.002")
    assert observed(table, part="eth1") == ([0, 0, 0, 0], "0")
    table.report(make_flow(total=(200, 200, 2, 2), rtt=3 * MS, last=65_000, finish=1), 1)
    assert observed(table, "rtt", 1, "eth1") == ([0, 0, 0, 0], "0")
    assert observed(table, "size", 1, "eth0") == ([0, 0, 0], "0")
    assert observed(table, "size", 1, "eth1") == ([0, 1, 1], "400")


# Skipped flows, limits and overflow


def test_skipped_reports_are_not_observed(make):
    table = make(spec_of(RTT, SIZE))
    flow = make_flow(rtt=2 * MS, finish=1)
    del flow["Transport"]
    assert table.report(flow, 0) == "no_transport"
    long = make_flow("b2", rtt=2 * MS, node="x" * 1025, **CLOSING)
    assert table.report(long, 0) == "text_too_long"
    assert table.view_connections == (0,)


def test_late_closing_report_with_an_invalid_label_is_not_observed(make):
    table = make(spec_of(SIZE))
    table.report(make_flow(last=2_000), 0)
    table.expire(600)
    long = make_flow(last=2_000, node="x" * 1025, finish=1)
    assert table.report(long, 600) == "late"
    assert observed(table, "size", 600) == ([0, 0, 0], "0")
    # The report was not observed. If it is repeated with a valid label, it is observed.
    assert table.report(make_flow(last=2_000, finish=1), 601) == "late"
    assert observed(table, "size", 601) == ([0, 1, 1], "300")


def test_flows_rejected_by_a_full_table_are_not_observed(make):
    table = make(spec_of(RTT, SIZE, max_flows=1))
    table.report(make_flow("a1", rtt=2 * MS), 0)
    assert table.report(make_flow("b2", rtt=2 * MS, finish=1), 0) == "table_full"
    assert table.report(make_flow("c3", **CLOSING), 0) == "ended"
    assert observed(table) == ([0, 1, 1, 1], "0.002")
    assert observed(table, "size") == ([0, 0, 0], "0")


def test_flows_without_a_row_are_not_observed(make):
    # The second view has room for one row.
    table = make(spec_of(RTT, SIZE, max_connections=1, labels=(APPLICATION,)))
    flow = make_flow("a1", rtt=2 * MS)
    table.report(flow | {"Application": "DNS"}, 0)
    table.report(make_flow("b2", rtt=2 * MS) | {"Application": "TLS"}, 0)
    table.report(make_flow("b2", rtt=2 * MS, finish=1) | {"Application": "TLS"}, 1)
    assert observed(table, now=1) == ([0, 1, 1, 1], "0.002")
    assert observed(table, "size", 1) == ([0, 0, 0], "0")
    assert table.view_rejected_totals == (1,)
    assert table.report(make_flow("c3", **CLOSING) | {"Application": "TLS"}, 1) == "ended"
    assert table.view_rejected_totals == (2,)


def test_overflow_rows_have_histograms(make):
    table = make(spec_of(RTT, SIZE, max_connections=1, labels=(APPLICATION,), overflow="other"))
    table.report(make_flow("a1", rtt=2 * MS) | {"Application": "DNS"}, 0)
    other = make_flow("b2", rtt=3 * MS) | {"Application": "TLS"}
    table.report(other, 0)
    assert observed(table, part="other") == ([0, 1, 1, 1], "0.003")
    table.expire(600)
    assert table.report(other | {"FinishType": 1}, 600) == "late"
    assert observed(table, "size", 600, "other") == ([0, 1, 1], "300")
    ended = make_flow("c3", **CLOSING) | {"Application": "SSH"}
    assert table.report(ended, 601) == "ended"
    assert table.report(ended, 602) == "late"
    assert observed(table, "size", 602, "other") == ([0, 2, 2], "600")


def test_rejected_flows_are_observed_if_the_table_has_overflow_rows(make):
    table = make(spec_of(RTT, SIZE, max_flows=1, overflow="other"))
    table.report(make_flow("a1", rtt=2 * MS), 0)
    # Only the value of the first report is observed.
    assert table.report(make_flow("b2", rtt=3 * MS, b="10.0.0.9"), 0) == "table_full"
    assert table.report(make_flow("b2", rtt=9 * MS, **NOT_FIRST), 0) == "table_full"
    assert observed(table) == ([0, 2, 2, 2], "0.005")
    # The table does not store the flow, so it observes both closing reports.
    assert table.report(make_flow("b2", rtt=3 * MS, **CLOSING), 0) == "ended"
    assert observed(table, "size") == ([0, 1, 1], "300")
    assert table.report(make_flow("b2", rtt=3 * MS, **CLOSING), 0) == "ended"
    assert observed(table, "size") == ([0, 2, 2], "600")
    assert observed(table) == ([0, 2, 2, 2], "0.005")


def test_dormant_flow_added_to_the_overflow_row_is_observed_once(make):
    table = make(spec_of(RTT, SIZE, max_connections=1, overflow="other"))
    table.report(make_flow("a1", last=2_000), 0)
    table.expire(100)
    table.report(make_flow("b2", a="10.0.0.9", last=2_000), 100)
    report = make_flow("a1", (200, 200, 2, 2), rtt=2 * MS, last=65_000, finish=1)
    assert table.report(report, 101) == "table_full"
    assert table.report(report, 102) == "late"
    assert observed(table, now=102) == ([0, 1, 1, 1], "0.002")
    assert observed(table, "size", 102) == ([0, 1, 1], "400")


def test_dormant_flow_rejected_by_a_full_table_is_not_observed(make):
    table = make(spec_of(RTT, SIZE, max_connections=1))
    table.report(make_flow("a1", last=2_000), 0)
    table.expire(100)
    table.report(make_flow("b2", a="10.0.0.9", last=2_000), 100)
    report = make_flow("a1", (200, 200, 2, 2), rtt=2 * MS, last=65_000, finish=1)
    assert table.report(report, 101) == "table_full"
    assert observed(table, now=101) == ([0, 0, 0, 0], "0")
    assert observed(table, "size", 101) == ([0, 0, 0], "0")


# Deduplication


def test_duplicates_are_not_observed(make):
    table = make(spec_of(RTT, SIZE, labels=(IP_A,), deduplicate="first"))
    table.report(make_flow("a1", rtt=2 * MS, last=2_000), 0)
    assert table.report(make_flow("b2", rtt=2 * MS, node="node-2"), 0) == "duplicate"
    assert observed(table) == ([0, 1, 1, 1], "0.002")
    table.expire(600)
    # The table does not know that flow b2 is a duplicate, because it did not store the flow.
    duplicate = make_flow("b2", node="node-2", **CLOSING)
    assert table.report(duplicate, 600) == "ended"
    assert table.report(make_flow("a1", last=2_000, finish=1), 601) == "late"
    assert table.report(duplicate, 602) == "ended"
    assert observed(table, "size", 602) == ([0, 1, 1], "300")


def test_flow_is_not_observed_if_another_flow_took_over_its_conversation(make):
    table = make(spec_of(SIZE, labels=(IP_A,), deduplicate="first"))
    table.report(make_flow("a1", last=2_000), 0)
    table.expire(100)
    table.report(make_flow("b2", node="node-2", **NOT_FIRST), 100)
    assert table.report(make_flow("a1", last=2_000, finish=1), 101) == "late"
    assert observed(table, "size", 101) == ([0, 0, 0], "0")


def test_flow_is_not_observed_even_if_the_flow_that_took_over_its_conversation_is_dormant(make):
    table = make(spec_of(SIZE, labels=(IP_A,), deduplicate="first"))
    table.report(make_flow("a1", last=2_000), 0)
    table.expire(100)
    table.report(make_flow("b2", node="node-2", **NOT_FIRST), 100)
    table.expire(200)
    assert table.report(make_flow("a1", last=2_000, finish=1), 201) == "late"
    assert observed(table, "size", 201) == ([0, 0, 0], "0")
    closing = make_flow("b2", node="node-2", last=70_000, finish=1)
    assert table.report(closing, 202) == "late"
    assert observed(table, "size", 202) == ([0, 1, 1], "300")
