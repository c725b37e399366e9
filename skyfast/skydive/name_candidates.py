"""Uses the capture point of a flow to choose among several owners of an address in the flow."""

from collections.abc import Iterable, Mapping, Sequence
from heapq import merge
from itertools import islice
from typing import Final

import msgspec

from skyfast.skydive.subnets import Networks, share_network

_SORTED_AT_ONCE: Final = 256
"""Maximum number of candidates per call of ``sorted``. One call holds the GIL for about 1 ms."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An owner of an address; unknown values are ""."""

    names: tuple[str, ...]
    """The names in the order of ``ADDRESS_NAMES``, followed by the values of the requested pod
    labels."""
    namespace: str
    """The owner's network namespace, as the ID of its node. For a host's own namespace, this is the
    ID of the host's node."""
    host: str
    """The name that Skydive gives to the owner's host."""
    cluster: str
    """The cluster of the pod or service, or else the cluster of the host."""


class PointLocation(msgspec.Struct, frozen=True, gc=False):
    """The location of a capture point; unknown values are ""."""

    namespace: str
    """The network namespace, as the ID of its node: see `Candidate`."""
    peers: tuple[str, ...]
    """The network namespaces that contain the veth peers of the capture point: their node IDs,
    sorted."""
    host: str
    cluster: str


def choose(
    candidates: Sequence[Candidate],
    other: str,
    point: PointLocation | None,
    networks: Mapping[str, Networks],
    *,
    address: str,
) -> tuple[str, ...] | None:
    """Return the names of ``address`` in a flow, or None if the names are ambiguous.

    ``candidates`` are the owners of ``address``. ``other`` is the address at the other end of the
    flow.

    The following groups are tried in order. The result is from the first group in which all
    candidates have the same ``names``. Empty groups are skipped. For local addresses (`is_local`),
    only groups 2 and 3 are used.

    1. All candidates.
    2. The candidates in the namespace of the capture point.
    3. The candidates in the namespaces of the capture point's veth peers.
    4. The candidates on the capture point's host, if a subnet of this host contains both
       ``address`` and ``other``.
    5. The candidates in the cluster of the capture point.
    """
    local = is_local(address)
    chosen = None if local else _only_names(candidates)
    if chosen is not None or point is None:
        return chosen
    if point.namespace:
        chosen = _only_names(owner for owner in candidates if owner.namespace == point.namespace)
    if chosen is None and point.peers:
        chosen = _only_names(owner for owner in candidates if owner.namespace in point.peers)
    if local:
        return chosen
    if chosen is None and point.host and share_network(networks, point.host, address, other):
        chosen = _only_names(owner for owner in candidates if owner.host == point.host)
    if chosen is None and point.cluster:
        chosen = _only_names(owner for owner in candidates if owner.cluster == point.cluster)
    return chosen


def is_local(address: str) -> bool:
    """Return whether an address is a loopback or link-local address.

    Many hosts or links can have the same local address, even hosts and links that are not in the
    topology.
    """
    if address == "::1" or address.startswith(("127.", "169.254.")):
        return True
    # fe80::/10. The first group must have four digits, because "fe8:" is short for "0fe8:".
    return address.startswith(("fe8", "fe9", "fea", "feb")) and address.find(":") == 4


def _only_names(candidates: Iterable[Candidate]) -> tuple[str, ...] | None:
    only: tuple[str, ...] | None = None
    for candidate in candidates:
        if only is None:
            only = candidate.names
        elif candidate.names != only:
            return None
    return only


def in_order(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return the distinct candidates, sorted.

    An address can have thousands of candidates. Example: ``127.0.0.1`` has one candidate in each
    namespace. Sorting all of them in one call would hold the GIL for too long.
    """
    rest = iter(set(candidates))
    chunks = []
    while chunk := list(islice(rest, _SORTED_AT_ONCE)):
        chunks.append(sorted(chunk, key=_order))
    return tuple(merge(*chunks, key=_order))


def _order(candidate: Candidate) -> tuple[tuple[str, ...], str, str, str]:
    return candidate.names, candidate.namespace, candidate.host, candidate.cluster
