"""Parses, formats, masks and matches the IP addresses in flows.

An address is its 4 or 16 bytes. The objects of `ipaddress` cost ten times as much, and while
somebody scans a network, every flow has an address that was never seen.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final

MAX_CHARS: Final = 45
"""Of an IP address: IPv6 with the last 32 bits as IPv4, none of them left out."""

_IPV4_BYTES: Final = 4
_MAPPED: Final = bytes(10) + b"\xff\xff"
_ZEROES: Final = bytes(12)


def read(text: str) -> bytes | None:
    """Return the address that a flow's text stands for, or None where it is none.

    An IPv4 address in IPv6 form is that IPv4 address. One with a zone (``fe80::1%eth0``) is none:
    Skydive does not write zones.
    """
    if len(text) > MAX_CHARS:
        return None
    try:
        if ":" not in text:
            return inet_pton(AF_INET, text)
        address = inet_pton(AF_INET6, text)
    except (OSError, ValueError):  # the latter for what C cannot take: NUL, half a surrogate pair
        return None
    return address[12:] if address.startswith(_MAPPED) else address


def write(address: bytes) -> str:
    """Return an address that `read` knows in the text form of RFC 5952, IPv6 without dots."""
    if len(address) == _IPV4_BYTES:
        return inet_ntop(AF_INET, address)
    if address.startswith(_ZEROES):  # where C libraries write dots
        return str(IPv6Address(address))
    return inet_ntop(AF_INET6, address)


def masked(address: bytes, bits: int) -> bytes:
    """Return an address with nothing behind its first ``bits`` bits."""
    length = len(address)
    behind = 8 * length - bits
    return (int.from_bytes(address) >> behind << behind).to_bytes(length)


class Networks:
    """Tells whether an address is in one of some networks."""

    __slots__ = ("_ipv4", "_ipv6")

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        # Of each, what an address's number has in common with all others in it.
        self._ipv4: list[tuple[int, int]] = []
        self._ipv6: list[tuple[int, int]] = []
        for network in networks:
            pairs = self._ipv4 if isinstance(network, IPv4Network) else self._ipv6
            pairs.append((int(network.netmask), int(network.network_address)))

    def __contains__(self, address: bytes) -> bool:
        number = int.from_bytes(address)
        pairs = self._ipv4 if len(address) == _IPV4_BYTES else self._ipv6
        for mask, first in pairs:  # noqa: SIM110  # any() over a generator takes longer
            if number & mask == first:
                return True
        return False
