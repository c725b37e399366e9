"""Ingest of good and bad messages into a real table: only the bad parts are dropped."""

import json
import time
from collections import Counter
from typing import Any

import pytest

from skyfast.config.sharding import sharded
from skyfast.flows.selection import Shard
from skyfast.skydive.ingest import AVERAGED_MESSAGES, SHOWN_BYTES
from tests.support.configs import make_config
from tests.support.messages import BAD_FLOWS, BAD_MESSAGES, METRIC, flow, later, message
from tests.support.sink import IngestSetup, Sink


@pytest.mark.parametrize(("bad", "reason"), BAD_FLOWS.values(), ids=BAD_FLOWS)
def test_only_the_bad_flow_of_a_message_is_skipped(
    bad: dict[str, Any] | bytes, reason: str
) -> None:
    sink = Sink()
    sink.receive(message(flow("1"), bad, flow("2", NodeTID="other")))
    assert (sink.table.flows, sink.table.connections) == (2, 2)
    assert sink.skipped == {reason: 1}
    assert sink.errors == {}
    assert sink.analyzer.flows == 3


def test_unused_field_may_have_any_value() -> None:
    sink = Sink()
    data = (
        json.dumps(flow())[:-1].encode() + b',"Link":"\xff","TCPMetric":[1e999],"Extra":{"a":[]}}'
    )
    sink.receive(message(data))
    assert (sink.table.flows, sink.skipped) == (1, {})


@pytest.mark.parametrize(("data", "reason"), BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_bad_message_is_dropped_and_counted(data: bytes, reason: str) -> None:
    sink = Sink()
    sink.receive(data)
    assert sink.errors == {reason: 1}
    assert (sink.table.flows, sink.skipped) == (0, {})
    sink.receive(message(flow()))
    assert sink.table.flows == 1


def test_bad_message_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    sink = Sink()
    bad = b'{"Namespace\x1b[2J\n\xff' + b"x" * 1000
    for _ in range(2):
        sink.receive(bad)
    now_s = 60.0
    sink.receive(bad)
    sink.receive(b"[]")
    first, second, other = (record.getMessage() for record in caplog.records)
    shown = r'{"Namespace\x1b[2J\n\xff' + "x" * (SHOWN_BYTES - 17)
    assert first == (
        f"analyzer analyzer:8082: dropped a message of {len(bad)} bytes (malformed)"
        f" starting with {shown}"
    )
    assert second == f"{first} (1 more suppressed)"
    assert other.endswith("dropped a message of 2 bytes (not_a_message) starting with []")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'{"Namespace":"flow","Type":"store","Obj":null}', ("flow", "store")),
        (b'{"Namespace":"flow","Type":"store"}', ("flow", "store")),
        (b'{"Obj":[],"Type":"store","Namespace":"flow/3f","XXX_state":{}}', ("flow", "store")),
        (b'{"Namespace":"flow","Type":"update","Obj":[1]}', ("flow", "other")),
        (b'{"Namespace":"stats","Type":"stats","Obj":{"FlowCount":3}}', ("stats", "stats")),
        (b'{"Namespace":"stats","Type":"store","Obj":[1]}', ("stats", "store")),
        (b'{"Namespace":"topology","Type":"x","Obj":"y"}', ("other", "other")),
        (b'{"Namespace":"flowers","Type":"store","Obj":[1]}', ("other", "store")),
        (b"{}", ("other", "other")),
    ],
)
def test_messages_are_counted_by_kind(data: bytes, kind: tuple[str, str]) -> None:
    sink = Sink()
    sink.receive(data)
    assert {k: n for k, n in sink.analyzer.messages.items() if n} == {kind: 1}
    assert (sink.errors, sink.analyzer.flows, sink.skipped) == ({}, 0, {})


def test_key_order_does_not_matter() -> None:
    sink = Sink()
    sink.receive(b'{"Obj":[%b],"Type":"store","Namespace":"flow"}' % json.dumps(flow()).encode())
    assert sink.table.flows == 1


def test_message_is_decoded_again_from_first_unknown_flow() -> None:
    sink = Sink()
    sink.receive(message(flow("1")))
    # The table does not know flow 2, which belongs to the connection of flow 1.
    sink.receive(
        message(
            flow("1", Last=2001, Metric=METRIC | {"ABBytes": 101}),
            later("2", 1500),
            flow("1", Last=2002, Metric=METRIC | {"ABBytes": 103}),
            flow("3", NodeTID="other"),
        )
    )
    assert sink.analyzer.flows == 5
    assert (sink.table.flows, sink.table.connections, sink.skipped) == (3, 2, {})
    assert 'direction="initiator_to_target",node_tid="tid",protocol="TCP"} 110\n' in sink.page()


@pytest.mark.parametrize(
    "bad_fields",
    [
        {"LastUpdateMetric": {"Start": "x"}},
        {"Start": "x", "LastUpdateMetric": {"Start": 1}},
        {"LastUpdateMetric": {"Start": 2, "Last": 3, "ABBytes": "y"}},
    ],
)
def test_bad_value_in_a_flow_that_is_decoded_again_is_skipped(bad_fields: dict[str, Any]) -> None:
    sink = Sink()
    sink.receive(message(flow("1")))
    sink.receive(
        message(flow("0", NodeTID="a"), later("2", 1500), flow("3") | bad_fields, flow("4"))
    )
    assert (sink.skipped, sum(sink.values_skipped.values())) == ({}, 1)
    assert sink.table.flows == 5


def test_used_counters_of_the_last_update_are_validated() -> None:
    sink = Sink()
    sink.receive(message(flow("1")))
    update = {"ABBytes": -7, "Start": 1501, "Last": 2000}
    sink.receive(message(later("2", 1500, LastUpdateMetric=update), flow("3", NodeTID="b")))
    assert sink.skipped == {}
    assert sink.table.flows == 3
    assert +Counter(sink.table.values_skipped) == {"LastUpdateMetric.ABBytes": 1}


@pytest.mark.parametrize("excluded", ["internal", "ingress", "egress", "other"])
def test_flows_with_excluded_tag_are_dropped(excluded: str) -> None:
    sink = Sink(cluster_net_masks=["10.0.0.0/8", "fd00::/8"], excluded_tags=[excluded])
    addresses = {
        "internal": ("10.0.0.1", "fd00::1"),
        "egress": ("10.0.0.1", "8.8.8.8"),
        "ingress": ("2001:db8::1", "10.1.2.3"),
        "other": ("8.8.8.8", "9.9.9.9"),
    }
    sink.receive(
        message(*(flow(name, Network={"A": a, "B": b}) for name, (a, b) in addresses.items()))
    )
    assert sink.skipped == {"excluded": 1}
    assert sink.table.flows == 3
    a, b = addresses[excluded]
    assert f'initiator_ip="{a}",target_ip="{b}"' not in sink.page()


def test_excluded_flows_of_message_decoded_twice_are_counted_once() -> None:
    sink = Sink(cluster_net_masks=["10.0.0.0/8"], excluded_tags=["egress"])
    sink.receive(message(flow("1")))
    outside = flow("e", Network={"A": "10.0.0.1", "B": "8.8.8.8"})
    sink.receive(message(outside, later("2", 1500), outside, flow("3", NodeTID="b")))
    assert sink.skipped == {"excluded": 2}
    assert sink.table.flows == 3


def test_flow_without_addresses_has_no_tag() -> None:
    sink = Sink(cluster_net_masks=["10.0.0.0/8"], excluded_tags=["other"])
    sink.receive(message(flow("1", Network=None), flow("2", Network={"A": "x", "B": "10.0.0.1"})))
    assert sink.skipped == {"no_network": 1, "excluded": 1}


@pytest.mark.parametrize("address", ["::ffff:10.0.0.1", "10.0.0.1"])
def test_ipv4_mapped_address_is_tagged_as_ipv4(address: str) -> None:
    sink = Sink(cluster_net_masks=["10.0.0.0/8"], excluded_tags=["internal"])
    sink.receive(message(flow(Network={"A": address, "B": "10.0.0.2"})))
    assert sink.skipped == {"excluded": 1}


@pytest.mark.parametrize("address", ["", "fe80::1%eth0", "10.0.0.256", "x"])
def test_invalid_address_is_tagged_other(address: str) -> None:
    sink = Sink(cluster_net_masks=["0.0.0.0/0", "::/0"], excluded_tags=["other"])
    sink.receive(message(flow(Network={"A": address, "B": "10.0.0.2"})))
    assert sink.skipped == {"excluded": 1}


def test_captures_show_the_values_of_statistics_messages() -> None:
    sink = Sink()
    report = {"CaptureID": "c1", "FlowCount": 3}
    for obj in (report, [report], [], None, "x"):
        sink.receive(json.dumps({"Namespace": "stats", "Type": "stats", "Obj": obj}).encode())
    assert b'skydive_capture_flows{capture_id="c1"} 3\n' in sink.captures.page(100.0)
    assert sink.analyzer.messages["stats", "stats"] == 5
    assert sink.stats.captures.skipped["invalid"] == 4


class Spy:
    """A table that records the types of the decoded flows, which differ by decoder."""

    def __init__(self, table: Any) -> None:
        self.used: list[str] = []
        self._table = table

    def update(self, flows: list[Any], now: float, start: int = 0, *, wall_ms: int = 0) -> int:
        self.used.append(type(flows[0]).__name__)
        return self._table.update(flows, now, start, wall_ms=wall_ms)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


def spied(**settings: Any) -> tuple[Sink, list[str]]:
    """Return a sink, and the types of the flows that its table receives."""
    sink = Sink(**settings)
    sink.ingest._table = spy = Spy(sink.table)
    return sink, spy.used


def take_known(sink: Sink, messages: int) -> None:
    """Send ``messages`` reports of one flow, which the table then knows."""
    for number in range(messages):
        sink.receive(message(flow("known", Last=3000 + number)))


def test_messages_of_new_flows_are_decoded_once() -> None:
    sink, used = spied()
    for uuids in ("a", "b", "a", "a", "c", "d"):
        sink.receive(message(flow(uuids, Last=len(used) + 3000)))
    assert used == [
        "FirstReport",
        "FirstReport",
        "FirstReport",
        "Update",
        "Update",
        "FullReport",
        "FirstReport",
    ]
    # The table does not know flow "e", although the flow is not new: it is decoded twice.
    used.clear()
    newest = METRIC | {"Start": 2500, "Last": 2600}
    sink.receive(message(flow("e", Last=2600, LastUpdateMetric=newest)))
    assert used == ["FirstReport", "FullReport"]


MANY = 4 * AVERAGED_MESSAGES
"""After this number of messages without unknown flows, skyfast stops decoding labels."""


def test_labels_are_not_decoded_while_all_flows_are_known() -> None:
    sink, used = spied()
    take_known(sink, MANY)
    assert used[:3] == ["FirstReport", "FirstReport", "Update"]
    assert used[-1] == "KnownReport"
    assert used == sorted(used, key=["FirstReport", "Update", "KnownReport"].index)
    used.clear()
    # The flow "new" is unknown, so the message is decoded again from this flow on.
    sink.receive(
        message(flow("known", Last=4000), flow("new", NodeTID="b"), flow("known", Last=4001))
    )
    assert used == ["KnownReport", "FullReport"]
    sink.receive(message(flow("known", Last=4002)))
    sink.receive(message(flow("known", Last=4003)))
    assert used == ["KnownReport", "FullReport", "FirstReport", "KnownReport"]
    assert (sink.table.flows, sink.table.connections, sink.skipped) == (2, 2, {})
    assert sink.analyzer.flows == MANY + 5
    assert 'direction="initiator_to_target",node_tid="b",protocol="TCP"} 100\n' in sink.page()


@pytest.mark.parametrize(("period", "omits_labels"), [(8, False), (24, True)])
def test_labels_are_decoded_if_too_many_messages_have_unknown_flows(
    period: int, omits_labels: bool
) -> None:
    # One in ``period`` messages has an unknown flow.
    sink, used = spied()
    for number in range(3 * MANY):
        sink.receive(message(flow("known" if number % period else str(number), Last=3000 + number)))
    assert ("KnownReport" in used[2 * MANY :]) is omits_labels
    assert sink.table.flows == 1 + 3 * MANY // period


@pytest.mark.parametrize(("bad", "reason"), BAD_FLOWS.values(), ids=BAD_FLOWS)
def test_only_the_bad_flow_of_a_message_is_skipped_if_labels_are_not_decoded(
    bad: dict[str, Any] | bytes, reason: str
) -> None:
    sink, used = spied()
    take_known(sink, MANY)
    assert used[-1] == "KnownReport"
    sink.receive(message(flow("1"), bad, flow("2", NodeTID="other")))
    assert (sink.table.flows, sink.table.connections) == (3, 2)
    assert (sink.skipped, sink.errors) == ({reason: 1}, {})
    assert sink.analyzer.flows == MANY + 3


def test_label_of_a_known_flow_may_have_any_value_if_labels_are_not_decoded() -> None:
    sink, _ = spied()
    take_known(sink, MANY)
    sink.receive(message(flow("known", Last=5000, NodeTID=5, Metric=METRIC | {"ABBytes": 107})))
    assert (sink.skipped, sink.table.flows) == ({}, 1)
    assert 'direction="initiator_to_target",node_tid="tid",protocol="TCP"} 107\n' in sink.page()


def test_rules_are_applied_even_if_labels_are_not_decoded() -> None:
    sink, used = spied(drop=[{"name": "web", "target_port": 443}])
    web = {"Transport": {"A": 40000, "B": 443}}
    for number in range(MANY):
        sink.receive(message(flow("other", Last=3000 + number, Transport={"A": 1, "B": 80})))
    assert used[-1] == "KnownReport"
    sink.receive(message(flow("web", **web), flow("other", Last=9000, Transport={"A": 1, "B": 80})))
    assert used[-1] == "KnownReport"
    assert sum(sink.stats.flows_filtered.values()) == 1
    assert sink.table.flows == 1


def test_messages_with_flows_of_other_shards_are_decoded_once() -> None:
    # skyfast always decodes the addresses and ports here, because they determine the shard.
    config = sharded(make_config(), Shard(index=0, count=2))
    setup = IngestSetup(config, max_connections=1000, max_flows=4000)
    setup.ingest._table = spy = Spy(setup.table)
    ports = range(1000, 1020)
    for number in range(MANY):
        flows = (
            flow(str(port), Last=3000 + number, Transport={"A": port, "B": 80}) for port in ports
        )
        setup.ingest.message(message(*flows), setup.analyzer)
    assert 0 < setup.table.flows < len(ports)
    assert setup.table.skipped["other_shard"] == MANY * (len(ports) - setup.table.flows)
    assert spy.used == ["FirstReport"] * 2 + ["Update"] * (MANY - 2)
