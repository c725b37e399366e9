"""What does the status page cost with a large table?

Not measured: the browser.
"""

import json
import threading
import time
from collections.abc import Callable

from benchmarks import heartbeat, programs
from benchmarks.analyzer import Analyzer
from benchmarks.flows import FIRST_ROUND
from benchmarks.harness import LARGE, Remote, Report, at_most
from benchmarks.programs import Program

REQUESTS = 5
"""Number of requests for each page."""

RESULT_AGE_S = 0.05
"""How long skyfast caches rankings and cardinality reports."""

FLOW_UPDATE_S = 1.0
"""The assumed ``flow.update``, after which skyfast shows rates."""

ENVIRONMENT = {"RESULT_AGE_S": str(RESULT_AGE_S), "FLOW_UPDATE_S": str(FLOW_UPDATE_S)}

APART_S = 0.1
"""Pause between requests, longer than `RESULT_AGE_S`, so that each request causes a scan."""

IDLE_S = 2.0
"""Duration of the measurement without requests."""

PAGES = 10
"""Number of simultaneous identical requests."""

MIB = 2**20


def run(report: Report) -> None:
    with (
        Remote(Analyzer, LARGE) as analyzer,
        programs.heartbeat(analyzer, environment=ENVIRONMENT) as program,
    ):
        analyzer.call(Analyzer.load, 0, LARGE)
        program.round(FIRST_ROUND)
        assert program.metric("skyfast_connections") == LARGE
        _idle(report, program)
        # Measure the snapshot first: a later snapshot could reuse memory that other scans freed.
        _rates(report, program)
        for what, path, limit_ms in (
            ("/api/top, 50 by bytes", "/api/top?by=bytes&n=50", 100),
            ("/api/top, 1,000 by round-trip time", "/api/top?by=rtt&n=1000", 200),
            ("/api/top, with a filter", "/api/top?filter=10.1", 200),
            ("/api/top, a filter without matches", "/api/top?filter=nobody", 300),
            ("/api/top, groups by target port", "/api/top?group=target_port", 400),
            (
                "/api/top, groups by addresses",
                "/api/top?group=initiator_ip,target_ip",
                3000,
            ),
            ("/api/status", "/api/status", 10),
            ("/, with 20 connections", "/", 150),
            ("/cardinality, all labels", "/cardinality?format=json", 2000),
        ):
            _measure(report, program, what, path, limit_ms=limit_ms)
        _together(report, program)


def _rates(report: Report, program: Program) -> None:
    path = "/api/top?by=bytes_per_second"
    before = program.memory()
    program.command("begin")
    seconds = programs.get(program.port, path).seconds
    what = "/api/top, by bytes/s, first request (takes a snapshot)"
    _add(report, what, [seconds], _longest_ms(program))
    report.add("memory of the snapshot", [(program.memory() - before) / MIB], "MiB")
    wait_s: float | None = 0.0
    while wait_s is not None:  # until rates are available, requests do not scan the table
        time.sleep(wait_s + APART_S)
        wait_s = json.loads(programs.get(program.port, path).body)["rates_in_seconds"]
    _measure(report, program, "/api/top, by bytes/s, later requests", path, limit_ms=100)


def _together(report: Report, program: Program) -> None:
    """Send identical requests together. All of them should take as much CPU time as one request."""

    def fetch() -> None:
        programs.get(program.port, "/api/top?n=51")

    costs_ms: dict[int, list[float]] = {1: [], PAGES: []}
    for _ in range(REQUESTS):
        for count, samples in costs_ms.items():
            before_s = program.settle()
            _at_once([fetch] * count)
            samples.append((program.settle() - before_s) * 1e3)
            time.sleep(APART_S)
    report.add("CPU time of one /api/top", costs_ms[1], "ms")
    what = f"CPU time of {PAGES} requests at once"
    report.add(what, costs_ms[PAGES], "ms", to="one request", over=costs_ms[1])


def _at_once(tasks: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _idle(report: Report, program: Program) -> None:
    program.command("begin")
    time.sleep(IDLE_S)
    report.add("idle: longest pause of the event loop", [_longest_ms(program)], "ms")


def _measure(
    report: Report, program: Program, what: str, path: str, *, limit_ms: float = 0
) -> None:
    """Report the durations of requests, and the longest pause of the event loop."""
    program.command("begin")
    seconds = []
    for _ in range(REQUESTS):
        seconds.append(programs.get(program.port, path).seconds)
        time.sleep(APART_S)
    _add(report, what, seconds, _longest_ms(program), limit_ms=limit_ms)


def _add(
    report: Report, what: str, seconds: list[float], longest_ms: float, *, limit_ms: float = 0
) -> None:
    target = at_most(limit_ms) if limit_ms else None
    report.add(what, [sample * 1e3 for sample in seconds], "ms", target=target)
    report.add(f"{what}: longest pause", [longest_ms], "ms", target=at_most(50))


def _longest_ms(program: Program) -> float:
    """End the measurement, and return the longest pause in ms."""
    delays_s: list[float] = json.loads(program.command("end"))
    return max(heartbeat.waits_ms(delays_s))
