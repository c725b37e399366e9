"""Anonymized messages reveal no secret and keep all counted values."""

import ipaddress
import json
import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfast.flows.fields import FIELDS
from skyfast.replay.anonymizer import Anonymizer
from tests.support.model_specs import ONE, TWO
from tests.support.paths import RECORDINGS

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


@pytest.mark.parametrize("kind", ADDRESSES, ids=["4", "6"])
@given(data=st.data())
def test_addresses_are_one_to_one_and_keep_their_kind(kind: Any, data: st.DataObject) -> None:
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
def test_prefixes_are_preserved(network: str, data: st.DataObject) -> None:
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
def test_only_the_kind_of_an_address_is_visible(text: str, bits: int) -> None:
    results = [address(text, Anonymizer()) for _ in range(40)]
    assert min(common_bits(text, result) for result in results) == bits


def test_only_group_and_local_bit_of_a_mac_address_are_visible() -> None:
    for text in ("52:54:00:12:34:56", "01:80:c2:00:00:0e"):
        number = int(text.replace(":", ""), 16)
        flipped = 0
        for _ in range(40):
            flipped |= number ^ int(mac(text, Anonymizer()).replace(":", ""), 16)
        assert flipped == 0xFCFF_FFFF_FFFF


@given(st.binary(min_size=6, max_size=6), st.binary(min_size=6, max_size=6))
def test_mac_addresses_are_one_to_one(first: bytes, second: bytes) -> None:
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


def test_ids_keep_their_format_and_equality() -> None:
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
def test_values_of_wrong_type_keep_their_type(value: object) -> None:
    for field in ("Metric", "Network", "UUID", "Start"):
        assert type(flow(**{field: value})[field]) is type(value)
    obj = anonymized({"Namespace": "flow", "Type": "store", "Obj": value})["Obj"]
    assert type(obj) is type(value)


@pytest.mark.parametrize("data", [b"\xff", b"[1]", b'{"a":', b'{"a":' + b"[" * 10**5], ids=len)
def test_undecodable_message_is_dropped(data: bytes) -> None:
    assert anonymize(data, "a") is None


def test_long_strings_stay_long_and_empty_strings_empty() -> None:
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
