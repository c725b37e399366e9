"""A fake Skydive analyzer that can produce the faults that tests need.

Like Skydive, the fake serves subscriptions, ``POST /login`` and ``POST /api/topology`` on one port.
It uses plain asyncio streams, which can break any rule of HTTP and WebSocket. Typical use::

    async with FakeAnalyzer() as analyzer:
        ...  # subscribe to analyzer.url
        subscriber = await analyzer.subscriber()
        await analyzer.send('{"Namespace":"flow","Type":"store","Obj":[]}')
"""

import asyncio
import base64
import contextlib
import enum
import gzip
import hashlib
import itertools
import json
import socket
import ssl as ssl_module
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import parse_qs

from skyfast.skydive.topology_queries import parse
from tests.support.waiting import WAIT_S

ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
PHRASES = {101: "Switching Protocols", 200: "OK", 401: "Unauthorized", 409: "Conflict"}
HUGE_BYTES = 500_000_000
SPACES = b" " * (1 << 20)
WRITE_TIMEOUT_S = 10.0
"""If a write takes longer, the analyzer drops the subscriber."""
PONG_TIMEOUT_S = 7.0
"""Skydive's ping interval plus its pong timeout."""


class Fault(enum.Enum):
    HANG = "send nothing and keep the socket open"
    EOF = "close the socket without a response"
    RESET = "reset the connection"
    GARBAGE = "respond with bytes that are not HTTP"
    HUGE = "respond with 500 MB"
    CUT = "close the socket in the middle of the response"
    NAMELESS = "upgrade without X-Host-ID and X-Service-Type"
    BAD_ACCEPT = "upgrade with a wrong Sec-WebSocket-Accept"


@dataclass(kw_only=True)
class FakeResponse:
    """An HTTP response, compressed if ``compress`` is true and the request accepts gzip."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    compress: bool = False


@dataclass
class Request:
    """A request, with all headers in their original order and case."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None

    @property
    def cookies(self) -> dict[str, str]:
        pairs = (part.partition("=") for line in self.all("Cookie") for part in line.split(";"))
        return {name.strip(): value.strip() for name, _, value in pairs}

    @property
    def basic(self) -> tuple[str, str] | None:
        """The username and password of the Authorization header, or None."""
        scheme, _, encoded = (self.get("Authorization") or "").partition(" ")
        if scheme.lower() != "basic":
            return None
        username, _, password = base64.b64decode(encoded).decode().partition(":")
        return username, password


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """Return one unmasked WebSocket frame."""
    head = bytes([(0x80 if fin else 0) | opcode])
    if len(payload) < 126:
        head += bytes([len(payload)])
    elif len(payload) < 1 << 16:
        head += struct.pack("!BH", 126, len(payload))
    else:
        head += struct.pack("!BQ", 127, len(payload))
    return head + payload


@dataclass(eq=False)
class Subscriber:
    """The analyzer's side of a subscription."""

    request: Request
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pongs: int = 0
    pings: int = 0
    close_code: int | None = None
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    closing: bool = False
    frozen: bool = False
    was_dropped: bool = False
    """Whether the analyzer dropped the subscriber because of slow reading or late pongs."""
    ponged_s: float = field(default_factory=time.monotonic)

    @property
    def host_id(self) -> str | None:
        return self.request.get("X-Host-ID")

    async def send_raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self._drain()

    async def send(self, data: str | bytes, *, binary: bool = False, fragments: int = 1) -> None:
        payload = data.encode() if isinstance(data, str) else data
        size = -(-len(payload) // fragments) or 1
        for number in range(fragments):
            opcode = CONT if number else BINARY if binary else TEXT
            part = payload[number * size : (number + 1) * size]
            self.writer.write(frame(opcode, part, fin=number == fragments - 1))
        await self._drain()

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self.writer.drain()
        except TimeoutError:
            self.drop()
            raise ConnectionError("a write took too long") from None

    def drop(self) -> None:
        """Close the connection at once, without a close frame."""
        self.was_dropped = True
        self.writer.transport.abort()

    async def ping(self, payload: bytes = b"") -> None:
        await self.send_raw(frame(PING, payload))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Start the closing handshake."""
        self.closing = True
        await self.send_raw(frame(CLOSE, struct.pack("!H", code) + reason.encode()))

    def freeze(self) -> None:
        """Make the connection half-open: keep the socket, but stop reading and sending."""
        self.frozen = True
        cast(asyncio.ReadTransport, self.writer.transport).pause_reading()

    def reset(self) -> None:
        _reset(self.writer)

    async def gone(self, timeout_s: float = WAIT_S) -> None:
        """Wait until the connection is closed."""
        async with asyncio.timeout(timeout_s):
            await self.closed.wait()


class FakeAnalyzer:
    """Tests may change the public attributes at any time."""

    def __init__(
        self,
        *,
        port: int = 0,
        address: str = "127.0.0.1",
        ssl: ssl_module.SSLContext | None = None,
        prefix: str = "",
        host_id: str = "analyzer-1",
        service_type: str = "analyzer",
        username: str = "",
        password: str = "",
        ping_interval_s: float = 2.0,
        on_subscribe: Callable[[Subscriber], Awaitable[None]] | None = None,
    ) -> None:
        self.port = port
        self.address = address
        self.ssl = ssl
        self.prefix = prefix
        """Prefix of all paths, as some proxies require."""
        self.host_id = host_id
        self.service_type = service_type
        self.username = username
        """An empty username means that there is no authentication."""
        self.password = password
        self.accepts_basic = True
        """If false, requests need a login cookie."""
        self.ping_interval_s = ping_interval_s
        self.on_subscribe = on_subscribe
        """Called with each new subscriber, in a separate task."""
        self.script: deque[int | FakeResponse | Fault] = deque()
        """The next responses to WebSocket upgrades. After these responses, all upgrades succeed."""
        self.login: FakeResponse | Fault | None = None
        """The response to logins. None means the normal response."""
        self.topology: FakeResponse | Fault = FakeResponse(body=b"[]", compress=True)
        """The response to topology requests if ``graph`` is None."""
        self.graph: dict[str, list[dict[str, Any]]] | None = None
        """The lists ``Nodes`` and ``Edges``. A response has the elements that match the query."""
        self.unique_host_ids = False
        """Whether a subscriber gets 409, as from Skydive, if its X-Host-ID is in use."""
        self.host_id_linger_s = 0.0
        """How long the X-Host-ID stays in use after its subscriber has disconnected."""
        self.checks_pongs = False
        """If true, drop subscribers whose pongs are late, like Skydive."""
        self.stalling = False
        """If true, send no pings. A ping would corrupt a frame that a test has sent only in
        part."""
        self.stops_after_disconnect = False
        """If true, imitate a bug of Skydive: after a subscriber has disconnected, send nothing
        until the next subscription."""

        self.paths: list[str] = []
        """The paths of all requests, including unknown paths."""
        self.upgrades: list[Request] = []
        self.logins: list[Request] = []
        self.topology_requests: list[Request] = []
        self.subscribers: list[Subscriber] = []
        self.tokens: set[str] = set()
        self.connections = 0
        """Number of TCP connections so far."""

        self._new: asyncio.Queue[Subscriber] = asyncio.Queue()
        self._lingering: dict[str | None, float] = {}
        self._stored = False
        self._serial = itertools.count(1)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    # Start and stop

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, self.address, self.port, ssl=self.ssl, limit=1 << 20
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop immediately, like a killed analyzer. A later `start` uses the same port."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in list(self._writers):
            writer.transport.abort()
        self._writers.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    # For tests

    @property
    def name(self) -> str:
        """The value of the label ``analyzer``."""
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        scheme = "wss" if self.ssl else "ws"
        return f"{scheme}://{self.name}{self.prefix}/ws/subscriber/flow"

    @property
    def http_url(self) -> str:
        scheme = "https" if self.ssl else "http"
        return f"{scheme}://{self.name}"

    async def subscriber(self, timeout_s: float = WAIT_S) -> Subscriber:
        """Wait for a subscriber that no earlier call has returned."""
        async with asyncio.timeout(timeout_s):
            return await self._new.get()

    @property
    def is_stopped(self) -> bool:
        """Whether the analyzer currently sends nothing (see ``stops_after_disconnect``)."""
        return self.stops_after_disconnect and not self._stored

    async def send(self, data: str | bytes, *, binary: bool = False, fragments: int = 1) -> None:
        if self.is_stopped:
            return
        for subscriber in list(self.subscribers):
            if not subscriber.frozen:
                await subscriber.send(data, binary=binary, fragments=fragments)

    async def send_all(self, messages: Iterable[str | bytes]) -> None:
        for message in messages:
            await self.send(message)

    def expire_tokens(self) -> None:
        self.tokens.clear()

    # Serving

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, ssl_module.SSLError):
            pass
        except asyncio.CancelledError:
            pass  # stop() cancelled this task
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Handle one request. Return whether another request may follow on this socket."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        pairs = (line.partition(":") for line in lines[1:] if line)
        request = Request(method, target, [(name, value.strip()) for name, _, value in pairs])
        request.body = await reader.readexactly(int(request.get("Content-Length") or 0))
        self.paths.append(target.partition("?")[0])
        path = self.paths[-1]
        path = path.removeprefix(self.prefix) if path.startswith(self.prefix) else ""
        if path.startswith("/ws/"):
            await self._upgrade(request, reader, writer)
            return False
        if (method, path) == ("POST", "/login"):
            self.logins.append(request)
            response = self.login if self.login is not None else self._log_in(request)
        elif (method, path) == ("POST", "/api/topology"):
            self.topology_requests.append(request)
            response = (
                self._topology(request) if self._allowed(request) else FakeResponse(status=401)
            )
        else:
            response = FakeResponse(status=404)
        return await self._respond(request, reader, writer, response)

    def _log_in(self, request: Request) -> FakeResponse:
        form = parse_qs(request.body.decode(), keep_blank_values=True)
        if (form.get("username"), form.get("password")) != ([self.username], [self.password]):
            return FakeResponse(status=401)
        # Skydive's tokens can end with "=", because they are base64.
        token = f"token{next(self._serial)}=="
        self.tokens.add(token)
        cookies = (f"authtoken={token}; Path=/", "permissions=W10=; Path=/")
        return FakeResponse(body=b"{}", headers=tuple(("Set-Cookie", cookie) for cookie in cookies))

    def _topology(self, request: Request) -> FakeResponse | Fault:
        if self.graph is None:
            return self.topology
        query = parse(json.loads(request.body)["GremlinQuery"])
        if query is None:
            return FakeResponse(status=400)
        elements = self.graph["Edges" if query.edges else "Nodes"]
        found = [element for element in elements if query.matches(element)]
        return FakeResponse(body=json.dumps(found).encode(), compress=True)

    @property
    def queries(self) -> list[str]:
        return [json.loads(request.body)["GremlinQuery"] for request in self.topology_requests]

    def _allowed(self, request: Request) -> bool:
        if not self.username:
            return True
        # Like Skydive, reject an expired cookie even if the password is valid.
        token = request.cookies.get("authtoken")
        if token is not None:
            return token in self.tokens
        return self.accepts_basic and request.basic == (self.username, self.password)

    async def _respond(
        self,
        request: Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        response: FakeResponse | Fault,
    ) -> bool:
        fault = response if isinstance(response, Fault) else None
        match fault:
            case Fault.HANG:
                await reader.read()
                return False
            case Fault.EOF:
                return False
            case Fault.RESET:
                _reset(writer)
                return False
            case Fault.GARBAGE:
                writer.write(b"\x00\xffgarbage \x1b[31m\r\n\r\n" * 4)
                await writer.drain()
                await self._close(reader, writer)
                return False
            case Fault.HUGE:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n[" % HUGE_BYTES)
                for _ in range(1, HUGE_BYTES, len(SPACES)):
                    writer.write(SPACES)
                    await writer.drain()
                return False
        if not isinstance(response, FakeResponse):
            response = FakeResponse(body=b"[" + b" " * 1000 + b"]")
        body = response.body
        headers = list(response.headers)
        if response.compress and "gzip" in (request.get("Accept-Encoding") or ""):
            body = gzip.compress(body, 1)
            headers.append(("Content-Encoding", "gzip"))
        headers.append(("Content-Length", str(len(body))))
        if response.status == 401:
            headers.append(("WWW-Authenticate", "Basic"))
        head = f"HTTP/1.1 {response.status} {PHRASES.get(response.status, 'Refused')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
        writer.write(head.encode() + (body[: len(body) // 2] if fault is Fault.CUT else body))
        await writer.drain()
        if fault is Fault.CUT:
            await self._close(reader, writer)
            return False
        return True

    async def _close(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Close the socket after all written data has been sent."""
        writer.close()
        with contextlib.suppress(ConnectionError, ssl_module.SSLError):
            await writer.wait_closed()

    async def _upgrade(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.upgrades.append(request)
        step = self.script.popleft() if self.script else None
        if isinstance(step, int):
            step = FakeResponse(status=step, body=b"refused\n")
        if step not in (None, Fault.NAMELESS, Fault.BAD_ACCEPT, Fault.CUT):
            await self._respond(request, reader, writer, step)
            return
        if not self._allowed(request):
            await self._respond(
                request, reader, writer, FakeResponse(status=401, body=b"refused\n")
            )
            return
        if self.unique_host_ids and self._host_id_in_use(request.get("X-Host-ID")):
            await self._respond(request, reader, writer, FakeResponse(status=409, body=b"in use\n"))
            return

        key = (request.get("Sec-WebSocket-Key") or "").encode()
        accept = base64.b64encode(hashlib.sha1(key + ACCEPT_GUID).digest()).decode()
        headers = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
        headers.append(("Sec-WebSocket-Accept", "x" if step is Fault.BAD_ACCEPT else accept))
        if step is not Fault.NAMELESS:
            if self.host_id:
                headers.append(("X-Host-ID", self.host_id))
            if self.service_type:
                headers.append(("X-Service-Type", self.service_type))
        head = "HTTP/1.1 101 Switching Protocols\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers)
        if step is Fault.CUT:
            writer.write(head.encode())
            await self._close(reader, writer)
            return
        writer.write(f"{head}\r\n".encode("latin-1"))
        await writer.drain()
        await self._subscription(Subscriber(request, reader, writer))

    def _host_id_in_use(self, host_id: str | None) -> bool:
        connected = any(subscriber.host_id == host_id for subscriber in self.subscribers)
        return connected or time.monotonic() < self._lingering.get(host_id, 0.0)

    async def _subscription(self, subscriber: Subscriber) -> None:
        self.subscribers.append(subscriber)
        self._stored = True
        self._new.put_nowait(subscriber)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._unsubscribed, subscriber)
            jobs = [self._pings(subscriber)]
            if self.on_subscribe is not None:
                jobs.append(_quiet(self.on_subscribe(subscriber)))
            for job in jobs:
                stack.callback(asyncio.ensure_future(job).cancel)
            await self._read_frames(subscriber)

    def _unsubscribed(self, subscriber: Subscriber) -> None:
        self.subscribers.remove(subscriber)
        self._stored = False
        self._lingering[subscriber.host_id] = time.monotonic() + self.host_id_linger_s
        subscriber.closed.set()

    async def _pings(self, subscriber: Subscriber) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await asyncio.sleep(self.ping_interval_s)
                if subscriber.frozen or self.stalling:
                    continue
                if self.checks_pongs and time.monotonic() - subscriber.ponged_s > PONG_TIMEOUT_S:
                    subscriber.drop()
                    return
                subscriber.pings += 1
                await subscriber.ping()

    async def _read_frames(self, subscriber: Subscriber) -> None:
        reader = subscriber.reader
        while True:
            head = await reader.readexactly(2)
            opcode, length = head[0] & 0x0F, head[1] & 0x7F
            assert head[1] & 0x80, "the client's frame is not masked"
            if length == 126:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await reader.readexactly(8))
            mask = await reader.readexactly(4)
            data = await reader.readexactly(length)
            payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
            if opcode == CLOSE:
                code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                subscriber.close_code = code
                if not subscriber.closing:
                    await subscriber.send_raw(frame(CLOSE, payload))
                await self._close(reader, subscriber.writer)
                return
            if opcode == PING:
                await subscriber.send_raw(frame(PONG, payload))
            elif opcode == PONG:
                subscriber.pongs += 1
                subscriber.ponged_s = time.monotonic()


async def _quiet(job: Awaitable[None]) -> None:
    """Ignore errors that occur because the subscriber has disconnected."""
    with contextlib.suppress(ConnectionError, ssl_module.SSLError):
        await job


def _reset(writer: asyncio.StreamWriter) -> None:
    transport_socket = writer.get_extra_info("socket")
    # With a linger time of 0 s, closing the socket sends a reset.
    transport_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
