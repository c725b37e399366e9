"""Runs Debian's Prometheus and promtool for tests, and Prometheus 3 if it is installed."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
MUST_RUN = bool(os.environ.get("CI"))
START_S = 30.0


def _prometheus_3() -> str | None:
    if path := os.environ.get("PROMETHEUS_3"):
        return path
    if PROMETHEUS is None:
        return None
    version = subprocess.run(
        [PROMETHEUS, "--version"], capture_output=True, text=True, timeout=START_S, check=True
    )
    is_newer = re.search(r"version ([3-9]|\d\d)\.", version.stdout + version.stderr)
    return PROMETHEUS if is_newer else None


PROMETHEUS_3 = _prometheus_3()
ANSWER_S = 60.0
SCRAPE_INTERVAL_S = 1

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None and not MUST_RUN, reason="promtool is not installed (Debian: prometheus)"
)

needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None and not MUST_RUN, reason="prometheus is not installed (Debian: prometheus)"
)

needs_prometheus_3 = pytest.mark.skipif(
    PROMETHEUS_3 is None,
    reason="there is no Prometheus 3: PROMETHEUS_3 is not set (see docs/testing.md)",
)


def lint(page: bytes) -> list[str]:
    """Return the problems that promtool finds, one per line."""
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
async def prometheus(
    target: str | Mapping[str, Mapping[str, str]], directory: Path, *, how: str = ""
) -> AsyncIterator[str]:
    """Run a Prometheus that scrapes ``target``, and yield its URL.

    If ``target`` is a mapping, it has the labels of several targets. ``how`` is YAML with further
    settings of the scrape job, each followed by a comma.
    """
    labels_of = {target: {}} if isinstance(target, str) else target
    targets = [{"targets": [name], "labels": {**labels}} for name, labels in labels_of.items()]
    config = (
        f"global: {{scrape_interval: {SCRAPE_INTERVAL_S}s}}\n"
        f"scrape_configs: [{{job_name: skyfast, {how}"
        f"static_configs: {json.dumps(targets)}}}]\n"
    )
    async with configured_prometheus(config, directory) as url:
        yield url


@asynccontextmanager
async def configured_prometheus(
    text: str, directory: Path, *arguments: str, program: str | None = PROMETHEUS
) -> AsyncIterator[str]:
    assert program is not None
    config = directory / "prometheus.yml"
    config.write_text(text)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        async with asyncio.timeout(START_S):
            await until_ready(process, f"{url}/-/ready")
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def until_ready(process: asyncio.subprocess.Process, url: str) -> None:
    """Wait until a server answers, and fail if its process ends first."""
    while True:
        try:
            await ask(url)
            return
        except OSError:
            assert process.returncode is None
            await asyncio.sleep(0.1)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


async def ask(url: str) -> bytes:
    def get() -> bytes:
        with urllib.request.urlopen(url, timeout=10) as response:
            body: bytes = response.read()
            return body

    return await asyncio.to_thread(get)


async def query(server: str, expression: str) -> list[dict[str, Any]]:
    url = f"{server}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    response = json.loads(await ask(url))
    assert response["status"] == "success"
    result: list[dict[str, Any]] = response["data"]["result"]
    return result


def number(sample: dict[str, Any]) -> float:
    return float(sample["value"][1])


async def growing(server: str, expression: str, count: int) -> list[dict[str, Any]]:
    """Wait until ``expression`` has ``count`` samples above zero, and return them."""
    while True:
        samples = [sample for sample in await query(server, expression) if number(sample) > 0]
        if len(samples) >= count:
            return samples
        await asyncio.sleep(0.5)
