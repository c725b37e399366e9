"""Parses, formats, masks and matches the IP addresses in flows.

An address is represented by its 4 or 16 bytes. Parsing to `ipaddress` objects would take ten times
as long. A cache would not help during a network scan, because every flow of a scan has a new
address.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final

MAX_CHARS: Final = 45
"""Maximum length of an IP address: an uncompressed IPv6 address with an IPv4 suffix."""

_IPV4_BYTES: Final = 4
_MAPPED: Final = bytes(10) + b"\xff\xff"
_ZEROES: Final = bytes(12)


def read(text: str) -> bytes | None:
    """Parse an address; return None if it is invalid.

    An IPv4-mapped IPv6 address is returned as IPv4. Addresses with a zone (``fe80::1%eth0``) are
    invalid, because Skydive never writes zones.
    """
    if len(text) > MAX_CHARS:
        return None
    try:
        if ":" not in text:
            return inet_pton(AF_INET, text)
        address = inet_pton(AF_INET6, text)
    except (OSError, ValueError):  # ValueError: NUL or a lone surrogate
        return None
    return address[12:] if address.startswith(_MAPPED) else address


def write(address: bytes) -> str:
    """Format an address as RFC 5952 recommends; an IPv6 address never contains dots."""
    if len(address) == _IPV4_BYTES:
        return inet_ntop(AF_INET, address)
    if address.startswith(_ZEROES):  # inet_ntop would write the last 4 bytes with dots
        return str(IPv6Address(address))
    return inet_ntop(AF_INET6, address)


def masked(address: bytes, bits: int) -> bytes:
    """Return the address with all bits after the first ``bits`` set to 0."""
    length = len(address)
    behind = 8 * length - bits
    return (int.from_bytes(address) >> behind << behind).to_bytes(length)


class Networks:
    """A set of networks; ``address in networks`` tests whether any network contains the address."""

    __slots__ = ("_ipv4", "_ipv6")

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        # Netmask and network address of each network, as integers.
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
