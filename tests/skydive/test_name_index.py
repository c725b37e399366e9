import asyncio
import json
import random
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfast.skydive import name_index
from skyfast.skydive.name_index import MAX_NAME_CHARS, NameIndex
from skyfast.skydive.topology_nodes import read
from tests.support.paths import RECORDINGS


class Fixture:
    """Names that are kept for 60 s, told as an analyzer tells them."""

    def __init__(self, *, keep_s=60.0):
        self.names = NameIndex(keep_s=keep_s)

    def tell(self, *nodes, now=0.0):
        """Apply an answer; return how many nodes and addresses were too many."""
        changes = self.names.compare(read(json.dumps(nodes).encode()).nodes, now)
        self.renamed = self.names.apply(changes)
        return changes.left_out

    def changed(self):
        """What the last answer changed: for each mapping, by its name, the keys."""
        known = {
            id(getattr(self.names, name)): name
            for name in ("node_name", "node_host", "node_type", "owner")
        }
        return {known[id(lookup)]: set(keys) for lookup, keys in self.renamed}


@pytest.fixture
def topology():
    return Fixture()


def node(name="eth0", *, tid="t1", host="h1", node_id="n1", **metadata):
    metadata = {"Name": name, "Type": "device", "TID": tid, **metadata}
    return {"ID": node_id, "Metadata": metadata, "Host": host}


def owning(name, *addresses, host="h1", tid=None):
    """A node, of a TID of its own, that has addresses."""
    ipv4 = [address for address in addresses if ":" not in address]
    ipv6 = [address for address in addresses if ":" in address]
    return node(name, tid=tid or f"{host}/{name}", host=host, IPV4=ipv4, IPV6=ipv6)


def test_every_flow_of_a_recording_has_names():
    """The flows that were recorded in the same lab at the same time as the topology."""
    topology = Fixture()
    answer = read((RECORDINGS / "topology.json").read_bytes())
    topology.names.apply(topology.names.compare(answer.nodes, 0.0))
    names = topology.names
    seen = set()
    for line in (RECORDINGS / "one-analyzer.jsonl").read_bytes().splitlines():
        message = json.loads(line)
        for flow in (message["Obj"] or []) if message["Namespace"] == "flow" else []:
            tid = flow["NodeTID"]
            at = names.node_name[tid], names.node_host[tid], names.node_type[tid]
            ends = flow.get("Network", {})
            seen.add((*at, *(names.owner[ends[end]] for end in "AB" if ends)))
    assert {at[:3] for at in seen} == {("v2", "lab", "veth"), ("vx1", "lab", "vxlan")}
    assert {("v2", "lab", "veth", "v1", "v2"), ("vx1", "lab", "vxlan", "vx1", "vx2")} <= seen


@pytest.mark.parametrize("key", ["", "t9", "10.0.0.1", "é" * 1000])
def test_what_is_not_known_is_empty_and_asking_leaves_no_trace(topology, key):
    topology.tell(node())
    names = topology.names
    for lookup in (names.node_name, names.node_host, names.node_type, names.owner):
        size = len(lookup)
        assert lookup[key] == ""
        assert len(lookup) == size
        assert key not in lookup


def test_a_node_without_a_tid_is_known_by_its_id(topology):
    topology.tell(node(tid=None, node_id="n7"), node("eth1", tid="", node_id="n8"))
    assert topology.names.node_name == {"n7": "eth0", "n8": "eth1"}


def test_what_a_node_lacks_is_not_known(topology):
    topology.tell(node(None), node("", tid="t2", host=None), node(Type=None, tid="t3"))
    topology.tell({"ID": "", "Metadata": {"Name": "eth9"}})
    assert topology.names.node_name == {"t3": "eth0"}
    assert topology.names.node_host == {"t1": "h1", "t3": "h1"}
    assert topology.names.node_type == {"t1": "device", "t2": "device"}


def test_of_nodes_with_the_same_tid_the_first_by_name_counts_whatever_their_order():
    nodes = [node("b", host="h1"), node("a", host="h2"), node("c", host="h1", Type="veth")]
    for order in permutations(nodes):
        topology = Fixture()
        topology.tell(*order)
        assert topology.names.node_name == {"t1": "b"}
        assert topology.names.node_host == {"t1": "h1"}
        assert topology.names.node_type == {"t1": "device"}


@pytest.mark.parametrize(
    ("told", "in_flows"),
    [
        ("10.0.0.1/24", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("fd00::1/64", "fd00::1"),
        ("FD00:0:0::0:1/64", "fd00::1"),
        ("fd00:0:0:1:0:0:0:1/64", "fd00:0:0:1::1"),
        ("fd00:0:0:1:1:0:0:1/64", "fd00::1:1:0:0:1"),
        ("fd00:0:1:1:1:1:1:1/64", "fd00:0:1:1:1:1:1:1"),
        ("::1/128", "::1"),
        ("::/0", "::"),
        ("::102:304/96", "::102:304"),
        ("::1.2.3.4/96", "::102:304"),
        ("64:ff9b::1.2.3.4/96", "64:ff9b::102:304"),
        ("::ffff:10.0.0.1/120", "10.0.0.1"),
        ("fe80::1%eth0/64", "fe80::1"),
    ],
)
def test_addresses_are_those_of_flows(topology, told, in_flows):
    """As Go's ``net.IP.String`` writes them."""
    for now in (0.0, 20.0):
        topology.tell(owning("eth0", told), now=now)
        assert topology.names.owner == {in_flows: "eth0"}


@pytest.mark.parametrize(
    "text", ["", "/24", "10.0.0", "10.0.0.256/24", "010.0.0.1/8", "x" * 100_000, "1:2", "eth0"]
)
def test_what_is_no_address_is_ignored(topology, text):
    topology.tell(node(IPV4=[text, "10.0.0.1/24"], IPV6=[text]))
    assert topology.names.owner == {"10.0.0.1": "eth0"}


@pytest.mark.parametrize(
    ("nodes", "owner"),
    [
        pytest.param([owning("eth0", "10.0.0.1/24")], "eth0", id="one"),
        pytest.param(
            [owning("v2", "10.0.0.1/24"), owning("v1", "10.0.0.1/16")], "v1", id="one host"
        ),
        pytest.param(
            [owning("lo", "10.0.0.1/8", host=f"h{number}") for number in range(3)],
            "lo",
            id="one name on every host",
        ),
        pytest.param(
            [owning("eth0", "10.0.0.1/8"), owning("eth1", "10.0.0.1/8", host="h2")],
            "",
            id="cannot be told",
        ),
        pytest.param(
            [
                owning("eth0", "10.0.0.1/8"),
                owning("a", "10.0.0.1/8"),
                owning("eth0", "10.0.0.1/8", host="h2"),
            ],
            "",
            id="cannot be told, though a name repeats",
        ),
        pytest.param(
            [owning("", "10.0.0.1/8", host="h2"), owning("eth0", "10.0.0.1/8")],
            "eth0",
            id="only one has a name",
        ),
    ],
)
def test_an_address_of_several_interfaces(nodes, owner):
    for order in permutations(nodes):
        topology = Fixture()
        topology.tell(*order)
        assert topology.names.owner["10.0.0.1"] == owner


def test_an_address_that_moves(topology):
    """A virtual address for which two hosts vote for a while."""
    first, second = owning("eth0", "10.0.0.1/32"), owning("eth1", "10.0.0.1/32", host="h2")
    idle = owning("eth0"), owning("eth1", host="h2")
    owners = []
    for number, nodes in enumerate(
        [(first, idle[1]), (first, second), (idle[0], second), (idle[0], second)]
    ):
        topology.tell(*nodes, now=20.0 * number)
        owners.append((topology.names.owner["10.0.0.1"], topology.changed().get("owner")))
    moved = {"10.0.0.1"}
    assert owners == [("eth0", moved), ("", moved), ("eth1", moved), ("eth1", None)]


def test_only_what_has_another_answer_is_told(topology):
    topology.tell(owning("eth0", "10.0.0.1/8"), owning("eth1", "10.0.0.2/8"))
    tids = {"h1/eth0", "h1/eth1"}
    assert topology.changed() == {
        "node_name": tids,
        "node_host": tids,
        "node_type": tids,
        "owner": {"10.0.0.1", "10.0.0.2"},
    }
    topology.tell(owning("eth1", "10.0.0.2/8"), owning("eth0", "10.0.0.1/8"), now=20.0)
    assert topology.changed() == {}
    topology.tell(
        owning("wan0", "10.0.0.1/8", tid="h1/eth0"), owning("eth1", "10.0.0.2/8"), now=40.0
    )
    assert topology.changed() == {"node_name": {"h1/eth0"}, "owner": {"10.0.0.1"}}
    assert topology.names.node_name == {"h1/eth0": "wan0", "h1/eth1": "eth1"}
    topology.tell(
        owning("wan0", "10.0.0.9/8", tid="h1/eth0"), owning("eth1", "10.0.0.2/8"), now=60.0
    )
    assert topology.changed() == {"owner": {"10.0.0.9"}}


def test_mappings_stay_the_same_objects(topology):
    names = topology.names
    before = [id(lookup) for lookup in (names.node_name, names.node_host, names.owner)]
    topology.tell(owning("eth0", "10.0.0.1/8"))
    topology.tell(now=1000.0)
    topology.tell(now=2000.0)
    assert [id(lookup) for lookup in (names.node_name, names.node_host, names.owner)] == before


def test_comparing_changes_nothing_until_it_is_applied(topology):
    names = topology.names
    changes = names.compare(read(json.dumps([node()]).encode()).nodes, 0.0)
    assert names.node_name["t1"] == ""
    assert not names.ready.is_set()
    names.apply(changes)
    assert names.node_name["t1"] == "eth0"


@pytest.mark.parametrize("partial", [[], [owning("eth1", "10.0.0.2/8")]])
def test_a_partial_answer_renames_nothing(topology, partial):
    """As from an analyzer that has just started and does not know every agent yet."""
    whole = owning("eth0", "10.0.0.1/8"), owning("eth1", "10.0.0.2/8")
    topology.tell(*whole, now=0.0)
    for now in (20.0, 40.0, 60.0):
        topology.tell(*partial, now=now)
        assert topology.changed() == {}
    topology.tell(*whole, now=80.0)
    assert topology.changed() == {}
    # It counts again from the start.
    topology.tell(*partial, now=100.0)
    topology.tell(*partial, now=159.0)
    assert topology.changed() == {}
    assert topology.names.owner["10.0.0.1"] == "eth0"


def test_what_no_answer_tells_any_more_leaves_and_is_told(topology):
    eth0, eth1 = owning("eth0", "10.0.0.1/8"), owning("eth1", "10.0.0.2/8")
    topology.tell(eth0, eth1, now=0.0)
    topology.tell(eth1, now=20.0)
    topology.tell(eth1, now=79.9)
    assert topology.changed() == {}
    topology.tell(eth1, now=80.0)
    tid = {"h1/eth0"}
    assert topology.changed() == {
        "node_name": tid,
        "node_host": tid,
        "node_type": tid,
        "owner": {"10.0.0.1"},
    }
    assert topology.names.node_name == {"h1/eth1": "eth1"}
    assert topology.names.owner == {"10.0.0.2": "eth1"}
    topology.tell(eth1, now=100.0)
    assert topology.changed() == {}
    topology.tell(eth0, eth1, now=120.0)
    assert topology.changed()["owner"] == {"10.0.0.1"}


def test_a_node_that_lost_its_name_keeps_it_for_a_while(topology):
    topology.tell(node(), now=0.0)
    topology.tell(node(None), now=20.0)
    assert topology.names.node_name["t1"] == "eth0"
    topology.tell(node(None), now=80.0)
    assert topology.names.node_name["t1"] == ""


def test_nothing_leaves_while_no_answer_comes(topology):
    topology.tell(node(), now=0.0)
    topology.tell(now=100_000.0)
    assert topology.changed() == {}
    assert topology.names.node_name["t1"] == "eth0"


async def test_ready_wakes_who_waits(topology):
    waiting = asyncio.create_task(topology.names.ready.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    topology.tell()  # an empty answer is an answer
    await asyncio.wait_for(waiting, 1)


def test_texts_are_bounded(topology):
    longest = "x" * MAX_NAME_CHARS
    topology.tell(
        owning(longest, "10.0.0.1/8", tid="t1"),
        owning(longest + "x", "10.0.0.2/8", tid="t2", host=longest + "x"),
        node(tid=longest),
        node(tid=longest + "x"),
    )
    assert topology.names.node_name == {"t1": longest, longest: "eth0"}
    assert topology.names.node_host == {"t1": "h1", longest: "h1"}
    assert topology.names.owner == {"10.0.0.1": longest}


def test_nodes_and_addresses_are_bounded_and_counted(topology, monkeypatch):
    monkeypatch.setattr(name_index, "MAX_NODES", 3)
    monkeypatch.setattr(name_index, "MAX_ADDRESSES", 5)
    nodes = [
        owning(f"eth{number}", f"10.0.{number}.1/24", f"fd00::{number}/64") for number in range(5)
    ]
    assert topology.tell(*nodes[:2]) == 0
    assert topology.tell(*nodes) == 2 + 1
    assert len(topology.names.node_name) == 3
    assert len(topology.names.owner) == 5


def test_what_is_remembered_is_bounded(topology, monkeypatch):
    monkeypatch.setattr(name_index, "MAX_NAMES", 4)
    topology.tell(node("a", tid="a"), node("b", tid="b"), now=0.0)
    topology.tell(node("c", tid="c"), node("d", tid="d"), now=1.0)
    assert topology.changed()["node_name"] == {"c", "d"}
    topology.tell(node("e", tid="e"), node("c", tid="c"), now=2.0)
    # Of a, b and d, two had been gone for longer and one of them makes room.
    assert len(topology.names.node_name) == 4
    assert topology.names.node_name.keys() >= {"c", "d", "e"}
    topology.tell(*(node(tid=str(number)) for number in range(4)), now=3.0)
    assert topology.names.node_name.keys() == {"0", "1", "2", "3"}


def test_two_thousand_nodes_that_say_the_same_cost_the_event_loop_nothing(topology):
    nodes = [
        owning(f"eth{number}", f"10.0.{number >> 8}.{number & 255}/8") for number in range(2000)
    ]
    topology.tell(*nodes, now=0.0)
    random.Random(1).shuffle(nodes)
    topology.tell(*nodes, now=20.0)
    assert topology.renamed == []


NAMES_OF_FEW = st.sampled_from(["a", "b", ""])
ANSWERS = st.lists(
    st.lists(
        st.builds(
            lambda name, host, tid, address: owning(name, address, host=host, tid=tid),
            NAMES_OF_FEW,
            st.sampled_from(["h1", "h2"]),
            st.sampled_from(["t1", "t2"]),
            st.sampled_from(["10.0.0.1/8", "fd00::1/64"]),
        ),
        max_size=4,
    ),
    max_size=6,
)


@given(ANSWERS, st.randoms(use_true_random=False))
def test_any_answers_in_any_order(answers, randomness):
    """What is told is exactly what changed, and the order of an answer's nodes does not matter."""
    one, other = Fixture(keep_s=30.0), Fixture(keep_s=30.0)
    attributes = ("node_name", "node_host", "node_type", "owner")
    for number, answer in enumerate(answers):
        before = {name: dict(getattr(one.names, name)) for name in attributes}
        one.tell(*answer, now=20.0 * number)
        shuffled = list(answer)
        randomness.shuffle(shuffled)
        other.tell(*shuffled, now=20.0 * number)
        told = one.changed()
        for name in attributes:
            after = getattr(one.names, name)
            assert after == getattr(other.names, name)
            differ = {
                key
                for key in before[name].keys() | after.keys()
                if before[name].get(key, "") != after[key]
            }
            assert differ <= told.get(name, set()) <= before[name].keys() | after.keys()
