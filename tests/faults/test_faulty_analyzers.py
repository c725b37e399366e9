"""What analyzers do wrong, and that skyfast is as before when they do it no more."""

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
    beside_the_others,
    flow,
    messages,
    trial,
)
from tests.support.analyzer import HUGE_BYTES, SPACES, TEXT, Answer, FakeAnalyzer, Fault, frame

SOCKET_BYTES = 64 << 20
"""More than Linux lets wait in a connection: the largest buffers of both its ends."""

BURST_BYTES = 300_000_000
TOPOLOGY = {"prom_sky_con": {"interfaces_interval": 1}}
SILENCE = {"subscriber": {"silence_timeout": 2}}


def reconnects(reason: str) -> Reason:
    return ("skyfast_reconnects_total", reason)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(RECOVERY_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(POLL_S)


def skipped(reason: str) -> Reason:
    return ("skyfast_flows_skipped_total", reason)


@beside_the_others
async def test_it_hangs_after_the_upgrade(directory: Path) -> None:
    async with trial(directory) as on_trial:
        on_trial.subscriber.freeze()
        await on_trial.has_recovered(
            counted={reconnects("timeout"): 1}, logged=["no response in time"]
        )


@beside_the_others
async def test_it_floods_for_long(directory: Path) -> None:
    async with trial(directory) as on_trial:
        block = b"".join(frame(TEXT, message) for message in on_trial.grown())
        subscriber = on_trial.subscriber
        os.kill(on_trial.pid, signal.SIGSTOP)
        with contextlib.suppress(ConnectionError):
            while True:
                await subscriber.send_raw(block)
        os.kill(on_trial.pid, signal.SIGCONT)
        assert subscriber.given_up
        await on_trial.has_recovered(
            counted={reconnects("overload"): 1, skipped("late"): SOME},
            logged=["dropped by the analyzer: skyfast read too slowly: the analyzer waited 1"],
        )


@beside_the_others
async def test_it_floods_for_a_moment(directory: Path) -> None:
    async with trial(directory, flows=2000) as on_trial:
        block = b"".join(frame(TEXT, message) for message in on_trial.grown())
        blocks = BURST_BYTES // len(block)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(blocks):
                await on_trial.subscriber.send_raw(block)
                sent += 1

        os.kill(on_trial.pid, signal.SIGSTOP)
        flooding = asyncio.create_task(flood())
        await asyncio.sleep(1.5)
        assert 0 < sent * len(block) < SOCKET_BYTES, "there is no back-pressure"
        os.kill(on_trial.pid, signal.SIGCONT)
        most_bytes = 0
        while not flooding.done():
            most_bytes = max(most_bytes, on_trial.resident_bytes())
            await asyncio.sleep(0.01)
        await flooding
        await on_trial.has_page()
        assert most_bytes < on_trial.base.resident_bytes + MEMORY_BYTES
        await on_trial.has_recovered(counted={skipped("late"): (blocks - 1) * 2000})


@beside_the_others
async def test_it_hangs_before_the_upgrade(directory: Path) -> None:
    async with trial(directory) as on_trial:
        on_trial.analyzer.script.append(Fault.HANG)
        await on_trial.subscriber.close()
        await on_trial.has_recovered(
            counted={reconnects("closed"): 1, reconnects("timeout"): 1},
            logged=["no response in time: timed out during opening handshake"],
        )


@beside_the_others
async def test_it_refuses(directory: Path) -> None:
    async with trial(directory) as on_trial:
        await on_trial.analyzer.stop()
        await on_trial.has_counted(reconnects("refused"))
        await on_trial.is_up(0)
        assert await on_trial.status("/-/ready") == 503
        assert await on_trial.status("/-/healthy") == 200
        await on_trial.has_page()
        await on_trial.analyzer.start()
        await on_trial.has_recovered(
            counted={reconnects("closed"): 1, reconnects("refused"): SOME},
            logged=["connection closed", "cannot connect"],
        )


@beside_the_others
async def test_one_of_two_refuses_and_then_both(directory: Path) -> None:
    async with FakeAnalyzer() as other, trial(directory, others=[other]) as on_trial:
        await other.subscriber()
        up = f'skyfast_up{{analyzer="{other.name}"}}'
        await other.stop()
        await on_trial.has_counted(reconnects("refused"))
        await on_trial.until(lambda metrics: metrics[up] == 0)
        assert await on_trial.status("/-/ready") == 200
        await on_trial.report()
        await on_trial.has_page()
        await on_trial.analyzer.stop()
        await on_trial.is_up(0)
        assert await on_trial.status("/-/ready") == 503
        await other.start()
        subscriber = await other.subscriber(15)
        await on_trial.until(lambda metrics: metrics[up] == 1)
        assert await on_trial.status("/-/ready") == 200
        # The same flows go on by way of the other one.
        for message in on_trial.grown():
            await subscriber.send(message)
        await on_trial.has_page()
        await on_trial.analyzer.start()
        await on_trial.has_recovered(counted={reconnects("closed"): 2, reconnects("refused"): SOME})


@beside_the_others
async def test_it_closes_in_the_middle_of_a_message(directory: Path) -> None:
    async with trial(directory) as on_trial:
        (message, *_) = on_trial.grown()
        data = frame(TEXT, message)
        await on_trial.subscriber.send_raw(data[: len(data) // 2])
        on_trial.subscriber.writer.close()
        await on_trial.has_recovered(
            counted={reconnects("closed"): 1}, logged=["connection closed"]
        )


@beside_the_others
async def test_it_stalls_in_the_middle_of_a_message(directory: Path) -> None:
    async with trial(directory, settings=SILENCE) as on_trial:
        (message, *_) = on_trial.grown()
        data = frame(TEXT, message)
        on_trial.analyzer.stalling = True
        await on_trial.subscriber.send_raw(data[: len(data) // 2])
        await on_trial.has_counted(reconnects("silent"))
        on_trial.analyzer.stalling = False
        await on_trial.has_recovered(
            counted={reconnects("silent"): SOME}, logged=["subscription fell silent"]
        )


@beside_the_others
async def test_it_falls_silent_and_goes_on_pinging(directory: Path) -> None:
    async with trial(directory, settings=SILENCE) as on_trial:
        on_trial.analyzer.ping_interval_s = 0.2
        on_trial.silent = True
        await on_trial.has_counted(reconnects("silent"))
        on_trial.silent = False
        await on_trial.has_recovered(
            counted={reconnects("silent"): SOME}, logged=["subscription fell silent"]
        )


@beside_the_others
async def test_it_falls_silent_for_all_when_another_subscriber_leaves(directory: Path) -> None:
    """No connection leaves because nothing was reported while nobody listened."""
    timeout_s = 5
    store = {"connection_timeout": timeout_s, "connection_grace": 0}
    settings = {"subscriber": {"silence_timeout": 3}, "prom_sky_con": store}
    async with trial(directory, settings=settings) as on_trial:
        analyzer = on_trial.analyzer
        analyzer.forgetful = True
        async with connect(analyzer.url, additional_headers={"X-Host-ID": "another"}):
            await on_trial.has_page()
            (skyfast, _) = analyzer.subscribers
            for message in on_trial.grown():
                await skyfast.send(message)
            reported_s = time.monotonic()
            await on_trial.has_page()
        await until(lambda: analyzer.mute)
        expected = on_trial.expected_on_page()
        states = set()
        while time.monotonic() < reported_s + 2 * timeout_s:
            metrics = await on_trial.skyfast.self_metrics()
            states.add(metrics["skyfast_clock_held"])
            assert await on_trial.totals_on_page() == expected
            await asyncio.sleep(POLL_S)
        assert states == {0, 1}
        assert analyzer.subscribers != [skyfast]
        metrics = await on_trial.skyfast.self_metrics()
        assert metrics["skyfast_connections_expired_total"] == 0
        assert metrics["skyfast_clock_held_seconds_total"] > timeout_s - 1
        await on_trial.has_recovered(
            counted={reconnects("silent"): 1},
            logged=[
                "subscription fell silent: no message for ",
                f"expiry paused: reports may be missing from 127.0.0.1:{analyzer.port} (silent)",
            ],
        )


@beside_the_others
async def test_the_clock_of_one_of_its_agents_is_wrong(directory: Path) -> None:
    async with trial(directory) as on_trial:
        now_ms = time.time_ns() // 1_000_000
        wrong = [
            flow(300, 0, uuid="f0", node="future", last_ms=now_ms + 300_000),
            flow(301, 0, uuid="f1", node="past", last_ms=now_ms - 3_600_000),
            flow(302, 0, uuid="f2", node="at-boot", last_ms=1),
            # As far as clocks may differ, and agents may wait.
            flow(303, 0, uuid="f3", last_ms=now_ms + 30_000),
            flow(304, 0, uuid="f4", last_ms=now_ms - 160_000),
        ]
        on_trial.totals |= dict.fromkeys(range(300, 305), 0)
        for message in messages(wrong):
            await on_trial.subscriber.send(message)
        await on_trial.has_page()
        counted = {("skyfast_flows_misdated_total", "ahead"): 1}
        counted |= {("skyfast_flows_misdated_total", "behind"): 2}
        await on_trial.has_recovered(
            counted=counted,
            logged=[
                "a flow from node_tid future is 300 s ahead of the local clock",
                "a flow from node_tid past is 3600 s behind the local clock",
            ],
        )


@beside_the_others
@pytest.mark.parametrize("flows", ["the same", "others"])
async def test_it_restarts(directory: Path, flows: str) -> None:
    async with trial(directory) as on_trial:
        await on_trial.analyzer.stop()
        if flows == "others":
            on_trial.restart_agents()
        await on_trial.analyzer.start()
        await on_trial.has_counted(reconnects("closed"))
        await on_trial.is_up()
        counted = await on_trial.counted()
        assert counted.keys() <= {reconnects("closed"), reconnects("refused")}
        await on_trial.has_recovered(counted=counted)
        metrics = await on_trial.skyfast.self_metrics()
        connections = len(on_trial.totals)
        assert metrics["skyfast_connections"] == connections
        assert metrics["skyfast_flows"] == connections * (1 if flows == "the same" else 2)


@beside_the_others
async def test_it_changes_its_host_id(directory: Path) -> None:
    async with trial(directory) as on_trial:
        on_trial.analyzer.host_id = "analyzer-2"
        await on_trial.subscriber.close(1001)
        await on_trial.has_recovered(
            counted={reconnects("closed"): 1},
            logged=["subscribed to analyzer analyzer-2, previously analyzer analyzer-1"],
        )


@beside_the_others
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
async def test_it_answers_with_another_status(
    directory: Path, status: int, reason: str, logged: str
) -> None:
    async with trial(directory) as on_trial:
        on_trial.analyzer.script.extend([status, status])
        await on_trial.subscriber.close()
        await on_trial.has_recovered(
            counted={reconnects("closed"): 1, reconnects(reason): 2},
            logged=[logged.format(port=on_trial.analyzer.port)],
        )


# The topology --------------------------------------------------------------------------------


def topology_errors(reason: str) -> Reason:
    return ("skyfast_topology_errors_total", reason)


async def until_answered(on_trial: Trial) -> None:
    """Wait until another answer of the topology was used."""
    name = "skyfast_topology_answers_total"
    before = (await on_trial.skyfast.self_metrics())[name]
    await on_trial.until(lambda metrics: metrics[name] > before)


@beside_the_others
async def test_its_topology_hangs(directory: Path) -> None:
    async with trial(directory, settings=TOPOLOGY) as on_trial:
        on_trial.analyzer.topology = Fault.HANG
        await on_trial.has_counted(topology_errors("timeout"))
        await on_trial.report()
        await on_trial.has_page()
        on_trial.analyzer.topology = Answer(body=b"[]")
        await until_answered(on_trial)
        await on_trial.has_recovered(
            counted={topology_errors("timeout"): SOME},
            logged=["topology query failed: no response within 10 s"],
        )


def bomb() -> bytes:
    """Return 500 MB of JSON, as gzip."""
    packer = zlib.compressobj(1, wbits=31)
    parts = [packer.compress(SPACES) for _ in range(HUGE_BYTES // len(SPACES))]
    data = b"".join([packer.compress(b"["), *parts, packer.compress(b"]"), packer.flush()])
    assert data.startswith(gzip.compress(b"")[:2])
    return data


@beside_the_others
@pytest.mark.parametrize("compressed", [False, True])
async def test_its_topology_is_of_500_megabytes(directory: Path, compressed: bool) -> None:
    huge: Answer | Fault = Fault.HUGE
    if compressed:
        data = await asyncio.to_thread(bomb)
        huge = Answer(body=data, headers=(("Content-Encoding", "gzip"),))
    async with trial(directory, settings=TOPOLOGY) as on_trial:
        await until_answered(on_trial)
        on_trial.analyzer.topology = huge
        most_bytes = 0
        while topology_errors("too_big") not in await on_trial.counted():
            most_bytes = max(most_bytes, on_trial.resident_bytes())
        on_trial.analyzer.topology = Answer(body=b"[]")
        assert most_bytes < on_trial.base.resident_bytes + HUGE_BYTES // 2
        await until_answered(on_trial)
        await on_trial.has_recovered(
            counted={topology_errors("too_big"): SOME},
            logged=["topology query failed: response larger than"],
        )
