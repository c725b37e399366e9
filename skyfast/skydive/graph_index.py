"""Finds nodes of the topology by type and by relation.

Contradictory nodes and edges are counted and ignored. Contradictions have two causes: the graph is
assembled from responses of different times, and analyzers can have bugs.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import msgspec

from skyfast.flows import addresses
from skyfast.skydive.multimap import MultiMap
from skyfast.skydive.topology_graph import DELETED, Graph, Node, Skipped

MAX_NODES: Final = 200_000
"""Maximum number of nodes that are used. A topology of 5,000 pods has 60,000 nodes."""

MAX_EDGES: Final = 400_000

MAX_NAME_CHARS: Final = 256
"""Maximum length of a name or an ID; longer ones are ignored. Names in Kubernetes have up to 253
characters."""

MAX_OWNERS: Final = 16
"""Maximum number of levels of owners above an interface. Usually, there are two: namespace and
host."""

# Reasons why nodes, edges and field values are unusable. These are keys of `Skipped`.
NODE_LIMIT: Final = "node_limit"
EDGE_LIMIT: Final = "edge_limit"
DUPLICATE_ID: Final = "duplicate_id"

EDGE_WITHOUT_NODE: Final = "edge_without_node"
"""Counts edges whose parent or child is missing from the graph.

If the missing node may have a type that skyfast does not read, the edge is not counted. Example:
edges from services to endpoints."""

NAME_TOO_LONG: Final = "name_too_long"
INVALID_ADDRESS: Final = "invalid_address"

SEVERAL_OWNERS: Final = "several_owners"
"""Counts interfaces and containers with several owners: Skydive allows only one owner."""

OWNERSHIP_RING: Final = "ownership_ring"
"""Counts interfaces and containers whose network namespace has an unusable chain of owners.

The chain is unusable if it is circular, or if a node in it has several owners. A chain with at
least `MAX_OWNERS` levels above the namespace counts as circular."""

OWNERSHIP: Final = "ownership"
CONTAINER: Final = "container"
SERVICE: Final = "service"
NODE: Final = "node"
LAYER2: Final = "layer2"
DEPLOYMENT: Final = "deployment"

CONTROLLERS: Final = {
    "replicaset": "ReplicaSet",
    "daemonset": "DaemonSet",
    "statefulset": "StatefulSet",
}
"""The workloads that create pods. Maps each node type in Skydive to the kind in Kubernetes."""

RELATION_TYPES: Final = (OWNERSHIP, CONTAINER, SERVICE, NODE, LAYER2, DEPLOYMENT, *CONTROLLERS)
"""skyfast uses the edges with these values of ``RelationType`` to resolve names."""

KUBERNETES_CONTAINER: Final = "k8s container"
"""The type that this module gives to containers that Skydive's Kubernetes probe reports.

Skydive uses the type ``container`` both for these containers and for containers of a container
runtime."""

_KUBERNETES_TYPES: Final = frozenset(
    (
        *("cluster", "configmap", "cronjob", "daemonset", "deployment", "endpoints", "ingress"),
        *("job", "namespace", "networkpolicy", "node", "persistentvolume"),
        *("persistentvolumeclaim", "pod", "replicaset", "replicationcontroller", "secret"),
        *("service", "statefulset", "storageclass", KUBERNETES_CONTAINER),
    )
)
"""The node types of Skydive's Kubernetes probe: see ``NewK8sProbe`` in
``topology/probes/k8s/k8s.go``."""

_NO_INTERFACES: Final = _KUBERNETES_TYPES | {"host", "netns", "container", "libvirt"}

_OWNED_BY_NAMESPACES: Final = _KUBERNETES_TYPES - {KUBERNETES_CONTAINER}

# For each relation: the types that the parent and the child of an edge must have. For ``ownership``
# and ``layer2``, `_add_edges` has separate rules.
_ENDS: Final = {
    CONTAINER: (KUBERNETES_CONTAINER, "container"),
    SERVICE: ("service", "pod"),
    NODE: ("host", "node"),
    DEPLOYMENT: ("deployment", "replicaset"),
    **{controller: (controller, "pod") for controller in CONTROLLERS},
}

_encode = msgspec.json.encode


class GraphIndex:
    """The usable nodes of a graph, by type and by relation.

    In Skydive's sources, the linkers in ``topology/probes/k8s`` and ``AddOwnershipLink`` in
    ``topology/topology.go`` create the edges.
    """

    def __init__(self, graph: Graph) -> None:
        self.skipped: Skipped = graph.skipped.copy()
        self.interfaces: list[Node] = []
        self._types: dict[str, list[Node]] = defaultdict(list)
        self._parents: dict[str, MultiMap[str, Node]] = {
            name: MultiMap() for name in RELATION_TYPES
        }
        self._addresses: dict[str, str] = {}
        by_id = self._add_nodes(graph.nodes)
        self._add_edges(graph, by_id)

    def _add_nodes(self, nodes: list[Node]) -> dict[str, Node]:
        by_id: dict[str, Node] = {}
        without_id: list[Node] = []
        for node in nodes[:MAX_NODES]:
            if node.deleted_at:
                self.skipped[DELETED] += 1
            elif not (node_id := self.name(node.id)):
                without_id.append(node)
            elif (other := by_id.setdefault(node_id, node)) is not node:
                self.skipped[DUPLICATE_ID] += 1
                if _is_later(node, other):
                    by_id[node_id] = node
        self._skip(NODE_LIMIT, len(nodes) - MAX_NODES)
        for node in (*by_id.values(), *without_id):
            node_type = type_of(node)
            if node_type in _NO_INTERFACES:
                self._types[node_type].append(node)
            else:
                self.interfaces.append(node)
        return by_id

    def _add_edges(self, graph: Graph, by_id: dict[str, Node]) -> None:
        find = by_id.get
        for edge in graph.edges[:MAX_EDGES]:
            relation = edge.relation_type
            parents = self._parents.get(relation)
            if parents is None:
                continue
            parent, child = find(edge.parent), find(edge.child)
            if parent is None or child is None:
                if _lacks_node(relation, parent, child):
                    self.skipped[EDGE_WITHOUT_NODE] += 1
            elif relation == LAYER2:
                if parent.metadata.type == child.metadata.type == "veth":
                    parents.add(edge.parent, child)
                    parents.add(edge.child, parent)
            elif relation == OWNERSHIP or _ENDS[relation] == (type_of(parent), type_of(child)):
                parents.add(edge.child, parent)
        self._skip(EDGE_LIMIT, len(graph.edges) - MAX_EDGES)

    def _skip(self, reason: str, count: int) -> None:
        if count > 0:
            self.skipped[reason] += count

    def release(self) -> None:
        """Free the memory in parts, so that other threads can get the GIL.

        Afterwards, the index must not be used.
        """
        while self._parents:
            self._parents.popitem()
        while parts := vars(self):
            parts.popitem()

    def of_type(self, node_type: str) -> list[Node]:
        """Return the nodes of ``node_type``, which must not be the type of an interface."""
        return self._types.get(node_type, [])

    def parents(self, relation: str, node: Node) -> Sequence[Node]:
        return self._parents[relation].get(node.id or "")

    def veth_peers(self, node: Node) -> Sequence[Node]:
        return self._parents[LAYER2].get(node.id or "")

    def namespace(self, node: Node) -> Node | None:
        """Return the network namespace of an interface or container, or None if it is unknown.

        The type of the returned node is ``netns``, or ``host`` for a host's own namespace.
        """
        owners = self.parents(OWNERSHIP, node)
        if not owners:
            return None
        if len(owners) > 1:
            self.skipped[SEVERAL_OWNERS] += 1
            return None
        (namespace,) = owners
        if namespace.metadata.type not in ("netns", "host"):
            return None
        if not self._is_rooted(namespace):
            self.skipped[OWNERSHIP_RING] += 1
            return None
        return namespace

    def _is_rooted(self, node: Node) -> bool:
        for _ in range(MAX_OWNERS):
            owners = self.parents(OWNERSHIP, node)
            if not owners:
                return True
            if len(owners) > 1:
                return False
            (node,) = owners
        return False

    def name(self, text: str | None) -> str:
        """Return ``text``, or "" if it is None or longer than `MAX_NAME_CHARS` characters."""
        if not text:
            return ""
        if len(text) > MAX_NAME_CHARS:
            self.skipped[NAME_TOO_LONG] += 1
            return ""
        return text

    def address(self, text: str | None) -> str:
        """Return the address in ``text`` as it is written in flows; "" if ``text`` has no address.

        A prefix length and a zone are removed: ``FE80::1%eth0/64`` becomes ``fe80::1``.
        """
        if not text:
            return ""
        known = self._addresses.get(text)
        if known is None:
            address = addresses.read(text.partition("/")[0].partition("%")[0])
            known = "" if address is None else addresses.write(address)
            if known:
                self._addresses[text] = known
            else:
                self.skipped[INVALID_ADDRESS] += 1
        return known


def _lacks_node(relation: str, parent: Node | None, child: Node | None) -> bool:
    """Return whether to count an edge as `EDGE_WITHOUT_NODE`.

    A parent or child that is missing from the graph is None. At least one of them is missing.
    """
    if relation == OWNERSHIP:
        # Do not count the edge if the missing node may have a type that skyfast does not read. A
        # missing child can have any type. The missing parent of a Kubernetes object can be a
        # Kubernetes namespace or cluster, which skyfast does not read.
        return child is not None and type_of(child) not in _OWNED_BY_NAMESPACES
    if relation == SERVICE:
        return parent is None
    if relation == LAYER2:
        return "veth" in (node.metadata.type for node in (parent, child) if node)
    return True


def type_of(node: Node) -> str:
    """Return the type of a node. Containers of the Kubernetes probe have `KUBERNETES_CONTAINER`."""
    node_type = node.metadata.type or ""
    if node_type == "container" and node.metadata.manager == "k8s":
        return KUBERNETES_CONTAINER
    return node_type


def _is_later(node: Node, other: Node) -> bool:
    """Return whether to prefer ``node`` to ``other``, which has the same ID.

    The result does not depend on the order of the nodes in the graph.
    """
    times = node.updated_at or 0, other.updated_at or 0
    if times[0] != times[1]:
        return times[0] > times[1]
    return _encode(node) > _encode(other)
