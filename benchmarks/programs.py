"""Runs connectors as programs, requests their pages, and reads their CPU time and memory.

All connectors read the same configuration, in the format of the Go connector.
"""

import gzip
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.analyzer import Analyzer
from benchmarks.harness import Remote

START_TIMEOUT_S = 20.0
SETTLE_INTERVAL_S = 0.05
SETTLED_S = 0.002
"""A program is idle if it uses less CPU time than this in `SETTLE_INTERVAL_S`."""

PAGE_TIMEOUT_S = 60.0
READ_BYTES = 1 << 20

_LAST_CHUNK = b"0\r\n\r\n"

CONFIG = """\
analyzers: [{analyzers}]
pipeline:
  subscriber:
    url: ws://127.0.0.1:{analyzer}/ws/subscriber/flow
  transform:
    type: none
  store:
    type: prom_sky_con
    prom_sky_con:
      port: {port}
      connection_timeout: 600
"""

SCRAPING = """\
global: {{{{scrape_interval: {interval}s, scrape_timeout: {interval}s}}}}
scrape_configs:
  - job_name: skyfast
    static_configs: [{{{{targets: ['127.0.0.1:{target}']}}}}]
"""


@dataclass(frozen=True, slots=True)
class Response:
    """A received page."""

    first_s: float
    """Seconds from the request to the first byte of the response."""
    seconds: float
    """Seconds from the request to the last byte of the response."""
    received_bytes: int
    body: bytes
    """The decompressed content, or empty if `get` was called without ``keep``."""


def get(port: int, path: str, *, compressed: bool = False, keep: bool = True) -> Response:
    """Get a page over a new connection, with as little CPU time as possible."""
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Accept-Encoding: {'gzip' if compressed else 'identity'}\r\n\r\n"
    ).encode()
    parts: list[bytes] = []
    tail = b""
    received = 0
    first_s = 0.0
    buffer = memoryview(bytearray(READ_BYTES))
    with socket.create_connection(("127.0.0.1", port), PAGE_TIMEOUT_S) as connection:
        began_s = time.perf_counter()
        connection.sendall(request)
        while size := connection.recv_into(buffer):
            first_s = first_s or time.perf_counter() - began_s
            received += size
            if keep or not parts:
                parts.append(bytes(buffer[:size]))
            tail = (tail + bytes(buffer[max(0, size - len(_LAST_CHUNK)) : size]))[-5:]
        seconds = time.perf_counter() - began_s
    head, _, content = b"".join(parts).partition(b"\r\n\r\n")
    head = head.lower()
    assert b" 200 " in head.splitlines()[0], head.decode()
    chunked = b"transfer-encoding: chunked" in head
    assert not chunked or tail == _LAST_CHUNK, "the page is incomplete"
    if not keep:
        return Response(first_s, seconds, received, b"")
    if chunked:
        content = b"".join(_chunks(content))
    if b"content-encoding: gzip" in head:
        content = gzip.decompress(content)
    return Response(first_s, seconds, received, content)


def _chunks(content: bytes) -> Iterator[memoryview]:
    view = memoryview(content)
    offset = 0
    while True:
        line_end = content.index(b"\r\n", offset)
        size = int(content[offset:line_end], 16)
        if size == 0:
            return
        offset = line_end + 2
        yield view[offset : offset + size]
        offset += size + 2


class Program:
    """A connector or another server that runs during a ``with`` block.

    The block begins when the program has subscribed to all ``analyzers``. Without analyzers, the
    block begins when the program listens.

    ``argv`` and ``config`` can contain these placeholders:

    * ``{config}``: the path of the configuration file
    * ``{port}``, ``{control}``: the ports for pages and for commands
    * ``{analyzer}``: the port of the first analyzer
    * ``{analyzers}``: the endpoints of all analyzers
    * ``{directory}``: a temporary directory
    """

    def __init__(
        self,
        argv: Sequence[str],
        *analyzers: Remote[Analyzer],
        config: str = CONFIG,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._analyzers = analyzers
        self._directory = tempfile.TemporaryDirectory(prefix="skyfast-bench-")
        directory = Path(self._directory.name)
        self.port, self.control_port = free_port(), free_port()
        path = directory / "config.yml"
        ports = [analyzer.call(Analyzer.port) for analyzer in analyzers]
        placeholders = {
            "analyzer": ports[0] if ports else 0,
            "analyzers": ", ".join(f"127.0.0.1:{port}" for port in ports),
            "port": self.port,
            "control": self.control_port,
            "config": path,
            "directory": directory,
        }
        path.write_text(config.format_map(placeholders))
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [argument.format_map(placeholders) for argument in argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
        self.pid = self._process.pid
        # The ID of the clock that measures the program's CPU time: see clock_gettime(2).
        self._cpu_clock = (~self.pid << 3) | 2

    def __enter__(self) -> Self:
        try:
            for analyzer in self._analyzers:
                analyzer.call(Analyzer.wait_for_subscription)
            if not self._analyzers:
                wait_for_server(self.port)
            self.settle()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            print(self._log.read_text(errors="replace")[-4000:], file=sys.stderr)
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()

    def cpu_s(self) -> float:
        """Return the CPU time that the program has used since its start."""
        return time.clock_gettime(self._cpu_clock)

    def settle(self) -> float:
        """Wait until the program is idle, and return its CPU time."""
        before_s = self.cpu_s()
        while True:
            time.sleep(SETTLE_INTERVAL_S)
            now_s = self.cpu_s()
            if now_s - before_s < SETTLED_S:
                return now_s
            before_s = now_s

    def round(self, number: int) -> tuple[float, float]:
        """Make all analyzers report each flow once.

        Returns the CPU time of the program, and the seconds until the program has read all reports.
        """
        before_s = self.settle()
        sending = [analyzer.begin(Analyzer.send, number) for analyzer in self._analyzers]
        seconds = max(sent() for sent in sending)
        return self.settle() - before_s, seconds

    def memory(self, key: str = "VmRSS") -> int:
        return memory(self.pid, key)

    def forget_peak(self) -> None:
        """Reset ``VmHWM``, the peak of the resident memory."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def page(self, *, compressed: bool = False, keep: bool = False) -> Response:
        return get(self.port, "/metrics", compressed=compressed, keep=keep)

    def command(self, line: str) -> bytes:
        """Send a command to the control port, and return the reply."""
        with socket.create_connection(("127.0.0.1", self.control_port)) as connection:
            connection.sendall(line.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(READ_BYTES), b""))

    def metric(self, name: str) -> float:
        """Return the sum of the values of a self metric."""
        lines = get(self.port, "/metrics/self").body.decode().splitlines()
        values = [line.rpartition(" ")[2] for line in lines if re.match(rf"{name}[ {{]", line)]
        assert values, f"no metric {name}"
        return sum(map(float, values))


def memory(pid: int, key: str = "VmRSS") -> int:
    """Return a field of ``/proc/PID/status``, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kib,) = re.findall(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    return int(kib) * 1024


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for_server(port: int, interval_s: float = 0.05) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > end_s:
                raise
            time.sleep(interval_s)
        else:
            return


def skyfast(
    *analyzers: Remote[Analyzer], options: Sequence[str] = (), config: str = CONFIG
) -> Program:
    argv = [sys.executable, "-m", "skyfast", *options, "{config}"]
    return Program(argv, *analyzers, config=config)


def heartbeat(
    analyzer: Remote[Analyzer],
    config: str = CONFIG,
    *,
    environment: Mapping[str, str] | None = None,
) -> Program:
    """Return skyfast with a heartbeat, a control port, and additional environment variables."""
    argv = [sys.executable, "-m", "benchmarks.heartbeat", "{config}", "{control}"]
    return Program(argv, analyzer, config=config, environment=environment)


def receiver(analyzer: Remote[Analyzer]) -> Program:
    """Return a program that subscribes as skyfast does, but discards the messages."""
    return Program([sys.executable, "-m", "benchmarks.receiver", "{config}"], analyzer)


def static(size: int) -> Program:
    """Return a server that responds with a fixed body of ``size`` bytes."""
    argv = [sys.executable, "-m", "benchmarks.static", "{port}", str(size)]
    return Program(argv)


def naive(analyzer: Remote[Analyzer]) -> Program:
    argv = [sys.executable, "-m", "benchmarks.naive", "{analyzer}", "{port}"]
    return Program(argv, analyzer)


def storage(argv: Sequence[str], target: int, interval_s: int) -> Program:
    """Return a server that scrapes ``target`` and stores the samples."""
    return Program(argv, config=SCRAPING.format(target=target, interval=interval_s))


GO_CONNECTOR = os.environ.get("PROM_SKY_CON", "")
"""The path of the Go connector, or empty if it is not measured."""


def go(analyzer: Remote[Analyzer]) -> Program:
    return Program([GO_CONNECTOR, "{config}"], analyzer)
