"""Soak tests: days of changing traffic in virtual time, or any duration in real time.

``python -m tests.support.soak virtual`` processes the traffic in this process, with the apps of
three configurations. ``python -m tests.support.soak real`` runs a skyfast process with real
sockets. Both commands print their progress, and exit with code 1 if memory grew or a counter is
wrong.
"""

import argparse
import asyncio
import contextlib
import functools
import gc
import gzip
import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from skyfast.app import App
from skyfast.config import loader
from skyfast.flows import rewrites
from skyfast.pipeline import Shared
from skyfast.runtime import memory
from skyfast.runtime.clock import Clock
from skyfast.skydive import topology_nodes
from skyfast.skydive.name_resolver import resolve
from skyfast.skydive.reporting_gap import INCIDENT_UPDATES
from skyfast.skydive.topology_queries import MAX_VALUES
from skyfast.stats import FLOW_UPDATE_S
from skyfast.web.exposition import Part
from tests.support.analyzer import FakeAnalyzer, FakeResponse
from tests.support.load_generator import UNIT, LoadGenerator, LoadGeneratorProcess
from tests.support.memory_audit import containers, heap_bytes, resident_bytes
from tests.support.process import Skyfast, running
from tests.support.topology_scenarios import read_graph

Figures = dict[str, int]

MAX_GROWTH = 0.02
"""Maximum relative growth from the second day to the last day."""
HEAP_BYTES = 6 * memory.HEAP_STEP_BYTES
"""Resident memory and the heap may always grow by this number of bytes.

Neither shrinks after a peak, and the highest peak can be on a later day."""
ENTRIES = 64
"""A container may always grow by this number of entries, because the number of names varies."""

PACKETS, BYTES = UNIT[0] + UNIT[2], UNIT[1] + UNIT[3]
"""Packets and bytes of a report, in both directions together."""

# Virtual time

DAY_S, HOUR_S = 86_400, 3_600
STEP_S = 30
"""Interval between batches of messages."""
TICK_S = 5
"""Interval between expiry runs. skyfast's clock would treat a longer one as a pause."""
REPORT_S = 60
START_S = 1_700_000_000
PEAK_STEPS = 10
"""Half of the day's conversations start at noon, in this number of steps."""
MEASURE_INTERVAL_S = 12 * HOUR_S
"""Interval between memory measurements."""
DRAIN_S = 4_200
"""After this time, everything has expired. Views and interfaces expire last, after 3600 s."""
ALL_ROWS = 2**31 - 1

DEFAULT = "{}"
SUMS = """
pipeline: {store: {prom_sky_con: {
  labels: [protocol], metrics: [bytes, packets], direction: sum, views: []}}}
"""
"""A configuration that aggregates all traffic in one connection."""
RICH = """
pipeline:
  classify: {cluster_net_masks: [10.0.0.0/8, 192.168.0.0/16]}
  filter:
    drop:
      - {name: none, application: {regex: "^nothing"}, initiator_ip: 10.255.255.0/30}
  store:
    prom_sky_con:
      max_connections: %d
      overflow: other
      deduplicate: first
      interfaces_interval: 1200
      labels: [initiator_ip, target_ip, initiator_port, target_port, application, node_name, tag,
               initiator_name, target_name, direction]
      rewrite: {initiator_ip: {mask: 32}, target_ip: {mask: 24, mask6: 128},
                initiator_port: {above: 40000}}
      metrics: [bytes, packets, rtt, flows]
      views:
        - {prefix: apps, labels: [application, node_host, capture_id], timeout: 600}
        - {prefix: nodes, labels: [node_tid, node_type], direction: sum}
"""
"""A configuration with all features that store state. The peak at noon exceeds its limits."""


def _app(text: str) -> App:
    parsed = loader.parse(text, {}, source="soak.yml")
    return App(parsed, load=lambda: parsed)


class VirtualClock:
    """A clock that only advances on demand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wall(self) -> float:
        return START_S + self.seconds


class VirtualSoak:
    """The apps of all configurations, which process the same traffic."""

    def __init__(self, *, per_day: int, clock: VirtualClock) -> None:
        memory.tune_malloc()
        self._per_day = per_day
        self._clock = clock
        self._highest: Figures = {}
        self._reports_before_drain = 0
        """Number of reports before the latest `drain`. Later reports belong to new connections."""
        self.load = LoadGeneratorProcess(step_s=STEP_S, report_s=REPORT_S, start_s=clock.wall())
        texts = {"default": DEFAULT, "sums": SUMS, "rich": RICH % (per_day // 8)}
        self.apps = {name: _app(text) for name, text in texts.items()}
        self._most_dormant = dict.fromkeys(self.apps, 0)
        for app in self.apps.values():
            app.exposition.source.table.raise_horizon(app.clock.now())
        memory.freeze()

    async def day(self) -> Figures:
        """Simulate a day with a reload at its end; return the highest value of each measurement."""
        self._highest = {}
        steps = DAY_S // STEP_S
        evenly = self._per_day // 2
        new_conversations = [
            evenly * (step + 1) // steps - evenly * step // steps for step in range(steps)
        ]
        peak = range(steps // 2, steps // 2 + PEAK_STEPS)
        for step in peak:
            new_conversations[step] += evenly // PEAK_STEPS
        for step, messages in enumerate(
            self.load.steps(new_conversations, change_interval=HOUR_S // STEP_S)
        ):
            self._step(messages)
            if self.load.topology is not None:
                self._topology(self.load.topology)
                await self._page()
            if step % (MEASURE_INTERVAL_S // STEP_S) == 0 or step == peak[-1]:
                self._measure()
        for app in self.apps.values():
            assert await app.reload() is None
        return self._highest

    async def drain(self) -> Figures:
        """Let everything expire, clear the caches, and then measure."""
        self.load.advance(DRAIN_S)
        for _ in range(0, DRAIN_S, STEP_S):
            self._pass_step()
        for _, instances in containers(**self.apps).values():
            for container in instances:
                if isinstance(container, rewrites.BoundedCache):
                    container.clear()
        self._highest = {}
        await self._page()
        self._measure()
        self._reports_before_drain = self.load.reports
        return self._highest

    def problems(self) -> Iterator[str]:
        """Yield the problems that exist after `drain`."""
        for name, app in self.apps.items():
            table, stats = app.exposition.source.table, app.stats
            # Overflow rows never expire.
            others = 1 if name == "rich" else 0
            remaining = {
                "flows": table.flows,
                "dormant flows": table.dormant_flows,
                "dormant connections": table.dormant_connections,
                "connections": table.connections - others,
                "connections of views": sum(rows - others for rows in table.view_connections),
                "captures": stats.captures.captures,
                "interfaces": stats.topology.interfaces,
            }
            yield from (
                f"{name}: {count} {kind} after {DRAIN_S} s without reports"
                for kind, count in remaining.items()
                if count > 0
            )
            lost = {reason: count for reason, count in table.skipped.items() if count}
            if lost and name != "rich":
                yield f"{name}: flows were skipped: {lost}"
            misdated = sum(sum(analyzer.misdated.values()) for analyzer in stats.analyzers.values())
            if misdated:
                yield f"{name}: {misdated} flows were counted as misdated"
            if not self._most_dormant[name]:
                yield f"{name}: no flow was ever dormant"
            received = sum(analyzer.flows for analyzer in stats.analyzers.values())
            if received != self.load.reports:
                yield f"{name}: {received} of {self.load.reports} reports were received"

    async def sums(self) -> Iterator[str]:
        """Return the errors in the totals of the connection that aggregates all traffic."""
        page = (await self._text("sums")).decode()
        reports = self.load.reports - self._reports_before_drain
        expected = {"bytes": BYTES * reports, "packets": PACKETS * reports}
        return (
            f"sums: {unit} should be {value}: {re.findall(rf'_{unit}{{.*', page)}"
            for unit, value in expected.items()
            if f'skydive_network_connection_total_{unit}{{protocol="TCP"}} {value}\n' not in page
        )

    def _step(self, messages: Iterable[memoryview]) -> None:
        for message in messages:
            for app in self.apps.values():
                app._parts.ingest.message(message, app.stats.analyzer("127.0.0.1:8082"))
        self._pass_step()

    def _pass_step(self) -> None:
        parts = [(app._parts, app.clock.now) for app in self.apps.values()]
        for _ in range(0, STEP_S, TICK_S):
            self._clock.seconds += TICK_S
            for app_parts, now in parts:
                assert not app_parts.table.expire(now(), ALL_ROWS)
        for app_parts, now in parts:
            app_parts.interfaces.expire(now())
            app_parts.captures.expire(now())

    def _topology(self, topology: bytes) -> None:
        response, graph = topology_nodes.read(topology), read_graph(json.loads(topology), [])
        for app in self.apps.values():
            parts, now = app._parts, app.clock.now()
            parts.interfaces.update(response, now)
            if all(column.lookup is None for column in parts.plan.columns):
                continue
            resolution = resolve(graph, k8s_labels=parts.names.k8s_labels)
            for names, keys in parts.names.apply(parts.names.compare(resolution, now)):
                parts.table.relabel(names, keys).step(ALL_ROWS)
            # Remove unknown addresses, as the poller does before it queries their pods.
            while parts.names.addresses.take_unknown(now, MAX_VALUES):
                pass

    async def _page(self) -> None:
        """Scrape every app without storing the pages."""
        for app in self.apps.values():
            async with app.exposition.stream(Part.ALL, gzip=True) as page:
                async for _ in page:
                    pass

    async def _text(self, name: str) -> bytes:
        async with self.apps[name].exposition.stream(Part.ALL, gzip=True) as page:
            return gzip.decompress(b"".join([chunk async for chunk in page]))

    def _measure(self) -> None:
        gc.collect()
        figures = heap_bytes()
        figures["bytes resident"] = resident_bytes()
        figures["blocks of Python's allocator"] = sys.getallocatedblocks()
        for name, app in self.apps.items():
            table = app.exposition.source.table
            figures[f"bytes of the table, {name}"] = table.bytes
            self._most_dormant[name] = max(table.dormant_flows, self._most_dormant[name])
        for path, (count, instances) in containers(**self.apps).items():
            # The number of entries in a cache is random, so use its limit.
            limit = rewrites.MAX_REMEMBERED * sum(
                isinstance(container, rewrites.BoundedCache) for container in instances
            )
            figures[f"entries of {path}"] = max(count, limit)
        for name, figure in figures.items():
            self._highest[name] = max(figure, self._highest.get(name, 0))


def growth_problems(second: Figures, last: Figures, *, is_drained: bool) -> list[str]:
    """Return the measurements that grew too much from the second to the last day, worst first."""
    problems = []
    for name, after in last.items():
        before = second.get(name, 0)
        if name.startswith("entries"):
            allowance = ENTRIES
        elif name.endswith(("by malloc", "resident")):
            allowance = HEAP_BYTES
        elif name.startswith(("blocks", "bytes in use")) and not is_drained:
            continue  # varies with the content of the caches
        else:
            allowance = 0
        if after - before > max(MAX_GROWTH * before, allowance):
            times = after / before if before else float("inf")
            text = f"{name}: {before:,} on the second day, {after:,} on the last: {times:.3f} times"
            problems.append((times, f"after draining, {text}" if is_drained else text))
    return [text for _, text in sorted(problems, reverse=True)]


async def run_virtual(*, days: int, per_day: int, remembered: int) -> list[str]:
    """``remembered`` is the size of the caches for strings of flows.

    ``per_day`` conversations should fill these caches.
    """
    clock = VirtualClock()
    with (
        mock.patch("skyfast.app.Clock", lambda: Clock(lambda: clock.seconds)),
        mock.patch(
            "skyfast.app.Shared",
            functools.partial(Shared, wall_clock=clock.wall),
        ),
        mock.patch("skyfast.flows.rewrites.MAX_REMEMBERED", remembered),
    ):
        soak = VirtualSoak(per_day=per_day, clock=clock)
        with contextlib.closing(soak.load):
            return await _run_days(soak, days)


async def _run_days(soak: VirtualSoak, days: int) -> list[str]:
    began_s = time.monotonic()
    # A dict of all days would grow, and would look like a leak.
    figures_by_day: dict[int, Figures] = {}
    drained: list[Figures] = []
    problems: list[str] = []
    for day in range(1, days + 1):
        figures = await soak.day()
        if day in (1, 2, days):
            figures_by_day[day] = figures
        if day in (2, days):
            problems += await soak.sums()
            drained.append(await soak.drain())
            problems += soak.problems()
        tables = "".join(f", {name} {size / 1e6:.2f}" for name, size in _tables(figures))
        print_line(
            f"day {day:2}: {soak.load.started:,} conversations, {soak.load.reports:,} reports,"
            f" {figures['bytes resident'] / 1e6:.1f} MB resident, MB of tables{tables}"
            f" ({time.monotonic() - began_s:.0f} s)"
        )
    print_line("ratio of the memory on the last day to the memory on the first day (same load):")
    for name in (name for name in figures_by_day[1] if name.startswith("bytes")):
        print_line(f"  {name}: {figures_by_day[days][name] / figures_by_day[1][name]:.3f}")
    print_line("ratio of the memory after the last drain to the memory after the first drain:")
    for name in (name for name in drained[0] if name.startswith("b")):
        print_line(f"  {name}: {drained[-1][name] / drained[0][name]:.3f}")
    problems += growth_problems(figures_by_day[2], figures_by_day[days], is_drained=False)
    problems += growth_problems(drained[0], drained[-1], is_drained=True)
    return problems


def _tables(figures: Mapping[str, int]) -> list[tuple[str, int]]:
    prefix = "bytes of the table, "
    return [(n.removeprefix(prefix), size) for n, size in figures.items() if n.startswith(prefix)]


# Real time

REAL_STEP_S, REAL_REPORT_S = 1, 5
TOPOLOGY_S, RELOAD_S, CLOSE_S = 5, 13, 37
"""Intervals between topology changes, reloads, and disconnects. After subscriptions shorter than 30
s, skyfast would delay the reconnect."""
SUBSCRIBE_S = 20
"""Maximum time from the end of a subscription until the next subscription."""
LINE_S = 10
WARM_S = 60
"""Time until memory is stable. Memory is checked only if the test lasts at least four times as
long."""
EXPIRED_S = 20 + INCIDENT_UPDATES * FLOW_UPDATE_S
"""Time until all connections have expired, even if skyfast holds the clock for the longest time."""
THREADS = 3 + min(32, (os.cpu_count() or 1) + 4)
"""Maximum number of threads: main thread, the event loop's pool, and two threads for pages."""

REAL = """
host_id: soak
pipeline:
  subscriber: {urls: [%s]}
  store:
    prom_sky_con:
      listen_address: 127.0.0.1
      port: 0
      connection_timeout: 10
      connection_grace: 5
      interfaces_interval: 5
      labels: [initiator_ip, target_ip, initiator_port, target_port, application, direction,
               node_name]
      views:
        - {prefix: soak, labels: [protocol], direction: sum}
        - {prefix: nodes, labels: [node_tid], timeout: 15}
"""


@dataclass
class Observations:
    """``resident`` has resident bytes by seconds since the start."""

    resident: dict[float, int] = field(default_factory=dict)
    pages: int = 0
    page_bytes: int = 0
    total: int = 0
    """The latest total of all bytes on the page."""
    problems: list[str] = field(default_factory=list)


async def run_process(seconds: float, *, flows_per_s: int) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "soak.yml"
        async with FakeAnalyzer() as analyzer:
            file.write_text(REAL % analyzer.url)
            async with running(file, quiet=False) as skyfast:
                return await _ProcessSoak(skyfast, analyzer, flows_per_s).run(seconds)


class _ProcessSoak:
    def __init__(self, skyfast: Skyfast, analyzer: FakeAnalyzer, flows_per_s: int) -> None:
        self._skyfast = skyfast
        self._analyzer = analyzer
        # On average, a conversation has almost two reports.
        self._new_conversations = flows_per_s // 2
        self._load = LoadGenerator(step_s=REAL_STEP_S, report_s=REAL_REPORT_S, start_s=time.time())
        self._observed = Observations()
        self._began_s = time.monotonic()

    async def run(self, seconds: float) -> list[str]:
        self._analyzer.topology = FakeResponse(body=self._load.topology(), compress=True)
        await self._analyzer.subscriber()
        series = f'skyfast_up{{analyzer="{self._name}"}}'
        await self._skyfast.until(lambda metrics: metrics[series] == 1)
        open_files = self._open_files()
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(job) for job in (self._scrape(), self._observe())]
            await self._send(seconds)
            for task in background:
                task.cancel()
        await self._wait_for_reports()
        await self._read_page()
        if self._observed.total != BYTES * self._load.reports:
            self._add_problem(
                f"{BYTES * self._load.reports} bytes were sent, not {self._observed.total}"
            )
        print_line(self._line())
        deadline_s = time.monotonic() + EXPIRED_S
        connections = 1.0
        while connections and time.monotonic() < deadline_s:
            await asyncio.sleep(LINE_S)
            connections = (await self._skyfast.self_metrics())["skyfast_connections"]
        if connections:
            self._add_problem(f"{connections:.0f} connections after {EXPIRED_S} s without reports")
        if self._open_files() > open_files:
            self._add_problem(f"{self._open_files()} open files instead of {open_files}")
        if self._threads() > THREADS:
            self._add_problem(f"{self._threads()} threads")
        self._check_memory(seconds)
        return self._observed.problems

    @property
    def _name(self) -> str:
        return self._analyzer.name

    async def _send(self, seconds: float) -> None:
        """Send a batch every second, and regularly change the topology, reload and reconnect."""
        for second in range(1, int(seconds) + 1):
            for message in self._load.step(self._new_conversations):
                await self._analyzer.send(message)
            if second % TOPOLOGY_S == 0:
                self._load.change_topology()
                self._load.restart_agent()
                body = self._load.topology()
                self._analyzer.topology = FakeResponse(body=body, compress=True)
            if second % RELOAD_S == 0:
                self._skyfast.process.send_signal(signal.SIGHUP)
            if second % CLOSE_S == 0:
                await self._reconnect(second)
            await asyncio.sleep(max(0.0, self._began_s + second - time.monotonic()))

    async def _reconnect(self, second: int) -> None:
        """End the subscription in one of three ways, and wait for the next one."""
        # Reports in transit would be lost.
        await self._wait_for_reports()
        (subscriber,) = self._analyzer.subscribers
        match second // CLOSE_S % 3:
            case 0:
                await subscriber.close(1001)
            case 1:
                subscriber.reset()
            case 2:
                await self._analyzer.stop()
                await self._analyzer.start()
        await self._analyzer.subscriber(SUBSCRIBE_S)

    async def _wait_for_reports(self) -> None:
        series = f'skyfast_flows_total{{analyzer="{self._name}"}}'
        await self._skyfast.until(lambda metrics: metrics[series] == self._load.reports)

    async def _scrape(self) -> None:
        while True:
            await asyncio.gather(self._read_page(), asyncio.sleep(1))

    async def _read_page(self) -> None:
        request = urllib.request.Request(
            f"{self._skyfast.url}/metrics", headers={"Accept-Encoding": "gzip"}
        )

        def ask() -> bytes:
            with urllib.request.urlopen(request, timeout=30) as response:
                return gzip.decompress(response.read())

        page = await asyncio.to_thread(ask)
        self._observed.pages += 1
        self._observed.page_bytes = len(page)
        if match := re.search(rb'^soak_bytes_total\{protocol="TCP"\} (\d+)$', page, re.MULTILINE):
            total = int(match[1])
            if not self._observed.total <= total <= BYTES * self._load.reports:
                self._add_problem(f"the sum changed from {self._observed.total} to {total}")
            self._observed.total = total

    async def _observe(self) -> None:
        while True:
            for _ in range(LINE_S):
                await asyncio.sleep(1)
                now_s = time.monotonic() - self._began_s
                self._observed.resident[now_s] = resident_bytes(self._pid)
            print_line(self._line())

    def _check_memory(self, seconds: float) -> None:
        if seconds < 4 * WARM_S:
            return
        early, late = (
            max(
                size
                for at_s, size in self._observed.resident.items()
                if begin <= at_s / seconds < end
            )
            for begin, end in ((0.25, 0.5), (0.75, 1.1))
        )
        if late - early > max(MAX_GROWTH * early, HEAP_BYTES):
            self._add_problem(
                f"{late:,} resident bytes in the last quarter, {early:,} in the second quarter"
            )

    def _add_problem(self, text: str) -> None:
        self._observed.problems.append(text)
        print_line(f"PROBLEM: {text}")

    def _line(self) -> str:
        observed = self._observed
        return (
            f"{time.monotonic() - self._began_s:4.0f} s: {self._load.reports:,} reports,"
            f" {resident_bytes(self._pid) / 1e6:.1f} MB resident, {self._open_files()} files,"
            f" {self._threads()} threads, {observed.pages} pages, the last of"
            f" {observed.page_bytes / 1e6:.1f} MB, {len(self._analyzer.upgrades)} subscriptions,"
            f" {sum('configuration reloaded' in line for line in self._skyfast.log)} reloads"
        )

    @property
    def _pid(self) -> int:
        return self._skyfast.process.pid

    def _open_files(self) -> int:
        return len(list(Path(f"/proc/{self._pid}/fd").iterdir()))

    def _threads(self) -> int:
        return len(list(Path(f"/proc/{self._pid}/task").iterdir()))


# Command line

FULL_PER_DAY = 100_000
"""New conversations per day: more than one per second."""
REMEMBERED = 8192
"""The default, `rewrites.MAX_REMEMBERED`, would take a week to fill."""


def print_line(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.soak", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    virtual = kinds.add_parser("virtual", help="process days of traffic in virtual time")
    virtual.add_argument("--days", type=int, default=30)
    virtual.add_argument("--per-day", type=int, default=FULL_PER_DAY, help="new conversations")
    virtual.add_argument(
        "--remembered",
        type=int,
        default=REMEMBERED,
        help="size of the caches for strings of flows",
    )
    real = kinds.add_parser("real", help="run a skyfast process with real sockets")
    real.add_argument("--seconds", type=float, default=600)
    real.add_argument("--flows-per-s", type=int, default=3000)
    chosen = parser.parse_args()
    logging.disable()  # reloads of the apps would log messages
    if chosen.kind == "virtual":
        soak = run_virtual(days=chosen.days, per_day=chosen.per_day, remembered=chosen.remembered)
    else:
        soak = run_process(chosen.seconds, flows_per_s=chosen.flows_per_s)
    problems = asyncio.run(soak)
    for text in problems:
        print_line(f"PROBLEM: {text}")
    print_line("failed" if problems else "passed: all limits held")
    return 1 if problems else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
