"""What Prometheus itself makes of the pages: a server that scrapes them, and promtool's lint."""

import asyncio
import json
import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import demo

pytestmark = pytest.mark.slow

PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
MUST_RUN = bool(os.environ.get("CI"))
START_S = 30.0
ANSWER_S = 60.0
SCRAPE_INTERVAL_S = 1

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None and not MUST_RUN, reason="promtool is not installed (Debian: prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None and not MUST_RUN, reason="prometheus is not installed (Debian: prometheus)"
)


def lint(page: bytes) -> list[str]:
    """Return what promtool objects to in a page, a line an objection."""
    assert PROMTOOL is not None
    process = subprocess.run(
        [PROMTOOL, "check", "metrics"],
        input=page,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=ANSWER_S,
        check=False,
    )
    return process.stdout.decode().splitlines()


@asynccontextmanager
async def prometheus(target: str, directory: Path, *, how: str = "") -> AsyncIterator[str]:
    """Run a Prometheus that scrapes ``target``, also by the settings ``how``; yield its address."""
    assert PROMETHEUS is not None
    config = directory / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: {SCRAPE_INTERVAL_S}s}}\n"
        f"scrape_configs: [{{job_name: skyfast, {how}"
        f"static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    process = await asyncio.create_subprocess_exec(
        PROMETHEUS,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        async with asyncio.timeout(START_S):
            while True:
                try:
                    await ask(f"{url}/-/ready")
                    break
                except OSError:
                    assert process.returncode is None
                    await asyncio.sleep(0.1)
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def ask(url: str) -> bytes:
    def get() -> bytes:
        with urllib.request.urlopen(url, timeout=10) as answer:
            body: bytes = answer.read()
            return body

    return await asyncio.to_thread(get)


async def query(server: str, expression: str) -> list[dict[str, Any]]:
    """Return what the HTTP API answers to an instant query."""
    url = f"{server}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    answer = json.loads(await ask(url))
    assert answer["status"] == "success"
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def number(sample: dict[str, Any]) -> float:
    return float(sample["value"][1])


async def growing(server: str, expression: str, count: int) -> list[dict[str, Any]]:
    """Wait until so many series of ``expression`` are above zero, and return those."""
    while True:
        found = [sample for sample in await query(server, expression) if number(sample) > 0]
        if len(found) >= count:
            return found
        await asyncio.sleep(0.5)


@needs_prometheus
async def test_a_prometheus_scrapes_and_answers(tmp_path: Path) -> None:
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
        kinds = json.loads(await ask(f"{server}/api/v1/metadata"))["data"]
        assert kinds["skydive_network_connection_total_bytes"][0]["type"] == "counter"
        assert kinds["skydive_network_connection_rtt_nanoseconds"][0]["type"] == "gauge"


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
async def test_a_prometheus_reads_openmetrics(tmp_path: Path) -> None:
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
        # The other format has no units, and calls families as it does their samples.
        kinds = json.loads(await ask(f"{server}/api/v1/metadata"))["data"]
        for name, kind, unit in (
            ("skydive_traffic_bytes", "counter", "bytes"),
            ("skydive_traffic_packets", "counter", ""),
            ("skydive_connection_rtt_seconds", "gauge", "seconds"),
            ("skydive_interface_receive_bytes", "counter", "bytes"),
            ("skyfast_flows", "counter", ""),
        ):
            (found,) = kinds[name]
            assert (found["type"], found["unit"]) == (kind, unit)
