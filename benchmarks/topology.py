"""A synthetic topology of a Kubernetes cluster of realistic size.

The nodes are copies of recorded nodes with new IDs, names and addresses. The same arguments always
give the same topology, except for times.
"""

import gzip
import json
import random
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from skyfast.skydive import topology_queries
from skyfast.skydive.topology_queries import Query

RECORDING = Path(__file__).parent.parent / "tests/data/topology-containers/graph.json"

HOSTS = 200
PODS = 5_000
INTERFACES_PER_POD = 3
"""Each pod has ``lo`` and ``eth0`` in its namespace, and the other end of ``eth0`` on the host."""
INTERFACES_PER_HOST = 25
REPLICAS = 5
GZIP_LEVEL = 1

_QUERIES = (
    topology_queries.INTERFACES,
    topology_queries.NAMED_INTERFACES,
    topology_queries.NAMESPACES,
    topology_queries.KUBERNETES,
    topology_queries.EDGES,
    topology_queries.KUBERNETES_EDGES,
    topology_queries.PODS,
)

Element = dict[str, Any]


class Topology:
    """Nodes and edges of `PODS` pods on `HOSTS` hosts.

    Pods get their addresses from ``addresses``. Interfaces get their TIDs from ``tids``. When all
    ``tids`` are used, further interfaces get random TIDs.
    """

    def __init__(self, addresses: Sequence[str], tids: Sequence[str]) -> None:
        self._chance = random.Random(3)
        self._tids = iter(tids)
        self._samples = _samples()
        self._now_ms = int(1000 * time.time())
        self._generation = 0
        self.nodes: list[Element] = []
        self.edges: list[Element] = []
        self.pods: list[Element] = []
        self._replica_sets: list[Element] = []
        self._services: list[Element] = []
        hosts = [self._host(number) for number in range(HOSTS)]
        for number in range(PODS):
            self._pod(number, hosts[number % HOSTS], addresses[number])
        self._responses = {query.gremlin: self._compressed(query) for query in _QUERIES}

    def sizes(self) -> dict[str, int]:
        """Return the numbers of nodes, edges and interfaces, and the bytes of all JSON texts."""
        interfaces = sum("EncapType" in node["Metadata"] for node in self.nodes)
        size = sum(len(json.dumps(e, separators=(",", ":"))) for e in self.nodes + self.edges)
        return {
            "nodes": len(self.nodes),
            "edges": len(self.edges),
            "interfaces": interfaces,
            "bytes": size,
        }

    def response(self, gremlin: str) -> bytes:
        """Return the compressed response to a query."""
        if gremlin in self._responses:
            return self._responses[gremlin]
        query = topology_queries.parse(gremlin)
        assert query is not None, gremlin
        return self._compressed(query)

    def move_pods(self, count: int) -> None:
        """Give the first ``count`` pods another controller, as a rollout does."""
        self._generation += 1
        self._now_ms = int(1000 * time.time())
        for pod in self.pods[:count]:
            metadata = pod["Metadata"]["K8s"]["Extra"]["ObjectMeta"]
            name = f"release-{self._generation}-{self._chance.randrange(count)}"
            metadata["OwnerReferences"] = [
                {"Kind": "StatefulSet", "Name": name, "Controller": True}
            ]
            pod["UpdatedAt"] = self._now_ms
        for query in (topology_queries.KUBERNETES, topology_queries.PODS):
            self._responses[query.gremlin] = self._compressed(query)

    def _compressed(self, query: Query) -> bytes:
        elements = self.edges if query.edges else self.nodes
        text = json.dumps(
            [element for element in elements if query.matches(element)], separators=(",", ":")
        )
        return gzip.compress(text.encode(), GZIP_LEVEL)

    # -- nodes and edges ------------------------------------------------------------------------

    def _node(self, kind: str, host: str, **fields: str) -> Element:
        """Add a copy of a recorded node with a new ID.

        The values in ``fields`` replace the placeholders ``@KEY@``.
        """
        fields["ID"] = str(uuid.UUID(int=self._chance.getrandbits(128)))
        text = re.sub("@([A-Za-z_]+)@", lambda match: fields[match[1]], self._samples[kind])
        node: Element = json.loads(text)
        node |= {"Host": host, "CreatedAt": self._now_ms, "UpdatedAt": self._now_ms}
        self.nodes.append(node)
        return node

    def _edge(self, parent: Element, child: Element, relation: str) -> None:
        self.edges.append(
            {
                "ID": str(uuid.UUID(int=self._chance.getrandbits(128))),
                "Metadata": {"RelationType": relation},
                "Host": child["Host"],
                "Origin": f"agent.{child['Host']}",
                "CreatedAt": self._now_ms,
                "UpdatedAt": self._now_ms,
                "DeletedAt": None,
                "Revision": 1,
                "Parent": parent["ID"],
                "Child": child["ID"],
            }
        )

    def _interface(self, owner: Element, name: str, address: str = "") -> Element:
        tid = next(self._tids, "") or str(uuid.UUID(int=self._chance.getrandbits(128)))
        node = self._node("interface", owner["Host"], Name=name, TID=tid, Address=address)
        if not address:
            del node["Metadata"]["IPV4"]
        self._edge(owner, node, "ownership")
        return node

    def _host(self, number: int) -> tuple[Element, Element]:
        """Add a host and its interfaces, and return the host and its Kubernetes node."""
        name = f"host-{number}"
        host = self._node("host", name, Name=name)
        node = self._node("node", "analyzer", Name=name)
        self._edge(host, node, "node")
        for at in range(INTERFACES_PER_HOST):
            address = f"172.16.{number}.1/24" if at == 0 else ""
            self._interface(host, f"eth{at}", address)
        return host, node

    def _pod(self, number: int, host_and_node: tuple[Element, Element], address: str) -> None:
        host, node = host_and_node
        if number % REPLICAS == 0:
            self._workload(number // REPLICAS)
        replica_set = self._replica_sets[-1]
        name = f"{replica_set['Metadata']['Name']}-{number:05x}"
        namespace = replica_set["Metadata"]["K8s"]["Namespace"]
        runtime_id = f"{self._chance.getrandbits(256):064x}"
        space = self._node("netns", host["Host"], Name=f"cni-{runtime_id[:32]}")
        self._edge(host, space, "ownership")
        self._interface(space, "lo", "127.0.0.1/8")["Metadata"]["EncapType"] = "loopback"
        inner = self._interface(space, "eth0", f"{address}/24")
        outer = self._interface(host, f"veth{number:05x}")
        self._edge(outer, inner, "layer2")
        for container_name, identity in (("app", runtime_id), ("POD", runtime_id[::-1])):
            container = self._node(
                "container",
                host["Host"],
                Container=container_name,
                Pod=name,
                Namespace=namespace,
                ContainerID=identity,
            )
            self._edge(space, container, "ownership")
            if container_name == "app":
                runtime = container
        pod = self._node(
            "pod",
            "analyzer",
            Name=name,
            Namespace=namespace,
            Address=address,
            Node=f"host-{number % HOSTS}",
            ReplicaSet=replica_set["Metadata"]["Name"],
        )
        kubernetes = self._node(
            "k8s_container",
            "analyzer",
            Name="app",
            Pod=name,
            Namespace=namespace,
            ContainerID=runtime_id,
        )
        self.pods.append(pod)
        self._edge(pod, kubernetes, "ownership")
        self._edge(kubernetes, runtime, "container")
        self._edge(node, pod, "node")
        self._edge(replica_set, pod, "replicaset")
        self._edge(self._services[-1], pod, "service")

    def _workload(self, number: int) -> None:
        name, namespace = f"app-{number}", f"team-{number % 40}"
        deployment = self._node("deployment", "analyzer", Name=name, Namespace=namespace)
        replica_set = self._node(
            "replicaset",
            "analyzer",
            Name=f"{name}-7d9f8b6c5d",
            Namespace=namespace,
            Deployment=name,
        )
        service = self._node(
            "service",
            "analyzer",
            Name=name,
            Namespace=namespace,
            Address=f"10.96.{number >> 8}.{number & 255}",
        )
        self._edge(deployment, replica_set, "deployment")
        self._replica_sets.append(replica_set)
        self._services.append(service)


def _samples() -> dict[str, str]:
    """Return templates for nodes as JSON, made from recorded nodes.

    Values that differ between generated nodes are placeholders, such as ``@ID@``.
    """
    recorded = json.loads(RECORDING.read_text())
    graph = recorded[0] if isinstance(recorded, list) else recorded
    return dict(_templates(graph["Nodes"]))


def _templates(nodes: list[Element]) -> Iterator[tuple[str, str]]:
    def first(kind: str, manager: str = "k8s") -> Element:
        for node in nodes:
            metadata = node["Metadata"]
            if metadata["Type"] == kind and metadata.get("Manager", "") == manager:
                return {**node, "ID": "@ID@"}
        raise ValueError(f"no recorded node of type {kind}")

    host = first("host", "docker")
    host["Metadata"] |= {"Name": "@Name@", "Hostname": "@Name@", "TID": "@ID@"}
    yield "host", json.dumps(host)
    interface = first("veth", "")
    interface["Metadata"] |= {"Name": "@Name@", "TID": "@TID@", "IPV4": ["@Address@"]}
    yield "interface", json.dumps(interface)
    space = first("netns", "runc")
    space["Metadata"] |= {"Name": "@Name@", "Path": "/var/run/netns/@Name@", "TID": "@ID@"}
    yield "netns", json.dumps(space)
    container = first("container", "docker")
    container["Metadata"] |= {"Name": "k8s_@Container@_@Pod@_@Namespace@_@ID@_0", "TID": "@ID@"}
    container["Metadata"]["Container"] |= {
        "ID": "@ContainerID@",
        "Labels": {
            "io": {
                "kubernetes": {
                    "container": {"name": "@Container@"},
                    "pod": {"name": "@Pod@", "namespace": "@Namespace@", "uid": "@ID@"},
                }
            }
        },
    }
    yield "container", json.dumps(container)
    for kind in ("node", "deployment", "replicaset", "service", "pod", "container"):
        node = first(kind)
        node["Metadata"]["Name"] = node["Metadata"]["K8s"]["Name"] = "@Name@"
        fields = node["Metadata"]["K8s"]
        if kind != "node":
            fields["Namespace"] = "@Namespace@"
        match kind:
            case "replicaset":
                fields["Extra"]["ObjectMeta"]["OwnerReferences"] = [
                    {"Kind": "Deployment", "Name": "@Deployment@", "Controller": True}
                ]
            case "service":
                fields["ClusterIP"] = "@Address@"
                fields["Extra"]["Spec"]["ClusterIPs"] = ["@Address@"]
            case "pod":
                fields |= {"IP": "@Address@", "Node": "@Node@", "Status": "Running"}
                fields["Extra"]["Status"]["PodIPs"] = [{"IP": "@Address@"}]
                fields["Extra"]["ObjectMeta"]["OwnerReferences"] = [
                    {"Kind": "ReplicaSet", "Name": "@ReplicaSet@", "Controller": True}
                ]
            case "container":
                fields |= {"Pod": "@Pod@", "ContainerID": "@ContainerID@"}
        yield "k8s_container" if kind == "container" else kind, json.dumps(node)
