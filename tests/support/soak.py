"""Soaks: days of churn in virtual time, and churn for real as long as one likes.

``python -m tests.support.soak virtual`` plays it through the parts of three configurations,
within this process; ``python -m tests.support.soak real`` through a process of its own, with
sockets. Either prints what it sees, and ends with exit code 1 where
memory grew, which it names, or a counter is wrong.

`tests.support.load_generator` makes the traffic, `tests.support.memory_audit`
reads the memory.
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
from skyfast.runtime import memory
from skyfast.runtime.clock import Clock
from skyfast.skydive import topology_nodes
from skyfast.skydive.clock_skew import ClockSkewCheck
from skyfast.skydive.name_resolver import resolve
from skyfast.skydive.reporting_gap import INCIDENT_UPDATES
from skyfast.stats import FLOW_UPDATE_S
from skyfast.web.exposition import Part
from tests.support.analyzer import Answer, FakeAnalyzer
from tests.support.load_generator import UNIT, Churn, Elsewhere
from tests.support.memory_audit import containers, heap_bytes, resident_bytes
from tests.support.process import Skyfast, running
from tests.support.topology_scenarios import read_graph

Figures = dict[str, int]

MOST_GROWTH = 0.02
"""Of any memory, from the second day to the last."""
HEAP_BYTES = 6 * memory.HEAP_STEP_BYTES
"""By which what heap and process hold may differ in any case: it is as much as they ever needed, in
steps, and the more pages and answers there were, the more of them came together. What is in use of
it may not differ so."""
ENTRIES = 64
"""By which containers may differ in any case, such as those of the names that there are."""

PACKETS, BYTES = UNIT[0] + UNIT[2], UNIT[1] + UNIT[3]
"""What a report is worth, both directions added up."""

# Virtual time

DAY_S, HOUR_S = 86_400, 3_600
STEP_S = 30
"""Between two batches of messages."""
TICK_S = 5
"""Between two turns of the expiry wheels. More would be taken for a pause of the process."""
REPORT_S = 60
BEGINS_S = 1_700_000_000
RUSH_STEPS = 10
"""In so many steps of a day, half of its conversations begin."""
LOOK_S = 12 * HOUR_S
"""Between two looks at what is held."""
REST_S = 4_200
"""After so long a silence nothing is left: views and interfaces stay for 3600 s."""
ALL_ROWS = 2**31 - 1

DEFAULT = "{}"
SUMS = """
pipeline: {store: {prom_sky_con: {
  labels: [protocol], metrics: [bytes, packets], direction: sum, views: []}}}
"""
"""One connection, in which everything is added up."""
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
"""Everything that remembers something, and too little room for the rush."""


def _app(text: str) -> App:
    parsed = loader.parse(text, {}, source="soak.yml")
    return App(parsed, load=lambda: parsed)


class VirtualClock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wall(self) -> float:
        """Return the Unix time."""
        return BEGINS_S + self.seconds


class Virtual:
    """The parts of all configurations, fed with the same churn.

    ``per_day`` conversations begin in each day, and ``clock`` is moved.
    """

    def __init__(self, *, per_day: int, clock: VirtualClock) -> None:
        memory.tune_malloc()
        self._per_day = per_day
        self._clock = clock
        self._highest: Figures = {}
        self._left_at = 0
        """Reports until everything left: what comes then is a new connection's."""
        self.churn = Elsewhere(step_s=STEP_S, report_s=REPORT_S, begins_s=clock.wall())
        texts = {"default": DEFAULT, "sums": SUMS, "rich": RICH % (per_day // 8)}
        self.apps = {name: _app(text) for name, text in texts.items()}
        self._most_dormant = dict.fromkeys(self.apps, 0)
        for app in self.apps.values():
            app.exposition.source.table.begin(app.clock.now())
        memory.freeze()

    async def day(self) -> Figures:
        """Play a day, and a reload at its end; return the highest of all that was held."""
        self._highest = {}
        steps = DAY_S // STEP_S
        evenly = self._per_day // 2
        fresh = [evenly * (step + 1) // steps - evenly * step // steps for step in range(steps)]
        rush = range(steps // 2, steps // 2 + RUSH_STEPS)
        for step in rush:
            fresh[step] += evenly // RUSH_STEPS
        for step, messages in enumerate(self.churn.steps(fresh, eventful=HOUR_S // STEP_S)):
            self._step(messages)
            if self.churn.topology is not None:
                self._topology(self.churn.topology)
                await self._page()
            if step % (LOOK_S // STEP_S) == 0 or step == rush[-1]:
                self._look()
        for app in self.apps.values():
            assert await app.reload() is None
        return self._highest

    async def rest(self) -> Figures:
        """Let all leave, and forget what is only remembered; return what is still held."""
        self.churn.rest(REST_S)
        for _ in range(0, REST_S, STEP_S):
            self._pass_step()
        for _, found in containers(**self.apps).values():
            for one in found:
                if isinstance(one, rewrites.BoundedCache):
                    one.clear()
        self._highest = {}
        await self._page()
        self._look()
        self._left_at = self.churn.reports
        return self._highest

    def wrong(self) -> Iterator[str]:
        """Yield what is not as it should be after a rest."""
        for name, app in self.apps.items():
            table, stats = app.exposition.source.table, app.stats
            # In the rich one, the connections of what found no room never leave.
            others = 1 if name == "rich" else 0
            left = {
                "flows": table.flows,
                "dormant flows": table.dormant_flows,
                "dormant connections": table.dormant_connections,
                "connections": table.connections - others,
                "connections of views": sum(rows - others for rows in table.view_connections),
                "captures": stats.captures.captures,
                "interfaces": stats.topology.interfaces,
            }
            yield from (
                f"{name}: {count} {what} after {REST_S} s of silence"
                for what, count in left.items()
                if count > 0
            )
            lost = {reason: count for reason, count in table.skipped.items() if count}
            if lost and name != "rich":
                yield f"{name}: flows were skipped: {lost}"
            misdated = sum(sum(one.misdated.values()) for one in stats.analyzers.values())
            if misdated:
                yield f"{name}: {misdated} flows were dated wrongly"
            if not self._most_dormant[name]:
                yield f"{name}: no flow was ever dormant"
            taken = sum(analyzer.flows for analyzer in stats.analyzers.values())
            if taken != self.churn.reports:
                yield f"{name}: {taken} of {self.churn.reports} reports were taken"

    async def sums(self) -> Iterator[str]:
        """Return what the one connection of everything has wrong, while it is there."""
        page = (await self._text("sums")).decode()
        reports = self.churn.reports - self._left_at
        expected = {"bytes": BYTES * reports, "packets": PACKETS * reports}
        return (
            f"sums: {unit} are not {value}: {re.findall(rf'_{unit}{{.*', page)}"
            for unit, value in expected.items()
            if f'skydive_network_connection_total_{unit}{{protocol="TCP"}} {value}\n' not in page
        )

    def _step(self, messages: Iterable[memoryview]) -> None:
        for message in messages:
            for app in self.apps.values():
                app._parts.ingest.message(message, app.stats.analyzer("127.0.0.1:8082"))
        self._pass_step()

    def _pass_step(self) -> None:
        """Let the time of a step pass, and what is too old go."""
        parts = [(app._parts, app.clock.now) for app in self.apps.values()]
        for _ in range(0, STEP_S, TICK_S):
            self._clock.seconds += TICK_S
            for one, now in parts:
                assert not one.table.expire(now(), ALL_ROWS)
        for one, now in parts:
            one.interfaces.expire(now())
            one.captures.expire(now())

    def _topology(self, topology: bytes) -> None:
        answer, graph = topology_nodes.read(topology), read_graph(json.loads(topology), [])
        for app in self.apps.values():
            parts, now = app._parts, app.clock.now()
            parts.interfaces.update(answer, now)
            if all(column.lookup is None for column in parts.plan.columns):
                continue
            resolution = resolve(graph, k8s_labels=parts.names.k8s_labels)
            for names, keys in parts.names.apply(parts.names.compare(resolution, now)):
                parts.table.relabel(names, iter(keys), ALL_ROWS)

    async def _page(self) -> None:
        """Let each be scraped by somebody whose memory is not ours."""
        for app in self.apps.values():
            async with app.exposition.stream(Part.ALL, gzip=True) as page:
                async for _ in page:
                    pass

    async def _text(self, name: str) -> bytes:
        async with self.apps[name].exposition.stream(Part.ALL, gzip=True) as page:
            return gzip.decompress(b"".join([chunk async for chunk in page]))

    def _look(self) -> None:
        gc.collect()
        found = heap_bytes()
        found["bytes resident"] = resident_bytes()
        found["blocks of Python's allocator"] = sys.getallocatedblocks()
        for name, app in self.apps.items():
            table = app.exposition.source.table
            found[f"bytes of the table, {name}"] = table.bytes
            self._most_dormant[name] = max(table.dormant_flows, self._most_dormant[name])
        for path, (count, same) in containers(**self.apps).items():
            # How full a memory is, is chance.
            bounds = rewrites.MAX_REMEMBERED * sum(
                isinstance(one, rewrites.BoundedCache) for one in same
            )
            found[f"entries of {path}"] = max(count, bounds)
        for name, figure in found.items():
            self._highest[name] = max(figure, self._highest.get(name, 0))


def grown(second: Figures, last: Figures, *, at_rest: bool) -> list[str]:
    """Return what has grown by too much from the second day to the last, the worst first."""
    found = []
    for name, after in last.items():
        before = second.get(name, 0)
        if name.startswith("entries"):
            spare = ENTRIES
        elif name.endswith(("by malloc", "resident")):
            spare = HEAP_BYTES
        elif name.startswith(("blocks", "bytes in use")) and not at_rest:
            continue  # by chance, memories are full or not
        else:
            spare = 0
        if after - before > max(MOST_GROWTH * before, spare):
            times = after / before if before else float("inf")
            text = f"{name}: {before:,} on the second day, {after:,} on the last: {times:.3f} times"
            found.append((times, f"at rest, {text}" if at_rest else text))
    return [text for _, text in sorted(found, reverse=True)]


async def play(*, days: int, per_day: int, remembered: int) -> list[str]:
    """Play so many days of ``per_day`` new conversations each; return what is wrong.

    What is remembered of the flows' texts is bounded by ``remembered``, so that a small ``per_day``
    comes to that bound, too.
    """
    clock = VirtualClock()
    with (
        mock.patch("skyfast.app.Clock", lambda: Clock(lambda: clock.seconds)),
        mock.patch(
            "skyfast.skydive.ingest.ClockSkewCheck",
            functools.partial(ClockSkewCheck, wall_clock=clock.wall),
        ),
        mock.patch("skyfast.flows.rewrites.MAX_REMEMBERED", remembered),
    ):
        soak = Virtual(per_day=per_day, clock=clock)
        with contextlib.closing(soak.churn):
            return await _play(soak, days)


async def _play(soak: Virtual, days: int) -> list[str]:
    began_s = time.monotonic()
    # Of no other days: what is kept here would grow, too.
    kept: dict[int, Figures] = {}
    rests: list[Figures] = []
    wrong: list[str] = []
    for day in range(1, days + 1):
        figures = await soak.day()
        if day in (1, 2, days):
            kept[day] = figures
        if day in (2, days):
            wrong += await soak.sums()
            rests.append(await soak.rest())
            wrong += soak.wrong()
        tables = "".join(f", {name} {size / 1e6:.2f}" for name, size in _tables(figures))
        say(
            f"day {day:2}: {soak.churn.begun:,} conversations, {soak.churn.reports:,} reports,"
            f" {figures['bytes resident'] / 1e6:.1f} MB resident, MB of tables{tables}"
            f" ({time.monotonic() - began_s:.0f} s)"
        )
    say("held on the last day by what the same load took on the first, when all was in one piece:")
    for name in (name for name in kept[1] if name.startswith("bytes")):
        say(f"  {name}: {kept[days][name] / kept[1][name]:.3f}")
    say("held when all had left, by what was held then on the second day:")
    for name in (name for name in rests[0] if name.startswith("b")):
        say(f"  {name}: {rests[-1][name] / rests[0][name]:.3f}")
    wrong += grown(kept[2], kept[days], at_rest=False)
    wrong += grown(rests[0], rests[-1], at_rest=True)
    return wrong


def _tables(figures: Mapping[str, int]) -> list[tuple[str, int]]:
    prefix = "bytes of the table, "
    return [(n.removeprefix(prefix), size) for n, size in figures.items() if n.startswith(prefix)]


# Real time

REAL_STEP_S, REAL_REPORT_S = 1, 5
TOPOLOGY_S, RELOAD_S, CLOSE_S = 5, 13, 37
"""How often the topology changes, the process reloads, and the subscription ends.

One that lasts less than 30 s is begun anew with longer and longer delays."""
SUBSCRIBE_S = 20
"""How long that may take."""
LINE_S = 10
WARM_S = 60
"""After so long, memory is what it will be; a shorter soak does not judge it."""
LEFT_S = 20 + INCIDENT_UPDATES * FLOW_UPDATE_S
"""In so long all connections have left: their time-out, its grace, and some more; and the time for
which reports may be missing, as the subscription has ended shortly before."""
THREADS = 3 + min(32, (os.cpu_count() or 1) + 4)
"""Its own, those that work for the event loop, and those of two pages."""

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
class Watched:
    """What was seen of a process; ``resident`` by the seconds since the start."""

    resident: dict[float, int] = field(default_factory=dict)
    pages: int = 0
    page_bytes: int = 0
    total: int = 0
    """What the page said last about all bytes that were sent."""
    wrong: list[str] = field(default_factory=list)


async def churn_for(seconds: float, *, flows_per_s: int) -> list[str]:
    """Let a process live with churn for so long; return what is wrong."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "soak.yml"
        async with FakeAnalyzer() as analyzer:
            file.write_text(REAL % analyzer.url)
            async with running(file, quiet=False) as skyfast:
                return await _Real(skyfast, analyzer, flows_per_s).run(seconds)


class _Real:
    """A process, and what is done to it."""

    def __init__(self, skyfast: Skyfast, analyzer: FakeAnalyzer, flows_per_s: int) -> None:
        self._skyfast = skyfast
        self._analyzer = analyzer
        # A conversation is reported nearly twice.
        self._fresh = flows_per_s // 2
        self._churn = Churn(step_s=REAL_STEP_S, report_s=REAL_REPORT_S, begins_s=time.time())
        self._seen = Watched()
        self._began_s = time.monotonic()

    async def run(self, seconds: float) -> list[str]:
        self._analyzer.topology = Answer(body=self._churn.topology(), compress=True)
        await self._analyzer.subscriber()
        series = f'skyfast_up{{analyzer="{self._name}"}}'
        await self._skyfast.until(lambda metrics: metrics[series] == 1)
        open_files = self._open_files()
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(job) for job in (self._scrape(), self._watch())]
            await self._send(seconds)
            for task in others:
                task.cancel()
        await self._arrived()
        await self._read_page()
        if self._seen.total != BYTES * self._churn.reports:
            self._wrong(f"{BYTES * self._churn.reports} bytes were sent, not {self._seen.total}")
        say(self._line())
        until_s = time.monotonic() + LEFT_S
        left = 1.0
        while left and time.monotonic() < until_s:
            await asyncio.sleep(LINE_S)
            left = (await self._skyfast.self_metrics())["skyfast_connections"]
        if left:
            self._wrong(f"{left:.0f} connections after {LEFT_S} s of silence")
        if self._open_files() > open_files:
            self._wrong(f"{self._open_files()} files are open, which were {open_files}")
        if self._threads() > THREADS:
            self._wrong(f"{self._threads()} threads")
        self._judge_memory(seconds)
        return self._seen.wrong

    @property
    def _name(self) -> str:
        return self._analyzer.name

    async def _send(self, seconds: float) -> None:
        """Send a batch a second, with what happens now and then in between."""
        for second in range(1, int(seconds) + 1):
            for message in self._churn.step(self._fresh):
                await self._analyzer.send(message)
            if second % TOPOLOGY_S == 0:
                self._churn.change_topology()
                self._churn.restart_agent()
                body = self._churn.topology()
                self._analyzer.topology = Answer(body=body, compress=True)
            if second % RELOAD_S == 0:
                self._skyfast.process.send_signal(signal.SIGHUP)
            if second % CLOSE_S == 0:
                await self._reconnect(second)
            await asyncio.sleep(max(0.0, self._began_s + second - time.monotonic()))

    async def _reconnect(self, second: int) -> None:
        """End the subscription in one way or another, and wait for the next."""
        # What is on the way when a connection breaks is lost, and would be missing.
        await self._arrived()
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

    async def _arrived(self) -> None:
        series = f'skyfast_flows_total{{analyzer="{self._name}"}}'
        await self._skyfast.until(lambda metrics: metrics[series] == self._churn.reports)

    async def _scrape(self) -> None:
        while True:
            await asyncio.gather(self._read_page(), asyncio.sleep(1))

    async def _read_page(self) -> None:
        request = urllib.request.Request(
            f"{self._skyfast.url}/metrics", headers={"Accept-Encoding": "gzip"}
        )

        def ask() -> bytes:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return gzip.decompress(answer.read())

        page = await asyncio.to_thread(ask)
        self._seen.pages += 1
        self._seen.page_bytes = len(page)
        if found := re.search(rb'^soak_bytes_total\{protocol="TCP"\} (\d+)$', page, re.MULTILINE):
            total = int(found[1])
            if not self._seen.total <= total <= BYTES * self._churn.reports:
                self._wrong(f"the sum went from {self._seen.total} to {total}")
            self._seen.total = total

    async def _watch(self) -> None:
        while True:
            for _ in range(LINE_S):
                await asyncio.sleep(1)
                now_s = time.monotonic() - self._began_s
                self._seen.resident[now_s] = resident_bytes(self._pid)
            say(self._line())

    def _judge_memory(self, seconds: float) -> None:
        if seconds < 4 * WARM_S:
            return
        early, late = (
            max(size for at_s, size in self._seen.resident.items() if begin <= at_s / seconds < end)
            for begin, end in ((0.25, 0.5), (0.75, 1.1))
        )
        if late - early > max(MOST_GROWTH * early, HEAP_BYTES):
            self._wrong(f"{late:,} bytes are resident, which were {early:,} in the second quarter")

    def _wrong(self, text: str) -> None:
        self._seen.wrong.append(text)
        say(f"WRONG: {text}")

    def _line(self) -> str:
        seen = self._seen
        return (
            f"{time.monotonic() - self._began_s:4.0f} s: {self._churn.reports:,} reports,"
            f" {resident_bytes(self._pid) / 1e6:.1f} MB resident, {self._open_files()} files,"
            f" {self._threads()} threads, {seen.pages} pages, the last of"
            f" {seen.page_bytes / 1e6:.1f} MB, {len(self._analyzer.upgrades)} subscriptions,"
            f" {sum('configuration reloaded' in line for line in self._skyfast.log)} reloads"
        )

    @property
    def _pid(self) -> int:
        return self._skyfast.process.pid

    def _open_files(self) -> int:
        return len(list(Path(f"/proc/{self._pid}/fd").iterdir()))

    def _threads(self) -> int:
        return len(list(Path(f"/proc/{self._pid}/task").iterdir()))


# As a program

FULL_PER_DAY = 100_000
"""Conversations of a day: more than one a second."""
REMEMBERED = 8192
"""Of the flows' texts. With `rewrite.MAX_REMEMBERED`, it would take a week until all that
remembers was full at the same moment once."""


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201


def main() -> int:
    """Run the soak that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.soak", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    virtual = kinds.add_parser("virtual", help="days in virtual time")
    virtual.add_argument("--days", type=int, default=30)
    virtual.add_argument("--per-day", type=int, default=FULL_PER_DAY, help="new conversations")
    virtual.add_argument(
        "--remembered",
        type=int,
        default=REMEMBERED,
        help="bound of what is remembered of the flows' texts",
    )
    real = kinds.add_parser("real", help="with a process and sockets")
    real.add_argument("--seconds", type=float, default=600)
    real.add_argument("--flows-per-s", type=int, default=3000)
    chosen = parser.parse_args()
    logging.disable()  # the reloads' of the parts within this process
    if chosen.kind == "virtual":
        soak = play(days=chosen.days, per_day=chosen.per_day, remembered=chosen.remembered)
    else:
        soak = churn_for(chosen.seconds, flows_per_s=chosen.flows_per_s)
    wrong = asyncio.run(soak)
    for text in wrong:
        say(f"WRONG: {text}")
    say("failed" if wrong else "held")
    return 1 if wrong else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
