"""How much delay and memory do names from the topology cost, and how soon do they appear?

Not measured: the CPU time of the analyzer.
"""

import json
import os
import time

from benchmarks import heartbeat, programs
from benchmarks.analyzer import Analyzer
from benchmarks.flows import FIRST_ROUND
from benchmarks.harness import SCALE, Remote, Report, at_most
from benchmarks.programs import CONFIG, Program
from benchmarks.topology import PODS, Topology

LIMIT_S = 420
READING_INTERVAL_S = 10.0
"""Interval at which skyfast reads the complete topology. The default of skyfast is several
minutes."""
WAIT_S = 90.0
POLL_S = 0.2
MOVED_PODS = PODS // 5
NICE = 10

LABELS = """\
      interfaces_interval: 0
      labels: [initiator_ip, target_ip, initiator_port, target_port, direction, node_tid, protocol]
"""
NAMES = LABELS.replace(
    "protocol]",
    "protocol, node_namespace, node_pod, node_workload"
    + "".join(
        f", {end}_{label}"
        for end in ("initiator", "target")
        for label in ("name", "host", "namespace", "pod", "workload", "container", "service")
    )
    + "]",
)

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n"
)


class TopologyAnalyzer(Analyzer):
    """An analyzer whose topology has the addresses and interfaces of the flows."""

    def __init__(self, flows: int) -> None:
        super().__init__(flows)
        self._topology = Topology(
            [address.decode() for address in self._flows.addresses],
            [node.decode() for node in self._flows.nodes],
        )

    def sizes(self) -> dict[str, int]:
        return self._topology.sizes()

    def move_pods(self, count: int) -> None:
        self._topology.move_pods(count)

    def _respond(self, body: bytes) -> bytes:
        response = self._topology.response(json.loads(body)["GremlinQuery"])
        return _HEAD % len(response) + response


def run(report: Report) -> None:
    os.environ["NAMES_INTERVAL_S"] = str(READING_INTERVAL_S)
    with Remote(TopologyAnalyzer, SCALE, nice=NICE) as analyzer:
        for what, size in analyzer.call(TopologyAnalyzer.sizes).items():
            report.add(f"topology: {what}", [size], "")
        analyzer.call(Analyzer.load, 0, SCALE)
        with programs.heartbeat(analyzer, CONFIG + LABELS) as program:
            program.round(FIRST_ROUND)
            time.sleep(READING_INTERVAL_S)
            without = _resident(program)
            _add_delays(report, "without names", program, targets=False)
        began_s = time.monotonic()
        with programs.heartbeat(analyzer, CONFIG + NAMES) as program:
            _wait(program, "skyfast_names", PODS)
            report.add("time from the start to all names", [time.monotonic() - began_s], "s")
            _add_delays(report, "names read for the first time", program)
            program.round(FIRST_ROUND)
            program.command("begin")
            time.sleep(2 * READING_INTERVAL_S)
            _add_delays(report, "names read again without changes", program)
            _move(report, program, analyzer)
            memory = _resident(program) - without
            report.add("memory of names, besides the table", [memory], "MiB", target=at_most(150))
            peak = (program.memory("VmHWM") - program.memory()) / 2**20
            report.add("peak memory minus resident memory", [peak], "MiB")
            assert b"release-1-" in program.page(keep=True).body


def _move(report: Report, program: Program, analyzer: Remote[TopologyAnalyzer]) -> None:
    """Move pods to another workload, and measure how long the relabeling of all flows takes."""
    resolutions = program.metric("skyfast_names_resolutions_total")
    created = program.metric("skyfast_connections_created_total")
    program.command("begin")
    began_s = time.monotonic()
    analyzer.call(TopologyAnalyzer.move_pods, MOVED_PODS)
    _wait(program, "skyfast_names_resolutions_total", resolutions + 1)
    program.settle()
    what = f"time until {MOVED_PODS:,} pods have their new workload"
    report.add(what, [time.monotonic() - began_s], "s")
    moved = program.metric("skyfast_connections_created_total") - created
    assert moved
    _add_delays(report, f"{moved:,.0f} connections change their names", program)


def _wait(program: Program, metric: str, least: float) -> None:
    end_s = time.monotonic() + WAIT_S
    while program.metric(metric) < least:
        assert time.monotonic() < end_s, metric
        time.sleep(POLL_S)


def _resident(program: Program) -> float:
    """Return the resident memory without the table, in MiB."""
    return (program.memory() - program.metric("skyfast_table_bytes")) / 2**20


def _add_delays(report: Report, what: str, program: Program, *, targets: bool = True) -> None:
    delays_s: list[float] = json.loads(program.command("end"))
    waits = sorted(heartbeat.waits_ms(delays_s))
    report.add(f"{what}: 99th percentile of delays", [waits[len(waits) * 99 // 100]], "ms")
    target = at_most(50) if targets else None
    report.add(f"{what}: longest delay", [waits[-1]], "ms", target=target)
