"""Faults of scrapers, which must not affect other clients."""

import asyncio
import re
import time
from pathlib import Path

from tests.faults.trial import Reason, Trial, concurrent_trial, start_trial

MANY = 20_000
"""The page of so many flows is larger than the socket buffers."""
DEADLINE_S = 3
PAGE = (
    b"GET /metrics HTTP/1.1\r\nHost: skyfast\r\n"
    b"X-Prometheus-Scrape-Timeout-Seconds: %d\r\n\r\n" % DEADLINE_S
)
CLIENTS = 1000
LIMIT = 256
"""The value of ``web.max_connections``."""
BUFFER_BYTES = 4096


def failed(reason: str) -> Reason:
    return ("skyfast_scrapes_failed_total", reason)


async def connected(trial: Trial) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", trial.port, limit=BUFFER_BYTES)


@concurrent_trial
async def test_scraper_reads_one_byte_per_second(directory: Path) -> None:
    async with start_trial(directory, flows=MANY) as trial:
        reader, writer = await connected(trial)
        writer.write(PAGE)
        start_s = time.monotonic()
        served = asyncio.create_task(trial.wait_for_page())
        while failed("deadline") not in await trial.counted():
            assert await reader.read(1)
            await asyncio.sleep(1)
        assert DEADLINE_S <= time.monotonic() - start_s < 3 * DEADLINE_S
        await served
        writer.close()
        await trial.has_recovered(
            counted={failed("deadline"): 1},
            logged=[f"scrape from 127.0.0.1 timed out after {DEADLINE_S} s"],
        )


@concurrent_trial
async def test_scraper_disconnects_during_the_page(directory: Path) -> None:
    async with start_trial(directory, flows=MANY) as trial:
        for _ in range(5):
            reader, writer = await connected(trial)
            writer.write(PAGE)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            await reader.readexactly(100_000)
            writer.close()
        await trial.has_recovered(counted={failed("disconnected"): 5})


@concurrent_trial
async def test_client_sends_endless_headers(directory: Path) -> None:
    async with start_trial(directory) as trial:
        _, writer = await connected(trial)
        sent = 0
        try:
            writer.write(b"GET /metrics HTTP/1.1\r\n")
            while sent < 64 << 20:
                writer.write(b"X-More: more\r\n" * 1000)
                await writer.drain()
                sent += 14_000
        except ConnectionError:
            pass
        assert sent < 16 << 20
        writer.close()
        dribbling = asyncio.create_task(dribble(trial))
        await trial.wait_for_page()
        assert await dribbling < 10
        await trial.has_recovered(counted={})


async def dribble(trial: Trial) -> float:
    """Send a header byte by byte, and return the seconds until the connection ends."""
    reader, writer = await connected(trial)
    start_s = time.monotonic()
    ended = asyncio.create_task(reader.read())
    writer.write(b"GET /metrics HTTP/1.1\r\n")
    while not ended.done():
        writer.write(b"X")
        await asyncio.sleep(0.1)
        assert time.monotonic() - start_s < 30
    writer.close()
    return time.monotonic() - start_s


@concurrent_trial
async def test_client_opens_a_thousand_connections(directory: Path) -> None:
    async with start_trial(directory) as trial:
        clients = [await connected(trial) for _ in range(CLIENTS)]
        # The server closes the connections that have been idle longest, so that new requests are
        # served.
        await trial.report()
        await trial.wait_for_page()
        rejected = ("skyfast_http_connections_rejected_total", "")
        counts = await trial.counted()
        assert counts.keys() == {rejected}
        assert counts[rejected] >= CLIENTS - LIMIT
        for _, writer in clients:
            writer.close()
        counts = await trial.counted()
        await trial.has_recovered(
            counted=counts,
            logged=[
                f"closed: {LIMIT} connections are open, which is the maximum (web.max_connections)"
            ],
        )
        assert not [line for line in trial.skyfast.log if re.search(r" ERROR |Traceback", line)]
