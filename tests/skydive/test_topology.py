import asyncio
import gzip
import json
import logging
import re
import socket
import threading
import time
import tracemalloc
import zlib
from contextlib import asynccontextmanager

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from skyfast.config.yaml_nodes import ConfigError
from skyfast.runtime.logs import LogLimit
from skyfast.skydive import name_index, name_poller, topology_client
from skyfast.skydive.interfaces import (
    MAX_INTERFACES,
    MAX_LABEL_CHARS,
    MAX_LABELS_CHARS,
    Interfaces,
)
from skyfast.skydive.name_index import NameIndex
from skyfast.skydive.topology import TopologyPoller
from skyfast.skydive.topology_nodes import MalformedResponseError, read
from skyfast.skydive.topology_queries import NAMED_INTERFACES
from skyfast.stats import TopologyStats
from tests.support import openmetrics_2
from tests.support.analyzer import FakeAnalyzer, FakeResponse, Fault
from tests.support.certificates import Authority
from tests.support.configs import make_config
from tests.support.paths import DATA, RECORDINGS
from tests.support.table_adapter import read_created
from tests.support.tasks import cancelled_afterwards
from tests.support.waiting import until

RECORDED = (RECORDINGS / "topology.json").read_bytes()

# The counters of the Go connector, in the connector's order.
NAMES = (
    "rx_bytes",
    "tx_bytes",
    "rx_packets",
    "tx_packets",
    "rx_dropped",
    "tx_dropped",
    "rx_errors",
    "tx_errors",
    "rx_missed_errors",
    "tx_missed_errors",
    "collisions",
)
PREFIX = "skydive_network_interface_"
LABELS = ["interface_name", "host", "interface_type", "ipv4", "ipv6", "node_tid"]


class Fixture:
    """`Interfaces`, with methods that update them and parse their page."""

    def __init__(self, *, interval_s=20.0, connection_timeout_s=60.0, naming="compatible"):
        self.stats = TopologyStats()
        self.interfaces = Interfaces(
            interval_s=interval_s,
            connection_timeout_s=connection_timeout_s,
            stats=self.stats,
            naming=naming,
        )

    def receive(self, response, now):
        self.interfaces.update(read(response), now)

    def update(self, *nodes, now=0.0):
        self.receive(json.dumps(nodes).encode(), now)

    def samples(self, now=0.0):
        """Return the values of samples, by name (without `PREFIX` and _total) and label values."""
        samples = {}
        for family in text_string_to_metric_families(self.interfaces.page(now).decode()):
            assert family.type == "counter"
            for sample in family.samples:
                # The parser adds the suffix that OpenMetrics requires for counters.
                name = sample.name.removeprefix(PREFIX).removesuffix("_total")
                key = (name, tuple(sample.labels[label] for label in LABELS))
                assert key not in samples
                samples[key] = sample.value
        return samples

    def labels(self, now=0.0):
        return {labels for _, labels in self.samples(now)}

    def skipped(self):
        return {reason: number for reason, number in self.stats.skipped.items() if number}


@pytest.fixture
def topology():
    return Fixture()


def node(name="eth0", *, tid="t1", node_id="n1", updated_at=1, host="h", **metadata):
    metadata = {"Name": name, "Type": "device", "TID": tid, **metadata}
    return {"ID": node_id, "Metadata": metadata, "Host": host, "UpdatedAt": updated_at}


def labels_of(name="eth0", host="h", kind="device", ipv4="", ipv6="", tid="t1"):
    return (name, host, kind, ipv4, ipv6, tid)


def test_the_page_of_a_recorded_response_equals_the_golden_file(topology):
    topology.receive(RECORDED, 0.0)
    golden = DATA / "topology.prom"
    assert topology.interfaces.page(0.0).decode() == golden.read_text()
    assert topology.stats.interfaces == 7
    assert topology.skipped() == {}


def test_an_independent_parser_reads_the_page_of_a_recorded_response(topology):
    topology.receive(RECORDED, 0.0)
    expected = {}
    for interface in json.loads(RECORDED):
        metadata = interface["Metadata"]
        labels = (
            metadata["Name"],
            interface["Host"],
            metadata["Type"],
            metadata.get("IPV4", [""])[0],
            metadata.get("IPV6", [""])[0],
            metadata["TID"],
        )
        for name in NAMES:
            key = "".join(word.capitalize() for word in name.split("_"))
            expected[name, labels] = metadata["Metric"].get(key, 0)
    assert topology.samples() == expected
    assert len(expected) == 7 * 11


def test_every_counter_comes_from_its_own_field(topology):
    fields = {
        "".join(word.capitalize() for word in name.split("_")): number
        for number, name in enumerate(NAMES, start=1)
    }
    topology.update(node(Metric=fields))
    shown = {name: value for (name, _), value in topology.samples().items()}
    expected = {name: number for number, name in enumerate(NAMES, start=1)}
    assert shown == expected | {"tx_missed_errors": 0}


def test_samples_of_a_family_follow_its_help_and_type_lines(topology):
    topology.update(node(), node("eth1", tid="t2"))
    lines = topology.interfaces.page(0.0).decode().split("\n")
    assert lines.pop() == ""
    for name in NAMES:
        full = f"{PREFIX}{name}"
        help_, type_, *samples = lines[:4]
        del lines[:4]
        assert help_.startswith(f"# HELP {full} ")
        assert type_ == f"# TYPE {full} counter"
        assert [line.split("{")[0] for line in samples] == [full, full]
    assert lines == []


@pytest.mark.parametrize("empty", ["missing", None, "empty"])
@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("Metric", {}, labels_of()),
        ("IPV4", [], labels_of()),
        ("IPV6", [], labels_of()),
        ("Name", "", labels_of(name="")),
        ("Type", "", labels_of(kind="")),
        ("TID", "", labels_of(tid="n1")),
    ],
)
def test_optional_fields_may_be_missing(topology, field, value, empty, shown):
    interface = node()
    if empty == "missing":
        interface["Metadata"].pop(field, None)
    else:
        interface["Metadata"][field] = value if empty == "empty" else None
    topology.update(interface)
    assert topology.samples() == {(name, shown): 0 for name in NAMES}
    assert topology.skipped() == {}


def test_the_first_address_is_shown(topology):
    topology.update(node(IPV4=["10.0.0.1/24", "10.0.0.2/24"], IPV6=["fd00::1/64", "fe80::1/64"]))
    assert topology.labels() == {labels_of(ipv4="10.0.0.1/24", ipv6="fd00::1/64")}


def test_a_node_without_any_identity_is_not_shown(topology):
    topology.update(node(tid="", node_id=""), node())
    assert topology.labels() == {labels_of()}
    assert topology.skipped() == {"no_id": 1}


@pytest.mark.parametrize("newest", [0, 1, 2])
def test_the_newest_of_nodes_with_the_same_labels_is_shown(topology, newest):
    nodes = [
        node(node_id=f"n{number}", updated_at=5 + (number == newest), Metric={"RxBytes": number})
        for number in range(3)
    ]
    topology.update(*nodes)
    assert topology.samples()["rx_bytes", labels_of()] == newest
    assert topology.stats.interfaces == 1
    assert topology.skipped() == {"duplicate": 2}


def test_nodes_that_differ_in_one_label_are_all_shown(topology):
    topology.update(node(), node(host="h2"), node(IPV4=["10.0.0.1/24"]), node(tid="t2"))
    assert len(topology.labels()) == 4
    assert topology.skipped() == {}


# Maps the standard name of each family to the field of Skydive that it shows.
STANDARD = {
    "receive_bytes": "RxBytes",
    "transmit_bytes": "TxBytes",
    "receive_packets": "RxPackets",
    "transmit_packets": "TxPackets",
    "receive_dropped": "RxDropped",
    "transmit_dropped": "TxDropped",
    "receive_errors": "RxErrors",
    "transmit_errors": "TxErrors",
    "receive_missed_errors": "RxMissedErrors",
    "collisions": "Collisions",
}
READERS = {
    False: text_string_to_metric_families,
    True: lambda page: openmetrics.text_string_to_metric_families(page + "# EOF\n"),
}


@pytest.mark.parametrize("asked_for_openmetrics", [False, True])
def test_standard_names_are_valid_in_both_formats(asked_for_openmetrics):
    topology = Fixture(naming="standard")
    topology.receive(RECORDED, 0.0)
    page = topology.interfaces.page(0.0, asked_for_openmetrics).decode()
    shown = {}
    for family in READERS[asked_for_openmetrics](page):
        assert family.type == "counter"
        assert family.documentation.endswith(".")
        # The parser of the text format removes _total from the name of a family.
        name = family.name.removeprefix("skydive_interface_")
        assert family.unit == ("bytes" if asked_for_openmetrics and "_bytes" in name else "")
        for sample in family.samples:
            assert sample.name == f"skydive_interface_{name}_total"
            shown[name, sample.labels["node_tid"]] = sample.value
    assert shown == {
        (name, interface["Metadata"]["TID"]): interface["Metadata"]["Metric"].get(field, 0)
        for interface in json.loads(RECORDED)
        for name, field in STANDARD.items()
    }


def test_formats_differ_only_in_the_lines_that_declare_families():
    topology = Fixture(naming="standard")
    topology.update(node("é"), node("eth1", tid="t2", Metric={"RxBytes": 2**63 - 1, "TxBytes": -1}))
    assert topology.skipped() == {"out_of_range": 1}
    text, other = (topology.interfaces.page(0.0, openmetrics) for openmetrics in (False, True))
    samples = [line for line in text.split(b"\n") if not line.startswith(b"#")]
    assert [line for line in other.split(b"\n") if not line.startswith(b"#")] == samples
    assert len(samples) == 2 * len(STANDARD) - 1 + 1
    assert b"# TYPE skydive_interface_receive_bytes_total counter\n" in text
    assert b"# TYPE skydive_interface_receive_bytes counter\n" in other
    assert b"# UNIT skydive_interface_receive_bytes bytes\n" in other
    assert b"# UNIT" not in text


@pytest.mark.parametrize("naming", ["compatible", "standard"])
def test_openmetrics_2_differs_only_in_the_lines_that_declare_families(naming):
    topology = Fixture(naming=naming)
    topology.update(node('"é"\n'), node("eth1", tid="t2"))
    text, page = (topology.interfaces.page(0.0, version, created=True) for version in (0, 2))
    families = openmetrics_2.families_of(f"{page.decode()}# EOF\n")
    assert [line for line in page.split(b"\n") if not line.startswith(b"#")] == [
        line for line in text.split(b"\n") if not line.startswith(b"#")
    ]
    assert {family.metadata["TYPE"] for family in families.values()} == {"counter"}
    assert all(len(family.samples) == 2 for family in families.values())


def test_start_times_of_interfaces_are_unknown():
    """A start time is shown as 0, directly after its counter."""
    topology = Fixture(naming="standard")
    topology.update(node("eth0"), node("eth1", tid="t2"))
    plain, page = (topology.interfaces.page(0.0, 1, created=created) for created in (False, True))
    lines = page.decode().splitlines()
    created = [line for line in lines if "_created{" in line]
    assert "\n".join(line for line in lines if line not in created) + "\n" == plain.decode()
    assert len(created) == 2 * len(STANDARD)
    assert {*read_created(page.decode()).values()} == {0}
    for family in openmetrics.text_string_to_metric_families(page.decode() + "# EOF\n"):
        total, time = family.samples[:2]
        assert (total.name, time.name) == (f"{family.name}_total", f"{family.name}_created")
        assert total.labels == time.labels


@pytest.mark.parametrize("asked_for_openmetrics", [False, True])
def test_families_with_standard_names_expire_in_both_formats(asked_for_openmetrics):
    topology = Fixture(naming="standard")
    assert topology.interfaces.page(0.0, asked_for_openmetrics) == b""
    topology.update(node(), now=0.0)
    first = topology.interfaces.page(0.0, asked_for_openmetrics)
    assert topology.interfaces.page(59.9, asked_for_openmetrics) == first != b""
    assert topology.interfaces.page(60.0, asked_for_openmetrics) == b""
    topology.update(node("eth9"), now=70.0)
    assert b"eth9" in topology.interfaces.page(70.0, asked_for_openmetrics)
    topology.update(now=80.0)
    assert topology.interfaces.page(80.0, asked_for_openmetrics) == b""


@pytest.mark.parametrize("value", [2**53 + 1, 2**63 - 1])
def test_counters_are_exact(topology, value):
    topology.update(node(Metric={"RxBytes": value}))
    line = next(x for x in topology.interfaces.page(0.0).decode().split("\n") if "{" in x)
    assert line.endswith(f" {value}")


@pytest.mark.parametrize("value", [-1, 2**63, 10**22])
def test_only_the_counter_that_is_out_of_range_is_omitted(topology, value):
    topology.update(node(Metric={"RxBytes": value, "TxBytes": 7}), node("eth1", tid="t2"))
    samples = topology.samples()
    assert ("rx_bytes", labels_of()) not in samples
    assert samples["tx_bytes", labels_of()] == 7
    assert len(samples) == 2 * 11 - 1
    assert topology.skipped() == {"out_of_range": 1}


def test_a_reset_counter_shows_its_new_value(topology):
    topology.update(node(Metric={"RxBytes": 1000}), now=0.0)
    topology.update(node(Metric={"RxBytes": 10}), now=20.0)
    assert topology.samples(20.0)["rx_bytes", labels_of()] == 10


def test_labels_are_escaped(topology):
    topology.update(node('a"b\\c\nd\\ne\r\t\0ü'))
    assert topology.labels() == {labels_of(name='a"b\\c\nd\\ne\r\t\0ü')}
    assert r'interface_name="a\"b\\c\nd\\ne' in topology.interfaces.page(0.0).decode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (rb"\ud800", "�"),
        (rb"x\udc00y", "x�y"),
        (rb"\ud800\ud83d\ude00\ude00", "�😀�"),
        (rb"\\ud800", r"\ud800"),
        (rb"\u00e9\uDFFF\n", "é�\n"),
        (rb"\ud800\ud800\udc00", "�𐀀"),
        (rb"\\\ud800", "\\�"),
        (b"a\xffb", "a�b"),
        (b"\xed\xa0\x80", "���"),
    ],
)
@pytest.mark.parametrize("field", ["Name", "Unused"])
def test_invalid_unicode_is_replaced(topology, text, shown, field):
    response = json.dumps([node(**{field: "?"}), node("eth1", tid="t2")]).encode()
    topology.receive(response.replace(b"?", text), 0.0)
    name = shown if field == "Name" else "eth0"
    assert topology.labels() == {labels_of(name=name), labels_of(name="eth1", tid="t2")}
    assert topology.skipped() == {}


WRONG = json.loads((DATA / "topology-wrong-nodes.json").read_bytes())


@pytest.mark.parametrize("why", WRONG)
def test_an_invalid_node_does_not_affect_others(topology, why):
    topology.update(node(), WRONG[why], node("eth1", tid="t2"))
    assert topology.labels() == {labels_of(), labels_of(name="eth1", tid="t2")}
    assert topology.skipped() == {"invalid": 1}


def test_a_value_that_is_nested_too_deeply_does_not_affect_its_node(topology):
    deep = b"[" * 100_000 + b"]" * 100_000
    response = json.dumps([node(Unused="?"), node("eth1", tid="t2")]).encode()
    topology.receive(response.replace(b'"?"', deep), 0.0)
    assert topology.labels() == {labels_of(), labels_of(name="eth1", tid="t2")}
    assert topology.skipped() == {}


def test_the_length_of_labels_is_bounded(topology):
    longest = "x" * MAX_LABEL_CHARS
    topology.update(node(longest), node(tid=longest + "x"), node(IPV4=["x" * 10_000_000]))
    assert topology.labels() == {labels_of(name=longest)}
    assert topology.skipped() == {"text_too_long": 2}


def test_the_number_of_interfaces_is_bounded(topology):
    topology.update(*(node(tid=f"t{number}") for number in range(MAX_INTERFACES + 3)))
    assert topology.stats.interfaces == MAX_INTERFACES
    samples = topology.interfaces.page(0.0).count(f"\n{PREFIX}rx_bytes{{".encode())
    assert samples == MAX_INTERFACES
    assert topology.skipped() == {"too_many": 3}


def test_long_labels_do_not_make_the_page_too_long(topology):
    # A quote takes two characters on the page, because it is escaped.
    host = '"' * MAX_LABEL_CHARS
    number = MAX_LABELS_CHARS // (2 * MAX_LABEL_CHARS)
    topology.update(*(node(tid=f"t{one}", host=host) for one in range(number)), node())
    page = topology.interfaces.page(0.0)
    assert MAX_LABELS_CHARS * 10 < len(page) < MAX_LABELS_CHARS * 12
    assert topology.skipped()["too_many"] == number + 1 - topology.stats.interfaces
    assert topology.stats.interfaces < number


MALFORMED = [
    b"",
    b"[",
    RECORDED[:-10],
    b"{}",
    b'"text"',
    b"7",
    b"\xff",
    b"<html>",
    b"[] []",
    b'[{"Metadata":{}},]',
]


@pytest.mark.parametrize("response", MALFORMED, ids=lambda response: ascii(response[:20]))
def test_a_malformed_response_changes_nothing(topology, response):
    topology.update(node(), node(), now=0.0)
    before = topology.interfaces.page(59.0)
    with pytest.raises(MalformedResponseError):
        topology.receive(response, 50.0)
    assert topology.interfaces.page(59.0) == before
    assert topology.interfaces.page(60.0) == b""
    assert topology.stats.interfaces == 1
    assert topology.skipped() == {"duplicate": 1}


@pytest.mark.parametrize("response", [b"[]", b"null", b" [ ] \n"])
def test_an_empty_response_removes_all_interfaces(topology, response):
    topology.update(node())
    topology.receive(response, 20.0)
    assert topology.interfaces.page(20.0) == b""
    assert topology.stats.interfaces == 0


def test_an_interface_that_is_no_longer_reported_is_removed_at_once(topology):
    topology.update(node(), node("eth1", tid="t2"), now=0.0)
    topology.update(node("eth1", tid="t2"), now=20.0)
    assert topology.labels(20.0) == {labels_of(name="eth1", tid="t2")}


@pytest.mark.parametrize(
    ("interval_s", "connection_timeout_s", "leaves_s"),
    [(20.0, 60.0, 60.0), (20.0, 300.0, 300.0), (60.0, 75.0, 180.0)],
)
def test_interfaces_expire_if_no_response_arrives(interval_s, connection_timeout_s, leaves_s):
    topology = Fixture(interval_s=interval_s, connection_timeout_s=connection_timeout_s)
    topology.update(node(), now=1000.0)
    topology.interfaces.expire(1000.0 + leaves_s - 0.1)
    assert topology.labels(1000.0 + leaves_s - 0.1) == {labels_of()}
    assert topology.stats.interfaces == 1
    assert topology.interfaces.page(1000.0 + leaves_s) == b""
    topology.interfaces.expire(1000.0 + leaves_s)
    assert topology.stats.interfaces == 0
    topology.update(node(), now=2000.0)
    assert topology.labels(2000.0) == {labels_of()}


def test_the_page_is_empty_before_the_first_response(topology):
    assert topology.interfaces.page(0.0) == b""


# Queries over real sockets.

FAST_S = 0.05
"""So short an interval that a test sees several responses."""


class InterfacePoll:
    """A running poller, and the interfaces that it receives."""

    def __init__(self, *urls, interval_s=FAST_S, names=None, **settings):
        self.stats = TopologyStats()
        self.renamed = []
        config = make_config(*urls, interfaces_interval=interval_s, **settings)
        self.interfaces = Interfaces(
            interval_s=interval_s, connection_timeout_s=60.0, stats=self.stats
        )
        self.poller = TopologyPoller(
            config=config,
            interfaces=self.interfaces,
            stats=self.stats,
            now=time.monotonic,
            names=names,
            wanted=(NAMED_INTERFACES,),
            renamed=lambda lookup, keys: self.renamed.append(
                (lookup, {key: lookup[key] for key in keys}, threading.current_thread())
            ),
        )

    @asynccontextmanager
    async def running(self):
        async with cancelled_afterwards(self.poller.run()):
            yield self

    def errors(self):
        return {reason: number for reason, number in self.stats.errors.items() if number}

    def shows(self, name):
        return f'interface_name="{name}"'.encode() in self.interfaces.page(time.monotonic())


def response_of(*nodes, **options):
    return FakeResponse(body=json.dumps(nodes).encode(), **options)


def closed_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@pytest.mark.xdist_group("timing")
async def test_the_first_query_is_sent_at_once_in_the_form_of_skydive():
    async with FakeAnalyzer() as analyzer:
        analyzer.topology = response_of(node(), compress=True)
        async with InterfacePoll(analyzer.url, interval_s=3600).running() as poll:
            await until(lambda: poll.stats.answers)
            assert poll.shows("eth0")
        (request,) = analyzer.topology_requests
        assert (request.method, request.target) == ("POST", "/api/topology")
        assert json.loads(request.body) == {"GremlinQuery": "G.V().Has('EncapType', 'ether')"}
        assert request.all("Content-Type") == ["application/json"]
        assert request.all("Host") == [analyzer.name]
        assert request.all("Accept-Encoding") == ["gzip"]
        assert request.all("Authorization") == request.all("Cookie") == []
        assert poll.stats.answers == 1
        assert abs(poll.stats.last_answer_timestamp_s - time.time()) < 5
        assert poll.errors() == {}


async def test_queries_and_logins_use_the_prefix():
    async with FakeAnalyzer(prefix="/a/skydive", username="ann", password="s3cret") as analyzer:
        analyzer.accepts_basic = False
        analyzer.topology = response_of(node())
        async with InterfacePoll(analyzer.url, username="ann", password="s3cret").running() as poll:
            await until(lambda: poll.shows("eth0"))
        assert {*analyzer.paths} == {"/a/skydive/login", "/a/skydive/api/topology"}


@pytest.mark.xdist_group("timing")
async def test_a_query_is_sent_in_every_interval():
    async with FakeAnalyzer() as analyzer:
        async with InterfacePoll(analyzer.url).running() as poll:
            for number in range(3):
                analyzer.topology = response_of(node(f"eth{number}"), compress=number == 1)
                await until(lambda name=f"eth{number}": poll.shows(name))
        assert poll.stats.interfaces == 1
        asked = len(analyzer.topology_requests)
        await asyncio.sleep(2 * FAST_S)
        assert len(analyzer.topology_requests) == asked


async def test_no_query_is_sent_with_an_interval_of_zero():
    async with FakeAnalyzer() as analyzer:
        async with asyncio.timeout(2):
            await InterfacePoll(analyzer.url, interval_s=0).poller.run()
        assert analyzer.connections == 0


def lo(number):
    return node(
        "lo", tid=f"lo{number}", node_id=f"lo{number}", EncapType="loopback", IPV4=["127.0.0.1/8"]
    )


async def test_names_and_interfaces_come_from_the_same_response():
    async with FakeAnalyzer() as analyzer:
        names = NameIndex(keep_s=60.0)
        analyzer.topology = response_of(
            node(EncapType="ether", IPV4=["10.0.0.1/24"]),
            lo(1),
            node("br0", tid="bridge", node_id="bridge", Type="ovsbridge"),
            WRONG["Name is an object"],
            compress=True,
        )
        async with InterfacePoll(analyzer.url, names=names).running() as poll:
            await asyncio.wait_for(names.ready.wait(), 5)
            assert names.nodes == NODES
            assert names.addresses["10.0.0.1"] == ("h", "h", *[""] * 6)
            assert names.addresses["127.0.0.1"] is None  # ambiguous: the names depend on the flow
            await until(lambda: poll.stats.answers >= 2)
        for request in analyzer.topology_requests:
            assert json.loads(request.body) == {"GremlinQuery": NAMED_INTERFACES.gremlin}
        # The query for names also returns nodes that are not shown or counted as interfaces.
        assert poll.stats.interfaces == 1
        assert poll.stats.skipped["invalid"] == sum(poll.stats.skipped.values()) == 1
        page = poll.interfaces.page(time.monotonic()).decode()
        assert set(re.findall('node_tid="([^"]*)"', page)) == {"t1"}
        # Only the first response is reported, because the second response changed no names.
        main = threading.current_thread()
        assert poll.renamed == [
            (names.nodes, NODES, main),
            (names.combined, dict(names.combined), main),
        ]


NODES = {
    tid: (name, "h", kind, "", "", "", "", "")
    for tid, name, kind in (
        ("t1", "eth0", "device"),
        ("lo1", "lo", "device"),
        ("bridge", "br0", "ovsbridge"),
    )
} | {"t9": ("",) * 8}  # the node whose name is an object


async def test_a_new_name_is_reported():
    async with FakeAnalyzer() as analyzer:
        names = NameIndex(keep_s=60.0)
        analyzer.topology = response_of(node(), node("eth1", tid="t2", node_id="n2"))
        async with InterfacePoll(analyzer.url, names=names).running() as poll:
            await until(lambda: poll.renamed)
            poll.renamed.clear()
            analyzer.topology = response_of(node("wan0"), node("eth1", tid="t2", node_id="n2"))
            await until(lambda: poll.renamed)
        assert [
            (lookup, {key: names[0] for key, names in answers.items()})
            for lookup, answers, _ in poll.renamed
        ] == [(names.nodes, {"t1": "wan0"})]


async def test_names_are_queried_even_if_interfaces_are_not_exported(monkeypatch):
    monkeypatch.setattr(name_poller, "INTERVAL_S", FAST_S)
    async with FakeAnalyzer() as analyzer:
        names = NameIndex(keep_s=60.0)
        analyzer.topology = response_of(node(EncapType="ether"))
        async with InterfacePoll(analyzer.url, interval_s=0, names=names).running() as poll:
            await until(lambda: poll.stats.answers >= 2)
        assert names.nodes["t1"][0] == "eth0"
        assert poll.interfaces.page(time.monotonic()) == b""
        assert poll.stats.interfaces == 0


async def test_names_are_ready_after_the_first_response_and_kept_after_a_failure(caplog):
    async with FakeAnalyzer() as analyzer:
        names = NameIndex(keep_s=0.0)
        analyzer.topology = FakeResponse(status=500)
        async with InterfacePoll(analyzer.url, names=names).running() as poll:
            await until(lambda: poll.stats.errors["status"] >= 2)
            assert poll.stats.last_failure.reason == "status"
            assert poll.stats.last_failure.text.endswith("topology query failed: HTTP 500")
            assert not names.ready.is_set()
            analyzer.topology = response_of(node())
            await asyncio.wait_for(names.ready.wait(), 5)
            analyzer.topology = FakeResponse(body=b"[")
            await until(lambda: poll.stats.errors["malformed"] >= 2)
            assert names.nodes.keys() == {"t1"}
    assert f"analyzer {analyzer.name}: topology query failed: HTTP 500" in caplog.text


async def test_names_beyond_the_bounds_are_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(name_index, "MAX_NAMES", 2)
    async with FakeAnalyzer() as analyzer:
        analyzer.topology = response_of(
            *(node(tid=f"t{number}", node_id=f"n{number}") for number in range(5))
        )
        names = NameIndex(keep_s=60.0)
        async with InterfacePoll(analyzer.url, names=names).running() as poll:
            await until(lambda: names.stats.resolutions)
            await until(lambda: poll.stats.answers >= 3)
    (record,) = (record for record in caplog.records if "topology too large" in record.getMessage())
    assert record.getMessage() == "topology too large: 3 nodes and addresses ignored"


async def test_queries_stay_with_the_first_analyzer_that_responds():
    first, second = FakeAnalyzer(), FakeAnalyzer()
    first.topology, second.topology = response_of(node("one")), response_of(node("two"))
    async with first, second:
        await first.stop()
        async with InterfacePoll(first.url, second.url).running() as poll:
            await until(lambda: poll.shows("two"))
            assert poll.errors() == {"unreachable": 1}
            await first.start()
            answers = poll.stats.answers
            await until(lambda: poll.stats.answers > answers + 2)
            assert first.topology_requests == []
            await second.stop()
            await until(lambda: poll.shows("one"))
            assert not poll.shows("two")


async def test_credentials_are_sent_as_basic_authentication():
    async with FakeAnalyzer(username="ann", password="s3cret:x") as analyzer:
        analyzer.topology = response_of(node())
        poll = InterfacePoll(analyzer.url, username="ann", password="s3cret:x", cookie={"a": "b"})
        async with poll.running():
            await until(lambda: poll.shows("eth0"))
        request = analyzer.topology_requests[0]
        assert request.basic == ("ann", "s3cret:x")
        assert request.cookies == {"a": "b"}
        assert analyzer.logins == []


async def test_credentials_in_the_url_take_precedence():
    async with FakeAnalyzer(username="url", password="p@ss") as analyzer:
        analyzer.topology = response_of(node())
        url = analyzer.url.replace("ws://", "ws://url:p%40ss@")
        async with InterfacePoll(url, username="ann", password="other").running() as poll:
            await until(lambda: poll.shows("eth0"))
        assert poll.errors() == {}


async def test_a_login_replaces_basic_authentication_and_is_renewed():
    async with FakeAnalyzer(username="ann", password="s3cret") as analyzer:
        analyzer.accepts_basic = False
        analyzer.topology = response_of(node())
        poll = InterfacePoll(analyzer.url, username="ann", password="s3cret", cookie={"a": "b"})
        async with poll.running():
            await until(lambda: poll.stats.answers >= 2)
            assert len(analyzer.logins) == 1
            analyzer.expire_tokens()
            await until(lambda: len(analyzer.logins) == 2)
            answers = poll.stats.answers
            await until(lambda: poll.stats.answers > answers)
        last = analyzer.topology_requests[-1]
        assert last.basic is None
        assert set(last.cookies) == {"a", "authtoken"}
        assert poll.errors() == {}


async def test_wrong_credentials_are_counted_and_logged_without_the_password(caplog):
    async with FakeAnalyzer(username="ann", password="s3cret") as analyzer:
        async with InterfacePoll(analyzer.url, username="ann", password="wr0ng").running() as poll:
            await until(lambda: poll.errors().get("unauthorized", 0) >= 2)
        assert poll.errors() == {"unauthorized": poll.stats.errors["unauthorized"]}
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"analyzer {analyzer.name}: topology query failed: HTTP 401; POST /login"
    )
    assert "wr0ng" not in caplog.text


async def test_a_redirect_is_logged_with_its_location(caplog):
    async with FakeAnalyzer() as analyzer:
        target = (("Location", "https://ann:s3cret@sso.test/login?state=t0ken"),)
        analyzer.topology = FakeResponse(status=303, headers=target)
        async with InterfacePoll(analyzer.url).running() as poll:
            await until(lambda: poll.errors())
    (record,) = caplog.records
    assert record.getMessage() == (
        f"analyzer {analyzer.name}: topology query failed: HTTP 303, redirect to https://sso.test/login"
        " (not followed)"
    )


async def test_the_log_suggests_the_correct_scheme(tmp_path, caplog):
    async def serve(reader, writer):
        await reader.read(5)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    context = Authority(tmp_path).server_context("127.0.0.1")
    async with (
        FakeAnalyzer(ssl=context) as secure,
        await asyncio.start_server(serve, "127.0.0.1", 0) as plain,
    ):
        address = "{}:{}".format(*plain.sockets[0].getsockname())
        for url in (
            secure.url.replace("wss:", "ws:"),
            f"ws://{address}/ws/subscriber/flow",
            f"wss://{address}/ws/subscriber/flow",
        ):
            async with InterfacePoll(url).running() as poll:
                await until(lambda poll=poll: poll.errors())
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first.endswith("; use wss:// if the analyzer serves TLS")
    assert second.endswith("HTTP 400; use wss:// if the analyzer serves TLS")
    assert third.endswith("; the port does not serve TLS, use ws://")


async def test_tls_uses_the_configured_authority_and_client_certificate(tmp_path):
    authority = Authority(tmp_path)
    context = authority.server_context("127.0.0.1", ask_clients=True)
    ours = authority.issue("skyfast")
    async with FakeAnalyzer(ssl=context, username="ann", password="s3cret") as analyzer:
        analyzer.accepts_basic = False
        analyzer.topology = response_of(node())
        poll = InterfacePoll(
            analyzer.url,
            username="ann",
            password="s3cret",
            ca_cert=authority.certificate,
            client_cert=ours.certificate,
            client_key=ours.key,
        )
        async with poll.running():
            await until(lambda: poll.shows("eth0"))
        assert poll.errors() == {}


async def test_tls_rejects_a_server_of_an_unknown_authority(tmp_path):
    stranger, ours = Authority(tmp_path, "stranger"), Authority(tmp_path, "ours")
    async with FakeAnalyzer(ssl=stranger.server_context("127.0.0.1")) as analyzer:
        async with InterfacePoll(analyzer.url, ca_cert=ours.certificate).running() as poll:
            await until(lambda: poll.errors())
        assert poll.errors().keys() == {"unreachable"}
        assert analyzer.topology_requests == []


def test_an_unusable_authority_is_an_error_of_the_configuration(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"tls\.ca_cert"):
        InterfacePoll("wss://127.0.0.1:9/ws/subscriber/flow", ca_cert=str(tmp_path / "ca.pem"))


async def test_a_query_to_a_name_with_several_addresses_uses_the_name():
    async with FakeAnalyzer() as analyzer:
        analyzer.topology = response_of(node())
        url = f"dns+ws://localhost:{analyzer.port}/ws/subscriber/flow"
        async with InterfacePoll(url).running() as poll:
            await until(lambda: poll.shows("eth0"))
        assert analyzer.topology_requests[0].get("Host") == f"localhost:{analyzer.port}"


def bomb(size):
    """Return the start of a compressed JSON list, with about ``size`` bytes of spaces."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(b"["), *(packer.compress(b" " * (1 << 20)) for _ in range(size >> 20))]
    return b"".join(parts) + packer.flush()


def gzipped(body):
    return FakeResponse(body=body, headers=(("Content-Encoding", "gzip"),))


GOOD = json.dumps([node("bad")]).encode()

FAILURES = {
    "closes": (Fault.EOF, "unreachable"),
    "resets": (Fault.RESET, "unreachable"),
    "garbage": (Fault.GARBAGE, "malformed"),
    "cut": (Fault.CUT, "malformed"),
    "hangs": (Fault.HANG, "timeout"),
    "401": (FakeResponse(status=401), "unauthorized"),
    "403": (FakeResponse(status=403, body=GOOD), "forbidden"),
    "404": (FakeResponse(status=404, body=GOOD), "status"),
    "500": (FakeResponse(status=500, body=GOOD), "status"),
    "redirect": (FakeResponse(status=302, headers=(("Location", "/elsewhere"),)), "status"),
    "no JSON": (FakeResponse(body=b"<html>"), "malformed"),
    "no list": (FakeResponse(body=b"{}"), "malformed"),
    "empty": (FakeResponse(body=b""), "malformed"),
    "no gzip": (gzipped(GOOD), "malformed"),
    "cut gzip": (gzipped(gzip.compress(GOOD)[:-9]), "malformed"),
    "other encoding": (FakeResponse(body=GOOD, headers=(("Content-Encoding", "br"),)), "malformed"),
    "too long": (FakeResponse(body=b"[" + b" " * 70_000 + b"]"), "too_big"),
    "gzip bomb": (gzipped(bomb(1 << 20)), "too_big"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_failures_are_counted_and_interfaces_stay(failure, monkeypatch, caplog):
    monkeypatch.setattr(topology_client, "MAX_RESPONSE_BYTES", 65_536)
    if failure == "hangs":
        monkeypatch.setattr(topology_client, "REQUEST_TIMEOUT_S", 0.3)
    caplog.set_level(logging.WARNING)
    fault, reason = FAILURES[failure]
    async with FakeAnalyzer() as bad, FakeAnalyzer() as good:
        bad.topology = response_of(node("before"))
        good.topology = FakeResponse(status=503)
        async with InterfacePoll(bad.url, good.url).running() as poll:
            await until(lambda: poll.shows("before"))
            bad.topology = fault
            await until(lambda: poll.stats.errors[reason] >= 2)
            assert poll.shows("before")
            good.topology = response_of(node("after"))
            await until(lambda: poll.shows("after"))
            assert not poll.shows("before")
        assert poll.errors().keys() == {reason, "status"}
    of_bad = [record for record in caplog.records if bad.name in record.getMessage()]
    assert len(of_bad) == 1
    assert of_bad[0].levelname == "WARNING"


async def test_an_unresolved_name_is_counted_as_unreachable():
    async with InterfacePoll(
        "ws://analyzer.invalid:8082/ws/subscriber/flow", interval_s=1
    ).running() as poll:
        await until(poll.errors)
    assert poll.errors().keys() <= {"unreachable", "timeout"}


async def test_an_unexpected_exception_does_not_end_the_poller(monkeypatch):
    async with FakeAnalyzer() as analyzer:
        analyzer.topology = response_of(node())
        poll = InterfacePoll(analyzer.url)
        update = poll.interfaces.update
        monkeypatch.setattr(poll.interfaces, "update", lambda *_: 1 / 0)
        async with poll.running():
            await until(lambda: poll.stats.errors["error"] >= 2)
            monkeypatch.setattr(poll.interfaces, "update", update)
            await until(lambda: poll.shows("eth0"))


async def test_failures_are_logged_once_a_minute_with_their_number(monkeypatch, caplog):
    monkeypatch.setattr(topology_client, "LogLimit", lambda: LogLimit(0.3))
    url = f"ws://127.0.0.1:{closed_port()}/ws/subscriber/flow"
    async with InterfacePoll(url, interval_s=0.02).running() as poll:
        await until(lambda: "more suppressed" in caplog.text)
        assert len(caplog.records) < poll.stats.errors["unreachable"]
    assert "more" not in caplog.records[0].getMessage()


async def test_a_gzip_bomb_takes_no_memory(monkeypatch):
    monkeypatch.setattr(topology_client, "MAX_RESPONSE_BYTES", 1 << 20)
    async with FakeAnalyzer() as analyzer:
        analyzer.topology = gzipped(bomb(256 << 20))
        async with InterfacePoll(analyzer.url, interval_s=5).running() as poll:
            tracemalloc.start()
            try:
                await until(lambda: poll.errors())
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert poll.errors() == {"too_big": 1}
    assert peak < 16 << 20


async def test_cancelling_closes_the_socket_of_a_query_in_progress():
    async with FakeAnalyzer() as analyzer:
        analyzer.topology = Fault.HANG  # the analyzer reads until the socket is closed
        async with InterfacePoll(analyzer.url, interval_s=60).running():
            await until(lambda: analyzer.topology_requests)
        await until(lambda: not analyzer._tasks)


async def test_the_event_loop_runs_during_an_update(monkeypatch):
    async with FakeAnalyzer() as analyzer:
        analyzer.topology = response_of(node())
        poll = InterfacePoll(analyzer.url, interval_s=60)
        update = poll.interfaces.update
        begun, go_on = threading.Event(), threading.Event()

        def slow_update(response, now):
            begun.set()
            assert go_on.wait(5)
            update(response, now)

        monkeypatch.setattr(poll.interfaces, "update", slow_update)
        async with poll.running():
            await until(begun.is_set)
            assert not poll.stats.answers
            go_on.set()
            await until(lambda: poll.stats.answers)
        assert poll.shows("eth0")
