"""The Grafana dashboard: its structure, and its queries on the data of a recording."""

import asyncio
import json
import math
import re
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from skyfast.config import loader
from skyfast.flows.planner import families
from tests.support.alerts import alerts
from tests.support.documentation import exported
from tests.support.paths import DEPLOY, ROOT
from tests.support.process import Skyfast, demo
from tests.support.prometheus import (
    PROMTOOL,
    growing,
    needs_prometheus,
    needs_promtool,
    number,
    prometheus,
    query,
)

FILE = DEPLOY / "grafana" / "skyfast.json"
VIEWS = (DEPLOY / "grafana" / "views.yml").read_text()
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
COLLAPSED = [panel for row in ROWS for panel in row.get("panels", ())]
ALL_PANELS = [*DASHBOARD["panels"], *COLLAPSED]
PANELS = [panel for panel in ALL_PANELS if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
FLOW_PREFIXES = ("skydive_network_connection_", "skydive_connection_", "skydive_traffic_")
GRID_WIDTH = 24
BUILT_IN = {"stat", "timeseries", "table", "bargauge", "row"}
ANSWER_S = 40.0
POLL_S = 0.5

# The rule drops DNS flows, because a panel shows dropped flows and no panel needs DNS flows.
CONFIG = f"""{VIEWS}
      naming: NAMING
      interface_info: true
  filter:
    drop: [{{name: dns, application: DNS}}]
"""


# Structure


def test_dashboard_can_be_imported() -> None:
    assert DASHBOARD["id"] is None  # an ID would bind it to one Grafana instance
    assert re.fullmatch(r"[a-z0-9-]{1,40}", DASHBOARD["uid"])
    assert DASHBOARD["title"]
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["refresh"] == "1m"
    required = {item["id"] for item in DASHBOARD["__requires"] if item["type"] == "panel"}
    used = {panel["type"] for panel in PANELS}
    assert required == used < BUILT_IN
    # The data source is a variable, not an input, so that the file can be provisioned.
    assert DASHBOARD["__inputs"] == []
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == "prometheus"


def metrics_of_a_preset(preset: str) -> set[str]:
    text = f"pipeline.store.prom_sky_con.preset: {preset}"
    views = loader.parse(text, {}, source="x.yml").export.views
    flows = {family.name for view in views for family in families(view, naming="compatible")}
    others = {name for name in exported() if not name.startswith(FLOW_PREFIXES)}
    return flows | others | {"scrape_duration_seconds"}


@pytest.mark.parametrize("preset", ["services", "hosts"])
def test_rows_that_work_with_presets_are_documented(preset: str) -> None:
    metrics = metrics_of_a_preset(preset)
    shown: dict[str, dict[str, bool]] = {}
    for panel in ALL_PANELS:
        if panel["type"] == "row":
            panels_of_row = shown.setdefault(panel["title"], {})
            for inner in panel.get("panels", ()):
                panels_of_row[inner["title"]] = selects(inner, metrics)
        elif panel not in COLLAPSED:
            panels_of_row[panel["title"]] = selects(panel, metrics)
    page = (ROOT / "docs" / "choosing-metrics.md").read_text()
    rows = dict(re.findall(r"(?m)^\| (.*) \| (.*) \|$", page.partition("| Rows of the dash")[2]))
    documented = {name: text for names, text in rows.items() for name in names.split(", ")}
    for row, panels in shown.items():
        if all(panels.values()):
            assert documented[row] == "All panels work"
        elif not any(panels.values()):
            assert documented[row] == "No panel works"
        else:
            names = " and ".join(f"*{name}*" for name, has in panels.items() if has)
            assert documented[row] == f"The panels {names} work"


def selects(panel: dict[str, Any], metrics: set[str]) -> bool:
    """Return whether any query of the panel starts with one of ``metrics``."""
    name = re.compile(r"\b(?:skydive|skyfast|process|scrape)_\w+")
    firsts = [name.findall(target["expr"])[0] for target in panel["targets"]]
    return any(first.removesuffix("_bucket") in metrics for first in firsts)


def test_panels_are_distinct_and_do_not_overlap() -> None:
    panels = ALL_PANELS
    ids = [panel["id"] for panel in panels]
    assert len({*ids}) == len(ids)
    titles = [panel["title"] for panel in panels]
    assert len({*titles}) == len(titles)
    for panel in panels:
        position = panel["gridPos"]
        assert position["x"] >= 0
        assert position["y"] >= 0
        assert position["w"] > 0
        assert position["h"] > 0
        assert position["x"] + position["w"] <= GRID_WIDTH
    for first, second in combinations(panels, 2):
        assert not overlap(first["gridPos"], second["gridPos"]), (first["title"], second["title"])
    assert [row["title"] for row in ROWS] == [
        "Overview",
        "Traffic",
        "Who talks to whom",
        "Top connections",
        "Round-trip time",
        "Interfaces",
        "Captures",
        "skyfast",
    ]


def test_rows_that_read_every_connection_are_collapsed() -> None:
    """Range queries over all connections are slow, so only one open row may have them."""
    connection = re.compile(r"skydive_(network_)?connection_")
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            if connection.search(target["expr"]):
                assert target.get("instant") or title_of_row(panel) == "Round-trip time"
    assert {panel["title"] for panel in COLLAPSED} == {
        "Top connections over time",
        "Top connections now",
    }
    assert [row["title"] for row in ROWS if row["collapsed"]] == ["Top connections"]


def title_of_row(panel: dict[str, Any]) -> str:
    above = [row for row in ROWS if row["gridPos"]["y"] < panel["gridPos"]["y"]]
    title: str = max(above, key=lambda row: row["gridPos"]["y"])["title"]
    return title


def test_panels_that_show_an_instance_link_to_its_pages() -> None:
    for panel in PANELS:
        shows_instance = any(
            "{{instance}}" in target["legendFormat"]
            for target in panel["targets"]
            if "legendFormat" in target
        )
        urls = [link["url"] for link in panel["fieldConfig"]["defaults"].get("links", ())]
        base = "http://${__field.labels.instance}"
        assert urls == ([f"{base}/", f"{base}/help"] if shows_instance else []), panel["title"]


def test_panels_limit_the_number_of_interfaces() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            if re.search(r" by \([^)]*(?<!node)_tid\)|by \(node_tid\)", target["expr"]):
                assert target["expr"].startswith("topk($top, "), panel["title"]


def test_alerts_are_shown_as_annotations() -> None:
    _, annotation = DASHBOARD["annotations"]["list"]
    name = re.search(r'alertname=~"([^"]*)"', annotation["expr"])
    assert name is not None
    assert all(re.fullmatch(name[1], alert["alert"]) for alert in alerts())
    severities = {alert["labels"]["severity"] for alert in alerts()}
    assert severities - {"info"} == {"critical", "warning"}


def overlap(first: dict[str, int], second: dict[str, int]) -> bool:
    return all(
        first[start] < second[start] + second[size] and second[start] < first[start] + first[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel_has_a_description_a_unit_and_legends(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == DATA_SOURCE
    references = [target["refId"] for target in panel["targets"]]
    assert len({*references}) == len(references) > 0
    for target in panel["targets"]:
        assert target["datasource"] == DATA_SOURCE
        assert target["legendFormat"] or target["format"] == "table"


def test_every_variable_is_used_and_defined() -> None:
    used = set()
    for expression in (*expressions(), *(variable_query(name) for name in query_variables())):
        used |= {name for name in re.findall(r"\$\{?(\w+)", expression) if not name.isdigit()}
    assert used == {*VARIABLES, "__rate_interval"} - {"datasource"}
    for name in query_variables():
        variable = VARIABLES[name]
        assert variable["datasource"] == DATA_SOURCE
        assert (variable["includeAll"], variable["multi"], variable["allValue"]) == (
            True,
            True,
            ".*",
        )


def test_views_of_the_dashboard_are_documented() -> None:
    views = yaml.safe_load(VIEWS)["pipeline"]["store"]["prom_sky_con"]["views"]
    manual = (ROOT / "docs" / "monitoring.md").read_text()
    blocks = re.findall(r"(?s)```yaml\n(.*?)```", manual)
    assert yaml.safe_load(VIEWS) in map(yaml.safe_load, blocks)
    example = (DEPLOY / "kubernetes" / "prom_sky_con.yml").read_text()
    uncommented = yaml.safe_load(re.sub(r"(?m)^( +)#(?! )", r"\1", example))
    assert uncommented["pipeline"]["store"]["prom_sky_con"]["views"] == views


def test_panels_use_the_variable_for_the_data_source() -> None:
    sources = re.findall(r'"uid": "([^"]*)"', FILE.read_text())
    assert {*sources} == {DATA_SOURCE["uid"], "-- Grafana --", DASHBOARD["uid"]}


def test_rate_windows_cover_several_flow_reports() -> None:
    """Agents report a flow once per minute: see "Rates" in docs/metrics.md."""
    window = VARIABLES["window"]
    seconds = [seconds_of(option["value"]) for option in window["options"]]
    assert window["query"].split(",") == [option["value"] for option in window["options"]]
    assert min(seconds) >= 4 * 60
    assert window["current"]["value"] == "5m"
    for expression in expressions():
        for windowed in re.findall(r"(?:skydive_\w+)\{[^}]*\}\[([^\]]*)\]", expression):
            assert windowed == "$window", expression


def seconds_of(text: str) -> int:
    return int(text[:-1]) * {"m": 60, "h": 3600}[text[-1]]


def test_every_queried_metric_is_exported() -> None:
    text = " ".join(expressions())
    names = set(re.findall(r"\b(?:skydive|skyfast|process|scrape)_\w+(?=\{|\b)", text))
    views = {"skydive_workloads_bytes_total", "skydive_traffic_rtt_seconds_bucket"}
    assert names - exported() == {"scrape_duration_seconds"} | views


def test_metrics_with_two_names_are_queried_under_both_names() -> None:
    """``or`` ensures that a metric that exists under both names counts once."""
    rules = yaml.safe_load((FILE.parents[1] / "rules" / "compatible-to-standard.yml").read_text())
    recorded = [rule for group in rules["groups"] for rule in group["rules"]]
    pairs = [(rule["expr"].split()[0], rule["record"]) for rule in recorded]
    pairs.append(("skyfast_flows", "skyfast_table_flows"))
    queried = set()
    for expression in expressions():
        for old, new in pairs:
            if f"{old}{{" in expression or f"{new}{{" in expression:
                queried.add(old)
                either = rf"{old}\{{[^}}]*\}}(\[[^]]*\])?\)?( / 1e9)? or (rate\()?{new}\{{"
                assert re.search(either, expression), expression
    assert len(queried) > 10


def expressions() -> Iterator[str]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield target["expr"]


def panel_expressions(title: str) -> list[str]:
    (targets,) = (panel["targets"] for panel in PANELS if panel["title"] == title)
    return [target["expr"] for target in targets]


def query_variables() -> list[str]:
    return [name for name, variable in VARIABLES.items() if variable["type"] == "query"]


def variable_query(name: str) -> str:
    text: str = VARIABLES[name]["query"]["query"]
    return text


# Queries

# The variables and their initial values.
ALL = {
    "window": "5m",
    "top": "10",
    "__rate_interval": "1m",
    **dict.fromkeys(query_variables(), ".*"),
}


def substituted(expression: str, values: dict[str, str]) -> str:
    # Grafana keeps ``$1``, a group of label_replace.
    return re.sub(r"\$([a-z_]\w*)", lambda match: values[match[1]], expression)


async def choices(server: str, name: str, values: dict[str, str]) -> dict[str, str]:
    """Map the displayed text of each choice of a variable to its value."""
    expression = substituted(variable_query(name), values)
    if call := re.fullmatch(r"label_values\((.*), (\w+)\)", expression):
        samples = await query(server, f"group by ({call[2]}) ({call[1]})")
        return {sample["metric"][call[2]]: sample["metric"][call[2]] for sample in samples}
    call = re.fullmatch(r"query_result\((.*)\)", expression)
    assert call is not None
    pattern = VARIABLES[name]["regex"].strip("/").replace("(?<", "(?P<")
    values_by_text = {}
    for sample in await query(server, call[1]):
        labels = ",".join(f'{label}="{value}"' for label, value in sample["metric"].items())
        match = re.search(pattern, f"{{{labels}}} {sample['value'][1]} {sample['value'][0]}")
        assert match is not None, labels
        values_by_text[match["text"]] = match["value"]
    return values_by_text


async def has_data(server: str, expression: str) -> bool:
    """Return whether a query returns a finite number."""
    return any(math.isfinite(number(sample)) for sample in await query(server, expression))


@asynccontextmanager
async def scraped(text: str, directory: Path) -> AsyncIterator[tuple[Skyfast, str]]:
    """Yield skyfast, which replays its demo recording, and a Prometheus that scrapes it."""
    config = directory / "prom_sky_con.yml"
    config.write_text(text)
    async with (
        demo(config) as skyfast,
        prometheus(skyfast.url.partition("//")[2], directory) as server,
    ):
        yield skyfast, server


@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize("naming", ["compatible", "standard"])
async def test_every_query_returns_data(naming: str, tmp_path: Path) -> None:
    config = CONFIG.replace("NAMING", naming)
    async with scraped(config, tmp_path) as (skyfast, server):
        values = dict(ALL)
        missing = {
            (panel["title"], target["refId"]): substituted(target["expr"], values)
            for panel in PANELS
            for target in panel["targets"]
        }
        deadline_s = time.monotonic() + ANSWER_S
        while missing:
            assert time.monotonic() < deadline_s, missing
            for key, expression in list(missing.items()):
                if await has_data(server, expression):
                    del missing[key]
            await asyncio.sleep(POLL_S if missing else 0)

        # Each round-trip time is in exactly one range.
        parts = [substituted(part, values) for part in panel_expressions("Distribution now")]
        measured = substituted(panel_expressions("Round-trip time, 99 %")[0], values)
        count = measured.replace("quantile(0.99, ", "count(", 1)
        (difference,) = await query(server, f"{count} - ({') - ('.join(parts)})")
        assert number(difference) == 0
        (highest,) = await query(server, measured)
        assert 0 < number(highest) < 1

        instance = skyfast.url.partition("//")[2]
        assert await choices(server, "instance", values) == {instance: instance}
        assert await choices(server, "protocol", values) == {"TCP": "TCP"}
        nodes = await choices(server, "node", values)
        assert {"ag1 v1", "ag1 v2", "ag1 vx2"} <= nodes.keys()

        # The legend shows the name by which the interface was selected.
        (by_interface,) = panel_expressions("Traffic by interface")
        shown = await query(server, substituted(by_interface, values))
        assert "ag1 v1" in {sample["metric"]["name"] for sample in shown}
        values["node"] = nodes["ag1 v1"]
        (sample,) = await query(server, substituted(by_interface, values))
        assert sample["metric"]["name"] == "ag1 v1"
        values["node"] = nodes["ag1 v2"]
        assert await query(server, substituted(by_interface, values)) == []
        values["node"] = ALL["node"]
        values["instance"] = "another"
        assert await query(server, substituted(by_interface, values)) == []

        values["instance"] = ALL["instance"]

        # The choices are the values of initiators and targets.
        namespaces = await choices(server, "namespace", values)
        assert namespaces == {name: name for name in ("default", "shop")}
        workloads = await choices(server, "workload", values)
        assert workloads == {name: name for name in ("api", "cache", "cart", "frontend")}
        values["namespace"] = "default"
        assert set(await choices(server, "workload", values)) == {"frontend"}

        # The panel shows conversations of the selected workloads. The namespace and the workload
        # must match the same end of a conversation: the initiator or the target.
        (between,) = panel_expressions("Traffic between workloads")
        assert await pairs(server, between, {"instance": ".*"}) == {
            ("default/frontend", "shop/cart"),
            ("no workload", "default/frontend"),
            ("no workload", "no workload"),
            ("shop/api", "shop/cache"),
        }
        assert await pairs(server, between, {"namespace": "default"}) == {
            ("default/frontend", "shop/cart"),
            ("no workload", "default/frontend"),
        }
        assert await pairs(server, between, {"namespace": "shop", "workload": "ca.*"}) == {
            ("default/frontend", "shop/cart"),
            ("shop/api", "shop/cache"),
        }

        # The legend shows the pod, container or host.
        (by_owner,) = panel_expressions("Traffic by pod or container")
        shown = await query(server, substituted(by_owner, ALL | {"top": "50"}))
        owners = {sample["metric"]["name"] for sample in shown}
        assert {"shop/cart-5c8d7f9b4-abcde", "db", "h1"} <= owners

        for alert in alerts():
            assert await query(server, alert["expr"]) == [], alert["alert"]


async def pairs(server: str, expression: str, values: dict[str, str]) -> set[tuple[str, str]]:
    """Return the pairs of workloads in the result of a query."""
    samples = await query(server, substituted(expression, ALL | values))
    return {(sample["metric"]["initiator"], sample["metric"]["target"]) for sample in samples}


def series(name: str, *, values: str = "1+0x20", **labels: str) -> dict[str, str]:
    """Return an input series of a unit test for promtool."""
    text = ", ".join(f'{label}="{value}"' for label, value in labels.items())
    return {"series": f"{name}{{{text}}}", "values": values}


def traffic(instance: str, tid: str, protocol: str = "TCP") -> dict[str, str]:
    """Return an input series that grows by 1,000 bytes per second."""
    return series(
        "skydive_traffic_bytes_total",
        values="0+60000x20",
        instance=instance,
        node_tid=tid,
        protocol=protocol,
    )


def interface(instance: str, tid: str, name: str) -> dict[str, str]:
    labels = {"instance": instance, "node_tid": tid, "host": "h1", "interface_name": name}
    return series("skydive_network_interface_rx_bytes", **labels)


@needs_promtool
@pytest.mark.parametrize("naming", ["compatible", "standard"])
@pytest.mark.parametrize("has_info", [True, False])
def test_interfaces_are_named_by_pod_container_or_netns(
    has_info: bool, naming: str, tmp_path: Path
) -> None:
    """The series come from two instances, with the labels that a ServiceMonitor adds."""
    metric = {"compatible": "skydive_network_interface_info", "standard": "skydive_interface_info"}
    parts = {
        "t-pod": {"node_namespace": "shop", "node_pod": "cart-1", "node_container": "cart"},
        "t-container": {"node_container": "web", "node_netns": "n1"},
        "t-netns": {"node_netns": "blue"},
        "t-host": {},
    }
    infos = [
        series(
            metric[naming],
            instance=instance,
            node_tid=tid,
            host="h1",
            interface_name="eth0",
            namespace="monitoring",
            **labels,
        )
        for tid, labels in parts.items()
        for instance in ("a:1", "b:1")
    ]
    infos.append(series(metric[naming], instance="a:1", node_tid="t-unknown"))
    rows = [traffic(instance, tid) for tid in parts for instance in ("a:1", "b:1")]
    rows += [traffic("a:1", "t-pod", "UDP"), traffic("b:1", "t-new"), traffic("a:1", "t-unknown")]
    # Only the first shard exports interfaces.
    rows += [interface("a:1", tid, "eth0") for tid in parts]
    rows += [interface("a:1", "t-new", "eth1")]
    with_info = {"shop/cart-1": 24, "web": 16, "blue": 16, "h1 eth0": 16, "h1 eth1": 8}
    without = {"h1 eth0": 72, "h1 eth1": 8}
    (expression,) = panel_expressions("Traffic by pod or container")
    expected = (with_info if has_info else without) | {"t-unknown": 8}
    test = {
        "interval": "1m",
        "input_series": rows + infos * has_info,
        "promql_expr_test": [
            {
                "expr": f"round({substituted(expression, ALL)})",
                "eval_time": "15m",
                "exp_samples": [
                    {"labels": f'{{name="{name}"}}', "value": 1000 * kilobits}
                    for name, kilobits in expected.items()
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"tests": [test]}))
    run = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
@needs_prometheus
async def test_interfaces_without_a_topology_are_shown_by_identifier(tmp_path: Path) -> None:
    config = "pipeline.store.prom_sky_con.interfaces_interval: 0"
    async with scraped(config, tmp_path) as (_, server), asyncio.timeout(ANSWER_S):
        (by_interface,) = panel_expressions("Traffic by interface")
        (shown, *_) = await growing(server, substituted(by_interface, ALL), 1)
        node = shown["metric"]["node_tid"]
        assert shown["metric"]["name"] == node
        assert (await choices(server, "node", ALL))[node] == node
