"""Decodes nodes and edges: only the fields that skyfast uses to resolve names.

Skydive's probes define these fields: see the folders ``k8s``, ``docker``, ``runc``, ``libvirt``,
``neutron`` and ``ovsdb`` of ``topology/probes`` in Skydive's sources.

Decoding never raises. Fields of unexpected types are counted, and treated as absent. Elements that
are not nodes or edges are counted, and skipped.
"""

import sys
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, TypeAlias, get_args, get_origin

import msgspec

from skyfast.flows.fields import UNDECODABLE
from skyfast.skydive.topology_nodes import MalformedResponseError, readable

# Reasons why nodes, edges and field values are unusable. These are keys of `Skipped`.
MALFORMED: Final = "malformed"
"""Counts elements that are not nodes or edges."""

WRONG_TYPE: Final = "wrong_type"

DELETED: Final = "deleted"
"""Counts nodes and edges with ``DeletedAt``."""

Skipped: TypeAlias = Counter[str]
"""The number of unusable nodes, edges and field values, by reason."""


class _Struct(msgspec.Struct, gc=False, rename="pascal", kw_only=True):
    """The base class of decoded objects.

    There are so many of these objects that the garbage collector should not visit them. JSON arrays
    are decoded as tuples, because the garbage collector ignores tuples that contain only strings.
    """


class Docker(_Struct, rename=None):
    type: str | None = None


class Cri(_Struct, rename="kebab"):
    """Annotations under ``io.kubernetes.cri``, which containerd sets."""

    container_type: str | None = None
    container_name: str | None = None
    sandbox_name: str | None = None
    sandbox_namespace: str | None = None


class Crio(_Struct):
    """Annotations under ``io.kubernetes.cri-o``, which CRI-O sets."""

    container_type: str | None = None


class PodLabels(_Struct, rename=None):
    name: str | None = None
    namespace: str | None = None


class ContainerName(_Struct, rename=None):
    name: str | None = None


class KubernetesLabels(_Struct, rename=None):
    docker: Docker | None = None
    cri: Cri | None = None
    crio: Crio | None = msgspec.field(default=None, name="cri-o")
    pod: PodLabels | None = None
    container: ContainerName | None = None


class IoLabels(_Struct, rename=None):
    kubernetes: KubernetesLabels | None = None


class ContainerLabels(_Struct):
    """The labels of a container, in one of two forms.

    Usually, Skydive has split the keys of labels at dots into nested objects: see
    ``NormalizeValue`` in ``graffiti/graph/metadata.go``. However, the runc probe does not split the
    keys of labels from a ``create-config`` file: see ``getMetadata``.
    """

    io: IoLabels | None = msgspec.field(default=None, name="io")
    pod_name: str | None = msgspec.field(default=None, name="io.kubernetes.pod.name")
    pod_namespace: str | None = msgspec.field(default=None, name="io.kubernetes.pod.namespace")
    container_name: str | None = msgspec.field(default=None, name="io.kubernetes.container.name")
    docker_type: str | None = msgspec.field(default=None, name="io.kubernetes.docker.type")


class Container(_Struct):
    id: str | None = msgspec.field(default=None, name="ID")
    labels: ContainerLabels | None = None


class OwnerReference(_Struct):
    kind: str | None = None
    name: str | None = None
    controller: bool | None = None


class ObjectMeta(_Struct):
    """The field ``K8s.Extra.ObjectMeta``: the metadata of the Kubernetes object."""

    owner_references: tuple[OwnerReference, ...] | None = None
    labels: dict[str, Any] | None = None


class Spec(_Struct):
    host_network: bool | None = None
    node_name: str | None = None
    cluster_ips: tuple[str, ...] | None = msgspec.field(default=None, name="ClusterIPs")


class PodIp(_Struct):
    ip: str | None = msgspec.field(default=None, name="IP")


class PodStatus(_Struct):
    pod_ips: tuple[PodIp, ...] | None = msgspec.field(default=None, name="PodIPs")
    host_ip: str | None = msgspec.field(default=None, name="HostIP")


class Extra(_Struct):
    """The field ``K8s.Extra``: the Kubernetes object itself."""

    object_meta: ObjectMeta | None = None
    spec: Spec | None = None
    status: PodStatus | None = None


class K8s(_Struct):
    """The field ``K8s``: the data of Skydive's Kubernetes probe."""

    name: str | None = None
    namespace: str | None = None
    ip: str | None = msgspec.field(default=None, name="IP")
    node: str | None = None
    labels: dict[str, Any] | None = None
    """Skydive has split the keys of labels at dots into nested objects."""
    status: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="ClusterIP")
    container_id: str | None = msgspec.field(default=None, name="ContainerID")
    pod: str | None = None
    extra: Extra | None = None


class Libvirt(_Struct):
    """The field ``Libvirt`` of an interface that connects a virtual machine to its host."""

    domain: str | None = None


class ExtId(_Struct, rename="kebab"):
    """The field ``ExtID``: the external IDs of an interface in Open vSwitch."""

    vm_uuid: str | None = None


class Neutron(_Struct):
    """The field ``Neutron`` of an OpenStack port's interface. Addresses have a prefix length."""

    ipv4: tuple[str, ...] | None = msgspec.field(default=None, name="IPV4")
    ipv6: tuple[str, ...] | None = msgspec.field(default=None, name="IPV6")


class Metadata(_Struct):
    """Addresses have a prefix length: ``10.0.0.1/24``."""

    name: str | None = None
    type: str | None = None
    tid: str | None = msgspec.field(default=None, name="TID")
    ipv4: tuple[str, ...] | None = msgspec.field(default=None, name="IPV4")
    ipv6: tuple[str, ...] | None = msgspec.field(default=None, name="IPV6")
    manager: str | None = None
    cluster_name: str | None = None
    container: Container | None = None
    k8s: K8s | None = msgspec.field(default=None, name="K8s")
    libvirt: Libvirt | None = None
    ext_id: ExtId | None = msgspec.field(default=None, name="ExtID")
    neutron: Neutron | None = None


class Node(_Struct):
    """A node of the topology. Times are in milliseconds."""

    metadata: Metadata
    id: str | None = msgspec.field(default=None, name="ID")
    host: str | None = None
    created_at: int | None = None
    updated_at: int | None = None
    deleted_at: Any = None
    """May have any type: skyfast only checks whether it is set."""

    @property
    def tid(self) -> str:
        """The ``NodeTID`` in flows: the ``TID``, or else the ``ID``, or else ""."""
        return self.metadata.tid or self.id or ""


class Edge(msgspec.Struct, gc=False):
    parent: str
    """The ID of the parent node."""
    child: str
    """The ID of the child node."""
    relation_type: str


@dataclass(slots=True)
class Graph:
    nodes: list[Node]
    edges: list[Edge]
    skipped: Skipped = field(default_factory=Counter)


class _EdgeMetadata(_Struct):
    relation_type: str | None = None


class _Edge(_Struct):
    parent: str | None = None
    child: str | None = None
    metadata: _EdgeMetadata | None = None
    deleted_at: Any = None


_decode_node = msgspec.json.Decoder(Node).decode
_decode_edge = msgspec.json.Decoder(_Edge).decode


def decode_node(element: bytes, skipped: Skipped | None = None) -> Node | None:
    """Decode the JSON text of a node; return None if it is not an object with ``Metadata``."""
    skipped = Counter() if skipped is None else skipped
    try:
        return _decode_node(element)
    except UNDECODABLE:
        node: Node | None = _repaired(element, Node, skipped)
    if node is None:
        skipped[MALFORMED] += 1
    return node


def decode_edge(element: bytes, skipped: Skipped | None = None) -> Edge | None:
    """Decode the JSON text of an edge; return None if the edge is incomplete or deleted."""
    skipped = Counter() if skipped is None else skipped
    try:
        edge: _Edge | None = _decode_edge(element)
    except UNDECODABLE:
        edge = _repaired(element, _Edge, skipped)
    relation_type = edge.metadata.relation_type if edge and edge.metadata else None
    if not edge or not edge.parent or not edge.child or not relation_type:
        skipped[MALFORMED] += 1
        return None
    if edge.deleted_at:
        skipped[DELETED] += 1
        return None
    return Edge(edge.parent, edge.child, sys.intern(relation_type))


def _repaired(element: bytes, struct: Any, skipped: Skipped) -> Any:
    """Decode an element, and omit fields that have wrong types. Slow, but rarely called."""
    try:
        data = msgspec.json.decode(readable(bytes(element)))
    except (msgspec.MsgspecError, MalformedResponseError):
        return None
    return _struct_reader(struct)(data, skipped)


@cache
def _reader(kind: Any) -> Callable[[object, Skipped], Any]:
    """Return a function that converts decoded JSON to ``kind``, and omits parts with wrong types.

    If the decoded JSON itself has a wrong type, the returned function returns None.
    """
    if isinstance(kind, types.UnionType):
        return _reader(get_args(kind)[0])
    if get_origin(kind) is tuple:
        return _tuple_reader(_reader(get_args(kind)[0]))
    if isinstance(kind, type) and issubclass(kind, _Struct):
        return _struct_reader(kind)

    def read(value: object, skipped: Skipped) -> object:
        try:
            return msgspec.convert(value, kind)
        except msgspec.MsgspecError:
            skipped[WRONG_TYPE] += 1
            return None

    return read


def _tuple_reader(
    read_element: Callable[[object, Skipped], object],
) -> Callable[[object, Skipped], object]:
    def read(value: object, skipped: Skipped) -> object:
        if not isinstance(value, list):
            skipped[WRONG_TYPE] += 1
            return None
        elements = (read_element(element, skipped) for element in value)
        return tuple(element for element in elements if element is not None)

    return read


@cache
def _struct_reader(struct: Any) -> Callable[[object, Skipped], object]:
    fields = [
        (member.name, member.encode_name, _reader(member.type), member.required)
        for member in msgspec.structs.fields(struct)
    ]

    def read(value: object, skipped: Skipped) -> object:
        if not isinstance(value, dict):
            skipped[WRONG_TYPE] += 1
            return None
        members: dict[str, object] = {}
        for name, key, read_member, required in fields:
            present = value.get(key)
            member = None if present is None else read_member(present, skipped)
            if member is not None:
                members[name] = member
            elif required:
                return None
        return struct(**members)

    return read
