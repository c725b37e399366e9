"""Faults of analyzers, from which skyfast must recover."""

import asyncio
import contextlib
import gzip
import os
import signal
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.faults.trial import (
    MEMORY_BYTES,
    POLL_S,
    RECOVERY_S,
    SOME,
    Reason,
    Trial,
    concurrent_trial,
    flow,
    messages,
    start_trial,
)
from tests.support.analyzer import (
    HUGE_BYTES,
    SPACES,
    TEXT,
    FakeAnalyzer,
    FakeResponse,
    Fault,
    frame,
)

SOCKET_BYTES = 64 << 20
"""Larger than the socket buffers of a connection in Linux."""

BURST_BYTES = 300_000_000
TOPOLOGY = {"prom_sky_con": {"interfaces_interval": 1}}
SILENCE = {"subscriber": {"silence_timeout": 2}}


def reconnects(reason: str) -> Reason:
    return ("skyfast_reconnects_total", reason)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(RECOVERY_S):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(POLL_S)


def skipped(reason: str) -> Reason:
    return ("skyfast_flows_skipped_total", reason)


@concurrent_trial
async def test_analyzer_hangs_after_the_upgrade(directory: Path) -> None:
    async with start_trial(directory) as trial:
        trial.subscriber.freeze()
        await trial.has_recovered(
            counted={reconnects("timeout"): 1}, logged=["no response in time"]
        )


@concurrent_trial
async def test_analyzer_disconnects_slow_reader_during_flood(directory: Path) -> None:
    async with start_trial(directory) as trial:
        block = b"".join(frame(TEXT, message) for message in trial.next_reports())
        subscriber = trial.subscriber
        os.kill(trial.pid, signal.SIGSTOP)
        with contextlib.suppress(ConnectionError):
            while True:
                await subscriber.send_raw(block)
        os.kill(trial.pid, signal.SIGCONT)
        assert subscriber.was_dropped
        await trial.has_recovered(
            counted={reconnects("overload"): 1, skipped("late"): SOME},
            logged=["dropped by the analyzer: skyfast read too slowly: the analyzer waited 1"],
        )


@concurrent_trial
async def test_analyzer_floods_briefly(directory: Path) -> None:
    async with start_trial(directory, flows=2000) as trial:
        block = b"".join(frame(TEXT, message) for message in trial.next_reports())
        blocks = BURST_BYTES // len(block)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(blocks):
                await trial.subscriber.send_raw(block)
                sent += 1

        os.kill(trial.pid, signal.SIGSTOP)
        flooding = asyncio.create_task(flood())
        await asyncio.sleep(1.5)
        assert 0 < sent * len(block) < SOCKET_BYTES, "there is no backpressure"
        os.kill(trial.pid, signal.SIGCONT)
        max_bytes = 0
        while not flooding.done():
            max_bytes = max(max_bytes, trial.resident_bytes())
            await asyncio.sleep(0.01)
        await flooding
        await trial.wait_for_page()
        assert max_bytes < trial.base.resident_bytes + MEMORY_BYTES
        await trial.has_recovered(counted={skipped("late"): (blocks - 1) * 2000})


@concurrent_trial
async def test_analyzer_hangs_before_the_upgrade(directory: Path) -> None:
    async with start_trial(directory) as trial:
        trial.analyzer.script.append(Fault.HANG)
        await trial.subscriber.close()
        await trial.has_recovered(
            counted={reconnects("closed"): 1, reconnects("timeout"): 1},
            logged=["no response in time: timed out during opening handshake"],
        )


@concurrent_trial
async def test_analyzer_refuses_connections(directory: Path) -> None:
    async with start_trial(directory) as trial:
        await trial.analyzer.stop()
        await trial.wait_for_counts(reconnects("refused"))
        await trial.wait_for_up(0)
        assert await trial.status("/-/ready") == 503
        assert await trial.status("/-/healthy") == 200
        await trial.wait_for_page()
        await trial.analyzer.start()
        await trial.has_recovered(
            counted={reconnects("closed"): 1, reconnects("refused"): SOME},
            logged=["connection closed", "cannot connect"],
        )


@concurrent_trial
async def test_one_analyzer_and_then_both_analyzers_refuse_connections(directory: Path) -> None:
    async with FakeAnalyzer() as other, start_trial(directory, others=[other]) as trial:
        await other.subscriber()
        up = f'skyfast_up{{analyzer="{other.name}"}}'
        await other.stop()
        await trial.wait_for_counts(reconnects("refused"))
        await trial.until(lambda metrics: metrics[up] == 0)
        assert await trial.status("/-/ready") == 200
        await trial.report()
        await trial.wait_for_page()
        await trial.analyzer.stop()
        await trial.wait_for_up(0)
        assert await trial.status("/-/ready") == 503
        await other.start()
        subscriber = await other.subscriber(15)
        await trial.until(lambda metrics: metrics[up] == 1)
        assert await trial.status("/-/ready") == 200
        # The other analyzer now sends the reports of the same flows.
        for message in trial.next_reports():
            await subscriber.send(message)
        await trial.wait_for_page()
        await trial.analyzer.start()
        await trial.has_recovered(counted={reconnects("closed"): 2, reconnects("refused"): SOME})


@concurrent_trial
async def test_analyzer_closes_in_the_middle_of_a_message(directory: Path) -> None:
    async with start_trial(directory) as trial:
        (message, *_) = trial.next_reports()
        data = frame(TEXT, message)
        await trial.subscriber.send_raw(data[: len(data) // 2])
        trial.subscriber.writer.close()
        await trial.has_recovered(counted={reconnects("closed"): 1}, logged=["connection closed"])


@concurrent_trial
async def test_analyzer_stalls_in_the_middle_of_a_message(directory: Path) -> None:
    async with start_trial(directory, settings=SILENCE) as trial:
        (message, *_) = trial.next_reports()
        data = frame(TEXT, message)
        trial.analyzer.stalling = True
        await trial.subscriber.send_raw(data[: len(data) // 2])
        await trial.wait_for_counts(reconnects("silent"))
        trial.analyzer.stalling = False
        await trial.has_recovered(
            counted={reconnects("silent"): SOME}, logged=["subscription fell silent"]
        )


@concurrent_trial
async def test_analyzer_falls_silent_but_still_pings(directory: Path) -> None:
    async with start_trial(directory, settings=SILENCE) as trial:
        trial.analyzer.ping_interval_s = 0.2
        trial.silent = True
        await trial.wait_for_counts(reconnects("silent"))
        trial.silent = False
        await trial.has_recovered(
            counted={reconnects("silent"): SOME}, logged=["subscription fell silent"]
        )


@concurrent_trial
async def test_analyzer_falls_silent_when_another_subscriber_leaves(directory: Path) -> None:
    """While skyfast cannot receive reports, no connections expire."""
    timeout_s = 5
    store = {"connection_timeout": timeout_s, "connection_grace": 0}
    settings = {"subscriber": {"silence_timeout": 3}, "prom_sky_con": store}
    async with start_trial(directory, settings=settings) as trial:
        analyzer = trial.analyzer
        analyzer.stops_after_disconnect = True
        async with connect(analyzer.url, additional_headers={"X-Host-ID": "another"}):
            await trial.wait_for_page()
            (skyfast, _) = analyzer.subscribers
            for message in trial.next_reports():
                await skyfast.send(message)
            reported_s = time.monotonic()
            await trial.wait_for_page()
        await until(lambda: analyzer.is_stopped)
        expected = trial.expected_on_page()
        states = set()
        while time.monotonic() < reported_s + 2 * timeout_s:
            metrics = await trial.skyfast.self_metrics()
            states.add(metrics["skyfast_clock_held"])
            assert await trial.totals_on_page() == expected
            await asyncio.sleep(POLL_S)
        assert states == {0, 1}
        assert analyzer.subscribers != [skyfast]
        metrics = await trial.skyfast.self_metrics()
        assert metrics["skyfast_connections_expired_total"] == 0
        assert metrics["skyfast_clock_held_seconds_total"] > timeout_s - 1
        await trial.has_recovered(
            counted={reconnects("silent"): 1},
            logged=[
                "subscription fell silent: no message for ",
                (
                    "expiry of connections paused: reports may be missing from"
                    f" 127.0.0.1:{analyzer.port} (silent)"
                ),
            ],
        )


@concurrent_trial
async def test_agent_has_a_wrong_clock(directory: Path) -> None:
    async with start_trial(directory) as trial:
        now_ms = time.time_ns() // 1_000_000
        flows = [
            flow(300, 0, uuid="f0", node="future", last_ms=now_ms + 300_000),
            flow(301, 0, uuid="f1", node="past", last_ms=now_ms - 3_600_000),
            flow(302, 0, uuid="f2", node="at-boot", last_ms=1),
            # The times of the next two flows are just within the limits, so they are not counted.
            flow(303, 0, uuid="f3", last_ms=now_ms + 30_000),
            flow(304, 0, uuid="f4", last_ms=now_ms - 160_000),
        ]
        trial.totals |= dict.fromkeys(range(300, 305), 0)
        for message in messages(flows):
            await trial.subscriber.send(message)
        await trial.wait_for_page()
        counted = {("skyfast_flows_misdated_total", "ahead"): 1}
        counted |= {("skyfast_flows_misdated_total", "behind"): 2}
        await trial.has_recovered(
            counted=counted,
            logged=[
                "a flow from node_tid future is dated 300 s ahead of the local clock",
                "a flow from node_tid past is dated 3600 s behind the local clock",
            ],
        )


@concurrent_trial
@pytest.mark.parametrize("flows", ["the same", "others"])
async def test_analyzer_restarts(directory: Path, flows: str) -> None:
    async with start_trial(directory) as trial:
        await trial.analyzer.stop()
        if flows == "others":
            trial.restart_agents()
        await trial.analyzer.start()
        await trial.wait_for_counts(reconnects("closed"))
        await trial.wait_for_up()
        counted = await trial.counted()
        assert counted.keys() <= {reconnects("closed"), reconnects("refused")}
        await trial.has_recovered(counted=counted)
        metrics = await trial.skyfast.self_metrics()
        connections = len(trial.totals)
        assert metrics["skyfast_connections"] == connections
        assert metrics["skyfast_flows"] == connections * (1 if flows == "the same" else 2)


@concurrent_trial
async def test_analyzer_changes_its_host_id(directory: Path) -> None:
    async with start_trial(directory) as trial:
        trial.analyzer.host_id = "analyzer-2"
        await trial.subscriber.close(1001)
        await trial.has_recovered(
            counted={reconnects("closed"): 1},
            logged=["subscribed to analyzer analyzer-2, previously analyzer analyzer-1"],
        )


@concurrent_trial
@pytest.mark.parametrize(
    ("status", "reason", "logged"),
    [
        (
            401,
            "unauthorized",
            "WARNING skyfast.subscription: analyzer 127.0.0.1:{port}: creden",
        ),
        (403, "forbidden", "user not allowed to subscribe (HTTP 403)"),
        (409, "conflict", "the analyzer has not released the previous subscription yet (HTTP 409)"),
        (426, "upgrade", "no subscription endpoint at the path of the URL (HTTP 426)"),
    ],
)
async def test_analyzer_rejects_the_upgrade(
    directory: Path, status: int, reason: str, logged: str
) -> None:
    async with start_trial(directory) as trial:
        trial.analyzer.script.extend([status, status])
        await trial.subscriber.close()
        await trial.has_recovered(
            counted={reconnects("closed"): 1, reconnects(reason): 2},
            logged=[logged.format(port=trial.analyzer.port)],
        )


# Topology ------------------------------------------------------------------------------------


def topology_errors(reason: str) -> Reason:
    return ("skyfast_topology_errors_total", reason)


async def wait_for_topology(trial: Trial) -> None:
    """Wait until skyfast has used the next topology response."""
    name = "skyfast_topology_answers_total"
    before = (await trial.skyfast.self_metrics())[name]
    await trial.until(lambda metrics: metrics[name] > before)


@concurrent_trial
async def test_topology_query_hangs(directory: Path) -> None:
    async with start_trial(directory, settings=TOPOLOGY) as trial:
        trial.analyzer.topology = Fault.HANG
        await trial.wait_for_counts(topology_errors("timeout"))
        await trial.report()
        await trial.wait_for_page()
        trial.analyzer.topology = FakeResponse(body=b"[]")
        await wait_for_topology(trial)
        await trial.has_recovered(
            counted={topology_errors("timeout"): SOME},
            logged=["topology query failed: no response within 10 s"],
        )


def gzip_bomb() -> bytes:
    """Return 500 MB of JSON, compressed with gzip."""
    compressor = zlib.compressobj(1, wbits=31)
    parts = [compressor.compress(SPACES) for _ in range(HUGE_BYTES // len(SPACES))]
    data = b"".join(
        [compressor.compress(b"["), *parts, compressor.compress(b"]"), compressor.flush()]
    )
    assert data.startswith(gzip.compress(b"")[:2])
    return data


@concurrent_trial
@pytest.mark.parametrize("compressed", [False, True])
async def test_topology_response_is_500_megabytes_long(directory: Path, compressed: bool) -> None:
    huge: FakeResponse | Fault = Fault.HUGE
    if compressed:
        data = await asyncio.to_thread(gzip_bomb)
        huge = FakeResponse(body=data, headers=(("Content-Encoding", "gzip"),))
    async with start_trial(directory, settings=TOPOLOGY) as trial:
        await wait_for_topology(trial)
        trial.analyzer.topology = huge
        max_bytes = 0
        while topology_errors("too_big") not in await trial.counted():
            max_bytes = max(max_bytes, trial.resident_bytes())
        trial.analyzer.topology = FakeResponse(body=b"[]")
        assert max_bytes < trial.base.resident_bytes + HUGE_BYTES // 2
        await wait_for_topology(trial)
        await trial.has_recovered(
            counted={topology_errors("too_big"): SOME},
            logged=["topology query failed: response larger than"],
        )
