import json

import pytest

from skyfast.skydive.topology_graph import MALFORMED, WRONG_TYPE, Skipped, decode_edge, decode_node
from tests.support.paths import CONTAINER_TOPOLOGY

FULL_NODE = {
    "ID": "n1",
    "Host": "h1",
    "CreatedAt": 5,
    "UpdatedAt": 6,
    "DeletedAt": None,
    "Metadata": {
        "Name": "eth0",
        "Type": "pod",
        "TID": "t1",
        "IPV4": ["10.0.0.1/24"],
        "IPV6": ["fe80::1/64"],
        "Manager": "k8s",
        "ClusterName": "c1",
        "Container": {
            "ID": "abc",
            "Labels": {
                "io.kubernetes.pod.name": "p",
                "io.kubernetes.pod.namespace": "n",
                "io.kubernetes.container.name": "c",
                "io.kubernetes.docker.type": "container",
                "io": {
                    "kubernetes": {
                        "docker": {"type": "container"},
                        "pod": {"name": "p", "namespace": "n"},
                        "container": {"name": "c"},
                        "cri": {
                            "container-type": "container",
                            "container-name": "c",
                            "sandbox-name": "p",
                            "sandbox-namespace": "n",
                        },
                        "cri-o": {"ContainerType": "container"},
                    }
                },
            },
        },
        "K8s": {
            "Name": "p",
            "Namespace": "n",
            "IP": "10.0.0.1",
            "Node": "n1",
            "Labels": {"app": "a"},
            "Status": "Running",
            "ClusterIP": "10.0.0.2",
            "ContainerID": "abc",
            "Pod": "p",
            "Extra": {
                "ObjectMeta": {
                    "OwnerReferences": [{"Kind": "Job", "Name": "j", "Controller": True}],
                    "Labels": {"app": "a"},
                },
                "Spec": {"HostNetwork": False, "NodeName": "n1", "ClusterIPs": ["10.0.0.2"]},
                "Status": {"PodIPs": [{"IP": "10.0.0.1"}], "HostIP": "192.0.2.1"},
            },
        },
        "Libvirt": {"Domain": "vm1"},
        "ExtID": {"vm-uuid": "u1"},
        "Neutron": {"IPV4": ["10.9.0.1/24"], "IPV6": ["fd09::1/64"]},
    },
}

OTHER_TYPES = [7, -1.5, True, "text", [7], {"x": 7}, [[]], [None], 10**30]


def paths(value, path=()):
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield (*path, key)
        if isinstance(each, dict | list):
            yield from paths(each, (*path, key))


def changed(path, value):
    node = json.loads(json.dumps(FULL_NODE))
    inner = node
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(node).encode()


def test_a_recorded_topology_is_decoded_completely():
    (response,) = json.loads((CONTAINER_TOPOLOGY / "graph.json").read_bytes())
    skipped = Skipped()
    nodes = [decode_node(json.dumps(node).encode(), skipped) for node in response["Nodes"]]
    edges = [decode_edge(json.dumps(edge).encode(), skipped) for edge in response["Edges"]]
    assert not skipped
    assert [node.id for node in nodes] == [node["ID"] for node in response["Nodes"]]
    assert [(edge.parent, edge.child, edge.relation_type) for edge in edges] == [
        (edge["Parent"], edge["Child"], edge["Metadata"]["RelationType"])
        for edge in response["Edges"]
    ]


def test_every_field_is_decoded():
    node = decode_node(json.dumps(FULL_NODE).encode())
    assert (node.id, node.host, node.created_at, node.updated_at) == ("n1", "h1", 5, 6)
    metadata = node.metadata
    assert (metadata.name, metadata.type, metadata.tid, metadata.manager) == (
        *("eth0", "pod", "t1", "k8s"),
    )
    assert (metadata.ipv4, metadata.ipv6) == (("10.0.0.1/24",), ("fe80::1/64",))
    labels = metadata.container.labels
    assert labels.io.kubernetes.cri.container_name == labels.container_name == "c"
    assert labels.io.kubernetes.crio.container_type == "container"
    k8s = metadata.k8s
    assert (k8s.ip, k8s.cluster_ip, k8s.container_id) == ("10.0.0.1", "10.0.0.2", "abc")
    assert k8s.extra.object_meta.owner_references[0].controller is True
    assert k8s.extra.spec.cluster_ips == ("10.0.0.2",)
    assert k8s.extra.status.pod_ips[0].ip == "10.0.0.1"
    assert (metadata.libvirt.domain, metadata.ext_id.vm_uuid) == ("vm1", "u1")
    assert metadata.neutron.ipv4 == ("10.9.0.1/24",)


@pytest.mark.parametrize("path", list(paths(FULL_NODE)), ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_the_wrong_type_affects_only_its_field(path):
    for value in (*OTHER_TYPES, None):
        skipped = Skipped()
        node = decode_node(changed(path, value), skipped)
        if path == ("Metadata",) and not isinstance(value, dict):
            assert node is None
            assert skipped[MALFORMED] == 1
            continue
        # Some replacement values are valid: a label, for example, can have any type.
        assert set(skipped) <= {WRONG_TYPE}
        if path != ("Host",):
            assert node.host == "h1"
        if path != ("Metadata",) and path[:2] != ("Metadata", "K8s"):
            assert node.metadata.k8s.extra.status.host_ip == "192.0.2.1"
        if path in ((), ("ID",), ("Metadata", "Name")) and not isinstance(value, str):
            assert skipped[WRONG_TYPE] == (value is not None)


@pytest.mark.parametrize(
    "element",
    [
        *(b"", b"null", b"[]", b"7", b'"x"', b"{}", b'{"ID":"n1"}', b'{"Metadata":[]}', b"{,}"),
        *(b'{"Metadata":', b"\xff\xff", b"[" * 100_000),
    ],
    ids=lambda element: element[:12].decode(errors="replace"),
)
def test_elements_that_are_not_nodes_or_edges_are_counted(element):
    skipped = Skipped()
    assert decode_node(element, skipped) is None
    assert skipped[MALFORMED] == 1
    assert decode_edge(element, skipped) is None
    assert skipped[MALFORMED] == 2


@pytest.mark.parametrize(
    "extra",
    [b'"\xff"', b'"\\ud800"', b"[" * 2_000 + b"]" * 2_000, b'{"a":' * 2_000 + b"1" + b"}" * 2_000],
    ids=["invalid UTF-8", "lone surrogate", "deep array", "deep object"],
)
def test_unreadable_fields_are_ignored(extra):
    node = b'{"ID":"n1","Metadata":{"Type":"pod","Other":%b,"K8s":{"Labels":{"app":%b}}}}'
    decoded = decode_node(node % (extra, extra))
    assert (decoded.id, decoded.metadata.type) == ("n1", "pod")
    edge = b'{"Parent":"a","Child":"b","Metadata":{"Other":%b,"RelationType":"node"}}'
    assert decode_edge(edge % extra).relation_type == "node"


@pytest.mark.parametrize("missing", ["Parent", "Child", "Metadata"])
@pytest.mark.parametrize("value", [None, "", 7, [], {}])
def test_an_edge_needs_its_nodes_and_its_type(missing, value):
    edge = {"Parent": "a", "Child": "b", "Metadata": {"RelationType": "node"}}
    assert decode_edge(json.dumps(edge).encode()) is not None
    skipped = Skipped()
    assert decode_edge(json.dumps({**edge, missing: value}).encode(), skipped) is None
    assert skipped[MALFORMED] == 1


def test_a_deleted_edge_is_skipped():
    edge = {"Parent": "a", "Child": "b", "Metadata": {"RelationType": "node"}, "DeletedAt": 5}
    skipped = Skipped()
    assert decode_edge(json.dumps(edge).encode(), skipped) is None
    assert skipped == {"deleted": 1}
