"""The rules that give names to addresses, each on a small topology."""

import ast
import json
import random

import pytest

from skyfast.skydive import graph_index, name_resolver, workloads
from skyfast.skydive.graph_index import MAX_NAME_CHARS
from skyfast.skydive.name_candidates import Candidate, PointLocation, choose
from skyfast.skydive.name_resolver import resolve
from skyfast.skydive.topology_graph import Graph
from tests.support.paths import CONTAINER_TOPOLOGY
from tests.support.topology_scenarios import (
    ADDRESS_NAMES,
    NODE_NAMES,
    Scenario,
    owner,
    read_graph,
    shown,
)

POD = {"namespace": "shop", "pod": "web-1"}
WORKLOAD = {"name": "shop/web", "workload": "web", "workload_kind": "Deployment"}
OWNED = (owner("Deployment", "web"),)


@pytest.fixture
def topology():
    return Scenario()


# A recorded topology.


def recorded():
    (response,) = json.loads((CONTAINER_TOPOLOGY / "graph.json").read_bytes())
    return response["Nodes"], response["Edges"]


def expected_names():
    for line in (CONTAINER_TOPOLOGY / "expected-names.txt").read_text().splitlines():
        key, _, names = line.partition(" {")
        yield key, ast.literal_eval("{" + names)


def application_containers(names):
    """Return the displayed names of the containers that are not sandboxes."""
    for name in names:
        if name.startswith("k8s_"):
            name = name.split("_")[1]
        if name != "POD":
            # In the recording, the containers of the pods api and cache have IDs as names.
            yield {"a1" * 32: "api", "b2" * 32: "cache"}.get(name, name)


@pytest.mark.parametrize(
    ("key", "names"), list(expected_names()), ids=lambda value: str(value)[:20]
)
def test_every_address_of_a_recorded_topology_has_the_expected_names(key, names):
    resolution = resolve(read_graph(*recorded()))
    assert not resolution.skipped
    kind, _, address = key.rpartition(" ")
    (candidate,) = resolution.addresses[address]
    found = dict(zip(ADDRESS_NAMES, candidate.names, strict=True))
    if kind == "svc":
        assert f"{found['namespace']}/{found['service']}" == found["name"] == names["service"]
        return
    assert found["host"] == "ag1"
    if kind == "pod" and address == "192.0.2.2":
        # A host-network pod has no address.
        assert shown(candidate.names) == {"name": "ag1", "host": "ag1"}
        return
    assert f"{found['namespace']}/{found['pod']}" == names.get("pod", "/")
    assert f"{found['workload_kind']}/{found['workload']}" == names.get("owner", "/")
    assert found["service"] == ",".join(names.get("service", []))
    if kind != "pod":
        containers = list(application_containers(names.get("containers", ())))
        assert found["container"] == (containers[0] if len(containers) == 1 else "")
        netns = resolution.nodes[tid_of(address)][NODE_NAMES.index("netns")]
        assert netns == names.get("netns", "")


def tid_of(address):
    (tid,) = (
        node["Metadata"]["TID"]
        for node in recorded()[0]
        if any(text.split("/")[0] == address for text in node["Metadata"].get("IPV4") or ())
    )
    return tid


def test_the_order_of_nodes_and_edges_does_not_change_names():
    nodes, edges = recorded()
    resolution = resolve(read_graph(nodes, edges), k8s_labels=("app",))
    for seed in range(5):
        random.Random(seed).shuffle(nodes)
        random.Random(seed).shuffle(edges)
        assert resolve(read_graph(nodes, edges), k8s_labels=("app",)) == resolution


# Interfaces, hosts and network namespaces.


def test_an_address_of_a_host_is_named_after_the_host(topology):
    interface = topology.interface(topology.host(), "192.0.2.1/24")
    assert topology.names("192.0.2.1") == {"name": "h1", "host": "h1"}
    assert topology.node_names(interface) == {"name": "eth0", "host": "h1", "type": "device"}


def test_an_address_in_a_namespace_is_named_after_the_namespace(topology):
    interface = topology.interface(topology.netns(topology.host(), "blue"), "10.0.0.1/24")
    assert topology.names("10.0.0.1") == {"name": "blue", "host": "h1"}
    assert topology.node_names(interface)["netns"] == "blue"


def test_an_interface_without_owner_has_only_its_host(topology):
    interface = topology.interface(None, "10.0.0.1/24", host="h1")
    assert topology.names("10.0.0.1") == {"name": "h1", "host": "h1"}
    assert topology.point(interface) == PointLocation("", (), "h1", "")


def test_an_interface_with_two_owners_has_no_namespace(topology):
    host = topology.host()
    first, second = topology.netns(host, "a"), topology.netns(host, "b")
    interface = topology.interface(first, "10.0.0.1/24")
    topology.edge(second, interface)
    assert topology.names("10.0.0.1") == {"name": "h1", "host": "h1"}
    assert topology.point(interface).namespace == ""
    assert topology.resolve().skipped == {"several_owners": 1}


def test_an_owner_with_two_edges_counts_once(topology):
    netns = topology.netns(topology.host(), "blue")
    interface = topology.interface(netns, "10.0.0.1/24")
    topology.edge(netns, interface)
    assert topology.names("10.0.0.1")["name"] == "blue"


def test_owners_that_form_a_cycle_are_not_a_namespace(topology):
    netns = topology.node("netns", host="h1", Name="blue")
    interface = topology.interface(netns, "10.0.0.1/24")
    topology.edge(interface, netns)
    assert topology.names("10.0.0.1") == {"name": "h1", "host": "h1"}
    assert topology.point(interface).namespace == ""
    assert topology.resolve().skipped == {"ownership_ring": 1}


def test_an_interface_that_owns_itself_has_no_namespace(topology):
    interface = topology.interface(None, "10.0.0.1/24", host="h1")
    topology.edge(interface, interface)
    assert topology.point(interface).namespace == ""


def test_ports_of_open_vswitch_have_no_namespace(topology):
    host = topology.host()
    bridge = topology.node("ovsbridge", host="h1", Name="br0")
    port = topology.node("ovsport", host="h1", Name="p0")
    topology.edge(host, bridge)
    topology.edge(bridge, port)
    assert topology.node_names(port) == {"name": "p0", "host": "h1", "type": "ovsport"}
    assert topology.point(port).namespace == ""
    assert topology.point(bridge).namespace == host["ID"]


def test_only_interfaces_are_capture_points(topology):
    host = topology.host()
    _, _, interface = topology.running_pod(host)
    topology.kubernetes_node("n1", host)
    assert list(topology.resolve().points) == [interface["Metadata"]["TID"]]


def test_an_interface_without_a_tid_is_identified_by_its_id(topology):
    interface = topology.interface(topology.host())
    del interface["Metadata"]["TID"]
    assert list(topology.resolve().nodes) == [interface["ID"]]
    del interface["ID"]
    resolution = topology.resolve()
    assert (resolution.nodes, resolution.points) == ({}, {})
    assert resolution.skipped["no_id"] == 1


def test_the_first_of_two_interfaces_with_the_same_tid_is_used(topology):
    host = topology.host()
    names = ["b", "a", "c"]
    for name in names:
        topology.interface(host, name=name, TID="t1")
    for _ in names:
        topology.nodes.append(topology.nodes.pop(1))
        assert topology.resolve().nodes["t1"][0] == "a"
    assert topology.resolve().skipped == {"duplicate_tid": 2}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        *(("10.0.0.1/24", "10.0.0.1"), ("10.0.0.1", "10.0.0.1"), ("10.0.0.1/x", "10.0.0.1")),
        *(("FE80:0:0::1/64", "fe80::1"), ("fe80::1%eth0/64", "fe80::1")),
        ("::ffff:10.0.0.1/120", "10.0.0.1"),
        *(("10.0.0", None), ("10.0.0.300/24", None), ("eth0", None), ("1" * 100_000, None)),
    ],
    ids=lambda text: str(text)[:20],
)
def test_addresses_are_written_as_in_flows(topology, text, address):
    topology.interface(topology.host(), text)
    resolution = topology.resolve()
    assert list(resolution.addresses) == ([address] if address else [])
    assert resolution.skipped.get("invalid_address", 0) == (address is None)


def test_cluster_ips_on_hosts_belong_to_services(topology):
    """In IPVS mode, kube-proxy gives the addresses of all services to an interface."""
    host = topology.host()
    topology.interface(host, "10.96.0.1/32", "10.96.0.2/32", name="kube-ipvs0", node_type="dummy")
    topology.service("web", "10.96.0.1")
    assert topology.names("10.96.0.1")["name"] == "shop/web"
    assert topology.candidates("10.96.0.2") == []


def test_the_address_of_nodelocal_dns_belongs_to_the_service(topology):
    """On each host, NodeLocal DNSCache has a link-local address and the DNS service's address."""
    dns = ("169.254.20.10/32", "10.96.0.10/32")
    for name in ("h1", "h2"):
        host = topology.host(name)
        topology.kubernetes_node(f"n-{name}", host)
        point = topology.interface(host, *dns, name="nodelocaldns", node_type="dummy")
    topology.service("kube-dns", "10.96.0.10", namespace="kube-system")
    assert topology.names("10.96.0.10")["name"] == "kube-system/kube-dns"
    assert topology.chosen("10.96.0.10", "10.0.0.1", point)["name"] == "kube-system/kube-dns"
    assert topology.chosen("169.254.20.10", "10.0.0.1", point)["name"] == "h2"


def test_an_address_of_another_service_can_belong_to_the_host(topology):
    host = topology.host()
    topology.kubernetes_node("n1", host, cluster="c1")
    topology.service("web", "10.96.0.1", cluster="c2")
    topology.service("web", "10.96.0.2")
    topology.interface(host, "10.96.0.1/32", node_type="dummy")
    topology.interface(host, "10.96.0.2/32", node_type="device")
    topology.interface(topology.netns(host), "10.96.0.2/32", node_type="dummy")
    assert len(topology.candidates("10.96.0.1")) == 2
    assert len(topology.candidates("10.96.0.2")) == 3


def test_peers_are_the_namespaces_that_contain_the_veth_peers(topology):
    host = topology.host()
    netns = topology.netns(host)
    inside = topology.interface(netns, node_type="veth")
    outside = topology.interface(host, node_type="veth")
    bridge = topology.interface(host, node_type="bridge")
    topology.edge(outside, inside, "layer2")
    topology.edge(bridge, outside, "layer2")
    assert topology.point(inside).peers == (host["ID"],)
    assert topology.point(outside).peers == (netns["ID"],)
    assert topology.point(bridge).peers == ()


def test_networks_are_the_subnets_of_all_interfaces_of_a_host(topology):
    host = topology.host()
    topology.interface(topology.netns(host), "10.2.0.7/16", "fd00::7/64")
    topology.interface(
        topology.netns(host), "10.2.0.8/16", "10.3.0.1/31", "10.4.0.1/33", "10.4.0.2/32", "10.5.0.1"
    )
    topology.interface(host, "10.1.0.1/24", "::ffff:10.7.0.1/120")
    topology.interface(topology.host("h2"), "10.6.0.1/24")
    topology.interface(None, "10.8.0.1/24", host="")
    networks = topology.resolve().networks
    assert {host: tuple(map(str, found)) for host, found in networks.items()} == {
        "h1": ("10.1.0.0/24", "10.2.0.0/16", "10.3.0.0/31", "fd00::/64"),
        "h2": ("10.6.0.0/24",),
    }


# Containers.


def test_an_address_is_named_after_the_only_container_of_its_namespace(topology):
    netns = topology.netns(topology.host(), "blue")
    interface = topology.interface(netns, "10.0.0.1/24")
    topology.container(netns, "web")
    assert topology.names("10.0.0.1") == {"name": "web", "host": "h1", "container": "web"}
    assert topology.node_names(interface)["container"] == "web"


def test_an_address_of_two_containers_is_named_after_neither(topology):
    netns = topology.netns(topology.host(), "blue")
    topology.interface(netns, "10.0.0.1/24")
    topology.container(netns, "web")
    topology.container(netns, "sidecar")
    assert topology.names("10.0.0.1") == {"name": "blue", "host": "h1"}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("x", {"io.kubernetes.docker.type": "podsandbox"}),
        ("x", {"io.kubernetes.container.name": "POD"}),
        ("x", {"io.kubernetes.cri.container-type": "sandbox"}),
        ("x", {"io.kubernetes.cri-o.ContainerType": "sandbox"}),
        ("k8s_POD_web-1_shop_uid_0", None),
    ],
)
def test_sandboxes_do_not_count_as_containers(topology, name, labels):
    netns = topology.netns(topology.host(), "blue")
    topology.interface(netns, "10.0.0.1/24")
    topology.container(netns, name, labels=labels)
    assert topology.names("10.0.0.1").get("container") is None
    topology.container(netns, "web")
    assert topology.names("10.0.0.1")["container"] == "web"


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("c1", {"io.kubernetes.container.name": "web"}, "web"),
        ("c1", {"io.kubernetes.cri.container-name": "web"}, "web"),
        ("k8s_web_web-1_shop_uid_0", None, "web"),
        ("k8s_web_web-1_shop_uid_0_a1b2", None, "web"),
        ("k8s_web_web-1", None, "k8s_web_web-1"),
        ("c1", {"app": "other"}, "c1"),
    ],
)
def test_a_container_has_its_name_from_labels_or_kubelet(topology, name, labels, expected):
    netns = topology.netns(topology.host())
    topology.interface(netns, "10.0.0.1/24")
    topology.container(netns, name, labels=labels)
    assert topology.names("10.0.0.1")["container"] == expected


def test_a_container_in_the_namespace_of_a_host_gives_no_name(topology):
    host = topology.host()
    interface = topology.interface(host, "192.0.2.1/24")
    labels = {"io.kubernetes.pod.name": "web-1", "io.kubernetes.pod.namespace": "shop"}
    topology.container(host, "web", labels=labels)
    assert topology.names("192.0.2.1") == {"name": "h1", "host": "h1"}
    assert topology.node_names(interface) == {"name": "eth0", "host": "h1", "type": "device"}


def test_a_container_with_two_owners_prevents_container_names_in_both_namespaces(topology):
    host = topology.host()
    first, second = topology.netns(host, "a"), topology.netns(host, "b")
    topology.interface(first, "10.0.0.1/24")
    topology.interface(second, "10.0.0.2/24")
    topology.container(second, "sure")
    topology.edge(second, topology.container(first, "unsure"))
    assert topology.names("10.0.0.1") == {"name": "a", "host": "h1"}
    assert topology.names("10.0.0.2") == {"name": "b", "host": "h1"}


# Pods of network namespaces.


def test_a_pod_is_found_by_its_containers(topology):
    _, _, interface = topology.running_pod(topology.host(), owners=OWNED)
    expected = {**POD, "workload": "web"}
    assert topology.node_names(interface).items() >= expected.items()
    # The pod is also found if it has no address in Kubernetes.
    topology.nodes[1]["Metadata"]["K8s"].pop("IP")
    assert topology.names("10.1.0.5").items() >= {**WORKLOAD, **POD}.items()


def test_a_pod_is_found_by_the_id_of_its_container(topology):
    _, _, interface = topology.running_pod(topology.host(), owners=OWNED)
    topology.edges = [
        edge for edge in topology.edges if edge["Metadata"]["RelationType"] != "container"
    ]
    assert topology.node_names(interface)["pod"] == "web-1"


def test_a_pod_is_found_by_its_name_in_its_container(topology):
    pod, _, interface = topology.running_pod(topology.host(), owners=OWNED)
    topology.edges = [edge for edge in topology.edges if edge["Parent"] != pod["ID"]]
    assert topology.node_names(interface)["workload"] == "web"
    topology.nodes.remove(pod)
    names = topology.node_names(interface)
    assert (names["namespace"], names["pod"], names.get("workload")) == ("shop", "web-1", None)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("c1", {"io.kubernetes.pod.name": "web-1", "io.kubernetes.pod.namespace": "shop"}),
        (
            "c1",
            {
                "io.kubernetes.cri.sandbox-name": "web-1",
                "io.kubernetes.cri.sandbox-namespace": "shop",
            },
        ),
        ("k8s_main_web-1_shop_uid_0", None),
        ("k8s_POD_web-1_shop_uid_0", {}),
    ],
)
def test_a_pod_is_found_by_the_metadata_of_runtimes(topology, name, labels):
    netns = topology.netns(topology.host(), "blue")
    interface = topology.interface(netns, "10.0.0.1/24")
    topology.container(netns, name, labels=labels)
    assert topology.names("10.0.0.1").items() >= POD.items()
    assert topology.node_names(interface).items() >= POD.items()
    topology.pod("web-1", owners=OWNED)
    assert topology.names("10.0.0.1").items() >= {**POD, **WORKLOAD}.items()


def test_container_labels_are_read_if_their_dotted_keys_are_not_nested(topology):
    netns = topology.netns(topology.host())
    topology.interface(netns, "10.0.0.1/24")
    topology.container(netns)["Metadata"]["Container"]["Labels"] = {
        "io.kubernetes.pod.name": "web-1",
        "io.kubernetes.pod.namespace": "shop",
        "io.kubernetes.container.name": "main",
    }
    assert topology.names("10.0.0.1").items() >= {**POD, "container": "main"}.items()


def test_kubernetes_takes_precedence_over_labels_and_labels_over_names(topology):
    _, netns, interface = topology.running_pod(topology.host())
    labels = {"io.kubernetes.pod.name": "web-2", "io.kubernetes.pod.namespace": "shop"}
    topology.container(netns, "k8s_main_web-3_shop_uid_0", labels=labels)
    assert topology.node_names(interface)["pod"] == "web-1"
    topology.edges = [edge for edge in topology.edges if edge["Parent"] == netns["ID"]]
    topology.nodes = [node for node in topology.nodes if node["Metadata"].get("Manager") != "k8s"]
    topology.edge(topology.nodes[0], netns)
    assert topology.node_names(interface)["pod"] == "web-2"


def test_containers_of_different_pods_identify_no_pod(topology):
    _, netns, interface = topology.running_pod(topology.host(), owners=OWNED)
    other = topology.pod("web-2", owners=OWNED)
    runtime = next(node for node in topology.nodes if "Container" in node["Metadata"])
    topology.kubernetes_container(other, runtime=runtime)
    assert "pod" not in topology.node_names(interface)
    # The network namespace has only one container, so the container's name is known.
    assert topology.node_names(interface)["container"] == "runtime-web-1-h1"
    topology.edges.pop()
    topology.kubernetes_container(other, runtime=topology.container(netns, "c2"))
    assert "pod" not in topology.node_names(interface)
    assert "container" not in topology.node_names(interface)
    assert topology.resolve().skipped == {"contradictory_pods": 1}
    # The pod has the address, but the interface may belong to the other pod, web-2.
    names = topology.candidates("10.1.0.5")
    assert {each.get("pod") for each in names} == {None, "web-1"}


@pytest.mark.parametrize("pods", [1, 20])
def test_containers_of_too_many_pods_identify_no_pod(topology, pods):
    _, netns, interface = topology.running_pod(topology.host())
    netns_pods = [topology.pod(f"other-{number}") for number in range(pods)]
    containers = [topology.kubernetes_container(pod) for pod in netns_pods]
    shared = topology.container(netns, "shared")
    for container in containers:
        topology.edge(container, shared, "container")
    assert "pod" not in topology.node_names(interface)
    topology.edges = [edge for edge in topology.edges if edge["Child"] != shared["ID"]]
    for pod in netns_pods:
        topology.edge(pod, topology.nodes[-1])
    assert topology.resolve().skipped.get("contradictory_pods") is None


def test_the_cluster_of_the_host_distinguishes_pods_with_the_same_name(topology):
    host = topology.host()
    netns = topology.netns(host)
    interface = topology.interface(netns, "10.0.0.1/24")
    topology.container(netns, "k8s_main_web-1_shop_uid_0")
    topology.pod("web-1", owners=(owner("Deployment", "web"),), cluster="c1")
    topology.pod("web-1", owners=(owner("Deployment", "other"),), cluster="c2")
    assert "workload" not in topology.node_names(interface)
    topology.kubernetes_node("n1", host, cluster="c2")
    assert topology.node_names(interface)["workload"] == "other"


def test_a_pod_with_the_name_in_labels_is_ignored_on_another_host(topology):
    """The pod in the labels can be in another cluster, which has no Kubernetes probe."""
    topology.kubernetes_node("n1", topology.host("h1"))
    topology.pod("web-1", "10.1.0.5", owners=OWNED)
    netns = topology.netns(topology.host("h2"), "blue")
    interface = topology.interface(netns, "10.1.0.5/24")
    topology.container(netns, "k8s_main_web-1_shop_uid_0")
    assert topology.node_names(interface).items() >= POD.items()
    assert "workload" not in topology.node_names(interface)
    assert topology.candidates("10.1.0.5") == [
        {"name": "main", "host": "h2", **POD, "container": "main"},
        {**WORKLOAD, **POD, "host": "h1"},
    ]


def test_pods_of_too_many_clusters_are_not_found_by_name(topology, monkeypatch):
    monkeypatch.setattr(workloads, "MAX_OF_NAME", 2)
    netns = topology.netns(topology.host(), "blue")
    interface = topology.interface(netns, "10.1.0.5/24")
    topology.container(netns, "k8s_main_web-1_shop_uid_0")
    topology.pod("web-1", owners=OWNED)
    topology.pod("web-1", status="Failed")
    assert topology.node_names(interface)["workload"] == "web"
    topology.pod("web-1", status="Failed")
    assert "workload" not in topology.node_names(interface)


def test_the_cluster_of_the_host_distinguishes_pods_of_a_container(topology):
    """The probe connects a container to the pod of this namespace and name in every cluster."""
    host = topology.host()
    _, _, interface = topology.running_pod(host, cluster="c1", owners=OWNED)
    container = topology.nodes[-1]
    other = topology.pod("web-1", cluster="c2", owners=(owner("Deployment", "other"),))
    topology.edge(other, container)
    assert "pod" not in topology.node_names(interface)
    topology.kubernetes_node("n1", host, cluster="c2")
    assert topology.node_names(interface)["workload"] == "other"
    topology.nodes[-1]["Metadata"]["ClusterName"] = "c3"
    assert "pod" not in topology.node_names(interface)


def test_the_running_pod_is_used_if_two_pods_have_the_same_name(topology):
    netns = topology.netns(topology.host())
    interface = topology.interface(netns, "10.0.0.1/24")
    topology.container(netns, "k8s_main_web-1_shop_uid_0")
    topology.pod("web-1", owners=(owner("StatefulSet", "web"),))
    topology.pod("web-1", owners=(owner("StatefulSet", "old"),), status="Failed", created_at=9)
    assert topology.node_names(interface)["workload"] == "web"


# Pods by address.


def test_a_pod_is_found_by_its_addresses(topology):
    pod = topology.pod("web-1", "10.1.0.5", "fd01::5", owners=OWNED)
    expected = {**WORKLOAD, **POD, "host": "n1"}
    assert topology.names("10.1.0.5") == topology.names("fd01::5") == expected
    pod["Metadata"]["K8s"]["IP"] = "10.1.0.6"
    assert topology.names("10.1.0.6") == expected


def test_a_pod_without_runtime_container_is_shown_with_its_only_kubernetes_container(topology):
    pod = topology.pod("web-1", "10.1.0.5")
    topology.kubernetes_container(pod, "main")
    assert topology.names("10.1.0.5")["container"] == "main"
    assert topology.names("10.1.0.5")["name"] == "main"
    topology.kubernetes_container(pod, "sidecar")
    assert "container" not in topology.names("10.1.0.5")


@pytest.mark.parametrize("status", ["Succeeded", "Failed", "Unknown", "Evicted", "", None])
def test_a_pod_that_does_not_run_has_no_address(topology, status):
    topology.pod("web-1", "10.1.0.5", status=status)
    assert topology.candidates("10.1.0.5") == []


def test_a_pending_pod_has_its_address(topology):
    topology.pod("web-1", "10.1.0.5", status="Pending")
    assert topology.names("10.1.0.5")["pod"] == "web-1"


def test_the_newer_pod_is_used_if_two_pods_have_the_same_address(topology):
    topology.pod("web-1", "10.1.0.5", created_at=5)
    topology.pod("web-2", "10.1.0.5", created_at=6)
    assert topology.names("10.1.0.5")["pod"] == "web-2"


def test_pods_with_the_same_address_and_creation_time_are_all_candidates(topology):
    topology.pod("web-1", "10.1.0.5")
    topology.pod("web-2", "10.1.0.5")
    assert [each["pod"] for each in topology.candidates("10.1.0.5")] == ["web-1", "web-2"]


def test_pods_of_two_clusters_with_the_same_address_are_all_candidates(topology):
    topology.pod("web-1", "10.1.0.5", created_at=5, cluster="c1")
    topology.pod("web-2", "10.1.0.5", created_at=6, cluster="c2")
    assert [each["pod"] for each in topology.candidates("10.1.0.5")] == ["web-1", "web-2"]


def test_an_ended_pod_does_not_replace_a_running_one(topology):
    topology.pod("web-1", "10.1.0.5", created_at=5)
    topology.pod("web-2", "10.1.0.5", created_at=6, status="Succeeded")
    assert topology.names("10.1.0.5")["pod"] == "web-1"


@pytest.mark.parametrize("options", [{"host_network": True}, {"host_ip": "192.0.2.1"}])
def test_a_host_network_pod_gives_no_address_a_name(topology, options):
    topology.pod("proxy-1", "192.0.2.1", **{"host_ip": "", **options})
    assert topology.candidates("192.0.2.1") == []
    topology.interface(topology.host(), "192.0.2.1/24")
    assert topology.names("192.0.2.1") == {"name": "h1", "host": "h1"}


def test_a_pod_with_an_address_of_its_host_gives_no_address_a_name(topology):
    host = topology.host()
    topology.pod("proxy-1", "192.0.2.1", "fd00::1", host_ip="")
    topology.interface(host, "192.0.2.1/24")
    assert topology.names("192.0.2.1") == {"name": "h1", "host": "h1"}
    assert topology.candidates("fd00::1") == []
    topology.kubernetes_node("n1", host)
    assert topology.names("192.0.2.1") == {"name": "h1", "host": "h1"}


def test_a_pod_keeps_its_address_if_another_host_has_it_too(topology):
    topology.kubernetes_node("n1", topology.host("h1"))
    topology.interface(topology.host("h2"), "10.1.0.5/24")
    topology.pod("web-1", "10.1.0.5")
    assert {each["host"] for each in topology.candidates("10.1.0.5")} == {"h1", "h2"}


# The hosts of pods.


def test_the_host_of_a_pod_has_the_name_that_the_agent_uses(topology):
    topology.pod("web-1", "10.1.0.5", node="n1")
    topology.kubernetes_node("n1", topology.host("agent-7"))
    (candidate,) = topology.resolve().addresses["10.1.0.5"]
    assert (candidate.names[1], candidate.host) == ("agent-7", "agent-7")


def test_a_pod_host_without_agent_has_the_name_of_the_kubernetes_node(topology):
    topology.pod("web-1", "10.1.0.5", node="n1")
    topology.kubernetes_node("n1")
    topology.kubernetes_node("n2", topology.host("agent-7"))
    assert topology.names("10.1.0.5")["host"] == "n1"


def test_a_node_in_another_cluster_does_not_determine_the_host_of_a_pod(topology):
    topology.pod("web-1", "10.1.0.5", node="n1", cluster="c1")
    topology.kubernetes_node("n1", topology.host("agent-7"), cluster="c2")
    assert topology.names("10.1.0.5")["host"] == "n1"


def test_a_pod_host_has_the_name_of_the_node_if_two_clusters_have_this_node(topology):
    """The probe adds edges from the host to the nodes of this name in all clusters."""
    host = topology.host("agent-7")
    for cluster in ("c1", "c2"):
        topology.kubernetes_node("n1", host, cluster=cluster)
    topology.pod("web-1", "10.1.0.5", node="n1", cluster="c1")
    assert topology.names("10.1.0.5")["host"] == "n1"
    interface = topology.interface(host, "192.0.2.1/24")
    assert topology.point(interface).cluster == ""


def test_the_node_of_a_pod_is_the_host_of_the_same_name(topology):
    topology.interface(topology.netns(topology.host("n1"), "blue"), "10.1.0.5/24")
    topology.pod("web-1", "10.1.0.5", node="n1", owners=OWNED)
    (candidate,) = topology.resolve().addresses["10.1.0.5"]
    assert (candidate.names[1], candidate.host) == ("n1", "n1")


def test_the_node_of_a_pod_is_not_the_host_of_the_same_name_if_edges_contradict(topology):
    """The host has edges to Kubernetes nodes in two clusters, or to a node with another name."""
    host = topology.host("n1")
    interface = topology.interface(topology.netns(host, "blue"), "10.1.0.5/24")
    other = topology.interface(host, "10.1.0.1/24")
    topology.pod("web-1", "10.1.0.5", node="n1", cluster="c2", owners=OWNED)
    named_like_host = {**WORKLOAD, **POD, "host": "n1"}
    interface_names = {"name": "blue", "host": "n1"}
    for nodes in ([("n1", "c1"), ("n1", "c2")], [("x", "c2")]):
        count = len(topology.nodes), len(topology.edges)
        for name, cluster in nodes:
            topology.kubernetes_node(name, host, cluster=cluster)
        assert topology.candidates("10.1.0.5") == [interface_names, named_like_host]
        by_name = {each.names[0]: each for each in topology.resolve().addresses["10.1.0.5"]}
        assert (by_name["blue"].host, by_name["shop/web"].host) == ("n1", "")
        assert topology.chosen("10.1.0.5", "10.1.0.1", interface) == interface_names
        if len(nodes) == 2:
            # It is unknown whether the pod is on this host.
            assert topology.chosen("10.1.0.5", "10.1.0.1", other) == interface_names
        del topology.nodes[count[0] :], topology.edges[count[1] :]


# Pods and interfaces with the same address.


def test_a_pod_and_its_interface_are_one_candidate(topology):
    host = topology.host()
    _, netns, interface = topology.running_pod(host, owners=OWNED)
    topology.kubernetes_node("n1", host)
    (candidate,) = topology.resolve().addresses["10.1.0.5"]
    assert shown(candidate.names) == {
        **WORKLOAD,
        **POD,
        "host": "h1",
        "container": "runtime-web-1-h1",
    }
    assert candidate == Candidate(candidate.names, netns["ID"], "h1", "c1")
    assert topology.point(interface) == PointLocation(netns["ID"], (), "h1", "c1")


def test_an_interface_with_the_host_and_address_of_a_pod_belongs_to_the_pod(topology):
    host = topology.host()
    topology.kubernetes_node("n1", host)
    netns = topology.netns(host, "blue")
    interface = topology.interface(netns, "10.1.0.5/24")
    pod = topology.pod("web-1", "10.1.0.5", owners=OWNED)
    topology.kubernetes_container(pod, "main")
    (candidate,) = topology.resolve().addresses["10.1.0.5"]
    assert shown(candidate.names) == {**WORKLOAD, **POD, "host": "h1", "container": "main"}
    assert (candidate.namespace, candidate.host) == (netns["ID"], "h1")
    # The network namespace itself is not known to belong to the pod.
    assert "pod" not in topology.node_names(interface)


def test_an_interface_on_another_host_does_not_belong_to_the_pod(topology):
    topology.kubernetes_node("n1", topology.host("h1"))
    topology.interface(topology.netns(topology.host("h2"), "blue"), "10.1.0.5/24")
    topology.pod("web-1", "10.1.0.5", owners=OWNED)
    assert topology.candidates("10.1.0.5") == [
        {"name": "blue", "host": "h2"},
        {**WORKLOAD, **POD, "host": "h1"},
    ]


def test_two_interfaces_on_the_host_of_a_pod_are_ambiguous(topology):
    host = topology.host()
    topology.kubernetes_node("n1", host)
    for name in ("blue", "green"):
        topology.interface(topology.netns(host, name), "10.1.0.5/24")
    topology.pod("web-1", "10.1.0.5")
    assert len(topology.candidates("10.1.0.5")) == 3


def test_a_pod_of_an_unknown_host_has_the_only_interface_with_its_address(topology):
    host = topology.host()
    topology.interface(topology.netns(host, "blue"), "10.1.0.5/24")
    topology.pod("web-1", "10.1.0.5", node="", owners=OWNED)
    assert topology.names("10.1.0.5") == {**WORKLOAD, **POD, "host": "h1"}
    topology.interface(topology.netns(topology.host("h2"), "green"), "10.1.0.5/24")
    assert len(topology.candidates("10.1.0.5")) == 3


def test_a_pod_of_an_unknown_host_has_no_interface_of_another_cluster(topology):
    host = topology.host()
    topology.kubernetes_node("n1", host, cluster="c2")
    topology.interface(topology.netns(host, "blue"), "10.1.0.5/24")
    topology.pod("web-1", "10.1.0.5", node="", cluster="c1", owners=OWNED)
    assert topology.candidates("10.1.0.5") == [
        {"name": "blue", "host": "h1"},
        {**WORKLOAD, **POD},
    ]


def test_an_interface_of_another_pod_does_not_belong_to_the_pod(topology):
    host = topology.host()
    topology.kubernetes_node("n1", host)
    topology.running_pod(host, "web-1", "10.1.0.5", status="Succeeded")
    topology.pod("web-2", "10.1.0.5")
    assert {each["pod"] for each in topology.candidates("10.1.0.5")} == {"web-1", "web-2"}


def test_the_address_decides_between_pods_with_the_same_name_in_two_clusters(topology):
    host = topology.host()
    netns = topology.netns(host)
    topology.interface(netns, "10.1.0.5/24")
    topology.container(netns, "k8s_main_web-1_shop_uid_0")
    topology.pod("web-1", "10.1.0.5", owners=OWNED, cluster="c1")
    topology.pod("web-1", owners=OWNED, cluster="c2")
    # The name fits both pods, but only one of them has the address.
    expected = {**WORKLOAD, **POD, "host": "h1", "container": "main"}
    assert topology.names("10.1.0.5") == expected
    topology.pod("web-1", "10.1.0.5", owners=OWNED, cluster="c3")
    assert len(topology.candidates("10.1.0.5")) == 3


def test_number_of_comparisons_of_pods_and_interfaces_is_limited(topology, monkeypatch):
    host = topology.host()
    topology.kubernetes_node("n1", host)
    topology.interface(topology.netns(host, "blue"), "10.1.0.5/24")
    topology.pod("web-1", "10.1.0.5")
    monkeypatch.setattr(name_resolver, "MAX_COMPARISONS", 0)
    assert len(topology.candidates("10.1.0.5")) == 2


def test_a_pod_in_a_known_namespace_is_in_no_other_namespace(topology):
    host = topology.host()
    topology.kubernetes_node("n1", host)
    _, netns, interface = topology.running_pod(host)
    interface["Metadata"]["IPV4"] = None
    topology.interface(topology.netns(host, "blue"), "10.1.0.5/24")
    candidates = topology.resolve().addresses["10.1.0.5"]
    assert [shown(each.names).get("pod") for each in candidates] == [None, "web-1"]
    assert candidates[1].namespace == netns["ID"]


# Workloads.


def workload_of(topology, **options):
    names = topology.names("10.1.0.5", **options)
    return names.get("workload_kind"), names.get("workload")


@pytest.mark.parametrize(
    "kind", ["DaemonSet", "StatefulSet", "ReplicationController", "VirtualMachineInstance"]
)
def test_the_workload_is_the_controlling_owner(topology, kind):
    owners = (owner("Other", "x", controller=False), owner(kind, "web"))
    topology.pod("web-1", "10.1.0.5", owners=owners)
    assert workload_of(topology) == (kind, "web")


def test_a_replica_set_is_followed_to_its_owner(topology):
    topology.pod("web-1", "10.1.0.5", owners=[owner("ReplicaSet", "web-5d")])
    topology.workload("replicaset", "web-5d", owners=[owner("Rollout", "web")])
    assert workload_of(topology) == ("Rollout", "web")


@pytest.mark.parametrize("options", [{"namespace": "other"}, {"cluster": "c2"}])
def test_owners_are_in_the_namespace_and_cluster_of_the_pod(topology, options):
    topology.pod("web-1", "10.1.0.5", owners=[owner("ReplicaSet", "web-5d")])
    topology.workload("replicaset", "web-5d", owners=[owner("Deployment", "web")], **options)
    assert workload_of(topology) == ("ReplicaSet", "web-5d")


def test_the_only_edge_of_a_replica_set_without_owner_leads_to_its_workload(topology):
    topology.pod("web-1", "10.1.0.5", owners=[owner("ReplicaSet", "web-5d")])
    replica_set = topology.workload("replicaset", "web-5d")
    assert workload_of(topology) == ("ReplicaSet", "web-5d")
    topology.edge(topology.workload("deployment", "web"), replica_set, "deployment")
    assert workload_of(topology) == ("Deployment", "web")
    topology.edge(topology.workload("deployment", "other"), replica_set, "deployment")
    assert workload_of(topology) == ("ReplicaSet", "web-5d")


def test_an_owner_is_preferred_to_edges(topology):
    pod = topology.pod("web-1", "10.1.0.5", owners=[owner("ReplicaSet", "web-5d")])
    replica_set = topology.workload("replicaset", "web-5d", owners=[owner("Deployment", "web")])
    topology.edge(topology.workload("deployment", "other"), replica_set, "deployment")
    topology.edge(topology.workload("daemonset", "other"), pod, "daemonset")
    assert workload_of(topology) == ("Deployment", "web")


def test_the_deployment_is_read_from_the_name_of_a_missing_replica_set(topology):
    labels = {"pod-template-hash": "5d"}
    pod = topology.pod("web-1", "10.1.0.5", owners=[owner("ReplicaSet", "web-5d")], labels=labels)
    assert workload_of(topology) == ("Deployment", "web")
    del pod["Metadata"]["K8s"]["Labels"]
    assert workload_of(topology) == ("Deployment", "web")


@pytest.mark.parametrize("labels", [{}, {"pod-template-hash": "7f"}, {"pod-template-hash": ""}])
def test_a_missing_replica_set_is_shown_if_its_name_has_no_hash(topology, labels):
    topology.pod("web-1", "10.1.0.5", owners=[owner("ReplicaSet", "web-5d")], labels=labels)
    assert workload_of(topology) == ("ReplicaSet", "web-5d")


def test_a_job_is_followed_to_its_cron_job(topology):
    topology.pod("web-1", "10.1.0.5", owners=[owner("Job", "backup-28")])
    assert workload_of(topology) == ("Job", "backup-28")
    job = topology.workload("job", "backup-28")
    assert workload_of(topology) == ("Job", "backup-28")
    extra = {"ObjectMeta": {"OwnerReferences": [owner("CronJob", "backup")]}}
    job["Metadata"]["K8s"]["Extra"] = extra
    assert workload_of(topology) == ("CronJob", "backup")


def test_a_static_pod_is_named_without_its_node(topology):
    topology.pod("etcd-n1", "10.1.0.5", owners=[owner("Node", "n1")])
    assert workload_of(topology) == ("StaticPod", "etcd")


def test_a_pod_without_owner_belongs_to_the_only_workload_that_selects_it(topology):
    pod = topology.pod("web-1", "10.1.0.5", owners=[owner("Other", "x", controller=None)])
    assert workload_of(topology) == (None, None)
    topology.edge(topology.workload("statefulset", "web"), pod, "statefulset")
    assert workload_of(topology) == ("StatefulSet", "web")
    topology.edge(topology.workload("daemonset", "other"), pod, "daemonset")
    assert workload_of(topology) == (None, None)


@pytest.mark.parametrize("cluster", ["c1", "c2", ""])
def test_selectors_select_nothing_in_another_cluster(topology, cluster):
    pod = topology.pod("web-1", "10.1.0.5")
    daemon_set = topology.workload("daemonset", "agent", cluster=cluster)
    topology.edge(daemon_set, pod, "daemonset")
    topology.service("front", "10.96.0.1", pods=[pod], cluster=cluster)
    names = topology.names("10.1.0.5")
    known = (None, None) if cluster == "c2" else ("agent", "front")
    assert (names.get("workload"), names.get("service")) == known


def test_a_replica_set_that_selects_a_pod_is_followed_to_its_owner(topology):
    pod = topology.pod("web-1", "10.1.0.5")
    replica_set = topology.workload("replicaset", "web-5d", owners=[owner("Deployment", "web")])
    topology.edge(replica_set, pod, "replicaset")
    assert workload_of(topology) == ("Deployment", "web")


def test_the_newer_of_two_replica_sets_with_the_same_name_is_used(topology):
    topology.pod("web-1", "10.1.0.5", owners=[owner("ReplicaSet", "web-5d")])
    for created_at, name in ((5, "old"), (7, "new"), (6, "middle")):
        owners = [owner("Deployment", name)]
        topology.workload("replicaset", "web-5d", owners=owners, created_at=created_at)
    assert workload_of(topology) == ("Deployment", "new")
    topology.workload("replicaset", "web-5d", owners=[owner("Deployment", "x")], created_at=7)
    assert workload_of(topology) == (None, None)


@pytest.mark.parametrize(
    "owners",
    [
        [owner("DaemonSet", "a"), owner("DaemonSet", "b")],
        [owner("DaemonSet", "")],
        [owner("", "a")],
        [{"Controller": True}],
    ],
)
def test_an_invalid_owner_is_not_a_workload(topology, owners):
    pod = topology.pod("web-1", "10.1.0.5", owners=owners)
    topology.edge(topology.workload("daemonset", "other"), pod, "daemonset")
    assert workload_of(topology) == (None, None)


# Services.


def test_a_cluster_ip_is_named_after_its_service(topology):
    topology.service("web", "10.96.0.1", "fd96::1")
    expected = {"name": "shop/web", "namespace": "shop", "service": "web"}
    assert topology.names("10.96.0.1") == topology.names("fd96::1") == expected
    (candidate,) = topology.resolve().addresses["10.96.0.1"]
    assert (candidate.namespace, candidate.host, candidate.cluster) == ("", "", "c1")


@pytest.mark.parametrize("cluster_ip", ["None", "", "x"])
def test_a_service_without_cluster_ip_gives_no_name(topology, cluster_ip):
    pod = topology.pod("web-1", "10.1.0.5")
    topology.service("headless", cluster_ip, pods=[pod])
    assert "service" not in topology.names("10.1.0.5")
    topology.service("web", "10.96.0.1", pods=[pod])
    assert topology.names("10.1.0.5")["service"] == "web"
    assert set(topology.resolve().addresses) == {"10.1.0.5", "10.96.0.1"}


def test_the_address_of_a_pod_is_named_after_its_only_service(topology):
    pod = topology.pod("web-1", "10.1.0.5", owners=OWNED)
    topology.service("front", "10.96.0.1", pods=[pod])
    names = topology.names("10.1.0.5")
    assert (names["name"], names["service"], names["workload"]) == ("shop/front", "front", "web")
    topology.service("back", "10.96.0.2", pods=[pod])
    names = topology.names("10.1.0.5")
    assert (names["name"], names.get("service")) == ("shop/web", None)


def test_endpoints_of_a_service_are_not_read_as_pods(topology):
    endpoints = topology.kubernetes("endpoints", "web", IP="10.1.0.5", Status="Running")
    topology.service("web", "10.96.0.1", pods=[endpoints])
    assert set(topology.resolve().addresses) == {"10.96.0.1"}


# Virtual machines.


def test_addresses_in_neutron_belong_to_the_virtual_machine(topology):
    host = topology.host()
    tap = topology.interface(
        host,
        name="tap1",
        Neutron={"IPV4": ["10.9.0.1/24"], "IPV6": ["fd09::1/64"]},
        Libvirt={"Domain": "instance-1"},
        ExtID={"vm-uuid": "u1"},
    )
    expected = {"name": "instance-1", "host": "h1"}
    assert topology.names("10.9.0.1") == topology.names("fd09::1") == expected
    del tap["Metadata"]["Libvirt"]
    assert topology.names("10.9.0.1") == {"name": "u1", "host": "h1"}
    assert topology.node_names(tap)["name"] == "tap1"
    assert topology.resolve().networks == {}


def test_a_machine_is_not_in_the_namespace_of_its_tap(topology):
    """The subnets of tenants can overlap, and the host's namespace has the taps of all tenants."""
    points = {}
    for name, tenant in (("h1", "a"), ("h2", "b")):
        libvirt = {"Domain": f"machine-{tenant}"}
        points[name] = topology.interface(
            topology.host(name), Neutron={"IPV4": ["10.9.0.1/24"]}, Libvirt=libvirt
        )
    assert {each.namespace for each in topology.resolve().addresses["10.9.0.1"]} == {""}
    # Even on this host, a machine of either tenant may have sent the flow.
    assert topology.chosen("10.9.0.1", "10.9.0.2", points["h1"]) is None


def test_all_interfaces_of_a_machine_are_named_after_its_libvirt_domain(topology):
    host = topology.host()
    neutron = {"IPV4": ["10.9.0.1/24"]}
    libvirt = {"Domain": "instance-1"}
    topology.interface(host, Neutron=neutron, ExtID={"vm-uuid": "u1"}, Libvirt=libvirt)
    topology.interface(host, Neutron=neutron, ExtID={"vm-uuid": "u1"})
    assert topology.names("10.9.0.1")["name"] == "instance-1"


def test_an_address_of_an_unknown_machine_does_not_belong_to_the_host(topology):
    topology.interface(topology.host(), Neutron={"IPV4": ["10.9.0.1/24"]})
    assert topology.names("10.9.0.1") == {"host": "h1"}


def test_an_address_of_the_interface_itself_does_not_belong_to_a_machine(topology):
    """Neutron also lists the addresses of OpenStack's DHCP servers and routers."""
    netns = topology.netns(topology.host(), "qdhcp-1")
    topology.interface(netns, "10.9.0.2/24", Neutron={"IPV4": ["10.9.0.2/24"]})
    assert topology.names("10.9.0.2") == {"name": "qdhcp-1", "host": "h1"}


def test_an_address_of_the_host_on_a_tap_does_not_belong_to_the_machine(topology):
    topology.interface(topology.host(), "10.9.0.254/24", Libvirt={"Domain": "instance-1"})
    assert topology.names("10.9.0.254") == {"name": "h1", "host": "h1"}


# Pod labels.


def test_labels_of_pods_come_after_the_other_names(topology):
    labels = {"team": "core", "app.kubernetes.io/name": "web", "long": "x" * 257}
    topology.running_pod(topology.host(), labels=labels)
    topology.interface(topology.host("h2"), "192.0.2.2/24")
    topology.service("web", "10.96.0.1")
    keys = ("app.kubernetes.io/name", "long", "none", "team")
    resolution = topology.resolve(k8s_labels=keys)
    (candidate,) = resolution.addresses["10.1.0.5"]
    assert candidate.names[len(ADDRESS_NAMES) :] == ("web", "", "", "core")
    for address in ("192.0.2.2", "10.96.0.1"):
        (candidate,) = resolution.addresses[address]
        assert candidate.names[len(ADDRESS_NAMES) :] == ("", "", "", "")
    assert all(len(names) == len(NODE_NAMES) for names in resolution.nodes.values())


def test_a_label_that_one_copy_of_the_labels_lacks_is_read_from_the_other_copy(topology):
    """Skydive stores labels twice. One copy lacks keys that are prefixes of other keys."""
    pod = topology.pod("web-1", "10.1.0.5", labels={"app": "web"})
    pod["Metadata"]["K8s"]["Labels"] = {"app": {"kubernetes": {"io/name": "shop-web"}}}
    (candidate,) = topology.resolve(k8s_labels=("app", "app.kubernetes.io/name")).addresses[
        "10.1.0.5"
    ]
    assert candidate.names[len(ADDRESS_NAMES) :] == ("web", "shop-web")


# Addresses with several candidates: which candidate gives the names.


def two_hosts_with_one_subnet(topology):
    """Add two hosts with the same container subnet, each with a bridge and a veth pair."""
    points = {}
    for name in ("h1", "h2"):
        host = topology.host(name)
        points[name, "bridge"] = topology.interface(host, "172.17.0.1/16", name="docker0")
        for number, container in ((2, "web"), (3, "db")):
            netns = topology.netns(host, f"{container}-{name}")
            inside = topology.interface(netns, f"172.17.0.{number}/16", node_type="veth")
            outside = topology.interface(host, name=f"veth{number}", node_type="veth")
            topology.edge(outside, inside, "layer2")
            topology.container(netns, f"{container}-{name}")
            points[name, container] = inside
            points[name, f"veth-{container}"] = outside
        points[name, "uplink"] = topology.interface(host, f"192.0.2.{name[1]}/24", name="eth0")
    return points


@pytest.mark.parametrize("host", ["h1", "h2"])
@pytest.mark.parametrize("place", ["web", "veth-web", "bridge", "db"])
def test_the_capture_point_determines_the_host_if_two_hosts_have_the_same_subnet(
    topology, host, place
):
    points = two_hosts_with_one_subnet(topology)
    names = topology.chosen("172.17.0.2", "172.17.0.3", points[host, place])
    assert names == {"name": f"web-{host}", "host": host, "container": f"web-{host}"}


def test_an_ambiguous_address_has_no_name_outside_of_its_subnet(topology):
    points = two_hosts_with_one_subnet(topology)
    assert topology.chosen("172.17.0.2", "198.51.100.1", points["h1", "uplink"]) is None
    # The other address does not matter if the capture point is in the address's own namespace.
    names = topology.chosen("172.17.0.2", "198.51.100.1", points["h1", "web"])
    assert names["name"] == "web-h1"
    assert topology.chosen("172.17.0.2", "172.17.0.3", None) is None


def test_an_address_with_one_owner_has_the_same_name_everywhere(topology):
    points = two_hosts_with_one_subnet(topology)
    for point in (*points.values(), None):
        assert topology.chosen("192.0.2.1", "198.51.100.1", point)["name"] == "h1"


def test_candidates_with_equal_names_count_as_one(topology):
    host = topology.host()
    for _ in range(2):
        topology.interface(topology.netns(host, "same"), "10.0.0.1/24")
    assert len(topology.candidates("10.0.0.1")) == 2
    assert topology.chosen("10.0.0.1", "10.0.0.2", None) == {"name": "same", "host": "h1"}


def test_the_cluster_of_the_capture_point_is_the_last_criterion(topology):
    points = {}
    for cluster in ("c1", "c2"):
        host = topology.host(f"host-{cluster}")
        topology.kubernetes_node(f"node-{cluster}", host, cluster=cluster)
        points[cluster] = topology.interface(host, f"192.0.2.{cluster[1]}/24")
        topology.pod(f"web-{cluster}", "10.1.0.5", node="", cluster=cluster)
        topology.service(f"front-{cluster}", "10.96.0.1", cluster=cluster)
    for cluster, point in points.items():
        assert topology.chosen("10.1.0.5", "10.1.0.6", point)["pod"] == f"web-{cluster}"
        assert topology.chosen("10.96.0.1", "x", point)["service"] == f"front-{cluster}"
    elsewhere = topology.interface(topology.host("h3"), "192.0.2.9/24")
    assert topology.chosen("10.1.0.5", "10.1.0.6", elsewhere) is None


def test_unknown_namespaces_hosts_and_clusters_are_not_equal():
    candidates = [Candidate(("a",), "", "", ""), Candidate(("b",), "x", "y", "z")]
    point = PointLocation("", (), "", "")
    assert choose(candidates, "10.0.0.2", point, {"": ()}, address="10.0.0.1") is None
    assert choose([], "10.0.0.2", point, {}, address="10.0.0.1") is None


@pytest.mark.parametrize("other", ["fd00::3", "10.0.1.3", "", "x"])
def test_both_addresses_of_the_flow_must_be_in_the_same_subnet(topology, other):
    for name in ("h1", "h2"):
        host = topology.host(name)
        point = topology.interface(host, f"192.0.2.{name[1]}/24")
        topology.interface(topology.netns(host), "10.0.0.1/24", "fd00::1/64")
    assert topology.chosen("10.0.0.1", "10.0.0.3", point)["host"] == "h2"
    assert topology.chosen("fd00::1", "fd00::3", point)["host"] == "h2"
    assert topology.chosen("10.0.0.1", other, point) is None


def test_the_namespace_decides_for_loopback_addresses(topology):
    host = topology.host()
    topology.interface(host, "127.0.0.1/8", name="lo")
    for number in range(600):
        lo = topology.interface(topology.netns(host, f"ns{number}"), "127.0.0.1/8", name="lo")
    candidates = topology.resolve().addresses["127.0.0.1"]
    assert len(candidates) == 601
    assert [each.names for each in candidates] == sorted(each.names for each in candidates)
    assert topology.chosen("127.0.0.1", "127.0.0.1", lo)["name"] == "ns599"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "169.254.20.10", "fe80::1"])
def test_a_local_address_has_names_only_in_its_namespace_and_at_its_veth_peers(topology, address):
    """The address can have other owners, on another link or outside the topology."""
    host = topology.host()
    inside = topology.interface(topology.netns(host, "blue"), address, node_type="veth")
    outside = topology.interface(host, node_type="veth")
    topology.edge(outside, inside, "layer2")
    elsewhere = topology.interface(topology.netns(host, "red"), "10.0.0.1/8")
    abroad = topology.interface(topology.host("h2"))
    assert topology.names(address)["name"] == "blue"
    assert topology.chosen(address, "10.0.0.1", inside)["name"] == "blue"
    assert topology.chosen(address, "10.0.0.1", outside)["name"] == "blue"
    for point in (elsewhere, abroad):
        assert topology.chosen(address, "10.0.0.1", point) is None
    candidates = topology.resolve().addresses[address]
    assert choose(candidates, "10.0.0.1", None, {}, address=address) is None


@pytest.mark.parametrize(
    "address",
    ["126.255.255.255", "128.0.0.1", "169.253.1.1", "::2", "1::1", "fe7f::1", "fec0::1", "fe8::1"],
)
def test_addresses_that_are_not_local_have_the_names_of_their_only_owner_everywhere(
    topology, address
):
    topology.interface(topology.netns(topology.host(), "blue"), address)
    abroad = topology.interface(topology.host("h2"))
    assert topology.chosen(address, "10.0.0.1", abroad)["name"] == "blue"


# Bad input.


def test_the_later_of_two_nodes_with_the_same_id_is_used(topology):
    host = topology.host()
    netns = topology.netns(host, "old")
    topology.interface(netns, "10.0.0.1/24")
    renamed = {**netns, "UpdatedAt": 9, "Metadata": {"Type": "netns", "Name": "new"}}
    for nodes in ([renamed, *topology.nodes], [*topology.nodes, renamed]):
        resolution = resolve(read_graph(nodes, topology.edges))
        assert resolution.addresses["10.0.0.1"][0].names[0] == "new"
        assert resolution.skipped == {"duplicate_id": 1}


def test_a_missing_update_time_counts_as_the_earliest(topology):
    host = topology.host()
    later = topology.interface(host, "10.0.0.1/24")
    topology.nodes.append(
        {**later, "UpdatedAt": None, "Metadata": {**later["Metadata"], "IPV4": ["10.0.0.2/24"]}}
    )
    for time in (0, None):
        later["UpdatedAt"] = time
        results = [set(topology.resolve().addresses)]
        topology.nodes.reverse()
        results.append(set(topology.resolve().addresses))
        assert results[0] == results[1]


@pytest.mark.parametrize("node_type", ["pod", "host", "container", "device", "service"])
def test_the_later_node_with_the_same_id_is_used_even_if_the_types_differ(topology, node_type):
    netns = topology.netns(topology.host(), "blue")
    topology.interface(netns, "10.0.0.1/24")
    other = {**netns, "UpdatedAt": 9, "Metadata": {"Type": node_type, "Name": "x"}, "Host": "h1"}
    for nodes in ([other, *topology.nodes], [*topology.nodes, other]):
        resolution = resolve(read_graph(nodes, topology.edges))
        assert shown(resolution.addresses["10.0.0.1"][0].names) == {"name": "h1", "host": "h1"}
        assert resolution.skipped == {"duplicate_id": 1}


def test_deleted_nodes_are_not_used(topology):
    topology.interface(topology.host(), "10.0.0.1/24")["DeletedAt"] = 7
    topology.pod("web-1", "10.1.0.5")["DeletedAt"] = 7
    resolution = topology.resolve()
    assert (resolution.addresses, resolution.nodes) == ({}, {})
    assert resolution.skipped == {"deleted": 2}


def test_edges_to_missing_nodes_are_counted(topology):
    interface = topology.interface(topology.host(), "10.0.0.1/24", node_type="veth")
    missing = {"ID": "missing"}
    for relation_type in graph_index.RELATION_TYPES:
        topology.edge(missing, interface, relation_type)
        topology.edge(interface, missing, relation_type)
    assert topology.names("10.0.0.1") == {"name": "h1", "host": "h1"}
    # Two kinds of edges are not counted: their children can be nodes that skyfast does not read.
    count = 2 * len(graph_index.RELATION_TYPES) - 2
    assert topology.resolve().skipped == {"edge_without_node": count}


def test_edges_to_nodes_that_are_not_read_are_not_counted(topology):
    host = topology.host()
    pod, service = topology.pod("web-1", "10.1.0.5"), topology.service("web", "10.96.0.1")
    bridge = topology.interface(host, node_type="bridge")
    missing, other = {"ID": "missing"}, {"ID": "other"}
    for node in (pod, service, other):
        topology.edge(missing, node)
    topology.edge(host, missing)
    topology.edge(service, missing, "service")
    topology.edge(bridge, missing, "layer2")
    assert not topology.resolve().skipped


def test_edges_whose_relation_does_not_fit_their_nodes_are_ignored(topology):
    host = topology.host()
    _, netns, interface = topology.running_pod(host)
    before = topology.resolve()
    for relation_type in (*graph_index.RELATION_TYPES, "unknown"):
        if relation_type != "ownership":
            topology.edge(netns, interface, relation_type)
            topology.edge(host, interface, relation_type)
    assert topology.resolve() == before


def random_graph(seed):
    """Return a graph with edges of all types between any nodes, including cycles."""
    rng = random.Random(seed)
    topology = Scenario()
    host = topology.host()
    for number in range(3):
        topology.running_pod(host, f"web-{number}", f"10.1.0.{number}", owners=OWNED)
    topology.service("web", "10.96.0.1")
    topology.workload("replicaset", "web-5d")
    for _ in range(60):
        parent, child = rng.choices(topology.nodes, k=2)
        topology.edge(parent, child, rng.choice(graph_index.RELATION_TYPES))
    return topology


@pytest.mark.parametrize("seed", range(100))
def test_no_graph_raises_an_exception(seed):
    resolution = random_graph(seed).resolve(k8s_labels=("app",))
    assert resolution.addresses
    for candidates in resolution.addresses.values():
        assert len(set(candidates)) == len(candidates) > 0


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_a_contradictory_graph_does_not_matter(seed):
    topology = random_graph(seed)
    rng = random.Random(seed)
    for node in rng.choices(topology.nodes, k=4):
        topology.nodes.append({**node, "ID": rng.choice(topology.nodes)["ID"]})
    before = topology.resolve()
    rng.shuffle(topology.nodes)
    rng.shuffle(topology.edges)
    assert topology.resolve() == before


def test_cycles_of_owners_do_not_cause_endless_loops(topology):
    namespaces = [topology.node("netns", host="h1", Name=f"ns{number}") for number in range(50)]
    for parent, child in zip(namespaces, namespaces[1:] + namespaces[:1], strict=True):
        topology.edge(parent, child)
    topology.interface(namespaces[0], "10.0.0.1/24")
    assert topology.names("10.0.0.1") == {"name": "h1", "host": "h1"}


@pytest.mark.parametrize("chars", [MAX_NAME_CHARS, MAX_NAME_CHARS + 1, 10_000_000])
def test_long_names_are_ignored(topology, chars):
    long = "x" * chars
    host = topology.host()
    netns = topology.netns(host, long)
    interface = topology.interface(netns, "10.0.0.1/24", name=long)
    topology.pod(long, "10.1.0.5", node=long, owners=[owner("DaemonSet", long)], labels={"a": long})
    topology.service(long, "10.96.0.1")
    topology.interface(topology.netns(topology.host(long)), "10.0.0.2/24", TID=long)
    resolution = topology.resolve(k8s_labels=("a",))
    expected = long if chars <= MAX_NAME_CHARS else ""
    used = {
        *(name for names in resolution.nodes.values() for name in names),
        *(name for found in resolution.addresses.values() for each in found for name in each.names),
        *resolution.nodes,
        *resolution.networks,
    }
    assert max(map(len, used)) <= len("shop/") + MAX_NAME_CHARS
    assert (long in used) == (expected == long)
    assert topology.node_names(interface).get("name", "") == expected
    assert (resolution.skipped.get("name_too_long", 0) == 0) == (expected == long)


def test_elements_beyond_the_limits_are_counted(topology, monkeypatch):
    host = topology.host()
    for number in range(9):
        topology.interface(host, f"10.0.0.{number}/24")
    monkeypatch.setattr(name_resolver, "MAX_ADDRESSES", 4)
    monkeypatch.setattr(graph_index, "MAX_NODES", 8)
    monkeypatch.setattr(graph_index, "MAX_EDGES", 6)
    resolution = topology.resolve()
    assert len(resolution.addresses) == 4
    assert len(resolution.nodes) == 7
    assert resolution.skipped == {
        "node_limit": 2,
        "edge_limit": 3,
        "address_limit": 3,
    }


def test_an_empty_graph_has_no_names():
    resolution = resolve(Graph([], []))
    assert (resolution.nodes, resolution.addresses, resolution.points) == ({}, {}, {})
    assert (resolution.networks, resolution.skipped) == ({}, {})


def test_a_graph_is_not_changed_and_can_be_resolved_again(topology):
    topology.running_pod(topology.host())
    graph = read_graph(topology.nodes, topology.edges)
    first = resolve(graph)
    assert resolve(graph) == first
    assert len(graph.nodes) == len(topology.nodes)
