"""How long does a scrape take, compared with compression or sending alone?

Not measured: storing the samples, which takes longer.
"""

import time
from concurrent.futures import ThreadPoolExecutor

from isal import isal_zlib
from prometheus_client import generate_latest

from benchmarks import naive, programs
from benchmarks.analyzer import Analyzer
from benchmarks.core import Core
from benchmarks.flows import FIRST_ROUND, Flows
from benchmarks.harness import (
    LARGE,
    SCALE,
    Remote,
    Report,
    at_most,
    ratio_at_most,
)
from benchmarks.programs import Program
from skyfast.web.exposition import CHUNK_BYTES, GZIP_LEVEL, GZIP_WBITS

REPEATS = 5
LARGE_REPEATS = 3

FAMILIES = 3
"""Number of metric families of each connection."""

PARTS = 4
"""Number of parts into which a page is divided."""

CLIENT_FLOWS = SCALE // 10
"""prometheus_client renders fewer series, to save time. Its cost per series is constant."""


class Content:
    """The content of a page, to measure compression or copying alone."""

    def __init__(self, port: int) -> None:
        self._page = memoryview(programs.get(port, "/metrics").body)
        self._copy = memoryview(bytearray(self._page))

    def size(self) -> int:
        return len(self._page)

    def series(self) -> int:
        lines = self._page.tobytes().splitlines()
        return sum(line.startswith(b"skydive_network_connection") for line in lines)

    def compress(self) -> tuple[float, float]:
        """Compress the page in chunks of skyfast's size.

        Returns the elapsed time and the CPU time, in seconds.
        """
        began_s, began_cpu_s = time.perf_counter(), time.thread_time()
        compressor = isal_zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WBITS)
        for offset in range(0, len(self._page), CHUNK_BYTES):
            compressor.compress(self._page[offset : offset + CHUNK_BYTES])
        compressor.flush()
        return time.perf_counter() - began_s, time.thread_time() - began_cpu_s

    def copy(self) -> float:
        """Return the seconds to copy the page with a single memcpy."""
        began_s = time.perf_counter()
        self._copy[:] = self._page
        return time.perf_counter() - began_s


class Client:
    """prometheus_client with the series of skyfast."""

    def __init__(self, count: int) -> None:
        self._connector = naive.Connector()
        for message in Flows(count).messages(range(count), FIRST_ROUND):
            self._connector.message(message)

    def render(self) -> float:
        """Return the CPU seconds to render a page, per series."""
        began_s = time.thread_time()
        page = generate_latest(self._connector.registry)
        seconds = time.thread_time() - began_s
        return seconds / sum(not line.startswith(b"#") for line in page.splitlines())


def run(report: Report) -> None:
    with Remote(Analyzer, LARGE) as analyzer:
        with programs.skyfast(analyzer) as program:
            analyzer.call(Analyzer.load, 0, SCALE)
            program.round(FIRST_ROUND)
            single, series = _pages(report, program)
        with programs.skyfast(analyzer) as program:
            analyzer.call(Analyzer.load, 0, LARGE)
            program.round(FIRST_ROUND)
            analyzer.call(Analyzer.load, 0, 0)
            _large_page(report, program)
        if programs.GO_CONNECTOR:
            with programs.go(analyzer) as program:
                analyzer.call(Analyzer.load, 0, SCALE)
                program.round(FIRST_ROUND)
                page = program.page(compressed=True)
                theirs = [page.seconds]
                report.add("Go connector, gzip", theirs, "s", to="skyfast", over=single)
                report.add("Go connector, first byte", [page.first_s * 1e3], "ms")
    with Remote(Client, CLIENT_FLOWS) as client:
        theirs = [client.call(Client.render) * series for _ in range(2)]
    what = f"prometheus_client, extrapolated from {CLIENT_FLOWS:,} connections"
    report.add(what, theirs, "s", to="skyfast, gzip", over=single)
    _render(report)


def _first_page(report: Report, program: Program, connections: int) -> None:
    """Report how much memory the first page adds. The heap keeps a part of this memory."""
    before_bytes = program.memory()
    program.forget_peak()
    program.page(compressed=True)
    growth = (program.memory("VmHWM") - before_bytes) / 2**20
    what = f"first page of {connections:,} connections, additional memory"
    report.add(what, [growth], "MiB", target=at_most(16))


def _pages(report: Report, program: Program) -> tuple[list[float], int]:
    _first_page(report, program, SCALE)
    with Remote(Content, program.port) as content:
        size, series = content.call(Content.size), content.call(Content.series)
        what = f"size of a page of {SCALE:,} connections, {series:,} series"
        report.add(what, [size / 1e6], "MB")
        scrapes = Scrapes(program, content, REPEATS)
        copied = [content.call(Content.copy) / series * 1e9 for _ in range(REPEATS)]
    report.add("memcpy of the page", copied, "ns per series")
    scrapes.report(report, "skyfast, gzip")
    report.add("skyfast, gzip, first byte", scrapes.first_ms, "ms", target=at_most(10))
    single = scrapes.seconds
    with ThreadPoolExecutor(2) as pool:
        both = [
            max(pool.map(lambda _: program.page(compressed=True).seconds, range(2)))
            for _ in range(LARGE_REPEATS)
        ]
    what = "skyfast, gzip, slower of two concurrent scrapes"
    report.add(what, both, "s", to="one scrape", over=single, target=ratio_at_most(1.2))
    with programs.static(size) as static:
        identity, sent = [], []
        for _ in range(REPEATS):
            identity.append(program.page().seconds)
            sent.append(static.page().seconds)
    report.add("static body of the same size", sent, "s")
    target = ratio_at_most(1.8)
    report.add("skyfast, uncompressed", identity, "s", to="static body", over=sent, target=target)
    return single, series


def _large_page(report: Report, program: Program) -> None:
    _first_page(report, program, LARGE)
    with Remote(Content, program.port) as content:
        scrapes = Scrapes(program, content, LARGE_REPEATS)
    scrapes.report(report, f"skyfast, {LARGE:,} connections, gzip")


class Scrapes:
    """Alternates between scrapes of compressed pages and compression alone."""

    def __init__(self, program: Program, content: Remote[Content], repeats: int) -> None:
        self.seconds: list[float] = []
        self.first_ms: list[float] = []
        self._cpu_s: list[float] = []
        self._alone_s: list[float] = []
        self._alone_cpu_s: list[float] = []
        program.page(compressed=True)  # the heap keeps some memory after the first page
        before_cpu_s = program.settle()
        before_bytes = program.memory()
        program.forget_peak()
        for _ in range(repeats):
            seconds, cpu_s = content.call(Content.compress)
            self._alone_s.append(seconds)
            self._alone_cpu_s.append(cpu_s)
            page = program.page(compressed=True)
            after_cpu_s = program.settle()
            self.seconds.append(page.seconds)
            self.first_ms.append(page.first_s * 1e3)
            self._cpu_s.append(after_cpu_s - before_cpu_s)
            before_cpu_s = after_cpu_s
        self._growth = (program.memory("VmHWM") - before_bytes) / 2**20

    def report(self, report: Report, what: str) -> None:
        alone = f"isal level {GZIP_LEVEL}"
        report.add(f"compression only, {alone}", self._alone_s, "s")
        target = ratio_at_most(0.8)
        report.add(what, self.seconds, "s", to=alone, over=self._alone_s, target=target)
        cpu = f"{what}, CPU time"
        report.add(cpu, self._cpu_s, "s", to=alone, over=self._alone_cpu_s, target=target)
        memory = f"{what}, additional memory"
        report.add(memory, [self._growth], "MiB", target=at_most(16))


def _render(report: Report) -> None:
    with Remote(Core, LARGE) as core:
        for connections, target in ((SCALE, at_most(50)), (LARGE, at_most(100))):
            core.call(Core.fill, connections)
            _, series = core.call(Core.page)
            ns = [core.call(Core.render) / series * 1e9 for _ in range(REPEATS)]
            what = f"rendering only, {connections:,} connections"
            report.add(what, ns, "ns per series", target=target)
            for version in (1, 2):
                timed = [
                    core.call(Core.render, 1, version, True) / series * 1e9 for _ in range(REPEATS)
                ]
                what = (
                    f"rendering only, with start timestamps, OpenMetrics {version}.0,"
                    f" {connections:,} connections"
                )
                report.add(what, timed, "ns per series", to="text format", over=ns)
            in_parts = [core.call(Core.render, PARTS) / series * 1e9 for _ in range(REPEATS)]
            what = f"{PARTS} parts together, {connections:,} connections"
            report.add(what, in_parts, "ns per series", to="whole page", over=ns)
            _bounds(report, core, connections)
            for version in range(3) if connections == SCALE else (0,):
                _compress(report, core, connections, version)


def _bounds(report: Report, core: Remote[Core], connections: int) -> None:
    """Report the cost of ``min_bytes``, by alternating pages with and without this bound."""
    for what, min_bytes, highest_ns in (("nothing", 1, 3), ("everything", 10**18, 10)):
        ns = []
        for _ in range(REPEATS):
            core.call(Core.bound, 0)
            without_s = core.call(Core.render)
            core.call(Core.bound, min_bytes)
            seconds = core.call(Core.render)
            if what == "nothing":
                seconds -= without_s
            ns.append(seconds / connections / FAMILIES * 1e9)
        core.call(Core.bound, 0)
        more = "additional " if what == "nothing" else ""
        report.add(
            f"min_bytes that hides {what}, {connections:,} connections",
            ns,
            f"{more}ns per connection and family",
            target=at_most(highest_ns),
        )


def _compress(report: Report, core: Remote[Core], connections: int, version: int) -> None:
    """Compare compression by the table with compression by isal.

    ``version`` is the major version of OpenMetrics, or 0 for the text format, which has no start
    timestamps.
    """
    direct, isal = [], []
    for _ in range(LARGE_REPEATS):
        isal.append(core.call(Core.compress, version))
        direct.append(core.call(Core.deflate, version))
    form = f" in OpenMetrics {version}.0" if version else ""
    seconds = [seconds for seconds, _ in direct]
    over = [seconds for seconds, _ in isal]
    what = f"rendering and compression{form}, {connections:,} connections"
    target = ratio_at_most(0.65)
    report.add(what, seconds, "s", to="isal alone", over=over, target=target)
    size = [size / 1e6 for _, size in direct]
    over = [size / 1e6 for _, size in isal]
    what = f"compressed page{form}, {connections:,} connections"
    report.add(what, size, "MB", to="isal", over=over, target=ratio_at_most(1.05))
