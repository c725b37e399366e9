"""An analyzer that uses raw sockets and prepared frames, so that it needs almost no CPU time.

The subscriber is a *connector*: skyfast, or an exporter that is compared with skyfast. Requests
other than subscriptions get an empty response.
"""

import base64
import contextlib
import hashlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

from benchmarks.flows import FIRST_ROUND, FLOWS_PER_MESSAGE, LAST_ROUND, Flows, of_round

WAIT_S = 60.0
"""Time limit for the connector to subscribe, and to read all reports of a round."""

STATS_INTERVAL_S = 10.0
"""Interval of stats messages, without which skyfast would consider the subscription silent."""

_STATS = (
    b'{"Namespace":"stats","Type":"stats","UUID":"5c26acfa-5980-452b-a0ab-2848cb848504",'
    b'"Status":200,"Obj":{"CaptureID":"32389c7a-cadb-43d3-bbe3-6e66a9a349ad","FlowCount":0,'
    b'"FlowDropped":0,"KernelFlowDropped":0,"PacketsDropped":0,"PacketsReceived":0}}'
)

_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"X-Host-ID: benchmark\r\nX-Service-Type: analyzer\r\nSec-WebSocket-Accept: %b\r\n\r\n"
)
_EMPTY_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    b"Connection: close\r\n\r\n[]"
)


def frame(opcode: int, payload: bytes) -> bytes:
    """Return an unmasked WebSocket frame (RFC 6455, section 5.2)."""
    head = bytes([0x80 | opcode])
    if len(payload) < 126:
        return head + bytes([len(payload)]) + payload
    if len(payload) < 1 << 16:
        return head + struct.pack(">BH", 126, len(payload)) + payload
    return head + struct.pack(">BQ", 127, len(payload)) + payload


class Analyzer:
    """An analyzer with one subscription at a time, and any number of requests."""

    def __init__(self, flows: int, flows_per_message: int = FLOWS_PER_MESSAGE) -> None:
        self._flows = Flows(flows, flows_per_message)
        self._templates: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._subscription: socket.socket | None = None
        self._subscribed = threading.Event()
        self._writing = threading.Lock()
        self._pongs: dict[bytes, float] = {}
        self._ponged = threading.Condition()
        self._pings = 0
        for task in (self._accept, self._send_stats):
            threading.Thread(target=task, daemon=True).start()

    # -- called by the benchmarks

    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def load(self, start: int, stop: int) -> None:
        """Prepare reports of the flows ``start`` to ``stop`` - 1."""
        self._templates = list(self._flows.templates(range(start, stop)))

    def load_some(self, count: int) -> None:
        """Prepare reports of ``count`` random flows."""
        numbers = self._flows.sample(count, self._flows.count)
        self._templates = list(self._flows.templates(numbers))

    def wait_for_subscription(self) -> None:
        if not self._subscribed.wait(WAIT_S):
            raise TimeoutError("no client has subscribed")

    def send(self, round_: int) -> float:
        """Report each flow once. Return the seconds until the connector has read all reports."""
        began_s = time.perf_counter()
        for message in of_round(self._templates, round_):
            self._write(frame(_TEXT, message))
        self._await_pong(self._ping())
        return time.perf_counter() - began_s

    def send_paced(
        self, seconds: float, flows_per_s: int, ping_interval_s: float
    ) -> tuple[int, float, list[float]]:
        """Send rounds, each with one report per flow, at a constant rate.

        Returns the number of reports, the duration in s, and the response time of each ping in s.
        If the connector reads too slowly, messages are sent late, but none are dropped.
        """
        interval_s = FLOWS_PER_MESSAGE / flows_per_s
        total = round(seconds / interval_s)
        pings = []
        began_s = next_ping_s = time.perf_counter()
        for sent, message in enumerate(itertools.islice(self._rounds(), total)):
            ahead_s = began_s + sent * interval_s - time.perf_counter()
            if ahead_s > 0:
                time.sleep(ahead_s)
            self._write(frame(_TEXT, message))
            if time.perf_counter() >= next_ping_s:
                pings.append(self._ping())
                next_ping_s += ping_interval_s
        took_s = time.perf_counter() - began_s
        return total * FLOWS_PER_MESSAGE, took_s, [self._await_pong(ping) for ping in pings]

    def _rounds(self) -> Iterator[bytes]:
        for round_ in range(FIRST_ROUND + 1, LAST_ROUND + 1):
            yield from of_round(self._templates, round_)
        raise ValueError("there are no more rounds")

    # -- the protocol

    def _respond(self, body: bytes) -> bytes:
        return _EMPTY_RESPONSE

    def _write(self, data: bytes) -> None:
        assert self._subscription is not None
        with self._writing:
            self._subscription.sendall(data)

    def _send_stats(self) -> None:
        while True:
            time.sleep(STATS_INTERVAL_S)
            if self._subscribed.is_set():
                with contextlib.suppress(OSError):
                    self._write(frame(_TEXT, _STATS))

    def _ping(self) -> tuple[bytes, float]:
        self._pings += 1
        payload = b"%d" % self._pings
        sent_s = time.perf_counter()
        self._write(frame(_PING, payload))
        return payload, sent_s

    def _await_pong(self, ping: tuple[bytes, float]) -> float:
        payload, sent_s = ping
        with self._ponged:
            if not self._ponged.wait_for(lambda: payload in self._pongs, WAIT_S):
                raise TimeoutError("no pong")
            return self._pongs.pop(payload) - sent_s

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            request, *fields = iter(reader.readline, b"\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (field.partition(b":") for field in fields)
            }
            if not request.split()[1].startswith(b"/ws/"):
                body = reader.read(int(headers.get(b"content-length", b"0")))
                connection.sendall(self._respond(body))
                return
            accept = hashlib.sha1(headers[b"sec-websocket-key"] + _MAGIC, usedforsecurity=False)
            connection.sendall(_SWITCH % base64.b64encode(accept.digest()))
            self._subscription = connection
            self._subscribed.set()
            # The Go connector disconnects without a close frame, and leaves data unread.
            with contextlib.suppress(ConnectionResetError):
                while self._read_frame(reader):
                    pass
            self._subscribed.clear()

    def _read_frame(self, reader: BinaryIO) -> bool:
        """Read a short, masked frame. Return False at the end of the data."""
        head = reader.read(2)
        if len(head) < 2 or head[0] & 15 == _CLOSE:
            return False
        length = head[1] & 127
        assert length < 126
        mask = reader.read(4)
        payload = bytes(byte ^ mask[index & 3] for index, byte in enumerate(reader.read(length)))
        if head[0] & 15 == _PING:
            self._write(frame(_PONG, payload))
        elif head[0] & 15 == _PONG:
            with self._ponged:
                self._pongs[payload] = time.perf_counter()
                self._ponged.notify_all()
        return True
