"""The mappings from addresses and capture points to names."""

import time
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyfast.skydive import name_index
from skyfast.skydive.name_candidates import Candidate, PointLocation, choose
from skyfast.skydive.name_index import PRUNE_INTERVAL_S, REQUERY_INTERVAL_S, NameIndex
from skyfast.skydive.name_resolver import Resolution

EMPTY = ("",) * 8


def names_of(name):
    return (name, *EMPTY[1:])


def candidate(name, *, host="", namespace="", cluster=""):
    return Candidate(names_of(name), namespace, host, cluster)


def point(*, host="", namespace="", peers=(), cluster=""):
    return PointLocation(namespace, peers, host, cluster)


def resolution(*, nodes=None, addresses=None, points=None, networks=None):
    return Resolution(
        nodes={tid: names_of(name) for tid, name in (nodes or {}).items()},
        addresses={
            address: (candidate(owners),) if isinstance(owners, str) else owners
            for address, owners in (addresses or {}).items()
        },
        points=points or {},
        networks=networks or {},
        skipped={},
    )


def update(index, now=0.0, **parts):
    """Apply a resolution; return the capture points and the addresses whose names changed."""
    return apply(index, index.compare(resolution(**parts), now))


def apply(index, changes):
    renamed = dict.fromkeys(["nodes", "addresses"], frozenset())
    for names, keys in index.apply(changes):
        assert keys
        renamed["nodes" if names is index.nodes else "addresses"] = keys
    return renamed["nodes"], renamed["addresses"]


@pytest.fixture
def index():
    return NameIndex(keep_s=60.0)


ON_BOTH_HOSTS = {"10.0.0.1": (candidate("a", host="h1"), candidate("b", host="h2"))}
POINTS = {"t1": point(host="h1"), "t2": point(host="h2")}
NETWORKS = {"h1": (ip_network("10.0.0.0/24"),), "h2": (ip_network("10.0.0.0/24"),)}
AMBIGUOUS = {"addresses": ON_BOTH_HOSTS, "points": POINTS, "networks": NETWORKS}


# Lookups.


def test_before_the_first_resolution_all_names_are_empty(index):
    assert not index.ready.is_set()
    assert index.nodes["t1"] == index.nodes.resolve("t1", "", "") == EMPTY
    assert index.addresses["10.0.0.1"] == EMPTY
    assert index.addresses.resolve("10.0.0.1", "10.0.0.2", "t1") == EMPTY


def test_labels_of_pods_come_after_the_other_names():
    index = NameIndex(keep_s=60.0, k8s_labels=("app", "team"))
    assert index.addresses["10.0.0.1"] == ("",) * 10
    assert index.nodes["t1"] == EMPTY


def test_names_are_available_at_once(index):
    assert update(index, nodes={"t1": "eth0"}, addresses={"10.0.0.1": "a"}) == (
        {"t1"},
        {"10.0.0.1"},
    )
    assert index.ready.is_set()
    assert index.nodes["t1"] == names_of("eth0")
    assert index.addresses["10.0.0.1"] == names_of("a")
    assert index.addresses.resolve("10.0.0.1", "10.0.0.2", "t1") == names_of("a")
    assert index.ambiguous == 0


def test_update_returns_only_keys_whose_names_changed(index):
    update(index, nodes={"t1": "eth0", "t2": "eth1"}, addresses={"10.0.0.1": "a"})
    assert update(index, nodes={"t1": "eth0", "t2": "wan0"}, addresses={"10.0.0.1": "b"}) == (
        {"t2"},
        {"10.0.0.1"},
    )
    again = {"nodes": {"t1": "eth0", "t2": "wan0"}, "addresses": {"10.0.0.1": "b"}}
    assert update(index, **again) == (set(), set())


def test_comparison_of_names_does_not_change_the_index(index):
    index.compare(resolution(nodes={"t1": "eth0"}, addresses=ON_BOTH_HOSTS), 0.0)
    assert not index.ready.is_set()
    assert index.nodes == index.addresses == {}


def test_equal_names_of_several_candidates_are_not_ambiguous(index):
    update(index, addresses={"10.0.0.1": (candidate("a", host="h1"), candidate("a", host="h2"))})
    assert index.addresses["10.0.0.1"] == names_of("a")


# Ambiguous addresses.


def test_the_names_of_a_local_address_always_depend_on_the_context(index):
    owner = candidate("a", host="h1", namespace="ns1")
    points = {
        "here": point(host="h1", namespace="ns1"),
        "peer": point(host="h1", namespace="h1", peers=("ns1",)),
        "other": point(host="h1", namespace="ns2"),
        "unknown": point(host="h1"),
    }
    update(index, addresses={"fe80::1": (owner,)}, points=points)
    assert index.addresses["fe80::1"] is None
    assert index.ambiguous == 0  # link-local addresses do not count: every host has them
    found = {tid: index.addresses.resolve("fe80::1", "fe80::2", tid) for tid in (*points, "")}
    assert found == {
        "here": names_of("a"),
        "peer": names_of("a"),
        "other": EMPTY,
        "unknown": EMPTY,
        "": EMPTY,
    }


def test_a_loopback_address_of_many_namespaces_is_resolved_quickly(index):
    count = 5_000
    owners = tuple(candidate(f"n{i}", namespace=f"ns{i}") for i in range(count))
    points = {f"t{i}": point(namespace=f"ns{i}") for i in range(count)}
    update(index, addresses={"127.0.0.1": owners}, points=points)
    begun = time.process_time()
    for i in range(count):
        assert index.addresses.resolve("127.0.0.1", "127.0.0.1", f"t{i}") == names_of(f"n{i}")
    # If each lookup searched all owners, the lookups would take 2 s.
    assert time.process_time() - begun < 1.0


def test_an_ambiguous_address_is_resolved_by_its_context(index):
    update(index, **AMBIGUOUS)
    addresses = index.addresses
    assert addresses["10.0.0.1"] is None
    assert addresses.resolve("10.0.0.1", "10.0.0.2", "t1") == names_of("a")
    assert addresses.resolve("10.0.0.1", "10.0.0.2", "t2") == names_of("b")
    assert addresses.resolve("10.0.0.1", "192.0.2.1", "t1") == EMPTY
    assert addresses.resolve("10.0.0.1", "10.0.0.2", "unknown") == EMPTY
    assert index.ambiguous == 1


def test_unchanged_names_of_an_ambiguous_address_stay_the_same_object(index):
    update(index, **AMBIGUOUS)
    first = index.addresses.resolve("10.0.0.1", "10.0.0.2", "t1")
    update(index, **AMBIGUOUS)
    assert index.addresses.resolve("10.0.0.1", "10.0.0.2", "t1") is first


@pytest.mark.parametrize(
    "change",
    [
        {"addresses": {"10.0.0.1": (candidate("c", host="h1"), candidate("b", host="h2"))}},
        {"points": {"t1": point(host="h2"), "t2": point(host="h2")}},
        {"points": {"t1": point(host="h3")}},
        {"networks": {}},
        {"addresses": {"10.0.0.1": "b"}},
    ],
)
def test_update_returns_an_ambiguous_address_whose_resolved_names_changed(index, change):
    update(index, **AMBIGUOUS)
    assert index.addresses.resolve("10.0.0.1", "10.0.0.2", "t1") == names_of("a")
    assert update(index, **{**AMBIGUOUS, **change})[1] == {"10.0.0.1"}
    assert index.addresses.resolve("10.0.0.1", "10.0.0.2", "t1") != names_of("a")


def test_update_does_not_return_an_ambiguous_address_that_was_never_looked_up(index):
    update(index, **AMBIGUOUS)
    changed = {"10.0.0.1": (candidate("c", host="h1"), candidate("b", host="h2"))}
    assert update(index, **{**AMBIGUOUS, "addresses": changed}) == (set(), set())


def test_apply_returns_an_address_that_was_looked_up_during_the_comparison(index):
    update(index, **AMBIGUOUS)
    changed = {"10.0.0.1": (candidate("c", host="h1"), candidate("b", host="h2"))}
    changes = index.compare(resolution(**{**AMBIGUOUS, "addresses": changed}), 0.0)
    assert index.addresses.resolve("10.0.0.1", "10.0.0.2", "t1") == names_of("a")
    assert apply(index, changes)[1] == {"10.0.0.1"}
    assert index.addresses.resolve("10.0.0.1", "10.0.0.2", "t1") == names_of("c")


def test_the_cache_of_contexts_is_bounded_and_pruned(index, monkeypatch):
    monkeypatch.setattr(name_index, "MAX_RESOLVED", 4)
    update(index, **AMBIGUOUS)
    addresses = index.addresses
    for number in range(4):
        assert addresses.resolve("10.0.0.1", f"10.0.0.{number}", "t1") == names_of("a")
    assert addresses.resolve("10.0.0.1", "10.0.0.99", "t1") == EMPTY
    assert addresses.resolve("10.0.0.1", "10.0.0.3", "t1") == names_of("a")
    assert addresses.dropped == {"ambiguous": 1, "unknown": 0}
    # One lookup above failed because the cache was full. `update` returns the address of this
    # lookup, so that the lookup is repeated.
    assert update(index, **AMBIGUOUS)[1] == {"10.0.0.1"}
    assert addresses.resolve("10.0.0.1", "10.0.0.99", "t1") == names_of("a")
    for number in range(4):
        addresses.resolve("10.0.0.1", f"10.0.0.{number}", "t1")
    assert update(index, now=PRUNE_INTERVAL_S - 1, **AMBIGUOUS)[1] == set()
    assert update(index, now=PRUNE_INTERVAL_S, **AMBIGUOUS)[1] == {"10.0.0.1"}
    assert addresses.resolve("10.0.0.1", "10.0.0.100", "t1") == names_of("a")


# Names that are missing in the latest resolution.


def test_a_missing_name_is_kept_for_a_while(index):
    update(index, nodes={"t1": "eth0"}, addresses={"10.0.0.1": "a"})
    assert update(index, now=100.0) == (set(), set())
    assert update(index, now=159.0) == (set(), set())
    assert index.addresses["10.0.0.1"] == names_of("a")
    assert update(index, now=160.0) == ({"t1"}, {"10.0.0.1"})
    assert index.addresses["10.0.0.1"] == index.nodes["t1"] == EMPTY


def test_a_name_that_returns_is_not_removed(index):
    update(index, addresses={"10.0.0.1": "a"})
    update(index, now=100.0)
    update(index, now=110.0, addresses={"10.0.0.1": "a"})
    update(index, now=120.0)
    assert update(index, now=170.0) == (set(), set())
    assert update(index, now=180.0)[1] == {"10.0.0.1"}


def test_a_resolution_is_due_when_missing_names_must_be_removed(index):
    assert not index.is_due(1000.0)
    update(index, nodes={"t1": "eth0"}, addresses={"10.0.0.1": "a", "10.0.0.2": "b"})
    assert not index.is_due(1000.0)
    update(index, now=100.0, nodes={"t1": "eth0"}, addresses={"10.0.0.2": "b"})
    update(index, now=130.0)
    assert [index.is_due(now) for now in (159.0, 160.0)] == [False, True]
    update(index, now=160.0)
    assert [index.is_due(now) for now in (160.0, 189.0, 190.0)] == [False, False, True]
    update(index, now=190.0)
    assert not index.is_due(1000.0)


def test_time_for_which_names_are_kept_can_change(index):
    update(index, addresses={"10.0.0.1": "a"})
    index.set_keep_time(10.0)
    update(index, now=100.0)
    assert update(index, now=110.0)[1] == {"10.0.0.1"}


def test_a_missing_ambiguous_address_is_still_resolved_for_a_while(index):
    update(index, nodes={"t1": "eth0", "t2": "eth1"}, **AMBIGUOUS)
    update(index, now=100.0, networks=NETWORKS)
    assert index.addresses["10.0.0.1"] is None
    assert index.addresses.resolve("10.0.0.1", "10.0.0.2", "t1") == names_of("a")
    assert update(index, now=160.0, networks=NETWORKS) == ({"t1", "t2"}, {"10.0.0.1"})
    assert index.addresses.resolve("10.0.0.1", "10.0.0.2", "t1") == EMPTY
    assert index.ambiguous == 0


def test_an_address_of_a_missing_host_is_not_named_after_another_host(index):
    """After an analyzer restarts, its topology is incomplete until all agents have connected."""
    nodes = {"t1": "eth0", "t2": "eth1"}
    update(index, nodes=nodes, **AMBIGUOUS)
    update(index, now=100.0)
    first = {
        "nodes": {"t1": "eth0"},
        "addresses": {"10.0.0.1": (candidate("a", host="h1"),)},
        "points": {"t1": POINTS["t1"]},
        "networks": {"h1": NETWORKS["h1"]},
    }
    for now in (101.0, 159.0):
        assert update(index, now=now, **first)[1] == set()
        for tid, name in (("t1", "a"), ("t2", "b")):
            names = index.addresses.resolve("10.0.0.1", "10.0.0.2", tid)
            assert names == names_of(name)
        assert index.addresses["10.0.0.1"] is None
    assert update(index, now=160.0, **first) == ({"t2"}, {"10.0.0.1"})
    assert index.addresses["10.0.0.1"] == names_of("a")


def test_an_address_that_one_of_two_hosts_loses_is_named_after_the_other_host(index):
    update(index, nodes={"t1": "eth0", "t2": "eth1"}, **AMBIGUOUS)
    lost = {**AMBIGUOUS, "addresses": {"10.0.0.1": (candidate("a", host="h1"),)}}
    assert update(index, nodes={"t1": "eth0", "t2": "eth1"}, **lost)[1] == {"10.0.0.1"}
    assert index.addresses["10.0.0.1"] == names_of("a")


def test_the_mappings_are_bounded_and_the_oldest_names_are_removed_first(index, monkeypatch):
    monkeypatch.setattr(name_index, "MAX_NAMES", 3)
    update(index, nodes={"a": "1", "b": "2"})
    update(index, now=1.0, nodes={"b": "2"})
    update(index, now=2.0, nodes={"c": "3"})
    assert index.nodes.keys() == {"a", "b", "c"}
    assert update(index, now=3.0, nodes={"c": "3", "d": "4"})[0] == {"a", "d"}
    changes = index.compare(resolution(nodes=dict.fromkeys("efghi", "5")), 4.0)
    assert changes.left_out == 2
    apply(index, changes)
    assert index.nodes.keys() == {"e", "f", "g"}


# Partial resolutions: names from a part of the topology.


def test_a_partial_resolution_only_adds_names_of_unknown_keys(index):
    update(index, nodes={"t1": "eth0"}, addresses={"10.0.0.1": "a"})
    part = resolution(
        nodes={"t2": "x"},
        addresses={"10.0.0.1": "other", "10.0.0.9": "new", "10.0.0.8": ON_BOTH_HOSTS["10.0.0.1"]},
    )
    assert apply(index, index.compare_new(part, 1.0)) == (set(), {"10.0.0.9", "10.0.0.8"})
    assert index.addresses["10.0.0.1"] == names_of("a")
    assert index.addresses["10.0.0.9"] == names_of("new")
    assert index.addresses["10.0.0.8"] is None
    assert index.nodes.keys() == {"t1"}
    # Like any missing name, the name of 10.0.0.9 is kept for a while.
    assert update(index, now=2.0, nodes={"t1": "eth0"}, addresses={"10.0.0.1": "a"})[1] == set()
    assert index.addresses["10.0.0.9"] == names_of("new")


def test_number_of_names_from_partial_resolutions_is_bounded(index, monkeypatch):
    monkeypatch.setattr(name_index, "MAX_NAMES", 2)
    update(index, addresses={"10.0.0.1": "a"})
    part = resolution(addresses={"10.0.0.2": "b", "10.0.0.3": "c"})
    changes = index.compare_new(part, 0.0)
    assert changes.left_out == 1
    assert apply(index, changes)[1] == {"10.0.0.2"}


# Unknown addresses.


def test_an_unknown_address_is_queried_again_only_after_a_while(index):
    addresses = index.addresses
    for _ in range(2):
        for text in ("10.0.0.1", "10.0.0.2", "10.0.0.3", ""):
            assert addresses[text] == EMPTY
    assert addresses.take_unknown(0.0, 2) == ["10.0.0.1", "10.0.0.2"]
    assert addresses.unknown == 3
    assert addresses["10.0.0.1"] == EMPTY
    assert addresses.take_unknown(1.0, 2) == ["10.0.0.3"]
    assert addresses.has_recent_queries(REQUERY_INTERVAL_S)
    assert addresses["10.0.0.1"] == EMPTY
    assert addresses.take_unknown(REQUERY_INTERVAL_S, 2) == ["10.0.0.1"]
    assert not addresses.has_recent_queries(2 * REQUERY_INTERVAL_S)


def test_known_and_ambiguous_addresses_are_not_queried(index):
    update(index, addresses={"10.0.0.2": "a", **ON_BOTH_HOSTS})
    assert index.addresses["10.0.0.2"] and index.addresses["10.0.0.1"] is None
    assert index.addresses.take_unknown(0.0, 10) == []


def test_an_address_that_becomes_known_before_its_query_is_not_queried(index):
    for number in range(3):
        index.addresses[f"10.0.0.{number}"]
    update(index, addresses={"10.0.0.0": "a", **ON_BOTH_HOSTS})
    assert index.addresses.take_unknown(0.0, 1) == ["10.0.0.2"]
    assert index.addresses.unknown == 1


def test_unknown_addresses_are_bounded(index, monkeypatch):
    monkeypatch.setattr(name_index, "MAX_UNKNOWN", 3)
    addresses = index.addresses
    for number in range(5):
        addresses[f"10.0.0.{number}"]
    addresses["x" * 46]
    assert addresses.dropped == {"ambiguous": 0, "unknown": 3}
    assert len(addresses.take_unknown(0.0, 10)) == 3
    for number in range(5, 8):
        addresses[f"10.0.0.{number}"]
    assert len(addresses.take_unknown(1.0, 10)) == 3
    assert addresses.has_recent_queries(1.0)
    assert addresses.unknown == 3  # the oldest addresses are forgotten


# Random sequences of all operations.

NAMES = st.sampled_from(["a", "b", "c"])
HOSTS = st.sampled_from(["h1", "h2"])
ADDRESSES = [f"10.0.0.{number}" for number in range(4)]
TIDS = ["t1", "t2", "t3"]
RESOLUTIONS = st.builds(
    resolution,
    nodes=st.dictionaries(st.sampled_from(TIDS), NAMES),
    addresses=st.dictionaries(
        st.sampled_from(ADDRESSES),
        st.lists(st.builds(candidate, NAMES, host=HOSTS), min_size=1, max_size=3, unique=True).map(
            tuple
        ),
    ),
    points=st.dictionaries(st.sampled_from(TIDS), st.builds(point, host=HOSTS)),
    networks=st.sampled_from([{}, NETWORKS]),
)
FLOWS = st.tuples(st.sampled_from(ADDRESSES), st.sampled_from(ADDRESSES), st.sampled_from(TIDS))
STEPS = st.lists(
    st.tuples(RESOLUTIONS, st.lists(FLOWS), st.lists(FLOWS), st.booleans()), max_size=8
)


def shown(index, flow):
    names = index.addresses[flow[0]]
    return index.addresses.resolve(*flow) if names is None else names


@settings(deadline=None)
@given(STEPS, st.sampled_from([1, 4, 1000]))
def test_every_address_whose_names_changed_is_returned(steps, max_resolved):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name_index, "MAX_RESOLVED", max_resolved)
        patch.setattr(name_index, "PRUNE_INTERVAL_S", 0.0)
        index = NameIndex(keep_s=0.0)
        labels = {}
        for now, (current, before, between, is_part) in enumerate(steps):
            labels.update((flow, shown(index, flow)) for flow in before if flow not in labels)
            compare = index.compare_new if is_part else index.compare
            changes = compare(current, float(now))
            labels.update((flow, shown(index, flow)) for flow in between if flow not in labels)
            _, reported = apply(index, changes)
            for flow, names in labels.items():
                if flow[0] in reported:
                    labels[flow] = shown(index, flow)
                elif names != EMPTY or max_resolved == 1000:
                    assert names == shown(index, flow)
            if not is_part and max_resolved == 1000:
                for flow, names in labels.items():
                    owners = current.addresses.get(flow[0], ())
                    chosen = owners and choose(
                        owners,
                        flow[1],
                        current.points.get(flow[2]),
                        current.networks,
                        address=flow[0],
                    )
                    assert names == (chosen or EMPTY)
