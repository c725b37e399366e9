"""Computes label values from fields: masked addresses, grouped ports, protocols.

The functions return `skyfast.flows.plan.LabelMapper` objects. Caches are bounded, because anyone on
the network can create new values. The caches have no locks, because only one thread uses them.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from skyfast.flows import addresses
from skyfast.flows.plan import FieldPath
from skyfast.flows.selection import Mask, PortGrouping

K = TypeVar("K", bound=str | int)
V = TypeVar("V")

MAX_REMEMBERED = 65_536
"""Maximum size of a `BoundedCache`. A full cache is cleared before an entry is added."""

MAX_REMEMBERED_CHARS = 256
"""Maximum length of a cached string; no address, node or layer path is longer."""

OTHER = "other"
"""The label value for all values that are grouped together."""


class BoundedCache(dict[K, V], Generic[K, V]):
    """A cache with at most `MAX_REMEMBERED` entries for the results of a function."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[K], V]) -> None:
        self._function = function

    def __missing__(self, key: K) -> V:
        value = self._function(key)
        if isinstance(key, str) and len(key) > MAX_REMEMBERED_CHARS:
            return value
        if len(self) >= MAX_REMEMBERED:
            self.clear()
        self[key] = value
        return value


def mask(config: Mask) -> BoundedCache[str, str]:
    """Return a mapping from addresses to their networks, such as ``10.0.0.0/24``.

    Addresses of an IP version without a mask, and strings that are not addresses (including the
    empty string), stay unchanged.
    """
    bits_of = {4: config.ipv4, 16: config.ipv6}

    def network(text: str) -> str:
        address = addresses.read(text)
        if address is None or (bits := bits_of[len(address)]) is None:
            return text
        return f"{addresses.write(addresses.masked(address, bits))}/{bits}"

    return BoundedCache(network)


class _GroupedPorts(dict[int | str, int | str]):
    """Stores only the kept ports. The value for any other port is computed on each access."""

    __slots__ = ("_above",)

    def __init__(self, keep: frozenset[int], above: int) -> None:
        super().__init__({port: port for port in keep})
        self[""] = ""
        self._above = above

    def __missing__(self, port: int | str) -> int | str:
        return port if isinstance(port, int) and 0 <= port <= self._above else OTHER


def group_ports(config: PortGrouping) -> dict[int | str, int | str]:
    """Return a mapping that maps ports to `OTHER`, except the ports that ``config`` keeps.

    An empty string, which stands for a missing port, is mapped to itself.
    """
    above = -1 if config.above is None else config.above
    return _GroupedPorts(config.keep or frozenset(), above)


class FlowProtocol:
    """Maps a flow to its protocol: ``TCP``, ``UDP``, ``SCTP``, ``ICMPV4`` or ``ICMPV6``.

    If a flow has neither ``Transport`` nor ``ICMP``, the result depends on ``other``. If ``other``
    is true, the result is the last element of ``LayersPath``, such as ``GRE`` or ``Fragment``. If
    ``other`` is false, the result is an empty string.
    """

    def __init__(self, *, other: bool = False) -> None:
        self._other = other
        reads: tuple[FieldPath, ...] = (
            ("Transport", "Protocol"),
            ("ICMP",),
            ("Network", "Protocol"),
        )
        self.reads = (*reads, ("LayersPath",)) if other else reads

    def __getitem__(self, flow: Any) -> str:
        if flow.Transport is not None:
            protocol: str = flow.Transport.Protocol
            return protocol
        if flow.ICMP is None:
            layers: str = flow.LayersPath if self._other else ""
            return layers.rpartition("/")[2]
        version_6 = flow.Network is not None and flow.Network.Protocol == "IPV6"
        return "ICMPV6" if version_6 else "ICMPV4"
