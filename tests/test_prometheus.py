"""What Prometheus itself thinks of the pages: promtool's lint, and a server that scrapes them."""

import asyncio
import json
import os
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.process import demo

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

# The names that dashboards depend on: a counter without _total, units that are no base units or
# do not stand at the end, and what promtool makes of them.
INHERITED = re.compile(r"^skydive_network_(connection|interface)_\w+ ")


@needs_promtool
async def test_promtool_objects_to_nothing_but_inherited_names() -> None:
    async with demo() as skyfast:
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] > 0)
        await skyfast.until(lambda metrics: metrics["skyfast_interfaces"] > 0)
        page = await skyfast.get("/metrics")
    assert PROMTOOL is not None
    promtool = await asyncio.create_subprocess_exec(
        *(PROMTOOL, "check", "metrics"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    complaints = (await promtool.communicate(page))[0].decode().splitlines()
    assert complaints, "the inherited names are expected to be objected to"
    assert [line for line in complaints if not INHERITED.match(line)] == []


@asynccontextmanager
async def prometheus(target: str, directory: Path) -> AsyncIterator[str]:
    """Run a Prometheus that scrapes ``target``; yield its address."""
    assert PROMETHEUS is not None
    config = directory / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: {SCRAPE_INTERVAL_S}s}}\n"
        f"scrape_configs: [{{job_name: skyfast, static_configs: [{{targets: ['{target}']}}]}}]\n"
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
