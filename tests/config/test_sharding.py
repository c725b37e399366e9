"""Sharding: which instance exports which connections, and what only the first instance does."""

import itertools
import json
from contextlib import AsyncExitStack

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from skyfast.config import sharding
from skyfast.config.loader import parse
from skyfast.flows.catalog import DEFAULT_LABELS
from skyfast.flows.planner import make_plan
from skyfast.flows.selection import UNSHARDED, Shard
from skyfast.skydive.name_index import NameIndex
from tests.model import DIRECTION, FAMILIES, LABELS, make_flow, one_view
from tests.support.analyzer import FakeAnalyzer
from tests.support.model_specs import ONE, TOPOLOGY
from tests.support.paths import RECORDINGS
from tests.support.process import running
from tests.support.table_adapter import Core


def config_of(text=""):
    return parse(text, {}, source="a file")


@pytest.mark.parametrize("text", ["0/1", "0/2", "1/2", "9/10", "1023/1024"])
def test_shard_is_parsed_from_index_and_count(text):
    index, count = map(int, text.split("/"))
    assert sharding.parse(text) == Shard(index, count)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "/", "1/", "/2", "2/2", "3/2", "0/0", "-1/2", "+1/2", "01/2", "1/02"),
        *("1 / 2", "1/2 ", "0/1025", "1/2/3", "a/b", "½/1", "٠/١", "1.0/2", "1/2\n"),
    ],
)
def test_invalid_shard_is_rejected(text):
    with pytest.raises(ValueError, match=r"^is not I/N with I from 0 to N - 1, and N up to 1024$"):
        sharding.parse(text)


def test_shard_has_its_own_host_id_and_only_the_first_polls_interfaces():
    whole = config_of("host_id: sky")
    first, second = (sharding.sharded(whole, Shard(index, 2)) for index in (0, 1))
    assert [config.host_id for config in (whole, first, second)] == [
        "sky",
        "sky-0-of-2",
        "sky-1-of-2",
    ]
    assert (first.export, first.limits) == (whole.export, whole.limits)
    assert first.topology == whole.topology
    assert second.topology.interfaces_interval_s == 0
    assert not second.topology.interface_info
    assert sharding.sharded(whole, UNSHARDED) == whole


def test_interface_info_is_enabled_on_every_shard():
    whole = config_of("pipeline.store.prom_sky_con.interface_info: true")
    for index in range(2):
        assert sharding.sharded(whole, Shard(index, 2)).topology.interface_info


OVERLAP = "shards overlap: several shards export the same connections"


@pytest.mark.parametrize(
    ("store", "warns"),
    [
        ({}, False),
        ({"labels": ["initiator_ip", "target_ip", "initiator_port", "target_port"]}, True),
        (
            {
                "labels": [
                    *("initiator_ip", "target_ip", "initiator_port", "target_port"),
                    "protocol",
                ],
                "direction": "sum",  # direction is not a label
            },
            False,
        ),
        ({"labels": ["initiator_ip", "target_ip", "target_port", "protocol"]}, True),
        ({"labels": ["target_ip", "initiator_port", "target_port", "protocol"]}, True),
        ({"rewrite": {"initiator_ip": {"mask": 24}}}, True),
        ({"rewrite": {"target_port": {"above": 1024}}}, True),
        ({"include_icmp": True}, False),
        ({"include_other": True}, False),
        (
            {
                "labels": [
                    *("initiator_pod", "target_container", "node_pod"),
                    {"name": "team", "k8s_label": "team"},
                    *DEFAULT_LABELS,
                ]
            },
            False,
        ),
        (
            {
                "labels": [
                    {"name": "from", "path": "Network.A"},
                    {"name": "port", "path": "Transport.A"},
                    *("target_ip", "target_port", "protocol", "direction"),
                ]
            },
            False,
        ),
        (
            {
                "labels": [
                    *("initiator_name", "target_ip"),
                    *("initiator_port", "target_port", "protocol"),
                ]
            },
            True,
        ),
    ],
)
def test_connections_that_several_shards_export_cause_a_warning(store, warns):
    text = yaml.safe_dump({"pipeline": {"store": {"prom_sky_con": {**store, "views": []}}}})
    notes = sharding.sharded(config_of(text), Shard(1, 2)).notes
    assert [OVERLAP in note.text for note in notes] == ([True] if warns else [])


def test_views_that_several_shards_export_cause_a_warning():
    notes = sharding.sharded(config_of(), Shard(0, 2)).notes
    assert [note.text.partition(",")[0] for note in notes] == [
        "shards overlap in skydive_traffic: several shards export the same series"
    ]


BOUNDS = "each shard compares min_bytes and min_packets only with its own part of the traffic"


@pytest.mark.parametrize(
    ("store", "overlapping"),
    [
        ({"min_bytes": 7}, ""),
        ({"min_packets": 7, "labels": ["target_ip"]}, "connections"),
        ({"views": [{"prefix": "a", "labels": ["vlan"]}]}, ""),
        ({"views": [{"prefix": "a", "labels": ["vlan"], "min_packets": 7}]}, "a"),
        (
            {
                "min_bytes": 7,
                "labels": ["target_ip"],
                "views": [{"prefix": "a", "labels": ["vlan"], "min_bytes": 7}],
            },
            "connections, a",
        ),
    ],
)
def test_min_bytes_and_min_packets_of_overlapping_shards_cause_a_warning(store, overlapping):
    config = config_of(yaml.safe_dump({"pipeline": {"store": {"prom_sky_con": store}}}))
    texts = [note.text for note in sharding.sharded(config, Shard(0, 2)).notes]
    warnings = [text for text in texts if BOUNDS in text]
    assert [text.partition(":")[0] for text in warnings] == (
        [f"shards overlap in {overlapping}"] if overlapping else []
    )
    assert sharding.sharded(config, Shard(0, 1)) is config


# Assignment of connections to shards


def shards(count, spec=None):
    return [Core(spec, shard=(index, count)) for index in range(count)]


def ends_of(n, *, turned=False):
    ends = [(f"10.0.{n % 7}.{n}", 40_000 + n), (f"10.1.0.{n % 5}", 443)]
    (a, port_a), (b, port_b) = ends[::-1] if turned else ends
    return {"a": a, "b": b, "ports": (port_a, port_b), "protocol": "UDP" if n % 3 else "TCP"}


def test_each_connection_belongs_to_one_shard():
    flows = [make_flow(f"{n:x}1", (n, 2, 3, 4), **ends_of(n)) for n in range(300)]
    whole = Core()
    whole.message(flows, 0)
    for count in (1, 2, 3, 7):
        cores = shards(count)
        for core in cores:
            core.message(flows, 0)
            core.message(flows, 1)
        pages = [core.page(1) for core in cores]
        for family, lines in whole.page(1).items():
            share_lines = [line for page in pages for line in page[family]]
            assert sorted(share_lines) == sorted(lines)
        for core in cores:
            assert core.skipped["other_shard"] == 2 * (300 - core.flows)
            assert 180 / count < core.connections < 450 / count


@given(
    n=st.integers(0, 10_000),
    node=st.sampled_from(["node-1", "node-2"]),
    total=st.tuples(*[st.integers(0, 100)] * 4),
    count=st.integers(2, 5),
)
def test_all_reports_of_a_conversation_belong_to_one_shard(n, node, total, count):
    for core in shards(count):
        outcomes = {
            core.report(make_flow(uuid, total, **ends_of(n, turned=turned), node=point), 0)
            for uuid, turned, point in (("a1", False, node), ("b2", True, node), ("c3", True, "x"))
        }
        assert outcomes in ({None}, {"other_shard"})


def test_assignment_of_connections_to_shards_never_changes():
    assigned = [
        next(
            index
            for index, core in enumerate(shards(5))
            if core.report(make_flow("a1", **ends_of(n)), 0) is None
        )
        for n in range(20)
    ]
    assert assigned == [2, 4, 3, 1, 4, 0, 0, 0, 0, 4, 4, 4, 0, 1, 2, 0, 3, 4, 4, 2]
    v6 = {"a": "2001:db8::1", "b": "fe80::1234:5678:9abc:def0", "ports": (1, 65_535)}
    outcomes = [core.report(make_flow("a1", **v6, protocol="SCTP"), 0) for core in shards(5)]
    assert outcomes.index(None) == 4


def test_flood_on_one_shard_does_not_fill_the_others():
    """The hash has no secret key, so an attacker can choose flows that all belong to one shard."""
    cores = shards(4, one_view(max_connections=50))
    candidates = itertools.count(1)
    for n in range(400):  # a port whose flow belongs to the first shard
        flows = (make_flow(f"{port:x}", ports=(port, n)) for port in candidates)
        flow = next(flow for flow in flows if cores[0].report(flow, 0) != "other_shard")
        for core in cores[1:]:
            assert core.report(flow, 0) == "other_shard"
    assert cores[0].skipped["table_full"] == 350
    for core in cores:
        for n in range(40):
            core.report(make_flow(f"f{n:x}", **ends_of(n)), 0)
    assert [core.connections == 50 for core in cores] == [True, False, False, False]
    assert sum(core.connections for core in cores[1:]) > 20
    assert not any(core.skipped["table_full"] for core in cores[1:])


def test_flows_of_another_shard_are_not_counted_as_duplicates():
    spec = one_view(deduplicate="first")
    cores = shards(2, spec)
    for n in range(40):
        for core in cores:
            first = core.report(make_flow(f"a{n:x}", **ends_of(n)), 0)
            second = core.report(make_flow(f"b{n:x}", **ends_of(n, turned=True), node="two"), 0)
            assert (first, second) in ((None, "duplicate"), ("other_shard", "other_shard"))
    assert sum(core.flows for core in cores) == 40


def test_values_of_a_view_without_addresses_add_up_over_all_shards():
    spec = one_view(labels=(DIRECTION, LABELS[-1]), families=FAMILIES)
    flows = [make_flow(f"{n:x}1", (n, 2, 3, 4), **ends_of(n)) for n in range(100)]
    cores = [Core(spec), *shards(3, spec)]
    for core in cores:
        core.message(flows, 0)
    numbers = [
        {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in lines}
        for core in cores
        for lines in [core.page(0)[FAMILIES[0].name]]
    ]
    whole, *parts = numbers
    assert whole == {series: sum(part[series] for part in parts) for series in whole}


def test_table_rejects_an_invalid_shard():
    config = config_of()
    plan = make_plan(config.export, names=NameIndex(keep_s=1), shard=config.shard)
    assert plan.shard is None
    plan = make_plan(config.export, names=NameIndex(keep_s=1), shard=Shard(1, 2))
    assert (plan.shard.index, plan.shard.count) == (1, 2)
    for index, count in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="index of a shard"):
            Core(shard=(index, count))


# Two shards on one analyzer


NAMES = ["initiator_name", "target_host", "target_container", "node_name"]


@pytest.mark.parametrize("names", [[], NAMES], ids=["default", "names"])
async def test_pages_of_two_running_shards_partition_the_whole_page(tmp_path, names):
    (recording,) = ONE
    messages = (RECORDINGS / recording).read_text().splitlines()
    flows = sum(
        len(message["Obj"] or ())
        for message in map(json.loads, messages)
        if message["Type"] == "store"
    )
    config = tmp_path / "prom_sky_con.yml"
    async with AsyncExitStack() as stack:
        analyzer = await stack.enter_async_context(FakeAnalyzer(host_id="analyzer"))
        analyzer.graph = {"Nodes": json.loads(TOPOLOGY), "Edges": []}
        store = {"listen_address": "127.0.0.1", "port": 0, "connection_timeout": 600}
        store["labels"] = [*DEFAULT_LABELS, *names]
        config.write_text(
            yaml.safe_dump(
                {
                    "host_id": "sky",
                    "pipeline": {
                        "subscriber": {"urls": [analyzer.url]},
                        "store": {"prom_sky_con": store},
                    },
                }
            )
        )
        instances = [
            await stack.enter_async_context(running(config, *options, quiet=not options))
            for options in ((), ("--shard", "0/2"), ("--shard=1/2",))
        ]
        host_ids = {(await analyzer.subscriber()).host_id for _ in instances}
        assert host_ids == {"sky", "sky-0-of-2", "sky-1-of-2"}
        for message in messages:
            await analyzer.send(message)
        received = f'skyfast_flows_total{{analyzer="{analyzer.name}"}}'
        pages = []
        for instance in instances:
            metrics = await instance.until(lambda metrics: metrics[received] == flows)
            assert bool(metrics["skyfast_captures"]) == (instance is not instances[2])
            pages.append(await instance.get("/metrics/flows"))
        interfaces = [await instance.get("/metrics/interfaces") for instance in instances]
    assert interfaces[0] == interfaces[1] != b""
    assert interfaces[2] == b""
    whole, *parts = ({line for line in page.splitlines() if line[:1] != b"#"} for page in pages)
    connections = [{line for line in part if b"skydive_network_" in line} for part in parts]
    assert not connections[0] & connections[1]
    assert connections[0] | connections[1] == {
        line for line in whole if b"skydive_network_" in line
    }
    assert min(map(len, connections)) > 1_000
    if names:
        assert all(b'initiator_name="lab",target_host="lab"' in page for page in pages)
    assert summed(parts) == summed([whole])
    warnings = [line for line in instances[1].log if " WARNING skyfast.config: " in line]
    assert len(warnings) == 1
    assert "skydive_traffic" in warnings[0]


def summed(pages):
    totals = {}
    for page in pages:
        for line in page:
            series, _, value = line.rpartition(b" ")
            totals[series] = totals.get(series, 0) + float(value)
    return totals
