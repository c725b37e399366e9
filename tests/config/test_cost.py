"""The reported cost of exports, and the warnings about traffic that is counted several times."""

import logging

import pytest
import yaml

from skyfast.app import App
from skyfast.config import cost, traffic_warnings
from skyfast.flows.catalog import ADDRESS_NAMES
from tests.support.configs import make_config
from tests.support.documentation import PAGES, blocks
from tests.support.messages import flow, message, values
from tests.support.sink import IngestSetup, Sink

CONNECTIONS = "skydive_network_connection_total_bytes"
WARNING = "is counted several times"


def view(*labels: object, prefix: str = "apps", **entries: object) -> dict[str, object]:
    return {"prefix": prefix, "labels": list(labels), **entries}


SETTINGS = {
    "{}": [],
    "{views: []}": [],
    # Many containers have an interface eth0, so ``node_name`` does not identify a capture point.
    "{labels: [initiator_ip, target_ip, node_name]}": ["connections"],
    "{labels: [initiator_ip, target_ip, node_name], deduplicate: first}": [],
    "{labels: [initiator_ip, target_ip, node_name, node_tid]}": [],
    "{labels: [protocol, {name: interface, path: NodeTID}]}": [],
    "{labels: [protocol, {name: flow, path: UUID}]}": [],
    "{labels: [protocol, tracking_id, capture_id, link_a, parent_uuid]}": ["connections"],
    "{labels: [protocol], metrics: [rtt, start, last]}": [],
    "{labels: [protocol], metrics: [rtt, flows]}": ["connections"],
    "{labels: [protocol], metrics: [rtt, new_flows]}": ["connections"],
    "{labels: [protocol], direction: sum}": ["connections"],
    "{views: [{prefix: apps, labels: [application]}]}": ["view apps"],
    "{views: [{prefix: apps, labels: [application, node_tid]}]}": [],
    "{views: [{prefix: apps, labels: [application], metrics: [rtt]}]}": [],
    "{labels: [protocol], views: [{prefix: a, labels: [tag]}, {prefix: b, labels: [node_tid]}]}": [
        "connections",
        "view a",
    ],
    "{metrics: [{name: raw, value: RawPacketsCaptured, type: counter}], labels: [target_ip]}": [
        "connections"
    ],
    "{metrics: [{name: raw, value: RawPacketsCaptured, type: gauge}], labels: [target_ip]}": [],
}


@pytest.mark.parametrize(("settings", "exports"), SETTINGS.items())
def test_exports_that_count_traffic_several_times_are_named_in_warnings(
    settings: str, exports: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(**yaml.safe_load(settings))
    assert cost.double_counted(config) == exports
    traffic_warnings.write(config)
    assert [text.split(": ")[0] for text in caplog.messages if WARNING in text] == exports
    caplog.clear()
    traffic_warnings.write(config, old=config)
    assert not caplog.messages


HIDDEN = "min_bytes or min_packets hides small connections"


@pytest.mark.parametrize(
    ("settings", "hides", "texts"),
    [
        ("{}", False, []),
        (
            "{min_bytes: 7}",
            False,
            ["A connection has no series until it has 7 bytes."],
        ),
        (
            "{min_packets: 7, metrics: [rtt], views: []}",
            True,
            [
                "A connection has no series until it has 7 packets.",
                (
                    "Counting bytes and packets for these bounds takes 32 bytes of memory per"
                    " connection, and another 32 bytes per flow."
                ),
            ],
        ),
        (
            (
                "{min_packets: 7, min_bytes: 8, views: [{prefix: a, labels: [node_tid],"
                " min_bytes: 9, direction: sum, metrics: [packets]}]}"
            ),
            True,
            [
                "A connection has no series until it has 8 bytes or 7 packets.",
                "A row of view a has no series until it has 9 bytes.",
                (
                    "Counting bytes for these bounds takes 8 bytes of memory per row of view"
                    " a, and another 8 bytes per flow."
                ),
            ],
        ),
        (
            (
                "{min_bytes: 7, views: [{prefix: a, labels: [node_tid], metrics: [{name: a_total,"
                " value: [Metric.ABBytes, Metric.BABytes], type: counter, help: a}]}]}"
            ),
            False,
            ["A connection has no series until it has 7 bytes."],
        ),
        (
            "{min_bytes: 7, views: [{prefix: a, labels: [node_tid], metrics: [packets]}]}",
            False,
            ["A connection has no series until it has 7 bytes."],
        ),
        (
            "{views: [{prefix: a, labels: [node_tid], min_packets: 9}]}",
            False,
            ["A row of view a has no series until it has 9 packets."],
        ),
    ],
)
def test_cost_report_describes_bounds(
    settings: str, hides: bool, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(**yaml.safe_load(settings))
    assert cost.hides_traffic(config) == hides
    lines = [line.removeprefix("# ") for line in cost.report(config).splitlines()]
    shown = (" has no series ", " for these bounds ")
    assert [line for line in lines if any(words in line for words in shown)] == texts
    traffic_warnings.write(config)
    assert any(text.startswith(HIDDEN) for text in caplog.messages) == hides
    caplog.clear()
    traffic_warnings.write(config, old=config)
    assert not caplog.messages


@pytest.mark.parametrize(
    "settings",
    [
        "{}",
        "{deduplicate: first}",
        "{labels: [initiator_ip, target_pod, target_service]}",
        "{metrics: [packets], min_bytes: 7, views: []}",
    ],
)
def test_cost_report_has_the_memory_of_a_connection(settings: str) -> None:
    config = make_config(**yaml.safe_load(settings))
    row_bytes = App(config, load=lambda: config)._parts.table.row_bytes
    text = f"# Each connection takes {row_bytes} bytes of memory, plus address strings."
    assert text in cost.report(config).splitlines()


@pytest.mark.parametrize("preset", ["services", "hosts"])
def test_presets_hide_traffic_only_if_bounds_are_configured(preset: str) -> None:
    assert not cost.hides_traffic(make_config(preset=preset))
    config = make_config(preset=preset, min_bytes=7)
    assert cost.hides_traffic(config)


@pytest.mark.parametrize("settings", SETTINGS)
def test_warnings_match_the_exported_values(settings: str) -> None:
    config = make_config(**yaml.safe_load(settings))
    sink = Sink(**yaml.safe_load(settings))
    # Both ends of a veth pair report the same conversation.
    sink.receive(message(flow("1", NodeTID="veth"), flow("2", NodeTID="eth0")))
    for spec, prefix in (
        (config.export.first_view, ""),
        *((v, v.prefix) for v in config.export.further_views),
    ):
        family = f"{prefix}_bytes_total" if prefix else CONNECTIONS
        shown = [int(value) for value in values(sink, family)]
        if shown:
            doubled = max(shown) > (300 if spec.direction == "sum" else 200)
            name = f"view {prefix}" if prefix else "connections"
            assert doubled == (name in cost.double_counted(config))


LOCAL = "interfaces, namespaces, containers, VMs and edges"
EVERYTHING = "interfaces, namespaces, containers, VMs, pods, workloads, services and edges"


@pytest.mark.parametrize(
    ("settings", "taken", "names", "queries"),
    [
        ("{}", "", 0, ""),
        ("{labels: [tag, initiator_ip, {name: x, path: NodeTID}]}", "", 0, ""),
        (
            "{labels: [protocol, node_name, node_host]}",
            "8 bytes per connection, 4 bytes per flow",
            44,
            "interfaces",
        ),
        (
            "{labels: [node_netns, node_container, node_name]}",
            "12 bytes per connection, 4 bytes per flow",
            48,
            LOCAL,
        ),
        (
            "{labels: [node_netns, node_pod]}",
            "8 bytes per connection, 4 bytes per flow",
            44,
            EVERYTHING,
        ),
        (
            "{labels: [node_tid, {name: team, k8s_label: team}]}",
            "8 bytes per connection, 12 bytes per flow",
            40,
            EVERYTHING,
        ),
        (
            "{labels: [protocol], views: [{prefix: a, labels: [target_pod, target_host]}]}",
            "8 bytes per row of view a, 12 bytes per flow",
            44,
            EVERYTHING,
        ),
        (
            "{labels: [node_type, target_pod], views: [{prefix: a, labels: [node_pod]}]}",
            "8 bytes per connection, 4 bytes per row of view a, 12 bytes per flow",
            44,
            EVERYTHING,
        ),
    ],
)
def test_cost_of_topology_labels_is_reported(
    settings: str, taken: str, names: int, queries: str
) -> None:
    lines = cost.report(make_config(**yaml.safe_load(settings))).splitlines()
    words = ("from the topology", "topology queries", "probe")
    shown = [line for line in lines if any(word in line for word in words)]
    probe = (
        "# Names of pods, workloads and services need Skydive's Kubernetes probe (k8s) on an"
        " analyzer."
    )
    rest = (
        "and about 72 bytes for each distinct name, address and capture point. In addition, the"
        " names of each address and each capture point are stored for new flows:"
        f" about {names} bytes for each address and each capture point."
    )
    assert shown == (
        [
            f"# Labels with names from the topology take {taken}, {rest}",
            f"# These labels need topology queries for {queries}.",
            *([probe] if queries == EVERYTHING else []),
        ]
        if taken
        else []
    )


@pytest.mark.parametrize("labels", [[], ["node_name"], ["target_pod"]])
def test_cost_of_interface_info_is_reported(labels: list[str]) -> None:
    config = make_config(labels=["node_tid", *labels], interface_info=True)
    lines = cost.report(config).splitlines()
    first = lines.index(
        "# Each value of node_tid costs one series of skydive_network_interface_info."
    )
    assert lines[first + 1] == f"# These series need topology queries for {EVERYTHING}."
    assert sum("probe (k8s)" in line for line in lines) == 1
    config = make_config(labels=["node_tid", *labels])
    assert "interface_info" not in cost.report(config)


@pytest.mark.parametrize(
    ("labels", "source", "taken"),
    [
        (
            ["target_network"],
            "'names' and 'names_file'",
            "4 bytes per connection, 12 bytes per flow",
        ),
        (
            [{"name": "site", "names_key": "site"}, "node_tid"],
            "'names' and 'names_file'",
            "8 bytes per connection, 12 bytes per flow",
        ),
        (
            ["target_network", "node_name"],
            "the topology, 'names' and 'names_file'",
            "8 bytes per connection, 12 bytes per flow",
        ),
    ],
)
def test_cost_of_own_names_is_reported(labels: list[object], source: str, taken: str) -> None:
    lines = cost.report(make_config(labels=labels, views=[])).splitlines()
    (line,) = (line for line in lines if "Labels with names" in line)
    assert line.startswith(f"# Labels with names from {source} take {taken}, and about 72 bytes")
    queries = "# These labels need topology queries for interfaces."
    assert (queries in lines) == ("node_name" in labels)
    assert not [line for line in lines if "probe" in line]


def row_bytes(*labels: str, metrics: tuple[str, ...] = ("bytes",)) -> int:
    settings = {"labels": ["target_ip", "protocol", *labels], "metrics": [*metrics]}
    return int(Sink(**settings, views=[]).table.row_bytes)


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ("{metrics: [bytes, flows]}", ""),
        ("{metrics: [bytes, new_flows]}", "8 bytes per connection"),
        (
            "{metrics: [new_flows], views: [{prefix: a, labels: [tag], metrics: [new_flows]}]}",
            "8 bytes per connection, 8 bytes per row of view a",
        ),
        (
            "{views: [{prefix: a, labels: [tag], metrics: [new_flows]}]}",
            "8 bytes per row of view a",
        ),
    ],
)
def test_cost_of_the_new_flows_metric_is_reported(settings: str, taken: str) -> None:
    lines = cost.report(make_config(**yaml.safe_load(settings))).splitlines()
    shown = [line for line in lines if "new_flows takes" in line]
    assert shown == ([f"# The metric new_flows takes {taken}."] if taken else [])


HISTOGRAM_VIEWS = """views:
  - prefix: a
    labels: [tag]
    metrics:
      - bytes
      - {name: rtt, type: histogram, buckets: [0.001, 0.01, 0.1]}
      - {name: flow_bytes, type: histogram, buckets: [1000]}
  - {prefix: b, labels: [protocol], metrics: [packets]}
  - prefix: c
    labels: [protocol]
    direction: sum
    metrics: [{name: flow_duration, type: histogram, buckets: [1, 60]}]
"""


def test_cost_of_histograms_is_reported() -> None:
    config = make_config(**yaml.safe_load(HISTOGRAM_VIEWS))
    lines = cost.report(config).splitlines()
    taken = "88 bytes per row of view a, 32 bytes per row of view c, and 4 bytes per flow"
    assert f"# Histograms take {taken}." in lines
    assert "# All rows of view a (tag) together cost at most 16000000 series." in lines
    removed = "is removed 3600 s after its last report"
    assert f"# Each row {removed}, and costs up to 16 series:" in lines
    shown = [line for line in lines if "a_rtt" in line or "a_flow" in line]
    assert shown == ["#   6 a_rtt_seconds", "#   8 a_flow_bytes"]


def test_views_with_histograms_count_traffic_several_times() -> None:
    config = make_config(**yaml.safe_load(HISTOGRAM_VIEWS))
    assert cost.double_counted(config) == ["view a", "view b", "view c"]


def test_memory_of_histograms_shown_by_check_matches_the_table() -> None:
    count, taken = 20_000, []
    own = {"prefix": "a", "labels": ["tracking_id"], "direction": "sum"}
    histograms = [
        {"name": "flow_bytes", "type": "histogram", "buckets": [1, 2, 3, 4, 5, 6]},
        {"name": "rtt", "type": "histogram", "buckets": [1, 2]},
    ]
    for metrics in (["packets"], ["packets", *histograms]):
        config = make_config(labels=["protocol"], views=[{**own, "metrics": metrics}])
        setup = IngestSetup(config, max_connections=count, max_flows=count)
        for start in range(0, count, 1000):
            flows = [flow(f"{i:x}", TrackingID=f"{i}") for i in range(start + 1, start + 1001)]
            setup.ingest.message(message(*flows), setup.analyzer)
        assert setup.table.view_connections == (count,)
        taken.append(setup.table.bytes)
    expected = cost.BUCKET_BYTES * (8 + 4) + cost.OBSERVED_BYTES
    assert (taken[1] - taken[0]) / count == pytest.approx(expected, rel=0.1)


def test_memory_of_new_flows_shown_by_check_matches_the_table() -> None:
    taken = row_bytes(metrics=("bytes", "new_flows")) - row_bytes(metrics=("bytes",))
    assert taken == cost.NEW_FLOWS_BYTES


def test_memory_of_topology_labels_shown_by_check_matches_the_table() -> None:
    row_alignment = 8
    for labels, keys in (
        (["node_name", "node_host", "node_type"], 1),
        ([f"{end}_{name}" for end in ("initiator", "target") for name in ADDRESS_NAMES], 3),
    ):
        taken = row_bytes(*labels) - row_bytes()
        assert abs(taken - cost.CELL_BYTES * (len(labels) + keys)) <= row_alignment


def test_memory_of_strings_shown_by_check_matches_the_table() -> None:
    count, taken = 20_000, []
    for different in (False, True):
        config = make_config(labels=["tracking_id", "application"], views=[])
        setup = IngestSetup(config, max_connections=count, max_flows=count)
        for start in range(0, count, 1000):
            numbers = range(start + 1, start + 1001)
            flows = [
                flow(f"{i:x}", TrackingID=f"{i}", Application=f"{i if different else 0:048}")
                for i in numbers
            ]
            setup.ingest.message(message(*flows), setup.analyzer)
        assert setup.table.connections == count
        taken.append(setup.table.bytes)
    assert (taken[1] - taken[0]) / count == pytest.approx(cost.STRING_BYTES, rel=0.1)


def test_memory_of_names_shown_by_check_matches_the_table() -> None:
    count, taken = 20_000, []
    labels = [f"initiator_{name}" for name in ADDRESS_NAMES]
    for different in (False, True):
        config = make_config(labels=["tracking_id", *labels], views=[])
        setup = IngestSetup(config, max_connections=count, max_flows=count)
        names = next(c.lookup.names for c in setup.plan.columns if c.lookup is not None)
        assert isinstance(names, dict)
        same = ("name",) * len(ADDRESS_NAMES)
        for start in range(0, count, 1000):
            flows = []
            for i in range(start + 1, start + 1001):
                address = f"10.0.{i >> 8}.{i & 255}"
                names[address] = (*same,) if different else same
                flows.append(flow(f"{i:x}", Network={"A": address, "B": "10.1.0.1"}))
            setup.ingest.message(message(*flows), setup.analyzer)
        taken.append(setup.table.bytes)
        assert setup.table.flows == count
    expected = cost.NAMES_BYTES + cost.CELL_BYTES * len(ADDRESS_NAMES)
    assert (taken[1] - taken[0]) / count == pytest.approx(expected, rel=0.1)


def warned_exports(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return [line.split(": ")[0] for line in lines if WARNING in line]


async def test_reload_warns_only_about_new_views(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = make_config(labels=["protocol"], views=[])
    part = App(config, load=lambda: config)
    assert await part.reload() is None
    assert warned_exports(caplog) == []
    views = [view("application"), view("node_tid", prefix="nodes"), view("tag", prefix="tags")]
    config = make_config(labels=["protocol"], views=views)
    assert await part.reload() is None
    assert warned_exports(caplog) == ["view apps", "view tags"]
    assert await part.reload() is None
    assert warned_exports(caplog) == []


def test_documented_examples_count_traffic_once() -> None:
    examples = 0
    for page in PAGES:
        for language, text in blocks(page):
            content = yaml.safe_load(text) if language == "yaml" else None
            if isinstance(content, dict) and "pipeline" in content:
                store = content["pipeline"].get("store", {}).get("prom_sky_con", {})
                assert cost.double_counted(make_config(**store)) == [], f"{page.name}: {text}"
                examples += 1
    assert examples


@pytest.mark.parametrize(
    ("counts", "max_flows", "most"),
    [((5,), 400, 500), ((5, 4, 2), 400, 1100), ((5, 4, 2), 30, 750)],
)
def test_maximum_number_of_series_includes_all_views(
    counts: tuple[int, ...], max_flows: int, most: int
) -> None:
    assert cost.most_series(counts, max_connections=100, max_flows=max_flows) == most
