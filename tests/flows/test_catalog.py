"""The known labels and metrics, and the plans that configurations make of them."""

import json
import re
import subprocess
from collections import ChainMap
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from skyfast._table import MAX_COLUMNS, MAX_VIEW_COLUMNS, MAX_VIEW_VALUES, MAX_VIEWS, Table
from skyfast.config import loader
from skyfast.flows.catalog import (
    LABEL_FIELDS,
    LABELS,
    LABELS_BY_NAME,
    METRICS,
    METRICS_BY_NAME,
    RUNNING_TOTALS,
    UNBOUNDED_FIELDS,
)
from skyfast.flows.fields import FIELDS, flow_types
from skyfast.flows.plan import (
    Column,
    Counter,
    Direction,
    Family,
    FlowCount,
    Gauge,
    Plan,
    Requirement,
)
from skyfast.flows.planner import SingleNames, families, make_plan
from skyfast.skydive.name_index import NameIndex
from tests.support.paths import DEPLOY, RECORDINGS, ROOT
from tests.support.prometheus import PROMTOOL, needs_promtool
from tests.support.table_adapter import read_all

MESSAGES = sorted(RECORDINGS.glob("*.jsonl"))
EVERY_LABEL = [label.name for label in LABELS]
EVERY_METRIC = [metric.name for metric in METRICS]


def plan_of(names: NameIndex | None = None, **keys: object) -> Plan:
    """Return the plan of a file with these keys of the store."""
    text = yaml.safe_dump({"pipeline.store.prom_sky_con": keys})
    export = loader.parse(text, {}, source="x.yml").export
    return make_plan(export, names=names or NameIndex(keep_s=0))


def metric(name: str, **keys: object) -> Family:
    """Return the one family of the main view."""
    (family,) = plan_of(metrics=[name], **keys).views[0].families
    return family


def column(name: str, names: NameIndex | None = None, **keys: object) -> Column:
    """Return the one column of the main view."""
    (found,) = plan_of(names, labels=[name], **keys).views[0].columns
    return found


def both(name: str) -> tuple[Counter, Counter]:
    first, second = (
        Counter(paths=(("Metric", side + name),), amounts=(("LastUpdateMetric", side + name),))
        for side in ("AB", "BA")
    )
    return first, second


# The page of an empty file


def test_connections_are_those_of_the_go_connector() -> None:
    connections = plan_of().views[0]
    assert [(each.name, each.path) for each in connections.columns] == [
        ("initiator_ip", ("Network", "A")),
        ("target_ip", ("Network", "B")),
        ("initiator_port", ("Transport", "A")),
        ("target_port", ("Transport", "B")),
        ("node_tid", ("NodeTID",)),
        ("protocol", ("Transport", "Protocol")),
    ]
    assert connections.direction == Direction(position=4)
    assert connections.identifies_connection
    assert connections.families == (
        Family(
            name="skydive_network_connection_total_bytes",
            help="Bytes transferred on this connection in this direction.",
            type="counter",
            values=both("Bytes"),
        ),
        Family(
            name="skydive_network_connection_total_packets",
            help="Packets transferred on this connection in this direction.",
            type="counter",
            values=both("Packets"),
        ),
        Family(
            name="skydive_network_connection_rtt_nanoseconds",
            help="Latest measured round-trip time on this connection.",
            type="gauge",
            values=(Gauge(path=("Metric", "RTT")),),
        ),
    )


def test_one_small_view_is_on() -> None:
    _, traffic = plan_of().views
    assert [each.name for each in traffic.columns] == ["node_tid", "protocol"]
    assert traffic.direction == Direction(position=2)
    assert not traffic.identifies_connection
    assert [(family.name, family.help) for family in traffic.families] == [
        ("skydive_traffic_bytes_total", "Bytes transferred in this direction."),
        ("skydive_traffic_packets_total", "Packets transferred in this direction."),
    ]


def test_a_flow_without_ports_is_skipped() -> None:
    plan = plan_of()
    assert plan.requirements == (
        Requirement(paths=(("Network",),), reason="no_network"),
        Requirement(paths=(("Transport",),), reason="no_transport"),
        Requirement(paths=(("Metric",),), reason="no_metric"),
    )
    assert (plan.conversation, plan.overflow) == (None, None)


# Labels


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ("protocol target_ip", "protocol target_ip direction"),
        ("direction protocol target_ip", "direction protocol target_ip"),
        ("protocol direction target_ip", "protocol direction target_ip"),
    ],
)
def test_labels_keep_their_order(labels: str, order: str) -> None:
    view = plan_of(labels=labels).views[0]
    assert view.direction is not None
    names = [each.name for each in view.columns]
    names.insert(view.direction.position, view.direction.name)
    assert " ".join(names) == order


def test_views_share_the_columns_of_the_same_labels() -> None:
    main, first, second = plan_of(
        labels=["node_tid", "node_name", "tag"],
        views=[
            {"prefix": "a", "labels": ["tag", "node_tid"]},
            {"prefix": "b", "labels": ["node_name", {"name": "mac", "path": "Link.A"}]},
        ],
    ).views
    assert first.columns == (main.columns[2], main.columns[0])
    assert second.columns[0] is main.columns[1]


def test_labels_of_one_name_can_differ_between_views() -> None:
    plan = plan_of(
        views=[
            {"prefix": side, "labels": [{"name": "mac", "path": f"Link.{side}"}]} for side in "AB"
        ]
    )
    assert [view.columns[0].path for view in plan.views[1:]] == [("Link", "A"), ("Link", "B")]


@pytest.mark.parametrize(
    ("label", "mapping"),
    [
        ("node_name", "node_name"),
        ("node_host", "node_host"),
        ("node_type", "node_type"),
        ("initiator_name", "owner"),
        ("target_name", "owner"),
    ],
)
def test_topology_labels_can_change(label: str, mapping: str) -> None:
    names = NameIndex(keep_s=0)
    made = column(label, names)
    assert made.lookup is not None
    assert isinstance(made.lookup.names, SingleNames)
    assert made.lookup.names.mapping is getattr(names, mapping)
    assert made.path == LABELS_BY_NAME[label].path


def decoded(flow: dict[str, Any], plan: Plan) -> Any:
    return msgspec.json.decode(json.dumps(flow), type=flow_types(plan).Update)


@pytest.mark.parametrize(
    ("parts", "protocol"),
    [
        ({"Transport": {"Protocol": "UDP", "A": 1, "B": 2}}, "UDP"),
        ({"ICMP": {"Type": "ECHO"}, "Network": {"Protocol": "IPV4"}}, "ICMPV4"),
        ({"ICMP": {}, "Network": {"Protocol": "IPV6"}}, "ICMPV6"),
        ({"Network": {"Protocol": "IPV6"}}, ""),
    ],
)
def test_protocol_of_icmp(parts: dict[str, Any], protocol: str) -> None:
    plan = plan_of(labels=["protocol"], include_icmp=True)
    (made,) = plan.views[0].columns
    assert made.path == ()
    assert made.rewrite is not None
    assert made.rewrite[decoded({"UUID": "1", **parts}, plan)] == protocol


@pytest.mark.parametrize(
    ("parts", "protocol"),
    [
        ({"Transport": {"Protocol": "UDP", "A": 1, "B": 2}, "LayersPath": "a/b"}, "UDP"),
        ({"LayersPath": "Ethernet/IPv4/GRE"}, "GRE"),
        ({"LayersPath": "IPv6"}, "IPv6"),
        ({}, ""),
    ],
)
def test_protocol_of_others(parts: dict[str, Any], protocol: str) -> None:
    plan = plan_of(labels=["protocol"], include_other=True)
    (made,) = plan.views[0].columns
    assert made.rewrite is not None
    assert made.rewrite[decoded({"UUID": "1", **parts}, plan)] == protocol


def test_layers_are_decoded_for_others_alone() -> None:
    for settings, decodes in (({}, False), ({"include_icmp": True}, False), (OTHER, True)):
        assert ("LayersPath" in flow_types(plan_of(**settings)).Update.__struct_fields__) is decodes


OTHER = {"include_other": True}
BOTH = {"include_other": True, "include_icmp": True}


def test_others_take_the_place_of_ports_and_icmp_does_not() -> None:
    wanted = Requirement(paths=(("Transport",),), or_without=("ICMP",), reason="no_transport")
    plan = plan_of(**OTHER)
    assert plan.requirements[1] == wanted
    assert not plan.views[0].identifies_connection
    assert [each.reason for each in plan_of(**BOTH).requirements] == ["no_network", "no_metric"]


def test_icmp_takes_the_place_of_ports() -> None:
    plan = plan_of(include_icmp=True)
    wanted = Requirement(paths=(("Transport",), ("ICMP",)), reason="no_transport")
    assert wanted in plan.requirements
    assert not plan.views[0].identifies_connection


def test_tag_is_that_of_the_classification() -> None:
    text = (
        "pipeline: {classify: {cluster_net_masks: 10.0.0.0/8},"
        " store: {prom_sky_con: {labels: tag}}}"
    )
    plan = make_plan(loader.parse(text, {}, source="x.yml").export, names=NameIndex(keep_s=0))
    (made,) = plan.views[0].columns
    assert made.rewrite is not None
    flow = decoded({"Network": {"A": "10.0.0.1", "B": "192.0.2.1"}}, plan)
    assert made.rewrite[flow] == "egress"


def test_addresses_are_masked_and_ports_folded() -> None:
    rewrite = {"target_ip": {"mask": 24}, "initiator_port": {"above": 1023}}
    address, port = column("target_ip", rewrite=rewrite), column("initiator_port", rewrite=rewrite)
    assert address.rewrite is not None
    assert port.rewrite is not None
    assert address.rewrite["10.1.2.3"] == "10.1.2.0/24"
    assert (port.rewrite[80], port.rewrite[8080]) == (80, "other")
    assert column("target_port", rewrite=rewrite).rewrite is None


ENDPOINTS = ("initiator_ip", "target_ip", "initiator_port", "target_port")


@pytest.mark.parametrize("missing", ENDPOINTS)
def test_a_connection_is_one_flow_only_with_all_of_both_ends(missing: str) -> None:
    assert plan_of(labels=list(ENDPOINTS)).views[0].identifies_connection
    rest = [name for name in ENDPOINTS if name != missing]
    assert not plan_of(labels=rest).views[0].identifies_connection
    change = {"mask": 32} if missing.endswith("_ip") else {"above": 65_535}
    plan = plan_of(labels=list(ENDPOINTS), rewrite={missing: change})
    assert not plan.views[0].identifies_connection


# Metrics


@pytest.mark.parametrize("known", METRICS, ids=lambda known: known.name)
def test_standard_names_are_those_that_openmetrics_wants(known: Any) -> None:
    family = metric(known.name, naming="standard")
    assert family.name == f"skydive_connection_{known.standard}"
    assert family.name.endswith("_total") == (family.type == "counter")
    base = family.name.removesuffix("_total")
    assert family.unit == "" or base.endswith(f"_{family.unit}")
    assert family.unit in ("", "bytes", "seconds")


@pytest.mark.parametrize("known", METRICS, ids=lambda known: known.name)
def test_compatible_names_are_alike(known: Any) -> None:
    family = metric(known.name)
    total = "total_" if family.type == "counter" else ""
    assert family.name.startswith(f"skydive_network_connection_{total}")
    assert ("total" in family.name) == bool(total)


def test_times_are_seconds_with_standard_names() -> None:
    assert (metric("rtt").decimals, metric("rtt", naming="standard").decimals) == (0, 9)
    for naming in ("compatible", "standard"):
        start, last = metric("start", naming=naming), metric("last", naming=naming)
        assert start.values == (Gauge(path=("Start",), keep="least"),)
        assert last.values == (Gauge(path=("Last",), keep="most"),)
        assert (start.decimals, last.decimals) == (3, 3)


def test_views_have_standard_names_in_either_naming() -> None:
    views = [{"prefix": "lab", "labels": ["protocol"], "metrics": EVERY_METRIC}]
    names = [
        [family.name for family in plan_of(views=views, naming=naming).views[1].families]
        for naming in ("compatible", "standard")
    ]
    assert names[0] == names[1] == [f"lab_{known.standard}" for known in METRICS]


@pytest.mark.parametrize("known", METRICS, ids=lambda known: known.name)
def test_a_metric_has_two_series_or_one(known: Any) -> None:
    split, added = metric(known.name), metric(known.name, direction="sum")
    assert len(split.values) == max(1, len(known.paths))
    assert len(added.values) == 1
    assert split.help.endswith(" in this direction.") == (len(split.values) == 2)
    assert not added.help.endswith(" in this direction.")
    if known.type == "counter":
        (total,) = added.values
        assert isinstance(total, Counter)
        assert total.paths == known.paths
        parts = [each for each in split.values if isinstance(each, Counter)]
        assert total.amounts == tuple(path for each in parts for path in each.amounts)


def test_flows_are_counted() -> None:
    assert metric("flows").values == metric("flows", direction="sum").values == (FlowCount(),)


def test_sum_has_no_direction() -> None:
    view = plan_of(direction="sum").views[0]
    assert view.direction is None
    assert [each.name for each in view.columns] == [*ENDPOINTS, "node_tid", "protocol"]


def test_counters_that_a_flow_can_lack_are_optional() -> None:
    optional = {
        known.name
        for known in METRICS
        for value in metric(known.name).values
        if isinstance(value, Counter) and value.optional
    }
    assert optional == {name for name in EVERY_METRIC if name.startswith(("tcp_", "ip_"))}


@pytest.mark.parametrize(
    ("value", "kind", "values"),
    [
        (
            "RawPacketsCaptured",
            "counter",
            (Counter(paths=(("RawPacketsCaptured",),)),),
        ),
        (
            ["TCPMetric.ABSawEnd", "TCPMetric.BASawEnd"],
            "counter",
            (
                Counter(paths=(("TCPMetric", "ABSawEnd"),), optional=True),
                Counter(paths=(("TCPMetric", "BASawEnd"),), optional=True),
            ),
        ),
        ("Metric.BABytes", "counter", (both("Bytes")[1],)),
        ("TCPMetric.ABSynTTL", "gauge", (Gauge(path=("TCPMetric", "ABSynTTL")),)),
    ],
)
def test_own_metrics(value: object, kind: str, values: tuple[object, ...]) -> None:
    own = {"name": "skydive_own", "value": value, "type": kind, "help": "Text."}
    (family,) = plan_of(metrics=[own]).views[0].families
    assert family == Family(name="skydive_own", help="Text.", type=kind, values=values)  # type: ignore[arg-type]


def test_own_counters_are_added_up() -> None:
    own = {
        "name": "mixed_total",
        "value": ["Metric.ABBytes", "TCPMetric.BABytes"],
        "type": "counter",
    }
    views = [{"prefix": "lab", "labels": ["protocol"], "metrics": [own], "direction": "sum"}]
    (family,) = plan_of(views=views).views[1].families
    assert family.name == "lab_mixed_total"
    assert family.help == "Skydive flow fields Metric.ABBytes and TCPMetric.BABytes."
    paths = (("Metric", "ABBytes"), ("TCPMetric", "BABytes"))
    assert family.values == (Counter(paths=paths, optional=True),)


# The rest of the plan


def test_overflow_and_conversations() -> None:
    plan = plan_of(overflow="other", deduplicate="first")
    assert plan.overflow == "other"
    assert plan.conversation is not None
    assert plan.conversation.protocol == ("Transport", "Protocol")
    assert plan.conversation.ends == (
        (("Network", "A"), ("Transport", "A")),
        (("Network", "B"), ("Transport", "B")),
    )
    assert plan.conversation.point == ("NodeTID",)


# The tables


def test_fields_of_the_tables_exist() -> None:
    for label in LABELS:
        assert label.path == () or label.path in LABEL_FIELDS, label.name
    for known in METRICS:
        for path in known.paths:
            assert FIELDS[path] is int, known.name
    assert {path for path, kind in FIELDS.items() if kind is int} >= RUNNING_TOTALS
    assert set(UNBOUNDED_FIELDS) <= LABEL_FIELDS


def test_names_of_the_tables_are_different() -> None:
    assert len(LABELS_BY_NAME) == len(LABELS)
    assert len(METRICS_BY_NAME) == len(METRICS)
    for attribute in ("compatible", "standard"):
        assert len({getattr(known, attribute) for known in METRICS}) == len(METRICS)


def test_everything_at_once_is_a_plan_for_the_decoder_and_the_table() -> None:
    plan = plan_of(
        labels=EVERY_LABEL,
        metrics=EVERY_METRIC,
        views=[
            {"prefix": "a", "labels": EVERY_LABEL, "metrics": EVERY_METRIC},
            {
                "prefix": "b",
                "labels": [name for name in EVERY_LABEL if name != "direction"],
                "metrics": EVERY_METRIC,
                "direction": "sum",
            },
        ],
        include_icmp=True,
        overflow="other",
        deduplicate="first",
        naming="standard",
    )
    types = flow_types(plan)
    decoder = msgspec.json.Decoder(list[types.FullReport])  # type: ignore[name-defined]
    flows = [
        flow
        for path in MESSAGES
        for line in path.read_text().splitlines()
        if (message := json.loads(line))["Namespace"] == "flow" and message["Obj"]
        for flow in decoder.decode(json.dumps(message["Obj"]))
    ]
    assert len(flows) > 1000
    table = Table(
        plan,
        types,
        max_connections=10_000,
        max_flows=10_000,
        timeout_s=75,
        view_timeouts_s=(3600, 3600),
    )
    assert table.update(flows, 0.0) == len(flows)
    page = read_all(table.page(0.0)).decode()
    shown = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    prefixes = ("skydive_connection", "a", "b")
    assert shown == {f"{prefix}_{known.standard}" for prefix in prefixes for known in METRICS}


def largest() -> dict[str, Any]:
    """Return the most of everything that a configuration can ask for."""
    paths = sorted(path for path, kind in FIELDS.items() if kind is int)
    own = [
        {"name": f"own_{i}", "value": ".".join(path), "type": "gauge"}
        for i, path in enumerate(paths)
    ]
    texts = [
        *({"name": f"a_{i}", "path": "Link.A"} for i in range(MAX_VIEW_COLUMNS)),
        *({"name": f"b_{i}", "path": "Link.B"} for i in range(MAX_VIEW_COLUMNS)),
    ]
    half = MAX_VIEW_COLUMNS
    return {
        "labels": texts[:half],
        "metrics": own[:MAX_VIEW_VALUES],
        "views": [
            {
                "prefix": f"view_{i}",
                "labels": texts[half:],
                "metrics": [*own[MAX_VIEW_VALUES:], {"name": "z_total", **COUNTER}],
            }
            for i in range(MAX_VIEWS - 1)
        ],
    }


COUNTER = {"value": "RawPacketsCaptured", "type": "counter"}


def test_the_table_takes_the_largest_plan() -> None:
    keys = largest()
    plan = plan_of(**keys)
    assert len(plan.columns) == MAX_COLUMNS
    assert len(plan.views) == MAX_VIEWS
    assert len(plan.views[0].families) == MAX_VIEW_VALUES
    types = flow_types(plan)
    timeouts = (3600,) * (MAX_VIEWS - 1)
    limits = {"max_connections": 1, "max_flows": 1, "timeout_s": 1, "view_timeouts_s": timeouts}
    table = Table(plan, types, **limits)
    assert table.view_connections == (0,) * (MAX_VIEWS - 1)


# Recording rules


def rules(name: str) -> dict[str, str]:
    """Return expressions by what they are recorded as."""
    text = (DEPLOY / "rules" / f"{name}.yml").read_text()
    found = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    by_name = {rule["record"]: rule["expr"] for rule in found}
    assert len(by_name) == len(found)
    return by_name


def pairs() -> dict[str, str]:
    """Return the standard names of all families of the page that have another, by that."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    others = re.findall(r"(?m)^\| `(skydive_\w+)` \| `(?!\1`)(skydive_\w+)` \|", page)
    main = loader.parse(
        f"pipeline.store.prom_sky_con.metrics: {EVERY_METRIC}", {}, source="x"
    ).export.main
    compatible, standard = (
        [family.name for family in families(main, naming=naming)]
        for naming in ("compatible", "standard")
    )
    return dict(ChainMap(dict(others), dict(zip(compatible, standard, strict=True))))


def test_recording_rules_map_every_name_to_the_other() -> None:
    to_standard, to_compatible = rules("compatible-to-standard"), rules("standard-to-compatible")
    factors = ("skydive_network_connection_rtt_nanoseconds", "skydive_connection_rtt_seconds")
    assert to_standard.pop(factors[1]) == f"{factors[0]} / 1e9"
    assert to_compatible.pop(factors[0]) == f"{factors[1]} * 1e9"
    expected = pairs()
    del expected[factors[0]]
    assert len(expected) == 25
    assert {name: standard for standard, name in to_standard.items()} == expected
    assert to_compatible == expected


@needs_promtool
@pytest.mark.parametrize("name", ["compatible-to-standard", "standard-to-compatible"])
def test_promtool_evaluates_the_recording_rules(name: str, tmp_path: Path) -> None:
    assert PROMTOOL is not None
    file = DEPLOY / "rules" / f"{name}.yml"
    recorded = rules(name)
    labels = '{instance="a:9100", node_tid="x"}'
    sources = {expression.split()[0] for expression in recorded.values()}
    factor = {"/ 1e9": 0.002, "* 1e9": 2e15}
    test = {
        "rule_files": [str(file)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": source + labels, "values": "2000000x3"} for source in sorted(sources)
                ],
                "promql_expr_test": [
                    {
                        "expr": name,
                        "eval_time": "2m",
                        "exp_samples": [
                            {
                                "labels": name + labels,
                                "value": factor.get(expression.partition(" ")[2], 2_000_000),
                            }
                        ],
                    }
                    for name, expression in recorded.items()
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    for command in (["check", "rules", str(file)], ["test", "rules", str(tmp_path / "test.yml")]):
        done = subprocess.run(
            [PROMTOOL, *command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
