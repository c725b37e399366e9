import json
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from skyfast.selfmetrics import TopologyStats
from skyfast.topology import (
    MAX_INTERFACES,
    MAX_LABEL_CHARS,
    MAX_LABELS_CHARS,
    Interfaces,
    MalformedAnswerError,
)

DATA = Path(__file__).parent / "data"
RECORDED = (DATA / "recordings" / "topology.json").read_bytes()

# What the Go connector exports, in the order of its labels.
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
    """Interfaces that are asked for every 20 s, and their page as an independent reader sees it."""

    def __init__(self, *, interval_s=20.0, connection_timeout_s=60.0):
        self.stats = TopologyStats()
        self.interfaces = Interfaces(
            interval_s=interval_s, connection_timeout_s=connection_timeout_s, stats=self.stats
        )

    def update(self, *nodes, now=0.0):
        self.interfaces.update(json.dumps(nodes).encode(), now)

    def samples(self, now=0.0):
        """Every sample: a dict of (short name, label values) to value."""
        samples = {}
        for family in text_string_to_metric_families(self.interfaces.page(now).decode()):
            assert family.type == "counter"
            for sample in family.samples:
                # The parser adds the suffix that OpenMetrics demands of counters.
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


def test_the_page_of_a_real_answer(topology):
    topology.interfaces.update(RECORDED, 0.0)
    golden = DATA / "topology.prom"
    assert topology.interfaces.page(0.0).decode() == golden.read_text()
    assert topology.stats.interfaces == 7
    assert topology.skipped() == {}


def test_a_real_answer_in_another_reader_s_eyes(topology):
    topology.interfaces.update(RECORDED, 0.0)
    expected = {}
    for answer in json.loads(RECORDED):
        metadata = answer["Metadata"]
        labels = (
            metadata["Name"],
            answer["Host"],
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


def test_families_are_declared_and_kept_together(topology):
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
def test_what_may_be_missing(topology, field, value, empty, shown):
    answer = node()
    if empty == "missing":
        answer["Metadata"].pop(field, None)
    else:
        answer["Metadata"][field] = value if empty == "empty" else None
    topology.update(answer)
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
def test_of_nodes_with_the_same_labels_the_newest_is_shown(topology, newest):
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


@pytest.mark.parametrize("value", [2**53 + 1, 2**63 - 1])
def test_counters_are_exact(topology, value):
    topology.update(node(Metric={"RxBytes": value}))
    line = next(x for x in topology.interfaces.page(0.0).decode().split("\n") if "{" in x)
    assert line.endswith(f" {value}")


@pytest.mark.parametrize("value", [-1, 2**63, 10**22])
def test_a_counter_out_of_range_is_left_out_alone(topology, value):
    topology.update(node(Metric={"RxBytes": value, "TxBytes": 7}), node("eth1", tid="t2"))
    samples = topology.samples()
    assert ("rx_bytes", labels_of()) not in samples
    assert samples["tx_bytes", labels_of()] == 7
    assert len(samples) == 2 * 11 - 1
    assert topology.skipped() == {"out_of_range": 1}


def test_a_device_that_starts_over_is_shown_as_it_is(topology):
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
        (rb"\\\ud800", "\\�"),
        (b"a\xffb", "a�b"),
        (b"\xed\xa0\x80", "���"),
    ],
)
@pytest.mark.parametrize("field", ["Name", "Unused"])
def test_texts_that_are_no_unicode(topology, text, shown, field):
    answer = json.dumps([node(**{field: "?"}), node("eth1", tid="t2")]).encode()
    topology.interfaces.update(answer.replace(b"?", text), 0.0)
    name = shown if field == "Name" else "eth0"
    assert topology.labels() == {labels_of(name=name), labels_of(name="eth1", tid="t2")}
    assert topology.skipped() == {}


WRONG = json.loads((DATA / "topology-wrong-nodes.json").read_bytes())


@pytest.mark.parametrize("why", WRONG)
def test_a_wrong_node_costs_nothing_but_itself(topology, why):
    topology.update(node(), WRONG[why], node("eth1", tid="t2"))
    assert topology.labels() == {labels_of(), labels_of(name="eth1", tid="t2")}
    assert topology.skipped() == {"invalid": 1}


def test_labels_are_bounded(topology):
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


def test_long_labels_do_not_make_a_page_without_end(topology):
    host = '"' * MAX_LABEL_CHARS  # twice as long on the page
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


@pytest.mark.parametrize("answer", MALFORMED)
def test_a_malformed_answer_changes_nothing(topology, answer):
    topology.update(node(), node(), now=0.0)
    before = topology.interfaces.page(59.0)
    with pytest.raises(MalformedAnswerError):
        topology.interfaces.update(answer, 50.0)
    assert topology.interfaces.page(59.0) == before
    assert topology.interfaces.page(60.0) == b""
    assert topology.stats.interfaces == 1
    assert topology.skipped() == {"duplicate": 1}


@pytest.mark.parametrize("answer", [b"[]", b"null", b" [ ] \n"])
def test_an_empty_answer_is_an_answer(topology, answer):
    topology.update(node())
    topology.interfaces.update(answer, 20.0)
    assert topology.interfaces.page(20.0) == b""
    assert topology.stats.interfaces == 0


def test_an_interface_that_is_no_longer_reported_leaves_at_once(topology):
    topology.update(node(), node("eth1", tid="t2"), now=0.0)
    topology.update(node("eth1", tid="t2"), now=20.0)
    assert topology.labels(20.0) == {labels_of(name="eth1", tid="t2")}


@pytest.mark.parametrize(
    ("interval_s", "connection_timeout_s", "leaves_s"),
    [(20.0, 60.0, 60.0), (20.0, 300.0, 300.0), (60.0, 75.0, 180.0)],
)
def test_interfaces_leave_when_no_answer_comes(interval_s, connection_timeout_s, leaves_s):
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


def test_the_page_is_empty_before_the_first_answer(topology):
    assert topology.interfaces.page(0.0) == b""
