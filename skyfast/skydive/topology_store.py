"""Stores the nodes and edges that skyfast uses to resolve names.

Nodes and edges (*elements*) are stored separately for each query. A complete response replaces the
elements of its query. A response with only changed elements is merged into the elements of its
query. `GraphReader` reuses the objects of unchanged elements. Therefore the store detects changes
by the identities of objects.

A garbage collection that visits 100,000 elements would stop the process for 0.1 s. Therefore the
garbage collector does not track elements. Before CPython 3.14, it does not track the dicts that
contain the elements either, because the keys and values of these dicts are untracked.
"""

from collections import Counter
from collections.abc import Hashable, Mapping
from itertools import chain
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

from skyfast.skydive.graph_index import DUPLICATE_ID
from skyfast.skydive.topology_graph import Edge, Graph, Node, Skipped, decode_edge, decode_node
from skyfast.skydive.topology_nodes import MAX_ELEMENTS, NodesReader, NodesResponse
from skyfast.skydive.topology_queries import KUBERNETES, KUBERNETES_EDGES, NAMESPACES, Query

# Reasons why nodes and edges are unusable. These are keys of `Skipped`.
TOO_MANY: Final = "too_many"
"""The response has more than `MAX_ELEMENTS` elements."""

TOO_LONG: Final = "too_long"
"""The element is longer than `MAX_ELEMENT_BYTES`."""

S = TypeVar("S", str, str | None)

Element: TypeAlias = Node | Edge
Elements: TypeAlias = dict[Hashable, Element]


class GraphReader:
    """Decodes the nodes or edges in a response.

    If ``also_interfaces`` is true, the counters of interfaces are decoded, too. If a decoded
    element equals an element in ``known``, the reader uses the object in ``known``. Therefore
    reading an unchanged topology again takes no additional memory.
    """

    def __init__(
        self,
        query: Query,
        *,
        also_interfaces: bool = False,
        known: Mapping[Hashable, Element] = MappingProxyType({}),
    ) -> None:
        self.elements: Elements = {}
        self._known = known
        self.skipped: Skipped = Counter()
        self.newest_ms = 0
        """The latest ``UpdatedAt`` of a node; 0 if there is none."""
        self._nodes_reader = NodesReader() if also_interfaces else None
        self._strings: dict[str, str] = {}
        self._add = self._add_edge if query.edges else self._add_node

    def add(self, element: bytes) -> None:
        """Decode an element.

        Raises:
            MalformedResponseError: ``element`` is not JSON, and ``also_interfaces`` is true.

        """
        if self._nodes_reader is not None:
            self._nodes_reader.add(element)
        self._add(element)

    def skip(self, count: int) -> None:
        if count:
            self.skipped[TOO_LONG] += count
        if self._nodes_reader is not None:
            self._nodes_reader.skip(count)

    def response(self) -> NodesResponse:
        """Return the nodes for the interface metrics. Requires ``also_interfaces``."""
        if self._nodes_reader is None:
            raise ValueError("also_interfaces is false")
        return self._nodes_reader.response()

    def _add_node(self, element: bytes) -> None:
        node = decode_node(element, self.skipped)
        if node is None:
            return
        key: Hashable = node.id or len(self.elements)
        other = self.elements.get(key)
        if other is not None:
            self.skipped[DUPLICATE_ID] += 1
            if isinstance(other, Node) and _updated_ms(other) >= _updated_ms(node):
                return
        elif len(self.elements) >= MAX_ELEMENTS:
            self.skipped[TOO_MANY] += 1
            return
        self.newest_ms = max(self.newest_ms, _updated_ms(node))
        known = self._known.get(key)
        if isinstance(known, Node):
            # Ignore ``UpdatedAt`` in the following comparison. Every change of a node also changes
            # ``UpdatedAt``, even if skyfast does not read the changed field.
            known.updated_at = node.updated_at
        if known == node:
            # Use the ID string of the known node as the key. The equal ID string of the new node
            # would take additional memory.
            self.elements[known.id or key] = known
        else:
            self._share_strings(node)
            self.elements[key] = node

    def _add_edge(self, element: bytes) -> None:
        edge = decode_edge(element, self.skipped)
        if edge is None:
            return
        key = f"{edge.parent} {edge.child} {edge.relation_type}"
        if key not in self.elements and len(self.elements) >= MAX_ELEMENTS:
            self.skipped[TOO_MANY] += 1
            return
        known = self._known.get(key)
        if known == edge:
            self.elements[key] = known
        else:
            edge.parent, edge.child = self._shared(edge.parent), self._shared(edge.child)
            self.elements[key] = edge

    def _share_strings(self, node: Node) -> None:
        """Save memory: use one object for equal strings that many nodes have."""
        node.host = self._shared(node.host)
        metadata = node.metadata
        metadata.type = self._shared(metadata.type)
        metadata.manager = self._shared(metadata.manager)
        metadata.cluster_name = self._shared(metadata.cluster_name)
        if k8s := metadata.k8s:
            k8s.namespace = self._shared(k8s.namespace)
            k8s.node = self._shared(k8s.node)
            k8s.status = self._shared(k8s.status)

    def _shared(self, text: S) -> S:
        return text if text is None else self._strings.setdefault(text, text)


def _updated_ms(node: Node) -> int:
    return node.updated_at or 0


class TopologyStore:
    """Only one thread at a time may change the elements.

    The reader that is passed to `replace`, `merge` or `differing` must have been returned by
    `reader` for the same query.
    """

    def __init__(self) -> None:
        self._elements: dict[Query, Elements] = {}
        self._skipped: dict[Query, Skipped] = {}

    def __len__(self) -> int:
        return sum(len(elements) for elements in self._elements.values())

    def reader(
        self, kept: Query, *, changes: Query | None = None, also_interfaces: bool = False
    ) -> GraphReader:
        """Return a reader for the response to a query.

        ``kept`` is the query whose elements are stored. ``changes`` is the query that is sent: it
        returns only some of these elements. If ``changes`` is None, ``kept`` is sent.
        """
        return GraphReader(
            changes or kept,
            also_interfaces=also_interfaces,
            known=self._elements.get(kept, {}),
        )

    @property
    def is_answered(self) -> bool:
        """Whether there has been a response, even an empty one."""
        return bool(self._elements)

    def replace(self, query: Query, reader: GraphReader) -> bool:
        """Replace the elements of ``query``; return whether elements or skip counts changed."""
        before = self._elements.get(query, {})
        changed = (
            query not in self._elements
            or self._skipped[query] != reader.skipped
            or len(reader.elements) != len(before)
            or any(before.get(key) is not element for key, element in reader.elements.items())
        )
        self._elements[query] = reader.elements
        self._skipped[query] = reader.skipped
        return changed

    def merge(self, query: Query, reader: GraphReader) -> bool:
        """Add or replace elements of ``query``; return whether any element has changed."""
        elements = self._elements.setdefault(query, {})
        self._skipped.setdefault(query, Counter())
        changed = False
        for key, element in reader.elements.items():
            old = elements.get(key)
            if isinstance(key, int) or old is element:
                continue  # the element has no ID (an int key), or has not changed
            if old is None and len(elements) >= MAX_ELEMENTS:
                self._skipped[query][TOO_MANY] += 1
                continue
            elements[key] = element
            changed = True
        return changed

    def differing(self, query: Query, reader: GraphReader) -> list[Element]:
        """Return the elements in ``reader`` that are new or changed."""
        elements = self._elements.get(query, {})
        return [
            element for key, element in reader.elements.items() if elements.get(key) is not element
        ]

    def graph(self) -> Graph:
        """Return the elements of all queries, in new lists, and the total skip counts."""
        every = list(chain.from_iterable(list(part.values()) for part in self._elements.values()))
        skipped: Skipped = Counter()
        for part in list(self._skipped.values()):
            skipped.update(part)
        return Graph(
            nodes=[element for element in every if isinstance(element, Node)],
            edges=[element for element in every if isinstance(element, Edge)],
            skipped=skipped,
        )

    def graph_of(self, pods: list[Node]) -> Graph:
        """Return ``pods`` and the elements that their names need; all other pods are left out."""
        chosen = {pod.id for pod in pods}
        nodes, others = list(pods), set[str | None]()
        for element in self._listed(KUBERNETES):
            if isinstance(element, Node) and element.id not in chosen:
                if element.metadata.type == "pod":
                    others.add(element.id)
                else:
                    nodes.append(element)
        nodes += [
            element
            for element in self._listed(NAMESPACES)
            if isinstance(element, Node) and element.metadata.type == "host"
        ]
        edges = [
            element
            for element in self._listed(KUBERNETES_EDGES)
            if isinstance(element, Edge) and not {element.parent, element.child} & others
        ]
        return Graph(nodes=nodes, edges=edges)

    def _listed(self, query: Query) -> list[Element]:
        return list(self._elements.get(query, {}).values())
