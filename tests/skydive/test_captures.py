import threading

import msgspec
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families as text_families

from skyfast.skydive.captures import MAX_CAPTURES, SILENCE_S, SLOT_S, SLOTS, Captures
from skyfast.stats import CAPTURE_SKIPS, CaptureStats
from tests.support.paths import RECORDINGS

PERIOD_S = 10
"""How often an agent reports on each of its capture points."""


def captures(naming="compatible"):
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


def test_a_report():
    some = captures()
    some.message(
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
        some.page(100.0).decode()
        == """\
# HELP skydive_capture_packets_received Packets received since the capture started, at the \
capture point with the most: average of the last ten readings.
# TYPE skydive_capture_packets_received gauge
skydive_capture_packets_received{capture_id="c-1"} 16159
# HELP skydive_capture_packets_dropped Packets dropped by the agent since the capture started, at \
the capture point with the most: average of the last ten readings.
# TYPE skydive_capture_packets_dropped gauge
skydive_capture_packets_dropped{capture_id="c-1"} 5773.4
# HELP skydive_capture_kernel_flows_dropped Flows dropped because the kernel's table was full, at \
all capture points.
# TYPE skydive_capture_kernel_flows_dropped counter
skydive_capture_kernel_flows_dropped{capture_id="c-1"} 5
# HELP skydive_capture_flows Flows in the agent's table, at the capture point with the most.
# TYPE skydive_capture_flows gauge
skydive_capture_flows{capture_id="c-1"} 3
# HELP skydive_capture_flows_dropped Flows dropped because the agents' tables were full, at all \
capture points.
# TYPE skydive_capture_flows_dropped counter
skydive_capture_flows_dropped{capture_id="c-1"} 4
# HELP skydive_capture_reports Reports received, one every 10 s from each capture point.
# TYPE skydive_capture_reports counter
skydive_capture_reports{capture_id="c-1"} 1
"""
    )


def test_amounts_are_added_up():
    some = captures()
    for turn in range(3):
        some.message(report(FlowDropped=2, KernelFlowDropped=5), turn * PERIOD_S)
    found = samples(some.page(2 * PERIOD_S))
    assert found["flows_dropped", "c-1"] == 6
    assert found["kernel_flows_dropped", "c-1"] == 15
    assert found["reports", "c-1"] == 3


def test_gauges_follow_within_two_reports():
    some = captures()
    flows = [5, 9, 7, 3, 3, 1, 1, 1]
    for turn, count in enumerate(flows):
        now = turn * PERIOD_S
        some.message(report(FlowCount=count, PacketsReceived=count * 10), now)
        found = samples(some.page(now))
        assert found["flows", "c-1"] == max(flows[max(turn - 1, 0) : turn + 1])
        assert found["flows", "c-1"] == found["packets_received", "c-1"]


def test_gauges_follow_while_the_clock_is_held_and_captures_stay():
    some = captures()
    some.message(report(FlowCount=900, FlowDropped=1), 100.0, 100.0)
    for running in (110.0, 120.0, 130.0):
        some.message(report(FlowCount=5, FlowDropped=1), 100.0, running)
    some.expire(100.0)
    found = samples(some.page(100.0))
    assert found["flows", "c-1"] == 5
    assert found["flows_dropped", "c-1"] == 4


@pytest.mark.parametrize("points", [2, 7, 100])
def test_points_of_one_capture_do_not_make_the_gauges_flap(points):
    """Each point is one of those shown all the time, at whatever time of the period it reports."""
    some = captures()
    for turn in range(8):
        for point in range(points):
            now = turn * PERIOD_S + point * PERIOD_S / points + (turn % 3) * 0.2
            counts = {"FlowCount": point, "PacketsReceived": 10 * (points - point)}
            some.message(report(**counts), now)
            if turn:
                found = samples(some.page(now))
                assert found["flows", "c-1"] == points - 1
                assert found["packets_received", "c-1"] == points
    assert found["reports", "c-1"] == 8 * points


def test_an_agent_that_starts_over():
    """Its totals begin at zero; what was counted here goes on."""
    some = captures()
    some.message(report(PacketsReceived=1000, FlowDropped=1), 0)
    for turn in range(1, 4):
        some.message(report(PacketsReceived=50 * turn, FlowDropped=1), turn * PERIOD_S)
    found = samples(some.page(30))
    assert found["packets_received", "c-1"] == 15
    assert found["flows_dropped", "c-1"] == 4


def test_after_a_gap_nothing_old_is_shown():
    some = captures()
    some.message(report(FlowCount=9), 0)
    some.message(report(FlowCount=2), SLOTS * SLOT_S)
    assert samples(some.page(SLOTS * SLOT_S))["flows", "c-1"] == 2


def test_a_capture_leaves():
    some = captures()
    some.message(report("gone", FlowDropped=7), 0)
    some.message(report("stays"), 10)
    assert {capture for _, capture in samples(some.page(SILENCE_S - 0.1))} == {"gone", "stays"}
    assert {capture for _, capture in samples(some.page(SILENCE_S))} == {"stays"}
    some.expire(SILENCE_S)
    assert some._stats.captures == 1
    some.message(report("gone", FlowDropped=1), SILENCE_S)
    assert samples(some.page(SILENCE_S))["flows_dropped", "gone"] == 1
    some.expire(3 * SILENCE_S)
    assert some.page(3 * SILENCE_S) == b""
    assert some._stats.captures == 0


def test_captures_come_in_the_order_of_their_ids():
    some = captures()
    for capture_id in "bca":
        some.message(report(capture_id), 0)
    assert [capture for name, capture in samples(some.page(0)) if name == "flows"] == list("abc")


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
def test_a_report_that_cannot_be_used(raw, reason):
    some = captures()
    for data in (raw, msgspec.Raw(raw)):
        some.message(data, 0)
    assert some._stats.skipped == {**dict.fromkeys(CAPTURE_SKIPS, 0), reason: 2}
    assert some.page(0) == b""


def test_limits_that_are_reached():
    some = captures()
    for _ in range(3):
        some.message(report("x" * 1024, FlowDropped=2**62, PacketsReceived=2**62), 0)
    page = some.page(0)
    assert b"} 9223372036854775807\n" in page
    assert b"} 461168601842738790.4\n" in page


def test_so_many_captures_and_no_more():
    some = captures()
    for number in range(MAX_CAPTURES + 2):
        some.message(report(f"c-{number:04}"), 0)
    assert some._stats.captures == MAX_CAPTURES
    assert some._stats.skipped["too_many"] == 2
    some.message(report("c-0000", FlowDropped=1), 1)
    assert samples(some.page(1))["flows_dropped", "c-0000"] == 1
    some.expire(SILENCE_S)
    some.message(report("new"), SILENCE_S)
    assert ("flows", "new") in samples(some.page(SILENCE_S))


def test_the_text_of_an_id_is_escaped():
    some = captures()
    some.message(report('a\\b"c\nd'), 0)
    assert ("flows", 'a\\b"c\nd') in samples(some.page(0))


def test_standard_names_are_openmetrics():
    some = captures("standard")
    some.message(report(FlowCount=1, PacketsReceived=15), 0)
    families = {
        family.name: family
        for family in openmetrics_families(some.page(0, openmetrics=True).decode() + "# EOF\n")
    }
    counters = {name for name, family in families.items() if family.type == "counter"}
    assert counters == {
        f"skydive_capture_{name}" for name in ("flows_dropped", "kernel_flows_dropped", "reports")
    }
    assert {sample.name for name in counters for sample in families[name].samples} == {
        f"{name}_total" for name in counters
    }
    assert families["skydive_capture_packets_received"].samples[0].value == 1.5
    assert b"# TYPE skydive_capture_reports_total counter\n" in some.page(0)


def test_a_page_while_captures_come_and_go():
    some = captures()
    stop = threading.Event()

    def report_and_expire():
        turn = 0
        while not stop.is_set():
            turn += 1
            for number in range(50):
                some.message(report(f"c-{turn}-{number}"), turn)
            some.expire(turn + SILENCE_S)

    thread = threading.Thread(target=report_and_expire)
    thread.start()
    try:
        for _ in range(200):
            found = samples(some.page(0))
            ids = {capture for _, capture in found}
            assert len(found) == 6 * len(ids)
    finally:
        stop.set()
        thread.join()


def test_what_a_real_agent_reported():
    """At rest a report holds ten times the total, which is what shows how it is made."""
    some = captures()
    for line in (RECORDINGS / "one-analyzer.jsonl").read_bytes().splitlines():
        message = msgspec.json.decode(line)
        if message["Namespace"] == "stats":
            some.message(msgspec.json.encode(message["Obj"]), 0)
    found = samples(some.page(0))
    capture = "c3bcbbb0-de8b-4008-a6ff-5cc5f8778acd"
    assert found["packets_received", capture] == 16159
    assert found["flows", capture] == 428
    assert found["reports", capture] == 9
    assert found["packets_received", "0040279d-de57-4c5c-b0a6-59557485e385"] == 5594.3
    assert len({capture for _, capture in found}) == 4
    assert sum(some._stats.skipped.values()) == 0
