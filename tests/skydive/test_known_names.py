"""Names of addresses and capture points, as the HTML pages show them."""

from types import SimpleNamespace

import pytest

from skyfast.flows.own_names import OwnNames, read_csv
from skyfast.skydive import topology_nodes
from skyfast.skydive.interfaces import InterfaceName, Interfaces
from skyfast.skydive.known_names import CapturePointName, KnownNames
from skyfast.skydive.name_index import NameIndex
from skyfast.stats import TopologyStats
from tests.support.configs import make_config
from tests.support.model_specs import TOPOLOGY

# The names of each node: name, host, type, netns, namespace, pod, workload, container.
NODES = {
    "pod": ("eth0", "h1", "veth", "cni-1", "shop", "cart-1", "cart", "cart"),
    "container": ("eth0", "h1", "veth", "web-ns", "", "", "", "web"),
    "netns": ("eth0", "h1", "veth", "blue", "", "", "", ""),
    "host": ("ens3", "h1", "device", "", "", "", "", ""),
    "nameless": ("", "", "", "", "", "", "", ""),
}
INTERFACES = {
    "host": InterfaceName("elsewhere", "eth9"),
    "only": InterfaceName("h2", "bond0"),
}


def address(name: str) -> tuple[str, ...]:
    return (name, "h1", "", "", "", "", "", "")


@pytest.fixture
def names() -> KnownNames:
    index = NameIndex(keep_s=60)
    index.nodes.update(NODES)
    index.addresses.update({"10.0.0.1": address("shop/cart"), "10.0.0.2": None})
    return KnownNames(index=index, interfaces=SimpleNamespace(names=INTERFACES))


def test_capture_points_are_named_by_host_owner_and_interface(names: KnownNames) -> None:
    shown = {tid: str(names.of_node(tid)) for tid in (*NODES, *INTERFACES, "unknown")}
    assert shown == {
        "pod": "h1 shop/cart-1 eth0",
        "container": "h1 web eth0",
        "netns": "h1 blue eth0",
        "host": "h1 ens3",
        "nameless": "",
        "only": "h2 bond0",
        "unknown": "",
    }
    assert names.of_node("pod") == CapturePointName("h1", "shop/cart-1", "eth0")


def test_unknown_and_ambiguous_addresses_have_an_empty_name(names: KnownNames) -> None:
    assert names.of_address("10.0.0.1") == "shop/cart"
    assert names.of_address("10.0.0.2") == ""  # the name depends on the flow
    assert names.of_address("10.0.0.3") == ""
    # The lookups above must not cause topology queries.
    assert isinstance(names.index, NameIndex)
    assert names.index.addresses.unknown == 0
    assert sum(names.index.addresses.dropped.values()) == 0


def test_own_names_take_precedence_over_names_of_the_topology(names: KnownNames) -> None:
    assert isinstance(names.index, NameIndex)
    own = OwnNames(read_csv("10.0.0.1,a\n10.0.0.2,b\n10.0.0.0/24,net\n"))
    names.index.use_own(own, make_config().export)
    shown = [names.of_address(f"10.0.0.{i}") for i in (1, 2, 3)]
    assert shown == ["a", "b", "net"]
    assert names.of_address("10.0.1.0") == names.of_address("no address") == ""
    assert names.index.addresses.unknown == 0
    own.release()
    assert [names.of_address(f"10.0.0.{i}") for i in (1, 2, 3)] == ["shop/cart", "", ""]


def test_names_can_be_searched(names: KnownNames) -> None:
    assert list(names.addresses_like(lambda name: "cart" in name)) == ["10.0.0.1"]
    assert list(names.addresses_like(lambda _: True)) == ["10.0.0.1"]
    assert set(names.nodes_like(lambda name: "eth0" in name)) == {"pod", "container", "netns"}
    assert list(names.nodes_like(lambda name: "bond" in name)) == ["only"]
    # `INTERFACES` is searched only for interfaces that have no name in the index.
    assert list(names.nodes_like(lambda name: "elsewhere" in name)) == []


def test_addresses_have_no_names_if_no_label_needs_names() -> None:
    names = KnownNames(index=None, interfaces=SimpleNamespace(names=INTERFACES))
    assert names.of_address("10.0.0.1") == ""
    assert list(names.addresses_like(lambda _: True)) == []
    assert str(names.of_node("host")) == "elsewhere eth9"
    assert names.of_node("host").owner == ""
    assert list(names.nodes_like(lambda _: True)) == ["host", "only"]


def test_names_of_exported_interfaces_are_known_until_the_interfaces_expire() -> None:
    interfaces = Interfaces(interval_s=20, connection_timeout_s=60, stats=TopologyStats())
    assert interfaces.names == {}
    response = topology_nodes.read(TOPOLOGY)
    interfaces.update(response, 0)
    assert interfaces.names == {
        node.tid: InterfaceName(node.host or "", node.metadata.name or "")
        for node in response.nodes
        if node.tid in interfaces.names
    }
    assert len(interfaces.names) > 1
    interfaces.expire(1e9)
    assert interfaces.names == {}
