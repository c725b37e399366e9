"""Helpers for tests that run an app in the process of the test."""

import asyncio
from typing import Any

from skyfast.app import App
from skyfast.web.exposition import Part
from tests.support.waiting import WAIT_S

BYTES = "skydive_network_connection_total_bytes{"
"""The start of each sample with the bytes of a connection."""


async def rows(app: App, family: str = BYTES) -> dict[str, str]:
    """Scrape the app, and return the family's values by label text."""
    async with app.exposition.stream(Part.FLOWS, gzip=False) as page:
        text = b"".join([chunk async for chunk in page]).decode()
    lines = [line for line in text.splitlines() if line.startswith(family)]
    return {line.partition("{")[2].rpartition("}")[0]: line.rpartition(" ")[2] for line in lines}


async def until_rows(app: App, expected: dict[str, str], family: str = BYTES) -> None:
    found: dict[str, str] = {}
    try:
        async with asyncio.timeout(WAIT_S):
            while (found := await rows(app, family)) != expected:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError:
        assert found == expected


def between(a: str, b: str) -> dict[str, Any]:
    """Return the ``Network`` of a flow from ``a`` to ``b``."""
    return {"Network": {"Protocol": "IPV4", "A": a, "B": b}}
