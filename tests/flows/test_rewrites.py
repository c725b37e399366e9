"""Rewrites of label values: masked addresses, ports grouped as `other`, and protocols."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfast.flows import rewrites
from skyfast.flows.fields import flow_types
from skyfast.flows.plan import Plan
from skyfast.flows.rewrites import BoundedCache, FlowProtocol, group_ports, mask
from skyfast.flows.selection import Mask, PortGrouping

READS = FlowProtocol(other=True).reads
FLOW = flow_types(Plan(views=(), requirements=()), also=READS).Update

INVALID_ADDRESSES = (
    "",
    "x",
    "10.0.0.256",
    "10.0.0.1/24",
    "fe80::1%eth0",
    "010.0.0.1",
    "é" * 10_000,
)


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "text", "expected"),
    [
        (24, None, "10.1.2.3", "10.1.2.0/24"),
        (0, 0, "10.1.2.3", "0.0.0.0/0"),
        (32, 128, "10.1.2.3", "10.1.2.3/32"),
        (24, 64, "2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        (24, 64, "2001:0DB8::1", "2001:db8::/64"),
        (24, None, "2001:0DB8::1", "2001:0DB8::1"),
        (None, 64, "10.1.2.3", "10.1.2.3"),
        # The IPv4 prefix length applies to IPv4-mapped addresses.
        (24, 64, "::ffff:10.1.2.3", "10.1.2.0/24"),
        (24, 64, "0000:0000:0000:0000:0000:ffff:255.255.255.255", "255.255.255.0/24"),
        (None, 64, "::ffff:10.1.2.3", "::ffff:10.1.2.3"),
    ],
)
def test_mask_replaces_an_address_by_its_network(
    ipv4: int | None, ipv6: int | None, text: str, expected: str
) -> None:
    assert mask(Mask(ipv4=ipv4, ipv6=ipv6))[text] == expected


@given(st.ip_addresses(), st.integers(0, 32), st.integers(0, 128))
def test_mask_clears_the_host_bits(
    address: IPv4Address | IPv6Address, ipv4: int, ipv6: int
) -> None:
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    bits = ipv4 if address.version == 4 else ipv6
    masked = mask(Mask(ipv4=ipv4, ipv6=ipv6))[str(address)]
    network, _, length = masked.partition("/")
    rest = address.max_prefixlen - bits
    assert int(length) == bits
    assert int(ip_address(network)) == int(address) >> rest << rest


@pytest.mark.parametrize("text", INVALID_ADDRESSES, ids=range(len(INVALID_ADDRESSES)))
def test_mask_keeps_text_that_is_not_an_address(text: str) -> None:
    assert mask(Mask(ipv4=8, ipv6=8))[text] == text


@given(st.text())
def test_mask_accepts_any_text(text: str) -> None:
    assert isinstance(mask(Mask(ipv4=8, ipv6=8))[text], str)


def test_mask_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrites, "MAX_REMEMBERED", 5)
    masks = mask(Mask(ipv4=24, ipv6=None))
    for _ in range(2):
        for number in range(12):
            assert masks[f"10.0.{number}.1"] == f"10.0.{number}.0/24"
            assert len(masks) <= 5


def test_bounded_cache_computes_the_value_of_a_short_key_once() -> None:
    computed: list[str] = []
    cache = BoundedCache[str, int](lambda text: computed.append(text) or len(text))
    long = "x" * (rewrites.MAX_REMEMBERED_CHARS + 1)
    assert [cache["ab"], cache["ab"], cache[long], cache[long]] == [2, 2, len(long), len(long)]
    # Long keys are not cached, so that senders cannot fill the memory.
    assert computed == ["ab", long, long]


@pytest.mark.parametrize(
    ("above", "keep", "port", "expected"),
    [
        (1023, None, 0, 0),
        (1023, None, 1023, 1023),
        (1023, None, 1024, "other"),
        (1023, None, 10**29, "other"),
        (1023, None, -1, "other"),
        (0, None, 0, 0),
        (0, None, 1, "other"),
        (None, {80, 443}, 443, 443),
        (None, {80, 443}, 81, "other"),
        (None, {80, 443}, -1, "other"),
        (None, {0}, 0, 0),
        (1023, None, "", ""),
        (None, {80}, "", ""),
    ],
)
def test_port_is_kept_or_grouped_as_other(
    above: int | None, keep: set[int] | None, port: int | str, expected: int | str
) -> None:
    ports = group_ports(PortGrouping(above=above, keep=None if keep is None else frozenset(keep)))
    before = len(ports)
    assert ports[port] == expected
    assert type(ports[port]) is type(expected)
    assert len(ports) == before


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"Transport": {"Protocol": "TCP"}, "Network": {"Protocol": "IPV4"}}, "TCP"),
        ({"Transport": {"Protocol": "SCTP"}, "ICMP": {"Type": "ECHO"}}, "SCTP"),
        ({"ICMP": {"Type": "ECHO"}, "Network": {"Protocol": "IPV4"}}, "ICMPV4"),
        ({"ICMP": {}, "Network": {"Protocol": "IPV6"}}, "ICMPV6"),
        ({"ICMP": {}, "Network": {}}, "ICMPV4"),
        ({"ICMP": {}}, "ICMPV4"),
        ({"Network": {"Protocol": "IPV6"}}, ""),
        ({}, ""),
    ],
)
def test_protocol_is_the_transport_protocol_or_icmp(parts: dict[str, Any], expected: str) -> None:
    assert FlowProtocol()[msgspec.convert(parts, FLOW)] == expected
