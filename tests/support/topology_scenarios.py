"""Builds small topologies, as the JSON that analyzers send, and resolves their names."""

import json
from itertools import count

from skyfast.skydive.name_candidates import choose
from skyfast.skydive.name_resolver import resolve
from skyfast.skydive.topology_graph import Graph, Skipped, decode_edge, decode_node

ADDRESS_NAMES = (
    *("name", "host", "namespace", "pod", "workload", "workload_kind", "container", "service"),
)
NODE_NAMES = ("name", "host", "type", "netns", "namespace", "pod", "workload", "container")


def read_graph(nodes, edges):
    skipped = Skipped()
    decoded = [decode_node(json.dumps(node).encode(), skipped) for node in nodes]
    links = [decode_edge(json.dumps(edge).encode(), skipped) for edge in edges]
    return Graph([n for n in decoded if n], [e for e in links if e], skipped)


def nested(labels):
    """Nest labels at the dots of their keys, as Skydive does."""
    result = {}
    for key, value in labels.items():
        *parents, last = key.split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return result


def owner(kind, name, *, controller=True):
    return {"Kind": kind, "Name": name, "Controller": controller}


def shown(names, keys=ADDRESS_NAMES):
    """Return the names that are not empty, by label."""
    return {key: name for key, name in zip(keys, names, strict=False) if name}


class Scenario:
    """A topology of JSON objects, which tests build node by node and may change."""

    def __init__(self):
        self.nodes = []
        self.edges = []
        self._numbers = count(1)

    # Any node and edge.

    def node(self, node_type, *, host="", created_at=1, **metadata):
        number = next(self._numbers)
        node = {
            "ID": f"id-{number}",
            "Metadata": {"Type": node_type, "TID": f"tid-{number}", **metadata},
            "Host": host,
            "CreatedAt": created_at,
            "UpdatedAt": created_at,
            "DeletedAt": None,
        }
        self.nodes.append(node)
        return node

    def edge(self, parent, child, relation_type="ownership"):
        edge = {
            "ID": f"edge-{len(self.edges)}",
            "Metadata": {"RelationType": relation_type},
            "Parent": parent["ID"],
            "Child": child["ID"],
        }
        self.edges.append(edge)
        return edge

    # Nodes of agents.

    def host(self, name="h1"):
        return self.node("host", host=name, Name=name)

    def netns(self, host, name="net1"):
        netns = self.node("netns", host=host["Host"], Name=name)
        self.edge(host, netns)
        return netns

    def interface(self, owner, *addresses, name="eth0", host=None, node_type="device", **metadata):
        """Add an interface to a network namespace, or to a host's own namespace."""
        host = owner["Host"] if host is None else host
        ipv4 = [address for address in addresses if ":" not in address]
        ipv6 = [address for address in addresses if ":" in address]
        interface = self.node(
            node_type, host=host, Name=name, IPV4=ipv4 or None, IPV6=ipv6 or None, **metadata
        )
        if owner is not None:
            self.edge(owner, interface)
        return interface

    def container(self, owner, name="c1", *, labels=None, manager="docker", container_id=None):
        container = {"ID": container_id or f"runtime-{name}"}
        if labels is not None:
            container["Labels"] = nested(labels)
        node = self.node(
            "container", host=owner["Host"], Name=name, Manager=manager, Container=container
        )
        self.edge(owner, node)
        return node

    # Nodes of the Kubernetes probe.

    def kubernetes(self, node_type, name, *, namespace="shop", cluster="c1", created_at=1, **k8s):
        metadata = {"Manager": "k8s", "Name": name, "K8s": {"Name": name, "Namespace": namespace}}
        metadata["K8s"].update(k8s)
        if cluster:
            metadata["ClusterName"] = cluster
        return self.node(node_type, host="analyzer", created_at=created_at, **metadata)

    def kubernetes_node(self, name="n1", *hosts, cluster="c1"):
        node = self.kubernetes("node", name, namespace="", cluster=cluster)
        for host in hosts:
            self.edge(host, node, "node")
        return node

    def pod(
        self,
        name="web-1",
        *addresses,
        node="n1",
        status="Running",
        owners=(),
        labels=None,
        host_ip="192.0.2.1",
        host_network=False,
        **options,
    ):
        meta = {"OwnerReferences": list(owners), "Labels": nested(labels or {})}
        pod_status = {"PodIPs": [{"IP": each} for each in addresses], "HostIP": host_ip}
        spec = {"HostNetwork": host_network, "NodeName": node}
        extra = {"ObjectMeta": meta, "Spec": spec, "Status": pod_status}
        k8s = {"Node": node, "Status": status, "Labels": nested(labels or {}), "Extra": extra}
        if addresses:
            k8s["IP"] = addresses[0]
        return self.kubernetes("pod", name, **options, **k8s)

    def workload(self, node_type, name, *, owners=(), **options):
        extra = {"ObjectMeta": {"OwnerReferences": list(owners)}}
        return self.kubernetes(node_type, name, Extra=extra, **options)

    def kubernetes_container(self, pod, name="main", *, runtime=None):
        """Add a Kubernetes container to a pod, with an edge to the container ``runtime``."""
        k8s = pod["Metadata"]["K8s"]
        node = self.kubernetes(
            "container", name, namespace=k8s["Namespace"], cluster="", Pod=k8s["Name"]
        )
        self.edge(pod, node)
        if runtime is not None:
            node["Metadata"]["K8s"]["ContainerID"] = runtime["Metadata"]["Container"]["ID"]
            self.edge(node, runtime, "container")
        return node

    def service(self, name, *addresses, pods=(), **options):
        extra = {"Spec": {"ClusterIPs": list(addresses)}}
        node = self.kubernetes(
            "service", name, ClusterIP=addresses[0] if addresses else "", Extra=extra, **options
        )
        for pod in pods:
            self.edge(node, pod, "service")
        return node

    def running_pod(self, host, name="web-1", address="10.1.0.5", *, node="n1", **options):
        pod = self.pod(name, address, node=node, **options)
        netns = self.netns(host, f"cni-{name}")
        interface = self.interface(netns, f"{address}/24")
        runtime = self.container(netns, f"runtime-{name}-{host['Host']}", manager="runc")
        self.kubernetes_container(pod, runtime=runtime)
        return pod, netns, interface

    # Results.

    def resolve(self, **options):
        return resolve(read_graph(self.nodes, self.edges), **options)

    def names(self, address, **options):
        """Return the names of an address that has only one candidate."""
        (candidate,) = self.resolve(**options).addresses[address]
        return shown(candidate.names)

    def candidates(self, address):
        return [shown(each.names) for each in self.resolve().addresses.get(address, ())]

    def point(self, interface):
        return self.resolve().points[interface["Metadata"]["TID"]]

    def node_names(self, interface):
        return shown(self.resolve().nodes[interface["Metadata"]["TID"]], NODE_NAMES)

    def chosen(self, address, other, interface):
        """Return the names of an address in a flow that was captured at an interface."""
        resolution = self.resolve()
        point = interface and resolution.points[interface["Metadata"]["TID"]]
        candidates = resolution.addresses[address]
        names = choose(candidates, other, point, resolution.networks, address=address)
        return None if names is None else shown(names)
