"""Fuzzes the web server with requests on a real socket.

The first byte of a case selects one of two servers: without authentication, or with users and a
rate limit. The client sends the rest of the case, and then shuts down its sending direction.
"""

import asyncio
import gzip
import logging
import random
import re
import socket
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import bcrypt
import pytest

from skyfast.web import connections
from skyfast.web.auth import WebSecurity
from tests.fuzz.driver import Target
from tests.fuzz.mutation import BYTES, TEXTS, change_bytes
from tests.support.http_client import PATHS, Site

START_S = 10.0
ANSWER_S = 10.0
"""Maximum time until the client has received all responses on a connection."""

HEAD_TIMEOUT_S = 0.1
"""A short timeout for the server, because many cases are incomplete requests."""

IDLE_S = 0.02
"""If the client receives no data for this time, it shuts down its sending direction."""

ALIVE = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
USER, PASSWORD = "alice", "correct horse"
ALICE = b"Authorization: Basic YWxpY2U6Y29ycmVjdCBob3JzZQ=="

_STATUS = re.compile(rb"HTTP/1\.[01] (\d\d\d) [\x20-\x7e]*\r\n")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([^\r\n\0]*)\r\n")

METHODS = (
    *("GET", "GET", "GET", "HEAD", "POST", "PUT", "OPTIONS", "TRACE", "CONNECT", "PRI", "get", "G"),
    "x" * 100,
)
TARGETS = (
    *PATHS,
    *(
        "/-/reload",
        "/cardinality?label=a",
        "*",
        "//",
        "/../etc/passwd",
        "/%00",
        "/%ff",
        "/metrics?",
    ),
    *(
        "http://x/metrics",
        "/metrics#a",
        "/" + "a" * 9000,
        "/%",
        "metrics",
        "/metrics%0d%0aX: y",
        "",
    ),
    *("/top", "/status", "/-/healthy/", "/\u00e9", "/metrics?name[]=a&&&=%zz;x"),
    *("/metrics/flows?part=0/2", "/metrics/flows?part=2/2", "/metrics/flows?name[]=\u00e9&part=x"),
)
HEADERS = (
    *("Accept", "Accept", "Accept-Encoding", "Accept-Encoding", "Authorization", "Connection"),
    *("X-Prometheus-Scrape-Timeout-Seconds", "Cookie", "Keep-Alive", "Range", "TE", "X"),
    *("Content-Length", "Content-Encoding", "Transfer-Encoding", "Upgrade", "Expect", "Host"),
)
VALUES = (
    *("gzip", "gzip;q=0", "*;q=0.1", "identity", "br, gzip;q=1.0001", "gzip;q=", ";;;,,,", "q=1"),
    *("text/plain;version=0.0.4", "application/openmetrics-text;version=1.0.0", "text/html"),
    *("chunked", "chunked, chunked", "gzip, chunked", "close", "keep-alive", "upgrade", "h2c"),
    *(
        "websocket",
        "100-continue",
        "0",
        "1",
        "5",
        "-1",
        "+1",
        "0x10",
        "1e3",
        "1_0",
        "99999999999999",
    ),
    *("nan", "inf", "0.0001", "1e400", "Basic", "Basic !!!", "Basic " + "QQ" * 3000, "Bearer x"),
    *("Basic Og==", "Basic YWxpY2U6d3Jvbmc=", "Basic /////w==", "bytes=0-1", "a, " * 500),
    *(";".join(["q=0.1"] * 200), ",".join(["text/*;q=0.5"] * 300)),
)
BODIES = (
    *(b"", b"x", b"x" * 5000, b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n\r\n"),
    *(b"5;ext=1\r\nhello\r\n0\r\nTrailer: x\r\n\r\n", b"0\r\n\r\n", b"\x1f\x8b\x08", b"1\r\n"),
)


class ErrorLog(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(self.format(record))


class Http(Target):
    """Sends requests to two servers, which run in one other thread."""

    name: ClassVar[str] = "http"

    def open(self, stack: ExitStack) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._error_log = ErrorLog()
        logging.getLogger().addHandler(self._error_log)
        stack.callback(logging.getLogger().removeHandler, self._error_log)
        users = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        self._file = directory / "web.yml"
        self._file.write_text(
            f"basic_auth_users: {{{USER}: {users}}}\nrate_limit: {{interval: 1ms, burst: 100}}\n"
            "http_server_config: {headers: {X-Frame-Options: deny}}\n"
        )
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(connections, "HEAD_TIMEOUT_S", HEAD_TIMEOUT_S)
        self._ports: list[int] = []
        self._stopping = asyncio.Event()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), name="fuzzed-server")
        self._thread.start()
        if not started.wait(START_S) or len(self._ports) < 2:
            raise RuntimeError("the servers did not start")
        stack.callback(self._stop)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(START_S)

    def _serve(self, started: threading.Event) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()

            async def reload() -> str | None:
                return "cannot reload\nfor\0 a fuzzer"

            async with (
                Site(reload=reload) as site,
                Site(security=WebSecurity(str(self._file))) as guarded,
            ):
                self._ports = [site.port, guarded.port]
                started.set()
                await self._stopping.wait()

        try:
            asyncio.run(serve())
        finally:
            started.set()

    def generate(self, rng: random.Random) -> bytes:
        data = b"".join(_request(rng) for _ in range(rng.choice((1, 1, 2, 4))))
        if rng.random() < 0.12:
            data = change_bytes(rng, data)
        if rng.random() < 0.03:
            greeting = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\0\x01")
            data = rng.choice(greeting) + data
        return rng.choice((b"a", b"g")) + data

    def run(self, case: bytes) -> None:
        """Check that the responses are valid and that the server still works.

        The server must log no error, and must respond to another request.
        """
        port = self._ports[1 if case[:1] == b"g" else 0]
        self._error_log.errors.clear()
        check_responses(_exchange(port, case[1:]))
        response = _exchange(self._ports[0], ALIVE)
        assert response.startswith(b"HTTP/1.1 200 "), response
        assert self._thread.is_alive()
        assert not self._error_log.errors, "\n".join(self._error_log.errors)


def _exchange(port: int, data: bytes) -> bytes:
    """Send ``data``, shut down the sending direction, and return all received data."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as client:
        try:
            client.sendall(data)
            client.settimeout(IDLE_S)
            while True:
                try:
                    piece = client.recv(1 << 16)
                except TimeoutError:
                    client.shutdown(socket.SHUT_WR)
                    client.settimeout(ANSWER_S)
                    continue
                if not piece:
                    break
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass  # the server may close before it has read all data
    return bytes(received)


def check_responses(data: bytes) -> None:
    """Check that ``data`` consists of responses. The last response may be truncated.

    Any response may lack its body, because ``data`` does not show which requests were ``HEAD``.
    """
    positions = [0]
    best = 0
    while positions:
        start = positions.pop()
        best = max(best, start)
        ends = _ends(data, start)
        if len(data) in ends:
            return
        positions += ends
    raise AssertionError(f"invalid response: {data[best : best + 200]!r}")


def _ends(data: bytes, position: int) -> list[int]:
    """Return the possible ends of the response that begins at ``position``."""
    if position == len(data):
        return [position]
    if not (status := _STATUS.match(data, position)):
        return []
    position = status.end()
    headers = {}
    while header := _HEADER.match(data, position):
        headers[header[1].lower()] = header[2]
        position = header.end()
    if data[position : position + 2] != b"\r\n":
        return []
    position += 2
    if status[1][:1] == b"1" or status[1] in {b"204", b"304"}:
        return [position]
    if b"content-length" in headers:
        return [position, min(len(data), position + int(headers[b"content-length"]))]
    if headers.get(b"transfer-encoding") == b"chunked":
        is_gzip = headers.get(b"content-encoding") == b"gzip"
        return [position, *_end_of_chunks(data, position, is_gzip)]
    return [len(data)]


def _end_of_chunks(data: bytes, position: int, is_gzip: bool) -> list[int]:
    body = b""
    while match := re.compile(rb"([0-9a-fA-F]+)\r\n").match(data, position):
        size = int(match[1], 16)
        position = match.end()
        body += data[position : position + size]
        position += size
        if position >= len(data):
            return [len(data)]  # the response is truncated
        assert data[position : position + 2] == b"\r\n"
        position += 2
        if size == 0:
            if is_gzip:
                gzip.decompress(body)
            return [position]
    return [len(data)] if position >= len(data) else []


def _request(rng: random.Random) -> bytes:
    """Generate a request with a few faults or unusual parts."""

    def seldom(usual: str, *others: str) -> str:
        return rng.choice(others) if rng.random() < 0.02 else usual

    end = seldom("\r\n", "\n", "\r", "\r\r\n").encode()
    space = seldom(" ", "  ", "\t", "")
    version = seldom("1.1", "1.0", "1.0", "0.9", "2.0", "1.2", "11", "")
    method = seldom(rng.choice(("GET", "GET", "GET", "GET", "HEAD", "POST", "PUT")), *METHODS)
    target = seldom(rng.choice(PATHS), *TARGETS) if rng.random() < 0.7 else rng.choice(TARGETS)
    lines = [f"{method}{space}{target}{space}HTTP/{version}".encode()]
    lines.append(seldom("Host: x", "Host: ", "Host: x\r\nHost: y", "X: y", "Host: x\0").encode())
    if rng.random() < 0.4:
        lines.append(ALICE)
    for _ in range(rng.choice((0, 1, 2, 3, 200 if rng.random() < 0.05 else 4))):
        name = seldom(rng.choice(HEADERS[:-6]), *HEADERS, *(text[:2000] for text in TEXTS))
        value = seldom(rng.choice(VALUES), *(text[:9000] for text in TEXTS))
        lines.append(f"{name}:{rng.choice((' ', '', '  '))}{value}".encode(errors="replace"))
    if rng.random() < 0.03:
        lines.insert(rng.randrange(1, len(lines) + 1), b" folded" + rng.choice(BYTES))
    body = b""
    if rng.random() < 0.2:
        body = rng.choice(BODIES)
        length = len(body) + rng.choice((0, 0, 0, 3))
        chunked = rng.random() < 0.4
        lines.append(b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % length)
    if rng.random() < 0.2:
        lines.append(b"Connection: close")
    return end.join([*lines, b"", b""]) + body
