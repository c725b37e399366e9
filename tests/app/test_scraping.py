"""The scrape recipes in ``docs/scraping.md``, run by the programs that they configure."""

import asyncio
from pathlib import Path

import pytest

from tests.support import tools
from tests.support.documentation import blocks
from tests.support.paths import ROOT
from tests.support.process import demo
from tests.support.prometheus import ANSWER_S, free_port, growing
from tests.support.victoria_metrics import needs_victoria_metrics, process, victoria_metrics

PAGE = ROOT / "docs" / "scraping.md"
SKYFAST = "skyfast.example:9100"

pytestmark = [pytest.mark.slow, needs_victoria_metrics]


def timeout_for_samples() -> asyncio.Timeout:
    return asyncio.timeout(ANSWER_S)


def recipe(name: str) -> str:
    (text,) = (text for _, text in blocks(PAGE) if text.startswith(f"# {name}\n"))
    return text


async def assert_arrives(server: str) -> None:
    """Wait for the series that the dashboard and the alerts need."""
    for series in (
        'skydive_network_connection_total_bytes{job="skyfast"}',
        "skydive_traffic_bytes_total",
        "skydive_network_connection_rtt_nanoseconds",
        "skyfast_connections",
        "skyfast_report_delivery_seconds_bucket",
        'up{job="skyfast"}',
    ):
        assert await growing(server, series, 1)


def adapted(text: str, skyfast: str, replacements: dict[str, str]) -> str:
    """Return a recipe with local addresses and a short interval."""
    for old, new in {SKYFAST: skyfast, "scrape_interval: 15s": "scrape_interval: 1s"}.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    for old, new in replacements.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


async def test_documented_vmagent_sends_all_series_to_the_server(tmp_path: Path) -> None:
    (command,) = (text for _, text in blocks(PAGE) if text.startswith("vmagent "))
    program, *options = command.replace("\\\n", " ").split()
    async with demo() as skyfast, victoria_metrics(tmp_path) as server, timeout_for_samples():
        config = tmp_path / "vmagent.yml"
        config.write_text(adapted(recipe("vmagent.yml"), skyfast.url.partition("//")[2], {}))
        url = "http://victoria-metrics.example:8428"
        adapted_options = [
            option.replace("=vmagent.yml", f"={config}").replace(url, server) for option in options
        ]
        local = (
            f"-httpListenAddr=127.0.0.1:{free_port()}",
            f"-remoteWrite.tmpDataPath={tmp_path}/q",
        )
        async with process((program, *adapted_options, *local)):
            await assert_arrives(server)


@pytest.mark.nightly
@tools.needs("otelcol", target="otelcol")
async def test_documented_collector_sends_all_series_to_the_server(tmp_path: Path) -> None:
    async with demo() as skyfast, victoria_metrics(tmp_path) as server, timeout_for_samples():
        config = tmp_path / "otelcol.yml"
        config.write_text(
            adapted(
                recipe("otelcol.yml"),
                skyfast.url.partition("//")[2],
                {"http://prometheus.example:9090": server},
            )
        )
        tools.output("otelcol", "validate", f"--config={config}")
        async with process((tools.path("otelcol"), f"--config={config}")):
            await assert_arrives(server)
