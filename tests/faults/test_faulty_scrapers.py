"""What scrapers do wrong, and that others are served all the while."""

import asyncio
import re
import time
from pathlib import Path

from tests.faults.trial import Reason, Trial, beside_the_others, trial

MANY = 20_000
"""Connections whose page is more than all buffers on its way hold."""
DEADLINE_S = 3
PAGE = (
    b"GET /metrics HTTP/1.1\r\nHost: skyfast\r\n"
    b"X-Prometheus-Scrape-Timeout-Seconds: %d\r\n\r\n" % DEADLINE_S
)
CROWD = 1000
LIMIT = 256
"""``web.max_connections``."""
BUFFER_BYTES = 4096


def failed(reason: str) -> Reason:
    return ("skyfast_scrapes_failed_total", reason)


async def connected(on_trial: Trial) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", on_trial.port, limit=BUFFER_BYTES)


@beside_the_others
async def test_they_read_one_byte_a_second(directory: Path) -> None:
    async with trial(directory, flows=MANY) as on_trial:
        reader, writer = await connected(on_trial)
        writer.write(PAGE)
        began_s = time.monotonic()
        served = asyncio.create_task(on_trial.has_page())
        while failed("deadline") not in await on_trial.counted():
            assert await reader.read(1)
            await asyncio.sleep(1)
        assert DEADLINE_S <= time.monotonic() - began_s < 3 * DEADLINE_S
        await served
        writer.close()
        await on_trial.has_recovered(
            counted={failed("deadline"): 1},
            logged=[f"scrape from 127.0.0.1 timed out after {DEADLINE_S} s"],
        )


@beside_the_others
async def test_they_leave_half_way(directory: Path) -> None:
    async with trial(directory, flows=MANY) as on_trial:
        for _ in range(5):
            reader, writer = await connected(on_trial)
            writer.write(PAGE)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            await reader.readexactly(100_000)
            writer.close()
        await on_trial.has_recovered(counted={failed("disconnected"): 5})


@beside_the_others
async def test_their_headers_have_no_end(directory: Path) -> None:
    async with trial(directory) as on_trial:
        _, writer = await connected(on_trial)
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
        dribbling = asyncio.create_task(dribble(on_trial))
        await on_trial.has_page()
        assert await dribbling < 10
        await on_trial.has_recovered(counted={})


async def dribble(on_trial: Trial) -> float:
    """Send a head byte by byte; return after how many seconds the connection ends."""
    reader, writer = await connected(on_trial)
    began_s = time.monotonic()
    ended = asyncio.create_task(reader.read())
    writer.write(b"GET /metrics HTTP/1.1\r\n")
    while not ended.done():
        writer.write(b"X")
        await asyncio.sleep(0.1)
        assert time.monotonic() - began_s < 30
    writer.close()
    return time.monotonic() - began_s


@beside_the_others
async def test_they_open_a_thousand_connections(directory: Path) -> None:
    async with trial(directory) as on_trial:
        crowd = [await connected(on_trial) for _ in range(CROWD)]
        # Those who ask find room: the idle ones that wait longest are closed.
        await on_trial.report()
        await on_trial.has_page()
        rejected = ("skyfast_http_connections_rejected_total", "")
        counts = await on_trial.counted()
        assert counts.keys() == {rejected}
        assert counts[rejected] >= CROWD - LIMIT
        for _, writer in crowd:
            writer.close()
        counts = await on_trial.counted()
        await on_trial.has_recovered(
            counted=counts, logged=[f"closed: {LIMIT} connections are open (web.max_connections)"]
        )
        assert not [line for line in on_trial.skyfast.log if re.search(r" ERROR |Traceback", line)]
