"""Computes label values from fields: masked addresses, grouped ports, protocols.

What they are made by are `skyfast.flows.plan.Rewrite`s. What is remembered is bounded, for
strangers choose what stands in a flow; nothing is locked, for one thread asks.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from skyfast.flows import addresses
from skyfast.flows.plan import Path
from skyfast.flows.selection import Fold, Mask

K = TypeVar("K", bound=str | int)
V = TypeVar("V")

MAX_REMEMBERED = 65_536
"""Answers that a `Memory` holds; when one more comes, all are forgotten."""

MAX_REMEMBERED_CHARS = 256
"""Of a text whose answer is remembered; no address, node or layers' path is longer."""

OTHER = "other"
"""What stands for all values that are not told apart."""


class Memory(dict[K, V], Generic[K, V]):
    """Answers of a function, kept for when the same is asked again; at most `MAX_REMEMBERED`."""

    __slots__ = ("_answer",)

    def __init__(self, answer: Callable[[K], V]) -> None:
        self._answer = answer

    def __missing__(self, key: K) -> V:
        value = self._answer(key)
        if isinstance(key, str) and len(key) > MAX_REMEMBERED_CHARS:
            return value
        if len(self) >= MAX_REMEMBERED:
            self.clear()
        self[key] = value
        return value


def mask(config: Mask) -> Memory[str, str]:
    """Return what makes network text of address text, such as ``10.0.0.0/24``.

    Addresses of a family that has no mask stay as they are written, and so do texts that are no
    address, the empty one among them.
    """
    bits_of = {4: config.ipv4, 16: config.ipv6}

    def network(text: str) -> str:
        address = addresses.read(text)
        if address is None or (bits := bits_of[len(address)]) is None:
            return text
        return f"{addresses.write(addresses.masked(address, bits))}/{bits}"

    return Memory(network)


class _Folded(dict[int | str, int | str]):
    """The ports that stay by their number; those above the bound are answered, not kept."""

    __slots__ = ("_above",)

    def __init__(self, keep: frozenset[int], above: int) -> None:
        super().__init__({port: port for port in keep})
        self[""] = ""
        self._above = above

    def __missing__(self, port: int | str) -> int | str:
        return port if isinstance(port, int) and 0 <= port <= self._above else OTHER


def fold(config: Fold) -> dict[int | str, int | str]:
    """Return what leaves the ports of the list or up to the bound, and makes `OTHER` of the rest.

    The empty text, for a port that is missing, stays.
    """
    above = -1 if config.above is None else config.above
    return _Folded(config.keep or frozenset(), above)


class FlowProtocol:
    """The protocol of a flow, ICMP among them: ``TCP``, ``UDP``, ``SCTP``, ``ICMPV4``, ``ICMPV6``.

    A flow with neither Transport nor ICMP has the empty text; with ``other``, the last of its
    layers, such as ``GRE`` or ``Fragment``. ``reads`` are the fields that this needs.
    """

    def __init__(self, *, other: bool = False) -> None:
        self._other = other
        reads: tuple[Path, ...] = (("Transport", "Protocol"), ("ICMP",), ("Network", "Protocol"))
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
