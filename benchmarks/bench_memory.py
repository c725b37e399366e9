"""How much memory do a connection and a scrape take?

Not measured: several slow clients; each needs up to 2 MB.
"""

from benchmarks import programs
from benchmarks.analyzer import Analyzer
from benchmarks.flows import FIRST_ROUND
from benchmarks.harness import LARGE, SCALE, Remote, Report, at_most
from benchmarks.programs import Program

NAIVE_FLOWS = SCALE // 5
"""The naive connector gets fewer flows, to save time. Its memory per connection is constant."""

PAGES = 3


def run(report: Report) -> None:
    unit = "bytes per connection"
    with Remote(Analyzer, LARGE) as analyzer:
        _skyfast(report, analyzer, SCALE)
        ours = _skyfast(report, analyzer, LARGE)
    for name, start, flows in (
        ("naive Python", programs.naive, NAIVE_FLOWS),
        ("Go connector", programs.go, SCALE if programs.GO_CONNECTOR else 0),
    ):
        if flows:
            with Remote(Analyzer, flows) as analyzer, start(analyzer) as program:
                theirs, empty = _fill(program, analyzer, flows)
                what = f"{name}, {flows:,} connections"
                report.add(what, [theirs], unit, to="skyfast", over=[ours])
                program.page()
                after = (program.memory() - empty) / flows
                report.add(
                    f"{name}, after a scrape",
                    [after],
                    "bytes per connection",
                    to="skyfast",
                    over=[ours],
                )


def _skyfast(report: Report, analyzer: Remote[Analyzer], flows: int) -> float:
    with programs.skyfast(analyzer) as program:
        taken, empty = _fill(program, analyzer, flows)
        unit = "bytes per connection"
        report.add("skyfast, empty process", [empty / 2**20], "MiB")
        target = at_most(190) if flows == LARGE else None
        report.add(f"skyfast, {flows:,} connections", [taken], unit, target=target)
        table = program.metric("skyfast_table_bytes") / flows
        report.add("skyfast, table only", [table], unit)
        before = program.memory()
        for compressed in (True, False):
            peaks = []
            for _ in range(PAGES):
                program.forget_peak()
                program.page(compressed=compressed)
                peaks.append((program.memory("VmHWM") - before) / 2**20)
            coding = "gzip" if compressed else "uncompressed"
            what = f"{flows:,} connections, additional memory during a scrape, {coding}"
            report.add(what, peaks, "MiB", target=at_most(16))
    return taken


def _fill(program: Program, analyzer: Remote[Analyzer], flows: int) -> tuple[float, int]:
    """Return the memory per connection, and the memory without connections, in bytes."""
    analyzer.call(Analyzer.load, 0, flows)
    empty = program.memory()
    program.round(FIRST_ROUND)
    return (program.memory() - empty) / flows, empty
