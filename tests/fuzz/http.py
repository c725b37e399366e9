"""Requests, on a real socket, to the server of the pages.

A case is what a client sends before it closes its side. Its first byte says to which of two
servers: one that answers everybody, and one with users and a limit of requests.
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
from tests.fuzz.mutation import BYTES, TEXTS, wrong_bytes
from tests.support.http_client import PATHS, Site

START_S = 10.0
ANSWER_S = 10.0
"""For all answers of a connection, whose requests are sent at once."""

HEAD_TIMEOUT_S = 0.1
"""Instead of the server's own: many a case is half a request."""

IDLE_S = 0.02
"""How long nothing comes before the client closes its side."""

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


class Problems(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(self.format(record))


class Http(Target):
    """Two servers in a thread of their own, and one client."""

    name: ClassVar[str] = "http"

    def open(self, opened: ExitStack) -> None:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        self._problems = Problems()
        logging.getLogger().addHandler(self._problems)
        opened.callback(logging.getLogger().removeHandler, self._problems)
        users = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        self._file = directory / "web.yml"
        self._file.write_text(
            f"basic_auth_users: {{{USER}: {users}}}\nrate_limit: {{interval: 1ms, burst: 100}}\n"
            "http_server_config: {headers: {X-Frame-Options: deny}}\n"
        )
        patch = opened.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(connections, "HEAD_TIMEOUT_S", HEAD_TIMEOUT_S)
        self._ports: list[int] = []
        self._stopping = asyncio.Event()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), name="fuzzed-server")
        self._thread.start()
        if not started.wait(START_S) or len(self._ports) < 2:
            raise RuntimeError("the servers did not start")
        opened.callback(self._stop)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(START_S)

    def _serve(self, started: threading.Event) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()

            async def reload() -> str | None:
                return "it is not to be had\nby\0 a fuzzer"

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
            data = wrong_bytes(rng, data)
        if rng.random() < 0.03:
            greeting = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\0\x01")
            data = rng.choice(greeting) + data
        return rng.choice((b"a", b"g")) + data

    def run(self, case: bytes) -> None:
        """Look whether answers are answers, the end comes, and the server is as before.

        What comes back is whole answers, one after the other; the connection is closed; nothing
        is logged as an error; and whoever asks next is answered.
        """
        port = self._ports[1 if case[:1] == b"g" else 0]
        self._problems.told.clear()
        check_answers(_said(port, case[1:]))
        answer = _said(self._ports[0], ALIVE)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert self._thread.is_alive()
        assert not self._problems.told, "\n".join(self._problems.told)


def _said(port: int, data: bytes) -> bytes:
    """Send ``data``, close that side, and return what comes until the other one is closed."""
    came = bytearray()
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
                came += piece
        except (ConnectionResetError, BrokenPipeError):
            pass  # It may close while more is on its way than it wants.
    return bytes(came)


def check_answers(data: bytes) -> None:
    """Look whether ``data`` is answers, the last of which may be cut.

    Whether one has a body depends on how the request was understood: ``HEAD`` has none.
    """
    rest = [0]
    best = 0
    while rest:
        at = rest.pop()
        best = max(best, at)
        ends = _ends(data, at)
        if len(data) in ends:
            return
        rest += ends
    raise AssertionError(f"no answer: {data[best : best + 200]!r}")


def _ends(data: bytes, at: int) -> list[int]:
    """Return where the answer at a position can end."""
    if at == len(data):
        return [at]
    if not (status := _STATUS.match(data, at)):
        return []
    at = status.end()
    headers = {}
    while header := _HEADER.match(data, at):
        headers[header[1].lower()] = header[2]
        at = header.end()
    if data[at : at + 2] != b"\r\n":
        return []
    at += 2
    if status[1][:1] == b"1" or status[1] in {b"204", b"304"}:
        return [at]
    if b"content-length" in headers:
        return [at, min(len(data), at + int(headers[b"content-length"]))]
    if headers.get(b"transfer-encoding") == b"chunked":
        return [at, *_end_of_chunks(data, at, headers.get(b"content-encoding") == b"gzip")]
    return [len(data)]


def _end_of_chunks(data: bytes, at: int, is_gzip: bool) -> list[int]:
    body = b""
    while found := re.compile(rb"([0-9a-fA-F]+)\r\n").match(data, at):
        size = int(found[1], 16)
        at = found.end()
        body += data[at : at + size]
        at += size
        if at >= len(data):
            return [len(data)]  # cut: the client went away
        assert data[at : at + 2] == b"\r\n"
        at += 2
        if size == 0:
            if is_gzip:
                gzip.decompress(body)
            return [at]
    return [len(data)] if at >= len(data) else []


def _request(rng: random.Random) -> bytes:
    """Make a request that is wrong, or unusual, in few of the ways in which it can be."""

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
