"""Finds the names of Kubernetes pods, workloads and services in the topology.

As in Kubernetes, owners with ``Controller: true`` determine the workload of a pod. For example, a
deployment is the workload of a pod if the deployment owns the pod's replica set.

The edges of Skydive's Kubernetes probe show only which label selectors match a pod: see
``matchLabelSelector`` in ``topology/probes/k8s/cache.go``. Therefore a workload that does not own a
pod can have an edge to the pod.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from skyfast.skydive.graph_index import (
    CONTROLLERS,
    DEPLOYMENT,
    KUBERNETES_CONTAINER,
    NODE,
    OWNERSHIP,
    SERVICE,
    GraphIndex,
)
from skyfast.skydive.multimap import MultiMap
from skyfast.skydive.topology_graph import K8s, Node, OwnerReference

RUNNING: Final = frozenset(("Running", "Pending"))
"""Pods with these values of ``K8s.Status`` use their addresses.

Ended pods still have a ``K8s.IP``, but another pod may already use this address."""

MAX_OF_CONTAINER: Final = 16
"""Maximum number of Kubernetes containers per runtime container. Also the maximum number of pods
per Kubernetes container.

In a consistent topology, both numbers are at most 1."""

MAX_OF_NAME: Final = 64
"""Maximum number of pods with the same namespace and name. If there are more, none of them is found
by name.

If a pod is looked up for a host whose cluster is known, only the pods in this cluster count."""

_NO_K8S: Final = K8s()


class ContradictionError(Exception):
    """Containers that share a network namespace belong to different pods."""


class Workload(msgspec.Struct, frozen=True, gc=False):
    """The name and kind of a workload; both are "" if the workload is unknown."""

    name: str = ""
    kind: str = ""


_UNKNOWN: Final = Workload()


class PodNames(msgspec.Struct, frozen=True, gc=False):
    """The names of a pod; unknown names are ""."""

    namespace: str
    pod: str
    workload: Workload
    service: str
    labels: tuple[str, ...]
    """The values of the requested pod labels."""


class Pod(msgspec.Struct, frozen=True, eq=False, gc=False, kw_only=True):
    node: Node
    names: PodNames
    cluster: str
    agent: str
    """The name of the host that has an edge to the pod's Kubernetes node; "" if there is no such
    host, or if it is unclear which host it is."""
    host: str
    """The host that labels show: ``agent``, or else the name of the Kubernetes node."""
    assumed_host: str
    """The host on which the interface of the pod is expected: ``host``, or "" if edges of the
    topology contradict ``host``."""
    addresses: tuple[str, ...]
    """As written in flows. Empty if the pod's status is not in `RUNNING`."""
    host_network: bool
    only_container: str
    """The Kubernetes name of the pod's only container; "" if the number of containers is not 1."""

    @property
    def created_at(self) -> int:
        """The time of creation in milliseconds, or 0."""
        return self.node.created_at or 0


class Service(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A service with at least one cluster IP."""

    namespace: str
    name: str
    cluster: str
    addresses: tuple[str, ...]
    """The cluster IPs, as written in flows."""


class Workloads:
    def __init__(self, index: GraphIndex, *, k8s_labels: tuple[str, ...]) -> None:
        self._index = index
        self._k8s_labels = k8s_labels
        self._owners = self._owner_nodes()
        self._above_owners: dict[tuple[str, str, str, str], Workload | None] = {}
        self._hosts, self._clusters = self._kubernetes_hosts()
        self._service_of_node = {
            id(node): service
            for node in index.of_type("service")
            if (service := self._service(node)) is not None
        }
        self._containers_of_pod, self._pods_of_container = self._pod_containers()
        self._pod_of_node = {id(node): self._pod(node) for node in index.of_type("pod")}
        self._pods_by_name = MultiMap(
            ((pod.names.namespace, pod.names.pod), pod) for pod in self._pod_of_node.values()
        )
        self._named: dict[tuple[str, str, str], list[Pod]] = {}
        self._containers_by_id = MultiMap(
            (container_id, node)
            for node in index.of_type(KUBERNETES_CONTAINER)
            if (container_id := index.name(_k8s(node).container_id))
        )

    @property
    def pods(self) -> Sequence[Pod]:
        return tuple(self._pod_of_node.values())

    @property
    def missing_labels(self) -> tuple[str, ...]:
        """The keys of the requested labels that no pod has."""
        pods = self.pods
        return tuple(
            key
            for index, key in enumerate(self._k8s_labels)
            if not any(
                pod.names.labels[index] or _label(_k8s(pod.node), key) is not None for pod in pods
            )
        )

    @property
    def services(self) -> Sequence[Service]:
        return tuple(self._service_of_node.values())

    def cluster_of_host(self, host: str) -> str:
        """Return the only cluster in which a host is a node; "" if there are none or several."""
        nodes = self._clusters.get(host)
        if not nodes:
            return ""
        clusters = {cluster for cluster, _ in nodes}
        return clusters.pop() if len(clusters) == 1 else ""

    def named(self, namespace: str, name: str, host: str) -> Pod | None:
        """Return the pod with this namespace and name that may be on ``host``, or None.

        If there are several such pods, `latest` chooses. If the cluster of the host is unknown, and
        the pods are in several clusters, return None.
        """
        cluster = self.cluster_of_host(host)
        key = namespace, name, cluster
        pods = self._named.get(key)
        if pods is None:
            of_name = self._pods_by_name.get((namespace, name))
            pods = [pod for pod in of_name if cluster in ("", pod.cluster)]
            self._named[key] = pods = pods if len(pods) <= MAX_OF_NAME else []
        return latest([pod for pod in pods if pod.agent in ("", host)])

    def may_be_on(self, pod: Pod, host: str) -> bool:
        return self.cluster_of_host(host) in ("", pod.cluster) and pod.agent in ("", host)

    def unnamed(self, namespace: str, name: str) -> PodNames:
        """Return the names of a pod that is not in the topology: only its namespace and name."""
        return PodNames(namespace, name, _UNKNOWN, "", ("",) * len(self._k8s_labels))

    def of_container(self, container: Node) -> tuple[list[Pod], set[tuple[str, str]]]:
        """Return the pods of a runtime container, and the names of its pods that were not found.

        Each name is a pair (namespace, name). In a consistent topology, the two results together
        have at most one element. The Kubernetes container of the runtime container is found by an
        edge, or else by the ID of the runtime container.

        Raises:
            ContradictionError: There are more than `MAX_OF_CONTAINER` Kubernetes containers or
                pods.

        """
        index = self._index
        kubernetes_containers = index.parents("container", container)
        if not kubernetes_containers:
            runtime = container.metadata.container
            container_id = index.name(runtime.id) if runtime else ""
            kubernetes_containers = self._containers_by_id.get(container_id)
        if len(kubernetes_containers) > MAX_OF_CONTAINER:
            raise ContradictionError
        pods: list[Pod] = []
        names: set[tuple[str, str]] = set()
        for node in kubernetes_containers:
            owners = self._pods_of_container.get(id(node))
            if len(owners) > MAX_OF_CONTAINER:
                raise ContradictionError
            if owners:
                pods += (self._pod_of_node[id(owner)] for owner in owners)
            elif name := self._pod_name(node):
                names.add(name)
        return pods, names

    def _pod_name(self, container: Node) -> tuple[str, str] | None:
        k8s = _k8s(container)
        namespace, name = self._index.name(k8s.namespace), self._index.name(k8s.pod)
        return (namespace, name) if namespace and name else None

    def _pod_containers(self) -> tuple[MultiMap[int, Node], MultiMap[int, Node]]:
        """Return the Kubernetes containers of each pod, and the pods of each container.

        If a container has no edge to a pod, its field ``K8s.Pod`` names the pod. This name must be
        unique. The keys of both results are the ``id()`` of nodes.
        """
        index = self._index
        by_name = MultiMap(
            ((index.name(_k8s(pod).namespace), index.name(_k8s(pod).name)), pod)
            for pod in index.of_type("pod")
        )
        containers: MultiMap[int, Node] = MultiMap()
        pods: MultiMap[int, Node] = MultiMap()
        for container in index.of_type(KUBERNETES_CONTAINER):
            owners = tuple(
                owner
                for owner in index.parents(OWNERSHIP, container)
                if owner.metadata.type == "pod"
            )
            if not owners and (name := self._pod_name(container)):
                # Kubernetes containers have no cluster, so the name must be unique in all clusters.
                named = by_name.get(name)
                owners = named if len(named) == 1 else ()
            for owner in owners:
                pods.add(id(container), owner)
                containers.add(id(owner), container)
        return containers, pods

    def _owner_nodes(self) -> MultiMap[tuple[str, str, str, str], Node]:
        """Return the replica sets and jobs by kind, cluster, namespace and name."""
        nodes: MultiMap[tuple[str, str, str, str], Node] = MultiMap()
        for kind in ("ReplicaSet", "Job"):
            for node in self._index.of_type(kind.lower()):
                k8s = _k8s(node)
                nodes.add((kind, self._cluster(node), k8s.namespace or "", k8s.name or ""), node)
        return nodes

    def _kubernetes_hosts(
        self,
    ) -> tuple[Mapping[tuple[str, str], set[str]], Mapping[str, set[tuple[str, str]]]]:
        """Return the hosts of each Kubernetes node, and the Kubernetes nodes of each host.

        Each Kubernetes node is a pair of cluster and name.
        """
        hosts: dict[tuple[str, str], set[str]] = defaultdict(set)
        nodes: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for node in self._index.of_type("node"):
            key = self._cluster(node), self._index.name(_k8s(node).name)
            for parent in self._index.parents(NODE, node):
                host = self._index.name(parent.host)
                if host and key[1]:
                    hosts[key].add(host)
                    nodes[host].add(key)
        return hosts, nodes

    def _cluster(self, node: Node) -> str:
        return self._index.name(node.metadata.cluster_name)

    def _pod(self, node: Node) -> Pod:
        index = self._index
        k8s = _k8s(node)
        extra = k8s.extra
        spec, status = (extra.spec, extra.status) if extra else (None, None)
        containers = self._containers_of_pod.get(id(node))
        cluster = self._cluster(node)
        kubernetes_node = index.name(k8s.node) or index.name(spec.node_name if spec else None)
        hosts = self._hosts.get((cluster, kubernetes_node), set())
        # If two clusters have a node of the same name, the host of one node has edges to both
        # nodes, so it is unclear to which cluster the host belongs.
        agents = [host for host in hosts if len(self._clusters[host]) == 1]
        agent = agents[0] if len(hosts) == len(agents) == 1 else ""
        contradictory = bool(hosts) or kubernetes_node in self._clusters
        texts = [k8s.ip, *((ip.ip for ip in status.pod_ips or ()) if status else ())]
        pod_addresses = [address for text in texts if (address := index.address(text))]
        host_address = index.address(status.host_ip) if status else ""
        return Pod(
            node=node,
            names=PodNames(
                index.name(k8s.namespace),
                index.name(k8s.name),
                self._workload(node),
                self._only_service(node),
                tuple(index.name(_label(k8s, key)) for key in self._k8s_labels),
            ),
            cluster=cluster,
            agent=agent,
            host=agent or kubernetes_node,
            assumed_host=agent or ("" if contradictory else kubernetes_node),
            addresses=tuple(dict.fromkeys(pod_addresses)) if k8s.status in RUNNING else (),
            host_network=bool(spec and spec.host_network) or host_address in pod_addresses,
            only_container=index.name(_k8s(containers[0]).name) if len(containers) == 1 else "",
        )

    def _only_service(self, pod: Node) -> str:
        """Return the name of the service that selects a pod; "" if none or several do.

        Only services with a cluster IP count.
        """
        services = [
            service
            for node in self._selecting(SERVICE, pod)
            if (service := self._service_of_node.get(id(node))) is not None
        ]
        return services[0].name if len(services) == 1 else ""

    def _service(self, node: Node) -> Service | None:
        index = self._index
        k8s = _k8s(node)
        spec = k8s.extra.spec if k8s.extra else None
        texts = [k8s.cluster_ip, *((spec.cluster_ips or ()) if spec else ())]
        # Headless services have "None" as their address.
        found = [index.address(text) for text in texts if text != "None"]
        cluster_ips = tuple(dict.fromkeys(address for address in found if address))
        if not cluster_ips:
            return None
        return Service(
            index.name(k8s.namespace), index.name(k8s.name), self._cluster(node), cluster_ips
        )

    def _workload(self, pod: Node) -> Workload:
        owners = _controllers(pod)
        if not owners:
            return self._selecting_workload(pod)
        owner = self._only_owner(owners)
        k8s = _k8s(pod)
        match owner.kind:
            case "ReplicaSet":
                return self._above_owner(pod, owner) or self._without_replica_set(k8s, owner)
            case "Job":
                return self._above_owner(pod, owner) or owner
            case "Node":
                # The pod is static: kubelet has appended the node's name to the pod's name.
                name = self._index.name(k8s.name)
                return Workload(name.removesuffix(f"-{owner.name}") or name, "StaticPod")
            case _:
                return owner

    def _selecting_workload(self, pod: Node) -> Workload:
        """Return the only workload whose selector matches ``pod``, or else `_UNKNOWN`."""
        parents = [parent for kind in CONTROLLERS for parent in self._selecting(kind, pod)]
        if len(parents) != 1:
            return _UNKNOWN
        (parent,) = parents
        if parent.metadata.type == "replicaset":
            return self._replica_set(parent)
        return self._itself(parent, CONTROLLERS[parent.metadata.type or ""])

    def _replica_set(self, replica_set: Node) -> Workload:
        owners = _controllers(replica_set)
        if owners:
            return self._only_owner(owners)
        deployments = self._selecting(DEPLOYMENT, replica_set)
        if len(deployments) == 1:
            return self._itself(deployments[0], "Deployment")
        return self._itself(replica_set, "ReplicaSet")

    def _selecting(self, relation: str, node: Node) -> Sequence[Node]:
        """Return the nodes whose label selectors match ``node``, except nodes in other clusters."""
        cluster = self._cluster(node)
        return [
            parent
            for parent in self._index.parents(relation, node)
            if "" in (cluster, self._cluster(parent)) or self._cluster(parent) == cluster
        ]

    def _without_replica_set(self, pod: K8s, owner: Workload) -> Workload:
        """Return the workload of a replica set that is not in the topology.

        Example: if the pods of the replica set ``web-5d9c7b`` have the label ``pod-template-hash``
        with the value ``5d9c7b``, the workload is the deployment ``web``.
        """
        template_hash = _label(pod, "pod-template-hash")
        name = owner.name.removesuffix(f"-{template_hash}") if template_hash else owner.name
        return Workload(name, "Deployment") if name and name != owner.name else owner

    def _job(self, job: Node) -> Workload:
        owners = _controllers(job)
        return self._only_owner(owners) if owners else self._itself(job, "Job")

    def _itself(self, node: Node, kind: str) -> Workload:
        name = self._index.name(_k8s(node).name)
        return Workload(name, kind) if name else _UNKNOWN

    def _only_owner(self, owners: Sequence[OwnerReference]) -> Workload:
        if len(owners) > 1:
            return _UNKNOWN
        kind, name = self._index.name(owners[0].kind), self._index.name(owners[0].name)
        return Workload(name, kind) if kind and name else _UNKNOWN

    def _above_owner(self, pod: Node, owner: Workload) -> Workload | None:
        """Return the workload of ``owner``; None if the topology lacks this replica set or job."""
        key = owner.kind, self._cluster(pod), _k8s(pod).namespace or "", owner.name
        if key not in self._above_owners:
            nodes = self._owners.get(key)
            # Use only the newest node, or all nodes that were created at the newest time.
            created_at = max((node.created_at or 0 for node in nodes), default=0)
            above = {
                self._replica_set(node) if owner.kind == "ReplicaSet" else self._job(node)
                for node in nodes
                if (node.created_at or 0) == created_at
            }
            agreed = above.pop() if len(above) == 1 else _UNKNOWN
            self._above_owners[key] = agreed if nodes else None
        return self._above_owners[key]


def latest(pods: Sequence[Pod]) -> Pod | None:
    """Choose one of several pods with the same name; return None if the choice is unclear.

    Example: a stateful set creates a pod with the name of an ended pod that is still in the
    topology.
    """
    if len({pod.cluster for pod in pods}) != 1:
        return None
    running = [pod for pod in pods if _k8s(pod.node).status in RUNNING] or pods
    created_at = max(pod.created_at for pod in running)
    newest = [pod for pod in running if pod.created_at == created_at]
    return newest[0] if len(newest) == 1 else None


def _k8s(node: Node) -> K8s:
    return node.metadata.k8s or _NO_K8S


def _controllers(node: Node) -> Sequence[OwnerReference]:
    extra = _k8s(node).extra
    meta = extra.object_meta if extra else None
    references = meta.owner_references if meta else None
    return [owner for owner in references or () if owner.controller]


def _label(k8s: K8s, key: str) -> str | None:
    """Return the value of a label, or None.

    Skydive splits the keys of labels at dots into nested objects. Therefore, if a pod has the
    labels ``app`` and ``app.kubernetes.io/name``, only one of them is left. A node has two copies
    of its labels, and each copy may have kept a different one of these labels.
    """
    meta = k8s.extra.object_meta if k8s.extra else None
    for labels in (k8s.labels, meta.labels if meta else None):
        value: Any = labels
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None and labels:
            value = labels.get(key)
        if isinstance(value, str):
            return value
    return None
