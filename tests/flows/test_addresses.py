"""The address parser, compared with the `ipaddress` module."""

import tracemalloc
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from skyfast.flows import addresses


def expected(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    return None if address.scope_id is not None else address.ipv4_mapped or address


groups = st.text("0123456789abcdefABCDEFg", max_size=5)
octets = st.one_of(st.integers(0, 300).map(str), st.text("0123456789", max_size=4))
dotted = st.lists(octets, min_size=3, max_size=5).map(".".join)
address_like = st.one_of(
    dotted,
    st.lists(st.one_of(groups, st.just("")), min_size=2, max_size=10).map(":".join),
    st.tuples(st.lists(groups, max_size=7).map(":".join), dotted).map(":".join),
    st.tuples(st.sampled_from(["::", "::ffff:", "::FFFF:0:", "64:ff9b::"]), dotted).map("".join),
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda address: address.exploded.upper()),
    st.text(max_size=50),
)
"""Addresses, and texts that resemble an address."""


@given(address_like)
@example("010.0.0.1")
@example("1.2.3.4\0")
@example("\0")
@example("\ud800")
@example("١.٢.٣.٤")
@example("1.2.3.4\n")
@example(" ::1")
@example("fe80::1%eth0")
@example("fe80::1%")
@example("::ffff:1.2.3.4")
@example("0000:0000:0000:0000:0000:ffff:255.255.255.255")
@example("00000:0000:0000:0000:0000:ffff:255.255.255.255")
@example("1:2:3:4:5:6:7::")
@example("1:2:3:4:5:6:7:8::")
@example("::1:2:3:4:5:6:7:8")
@example("12345::")
@example("1::2::3")
@example(":1:2:3:4:5:6:7")
@example("1.2.3.4::")
def test_parsing_matches_ipaddress(text: str) -> None:
    address = expected(text)
    assert addresses.read(text) == (None if address is None else address.packed)


@given(st.ip_addresses())
@example(IPv6Address("::1.2.3.4"))
@example(IPv6Address("::"))
@example(IPv6Address("::1"))
@example(IPv6Address("1:0:2:0:3:0:4:0"))
@example(IPv6Address("1:0:0:2:0:0:0:3"))
@example(IPv6Address("0:0:1::"))
@example(IPv6Address("2001:db8::ffff:1.2.3.4"))
@example(IPv6Address("::ffff:0:1.2.3.4"))
@example(IPv6Address("64:ff9b::1.2.3.4"))
def test_formatting_matches_ipaddress(address: IPv4Address | IPv6Address) -> None:
    assume(isinstance(address, IPv4Address) or not address.ipv4_mapped)
    assert addresses.write(address.packed) == str(address)


@given(st.ip_addresses(), st.integers(0, 128))
def test_mask_clears_the_host_bits(address: IPv4Address | IPv6Address, bits: int) -> None:
    bits = min(bits, address.max_prefixlen)
    network = ip_network((address, bits), strict=False)
    assert addresses.masked(address.packed, bits) == network.network_address.packed


@given(st.ip_addresses(), st.lists(st.tuples(st.ip_addresses(), st.integers(0, 128)), max_size=4))
def test_network_membership_matches_ipaddress(
    address: IPv4Address | IPv6Address,
    pairs: list[tuple[IPv4Address | IPv6Address, int]],
) -> None:
    networks = [
        ip_network((base, min(bits, base.max_prefixlen)), strict=False)
        for base, bits in [*pairs, (address, 8)]
    ]
    for subset in (networks, networks[:-1]):
        member = address.packed in addresses.Networks(subset)
        assert member == any(address in network for network in subset)


@pytest.mark.parametrize("text", ["0.0.0.0/0", "::/0"])
def test_networks_do_not_contain_addresses_of_the_other_family(text: str) -> None:
    is_ipv6 = ":" in text
    everything = addresses.Networks([ip_network(text)])
    assert (bytes(16) in everything, bytes(4) in everything) == (is_ipv6, not is_ipv6)


def test_long_text_is_rejected_without_a_copy() -> None:
    longest = "0000:0000:0000:0000:0000:0000:255.255.255.255"
    assert len(longest) == addresses.MAX_CHARS
    assert addresses.read(longest) is not None
    assert addresses.read(longest + "0") is None
    long = "é" * 10_000_000
    tracemalloc.start()
    try:
        assert addresses.read(long) is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000, "the text was copied"
    finally:
        tracemalloc.stop()
