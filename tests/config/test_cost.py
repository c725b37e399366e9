"""Warnings about traffic that is counted several times."""

import logging

import pytest
import yaml

from skyfast.app import App
from skyfast.config import cost
from tests.support.configs import make_config
from tests.support.documentation import PAGES, blocks
from tests.support.messages import flow, message, values
from tests.support.sink import Sink

CONNECTIONS = "skydive_network_connection_total_bytes"
WARNING = "is counted several times"


def view(*labels: object, prefix: str = "apps", **entries: object) -> dict[str, object]:
    return {"prefix": prefix, "labels": list(labels), **entries}


SETTINGS = {
    "{}": [],
    "{views: []}": [],
    # Both ends of a container's link are called eth0.
    "{labels: [initiator_ip, target_ip, node_name]}": ["connections"],
    "{labels: [initiator_ip, target_ip, node_name], deduplicate: first}": [],
    "{labels: [initiator_ip, target_ip, node_name, node_tid]}": [],
    "{labels: [protocol, {name: interface, path: NodeTID}]}": [],
    "{labels: [protocol, {name: flow, path: UUID}]}": [],
    "{labels: [protocol, tracking_id, capture_id, link_a, parent_uuid]}": ["connections"],
    "{labels: [protocol], metrics: [rtt, start, last]}": [],
    "{labels: [protocol], metrics: [rtt, flows]}": ["connections"],
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
def test_report_names_exports_that_count_traffic_several_times(
    settings: str, exports: list[str]
) -> None:
    config = make_config(**yaml.safe_load(settings))
    assert cost.double_counted(config) == exports
    warnings = [line for line in cost.report(config).splitlines() if WARNING in line]
    assert [line.split(": ")[1] for line in warnings] == exports


@pytest.mark.parametrize("settings", SETTINGS)
def test_warnings_match_the_exported_values(settings: str) -> None:
    config = make_config(**yaml.safe_load(settings))
    sink = Sink(**yaml.safe_load(settings))
    # One conversation, captured at both ends of a link.
    ends = [flow("1", NodeTID="veth"), flow("2", NodeTID="eth0")]
    sink.take(message(*ends))
    for spec, prefix in ((config.export.main, ""), *((v, v.prefix) for v in config.export.views)):
        family = f"{prefix}_bytes_total" if prefix else CONNECTIONS
        shown = [int(value) for value in values(sink, family)]
        if shown:
            doubled = max(shown) > (300 if spec.direction == "sum" else 200)
            name = f"view {prefix}" if prefix else "connections"
            assert doubled == (name in cost.double_counted(config))


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
