"""Collects the subnets of hosts from the addresses of interfaces."""

from collections import defaultdict
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

from skyfast.flows import addresses

Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]
"""Subnets of a host."""


def share_network(networks: Mapping[str, Networks], host: str, address: str, other: str) -> bool:
    """Return whether one of a host's subnets contains both addresses."""
    ends = addresses.read(address), addresses.read(other)
    if ends[0] is None or ends[1] is None or len(ends[0]) != len(ends[1]):
        return False
    bits = 8 * len(ends[0])
    a, b = (int.from_bytes(end) for end in ends if end)
    for network in networks.get(host, ()):
        if network.max_prefixlen == bits:
            mask, first = int(network.netmask), int(network.network_address)
            if a & mask == first == b & mask:
                return True
    return False


class Subnets:
    def __init__(self) -> None:
        self._by_host: dict[str, set[IPv4Network | IPv6Network]] = defaultdict(set)
        self._of_text: dict[str, IPv4Network | IPv6Network | None] = {}
        # A cache: creating a network object takes 10 µs, and many interfaces have the same subnet.
        self._known: dict[tuple[bytes, int], IPv4Network | IPv6Network] = {}

    def add(self, host: str, text: str) -> None:
        """Add the subnet of ``text``, an address with a prefix length, unless ``host`` is ""."""
        if not host:
            return
        if text in self._of_text:
            network = self._of_text[text]
        else:
            network = self._of_text[text] = self._parse(text)
        if network is not None:
            self._by_host[host].add(network)

    def by_host(self) -> dict[str, Networks]:
        """Return the subnets of each host, sorted."""
        return {
            host: tuple(sorted(networks, key=_network_order))
            for host, networks in self._by_host.items()
        }

    def _parse(self, text: str) -> IPv4Network | IPv6Network | None:
        address_text, _, length_text = text.partition("/")
        address = addresses.read(address_text.partition("%")[0])
        if address is None or not (length_text.isascii() and length_text.isdecimal()):
            return None
        if len(length_text) > 3 or (length := int(length_text)) >= 8 * len(address):
            # Leave out subnets with one address, because they never contain both addresses of a
            # flow. There can be one such subnet per pod.
            return None
        key = addresses.masked(address, length), length
        network = self._known.get(key)
        if network is None:
            network = self._known[key] = IPv4Network(key) if len(address) == 4 else IPv6Network(key)
        return network


def _network_order(network: IPv4Network | IPv6Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen
