"""Another configuration for a running process: what takes effect, what stays, what goes on.

Most tests start a process, edit its file and send SIGHUP, as an operator does. Those of
subscriptions that nobody but a name server can move are within this process.
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
from collections.abc import AsyncIterator, Callable, Mapping
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
from tests.support.analyzer import Answer, FakeAnalyzer, Fault
from tests.support.certificates import Authority
from tests.support.configs import make_config
from tests.support.messages import METRIC, flow, message
from tests.support.paths import ROOT
from tests.support.process import PROBLEM, START_S, WAIT_S, Skyfast, demo, running
from tests.support.subscribing import FAST, Names, eventually, lines, subscribed, two_addresses
from tests.support.web_fixtures import PROMETHEUS

STORE = "pipeline.store.prom_sky_con"
NOBODY = "ws://127.0.0.1:9/ws/subscriber/flow"
BYTES = "skydive_network_connection_total_bytes"
RELOADED = ("configuration reloaded", "configuration not reloaded")
SUCCESSFUL = "skyfast_config_last_reload_successful"
SUCCESS_AT = "skyfast_config_last_reload_success_timestamp_seconds"
FAILURE_AT = "skyfast_config_last_reload_failure_timestamp_seconds"
FAILED = 'skyfast_config_reload_failures_total{reason="configuration"}'

Keys = Mapping[str, object]
"""What a configuration file says, by the paths of keys."""


def text_of(keys: Keys) -> str:
    """Return a configuration file; it serves on any port of the loopback."""
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
    """Somebody who edits the file of a running skyfast."""

    def __init__(self, skyfast: Skyfast, file: Path, keys: Keys) -> None:
        self.skyfast = skyfast
        self.file = file
        self.keys = dict(keys)

    def write(self, changes: Keys) -> None:
        """Change some keys; None takes one out."""
        self.keys |= changes
        self.file.write_text(text_of({k: v for k, v in self.keys.items() if v is not None}))

    async def reload(self, changes: Keys | None = None) -> list[str]:
        """Change some keys, send SIGHUP, and return what is logged up to the outcome."""
        if changes is not None:
            self.write(changes)
        logged = len(self.skyfast.log)
        self.skyfast.process.send_signal(signal.SIGHUP)
        await eventually(lambda: outcomes(self.skyfast.log[logged:]), WAIT_S)
        return self.skyfast.log[logged:]

    async def post(self) -> tuple[int, str]:
        """Return status and text of the answer to ``POST /-/reload``."""

        def ask() -> tuple[int, str]:
            request = urllib.request.Request(self.skyfast.url + "/-/reload", method="POST")
            try:
                with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as answer:
                with answer:
                    return answer.code, answer.read().decode()

        return await asyncio.to_thread(ask)

    async def flows(self) -> str:
        return (await self.skyfast.get("/metrics/flows")).decode()

    async def report(self, analyzer: FakeAnalyzer, *flows: dict[str, Any]) -> None:
        """Report flows, and wait until they have been counted."""
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


def of_analyzer(metrics: Mapping[str, float], name: str) -> list[str]:
    return [series for series in metrics if f'analyzer="{name}"' in series]


def samples(page: str, family: str) -> dict[str, str]:
    found = (line.rpartition(" ") for line in page.splitlines() if line.startswith(f"{family}{{"))
    return {series: value for series, _, value in found}


# What cannot be used -------------------------------------------------------------------------


def no_yaml(file: Path) -> str:
    file.write_text("pipeline: [")
    return "not valid YAML"


def a_wrong_value(file: Path) -> str:
    file.write_text(text_of({f"{STORE}.max_connections": -1}))
    return "max_connections"


def a_certificate_that_is_missing(file: Path) -> str:
    file.write_text(text_of({"tls.ca_cert": "/nowhere.pem"}))
    return "tls.ca_cert"


def a_certificate_that_is_none(file: Path) -> str:
    keys = {
        "tls.ca_cert": str(file),
        "pipeline.subscriber.url": "wss://127.0.0.1:9/",
        # All of these would otherwise have another page.
        f"{STORE}.labels": ["target_ip"],
        "pipeline.filter.drop": [{"name": "all", "protocol": "TCP"}],
        "logging.level": "ERROR",
    }
    file.write_text(text_of(keys))
    return "tls.ca_cert"


def a_text_that_no_header_can_carry(file: Path) -> str:
    file.write_text(text_of({"host_id": "s€cret"}))
    return "host_id"


def no_file(file: Path) -> str:
    file.unlink()
    return "cannot be read"


def a_directory(file: Path) -> str:
    file.unlink()
    file.mkdir()
    return "cannot be read"


def a_pipe(file: Path) -> str:
    file.unlink()
    os.mkfifo(file)
    return "not a regular file"


SPOILERS = (
    no_yaml,
    a_wrong_value,
    a_certificate_that_is_missing,
    a_certificate_that_is_none,
    a_text_that_no_header_can_carry,
    no_file,
    a_directory,
    a_pipe,
)


async def test_what_cannot_be_used_changes_nothing(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    keys = {**subscribing(analyzer), "web.enable_reload": True}
    async with operated(tmp_path, keys, quiet=False) as operator:
        skyfast = operator.skyfast
        await analyzer.subscriber()
        await operator.report(analyzer, flow("1"))
        page, success = await operator.flows(), await skyfast.self_metrics()
        assert success[SUCCESSFUL] == 1
        for number, spoil in enumerate(SPOILERS):
            named = spoil(operator.file)
            (line,) = problems(await operator.reload())
            assert " ERROR " in line
            assert named in line
            status, text = await operator.post()
            assert status == 500
            assert text == f"failed to reload config: {line.partition('reloaded: ')[2]}\n"

            failure = await skyfast.self_metrics()
            assert failure[SUCCESSFUL] == 0
            assert failure[SUCCESS_AT] == success[SUCCESS_AT]
            assert failure.keys() == success.keys()
            assert failure[FAILED] == 2 * (number + 1)
            told = json.loads(await skyfast.get("/api/status"))
            problem = line.partition("reloaded: ")[2]
            assert told["reload"]["last_error"]["reason"] == "configuration"
            assert told["reload"]["last_error"]["text"] == problem
            assert failure[FAILURE_AT] == told["reload"]["last_error"]["timestamp_seconds"]
            assert failure[FAILURE_AT] > success[SUCCESS_AT]
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(failure[FAILURE_AT]))
            warning = f"Configuration not reloaded at {at} UTC: {problem}"
            assert warning in told["warnings"]
            assert html.escape(warning) in (await skyfast.get("/")).decode()
            assert await operator.flows() == page
            # Late, and so without consequences; but it is taken.
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


async def test_it_is_told_what_a_reload_has_changed(tmp_path: Path) -> None:
    secret = "analyzer.auth.cluster.password"
    keys = {"analyzer.auth.cluster.username": "a", secret: "before"}
    async with operated(tmp_path, keys, quiet=False) as operator:
        skyfast = operator.skyfast
        assert json.loads(await skyfast.get("/api/status"))["reload"]["changed"] == []
        begun = len(skyfast.log)
        await operator.reload({f"{STORE}.max_flows": 7, "logging.level": "DEBUG", secret: "after"})
        changed = [secret, "logging.level", f"{STORE}.max_flows"]
        line = await skyfast.logged("configuration reloaded; changed: ", since=begun)
        assert line.endswith(f"; changed: {', '.join(changed)}")
        assert json.loads(await skyfast.get("/api/status"))["reload"]["changed"] == changed
        assert f">{', '.join(changed)}</span>" in (await skyfast.get("/")).decode()
        page = await skyfast.self_metrics()
        shown = [each for each in page if "last_reload_changed" in each]
        assert shown == [f'skyfast_config_last_reload_changed{{key="{key}"}}' for key in changed]

        operator.file.write_text("pipeline: {nothing: 1}")
        await operator.reload()  # what has failed has changed nothing
        assert json.loads(await skyfast.get("/api/status"))["reload"]["changed"] == changed
        begun = len(skyfast.log)
        await operator.reload({})
        await skyfast.logged("configuration reloaded; changed: nothing", since=begun)
        assert json.loads(await skyfast.get("/api/status"))["reload"]["changed"] == []


async def test_a_web_configuration_that_is_wrong_is_a_reason_of_its_own(tmp_path: Path) -> None:
    web = tmp_path / "web.yml"
    web.write_text("")
    file = tmp_path / "a.yml"
    file.write_text(text_of({}))
    async with running(file, f"--web.config.file={web}", quiet=False) as skyfast:
        web.write_text("nothing: 1")
        skyfast.process.send_signal(signal.SIGHUP)
        await skyfast.logged("configuration not reloaded: ")
        told = json.loads(await skyfast.get("/api/status"))["reload"]["last_error"]
        assert told["reason"] == "web_configuration"
        assert str(web) in told["text"]


async def test_a_fault_of_our_own_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> Config:
        raise ZeroDivisionError

    part = App(make_config(), load=load)
    assert "ZeroDivisionError" in (await part.reload() or "")
    assert part.stats.config.last_reload_successful == 0
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None


@asynccontextmanager
async def spawned(argument: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a skyfast of which it is not known that it serves; stop it by SIGTERM."""
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
    """Wait for the line that tells how a reload went."""
    assert process.stderr is not None
    async with asyncio.timeout(WAIT_S):
        while not outcomes([line := (await process.stderr.readline()).decode()]):
            assert line
    return line


async def test_standard_input_is_not_read_again(analyzer: FakeAnalyzer) -> None:
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


# What takes effect at once -------------------------------------------------------------------


async def test_rules_change_and_all_counters_go_on(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
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

        # What an update of a known flow says is compared with what was known before.
        more = flow("1", Last=3000, Metric=METRIC | {"ABBytes": 150, "BABytes": 250})
        await operator.report(analyzer, more, dns, ntp)
        page = await operator.flows()
        assert sorted(samples(page, BYTES).values()) == ["100", "150", "200", "250"]
        metrics = await skyfast.self_metrics()
        assert metrics['skyfast_flows_filtered_total{rule="dns"}'] == 2
        assert metrics['skyfast_flows_filtered_total{rule="ntp"}'] == 1

        # Rules that are gone are not on the page, those that look at other fields have them.
        keep = {"name": "big", "Metric.ABPackets": "10-99", "CaptureID": ""}
        await operator.reload({"pipeline.filter.drop": None, "pipeline.filter.keep": [keep]})
        await operator.report(analyzer, flow("4"), flow("5", Metric={"ABPackets": 10}))
        metrics = await skyfast.self_metrics()
        rules_shown = [series for series in metrics if "_filtered_total" in series]
        assert rules_shown == ['skyfast_flows_filtered_total{rule="keep"}']
        assert metrics[rules_shown[0]] == 1
        assert metrics["skyfast_flows"] == 3
        assert analyzer.connections == 1 + len(analyzer.topology_requests)


async def test_tags_are_told_by_the_new_networks(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
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

        # Where a label is made of them, the connections of before are not those of after.
        await operator.reload({f"{STORE}.labels": ["tag"], "pipeline.filter.excluded_tags": None})
        await operator.report(analyzer, flow("1"))
        log = await operator.reload({networks: ["10.0.0.1/32"]})
        assert "cluster_net_masks" in problems(log)[0]
        await operator.report(analyzer, flow("1"))
        assert 'tag="egress"' in await operator.flows()


async def test_bounds_hold_for_what_is_new(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    def node(number: int) -> dict[str, Any]:
        return flow(str(number), NodeTID=f"n{number}")

    async with operated(tmp_path, subscribing(analyzer)) as operator:
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


@pytest.mark.xdist_group("timing")
async def test_times_are_those_of_the_reports_that_follow(
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
        # Longer ones: what is reported again is there when the other has left.
        longer = {f"{STORE}.connection_grace": 100, f"{STORE}.views": [view | {"timeout": 200}]}
        await operator.reload(longer)
        began = time.monotonic()
        await operator.report(analyzer, flow("1", Last=3000))
        metrics = await skyfast.until(lambda metrics: metrics[rows] == 1)
        assert time.monotonic() - began < 5
        assert metrics["skyfast_connections"] == 1
        # Shorter ones: what is new leaves before what is there.
        await operator.reload({f"{STORE}.connection_grace": 0.5, f"{STORE}.views": [view]})
        await operator.report(analyzer, flow("3", NodeTID="third"))
        assert (await skyfast.self_metrics())[rows] == 2
        began = time.monotonic()
        metrics = await skyfast.until(lambda metrics: metrics[rows] == 1)
        assert time.monotonic() - began < 5
        assert metrics["skyfast_connections"] == 1
        assert metrics["skyfast_connections_expired_total"] == 2


async def test_a_report_that_was_lost_counts_with_the_next_one(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    times = {f"{STORE}.connection_timeout": 1, f"{STORE}.connection_grace": 0}
    # The short timeout is logged once the update interval is known, which may be before the end.
    keys = {**subscribing(analyzer), **times}
    async with operated(tmp_path, keys, quiet=False) as operator:
        skyfast = operator.skyfast
        await analyzer.subscriber()
        await operator.report(analyzer, flow("1"))
        await skyfast.until(lambda metrics: metrics["skyfast_dormant_flows"] == 1)
        assert samples(await operator.flows(), BYTES) == {}
        # Two updates later: the latest one alone has added 20 and 30.
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
        # A shorter memory holds at once, none at all too.
        await skyfast.until(lambda metrics: metrics["skyfast_dormant_flows"] == 1)
        await operator.reload({f"{STORE}.flow_memory": 0})
        metrics = await skyfast.until(lambda metrics: metrics["skyfast_dormant_flows"] == 0)
        assert metrics["skyfast_flow_memory_seconds"] == 0
    assert all("connection_timeout" in line for line in problems(skyfast.log))


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({}, False),
        ({"max_connections": 10, "flow_memory": 5}, False),
        ({"drop": [{"name": "dns", "target_port": 53}]}, True),
        ({"excluded_tags": ["internal"]}, True),
        ({"cluster_net_masks": ["10.0.0.0/8"]}, True),
        ({"capture_id": "c"}, True),
    ],
)
async def test_flows_that_were_left_out_before_are_not_taken_for_never_counted(
    changes: dict[str, Any], moves: bool
) -> None:
    config = make_config()
    part = App(config, load=lambda: make_config(**changes))
    table = part._parts.table
    table.begin(0.0)
    assert await part.reload() is None
    assert part._parts.table is table
    assert table.horizon_s is not None
    assert (table.horizon_s > 0.0) == moves


async def test_a_table_that_is_new_begins_when_reports_come() -> None:
    part = App(make_config(), load=lambda: make_config(labels=["target_ip"]))
    part._parts.table.begin(0.0)
    part.stats.flow_update_s = 10.0
    assert await part.reload() is None
    table = part._parts.table
    assert table.horizon_s is None
    assert table.flow_update_s == 10.0


async def test_the_log_level_changes(tmp_path: Path) -> None:
    async with operated(tmp_path, {"pipeline.subscriber.url": NOBODY}, quiet=False) as operator:
        log = await operator.reload({"logging.level": "DEBUG", "ui.theme": "dark"})
        assert any(" DEBUG skyfast.config: " in line and "ui" in line for line in log)
        before = await operator.skyfast.self_metrics()
        logged = len(operator.skyfast.log)
        operator.write({"logging.level": "CRITICAL"})
        operator.skyfast.process.send_signal(signal.SIGHUP)
        await operator.skyfast.until(lambda metrics: metrics[SUCCESS_AT] > before[SUCCESS_AT])
        assert not outcomes(operator.skyfast.log[logged:])


async def test_warnings_of_the_new_file_are_logged(tmp_path: Path) -> None:
    async with operated(tmp_path, {"pipeline.subscriber.url": NOBODY}, quiet=False) as operator:
        log = await operator.reload({"pipeline.encode.type": "csv"})
        assert any("pipeline.encode" in line for line in problems(log))


async def test_the_web_servers_bounds_change(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    async with operated(tmp_path, subscribing(analyzer), quiet=False) as operator:
        _, _, port = operator.skyfast.url.rpartition(":")
        idle = socket.create_connection(("127.0.0.1", int(port)), timeout=WAIT_S)
        with idle:
            assert (await operator.skyfast.self_metrics())[SUCCESSFUL] == 1
            await operator.reload({"web.max_connections": 1})
            metrics = await operator.skyfast.self_metrics()
            assert metrics["skyfast_http_connections_rejected_total"] == 1
            assert await asyncio.to_thread(idle.recv, 1) == b""


async def test_reloading_by_http_can_be_switched_on_and_off(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    async with operated(tmp_path, subscribing(analyzer)) as operator:
        assert (await operator.post())[0] == 403
        await operator.reload({"web.enable_reload": True})
        assert (await operator.post())[0] == 200
        operator.write({"web.enable_reload": False})
        assert (await operator.post())[0] == 200
        assert (await operator.post())[0] == 403


async def test_the_page_stays_where_it_is(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    async with operated(tmp_path, subscribing(analyzer), quiet=False) as operator:
        changes = {f"{STORE}.port": 1, f"{STORE}.listen_address": "127.0.0.2"}
        for _ in range(2):
            (line,) = problems(await operator.reload(changes))
            assert "port change only at a restart" in line
            assert (await operator.skyfast.self_metrics())[SUCCESSFUL] == 1
        changes = {f"{STORE}.port": 0, f"{STORE}.listen_address": "127.0.0.1"}
        assert not problems(await operator.reload(changes))


# Analyzers -----------------------------------------------------------------------------------


async def test_an_analyzer_that_stays_is_not_disturbed(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
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
        metrics = await skyfast.until(lambda metrics: not of_analyzer(metrics, gone.name))
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

        # In another order, they are the same.
        await operator.reload(subscribing(new, analyzer))
        await operator.report(analyzer, flow("1", Last=4000))
        assert (len(new.upgrades), len(analyzer.upgrades)) == (1, 1)


MANNERS = {
    "host_id": "another",
    "analyzer.auth.cluster.password": "new",
    "http.cookie": {"session": "1"},
    "pipeline.subscriber.capture_id": "c0ffee",
    "pipeline.subscriber.max_message_bytes": 100_000,
    "pipeline.subscriber.silence_timeout": 30,
}


async def test_how_it_subscribes_changes_for_all(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    async with FakeAnalyzer() as other:
        keys = {**subscribing(analyzer, other), "analyzer.auth.cluster.username": "prom"}
        async with operated(tmp_path, keys) as operator:
            for each in (analyzer, other):
                each.unique_host_ids = True
                await each.subscriber()
                await operator.report(each, flow(each.name, NodeTID=each.name))
            page = await operator.flows()
            for number, (key, value) in enumerate(MANNERS.items(), start=2):
                await operator.reload({key: value})
                for each in (analyzer, other):
                    remote = await each.subscriber()
                    series = f'skyfast_up{{analyzer="{each.name}"}}'
                    metrics = await operator.skyfast.until(
                        lambda metrics, series=series: metrics[series] == 1
                    )
                    assert len(each.upgrades) == number
                    assert each.subscribers == [remote]
                    assert metrics[f'skyfast_flows_total{{analyzer="{each.name}"}}'] == 1
            assert await operator.flows() == page
        for each in (analyzer, other):
            last = each.upgrades[-1]
            assert last.get("X-Host-ID") == "another"
            assert last.basic == ("prom", "new")
            assert last.cookies == {"session": "1"}
            assert last.all("X-Websocket-Namespace") == ["flow/c0ffee", "stats"]


async def test_our_own_last_subscription_is_no_other_client(
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


async def test_certificates_are_changed_under_their_names(tmp_path: Path) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    trusted = tmp_path / "ca.pem"
    shutil.copy(first.certificate, trusted)
    async with (
        FakeAnalyzer(ssl=first.server_context("127.0.0.1")) as one,
        FakeAnalyzer(ssl=second.server_context("127.0.0.1")) as two,
        FakeAnalyzer() as plain,
    ):
        keys = {**subscribing(one, two, plain), "tls.ca_cert": str(trusted)}
        async with operated(tmp_path, keys, quiet=False) as operator:
            await plain.subscriber()
            remote = await one.subscriber()
            # Read again, and found to be the same.
            await operator.reload({"pipeline.filter.excluded_tags": ["internal"]})
            await operator.report(one, flow("1"))
            assert not remote.closed.is_set()
            shutil.copy(second.certificate, trusted)
            await operator.reload()
            await remote.gone()
            await two.subscriber()
            assert (len(one.upgrades), len(plain.upgrades)) == (1, 1)


async def test_names_with_several_addresses_come_and_go(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
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


async def test_analyzers_change_while_one_is_down(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    keys = {"pipeline.subscriber.urls": [NOBODY]}
    async with operated(tmp_path, keys, quiet=False) as operator:
        skyfast = operator.skyfast
        series = 'skyfast_reconnects_total{analyzer="127.0.0.1:9",reason="refused"}'
        await skyfast.until(lambda metrics: metrics[series] > 0)
        await operator.reload({"pipeline.subscriber.urls": [NOBODY, analyzer.url]})
        remote = await analyzer.subscriber()
        before = (await skyfast.self_metrics())[series]
        assert before > 0
        # Half-open: it does not answer when its subscription is closed.
        remote.freeze()
        await operator.reload({"pipeline.subscriber.urls": [NOBODY]})
        metrics = await skyfast.until(lambda metrics: not of_analyzer(metrics, analyzer.name))
        assert metrics[series] >= before
        assert metrics[SUCCESSFUL] == 1


async def test_an_address_behind_a_name_is_subscribed_to_once(analyzer: FakeAnalyzer) -> None:
    named = f"dns+ws://analyzers.test:{analyzer.port}/ws/subscriber/flow"
    async with subscribed(make_config(named), resolve=Names(analyzer.address)) as running:
        name = running.stats.analyzers[f"analyzers.test:{analyzer.port}"]
        first = await running.up(analyzer)
        # The address alone is another endpoint: it may have other credentials.
        for urls in ((named, analyzer.url), (analyzer.url,), (analyzer.url, named), (named,)):
            running.subscriptions.configure(running.subscriptions.prepare(make_config(*urls)))
            await eventually(
                lambda urls=urls: (name.name in running.stats.analyzers) == (named in urls)
            )
            await eventually(lambda: len(analyzer.subscribers) == 1 and running.row(analyzer).up)
            if named in urls:
                row = running.stats.analyzers[name.name]
                await eventually(lambda row=row: row.up)
        assert first.closed.is_set()
        assert running.reconnects(analyzer) == {}


async def test_an_address_that_two_names_share_stays_with_the_other() -> None:
    async with two_addresses() as (first, second):
        urls = [f"dns+ws://{name}.test:{first.port}/ws/subscriber/flow" for name in ("a", "b")]
        names = Names(first.address, second.address)
        async with subscribed(make_config(*urls), resolve=names) as running:
            await first.subscriber()
            await second.subscriber()
            running.subscriptions.configure(running.subscriptions.prepare(make_config(urls[1])))
            await eventually(lambda: len(first.upgrades) == len(second.upgrades) == 2)
            await eventually(lambda: running.stats.analyzers[f"b.test:{first.port}"].up)
            assert f"a.test:{first.port}" not in running.stats.analyzers
            names.answer = [second.address]
            await eventually(lambda: first.name not in running.stats.analyzers)
            assert not first.subscribers
            assert len(second.upgrades) == 2


@pytest.mark.xdist_group("timing")
async def test_only_the_last_of_several_configurations_is_subscribed_with(
    analyzer: FakeAnalyzer, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeAnalyzer() as other, subscribed(make_config(analyzer.url)) as running:
        # They come before `run` has had its first turn.
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


# What is exported ----------------------------------------------------------------------------


async def test_other_labels_and_metrics_begin_a_new_table(
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
        assert "all connections reset" in line
        assert line.endswith("all connections reset: labels, metrics changed")
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


# By the field that they change: a configuration, and what another one has in its place.
SELECTIONS: Mapping[str, tuple[Keys, Keys]] = {
    "main": ({}, {"labels": ["protocol"]}),
    "views": ({}, {"views": []}),
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
}
LIMITS: Mapping[str, tuple[Keys, Keys]] = {
    "max_connections": ({"max_flows": 9}, {"max_connections": 7}),
    "max_flows": ({}, {"max_flows": 7}),
    "connection_timeout_s": ({}, {"connection_timeout": 77}),
    "connection_grace_s": ({}, {"connection_grace": 7}),
    "flow_memory_s": ({}, {"flow_memory": 7}),
    "view_timeouts_s": (
        {"views": [{"prefix": "a", "labels": ["protocol"]}]},
        {"views": [{"prefix": "a", "labels": ["protocol"], "timeout": 777}]},
    ),
}


def differing(old: Any, new: Any) -> list[str]:
    """Return the fields by which two records of a type differ."""
    names = [field.name for field in dataclasses.fields(old)]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def of_store(keys: Keys) -> Config:
    """Return a configuration with these keys of the store, and networks of the cluster."""
    networks = "cluster_net_masks"
    paths = {f"pipeline.classify.{k}" if k == networks else f"{STORE}.{k}": keys[k] for k in keys}
    return loader.parse(text_of(paths), {}, source="x.yml")


async def has_new_table(keys: Keys, changes: Keys) -> bool:
    """Return whether a reload with these changes makes another table."""
    part = App(of_store(keys), load=lambda: of_store({**keys, **changes}))
    table = part._parts.table
    assert await part.reload() is None
    return part._parts.table is not table


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ExportSelection)])
async def test_another_selection_begins_a_new_table(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys, changes = SELECTIONS[name]
    old, new = of_store(keys), of_store({**keys, **changes})
    assert differing(old.export, new.export) == [name]
    assert old.limits == new.limits or name == "views"
    assert await has_new_table(keys, changes)
    (line,) = (line for line in lines(caplog) if "all connections reset" in line)
    assert line.endswith(f"all connections reset: {', '.join(changes)} changed")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ViewSpec)])
async def test_another_view_begins_a_new_table(name: str) -> None:
    keys, changes = VIEWS[name]
    first: Keys = {"prefix": "a", "labels": ["protocol"], **keys}
    second: Keys = {**first, **changes}
    old, new = (of_store({"views": [view]}).export.views[0] for view in (first, second))
    assert name in differing(old, new)
    assert await has_new_table({"views": [first]}, {"views": [second]})


@pytest.mark.parametrize("name", ["labels", "metrics", "direction"])
async def test_another_main_view_begins_a_new_table(name: str) -> None:
    keys, changes = VIEWS[name]
    first: Keys = {"labels": ["protocol"], **keys}
    second: Keys = {**first, **changes}
    assert name in differing(of_store(first).export.main, of_store(second).export.main)
    assert await has_new_table(first, second)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TableLimits)])
async def test_other_limits_keep_the_table(name: str) -> None:
    keys, changes = LIMITS[name]
    old, new = of_store(keys), of_store({**keys, **changes})
    assert differing(old.limits, new.limits) == [name]
    assert old.export == new.export
    assert pipeline._table_limits(old.limits) != pipeline._table_limits(new.limits)
    assert not await has_new_table(keys, changes)


async def test_networks_that_no_label_tells_keep_the_table() -> None:
    assert not await has_new_table({}, {"cluster_net_masks": ["10.0.0.0/8"]})


async def test_a_page_that_has_begun_ends_as_it_began(
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
            answer = bytearray(await asyncio.to_thread(reader.recv, 1000))
            await operator.reload({f"{STORE}.labels": ["target_ip"], f"{STORE}.naming": "standard"})
            await operator.report(analyzer, flow("1"))
            assert "skydive_connection_bytes_total" in await operator.flows()

            def rest() -> None:
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                while data := reader.recv(1 << 20):
                    answer.extend(data)

            await asyncio.to_thread(rest)
        assert answer.endswith(b"\r\n0\r\n\r\n")
        page = unchunked(bytes(answer)).decode()
        assert len(samples(page, BYTES)) == 2 * count
        assert "skydive_connection_bytes_total" not in page
        assert page.rstrip().splitlines()[-1].startswith("skyfast_label_values")


def unchunked(answer: bytes) -> bytes:
    """Return the body of a chunked answer."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return b"".join(chunks)


async def test_other_protocols_begin_a_new_table(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    gre = flow("1", Transport=None, LayersPath="Ethernet/IPv4/GRE")
    ping = flow("2", Transport=None, LayersPath="Ethernet/IPv4/ICMPv4", ICMP={"Type": "ECHO"})
    async with operated(tmp_path, subscribing(analyzer), quiet=False) as operator:
        await analyzer.subscriber()
        await operator.report(analyzer, gre, ping, flow("3"))
        assert samples(await operator.flows(), BYTES).keys() == {
            series("TCP", "40000", "443", direction) for direction in DIRECTIONS
        }
        (line,) = problems(await operator.reload({f"{STORE}.include_other": True}))
        assert line.endswith("all connections reset: include_other changed")
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
    """Return a series of the bytes with the default labels."""
    return (
        f'{BYTES}{{initiator_ip="10.0.0.1",target_ip="10.0.0.2",initiator_port="{initiator_port}",'
        f'target_port="{target_port}",direction="{direction}",node_tid="tid",protocol="{protocol}"}}'
    )


async def test_standard_names_bring_openmetrics(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    interface = {"Name": "eth0", "Type": "device", "TID": "t", "EncapType": "ether"}
    nodes = [{"ID": "n", "Host": "h", "Metadata": interface | {"Metric": {"RxBytes": 7}}}]
    analyzer.topology = Answer(body=json.dumps(nodes).encode())
    report = '{"Namespace":"stats","Type":"stats","Obj":{"CaptureID":"c","FlowDropped":3}}'
    async with operated(tmp_path, subscribing(analyzer), quiet=False) as operator:
        skyfast = operator.skyfast

        async def type_of_page() -> str | None:
            request = urllib.request.Request(
                skyfast.url + "/metrics", headers={"Accept": PROMETHEUS["3"]}
            )

            def ask() -> str | None:
                with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                    kind: str | None = answer.headers["Content-Type"]
                    if "openmetrics" in (kind or ""):
                        assert answer.read().endswith(b"\n# EOF\n")
                    return kind

            return await asyncio.to_thread(ask)

        await analyzer.subscriber()
        await analyzer.send(report)
        await skyfast.until(lambda metrics: metrics["skyfast_captures"] == 1)
        assert "text/plain" in (await type_of_page() or "")
        # Labels are no business of the interfaces and captures.
        await operator.reload({f"{STORE}.labels": ["target_ip"]})
        page = (await skyfast.get("/metrics")).decode()
        assert samples(page, "skydive_network_interface_rx_bytes")
        assert samples(page, "skydive_capture_flows_dropped") == {
            'skydive_capture_flows_dropped{capture_id="c"}': "3"
        }

        answers = (await skyfast.self_metrics())["skyfast_topology_answers_total"]
        await operator.reload({f"{STORE}.naming": "standard"})
        assert "openmetrics" in (await type_of_page() or "")
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
        assert "text/plain" in (await type_of_page() or "")


async def test_interfaces_stay_while_their_times_change(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    interface = {"Name": "eth0", "Type": "device", "TID": "t", "EncapType": "ether"}
    analyzer.topology = Answer(body=json.dumps([{"ID": "n", "Metadata": interface}]).encode())
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
        asked = len(analyzer.topology_requests)
        analyzer.topology = Answer(body=json.dumps([{"ID": "n", "Metadata": interface}]).encode())
        await operator.reload({f"{STORE}.interfaces_interval": 10})
        await skyfast.until(lambda metrics: metrics["skyfast_interfaces"] == 1)
        assert len(analyzer.topology_requests) == asked + 1


# Names of the topology -----------------------------------------------------------------------

NAME_LABELS = ["target_ip", "node_name", "target_name"]


def topology(name: str) -> Answer:
    """An interface that captures, and one of the same host that has the target's address."""
    nodes = [
        {"ID": "1", "Host": "h", "Metadata": {"TID": "tid", "Name": name, "Type": "device"}},
        {"ID": "2", "Host": "h", "Metadata": {"TID": "o", "Name": "eth9", "IPV4": ["10.0.0.2/8"]}},
    ]
    return Answer(body=json.dumps(nodes).encode())


def total(page: str, **labels: str) -> str:
    """Return the bytes of the initiator with these labels."""
    (value,) = [
        value
        for series, value in samples(page, BYTES).items()
        if "initiator_to_target" in series
        and all(f'{label}="{value}"' in series for label, value in labels.items())
    ]
    return value


async def test_flows_are_born_with_their_names_and_follow_them(
    tmp_path: Path, analyzer: FakeAnalyzer
) -> None:
    analyzer.topology = topology("eth0")

    async def asked(_: object) -> None:
        assert analyzer.topology_requests
        await analyzer.send(message(flow("1")))

    analyzer.on_subscribe = asked
    keys = {**subscribing(analyzer), f"{STORE}.labels": NAME_LABELS}
    async with operated(tmp_path, {**keys, f"{STORE}.interfaces_interval": 0.1}) as operator:
        skyfast = operator.skyfast
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] == 1)
        assert total(await operator.flows(), node_name="eth0", target_name="h") == "100"
        analyzer.topology = topology("eth1")
        answered = (await skyfast.self_metrics())["skyfast_topology_answers_total"]
        await skyfast.until(
            lambda metrics: metrics["skyfast_topology_answers_total"] >= answered + 2
        )
        page = await operator.flows()
        assert 'node_name="eth0"' not in page
        assert total(page, node_name="eth1") == "0"
        await operator.report(analyzer, flow("1", Last=3000, Metric=METRIC | {"ABBytes": 130}))
        assert total(await operator.flows(), node_name="eth1") == "30"


async def test_names_without_interfaces(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    analyzer.topology = topology("eth0")
    keys = {**subscribing(analyzer), f"{STORE}.labels": NAME_LABELS}
    keys[f"{STORE}.interfaces_interval"] = 0
    async with operated(tmp_path, keys, quiet=False) as operator:
        await analyzer.subscriber()
        await operator.report(analyzer, flow("1"))
        assert total(await operator.flows(), node_name="eth0", target_name="h") == "100"
        assert await operator.skyfast.get("/metrics/interfaces") == b""
        await operator.reload({f"{STORE}.labels": ["target_ip"]})
        asked = len(analyzer.topology_requests)
        analyzer.topology = topology("eth1")
        await operator.report(analyzer, flow("1"))
        assert len(analyzer.topology_requests) == asked
        # What was known before would be wrong now.
        await operator.reload({f"{STORE}.labels": NAME_LABELS})
        await operator.report(analyzer, flow("1"))
        assert total(await operator.flows(), node_name="eth1", target_name="h") == "100"
        assert (await operator.skyfast.self_metrics())["skyfast_connections_created_total"] == 1


async def test_a_table_with_names_waits_for_them(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    analyzer.topology = Fault.EOF
    keys = {**subscribing(analyzer), f"{STORE}.interfaces_interval": 0.1}
    async with operated(tmp_path, keys, quiet=False) as operator:
        await analyzer.subscriber()
        await operator.report(analyzer, flow("1"))
        page = await operator.flows()
        asked = len(analyzer.topology_requests)
        reloading = asyncio.create_task(operator.reload({f"{STORE}.labels": NAME_LABELS}))
        await eventually(lambda: len(analyzer.topology_requests) > asked + 2)
        assert await operator.flows() == page
        analyzer.topology = topology("eth0")
        await reloading
        await operator.report(analyzer, flow("1", Last=3000))
        assert total(await operator.flows(), node_name="eth0") == "100"
        assert (await operator.skyfast.self_metrics())["skyfast_connections_created_total"] == 1


@asynccontextmanager
async def started(config: Config, load: Callable[[], Config]) -> AsyncIterator[App]:
    """Run the app within this process."""
    part, stopping = App(config, load=load), asyncio.Event()
    task = asyncio.create_task(part.run(stopping))
    try:
        yield part
    finally:
        stopping.set()
        async with asyncio.timeout(WAIT_S):
            await task


@pytest.mark.xdist_group("timing")
async def test_names_are_not_waited_for_for_ever(
    analyzer: FakeAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "NAMES_WAIT_S", 0.2)
    analyzer.topology = Fault.HANG
    settings = {"port": 0, "listen_address": "127.0.0.1", "labels": ["node_name", "target_ip"]}
    config = make_config(analyzer.url, **settings)
    async with started(
        config, lambda: make_config(analyzer.url, **settings, metrics=["flows"])
    ) as part:
        began = time.monotonic()
        await analyzer.subscriber()
        assert time.monotonic() - began >= 0.2
        assert await part.reload() is None
        assert await part.reload() is None
        await analyzer.send(message(flow("1")))
        await eventually(lambda: part.exposition.source.table.connections == 1)


# When it comes at another time ---------------------------------------------------------------


async def test_a_new_configuration_before_the_first_subscription(
    analyzer: FakeAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "NAMES_WAIT_S", 0.5)
    settings = {"port": 0, "listen_address": "127.0.0.1"}
    async with FakeAnalyzer() as other:
        other.topology = Fault.HANG
        waiting = make_config(other.url, **settings, labels=["node_name"])
        async with started(waiting, lambda: make_config(analyzer.url, **settings)) as part:
            await eventually(lambda: other.topology_requests)
            assert await part.reload() is None
            await analyzer.subscriber()
            assert not other.upgrades
            await eventually(lambda: list(part.stats.analyzers) == [analyzer.name])


async def test_signals_at_the_start_wait_for_somebody_to_hear_them(
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
        await eventually(is_read, START_S)
        process.send_signal(signal.SIGHUP)
        os.write(writers[0], text_of(subscribing(analyzer)).encode())
        os.close(writers[0])
        # What comes through a pipe cannot be read again, which shows that this was tried.
        assert "not a regular file" in await outcome(process)
        await analyzer.subscriber()


@pytest.mark.xdist_group("timing")
@pytest.mark.parametrize("delay_s", [0.0, 0.02])
async def test_signals_at_the_end_change_nothing(
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
                # The process's own `send_signal` could reap it.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGHUP)
                await asyncio.sleep(0.001)
        assert process.returncode == 0


async def test_many_at_once_end_with_the_last_file(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
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


async def test_nothing_is_left_of_what_was_replaced(tmp_path: Path, analyzer: FakeAnalyzer) -> None:
    keys = {**subscribing(analyzer), "web.enable_reload": True}
    async with operated(tmp_path, keys, quiet=False) as operator:
        await analyzer.subscriber()

        async def turn() -> Mapping[str, float]:
            for host_id, metrics in (("one", ["bytes"]), ("two", ["bytes", "rtt"])):
                operator.write({"host_id": host_id, f"{STORE}.metrics": metrics})
                assert (await operator.post())[0] == 200
                await analyzer.subscriber()
                await operator.report(analyzer, flow("1"))
            return await operator.skyfast.self_metrics()

        for _ in range(5):
            first = await turn()
        for _ in range(15):
            last = await turn()
        assert last["process_open_fds"] <= first["process_open_fds"] + 3
        grown = last["process_resident_memory_bytes"] - first["process_resident_memory_bytes"]
        assert grown < 4e6


async def test_the_demo_reloads_too(tmp_path: Path) -> None:
    async with demo() as skyfast:
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] > 0)
        before = await skyfast.self_metrics()
        skyfast.process.send_signal(signal.SIGHUP)
        after = await skyfast.until(lambda metrics: metrics[SUCCESS_AT] > before[SUCCESS_AT])
        assert after["skyfast_connections"] >= before["skyfast_connections"]
        up = [series for series in after if series.startswith("skyfast_up{")]
        assert up == [series for series in before if series.startswith("skyfast_up{")]
        assert [after[series] for series in up] == [1.0, 1.0]
