"""Runs Debian's VictoriaMetrics for tests."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support import tools
from tests.support.prometheus import START_S, free_port, until_ready

needs_victoria_metrics = pytest.mark.skipif(
    shutil.which("vmagent") is None and not tools.MUST_RUN,
    reason="vmagent is not installed (Debian: victoria-metrics)",
)


@asynccontextmanager
async def process(command: Sequence[str | Path]) -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.terminate()
        await started.wait()


@asynccontextmanager
async def victoria_metrics(directory: Path, *, scraping: str = "") -> AsyncIterator[str]:
    """Run a VictoriaMetrics that stores remote writes, and yield its URL.

    ``scraping`` is an optional scrape configuration.
    """
    address = f"127.0.0.1:{free_port()}"
    command = [
        *("victoria-metrics", f"-httpListenAddr={address}", "-search.latencyOffset=1ms"),
        f"-storageDataPath={directory}/victoria-metrics",
    ]
    if scraping:
        config = directory / "victoria-metrics.yml"
        config.write_text(scraping)
        command += [f"-promscrape.config={config}", "-promscrape.maxScrapeSize=256MB"]
    async with process(command) as server:
        async with asyncio.timeout(START_S):
            await until_ready(server, f"http://{address}/health")
        yield f"http://{address}"
