"""The Gremlin queries that skyfast sends to the topology API.

`parse` understands exactly these queries, so that a replay can respond to them in place of an
analyzer.

Skydive's sources show which queries work: ``graffiti/graph/traversal`` parses and runs a query,
``graffiti/filters`` evaluates its conditions, and ``graffiti/graph`` looks up the keys.

* All conditions of one ``Has`` must hold. Skydive evaluates them in order, and stops at the first
  one that does not hold. Therefore the queries begin with cheap and selective conditions.
* If ``Has`` directly follows ``V()`` or ``E()``, Skydive evaluates ``Has`` while it iterates over
  the graph, and does not create a list of all nodes or edges.
* ``Within`` compares a field with all listed values, one after the other.
* If a field of a node is a list, a condition holds if any element of the list meets the condition.
  ``Ne('')`` is different: this condition holds if the key exists and no element is ``''``.
* Two keys are not in the metadata: ``@UpdatedAt`` of nodes and edges (in milliseconds), and
  ``Child`` of edges.
* A string ends at the next single or double quote; there are no escapes.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

MAX_VALUES: Final = 500
"""Maximum number of addresses or IDs in a query.

The analyzer locks its graph while it compares each value with each pod. For 500 addresses and 5,000
pods, this takes 0.4 s of CPU time. A ``Regex`` of the same addresses would take 0.07 s. However,
for each query, the analyzer would cache 0.35 MB for 5 minutes or more."""

Element = dict[str, Any]
"""A node or edge as decoded JSON."""

_Matches = Callable[[Element], bool]


@dataclass(frozen=True, slots=True)
class Query:
    gremlin: str
    """The text of the query."""
    edges: bool
    """Whether the response has edges instead of nodes."""
    _matches: _Matches = field(repr=False, compare=False)

    def matches(self, element: Element) -> bool:
        """Return whether ``element`` (a node or an edge) would be in Skydive's response.

        The values of ``element`` may have unexpected types.
        """
        return self._matches(element)


def _metadata(element: Element, *path: str) -> Any:
    """Return the value at ``path``, or None.

    If ``path`` leads through a list of objects, return the list of the values in these objects.
    """
    value: Any = element.get("Metadata")
    for key in path:
        match value:
            case dict():
                value = value.get(key)
            case list():
                value = [item[key] for item in value if isinstance(item, dict) and key in item]
            case _:
                return None
    return value


def _within(path: tuple[str, ...], values: Iterable[str], *, edges: bool = False) -> _Matches:
    wanted = frozenset(values)

    def matches(element: Element) -> bool:
        value = _metadata(element, *path)
        if isinstance(value, list) and not edges:
            return any(isinstance(item, str) and item in wanted for item in value)
        return isinstance(value, str) and value in wanted

    return matches


def _quoted(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


_has_no_encap: Final = _within(("EncapType",), ("",))
_is_open_vswitch: Final = _within(("Type",), ("ovsbridge", "ovsport"))


def _is_named_interface(element: Element) -> bool:
    metadata = element.get("Metadata")
    # ``Ne('')`` holds if the key exists and its value, which may be null, is not ``''``.
    has_encap = isinstance(metadata, dict) and "EncapType" in metadata
    return (has_encap and not _has_no_encap(element)) or _is_open_vswitch(element)


INTERFACES: Final = Query(
    "G.V().Has('EncapType', 'ether')", False, _within(("EncapType",), ("ether",))
)
"""The interfaces whose metrics are exported."""

NAMED_INTERFACES: Final = Query(
    "G.V().HasEither('EncapType', Ne(''), 'Type', 'ovsbridge', 'Type', 'ovsport')",
    False,
    _is_named_interface,
)
"""The interfaces of `INTERFACES`, and all other nodes that have addresses or can have a capture.

The response has two kinds of nodes:

* all Linux devices, including loopback and tunnels. For loopback and tunnels, the ``EncapType`` is
  ``loopback``, ``gre``, ``sit``, ``none``, …
* all Open vSwitch bridges and ports, which have no ``EncapType``: see ``CaptureTypes`` in Skydive's
  ``flow/probes/capabilities.go``

Requires Skydive 0.21."""


def _of_types(start: str, key: str, values: tuple[str, ...]) -> Query:
    text = f"G.{start}().Has('{key}', Within({_quoted(values)}))"
    edges = start == "E"
    return Query(text, edges, _within((key,), values, edges=edges))


NAMESPACES: Final = _of_types("V", "Type", ("host", "netns", "container"))
"""Hosts, network namespaces, and containers of Docker, runc and Kubernetes."""

KUBERNETES: Final = _of_types(
    "V",
    "Type",
    (
        "pod",
        "service",
        "replicaset",
        "job",
        "deployment",
        "daemonset",
        "statefulset",
        "node",
    ),
)
"""Pods, their owners, services, and the nodes of the cluster."""

PODS: Final = _of_types("V", "Type", ("pod",))
"""All pods. Only `changes` uses this query."""

EDGES: Final = _of_types("E", "RelationType", ("ownership", "layer2"))
"""Edges between linked interfaces, and edges from a host or network namespace to the nodes in
it."""

_OWNERS: Final = ("service", "replicaset", "deployment", "daemonset", "statefulset", "node")

KUBERNETES_EDGES: Final = _of_types("E", "RelationType", ("container", *_OWNERS))
"""Edges of Skydive's Kubernetes probe:

* from services, replica sets, daemon sets and stateful sets to the pods that their label selectors
  match
* from deployments to replica sets
* from hosts to the Kubernetes nodes that run on them
* from Kubernetes nodes to pods
* from containers of Kubernetes to containers of a container runtime"""

_CHANGING: Final = (NAMESPACES, KUBERNETES, PODS, EDGES, KUBERNETES_EDGES)


def changes(query: Query, since_ms: int) -> Query:
    """Return a query for those elements of ``query`` that were updated after ``since_ms``.

    Queries for interfaces are not accepted, because a query for changed interfaces would not be
    cheaper: agents update the counters of all interfaces every 30 s. Deleted elements are not in
    the response. Before Skydive 0.28, the key of the time was ``UpdatedAt`` instead of
    ``@UpdatedAt``, so older analyzers return nothing.
    """
    if query not in _CHANGING:
        raise ValueError(f"changes cannot be queried: {query.gremlin}")

    def matches(element: Element) -> bool:
        updated_ms = element.get("UpdatedAt")
        return (
            isinstance(updated_ms, int) and updated_ms > since_ms and bool(query.matches(element))
        )

    text = query.gremlin.removesuffix(")")
    return Query(f"{text}, '@UpdatedAt', Gt({since_ms}))", query.edges, matches)


_SAFE: Final = re.compile(r"[0-9A-Za-z_.:-]{1,256}")
"""Matches addresses and IDs that are safe inside a string of a query."""


def by_pod_address(addresses: Iterable[str]) -> Query | None:
    """Return the query for the pods whose ``K8s.IP`` is one of ``addresses``.

    Returns None if there are no addresses. Values that are unsafe in a query are left out.

    Raises:
        ValueError: There are more than `MAX_VALUES` addresses.

    """
    values = _values(addresses)
    if not values:
        return None
    is_pod, has_address = _within(("Type",), ("pod",)), _within(("K8s", "IP"), values)
    return Query(
        f"G.V().Has('Type', 'pod', 'K8s.IP', Within({_quoted(values)}))",
        False,
        lambda element: is_pod(element) and has_address(element),
    )


def by_child(ids: Iterable[str]) -> Query | None:
    """Return the query for the edges that lead from owners, services and nodes to pods.

    ``ids`` are the IDs of the pods. Returns None if there are no IDs. The edges are part of
    `KUBERNETES_EDGES`.

    Raises:
        ValueError: There are more than `MAX_VALUES` IDs.

    """
    values = _values(ids)
    if not values:
        return None
    owns, children = _within(("RelationType",), _OWNERS, edges=True), frozenset(values)

    def matches(element: Element) -> bool:
        child = element.get("Child")
        return owns(element) and isinstance(child, str) and child in children

    text = f"G.E().Has('RelationType', Within({_quoted(_OWNERS)}), 'Child', Within({{}}))"
    return Query(text.format(_quoted(values)), True, matches)


def _values(texts: Iterable[str]) -> list[str]:
    values = [text for text in dict.fromkeys(texts) if _SAFE.fullmatch(text)]
    if len(values) > MAX_VALUES:
        raise ValueError(f"{len(values)} values, but a query can have at most {MAX_VALUES}")
    return values


_CONSTANT: Final = {query.gremlin: query for query in (INTERFACES, NAMED_INTERFACES, *_CHANGING)}
_CHANGES: Final = re.compile(r"(G\..*\)), '@UpdatedAt', Gt\((\d{1,18})\)\)")
_LIST: Final = re.compile(r"Within\(([^()]*)\)\)$")


def parse(gremlin: str) -> Query | None:
    """Return the query with the text ``gremlin``, or None if skyfast never sends this text."""
    if gremlin in _CONSTANT:
        return _CONSTANT[gremlin]
    if (match := _CHANGES.fullmatch(gremlin)) and f"{match[1]})" in _CONSTANT:
        query = _CONSTANT[f"{match[1]})"]
        return changes(query, int(match[2])) if query in _CHANGING else None
    if match := _LIST.search(gremlin):
        values = [text.strip().strip("'") for text in match[1].split(",")]
        if len(values) <= MAX_VALUES:
            for made in (by_pod_address(values), by_child(values)):
                if made is not None and made.gremlin == gremlin:
                    return made
    return None
