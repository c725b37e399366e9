"""The nodes and edges that determine names, and how responses change them."""

import gc
import json

import pytest

from skyfast.skydive import topology_store
from skyfast.skydive.topology_nodes import MalformedResponseError
from skyfast.skydive.topology_queries import EDGES, KUBERNETES, KUBERNETES_EDGES, NAMESPACES
from skyfast.skydive.topology_store import GraphReader, TopologyStore


def node(node_id="n", *, name="x", updated_at=1, kind="netns", host="h", **metadata):
    return {
        "ID": node_id,
        "Host": host,
        "UpdatedAt": updated_at,
        "Metadata": {"Name": name, "Type": kind, **metadata},
    }


def edge(parent="p", child="c", relation="ownership"):
    return {"Parent": parent, "Child": child, "Metadata": {"RelationType": relation}}


def read(query, *elements, store=None):
    reader = GraphReader(query) if store is None else store.reader(query)
    for element in elements:
        reader.add(element if isinstance(element, bytes) else json.dumps(element).encode())
    return reader


def names(store):
    return sorted(node.metadata.name for node in store.graph().nodes)


@pytest.fixture
def store():
    return TopologyStore()


# One response.


@pytest.mark.parametrize("order", [1, -1])
def test_the_latest_of_two_nodes_with_the_same_id_is_kept(store, order):
    two = [node(name="old", updated_at=1), node(name="new", updated_at=2)][::order]
    reader = read(NAMESPACES, *two)
    assert reader.skipped == {"duplicate_id": 1}
    assert reader.newest_ms == 2
    store.replace(NAMESPACES, reader)
    assert names(store) == ["new"]


def test_nodes_without_id_are_all_kept(store):
    store.replace(NAMESPACES, read(NAMESPACES, node("", name="a"), node(None, name="b")))
    assert names(store) == ["a", "b"]


def test_equal_edges_are_stored_once(store):
    store.replace(EDGES, read(EDGES, edge(), edge(), edge(relation="layer2"), edge(child="d")))
    assert len(store.graph().edges) == len(store) == 3


def test_unusable_elements_are_counted(store):
    reader = read(NAMESPACES, node(), b"{", b"7", {"Metadata": {"Name": 5, "Type": "netns"}})
    reader.skip(2)
    assert reader.skipped == {"malformed": 2, "wrong_type": 2, "too_long": 2}
    edges = read(EDGES, edge(), {"Parent": "p"}, {**edge(), "DeletedAt": 5})
    assert edges.skipped == {"malformed": 1, "deleted": 1}
    store.replace(NAMESPACES, reader)
    store.replace(EDGES, edges)
    assert store.graph().skipped == {"malformed": 3, "wrong_type": 2, "too_long": 2, "deleted": 1}


def test_the_number_of_elements_of_a_response_is_bounded(monkeypatch):
    monkeypatch.setattr(topology_store, "MAX_ELEMENTS", 2)
    nodes = read(NAMESPACES, node("a"), node("b"), node("c"), node("a", updated_at=2))
    assert (len(nodes.elements), nodes.skipped) == (2, {"too_many": 1, "duplicate_id": 1})
    edges = read(EDGES, edge(child="a"), edge(child="b"), edge(child="c"), edge(child="a"))
    assert (len(edges.elements), edges.skipped) == (2, {"too_many": 1})


def test_interface_metrics_are_read_from_the_same_response():
    reader = GraphReader(NAMESPACES, also_interfaces=True)
    reader.add(json.dumps(node(Metric={"RxBytes": 5})).encode())
    reader.skip(1)
    response = reader.response()
    assert [each.metadata.metric.rx_bytes for each in response.nodes] == [5]
    assert response.too_long == reader.skipped["too_long"] == 1
    with pytest.raises(MalformedResponseError):
        reader.add(b"{")
    with pytest.raises(ValueError, match="also_interfaces is false"):
        GraphReader(NAMESPACES).response()


def test_equal_strings_share_one_object():
    first, second = read(
        NAMESPACES, node("a", host="a host"), node("b", host="a host")
    ).elements.values()
    assert first.host is second.host


def test_the_garbage_collector_ignores_the_elements(store):
    for query, element in ((NAMESPACES, node()), (EDGES, edge())):
        reader = read(query, element)
        store.replace(query, reader)
        assert not gc.is_tracked(reader.elements)
        assert not gc.is_tracked(store._elements[query])


# Several responses.


def test_a_response_replaces_the_previous_response(store):
    assert not store.is_answered
    assert store.replace(NAMESPACES, read(NAMESPACES, node("a", name="a"), node("b", name="b")))
    assert store.is_answered
    before = store.graph().nodes
    nodes = (node("b", name="b", updated_at=9), node("a", name="a", updated_at=9))
    again = read(NAMESPACES, *nodes, store=store)
    assert not store.replace(NAMESPACES, again)
    # If a node is unchanged, the store keeps the old object.
    assert {id(each) for each in store.graph().nodes} == {id(each) for each in before}
    assert store.replace(NAMESPACES, read(NAMESPACES, node("a", name="a"), store=store))
    assert names(store) == ["a"]
    other = node("a", name="other")
    assert store.replace(NAMESPACES, read(NAMESPACES, other, store=store))
    assert store.replace(NAMESPACES, read(NAMESPACES, other, b"7", store=store))


def test_a_second_empty_response_is_not_a_change(store):
    assert store.replace(NAMESPACES, read(NAMESPACES))
    assert not store.replace(NAMESPACES, read(NAMESPACES))


def test_changes_are_merged_into_the_stored_elements(store, monkeypatch):
    store.replace(NAMESPACES, read(NAMESPACES, node("a", name="a"), node("b", name="b")))
    same = read(NAMESPACES, node("a", name="a", updated_at=5), store=store)
    assert store.differing(NAMESPACES, same) == []
    assert not store.merge(NAMESPACES, same)
    new = read(NAMESPACES, node("a", name="changed"), node("c", name="c"), store=store)
    assert len(store.differing(NAMESPACES, new)) == 2
    assert store.merge(NAMESPACES, new)
    assert names(store) == ["b", "c", "changed"]
    # A node without an ID is not merged, because the store may already contain this node.
    assert not store.merge(NAMESPACES, read(NAMESPACES, node(""), store=store))
    monkeypatch.setattr(topology_store, "MAX_ELEMENTS", 3)
    assert not store.merge(NAMESPACES, read(NAMESPACES, node("d"), store=store))
    assert store.graph().skipped == {"too_many": 1}


def test_changes_are_merged_before_the_first_complete_response(store):
    assert store.merge(EDGES, read(EDGES, edge()))
    assert len(store.graph().edges) == 1


# Graphs of some pods and of the nodes that determine the names of these pods.


def test_the_graph_of_some_pods_has_all_nodes_that_determine_their_names(store):
    pods = [node("p1", name="p1", kind="pod"), node("p2", name="p2", kind="pod")]
    service = node("s", name="s", kind="service")
    store.replace(KUBERNETES, read(KUBERNETES, *pods, service))
    host, netns = node("h", name="h", kind="host"), node("n", name="n")
    store.replace(NAMESPACES, read(NAMESPACES, host, netns))
    edges = [edge("s", "p1", "service"), edge("s", "p2", "service"), edge("h", "k", "node")]
    store.replace(KUBERNETES_EDGES, read(KUBERNETES_EDGES, *edges))
    store.replace(EDGES, read(EDGES, edge("h", "n")))
    new = list(read(KUBERNETES, node("p1", name="renamed", kind="pod")).elements.values())
    graph = store.graph_of(new)
    assert sorted(each.metadata.name for each in graph.nodes) == ["h", "renamed", "s"]
    assert [(each.parent, each.child) for each in graph.edges] == [("s", "p1"), ("h", "k")]
