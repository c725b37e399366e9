import threading

import msgspec
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families as text_families

from skyfast.skydive.captures import MAX_CAPTURES, SILENCE_S, SLOT_S, SLOTS, Captures
from skyfast.stats import CAPTURE_SKIPS, CaptureStats
from tests.support import openmetrics_2
from tests.support.paths import RECORDINGS
from tests.support.table_adapter import read_created

PERIOD_S = 10
"""Interval between an agent's reports about one capture point."""


def make_captures(naming="compatible"):
    return Captures(naming=naming, stats=CaptureStats())


def report(capture_id="c-1", **amounts):
    return msgspec.json.encode({"CaptureID": capture_id, **amounts})


def samples(page):
    return {
        (
            sample.name.removeprefix("skydive_capture_").removesuffix("_total"),
            sample.labels["capture_id"],
        ): sample.value
        for family in text_families(page.decode())
        for sample in family.samples
    }


def test_page_shows_the_values_of_a_report():
    captures = make_captures()
    captures.message(
        report(
            FlowCount=3,
            FlowDropped=4,
            KernelFlowDropped=5,
            PacketsReceived=161590,
            PacketsDropped=57734,
        ),
        100.0,
    )
    assert (
        captures.page(100.0).decode()
        == """\
# HELP skydive_capture_packets_received Packets received since the capture started: the \
highest value of all capture points. Each value is the mean of the last ten readings.
# TYPE skydive_capture_packets_received gauge
skydive_capture_packets_received{capture_id="c-1"} 16159
# HELP skydive_capture_packets_dropped Packets dropped by the agent since the capture started: \
the highest value of all capture points. Each value is the mean of the last ten readings.
# TYPE skydive_capture_packets_dropped gauge
skydive_capture_packets_dropped{capture_id="c-1"} 5773.4
# HELP skydive_capture_kernel_flows_dropped Flows dropped because the capture's table in the \
kernel was full; summed over the capture points.
# TYPE skydive_capture_kernel_flows_dropped counter
skydive_capture_kernel_flows_dropped{capture_id="c-1"} 5
# HELP skydive_capture_flows Flows in the agent's flow table; the highest value among the \
capture points.
# TYPE skydive_capture_flows gauge
skydive_capture_flows{capture_id="c-1"} 3
# HELP skydive_capture_flows_dropped Flows dropped because the agent's flow table was full; \
summed over the capture points.
# TYPE skydive_capture_flows_dropped counter
skydive_capture_flows_dropped{capture_id="c-1"} 4
# HELP skydive_capture_reports Reports of these statistics. Each capture point sends one report \
every 10 s.
# TYPE skydive_capture_reports counter
skydive_capture_reports{capture_id="c-1"} 1
"""
    )


def test_drop_counters_are_summed():
    captures = make_captures()
    for turn in range(3):
        captures.message(report(FlowDropped=2, KernelFlowDropped=5), turn * PERIOD_S)
    values = samples(captures.page(2 * PERIOD_S))
    assert values["flows_dropped", "c-1"] == 6
    assert values["kernel_flows_dropped", "c-1"] == 15
    assert values["reports", "c-1"] == 3


def test_gauges_show_maximum_of_last_two_reports():
    captures = make_captures()
    flows = [5, 9, 7, 3, 3, 1, 1, 1]
    for turn, count in enumerate(flows):
        now = turn * PERIOD_S
        captures.message(report(FlowCount=count, PacketsReceived=count * 10), now)
        values = samples(captures.page(now))
        assert values["flows", "c-1"] == max(flows[max(turn - 1, 0) : turn + 1])
        assert values["flows", "c-1"] == values["packets_received", "c-1"]


def test_captures_stay_and_gauges_change_while_the_clock_is_stopped():
    captures = make_captures()
    captures.message(report(FlowCount=900, FlowDropped=1), 100.0, 100.0)
    for running in (110.0, 120.0, 130.0):
        captures.message(report(FlowCount=5, FlowDropped=1), 100.0, running)
    captures.expire(100.0)
    values = samples(captures.page(100.0))
    assert values["flows", "c-1"] == 5
    assert values["flows_dropped", "c-1"] == 4


@pytest.mark.parametrize("points", [2, 7, 100])
def test_gauges_are_stable_with_several_capture_points(points):
    """A gauge shows the maximum of all capture points, which report at different times."""
    captures = make_captures()
    for turn in range(8):
        for point in range(points):
            now = turn * PERIOD_S + point * PERIOD_S / points + (turn % 3) * 0.2
            counts = {"FlowCount": point, "PacketsReceived": 10 * (points - point)}
            captures.message(report(**counts), now)
            if turn:
                values = samples(captures.page(now))
                assert values["flows", "c-1"] == points - 1
                assert values["packets_received", "c-1"] == points
    assert values["reports", "c-1"] == 8 * points


def test_agent_restart_resets_the_packet_total_but_not_the_drop_counters():
    captures = make_captures()
    captures.message(report(PacketsReceived=1000, FlowDropped=1), 0)
    for turn in range(1, 4):
        captures.message(report(PacketsReceived=50 * turn, FlowDropped=1), turn * PERIOD_S)
    values = samples(captures.page(30))
    assert values["packets_received", "c-1"] == 15
    assert values["flows_dropped", "c-1"] == 4


def test_gauges_ignore_reports_that_are_too_old():
    captures = make_captures()
    captures.message(report(FlowCount=9), 0)
    captures.message(report(FlowCount=2), SLOTS * SLOT_S)
    assert samples(captures.page(SLOTS * SLOT_S))["flows", "c-1"] == 2


def test_silent_capture_expires():
    captures = make_captures()
    captures.message(report("gone", FlowDropped=7), 0)
    captures.message(report("stays"), 10)
    assert {capture for _, capture in samples(captures.page(SILENCE_S - 0.1))} == {"gone", "stays"}
    assert {capture for _, capture in samples(captures.page(SILENCE_S))} == {"stays"}
    captures.expire(SILENCE_S)
    assert captures._stats.captures == 1
    captures.message(report("gone", FlowDropped=1), SILENCE_S)
    assert samples(captures.page(SILENCE_S))["flows_dropped", "gone"] == 1
    captures.expire(3 * SILENCE_S)
    assert captures.page(3 * SILENCE_S) == b""
    assert captures._stats.captures == 0


def test_captures_are_sorted_by_id():
    captures = make_captures()
    for capture_id in "bca":
        captures.message(report(capture_id), 0)
    assert [capture for name, capture in samples(captures.page(0)) if name == "flows"] == list(
        "abc"
    )


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "invalid"),
        (b"null", "invalid"),
        (b"[]", "invalid"),
        (b'"c-1"', "invalid"),
        (b"{", "invalid"),
        (b'{"CaptureID":7}', "invalid"),
        (b'{"CaptureID":"c-1","FlowCount":"3"}', "invalid"),
        (b'{"CaptureID":"c-1","FlowCount":true}', "invalid"),
        (b'{"CaptureID":"c-1","FlowCount":null}', "invalid"),
        (b'{"CaptureID":"c-1","FlowCount":1.5}', "invalid"),
        (b'{"CaptureID":"c-1","FlowCount":{"a":1}}', "invalid"),
        (b'{"CaptureID":"\xff"}', "invalid"),
        (b'{"CaptureID":"\\ud800"}', "invalid"),
        (b'{"CaptureID":"c-1","x":' + b"[" * 100_000 + b"}", "invalid"),
        (b"{}", "no_id"),
        (b'{"CaptureID":"","FlowCount":1}', "no_id"),
        (b'{"FlowCount":1}', "no_id"),
        (report("x" * 1025), "text_too_long"),
        (report(FlowCount=-1), "out_of_range"),
        (report(PacketsDropped=2**62 + 1), "out_of_range"),
        (b'{"CaptureID":"c-1","FlowDropped":1' + b"0" * 400 + b"}", "out_of_range"),
        (b'{"CaptureID":"c-1","FlowDropped":1' + b"0" * 100_000 + b"}", "out_of_range"),
    ],
)
def test_bad_report_is_skipped_and_counted(raw, reason):
    captures = make_captures()
    for data in (raw, msgspec.Raw(raw)):
        captures.message(data, 0)
    assert captures._stats.skipped == {**dict.fromkeys(CAPTURE_SKIPS, 0), reason: 2}
    assert captures.page(0) == b""


def test_counters_saturate_at_int64_max():
    captures = make_captures()
    for _ in range(3):
        captures.message(report("x" * 1024, FlowDropped=2**62, PacketsReceived=2**62), 0)
    page = captures.page(0)
    assert b"} 9223372036854775807\n" in page
    assert b"} 461168601842738790.4\n" in page


def test_number_of_captures_is_limited():
    captures = make_captures()
    for number in range(MAX_CAPTURES + 2):
        captures.message(report(f"c-{number:04}"), 0)
    assert captures._stats.captures == MAX_CAPTURES
    assert captures._stats.skipped["too_many"] == 2
    captures.message(report("c-0000", FlowDropped=1), 1)
    assert samples(captures.page(1))["flows_dropped", "c-0000"] == 1
    captures.expire(SILENCE_S)
    captures.message(report("new"), SILENCE_S)
    assert ("flows", "new") in samples(captures.page(SILENCE_S))


def test_capture_id_is_escaped():
    captures = make_captures()
    captures.message(report('a\\b"c\nd'), 0)
    assert ("flows", 'a\\b"c\nd') in samples(captures.page(0))


def test_standard_naming_is_valid_openmetrics():
    captures = make_captures("standard")
    captures.message(report(FlowCount=1, PacketsReceived=15), 0)
    families = {
        family.name: family
        for family in openmetrics_families(captures.page(0, openmetrics=True).decode() + "# EOF\n")
    }
    counters = {name for name, family in families.items() if family.type == "counter"}
    assert counters == {
        f"skydive_capture_{name}" for name in ("flows_dropped", "kernel_flows_dropped", "reports")
    }
    assert {sample.name for name in counters for sample in families[name].samples} == {
        f"{name}_total" for name in counters
    }
    assert families["skydive_capture_packets_received"].samples[0].value == 1.5
    assert b"# TYPE skydive_capture_reports_total counter\n" in captures.page(0)


def test_start_times_of_captures_are_unknown():
    captures = make_captures("standard")
    captures.message(report("c-1", FlowCount=1, FlowDropped=3), 0)
    page = captures.page(0, 1, created=True).decode()
    assert read_created(page) == {
        f'skydive_capture_{name}_total{{capture_id="c-1"}}': 0
        for name in ("flows_dropped", "kernel_flows_dropped", "reports")
    }
    list(openmetrics_families(page + "# EOF\n"))
    families = openmetrics_2.families_of(captures.page(0, 2, created=True).decode() + "# EOF\n")
    assert families["skydive_capture_flows_dropped_total"].samples == {
        'skydive_capture_flows_dropped_total{capture_id="c-1"}': ("3", None)
    }
    assert families["skydive_capture_flows"].metadata["TYPE"] == "gauge"


def test_page_is_consistent_while_captures_change():
    captures = make_captures()
    stop = threading.Event()

    def report_and_expire():
        turn = 0
        while not stop.is_set():
            turn += 1
            for number in range(50):
                captures.message(report(f"c-{turn}-{number}"), turn)
            captures.expire(turn + SILENCE_S)

    thread = threading.Thread(target=report_and_expire)
    thread.start()
    try:
        for _ in range(200):
            values = samples(captures.page(0))
            ids = {capture for _, capture in values}
            assert len(values) == 6 * len(ids)
    finally:
        stop.set()
        thread.join()


def test_recorded_reports_of_an_agent_give_the_expected_values():
    """``PacketsReceived`` is the sum of ten readings of a total, so skyfast divides it by ten."""
    captures = make_captures()
    for line in (RECORDINGS / "one-analyzer.jsonl").read_bytes().splitlines():
        message = msgspec.json.decode(line)
        if message["Namespace"] == "stats":
            captures.message(msgspec.json.encode(message["Obj"]), 0)
    values = samples(captures.page(0))
    capture = "c3bcbbb0-de8b-4008-a6ff-5cc5f8778acd"
    assert values["packets_received", capture] == 16159
    assert values["flows", capture] == 428
    assert values["reports", capture] == 9
    assert values["packets_received", "0040279d-de57-4c5c-b0a6-59557485e385"] == 5594.3
    assert len({capture for _, capture in values}) == 4
    assert sum(captures._stats.skipped.values()) == 0
