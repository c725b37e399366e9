"""Flows of which a value has another type: the value is left out and counted, the rest is used."""

import json
import re
from typing import Any

import pytest

from skyfast.app import App
from skyfast.skydive.ingest import MAX_PARTIAL_FLOWS
from skyfast.web.exposition import Part
from tests.support.configs import make_config
from tests.support.messages import DEEP, flow, message, values
from tests.support.sink import Sink

HUGE = b"1" + b"0" * 5999
"""More digits than the decoder takes."""

METRIC = {"ABPackets": 1, "ABBytes": 100, "BAPackets": 2, "BABytes": 200}
UPDATE = METRIC | {"Start": 1500, "Last": 3000}
"""Of a report that is not a flow's first one."""
TCP = {"ABSegmentOutOfOrder": 5, "BASegmentOutOfOrder": 6, "ABSegmentSkipped": 7}
EVERYTHING = {
    "metrics": [
        *("bytes", "packets", "rtt", "start", "tcp_out_of_order", "tcp_skipped", "ip_fragments"),
        {"name": "vlan_last", "value": "Link.ID", "type": "gauge"},
    ]
}
BYTES = "skydive_network_connection_total_bytes"
RTT = "skydive_network_connection_rtt_nanoseconds"
TRAFFIC = "skydive_traffic_bytes_total"
OUT_OF_ORDER = "skydive_network_connection_total_tcp_out_of_order"


def changed(path: str, value: Any, **fields: Any) -> dict[str, Any]:
    """Return a flow with another value at ``path``."""
    parts = {"Metric": METRIC, "LastUpdateMetric": UPDATE, "TCPMetric": TCP}
    whole = flow(**(parts | {"IPMetric": {"Fragments": 3}, "Link": {"ID": 4}} | fields))
    part, _, name = path.partition(".")
    if name:
        whole[part] = whole[part] | {name: value}
    else:
        whole[part] = value
    return whole


PORT = {"name": "port", "value": "Transport.A", "type": "gauge"}
LATEST = {"name": "latest", "value": "Metric.ABBytes", "type": "gauge"}

OMISSIBLE = (
    *("Metric.RTT", "FinishType", "Start", "Link", "Link.ID"),
    *("TCPMetric", "TCPMetric.ABSegmentOutOfOrder", "TCPMetric.BASegmentSkipped"),
    *("IPMetric", "IPMetric.Fragments"),
    *("LastUpdateMetric", "LastUpdateMetric.Start", "LastUpdateMetric.Last"),
    *("LastUpdateMetric.ABBytes", "LastUpdateMetric.BAPackets"),
)


FIELDS_OF = {
    "Link": ["Link.ID"],
    "IPMetric": ["IPMetric.Fragments"],
    "TCPMetric": [
        f"TCPMetric.{side}{name}"
        for side in ("AB", "BA")
        for name in ("SegmentOutOfOrder", "SegmentSkipped")
    ],
    "LastUpdateMetric": ["LastUpdateMetric.Start", "LastUpdateMetric.Last"],
}
"""What is counted where a whole part has another type."""

WRONG = ("x", 1.5, 1e300, True, [1], {"a": 1})
"""What is not a number. The last one is not a part either, but such parts have no field."""


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (path, wrong)
        for path in OMISSIBLE
        for wrong in (WRONG if "." in path or path in ("FinishType", "Start") else WRONG[:-1])
    ],
)
def test_a_value_of_another_type_does_not_cost_the_flow(path: str, wrong: Any) -> None:
    sink = Sink(**EVERYTHING)
    sink.take(message(changed(path, wrong)))
    fields = FIELDS_OF.get(path, [path])
    assert (sink.skipped, sink.values_skipped) == ({}, dict.fromkeys(fields, 1))
    assert values(sink, BYTES) == ["100", "200"]


@pytest.mark.parametrize("rtt", [-1_500_000, 10**22])
def test_a_round_trip_time_out_of_range_is_left_out(rtt: int) -> None:
    # The difference of two times of a clock that was set in between.
    sink = Sink()
    sink.take(message(flow(Metric=METRIC | {"RTT": rtt})))
    assert (sink.skipped, sink.values_skipped) == ({}, {"Metric.RTT": 1})
    assert (values(sink, BYTES), values(sink, RTT)) == (["100", "200"], [])


@pytest.mark.parametrize("path", ["Metric.RTT", "Start", "TCPMetric.ABSegmentSkipped"])
@pytest.mark.parametrize("wrong", [b"null", HUGE, b"-" + HUGE, DEEP], ids=lambda text: text[:6])
def test_whatever_stands_there_costs_the_value_alone(path: str, wrong: bytes) -> None:
    sink = Sink(**EVERYTHING)
    text = json.dumps(changed(path, "WRONG")).encode().replace(b'"WRONG"', wrong)
    sink.take(message(text))
    assert (sink.skipped, sink.values_skipped) == ({}, {path: 1})
    assert values(sink, BYTES) == ["100", "200"]


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("UUID", {}),
        ("Network", {}),
        ("Network.A", {}),
        ("Transport", {}),
        ("Transport.B", {}),
        ("Metric", {}),
        ("Metric.ABBytes", {}),
        ("Last", {}),
        ("NodeTID", {}),
        # Labels, conversations and rules are about the flow as it is.
        ("Start", {"labels": [{"name": "begin", "path": "Start"}]}),
        ("Link", {"labels": ["vlan"]}),
        ("Link.ID", {"labels": ["vlan"], "metrics": EVERYTHING["metrics"]}),
        (
            "Transport.A",
            {"labels": ["initiator_ip"], "metrics": [PORT], "views": [], "deduplicate": "first"},
        ),
        ("Metric.ABBytes", {"metrics": ["bytes", LATEST]}),
        ("Metric.RTT", {"drop": [{"name": "slow", "Metric.RTT": "5-9"}]}),
        # Without a total, it would be taken for one that started over.
        (
            "RawPacketsCaptured",
            {"metrics": [{"name": "raw", "value": "RawPacketsCaptured", "type": "counter"}]},
        ),
    ],
)
def test_what_a_flow_needs_costs_the_flow(path: str, settings: dict[str, Any]) -> None:
    sink = Sink(**settings)
    sink.take(message(flow("1"), changed(path, [5], FinishType="x"), flow("2")))
    assert (sink.skipped, sink.values_skipped) == ({"invalid": 1}, {})
    assert sink.table.flows == 2


def test_only_what_is_used_is_counted() -> None:
    sink = Sink()
    bad = {"TCPMetric": 5, "IPMetric": [], "Link": "x", "ICMP": 7, "DNS": 5}
    sink.take(message(flow(Metric=METRIC | {"Start": "x", "Last": "y"}, **bad)))
    assert (sink.table.flows, sink.skipped, sink.values_skipped) == (1, {}, {})


def test_several_values_of_a_flow_are_counted_each() -> None:
    sink = Sink()
    sink.take(message(flow("2"), flow(Metric=METRIC | {"RTT": "x"}, FinishType="z")))
    assert sink.values_skipped == {"Metric.RTT": 1, "FinishType": 1}
    assert sink.table.flows == 2


def test_a_gauge_that_is_left_out_stays_as_it_was() -> None:
    sink = Sink()
    for last, rtt in ((2000, 7), (3000, "x"), (4000, 9)):
        sink.take(message(flow(Last=last, Metric=METRIC | {"ABBytes": last, "RTT": rtt})))
        assert values(sink, BYTES) == [str(last), "200"]
        assert values(sink, RTT) == ["9" if last == 4000 else "7"]


def test_a_counter_that_is_left_out_is_unchanged_and_no_other_starts_over() -> None:
    sink = Sink(metrics=["bytes", "tcp_out_of_order"])

    def take(last: int, ab: Any, ba: int) -> None:
        tcp = {"ABSegmentOutOfOrder": ab, "BASegmentOutOfOrder": ba}
        sink.take(message(flow(Last=last, Metric=METRIC | {"ABBytes": last}, TCPMetric=tcp)))

    take(2000, 5, 6)
    take(3000, "x", 8)
    assert values(sink, OUT_OF_ORDER) == ["5", "8"]
    assert values(sink, BYTES) == ["3000", "200"]
    take(4000, 9, 9)
    assert values(sink, OUT_OF_ORDER) == ["9", "9"]
    assert sink.values_skipped == {"TCPMetric.ABSegmentOutOfOrder": 1}


@pytest.mark.parametrize("side", ["ABSegmentOutOfOrder", "BASegmentOutOfOrder"])
def test_a_sum_of_which_one_side_is_left_out_is_unchanged(side: str) -> None:
    sink = Sink(metrics=["tcp_out_of_order"], labels=["initiator_ip"], direction="sum", views=[])
    sink.take(message(flow(TCPMetric=TCP)))
    sink.take(message(flow(Last=3000, TCPMetric=TCP | {side: "x"})))
    assert values(sink, OUT_OF_ORDER) == ["11"]
    sink.take(message(flow(Last=4000, TCPMetric=TCP | {side: 20})))
    assert values(sink, OUT_OF_ORDER) == [str(11 - TCP[side] + 20)]


def test_a_counter_that_no_report_had_has_no_series() -> None:
    sink = Sink(metrics=["bytes", "tcp_out_of_order"])
    sink.take(message(flow(TCPMetric="x")))
    assert values(sink, OUT_OF_ORDER) == []


MARKS = (
    {"Start": "x"},
    {"LastUpdateMetric": "x"},
    {"LastUpdateMetric": UPDATE | {"Start": "x"}},
    {"LastUpdateMetric": UPDATE | {"Start": "x", "Last": "y", "ABBytes": []}},
    {"FinishType": "x"},
    {"FinishType": "x", "LastUpdateMetric": UPDATE | {"Start": 1000}},
    {"FinishType": "x", "LastUpdateMetric": None},
)


@pytest.mark.parametrize("wrong", MARKS, ids=json.dumps)
def test_without_its_marks_a_report_is_not_the_first(wrong: dict[str, Any]) -> None:
    # The first flow's interface and protocol are those of the second, so its total in the view
    # may have been counted before.
    sink = Sink()
    sink.take(message(flow("1")))
    unmarked = {"LastUpdateMetric": UPDATE, "Network": {"A": "10.9.9.9", "B": "10.0.0.2"}} | wrong
    sink.take(message(flow("2", Last=3000, **unmarked)))
    assert values(sink, TRAFFIC) == ["100", "200"]
    assert sink.table.flows == 2
    assert sink.values_skipped.keys() & {"Start", "LastUpdateMetric.Start", "FinishType"}
    # What is new from then on counts, also where there are marks again.
    for last in (4000, 5000):
        sink.take(message(flow("2", Last=last, **unmarked, Metric=METRIC | {"ABBytes": last})))
    grown = METRIC | {"ABBytes": 5100}
    sink.take(message(flow("2", Last=6000, LastUpdateMetric=UPDATE, Metric=grown)))
    assert values(sink, TRAFFIC) == ["5100", "200"]


def test_what_cannot_be_read_as_an_end_is_none() -> None:
    sink = Sink()
    sink.take(message(flow("1"), flow("1", Last=3000, FinishType="TIMEOUT")))
    assert values(sink, TRAFFIC) == ["100", "200"]
    assert not any(sink.table.finished.values())


def test_an_amount_that_is_left_out_adds_nothing_and_the_others_count() -> None:
    sink = Sink()
    sink.take(message(flow("1")))
    update = {"ABPackets": 1, "ABBytes": "x", "BAPackets": 1, "BABytes": 50}
    update |= {"Start": 2500, "Last": 3000}
    ends = {"A": "10.9.9.9", "B": "10.0.0.2"}
    sink.take(message(flow("2", Last=3000, LastUpdateMetric=update, Network=ends)))
    assert values(sink, TRAFFIC) == ["100", "250"]
    assert sink.values_skipped == {"LastUpdateMetric.ABBytes": 1}


def test_a_known_flow_is_not_looked_at_for_marks_that_it_does_not_need() -> None:
    sink = Sink()
    sink.take(message(flow("1")))
    sink.take(message(flow("1", Last=2500)))
    sink.take(message(flow("1", Last=3000, LastUpdateMetric="x", Metric=METRIC | {"ABBytes": 101})))
    assert (sink.values_skipped, values(sink, TRAFFIC)) == ({}, ["101", "200"])


def test_how_many_flows_of_a_message_are_mended_is_bounded() -> None:
    sink = Sink()
    bad = json.dumps(flow("1", FinishType="x")).encode()
    sink.take(message(*[bad] * (MAX_PARTIAL_FLOWS + 2)))
    assert sink.values_skipped == {"FinishType": MAX_PARTIAL_FLOWS}
    assert sink.skipped["invalid"] == 2


async def test_every_field_that_can_be_left_out_is_there_from_the_start() -> None:
    config = make_config(metrics=["bytes", "rtt", "tcp_skipped"], views=[])
    app = App(config, load=lambda: config)
    async with app.exposition.stream(Part.SELF, gzip=False) as chunks:
        page = b"".join([chunk async for chunk in chunks]).decode()
    found = re.findall(r'(?m)^skyfast_values_skipped_total\{field="(.*)"\} (\d+)$', page)
    update = (f"LastUpdateMetric.{name}" for name in ("Start", "Last", "ABBytes", "BABytes"))
    tcp = (f"TCPMetric.{side}SegmentSkipped" for side in ("AB", "BA"))
    fields = {"Metric.RTT", "FinishType", "Start", *update, *tcp}
    assert dict(found) == dict.fromkeys(fields, "0")
