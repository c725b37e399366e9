"""Names of addresses: those from the topology, and *own names* from the key ``names``."""

import pytest

from skyfast.flows.own_names import NO_NAMES, OwnNames, read_csv
from skyfast.flows.selection import ExportSelection
from skyfast.skydive import combined_names
from skyfast.skydive.combined_names import CombinedNames
from skyfast.skydive.name_index import AddressNames, NameIndex
from tests.support.configs import make_config
from tests.support.topology_scenarios import ADDRESS_NAMES

SIZE = len(ADDRESS_NAMES)
OWN = """\
10.0.0.0/8,company
10.1.0.0/16,berlin,site=ber
10.1.0.1,gateway,owner=net
127.0.0.1,local
"""


@pytest.fixture
def topology():
    return AddressNames(SIZE)


@pytest.fixture
def names(topology):
    return CombinedNames(topology)


@pytest.fixture
def own():
    return OwnNames(read_csv(OWN), ("owner", "site"))


def of_topology(name, host="h"):
    return (name, host, *[""] * (SIZE - 2))


def test_names_of_the_topology_are_unchanged_without_own_names(names, topology):
    known = of_topology("pod")
    topology["10.0.0.1"] = known
    topology["10.0.0.2"] = None
    assert names["10.0.0.1"] is known
    assert names["10.0.0.2"] is None
    assert names["10.0.0.3"] is topology.empty
    assert names.resolve("10.0.0.2", "", "") is topology.empty


def test_labels_of_own_names_are_empty_without_entries(names, topology):
    topology["10.0.0.1"] = of_topology("pod")
    names.use(OwnNames({}, ("site",)), extends=True)
    assert names["10.0.0.1"] == (*of_topology("pod"), "", "")
    assert names["10.0.0.2"] == names.resolve("10.0.0.2", "", "") == (*topology.empty, "", "")


@pytest.mark.parametrize(
    ("address", "known", "name", "rest"),
    [
        # In order of precedence: own name of the address, topology name, own name of the network.
        ("10.1.0.1", "pod", "gateway", ("berlin", "net", "ber")),
        ("10.1.0.2", "pod", "pod", ("berlin", "", "ber")),
        ("10.1.0.2", "", "berlin", ("berlin", "", "ber")),
        ("10.2.0.1", "", "company", ("company", "", "")),
        ("192.0.2.1", "pod", "pod", ("", "", "")),
        ("192.0.2.1", "", "", ("", "", "")),
    ],
)
def test_names_are_combined(names, topology, own, address, known, name, rest):
    topology[address] = of_topology(known)
    names.use(own, extends=True)
    expected = (name, "h", *[""] * (SIZE - 2), *rest)
    assert names[address] == names[address] == expected
    assert names.resolve(address, "", "") == expected


def test_own_names_of_unknown_addresses_are_not_stored(names, topology, own):
    names.use(own, extends=True)
    assert names["10.1.0.1"] == ("gateway", *[""] * (SIZE - 1), "berlin", "net", "ber")
    assert names["10.1.0.2"][0] == "berlin"
    assert not names
    assert topology.take_unknown(0.0, 10) == ["10.1.0.1", "10.1.0.2"]


def test_own_names_apply_to_ambiguous_addresses(names, topology, own):
    topology["10.1.0.1"] = None
    names.use(own, extends=True)
    assert names["10.1.0.1"] is None
    assert names.resolve("10.1.0.1", "10.0.0.2", "t1")[0] == "gateway"


def test_combined_names_of_ambiguous_addresses_are_shared(names, topology, own, monkeypatch):
    """Equal names must be one tuple, because the table compares tuples by identity."""
    topology["10.1.0.1"] = None
    names.use(own, extends=True)
    gateway = names.resolve("10.1.0.1", "10.0.0.2", "t1")
    assert names.resolve("10.1.0.1", "10.0.0.3", "t2") is gateway
    monkeypatch.setattr(combined_names, "MAX_SHARED", 2)
    for address in ("10.1.0.2", "10.2.0.1"):
        names.resolve(address, "10.0.0.2", "t1")
    assert len(names._of_ambiguous) == 1
    assert names.resolve("10.1.0.1", "10.0.0.2", "t1") == gateway
    names.use(NO_NAMES, extends=False)
    assert names.resolve("10.1.0.1", "10.0.0.2", "t1") is topology.empty


def test_changed_names_apply_at_once(names, topology, own):
    topology["10.1.0.1"] = of_topology("pod")
    assert names["10.1.0.1"][0] == "pod"
    names.use(own, extends=False)
    assert names["10.1.0.1"][0] == "gateway"
    topology["10.1.0.2"] = of_topology("old")
    assert names["10.1.0.2"][0] == "old"
    topology["10.1.0.2"] = of_topology("new")
    names.forget({"10.1.0.2", "10.1.0.3"})
    assert names["10.1.0.2"][0] == "new"
    names.use(NO_NAMES, extends=False)
    assert names["10.1.0.1"] == of_topology("pod")


# The index for the labels of a configuration.


def export_of(labels: list[object]) -> ExportSelection:
    return make_config(labels=labels).export


def test_unknown_addresses_are_collected_only_if_a_label_needs_the_topology():
    for labels, notes in (
        (["initiator_network"], False),
        ([{"name": "site", "names_key": "site"}], False),
        (["initiator_network", "target_name"], True),
        (["initiator_name"], True),
    ):
        index = NameIndex.of(export_of([*labels, "node_tid"]), keep_s=1.0)
        index.combined["10.0.0.1"]
        assert index.addresses.take_unknown(0.0, 1) == (["10.0.0.1"] if notes else [])


def test_index_has_names_for_the_labels_of_the_configuration(own):
    export = export_of(
        [
            "initiator_name",
            {"name": "owner", "names_key": "owner"},
            {"name": "initiator_site", "names_key": "site"},
            {"name": "team", "k8s_label": "team"},
        ]
    )
    index = NameIndex.of(export, keep_s=1.0, own=own)
    assert index.combined["10.1.0.1"] == ("gateway", *[""] * SIZE, "berlin", "net", "ber")
    plain = NameIndex.of(export_of(["initiator_name"]), keep_s=1.0)
    assert plain.combined["10.1.0.1"] == ("",) * SIZE
