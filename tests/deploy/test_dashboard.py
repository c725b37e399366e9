"""The Grafana dashboard: its form, and its queries, which a Prometheus answers of a recording."""

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.alerts import alerts
from tests.support.documentation import exported
from tests.support.paths import DEPLOY
from tests.support.process import Skyfast, demo
from tests.support.prometheus import growing, needs_prometheus, number, prometheus, query

FILE = DEPLOY / "grafana" / "skyfast.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
GRID_WIDTH = 24
BUILT_IN = {"stat", "timeseries", "table", "bargauge", "row"}
ANSWER_S = 40.0
POLL_S = 0.5

# A rule, so that there is something filtered, and none that the other panels would miss.
CONFIG = """
pipeline:
  filter:
    drop: [{name: dns, application: DNS}]
  store:
    prom_sky_con: {naming: NAMING}
"""


# Its form


def test_it_can_be_imported() -> None:
    assert DASHBOARD["id"] is None  # that of the Grafana it came from
    assert re.fullmatch(r"[a-z0-9-]{1,40}", DASHBOARD["uid"])
    assert DASHBOARD["title"]
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["refresh"] == "1m"
    required = {each["id"] for each in DASHBOARD["__requires"] if each["type"] == "panel"}
    used = {panel["type"] for panel in PANELS}
    assert required == used < BUILT_IN
    # Nothing to be asked for: the data source is a variable, so a provisioned file works too.
    assert DASHBOARD["__inputs"] == []
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == "prometheus"


def test_panels_have_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    ids = [panel["id"] for panel in panels]
    assert len({*ids}) == len(ids)
    titles = [panel["title"] for panel in panels]
    assert len({*titles}) == len(titles)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["y"] >= 0
        assert place["w"] > 0
        assert place["h"] > 0
        assert place["x"] + place["w"] <= GRID_WIDTH
    for one, other in combinations(panels, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])
    assert [row["title"] for row in ROWS] == [
        "Overview",
        "Traffic",
        "Top connections",
        "Round-trip time",
        "Interfaces",
        "Captures",
        "skyfast",
    ]


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == DATA_SOURCE
    references = [target["refId"] for target in panel["targets"]]
    assert len({*references}) == len(references) > 0
    for target in panel["targets"]:
        assert target["datasource"] == DATA_SOURCE
        assert target["legendFormat"] or target["format"] == "table"


def test_every_variable_is_used_and_no_other() -> None:
    used = set()
    for expression in (*expressions(), *(variable_query(name) for name in asked_variables())):
        used |= set(re.findall(r"\$\{?(\w+)", expression))
    assert used == {*VARIABLES, "__rate_interval"} - {"datasource"}
    for name in asked_variables():
        variable = VARIABLES[name]
        assert variable["datasource"] == DATA_SOURCE
        assert (variable["includeAll"], variable["multi"], variable["allValue"]) == (
            True,
            True,
            ".*",
        )


def test_the_data_source_is_nowhere_fixed() -> None:
    sources = re.findall(r'"uid": "([^"]*)"', FILE.read_text())
    assert {*sources} == {DATA_SOURCE["uid"], "-- Grafana --", DASHBOARD["uid"]}


def test_rates_of_flows_fit_how_often_flows_are_reported() -> None:
    """Agents report once a minute: see "Rates" in docs/metrics.md."""
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


def test_every_metric_it_names_is_exported() -> None:
    text = " ".join(expressions())
    names = set(re.findall(r"\b(?:skydive|skyfast|process|scrape)_\w+(?=\{|\b)", text))
    assert names - exported() == {"scrape_duration_seconds"}


def test_whatever_has_two_names_is_asked_for_by_both() -> None:
    """By the one ``or`` the other: while one is recorded as the other, nothing counts twice."""
    rules = yaml.safe_load((FILE.parents[1] / "rules" / "compatible-to-standard.yml").read_text())
    recorded = [rule for group in rules["groups"] for rule in group["rules"]]
    pairs = [(rule["expr"].split()[0], rule["record"]) for rule in recorded]
    pairs.append(("skyfast_flows", "skyfast_table_flows"))
    found = set()
    for expression in expressions():
        for old, new in pairs:
            if f"{old}{{" in expression or f"{new}{{" in expression:
                found.add(old)
                either = rf"{old}\{{[^}}]*\}}(\[[^]]*\])?\)?( / 1e9)? or (rate\()?{new}\{{"
                assert re.search(either, expression), expression
    assert len(found) > 10


def expressions() -> Iterator[str]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield target["expr"]


def panel_expressions(title: str) -> list[str]:
    (targets,) = (panel["targets"] for panel in PANELS if panel["title"] == title)
    return [target["expr"] for target in targets]


def asked_variables() -> list[str]:
    return [name for name, variable in VARIABLES.items() if variable["type"] == "query"]


def variable_query(name: str) -> str:
    text: str = VARIABLES[name]["query"]["query"]
    return text


# Its queries

# As they are when it is opened.
ALL = {
    "window": "5m",
    "top": "10",
    "__rate_interval": "1m",
    **dict.fromkeys(asked_variables(), ".*"),
}


def substituted(expression: str, values: dict[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expression)


async def choices(server: str, name: str, values: dict[str, str]) -> dict[str, str]:
    """Return what a variable can be set to, by what is shown for it, as Grafana makes them."""
    asked = substituted(variable_query(name), values)
    if found := re.fullmatch(r"label_values\((.*), (\w+)\)", asked):
        samples = await query(server, f"group by ({found[2]}) ({found[1]})")
        return {sample["metric"][found[2]]: sample["metric"][found[2]] for sample in samples}
    found = re.fullmatch(r"query_result\((.*)\)", asked)
    assert found is not None
    pattern = VARIABLES[name]["regex"].strip("/").replace("(?<", "(?P<")
    offered = {}
    for sample in await query(server, found[1]):
        labels = ",".join(f'{label}="{value}"' for label, value in sample["metric"].items())
        match = re.search(pattern, f"{{{labels}}} {sample['value'][1]} {sample['value'][0]}")
        assert match is not None, labels
        offered[match["text"]] = match["value"]
    return offered


async def answers(server: str, expression: str) -> bool:
    """Whether a query gives series, and a number among them."""
    return any(math.isfinite(number(sample)) for sample in await query(server, expression))


@asynccontextmanager
async def scraped(text: str, directory: Path) -> AsyncIterator[tuple[Skyfast, str]]:
    """Run a skyfast on its recording and a Prometheus that scrapes it; yield both."""
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
async def test_a_prometheus_answers_all_of_it(naming: str, tmp_path: Path) -> None:
    config = CONFIG.replace("NAMING", naming)
    async with scraped(config, tmp_path) as (skyfast, server):
        values = dict(ALL)
        missing = {
            (panel["title"], target["refId"]): substituted(target["expr"], values)
            for panel in PANELS
            for target in panel["targets"]
        }
        give_up_at = time.monotonic() + ANSWER_S
        while missing:
            assert time.monotonic() < give_up_at, missing
            for key, expression in list(missing.items()):
                if await answers(server, expression):
                    del missing[key]
            await asyncio.sleep(POLL_S if missing else 0)

        # No round-trip time is in two parts of the distribution, or in none.
        parts = [substituted(each, values) for each in panel_expressions("Distribution now")]
        measured = substituted(panel_expressions("Highest round-trip time")[0], values)
        count = measured.replace("max(", "count(", 1)
        (left,) = await query(server, f"{count} - ({') - ('.join(parts)})")
        assert number(left) == 0
        (highest,) = await query(server, measured)
        assert 0 < number(highest) < 1

        instance = skyfast.url.partition("//")[2]
        assert await choices(server, "instance", values) == {instance: instance}
        assert await choices(server, "protocol", values) == {"TCP": "TCP"}
        nodes = await choices(server, "node", values)
        assert {"ag1 v1", "ag1 v2", "ag1 vx2"} <= nodes.keys()

        # One interface, chosen by its name, has part of the traffic, under that name.
        (by_interface,) = panel_expressions("Traffic by interface")
        shown = await query(server, substituted(by_interface, values))
        assert "ag1 v1" in {sample["metric"]["name"] for sample in shown}
        values["node"] = nodes["ag1 v1"]
        (one,) = await query(server, substituted(by_interface, values))
        assert one["metric"]["name"] == "ag1 v1"
        values["node"] = nodes["ag1 v2"]
        assert await query(server, substituted(by_interface, values)) == []
        values["node"] = ALL["node"]
        values["instance"] = "another"
        assert await query(server, substituted(by_interface, values)) == []

        # Nothing is wrong with it, so no alert so much as begins.
        for alert in alerts():
            assert await query(server, alert["expr"]) == [], alert["alert"]


@pytest.mark.slow
@needs_prometheus
async def test_interfaces_that_the_topology_does_not_know(tmp_path: Path) -> None:
    """They go by their identifiers, and can be chosen by them."""
    config = "pipeline.store.prom_sky_con.interfaces_interval: 0"
    async with scraped(config, tmp_path) as (_, server), asyncio.timeout(ANSWER_S):
        (by_interface,) = panel_expressions("Traffic by interface")
        (shown, *_) = await growing(server, substituted(by_interface, ALL), 1)
        node = shown["metric"]["node_tid"]
        assert shown["metric"]["name"] == node
        assert (await choices(server, "node", ALL))[node] == node
