"""Scrapes by a real Prometheus server."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.process import demo
from tests.support.prometheus import (
    ANSWER_S,
    ask,
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
        connections = await growing(server, rate, 100)
        assert {*connections[0]["metric"]} >= {"initiator_ip", "target_port", "direction"}
        nodes = await growing(server, f"sum by (node_tid) ({rate})", 2)
        assert all({*node["metric"]} == {"node_tid"} for node in nodes)
        (up,) = await growing(server, 'up{job="skyfast"}', 1)
        assert number(up) == 1
        await growing(server, "skydive_network_connection_rtt_nanoseconds", 100)
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
        assert {sample["metric"]["node_name"] for sample in connections} >= {"v2"}
        measured = await growing(server, "skydive_connection_rtt_seconds", 3)
        assert max(map(number, measured)) < 1
        await growing(server, "skydive_connection_flows", 5)
        ages = await growing(server, "time() - skydive_connection_start_timestamp_seconds", 5)
        assert max(map(number, ages)) < ANSWER_S
        await growing(server, "rate(skydive_capture_reports_total[1m])", 1)
        await growing(server, "skydive_interface_receive_bytes_total", 2)
        await growing(server, "skyfast_table_flows", 1)
        (up,) = await query(server, "min_over_time(up[1m])")
        assert number(up) == 1
        # Only OpenMetrics has units, and family names without _total.
        metadata = json.loads(await ask(f"{server}/api/v1/metadata"))["data"]
        for name, kind, unit in (
            ("skydive_traffic_bytes", "counter", "bytes"),
            ("skydive_traffic_packets", "counter", ""),
            ("skydive_connection_rtt_seconds", "gauge", "seconds"),
            ("skydive_interface_receive_bytes", "counter", "bytes"),
            ("skyfast_flows", "counter", ""),
        ):
            (entry,) = metadata[name]
            assert (entry["type"], entry["unit"]) == (kind, unit)
