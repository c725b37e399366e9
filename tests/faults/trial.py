"""Trials: a real skyfast process must recover from a fault.

All trials have the same structure::

    @concurrent_trial
    async def test_something(directory):
        async with start_trial(directory) as trial:
            ...  # the fault
            await trial.has_recovered(counted={("skyfast_reconnects_total", "closed"): 1})

`Trial.has_recovered` asserts that skyfast is subscribed and ready, that the page has exactly the
reported totals, and that only the expected errors were counted. The process must use no more
descriptors, threads, tasks and memory than before the fault.
"""

import asyncio
import contextlib
import functools
import inspect
import itertools
import json
import os
import re
import signal
import time
import urllib.error
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from skyfast.runtime.memory import KEPT_BYTES
from tests.support.analyzer import FakeAnalyzer, Subscriber
from tests.support.process import Skyfast, running

PROBE = Path(__file__).parent / "probe"
HOST_ID = "skyfast-on-trial"
FLOWS = 200
"""Number of connections at the start of a trial."""
BATCH = 100
"""Flows per message, as Skydive sends them."""
START_S = 30.0
FAULT_S = 45.0
"""Maximum time until a fault is counted. For a missing response to a ping, this takes 30 s."""
RECOVERY_S = 25.0
"""Maximum time until skyfast recovers. Attempts to subscribe are up to 10 s apart."""
POLL_S = 0.2
STATISTICS_S = 0.5
"""The interval of statistics. With Skydive's interval, 10 s, silence would be detected later."""
STATISTICS = '{"Namespace":"stats","Type":"stats","Obj":{"CaptureID":"capture","FlowCount":1}}'
MEMORY_BYTES = KEPT_BYTES
"""Free memory that skyfast may keep in its heap."""

COUNTED = (
    "skyfast_reconnects_total",
    "skyfast_message_errors_total",
    "skyfast_flows_skipped_total",
    "skyfast_flows_misdated_total",
    "skyfast_topology_errors_total",
    "skyfast_capture_reports_skipped_total",
    "skyfast_scrapes_failed_total",
    "skyfast_scrapes_rejected_total",
    "skyfast_http_connections_rejected_total",
)
"""All metrics that count errors."""

Reason = tuple[str, str]
"""A metric in `COUNTED` and a value of its label ``reason``; "" if the metric lacks the label."""

SERIES = re.compile(
    r'skydive_network_connection_total_bytes\{initiator_ip="([\d.]+)",.*'
    r'direction="(\w)\w+",.*\} (\d+)'
)


_start_slots = asyncio.Semaphore(2)
"""Limits concurrent starts, because each start needs half a second of processor time."""


class _Some:
    """Equals every integer above 0."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and other > 0

    def __repr__(self) -> str:
        return "some"

    __hash__ = None  # type: ignore[assignment]


SOME = _Some()


def concurrent_trial(trial: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Turn a trial into a test. The trial gets a new directory and the test's parameters."""
    parameters = list(inspect.signature(trial).parameters.values())[1:]

    @functools.wraps(trial)
    def test(request: pytest.FixtureRequest, **_: object) -> None:
        request.getfixturevalue("trials").wait_for(request.node)

    del test.__wrapped__
    request_parameter = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    test.__signature__ = inspect.Signature([request_parameter, *parameters])  # type: ignore[attr-defined]
    test.trial = trial  # type: ignore[attr-defined]
    return pytest.mark.slow(pytest.mark.xdist_group("faults")(test))


def flow(
    number: int, total: int, *, uuid: str, node: str = "node", last_ms: int | None = None
) -> str:
    """Return a report of connection ``number``, whose initiator sent ``total`` bytes."""
    now_ms = time.time_ns() // 1_000_000 if last_ms is None else last_ms
    address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    times = f'"Start":{now_ms - 1000},"Last":{now_ms}'
    return (
        f'{{"UUID":"{uuid}","LayersPath":"Ethernet/IPv4/TCP",'
        f'"Network":{{"Protocol":"IPV4","A":"{address}","B":"10.255.0.1"}},'
        '"Transport":{"Protocol":"TCP","A":40000,"B":443},'
        f'"Metric":{{"ABPackets":{total},"ABBytes":{total},"BAPackets":{total},'
        f'"BABytes":{2 * total},{times}}},{times},"NodeTID":"{node}"}}'
    )


def messages(flows: Iterable[str]) -> list[bytes]:
    """Return messages of up to `BATCH` flows."""
    iterator = iter(flows)
    batches = iter(lambda: list(itertools.islice(iterator, BATCH)), [])
    return [
        f'{{"Namespace":"flow","Type":"store","UUID":"","Status":200,"Obj":[{",".join(batch)}]}}'.encode()
        for batch in batches
    ]


@dataclass(frozen=True)
class Footprint:
    """The resources of a process: descriptors by type, threads, tasks by coroutine, and memory.

    The event loop's pool is not counted, because it has from zero to six threads.
    """

    descriptors: Counter[str]
    threads: int
    tasks: Counter[str]
    resident_bytes: int

    def exceeds(self, base: "Footprint") -> str:
        """Describe the resources that exceed those of ``base``, or return ""."""
        more = {
            "descriptors": dict(self.descriptors - base.descriptors),
            "tasks": dict(self.tasks - base.tasks),
            "threads": max(0, self.threads - base.threads),
            "bytes": max(0, self.resident_bytes - base.resident_bytes - MEMORY_BYTES),
        }
        return ", ".join(f"{number} {resource}" for resource, number in more.items() if number)


class Trial:
    """A running skyfast, its analyzer, and the totals reported so far."""

    def __init__(
        self, skyfast: Skyfast, analyzer: FakeAnalyzer, *, host: str, directory: Path
    ) -> None:
        self.skyfast = skyfast
        self.port = int(skyfast.url.rpartition(":")[2])
        self.analyzer = analyzer
        self._name = f"{host}:{analyzer.port}"
        self._directory = directory
        self.pid = skyfast.process.pid
        self._proc = Path("/proc") / str(self.pid)
        self.totals: dict[int, int] = {}
        """Bytes from initiator to target, by connection; the other direction has twice as many."""
        self.silent = False
        """If true, the analyzer sends no statistics."""
        self._generation = 1
        self._earlier: dict[int, int] = {}
        self.base = Footprint(Counter(), 0, Counter(), 0)
        self._counts: Counter[Reason] = Counter()

    # Actions of the analyzer

    @property
    def subscriber(self) -> Subscriber:
        return self.analyzer.subscribers[-1]

    async def send_statistics(self, subscriber: Subscriber) -> None:
        """Send statistics repeatedly: without them, the subscription would count as silent."""
        while True:
            await asyncio.sleep(STATISTICS_S)
            if not (self.analyzer.stalling or self.analyzer.is_stopped or self.silent):
                await subscriber.send(STATISTICS)

    def restart_agents(self) -> None:
        """Continue every connection as a new flow, whose totals start at zero."""
        self._generation += 1
        self._earlier = dict(self.totals)

    def next_reports(self, numbers: Iterable[int] | None = None, by: int = 10) -> list[bytes]:
        """Return the next reports of all or some connections, with higher totals."""
        numbers = list(self.totals if numbers is None else numbers)
        for number in numbers:
            self.totals[number] = self.totals.get(number, 0) + by
        return messages(
            flow(
                number,
                self.totals[number] - self._earlier.get(number, 0),
                uuid=f"{self._generation:x}{number:08x}",
            )
            for number in numbers
        )

    async def report(self, numbers: Iterable[int] | None = None) -> None:
        for message in self.next_reports(numbers):
            await self.subscriber.send(message)

    # Responses of skyfast

    async def status(self, path: str) -> int:
        try:
            await self.skyfast.get(path)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        return 200

    async def totals_on_page(self) -> dict[tuple[str, str], int]:
        """Return the bytes on the page by initiator and first letter of the direction."""
        page = (await self.skyfast.get("/metrics/flows")).decode()
        return {(a, direction): int(value) for a, direction, value in SERIES.findall(page)}

    def expected_on_page(self) -> dict[tuple[str, str], int]:
        expected = {}
        for number, total in self.totals.items():
            address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            expected[address, "i"] = total
            expected[address, "t"] = 2 * total
        return expected

    async def wait_for_page(self) -> None:
        """Wait until the page has exactly the reported totals."""
        expected = self.expected_on_page()
        shown: dict[tuple[str, str], int] = {}
        async with asyncio.timeout(RECOVERY_S):
            while shown != expected:
                shown = await self.totals_on_page()
                assert all(shown[key] <= expected[key] for key in shown), (
                    "the page shows more than was reported"
                )
                await asyncio.sleep(POLL_S)

    async def wait_for_up(self, up: int = 1) -> None:
        await self.until(lambda metrics: metrics[self.series("skyfast_up")] == up)

    async def until(self, condition: Callable[[dict[str, float]], bool]) -> None:
        async with asyncio.timeout(RECOVERY_S):
            while True:
                if condition(await self.skyfast.self_metrics()):
                    return
                await asyncio.sleep(POLL_S)

    async def wait_for_log(self, text: str) -> str:
        async with asyncio.timeout(RECOVERY_S):
            while True:
                for line in self.skyfast.log:
                    if text in line:
                        return line
                await asyncio.sleep(POLL_S)

    def series(self, name: str, **labels: str) -> str:
        """Return the analyzer's series of the metric ``name``, as written on the page."""
        pairs = {"analyzer": self._name, **labels}
        return name + "{" + ",".join(f'{k}="{v}"' for k, v in pairs.items()) + "}"

    async def counts(self) -> Counter[Reason]:
        """Return the error counters, as sums over all analyzers."""
        counts: Counter[Reason] = Counter()
        for series, value in (await self.skyfast.self_metrics()).items():
            name, _, labels = series.partition("{")
            if name in COUNTED:
                reason = re.search(r'reason="(\w+)"', labels)
                counts[name, reason[1] if reason else ""] += int(value)
        return counts

    async def counted(self) -> dict[Reason, int]:
        """Return the increases of error counters since the trial's start."""
        return dict(await self.counts() - self._counts)

    async def wait_for_counts(self, *reasons: Reason) -> None:
        async with asyncio.timeout(FAULT_S):
            while True:
                if (await self.counted()).keys() >= set(reasons):
                    return
                await asyncio.sleep(POLL_S)

    # State of the process

    async def footprint(self) -> Footprint:
        target = self._directory / "probe.json"
        target.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        async with asyncio.timeout(RECOVERY_S):
            while not target.exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.005)
        state = json.loads(target.read_text())
        return Footprint(
            descriptors=Counter(self.descriptors()),
            threads=len(list((self._proc / "task").iterdir())) - state["pool_threads"],
            tasks=Counter(state["tasks"]),
            resident_bytes=self.resident_bytes(),
        )

    def descriptors(self) -> list[str]:
        """Return the type of each file descriptor, such as "socket" or "file"."""
        kinds = []
        for descriptor in (self._proc / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the descriptor is already closed
                link = str(descriptor.readlink())
                kinds.append("file" if link.startswith("/") else link.partition(":[")[0])
        return kinds

    def resident_bytes(self) -> int:
        pages = int((self._proc / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    # State before and after the fault

    async def begin(self, flows: int) -> None:
        """Wait until skyfast's resources stop growing, and store its footprint and counters."""
        await self.analyzer.subscriber(START_S)
        await self.wait_for_up()
        for _ in range(2):
            await self.report(range(flows))
            await self.wait_for_page()
            await self.skyfast.get("/metrics")
        footprint = await self.footprint()
        async with asyncio.timeout(RECOVERY_S):
            while footprint.tasks["RequestHandler.start"] or footprint.exceeds(self.base):
                self.base = footprint
                await asyncio.sleep(POLL_S)
                footprint = await self.footprint()
        self._counts = await self.counts()

    async def has_recovered(
        self, *, counted: Mapping[Reason, object], logged: Sequence[str] = ()
    ) -> None:
        """Check what the docstring of this module lists."""
        await self.wait_for_counts(*counted)
        await self.wait_for_up()
        assert await self.status("/-/ready") == 200
        await self.report()
        await self.wait_for_page()
        assert await self.counted() == counted
        for text in logged:
            await self.wait_for_log(text)
        excess = "not checked yet"
        deadline_s = time.monotonic() + RECOVERY_S
        while excess:
            excess = (await self.footprint()).exceeds(self.base)
            assert not excess or time.monotonic() < deadline_s, f"not released: {excess}"
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def start_trial(
    directory: Path,
    *,
    flows: int = FLOWS,
    analyzer: FakeAnalyzer | None = None,
    host: str = "",
    others: Sequence[FakeAnalyzer] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    through: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[Trial]:
    """Run a skyfast that is subscribed and has ``flows`` connections.

    ``host`` is the host in the analyzer's URL, by default its address. ``others`` are running
    analyzers to which skyfast also subscribes. ``settings`` are keys of the sections
    ``subscriber``, ``prom_sky_con`` and ``web``. ``through`` is a command that executes its
    arguments, such as ``env``.
    """
    async with AsyncExitStack() as stack:
        analyzer = await stack.enter_async_context(analyzer or FakeAnalyzer())
        host = host or analyzer.address
        url = analyzer.url.replace(analyzer.address, host)
        sections = settings or {}
        store = {"port": 0, "listen_address": "127.0.0.1", "interfaces_interval": 0}
        document = {
            "host_id": HOST_ID,
            "pipeline": {
                "subscriber": {
                    "urls": [url, *(other.url for other in others)],
                    **sections.get("subscriber", {}),
                },
                "store": {"prom_sky_con": store | sections.get("prom_sky_con", {})},
            },
            "web": dict(sections.get("web", {})),
        }
        config = directory / "prom_sky_con.yml"
        config.write_text(yaml.safe_dump(document))
        probe_environ = {"PYTHONPATH": str(PROBE), "PROBE": str(directory / "probe.json")}
        async with _start_slots:
            skyfast = await stack.enter_async_context(
                running(config, quiet=False, through=through, **probe_environ, **(environ or {}))
            )
            trial = Trial(skyfast, analyzer, host=host, directory=directory)
            analyzer.on_subscribe = trial.send_statistics
            await trial.begin(flows)
        yield trial
