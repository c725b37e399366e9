"""Values of a wrong type are skipped and counted; the rest of the flow is used."""

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
"""An integer with more digits than the decoder accepts."""

METRIC = {"ABPackets": 1, "ABBytes": 100, "BAPackets": 2, "BABytes": 200}
UPDATE = METRIC | {"Start": 1500, "Last": 3000}
"""The ``LastUpdateMetric`` of a report that is not the first report of its flow."""
TCP = {"ABSegmentOutOfOrder": 5, "BASegmentOutOfOrder": 6, "ABSegmentSkipped": 7}
ALL_METRICS = {
    "metrics": [
        *("bytes", "packets", "rtt", "start", "tcp_out_of_order", "tcp_skipped", "ip_fragments"),
        {"name": "vlan_last", "value": "Link.ID", "type": "gauge"},
    ]
}
BYTES = "skydive_network_connection_total_bytes"
RTT = "skydive_network_connection_rtt_nanoseconds"
TRAFFIC = "skydive_traffic_bytes_total"
OUT_OF_ORDER = "skydive_network_connection_total_tcp_out_of_order"


def flow_with(path: str, value: Any, **fields: Any) -> dict[str, Any]:
    parts = {"Metric": METRIC, "LastUpdateMetric": UPDATE, "TCPMetric": TCP}
    record = flow(**(parts | {"IPMetric": {"Fragments": 3}, "Link": {"ID": 4}} | fields))
    part, _, name = path.partition(".")
    if name:
        record[part] = record[part] | {name: value}
    else:
        record[part] = value
    return record


PORT = {"name": "port", "value": "Transport.A", "type": "gauge"}
LATEST = {"name": "latest", "value": "Metric.ABBytes", "type": "gauge"}

OPTIONAL_PATHS = (
    *("Metric.RTT", "FinishType", "Start", "Link", "Link.ID"),
    *("TCPMetric", "TCPMetric.ABSegmentOutOfOrder", "TCPMetric.BASegmentSkipped"),
    *("IPMetric", "IPMetric.Fragments"),
    *("LastUpdateMetric", "LastUpdateMetric.Start", "LastUpdateMetric.Last"),
    *("LastUpdateMetric.ABBytes", "LastUpdateMetric.BAPackets"),
)


PART_FIELDS = {
    "Link": ["Link.ID"],
    "IPMetric": ["IPMetric.Fragments"],
    "TCPMetric": [
        f"TCPMetric.{side}{name}"
        for side in ("AB", "BA")
        for name in ("SegmentOutOfOrder", "SegmentSkipped")
    ],
    "LastUpdateMetric": ["LastUpdateMetric.Start", "LastUpdateMetric.Last"],
}
"""Fields that are counted if the nested object has a wrong type."""

NON_NUMBERS = ("x", 1.5, 1e300, True, [1], {"a": 1})
"""The last value is used only for fields that are not objects."""


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (path, value)
        for path in OPTIONAL_PATHS
        for value in (
            NON_NUMBERS if "." in path or path in ("FinishType", "Start") else NON_NUMBERS[:-1]
        )
    ],
)
def test_optional_value_of_wrong_type_does_not_skip_the_flow(path: str, value: Any) -> None:
    sink = Sink(**ALL_METRICS)
    sink.receive(message(flow_with(path, value)))
    fields = PART_FIELDS.get(path, [path])
    assert (sink.skipped, sink.values_skipped) == ({}, dict.fromkeys(fields, 1))
    assert values(sink, BYTES) == ["100", "200"]


@pytest.mark.parametrize("rtt", [-1_500_000, 10**22])
def test_round_trip_time_out_of_range_is_skipped(rtt: int) -> None:
    # The time is negative if the agent's clock is set back between a packet and its reply.
    sink = Sink()
    sink.receive(message(flow(Metric=METRIC | {"RTT": rtt})))
    assert (sink.skipped, sink.values_skipped) == ({}, {"Metric.RTT": 1})
    assert (values(sink, BYTES), values(sink, RTT)) == (["100", "200"], [])


@pytest.mark.parametrize("path", ["Metric.RTT", "Start", "TCPMetric.ABSegmentSkipped"])
@pytest.mark.parametrize("value", [b"null", HUGE, b"-" + HUGE, DEEP], ids=lambda text: text[:6])
def test_only_the_undecodable_optional_value_is_skipped(path: str, value: bytes) -> None:
    sink = Sink(**ALL_METRICS)
    text = json.dumps(flow_with(path, "VALUE")).encode().replace(b'"VALUE"', value)
    sink.receive(message(text))
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
        # A label, a metric, the deduplication or a rule reads the field, so the field is required.
        ("Start", {"labels": [{"name": "begin", "path": "Start"}]}),
        ("Link", {"labels": ["vlan"]}),
        ("Link.ID", {"labels": ["vlan"], "metrics": ALL_METRICS["metrics"]}),
        (
            "Transport.A",
            {"labels": ["initiator_ip"], "metrics": [PORT], "views": [], "deduplicate": "first"},
        ),
        ("Metric.ABBytes", {"metrics": ["bytes", LATEST]}),
        ("Metric.RTT", {"drop": [{"name": "slow", "Metric.RTT": "5-9"}]}),
        # A custom counter requires its field: a skipped total would look like a reset.
        (
            "RawPacketsCaptured",
            {"metrics": [{"name": "raw", "value": "RawPacketsCaptured", "type": "counter"}]},
        ),
    ],
)
def test_required_value_of_wrong_type_skips_the_flow(path: str, settings: dict[str, Any]) -> None:
    sink = Sink(**settings)
    sink.receive(message(flow("1"), flow_with(path, [5], FinishType="x"), flow("2")))
    assert (sink.skipped, sink.values_skipped) == ({"invalid": 1}, {})
    assert sink.table.flows == 2


def test_skipped_values_of_unused_fields_are_not_counted() -> None:
    sink = Sink()
    bad = {"TCPMetric": 5, "IPMetric": [], "Link": "x", "ICMP": 7, "DNS": 5}
    sink.receive(message(flow(Metric=METRIC | {"Start": "x", "Last": "y"}, **bad)))
    assert (sink.table.flows, sink.skipped, sink.values_skipped) == (1, {}, {})


def test_each_skipped_value_of_a_flow_is_counted() -> None:
    sink = Sink()
    sink.receive(message(flow("2"), flow(Metric=METRIC | {"RTT": "x"}, FinishType="z")))
    assert sink.values_skipped == {"Metric.RTT": 1, "FinishType": 1}
    assert sink.table.flows == 2


def test_gauge_keeps_its_value_if_a_new_value_is_skipped() -> None:
    sink = Sink()
    for last, rtt in ((2000, 7), (3000, "x"), (4000, 9)):
        sink.receive(message(flow(Last=last, Metric=METRIC | {"ABBytes": last, "RTT": rtt})))
        assert values(sink, BYTES) == [str(last), "200"]
        assert values(sink, RTT) == ["9" if last == 4000 else "7"]


def test_counter_with_a_skipped_value_keeps_its_value_and_resets_no_other_counter() -> None:
    sink = Sink(metrics=["bytes", "tcp_out_of_order"])

    def send(last: int, ab: Any, ba: int) -> None:
        tcp = {"ABSegmentOutOfOrder": ab, "BASegmentOutOfOrder": ba}
        sink.receive(message(flow(Last=last, Metric=METRIC | {"ABBytes": last}, TCPMetric=tcp)))

    send(2000, 5, 6)
    send(3000, "x", 8)
    assert values(sink, OUT_OF_ORDER) == ["5", "8"]
    assert values(sink, BYTES) == ["3000", "200"]
    send(4000, 9, 9)
    assert values(sink, OUT_OF_ORDER) == ["9", "9"]
    assert sink.values_skipped == {"TCPMetric.ABSegmentOutOfOrder": 1}


@pytest.mark.parametrize("side", ["ABSegmentOutOfOrder", "BASegmentOutOfOrder"])
def test_sum_keeps_its_value_if_one_direction_is_skipped(side: str) -> None:
    sink = Sink(metrics=["tcp_out_of_order"], labels=["initiator_ip"], direction="sum", views=[])
    sink.receive(message(flow(TCPMetric=TCP)))
    sink.receive(message(flow(Last=3000, TCPMetric=TCP | {side: "x"})))
    assert values(sink, OUT_OF_ORDER) == ["11"]
    sink.receive(message(flow(Last=4000, TCPMetric=TCP | {side: 20})))
    assert values(sink, OUT_OF_ORDER) == [str(11 - TCP[side] + 20)]


def test_counter_without_any_valid_value_has_no_series() -> None:
    sink = Sink(metrics=["bytes", "tcp_out_of_order"])
    sink.receive(message(flow(TCPMetric="x")))
    assert values(sink, OUT_OF_ORDER) == []


BAD_FIRST_REPORT_FIELDS = (
    {"Start": "x"},
    {"LastUpdateMetric": "x"},
    {"LastUpdateMetric": UPDATE | {"Start": "x"}},
    {"LastUpdateMetric": UPDATE | {"Start": "x", "Last": "y", "ABBytes": []}},
    {"FinishType": "x"},
    {"FinishType": "x", "LastUpdateMetric": UPDATE | {"Start": 1000}},
    {"FinishType": "x", "LastUpdateMetric": None},
)


@pytest.mark.parametrize("bad_fields", BAD_FIRST_REPORT_FIELDS, ids=json.dumps)
def test_report_with_unreadable_start_is_not_a_first_report(bad_fields: dict[str, Any]) -> None:
    # Both flows have the same series, which may already include the second flow's total.
    sink = Sink()
    sink.receive(message(flow("1")))
    unreadable = {
        "LastUpdateMetric": UPDATE,
        "Network": {"A": "10.9.9.9", "B": "10.0.0.2"},
    } | bad_fields
    sink.receive(message(flow("2", Last=3000, **unreadable)))
    assert values(sink, TRAFFIC) == ["100", "200"]
    assert sink.table.flows == 2
    assert sink.values_skipped.keys() & {"Start", "LastUpdateMetric.Start", "FinishType"}
    # Later increases are counted even if the start is unreadable.
    for last in (4000, 5000):
        sink.receive(message(flow("2", Last=last, **unreadable, Metric=METRIC | {"ABBytes": last})))
    metric = METRIC | {"ABBytes": 5100}
    sink.receive(message(flow("2", Last=6000, LastUpdateMetric=UPDATE, Metric=metric)))
    assert values(sink, TRAFFIC) == ["5100", "200"]


def test_unreadable_finish_type_does_not_end_the_flow() -> None:
    sink = Sink()
    sink.receive(message(flow("1"), flow("1", Last=3000, FinishType="TIMEOUT")))
    assert values(sink, TRAFFIC) == ["100", "200"]
    assert not any(sink.table.finished.values())


def test_skipped_update_value_adds_nothing_to_its_counter() -> None:
    sink = Sink()
    sink.receive(message(flow("1")))
    update = {"ABPackets": 1, "ABBytes": "x", "BAPackets": 1, "BABytes": 50}
    update |= {"Start": 2500, "Last": 3000}
    network = {"A": "10.9.9.9", "B": "10.0.0.2"}
    sink.receive(message(flow("2", Last=3000, LastUpdateMetric=update, Network=network)))
    assert values(sink, TRAFFIC) == ["100", "250"]
    assert sink.values_skipped == {"LastUpdateMetric.ABBytes": 1}


def test_last_update_of_known_flow_is_not_checked() -> None:
    sink = Sink()
    sink.receive(message(flow("1")))
    sink.receive(message(flow("1", Last=2500)))
    sink.receive(
        message(flow("1", Last=3000, LastUpdateMetric="x", Metric=METRIC | {"ABBytes": 101}))
    )
    assert (sink.values_skipped, values(sink, TRAFFIC)) == ({}, ["101", "200"])


def test_number_of_partially_decoded_flows_is_limited() -> None:
    sink = Sink()
    bad = json.dumps(flow("1", FinishType="x")).encode()
    sink.receive(message(*[bad] * (MAX_PARTIAL_FLOWS + 2)))
    assert sink.values_skipped == {"FinishType": MAX_PARTIAL_FLOWS}
    assert sink.skipped["invalid"] == 2


async def test_counters_of_skipped_values_start_at_zero() -> None:
    config = make_config(metrics=["bytes", "rtt", "tcp_skipped"], views=[])
    app = App(config, load=lambda: config)
    async with app.exposition.stream(Part.SELF, gzip=False) as chunks:
        page = b"".join([chunk async for chunk in chunks]).decode()
    counts = re.findall(r'(?m)^skyfast_values_skipped_total\{field="(.*)"\} (\d+)$', page)
    update = (f"LastUpdateMetric.{name}" for name in ("Start", "Last", "ABBytes", "BABytes"))
    tcp = (f"TCPMetric.{side}SegmentSkipped" for side in ("AB", "BA"))
    fields = {"Metric.RTT", "FinishType", "Start", *update, *tcp}
    assert dict(counts) == dict.fromkeys(fields, "0")
