import json
import re

import pytest

from skyfast.skydive import topology_queries as queries
from skyfast.skydive.topology_queries import MAX_VALUES, Query, parse

CONSTANTS = (
    queries.INTERFACES,
    queries.NAMED_INTERFACES,
    queries.NAMESPACES,
    queries.KUBERNETES,
    queries.EDGES,
    queries.KUBERNETES_EDGES,
    queries.PODS,
)
CHANGING = CONSTANTS[2:]


def node(kind="", **metadata):
    return {"ID": "n", "Metadata": {"Type": kind, **metadata}, "UpdatedAt": 1000}


def edge(relation, child="c", updated_at=1000):
    return {
        "ID": "e",
        "Parent": "p",
        "Child": child,
        "Metadata": {"RelationType": relation},
        "UpdatedAt": updated_at,
    }


def every_query():
    yield from CONSTANTS
    for query in CHANGING:
        yield queries.changes(query, 1795904753633)
    yield queries.by_pod_address(["10.0.0.1", "fd00::1"])
    yield queries.by_child(["a-1", "b-2"])


def test_the_query_for_interfaces_is_that_of_the_go_connector():
    assert queries.INTERFACES.gremlin == "G.V().Has('EncapType', 'ether')"


@pytest.mark.parametrize("query", list(every_query()), ids=lambda query: query.gremlin[:70])
def test_each_query_is_parsed(query):
    parsed = parse(query.gremlin)
    assert parsed == query
    assert parsed.edges == query.gremlin.startswith("G.E()")
    for element in (node("pod"), edge("service"), {}, {"Metadata": 1}, {"Metadata": {"Type": []}}):
        assert parsed.matches(element) == query.matches(element)


@pytest.mark.parametrize("query", list(every_query()), ids=lambda query: query.gremlin[:70])
def test_each_query_fits_the_grammar_of_skydive(query):
    """The pattern is a part of the grammar in Skydive's ``traversal_parser.go``."""
    value = r"(?:'[^'\"]*'|\d+|(?:Within|Ne|Gt)\((?:'[^'\"]*'|\d+)(?:, (?:'[^'\"]*'|\d+))*\))"
    step = rf"\.(?:Has|HasEither)\({value}(?:, {value})*\)"
    assert re.fullmatch(rf"G\.[VE]\(\){step}", query.gremlin)
    # Skydive rejects an odd number of parameters.
    flat = re.sub(r"(Within|Ne|Gt)\([^)]*\)", "x", query.gremlin.partition(").")[2])
    assert flat.count(",") % 2 == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "G.V()",
        "G.V().Has('EncapType','ether')",
        "G.V().Has('EncapType', 'ether', '@UpdatedAt', Gt(1))",
        "G.V().Has('Type', Within('pods'))",
        "G.V().Has('Type', 'pod', 'K8s.IP', Within())",
        "G.V().Has('Type', 'pod', 'K8s.IP', Within('10.0.0.1 '))",
        "G.V().Has('Type', 'pod', 'K8s.IP', Within('10.0.0.1')).Limit(1)",
        f"{queries.NAMESPACES.gremlin[:-1]}, '@UpdatedAt', Gt(-1))",
    ],
)
def test_queries_that_skyfast_does_not_send_are_not_parsed(text):
    assert parse(text) is None


def test_queries_with_too_many_values_are_not_parsed():
    def text(count):
        addresses = ", ".join(f"'10.0.{n // 256}.{n % 256}'" for n in range(count))
        return f"G.V().Has('Type', 'pod', 'K8s.IP', Within({addresses}))"

    assert parse(text(MAX_VALUES)).gremlin == text(MAX_VALUES)
    assert parse(text(MAX_VALUES + 1)) is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (queries.INTERFACES, {"ether"}),
        (queries.NAMED_INTERFACES, {"ether", "loopback", "ovsport", "ovsbridge"}),
        (queries.NAMESPACES, {"host", "netns", "container"}),
        (queries.KUBERNETES, {"pod", "service", "replicaset"}),
    ],
)
def test_query_matches_the_right_nodes(query, expected):
    nodes = {
        "ether": node("device", EncapType="ether"),
        "loopback": node("device", EncapType="loopback"),
        "no encapsulation": node("device", EncapType=""),
        "not a device": node("device"),
        "ovsport": node("ovsport"),
        "ovsbridge": node("ovsbridge"),
        "host": node("host"),
        "netns": node("netns"),
        "container": node("container"),
        "pod": node("pod"),
        "service": node("service"),
        "replicaset": node("replicaset"),
        "endpoints": node("endpoints"),
        "no type": {"ID": "n", "Metadata": {}},
        "null": {"ID": "n", "Metadata": None},
    }
    assert {name for name, element in nodes.items() if query.matches(element)} == expected


@pytest.mark.parametrize(
    ("query", "element", "expected"),
    [
        (queries.INTERFACES, node(EncapType=["gre", "ether"]), True),
        (queries.INTERFACES, node(EncapType=["gre", 1, None]), False),
        (queries.INTERFACES, node(EncapType=[["ether"]]), False),
        (queries.PODS, node(["netns", "pod"]), True),
        (queries.NAMED_INTERFACES, node(EncapType=None), True),
        (queries.NAMED_INTERFACES, node(EncapType=0), True),
        (queries.NAMED_INTERFACES, node(EncapType=[]), True),
        (queries.NAMED_INTERFACES, node(EncapType=["", "ether"]), False),
        (queries.NAMED_INTERFACES, node(["x", "ovsport"], EncapType=""), True),
        (queries.by_pod_address(["10.0.0.1"]), node("pod", K8s={"IP": ["x", "10.0.0.1"]}), True),
        (queries.by_pod_address(["10.0.0.1"]), node("pod", K8s=[{}, {"IP": "10.0.0.1"}]), True),
        (queries.by_pod_address(["10.0.0.1"]), node("pod", K8s=[{"IP": ["10.0.0.1"]}]), False),
        (queries.by_pod_address(["10.0.0.1"]), node("pod", K8s=["10.0.0.1"]), False),
        (queries.by_pod_address(["10.0.0.1"]), node("pod", **{"K8s.IP": "10.0.0.1"}), False),
        (queries.EDGES, edge(["ownership"]), False),
        (queries.by_child(["c"]), edge(["service"]), False),
    ],
)
def test_query_matches_values_of_other_types_as_in_skydive_0_28(query, element, expected):
    """Skydive 0.28 returned the expected result for a graph that contains this element."""
    assert query.matches(element) is expected


def test_query_matches_the_right_edges():
    relations = ["ownership", "layer2", "container", "service", "node", "networkpolicy", 1, None]
    for query, expected in (
        (queries.EDGES, ["ownership", "layer2"]),
        (queries.KUBERNETES_EDGES, ["container", "service", "node"]),
    ):
        assert [name for name in relations if query.matches(edge(name))] == expected


def test_query_for_changes_matches_only_newer_elements():
    query = queries.changes(queries.EDGES, 1000)
    assert not query.matches(edge("ownership", updated_at=1000))
    assert query.matches(edge("ownership", updated_at=1001))
    assert not query.matches(edge("service", updated_at=1001))
    assert not query.matches(edge("ownership", updated_at=None))
    with pytest.raises(ValueError, match="changes cannot be queried"):
        queries.changes(queries.INTERFACES, 1)


def test_query_by_pod_address_matches_only_pods_with_these_addresses():
    query = queries.by_pod_address(["10.0.0.1", "10.0.0.1", "fd00::1"])
    assert query.gremlin == "G.V().Has('Type', 'pod', 'K8s.IP', Within('10.0.0.1', 'fd00::1'))"
    assert query.matches(node("pod", K8s={"IP": "fd00::1"}))
    assert not query.matches(node("pod", K8s={"IP": "fd00::2"}))
    assert not query.matches(node("endpoints", K8s={"IP": "fd00::1"}))
    assert not query.matches(node("pod", K8s="fd00::1"))


def test_query_by_child_matches_only_edges_to_these_nodes():
    query = queries.by_child(["a", "b"])
    assert query.edges
    assert query.matches(edge("service", "a"))
    assert not query.matches(edge("service", "c"))
    assert not query.matches(edge("ownership", "a"))


@pytest.mark.parametrize("make", [queries.by_pod_address, queries.by_child])
def test_values_cannot_change_the_query(make):
    assert make([]) is None
    assert make(["x'), Has('y", 'a"b', "a b", "", "é", "x" * 257]) is None
    assert make(["x'", "a"]) == make(["a"])
    with pytest.raises(ValueError, match="at most 500"):
        make(f"x{n}" for n in range(MAX_VALUES + 1))


def test_queries_with_equal_arguments_are_equal():
    assert queries.by_child(["a"]) == queries.by_child(["a"])
    assert isinstance(queries.INTERFACES, Query)


def test_the_queries_find_all_used_nodes_of_a_recorded_topology(topology_graph):
    nodes, edges = topology_graph
    kinds = {
        element["Metadata"]["Type"]
        for element in nodes
        if any(query.matches(element) for query in CONSTANTS if not query.edges)
    }
    every = {element["Metadata"]["Type"] for element in nodes}
    assert every - kinds == {"endpoints", "namespace", "cluster"}
    assert all(
        any(query.matches(element) for query in CONSTANTS if query.edges) for element in edges
    )


@pytest.fixture
def topology_graph():
    from tests.support.paths import DATA

    graph = json.loads((DATA / "topology-containers" / "graph.json").read_bytes())
    graph = graph[0] if isinstance(graph, list) else graph
    return graph["Nodes"], graph["Edges"]
