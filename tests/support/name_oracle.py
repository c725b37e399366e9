"""A slow, plain resolver of names, written from the documented rules.

Tests compare `skyfast.skydive.name_resolver` with this oracle, which shares no code with the
resolver. Each method implements one rule on decoded JSON. An uncertain name is an empty string.

An *ownership* edge leads from an owner to its child, for example from a network namespace to an
interface. A *Kubernetes container* is a node of the Kubernetes probe. A *container* is a node that
an agent knows from the container runtime.
"""

import functools
import ipaddress
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Json = Any
Names = tuple[str, ...]
Pair = tuple[str, str]
"""Namespace and name of a pod, or kind and name of a workload."""

Location = tuple[Json, str, str | None]
"""A network namespace (a node or None), a host, and a virtual machine (or None)."""

Candidate = tuple[Names, str, str, str]
"""A possible owner of an address: its names, network namespace ID, host and cluster."""

Rule = TypeVar("Rule", bound=Callable[..., Any])

MAX_NAME_CHARS = 256
K8S_CONTAINER = "container of Kubernetes"
CONTROLLERS = {
    "replicaset": "ReplicaSet",
    "daemonset": "DaemonSet",
    "statefulset": "StatefulSet",
}
"""Workloads that select pods by labels: node type and Kubernetes kind."""

NO_INTERFACES = {
    *("host", "netns", "container", "libvirt"),
    *("cluster", "configmap", "cronjob", "daemonset", "deployment", "endpoints", "ingress", "job"),
    *("namespace", "networkpolicy", "node", "persistentvolume", "persistentvolumeclaim", "pod"),
    *("replicaset", "replicationcontroller", "secret", "service", "statefulset", "storageclass"),
    K8S_CONTAINER,
}


def cached(rule: Rule) -> Rule:
    """Cache the results of a rule whose arguments are nodes, strings or None."""

    @functools.wraps(rule)
    def cached_rule(self: "NameOracle", *arguments: Any) -> Any:
        key = rule.__name__, *(a if isinstance(a, str) else id(a) for a in arguments)
        if key not in self.results:
            self.results[key] = rule(self, *arguments)
        return self.results[key]

    return cached_rule  # type: ignore[return-value]


def dig(value: Json, *keys: str) -> Json:
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def text(value: Json, *keys: str) -> str:
    value = dig(value, *keys)
    return value if isinstance(value, str) else ""


def short(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else ""


def items(value: Json, *keys: str) -> list[Json]:
    value = dig(value, *keys)
    return value if isinstance(value, list) else []


def number(value: Json) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def address_of(value: Json) -> str:
    """Return an address in Go's format, without prefix length and zone, or "" if it is invalid."""
    if not isinstance(value, str):
        return ""
    try:
        address = ipaddress.ip_address(value.partition("/")[0].partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(address)


def addresses_of(values: Iterable[Json]) -> list[str]:
    return list(dict.fromkeys(address for value in values if (address := address_of(value))))


def is_local(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or parsed.is_link_local


def network_of(value: Json) -> Any:
    """Return the subnet of ``ADDRESS/LENGTH``, or None if it has only one address."""
    if not address_of(value) or "/" not in value:
        return None
    network = ipaddress.ip_interface(value).network
    return network if network.num_addresses > 1 else None


def distinct(values: Iterable[Any]) -> list[Any]:
    """Remove duplicates, and compare nodes by identity."""
    result: list[Any] = []
    for value in values:
        same = [v for v in result if (v is value if isinstance(value, dict) else v == value)]
        if not same:
            result.append(value)
    return result


def only(values: Iterable[Any]) -> Any:
    """Return the only distinct value, or None if there are none or several."""
    found = distinct(values)
    return found[0] if len(found) == 1 else None


def is_in(node: Json, nodes: Iterable[Json]) -> bool:
    return any(node is other for other in nodes)


class NameOracle:
    """Resolves the names of a graph ``{"Nodes": […], "Edges": […]}``."""

    def __init__(self, graph: Json, k8s_labels: tuple[str, ...] = ()) -> None:
        self.k8s_labels = k8s_labels
        self.results: dict[Any, Any] = {}
        usable = [node for node in items(graph, "Nodes") if self.is_usable(node)]
        self.nodes = [
            node
            for position, node in enumerate(usable)
            if not self.identity(node)
            or not any(
                self.identity(other) == self.identity(node)
                and (self.updated_at(other), -other_position) > (self.updated_at(node), -position)
                for other_position, other in enumerate(usable)
            )
        ]
        by_identity = {identity: n for n in self.nodes if (identity := self.identity(n))}
        relations = {
            (edge["Parent"], edge["Child"], text(edge, "Metadata", "RelationType"))
            for edge in items(graph, "Edges")
            if isinstance(edge, dict)
            and not edge.get("DeletedAt")
            and text(edge, "Parent") in by_identity
            and text(edge, "Child") in by_identity
        }
        self.edges = [(by_identity[p], by_identity[c], r) for p, c, r in sorted(relations)]

    def is_usable(self, node: Json) -> bool:
        return (
            isinstance(node, dict)
            and isinstance(node.get("Metadata"), dict)
            and not node.get("DeletedAt")
        )

    def identity(self, node: Json) -> str:
        """The ID of a node, or "". A node without an ID has no edges."""
        return short(text(node, "ID"))

    def updated_at(self, node: Json) -> int:
        """Of several nodes with the same ID, only the one with the latest update is used."""
        return number(node.get("UpdatedAt"))

    # -- the graph ------------------------------------------------------------------------------

    @cached
    def kind(self, node: Json) -> str:
        """The ``Type`` of a node, or `K8S_CONTAINER`."""
        kind = text(node, "Metadata", "Type")
        manager = text(node, "Metadata", "Manager")
        return K8S_CONTAINER if (kind, manager) == ("container", "k8s") else kind

    @cached
    def all(self, kind: str) -> list[Json]:
        return [node for node in self.nodes if self.kind(node) == kind]

    @cached
    def parents(self, node: Json, relation: str, kind: str) -> list[Json]:
        return [
            parent
            for parent, child, found in self.edges
            if child is node and found == relation and kind in ("any", self.kind(parent))
        ]

    def selectors_of(self, node: Json, relation: str) -> list[Json]:
        """The workloads or services of the same cluster that select a node by its labels."""
        return [
            parent
            for parent in self.parents(node, relation, relation)
            if "" in (self.cluster(parent), self.cluster(node))
            or self.cluster(parent) == self.cluster(node)
        ]

    @cached
    def interfaces(self) -> list[Json]:
        return [node for node in self.nodes if self.kind(node) not in NO_INTERFACES]

    def host(self, node: Json) -> str:
        return short(text(node, "Host"))

    def hosts(self) -> list[str]:
        return distinct(self.host(node) for node in self.nodes)

    # -- network namespaces ---------------------------------------------------------------------

    @cached
    def namespace(self, node: Json) -> Json:
        """The namespace of an interface or container: its owner, if this is a netns or a host.

        The namespace is unknown if the node or one of its ancestors has several owners, or if the
        ancestors form a cycle.
        """
        owners = self.parents(node, "ownership", "any")
        if len(owners) != 1 or self.kind(owners[0]) not in ("netns", "host"):
            return None
        above = owners
        for _ in self.nodes:
            above = self.parents(above[0], "ownership", "any")
            if not above:
                return owners[0]
            if len(above) > 1:
                return None
        return None

    def is_host_namespace(self, namespace: Json) -> bool:
        return namespace is not None and self.kind(namespace) == "host"

    def netns_name(self, namespace: Json) -> str:
        if namespace is None or self.is_host_namespace(namespace):
            return ""
        return short(text(namespace, "Metadata", "Name"))

    @cached
    def containers(self, namespace: Json) -> list[Json]:
        """The containers of a network namespace.

        A host's own namespace has none: its containers give no name to an address.
        """
        if namespace is None or self.is_host_namespace(namespace):
            return []
        return [node for node in self.all("container") if self.namespace(node) is namespace]

    @cached
    def may_have_more_containers(self, namespace: Json) -> bool:
        """Whether this namespace owns a container whose own namespace is unknown."""
        return any(
            self.namespace(node) is None
            and is_in(namespace, self.parents(node, "ownership", "any"))
            for node in self.all("container")
        )

    @cached
    def is_uncertain(self, namespace: Json) -> bool:
        """Whether several pods may own a namespace, so that its pod is unknown."""
        if namespace is None or self.is_host_namespace(namespace):
            return False
        return (
            self.may_have_more_containers(namespace)
            or len(self.pairs(namespace)) > 1
            or len(distinct(map(self.cluster, self.linked_pods(namespace)))) > 1
        )

    # -- containers -----------------------------------------------------------------------------

    def kubelet_name(self, container: Json) -> list[str]:
        """The parts of a container name that kubelet gave, or an empty list.

        The format is ``k8s_NAME_POD_NAMESPACE_UID_ATTEMPT[_RANDOM]``.
        """
        parts = text(container, "Metadata", "Name").split("_")
        return parts if len(parts) in (6, 7) and parts[0] == "k8s" and all(parts[1:4]) else []

    def nested_label(self, container: Json, *keys: str) -> str:
        """A label whose key begins with ``io.kubernetes``. Skydive splits keys at their dots."""
        return text(container, "Metadata", "Container", "Labels", "io", "kubernetes", *keys)

    def flat_label(self, container: Json, key: str) -> str:
        """A label with an unsplit key, as the runc probe reports some labels."""
        return text(container, "Metadata", "Container", "Labels", f"io.kubernetes.{key}")

    def label(self, container: Json, *keys: str) -> str:
        return self.nested_label(container, *keys) or self.flat_label(container, ".".join(keys))

    def is_sandbox(self, container: Json) -> bool:
        """Whether a container is the sandbox (pause container) of a pod."""
        return (
            self.label(container, "docker", "type") == "podsandbox"
            or self.label(container, "container", "name") == "POD"
            or self.nested_label(container, "cri", "container-type") == "sandbox"
            or self.nested_label(container, "cri-o", "ContainerType") == "sandbox"
            or text(container, "Metadata", "Name").startswith("k8s_POD_")
        )

    def container_name(self, container: Json) -> str:
        kubelet = self.kubelet_name(container)
        return short(
            self.label(container, "container", "name")
            or self.nested_label(container, "cri", "container-name")
            or (kubelet[1] if kubelet else "")
            or text(container, "Metadata", "Name")
        )

    @cached
    def container(self, namespace: Json) -> str:
        """The name of a namespace's only container, not counting sandboxes."""
        if self.may_have_more_containers(namespace):
            return ""
        found = [c for c in self.containers(namespace) if not self.is_sandbox(c)]
        return self.container_name(found[0]) if len(found) == 1 else ""

    # -- the pod of a network namespace ---------------------------------------------------------

    @cached
    def kubernetes_containers(self, container: Json) -> list[Json]:
        """The Kubernetes containers linked to a container, or else those with the same ID."""
        linked = self.parents(container, "container", K8S_CONTAINER)
        identity = short(text(container, "Metadata", "Container", "ID"))
        return linked or [
            node
            for node in self.all(K8S_CONTAINER)
            if identity and text(node, "Metadata", "K8s", "ContainerID") == identity
        ]

    @cached
    def pods_of(self, kubernetes_container: Json) -> list[Json]:
        """The pods that own a Kubernetes container, or else the only pod that its fields name."""
        owners = self.parents(kubernetes_container, "ownership", "pod")
        pair = self.pair_in(kubernetes_container)
        named = [pod for pod in self.all("pod") if pair and self.pair(pod) == pair]
        return owners or (named if len(named) == 1 else [])

    def pair(self, pod: Json) -> Pair:
        k8s = dig(pod, "Metadata", "K8s")
        return short(text(k8s, "Namespace")), short(text(k8s, "Name"))

    def pair_in(self, kubernetes_container: Json) -> Pair | None:
        k8s = dig(kubernetes_container, "Metadata", "K8s")
        pair = short(text(k8s, "Namespace")), short(text(k8s, "Pod"))
        return pair if all(pair) else None

    def unmatched_pair_in(self, kubernetes_container: Json) -> Pair | None:
        """The pod in the fields of a Kubernetes container, or None if `pods_of` finds a pod."""
        known = self.pods_of(kubernetes_container)
        return None if known else self.pair_in(kubernetes_container)

    def kubernetes_pairs(self, container: Json) -> list[Pair | None]:
        return [
            pair
            for node in self.kubernetes_containers(container)
            for pair in (*map(self.pair, self.pods_of(node)), self.unmatched_pair_in(node))
        ]

    def labelled_pairs(self, container: Json) -> list[Pair | None]:
        """The pod from the labels that kubelet or containerd sets, as a list."""
        namespaces = (
            self.nested_label(container, "pod", "namespace"),
            self.flat_label(container, "pod.namespace"),
            self.nested_label(container, "cri", "sandbox-namespace"),
        )
        names = (
            self.nested_label(container, "pod", "name"),
            self.flat_label(container, "pod.name"),
            self.nested_label(container, "cri", "sandbox-name"),
        )
        known = [pair for pair in zip(namespaces, names, strict=True) if all(pair)]
        return [pair for pair in known[:1] if all(map(short, pair))]

    def kubelet_pairs(self, container: Json) -> list[Pair | None]:
        parts = self.kubelet_name(container)
        return [(parts[3], parts[2])] if parts and short(parts[3]) and short(parts[2]) else []

    @cached
    def pairs(self, namespace: Json) -> list[Pair]:
        """The pods of all containers of a network namespace, from the first source that has any."""
        for source in (self.kubernetes_pairs, self.labelled_pairs, self.kubelet_pairs):
            found = distinct(p for c in self.containers(namespace) for p in source(c) if p)
            if found:
                return found
        return []

    @cached
    def linked_pods(self, namespace: Json) -> list[Json]:
        """The pods of the containers of a network namespace, according to the Kubernetes probe.

        The probe compares only namespaces and names, so it also links a container with pods of
        other clusters. Pods in the host's cluster take precedence.
        """
        pods = distinct(
            pod
            for container in self.containers(namespace)
            for node in self.kubernetes_containers(container)
            for pod in self.pods_of(node)
        )
        if len(distinct(map(self.cluster, pods))) > 1:
            cluster = self.cluster_of_host(self.host(namespace))
            return [pod for pod in pods if cluster and self.cluster(pod) == cluster] or pods
        return pods

    @cached
    def pod(self, namespace: Json) -> Json:
        """The node of the pod that owns a network namespace, or None.

        Without an edge, the pod is found by its name. Pods that are known to be on another host or
        in another cluster are ignored.
        """
        if namespace is None or self.is_uncertain(namespace) or not self.pairs(namespace):
            return None
        linked = self.linked_pods(namespace)
        if linked:
            return self.latest(linked)
        host = self.host(namespace)
        return self.latest(
            [
                pod
                for pod in self.all("pod")
                if self.pair(pod) == self.pairs(namespace)[0]
                and self.cluster_of_host(host) in ("", self.cluster(pod))
                and self.agent(pod) in ("", host)
            ]
        )

    def latest(self, pods: list[Json]) -> Json:
        """The newest running pod, or else the newest pod, or None if the choice is ambiguous."""
        if len(distinct(map(self.cluster, pods))) != 1:
            return None
        return only(self.newest([pod for pod in pods if self.is_running(pod)] or pods))

    def is_running(self, pod: Json) -> bool:
        return text(pod, "Metadata", "K8s", "Status") in ("Running", "Pending")

    def created_at(self, node: Json) -> int:
        return number(node.get("CreatedAt"))

    def newest(self, nodes: list[Json]) -> list[Json]:
        newest = max(map(self.created_at, nodes), default=0)
        return [node for node in nodes if self.created_at(node) == newest]

    # -- clusters and hosts ---------------------------------------------------------------------

    def cluster(self, node: Json) -> str:
        return short(text(node, "Metadata", "ClusterName"))

    def node_of(self, pod: Json) -> str:
        """The name of the Kubernetes node that a pod runs on."""
        k8s = dig(pod, "Metadata", "K8s")
        return short(text(k8s, "Node")) or short(text(k8s, "Extra", "Spec", "NodeName"))

    @cached
    def kubernetes_nodes(self, host: str) -> list[Pair]:
        """Cluster and name of the Kubernetes nodes to which a host has edges."""
        return distinct(
            (self.cluster(node), name)
            for node in self.all("node")
            for parent in self.parents(node, "node", "host")
            if self.host(parent) == host != ""
            and (name := short(text(node, "Metadata", "K8s", "Name")))
        )

    def cluster_of_host(self, host: str) -> str:
        """The cluster of a host's Kubernetes nodes, or "" if there is not exactly one."""
        return only(cluster for cluster, _ in self.kubernetes_nodes(host)) or ""

    @cached
    def linked_hosts(self, pod: Json) -> list[str]:
        """The hosts with an edge to the Kubernetes node of a pod."""
        node = self.cluster(pod), self.node_of(pod)
        hosts = distinct(self.host(host) for host in self.all("host"))
        return [host for host in hosts if node in self.kubernetes_nodes(host)]

    @cached
    def agent(self, pod: Json) -> str:
        """The host of a pod, under the name that its agent uses, or "" if the host is unknown.

        The Kubernetes probe links a host with the nodes of this name in all clusters. If several
        clusters have such a node, it is unknown which of the nodes is the host.
        """
        host = only(self.linked_hosts(pod))
        return host if host and len(self.kubernetes_nodes(host)) == 1 else ""

    def assumed_host(self, pod: Json) -> str:
        """The host from `agent`, or else the name of the pod's Kubernetes node.

        This name is not used if the node has an edge to a host. It is not used either if a host
        with this name has an edge to a Kubernetes node.
        """
        node = self.node_of(pod)
        free = not self.linked_hosts(pod) and not self.kubernetes_nodes(node)
        return self.agent(pod) or (node if free else "")

    # -- Kubernetes -----------------------------------------------------------------------------

    def controllers(self, node: Json) -> list[Json]:
        references = items(node, "Metadata", "K8s", "Extra", "ObjectMeta", "OwnerReferences")
        return [owner for owner in references if dig(owner, "Controller") is True]

    def owner(self, node: Json) -> Pair:
        """The kind and the name of the only controlling owner, or two empty strings."""
        owners = self.controllers(node)
        pair = short(text(owners[0], "Kind")), short(text(owners[0], "Name"))
        return pair if len(owners) == 1 and all(pair) else ("", "")

    def kind_and_name(self, node: Json, kind: str) -> Pair:
        name = short(text(node, "Metadata", "K8s", "Name"))
        return (kind, name) if name else ("", "")

    def objects(self, kind: str, pod: Json, name: str) -> list[Json]:
        """The newest nodes with this kind and name in the pod's namespace and cluster."""
        found = [
            node
            for node in self.all(kind)
            if text(node, "Metadata", "K8s", "Name") == name
            and text(node, "Metadata", "K8s", "Namespace")
            == text(pod, "Metadata", "K8s", "Namespace")
            and self.cluster(node) == self.cluster(pod)
        ]
        return self.newest(found)

    def workload(self, pod: Json) -> Pair:
        """The kind and the name of a pod's workload, or two empty strings."""
        if not self.controllers(pod):
            return self.selecting_workload(pod)
        kind, name = self.owner(pod)
        pod_name = short(text(pod, "Metadata", "K8s", "Name"))
        if kind == "ReplicaSet":
            sets = [self.of_replica_set(node) for node in self.objects("replicaset", pod, name)]
            if sets:
                return only(sets) or ("", "")
            suffix = "-" + self.pod_label(pod, "pod-template-hash")
            if len(suffix) > 1 and name.endswith(suffix) and name != suffix:
                return "Deployment", name.removesuffix(suffix)
        if kind == "Job":
            jobs = [
                self.owner(node) if self.controllers(node) else self.kind_and_name(node, "Job")
                for node in self.objects("job", pod, name)
            ]
            if jobs:
                return only(jobs) or ("", "")
        if kind == "Node":
            return "StaticPod", pod_name.removesuffix("-" + name) or pod_name
        return kind, name

    def of_replica_set(self, node: Json) -> Pair:
        if self.controllers(node):
            return self.owner(node)
        deployment = only(self.selectors_of(node, "deployment"))
        if deployment is not None:
            return self.kind_and_name(deployment, "Deployment")
        return self.kind_and_name(node, "ReplicaSet")

    def selecting_workload(self, pod: Json) -> Pair:
        """The only workload that selects a pod without an owner."""
        parents = [parent for kind in CONTROLLERS for parent in self.selectors_of(pod, kind)]
        if len(parents) != 1:
            return "", ""
        if self.kind(parents[0]) == "replicaset":
            return self.of_replica_set(parents[0])
        return self.kind_and_name(parents[0], CONTROLLERS[self.kind(parents[0])])

    def pod_label(self, pod: Json, key: str) -> str:
        """A label of a pod. A node has two copies of all labels, and the first value found is used.

        If the key of a label is a prefix of another key, a copy can lack one of the two labels.
        """
        k8s = dig(pod, "Metadata", "K8s")
        for labels in (dig(k8s, "Labels"), dig(k8s, "Extra", "ObjectMeta", "Labels")):
            value = dig(labels, *key.split("."))
            value = dig(labels, key) if value is None else value
            if isinstance(value, str):
                return value
        return ""

    def cluster_addresses(self, service: Json) -> list[str]:
        """The cluster IPs of a service. A headless service has the text ``None`` instead."""
        k8s = dig(service, "Metadata", "K8s")
        return addresses_of([dig(k8s, "ClusterIP"), *items(k8s, "Extra", "Spec", "ClusterIPs")])

    def service(self, pod: Json) -> str:
        """The name of the only service that selects the pod and has a cluster IP, or ""."""
        found = only(s for s in self.selectors_of(pod, "service") if self.cluster_addresses(s))
        return short(text(found, "Metadata", "K8s", "Name"))

    def kubernetes_container(self, pod: Json) -> str:
        """The name of the only Kubernetes container of a pod, or ""."""
        found = [node for node in self.all(K8S_CONTAINER) if is_in(pod, self.pods_of(node))]
        return short(text(found[0], "Metadata", "K8s", "Name")) if len(found) == 1 else ""

    @cached
    def pod_addresses(self, pod: Json) -> list[str]:
        """The addresses of a pod. A pod that has ended or uses the host's network has none.

        A pod with an address of its host is assumed to use the host's network. If the pod's host is
        unknown, an address of any host is enough.
        """
        if not self.is_running(pod):
            return []
        k8s = dig(pod, "Metadata", "K8s")
        ips = [dig(k8s, "IP"), *(dig(ip, "IP") for ip in items(k8s, "Extra", "Status", "PodIPs"))]
        addresses = addresses_of(ips)
        in_host_network = (
            dig(k8s, "Extra", "Spec", "HostNetwork") is True
            or address_of(dig(k8s, "Extra", "Status", "HostIP")) in addresses
            or any(
                self.is_host_namespace(self.namespace(node))
                and self.agent(pod) in ("", self.host(node))
                and set(addresses) & set(addresses_of(self.interface_addresses(node)))
                for node in self.interfaces()
            )
        )
        return [] if in_host_network else addresses

    # -- capture points -------------------------------------------------------------------------

    @cached
    def capture_points(self) -> dict[str, Json]:
        """Interfaces by NodeTID. If several have the same NodeTID, `rank` decides."""
        found: dict[str, Json] = {}
        for node in self.interfaces():
            tid = short(text(node, "Metadata", "TID") or text(node, "ID"))
            if tid and (tid not in found or self.rank(node) < self.rank(found[tid])):
                found[tid] = node
        return found

    def rank(self, node: Json) -> tuple[str, ...]:
        metadata = node["Metadata"]
        return text(node, "Host"), text(metadata, "Name"), text(metadata, "Type"), text(node, "ID")

    def node_names(self, node: Json) -> Names:
        namespace = self.namespace(node)
        pod_names = self.pod_names_at(namespace)
        return (
            short(text(node, "Metadata", "Name")),
            self.host(node),
            short(text(node, "Metadata", "Type")),
            self.netns_name(namespace),
            pod_names["namespace"],
            pod_names["pod"],
            pod_names["workload"],
            self.container(namespace),
        )

    @cached
    def capture_point(self, node: Json) -> tuple[str, tuple[str, ...], str, str]:
        """A capture point's namespace, the namespaces of its veth peers, its host and cluster."""
        peers = [
            self.namespace(end)
            for parent, child, relation in self.edges
            if relation == "layer2" and self.kind(parent) == self.kind(child) == "veth"
            for this, end in ((parent, child), (child, parent))
            if this is node
        ]
        found = {self.identity(peer) for peer in peers if peer is not None}
        host = self.host(node)
        namespace = self.identity(self.namespace(node))
        return namespace, tuple(sorted(found)), host, self.cluster_of_host(host)

    def nodes_by_tid(self) -> dict[str, Names]:
        return {tid: self.node_names(node) for tid, node in self.capture_points().items()}

    # -- locations of addresses -----------------------------------------------------------------

    def interface_addresses(self, node: Json) -> list[Json]:
        """The addresses of an interface, with prefix lengths.

        In IPVS mode, kube-proxy adds all cluster IPs to the interface kube-ipvs0 of each host.
        These addresses are left out.
        """
        if text(node, "Metadata", "Name") == "kube-ipvs0":
            return []
        return [*items(node, "Metadata", "IPV4"), *items(node, "Metadata", "IPV6")]

    def is_service_on_host(self, node: Json, address: str) -> bool:
        """Whether an address is a cluster IP on a dummy interface of a host.

        For example, NodeLocal DNSCache adds the cluster IP of the DNS service to each host.
        """
        cluster = self.cluster_of_host(self.host(node))
        clusters = [
            self.cluster(service)
            for service in self.all("service")
            if address in self.cluster_addresses(service)
        ]
        return (
            self.is_host_namespace(self.namespace(node))
            and text(node, "Metadata", "Type") == "dummy"
            and any("" in (cluster, other) or cluster == other for other in clusters)
        )

    def machine(self, node: Json) -> str:
        """The virtual machine behind an interface: its Libvirt domain, or else its UUID.

        The domain can come from another interface of the same machine.
        """
        uuid = text(node, "Metadata", "ExtID", "vm-uuid")
        domains = distinct(
            domain
            for other in self.interfaces()
            if uuid and short(uuid) and text(other, "Metadata", "ExtID", "vm-uuid") == uuid
            if (domain := text(other, "Metadata", "Libvirt", "Domain"))
        )
        return (
            short(text(node, "Metadata", "Libvirt", "Domain"))
            or short(only(domains) or "")
            or short(uuid)
        )

    @cached
    def locations(self, address: str) -> list[Location]:
        """Where an address is: at interfaces, or at virtual machines behind interfaces.

        If Neutron lists the address but the interface does not have it, the virtual machine behind
        the interface has it.
        """
        found: list[Location] = []
        for node in self.interfaces():
            addresses = addresses_of(self.interface_addresses(node))
            if address in addresses and not self.is_service_on_host(node, address):
                found.append((self.namespace(node), self.host(node), None))
            neutron = dig(node, "Metadata", "Neutron")
            neutron_addresses = addresses_of([*items(neutron, "IPV4"), *items(neutron, "IPV6")])
            assigned = [*items(node, "Metadata", "IPV4"), *items(node, "Metadata", "IPV6")]
            if address in neutron_addresses and address not in addresses_of(assigned):
                found.append((self.namespace(node), self.host(node), self.machine(node)))
        return [
            location
            for position, location in enumerate(found)
            if not any(
                location[0] is other[0] and location[1:] == other[1:] for other in found[:position]
            )
        ]

    @cached
    def networks(self, host: str) -> list[Any]:
        return distinct(
            network
            for node in self.interfaces()
            if host and self.host(node) == host
            for value in self.interface_addresses(node)
            if (network := network_of(value)) is not None
        )

    # -- names of addresses ---------------------------------------------------------------------

    @cached
    def pod_names(self, pod: Json) -> dict[str, Any]:
        if pod is None:
            pod_names: dict[str, Any] = dict.fromkeys(
                ("namespace", "pod", "workload", "workload_kind", "service", "cluster"), ""
            )
            return {**pod_names, "labels": ("",) * len(self.k8s_labels)}
        namespace, name = self.pair(pod)
        kind, workload = self.workload(pod)
        return {
            "namespace": namespace,
            "pod": name,
            "workload": workload,
            "workload_kind": kind,
            "service": self.service(pod),
            "cluster": self.cluster(pod),
            "labels": tuple(short(self.pod_label(pod, key)) for key in self.k8s_labels),
        }

    def pod_names_at(self, namespace: Json) -> dict[str, Any]:
        """The names of the pod of a network namespace, by label.

        If the pod has no node, only its Kubernetes namespace and name are known.
        """
        pod = self.pod(namespace)
        pod_names = dict(self.pod_names(pod))
        if pod is None and (pair := self.unmatched_pair(namespace)):
            pod_names["namespace"], pod_names["pod"] = pair
        return pod_names

    def unmatched_pair(self, namespace: Json) -> Pair | None:
        """The pod of a network namespace, if this pod is known but has no node."""
        if namespace is None or self.is_uncertain(namespace) or self.pod(namespace) is not None:
            return None
        pairs = self.pairs(namespace)
        return pairs[0] if pairs else None

    def names(
        self,
        pod_names: dict[str, Any],
        *,
        host: str,
        container: str = "",
        machine: str | None = None,
        netns: str = "",
    ) -> Names:
        """The names of an address, in the order of the labels."""
        prefix = f"{pod_names['namespace']}/" if pod_names["namespace"] else ""
        service, workload = pod_names["service"], pod_names["workload"]
        return (
            (prefix + service if service else "")
            or (prefix + workload if workload else "")
            or container
            or (machine if machine is not None else netns or host),
            host,
            pod_names["namespace"],
            pod_names["pod"],
            workload,
            pod_names["workload_kind"],
            container,
            service,
            *pod_names["labels"],
        )

    @cached
    def candidates(self, address: str) -> list[Candidate]:
        """The owners of an address: interfaces, virtual machines, pods and services.

        If a pod can be at only one interface, and no other pod can be there, they are one owner.
        """
        locations = self.locations(address)
        shown = [self.pod(namespace) for namespace, _, machine in locations if machine is None]
        pods = [pod for pod in self.pods_with(address) if not is_in(pod, shown)]
        options = [
            [
                location
                for location in locations
                if self.may_be_at(pod, location, alone=len(locations) == 1)
            ]
            for pod in pods
        ]
        result = []
        merged = []
        for location in locations:
            claims = [
                (pod, option)
                for pod, option in zip(pods, options, strict=True)
                if is_in_locations(location, option)
            ]
            if len(claims) == 1 and len(claims[0][1]) == 1:
                merged.append(claims[0][0])
                result.append(self.merged_candidate(location, claims[0][0]))
            else:
                result.append(self.location_candidate(location))
        result += [self.pod_candidate(pod) for pod in pods if not is_in(pod, merged)]
        result += [
            self.service_candidate(service)
            for service in self.all("service")
            if address in self.cluster_addresses(service)
        ]
        return distinct(result)

    def pods_with(self, address: str) -> list[Json]:
        """In each cluster, the newest pod with this address."""
        pods = [pod for pod in self.all("pod") if address in self.pod_addresses(pod)]
        clusters = distinct(map(self.cluster, pods))
        of_cluster = [[pod for pod in pods if self.cluster(pod) == each] for each in clusters]
        return [pod for pods in of_cluster for pod in self.newest(pods)]

    def may_be_at(self, pod: Json, location: Location, *, alone: bool) -> bool:
        """Whether the interface at a location can belong to the pod, which has the same address.

        * The interface must not be in a host's own namespace or in the namespace of another pod.
        * If only the name of the namespace's pod is known, the pod must have this name. It must not
          be in another cluster or on another host.
        * If the namespace has no pod, the interface must be on the pod's host. If the pod's host is
          unknown, no other interface may have the address.
        """
        namespace, host, machine = location
        if machine is not None or self.is_host_namespace(namespace) or self.is_uncertain(namespace):
            return False
        if self.pod(namespace) is not None:
            return False
        same_cluster = self.cluster_of_host(host) in ("", self.cluster(pod))
        pair = self.unmatched_pair(namespace)
        if pair is not None:
            return pair == self.pair(pod) and same_cluster and self.agent(pod) in ("", host)
        if any(self.pod(other) is pod for other in self.all("netns")):
            return False
        if self.node_of(pod):
            return self.assumed_host(pod) == host != ""
        return alone and same_cluster

    def location_candidate(self, location: Location) -> Candidate:
        """The owner of a location. If it is a virtual machine, its namespace is unknown."""
        namespace, host, machine = location
        pod_names = self.pod_names_at(namespace)
        names = self.names(
            pod_names,
            host=host,
            container=self.container(namespace),
            machine=machine,
            netns=self.netns_name(namespace),
        )
        identity = self.identity(namespace) if machine is None else ""
        return names, identity, host, pod_names["cluster"] or self.cluster_of_host(host)

    def merged_candidate(self, location: Location, pod: Json) -> Candidate:
        """A pod and its interface as one owner."""
        namespace, host, _ = location
        container = (
            self.container(namespace)
            if self.containers(namespace)
            else self.kubernetes_container(pod)
        )
        netns = self.netns_name(namespace)
        names = self.names(self.pod_names(pod), host=host, container=container, netns=netns)
        cluster = self.cluster(pod) or self.cluster_of_host(host)
        return names, self.identity(namespace), host, cluster

    def pod_candidate(self, pod: Json) -> Candidate:
        """A pod as the owner of an address that no interface of the pod has.

        If the pod's host has no known agent, the host gets the name of the Kubernetes node.
        """
        namespaces = [netns for netns in self.all("netns") if self.pod(netns) is pod]
        namespace = namespaces[0] if len(namespaces) == 1 else None
        known = self.host(namespace)
        names = self.names(
            self.pod_names(pod),
            host=known or self.agent(pod) or self.node_of(pod),
            container=(
                self.kubernetes_container(pod) if namespace is None else self.container(namespace)
            ),
            netns=self.netns_name(namespace),
        )
        host = known or self.assumed_host(pod)
        cluster = self.cluster(pod) or self.cluster_of_host(host)
        return names, self.identity(namespace), host, cluster

    def service_candidate(self, service: Json) -> Candidate:
        service_names = dict(self.pod_names(None))
        service_names["namespace"] = short(text(service, "Metadata", "K8s", "Namespace"))
        service_names["service"] = short(text(service, "Metadata", "K8s", "Name"))
        return self.names(service_names, host=""), "", "", self.cluster(service)

    def addresses(self) -> list[str]:
        """All addresses that have candidates."""
        found = {
            address
            for node in self.interfaces()
            for metadata in (node["Metadata"], dig(node, "Metadata", "Neutron"))
            for address in addresses_of([*items(metadata, "IPV4"), *items(metadata, "IPV6")])
        }
        found |= {a for pod in self.all("pod") for a in self.pod_addresses(pod)}
        found |= {a for node in self.all("service") for a in self.cluster_addresses(node)}
        return sorted(address for address in found if self.candidates(address))

    # -- the names of an address in a flow ------------------------------------------------------

    def choose(self, address: str, other: str, tid: str) -> Names | None:
        """Return the names of an address in a flow, or None if they are ambiguous.

        A loopback or link-local address has names only if the flow was captured in its namespace,
        or at a veth peer of this namespace.
        """
        candidates = self.candidates(address)
        local = is_local(address)
        node = self.capture_points().get(tid)
        if node is None:
            return None if local else only_names(candidates)
        namespace, peers, host, cluster = self.capture_point(node)
        shared = host and self.share_network(host, address, other)
        near = [
            [c for c in candidates if namespace and c[1] == namespace],
            [c for c in candidates if c[1] in peers],
        ]
        elsewhere = [
            [c for c in candidates if shared and c[2] == host],
            [c for c in candidates if cluster and c[3] == cluster],
        ]
        for choice in near if local else [candidates, *near, *elsewhere]:
            if (names := only_names(choice)) is not None:
                return names
        return None

    @cached
    def share_network(self, host: str, address: str, other: str) -> bool:
        if not address_of(other):
            return False
        ends = ipaddress.ip_address(address), ipaddress.ip_address(other)
        return any(all(end in network for end in ends) for network in self.networks(host))


def only_names(candidates: Iterable[Candidate]) -> Names | None:
    found = distinct(names for names, *_ in candidates)
    return tuple(found[0]) if len(found) == 1 else None


def is_in_locations(location: Location, locations: Iterable[Location]) -> bool:
    return any(location is other for other in locations)
