"""Random topology graphs for Hypothesis, in the JSON form of the topology API.

Names, addresses and subnets come from small sets, so that selectors overlap, addresses are reused,
and hosts share subnets. Most pods have all nodes and edges that the probes would create.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

Json = Any

HOSTS = ("h1", "h2", "h3")
NAMESPACES = ("shop", "shop", "test")
POD_NAMES = ("web-1", "web-2", "db-0", "etcd-node-h1")
POD_ADDRESSES = ("10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.1.2", "fd00::2")
ADDRESSES = (*POD_ADDRESSES, "10.0.1.3", "192.0.2.1", "fe80::1")
CLUSTER_IPS = ("10.96.0.1", "10.96.0.2", "10.0.0.2", "None", "")
RELATIONS = (
    *("ownership", "ownership", "layer2", "container", "service", "node"),
    *("replicaset", "deployment", "statefulset", "daemonset", "other"),
)
LABEL_KEYS = ("team", "app.kubernetes.io/name")
STATUSES = ("Running", "Running", "Running", "Running", "Pending", "Succeeded", "Failed")
JUNK: tuple[Json, ...] = (None, 0, -1.5, True, "", "x" * 300, [], [None], {}, {"a": 1}, 2**70)

_NAMES = {
    "": "nothing",
    "ReplicaSet": "web-abc",
    "StatefulSet": "db",
    "Job": "nightly-1",
    "Node": "node-h1",
    "Deployment": "web",
    "Rollout": "rolling",
    "CronJob": "nightly",
}
"""The usual name of an owner, by kind."""

_BYTES = 1_500
"""Random bytes per graph. After the last byte, each choice takes its first option."""


class _Builder:
    """Collects nodes and edges. Each random choice uses up one byte of ``choices``.

    Hypothesis is ten times as fast if it draws all bytes at once.
    """

    def __init__(self, choices: bytes) -> None:
        self._choices = iter(choices)
        self.nodes: list[Json] = []
        self.edges: list[Json] = []

    def pick(self, *values: Any) -> Any:
        return values[next(self._choices, 0) % len(values)]

    def count(self, most: int) -> int:
        return next(self._choices, 0) % (most + 1)

    def chance(self, tenths: int) -> bool:
        return next(self._choices, 0) % 10 >= 10 - tenths

    def node(self, host: str, metadata: Json) -> Json:
        node = {
            "ID": f"n{len(self.nodes)}",
            "Host": host,
            "CreatedAt": 1 + self.count(2),
            "UpdatedAt": len(self.nodes),
            "Metadata": metadata,
        }
        self.nodes.append(node)
        return node

    def edge(self, parent: Json, child: Json, relation: str) -> None:
        self.edges.append(
            {
                "Parent": parent["ID"],
                "Child": child["ID"],
                "Metadata": {"RelationType": relation},
            }
        )

    def of_type(self, *types: str) -> list[Json]:
        return [node for node in self.nodes if node["Metadata"]["Type"] in types]


@dataclass
class _Pod:
    """A pod, which becomes nodes of agents and nodes of the Kubernetes probe."""

    namespace: str
    name: str
    cluster: str
    host: str
    address: str
    containers: list[Json] = field(default_factory=list)


@st.composite
def graphs(draw: st.DrawFn, *, disorder: bool = True, broken: bool = False) -> Json:
    """Return a graph of up to three hosts and two clusters.

    Without ``disorder``, the probes agree with each other. With ``broken``, any field can have a
    value of a wrong type.
    """
    b = _Builder(draw(st.binary(min_size=_BYTES, max_size=_BYTES)))
    clusters = b.pick(("c1",), ("c1", "c2"), ("c1", "c2"), ("", "c1"), ("",))
    hosts = HOSTS[: 1 + b.count(2)]
    host_nodes = {host: _host(b, host) for host in hosts}
    node_names = _kubernetes_nodes(b, clusters, list(host_nodes.values()))
    pods: list[_Pod] = []
    for _ in range(1 + b.count(3)):
        pods.append(_any_pod(b, clusters, hosts, pods))
    for pod in pods:
        if b.chance(8):
            strangers = pods if disorder and b.chance(2) else [pod]
            _running_pod(b, host_nodes[pod.host], pod, strangers)
    for _ in range(b.count(2)):
        pod = b.pick(*pods)
        addresses = [f"{pod.address}/24"] if b.chance(3) else _addresses(b, 2)
        _plain_namespace(b, host_nodes[b.pick(pod.host, *hosts)], addresses)
    _kubernetes(b, clusters, pods, node_names)
    if disorder:
        _disorder(b)
    for _ in range(1 + b.count(5) if broken else 0):
        _spoil(b, b.pick(*b.nodes, *b.edges))
    return {"Nodes": b.nodes, "Edges": b.edges}


def _any_pod(
    b: _Builder, clusters: tuple[str, ...], hosts: tuple[str, ...], others: list[_Pod]
) -> _Pod:
    """Return a pod, often with the name or the address of another pod."""
    pod = _Pod(
        namespace=b.pick(*NAMESPACES),
        name=b.pick(*POD_NAMES),
        cluster=b.pick(*clusters),
        host=b.pick(*hosts),
        address=b.pick(*POD_ADDRESSES),
    )
    if others and b.chance(4):
        other = b.pick(*others)
        pod.namespace, pod.name = other.namespace, other.name
    if others and b.chance(4):
        pod.address = b.pick(*others).address
    return pod


# Nodes of agents.


def _host(b: _Builder, host: str) -> Json:
    """Add a host with the interfaces and containers of its own namespace; return its node."""
    node = b.node(host, {"Type": "host", "Name": host, "Hostname": f"node-{host}"})
    for _ in range(b.count(3)):
        name = b.pick("eth0", "docker0", "eth0", "tap1", "tap1", "kube-ipvs0")
        if name == "kube-ipvs0":
            addresses = [f"{b.pick(*CLUSTER_IPS[:3])}/32"]
        elif name == "tap1":
            addresses = [] if b.chance(7) else _addresses(b, 1)
        else:
            addresses = _addresses(b, 2)
        interface = _interface(b, node, addresses, name=name)
        if name == "tap1":
            interface["Metadata"].update(_machine(b))
    if b.chance(2):
        container = _container(b, host, None)
        b.edge(node, container, "ownership")
    return node


def _addresses(b: _Builder, most: int) -> list[str]:
    return [
        f"{address}/{64 if ':' in address else b.pick(24, 24, 16, 32)}"
        for address in [b.pick(*ADDRESSES) for _ in range(b.count(most))]
    ]


def _interface(
    b: _Builder, owner: Json, addresses: list[str], *, name: str = "eth0", kind: str = ""
) -> Json:
    metadata: Json = {
        "Type": kind or b.pick("veth", "device", "bridge", "dummy", "ovsport"),
        "EncapType": "ether",
        "Name": name,
    }
    if b.chance(9):
        metadata["TID"] = f"tid{0 if b.chance(1) else len(b.nodes)}"
    for address in addresses:
        metadata.setdefault("IPV6" if ":" in address else "IPV4", []).append(address)
    node = b.node(owner["Host"], metadata)
    b.edge(owner, node, "ownership")
    return node


def _machine(b: _Builder) -> Json:
    addresses = _addresses(b, 2)
    metadata: Json = {
        "Neutron": {
            "IPV4": [address for address in addresses if ":" not in address],
            "IPV6": [address for address in addresses if ":" in address],
        }
    }
    if b.chance(5):
        metadata["Libvirt"] = {"Domain": b.pick("vm-1", "vm-2")}
    if b.chance(7):
        metadata["ExtID"] = {"vm-uuid": b.pick("uuid-1", "uuid-1", "uuid-2")}
    return metadata


def _namespace(b: _Builder, host: Json, addresses: list[str]) -> Json:
    """Add a network namespace with an interface, usually an end of a veth pair; return its node."""
    namespace = b.node(host["Host"], {"Type": "netns", "Name": b.pick("blue", "green", "red")})
    if b.chance(9):
        b.edge(host, namespace, "ownership")
    kind = b.pick("veth", "veth", "device")
    inner = _interface(b, namespace, addresses, kind=kind)
    if b.chance(6):
        outer = _interface(b, host, [], name="veth0", kind="veth")
        parent, child = b.pick((outer, inner), (inner, outer))
        b.edge(parent, child, "layer2")
    if b.chance(2):
        _interface(b, namespace, _addresses(b, 1), name="tap2")["Metadata"].update(_machine(b))
    return namespace


def _running_pod(b: _Builder, host: Json, pod: _Pod, strangers: list[_Pod]) -> None:
    """Add the network namespace and the containers of a pod.

    A container can claim to belong to one of ``strangers`` instead.
    """
    length = 64 if ":" in pod.address else b.pick(24, 24, 32)
    addresses = [f"{pod.address}/{length}"] if b.chance(8) else _addresses(b, 2)
    namespace = _namespace(b, host, addresses)
    for _ in range(b.pick(1, 2, 1, 0, 3)):
        claimed = b.pick(pod, *strangers)
        container = _container(b, pod.host, claimed)
        claimed.containers.append(container)
        b.edge(namespace, container, "ownership")


def _plain_namespace(b: _Builder, host: Json, addresses: list[str]) -> None:
    namespace = _namespace(b, host, addresses)
    for _ in range(b.pick(0, 1, 2)):
        b.edge(namespace, _container(b, host["Host"], None), "ownership")


def _container(b: _Builder, host: str, pod: _Pod | None) -> Json:
    """Add a container with the metadata of a random runtime or of kubelet; return its node."""
    runtime_id = f"cid{len(b.nodes)}"
    name = b.pick("nginx", "proxy", "POD")
    metadata: Json = {"Type": "container", "Manager": "docker", "Container": {"ID": runtime_id}}
    metadata["Name"] = b.pick(runtime_id, "web", "k8s_broken_name", "k8s_____")
    labels: Json = None
    source = b.pick("labels", "kubelet", "cri", "flat", "cri-o", "none", "none") if pod else ""
    if pod and source == "kubelet":
        suffix = b.pick("0", "0", "0_a1b2")
        metadata["Name"] = f"k8s_{name}_{pod.name}_{pod.namespace}_uid_{suffix}"
    elif pod and source in ("labels", "cri-o"):
        labels = {"pod": {"name": pod.name, "namespace": pod.namespace}}
        if b.chance(8):
            labels["container"] = {"name": name}
        if source == "cri-o":
            labels["cri-o"] = {"ContainerType": b.pick("container", "sandbox")}
        elif b.chance(4):
            labels["docker"] = {"type": b.pick("container", "podsandbox")}
    elif pod and source == "cri":
        labels = {
            "cri": {
                "sandbox-name": pod.name,
                "sandbox-namespace": pod.namespace,
                "container-type": b.pick("container", "sandbox"),
            }
        }
        if b.chance(8):
            labels["cri"]["container-name"] = name
    elif pod and source == "flat":
        metadata["Container"]["Labels"] = {
            "io.kubernetes.pod.name": pod.name,
            "io.kubernetes.pod.namespace": pod.namespace,
            b.pick("io.kubernetes.container.name", "other"): name,
            b.pick("io.kubernetes.docker.type", "other"): b.pick("container", "podsandbox"),
        }
    if labels:
        metadata["Container"]["Labels"] = {"io": {"kubernetes": labels}}
    return b.node(host, metadata)


# Nodes of the Kubernetes probe.


def _k8s(b: _Builder, kind: str, cluster: str, fields: Json, owners: Json = ()) -> Json:
    metadata: Json = {"Type": kind, "Manager": "k8s", "Name": fields.get("Name", ""), "K8s": fields}
    if cluster:
        metadata["ClusterName"] = cluster
    if owners:
        meta = fields.setdefault("Extra", {}).setdefault("ObjectMeta", {})
        meta["OwnerReferences"] = list(owners)
    return b.node("analyzer", metadata)


def _kubernetes_nodes(b: _Builder, clusters: tuple[str, ...], hosts: list[Json]) -> dict[str, Any]:
    """Add Kubernetes nodes, and return their names by host.

    A host is usually a node of one cluster. Nodes and hosts can share a name, and the probe links
    all hosts and nodes of the same name.
    """
    names = {}
    for host in hosts:
        by_host = host["Metadata"]["Hostname"]
        names[host["Host"]] = b.pick(by_host, by_host, by_host, "node-h1", host["Host"], "")
    for cluster in clusters:
        for name in dict.fromkeys(filter(None, names.values())):
            if b.chance(7):
                node = _k8s(b, "node", cluster, {"Name": name})
                for host in hosts:
                    if names[host["Host"]] == name and b.chance(7):
                        b.edge(host, node, "node")
    return names


def _owner(b: _Builder, *kinds: str) -> Json:
    """Return a reference to an owner. If the owner has an unusual name, it has no node."""
    kind = b.pick(*kinds)
    name = _NAMES[kind] if b.chance(8) else b.pick("other-abc", "")
    return {"Kind": kind, "Name": name, "Controller": b.pick(True, True, True, False, None)}


def _kubernetes(
    b: _Builder, clusters: tuple[str, ...], pods: list[_Pod], node_names: dict[str, str]
) -> None:
    """Add the nodes of pods, and of the containers, workloads and services of these pods."""
    workloads = [
        _k8s(
            b,
            kind.lower(),
            b.pick(*clusters),
            {"Name": _NAMES[kind], "Namespace": b.pick(*NAMESPACES)},
            [_owner(b, "Deployment", "Rollout", "CronJob") for _ in range(b.pick(0, 1, 1, 2))],
        )
        for kind in ("ReplicaSet", "ReplicaSet", "Deployment", "Deployment", "Job", "StatefulSet")
        if b.chance(6)
    ]
    services = [
        _k8s(b, "service", b.pick(*clusters), _service_fields(b)) for _ in range(b.count(3))
    ]
    for parent in workloads:
        for child in workloads:
            ends = parent["Metadata"]["Type"], child["Metadata"]["Type"]
            if ends == ("deployment", "replicaset") and b.chance(6):
                b.edge(parent, child, "deployment")
    nodes = [(pod, _pod(b, pod, node_names)) for pod in pods if b.chance(8)]
    for _, node in nodes:
        for parent in (*workloads, *services):
            same = parent["Metadata"].get("ClusterName") == node["Metadata"].get("ClusterName")
            if b.chance(4 if same else 1):
                b.edge(parent, node, parent["Metadata"]["Type"])
    for pod in pods:
        known = b.chance(7)
        for runtime in (*pod.containers, None):
            if not b.chance(8 if runtime and known else 2):
                continue
            fields = {"Name": b.pick("nginx", "proxy")}
            if b.chance(8):
                fields.update(Namespace=pod.namespace, Pod=pod.name)
            container = _k8s(b, "container", "", fields)
            for other, node in nodes:
                # The probe compares namespaces and names, but not clusters.
                if (other.namespace, other.name) == (pod.namespace, pod.name) and b.chance(8):
                    b.edge(node, container, "ownership")
            if runtime and b.chance(9):
                fields["ContainerID"] = runtime["Metadata"]["Container"]["ID"]
            if runtime and b.chance(8):
                b.edge(container, runtime, "container")


def _service_fields(b: _Builder) -> Json:
    fields = {
        "Name": b.pick("front", "back"),
        "Namespace": b.pick(*NAMESPACES),
        "ClusterIP": b.pick(*CLUSTER_IPS),
    }
    if b.chance(2):
        fields["Extra"] = {"Spec": {"ClusterIPs": [fields["ClusterIP"], b.pick(*CLUSTER_IPS)]}}
    return fields


def _pod(b: _Builder, pod: _Pod, node_names: dict[str, str]) -> Json:
    fields: Json = {
        "Name": pod.name,
        "Namespace": pod.namespace,
        "Status": b.pick(*STATUSES),
        "Labels": b.pick(
            {"team": "red", "pod-template-hash": "abc"},
            {"app": {"kubernetes": {"io/name": "web"}}},
            {"team": "", "app": "x"},
            {"app.kubernetes.io/name": "web", "pod-template-hash": 5},
            {},
        ),
        "Extra": {
            "Spec": {"HostNetwork": b.chance(1)},
            "Status": {},
            "ObjectMeta": {"Labels": b.pick({}, {"team": "blue", "pod-template-hash": "abc"})},
        },
    }
    name = node_names[pod.host] if b.chance(8) else b.pick("node-x", "", pod.host)
    if b.chance(8):
        fields["Node"] = name
    else:
        fields["Extra"]["Spec"]["NodeName"] = name
    if b.chance(9):
        fields["IP"] = pod.address
    if b.chance(2):
        fields["Extra"]["Status"]["PodIPs"] = [{"IP": pod.address}, {"IP": b.pick(*ADDRESSES)}]
    if b.chance(2):
        fields["Extra"]["Status"]["HostIP"] = b.pick("192.0.2.1", "192.0.2.1", *ADDRESSES)
    kinds = ("ReplicaSet", "ReplicaSet", "StatefulSet", "Job", "Node", "")
    owners = [_owner(b, *kinds) for _ in range(b.pick(1, 0, 1, 1, 2))]
    return _k8s(b, "pod", pod.cluster, fields, owners)


# Disorder.


def _disorder(b: _Builder) -> None:
    """Remove and add edges, duplicate and delete nodes, and shuffle all nodes."""
    for _ in range(b.count(2)):
        if b.edges:
            b.edges.remove(b.pick(*b.edges))
    for _ in range(b.pick(0, 0, 1, 2)):
        owned = b.of_type("netns", "host", "container", "veth", "device", "bridge", "ovsport")
        owner = b.pick(*b.of_type("netns", "netns", "host", "veth") or b.nodes)
        b.edge(owner, b.pick(*owned), "ownership")
    for _ in range(b.pick(0, 0, 1, 2)):
        missing = {"ID": "missing"}
        b.edge(b.pick(*b.nodes, missing), b.pick(*b.nodes, missing), b.pick(*RELATIONS))
    if b.chance(2):
        b.nodes.append({**b.pick(*b.nodes), "UpdatedAt": 1000, "Host": b.pick(*HOSTS)})
    if b.chance(1):
        b.nodes.append({**b.pick(*b.nodes), "ID": b.pick(*b.nodes)["ID"], "UpdatedAt": 2000})
    if b.chance(1):
        b.pick(*b.nodes)["DeletedAt"] = 5
    if b.chance(1):
        b.pick(*b.nodes).pop("ID")
    b.nodes.sort(key=lambda _: b.count(255))


def _spoil(b: _Builder, element: Json) -> None:
    """Replace a random value, at any depth, by a value of another type.

    ``UpdatedAt`` stays, because it decides which of two nodes with the same ID is used.
    """
    parent = element
    while keys := sorted(parent.keys() - {"UpdatedAt"}):
        key = b.pick(*keys)
        if isinstance(parent[key], dict) and parent[key] and b.chance(8):
            parent = parent[key]
            continue
        parent[key] = deepcopy(b.pick(*JUNK))
        return
