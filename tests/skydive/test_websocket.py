"""Receiving WebSocket messages without copying them.

Given the same bytes, skyfast and the websockets library must have the same results.
"""

import asyncio
import base64
import contextlib
import hashlib
import itertools
import socket
import ssl
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State
from websockets.uri import parse_uri

from skyfast.config import model
from skyfast.skydive import websocket as frames
from skyfast.skydive.tls import client_context
from skyfast.skydive.websocket import BUFFER_BYTES, MessageData, WebSocketConnection
from tests.support.analyzer import (
    ACCEPT_GUID,
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    FakeAnalyzer,
    Subscriber,
    frame,
)
from tests.support.certificates import Authority
from tests.support.messages import DEEP, flow, message
from tests.support.sink import Sink
from tests.support.waiting import PROMPT_S, WAIT_S, until

pytestmark = pytest.mark.xdist_group("timing")

MAX_MESSAGE_BYTES = 70_000

# Comparison with websockets, without sockets -------------------------------------------------


class Transport(asyncio.Transport):
    """A transport without a socket: `Wire.deliver` supplies the data that the peer sends."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.paused = False
        self.closing = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closing


class Wire:
    """The server's side of a connection, after the client's handshake request."""

    def __init__(self, kind: type[ClientConnection], max_message_bytes: int) -> None:
        protocol = ClientProtocol(parse_uri("ws://analyzer/"), max_size=max_message_bytes)
        self.connection = kind(protocol, max_queue=None)
        self.transport = Transport(self.connection)
        self.connection.connection_made(self.transport)
        request = self.connection.request = protocol.connect()
        protocol.send_request(request)
        self.connection.send_data()
        self.transport.written.clear()
        self.response = response_to(request.headers["Sec-WebSocket-Key"])

    def deliver(self, data: bytes) -> bytes:
        """Deliver ``data`` until the transport is paused, and return the rest."""
        protocol: Any = self.transport.protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            protocol.data_received(data)
            return b""
        while data and not self.transport.paused:
            buffer = protocol.get_buffer(-1)
            size = min(len(buffer), len(data))
            assert size
            buffer[:size] = data[:size]
            protocol.buffer_updated(size)
            data = data[size:]
        return data

    def end(self, *, reset: bool = False) -> None:
        self.transport.closing = True
        protocol: Any = self.transport.protocol
        if not reset:
            protocol.eof_received()
        protocol.connection_lost(ConnectionResetError("reset") if reset else None)

    def replies(self) -> list[tuple[int, bytes]]:
        """Return the first byte and the payload of each sent frame."""
        data, frames = bytes(self.transport.written), []
        while data:
            length = data[1] & 127
            assert data[1] & 128
            assert length < 126
            mask, payload = data[2:6], data[6 : 6 + length]
            frames.append((data[0], bytes(a ^ b for a, b in zip(payload, itertools.cycle(mask)))))
            data = data[6 + length :]
        return frames


@dataclass
class Outcome:
    messages: list[bytes]
    replies: list[tuple[int, bytes]]
    error: str
    cause: str


def response_to(key: str) -> bytes:
    accept = base64.b64encode(hashlib.sha1(key.encode() + ACCEPT_GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"X-Host-ID: analyzer-1\r\nSec-WebSocket-Accept: %b\r\n\r\n" % accept
    )


async def receive_with_websockets(stream: bytes, *, reset: bool = False) -> Outcome:
    wire = Wire(ClientConnection, MAX_MESSAGE_BYTES)
    wire.deliver(wire.response + stream)
    wire.end(reset=reset)
    messages = []
    try:
        while True:
            messages.append(await wire.connection.recv(decode=False))
    except ConnectionClosed as exc:
        return Outcome(messages, wire.replies(), str(exc), repr(exc.__cause__))


class Receiver(Wire):
    def __init__(
        self,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        on_message: Callable[[MessageData], None] | None = None,
    ) -> None:
        super().__init__(WebSocketConnection, max_message_bytes)
        self.messages: list[bytes] = []
        self._max_message_bytes = max_message_bytes
        self._on_message = on_message or (lambda data: self.messages.append(bytes(data)))

    async def start(self) -> None:
        assert isinstance(self.connection, WebSocketConnection)
        self._receiving = asyncio.create_task(
            self.connection.receive(self._on_message, max_message_bytes=self._max_message_bytes)
        )
        await asyncio.sleep(0)

    async def open(self) -> None:
        """Do the opening handshake, and start receiving."""
        assert not self.deliver(self.response)
        await self.start()

    async def over(self, *, reset: bool = False) -> ConnectionClosed:
        """End the connection, and return the exception that ends receiving."""
        self.end(reset=reset)
        with pytest.raises(ConnectionClosed) as error:
            await self._receiving
        return error.value


async def receive_with_skyfast(
    stream: bytes, cuts: Sequence[int], *, reset: bool = False
) -> Outcome:
    """Receive a stream that is cut at the positions ``cuts``, in millionths of its length."""
    wire = Receiver()
    stream = wire.response + stream
    started = False
    for start, end in itertools.pairwise([0, *(len(stream) * cut // 10**6 for cut in cuts)]):
        data = stream[start:end]
        while data := wire.deliver(data):
            if not started:
                await wire.start()
                started = True
            await asyncio.sleep(0)
    if not started:
        await wire.start()
    error = await wire.over(reset=reset)
    return Outcome(wire.messages, wire.replies(), str(error), repr(error.__cause__))


LENGTHS = st.sampled_from([0, 1, 2, 125, 126, 127, 300, 65535, 65536, MAX_MESSAGE_BYTES])
OVER = MAX_MESSAGE_BYTES + 1


def payload(length: int) -> bytes:
    return bytes(range(251)) * (length // 251) + bytes(length % 251)


def fragmented(opcode: int, lengths: list[int], between: bytes) -> bytes:
    parts = [
        frame(CONT if i else opcode, payload(length), fin=i == len(lengths) - 1)
        for i, length in enumerate(lengths)
    ]
    return between.join(parts)


@dataclass(frozen=True)
class Piece:
    """A piece of a stream. If a test fails, its output shows the name instead of the bytes."""

    name: str
    data: bytes = field(repr=False)


def _single(opcode: int, length: int) -> Piece:
    return Piece(f"{opcode=} {length=}", frame(opcode, payload(length)))


def _fragments(opcode: int, lengths: list[int], between: Piece) -> Piece:
    name = f"{opcode=} {lengths=} with {between.name}"
    return Piece(name, fragmented(opcode, lengths, between.data))


NOTHING = st.just(Piece("nothing", b""))
PINGS = st.builds(_single, st.sampled_from([PING, PONG]), st.sampled_from([0, 1, 125]))
MESSAGES = st.builds(_single, st.sampled_from([TEXT, BINARY]), LENGTHS)
FRAGMENTED = st.builds(
    _fragments,
    st.sampled_from([TEXT, BINARY]),
    st.lists(st.sampled_from([0, 1, 125, 126, 30_000]), min_size=2, max_size=4),
    NOTHING | PINGS,
)

FAULTS = {
    "too big": frame(TEXT, payload(OVER)),
    "much too big": b"\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
    "too big in fragments": fragmented(TEXT, [60_000, 60_000], b""),
    "too big fragment": frame(BINARY, payload(OVER), fin=False),
    "masked": b"\x81\x83abcdabc",
    "masked, with a two-byte length": b"\x82\xfe\x00\x80" + payload(132),
    "RSV1": b"\xc1\x03abc",
    "RSV2": b"\xa2\x03abc",
    "RSV3": b"\x91\x03abc",
    "a ping with RSV1": b"\xc9\x00",
    "a reserved opcode": b"\x83\x03abc",
    "a reserved control opcode": b"\x8b\x03abc",
    "continuation without a start": frame(CONT, b"abc"),
    "unfinished continuation without a start": frame(CONT, b"abc", fin=False),
    "a message inside a message": frame(TEXT, b"ab", fin=False) + frame(TEXT, b"abc"),
    "a fragment of another message": frame(TEXT, b"ab", fin=False) * 2,
    "a close inside a message": frame(TEXT, b"ab", fin=False) + frame(CLOSE, b"\x03\xe8"),
    "a long ping": frame(PING, b"x" * 126),
    "a ping in fragments": frame(PING, b"x", fin=False),
    "a close": frame(CLOSE, b"\x03\xe9going away"),
    "a close without a code": frame(CLOSE, b""),
    "a close with an invalid code": frame(CLOSE, b"\x00\x01"),
    "a close of one byte": frame(CLOSE, b"\x03"),
    "a close with invalid UTF-8": frame(CLOSE, b"\x03\xe8\xff"),
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "an unfinished header": b"\x82\x7f\0\0\0",
    "an unfinished message": frame(BINARY, payload(65_536))[:-1],
    "an unfinished ping": b"\x89\x05abc",
    "an unfinished fragment": frame(TEXT, payload(200), fin=False)[:-1],
}
GOOD = MESSAGES | FRAGMENTED | PINGS
BAD = st.builds(Piece, name := st.shared(st.sampled_from(list(FAULTS))), name.map(FAULTS.get))
STREAMS = st.builds(
    lambda good, bad, rest: [*good, bad, *rest],
    st.lists(GOOD, max_size=6),
    NOTHING | BAD | st.builds(Piece, st.just("random"), st.binary(max_size=20)),
    st.lists(GOOD, max_size=2),
)
CUTS = st.lists(st.integers(0, 10**6), max_size=12).map(lambda cuts: [*sorted(cuts), 10**6])
EVERYWHERE = range(0, 10**6 + 1, 100)


@contextlib.contextmanager
def sizes(*, buffer_bytes: int, turn_s: float) -> Iterator[None]:
    with mock.patch.multiple(frames, BUFFER_BYTES=buffer_bytes, TURN_S=turn_s):
        yield


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@settings(max_examples=300, deadline=None)
@given(
    pieces=STREAMS,
    cuts=CUTS | st.just(EVERYWHERE),
    # The buffer is smaller than a frame, larger than a message, or in between.
    buffer_bytes=st.sampled_from([16, 200, 40_000, BUFFER_BYTES]),
    turn_s=st.sampled_from([0.0, 10.0]),
    reset=st.booleans(),
)
@example(
    pieces=[_single(TEXT, 100), _single(TEXT, 126), _single(BINARY, 1000), _single(TEXT, 1)],
    cuts=EVERYWHERE,
    buffer_bytes=200,
    turn_s=0.0,
    reset=True,
)
def test_result_does_not_depend_on_how_a_stream_is_split(
    runner: asyncio.Runner,
    pieces: list[Piece],
    cuts: Sequence[int],
    buffer_bytes: int,
    turn_s: float,
    reset: bool,
) -> None:
    stream = b"".join(piece.data for piece in pieces)
    expected = runner.run(receive_with_websockets(stream, reset=reset))
    with sizes(buffer_bytes=buffer_bytes, turn_s=turn_s):
        assert runner.run(receive_with_skyfast(stream, cuts, reset=reset)) == expected


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("cuts", [EVERYWHERE, [10**6]], ids=["in pieces", "whole"])
def test_faults_raise_the_same_error_as_websockets(
    runner: asyncio.Runner, fault: bytes, cuts: Sequence[int]
) -> None:
    for after in (b"", frame(TEXT, b"after") * 3):
        stream = frame(TEXT, b"before") + fault + after
        expected = runner.run(receive_with_websockets(stream))
        assert runner.run(receive_with_skyfast(stream, cuts)) == expected
        assert expected.messages[0] == b"before"


def test_overlong_length_encoding_is_accepted(runner: asyncio.Runner) -> None:
    stream = b"\x82\x7e\x00\x03abc" + b"\x81\x7f\0\0\0\0\0\0\0\x03def"
    outcome = runner.run(receive_with_skyfast(stream, EVERYWHERE))
    assert outcome == runner.run(receive_with_websockets(stream))
    assert outcome.messages == [b"abc", b"def"]


async def test_exception_in_callback_drops_only_that_message() -> None:
    messages = []

    def on_message(data: MessageData) -> None:
        messages.append(bytes(data))
        if data == b"bad":
            raise ValueError

    wire = Receiver(on_message=on_message)
    await wire.open()
    with pytest.raises(ValueError):
        wire.deliver(frame(TEXT, b"bad") + frame(TEXT, b"good")[:3])
    wire.deliver(frame(TEXT, b"good")[3:])
    assert messages == [b"bad", b"good"]
    await wire.over()


async def test_messages_are_not_copied() -> None:
    buffers = []

    def on_message(data: MessageData) -> None:
        if len(data) == 60_000:
            assert isinstance(data, memoryview)
            buffers.append(id(data.obj))

    wire = Receiver(on_message=on_message)
    await wire.open()
    for _ in range(10):
        wire.deliver(fragmented(TEXT, [30_000, 0, 1], frame(PING, b"1")))
        wire.deliver(frame(TEXT, payload(60_000)))
        wire.deliver(frame(BINARY, payload(60_000)))
    assert len(buffers) == 20
    assert len(set(buffers)) == 1
    await wire.over()


async def test_connection_yields_to_the_event_loop_after_its_time_slice() -> None:
    with sizes(buffer_bytes=BUFFER_BYTES, turn_s=0.0):
        wire = Receiver()
        await wire.open()
        wire.deliver(frame(TEXT, b"x") * 3)
        for count in (1, 2, 3):
            assert len(wire.messages) == count
            assert wire.transport.paused
            await asyncio.sleep(0)
        assert not wire.transport.paused
        await wire.over()


async def test_large_buffer_is_freed_after_large_message() -> None:
    size = 5 << 20
    lengths = []
    wire = Receiver(max_message_bytes=size, on_message=lambda data: lengths.append(len(data)))
    await wire.open()
    data = frame(BINARY, bytes(size))
    tracemalloc.start()
    try:
        for start in range(0, 1000, 100):
            wire.deliver(data[start : start + 100])
        # The frame header announces 5 MB, but memory is only allocated when the data arrives.
        assert tracemalloc.get_traced_memory()[1] < 5 * BUFFER_BYTES
        for start in range(1000, len(data), 1 << 20):
            wire.deliver(data[start : start + (1 << 20)])
        assert lengths == [size]
        del data
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
    await wire.over()


async def test_closed_connection_frees_its_buffer() -> None:
    tracemalloc.start()
    try:
        wires = [Receiver() for _ in range(8)]
        for wire in wires:
            await wire.open()
        assert tracemalloc.get_traced_memory()[0] > 8 * BUFFER_BYTES
        for wire in wires:
            await wire.over()
        assert tracemalloc.get_traced_memory()[0] < BUFFER_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        message(flow("a"), flow("b")),
        message(flow("a"), flow("a", Last=3000)),
        message(flow("a"), flow(UUID=5)),
        message(b'{"Network":"\\ud800"}', flow("b")),
        message(DEEP, flow("b")),
        message(flow("a"))[:-2],
        b'{"Namespace":"flow","Type":"store","Obj":5}',
        b"5",
        b"\xff",
        b"",
    ],
    ids=lambda data: str(bytes(data[-20:])),
)
def test_ingest_keeps_no_reference_to_a_message(data: bytes) -> None:
    buffer = bytearray(b"1" + data + b"2")
    sink, expected = Sink(), Sink()
    sink.receive(memoryview(buffer)[1:-1])  # type: ignore[arg-type]
    buffer[:] = b"x" * len(buffer)
    buffer.clear()  # raises BufferError if part of the buffer is in use
    expected.receive(data)
    assert sink.page() == expected.page()
    assert (sink.errors, sink.skipped) == (expected.errors, expected.skipped)


# Real sockets --------------------------------------------------------------------------------

Run = Callable[[Any], None]
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
SCHEMES = pytest.mark.parametrize("scheme", ["ws", "wss"])


@dataclass
class TLSContexts:
    """TLS contexts of the client and the server, or None without TLS."""

    server: ssl.SSLContext | None = None
    client: ssl.SSLContext | None = None


@pytest.fixture
def tls(scheme: str, tmp_path: Path) -> TLSContexts:
    if scheme == "ws":
        return TLSContexts()
    authority = Authority(tmp_path)
    trusted = model.TLS(client_cert="", client_key="", ca_cert=authority.certificate)
    client = client_context(trusted)
    return TLSContexts(authority.server_context("127.0.0.1"), client)


async def connected(
    url: str, tls: TLSContexts, *, max_message_bytes: int = 1 << 24
) -> WebSocketConnection:
    connection = await connect(
        url,
        compression=None,
        proxy=None,
        max_size=max_message_bytes,
        ssl=tls.client,
        create_connection=WebSocketConnection,
    )
    assert isinstance(connection, WebSocketConnection)
    return connection


class Receiving:
    """Collects a connection's messages, converted by ``keep``."""

    def __init__(
        self,
        connection: WebSocketConnection,
        *,
        keep: Callable[[MessageData], Any] = bytes,
        handling_s: float = 0.0,
    ) -> None:
        self.connection = connection
        self.messages: list[Any] = []
        self._keep = keep
        self._handling_s = handling_s
        self._task = asyncio.create_task(
            connection.receive(self._on_message, max_message_bytes=1 << 24)
        )

    def _on_message(self, data: MessageData) -> None:
        time.sleep(self._handling_s)
        self.messages.append(self._keep(data))

    async def has(self, count: int) -> list[Any]:
        await until(lambda: len(self.messages) >= count or self._task.done())
        return self.messages

    async def over(self) -> ConnectionClosed:
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(ConnectionClosed) as error:
                await self._task
        return error.value

    async def close(self) -> None:
        await self.connection.close()
        await self.over()


@contextlib.asynccontextmanager
async def raw_server(
    tls: TLSContexts, play: Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]
) -> AsyncIterator[str]:
    """Yield a server's URL. ``play`` acts as the server: its second argument is the response to
    the handshake, which it must send.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines if ": " in line)
        key = next(value for name, value in pairs if name == "Sec-WebSocket-Key")
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await play(writer, response_to(key))
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (await reader.readexactly(2))[0] != 0x80 | CLOSE:
                pass
            writer.write(frame(CLOSE, struct.pack("!H", 1000)))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls.server)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'wss' if tls.server else 'ws'}://127.0.0.1:{port}/"
    finally:
        server.close()


@LOOPS
@SCHEMES
def test_messages_arrive_in_order(run: Run, tls: TLSContexts) -> None:
    sent = [payload(length) for length in (0, 1, 125, 126, 65_535, 65_536, 300_000, 2 << 20, 7)]

    async def scenario() -> None:
        async with FakeAnalyzer(ssl=tls.server) as analyzer:
            receiving = Receiving(await connected(analyzer.url, tls))
            remote = await analyzer.subscriber()
            for data in sent:
                await remote.ping(b"before")
                await remote.send(data, fragments=3)
                await remote.send(data)
                await remote.send(data, binary=True)
            expected = [data for data in sent for _ in range(3)]
            assert await receiving.has(len(expected)) == expected
            await until(lambda: remote.pongs >= len(sent))
            await receiving.close()
            await remote.gone()
            assert remote.close_code == 1000

    run(scenario())


@LOOPS
@SCHEMES
def test_messages_sent_with_the_handshake_response_come_first(run: Run, tls: TLSContexts) -> None:
    sent = [b"%d" % number for number in range(100)]

    async def play(writer: asyncio.StreamWriter, response: bytes) -> None:
        rest = b"".join(frame(TEXT, data) for data in sent)
        writer.write(response + rest[:101])
        await asyncio.sleep(0.05)
        writer.write(rest[101:])
        writer.write(fragmented(TEXT, [1, 1], b""))
        writer.write(frame(TEXT, b"last"))

    async def scenario() -> None:
        async with raw_server(tls, play) as url:
            connection = await connected(url, tls)
            await asyncio.sleep(0.1)
            receiving = Receiving(connection)
            assert await receiving.has(102) == [*sent, b"\0\0", b"last"]
            await receiving.close()

    run(scenario())


@LOOPS
@SCHEMES
def test_stream_may_arrive_byte_by_byte(run: Run, tls: TLSContexts) -> None:
    sent = [b"", b"one", payload(130)]

    async def play(writer: asyncio.StreamWriter, response: bytes) -> None:
        data = response + b"".join(frame(PING, b"1") + frame(TEXT, data) for data in sent)
        for byte in data + fragmented(TEXT, [2, 2], frame(PING, b"2")):
            writer.write(bytes([byte]))
            await asyncio.sleep(0)

    async def scenario() -> None:
        async with raw_server(tls, play) as url:
            receiving = Receiving(await connected(url, tls))
            assert await receiving.has(4) == [*sent, bytes(4)]
            await receiving.close()

    run(scenario())


@LOOPS
@SCHEMES
def test_nothing_is_read_before_receiving_starts(run: Run, tls: TLSContexts) -> None:
    count, data = 200, payload(200_000)

    async def scenario() -> None:
        async with FakeAnalyzer(ssl=tls.server) as analyzer:
            connection = await connected(analyzer.url, tls)
            remote = await analyzer.subscriber()

            async def send() -> None:
                for _ in range(count):
                    await remote.send(data)

            sending = asyncio.create_task(send())
            _, pending = await asyncio.wait([sending], timeout=0.5)
            assert pending, "40 MB were read before receiving started"
            receiving = Receiving(connection, keep=len)
            assert await receiving.has(count) == [len(data)] * count
            await sending
            await receiving.close()

    run(scenario())


@LOOPS
@SCHEMES
def test_flood_does_not_block_pings_or_the_event_loop(run: Run, tls: TLSContexts) -> None:
    handling_s = 0.0005

    async def flood(remote: Subscriber) -> None:
        while True:
            await remote.send_raw(frame(TEXT, payload(600)) * 100)
            await asyncio.sleep(0)

    async def scenario() -> None:
        async with FakeAnalyzer(ssl=tls.server) as analyzer:
            analyzer.ping_interval_s = 0.05
            receiving = Receiving(
                await connected(analyzer.url, tls), keep=len, handling_s=handling_s
            )
            remote = await analyzer.subscriber()
            flooding = asyncio.create_task(flood(remote))
            most = handled = 0
            async with asyncio.timeout(WAIT_S):
                while handled < 200 or remote.pongs < 3:
                    await asyncio.sleep(0)
                    before, handled = handled, len(receiving.messages)
                    most = max(most, handled - before)
            assert most < 100, "the event loop did not run between these messages"
            flooding.cancel()
            await asyncio.wait([flooding])
            await receiving.close()

    run(scenario())


@LOOPS
@SCHEMES
@pytest.mark.parametrize("received", [True, False])
def test_flood_does_not_delay_the_close(run: Run, tls: TLSContexts, received: bool) -> None:
    async def scenario() -> None:
        async with FakeAnalyzer(ssl=tls.server) as analyzer:
            connection = await connected(analyzer.url, tls)
            remote = await analyzer.subscriber()
            receiving = Receiving(connection) if received else None
            await remote.send_raw(frame(TEXT, b"x") * 1000)
            async with asyncio.timeout(PROMPT_S):
                await connection.close()
            assert connection.state is State.CLOSED
            await remote.gone()
            assert remote.close_code == 1000
            if receiving is not None:
                assert (await receiving.over()).sent is not None

    run(scenario())


@LOOPS
@SCHEMES
def test_all_messages_before_the_close_are_received(run: Run, tls: TLSContexts) -> None:
    count = 300

    async def play(writer: asyncio.StreamWriter, response: bytes) -> None:
        writer.write(response)
        await asyncio.sleep(0.05)
        writer.write(frame(TEXT, b"x") * count + frame(CLOSE, struct.pack("!H", 1001)))

    async def scenario() -> None:
        async with raw_server(tls, play) as url:
            receiving = Receiving(await connected(url, tls), handling_s=0.0005)
            error = await receiving.over()
            assert error.rcvd is not None
            assert error.rcvd.code == 1001
            assert receiving.messages == [b"x"] * count

    run(scenario())
