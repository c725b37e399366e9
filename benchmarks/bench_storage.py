"""What does a page cost the metrics server: time, CPU and memory?

Not measured: queries; blocks on disk; memory after two hours.
"""

import itertools
import json
import os
import shutil
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import programs
from benchmarks.analyzer import Analyzer
from benchmarks.flows import FIRST_ROUND
from benchmarks.harness import SCALE, Remote, Report
from benchmarks.programs import Program

SIZES = (SCALE // 5, SCALE)
"""Numbers of connections. Each connection has five series."""

TURNOVERS = 4
"""How often all connections of a table of the first size in `SIZES` are replaced."""

SCRAPES = int(os.environ.get("SKYFAST_BENCH_SCRAPES", "18"))
INTERVAL_S = 10
FLOW_UPDATE_S = 60
"""Interval of the reports of a live flow."""

TIMEOUT_S = 620.0
"""Longer than ``connection_timeout`` plus ``connection_grace``."""

POLL_S = 0.2
WAIT_S = 120.0
"""Time limit for a scrape."""

LIMIT_S = 180 + 8 * (SCRAPES + 2) * INTERVAL_S * 2


@dataclass(frozen=True, slots=True)
class Kind:
    """A metrics server."""

    name: str
    argv: Sequence[str]
    """The command line, with the placeholders of `Program`."""


PROMETHEUS = Kind(
    "Prometheus",
    (
        "prometheus",
        "--config.file={config}",
        "--storage.tsdb.path={directory}/data",
        "--web.listen-address=127.0.0.1:{port}",
    ),
)

_VICTORIA_METRICS = (
    "victoria-metrics",
    "-promscrape.config={config}",
    "-storageDataPath={directory}/data",
    "-httpListenAddr=127.0.0.1:{port}",
    "-promscrape.maxScrapeSize=1GB",  # a page of 500,000 series is too large for the default
    "-search.latencyOffset=0s",  # the benchmark queries the latest samples
)
VICTORIA_METRICS = Kind("VictoriaMetrics", _VICTORIA_METRICS)
UNSTREAMED = Kind(
    "VictoriaMetrics, not streamed",
    (*_VICTORIA_METRICS, "-promscrape.minResponseSizeForStreamParse=1GB"),
)


def run(report: Report) -> None:
    kinds = [
        kind for kind in (PROMETHEUS, VICTORIA_METRICS, UNSTREAMED) if shutil.which(kind.argv[0])
    ]
    if not kinds:
        raise FileNotFoundError("neither prometheus nor victoria-metrics is installed")
    with Remote(Analyzer, SCALE * (TURNOVERS + 1)) as analyzer:
        for connections in SIZES:
            _steady(report, analyzer, connections, kinds)
        for kind in kinds:
            if kind is not UNSTREAMED:
                _replace_all_connections(report, analyzer, SIZES[0], kind)


def _steady(
    report: Report, analyzer: Remote[Analyzer], connections: int, kinds: Sequence[Kind]
) -> None:
    """Scrape a constant set of connections, with reports of flows every `FLOW_UPDATE_S`."""
    with programs.skyfast(analyzer) as program:
        analyzer.call(Analyzer.load, 0, connections)
        rounds = itertools.count(FIRST_ROUND)
        program.round(next(rounds))
        page = program.page(keep=True)
        series = sum(not line.startswith(b"#") for line in page.body.splitlines())
        what = f"{_rounded(series)} series"
        report.add(f"{what}: page", [len(page.body) / 1e6], "MB")
        compressed = program.page(compressed=True)
        report.add(f"{what}: page, gzip", [compressed.received_bytes / 1e6], "MB")
        report.add(f"{what}: duration of a scrape, gzip", [compressed.seconds], "s")
        del page
        for kind in kinds:
            with programs.storage(kind.argv, program.port, INTERVAL_S) as server:
                _scraped(program, server, 1)
                cpu_s = server.cpu_s()
                every = FLOW_UPDATE_S // INTERVAL_S
                for left in range(SCRAPES - 1, 0, -every):
                    _scraped(program, server, min(left, every))
                    program.round(next(rounds))
                cpu_s = server.settle() - cpu_s
                first_s, *later_s = _samples(server, "scrape_duration_seconds")
                assert _samples(server, "scrape_samples_scraped")[-1] >= series
                assert all(_samples(server, "up"))
                name = f"{what}: {kind.name}"
                report.add(f"{name}, first scrape", [first_s], "s")
                report.add(f"{name}, later scrapes", later_s, "s")
                report.add(f"{name}, CPU time", [cpu_s / (SCRAPES - 1)], "s per scrape")
                report.add(f"{name}, memory", [server.memory() / 2**20], "MiB")
                report.add(f"{name}, peak memory", [server.memory("VmHWM") / 2**20], "MiB")


def _replace_all_connections(
    report: Report, analyzer: Remote[Analyzer], connections: int, kind: Kind
) -> None:
    with (
        programs.heartbeat(analyzer) as program,
        programs.storage(kind.argv, program.port, INTERVAL_S) as server,
    ):
        memory_mib = []
        for turn in range(TURNOVERS + 1):
            analyzer.call(Analyzer.load, turn * connections, (turn + 1) * connections)
            program.round(FIRST_ROUND)
            _scraped(program, server, 3)
            server.settle()
            memory_mib.append(server.memory() / 2**20)
            if turn == 0:
                series = _samples(server, "scrape_samples_scraped")[-1]
            program.command(f"pass {TIMEOUT_S}")
            while program.metric("skyfast_connections"):
                time.sleep(POLL_S)
        for turn, mib in ((0, memory_mib[0]), (TURNOVERS, memory_mib[-1])):
            what = f"{_rounded(series)} series"
            gone = f", after {_rounded(series * turn)} others" if turn else ""
            report.add(f"{what}{gone}: {kind.name}, memory", [mib], "MiB")


def _scraped(program: Program, server: Program, count: int) -> None:
    """Wait until the server has scraped ``count`` more pages and is idle."""
    total = program.metric("skyfast_scrapes_total") + count
    end_s = time.monotonic() + count * INTERVAL_S + WAIT_S
    while program.metric("skyfast_scrapes_total") < total:
        if time.monotonic() > end_s:
            raise TimeoutError("the server does not scrape")
        time.sleep(POLL_S)
    server.settle()


def _samples(server: Program, name: str) -> list[float]:
    """Return all values of a series that the server adds to each scrape, such as ``up``."""
    query = urllib.parse.urlencode({"query": f"{name}{{job='skyfast'}}[1h]"})
    response: Any = json.loads(programs.get(server.port, f"/api/v1/query?{query}").body)
    (series,) = response["data"]["result"]
    return [float(value) for _, value in series["values"]]


def _rounded(series: float) -> str:
    return f"{round(series, -3):,.0f}"
