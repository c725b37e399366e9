"""Resolves the names of addresses and capture points from the topology.

An address can have several owners, for example if every host has the same subnet, or if the subnets
of clusters overlap. `skyfast.skydive.name_candidates` distinguishes the owners by the capture point
of a flow. If the topology is contradictory or ambiguous, names are empty rather than wrong.

The rules for pods and workloads are in `skyfast.skydive.workloads`; the rules for containers are in
`skyfast.skydive.runtime_containers`.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Final

import msgspec
from msgspec import structs

from skyfast.skydive import runtime_containers
from skyfast.skydive.graph_index import OWNERSHIP, GraphIndex
from skyfast.skydive.multimap import MultiMap
from skyfast.skydive.name_candidates import Candidate, PointLocation, in_order
from skyfast.skydive.subnets import Networks, Subnets
from skyfast.skydive.topology_graph import Graph, Node
from skyfast.skydive.workloads import ContradictionError, Pod, PodNames, Workloads, latest

MAX_ADDRESSES: Final = 200_000
"""Maximum number of addresses with names; each address may have any number of candidates."""

MAX_COMPARISONS: Final = 10_000
"""Maximum number of comparisons for one address: each pod that has the address is compared with
each `_Place` where the address is used. Above the limit, no pod is assigned to a place."""

# Reasons why nodes, edges and field values are unusable. These are keys of ``Resolution.skipped``.
ADDRESS_LIMIT: Final = "address_limit"

NO_ID: Final = "no_id"
"""Counts interfaces with neither ``TID`` nor ``ID``. No flow can refer to such an interface."""

DUPLICATE_TID: Final = "duplicate_tid"

CONTRADICTORY_PODS: Final = "contradictory_pods"
"""Counts network namespaces whose containers belong to different pods."""

CLUSTER_IP_INTERFACE: Final = "kube-ipvs0"
"""In IPVS mode, kube-proxy adds all cluster IPs to an interface with this name on every host."""


class Resolution(msgspec.Struct, frozen=True, gc=False):
    """All names of a topology."""

    nodes: dict[str, tuple[str, ...]]
    """Maps the ``NodeTID`` of a capture point to the point's names, in the order of
    ``NODE_NAMES``."""
    addresses: dict[str, tuple[Candidate, ...]]
    """The candidates (possible owners) of each address: at least one, and no duplicates.

    Addresses are written as in flows: without prefix length and zone. The order of the candidates
    does not depend on the order of nodes and edges in the graph."""
    points: dict[str, PointLocation]
    """Maps the ``NodeTID`` of a capture point to the point's location."""
    networks: dict[str, Networks]
    """Maps each host to the sorted subnets of its interfaces. Subnets with only one address are
    left out."""
    skipped: dict[str, int]
    """The number of unusable nodes, edges and field values, by reason."""
    has_pods: bool = False
    has_pod_names: bool = False
    """Whether the topology has pods, or has containers that name their pods."""
    missing_labels: tuple[str, ...] = ()
    """The keys of the requested pod labels that no pod has."""


def resolve(graph: Graph, *, k8s_labels: tuple[str, ...] = ()) -> Resolution:
    """Return the names in ``graph``. Never raises, whatever ``graph`` contains.

    For 5,000 pods on 200 hosts, this takes about 1 s. Meanwhile, other threads can get the GIL.
    """
    resolver = _Resolver(graph, k8s_labels)
    resolution = resolver.resolution()
    resolver.release()
    return resolution


class _Namespace(msgspec.Struct, frozen=True, eq=False, gc=False, kw_only=True):
    """A network namespace; unknown names are ""."""

    id: str = ""
    name: str = ""
    host: str = ""
    own: bool = False
    """Whether this is the host's own namespace."""
    has_containers: bool = False
    container: str = ""
    """The name of the only container in the namespace; "" if the number of containers is not 1.
    Sandboxes do not count."""
    pod: Pod | None = None
    pod_names: PodNames | None = None
    """The names of the pod. They can be known from containers even if ``pod`` is None."""
    uncertain: bool = False
    """Whether it is unclear which containers are in the namespace, or to which pod they belong.

    If so, the address of an interface in this namespace does not show to which pod the interface
    belongs."""


class _Place(msgspec.Struct, frozen=True, eq=False, gc=False, kw_only=True):
    """The network namespace, host and cluster where an address is used."""

    namespace: _Namespace
    host: str
    cluster: str
    of_machine: bool
    """Whether a virtual machine behind an interface uses the address."""
    candidate: Candidate


_UNKNOWN: Final = _Namespace()


class _Resolver:
    def __init__(self, graph: Graph, k8s_labels: tuple[str, ...]) -> None:
        self._index = GraphIndex(graph)
        self._workloads = Workloads(self._index, k8s_labels=k8s_labels)
        self._no_pod = self._workloads.unnamed("", "")
        self._skipped = self._index.skipped
        self._namespaces = self._all_namespaces()
        # The keys of ``_namespaces_of_pod`` are the ``id()`` of pods.
        self._namespaces_of_pod = MultiMap(
            (id(namespace.pod), namespace)
            for namespace in self._namespaces.values()
            if namespace.pod is not None
        )
        self._domains = self._libvirt_domains()
        self._places: dict[tuple[int, str, str | None], _Place] = {}
        # Maps each address to the hosts that have the address in their own namespaces.
        self._own_addresses: dict[str, set[str]] = defaultdict(set)
        self._subnets = Subnets()

    def resolution(self) -> Resolution:
        interfaces = [(node, self._namespace_of(node)) for node in self._index.interfaces]
        nodes, points = self._capture_points(interfaces)
        has_pods = bool(self._workloads.pods)
        return Resolution(
            nodes=nodes,
            points=points,
            addresses=self._addresses(interfaces),
            networks=self._subnets.by_host(),
            skipped=dict(self._skipped),
            has_pods=has_pods,
            has_pod_names=has_pods
            or any(namespace.pod_names for namespace in self._namespaces.values()),
            missing_labels=self._workloads.missing_labels,
        )

    def release(self) -> None:
        """Free the memory in parts: freeing all of it at once would hold the GIL for too long."""
        self._index.release()
        while parts := vars(self):
            parts.popitem()

    # Network namespaces.

    def _all_namespaces(self) -> dict[int, _Namespace]:
        """Return all namespaces by the ``id()`` of their nodes."""
        index = self._index
        containers: MultiMap[int, Node] = MultiMap()
        uncertain: set[int] = set()
        for container in index.of_type("container"):
            node = index.namespace(container)
            if node is not None:
                containers.add(id(node), container)
            else:
                # Each owner may be the namespace of the container.
                uncertain.update(id(owner) for owner in index.parents(OWNERSHIP, container))
        # The names of a host's own namespace do not depend on the containers in it.
        namespaces = {
            id(node): _Namespace(id=index.name(node.id), host=index.name(node.host), own=True)
            for node in index.of_type("host")
        }
        for node in index.of_type("netns"):
            namespaces[id(node)] = self._namespace(
                node, containers.get(id(node)), uncertain=id(node) in uncertain
            )
        return namespaces

    def _namespace(self, node: Node, containers: Sequence[Node], *, uncertain: bool) -> _Namespace:
        index = self._index
        node_id, name, host = map(index.name, (node.id, node.metadata.name, node.host))
        if uncertain:
            return _Namespace(id=node_id, name=name, host=host, uncertain=True)
        pod: Pod | None = None
        pod_names: PodNames | None = None
        try:
            pod, pod_names = self._pod_of(containers, host)
        except ContradictionError:
            self._skipped[CONTRADICTORY_PODS] += 1
            uncertain = True
        applications = [
            container for container in containers if not runtime_containers.is_sandbox(container)
        ]
        only = applications[0] if len(applications) == 1 else None
        return _Namespace(
            id=node_id,
            name=name,
            host=host,
            has_containers=bool(containers),
            container=index.name(runtime_containers.shown_name(only)) if only else "",
            pod=pod,
            pod_names=pod_names,
            uncertain=uncertain,
        )

    def _pod_of(
        self, containers: Sequence[Node], host: str
    ) -> tuple[Pod, PodNames] | tuple[None, PodNames | None]:
        """Return the pod to which all ``containers`` belong, and the names of the pod.

        The name of the pod comes from the first of these sources that has a name:

        * the Kubernetes containers that belong to the runtime containers
        * the labels of the runtime containers
        * the names of the runtime containers

        Raises:
            ContradictionError: The containers belong to different pods.

        """
        workloads = self._workloads
        pods: dict[int, Pod] = {}
        names: set[tuple[str, str]] = set()
        for container in containers:
            found, unknown = workloads.of_container(container)
            pods.update((id(pod), pod) for pod in found)
            names.update((pod.names.namespace, pod.names.pod) for pod in found)
            names |= unknown
        for pod_of in (runtime_containers.labelled_pod, runtime_containers.kubelet_pod):
            if not names:
                names.update(
                    (namespace, name)
                    for namespace, name in filter(None, map(pod_of, containers))
                    if self._index.name(namespace) and self._index.name(name)
                )
        if not names:
            return None, None
        linked = tuple(pods.values())
        if len({pod.cluster for pod in linked}) > 1:
            # Skydive's Kubernetes probe ignores clusters. Therefore the probe also links a
            # container to pods in other clusters that have the same name as the pod of the
            # container.
            cluster = workloads.cluster_of_host(host)
            linked = tuple(pod for pod in linked if pod.cluster == cluster)
            if not cluster or not linked:
                raise ContradictionError
        if len(names) > 1:
            raise ContradictionError
        ((namespace, name),) = names
        pod = latest(linked) if linked else workloads.named(namespace, name, host)
        return (pod, pod.names) if pod else (None, workloads.unnamed(namespace, name))

    def _namespace_of(self, interface: Node) -> _Namespace:
        node = self._index.namespace(interface)
        return _UNKNOWN if node is None else self._namespaces[id(node)]

    # Capture points.

    def _capture_points(
        self, interfaces: Sequence[tuple[Node, _Namespace]]
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, PointLocation]]:
        index = self._index
        by_tid: dict[str, tuple[Node, _Namespace]] = {}
        namespaces: dict[int, _Namespace] = {}
        for node, namespace in interfaces:
            namespaces[id(node)] = namespace
            tid = index.name(node.tid)
            if not tid:
                self._skipped[NO_ID] += 1
                continue
            # If several nodes have the same TID, a flow does not show to which of them it belongs.
            # Always choose the same node, so that names do not change.
            other = by_tid.setdefault(tid, (node, namespace))
            if other[0] is not node:
                self._skipped[DUPLICATE_TID] += 1
                if _rank(node) < _rank(other[0]):
                    by_tid[tid] = node, namespace
        nodes: dict[str, tuple[str, ...]] = {}
        points: dict[str, PointLocation] = {}
        for tid, (node, namespace) in by_tid.items():
            host = index.name(node.host)
            pod = namespace.pod_names or self._no_pod
            nodes[tid] = (
                index.name(node.metadata.name),
                host,
                index.name(node.metadata.type),
                "" if namespace.own else namespace.name,
                pod.namespace,
                pod.pod,
                pod.workload.name,
                namespace.container,
            )
            peers = {namespaces[id(peer)].id for peer in index.veth_peers(node)}
            points[tid] = PointLocation(
                namespace=namespace.id,
                peers=tuple(sorted(peers - {""})),
                host=host,
                cluster=self._workloads.cluster_of_host(host),
            )
        return nodes, points

    # Addresses.

    def _addresses(
        self, interfaces: Sequence[tuple[Node, _Namespace]]
    ) -> dict[str, tuple[Candidate, ...]]:
        services = self._services_by_address()
        places = self._places_by_address(interfaces, services)
        pods = self._pods_by_address()
        candidates: dict[str, tuple[Candidate, ...]] = {}
        for address in dict.fromkeys(chain(places.keys(), pods.keys(), services.keys())):
            found = [
                *self._with_pods(places.get(address), _newest(pods.get(address))),
                *services.get(address),
            ]
            if len(candidates) < MAX_ADDRESSES:
                candidates[address] = tuple(found) if len(found) == 1 else in_order(found)
            else:
                self._skipped[ADDRESS_LIMIT] += 1
        return candidates

    def _places_by_address(
        self,
        interfaces: Sequence[tuple[Node, _Namespace]],
        services: MultiMap[str, Candidate],
    ) -> MultiMap[str, _Place]:
        index = self._index
        places: MultiMap[str, _Place] = MultiMap()
        for node, namespace in interfaces:
            metadata = node.metadata
            host = index.name(node.host)
            if (metadata.ipv4 or metadata.ipv6) and metadata.name != CLUSTER_IP_INTERFACE:
                place = self._place(namespace, host, None)
                is_dummy = namespace.own and metadata.type == "dummy"
                for text in (*(metadata.ipv4 or ()), *(metadata.ipv6 or ())):
                    if address := index.address(text):
                        at_service = services.get(address) if is_dummy else ()
                        if not _may_be_service(at_service, place.cluster):
                            places.add(address, place)
                        self._subnets.add(host, text)
                        if namespace.own:
                            self._own_addresses[address].add(host)
            if neutron := metadata.neutron:
                place = self._place(namespace, host, self._virtual_machine(node))
                own = {
                    index.address(text) for text in (*(metadata.ipv4 or ()), *(metadata.ipv6 or ()))
                }
                for text in (*(neutron.ipv4 or ()), *(neutron.ipv6 or ())):
                    if (address := index.address(text)) and address not in own:
                        places.add(address, place)
        return places

    def _place(self, namespace: _Namespace, host: str, machine: str | None) -> _Place:
        """Return the place of an interface's own addresses, or of a virtual machine's addresses.

        For own addresses, ``machine`` is None. For addresses of a virtual machine, ``machine`` is
        the name of this machine, or "" if the name is unknown.
        """
        key = id(namespace), host, machine
        place = self._places.get(key)
        if place is None:
            pod = namespace.pod_names or self._no_pod
            cluster = self._workloads.cluster_of_host(host)
            names = _address_names(
                pod, namespace.container, host, machine=machine, netns=namespace.name
            )
            place = self._places[key] = _Place(
                namespace=namespace,
                host=host,
                cluster=cluster,
                of_machine=machine is not None,
                candidate=Candidate(
                    names=names,
                    # A virtual machine is not in the network namespace of the interface that
                    # connects it.
                    namespace=namespace.id if machine is None else "",
                    host=host,
                    cluster=(namespace.pod.cluster if namespace.pod else "") or cluster,
                ),
            )
        return place

    def _libvirt_domains(self) -> dict[str, set[str]]:
        """Map UUIDs to the names of virtual machines: some interfaces have only the UUID."""
        domains: dict[str, set[str]] = defaultdict(set)
        for node in self._index.interfaces:
            metadata = node.metadata
            if metadata.libvirt and metadata.libvirt.domain and metadata.ext_id:
                domains[metadata.ext_id.vm_uuid or ""].add(metadata.libvirt.domain)
        return domains

    def _virtual_machine(self, node: Node) -> str:
        metadata = node.metadata
        domain = self._index.name(metadata.libvirt.domain) if metadata.libvirt else ""
        uuid = self._index.name(metadata.ext_id.vm_uuid) if metadata.ext_id else ""
        domains = self._domains.get(uuid, ()) if uuid else ()
        if not domain and len(domains) == 1:
            (domain,) = domains
            domain = self._index.name(domain)
        return domain or uuid

    def _pods_by_address(self) -> MultiMap[str, Pod]:
        return MultiMap(
            (address, pod)
            for pod in self._workloads.pods
            if not self._is_host_network(pod)
            for address in pod.addresses
        )

    def _is_host_network(self, pod: Pod) -> bool:
        """Return whether a pod uses the network of its host.

        A pod with an address of its host uses the network of the host. If the host of the pod is
        unknown, an address of any host counts. If the host is known, other hosts do not count,
        because several hosts can use the same subnet.
        """
        hosts = [self._own_addresses.get(address, ()) for address in pod.addresses]
        return pod.host_network or any(
            pod.agent in found if pod.agent else found for found in hosts
        )

    def _with_pods(self, places: Sequence[_Place], pods: Sequence[Pod]) -> list[Candidate]:
        """Return the candidates for an address that is used at ``places`` and belongs to ``pods``.

        If a pod and a place match only each other, they share one candidate.
        """
        if not pods:
            return [place.candidate for place in places]
        # If a place is in a pod's namespace, the candidate of the place already has the pod's
        # names.
        known = {id(place.namespace.pod) for place in places if not place.of_machine}
        pods = [pod for pod in pods if id(pod) not in known]
        compared = places if len(places) * len(pods) <= MAX_COMPARISONS else ()
        matches = {
            id(pod): [place for place in compared if self._may_be_at(pod, place, len(places) == 1)]
            for pod in pods
        }
        claims = MultiMap((id(place), pod) for pod in pods for place in matches[id(pod)])
        found: list[Candidate] = []
        merged: set[int] = set()
        for place in places:
            claiming = claims.get(id(place))
            if len(claiming) == 1 and len(matches[id(claiming[0])]) == 1:
                (pod,) = claiming
                merged.add(id(pod))
                found.append(_merged(place, pod))
            else:
                found.append(place.candidate)
        found += (self._pod_candidate(pod) for pod in pods if id(pod) not in merged)
        return found

    def _may_be_at(self, pod: Pod, place: _Place, is_only: bool) -> bool:
        """Return whether to assume that ``pod`` is at ``place``. Both have the same address."""
        namespace = place.namespace
        if namespace.own or namespace.uncertain or namespace.pod is not None or place.of_machine:
            return False
        if names := namespace.pod_names:
            same = (names.namespace, names.pod) == (pod.names.namespace, pod.names.pod)
            return same and self._workloads.may_be_on(pod, place.host)
        if self._namespaces_of_pod.get(id(pod)):
            return False
        if pod.host:
            return place.host != "" and place.host == pod.assumed_host
        return is_only and self._workloads.may_be_on(pod, place.host)

    def _pod_candidate(self, pod: Pod) -> Candidate:
        """Return the candidate for the address of a pod whose interface is unknown."""
        namespaces = self._namespaces_of_pod.get(id(pod))
        namespace = namespaces[0] if len(namespaces) == 1 else None
        known = namespace.host if namespace else ""
        host = known or pod.assumed_host
        container = namespace.container if namespace else pod.only_container
        netns = namespace.name if namespace else ""
        return Candidate(
            names=_address_names(
                pod.names, container, known or pod.host, machine=None, netns=netns
            ),
            namespace=namespace.id if namespace else "",
            host=host,
            cluster=pod.cluster or self._workloads.cluster_of_host(host),
        )

    def _services_by_address(self) -> MultiMap[str, Candidate]:
        services: MultiMap[str, Candidate] = MultiMap()
        for service in self._workloads.services:
            pod = structs.replace(self._no_pod, namespace=service.namespace, service=service.name)
            candidate = Candidate(
                names=_address_names(pod, "", "", machine=None, netns=""),
                namespace="",
                host="",
                cluster=service.cluster,
            )
            for address in service.addresses:
                services.add(address, candidate)
        return services


def _address_names(
    pod: PodNames, container: str, host: str, *, machine: str | None, netns: str
) -> tuple[str, ...]:
    """Return names in the order of ``ADDRESS_NAMES``, then the values of the pod labels.

    If a virtual machine has the address, ``machine`` is the name of this machine, or "" if the name
    is unknown. Otherwise, ``machine`` is None.
    """
    if pod.service or pod.workload.name:
        name = pod.service or pod.workload.name
        name = f"{pod.namespace}/{name}" if pod.namespace else name
    elif machine is None:
        name = container or netns or host
    else:
        # The address belongs to the virtual machine, so do not show the namespace or the host.
        name = container or machine
    return (
        name,
        host,
        pod.namespace,
        pod.pod,
        pod.workload.name,
        pod.workload.kind,
        container,
        pod.service,
        *pod.labels,
    )


def _merged(place: _Place, pod: Pod) -> Candidate:
    namespace = place.namespace
    container = namespace.container if namespace.has_containers else pod.only_container
    return Candidate(
        names=_address_names(pod.names, container, place.host, machine=None, netns=namespace.name),
        namespace=namespace.id,
        host=place.host,
        cluster=pod.cluster or place.cluster,
    )


def _may_be_service(services: Sequence[Candidate], cluster: str) -> bool:
    """Return whether a host's address can be a cluster IP of one of ``services``.

    ``cluster`` is the cluster of the host, or "" if unknown. NodeLocal DNSCache and kube-router add
    cluster IPs to a dummy interface of every host.
    """
    return any(
        "" in (cluster, service.cluster) or service.cluster == cluster for service in services
    )


def _newest(pods: Sequence[Pod]) -> Sequence[Pod]:
    """Return the newest pods of each cluster."""
    if len(pods) < 2:
        return pods
    newest: dict[str, int] = {}
    for pod in pods:
        newest[pod.cluster] = max(pod.created_at, newest.get(pod.cluster, 0))
    return [pod for pod in pods if pod.created_at == newest[pod.cluster]]


def _rank(node: Node) -> tuple[str, str, str, str]:
    return node.host or "", node.metadata.name or "", node.metadata.type or "", node.id or ""
