"""Reloading the configuration: which parts of the process change, and which are kept.

Most tests send SIGHUP to a skyfast process. The others replace the name resolution, so they run the
subscriptions in the process of the test.
"""

import asyncio
import contextlib
import dataclasses
import html
import json
import logging
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from skyfast import pipeline
from skyfast.app import App
from skyfast.config import loader
from skyfast.config.model import Config, TableLimits
from skyfast.flows.selection import ExportSelection, ViewSpec
from skyfast.skydive.topology_queries import KUBERNETES_EDGES
from tests.support.analyzer import FakeAnalyzer, FakeResponse, Fault
from tests.support.certificates import Authority
from tests.support.configs import make_config
from tests.support.messages import METRIC, flow, message
from tests.support.paths import ROOT
from tests.support.process import PROBLEM, START_S, Skyfast, demo, running
from tests.support.subscribing import FAST, FakeResolver, lines, subscribed, two_addresses
from tests.support.tasks import running_app
from tests.support.waiting import WAIT_S, until
from tests.support.web_fixtures import PROMETHEUS

STORE = "pipeline.store.prom_sky_con"
UNREACHABLE = "ws://127.0.0.1:9/ws/subscriber/flow"
BYTES = "skydive_network_connection_total_bytes"
RELOADED = ("configuration reloaded", "configuration not reloaded")
SUCCESSFUL = "skyfast_config_last_reload_successful"
SUCCESS_AT = "skyfast_config_last_reload_success_timestamp_seconds"
FAILURE_AT = "skyfast_config_last_reload_failure_timestamp_seconds"
FAILED = 'skyfast_config_reload_failures_total{reason="configuration"}'

Keys = Mapping[str, object]
"""Maps the path of each key in a configuration file to its value."""


def text_of(keys: Keys) -> str:
    """Return a configuration with a free loopback port."""
    tree: dict[str, Any] = {}
    defaults = {f"{STORE}.port": 0, f"{STORE}.listen_address": "127.0.0.1", "host_id": "skyfast"}
    for path, value in (defaults | dict(keys)).items():
        *sections, leaf = path.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[leaf] = value
    return yaml.safe_dump(tree)


class Operator:
    """Edits the configuration of a running skyfast, and makes skyfast reload it."""

    def __init__(self, skyfast: Skyfast, file: Path, keys: Keys) -> None:
        self.skyfast = skyfast
        self.file = file
        self.keys = dict(keys)

    def write(self, changes: Keys) -> None:
        """Change keys, and remove keys whose new value is None."""
        self.keys |= changes
        self.file.write_text(text_of({k: v for k, v in self.keys.items() if v is not None}))

    async def reload(self, changes: Keys | None = None) -> list[str]:
        """Change some keys, reload with SIGHUP, and return the lines logged meanwhile."""
        if changes is not None:
            self.write(changes)
        logged = len(self.skyfast.log)
        self.skyfast.process.send_signal(signal.SIGHUP)
        await until(lambda: outcomes(self.skyfast.log[logged:]))
        return self.skyfast.log[logged:]

    async def post(self) -> tuple[int, str]:
        def ask() -> tuple[int, str]:
            request = urllib.request.Request(self.skyfast.url + "/-/reload", method="POST")
            try:
                with urllib.request.urlopen(request, timeout=WAIT_S) as response:
                    return response.status, response.read().decode()
            except urllib.error.HTTPError as response:
                with response:
                    return response.code, response.read().decode()

        return await asyncio.to_thread(ask)

    async def flows(self) -> str:
        return (await self.skyfast.get("/metrics/flows")).decode()

    async def report(self, analyzer: FakeAnalyzer, *flows: dict[str, Any]) -> None:
        """Report flows, and wait until they are counted."""
        series = f'skyfast_flows_total{{analyzer="{analyzer.name}"}}'
        before = (await self.skyfast.self_metrics())[series]
        await analyzer.send(message(*flows))
        await self.skyfast.until(lambda metrics: metrics[series] == before + len(flows))


def outcomes(log: list[str]) -> list[str]:
    return [line for line in log if any(outcome in line for outcome in RELOADED)]


def problems(log: list[str]) -> list[str]:
    return [line for line in log if PROBLEM.search(line)]


@asynccontextmanager
async def operated(directory: Path, keys: Keys, *, quiet: bool = True) -> AsyncIterator[Operator]:
    file = directory / "prom_sky_con.yml"
    file.write_text(text_of(keys))
    async with running(file, quiet=quiet) as skyfast:
        yield Operator(skyfast, file, keys)


def subscribing(*analyzers: FakeAnalyzer) -> dict[str, object]:
    return {"pipeline.subscriber.urls": [analyzer.url for analyzer in analyzers]}


def series_of_analyzer(metrics: Mapping[str, float], name: str) -> list[str]:
    return [series for series in metrics if f'analyzer="{name}"' in series]


def samples(page: str, family: str) -> dict[str, str]:
    parts = (line.rpartition(" ") for line in page.splitlines() if line.startswith(f"{family}{{"))
    return {series: value for series, _, value in parts}


# Rejected configurations ---------------------------------------------------------------------


def invalid_yaml(file: Path) -> str:
    file.write_text("pipeline: [")
    return "not valid YAML"


def invalid_value(file: Path) -> str:
    file.write_text(text_of({f"{STORE}.max_connections": -1}))
    return "max_connections"


def missing_certificate(file: Path) -> str:
    file.write_text(text_of({"tls.ca_cert": "/nowhere.pem"}))
    return "tls.ca_cert"


def invalid_certificate(file: Path) -> str:
    keys = {
        "tls.ca_cert": str(file),
        "pipeline.subscriber.url": "wss://127.0.0.1:9/",
        # If the reload succeeded, each of these keys would change the page.
        f"{STORE}.labels": ["target_ip"],
        "pipeline.filter.drop": [{"name": "all", "protocol": "TCP"}],
        "logging.level": "ERROR",
    }
    file.write_text(text_of(keys))
    return "tls.ca_cert"


def host_id_that_no_header_can_carry(file: Path) -> str:
    file.write_text(text_of({"host_id": "s€cret"}))
    return "host_id"


def missing_file(file: Path) -> str:
    file.unlink()
    return "cannot be read"


def directory_in_place_of_the_file(file: Path) -> str:
    file.unlink()
    file.mkdir()
    return "cannot be read"


def pipe_in_place_of_the_file(file: Path) -> str:
    file.unlink()
    os.mkfifo(file)
    return "not a regular file"


BREAKAGES = (
    invalid_yaml,
    invalid_value,
    missing_certificate,
    invalid_certificate,
    host_id_that_no_header_can_carry,
    missing_file,
    directory_in_place_of_the_file,
    pipe_in_place_of_the_file,
)


async def test_failed_reload_changes_nothing(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    keys = {**subscribing(analyzer), "web.enable_reload": True}
    async with operated(tmp_path, keys, quiet=False) as operator:
        skyfast = operator.skyfast
        await analyzer.subscriber()
        await operator.report(analyzer, flow("1"))
        page, success = await operator.flows(), await skyfast.self_metrics()
        assert success[SUCCESSFUL] == 1
        for number, break_file in enumerate(BREAKAGES):
            reason = break_file(operator.file)
            (line,) = problems(await operator.reload())
            assert " ERROR " in line
            assert reason in line
            status, text = await operator.post()
            assert status == 500
            assert text == f"failed to reload config: {line.partition('reloaded: ')[2]}\n"

            failure = await skyfast.self_metrics()
            assert failure[SUCCESSFUL] == 0
            assert failure[SUCCESS_AT] == success[SUCCESS_AT]
            assert failure.keys() == success.keys()
            assert failure[FAILED] == 2 * (number + 1)
            api_status = json.loads(await skyfast.get("/api/status"))
            problem = line.partition("reloaded: ")[2]
            assert api_status["reload"]["last_error"]["reason"] == "configuration"
            assert api_status["reload"]["last_error"]["text"] == problem
            assert failure[FAILURE_AT] == api_status["reload"]["last_error"]["timestamp_seconds"]
            assert failure[FAILURE_AT] > success[SUCCESS_AT]
            failed_at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(failure[FAILURE_AT]))
            warning = f"Reload of the configuration failed at {failed_at} UTC: {problem}"
            assert warning in api_status["warnings"]
            assert html.escape(warning) in (await skyfast.get("/")).decode()
            assert await operator.flows() == page
            # skyfast still reads reports. This report is a repetition, so it changes no value.
            await operator.report(analyzer, flow("1"))
            assert len(problems(skyfast.log)) == 2 * (number + 1)

            if operator.file.is_dir():
                operator.file.rmdir()
            else:
                operator.file.unlink(missing_ok=True)
            await operator.reload({})
            before, success = success, await skyfast.self_metrics()
            assert success[SUCCESSFUL] == 1
            assert success[SUCCESS_AT] > before[SUCCESS_AT]
        assert len(analyzer.upgrades) == 1


async def test_reload_lists_the_changed_keys(tmp_path: Path) -> None:
    secret = "analyzer.auth.cluster.password"
    keys = {"analyzer.auth.cluster.username": "a", secret: "before"}
    async with operated(tmp_path, keys, quiet=False) as operator:
        skyfast = operator.skyfast
        assert json.loads(await skyfast.get("/api/status"))["reload"]["changed"] == []
        logged = len(skyfast.log)
        await operator.reload({f"{STORE}.max_flows": 7, "logging.level": "DEBUG", secret: "after"})
        changed = [secret, "logging.level", f"{STORE}.max_flows"]
        line = await skyfast.logged("configuration reloaded; changed: ", since=logged)
        assert line.endswith(f"; changed: {', '.join(changed)}")
        assert json.loads(await skyfast.get("/api/status"))["reload"]["changed"] == changed
        assert f"changed keys: {', '.join(changed)}</span>" in (await skyfast.get("/")).decode()
        page = await skyfast.self_metrics()
        shown = [series for series in page if "last_reload_changed" in series]
        assert shown == [f'skyfast_config_last_reload_changed{{key="{key}"}}' for key in changed]

        operator.file.write_text("pipeline: {nothing: 1}\nloggings: {}")
        log = await operator.reload()  # the failed reload changes no key
        assert any("loggings is ignored; did you mean logging?" in line for line in problems(log))
        assert json.loads(await skyfast.get("/api/status"))["reload"]["changed"] == changed
        logged = len(skyfast.log)
        await operator.reload({})
        await skyfast.logged("configuration reloaded; changed: nothing", since=logged)
        assert json.loads(await skyfast.get("/api/status"))["reload"]["changed"] == []


async def test_failed_reload_reports_an_invalid_web_configuration_as_reason(tmp_path: Path) -> None:
    web = tmp_path / "web.yml"
    web.write_text("")
    file = tmp_path / "a.yml"
    file.write_text(text_of({}))
    async with running(file, f"--web.config.file={web}", quiet=False) as skyfast:
        web.write_text("nothing: 1")
        skyfast.process.send_signal(signal.SIGHUP)
        await skyfast.logged("configuration not reloaded: ")
        last_error = json.loads(await skyfast.get("/api/status"))["reload"]["last_error"]
        assert last_error["reason"] == "web_configuration"
        assert str(web) in last_error["text"]


async def test_unhandled_exception_fails_the_reload_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def load() -> Config:
        raise ZeroDivisionError

    app = App(make_config(), load=load)
    assert "ZeroDivisionError" in (await app.reload() or "")
    assert app.stats.config.last_reload_successful == 0
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None


@asynccontextmanager
async def spawned(argument: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start skyfast without waiting until it is ready, and stop it with SIGTERM on exit."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "skyfast", argument),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield process
        process.terminate()
        async with asyncio.timeout(WAIT_S):
            await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def outcome(process: asyncio.subprocess.Process) -> str:
    """Return the log line with the result of the next reload."""
    assert process.stderr is not None
    async with asyncio.timeout(WAIT_S):
        while not outcomes([line := (await process.stderr.readline()).decode()]):
            assert line
    return line


async def test_reload_cannot_read_standard_input_again(analyzer: FakeAnalyzer) -> None:
    async with spawned("-") as process:
        assert process.stdin is not None
        process.stdin.write(text_of(subscribing(analyzer)).encode())
        process.stdin.close()
        remote = await analyzer.subscriber(START_S)
        process.send_signal(signal.SIGHUP)
        line = await outcome(process)
        assert "ERROR" in line
        assert "standard input cannot be read again" in line
        assert not remote.closed.is_set()


# Changes that keep the table -----------------------------------------------------------------


async def test_changed_rules_keep_the_counters(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    https = flow("1")
    dns = flow("2", Transport={"Protocol": "UDP", "A": 40001, "B": 53})
    ntp = flow("3", Transport={"Protocol": "UDP", "A": 40001, "B": 123})
    rules = [{"name": name, "target_port": port} for name, port in (("dns", 53), ("ntp", 123))]
    keys = {**subscribing(analyzer), "pipeline.filter.drop": rules[:1]}
    async with operated(tmp_path, keys) as operator:
        skyfast = operator.skyfast
        await analyzer.subscriber()
        await operator.report(analyzer, https, dns, ntp)
        page, before = await operator.flows(), await skyfast.self_metrics()

        await operator.reload({"pipeline.filter.drop": rules})
        assert await operator.flows() == page
        after = await skyfast.self_metrics()
        counted = ("skyfast_messages", "skyfast_received", "skyfast_flows", "skyfast_connections")
        same = [series for series in before if series.startswith(counted)]
        assert [after[series] for series in same] == [before[series] for series in same]

        # Flow 1 is still known, so its report adds only the increase.
        more = flow("1", Last=3000, Metric=METRIC | {"ABBytes": 150, "BABytes": 250})
        await operator.report(analyzer, more, dns, ntp)
        page = await operator.flows()
        assert sorted(samples(page, BYTES).values()) == ["100", "150", "200", "250"]
        metrics = await skyfast.self_metrics()
        assert metrics['skyfast_flows_filtered_total{rule="dns"}'] == 2
        assert metrics['skyfast_flows_filtered_total{rule="ntp"}'] == 1

        # The self-metrics of removed rules disappear. New rules can use fields that were not
        # decoded before.
        keep = {"name": "big", "Metric.ABPackets": "10-99", "CaptureID": ""}
        await operator.reload({"pipeline.filter.drop": None, "pipeline.filter.keep": [keep]})
        await operator.report(analyzer, flow("4"), flow("5", Metric={"ABPackets": 10}))
        metrics = await skyfast.self_metrics()
        rules_shown = [series for series in metrics if "_filtered_total" in series]
        assert rules_shown == ['skyfast_flows_filtered_total{rule="keep"}']
        assert metrics[rules_shown[0]] == 1
        assert metrics["skyfast_flows"] == 3
        assert analyzer.connections == 1 + len(analyzer.topology_requests)


async def test_flows_are_tagged_according_to_the_new_networks(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    networks = "pipeline.classify.cluster_net_masks"
    keys = {**subscribing(analyzer), "pipeline.filter.excluded_tags": ["internal"]}
    async with operated(tmp_path, keys, quiet=False) as operator:
        await analyzer.subscriber()
        await operator.report(analyzer, flow("1"))
        page = await operator.flows()
        await operator.reload({networks: ["10.0.0.0/8"]})
        await operator.report(analyzer, flow("2", NodeTID="other"))
        assert await operator.flows() == page
        metrics = await operator.skyfast.self_metrics()
        assert metrics['skyfast_flows_skipped_total{reason="excluded"}'] == 1
        assert not problems(operator.skyfast.log)

        # If a label shows tags, a change of the networks empties the table.
        await operator.reload({f"{STORE}.labels": ["tag"], "pipeline.filter.excluded_tags": None})
        await operator.report(analyzer, flow("1"))
        log = await operator.reload({networks: ["10.0.0.1/32"]})
        assert "cluster_net_masks" in problems(log)[0]
        await operator.report(analyzer, flow("1"))
        assert 'tag="egress"' in await operator.flows()


async def test_new_limits_apply_to_new_connections(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    def node(number: int) -> dict[str, Any]:
        return flow(str(number), NodeTID=f"n{number}")

    async with operated(tmp_path, subscribing(analyzer), quiet=False) as operator:
        skyfast = operator.skyfast
        await analyzer.subscriber()
        await operator.report(analyzer, *map(node, range(5)))
        await operator.reload({f"{STORE}.max_connections": 3})
        await operator.report(analyzer, node(0) | {"Last": 3000}, node(5))
        metrics = await skyfast.self_metrics()
        assert metrics["skyfast_connections"] == 5
        assert metrics["skyfast_connections_rejected_total"] == 1
        await operator.reload({f"{STORE}.max_connections": 7})
        await operator.report(analyzer, *map(node, range(5, 9)))
        metrics = await skyfast.self_metrics()
        assert metrics["skyfast_connections"] == 7
        assert metrics["skyfast_connections_rejected_total"] == 3
        full = 'skyfast_flows_skipped_total{reason="table_full"}'
        assert metrics[full] == 3
        await operator.reload({f"{STORE}.max_flows": 7, f"{STORE}.max_connections": 10})
        await operator.report(analyzer, node(9))
        metrics = await skyfast.self_metrics()
        assert (metrics["skyfast_flows"], metrics[full]) == (7, 4)
        limits = metrics["skyfast_connections_limit"], metrics["skyfast_flows_limit"]
        assert limits == (10, 7)
    assert all("table full" in line for line in problems(skyfast.log))


@pytest.mark.xdist_group("timing")
async def test_new_timeouts_apply_from_the_next_report(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    view = {"prefix": "lab", "labels": ["node_tid"], "timeout": 1.5}
    times = {f"{STORE}.connection_timeout": 1, f"{STORE}.connection_grace": 0}
    keys = {**subscribing(analyzer), **times, f"{STORE}.views": [view]}
    rows = 'skyfast_view_connections{view="lab"}'
    async with operated(tmp_path, keys) as operator:
        skyfast = operator.skyfast
        await analyzer.subscriber()
        await operator.report(analyzer, flow("1"), flow("2", NodeTID="other"))
        # Longer timeouts apply to connections only from their next report on.
        longer = {f"{STORE}.connection_grace": 100, f"{STORE}.views": [view | {"timeout": 200}]}
        await operator.reload(longer)
        began = time.monotonic()
        await operator.report(analyzer, flow("1", Last=3000))
        metrics = await skyfast.until(lambda metrics: metrics[rows] == 1)
        assert time.monotonic() - began < 5
        assert metrics["skyfast_connections"] == 1
        # The older connection keeps the longer timeouts until its next report, so the new one
        # expires first.
        await operator.reload({f"{STORE}.connection_grace": 0.5, f"{STORE}.views": [view]})
        await operator.report(analyzer, flow("3", NodeTID="third"))
        assert (await skyfast.self_metrics())[rows] == 2
        began = time.monotonic()
        metrics = await skyfast.until(lambda metrics: metrics[rows] == 1)
        assert time.monotonic() - began < 5
        assert metrics["skyfast_connections"] == 1
        assert metrics["skyfast_connections_expired_total"] == 2


async def test_bytes_of_a_lost_report_are_counted_with_the_next_report(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    times = {f"{STORE}.connection_timeout": 1, f"{STORE}.connection_grace": 0}
    # If skyfast learns the update interval during the test, it warns that the timeout is too short.
    keys = {**subscribing(analyzer), **times}
    async with operated(tmp_path, keys, quiet=False) as operator:
        skyfast = operator.skyfast
        await analyzer.subscriber()
        await operator.report(analyzer, flow("1"))
        await skyfast.until(lambda metrics: metrics["skyfast_dormant_flows"] == 1)
        assert samples(await operator.flows(), BYTES) == {}
        # Of two updates, the first is lost. The LastUpdateMetric of the second contains only the
        # traffic after the first.
        later = flow(
            "1",
            Last=122_000,
            Metric=METRIC | {"ABBytes": 150, "BABytes": 270},
            LastUpdateMetric={"ABBytes": 20, "BABytes": 30, "Start": 62_000, "Last": 122_000},
        )
        await operator.report(analyzer, later)
        page = await operator.flows()
        assert sorted(samples(page, BYTES).values()) == ["150", "270"]
        assert sorted(samples(page, "skydive_traffic_bytes_total").values()) == ["150", "270"]
        metrics = await skyfast.self_metrics()
        assert (metrics["skyfast_dormant_flows"], metrics["skyfast_flows"]) == (0, 1)
        # A shorter flow_memory, even 0, takes effect at once.
        await skyfast.until(lambda metrics: metrics["skyfast_dormant_flows"] == 1)
        await operator.reload({f"{STORE}.flow_memory": 0})
        metrics = await skyfast.until(lambda metrics: metrics["skyfast_dormant_flows"] == 0)
        assert metrics["skyfast_flow_memory_seconds"] == 0
    assert all("connection_timeout" in line for line in problems(skyfast.log))


@pytest.mark.parametrize(
    ("changes", "moves_horizon"),
    [
        ({}, False),
        ({"max_connections": 10, "flow_memory": 5}, False),
        ({"drop": [{"name": "dns", "target_port": 53}]}, True),
        ({"excluded_tags": ["internal"]}, True),
        ({"cluster_net_masks": ["10.0.0.0/8"]}, True),
        ({"capture_id": "c"}, True),
    ],
)
async def test_flows_excluded_before_a_reload_are_not_counted_as_new(
    changes: dict[str, Any], moves_horizon: bool
) -> None:
    config = make_config()
    app = App(config, load=lambda: make_config(**changes))
    table = app._parts.table
    table.raise_horizon(0.0)
    assert await app.reload() is None
    assert app._parts.table is table
    assert table.horizon_s is not None
    assert (table.horizon_s > 0.0) == moves_horizon


async def test_new_table_after_a_reload_keeps_the_update_interval_and_resets_the_horizon() -> None:
    app = App(make_config(), load=lambda: make_config(labels=["target_ip"]))
    app._parts.table.raise_horizon(0.0)
    app.stats.flow_update_s = 10.0
    assert await app.reload() is None
    table = app._parts.table
    assert table.horizon_s is None
    assert table.flow_update_s == 10.0


async def test_log_level_changes_at_a_reload(tmp_path: Path) -> None:
    async with operated(
        tmp_path, {"pipeline.subscriber.url": UNREACHABLE}, quiet=False
    ) as operator:
        log = await operator.reload({"logging.level": "DEBUG", "ui.theme": "dark"})
        assert any(" DEBUG skyfast.config: " in line and "ui" in line for line in log)
        before = await operator.skyfast.self_metrics()
        logged = len(operator.skyfast.log)
        operator.write({"logging.level": "CRITICAL"})
        operator.skyfast.process.send_signal(signal.SIGHUP)
        await operator.skyfast.until(lambda metrics: metrics[SUCCESS_AT] > before[SUCCESS_AT])
        assert not outcomes(operator.skyfast.log[logged:])


async def test_warnings_about_the_new_file_are_logged(tmp_path: Path) -> None:
    async with operated(
        tmp_path, {"pipeline.subscriber.url": UNREACHABLE}, quiet=False
    ) as operator:
        log = await operator.reload({"pipeline.encode.type": "csv"})
        assert any("pipeline.encode" in line for line in problems(log))


async def test_limits_of_the_web_server_can_change(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    async with operated(tmp_path, subscribing(analyzer), quiet=False) as operator:
        _, _, port = operator.skyfast.url.rpartition(":")
        idle = socket.create_connection(("127.0.0.1", int(port)), timeout=WAIT_S)
        with idle:
            assert (await operator.skyfast.self_metrics())[SUCCESSFUL] == 1
            await operator.reload({"web.max_connections": 1})
            metrics = await operator.skyfast.self_metrics()
            assert metrics["skyfast_http_connections_rejected_total"] == 1
            assert await asyncio.to_thread(idle.recv, 1) == b""


async def test_reload_over_http_can_be_enabled_and_disabled(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    async with operated(tmp_path, subscribing(analyzer)) as operator:
        assert (await operator.post())[0] == 403
        await operator.reload({"web.enable_reload": True})
        assert (await operator.post())[0] == 200
        operator.write({"web.enable_reload": False})
        assert (await operator.post())[0] == 200
        assert (await operator.post())[0] == 403


async def test_listen_address_changes_only_at_a_restart(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    async with operated(tmp_path, subscribing(analyzer), quiet=False) as operator:
        changes = {f"{STORE}.port": 1, f"{STORE}.listen_address": "127.0.0.2"}
        for _ in range(2):
            (line,) = problems(await operator.reload(changes))
            assert "port require a restart" in line
            assert (await operator.skyfast.self_metrics())[SUCCESSFUL] == 1
        changes = {f"{STORE}.port": 0, f"{STORE}.listen_address": "127.0.0.1"}
        assert not problems(await operator.reload(changes))


# Analyzers -----------------------------------------------------------------------------------


async def test_unchanged_analyzers_stay_connected(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    async with (
        FakeAnalyzer() as gone,
        FakeAnalyzer() as new,
        operated(tmp_path, subscribing(gone, analyzer)) as operator,
    ):
        skyfast = operator.skyfast
        stays, leaves = await analyzer.subscriber(), await gone.subscriber()
        await operator.report(analyzer, flow("1"))
        await operator.report(gone, flow("2", NodeTID="other"))
        page = await operator.flows()

        log = await operator.reload(subscribing(analyzer, new))
        assert any("subscribing" in line and new.name in line for line in log)
        assert not any("subscribing" in line and analyzer.name in line for line in log)
        await new.subscriber()
        await leaves.gone()
        assert leaves.close_code == 1000
        metrics = await skyfast.until(lambda metrics: not series_of_analyzer(metrics, gone.name))
        assert metrics[f'skyfast_up{{analyzer="{analyzer.name}"}}'] == 1
        assert metrics[f'skyfast_flows_total{{analyzer="{analyzer.name}"}}'] == 1
        assert await operator.flows() == page

        await operator.report(new, flow("3", NodeTID="third"))
        await operator.report(analyzer, flow("1", Last=3000))
        assert not stays.closed.is_set()
        assert len(analyzer.upgrades) == 1
        metrics = await skyfast.self_metrics()
        assert metrics["skyfast_connections"] == 3
        assert not any(n for series, n in metrics.items() if "reconnects" in series)

        # The order of the URLs has no effect.
        await operator.reload(subscribing(new, analyzer))
        await operator.report(analyzer, flow("1", Last=4000))
        assert (len(new.upgrades), len(analyzer.upgrades)) == (1, 1)


CONNECTION_SETTINGS = {
    "host_id": "another",
    "analyzer.auth.cluster.password": "new",
    "http.cookie": {"session": "1"},
    "pipeline.subscriber.capture_id": "c0ffee",
    "pipeline.subscriber.max_message_bytes": 100_000,
    "pipeline.subscriber.silence_timeout": 30,
}


async def test_new_connection_settings_reconnect_every_analyzer(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    async with FakeAnalyzer() as other:
        keys = {**subscribing(analyzer, other), "analyzer.auth.cluster.username": "prom"}
        async with operated(tmp_path, keys) as operator:
            for fake in (analyzer, other):
                fake.unique_host_ids = True
                await fake.subscriber()
                await operator.report(fake, flow(fake.name, NodeTID=fake.name))
            page = await operator.flows()
            for number, (key, value) in enumerate(CONNECTION_SETTINGS.items(), start=2):
                await operator.reload({key: value})
                for fake in (analyzer, other):
                    remote = await fake.subscriber()
                    series = f'skyfast_up{{analyzer="{fake.name}"}}'
                    metrics = await operator.skyfast.until(
                        lambda metrics, series=series: metrics[series] == 1
                    )
                    assert len(fake.upgrades) == number
                    assert fake.subscribers == [remote]
                    assert metrics[f'skyfast_flows_total{{analyzer="{fake.name}"}}'] == 1
            assert await operator.flows() == page
        for fake in (analyzer, other):
            last = fake.upgrades[-1]
            assert last.get("X-Host-ID") == "another"
            assert last.basic == ("prom", "new")
            assert last.cookies == {"session": "1"}
            assert last.all("X-Websocket-Namespace") == ["flow/c0ffee", "stats"]


async def test_skyfasts_previous_subscription_is_not_reported_as_another_client(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    analyzer.unique_host_ids, analyzer.host_id_linger_s = True, 0.3
    async with operated(tmp_path, subscribing(analyzer)) as operator:
        await analyzer.subscriber()
        await operator.reload({"pipeline.subscriber.capture_id": "c0ffee"})
        await analyzer.subscriber()
        metrics = await operator.skyfast.self_metrics()
        series = f'skyfast_reconnects_total{{analyzer="{analyzer.name}",reason="conflict"}}'
        assert metrics[series] > 0


async def test_replaced_certificate_files_are_reloaded(tmp_path: Path) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    trusted = tmp_path / "ca.pem"
    shutil.copy(first.certificate, trusted)
    async with (
        FakeAnalyzer(ssl=first.server_context("127.0.0.1")) as first_analyzer,
        FakeAnalyzer(ssl=second.server_context("127.0.0.1")) as second_analyzer,
        FakeAnalyzer() as plain,
    ):
        keys = {**subscribing(first_analyzer, second_analyzer, plain), "tls.ca_cert": str(trusted)}
        async with operated(tmp_path, keys, quiet=False) as operator:
            await plain.subscriber()
            remote = await first_analyzer.subscriber()
            # skyfast stays connected, because the file that it reads again is unchanged.
            await operator.reload({"pipeline.filter.excluded_tags": ["internal"]})
            await operator.report(first_analyzer, flow("1"))
            assert not remote.closed.is_set()
            shutil.copy(second.certificate, trusted)
            await operator.reload()
            await remote.gone()
            await second_analyzer.subscriber()
            assert (len(first_analyzer.upgrades), len(plain.upgrades)) == (1, 1)


async def test_dns_urls_can_be_added_and_removed(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    named = f"dns+ws://localhost:{analyzer.port}/ws/subscriber/flow"
    async with (
        FakeAnalyzer() as other,
        operated(tmp_path, subscribing(other), quiet=False) as operator,
    ):
        skyfast = operator.skyfast
        stays = await other.subscriber()
        await operator.reload({"pipeline.subscriber.urls": [other.url, named]})
        remote = await analyzer.subscriber()
        metrics = await skyfast.until(
            lambda metrics: metrics.get(f'skyfast_up{{analyzer="localhost:{analyzer.port}"}}')
        )
        assert metrics[f'skyfast_up{{analyzer="{analyzer.name}"}}'] == 1
        await operator.reload({"pipeline.subscriber.urls": [other.url]})
        await remote.gone()
        assert remote.close_code == 1000
        await skyfast.until(
            lambda metrics: not any(str(analyzer.port) in series for series in metrics)
        )
        assert not stays.closed.is_set()


async def test_analyzers_can_change_while_one_is_down(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    keys = {"pipeline.subscriber.urls": [UNREACHABLE]}
    async with operated(tmp_path, keys, quiet=False) as operator:
        skyfast = operator.skyfast
        series = 'skyfast_reconnects_total{analyzer="127.0.0.1:9",reason="refused"}'
        await skyfast.until(lambda metrics: metrics[series] > 0)
        await operator.reload({"pipeline.subscriber.urls": [UNREACHABLE, analyzer.url]})
        remote = await analyzer.subscriber()
        before = (await skyfast.self_metrics())[series]
        assert before > 0
        # The analyzer does not answer when skyfast closes the connection.
        remote.freeze()
        await operator.reload({"pipeline.subscriber.urls": [UNREACHABLE]})
        metrics = await skyfast.until(
            lambda metrics: not series_of_analyzer(metrics, analyzer.name)
        )
        assert metrics[series] >= before
        assert metrics[SUCCESSFUL] == 1


async def test_address_in_two_urls_is_subscribed_to_once(analyzer: FakeAnalyzer) -> None:
    named = f"dns+ws://analyzers.test:{analyzer.port}/ws/subscriber/flow"
    async with subscribed(make_config(named), resolve=FakeResolver(analyzer.address)) as running:
        name = running.stats.analyzers[f"analyzers.test:{analyzer.port}"]
        first = await running.up(analyzer)
        # A name and its address are different endpoints: their credentials can differ.
        for urls in ((named, analyzer.url), (analyzer.url,), (analyzer.url, named), (named,)):
            running.subscriptions.configure(running.subscriptions.prepare(make_config(*urls)))
            await until(lambda urls=urls: (name.name in running.stats.analyzers) == (named in urls))
            await until(lambda: len(analyzer.subscribers) == 1 and running.row(analyzer).up)
            if named in urls:
                row = running.stats.analyzers[name.name]
                await until(lambda row=row: row.up)
        assert first.closed.is_set()
        assert running.reconnects(analyzer) == {}


async def test_address_of_two_names_stays_subscribed_while_one_name_resolves_to_it() -> None:
    async with two_addresses() as (first, second):
        urls = [f"dns+ws://{name}.test:{first.port}/ws/subscriber/flow" for name in ("a", "b")]
        resolver = FakeResolver(first.address, second.address)
        async with subscribed(make_config(*urls), resolve=resolver) as running:
            await first.subscriber()
            await second.subscriber()
            running.subscriptions.configure(running.subscriptions.prepare(make_config(urls[1])))
            await until(lambda: len(first.upgrades) == len(second.upgrades) == 2)
            await until(lambda: running.stats.analyzers[f"b.test:{first.port}"].up)
            assert f"a.test:{first.port}" not in running.stats.analyzers
            resolver.answer = [second.address]
            await until(lambda: first.name not in running.stats.analyzers)
            assert not first.subscribers
            assert len(second.upgrades) == 2


@pytest.mark.xdist_group("timing")
async def test_only_the_last_of_several_configurations_takes_effect(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeAnalyzer() as other, subscribed(make_config(analyzer.url)) as running:
        # The subscriptions see only the second configuration: their task cannot run in between.
        for urls in ((analyzer.url, other.url), (other.url,)):
            running.subscriptions.configure(running.subscriptions.prepare(make_config(*urls)))
        await other.subscriber()
        assert not analyzer.connections
        assert list(running.stats.analyzers) == [other.name]
        running.subscriptions.configure(running.subscriptions.prepare(make_config()))
        running.subscriptions.configure(running.subscriptions.prepare(make_config(other.url)))
        await asyncio.sleep(5 * FAST.tick_s)
        assert len(other.upgrades) == 1
    assert not lines(caplog)


# Export selection ----------------------------------------------------------------------------


async def test_new_labels_and_metrics_start_a_new_table(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    async with operated(tmp_path, subscribing(analyzer), quiet=False) as operator:
        skyfast = operator.skyfast
        await analyzer.subscriber()
        empty = (await skyfast.self_metrics())["skyfast_table_bytes"]
        flows = [flow(f"{i:x}", NodeTID=f"n{i}") for i in range(1, 20_001)]
        for start in range(0, len(flows), 1000):
            await analyzer.send(message(*flows[start : start + 1000]))
        await operator.report(analyzer, flow("1"), flow("0", Metric=None))
        await operator.report(analyzer, flow("1", Last=3000, FinishType="x"))
        metrics = await skyfast.self_metrics()
        assert metrics["skyfast_table_bytes"] > empty + 5e6
        skipped = {series: n for series, n in metrics.items() if "flows_skipped_total" in series}
        assert skipped['skyfast_flows_skipped_total{reason="no_metric"}'] == 1
        assert skipped['skyfast_flows_skipped_total{reason="late"}'] == 1
        values = {series: n for series, n in metrics.items() if "values_skipped_total" in series}
        assert values['skyfast_values_skipped_total{field="FinishType"}'] == 1
        assert values['skyfast_values_skipped_total{field="Metric.RTT"}'] == 0

        changes = {f"{STORE}.labels": ["target_port", "node_tid"], f"{STORE}.metrics": ["flows"]}
        (line,) = problems(await operator.reload(changes))
        assert "all connections removed from the table" in line
        assert line.endswith("all connections removed from the table: labels, metrics changed")
        page = await operator.flows()
        assert BYTES not in page
        assert "node_tid" not in page
        metrics = await skyfast.self_metrics()
        assert metrics["skyfast_table_bytes"] < 2 * empty
        assert {series: metrics[series] for series in skipped} == skipped
        assert {series: metrics[series] for series in values} == values
        assert metrics[f'skyfast_flows_total{{analyzer="{analyzer.name}"}}'] == 20_003

        await operator.report(analyzer, flow("1"), flow("2"))
        labels = 'target_port="443",node_tid="tid",direction="initiator_to_target"'
        assert samples(await operator.flows(), "skydive_network_connection_flows") == {
            f"skydive_network_connection_flows{{{labels}}}": "2"
        }
        assert len(analyzer.upgrades) == 1
        assert not problems(await operator.reload())


# Per field of `ExportSelection`: the keys of the first configuration, and the changed keys.
SELECTIONS: Mapping[str, tuple[Keys, Keys]] = {
    "first_view": ({}, {"labels": ["protocol"]}),
    "further_views": ({}, {"views": []}),
    "include_icmp": ({}, {"include_icmp": True}),
    "include_other": ({}, {"include_other": True}),
    "rewrite": ({}, {"rewrite": {"initiator_ip": {"mask": 24}}}),
    "overflow": ({}, {"overflow": "other"}),
    "deduplicate": ({}, {"deduplicate": "first"}),
    "naming": ({}, {"naming": "standard"}),
    "cluster_net_masks": ({"labels": ["tag"]}, {"cluster_net_masks": ["10.0.0.0/8"]}),
}
VIEWS: Mapping[str, tuple[Keys, Keys]] = {
    "prefix": ({"prefix": "a"}, {"prefix": "b"}),
    "labels": ({}, {"labels": ["application"]}),
    "metrics": ({}, {"metrics": ["flows"]}),
    "direction": ({"labels": ["protocol", "direction"]}, {"direction": "sum", "labels": ["vlan"]}),
    "amounts": ({"metrics": ["rtt"]}, {"min_bytes": 7}),
}
LIMITS: Mapping[str, tuple[Keys, Keys]] = {
    "max_connections": ({"max_flows": 9}, {"max_connections": 7}),
    "max_flows": ({}, {"max_flows": 7}),
    "connection_timeout_s": ({}, {"connection_timeout": 77}),
    "connection_grace_s": ({}, {"connection_grace": 7}),
    "flow_memory_s": ({}, {"flow_memory": 7}),
    "bounds": ({}, {"min_bytes": 7, "min_packets": 8}),
    "view_timeouts_s": (
        {"views": [{"prefix": "a", "labels": ["protocol"]}]},
        {"views": [{"prefix": "a", "labels": ["protocol"], "timeout": 777}]},
    ),
}


def differing_fields(old: Any, new: Any) -> list[str]:
    names = [field.name for field in dataclasses.fields(old)]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def config_of_store(keys: Keys) -> Config:
    """Return a configuration with these keys: keys of the store, or ``cluster_net_masks``."""
    networks = "cluster_net_masks"
    paths = {f"pipeline.classify.{k}" if k == networks else f"{STORE}.{k}": keys[k] for k in keys}
    return loader.parse(text_of(paths), {}, source="x.yml")


async def has_new_table(keys: Keys, changes: Keys) -> bool:
    app = App(config_of_store(keys), load=lambda: config_of_store({**keys, **changes}))
    table = app._parts.table
    assert await app.reload() is None
    return app._parts.table is not table


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ExportSelection)])
async def test_changed_selection_starts_a_new_table(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys, changes = SELECTIONS[name]
    old, new = config_of_store(keys), config_of_store({**keys, **changes})
    assert differing_fields(old.export, new.export) == [name]
    assert old.limits == new.limits or name == "further_views"
    assert await has_new_table(keys, changes)
    (line,) = (line for line in lines(caplog) if "all connections removed from the table" in line)
    assert line.endswith(f"all connections removed from the table: {', '.join(changes)} changed")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ViewSpec)])
async def test_changed_view_starts_a_new_table(name: str) -> None:
    keys, changes = VIEWS[name]
    first: Keys = {"prefix": "a", "labels": ["protocol"], **keys}
    second: Keys = {**first, **changes}
    old, new = (
        config_of_store({"views": [view]}).export.further_views[0] for view in (first, second)
    )
    assert name in differing_fields(old, new)
    assert await has_new_table({"views": [first]}, {"views": [second]})


@pytest.mark.parametrize("name", ["labels", "metrics", "direction", "amounts"])
async def test_changed_first_view_starts_a_new_table(name: str) -> None:
    keys, changes = VIEWS[name]
    first: Keys = {"labels": ["protocol"], **keys}
    second: Keys = {**first, **changes}
    assert name in differing_fields(
        config_of_store(first).export.first_view, config_of_store(second).export.first_view
    )
    assert await has_new_table(first, second)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TableLimits)])
async def test_changed_limits_keep_the_table(name: str) -> None:
    keys, changes = LIMITS[name]
    old, new = config_of_store(keys), config_of_store({**keys, **changes})
    assert differing_fields(old.limits, new.limits) == [name]
    assert old.export == new.export
    assert pipeline._table_limits(old.limits) != pipeline._table_limits(new.limits)
    assert not await has_new_table(keys, changes)


@pytest.mark.parametrize(
    ("keys", "changes"),
    [
        ({}, {"max_series": 7}),
        ({"min_bytes": 7}, {"min_bytes": 8}),
        ({"metrics": ["rtt"], "min_bytes": 7}, {"min_bytes": 8}),
        ({"metrics": ["rtt"], "min_packets": 7}, {"min_packets": 0, "min_bytes": 7}),
        (
            {"views": [{"prefix": "a", "labels": ["vlan"]}]},
            {"views": [{"prefix": "a", "labels": ["vlan"], "min_bytes": 7, "min_packets": 7}]},
        ),
    ],
)
async def test_changed_bounds_keep_the_table_if_its_counters_stay_the_same(
    keys: Keys, changes: Keys
) -> None:
    is_new = await has_new_table(keys, changes)
    # Without min_packets, packets are no longer counted, so a new table starts.
    assert is_new == (changes.get("min_packets") == 0)


async def test_bounds_that_change_the_required_counters_start_a_new_table(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await has_new_table({"metrics": ["rtt"]}, {"min_bytes": 7})
    (line,) = (line for line in lines(caplog) if "all connections removed from the table" in line)
    assert line.endswith("all connections removed from the table: min_bytes or min_packets changed")


async def test_new_bounds_show_and_hide_connections(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    async with operated(tmp_path, subscribing(analyzer)) as operator:
        await analyzer.subscriber()
        small = {"ABBytes": 1, "BABytes": 2}
        await operator.report(analyzer, flow("1"), flow("2", NodeTID="n2", Metric=small))
        before = await operator.flows()
        assert len(samples(before, BYTES)) == 4
        await operator.reload({f"{STORE}.min_bytes": 300})
        page = await operator.flows()
        assert samples(page, BYTES).items() < samples(before, BYTES).items()
        assert len(samples(page, BYTES)) == 2
        metrics = await operator.skyfast.self_metrics()
        assert metrics['skyfast_hidden_connections{view=""}'] == 1
        assert metrics['skyfast_hidden_bytes{view=""}'] == 3
        await operator.reload({f"{STORE}.min_bytes": 3})
        assert await operator.flows() == before
        assert not any("connections removed" in line for line in operator.skyfast.log)


async def test_table_is_kept_if_cluster_net_masks_change_and_no_label_is_tag() -> None:
    assert not await has_new_table({}, {"cluster_net_masks": ["10.0.0.0/8"]})


async def test_page_in_progress_is_not_affected_by_a_reload(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    count = 20_000
    async with operated(tmp_path, subscribing(analyzer), quiet=False) as operator:
        await analyzer.subscriber()
        flows = [flow(f"{i:x}", NodeTID=f"n{i}") for i in range(1, count + 1)]
        for start in range(0, count, 1000):
            await operator.report(analyzer, *flows[start : start + 1000])
        _, _, port = operator.skyfast.url.rpartition(":")
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.settimeout(WAIT_S)
            await asyncio.to_thread(reader.connect, ("127.0.0.1", int(port)))
            reader.sendall(b"GET /metrics HTTP/1.1\r\nHost: skyfast\r\nConnection: close\r\n\r\n")
            response = bytearray(await asyncio.to_thread(reader.recv, 1000))
            await operator.reload({f"{STORE}.labels": ["target_ip"], f"{STORE}.naming": "standard"})
            await operator.report(analyzer, flow("1"))
            assert "skydive_connection_bytes_total" in await operator.flows()

            def read_rest() -> None:
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                while data := reader.recv(1 << 20):
                    response.extend(data)

            await asyncio.to_thread(read_rest)
        assert response.endswith(b"\r\n0\r\n\r\n")
        page = unchunked(bytes(response)).decode()
        assert len(samples(page, BYTES)) == 2 * count
        assert "skydive_connection_bytes_total" not in page
        assert page.rstrip().splitlines()[-1].startswith("skyfast_label_values")


def unchunked(response: bytes) -> bytes:
    _, _, rest = response.partition(b"\r\n\r\n")
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return b"".join(chunks)


async def test_changed_include_other_starts_a_new_table(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    gre = flow("1", Transport=None, LayersPath="Ethernet/IPv4/GRE")
    ping = flow("2", Transport=None, LayersPath="Ethernet/IPv4/ICMPv4", ICMP={"Type": "ECHO"})
    async with operated(tmp_path, subscribing(analyzer), quiet=False) as operator:
        await analyzer.subscriber()
        await operator.report(analyzer, gre, ping, flow("3"))
        assert samples(await operator.flows(), BYTES).keys() == {
            series("TCP", "40000", "443", direction) for direction in DIRECTIONS
        }
        (line,) = problems(await operator.reload({f"{STORE}.include_other": True}))
        assert line.endswith("all connections removed from the table: include_other changed")
        await operator.report(analyzer, gre, ping, flow("3"))
        assert samples(await operator.flows(), BYTES).keys() == {
            series(protocol, *ports, direction)
            for protocol, ports in (("TCP", ("40000", "443")), ("GRE", ("", "")))
            for direction in DIRECTIONS
        }
        skipped = await operator.skyfast.self_metrics()
        assert skipped['skyfast_flows_skipped_total{reason="no_transport"}'] == 3


DIRECTIONS = ("initiator_to_target", "target_to_initiator")


def series(protocol: str, initiator_port: str, target_port: str, direction: str) -> str:
    """Return a series of the byte counter with the default labels."""
    return (
        f'{BYTES}{{initiator_ip="10.0.0.1",target_ip="10.0.0.2",initiator_port="{initiator_port}",'
        f'target_port="{target_port}",direction="{direction}",node_tid="tid",protocol="{protocol}"}}'
    )


async def test_standard_naming_enables_openmetrics(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    interface = {"Name": "eth0", "Type": "device", "TID": "t", "EncapType": "ether"}
    nodes = [{"ID": "n", "Host": "h", "Metadata": interface | {"Metric": {"RxBytes": 7}}}]
    analyzer.topology = FakeResponse(body=json.dumps(nodes).encode())
    report = '{"Namespace":"stats","Type":"stats","Obj":{"CaptureID":"c","FlowDropped":3}}'
    async with operated(tmp_path, subscribing(analyzer), quiet=False) as operator:
        skyfast = operator.skyfast

        async def content_type() -> str | None:
            request = urllib.request.Request(
                skyfast.url + "/metrics", headers={"Accept": PROMETHEUS["3"]}
            )

            def ask() -> str | None:
                with urllib.request.urlopen(request, timeout=WAIT_S) as response:
                    kind: str | None = response.headers["Content-Type"]
                    if "openmetrics" in (kind or ""):
                        assert response.read().endswith(b"\n# EOF\n")
                    return kind

            return await asyncio.to_thread(ask)

        await analyzer.subscriber()
        await analyzer.send(report)
        await skyfast.until(lambda metrics: metrics["skyfast_captures"] == 1)
        assert "text/plain" in (await content_type() or "")
        # Only the labels have changed, so interfaces and captures are still on the page.
        await operator.reload({f"{STORE}.labels": ["target_ip"]})
        page = (await skyfast.get("/metrics")).decode()
        assert samples(page, "skydive_network_interface_rx_bytes")
        assert samples(page, "skydive_capture_flows_dropped") == {
            'skydive_capture_flows_dropped{capture_id="c"}': "3"
        }

        answers = (await skyfast.self_metrics())["skyfast_topology_answers_total"]
        await operator.reload({f"{STORE}.naming": "standard"})
        assert "openmetrics" in (await content_type() or "")
        await analyzer.send(report)
        await skyfast.until(
            lambda metrics: (
                metrics["skyfast_captures"] == 1
                and metrics["skyfast_topology_answers_total"] > answers
            )
        )
        page = (await skyfast.get("/metrics")).decode()
        assert samples(page, "skydive_interface_receive_bytes_total")
        assert samples(page, "skydive_capture_flows_dropped_total")
        assert "skydive_network_interface_rx_bytes" not in page
        await operator.reload({f"{STORE}.naming": None})
        assert "text/plain" in (await content_type() or "")


async def test_start_timestamps_can_be_enabled_without_a_new_table(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    keys = {**subscribing(analyzer), f"{STORE}.naming": "standard"}
    async with operated(tmp_path, keys, quiet=False) as operator:
        skyfast = operator.skyfast

        async def created() -> dict[str, str]:
            page = await skyfast.get("/metrics/flows", accept=PROMETHEUS["3"])
            return samples(page.decode(), "skydive_connection_bytes_created")

        await analyzer.subscriber()
        await analyzer.send(message(flow(Start=1_700_000_000_123)))
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] == 1)
        assert not await created()
        await operator.reload({f"{STORE}.start_timestamps": True})
        assert [*(await created()).values()] == ["1700000000.123"] * 2
        await operator.reload({f"{STORE}.start_timestamps": None})
        assert not await created()
        assert (await skyfast.self_metrics())["skyfast_connections_created_total"] == 1


async def test_interfaces_survive_a_change_of_the_query_interval(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    interface = {"Name": "eth0", "Type": "device", "TID": "t", "EncapType": "ether"}
    analyzer.topology = FakeResponse(body=json.dumps([{"ID": "n", "Metadata": interface}]).encode())
    async with operated(tmp_path, subscribing(analyzer), quiet=False) as operator:
        skyfast = operator.skyfast
        await skyfast.until(lambda metrics: metrics["skyfast_interfaces"] == 1)
        analyzer.topology = Fault.EOF
        await operator.reload({f"{STORE}.interfaces_interval": 10})
        assert (await skyfast.self_metrics())["skyfast_interfaces"] == 1
        assert b"skydive_network_interface_rx_bytes" in await skyfast.get("/metrics/interfaces")
        await operator.reload({f"{STORE}.interfaces_interval": 0})
        assert await skyfast.get("/metrics/interfaces") == b""
        await skyfast.until(lambda metrics: metrics["skyfast_interfaces"] == 0)
        requests = len(analyzer.topology_requests)
        analyzer.topology = FakeResponse(
            body=json.dumps([{"ID": "n", "Metadata": interface}]).encode()
        )
        await operator.reload({f"{STORE}.interfaces_interval": 10})
        await skyfast.until(lambda metrics: metrics["skyfast_interfaces"] == 1)
        assert len(analyzer.topology_requests) == requests + 1


# Names of the topology -----------------------------------------------------------------------

NAME_LABELS = ["target_ip", "node_name", "target_name"]


def topology(name: str) -> FakeResponse:
    """Return a topology with a named capture point, and an interface with address 10.0.0.2."""
    nodes = [
        {"ID": "1", "Host": "h", "Metadata": {"TID": "tid", "Name": name, "Type": "device"}},
        {"ID": "2", "Host": "h", "Metadata": {"TID": "o", "Name": "eth9", "IPV4": ["10.0.0.2/8"]}},
    ]
    return FakeResponse(body=json.dumps(nodes).encode())


def total(page: str, **labels: str) -> str:
    """Return the bytes sent by the initiator, from the series with these labels."""
    (value,) = [
        value
        for series, value in samples(page, BYTES).items()
        if "initiator_to_target" in series
        and all(f'{label}="{value}"' in series for label, value in labels.items())
    ]
    return value


async def test_flows_have_topology_names_from_the_start_and_after_renames(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    analyzer.topology = topology("eth0")

    async def send_flow(_: object) -> None:
        assert analyzer.topology_requests
        await analyzer.send(message(flow("1")))

    analyzer.on_subscribe = send_flow
    keys = {**subscribing(analyzer), f"{STORE}.labels": NAME_LABELS}
    async with operated(tmp_path, {**keys, f"{STORE}.interfaces_interval": 0.1}) as operator:
        skyfast = operator.skyfast
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] == 1)
        assert total(await operator.flows(), node_name="eth0", target_name="h") == "100"
        analyzer.topology = topology("eth1")
        answers = (await skyfast.self_metrics())["skyfast_topology_answers_total"]
        await skyfast.until(
            lambda metrics: metrics["skyfast_topology_answers_total"] >= answers + 2
        )
        page = await operator.flows()
        assert 'node_name="eth0"' not in page
        assert total(page, node_name="eth1") == "0"
        await operator.report(analyzer, flow("1", Last=3000, Metric=METRIC | {"ABBytes": 130}))
        assert total(await operator.flows(), node_name="eth1") == "30"


async def test_names_are_polled_without_interfaces(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    analyzer.topology = topology("eth0")
    keys = {**subscribing(analyzer), f"{STORE}.labels": NAME_LABELS}
    keys[f"{STORE}.interfaces_interval"] = 0
    async with operated(tmp_path, keys, quiet=False) as operator:
        await analyzer.subscriber()
        await operator.report(analyzer, flow("1"))
        assert total(await operator.flows(), node_name="eth0", target_name="h") == "100"
        assert await operator.skyfast.get("/metrics/interfaces") == b""
        await operator.reload({f"{STORE}.labels": ["target_ip"]})
        requests = len(analyzer.topology_requests)
        analyzer.topology = topology("eth1")
        await operator.report(analyzer, flow("1"))
        assert len(analyzer.topology_requests) == requests
        # After the previous reload, no label needed names, so skyfast has to read them again.
        await operator.reload({f"{STORE}.labels": NAME_LABELS})
        await operator.report(analyzer, flow("1"))
        assert total(await operator.flows(), node_name="eth1", target_name="h") == "100"
        assert (await operator.skyfast.self_metrics())["skyfast_connections_created_total"] == 1


async def test_new_table_with_name_labels_waits_for_the_topology(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    analyzer.topology = Fault.EOF
    keys = {**subscribing(analyzer), f"{STORE}.interfaces_interval": 0.1}
    async with operated(tmp_path, keys, quiet=False) as operator:
        await analyzer.subscriber()
        await operator.report(analyzer, flow("1"))
        page = await operator.flows()
        requests = len(analyzer.topology_requests)
        reloading = asyncio.create_task(operator.reload({f"{STORE}.labels": NAME_LABELS}))
        await until(lambda: len(analyzer.topology_requests) > requests + 2)
        assert await operator.flows() == page
        # Wait for the last query of the round. Otherwise, only some queries would succeed, and
        # names could be resolved without the interfaces.
        await until(lambda: KUBERNETES_EDGES.gremlin in analyzer.queries)
        analyzer.topology = topology("eth0")
        await reloading
        await operator.report(analyzer, flow("1", Last=3000))
        assert total(await operator.flows(), node_name="eth0") == "100"
        assert (await operator.skyfast.self_metrics())["skyfast_connections_created_total"] == 1


@pytest.mark.xdist_group("timing")
async def test_wait_for_the_topology_is_bounded(
    analyzer: FakeAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "NAMES_WAIT_S", 0.2)
    analyzer.topology = Fault.HANG
    settings = {"port": 0, "listen_address": "127.0.0.1", "labels": ["node_name", "target_ip"]}
    config = make_config(analyzer.url, **settings)
    async with running_app(
        config, lambda: make_config(analyzer.url, **settings, metrics=["flows"])
    ) as app:
        began = time.monotonic()
        await analyzer.subscriber()
        assert time.monotonic() - began >= 0.2
        assert await app.reload() is None
        assert await app.reload() is None
        await analyzer.send(message(flow("1")))
        await until(lambda: app.exposition.source.table.connections == 1)


# Timing of reloads ---------------------------------------------------------------------------


async def test_reload_before_the_first_subscription_takes_effect(
    analyzer: FakeAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "NAMES_WAIT_S", 0.5)
    settings = {"port": 0, "listen_address": "127.0.0.1"}
    async with FakeAnalyzer() as other:
        other.topology = Fault.HANG
        waiting = make_config(other.url, **settings, labels=["node_name"])
        async with running_app(waiting, lambda: make_config(analyzer.url, **settings)) as app:
            await until(lambda: other.topology_requests)
            assert await app.reload() is None
            await analyzer.subscriber()
            assert not other.upgrades
            await until(lambda: list(app.stats.analyzers) == [analyzer.name])


async def test_signal_during_the_start_is_handled_after_the_start(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    pipe = tmp_path / "prom_sky_con.yml"
    os.mkfifo(pipe)

    writers: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):
            writers.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    async with spawned(str(pipe)) as process:
        await until(is_read)
        process.send_signal(signal.SIGHUP)
        os.write(writers[0], text_of(subscribing(analyzer)).encode())
        os.close(writers[0])
        # The reload fails, because the configuration file is a pipe.
        assert "not a regular file" in await outcome(process)
        await analyzer.subscriber()


@pytest.mark.xdist_group("timing")
@pytest.mark.parametrize("delay_s", [0.0, 0.02])
async def test_signals_during_the_stop_are_ignored(
    tmp_path: Path, analyzer: FakeAnalyzer, delay_s: float
) -> None:
    async with operated(tmp_path, subscribing(analyzer)) as operator:
        await analyzer.subscriber()
        process = operator.skyfast.process
        process.send_signal(signal.SIGHUP)
        await asyncio.sleep(delay_s)
        process.terminate()
        async with asyncio.timeout(5):
            while process.returncode is None:
                # `Process.send_signal` could reap the process.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGHUP)
                await asyncio.sleep(0.001)
        assert process.returncode == 0


async def test_after_concurrent_reloads_the_last_file_is_in_use(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    keys = {**subscribing(analyzer), "web.enable_reload": True}
    async with operated(tmp_path, keys, quiet=False) as operator:
        skyfast = operator.skyfast
        await analyzer.subscriber()
        for labels in (["target_ip"], ["node_tid"], ["protocol"], ["initiator_ip"]):
            operator.write({f"{STORE}.labels": labels})
            skyfast.process.send_signal(signal.SIGHUP)
            answers = asyncio.gather(operator.post(), operator.post())
            for _ in range(3):
                skyfast.process.send_signal(signal.SIGHUP)
            assert [status for status, _ in await answers] == [200, 200]
            await operator.report(analyzer, flow("1"))
            assert set(samples(await operator.flows(), BYTES)) == {
                f'{BYTES}{{{labels[0]}="{value}",direction="{direction}"}}'
                for direction in ("initiator_to_target", "target_to_initiator")
                for value in [
                    {"target_ip": "10.0.0.2", "node_tid": "tid", "protocol": "TCP"}.get(
                        labels[0], "10.0.0.1"
                    )
                ]
            }
        assert len(analyzer.upgrades) == 1
        assert (await skyfast.self_metrics())[SUCCESSFUL] == 1


async def test_reloads_leak_neither_memory_nor_files(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    keys = {**subscribing(analyzer), "web.enable_reload": True}
    async with operated(tmp_path, keys, quiet=False) as operator:
        await analyzer.subscriber()

        async def reload_twice() -> Mapping[str, float]:
            for host_id, metrics in (("one", ["bytes"]), ("two", ["bytes", "rtt"])):
                operator.write({"host_id": host_id, f"{STORE}.metrics": metrics})
                assert (await operator.post())[0] == 200
                await analyzer.subscriber()
                await operator.report(analyzer, flow("1"))
            return await operator.skyfast.self_metrics()

        for _ in range(5):
            first = await reload_twice()
        for _ in range(15):
            last = await reload_twice()
        assert last["process_open_fds"] <= first["process_open_fds"] + 3
        growth = last["process_resident_memory_bytes"] - first["process_resident_memory_bytes"]
        assert growth < 4e6


async def test_demo_can_reload_its_configuration(tmp_path: Path) -> None:
    async with demo() as skyfast:
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] > 0)
        before = await skyfast.self_metrics()
        skyfast.process.send_signal(signal.SIGHUP)
        after = await skyfast.until(lambda metrics: metrics[SUCCESS_AT] > before[SUCCESS_AT])
        assert after["skyfast_connections"] >= before["skyfast_connections"]
        up = [series for series in after if series.startswith("skyfast_up{")]
        assert up == [series for series in before if series.startswith("skyfast_up{")]
        assert [after[series] for series in up] == [1.0, 1.0]
