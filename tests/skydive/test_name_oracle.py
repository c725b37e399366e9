"""Compares `skyfast.skydive.name_resolver` with a slow, plain resolver on random topologies."""

import ast
import json
import os
import random

import pytest
from hypothesis import HealthCheck, currently_in_test_context, event, given, settings
from hypothesis import strategies as st

from skyfast.skydive import topology_graph
from skyfast.skydive.name_candidates import choose
from skyfast.skydive.name_resolver import Resolution, resolve
from skyfast.skydive.topology_graph import Graph
from tests.support import topology_graphs
from tests.support.name_oracle import Json, NameOracle, distinct, only_names
from tests.support.paths import CONTAINER_TOPOLOGY

K8S_LABELS = topology_graphs.LABEL_KEYS

slow_generation = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
IS_THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
compared = settings(slow_generation, max_examples=20_000 if IS_THOROUGH else 400)


def recorded_graph() -> Json:
    (graph,) = json.loads((CONTAINER_TOPOLOGY / "graph.json").read_text())
    return graph


def decoded(graph: Json) -> Graph:
    nodes = [topology_graph.decode_node(json.dumps(node).encode()) for node in graph["Nodes"]]
    edges = [topology_graph.decode_edge(json.dumps(edge).encode()) for edge in graph["Edges"]]
    return Graph([node for node in nodes if node], [edge for edge in edges if edge])


def expected_names() -> list[tuple[str, Json]]:
    """Return each address of the recorded topology with its expected names."""
    lines = (CONTAINER_TOPOLOGY / "expected-names.txt").read_text().splitlines()
    pairs = (line.removeprefix("pod ").removeprefix("svc ").partition(" ") for line in lines)
    return [(address, ast.literal_eval(expected)) for address, _, expected in pairs]


@pytest.mark.parametrize(("address", "expected"), expected_names())
def test_oracle_finds_the_names_of_recorded_addresses(address: str, expected: Json) -> None:
    oracle = NameOracle(recorded_graph())
    ((names, _, host, _),) = oracle.candidates(address)
    name, _, namespace, pod, workload, kind, container, service = names
    if "pods" in expected:
        assert f"{namespace}/{service}" == name == expected["service"]
        return
    # The host's address is not named after the pod that uses the host's network.
    known = expected if address != "192.0.2.2" else {}
    assert f"{namespace}/{pod}".strip("/") == known.get("pod", "")
    assert f"{kind}/{workload}".strip("/") == known.get("owner", "")
    assert service == "".join(known.get("service", []))
    if "netns" in expected:
        ((netns, _, _),) = oracle.locations(address)
        assert oracle.netns_name(netns) == expected["netns"]
        shown = [name for name in expected["containers"] if not name.startswith("k8s_POD_")]
        assert bool(container) == (len(shown) == 1)
    if "host" in expected:
        assert host == expected["host"]


def assert_equal_results(graph: Json) -> None:
    oracle = NameOracle(graph, K8S_LABELS)
    resolution = resolve(decoded(graph), k8s_labels=K8S_LABELS)
    points = oracle.capture_points()
    assert resolution.nodes == oracle.nodes_by_tid()
    assert {
        tid: (point.namespace, point.peers, point.host, point.cluster)
        for tid, point in resolution.points.items()
    } == {tid: oracle.capture_point(node) for tid, node in points.items()}
    found = {
        address: sorted((c.names, c.namespace, c.host, c.cluster) for c in candidates)
        for address, candidates in resolution.addresses.items()
    }
    addresses = oracle.addresses()
    assert found == {address: sorted(oracle.candidates(address)) for address in addresses}
    assert {host: set(networks) for host, networks in resolution.networks.items()} == {
        host: networks for host in oracle.hosts() if (networks := set(oracle.networks(host)))
    }
    for address in addresses:
        if only_names(oracle.candidates(address)) is None:
            for tid in [*points, "unknown"]:
                for other in [*addresses, "203.0.113.1", ""]:
                    names = oracle.choose(address, other, tid)
                    assert chosen(resolution, address, other, tid) == names
    if currently_in_test_context():
        for rule in reached_rules(oracle):
            event(rule)


def chosen(resolution: Resolution, address: str, other: str, tid: str) -> tuple[str, ...] | None:
    point = resolution.points.get(tid)
    candidates = resolution.addresses[address]
    return choose(candidates, other, point, resolution.networks, address=address)


def reached_rules(oracle: NameOracle) -> set[str]:
    """Return the rules that apply to a graph, for the statistics of Hypothesis."""
    rules = set()
    for namespace in oracle.all("netns"):
        if oracle.is_uncertain(namespace):
            rules.add("uncertain namespace")
        elif oracle.pod(namespace) is not None:
            linked = bool(oracle.linked_pods(namespace))
            rules.add("pod by edges" if linked else "pod by the name in labels")
        elif oracle.unmatched_pair(namespace):
            rules.add("pod without node")
    for address in oracle.addresses():
        if only_names(oracle.candidates(address)) is None:
            rules.add("ambiguous address")
        locations = oracle.locations(address)
        if any(machine is not None for *_, machine in locations):
            rules.add("virtual machine")
        for pod in oracle.pods_with(address):
            alone = len(locations) == 1
            if any(oracle.may_be_at(pod, location, alone=alone) for location in locations):
                rules.add("pod assumed at an interface")
    for pod in oracle.all("pod"):
        if oracle.linked_hosts(pod):
            rules.add("agent of a pod" if oracle.agent(pod) else "uncertain agent of a pod")
        if oracle.service(pod):
            rules.add("service of a pod")
        if kind := oracle.workload(pod)[0]:
            rules.add(f"workload of kind {kind}")
    return rules


def test_resolver_equals_the_oracle_on_the_recorded_topology() -> None:
    assert_equal_results(recorded_graph())


@compared
@given(topology_graphs.graphs())
def test_resolver_equals_the_oracle_on_random_topologies(graph: Json) -> None:
    assert_equal_results(graph)


@compared
@given(topology_graphs.graphs(broken=True))
def test_resolver_equals_the_oracle_on_values_of_wrong_types(graph: Json) -> None:
    assert_equal_results(graph)


@slow_generation
@given(topology_graphs.graphs(broken=True), st.integers(0, 2**32))
def test_the_order_of_nodes_and_edges_does_not_matter(graph: Json, seed: int) -> None:
    order = random.Random(seed)
    shuffled = {key: order.sample(graph[key], len(graph[key])) for key in ("Nodes", "Edges")}
    resolution = resolve(decoded(graph), k8s_labels=K8S_LABELS)
    assert resolve(decoded(shuffled), k8s_labels=K8S_LABELS) == resolution


@slow_generation
@given(topology_graphs.graphs(disorder=False))
def test_pods_in_labels_are_the_same_with_and_without_the_kubernetes_probe(graph: Json) -> None:
    """Without the nodes of the probe, fewer pods are known, but none has a different name."""
    agents = [node for node in graph["Nodes"] if node["Metadata"].get("Manager") != "k8s"]
    full = resolve(decoded(graph))
    less = resolve(decoded({**graph, "Nodes": agents}))
    for tid, names in less.nodes.items():
        assert_equal_pods({full.nodes[tid][4:6]}, {names[4:6]})
    for address, candidates in less.addresses.items():
        for namespace in distinct(c.namespace for c in candidates if c.namespace):
            assert_equal_pods(pods_at(full, address, namespace), pods_at(less, address, namespace))


def pods_at(resolution: Resolution, address: str, namespace: str) -> set[tuple[str, ...]]:
    candidates = resolution.addresses[address]
    return {c.names[2:4] for c in candidates if c.namespace == namespace}


def assert_equal_pods(pods: set[tuple[str, ...]], others: set[tuple[str, ...]]) -> None:
    """Assert that both sets have the same known pods, unless one of them has none."""
    known, other_known = ({pair for pair in pairs if pair[1]} for pairs in (pods, others))
    if known and other_known:
        event("pods are known with the probe and without")
        assert known == other_known
