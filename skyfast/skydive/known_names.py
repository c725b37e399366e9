"""Looks up and searches the names of addresses and capture points.

Lookups send no queries to analyzers. The names come from these sources:

* the topology, if labels show names from it
* *own names*, which users gave to addresses and networks
* the interfaces whose counters are exported
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from skyfast.flows.catalog import ADDRESS_NAMES, NODE_NAMES
from skyfast.skydive.interfaces import InterfaceName


class NamedAddresses(Protocol):
    def name_of(self, key: str, /) -> str: ...


class NameMappings(Protocol):
    """Any thread may read the mappings while they change."""

    @property
    def nodes(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def addresses(self) -> Mapping[str, tuple[str, ...] | None]: ...
    @property
    def combined(self) -> NamedAddresses: ...


class NamedInterfaces(Protocol):
    @property
    def names(self) -> Mapping[str, InterfaceName]: ...


class CapturePointName(NamedTuple):
    """The parts of a capture point's name; unknown parts are ""."""

    host: str = ""
    owner: str = ""
    """The pod to which the interface belongs, or else the container, or else the network
    namespace."""
    interface: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, self))


_NO_NAME: Final = CapturePointName()
_NAME: Final = ADDRESS_NAMES.index("name")
_HOST, _INTERFACE, _NAMESPACE, _POD, _CONTAINER, _NETNS = map(
    NODE_NAMES.index, ("host", "name", "namespace", "pod", "container", "netns")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNames:
    """Any thread may look up names. The names can change between two lookups."""

    index: NameMappings | None
    """None if no label shows names and there are no own names."""
    interfaces: NamedInterfaces

    def of_address(self, address: str) -> str:
        """Return the name of an address, or "" if the name is unknown or depends on the flow."""
        return "" if self.index is None else self.index.combined.name_of(address)

    def of_node(self, tid: str) -> CapturePointName:
        names = self.index.nodes.get(tid) if self.index is not None else None
        if names:
            return _point_name(names)
        interface = self.interfaces.names.get(tid)
        return CapturePointName(interface.host, "", interface.name) if interface else _NO_NAME

    def addresses_like(self, matches: Callable[[str], bool]) -> Iterator[str]:
        """Yield the addresses whose names in the topology meet ``matches``.

        Own names are not searched, because the own name of a network can apply to very many
        addresses.
        """
        if self.index is not None:
            for address, names in _items(self.index.addresses):
                if names and matches(names[_NAME]):
                    yield address

    def nodes_like(self, matches: Callable[[str], bool]) -> Iterator[str]:
        """Yield the ``NodeTID`` of each capture point whose name meets ``matches``."""
        nodes = dict(_items(self.index.nodes)) if self.index is not None else {}
        for tid, names in nodes.items():
            if matches(str(_point_name(names))):
                yield tid
        for tid, interface in self.interfaces.names.items():
            if tid not in nodes and matches(f"{interface.host} {interface.name}"):
                yield tid


def _point_name(names: tuple[str, ...]) -> CapturePointName:
    pod = f"{names[_NAMESPACE]}/{names[_POD]}" if names[_POD] else ""
    return CapturePointName(
        names[_HOST], pod or names[_CONTAINER] or names[_NETNS], names[_INTERFACE]
    )


def _items(names: Mapping[str, object]) -> list[tuple[str, Any]]:
    # The event loop cannot change the dict while list() copies it.
    return list(names.items())
