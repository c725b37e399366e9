"""The topology in recordings: its fields, its changes, and the responses to queries.

Nodes and edges are recorded with the fields that skyfast reads, and recorded again only when one of
these fields has changed. To get the topology at a time of the recording, apply all updates before
this time in order.
"""

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias, get_args, get_origin

import msgspec

from skyfast.flows.fields import UNDECODABLE
from skyfast.skydive import topology_graph, topology_nodes
from skyfast.skydive import topology_queries as queries
from skyfast.skydive.topology_queries import Query

MAX_ELEMENTS: Final = 200_000
"""Maximum number of recorded nodes and edges; further elements are counted and left out."""

UPDATE_BYTES: Final = 1 << 20
"""When the JSON of an update exceeds this size, the update ends and another update begins."""

MAX_LABEL_DEPTH: Final = 32
"""Maximum depth of nested labels. Skydive splits the key of a label at its dots, and makes a nested
object for each component."""

_COMPLETE: Final = (
    queries.INTERFACES,
    queries.NAMED_INTERFACES,
    queries.NAMESPACES,
    queries.KUBERNETES,
    queries.EDGES,
    queries.KUBERNETES_EDGES,
)
"""Queries for all elements of certain types, without further conditions.

If one of them no longer returns an element, the element was removed from the topology."""

Path: TypeAlias = tuple[str, ...]
Shape: TypeAlias = dict[str, Any]
"""Maps each field of a JSON object to its type, or to a shape if the field is an object.

A list is described by the shape of its elements. ``dict`` stands for an object with any fields, and
``object`` for any other value."""

Rewrite: TypeAlias = Callable[[object], object]


def _shape(struct: type[msgspec.Struct]) -> Shape:
    return {
        field.encode_name: _kind(field.type)
        for field in msgspec.structs.fields(struct)
        if field.type is not types.NoneType
    }


def _kind(annotation: Any) -> Any:
    if isinstance(annotation, types.UnionType):
        annotation = get_args(annotation)[0]
    origin = get_origin(annotation)
    if origin in (tuple, list):
        return _kind(get_args(annotation)[0])
    if origin is dict:
        return dict
    if annotation is Any:
        return object
    return _shape(annotation) if issubclass(annotation, msgspec.Struct) else annotation


def _merged(one: Shape, other: Shape) -> Shape:
    merged = one | other
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict):
            merged[key] = _merged(one[key], other[key])
    return merged


NODE: Final = _merged(_shape(topology_graph.Node), _shape(topology_nodes.InterfaceNode))
"""The node fields that skyfast reads for names and interface metrics, or uses in queries."""

COUNTERS: Final = tuple(
    field.encode_name for field in msgspec.structs.fields(topology_nodes.Counters)
)
"""The names of interface counters in ``Metric``."""

MAX_COUNTER: Final = 2**63 - 1
"""The maximum of Skydive's counters."""

EDGE: Final[Shape] = {
    **dict.fromkeys(("ID", "Parent", "Child"), str),
    "Metadata": {"RelationType": str},
    "UpdatedAt": int,
    "DeletedAt": object,
}
"""The edge fields that skyfast reads."""


def empty_like(value: object) -> object:
    """Return an empty value with the type of ``value``, so that a copy still shows a wrong type."""
    match value:
        case None | bool():
            return value
        case float():
            return 0.5
        case _:
            return type(value)()


def rewriter(
    shape: Shape, rewrite_field: Callable[[Path, type], Rewrite], path: Path = ()
) -> Rewrite:
    """Return a function that copies the fields of ``shape`` from a decoded object.

    ``rewrite_field`` is called once for each field, and returns a function that rewrites the values
    of this field. The returned function must accept values of any type. If a value should be an
    object, but has another type, the copy contains an empty value of that type.
    """
    fields: dict[str, Rewrite] = {}
    for key, kind in shape.items():
        inner = (*path, key)
        fields[key] = (
            rewriter(kind, rewrite_field, inner)
            if isinstance(kind, dict)
            else rewrite_field(inner, kind)
        )

    def rewrite(value: object) -> object:
        if not isinstance(value, dict):
            return empty_like(value)
        return {key: _each(fields[key], inner) for key, inner in value.items() if key in fields}

    return rewrite


def _each(rewrite: Rewrite, value: object) -> object:
    if not isinstance(value, list):
        return rewrite(value)
    return [empty_like(inner) if isinstance(inner, list) else rewrite(inner) for inner in value]


def _unchanged(_: Path, kind: type) -> Rewrite:
    if kind is dict:
        return _labels
    return lambda value: empty_like(value) if isinstance(value, dict) else value


def _labels(value: object, depth: int = 0) -> object:
    match value:
        case dict() if depth < MAX_LABEL_DEPTH:
            return {key: _labels(inner, depth + 1) for key, inner in value.items()}
        case dict() | list():
            return empty_like(value)
        case _:
            return value if depth else empty_like(value)


_reduce_node: Final = rewriter(NODE, _unchanged)
_reduce_edge: Final = rewriter(EDGE, _unchanged)


class Update(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """A change of the topology. In a file, nodes and edges can be JSON values of any type."""

    nodes: list[msgspec.Raw] = msgspec.field(default_factory=list)
    """New and changed nodes."""
    edges: list[msgspec.Raw] = msgspec.field(default_factory=list)
    """New and changed edges."""
    removed: list[str] = msgspec.field(default_factory=list)
    """The IDs of removed nodes and edges."""


decode_update: Final = msgspec.json.Decoder(Update).decode


class ObservedResponse:
    """The elements of a response, reduced to the fields that skyfast reads.

    A `TopologyClient` calls `add` for each element, and then `end`. ``len()`` returns the number of
    bytes of the elements.
    """

    def __init__(self, query: Query, done: Callable[["ObservedResponse"], object]) -> None:
        self.query = query
        self.elements: list[tuple[str, bytes, int | None]] = []
        """For each element: the ID, the JSON text without ``UpdatedAt``, and the value of
        ``UpdatedAt``."""
        self.left_out = 0
        """Number of elements that are invalid, have no ID, or are beyond `MAX_ELEMENTS`."""
        self._done = done
        self._reduce = _reduce_edge if query.edges else _reduce_node
        self._bytes = 0

    def __len__(self) -> int:
        return self._bytes

    def add(self, element: bytes) -> None:
        """Keep the recorded fields of a node or edge, or count the element in ``left_out``."""
        value = decode_element(element)
        if not isinstance(value, dict) or len(self.elements) >= MAX_ELEMENTS:
            self.left_out += 1
            return
        kept = self._reduce(value)
        element_id = value.get("ID")
        if not isinstance(kept, dict) or not isinstance(element_id, str) or not element_id:
            self.left_out += 1
            return
        updated_ms = kept.pop("UpdatedAt", None)
        text = msgspec.json.encode(kept)
        self._bytes += len(text)
        self.elements.append(
            (element_id, text, updated_ms if isinstance(updated_ms, int) else None)
        )

    def end(self) -> None:
        self._done(self)


def decode_element(element: bytes) -> object:
    """Decode a node or edge, with invalid strings replaced; return None for invalid JSON."""
    try:
        return msgspec.json.decode(element)
    except UNDECODABLE:
        try:
            return msgspec.json.decode(topology_nodes.readable(bytes(element)))
        except (*UNDECODABLE, topology_nodes.MalformedResponseError):
            return None


class ResponseChanges:
    """Finds the changes of the topology: compares each response with the topology known so far.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self.left_out = 0
        """Number of elements that are invalid, have no ID, or are beyond `MAX_ELEMENTS`."""
        self._known: dict[str, int] = {}
        self._ids_by_query: dict[Query, set[str]] = {query: set() for query in _COMPLETE}

    def of(self, response: ObservedResponse) -> Iterator[Update]:
        known, query = self._known, response.query
        self.left_out += response.left_out
        changed: list[msgspec.Raw] = []
        changed_bytes = 0
        for element_id, text, updated_ms in response.elements:
            version = hash(text)
            before = known.get(element_id)
            if before == version:
                continue
            if before is None and len(known) >= MAX_ELEMENTS:
                self.left_out += 1
                continue
            known[element_id] = version
            if query not in self._ids_by_query:
                self._add_to_complete(query, element_id, text)
            full = text if updated_ms is None else b'%b,"UpdatedAt":%d}' % (text[:-1], updated_ms)
            changed.append(msgspec.Raw(full))
            changed_bytes += len(full)
            if changed_bytes > UPDATE_BYTES:
                yield _update(query, changed, [])
                changed, changed_bytes = [], 0
        removed = self._removed(response)
        if changed or removed:
            yield _update(query, changed, removed)

    def _removed(self, response: ObservedResponse) -> list[str]:
        if response.query not in self._ids_by_query:
            return []
        ids = {element_id for element_id, _, _ in response.elements}
        before, self._ids_by_query[response.query] = self._ids_by_query[response.query], ids
        return [gone for gone in before - ids if self._known.pop(gone, None) is not None]

    def _add_to_complete(self, query: Query, element_id: str, text: bytes) -> None:
        """Add the ID to the known IDs of all queries in `_COMPLETE` that match the element."""
        element = msgspec.json.decode(text)
        for complete, ids in self._ids_by_query.items():
            if complete.edges == query.edges and complete.matches(element):
                ids.add(element_id)


def _update(query: Query, changed: list[msgspec.Raw], removed: list[str]) -> Update:
    return Update(
        nodes=[] if query.edges else changed,
        edges=changed if query.edges else [],
        removed=removed,
    )


class ReplayedTopology:
    """The nodes and edges at one time of a recording.

    Interface counters grow in every loop: from the second loop on, the growth in all previous loops
    is added to the recorded values.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, bytes] = {}
        self._edges: dict[str, bytes] = {}
        self._seen: dict[str, bytes] = {}
        """The latest version of each node in this loop, including removed nodes."""
        self._previous: dict[str, bytes] = {}
        """For each node that has not appeared in this loop yet, its last version in earlier
        loops."""
        self._offsets: dict[str, dict[str, int]] = {}

    def rewind(self) -> None:
        """Prepare for the next loop. Keep all elements until updates replace or remove them."""
        self._previous |= self._seen
        self._seen = {}

    def offsets(self) -> dict[str, dict[str, int]]:
        """Return the numbers to add to the recorded counters of each node, by node ID."""
        return self._offsets.copy()

    def apply(self, update: Update) -> None:
        for removed in update.removed:
            self._nodes.pop(removed, None)
            self._edges.pop(removed, None)
        for elements, added in ((self._nodes, update.nodes), (self._edges, update.edges)):
            for raw in added:
                text = bytes(raw)  # a copy, because `raw` would keep the whole update in memory
                match decode_element(text):
                    case {"ID": str(element_id)} as node:
                        elements[element_id] = text
                        if elements is self._nodes:
                            self._continue_counters(element_id, node)
                            self._seen[element_id] = text

    def _continue_counters(self, node_id: str, node: object) -> None:
        """Set offsets that make the node's counters continue from their values in earlier loops."""
        previous = self._previous.pop(node_id, None)
        if previous is None:
            return
        last, first = _counters(decode_element(previous)), _counters(node)
        growth = {
            name: total - first.get(name, 0)
            for name, total in last.items()
            if total > first.get(name, 0)
        }
        if growth:
            before = self._offsets.get(node_id, {})
            self._offsets[node_id] = before | {
                name: min(before.get(name, 0) + added, MAX_COUNTER)
                for name, added in growth.items()
            }

    def elements(self, query: Query) -> list[bytes]:
        return list((self._edges if query.edges else self._nodes).values())


def _counters(node: object) -> dict[str, int]:
    """Return the counters of a node, by name. Counters that are 0 can be missing."""
    match node:
        case {"Metadata": {"Metric": dict() as metric}}:
            return {name: metric[name] for name in COUNTERS if isinstance(metric.get(name), int)}
        case _:
            return {}


def add_to_counters(node: dict[str, Any], offsets: Mapping[str, int]) -> None:
    """Add ``offsets`` to the counters of a node, in place."""
    match node:
        case {"Metadata": {"Metric": dict() as metric}}:
            for name, offset in offsets.items():
                total = metric.get(name, 0)
                if isinstance(total, int):
                    metric[name] = min(total + offset, MAX_COUNTER)
        case _:
            pass


def selected(
    elements: Iterable[bytes], query: Query, present: Callable[[dict[str, Any]], object]
) -> bytes:
    """Return the response to ``query``: a JSON list of the matching ``elements``.

    Before an element is compared with ``query``, ``present`` changes the times and counters of the
    element in place.
    """
    chosen = []
    for text in elements:
        element = decode_element(text)
        if isinstance(element, dict):
            present(element)
            if query.matches(element):
                chosen.append(element)
    return msgspec.json.encode(chosen)
