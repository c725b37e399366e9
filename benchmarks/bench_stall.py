"""How late do tasks of the event loop run, during scrapes and when many connections expire?

Not measured: more than two cores.
"""

import json
import time

from benchmarks import heartbeat, programs
from benchmarks.analyzer import Analyzer
from benchmarks.flows import FIRST_ROUND
from benchmarks.harness import LARGE, Remote, Report, at_most, ratio_at_most
from benchmarks.programs import Program

FLOWS_PER_S = 100_000
SECONDS = 12.0
IDLE_S = 3.0
PING_INTERVAL_S = 0.1
"""Interval of pings. Skydive pings every 2 s, and drops a subscription if a pong takes
`PONG_TIMEOUT_S`.
"""
PONG_TIMEOUT_S = 5.0

CYCLES = 3
TIMEOUT_S = 620.0
"""Longer than ``connection_timeout`` plus ``connection_grace``."""
MEMORY_S = 1_400.0
"""Longer than ``flow_memory``."""

POLL_S = 0.05
NICE = 10
"""Nice value of the analyzer and the scraper, which run on other machines in a cluster."""


class Scraper:
    """Requests one page after the other, and returns the seconds of each request."""

    def run(self, port: int, seconds: float) -> list[float]:
        end_s = time.monotonic() + seconds
        taken = []
        while time.monotonic() < end_s:
            taken.append(programs.get(port, "/metrics", compressed=True, keep=False).seconds)
        return taken


def run(report: Report) -> None:
    with (
        Remote(Analyzer, LARGE, nice=NICE) as analyzer,
        Remote(Scraper, nice=NICE) as scraper,
        programs.heartbeat(analyzer) as program,
    ):
        _begin(program)
        time.sleep(IDLE_S)
        _add_delays(report, "idle", _end(program), targets=False)
        analyzer.call(Analyzer.load, 0, LARGE)
        filled, emptied = _cycles(report, program, analyzer)
        program.round(FIRST_ROUND)
        analyzer.call(Analyzer.load_some, FLOWS_PER_S)
        _scraped(report, program, analyzer, scraper)
    report.add(f"memory with {LARGE:,} connections, first cycle", filled[:1], "MiB")
    what = f"memory after {CYCLES - 1} more cycles"
    same = ratio_at_most(1.02)
    report.add(what, filled[-1:], "MiB", to="first cycle", over=filled[:1], target=same)
    report.add("memory after all have expired", emptied, "MiB")


def _cycles(
    report: Report, program: Program, analyzer: Remote[Analyzer]
) -> tuple[list[float], list[float]]:
    """Fill and empty the table repeatedly.

    Returns two lists with an entry for each cycle: the memory of the process in MiB with the full
    table, and with the empty table.
    """
    delays: list[float] = []
    filled, emptied, took_s = [], [], []
    for _ in range(CYCLES):
        program.round(FIRST_ROUND)
        filled.append(program.memory() / 2**20)
        assert program.metric("skyfast_connections") == LARGE
        _begin(program)
        began_s = time.monotonic()
        program.command(f"pass {TIMEOUT_S}")
        while program.metric("skyfast_connections"):
            time.sleep(POLL_S)
        took_s.append(time.monotonic() - began_s)
        # The flows must be new in the next cycle, so wait until the dormant flows are forgotten.
        program.command(f"pass {MEMORY_S}")
        while program.metric("skyfast_dormant_flows"):
            time.sleep(POLL_S)
        delays += _end(program)
        emptied.append(program.memory() / 2**20)
    _add_delays(report, f"{LARGE:,} connections expire and are forgotten at once", delays)
    report.add("time until all have expired", took_s, "s")
    return filled, emptied


def _scraped(
    report: Report, program: Program, analyzer: Remote[Analyzer], scraper: Remote[Scraper]
) -> None:
    before = program.metric("skyfast_flows_total")
    _begin(program)
    scraped = scraper.begin(Scraper.run, program.port, SECONDS)
    sent, took_s, pings_s = analyzer.call(
        Analyzer.send_paced, SECONDS, FLOWS_PER_S, PING_INTERVAL_S
    )
    delays = _end(program)
    pages_s = scraped()
    program.settle()
    lost = sent - (program.metric("skyfast_flows_total") - before)
    _add_delays(report, f"{LARGE:,} connections scraped continuously", delays)
    report.add("flows received during scrapes", [sent / took_s], "flows/s")
    skipped = program.metric("skyfast_flows_skipped_total")
    report.add("flows lost or skipped", [lost + skipped], "", target=at_most(0))
    report.add("scrape, gzip", pages_s, "s")
    report.add("pongs", [s * 1e3 for s in pings_s], "ms")
    report.add("slowest pong", [max(pings_s) * 1e3], "ms", target=at_most(PONG_TIMEOUT_S * 1e3))


def _add_delays(report: Report, what: str, delays_s: list[float], *, targets: bool = True) -> None:
    waits = sorted(heartbeat.waits_ms(delays_s))
    for part, wait, limit in (
        ("99th percentile of delays", waits[len(waits) * 99 // 100], 10),
        ("longest delay", waits[-1], 50),
    ):
        report.add(f"{what}: {part}", [wait], "ms", target=at_most(limit) if targets else None)


def _begin(program: Program) -> None:
    program.command("begin")


def _end(program: Program) -> list[float]:
    delays_s: list[float] = json.loads(program.command("end"))
    return delays_s
