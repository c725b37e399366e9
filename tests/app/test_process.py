"""The running process: start, stop, exit codes, logs and expiry."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.analyzer import FakeAnalyzer
from tests.support.messages import BAD_FLOWS, BAD_MESSAGES, flow
from tests.support.messages import message as message_of
from tests.support.paths import ROOT
from tests.support.process import PROBLEM, demo, running, write_config

SCRIPT = Path(sys.executable).with_name("skyfast")
FLOW = (
    '{{"UUID":"{uuid}","Network":{{"A":"10.0.0.1","B":"10.0.0.2"}},"Metric":{{"ABBytes":{bytes}}},'
    '"Transport":{{"Protocol":"TCP","A":1,"B":2}},"Start":1,"Last":{bytes},"NodeTID":"{uuid}"}}'
)


def message(*flows: str) -> str:
    return f'{{"Namespace":"flow","Type":"store","Obj":[{",".join(flows)}]}}'


def connections(page: bytes) -> set[str]:
    """Return the label ``node_tid`` of all connections on a page, excluding views."""
    return set(re.findall(r'(?m)^skydive_network_connection_.*node_tid="(\w+)"', page.decode()))


async def finished(*arguments: str) -> tuple[int, str]:
    """Run skyfast until it exits, and return its exit code and its log."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "skyfast", *arguments), stderr=asyncio.subprocess.PIPE, cwd=ROOT
    )
    async with asyncio.timeout(20):
        _, log = await process.communicate()
    assert process.returncode is not None
    return process.returncode, log.decode()


@pytest.mark.xdist_group("timing")
async def test_demo_has_growing_connections_soon_after_its_start() -> None:
    started = time.monotonic()
    async with demo() as skyfast:
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] > 0)
        first = (await skyfast.get("/metrics/flows")).decode()
        later = first
        while not has_grown(first, later):
            await asyncio.sleep(0.1)
            later = (await skyfast.get("/metrics/flows")).decode()
            assert time.monotonic() - started < 20  # 5 s, and a margin for a busy machine
        assert any("listening on " in line for line in skyfast.log)
        pace = "), at 5 times the original speed, repeated every 20 s; "
        assert any("replaying " in line and pace in line for line in skyfast.log)
        status = (await skyfast.get("/api/status")).decode()
        assert "# Replaying the packaged recording instead of subscribing." in status
        assert ":8082" not in status


async def test_last_line_of_the_startup_log_has_the_url_of_the_status_page() -> None:
    async with demo() as skyfast:
        line = await skyfast.logged("status page: ")
        assert line.rstrip().endswith(f"status page: {skyfast.url}/")
        log = [line.split(": ", 1)[1] for line in skyfast.log]
        subscribed = [i for i, text in enumerate(log) if "subscribed to" in text]
        assert len(subscribed) == 2
        assert max(subscribed) < skyfast.log.index(line)
        page = (await skyfast.get("/")).decode()
        assert "<strong>Demo:</strong>" in page
        names = ["127.0.0.1:28082", "127.0.0.1:28084"]
        assert sorted(re.findall(r'<td class="text" title="(127[\d.:]+)">', page)) == names
        assert sorted(re.findall(r"analyzer (127\S+): subscribed", "\n".join(skyfast.log))) == names
        metrics = await skyfast.self_metrics()
        assert all(metrics[f'skyfast_up{{analyzer="{name}"}}'] == 1 for name in names)


async def test_demo_shows_names_within_seconds() -> None:
    async with demo() as skyfast:
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] > 10)
        page = (await skyfast.get("/metrics/flows")).decode()
        for initiator, target in (
            ("client", "web"),  # containers
            ("h1", "h2"),  # network namespaces
            ("default/frontend", "shop/cart"),  # services of pods
        ):
            assert re.search(rf'initiator_name="{initiator}",.*target_name="{target}"', page)
        status = (await skyfast.get("/")).decode()
        assert "default/frontend" in status
        assert "shop/cart" in status


def has_grown(before: str, after: str) -> bool:
    """Return whether any counter is higher on the page ``after``."""

    def counters(page: str) -> dict[str, int]:
        lines = (line for line in page.splitlines() if "_total_bytes{" in line)
        return {series: int(value) for series, _, value in (s.rpartition(" ") for s in lines)}

    later = counters(after)
    return any(later.get(series, 0) > value for series, value in counters(before).items())


@pytest.mark.xdist_group("timing")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_the_process_within_two_seconds(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with FakeAnalyzer() as analyzer:
        config = write_config(tmp_path, analyzer.url)
        async with running(config) as skyfast:
            subscriber = await analyzer.subscriber()
            began = time.monotonic()
            skyfast.process.send_signal(number)
            async with asyncio.timeout(5):
                assert await skyfast.process.wait() == 0
            assert time.monotonic() - began < 2
            await asyncio.wait_for(subscriber.closed.wait(), 5)
            assert subscriber.close_code == 1000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_repeated_signals_do_not_kill_the_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with running(write_config(tmp_path), quiet=False) as skyfast:
        async with asyncio.timeout(20):
            while skyfast.process.returncode is None:
                skyfast.send_signal(number)
                await asyncio.sleep(0.0002)
        assert skyfast.process.returncode == 0
    assert not [line for line in skyfast.log if line.startswith("Traceback ")]


async def test_log_is_json_on_request() -> None:
    async with demo(SKYDIVE_LOGGING_FORMAT="json") as skyfast:
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] > 0)
    records = [json.loads(line) for line in skyfast.log]
    assert {record["level"] for record in records} == {"INFO"}
    assert records[0]["message"].startswith("skyfast ")
    assert re.match(r"stopped after \d+ s: \d+ flow reports?, ", records[-1]["message"])
    assert len(records) < 12


async def test_reload_changes_the_log_format(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    text = config.read_text()
    async with running(config, quiet=False) as skyfast:
        for form, reloaded in (
            (
                "json",
                r'\{"time": ".*Z", "level": "INFO", .*reloaded; changed: logging\.format"\}',
            ),
            (
                "text",
                r"\S+Z INFO skyfast\.app: configuration reloaded; changed: logging\.format",
            ),
        ):
            config.write_text(f"logging: {{format: {form}}}\n{text}")
            known = len(skyfast.log)
            skyfast.process.send_signal(signal.SIGHUP)
            await skyfast.logged("configuration reloaded", since=known)
            assert any(re.fullmatch(reloaded, line) for line in skyfast.log[known:])


async def test_warning_about_traffic_counted_several_times_is_logged_once(tmp_path: Path) -> None:
    views = [{"prefix": "apps", "labels": ["application"]}]
    config = write_config(tmp_path, labels=["initiator_ip", "node_name"], views=views)
    async with running(config, quiet=False) as skyfast:
        await skyfast.logged("view apps: ")
    lines = [line for line in skyfast.log if "is counted several times" in line]
    assert [re.search(r"WARNING skyfast.config: (.*?):", line)[1] for line in lines] == [  # type: ignore[index]
        "connections",
        "view apps",
    ]


async def test_cost_of_a_connection_is_logged(tmp_path: Path) -> None:
    """The logged cost is close to the measured memory per connection."""
    async with AsyncExitStack() as stack:
        analyzer = await stack.enter_async_context(FakeAnalyzer())
        config = write_config(tmp_path, analyzer.url, max_connections=200_000)
        skyfast = await stack.enter_async_context(running(config))
        await analyzer.subscriber()
        line = await skyfast.logged("each connection costs up to")
        match = re.search(r"up to (\d+) series and (\d+) bytes.* limits: 200000 connections", line)
        assert match
        assert match[1] == "5"
        most = 200_000 * 5 + 200_000 * 4
        assert f"200000 connections ({200_000 * int(match[2]) >> 20} MiB)" in line
        assert line.endswith(f" flows; at most {most} series, including views")
        assert json.loads(await skyfast.get("/api/status"))["table"]["series_limit"] == most
        check = [sys.executable, "-m", "skyfast", "--check", str(config)]
        checked = await asyncio.to_thread(subprocess.check_output, check, text=True)
        assert f"views together cost at most {most} series." in checked
        count = 50_000
        for begin in range(0, count, 1000):
            flows = (
                flow(f"{n + 1:x}", Transport={"Protocol": "TCP", "A": n, "B": 443})
                for n in range(begin, begin + 1000)
            )
            await analyzer.send(message_of(*flows))
        metrics = await skyfast.until(lambda metrics: metrics["skyfast_connections"] == count)
        # The arena and the indexes grow in large steps, so the measured memory varies.
        assert 0.8 < metrics["skyfast_table_bytes"] / count / int(match[2]) < 1.4


async def test_port_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, log = await finished(str(write_config(tmp_path, port=port)))
    assert code == 1
    (line,) = [line for line in log.splitlines() if " ERROR " in line]
    assert f":{port}: " in line
    assert "in use" in line
    assert "Traceback" not in log


async def test_pages_are_served_while_no_analyzer_is_reachable(tmp_path: Path) -> None:
    async with running(write_config(tmp_path), quiet=False) as skyfast:
        metrics = await skyfast.until(
            lambda metrics: (
                metrics['skyfast_reconnects_total{analyzer="127.0.0.1:9",reason="refused"}'] > 0
            )
        )
        assert metrics['skyfast_up{analyzer="127.0.0.1:9"}'] == 0
        assert b"skydive_network_connection_total_bytes" in await skyfast.get("/metrics")


@pytest.mark.xdist_group("timing")
async def test_connections_expire_if_they_are_not_reported(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        analyzer = await stack.enter_async_context(FakeAnalyzer())
        config = write_config(tmp_path, analyzer.url, connection_timeout=2, connection_grace=0)
        skyfast = await stack.enter_async_context(running(config))
        await analyzer.subscriber()
        began = time.monotonic()
        await analyzer.send(message(FLOW.format(uuid="a", bytes=1), FLOW.format(uuid="b", bytes=1)))
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] == 2)
        await asyncio.sleep(1.5)
        await analyzer.send(message(FLOW.format(uuid="b", bytes=2)))
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] == 1)
        assert time.monotonic() - began >= 2
        assert connections(await skyfast.get("/metrics/flows")) == {"b"}
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] == 0)
        assert time.monotonic() - began >= 3.5
        assert connections(await skyfast.get("/metrics/flows")) == set()


async def test_full_table_is_logged(tmp_path: Path) -> None:
    """All skipped reports cause only one log line."""
    async with AsyncExitStack() as stack:
        analyzer = await stack.enter_async_context(FakeAnalyzer())
        config = write_config(tmp_path, analyzer.url, max_connections=2, max_flows=3)
        skyfast = await stack.enter_async_context(running(config, quiet=False))
        await analyzer.subscriber()
        flows = [FLOW.format(uuid=uuid, bytes=1) for uuid in "abcdefg"]
        flows[5:] = [re.sub('"NodeTID":"."', '"NodeTID":"a"', text) for text in flows[5:]]
        await analyzer.send(message(*flows))
        line = await skyfast.logged("table full")
        assert " WARNING " in line
        assert line.endswith(
            "skipped 3 reports of new connections beyond max_connections (2)"
            " and 1 reports of new flows beyond max_flows (3)"
        )
        # b is an existing connection, so only c is skipped.
        await analyzer.send(message(*(FLOW.format(uuid=uuid, bytes=2) for uuid in "bc")))
        full = 'skyfast_flows_skipped_total{reason="table_full"}'
        await skyfast.until(lambda metrics: metrics[full] == 5)
        assert connections(await skyfast.get("/metrics/flows")) == {"a", "b"}
        await asyncio.sleep(1)
    assert sum("table full" in line for line in skyfast.log) == 1


@pytest.mark.slow
async def test_connection_with_an_unread_report_survives_a_suspension(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        analyzer = await stack.enter_async_context(FakeAnalyzer())
        config = write_config(tmp_path, analyzer.url, connection_timeout=3, connection_grace=0)
        skyfast = await stack.enter_async_context(running(config, quiet=False))
        await analyzer.subscriber()
        await analyzer.send(message(FLOW.format(uuid="a", bytes=5)))
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] == 1)
        os.kill(skyfast.process.pid, signal.SIGSTOP)
        await asyncio.sleep(6)
        await analyzer.send(message(FLOW.format(uuid="a", bytes=7)))
        os.kill(skyfast.process.pid, signal.SIGCONT)
        metrics = await skyfast.until(
            lambda metrics: sum(n for s, n in metrics.items() if "skyfast_flows_total{" in s) == 2
        )
        assert metrics["skyfast_connections_expired_total"] == 0
        page = (await skyfast.get("/metrics/flows")).decode()
        assert 'direction="initiator_to_target",node_tid="a",protocol="TCP"} 7\n' in page
        assert any("paused for" in line for line in skyfast.log)


async def test_invalid_messages_neither_end_the_subscription_nor_break_the_page(
    tmp_path: Path,
) -> None:
    hostile = flow("e", NodeTID='"} 1\n# TYPE forged counter\nforged 1\n\\')
    async with AsyncExitStack() as stack:
        analyzer = await stack.enter_async_context(FakeAnalyzer())
        config = write_config(tmp_path, analyzer.url)
        skyfast = await stack.enter_async_context(running(config, quiet=False))
        subscriber = await analyzer.subscriber()
        for bad, _ in BAD_FLOWS.values():
            await analyzer.send(message_of(flow("1"), bad, flow("2", NodeTID="other"), hostile))
        for data, _ in BAD_MESSAGES.values():
            await analyzer.send(data)
        reports = sum(3 for _ in BAD_FLOWS) + len(BAD_FLOWS)
        metrics = await skyfast.until(
            lambda metrics: (
                sum(n for s, n in metrics.items() if "skyfast_message_errors_total{" in s)
                == len(BAD_MESSAGES)
            )
        )
        assert metrics[f'skyfast_flows_total{{analyzer="{analyzer.name}"}}'] == reports
        assert metrics["skyfast_connections"] == 3
        assert not subscriber.closed.is_set()
        assert not any(n for s, n in metrics.items() if "skyfast_reconnects_total{" in s)
        page = (await skyfast.get("/metrics")).decode()
        names = {family.name for family in text_string_to_metric_families(page)}
        assert "forged" not in names
        assert "skydive_network_connection_total_bytes" in names
    problems = [line for line in skyfast.log if PROBLEM.search(line)]
    reasons = set(re.findall(r"dropped a message of \d+ bytes \((\w+)\)", "\n".join(problems)))
    # Each reason is logged once.
    assert reasons == {reason for _, reason in BAD_MESSAGES.values()}
    assert len(problems) == len(reasons)


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.skipif(not SCRIPT.exists(), reason="skyfast is not installed")
async def test_process_has_the_name_that_pkill_selects() -> None:
    """The documented command to reload is ``pkill -HUP -x skyfast``."""
    process = await asyncio.create_subprocess_exec(
        *(SCRIPT, "--demo", "--web.listen-address=127.0.0.1:0"), stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while b"listening on" not in await process.stderr.readline():
                assert process.returncode is None
        assert name_of(process.pid) == "skyfast"
    finally:
        process.terminate()
        async with asyncio.timeout(20):
            await process.communicate()
