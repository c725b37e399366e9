"""The topology in recordings: a replay answers queries as the analyzer did."""

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from skyfast.replay.topology import (
    NODE,
    ObservedResponse,
    ReplayedTopology,
    ResponseChanges,
    Update,
    add_to_counters,
    selected,
)
from skyfast.skydive.topology_queries import (
    EDGES,
    KUBERNETES,
    KUBERNETES_EDGES,
    NAMED_INTERFACES,
    NAMESPACES,
    Query,
    changes,
)

COMPLETE = (NAMED_INTERFACES, NAMESPACES, KUBERNETES, EDGES, KUBERNETES_EDGES)
TYPES = ("veth", "netns", "pod", "other")
RELATIONS = ("ownership", "service", "other")

nodes = st.fixed_dictionaries(
    {"Type": st.sampled_from(TYPES), "Name": st.sampled_from(("a", "b"))},
    optional={"EncapType": st.sampled_from(("ether", ""))},
)
graphs = st.fixed_dictionaries(
    {
        "Nodes": st.dictionaries(st.sampled_from("12345"), nodes),
        "Edges": st.dictionaries(st.sampled_from("6789"), st.sampled_from(RELATIONS)),
    }
)


def elements(graph: dict[str, Any], query: Query, time: int) -> list[dict[str, Any]]:
    if query.edges:
        found = [
            {"ID": key, "Parent": "1", "Child": "2", "Metadata": {"RelationType": relation}}
            for key, relation in graph["Edges"].items()
        ]
    else:
        found = [{"ID": key, "Metadata": metadata} for key, metadata in graph["Nodes"].items()]
    return [each for each in found if query.matches(each | {"UpdatedAt": time})]


def answer(query: Query, found: list[dict[str, Any]], time: int) -> ObservedResponse:
    result = ObservedResponse(query, lambda _: None)
    for element in found:
        result.add(json.dumps(element | {"UpdatedAt": time, "Revision": time}).encode())
    result.end()
    return result


def answered(topology: ReplayedTopology, query: Query) -> dict[str, Any]:
    """Map the ID of each element in a response to the element without its time."""
    response = json.loads(selected(topology.elements(query), query, lambda _: None))
    assert all(element.pop("UpdatedAt") for element in response)
    return {element["ID"]: element for element in response}


@given(st.lists(graphs, min_size=1, max_size=4), st.data())
def test_replayed_responses_equal_the_recorded_responses(
    history: list[dict[str, Any]], data: st.DataObject
) -> None:
    """An unchanged topology causes no update."""
    recorded, topology = ResponseChanges(), ReplayedTopology()

    def record(query: Query, found: list[dict[str, Any]], time: int) -> int:
        updates = list(recorded.of(answer(query, found, time)))
        for update in updates:
            topology.apply(update)
        return len(updates)

    for time, graph in enumerate(history, 1):
        for query in data.draw(st.lists(st.sampled_from((NAMESPACES, KUBERNETES)))):
            partial = changes(query, 0)
            found = elements(graph, partial, time)
            record(partial, found, time)
        # If the type of a node changes, the node moves from one response to another, so record all
        # responses twice.
        for _ in range(2):
            for query in COMPLETE:
                record(query, elements(graph, query, time), time)
        for query in COMPLETE:
            found = elements(graph, query, time)
            assert answered(topology, query) == {element["ID"]: element for element in found}
            assert record(query, found, time + 100) == 0


def test_all_fields_that_skyfast_reads_are_recorded() -> None:
    def filled(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {key: filled(inner) for key, inner in shape.items()}
        return {str: "x", int: 7, bool: True, dict: {"a": {"b": "c"}}, object: 7}[shape]

    node = filled(NODE)
    (update,) = ResponseChanges().of(answer(KUBERNETES, [node], 7))
    (raw,) = update.nodes
    assert json.loads(bytes(raw)) == node


def test_update_is_encoded_as_json() -> None:
    (update,) = ResponseChanges().of(answer(EDGES, [{"ID": "1", "Parent": "2"}], 7))
    text = msgspec.json.encode(update)
    assert text == b'{"Edges":[{"ID":"1","Parent":"2","UpdatedAt":7}]}'


def node(node_id: str, **metric: object) -> bytes:
    return json.dumps({"ID": node_id, "Metadata": {"Metric": metric}}).encode()


def apply(topology: ReplayedTopology, *nodes: bytes, removed: tuple[str, ...] = ()) -> None:
    topology.apply(Update(nodes=[msgspec.Raw(text) for text in nodes], removed=[*removed]))


def test_counters_continue_in_each_loop() -> None:
    topology = ReplayedTopology()
    offsets = []
    for _ in range(3):
        apply(topology, node("a", RxBytes=100, TxBytes=7), node("b", RxBytes=5, TxBytes="x"))
        offsets.append(topology.offsets())
        apply(topology, node("a", RxBytes=110, TxBytes=3, RxErrors=2, Other=9), node("b"))
        assert topology.offsets() == offsets[-1]  # only `rewind` changes offsets
        topology.rewind()
    assert offsets == [
        {},
        {"a": {"RxBytes": 10, "RxErrors": 2}},
        {"a": {"RxBytes": 20, "RxErrors": 4}},
    ]


def test_counters_of_removed_nodes_continue_in_the_next_loop() -> None:
    topology = ReplayedTopology()
    for loop in range(3):
        apply(topology, node("a", RxBytes=1))
        assert topology.offsets() == ({"a": {"RxBytes": 8 * loop}} if loop else {})
        apply(topology, node("a", RxBytes=9))
        apply(topology, removed=("a",))
        topology.rewind()
        apply(topology, b"[]", node("b"))


def test_offsets_are_added_to_valid_counters_only() -> None:
    for content, expected in (
        (node("a", RxBytes=1, TxBytes=None), {"RxBytes": 3, "TxBytes": None, "RxErrors": 4}),
        (node("a", RxBytes=2**63 - 1), {"RxBytes": 2**63 - 1, "TxBytes": 3, "RxErrors": 4}),
        (b'{"Metadata": {"Metric": []}}', []),
    ):
        element = json.loads(content)
        add_to_counters(element, {"RxBytes": 2, "TxBytes": 3, "RxErrors": 4})
        assert element["Metadata"]["Metric"] == expected
    element = {"Metadata": 1}
    add_to_counters(element, {"RxBytes": 2})
    assert element == {"Metadata": 1}


def test_offsets_of_counters_are_bounded() -> None:
    topology = ReplayedTopology()
    for _ in range(3):
        apply(topology, node("a"))
        apply(topology, node("a", RxBytes=2**63 - 1))
        topology.rewind()
    apply(topology, node("a"))
    assert topology.offsets() == {"a": {"RxBytes": 2**63 - 1}}
