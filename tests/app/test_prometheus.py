"""Scrapes by a real Prometheus server."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.analyzer import FakeAnalyzer
from tests.support.documentation import blocks, queries_of
from tests.support.messages import flow, message
from tests.support.paths import DATA, ROOT
from tests.support.process import demo, running, write_config
from tests.support.prometheus import (
    ANSWER_S,
    SCRAPE_INTERVAL_S,
    ask,
    configured_prometheus,
    growing,
    needs_prometheus,
    number,
    prometheus,
    query,
)

pytestmark = pytest.mark.slow


@needs_prometheus
async def test_prometheus_scrapes_and_queries_the_demo(tmp_path: Path) -> None:
    rate = "rate(skydive_network_connection_total_bytes[1m])"
    async with (
        demo() as skyfast,
        prometheus(skyfast.url.partition("//")[2], tmp_path) as server,
        asyncio.timeout(ANSWER_S),
    ):
        connections = await growing(server, rate, 20)
        assert {*connections[0]["metric"]} >= {"initiator_ip", "target_port", "direction"}
        names = await growing(server, f"sum by (initiator_name, target_name) ({rate})", 5)
        assert {"initiator_name": "shop/api", "target_name": "shop/cache"} in [
            name["metric"] for name in names
        ]
        nodes = await growing(
            server, "sum by (node_tid) (rate(skydive_traffic_bytes_total[1m]))", 2
        )
        assert all({*node["metric"]} == {"node_tid"} for node in nodes)
        (up,) = await growing(server, 'up{job="skyfast"}', 1)
        assert number(up) == 1
        await growing(server, "skydive_network_connection_rtt_nanoseconds", 10)
        interfaces = await growing(server, "skydive_network_interface_rx_bytes", 2)
        assert {sample["metric"]["interface_name"] for sample in interfaces} >= {"v1", "v2"}
        await growing(server, "rate(process_cpu_seconds_total[1m])", 1)
        metadata = json.loads(await ask(f"{server}/api/v1/metadata"))["data"]
        assert metadata["skydive_network_connection_total_bytes"][0]["type"] == "counter"
        assert metadata["skydive_network_connection_rtt_nanoseconds"][0]["type"] == "gauge"


STANDARD = """
pipeline:
  store:
    prom_sky_con:
      naming: standard
      include_icmp: true
      interface_info: true
      labels: [initiator_ip, direction, target_ip, target_port, protocol, node_name]
      metrics: [bytes, packets, rtt, flows, start, last, tcp_out_of_order, ip_fragments]
"""


@needs_prometheus
async def test_prometheus_reads_openmetrics(tmp_path: Path) -> None:
    config = tmp_path / "prom_sky_con.yml"
    config.write_text(STANDARD)
    rate = "rate(skydive_traffic_bytes_total[1m])"
    async with (
        demo(config) as skyfast,
        prometheus(skyfast.url.partition("//")[2], tmp_path) as server,
        asyncio.timeout(ANSWER_S),
    ):
        traffic = await growing(server, rate, 2)
        assert {*traffic[0]["metric"]} == {"node_tid", "protocol", "direction", "instance", "job"}
        protocols = await growing(server, f"sum by (protocol) ({rate})", 1)
        assert all({*sample["metric"]} == {"protocol"} for sample in protocols)
        connections = await growing(server, "skydive_connection_bytes_total", 10)
        assert {sample["metric"]["node_name"] for sample in connections} >= {"v1", "eth0"}
        measured = await growing(server, "skydive_connection_rtt_seconds", 3)
        assert max(map(number, measured)) < 1
        await growing(server, "skydive_connection_flows", 5)
        ages = await growing(server, "time() - skydive_connection_start_timestamp_seconds", 5)
        assert max(map(number, ages)) < ANSWER_S
        await growing(server, "rate(skydive_capture_reports_total[1m])", 1)
        await growing(server, "skydive_interface_receive_bytes_total", 2)
        info = await growing(server, "skydive_interface_info", 2)
        assert {sample["metric"]["interface_name"] for sample in info} >= {"v1", "eth0"}
        await growing(server, "skyfast_table_flows", 1)
        (up,) = await query(server, "min_over_time(up[1m])")
        assert number(up) == 1
        # OpenMetrics adds units, and removes the suffixes _total and _info from the names of
        # families.
        metadata = json.loads(await ask(f"{server}/api/v1/metadata"))["data"]
        for name, kind, unit in (
            ("skydive_traffic_bytes", "counter", "bytes"),
            ("skydive_traffic_packets", "counter", ""),
            ("skydive_connection_rtt_seconds", "gauge", "seconds"),
            ("skydive_interface_receive_bytes", "counter", "bytes"),
            ("skydive_interface", "info", ""),
            ("skyfast_flows", "counter", ""),
        ):
            (entry,) = metadata[name]
            assert (entry["type"], entry["unit"]) == (kind, unit)


PODS = {"known": "10.244.0.1", "late": "10.244.0.2"}
FIRST_BYTES = {"known": 500, "late": 50_000_000}
BYTES = {"known": 500, "late": 1000}
"""Bytes of the first report of each pod (`FIRST_BYTES`), and of each later report (`BYTES`)."""

CONNECTION_BYTES = "skydive_network_connection_total_bytes"
NAMESPACE_BYTES = "namespace_bytes_total"
WINDOW_S = 8


def pod(name: str) -> dict[str, Any]:
    k8s = {"Namespace": "shop", "Name": name, "IP": PODS[name], "Status": "Running"}
    now_ms = int(time.time() * 1000)
    return {
        "ID": name,
        "Host": "analyzer-1",
        "Metadata": {"Type": "pod", "Manager": "k8s", "Name": name, "K8s": k8s},
        "CreatedAt": now_ms,
        "UpdatedAt": now_ms,
    }


async def report(analyzer: FakeAnalyzer, totals: dict[str, int]) -> None:
    """Report a flow to each pod every second, and add its bytes to ``totals``."""
    start_ms = last_ms = int(time.time() * 1000)
    while True:
        now_ms = int(time.time() * 1000)
        flows = []
        for uuid, (name, address) in enumerate(PODS.items(), 1):
            bytes_ = BYTES[name] if totals[name] else FIRST_BYTES[name]
            totals[name] += bytes_
            changes = {
                "Network": {"Protocol": "IPV4", "A": "192.0.2.1", "B": address},
                "Metric": {"ABBytes": totals[name]},
                "LastUpdateMetric": {"ABBytes": bytes_, "Start": last_ms, "Last": now_ms},
                "Start": start_ms,
                "Last": now_ms,
            }
            flows.append(flow(f"{uuid:x}", **changes))
        await analyzer.send(message(*flows))
        last_ms = now_ms
        await asyncio.sleep(1)


@asynccontextmanager
async def reporting(analyzer: FakeAnalyzer) -> AsyncIterator[dict[str, int]]:
    """Report flows while the block runs, and yield the bytes reported so far, by pod."""
    totals = dict.fromkeys(PODS, 0)
    task = asyncio.create_task(report(analyzer, totals))
    try:
        yield totals
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def by_label(server: str, expression: str, label: str) -> dict[str, float]:
    samples = await query(server, expression)
    return {sample["metric"].get(label, ""): number(sample) for sample in samples}


@needs_prometheus
async def test_name_that_becomes_known_after_the_first_traffic_causes_no_spike(
    tmp_path: Path,
) -> None:
    async with FakeAnalyzer() as analyzer:
        nodes = [pod("known")]
        analyzer.graph = {"Nodes": nodes, "Edges": []}
        config = write_config(
            tmp_path,
            analyzer.url,
            labels="[target_pod, node_tid]",
            metrics="[bytes]",
            direction="sum",
            views="[{prefix: namespace, labels: [target_namespace, node_tid], metrics: [bytes],"
            " direction: sum}]",
        )
        async with (
            running(config) as skyfast,
            prometheus(skyfast.url.partition("//")[2], tmp_path) as server,
            asyncio.timeout(ANSWER_S),
        ):
            await analyzer.subscriber()
            async with reporting(analyzer) as totals:
                await growing(server, f'rate({NAMESPACE_BYTES}{{target_namespace=""}}[1m])', 1)
                await asyncio.sleep(WINDOW_S)
                nodes.append(pod("late"))
                await growing(server, f'{CONNECTION_BYTES}{{target_pod="late"}}', 1)
                await asyncio.sleep(2 * WINDOW_S)
            total = sum(totals.values())
            await growing(server, f"sum({NAMESPACE_BYTES}) == {total}", 1)
            namespaces = await by_label(server, NAMESPACE_BYTES, "target_namespace")
            pods = await by_label(server, CONNECTION_BYTES, "target_pod")
            # The bytes before the first name stay in the series without a name.
            assert namespaces[""] > FIRST_BYTES["late"]
            assert namespaces[""] + pods["late"] == totals["late"]
            assert pods["known"] == totals["known"]
            assert namespaces["shop"] == pods["known"] + pods["late"]

            async def peaks(family: str, label: str) -> dict[str, float]:
                rate = f"sum by ({label}) (rate({family}[{WINDOW_S}s]))"
                return await by_label(server, f"max_over_time({rate}[1m:1s])", label)

            namespaces = await peaks(NAMESPACE_BYTES, "target_namespace")
            pods = await peaks(CONNECTION_BYTES, "target_pod")
            # A window can contain one extra report: reports and scrapes are not synchronized.
            for peak, expected in (
                (namespaces[""], BYTES["late"]),
                (namespaces["shop"], sum(BYTES.values())),
                (pods["late"], BYTES["late"]),
                (pods["known"], BYTES["known"]),
            ):
                assert 0.7 * expected < peak < 1.5 * expected


CART = "8c77788a-ddb5-5c8d-adc4-6b000e504453"
"""The identifier (``node_tid``) of a pod's interface in the recorded topology."""

TARGET_LABELS = ("namespace", "service", "pod", "container", "endpoint")
"""The labels that a ServiceMonitor adds to all series of a target."""

INFO = "skydive_network_interface_info"
JOINED = f"* on (instance, node_tid) group_left (node_pod, node_namespace) {INFO}"


async def report_at_capture_points(analyzer: FakeAnalyzer) -> None:
    """Report eight conversations per second at each of two capture points.

    The interface of the first capture point drops packets. The topology lacks the second interface.
    """
    assert analyzer.graph is not None
    (cart,) = (node for node in analyzer.graph["Nodes"] if node["Metadata"].get("TID") == CART)
    start_ms = last_ms = int(time.time() * 1000)
    for count in itertools.count(1):
        now_ms = int(time.time() * 1000)
        flows = [
            flow(
                f"{number:x}",
                Transport={"Protocol": "TCP", "A": port, "B": 443},
                NodeTID=node_tid,
                Metric={"ABBytes": 100 * count},
                LastUpdateMetric={"ABBytes": 100, "Start": last_ms, "Last": now_ms},
                Start=start_ms,
                Last=now_ms,
            )
            for number, (port, node_tid) in enumerate(
                itertools.product(range(1, 9), (CART, "unknown")), 1
            )
        ]
        cart["Metadata"]["Metric"] = {"RxDropped": count}
        await analyzer.send(message(*flows))
        last_ms = now_ms
        await asyncio.sleep(1)


@needs_prometheus
async def test_info_series_have_the_names_of_capture_points_on_every_shard(tmp_path: Path) -> None:
    """Queries in the docs lose no traffic, and labels of scrape targets do not overwrite names."""
    (text,) = (text for _, text in blocks(ROOT / "docs" / "metrics.md") if INFO in text)
    traffic_by_pod, drops_by_workload = queries_of(text)
    async with AsyncExitStack() as stack:
        analyzer = await stack.enter_async_context(FakeAnalyzer())
        (analyzer.graph,) = json.loads((DATA / "topology-containers" / "graph.json").read_bytes())
        config = write_config(tmp_path, analyzer.url, interface_info="true", interfaces_interval=1)
        targets = {}
        for index in range(2):
            # The default view causes a warning that shards overlap.
            shard = await stack.enter_async_context(
                running(config, f"--shard={index}/2", quiet=False)
            )
            labels = {label: f"target-{label}" for label in TARGET_LABELS}
            labels |= {"instance": f"skyfast-{index}", "pod": f"skyfast-{index}"}
            targets[shard.url.partition("//")[2]] = labels
            await analyzer.subscriber()
        server = await stack.enter_async_context(
            prometheus(targets, tmp_path, how="honor_labels: false, ")
        )
        reports = asyncio.create_task(report_at_capture_points(analyzer))
        stack.callback(reports.cancel)
        await stack.enter_async_context(asyncio.timeout(ANSWER_S))

        await growing(server, f'{INFO}{{node_pod!=""}}', 2)
        await growing(server, traffic_by_pod, 2)
        info = [sample["metric"] for sample in await query(server, INFO)]
        points = sorted((labels["instance"], labels["node_tid"]) for labels in info)
        assert points == [
            (instance, node_tid)
            for instance in ("skyfast-0", "skyfast-1")
            for node_tid in (CART, "unknown")
        ]
        for labels in info:
            assert not [name for name in labels if name.startswith("exported_")]
            assert labels["namespace"] == "target-namespace"
            assert labels["service"] == "target-service"
            assert labels["pod"] == labels["instance"]
            if labels["node_tid"] == CART:
                assert labels["node_namespace"] == "shop"
                assert labels["node_pod"] == "cart-5c8d7f9b4-abcde"
                assert labels["node_workload"] == "cart"
                assert (labels["interface_name"], labels["host"]) == ("eth0", "ag1")

        by_pod = {
            (labels.get("node_namespace"), labels.get("node_pod"))
            for labels in (sample["metric"] for sample in await query(server, traffic_by_pod))
        }
        assert by_pod == {("shop", "cart-5c8d7f9b4-abcde"), (None, None)}
        for joined, series in (
            (traffic_by_pod, "rate(skydive_traffic_bytes_total[5m])"),
            (f"{CONNECTION_BYTES} {JOINED}", CONNECTION_BYTES),
            (f"rate({CONNECTION_BYTES}[1m]) {JOINED}", f"rate({CONNECTION_BYTES}[1m])"),
        ):
            (ratio,) = await query(server, f"sum({joined}) / sum({series})")
            assert number(ratio) == pytest.approx(1)
        (drops,) = await growing(server, drops_by_workload, 1)
        assert drops["metric"] == {"node_namespace": "shop", "node_workload": "cart"}


@needs_prometheus
async def test_parts_are_scraped_as_documented(tmp_path: Path) -> None:
    """The targets together have all series. No label shows which part a series comes from."""
    (text,) = (text for _, text in blocks(ROOT / "docs" / "scaling.md") if "__param_part" in text)
    async with FakeAnalyzer() as analyzer:
        config = write_config(tmp_path, analyzer.url)
        async with running(config) as skyfast, asyncio.timeout(ANSWER_S):
            await analyzer.subscriber()
            for port in range(200):
                ends = {"Protocol": "TCP", "A": 40_000 + port, "B": 443}
                await analyzer.send(message(flow(f"{port + 1:x}", Transport=ends)))
            await skyfast.until(lambda metrics: metrics["skyfast_connections"] == 200)
            text = text.replace("skyfast.example:9100", skyfast.url.partition("//")[2])
            for documented in ("60s", "30s"):
                text = text.replace(documented, f"{SCRAPE_INTERVAL_S}s")
            async with configured_prometheus(text, tmp_path) as server:
                up = await growing(server, "up", 4)
                assert sorted(sample["metric"]["part"] for sample in up) == [
                    f"{part}/4" for part in range(4)
                ]
                await growing(server, f"count({CONNECTION_BYTES}) == 400", 1)
                samples = await query(server, CONNECTION_BYTES)
                (labels,) = {tuple(sorted(sample["metric"])) for sample in samples}
                assert "part" not in labels
                scraped = await query(server, "scrape_samples_scraped")
                assert all(number(sample) > 0.15 * sum(map(number, scraped)) for sample in scraped)
                # A scrape of one target must not mark the series of other targets as stale.
                await asyncio.sleep(3 * SCRAPE_INTERVAL_S)
                assert not await query(server, f"count_over_time({CONNECTION_BYTES}[1m]) < 3")
                assert len(await query(server, CONNECTION_BYTES)) == 400
