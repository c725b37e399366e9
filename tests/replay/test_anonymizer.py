"""Anonymized messages reveal no secret and keep all counted values."""

import ipaddress
import json
import re
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfast.flows.catalog import ADDRESS_NAMES, NODE_NAMES
from skyfast.flows.fields import FIELDS
from skyfast.replay.anonymizer import Anonymizer
from skyfast.replay.topology import EDGE, NODE, ObservedResponse, ResponseChanges, Update
from skyfast.skydive.name_resolver import resolve
from skyfast.skydive.topology_graph import Graph, decode_edge, decode_node
from skyfast.skydive.topology_queries import (
    EDGES,
    KUBERNETES,
    KUBERNETES_EDGES,
    NAMED_INTERFACES,
    NAMESPACES,
    Query,
)
from tests.support.model_specs import ONE, TWO
from tests.support.paths import CONTAINER_TOPOLOGY, RECORDINGS

anonymize = Anonymizer()


def anonymized(message: object, anonymizer: Anonymizer = anonymize) -> Any:
    result = anonymizer(json.dumps(message).encode(), "analyzer-1:8082")
    assert result is not None
    return json.loads(result[0])


def flow(anonymizer: Anonymizer = anonymize, **fields: object) -> Any:
    message = {"Namespace": "flow", "Type": "store", "Obj": [fields]}
    (result,) = anonymized(message, anonymizer)["Obj"]
    return result


def address(text: str, anonymizer: Anonymizer = anonymize) -> str:
    result: str = flow(anonymizer, Network={"A": text})["Network"]["A"]
    return result


def mac(text: str, anonymizer: Anonymizer = anonymize) -> str:
    result: str = flow(anonymizer, Link={"A": text})["Link"]["A"]
    return result


def common_bits(first: str, second: str) -> int:
    a, b = ipaddress.ip_address(first), ipaddress.ip_address(second)
    return a.max_prefixlen - (int(a) ^ int(b)).bit_length()


ADDRESSES = [ipaddress.IPv4Address, ipaddress.IPv6Address]


@pytest.mark.parametrize("kind", ADDRESSES, ids=["IPv4", "IPv6"])
@given(data=st.data())
def test_each_address_has_its_own_pseudonym_of_the_same_kind(
    kind: Any, data: st.DataObject
) -> None:
    bits = 32 if kind is ipaddress.IPv4Address else 128
    number = st.integers(0, 2**bits - 1)
    first, second = kind(data.draw(number)), kind(data.draw(number))
    a, b = address(str(first)), address(str(second))
    assert (a == b) == (first == second)
    for original, result in ((first, ipaddress.ip_address(a)), (second, ipaddress.ip_address(b))):
        assert result.version == original.version
        for trait in ("is_multicast", "is_loopback", "is_link_local", "is_unspecified"):
            assert getattr(result, trait) == getattr(original, trait)


def test_special_addresses_keep_their_kind() -> None:
    def kind(text: str) -> tuple[bool, ...]:
        ip = ipaddress.ip_address(text)
        return ip.is_multicast, ip.is_loopback, ip.is_link_local, text.startswith("10.")

    addresses = [f"{first}.1.2.3" for first in range(256)] + ["169.254.7.7", "172.16.0.1"]
    results = [address(text) for text in addresses]
    assert len(set(results)) == len(addresses)
    assert [kind(text) for text in results] == [kind(text) for text in addresses]


@pytest.mark.parametrize(
    "network", ["10.0.0.0/8", "8.8.0.0/16", "192.168.0.0/16", "2001:db8::/32", "fd77::/16"]
)
@given(data=st.data())
def test_common_prefix_of_two_addresses_keeps_its_length(network: str, data: st.DataObject) -> None:
    range_ = ipaddress.ip_network(network)
    number = st.integers(0, range_.num_addresses - 1)
    first, second = (str(range_[data.draw(number)]) for _ in range(2))
    assert common_bits(address(first), address(second)) == common_bits(first, second)


def test_addresses_of_a_network_stay_distinct_and_in_one_network() -> None:
    addresses = [str(ip) for ip in ipaddress.ip_network("203.0.112.0/22")]
    results = [address(text) for text in addresses]
    assert len(set(results)) == len(addresses)
    assert len({ipaddress.ip_network(f"{text}/22", strict=False) for text in results}) == 1
    assert sum(a != b for a, b in zip(addresses, results, strict=True)) > 1000


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        *(("0.0.0.0", 32), ("255.255.255.255", 32), ("127.1.2.3", 8), ("10.1.2.3", 8)),
        *(("172.16.1.2", 12), ("192.168.1.2", 16), ("169.254.1.2", 16), ("224.1.2.3", 4)),
        *(("8.8.8.8", 0), ("2001:db8::1", 3), ("::", 128), ("::1", 128)),
        *(("fd77::1", 8), ("fe80::1", 64), ("ff02::1", 16)),
    ],
)
def test_pseudonym_of_an_address_shows_only_its_kind(text: str, bits: int) -> None:
    results = [address(text, Anonymizer()) for _ in range(40)]
    assert min(common_bits(text, result) for result in results) == bits


def test_pseudonym_of_a_mac_address_shows_only_the_group_bit_and_the_local_bit() -> None:
    for text in ("52:54:00:12:34:56", "01:80:c2:00:00:0e"):
        number = int(text.replace(":", ""), 16)
        flipped = 0
        for _ in range(40):
            flipped |= number ^ int(mac(text, Anonymizer()).replace(":", ""), 16)
        assert flipped == 0xFCFF_FFFF_FFFF


@given(st.binary(min_size=6, max_size=6), st.binary(min_size=6, max_size=6))
def test_each_mac_address_has_its_own_pseudonym(first: bytes, second: bytes) -> None:
    a, b = mac(first.hex(":")), mac(second.hex(":"))
    assert (a == b) == (first == second)
    assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", a)
    assert int(a[:2], 16) & 3 == first[0] & 3
    assert (a == "ff:ff:ff:ff:ff:ff") == (first == b"\xff" * 6)


@pytest.mark.parametrize(
    "text", ["10.0.0.01", "FD77::1", "fe80::1%eth0", "db.example", "10.0.0.1 "]
)
def test_invalid_address_becomes_another_string(text: str) -> None:
    result = address(text)
    assert result != text
    assert result == address(text)
    assert re.fullmatch(r"x[0-9a-f]+x*", result)


def test_equal_ids_stay_equal_and_keep_their_format() -> None:
    tid = "192841a0-d9bc-5cbb-b0ae-3826985d479d"
    parent, child = flow(UUID="a622dd62", NodeTID=tid), flow(ParentUUID="a622dd62", CaptureID=tid)
    assert parent["UUID"] == child["ParentUUID"] != "a622dd62"
    assert re.fullmatch("[1-9a-f][0-9a-f]{0,15}", parent["UUID"])
    assert parent["NodeTID"] == child["CaptureID"] != tid
    assert re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", parent["NodeTID"])
    assert flow(UUID="A622DD62")["UUID"] != parent["UUID"]
    assert flow(UUID="", ParentUUID="") == {"UUID": "", "ParentUUID": ""}
    capture = flow(CaptureID=tid)["CaptureID"]
    namespace = anonymized({"Namespace": f"flow/{tid}", "Type": "store", "Obj": []})["Namespace"]
    assert namespace == f"flow/{capture}"
    report = {"Namespace": "stats", "Type": "stats", "Obj": {"CaptureID": tid, "FlowCount": 7}}
    assert anonymized(report)["Obj"] == {"CaptureID": capture, "FlowCount": 7}


SECRET = "10.11.12.13"


def test_unknown_strings_are_removed() -> None:
    string_paths = {path for path, kind in FIELDS.items() if kind is str}
    full: dict[str, Any] = {"DNS": {"Answers": [SECRET]}, "BPFFilter": SECRET, SECRET: 1}
    full |= {"DHCPv4": {"YourClientIP": SECRET}, "Metric": {SECRET: 1, "ABBytes": SECRET}}
    for path in string_paths:
        part = full if len(path) == 1 else full.setdefault(path[0], {})
        part[path[-1]] = SECRET
    for message in (
        {"Namespace": "flow", "Type": "store", "Obj": [full, SECRET, [SECRET]], "X": SECRET},
        {"Namespace": f"flow/{SECRET}", "Type": SECRET, "UUID": SECRET, "Obj": SECRET},
        {"Namespace": "stats", "Type": "stats", "Obj": {"CaptureID": SECRET, "X": SECRET}},
        {"Namespace": SECRET, "Type": SECRET, "Status": SECRET, "Obj": {"X": [SECRET]}},
        {"Namespace": [SECRET], "Obj": [SECRET]},
    ):
        result = anonymize(json.dumps(message).encode(), SECRET)
        assert result is not None
        assert SECRET not in result[0].decode() + result[1]
        assert list(json.loads(result[0])) == [key for key in message if key != "X"]


def test_numbers_and_layers_are_kept() -> None:
    fields = {
        "LayersPath": "Ethernet/IPv4/TCP",
        "Application": "TCP",
        "Link": {"Protocol": "ETHERNET", "ID": 7},
        "Transport": {"Protocol": "TCP", "A": 80, "B": 10**30},
        "Metric": {"ABBytes": 2**62, "RTT": 1.5, "Start": None},
        "ICMP": {"Type": "ECHO", "Code": 1},
        "Start": 1_800_000_000_000,
    }
    assert flow(**fields) == fields


@pytest.mark.parametrize(
    "value", [None, True, 1, 1.5, "text", [], {}], ids=lambda item: type(item).__name__
)
def test_values_of_wrong_types_in_a_message_keep_their_type(value: object) -> None:
    for field in ("Metric", "Network", "UUID", "Start"):
        assert type(flow(**{field: value})[field]) is type(value)
    obj = anonymized({"Namespace": "flow", "Type": "store", "Obj": value})["Obj"]
    assert type(obj) is type(value)


@pytest.mark.parametrize("data", [b"\xff", b"[1]", b'{"a":', b'{"a":' + b"[" * 10**5], ids=len)
def test_undecodable_message_is_dropped(data: bytes) -> None:
    assert anonymize(data, "a") is None


def test_long_strings_stay_long_and_empty_strings_stay_empty() -> None:
    assert len(flow(NodeTID="é" * 1000)["NodeTID"]) == 2000
    assert flow(NodeTID="")["NodeTID"] == ""


def test_long_strings_are_not_cached() -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for n in range(10):
            text = str(n) * 1_000_000
            flow(UUID=text, NodeTID=text, Network={"A": text}, Link={"A": text})
        assert tracemalloc.get_traced_memory()[0] - before < 2_000_000
    finally:
        tracemalloc.stop()


def test_each_anonymizer_has_its_own_key() -> None:
    data = json.dumps({"Namespace": "flow", "Obj": [{"Network": {"A": "10.0.0.1"}}]}).encode()
    assert len({Anonymizer()(data, "a") for _ in range(5)}) == 5


def test_no_secret_of_the_recordings_is_left() -> None:
    secret = re.compile(
        rb"\b\d+\.\d+\.\d+\.\d+\b|[0-9a-f]{2}(?::[0-9a-f]{2}){5}|fd77:[0-9a-f:]+|\b[0-9a-f]{14,16}\b"
        rb"|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    )
    for name in (*ONE, *TWO):
        lines = (RECORDINGS / name).read_bytes().splitlines()
        before = {text for line in lines for text in secret.findall(line)}
        after = b"".join(result[0] for line in lines if (result := anonymize(line, name)))
        leaked = before & set(secret.findall(after))
        assert len(before) > 500
        assert leaked <= {b"ff:ff:ff:ff:ff:ff", b"0.0.0.0", b"255.255.255.255"}


# Topology


@pytest.fixture(scope="module")
def elements() -> list[tuple[Query, bytes]]:
    """The nodes and edges of the recorded topology, each with the query that returned it.

    They have only the fields that skyfast reads.
    """
    (graph,) = json.loads((CONTAINER_TOPOLOGY / "graph.json").read_bytes())
    changes = ResponseChanges()
    found: list[tuple[Query, bytes]] = []
    for query in (NAMED_INTERFACES, NAMESPACES, KUBERNETES, EDGES, KUBERNETES_EDGES):

        def keep(answer: ObservedResponse, query: Query = query) -> None:
            for update in changes.of(answer):
                found.extend((query, bytes(raw)) for raw in update.nodes + update.edges)

        answer = ObservedResponse(query, keep)
        for element in graph["Edges" if query.edges else "Nodes"]:
            if query.matches(element):
                answer.add(json.dumps(element).encode())
        answer.end()
    return found


def anonymized_elements(elements: Iterable[tuple[Query, bytes]]) -> list[tuple[Query, bytes]]:
    result = []
    for query, text in elements:
        raws = [msgspec.Raw(text)]
        update = anonymize.topology(Update(edges=raws) if query.edges else Update(nodes=raws))
        (raw,) = update.nodes + update.edges
        result.append((query, bytes(raw)))
    return result


def anonymized_node(**fields: object) -> Any:
    ((_, text),) = anonymized_elements([(KUBERNETES, json.dumps(fields).encode())])
    return json.loads(text)


def name(text: str) -> str:
    result: str = anonymized_node(Host=text)["Host"]
    return result


def graph_of(elements: Iterable[tuple[Query, bytes]]) -> Graph:
    graph = Graph(nodes=[], edges=[])
    for query, text in elements:
        if query.edges:
            edge = decode_edge(text, graph.skipped)
            assert edge is not None
            graph.edges.append(edge)
        else:
            node = decode_node(text, graph.skipped)
            assert node is not None
            graph.nodes.append(node)
    assert not graph.skipped
    return graph


def texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each string in a JSON value as a pair of its key and the string."""
    match value:
        case str():
            yield key, value
        case list():
            for inner in value:
                yield from texts(inner, key)
        case dict():
            for inner_key, inner in value.items():
                yield from texts(inner, inner_key)


CODES = {"Type", "EncapType", "Manager", "RelationType", "Status", "Kind", "type", "container-type"}


def test_no_name_of_a_topology_is_left(elements: list[tuple[Query, bytes]]) -> None:
    before = {
        text
        for _, element in elements
        for key, text in texts(json.loads(element))
        if key not in CODES
    }
    assert {"web", "h1", "ag1", "shop", "node-1", "labcluster", "10.78.0.11/24"} <= before
    assert len(before) > 300
    after = b"\n".join(text for _, text in anonymized_elements(elements)).decode()
    unchanged = {
        text for text in before if re.search(rf"(?<![\w-]){re.escape(text)}(?![\w-])", after)
    }
    assert unchanged <= {"", "lo", "eth0", "docker0", "POD", "None", "127.0.0.1/8", "::1/128"}
    # Only these words remain: unchanged names, `CODES_OF_NODES`, and k8s (a prefix of kubelet's
    # names). Hexadecimal words are not checked, because UUIDs also contain them.
    word = re.compile(r"(?=[0-9a-f]*[g-zA-Z])[0-9A-Za-z]{3,}")
    words = {each for text in before for each in word.findall(text)}
    values = [
        text for _, text in texts([json.loads(text) for _, text in anonymized_elements(elements)])
    ]
    left = words & {each for text in values for each in word.findall(text)}
    assert left <= {"eth0", "docker0", "POD", "k8s", "None", *CODES_OF_NODES}


CODES_OF_NODES = {"docker", "container", "runc", "bridge", "node", "host"}
"""Words of names that may remain, because they are also types of nodes or names of probes."""


def expected_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the pseudonyms of an address's names. Only the kind of a workload stays the same."""
    kind = ADDRESS_NAMES.index("workload_kind")
    return tuple(text if i == kind else name(text) for i, text in enumerate(names))


WITHOUT = {"nothing": (), "replica sets": ("replicaset",), "pods": ("pod",), "k8s": ("k8s",)}


@pytest.mark.parametrize("missing", WITHOUT.values(), ids=WITHOUT)
def test_anonymized_topology_resolves_to_the_pseudonyms_of_the_names(
    elements: list[tuple[Query, bytes]], missing: tuple[str, ...]
) -> None:
    kept = [
        (query, text)
        for query, text in elements
        if not {*missing} & {json.loads(text)["Metadata"].get(key) for key in ("Type", "Manager")}
    ]
    labels = ("app", "pod-template-hash")
    before = resolve(graph_of(kept), k8s_labels=labels)
    after = resolve(graph_of(anonymized_elements(kept)), k8s_labels=labels)
    assert len(before.addresses) > 30
    assert any(names[4] for names in before.nodes.values())
    assert after.nodes == {
        anonymized_node(ID=tid)["ID"]: tuple(
            text if column == "type" else name(text)
            for column, text in zip(NODE_NAMES, names, strict=True)
        )
        for tid, names in before.nodes.items()
    }
    assert {
        shown: {candidate.names for candidate in candidates}
        for shown, candidates in after.addresses.items()
    } == {
        address(text): {expected_names(candidate.names) for candidate in candidates}
        for text, candidates in before.addresses.items()
    }
    assert {host: len(networks) for host, networks in after.networks.items()} == {
        name(host): len(networks) for host, networks in before.networks.items()
    }
    assert after.skipped == before.skipped


def test_names_keep_their_structure() -> None:
    uid = "33333333-3333-4333-8333-333333333333"
    container = "ab" * 32
    assert name("shop-api-6b5c9d7f8").startswith(f"{name('shop')}-{name('api')}-")
    assert name("ip-10-0-0-1.ec2.internal").count("-") == 4
    assert name(f"k8s_dns_coredns-zzz_kube-system_{uid}_12") == "_".join(
        (
            *("k8s", name("dns"), name("coredns-zzz"), name("kube-system")),
            *(anonymized_node(ID=uid)["ID"], "12"),
        )
    )
    sandbox = name(f"k8s_POD_coredns-zzz_kube-system_{uid}_0")
    assert sandbox.startswith(f"k8s_POD_{name('coredns-zzz')}_{name('kube-system')}_")
    shown = anonymized_node(Metadata={"Container": {"ID": container}, "Name": f"cni-{container}"})
    container_id = shown["Metadata"]["Container"]["ID"]
    assert re.fullmatch("[0-9a-f]{64}", container_id)
    assert shown["Metadata"]["Name"] == f"{name('cni')}-{container_id}"
    assert name("") == ""
    assert name("/-.") == "/-."
    assert name("é\N{GRINNING FACE}") == name("é\N{GRINNING FACE}").encode("ascii").decode()
    assert len(name("ab" * 50_000)) == 10


def test_label_keys_are_kept_and_label_values_are_replaced() -> None:
    labels = {"app": {"kubernetes": {"io/name": SECRET}}, "team": "Secret team", "n": 7, "l": ["x"]}
    node = anonymized_node(ID="x", Metadata={"K8s": {"Labels": labels}})
    shown = node["Metadata"]["K8s"]["Labels"]
    assert shown == {
        "app": {"kubernetes": {"io/name": name(SECRET)}},
        "team": f"{name('Secret')} {name('team')}",
        "n": 0,
        "l": [],
    }
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": deep}
    assert len(json.dumps(anonymized_node(Metadata={"K8s": {"Labels": deep}}))) < 400


def test_addresses_have_the_same_pseudonyms_in_nodes_and_flows() -> None:
    metadata = {
        "IPV4": ["10.1.2.3/24", "10.1.2.4/33x", SECRET],
        "IPV6": ["FD77::1/64", "fe80::1%secret/64", "::ffff:10.1.2.3"],
        "K8s": {"IP": "10.1.2.3", "ClusterIP": "None", "Extra": {"Spec": {"ClusterIPs": ["None"]}}},
    }
    shown = anonymized_node(Metadata=metadata)["Metadata"]
    assert shown["IPV4"] == [
        f"{address('10.1.2.3')}/24",
        f"{address('10.1.2.4')}/{name('33x')}",
        address(SECRET),
    ]
    assert shown["IPV6"] == [
        f"{address('fd77::1')}/64",
        f"{address('fe80::1')}%{name('secret')}/64",
        address("10.1.2.3"),
    ]
    assert shown["K8s"] == {
        "IP": address("10.1.2.3"),
        "ClusterIP": "None",
        "Extra": {"Spec": {"ClusterIPs": ["None"]}},
    }


def test_unknown_fields_and_values_of_wrong_types_are_removed_from_the_topology() -> None:
    def filled(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {key: filled(inner) for key, inner in shape.items()} | {"X": SECRET}
        return {"X": {SECRET: 1}} if shape is str else SECRET

    def wrong(shape: Any) -> Any:
        if isinstance(shape, dict):
            return SECRET
        return [SECRET, [SECRET], {"x": SECRET}]

    for shape in (NODE, EDGE):
        query = EDGES if shape is EDGE else KUBERNETES
        for value in (filled(shape), {key: wrong(inner) for key, inner in shape.items()}):
            ((_, text),) = anonymized_elements([(query, json.dumps(value).encode())])
            assert SECRET not in text.decode().replace('{"X":{}}', "")
    for text in (b"7", b'"x"', b"null", b'"\\ud800"', b"[" * 10**5, b"x"):
        update = anonymize.topology(Update(nodes=[msgspec.Raw(text)]))
        assert bytes(update.nodes[0]) in (b"0", b'""', b"null")


def test_removed_elements_have_the_pseudonyms_of_their_ids() -> None:
    uid = "192841a0-d9bc-5cbb-b0ae-3826985d479d"
    update = anonymize.topology(Update(removed=[uid, "x"]))
    assert update.removed == [anonymized_node(ID=each)["ID"] for each in (uid, "x")]
    flow_id = flow(NodeTID=uid)["NodeTID"]
    assert update.removed[0] == flow_id


@pytest.mark.parametrize("kind", ["ReplicaSet", "Job", "Node", "AcmeCluster"])
def test_kinds_of_owners_are_kept_only_if_kubernetes_defines_them(kind: str) -> None:
    owner = {"Kind": kind, "Name": "acme", "Controller": True}
    extra = {"ObjectMeta": {"OwnerReferences": [owner]}}
    pod = {"ID": "1", "Metadata": {"Type": "pod", "K8s": {"Extra": extra}}}
    raw = msgspec.Raw(msgspec.json.encode(pod))
    (hidden,) = Anonymizer().topology(Update(nodes=[raw])).nodes
    assert (kind.encode() in bytes(hidden)) == (kind != "AcmeCluster")
