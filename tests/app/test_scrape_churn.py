"""Metrics servers and curl scrape compressed pages during an hour of churn, in virtual time."""

import asyncio
import gzip
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from skyfast.app import App
from skyfast.config import loader
from skyfast.pipeline import Shared
from skyfast.runtime.clock import Clock
from skyfast.web.exposition import DIRECT_CONNECTIONS
from tests.support import tools
from tests.support.analyzer import FakeAnalyzer
from tests.support.load_generator import LoadGenerator
from tests.support.prometheus import PROMETHEUS, configured_prometheus, query
from tests.support.victoria_metrics import needs_victoria_metrics, victoria_metrics

pytestmark = pytest.mark.slow

HOUR_S = 3_600
STEP_S, REPORT_S = 15, 60
TICK_S = 5
"""A tick of the virtual clock. skyfast would treat a longer tick as a pause."""
START_S = 1_700_000_000
STEP_REAL_S = 0.5
"""The real time that passes while the virtual time advances by `STEP_S`."""
INTERVAL_S = 3
"""The interval and the timeout of scrapes, in real time. A busy machine needs a long timeout."""
NEW_CONVERSATIONS = 400
WARM_STEPS = 5
"""Number of steps after which there are always more than `DIRECT_CONNECTIONS` connections."""
CURL_STEPS = 10
"""Number of steps between two requests by curl."""
CURL = shutil.which("curl")

CONFIG = """
pipeline:
  subscriber: {urls: [%s]}
  store:
    prom_sky_con:
      listen_address: 127.0.0.1
      port: 0
      naming: standard
      start_timestamps: true
      labels: [initiator_ip, target_ip, initiator_port, target_port, application, direction,
               node_tid]
      views:
        - {prefix: nodes, labels: [node_tid, direction], metrics: [bytes, new_flows,
           {name: rtt, type: histogram, buckets: [0.001, 0.01, 0.1]}]}
"""
SCRAPING = """
global: {scrape_interval: %ds, scrape_timeout: %ds}
scrape_configs:
  - {job_name: skyfast, static_configs: [{targets: ["%s"]}]}
"""
FORMATS = {
    0: "text/plain",
    1: "application/openmetrics-text;version=1.0.0",
    2: "application/openmetrics-text;version=2.0.0",
}


class Network:
    """The virtual clock, and the flows that the analyzer reports."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.connections: list[int] = []
        self._load = LoadGenerator(step_s=STEP_S, report_s=REPORT_S, start_s=START_S)

    def wall(self) -> float:
        return START_S + self.seconds

    async def step(self, app: App, analyzer: FakeAnalyzer) -> None:
        """Advance the virtual time by `STEP_S`, in `STEP_REAL_S` of real time."""
        end = asyncio.sleep(STEP_REAL_S)
        for _ in range(0, STEP_S, TICK_S):
            self.seconds += TICK_S
            app.clock.now()
        for message in self._load.step(NEW_CONVERSATIONS):
            await analyzer.send(message)
        await end
        self.connections.append(app.exposition.source.table.connections)


def curl(url: str, openmetrics: int) -> None:
    """Check that curl can decompress a compressed page."""
    assert CURL is not None
    options = ("--silent", "--show-error", "--fail", "-H", f"Accept: {FORMATS[openmetrics]}", url)
    page = subprocess.run([CURL, "--compressed", *options], capture_output=True, check=True).stdout
    raw = subprocess.run(
        [CURL, "-H", "Accept-Encoding: gzip", *options], capture_output=True, check=True
    ).stdout
    marker = (b"# TYPE ", b"_created{", b" st@")[openmetrics]
    for text in (page, gzip.decompress(raw)):
        assert text.endswith(b"\n# EOF\n" if openmetrics else b"\n")
        assert text.count(marker) > 10
        assert text.count(b"\nskydive_connection_bytes_total{") > DIRECT_CONNECTIONS


async def scrapes(server: str) -> tuple[int, int]:
    """Return the number of attempted scrapes, and the number of failed ones."""
    values = [value for _, value in await samples(server, "up")]
    return len(values), sum(value != "1" for value in values)


async def samples(server: str, name: str) -> list[Any]:
    (series,) = await query(server, f'{name}{{job="skyfast"}}[1h]')
    values: list[Any] = series["values"]
    return values


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()

    def shared(**options: Any) -> Shared:
        return Shared(**options, wall_clock=network.wall)

    with (
        mock.patch("skyfast.app.Clock", lambda: Clock(lambda: network.seconds)),
        mock.patch("skyfast.app.Shared", shared),
    ):
        yield network


@needs_victoria_metrics
@pytest.mark.skipif(CURL is None and not tools.MUST_RUN, reason="curl is not installed")
async def test_no_scrape_fails_in_an_hour_of_churn(tmp_path: Path, network: Network) -> None:
    """VictoriaMetrics reads the text format. Prometheus, if installed, reads OpenMetrics 1.0."""
    async with FakeAnalyzer() as analyzer:
        config = loader.parse(CONFIG % analyzer.url, {}, source="churn.yml")
        app = App(config, load=lambda: config)
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(app.run(stopping))
            try:
                await analyzer.subscriber()
                for _ in range(WARM_STEPS):
                    await network.step(app, analyzer)
                network.connections.clear()
                await scraped(app, analyzer, network, tmp_path)
            finally:
                stopping.set()
    assert min(network.connections) > DIRECT_CONNECTIONS
    table = app.exposition.source.table
    assert table.expired_total > 10 * max(network.connections)  # type: ignore[attr-defined]
    assert sum(app.stats.scrape.failures.values()) == 0


async def scraped(app: App, analyzer: FakeAnalyzer, network: Network, directory: Path) -> None:
    """Check that no scrape fails in an hour of virtual time."""
    target = f"127.0.0.1:{app.web.port}"
    scraping = SCRAPING % (INTERVAL_S, INTERVAL_S, target)
    async with victoria_metrics(directory, scraping=scraping) as server:
        if PROMETHEUS is None:
            await churn(app, analyzer, network, f"http://{target}/metrics")
        else:
            async with configured_prometheus(scraping, directory) as prometheus:
                await churn(app, analyzer, network, f"http://{target}/metrics")
                await check(prometheus)
        await check(server)


async def churn(app: App, analyzer: FakeAnalyzer, network: Network, url: str) -> None:
    for step in range(HOUR_S // STEP_S):
        await network.step(app, analyzer)
        if step % CURL_STEPS == 0:
            await asyncio.to_thread(curl, url, step // CURL_STEPS % len(FORMATS))


async def check(server: str) -> None:
    count, failed = await scrapes(server)
    assert failed == 0
    assert count > 0.8 * HOUR_S / STEP_S * STEP_REAL_S / INTERVAL_S
    (*_, (_, series)) = await samples(server, "scrape_samples_scraped")
    assert int(json.loads(series)) > 5 * DIRECT_CONNECTIONS
