"""The status page and its API: history, report, and top connections."""

import asyncio
import gc
import html
import json
import re
import threading
import time
import weakref
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from skyfast.app import App
from skyfast.flows.catalog import NODE_NAMES
from skyfast.flows.plan import Column, Counter, Family, View
from skyfast.skydive import topology_nodes
from skyfast.skydive.interfaces import MAX_BUSIEST
from skyfast.stats import SKIP_REASONS, Failure, NameStats, Stats
from skyfast.web import busiest_html, server, status, status_html, tiles_html, top
from skyfast.web.formats import REASONS, formatted
from skyfast.web.history import INTERVAL_S, MAX_GAP_S, SAMPLES, Churn, ChurnCounts, History
from skyfast.web.notices import NEARLY_FULL
from skyfast.web.scan_cache import BusyError
from skyfast.web.status import Replay
from skyfast.web.top import Ranking, RankingQuery, RankingQueryError
from tests.model import make_flow
from tests.support.analyzer import FakeAnalyzer, FakeResponse
from tests.support.configs import make_config
from tests.support.messages import message
from tests.support.model_specs import TOPOLOGY
from tests.support.paths import ROOT
from tests.support.status_site import EVIL, FORMATS, three_connections
from tests.support.tasks import running_app
from tests.support.waiting import until
from tests.support.web_fixtures import VIEW, FakeTable, on_both_loops
from tests.support.web_fixtures import status as fake_status

KEYS = ["bytes", "packets", "rtt", "bytes_per_second", "packets_per_second"]


def initiators(response):
    return [entry["labels"]["initiator_ip"] for entry in response["entries"]]


# History -------------------------------------------------------------------------------------


def test_history_has_values_rates_and_ages():
    history, stats = History(), Stats()
    for name in ("a", "b"):
        stats.analyzer(name)
    assert history.rates() == {}
    for step in range(10):
        stats.analyzers["a"].flows = 50 * step
        if step == 3:
            del stats.analyzers["b"]
        elif step < 3:
            stats.analyzers["b"].flows = 1_000_000 + 5 * step
        if step == 5:
            stats.scrape.scrapes, stats.scrape.last_bytes = 2, 7
            stats.scrape.last_duration_s = 0.5
        history.add(stats, step, now_s=1000 + 5.0 * step)
    stats.analyzers["a"].flows += 1000
    stats.scrape.scrapes, stats.scrape.last_bytes = 3, 9
    series = history.series(stats, 99, now_s=1046.0)
    assert series.age_seconds == [41, 36, 31, 26, 21, 16, 11, 6, 1, 0]
    assert series.connections == [*range(1, 10), 99]
    # Removing analyzer b causes no negative rate. No rate includes the 1000 flows after the last
    # sample.
    assert series.flows_per_second == [11, 11, *[10] * 8]
    assert series.scrape_bytes == [*[None] * 4, 7, *[None] * 4, 9]
    assert series.scrape_duration_seconds == [*[None] * 4, 0.5, *[None] * 4, 0.5]
    assert history.rates() == {"a": 10}


def test_two_samples_are_enough_for_rates():
    history, stats = History(), Stats()
    # The counter of ``again`` restarts from zero.
    for at_s, flows in (
        (1000, {"busy": 5, "idle": 7, "again": 9}),
        (1003, {"busy": 6, "again": 1}),
    ):
        for name, number in flows.items():
            stats.analyzer(name).flows = number
        history.add(stats, 0, now_s=at_s)
    assert history.rates() == {"busy": pytest.approx(1 / 3), "idle": 0, "again": 0}
    assert history.series(stats, 0, now_s=1003).flows_per_second == [0.3, 0.3]


def test_history_is_bounded():
    history, stats = History(), Stats()
    for step in range(10 * SAMPLES):
        stats.analyzer("a").flows += step
        history.add(stats, step, now_s=5.0 * step)
    series = history.series(stats, step, now_s=5.0 * step)
    assert len(series.connections) == len(series.age_seconds) == SAMPLES + 1
    assert series.connections[-1] == step
    assert series.age_seconds[0] == INTERVAL_S * (SAMPLES - 1)
    paused = history.series(stats, step, now_s=5.0 * step + 300)
    assert paused.age_seconds[0] == 600
    assert len(paused.connections) == SAMPLES // 2 + 2
    assert history.rates()["a"] == pytest.approx((step - 2.5) / 5)


async def test_samples_of_the_history_are_taken_periodically(monkeypatch):
    monkeypatch.setattr(status, "INTERVAL_S", 0.01)
    source = fake_status()
    sampling = asyncio.create_task(source.run())
    await until(lambda: len(source._history._samples) > 3)
    sampling.cancel()
    assert set((await source.report()).history.connections) == {FakeTable.connections}


# Report --------------------------------------------------------------------------------------


async def test_report_has_the_state_of_the_app():
    async with three_connections() as site:
        api_status = await site.json("/api/status")
        assert api_status["host_id"] == "skyfast-test"
        assert api_status["ready"] is False
        assert api_status["warnings"] == ["Not subscribed to any analyzer: connections expire."]
        assert api_status["rankings"] == KEYS
        assert api_status["labels"][0] == "initiator_ip"
        assert [metric["unit"] for metric in api_status["metrics"]] == ["bytes", "", "nanoseconds"]
        assert api_status["table"]["connections"] == 3
        assert api_status["table"]["connections_limit"] == site.config.limits.max_connections
        assert api_status["scrapes"]["last_bytes"] is None
        assert abs(api_status["timestamp_seconds"] - time.time()) < 10
        assert api_status["resident_bytes"] > 2**20
        late = make_flow("3", (0, 3000, 0, 3), a="fd00::3")
        site.report(late, make_flow("9") | {"Transport": None})
        await site.get("/metrics")
        api_status = await site.json("/api/status")
        assert api_status["table"]["skipped_total"] == {"late": 1, "no_transport": 1}
        assert api_status["scrapes"]["total"] == 1
        assert api_status["scrapes"]["last_bytes"] > 1000


async def test_secrets_are_hidden():
    secrets = ("hunter2", "opensesame", "c00kie")
    settings = {"username": "u", "password": secrets[0], "cookie": {"session": secrets[2]}}
    config = make_config(f"ws://me:{secrets[1]}@127.0.0.1:9/ws/subscriber/flow", **settings)
    source = App(config, load=lambda: config).status
    report = await source.report()
    page = status_html.as_html(report, source.ranking, source.ranking.query([]), None)
    for text in (page, status.as_json(report).decode()):
        assert "127.0.0.1:9" in text
        assert not [secret for secret in secrets if secret in text]


async def test_report_has_the_last_error_and_the_time_of_the_last_change():
    async with FakeAnalyzer() as analyzer:
        analyzer.script.append(FakeResponse(status=403))
        config = make_config(analyzer.url, listen_address="127.0.0.1", port=0)
        began_s = time.time()
        async with running_app(config) as app:
            await until(lambda: app.subscriptions.any_up)
            (row,) = (await app.status.report()).analyzers
        assert row.up
        assert began_s - 1 <= row.last_error.timestamp_seconds <= row.since_timestamp_seconds
        assert row.last_error.reason == "forbidden"
        assert row.last_error.text == "user not allowed to subscribe (HTTP 403)"
        assert row.reconnects_total == 1
        (row,) = (await app.status.report()).analyzers
        assert not row.up
        assert row.since_timestamp_seconds >= began_s


async def test_analyzers_that_are_down_come_first():
    stats = Stats()
    for name in ("a", "b", "c"):
        stats.analyzer(name).set_up(int(name != "b"))
    report = await fake_status(stats=stats).report()
    assert [analyzer.name for analyzer in report.analyzers] == ["b", "a", "c"]
    assert report.warnings == ["Not subscribed to b."]
    for name in ("d", "e", "f", "g"):
        stats.analyzer(name)
    report = await fake_status(stats=stats).report()
    assert report.warnings == ["Not subscribed to b, d, e and 2 more."]
    for name in "bdefg":
        stats.analyzers[name].set_up(1)
    stats.max_connections, stats.max_flows = 2, 4
    stats.config.last_reload_successful = 0
    stats.config.last_failure = Failure("configuration", "x.yml: no <port>", 100.9)
    report = await fake_status(stats=stats).report()
    assert report.warnings == [
        "The table has 2 of at most 2 connections (max_connections).",
        "Reload of the configuration failed at 1970-01-01 00:01:40 UTC: x.yml: no <port>",
    ]


async def test_held_clock_causes_a_warning():
    stats = Stats()
    stats.analyzer("a")
    stats.clock_held = 1
    assert (await fake_status(stats=stats).report()).warnings == [
        "Not subscribed to any analyzer.",
        "The expiry of connections is paused, because reports may be missing.",
    ]
    stats.clock_held = 0
    assert (await fake_status(stats=stats).report()).warnings == [
        "Not subscribed to any analyzer: connections expire."
    ]


async def test_empty_table_causes_no_warning_about_expiry():
    stats, table = Stats(), FakeTable()
    stats.analyzer("a")
    table.connections = 0
    report = await fake_status(stats=stats, table=table).report()
    assert report.warnings == ["Not subscribed to any analyzer."]


async def test_nearly_full_table_causes_a_warning():
    stats, table = Stats(), FakeTable()
    stats.analyzer("a").set_up(1)
    table.connections, table.flows = 9, 89
    stats.max_connections, stats.max_flows = 10, 100
    source = fake_status(table, stats=stats)
    warning = "The table has 9 of at most 10 connections (max_connections)."
    assert (await source.report()).warnings == [warning]


async def test_highest_value_of_a_chart_includes_the_current_value():
    stats, table = Stats(), FakeTable()
    stats.analyzer("a").set_up(1)
    source = fake_status(table, stats=stats)
    table.connections = 4711
    stats.scrape.scrapes, stats.scrape.last_duration_s, stats.scrape.last_bytes = 1, 1.5, 10**9
    report = await source.report()
    query = source.ranking.query([])
    page = status_html.as_html(report, source.ranking, query, (await source.ranking.top(query)).top)
    figures = {
        "connections": report.table.connections,
        "flows_per_second": report.flows_per_second,
        "scrape_duration_seconds": report.scrapes.last_duration_seconds,
        "scrape_bytes": report.scrapes.last_bytes,
    }
    for name, figure in figures.items():
        assert getattr(report.history, name)[-1] == figure
    highest = dict(re.findall(r'data-highest="(\w+)" data-format="\w+">(.*?)<', page))
    assert highest == {
        "connections": "4,711",
        "flows_per_second": "0.0",
        "scrape_duration_seconds": "1.50 s",
        "scrape_bytes": "1.00 GB",
    }
    assert re.search(r'id="note" role="status">2 of 4,711 connections<', page)


def test_line_of_a_chart_has_a_gap_at_a_pause():
    ages = [30, 25, 20, 9.9, 5, 0]
    area, line = tiles_html._line(ages, [1, 2, 2, 1, 1, 2])
    assert line == "M570.0 20.0L575.0 0.0L580.0 0.0M590.1 20.0L595.0 20.0L600.0 0.0"
    assert area.count("Z") == 2
    assert tiles_html._line([30, 25, 20, 10, 5, 0], [1] * 6)[1].count("M") == 1
    assert tiles_html._line([], []) == ("", "")


@pytest.mark.parametrize(
    ("up", "state", "text", "title"),
    [
        (3, "ready", "3 of 3 analyzers", "skyfast · skyfast-test"),
        (2, "degraded", "2 of 3 analyzers", "▲ 2 of 3 analyzers · skyfast · skyfast-test"),
        (0, "not ready", "0 of 3 analyzers", "▲ 0 of 3 analyzers · skyfast · skyfast-test"),
    ],
)
async def test_health_depends_on_the_analyzers_that_are_up(up, state, text, title):
    stats = Stats()
    for number, name in enumerate("abc"):
        stats.analyzer(name).set_up(int(number < up))
    source = fake_status(stats=stats, ready=lambda: up > 0)
    report = await source.report()
    response = json.loads(status.as_json(report))
    assert response["health"] == {
        "state": state,
        "text": text,
        "analyzers": 3,
        "analyzers_up": up,
    }
    assert response["ready"] == (up > 0)
    page = status_html.as_html(report, source.ranking, source.ranking.query([]), None)
    colour = {"ready": "good", "degraded": "warn", "not ready": "bad"}[state]
    assert f'class="state {colour}" data-key="health" data-format="health">{state}: {text}<' in page
    assert f"<title>{title}</title>" in page
    severities = {2: ["warning"], 0: ["critical"]}.get(up, [])
    assert [notice["severity"] for notice in response["notices"]] == severities
    assert re.findall(r'<li class="(warning|critical)">', page) == severities


async def test_dns_name_counts_as_an_analyzer_only_while_it_has_no_addresses():
    stats = Stats()
    for name in ("analyzers:8082", "10.0.0.1:8082", "10.0.0.2:8082"):
        stats.analyzer(name).set_up(1)
    config = make_config("dns+ws://analyzers:8082/ws/subscriber/flow")
    source = fake_status(stats=stats, config=config)
    assert (await source.report()).health.text == "2 of 2 analyzers"
    del stats.analyzers["10.0.0.1:8082"], stats.analyzers["10.0.0.2:8082"]
    stats.analyzers["analyzers:8082"].set_up(0)
    assert (await source.report()).health.text == "0 of 1 analyzer"


async def test_configuration_is_rendered_once(monkeypatch):
    written, dump = [], status.loader.dump
    monkeypatch.setattr(
        status.loader, "dump", lambda config: written.append(config) or dump(config)
    )
    source = fake_status()
    for _ in range(3):
        assert "host_id: " in (await source.report()).configuration
    assert len(written) == 1


async def test_interfaces_and_captures_are_listed():
    async with three_connections() as site:
        parts, now = site.app._parts, site.app.clock.now()
        parts.interfaces.update(topology_nodes.read(TOPOLOGY), now)
        for number in range(status.MAX_CAPTURES + 1):
            report = {"CaptureID": f"c-{number:03}", "PacketsReceived": 15, "FlowCount": number}
            parts.captures.message(json.dumps(report).encode(), now)
        api_status = await site.json("/api/status")
        interfaces, captures = api_status["interfaces"], api_status["captures"]
        page = (await site.get("/metrics/interfaces"))[1]
        assert interfaces["count"] == page.count("skydive_network_interface_rx_bytes{")
        totals = [
            interface["received_bytes"] + interface["transmitted_bytes"]
            for interface in interfaces["busiest"]
        ]
        assert totals == sorted(totals, reverse=True)
        assert 1 < len(totals) <= MAX_BUSIEST
        for interface in interfaces["busiest"]:
            labels = ",".join(f'{name}="{value}"' for name, value in interface["labels"].items())
            assert f"rx_bytes{{{labels}}} {interface['received_bytes']}\n" in page
            assert f"tx_bytes{{{labels}}} {interface['transmitted_bytes']}\n" in page
        assert captures["count"] == status.MAX_CAPTURES + 1
        assert len(captures["first"]) == status.MAX_CAPTURES
        assert captures["first"][7] == {
            "capture_id": "c-007",
            "points": [],
            "packets_received": 1.5,
            "packets_dropped": 0,
            "kernel_flows_dropped": 0,
            "flows": 7,
            "flows_dropped": 0,
            "reports": 1,
        }
        page = (await site.get("/"))[1]
        assert len(cells(page, "interfaces.busiest")) == len(totals)
        assert cells(page, "captures.first")[7] == ["c-007", "–", "1.50", "0", "7", "0", "0"]


@pytest.mark.parametrize("has_interfaces", [True, False])
async def test_page_has_a_line_about_interfaces_and_a_line_about_names(has_interfaces):
    stats = Stats()
    stats.topology.interfaces = 45
    stats.topology.last_answer_timestamp_s = time.time() - 100.5
    stats.topology.last_failure = Failure("timeout", "no response")
    config = make_config(interfaces_interval=30 * has_interfaces)
    source = fake_status(stats=stats, config=config)

    async def lines():
        report = await source.report()
        page = status_html.as_html(report, source.ranking, source.ranking.query([]), None)
        panel = re.search(r'<h2 id="interfaces">(.*?)</section>', page, re.DOTALL)[1]
        return [re.sub("<[^>]*>", "", line) for line in re.findall("<p>(.*?)</p>", panel)]

    error = ", last error: no response (0 s ago)"
    first = "disabled by the configuration"
    if has_interfaces:
        first = f"45 in the topology, last response 1 min ago{error}"
    assert await lines() == [first]
    stats.topology.names = NameStats(
        addresses=1054, nodes=45, ambiguous=2, last_reading_timestamp_s=time.time() - 16.5
    )
    names = (
        "named from the topology: 1,054 addresses (2 of them ambiguous), 45 capture points;"
        " last read 16 s ago"
    )
    assert await lines() == [first, names + ("" if has_interfaces else error)]


async def test_labels_without_values_cause_warnings():
    stats = Stats()
    names = stats.topology.names = NameStats(
        labels_without_pods="target_pod", missing_pod_labels=("a", "<b>")
    )
    source = fake_status(stats=stats)
    report = await source.report()
    no_pods = (
        "Labels target_pod are empty: the topology has no pods; enable Skydive's Kubernetes"
        " probe (k8s) on an analyzer."
    )
    assert [(notice.severity, notice.text) for notice in report.notices] == [
        ("warning", no_pods),
        ("warning", "No pod has the label 'a'."),
        ("warning", "No pod has the label '<b>'."),
    ]
    page = status_html.as_html(report, source.ranking, source.ranking.query([]), None)
    assert "No pod has the label &#x27;&lt;b&gt;&#x27;." in page
    names.labels_without_pods, names.missing_pod_labels = "", ()
    assert (await source.report()).notices == []


# Top connections -----------------------------------------------------------------------------


async def test_connections_are_ranked_and_filtered():
    async with three_connections() as site:
        response = await site.json("/api/top")
        assert (response["by"], response["unit"], response["filter"]) == ("bytes", "bytes", "")
        assert (response["connections"], response["window_seconds"]) == (3, None)
        assert [entry["rank"] for entry in response["entries"]] == [3000, 2000, 1000]
        assert response["entries"][2] == {
            "rank": 1000,
            "labels": {
                "initiator_ip": "10.0.0.1",
                "target_ip": "10.0.0.2",
                "initiator_port": "40000",
                "target_port": "443",
                "node_tid": "node-1",
                "protocol": "TCP",
            },
            "names": {},
            "connections": 1,
            "hidden": False,
            "values": {"bytes": [900, 100], "packets": [5, 5], "rtt": [20_000_000]},
        }
        assert (response["group"], response["groups"], response["other"]) == ([], None, None)
        assert initiators(await site.json("/api/top?by=packets&n=1")) == ["10.0.0.1"]
        # fd00::3 has no round-trip time, and thus no rank.
        assert initiators(await site.json("/api/top?by=rtt")) == ["10.0.0.1", "10.0.0.2"]
        response = await site.json("/api/top?filter=fd00::")
        assert initiators(response) == ["fd00::3"]
        assert (response["filter"], response["connections"]) == ("fd00::", 3)


def named(**names):
    """Return names in the order of the name index."""
    return tuple(names.get(name, "") for name in NODE_NAMES)


@asynccontextmanager
async def named_connections(**settings):
    """Yield a site with three connections, names, and a view with a label that needs names."""
    view = {"prefix": "x", "labels": ["initiator_workload", "direction"], "metrics": ["bytes"]}
    async with three_connections(views=[view], **settings) as site:
        index = site.app._parts.names
        index.nodes["node-1"] = named(
            name="eth0", host="h1", namespace="shop", pod="cart-<1>", container="cart"
        )
        index.addresses["10.0.0.1"] = ("Shop/<Cart>", *named()[1:])
        index.addresses["fd00::3"] = None
        yield site


async def test_names_are_shown_and_can_be_searched():
    async with named_connections() as site:
        unknown = site.app._parts.names.addresses.unknown
        entries = (await site.json("/api/top"))["entries"]
        node = {"node_tid": "h1 shop/cart-<1> eth0"}
        assert [entry["names"] for entry in entries] == [
            node,
            node,
            {"initiator_ip": "Shop/<Cart>", **node},
        ]
        assert entries[2]["labels"]["node_tid"] == "node-1"
        page = (await site.get("/"))[1]
        row = cells(page, "top")[2]
        assert row[1] == "10.0.0.1 Shop/<Cart>"
        assert row[5] == "h1 shop/cart-<1> eth0"
        assert ' title="10.0.0.1 (Shop/&lt;Cart&gt;)"><a href=' in page
        assert ' data-filter="10.0.0.1">10.0.0.1</a> <small>Shop/&lt;Cart' in page
        assert ' title="node-1 (h1 shop/cart-&lt;1&gt; eth0)"><a href=' in page
        assert ' data-filter="node-1">h1 shop/cart-&lt;1' in page
        link = re.search(r'href="([^"]*)" data-filter="10.0.0.1"', page)[1]
        assert len(cells((await site.get(f"/{html.unescape(link)}"))[1], "top")) == 1
        for text in ("shop/%3Ccart", "CART%3E", "<cART"):
            found = await site.json(f"/api/top?filter={text.replace('<', '%3C')}")
            assert initiators(found) == ["10.0.0.1"], text
        for text in ("10.0.0.1", "FD00::3", "h1%20SHOP", "eth0", "tcp"):
            assert (await site.json(f"/api/top?filter={text}"))["entries"], text
        assert len((await site.json("/api/top?filter=h1"))["entries"]) == 3
        grouped = await site.json("/api/top?group=node_tid,initiator_ip&filter=eth0")
        assert [entry["names"] for entry in grouped["entries"]][2] == {
            "initiator_ip": "Shop/<Cart>",
            **node,
        }
        assert site.app._parts.names.addresses.unknown == unknown


async def test_name_that_is_a_label_is_not_repeated():
    labels = ["initiator_name", "initiator_ip", "target_ip", "direction"]
    async with three_connections(labels=labels) as site:
        site.app._parts.names.addresses["10.0.0.1"] = ("web", *named()[1:])
        site.app._parts.names.addresses["10.0.0.2"] = ("db", *named()[1:])
        entries = (await site.json("/api/top"))["entries"]
        assert [entry["names"] for entry in entries] == [{"target_ip": "db"}] * 3
        # The list does not show this name, so the filter does not find it.
        assert (await site.json("/api/top?filter=web"))["entries"] == []
        assert len((await site.json("/api/top?filter=DB"))["entries"]) == 3
        # These groups have no value of the label, so the name is shown after the address.
        grouped = (await site.json("/api/top?group=initiator_ip"))["entries"]
        names = {entry["labels"]["initiator_ip"]: entry["names"] for entry in grouped}
        assert names["10.0.0.1"] == {"initiator_ip": "web"}
        page = (await site.get("/?group=initiator_ip"))[1]
        assert "10.0.0.1 web" in {row[1] for row in cells(page, "top")}
        pair = (await site.json("/api/top?group=initiator_ip,initiator_name"))["entries"]
        assert [entry["names"] for entry in pair] == [{}] * len(pair)


async def test_rewritten_addresses_have_no_names():
    rewrite = {"initiator_ip": {"mask": 24, "mask6": 64}}
    labels = ["initiator_ip", "target_ip", "target_service", "direction"]
    async with three_connections(labels=labels, rewrite=rewrite) as site:
        for address in ("10.0.0.0/24", "10.0.0.1", "10.0.0.2"):
            site.app._parts.names.addresses[address] = ("web", *named()[1:])
        entries = (await site.json("/api/top"))["entries"]
        assert {tuple(entry["names"].items()) for entry in entries} == {(("target_ip", "web"),)}


async def test_only_interfaces_have_names_if_no_label_needs_names(monkeypatch):
    async with named_connections() as site:
        parts = site.app._parts
        parts.interfaces.update(topology_nodes.read(TOPOLOGY), site.app.clock.now())
        tid, (host, name) = next(iter(parts.interfaces.names.items()))
        site.report(make_flow("7", (9000, 0, 1, 0), node=tid))
        monkeypatch.setattr(site, "config", make_config(host_id="other", max_flows=7))
        assert await site.app.reload() is None
        site.report(make_flow("8", (9000, 0, 1, 0), node=tid))
        entries = (await site.json("/api/top"))["entries"]
        assert [entry["names"] for entry in entries] == [{"node_tid": f"{host} {name}"}]
        assert len((await site.json(f"/api/top?filter={name.upper()}"))["entries"]) == 1


async def test_interfaces_and_captures_show_their_owners():
    async with named_connections() as site:
        parts, now = site.app._parts, site.app.clock.now()
        parts.interfaces.update(topology_nodes.read(TOPOLOGY), now)
        tids = list(parts.interfaces.names)
        parts.names.nodes[tids[0]] = named(name="eth0", host="h1", netns="<blue>")
        api_status = await site.json("/api/status")
        owners = {
            interface["labels"]["node_tid"]: interface["owner"]
            for interface in api_status["interfaces"]["busiest"]
        }
        assert owners.pop(tids[0]) == "<blue>"
        assert set(owners.values()) == {""}
        points = [*tids[:4], "nowhere"]
        parts.captures.message(json.dumps({"CaptureID": "c-1"}).encode(), now)
        parts.capture_points.message(
            message(
                *(
                    make_flow(f"{n + 1:x}", node=tid) | {"CaptureID": "c-1"}
                    for n, tid in enumerate(points)
                )
            ),
            now,
        )
        (capture,) = (await site.json("/api/status"))["captures"]["first"]
        names = {tid: f"{host} {name}" for tid, (host, name) in parts.interfaces.names.items()}
        names |= {tids[0]: "h1 <blue> eth0", "nowhere": ""}
        assert {point["node_tid"]: point["name"] for point in capture["points"]} == {
            tid: names[tid] for tid in points
        }
        assert capture["points"][-1] == {"node_tid": "nowhere", "name": ""}
        page = (await site.get("/"))[1]
        (row,) = cells(page, "captures.first")
        shown_points = ", ".join(sorted(names[tid] for tid in tids[:4])[:3])
        assert row[1] == f"{shown_points} and 2 more"
        assert f"{tids[0]} (h1 &lt;blue&gt; eth0)" in page
        assert "&#10;nowhere" in page
        assert "<blue>" not in page
        assert "<blue>" in [row[2] for row in cells(page, "interfaces.busiest")]


async def test_capture_points_are_read_from_sampled_messages(monkeypatch):
    async with three_connections() as site:
        parts = site.app._parts
        monkeypatch.setattr(parts.checker, "should_check", lambda: True)
        site.report(make_flow("8", node="n") | {"CaptureID": "c-1"})
        assert parts.capture_points.of("c-1", site.app.clock.now()) == ["n"]


async def test_connections_are_grouped_by_labels():
    async with three_connections() as site:
        response = await site.json("/api/top?group=protocol")
        assert response["group"] == ["protocol"]
        assert (response["groups"], response["connections"]) == (1, 3)
        assert response["approximate"] is False
        assert response["entries"] == [
            {
                "rank": 6000,
                "labels": {"protocol": "TCP"},
                "names": {},
                "connections": 3,
                "hidden": False,
                "values": {"bytes": [2400, 3600], "packets": [7, 10], "rtt": [20_000_000]},
            }
        ]
        assert response["other"] == {
            "connections": 0,
            "rank": None,
            "values": {"bytes": [None, None], "packets": [None, None], "rtt": [None]},
        }
        response = await site.json("/api/top?group=initiator_ip,target_port&n=1&by=packets")
        assert response["entries"][0]["labels"] == {
            "initiator_ip": "10.0.0.1",
            "target_port": "443",
        }
        assert list(response["entries"][0]["labels"]) == ["initiator_ip", "target_port"]
        assert response["groups"] == 3
        assert response["other"]["connections"] == 2
        assert response["other"]["rank"] == 7
        assert response["other"]["values"] == {
            "bytes": [1500, 3500],
            "packets": [2, 5],
            "rtt": [90_000],
        }
        response = await site.json("/api/top?group=target_ip&filter=10.0.0.1")
        assert [entry["connections"] for entry in response["entries"]] == [1]
        # fd00::3 has no round-trip time and no rank, so it is counted in ``other``.
        response = await site.json("/api/top?group=initiator_ip&by=rtt")
        assert initiators(response) == ["10.0.0.1", "10.0.0.2"]
        assert response["other"]["connections"] == 1


async def test_groups_are_ranked_by_rates():
    async with three_connections() as site:
        first = await site.json("/api/top?by=bytes_per_second&group=protocol")
        assert (first["entries"], first["other"]["connections"]) == ([], 3)
        assert first["other"]["rank"] is None
        site.report(
            make_flow("1", (1500, 700, 9, 9), last=62_000),
            make_flow("2", (1560, 500, 9, 9), a="10.0.0.2", last=62_000),
        )
        with_older_snapshots(site.app.status.ranking, 60)
        response = await site.json("/api/top?by=bytes_per_second&group=protocol")
        (entry,) = response["entries"]
        assert (entry["rank"], entry["connections"]) == (pytest.approx(21, rel=0.1), 3)
        response = await site.json("/api/top?by=bytes_per_second&group=initiator_ip&n=1")
        assert initiators(response) == ["10.0.0.1"]
        assert response["other"]["rank"] == pytest.approx(1, rel=0.1)
        assert response["other"]["connections"] == 2
        page = (await site.get("/?by=bytes_per_second&group=initiator_ip&n=1"))[1]
        others = r"; all other groups \(2 connections\): (1|0\.9\d|1\.00) B/s;"
        shown = rf"{others} averages over the last 1 min;"
        assert re.search(shown, page)


async def test_too_many_groups_make_sums_approximate(monkeypatch):
    monkeypatch.setattr(top, "MAX_GROUPS", 4)
    async with three_connections() as site:
        for n in range(10):
            site.report(make_flow(f"a{n}", (n, 0, 1, 0), a=f"10.1.0.{n}"))
        response = await site.json("/api/top?group=initiator_ip&n=1")
        assert response["approximate"] is True
        assert initiators(response) == ["fd00::3"]
        assert response["other"]["connections"] == 12
        page = (await site.get("/?group=initiator_ip&n=1"))[1]
        others = "all other groups (12 connections): 3.04 kB"
        assert f"{others}; too many groups: sums are approximate<" in page


async def test_rankings_have_the_units_of_the_metrics_page():
    async with three_connections(naming="standard", metrics=["rtt", "last"]) as site:
        response = await site.json("/api/top")
        assert (response["by"], response["unit"]) == ("rtt", "seconds")
        assert response["entries"][0]["rank"] == 0.02
        assert response["entries"][0]["values"] == {"rtt": [0.02], "last": [2.0]}
        api_status = await site.json("/api/status")
        assert api_status["rankings"] == ["rtt", "last"]
        assert [metric["unit"] for metric in api_status["metrics"]] == ["seconds", "timestamp"]
        assert (await site.get("/api/top?by=bytes"))[0] == 400
        assert ">1970-01-01 00:00:02<" in (await site.get("/"))[1]


@pytest.mark.xdist_group("timing")
async def test_connections_are_ranked_by_rates():
    async with three_connections() as site:
        ranks = site.app.status.ranking
        site.app.stats.flow_update_s = 9.997
        first = await site.json("/api/top?by=bytes_per_second")
        assert first["entries"] == []
        assert 0 <= first["window_seconds"] < 5
        assert first["rates_in_seconds"] == pytest.approx(10 - first["window_seconds"], abs=0.01)
        assert first["flow_update_seconds"] == 10
        assert first["note"].startswith(
            "No rates yet: agents report each flow every 10 s (flow.update). The first rates are"
        )
        site.report(
            make_flow("1", (1500, 700, 9, 9), last=62_000),
            make_flow("4", (60, 0, 1, 0), a="10.0.0.4"),
        )
        # While the snapshot is younger than flow.update, there are no rates: some flows have not
        # been reported since.
        with_older_snapshots(ranks, 4)
        early = await site.json("/api/top?by=bytes_per_second")
        assert (early["entries"], early["connections"]) == ([], 4)
        assert 0 < early["rates_in_seconds"] <= 6
        with_older_snapshots(ranks, 16)
        response = await site.json("/api/top?by=bytes_per_second")
        assert initiators(response) == ["10.0.0.1", "10.0.0.4"]
        assert (response["note"], response["rates_in_seconds"]) == (None, None)
        assert (response["unit"], response["flow_update_seconds"]) == ("bytes", 10)
        window_s = response["window_seconds"]
        assert 20 <= window_s < 30
        assert [entry["rank"] for entry in response["entries"]] == [
            pytest.approx(1200 / window_s, rel=0.001),
            pytest.approx(60 / window_s, rel=0.001),
        ]
        assert ranks.snapshots == 1
        response = await site.json("/api/top?by=bytes")
        assert (response["note"], response["rates_in_seconds"]) == (None, None)
        assert response["flow_update_seconds"] is None


def with_older_snapshots(ranks, seconds):
    for family, taken in ranks._snapshots.items():
        ranks._snapshots[family] = [replace(one, taken_s=one.taken_s - seconds) for one in taken]
    ranks._results._results.clear()


@pytest.mark.parametrize("interval_s", [62, 120, 300])
@pytest.mark.parametrize("update_s", [10, 60, 900])
async def test_clients_that_poll_rarely_get_rates(monkeypatch, interval_s, update_s):
    ranks = Ranking(
        table=FakeTable(),
        view=VIEW,
        metrics=("bytes", "rtt"),
        flow_update_s=lambda: update_s,
    )
    loop = asyncio.get_running_loop()
    now, released = [1000.0], []
    monkeypatch.setattr(top.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(loop, "call_later", lambda delay_s, _: released.append(delay_s) or Timer())
    windows = []
    for _ in range(60):
        windows.append((await ranks.top(RankingQuery(by="bytes_per_second"))).top.window_seconds)
        ranks._results._results.clear()
        now[0] += interval_s
    # Snapshots are kept for longer than the time between two requests.
    assert {*released} == {300 + update_s}
    assert interval_s < released[0]
    assert windows[1] == interval_s
    assert min(windows[-10:]) >= update_s


class Timer:
    def cancel(self):
        pass


async def test_rates_cover_one_to_two_minutes_after_the_first_minute(monkeypatch):
    table = FakeTable()
    ranks = Ranking(table=table, view=VIEW, metrics=("bytes", "rtt"))
    now = [1000.0]
    monkeypatch.setattr(top.time, "monotonic", lambda: now[0])
    windows, counts = [], []
    for _ in range(20):
        windows.append(ranks._rank(RankingQuery(by="bytes_per_second")).top.window_seconds)
        counts.append(ranks.snapshots)
        now[0] += 15
    assert max(counts) == 2
    assert windows[:4] == [0, 15, 30, 45]
    assert set(windows[4:]) == {60, 75, 90, 105}
    assert table.scans.count("snapshot 0") == 5


@pytest.mark.xdist_group("timing")
async def test_unused_snapshots_are_freed(monkeypatch):
    monkeypatch.setattr(top, "RESULT_AGE_S", 0)
    monkeypatch.setattr(top, "SNAPSHOT_IDLE_S", 1.5)
    ranks = Ranking(
        table=FakeTable(), view=VIEW, metrics=("bytes", "rtt"), flow_update_s=lambda: 0.3
    )
    query = ranks.query([("by", "bytes_per_second")])
    for _ in range(4):  # requests for rates keep the snapshots alive
        await ranks.top(query)
        snapshot = weakref.ref(ranks._snapshots[0][0].snapshot)
        await asyncio.sleep(0.5)
        assert snapshot() is not None
    await ranks.top(ranks.query([]))  # a request that is not for rates
    await until(lambda: not ranks.snapshots)
    gc.collect()
    assert snapshot() is None


async def test_ranking_in_progress_keeps_no_snapshot_after_a_reload():
    table = FakeTable(pause_scans=True)
    ranks = Ranking(table=table, view=VIEW, metrics=("bytes", "rtt"))
    request = asyncio.create_task(ranks.top(ranks.query([("by", "bytes_per_second")])))
    await until(lambda: table.scans)
    ranks.close()
    table.resume.set()
    await request
    assert ranks.snapshots == 0
    assert ranks._release_timer is None


async def test_long_interval_of_reports_is_not_shown_with_an_exponent():
    ranks = Ranking(
        table=FakeTable(), view=VIEW, metrics=("bytes", "rtt"), flow_update_s=lambda: 1234.0
    )
    note = (await ranks.top(ranks.query([("by", "bytes_per_second")]))).top.note
    assert note.startswith("No rates yet: agents report each flow every 1234 s (flow.update).")


@pytest.mark.xdist_group("timing")
@on_both_loops
async def test_concurrent_requests_share_a_ranking():
    table = FakeTable(pause_scans=True)
    ranks = Ranking(table=table, view=VIEW, metrics=("bytes", "rtt"))
    requests = [asyncio.create_task(ranks.top(ranks.query([]))) for _ in range(20)]
    requests.append(asyncio.create_task(ranks.top(ranks.query([("n", "1")]))))
    await until(lambda: table.scans)
    requests[0].cancel()  # a cancelled request does not affect the others
    await asyncio.sleep(0.02)
    assert table.scans == ["top 0 50"]
    table.resume.set()
    results = await asyncio.gather(*requests[1:])
    assert table.scans == ["top 0 50", "top 0 1"]
    assert len({id(result) for result in results}) == 2
    assert (await ranks.top(ranks.query([]))) is results[0]


@on_both_loops
async def test_rankings_run_one_at_a_time_from_a_bounded_queue(monkeypatch):
    monkeypatch.setattr(top, "RESULT_AGE_S", 0.01)
    table = FakeTable(pause_scans=True)
    ranks = Ranking(table=table, view=VIEW, metrics=("bytes", "rtt"))
    requests = [
        asyncio.create_task(ranks.top(RankingQuery(by="bytes", filter=str(number))))
        for number in range(top.MAX_RESULTS)
    ]
    await until(lambda: table.scans)
    with pytest.raises(BusyError):
        await ranks.top(RankingQuery(by="rtt"))
    assert len(table.scans) == 1
    table.resume.set()
    await asyncio.gather(*requests)
    assert len(table.scans) == top.MAX_RESULTS
    await ranks.top(RankingQuery(by="rtt"))
    await until(lambda: not ranks._results._results)


@on_both_loops
async def test_failed_ranking_is_not_cached():
    table = FakeTable()
    ranks = Ranking(table=table, view=VIEW, metrics=("bytes", "rtt"))
    rows, table.rows = table.rows, None
    with pytest.raises(TypeError):
        await ranks.top(ranks.query([]))
    table.rows = rows
    await until(lambda: not ranks._results._results)
    assert len((await ranks.top(ranks.query([]))).top.entries) == 2


async def test_reload_with_a_new_table_replaces_the_ranking(monkeypatch):
    async with three_connections() as site:
        await site.get("/api/top?by=bytes_per_second")
        old = site.app.status.ranking
        monkeypatch.setattr(site, "config", make_config(host_id="other", metrics=["packets"]))
        assert await site.app.reload() is None
        assert old.snapshots == 0
        api_status = await site.json("/api/status")
        assert (api_status["host_id"], api_status["rankings"]) == (
            "other",
            ["packets", "packets_per_second"],
        )
        assert api_status["table"]["connections"] == 0
        assert (await site.json("/api/top"))["by"] == "packets"


async def test_reload_that_keeps_the_table_keeps_the_snapshots(monkeypatch):
    async with three_connections() as site:
        await site.get("/api/top?by=bytes_per_second")
        monkeypatch.setattr(site, "config", make_config(max_flows=7))
        assert await site.app.reload() is None
        assert site.app.status.ranking.snapshots == 1
        assert (await site.json("/api/status"))["table"]["flows_limit"] == 7


async def test_page_shows_whether_there_was_a_reload(monkeypatch):
    async with three_connections() as site:
        state, text = shown_values(await site.get("/"), "reload")
        assert state == "loaded"
        assert re.fullmatch(r"loaded at the start, \d s ago; never reloaded", text)
        assert (await site.json("/api/status"))["reload"]["successes_total"] == 0
        monkeypatch.setattr(site, "config", make_config(max_flows=7))
        assert await site.app.reload() is None
        state, text = shown_values(await site.get("/"), "reload")
        assert state == "loaded"
        assert re.fullmatch(r"last reloaded \d s ago, changed keys: [a-z_., ]*max_flows", text)
        assert (await site.json("/api/status"))["reload"]["successes_total"] == 1
        site.app.stats.config.last_reload_successful = 0
        page = await site.get("/")
        assert shown_values(page, "reload")[0] == "last reload failed"
        assert '<span class="state bad" data-key="reload"' in page[1]


def shown_values(response, key):
    return re.findall(rf'data-key="{re.escape(key)}"[^>]*>([^<]*)<', response[1])


INVALID_QUERIES = {
    "by=byte": "by: unknown value 'byte'. Values: bytes, packets, rtt, bytes_per_second,"
    " packets_per_second.",
    "by=": "by: unknown value ''. Values: bytes, packets, rtt, bytes_per_second,"
    " packets_per_second.",
    "by=a%0Ab": "by: unknown value 'a\\nb'. Values: bytes, packets, rtt, bytes_per_second,"
    " packets_per_second.",
    **dict.fromkeys(
        [f"n={n}" for n in ("0", "1001", "-1", "", "x", "1e2", "%C2%B2", "+5", "1" * 3000)],
        "n: not an integer from 1 to 1000.",
    ),
    "N=5": "Unknown parameter 'N'. Parameters: by, n, filter, group, view.",
    "n=5&n=5": "The parameter 'n' is repeated.",
    "filter=" + 201 * "x": "filter: longer than 200 characters.",
    **{
        f"group={text}": f"group: unknown label '{shown}'. Labels: initiator_ip, target_ip,"
        " initiator_port, target_port, node_tid, protocol."
        for text, shown in {
            "bytes": "bytes",
            "direction": "direction",
            "initiator_ip,": "",
            "protocol,a%0Ab": "a\\nb",
            "Protocol": "Protocol",
        }.items()
    },
    "group=protocol,node_tid,protocol": "group: a label is repeated.",
}


async def test_invalid_query_is_rejected_with_a_reason():
    async with three_connections() as site:
        for parameters, reason in INVALID_QUERIES.items():
            assert await site.get(f"/api/top?{parameters}") == (400, f"{reason}\n")
        assert await site.get("/?n=0") == (400, "n: not an integer from 1 to 1000.\n")
        assert await site.get("/api/status?x") == (400, "This page accepts no parameters.\n")
        # Invalid UTF-8 and the maximum length are accepted.
        for text in ("%FF", "%ED%A0%80", top.MAX_FILTER_CHARS * "x"):
            assert (await site.json(f"/api/top?filter={text}"))["entries"] == []
        assert len((await site.json("/api/top?n=1000&filter="))["entries"]) == 3
        assert (await site.get("/?theme=dark"))[0] == 200


def test_lone_surrogate_is_rejected():
    ranks = Ranking(table=FakeTable(), view=VIEW, metrics=("bytes", "rtt"))
    with pytest.raises(RankingQueryError, match="not valid UTF-8"):
        ranks.query([("filter", "\ud800")])


async def test_request_is_rejected_while_too_many_rankings_are_in_progress(monkeypatch):
    monkeypatch.setattr(top, "MAX_RESULTS", 0)
    async with three_connections() as site:
        assert await site.get("/api/top") == (
            503,
            "Busy: too many rankings are in progress. Try again.\n",
        )
        code, page = await site.get("/")
        assert code == 200
        assert "Too many rankings are in progress: try again." in page


async def test_request_is_rejected_while_too_many_status_pages_are_rendered(monkeypatch):
    writing, peak, go_on = 0, 0, threading.Event()

    def as_html(*_):
        nonlocal writing, peak
        writing += 1
        peak = max(peak, writing)
        go_on.wait(10)
        writing -= 1
        return "a page"

    monkeypatch.setattr(status_html, "as_html", as_html)
    monkeypatch.setattr(server, "MAX_STATUS_PAGES", 3)
    async with three_connections() as site:
        requests = [asyncio.create_task(site.get("/")) for _ in range(3)]
        await until(lambda: writing and site.app.web._status_pages == 3)
        refused = await site.get("/")
        assert refused == (503, "Busy: too many status pages are being rendered. Try again.\n")
        assert (await site.get("/metrics/self"))[0] == 200
        go_on.set()
        assert await asyncio.gather(*requests) == [(200, "a page")] * 3
        assert peak == 1, "two pages were rendered at once"
        assert (await site.get("/"))[0] == 200


# Status page ---------------------------------------------------------------------------------


def cells(page, table):
    """Return the texts of the cells in a table's body, row by row."""
    body = re.search(rf'data-rows="{table}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    return [
        [html.unescape(re.sub(r"<.*?>", "", cell)) for cell in re.findall(r"<td.*?</td>", row)]
        for row in body.splitlines()
        if row
    ]


async def test_page_is_complete_without_its_script():
    async with three_connections() as site:
        code, page = await site.get("/?by=rtt&filter=10.0&n=100")
        assert code == 200
        assert cells(page, "analyzers")[0][:2] == ["127.0.0.1:9", "down"]
        assert cells(page, "top") == [
            [
                *("20.0 ms", "10.0.0.1", "10.0.0.2", "40000", "443", "node-1", "TCP"),
                *("900 B", "100 B", "5", "5", "20.0 ms"),
            ],
            [
                *("90.0 µs", "10.0.0.2", "10.0.0.2", "40000", "443", "node-1", "TCP"),
                *("1.50 kB", "500 B", "2", "2", "90.0 µs"),
            ],
        ]
        assert re.search(r">2 of [\d,]+ connections<", page)
        assert "<option selected>100</option>" in page
        assert 'name="filter" value="10.0"' in page
        assert 'href="?by=packets&amp;n=100&amp;filter=10.0"' in page
        assert re.search(r'data-by="rtt" data-format="nanoseconds" aria-current="true"', page)
        assert ">not ready: 0 of 1 analyzer<" in page
        assert "Not subscribed to any analyzer" in page


async def test_page_shows_groups_without_its_script():
    async with three_connections() as site:
        code, page = await site.get("/?group=protocol,target_ip&n=20&filter=10")
        assert code == 200
        assert cells(page, "top") == [
            [
                *("6.00 kB", "TCP", "10.0.0.2", "3"),
                *("2.40 kB", "3.60 kB", "7", "10", "20.0 ms"),
            ]
        ]
        assert ">1 of 1 group<" in page
        options = re.findall(r'<option value="([^"]*)"( selected)?>([^<]*)', page)
        assert [(value, text) for value, _, text in options] == [
            ("", "nothing"),
            ("initiator_ip,target_ip", "initiator ip + target ip"),
            ("initiator_port,target_port", "initiator port + target port"),
            ("initiator_ip", "initiator ip"),
            ("target_ip", "target ip"),
            ("initiator_port", "initiator port"),
            ("target_port", "target port"),
            ("node_tid", "node tid"),
            ("protocol", "protocol"),
            ("protocol,target_ip", "protocol + target ip"),
        ]
        assert [value for value, selected, _ in options if selected] == ["protocol,target_ip"]
        assert 'href="?by=packets&amp;n=20&amp;filter=10&amp;group=protocol,target_ip"' in page
        page = (await site.get("/?group="))[1]
        assert ">3 of 3 connections<" in page
        assert '<option value="" selected>' in page
        page = (await site.get("/?group=initiator_ip&n=1&by=packets"))[1]
        assert ">1 of 3 groups; all other groups (2 connections): 7<" in page


async def test_page_explains_why_the_first_request_shows_no_rates():
    note = (
        r'role="status">No rates yet: agents report each flow every 60 s \(flow\.update\)\. The'
        r" first rates are available in (60|[45]\d) s\.<"
    )
    async with three_connections() as site:
        for path in ("/?by=bytes_per_second", "/?by=bytes_per_second&group=protocol"):
            assert re.search(note, (await site.get(path))[1])
        site.report(make_flow("1", (1500, 700, 9, 9), last=62_000))
        with_older_snapshots(site.app.status.ranking, 60)
        page = (await site.get("/?by=bytes_per_second"))[1]
        text = "connections; averages over the last 1 min; agents report each flow every 60 s<"
        assert f">1 of 3 {text}" in page
        # Rates are available, so the empty list needs no explanation.
        page = (await site.get("/?by=bytes_per_second&filter=fd00"))[1]
        assert f">0 of 3 {text}" in page


async def test_page_says_that_nothing_matches_the_filter():
    async with three_connections(views=[SERVICES]) as site:
        for query, noun in {
            "": "connection",
            "&by=bytes_per_second": "connection",
            "&by=rtt": "connection",
            "&group=protocol": "connection",
            "&group=protocol&by=bytes_per_second": "connection",
            "&view=services": "row",
            "&view=services&by=packets_per_second": "row",
        }.items():
            response = await site.json(f"/api/top?filter=%3Cnothing%3E{query}")
            assert (response["matches"], response["entries"]) == (False, [])
            page = (await site.get(f"/?filter=%3Cnothing%3E{query}"))[1]
            assert f'role="status">No {noun} matches “&lt;nothing&gt;”.<' in page
        # fd00::3 matches the filter, but has no rate and no round-trip time.
        for query in ("filter=fd00&by=rtt", "filter=fd00&by=bytes_per_second"):
            response = await site.json(f"/api/top?{query}")
            assert (response["matches"], response["entries"]) == (True, [])


async def test_second_scan_runs_only_if_rows_can_lack_the_metric():
    """A row can lack the round-trip time, but not the bytes.

    If the scan for rows with a rank finds none, a second scan searches for rows without a rank.
    """
    table = FakeTable()
    ranks = Ranking(table=table, view=VIEW, metrics=("bytes", "rtt"))
    for by, scans in (("bytes", ["top"]), ("rtt", ["top", "groups"])):
        table.scans.clear()
        top_ = (await ranks.top(ranks.query([("by", by), ("filter", "nothing")]))).top
        assert not top_.matches
        assert [scan.split()[0] for scan in table.scans] == scans


SERVICES = {
    "prefix": "services",
    "labels": ["target_port", "application"],
    "metrics": ["bytes", "packets", "new_flows"],
    "direction": "sum",
}


async def test_rows_of_views_are_ranked():
    histograms = {
        "prefix": "times",
        "labels": ["protocol"],
        "metrics": [{"name": "rtt", "type": "histogram", "buckets": [1]}],
    }
    async with three_connections(views=[histograms, SERVICES]) as site:
        response = await site.json("/api/top?view=services")
        assert (response["view"], response["by"], response["groups"]) == ("services", "bytes", None)
        (entry,) = response["entries"]
        assert (entry["rank"], response["connections"]) == (6000, 1)
        assert list(entry["labels"]) == ["target_port", "application"]
        assert entry["values"] == {"bytes": [6000], "packets": [17], "new_flows": [3]}
        # If connections lack the label or the metric, the rows of the view are grouped instead.
        for query, view, rank in (
            ("group=target_port", "", 6000),
            ("group=target_port&by=packets", "", 17),
            ("group=target_port&by=new_flows", "services", 3),
            ("group=target_port&view=services", "services", 6000),
            ("group=application", "services", 6000),
            ("group=application&by=bytes", "services", 6000),
            ("by=new_flows&view=services", "services", 3),
        ):
            response = await site.json(f"/api/top?{query}")
            assert response["view"] == view
            assert response["entries"][0]["rank"] == rank
        known = "bytes, packets, new_flows, bytes_per_second, packets_per_second"
        labels = "initiator_ip, target_ip, initiator_port, target_port, node_tid, protocol"
        for query, reason in {
            "view=x": "view: unknown view 'x'. Views: services.",
            "view=times": "view: unknown view 'times'. Views: services.",
            "group=application&by=rtt": f"by: unknown value 'rtt'. Values: {known}.",
            "view=services&by=rtt": f"by: unknown value 'rtt'. Values: {known}.",
            "group=protocol,application": "group: no view has all of these labels.",
            "group=x": f"group: unknown label 'x'. Labels: {labels}, application.",
            "view=services&group=protocol": "group: unknown label 'protocol'. Labels: target_port,"
            " application.",
        }.items():
            assert await site.get(f"/api/top?{query}") == (400, f"{reason}\n")
        (view,) = (await site.json("/api/status"))["views"]
        assert view.pop("metrics")[2]["family"] == "services_new_flows_total"
        assert view == {
            "prefix": "services",
            "labels": ["target_port", "application"],
            "rankings": known.split(", "),
            "min_bytes": 0,
            "min_packets": 0,
        }
        # The connections and the view have separate snapshots.
        for query in ("view=services&", ""):
            assert (await site.json(f"/api/top?{query}by=bytes_per_second"))["entries"] == []
        assert site.app.status.ranking.snapshots == 2
        site.report(make_flow("1", (1500, 700, 9, 9), last=62_000))
        with_older_snapshots(site.app.status.ranking, 60)
        response = await site.json("/api/top?view=services&by=bytes_per_second")
        assert [entry["rank"] for entry in response["entries"]] == [pytest.approx(20, rel=0.1)]


async def test_page_offers_groupings_and_views():
    async with three_connections(views=[SERVICES]) as site:
        page = (await site.get("/?by=rtt&n=50"))[1]
        links = re.findall(
            r'<a href="([^"]*)" data-group="([^"]*)" data-view="([^"]*)"([^>]*)>([^<]*)<', page
        )
        assert [(group, view, text) for _, group, view, _, text in links] == [
            ("", "", "connection"),
            ("initiator_ip,target_ip", "", "address"),
            ("target_port", "", "port"),
            ("protocol", "", "protocol"),
            ("application", "", "application"),
            ("node_tid", "", "interface"),
            ("", "services", "view services"),
        ]
        assert [text for *_, current, text in links if current] == ["connection"]
        for link, group, view, _, text in links:
            code, page = await site.get(f"/{html.unescape(link)}")
            assert code == 200, page
            assert len(cells(page, "top")) == (2 if text in ("connection", "address") else 1)
            assert f'data-group="{group}" data-view="{view}" aria-current="true">{text}<' in page
            assert "<option selected>50</option>" in page
            # A view without this metric is ranked by its default metric.
            by = "bytes" if text in ("application", "view services") else "rtt"
            assert f'name="by" value="{by}"' in page
        assert ">1 of 1 row of the view services<" in page
        assert 'name="view" value="services"' in page
        options = re.findall(r'<option value="([^"]*)"(?: selected)?>', page)
        assert options == ["", "target_port", "application"]
        assert (await site.get("/?by=nothing&view=services"))[0] == 400
        # Without JavaScript, the form also sends empty fields.
        assert (await site.get("/?by=bytes&view=&filter=&group=&n=20"))[0] == 200


async def test_metric_that_ranks_the_list_is_shown_once():
    async with three_connections(views=[SERVICES]) as site:
        for query, hidden in {
            "view=services&by=new_flows": ["new_flows"],
            "view=services&by=bytes": ["bytes"],
            "view=services&by=bytes_per_second": [],
            "by=rtt": ["rtt"],
            "by=bytes": [],  # not hidden: the rank is the sum of two columns
        }.items():
            page = (await site.get(f"/?{query}"))[1]
            assert re.findall(r'<th [^>]*data-single="(\w+)" hidden>', page) == hidden
            body = re.search(r'data-rows="top">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
            rows = body.count("<tr>")
            assert len(re.findall("<td [^>]*hidden>", body)) == len(hidden) * rows


async def test_page_mentions_histograms_that_are_not_listed():
    buckets = {"type": "histogram", "buckets": [1, 2]}
    view = {
        "prefix": "app",
        "labels": ["target_port"],
        "metrics": ["bytes", {"name": "flow_bytes", **buckets}, {"name": "rtt", **buckets}],
    }
    async with three_connections(views=[view]) as site:
        page = (await site.get("/?view=app"))[1]
        hidden = "<p>This table does not show the histograms of the view"
        assert f"{hidden}: flow bytes, rtt.</p>" in page
        assert hidden not in (await site.get("/"))[1]


async def test_page_marks_hidden_connections():
    async with three_connections(min_bytes=2001) as site:
        page = (await site.get("/"))[1]
        assert [row[-1] for row in cells(page, "top")] == ["exported", "hidden", "hidden"]
        bounds = [row[0] for row in cells(page, "forecast.bounds")]
        assert bounds[:2] == ["2.00 kB (configured)", "10.0 kB"]
        entries = (await site.json("/api/top"))["entries"]
        assert [entry["hidden"] for entry in entries] == [False, True, True]
        assert "hidden" not in cells((await site.get("/?group=target_port"))[1], "top")[0]
    async with three_connections(views=[{**SERVICES, "min_bytes": 10_000}]) as site:
        assert len(cells((await site.get("/"))[1], "top")[0]) == 12
        page = (await site.get("/?view=services"))[1]
        assert [row[-1] for row in cells(page, "top")] == ["hidden"]


async def test_markup_is_escaped():
    stats = Stats()
    stats.analyzer(EVIL).last_failure = Failure("error", EVIL)
    table = FakeTable()
    table.rows = [(5, (EVIL, "b"), (5, 0, 1), True)]
    source = fake_status(table, stats=stats)
    query = source.ranking.query([("filter", EVIL)])
    result = await source.ranking.top(query)
    page = status_html.as_html(await source.report(), source.ranking, query, result.top)
    for tag in ("<script>alert", "<img"):
        assert tag not in page
    assert page.count("<script>") == 1
    assert cells(page, "top")[0][1] == html.unescape(html.escape(EVIL))
    assert json.loads(result.json)["entries"][0]["labels"]["initiator_ip"] == EVIL


async def test_ranking_has_the_columns_of_its_view():
    view = View(
        columns=(Column(name="service", path=("Application",)),),
        direction=None,
        families=(
            Family(
                name="x:y",
                help="",
                type="counter",
                values=(Counter(paths=(("Metric", "ABBytes"),)),),
            ),
        ),
    )
    table = FakeTable()
    table.rows = [(1234, ("",), (1234,), True)]
    ranks = Ranking(table=table, view=view, metrics=("x:y",))
    assert list(ranks.first_view.keys) == ["x:y"]
    query = ranks.query([])
    result = await ranks.top(query)
    page = status_html.as_html(await fake_status().report(), ranks, query, result.top)
    assert cells(page, "top") == [["1,234", "–", "1,234"]]


@pytest.mark.parametrize(("format_", "value", "text"), FORMATS)
def test_values_are_formatted(format_, value, text):
    assert formatted(value, format_, 1000) == text


async def test_page_shows_the_share_the_lag_and_the_lost_reports_of_each_analyzer():
    stats = Stats()
    a, b, _ = (stats.analyzer(name) for name in "abc")
    source = fake_status(stats=stats)
    (row, *_) = (await source.report()).analyzers
    assert (row.share, row.lag_seconds, row.data_age_seconds, row.lost_ratio) == (None,) * 4
    a.flows, b.flows = 300, 100
    for seconds in (1, 2, 6):
        a.delivery.observe(seconds)
        a.packet_age.observe(10 * seconds)
    a.reports_checked, a.report_gaps["lost"], b.reports_checked = 200, 3, 100
    source.sample()
    report = await source.report()
    rows = {analyzer.name: analyzer for analyzer in report.analyzers}
    assert {name: row.share for name, row in rows.items()} == {"a": 0.75, "b": 0.25, "c": 0}
    assert (rows["a"].lag_seconds, rows["a"].data_age_seconds) == (3, 30)
    assert rows["b"].lag_seconds is None
    assert [rows[name].lost_ratio for name in "abc"] == [0.015, 0, None]
    lost = sum(row.reports_lost_total for row in rows.values())
    checked = sum(row.reports_checked_total for row in rows.values())
    assert (report.table.reports_lost_total, report.table.reports_checked_total) == (lost, checked)
    assert report.table.lost_ratio == lost / checked
    page = status_html.as_html(report, source.ranking, source.ranking.query([]), None)
    assert '<p>host_id <strong data-key="host_id"' in page
    row = next(row for row in cells(page, "analyzers") if row[0] == "a")
    # All rates below 1,000 have one decimal, so the column is aligned.
    assert re.fullmatch(r"\d+\.\d|[\d,]{5,}", row[3])
    assert row[4:8] == ["75.0 %", "3 s", "30 s", "1.5 %"]


async def test_page_shows_that_recordings_are_replayed():
    source = fake_status(replay=Replay(is_demo=True, recordings=("<x>",)))
    report = await source.report()
    page = status_html.as_html(report, source.ranking, source.ranking.query([]), None)
    assert "<strong>Demo:</strong> skyfast replays a packaged recording" in page
    assert json.loads(status.as_json(report))["replay"] == {"demo": True, "recordings": ["<x>"]}
    source = fake_status(replay=Replay(is_demo=False, recordings=("<x>",)))
    page = status_html.as_html(
        await source.report(), source.ranking, source.ranking.query([]), None
    )
    assert "<strong>Replay</strong> of &lt;x&gt;. This is not live traffic." in page
    source = fake_status()
    assert (await source.report()).replay is None


async def test_bars_of_limits_show_the_numbers_of_the_api():
    view = {"prefix": "x", "labels": ["initiator_ip", "direction"], "metrics": ["bytes"]}
    async with three_connections(views=[view], max_flows=30) as site:
        site.app.stats.max_connections = 4
        response = await site.get("/")
        (_, page), table = response, (await site.json("/api/status"))["table"]
        metrics = (await site.get("/metrics"))[1]
        assert table["series_at_most"] == 3 * 5 + 3 * 2
        assert table["series_limit"] == 4 * 7
        # ``series_at_most`` includes the round-trip time, which one connection does not have.
        flows = [line for line in metrics.splitlines() if re.match("skydive_network_conn|x_", line)]
        assert len(flows) == table["series_at_most"] - 1
        for key, text in {
            "table.connections": "3",
            "table.connections_limit": "4",
            "table.flows": "3",
            "table.dormant_flows": "0",
            "table.flows_limit": "30",
            "table.series_at_most": "21",
            "table.series_limit": "28",
        }.items():
            assert {*shown_values(response, key)} == {text}, key
        others = (await site.json("/api/status"))["forecast"]["other_series"]
        assert {*shown_values(response, "forecast.other_series")} == {str(others)} == {"6"}
        assert "Exported: <span" in page
        report = await site.json("/cardinality?format=json")
        views = sum(view["series_at_most"] for view in report["views"])
        assert report["series_at_most"] + views == table["series_at_most"]
        bars = re.findall(r'<svg class="(\w+)" [^>]*data-limit="([a-z_.]+)">(.*?)</svg>', page)
        assert [(colour, limit) for colour, limit, _ in bars] == [
            ("good", "table.connections_limit"),
            ("good", "table.flows_limit"),
            ("good", "table.series_limit"),
        ]
        assert re.findall(r'x="([\d.]+)%" width="([\d.]+)%"', bars[1][2]) == [
            ("0.0", "10.0"),
            ("10.0", "0.0"),
        ]


@pytest.mark.parametrize(
    ("connections", "colour"), [(89, "good"), (90, "warn"), (99, "warn"), (100, "bad")]
)
async def test_color_shows_how_close_a_number_is_to_its_limit(connections, colour):
    stats, table = Stats(), FakeTable()
    stats.max_connections, table.connections = 100, connections
    source = fake_status(table, stats=stats)
    page = status_html.as_html(
        await source.report(), source.ranking, source.ranking.query([]), None
    )
    assert f'<svg class="{colour}" aria-hidden="true" data-shares="table.connections"' in page


def test_created_and_expired_connections_of_three_hours_are_counted():
    churn = Churn()
    assert churn.counts(5, 1, now_s=0) == ChurnCounts(created=0, expired=0, seconds=0)
    for minute in range(400):
        churn.add(100 * minute, 10 * minute, now_s=60 * minute)
        churn.add(100 * minute + 1, 10 * minute, now_s=60 * minute + 5)
        if minute == 10:
            counts = churn.counts(1_050, 105, now_s=630)
            assert counts == ChurnCounts(created=1_050, expired=105, seconds=630)
    # The counts cover three hours, minus at most one sampling interval.
    counts = churn.counts(100 * 399 + 50, 10 * 399 + 5, now_s=60 * 399 + 30)
    assert counts == ChurnCounts(created=17_950, expired=1_795, seconds=10_770)


async def test_new_table_resets_the_counts_of_created_and_expired_connections():
    old, new = FakeTable(), FakeTable()
    old.created_total, old.expired_total = 10, 8
    source, replacement = fake_status(old), fake_status(new)
    new.created_total, new.expired_total = 12, 0  # the first reports arrive during the reload
    source.use(replacement._source)
    source.sample()
    new.created_total, new.expired_total = 15, 2
    counts = source._churn.counts(new.created_total, new.expired_total, now_s=time.monotonic())
    assert (counts.created, counts.expired) == (3, 2)


async def test_cost_for_prometheus_does_not_count_the_first_fill_of_the_table(monkeypatch):
    now_s = time.monotonic()
    monkeypatch.setattr(status.time, "monotonic", lambda: now_s)
    table = FakeTable()
    table.connections = table.created_total = table.expired_total = 0
    source = fake_status(table)
    table.connections = table.created_total = 1000
    memory = []
    for _ in range(4 * 60):
        now_s += 60
        source.sample()
        cost = (await source.report()).prometheus
        memory.append((cost.memory_bytes_low, cost.memory_bytes_high))
        assert cost.created_series_at_most in {0, 3000}
    # No connection is replaced, so the estimate is constant.
    assert {*memory} == {(3000 * 2_500, 3000 * 7_000)}
    # Now, ten connections per minute are replaced. An expired one counts for three hours, so the
    # estimate grows for three hours.
    for minute in range(1, 6 * 60):
        now_s += 60
        table.created_total += 10
        table.expired_total += 10
        source.sample()
        cost = (await source.report()).prometheus
        assert cost.expired_series_at_most == pytest.approx(30 * min(minute, 180), abs=30)
        assert cost.memory_bytes_low == (3000 + cost.expired_series_at_most) * 2_500


async def test_page_shows_the_cost_for_prometheus(monkeypatch):
    table = FakeTable()
    source = fake_status(table)
    cost = (await source.report()).prometheus
    assert cost.series_at_most == 6
    assert (cost.created_series_at_most, cost.expired_series_at_most) == (0, 0)
    assert (cost.memory_bytes_low, cost.memory_bytes_high) == (6 * 2_500, 6 * 7_000)
    began_s = time.monotonic()
    monkeypatch.setattr(status.time, "monotonic", lambda: began_s + 1800)
    table.created_total += 200
    table.expired_total += 100
    report = await source.report()
    cost = report.prometheus
    assert (cost.created_series_at_most, cost.expired_series_at_most) == (600, 300)
    assert cost.window_seconds == pytest.approx(1800, abs=1)
    assert cost.memory_bytes_low == (6 + 300) * 2_500
    page = status_html.as_html(report, source.ranking, source.ranking.query([]), None)
    texts = shown_values((200, page), "prometheus")
    assert texts == ["300 in 30 min", "765 kB to 2.14 MB"]


async def test_cost_of_a_series_is_the_documented_cost():
    text = (ROOT / "docs" / "scaling.md").read_text()
    low, high = (f"{bytes_ / 1000:g}" for bytes_ in status.SERIES_BYTES)
    expected = f"**{low} to {high} kB of memory for each series of the last two to three hours**"
    assert expected in text


def test_expected_reasons_are_known_reasons():
    assert {*SKIP_REASONS} > status.EXPECTED_SKIPS
    assert {*SKIP_REASONS} >= {*REASONS}


async def test_ignored_reports_are_divided_into_expected_and_unexpected():
    stats, table = Stats(), FakeTable()
    table.skipped = {"late": 898, "no_network": 16, "table_full": 3, "no_uuid": 0}
    source = fake_status(table, stats=stats)
    report = await source.report()
    assert report.table.skipped_total == {"late": 898, "no_network": 16, "table_full": 3}
    page = status_html.as_html(report, source.ranking, source.ranking.query([]), None)
    assert shown_values((200, page), "table.skipped_expected_total") == ["ARP 16, repeated 898"]
    assert shown_values((200, page), "table.skipped_unexpected_total") == ["table full 3"]
    assert shown_values((200, page), "table.rejected_total") == ["3"]


def test_gaps_in_a_chart_are_marked():
    assert tiles_html._gaps([30, 20, 9.9, 5, 0]) == "M580.0 0H590.1V40H580.0Z"
    assert tiles_html._gaps([]) == ""


def test_script_and_page_share_constants():
    script = status_html.html.read("status.js")
    span_s = SAMPLES * INTERVAL_S
    assert f"SPAN_S = {span_s:g}, MAX_GAP_S = {MAX_GAP_S:g};" in script
    assert f"WIDTH = {tiles_html._WIDTH}, HEIGHT = {tiles_html._HEIGHT}" in script
    assert "MAX_TIMESTAMP_S = 2 ** 33;" in script
    assert f'"{busiest_html.BUSY}"' in script
    assert f"MAX_FILTER_CHARS = {top.MAX_FILTER_CHARS}," in script
    assert f"MIN_BAR_PERCENT = {status_html.html.MIN_BAR_PERCENT:g};" in script
    assert f"NEARLY_FULL = {NEARLY_FULL:g};" in script
    words = re.search(r"const REASONS = \{(.*?)\};", script, re.DOTALL)[1]
    assert dict(re.findall(r'(\w+): "([^"]*)"', words)) == REASONS


def test_last_error_is_shown_only_after_an_error():
    failure = {"text": "no", "timestamp_seconds": 10.0}
    assert formatted(None, "last-error", 20.0) == ""
    assert formatted(failure, "last-error", 20.0) == ", last error: no (10 s ago)"
