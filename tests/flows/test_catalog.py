"""The known labels and metrics, and the plans built from configurations."""

import json
import re
import subprocess
from collections import ChainMap
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from skyfast._table import MAX_COLUMNS, MAX_VIEW_COLUMNS, MAX_VIEW_VALUES, MAX_VIEWS, Table
from skyfast.config import loader
from skyfast.config.yaml_nodes import ConfigError
from skyfast.flows.catalog import (
    ADDRESS_NAMES,
    HISTOGRAMS,
    LABEL_FIELDS,
    LABELS,
    LABELS_BY_NAME,
    METRICS,
    METRICS_BY_NAME,
    NODE_NAMES,
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
    Histogram,
    NewFlows,
    Plan,
    Requirement,
)
from skyfast.flows.planner import families, make_plan
from skyfast.flows.selection import ExportSelection, LabelSpec
from tests.support.paths import DEPLOY, RECORDINGS, ROOT
from tests.support.prometheus import PROMTOOL, needs_promtool
from tests.support.table_adapter import read_all

MESSAGES = sorted(RECORDINGS.glob("*.jsonl"))
EVERY_LABEL = [label.name for label in LABELS]
EVERY_METRIC = [metric.name for metric in METRICS]


class FixedNames(dict[str, tuple[str, ...]]):
    """Maps known keys to names, and other keys to ``count`` empty names."""

    def __init__(self, count: int, **known: tuple[str, ...]) -> None:
        super().__init__(known)
        self._unknown = ("",) * count

    def __missing__(self, key: str) -> tuple[str, ...]:
        return self._unknown

    def resolve(self, key: str, other: str, point: str, /) -> tuple[str, ...]:
        return self._unknown


class Source:
    """A source of empty names, for the topology labels and up to two pod labels."""

    def __init__(self) -> None:
        self.combined = FixedNames(len(ADDRESS_NAMES) + 2)
        self.nodes = FixedNames(len(NODE_NAMES))


def plan_of(names: Source | None = None, **keys: object) -> Plan:
    """Return the plan for these keys of the section ``prom_sky_con``."""
    text = yaml.safe_dump({"pipeline.store.prom_sky_con": keys})
    export = loader.parse(text, {}, source="x.yml").export
    return make_plan(export, names=names or Source())


def metric(name: str, **keys: object) -> Family:
    """Return the family for ``metrics: [name]``."""
    (family,) = plan_of(metrics=[name], **keys).views[0].families
    return family


def column(name: str, names: Source | None = None, **keys: object) -> Column:
    """Return the column for ``labels: [name]``."""
    (result,) = plan_of(names, labels=[name], **keys).views[0].columns
    return result


def counter_pair(name: str) -> tuple[Counter, Counter]:
    first, second = (
        Counter(paths=(("Metric", side + name),), last_update=(("LastUpdateMetric", side + name),))
        for side in ("AB", "BA")
    )
    return first, second


# Default configuration


def test_default_connections_match_the_go_connector() -> None:
    connections = plan_of().views[0]
    assert [(column.name, column.path) for column in connections.columns] == [
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
            values=counter_pair("Bytes"),
        ),
        Family(
            name="skydive_network_connection_total_packets",
            help="Packets transferred on this connection in this direction.",
            type="counter",
            values=counter_pair("Packets"),
        ),
        Family(
            name="skydive_network_connection_rtt_nanoseconds",
            help="Latest measured round-trip time on this connection.",
            type="gauge",
            values=(Gauge(path=("Metric", "RTT")),),
        ),
    )


def test_default_view_counts_traffic_per_node() -> None:
    _, traffic = plan_of().views
    assert [column.name for column in traffic.columns] == ["node_tid", "protocol"]
    assert traffic.direction == Direction(position=2)
    assert not traffic.identifies_connection
    assert [(family.name, family.help) for family in traffic.families] == [
        ("skydive_traffic_bytes_total", "Bytes transferred in this direction."),
        ("skydive_traffic_packets_total", "Packets transferred in this direction."),
    ]


def test_flow_without_ports_is_skipped() -> None:
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
    names = [column.name for column in view.columns]
    names.insert(view.direction.position, view.direction.name)
    assert " ".join(names) == order


def test_views_with_the_same_label_share_its_column() -> None:
    main, first, second = plan_of(
        labels=["node_tid", "node_name", "tag"],
        views=[
            {"prefix": "a", "labels": ["tag", "node_tid"]},
            {"prefix": "b", "labels": ["node_name", {"name": "mac", "path": "Link.A"}]},
        ],
    ).views
    assert first.columns == (main.columns[2], main.columns[0])
    assert second.columns[0] is main.columns[1]


def test_views_can_use_one_label_name_for_different_paths() -> None:
    plan = plan_of(
        views=[
            {"prefix": side, "labels": [{"name": "mac", "path": f"Link.{side}"}]} for side in "AB"
        ]
    )
    assert [view.columns[0].path for view in plan.views[1:]] == [("Link", "A"), ("Link", "B")]


FROM = {
    "initiator": (("Network", "A"), (("Network", "B"), ("NodeTID",)), ADDRESS_NAMES),
    "target": (("Network", "B"), (("Network", "A"), ("NodeTID",)), ADDRESS_NAMES),
    "node": (("NodeTID",), (), NODE_NAMES),
}


@pytest.mark.parametrize(
    ("prefix", "name"), [(prefix, name) for prefix in FROM for name in FROM[prefix][2]]
)
def test_topology_labels_have_a_lookup(prefix: str, name: str) -> None:
    key, context, order = FROM[prefix]
    names = Source()
    label_column = column(f"{prefix}_{name}", names)
    assert (label_column.path, label_column.rewrite, label_column.index) == (
        key,
        None,
        order.index(name),
    )
    assert label_column.lookup is not None
    assert label_column.lookup.names is (names.nodes if prefix == "node" else names.combined)
    assert (label_column.lookup.key, label_column.lookup.context) == (key, context)


def test_labels_of_the_same_address_share_one_lookup() -> None:
    labels = [label.name for label in LABELS if label.lookup in ("address", "node")]
    plan = plan_of(
        labels=labels[:20],
        views=[{"prefix": "x", "labels": [*labels[20:], {"name": "team", "k8s_label": "team"}]}],
    )
    assert len(plan.columns) == 2 * (len(ADDRESS_NAMES) + 2) + len(NODE_NAMES)
    assert len({each.lookup for each in plan.columns}) == 3


def test_indexes_of_pod_labels_follow_those_of_built_in_names() -> None:
    plan = plan_of(
        labels=[{"name": "team", "k8s_label": "team"}, "target_pod"],
        views=[
            {
                "prefix": "x",
                "labels": [{"name": "initiator_app", "k8s_label": "app.kubernetes.io/name"}],
            },
            {"prefix": "y", "labels": [{"name": "target_squad", "k8s_label": "team"}]},
        ],
    )
    app, team = len(ADDRESS_NAMES), len(ADDRESS_NAMES) + 1
    assert [(each.name, each.path, each.index) for each in plan.columns] == [
        ("initiator_team", ("Network", "A"), team),
        ("target_team", ("Network", "B"), team),
        ("target_pod", ("Network", "B"), ADDRESS_NAMES.index("pod")),
        ("initiator_app", ("Network", "A"), app),
        ("target_squad", ("Network", "B"), team),
    ]
    assert plan.columns[1].lookup is plan.columns[2].lookup is plan.columns[4].lookup


def test_indexes_of_own_names_follow_those_of_pod_labels() -> None:
    team, site = {"name": "team", "k8s_label": "team"}, {"name": "site", "names_key": "site"}
    plan = plan_of(
        labels=["initiator_network", team, site],
        views=[{"prefix": "x", "labels": [{"name": "target_who", "names_key": "owner"}]}],
    )
    first = len(ADDRESS_NAMES)
    assert [(each.name, each.path, each.index) for each in plan.columns] == [
        ("initiator_network", ("Network", "A"), first + 1),
        ("initiator_team", ("Network", "A"), first),
        ("target_team", ("Network", "B"), first),
        ("initiator_site", ("Network", "A"), first + 3),
        ("target_site", ("Network", "B"), first + 3),
        ("target_who", ("Network", "B"), first + 2),
    ]
    assert len({each.lookup for each in plan.columns}) == 2


def test_pod_label_keys_of_all_views_are_collected() -> None:
    text = """
        pipeline.store.prom_sky_con:
          labels: [{name: b, k8s_label: team}, {name: initiator_c, k8s_label: app}]
          views: [{prefix: x, labels: [target_pod, {name: d, k8s_label: app}]}]
    """
    assert loader.parse(text, {}, source="x.yml").export.k8s_labels == ("app", "team")
    assert loader.parse("", {}, source="x.yml").export.k8s_labels == ()


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
def test_protocol_label_contains_the_icmp_version(parts: dict[str, Any], protocol: str) -> None:
    plan = plan_of(labels=["protocol"], include_icmp=True)
    (label_column,) = plan.views[0].columns
    assert label_column.path == ()
    assert label_column.rewrite is not None
    assert label_column.rewrite[decoded({"UUID": "1", **parts}, plan)] == protocol


@pytest.mark.parametrize(
    ("parts", "protocol"),
    [
        ({"Transport": {"Protocol": "UDP", "A": 1, "B": 2}, "LayersPath": "a/b"}, "UDP"),
        ({"LayersPath": "Ethernet/IPv4/GRE"}, "GRE"),
        ({"LayersPath": "IPv6"}, "IPv6"),
        ({}, ""),
    ],
)
def test_protocol_of_flows_without_transport_is_the_last_layer(
    parts: dict[str, Any], protocol: str
) -> None:
    plan = plan_of(labels=["protocol"], include_other=True)
    (label_column,) = plan.views[0].columns
    assert label_column.rewrite is not None
    assert label_column.rewrite[decoded({"UUID": "1", **parts}, plan)] == protocol


def test_layers_path_is_decoded_only_if_include_other_is_set() -> None:
    for settings, decodes in (({}, False), ({"include_icmp": True}, False), (OTHER, True)):
        assert ("LayersPath" in flow_types(plan_of(**settings)).Update.__struct_fields__) is decodes


OTHER = {"include_other": True}
BOTH = {"include_other": True, "include_icmp": True}


def test_include_other_accepts_flows_without_ports_except_icmp() -> None:
    expected = Requirement(paths=(("Transport",),), unless_missing=("ICMP",), reason="no_transport")
    plan = plan_of(**OTHER)
    assert plan.requirements[1] == expected
    assert not plan.views[0].identifies_connection
    assert [requirement.reason for requirement in plan_of(**BOTH).requirements] == [
        "no_network",
        "no_metric",
    ]


def test_include_icmp_accepts_icmp_flows_without_ports() -> None:
    plan = plan_of(include_icmp=True)
    expected = Requirement(paths=(("Transport",), ("ICMP",)), reason="no_transport")
    assert expected in plan.requirements
    assert not plan.views[0].identifies_connection


def test_label_tag_contains_the_tag_of_the_flow() -> None:
    text = (
        "pipeline: {classify: {cluster_net_masks: 10.0.0.0/8},"
        " store: {prom_sky_con: {labels: tag}}}"
    )
    plan = make_plan(loader.parse(text, {}, source="x.yml").export, names=Source())
    (label_column,) = plan.views[0].columns
    assert label_column.rewrite is not None
    flow = decoded({"Network": {"A": "10.0.0.1", "B": "192.0.2.1"}}, plan)
    assert label_column.rewrite[flow] == "egress"


def test_rewrites_mask_addresses_and_group_ports() -> None:
    rewrite = {"target_ip": {"mask": 24}, "initiator_port": {"above": 1023}}
    address, port = column("target_ip", rewrite=rewrite), column("initiator_port", rewrite=rewrite)
    assert address.rewrite is not None
    assert port.rewrite is not None
    assert address.rewrite["10.1.2.3"] == "10.1.2.0/24"
    assert (port.rewrite[80], port.rewrite[8080]) == (80, "other")
    assert column("target_port", rewrite=rewrite).rewrite is None


ENDPOINTS = ("initiator_ip", "target_ip", "initiator_port", "target_port")


@pytest.mark.parametrize("missing", ENDPOINTS)
def test_only_views_with_all_unrewritten_addresses_and_ports_identify_connections(
    missing: str,
) -> None:
    assert plan_of(labels=list(ENDPOINTS)).views[0].identifies_connection
    rest = [name for name in ENDPOINTS if name != missing]
    assert not plan_of(labels=rest).views[0].identifies_connection
    change = {"mask": 32} if missing.endswith("_ip") else {"above": 65_535}
    plan = plan_of(labels=list(ENDPOINTS), rewrite={missing: change})
    assert not plan.views[0].identifies_connection


# Metrics


@pytest.mark.parametrize("known", METRICS, ids=lambda known: known.name)
def test_standard_names_follow_openmetrics(known: Any) -> None:
    family = metric(known.name, naming="standard")
    assert family.name == f"skydive_connection_{known.standard}"
    assert family.name.endswith("_total") == (family.type == "counter")
    base = family.name.removesuffix("_total")
    assert family.unit == "" or base.endswith(f"_{family.unit}")
    assert family.unit in ("", "bytes", "seconds")


@pytest.mark.parametrize("known", METRICS, ids=lambda known: known.name)
def test_compatible_names_share_a_prefix(known: Any) -> None:
    family = metric(known.name)
    is_inherited = known.name != "new_flows"  # prom_sky_con does not have this metric
    total = "total_" if family.type == "counter" and is_inherited else ""
    assert family.name.startswith(f"skydive_network_connection_{total}")
    assert family.name.endswith("_total") == (family.type == "counter" and not is_inherited)
    assert ("total" in family.name) == (family.type == "counter")


def test_standard_naming_shows_times_in_seconds() -> None:
    assert (metric("rtt").decimals, metric("rtt", naming="standard").decimals) == (0, 9)
    for naming in ("compatible", "standard"):
        start, last = metric("start", naming=naming), metric("last", naming=naming)
        assert start.values == (Gauge(path=("Start",), keep="least"),)
        assert last.values == (Gauge(path=("Last",), keep="most"),)
        assert (start.decimals, last.decimals) == (3, 3)


def test_metrics_of_views_have_standard_names_even_with_compatible_naming() -> None:
    views = [{"prefix": "lab", "labels": ["protocol"], "metrics": EVERY_METRIC}]
    names = [
        [family.name for family in plan_of(views=views, naming=naming).views[1].families]
        for naming in ("compatible", "standard")
    ]
    assert names[0] == names[1] == [f"lab_{known.standard}" for known in METRICS]


@pytest.mark.parametrize("known", METRICS, ids=lambda known: known.name)
def test_metric_has_one_series_per_direction_or_one_sum(known: Any) -> None:
    split, summed = metric(known.name), metric(known.name, direction="sum")
    assert len(split.values) == max(1, len(known.paths))
    assert len(summed.values) == 1
    assert split.help.endswith(" in this direction.") == (len(split.values) == 2)
    assert not summed.help.endswith(" in this direction.")
    if known.type == "counter" and known.paths:
        (total,) = summed.values
        assert isinstance(total, Counter)
        assert total.paths == known.paths
        parts = [value for value in split.values if isinstance(value, Counter)]
        assert total.last_update == tuple(path for part in parts for path in part.last_update)


def test_flows_metric_counts_flows() -> None:
    assert metric("flows").values == metric("flows", direction="sum").values == (FlowCount(),)


def test_metric_new_flows_has_one_value_for_both_directions() -> None:
    for direction in ("split", "sum"):
        assert metric("new_flows", direction=direction).values == (NewFlows(),)
        plan = plan_of(metrics=["new_flows"], views=[], direction=direction)
        assert (plan.new_flows, plan.counters, plan.gauges) == ((NewFlows(),), (), ())
    views = [{"prefix": "lab", "labels": ["protocol"], "metrics": ["new_flows", "bytes"]}]
    assert plan_of(views=views).new_flows == (NewFlows(),)
    assert plan_of(metrics=["flows", "bytes"]).new_flows == ()


def histogram(name: str, *buckets: float, direction: str = "split") -> Family:
    entry = {"name": name, "type": "histogram", "buckets": list(buckets)}
    view = {"prefix": "lab", "labels": ["protocol"], "metrics": [entry], "direction": direction}
    (family,) = plan_of(views=[view]).views[1].families
    return family


def test_histograms_have_standard_names_units_and_fields() -> None:
    rtt = histogram("rtt", 0.001, 1)
    assert (rtt.name, rtt.type, rtt.unit, rtt.decimals) == (
        *("lab_rtt_seconds", "histogram", "seconds"),
        9,
    )
    assert rtt.help == "First measured round-trip time of each flow."
    bounds = (0.001, 1.0)
    assert rtt.values == (Histogram(observes="first", paths=(("Metric", "RTT"),), bounds=bounds),)
    duration = histogram("flow_duration", 0.001, 1)
    assert (duration.name, duration.unit, duration.decimals) == (
        *("lab_flow_duration_seconds", "seconds"),
        3,
    )
    assert duration.values == (Histogram(observes="age", paths=(("Start",),), bounds=bounds),)


def test_size_histogram_observes_each_direction_or_their_sum() -> None:
    a, b = (("Metric", "ABBytes"),), (("Metric", "BABytes"),)
    split = histogram("flow_bytes", 1000)
    assert (split.name, split.unit, split.decimals) == ("lab_flow_bytes", "bytes", 0)
    assert split.help == "Bytes of each closed flow in this direction."
    assert split.values == tuple(
        Histogram(observes="total", paths=paths, bounds=(1000.0,)) for paths in (a, b)
    )
    summed = histogram("flow_bytes", 1000, direction="sum")
    assert summed.help == "Bytes of each closed flow."
    assert summed.values == (Histogram(observes="total", paths=(*a, *b), bounds=(1000.0,)),)
    assert (split.series, summed.series) == (8, 4)


def test_fields_of_histograms_are_gauges_in_the_plan() -> None:
    entries = [{"name": known.name, "type": "histogram", "buckets": [1]} for known in HISTOGRAMS]
    views = [{"prefix": "lab", "labels": ["protocol"], "metrics": entries}]
    plan = plan_of(metrics=["packets"], views=views)
    assert [gauge.path for gauge in plan.gauges] == [("Metric", "RTT")]
    closing = [("Metric", "ABBytes"), ("Metric", "BABytes"), ("Start",)]
    assert [gauge.path for gauge in plan.closing_gauges] == closing
    types = flow_types(plan)
    assert {("Metric", "RTT"), *closing} <= types.omissible
    assert types.Update().Start == 0  # type: ignore[attr-defined]


def test_bounds_of_buckets_are_converted_to_the_unit_of_the_field() -> None:
    bounds = (1e-10, 0.0015, 0.005, 2.5, 1e6)
    (value,) = histogram("rtt", *bounds).values
    assert isinstance(value, Histogram)
    assert value.limits(9) == (0, 1_500_000, 5_000_000, 2_500_000_000, 10**15)
    assert value.limits(3) == (0, 1, 5, 2500, 10**9)
    assert value.limits(0) == (0, 0, 0, 2, 10**6)
    assert value.bound_texts == ("1e-10", "0.0015", "0.005", "2.5", "1e+06")


def test_summed_view_has_no_direction_label() -> None:
    view = plan_of(direction="sum").views[0]
    assert view.direction is None
    assert [column.name for column in view.columns] == [*ENDPOINTS, "node_tid", "protocol"]


def test_tcp_and_ip_counters_are_optional() -> None:
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
        ("Metric.BABytes", "counter", (counter_pair("Bytes")[1],)),
        ("TCPMetric.ABSynTTL", "gauge", (Gauge(path=("TCPMetric", "ABSynTTL")),)),
    ],
)
def test_custom_metric_has_the_configured_values(
    value: object, kind: str, values: tuple[object, ...]
) -> None:
    own = {"name": "skydive_own", "value": value, "type": kind, "help": "Text."}
    (family,) = plan_of(metrics=[own]).views[0].families
    assert family == Family(name="skydive_own", help="Text.", type=kind, values=values)  # type: ignore[arg-type]


def test_custom_counter_can_be_the_sum_of_two_fields() -> None:
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


# Other parts of the plan


def test_plan_contains_the_overflow_label_and_the_fields_of_conversations() -> None:
    plan = plan_of(overflow="other", deduplicate="first")
    assert plan.overflow == "other"
    assert plan.conversation is not None
    assert plan.conversation.protocol == ("Transport", "Protocol")
    assert plan.conversation.ends == (
        (("Network", "A"), ("Transport", "A")),
        (("Network", "B"), ("Transport", "B")),
    )
    assert plan.conversation.point == ("NodeTID",)


# The lists of known labels and metrics


def test_paths_of_labels_and_metrics_exist_in_flows() -> None:
    for label in LABELS:
        assert label.path == () or label.path in LABEL_FIELDS, label.name
    for known in METRICS:
        for path in known.paths:
            assert FIELDS[path] is int, known.name
    assert {path for path, kind in FIELDS.items() if kind is int} >= RUNNING_TOTALS
    assert set(UNBOUNDED_FIELDS) <= LABEL_FIELDS


def test_names_of_labels_and_metrics_are_unique() -> None:
    assert len(LABELS_BY_NAME) == len(LABELS)
    assert len(METRICS_BY_NAME) == len(METRICS)
    for attribute in ("compatible", "standard"):
        assert len({getattr(known, attribute) for known in METRICS}) == len(METRICS)


def test_plan_with_every_label_and_metric_exports_every_family() -> None:
    first, rest = EVERY_LABEL[:MAX_VIEW_COLUMNS], EVERY_LABEL[MAX_VIEW_COLUMNS:]
    plan = plan_of(
        labels=first,
        metrics=EVERY_METRIC,
        views=[
            {"prefix": "a", "labels": [*rest, *first[:5]], "metrics": EVERY_METRIC},
            {
                "prefix": "b",
                "labels": [name for name in EVERY_LABEL[5:35] if name != "direction"],
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
    """Return the section ``prom_sky_con`` of the largest valid configuration."""
    paths = sorted(path for path, kind in FIELDS.items() if kind is int)
    own = [
        {"name": f"own_{i}", "value": ".".join(path), "type": "gauge"}
        for i, path in enumerate(paths)
    ]
    labels = [
        *({"name": f"a_{i}", "path": "Link.A"} for i in range(MAX_VIEW_COLUMNS)),
        *({"name": f"b_{i}", "path": "Link.B"} for i in range(MAX_VIEW_COLUMNS)),
    ]
    half = MAX_VIEW_COLUMNS
    return {
        "labels": labels[:half],
        "metrics": own[:MAX_VIEW_VALUES],
        "views": [
            {
                "prefix": f"view_{i}",
                "labels": labels[half:],
                "metrics": [*own[MAX_VIEW_VALUES:], {"name": "z_total", **COUNTER}],
            }
            for i in range(MAX_VIEWS - 1)
        ],
    }


COUNTER = {"value": "RawPacketsCaptured", "type": "counter"}


def test_table_accepts_the_largest_plan() -> None:
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


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        ([], 0),
        (["node_name", "node_pod", "node_netns"], 1),
        (["initiator_name", "initiator_pod"], 3),
        (["target_workload", "initiator_host", "node_type"], 3),
        ([{"name": "team", "k8s_label": "team"}], 3),
        ([{"name": "target_team", "k8s_label": "team"}, "node_name"], 3),
    ],
)
def test_lookup_key_counts_once_towards_the_limit_of_columns(names: list[Any], keys: int) -> None:
    def accepted(count: int) -> ExportSelection:
        """Divide ``count`` labels among views. Each view also has the labels in ``names``."""
        fields = [{"name": f"field_{i}", "path": "Link.A"} for i in range(count)]
        half = MAX_VIEW_COLUMNS - 10
        views = [
            {"prefix": f"x{i}", "labels": [*fields[at : at + half], *names]}
            for i, at in enumerate(range(half, count, half))
        ]
        keys = {"labels": [*names, *fields[:half]], "direction": "sum", "views": views}
        text = yaml.safe_dump({"pipeline.store.prom_sky_con": keys})
        return loader.parse(text, {}, source="x.yml").export

    def table(export: ExportSelection) -> Table:
        plan = make_plan(export, names=Source())
        timeouts = (3600,) * (len(plan.views) - 1)
        limits = {"max_connections": 1, "max_flows": 1, "timeout_s": 1}
        return Table(plan, flow_types(plan), view_timeouts_s=timeouts, **limits)

    ends = sum(isinstance(each, dict) and each["name"] == "team" for each in names)
    most = MAX_COLUMNS - keys - len(names) - ends
    export = accepted(most)
    assert table(export).flows == 0
    with pytest.raises(ConfigError, match=f"more than {MAX_COLUMNS} different labels"):
        accepted(most + 1)
    *views, last = export.further_views
    more = replace(last, labels=(*last.labels, LabelSpec(name="more", path=("Link", "B"))))
    with pytest.raises(ValueError, match="too many labels"):
        table(replace(export, further_views=(*views, more)))


# Recording rules


def rules(name: str) -> dict[str, str]:
    """Map the name of each recorded series to its expression."""
    text = (DEPLOY / "rules" / f"{name}.yml").read_text()
    entries = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    by_name = {rule["record"]: rule["expr"] for rule in entries}
    assert len(by_name) == len(entries)
    return by_name


def standard_names() -> dict[str, str]:
    """Map the compatible name of each family to the standard name."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    others = re.findall(r"(?m)^\| `(skydive_\w+)` \| `(?!\1`)(skydive_\w+)` \|", page)
    main = loader.parse(
        f"pipeline.store.prom_sky_con.metrics: {EVERY_METRIC}", {}, source="x"
    ).export.first_view
    compatible, standard = (
        [family.name for family in families(main, naming=naming)]
        for naming in ("compatible", "standard")
    )
    return dict(ChainMap(dict(others), dict(zip(compatible, standard, strict=True))))


def test_recording_rules_map_names_in_both_directions() -> None:
    to_standard, to_compatible = rules("compatible-to-standard"), rules("standard-to-compatible")
    factors = ("skydive_network_connection_rtt_nanoseconds", "skydive_connection_rtt_seconds")
    assert to_standard.pop(factors[1]) == f"{factors[0]} / 1e9"
    assert to_compatible.pop(factors[0]) == f"{factors[1]} * 1e9"
    expected = standard_names()
    del expected[factors[0]]
    assert len(expected) == 27
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
