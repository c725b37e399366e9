"""Receives WebSocket messages directly from the buffer of the socket.

A message of 100 flows has 80 KB. websockets copies them several times until they are one piece,
which takes more CPU time than the table. So the bytes come here first: a message that is one
frame, as good as all of an analyzer's are, is handed on as a part of the buffer it was received
in. websockets gets everything else, byte by byte as it came: the opening handshake, pings and
pongs, fragments, the close, and whatever is wrong. It alone answers, ends and explains.

Frames are read as RFC 6455, section 5.2 has them; what they carry is no concern of this module.
"""

import asyncio
import fcntl
import sys
import termios
import time
from collections.abc import Callable
from typing import Any, Final, Never, cast

from websockets.asyncio.client import ClientConnection
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State

BUFFER_BYTES: Final = 256 << 10
"""Of a subscription's buffer, and so of one read. It holds three messages of 100 flows; larger
messages get a buffer of their own."""

GROWTH: Final = 4
"""A large message's buffer grows by this factor each time that it is full."""

TURN_S: Final = 0.01
"""After this time the event loop has its turn, also where more messages are there already."""

_MESSAGES: Final = (0x80 | Opcode.TEXT, 0x80 | Opcode.BINARY)
"""First bytes of frames that are a message: FIN is set, the reserved bits are not."""

_FIRST_FRAGMENTS: Final = (Opcode.TEXT, Opcode.BINARY)
_LAST_FRAGMENT: Final = 0x80 | Opcode.CONT
_FORWARDED: Final = (
    *_FIRST_FRAGMENTS,
    Opcode.CONT,
    _LAST_FRAGMENT,
    0x80 | Opcode.PING,
    0x80 | Opcode.PONG,
)
"""First bytes of the other frames that messages may come after."""

_RESPONSE_END: Final = b"\r\n\r\n"
"""Ends the answer to the opening handshake, which has no body when it is a good one."""

_UNLIMITED: Final = sys.maxsize
"""More bytes than a connection will ever bring."""

_INT_BYTES: Final = 4
"""What FIONREAD, of ioctl(2), answers with is a C int."""

_DATA: Final = (Opcode.CONT, Opcode.TEXT, Opcode.BINARY)

_NO_BUFFER: Final = memoryview(b"")

MessageData = bytes | bytearray | memoryview

OnMessage = Callable[[MessageData], None]
"""Gets a message's bytes, which it must not keep: where they are, others will be received."""


class Connection(ClientConnection):
    """A client connection that hands its messages on as they come, without a queue.

    Nothing of websockets is used here that its subclasses are not meant to override or to call:
    the callbacks of `asyncio.Protocol`, `process_event`, `state`, `recv` and `close`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._receiver = _Receiver(self)
        self._fragments = bytearray()

    async def receive(self, on_message: OnMessage, *, max_message_bytes: int) -> Never:
        """Hand on message after message, from the first that came.

        ``max_message_bytes`` is the ``max_size`` that websockets has for this connection.
        ``on_message`` is called by the event loop, so what it raises ends the connection.

        Raises:
            ConnectionClosed: The connection has ended, for whatever reason.

        """
        self._receiver.start(on_message, max_message_bytes)
        while True:
            await self.recv()  # of the end only: `process_event` leaves no message to it

    def backlog_bytes(self) -> int:
        """Return how much has come and waits for us, in the socket or for its turn."""
        client = self.transport.get_extra_info("socket")
        try:
            waiting = fcntl.ioctl(client.fileno(), termios.FIONREAD, bytes(_INT_BYTES))
        except (AttributeError, OSError, ValueError):  # pragma: no cover - it is closed
            return 0
        return int.from_bytes(waiting, sys.byteorder) + self._receiver.unprocessed_bytes

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection; messages that come meanwhile are thrown away."""
        # Also where nobody received: the server's answer comes behind what is held back.
        self._receiver.start(_ignore, 0)
        await super().close(code, reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._receiver.connection_made(transport)
        # No loop reads before it has called this, so not one byte goes the other way.
        cast(asyncio.Transport, transport).set_protocol(self._receiver)

    def process_event(self, event: Event) -> None:
        if not isinstance(event, Frame) or event.opcode not in _DATA:
            super().process_event(event)
        elif event.fin and not self._fragments:
            self._receiver.on_message(cast(bytes, event.data))
        else:
            self._fragments += event.data
            if event.fin:
                message, self._fragments = self._fragments, bytearray()
                self._receiver.on_message(message)


def _ignore(_: MessageData) -> None:
    """Throw a message away."""


class _Receiver(asyncio.BufferedProtocol):
    """Owns the buffer that the transport reads into, and finds the frames in it.

    ``_buffer[_start:_end]`` has come and is not dealt with yet. Nothing is read from the socket
    while it waits, for its turn or for `start`, so the analyzer feels when we are slow.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.on_message: OnMessage = _ignore
        self._max_message_bytes = 0
        self._started = False
        self._small = self._buffer = _allocate(BUFFER_BYTES)
        self._start = 0
        self._end = 0
        self._opening = True
        self._fragmented = False
        self._forwarding = 0
        """Bytes from ``_start`` on that are websockets' whatever they are."""
        self._paused = False

    @property
    def unprocessed_bytes(self) -> int:
        """Bytes that could be dealt with and wait for their turn."""
        return self._end - self._start if self._paused else 0

    def start(self, on_message: OnMessage, max_message_bytes: int) -> None:
        """Hand messages on from now on, and before all others those that were held back."""
        self.on_message = on_message
        self._max_message_bytes = max_message_bytes
        self._started = True
        self._resume()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        self._process()

    def eof_received(self) -> None:
        self._finish()
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()
        self._small = self._buffer = _NO_BUFFER  # not only when the garbage collector comes by
        self._start = self._end = 0
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:  # pragma: no cover - only when the peer does not read
        self._connection.pause_writing()

    def resume_writing(self) -> None:  # pragma: no cover - likewise
        self._connection.resume_writing()

    # Turns

    def _process(self) -> None:
        """Deal with what is in the buffer, for no longer than a turn."""
        until_s = time.monotonic() + TURN_S
        while self._step():
            if time.monotonic() >= until_s:
                self._pause()
                self._loop.call_soon(self._resume)
                return

    def _pause(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._process()
            if not self._paused:
                self._transport.resume_reading()

    def _finish(self) -> None:
        """Deal with what still waits for its turn or its rest, as neither will come."""
        while self._paused and self._started:
            self._paused = False
            self._process()
        self._paused = False
        if self._start < self._end:
            self._forward(self._end)  # websockets says what is missing

    # What is in the buffer

    def _step(self) -> bool:
        """Deal with the next frame, or with what has come of it.

        Returns False where nothing can be done before more bytes have come.
        """
        start, end = self._start, self._end
        if self._opening:
            return self._read_handshake()
        if start == end:
            self._buffer, self._start, self._end = self._small, 0, 0
            return False
        if self._forwarding:
            passed = min(self._forwarding, end - start)
            self._forwarding -= passed
            self._forward(start + passed)
            return True
        return self._read_frame()

    def _read_handshake(self) -> bool:
        """Pass the handshake's answer on; what stands behind it are frames."""
        found = bytes(self._buffer[: self._end]).find(_RESPONSE_END)
        if found < 0:
            self._forward(self._end)
            # The end may have begun: that much stays, to be found with the rest of it.
            kept = self._buffer[: self._end][1 - len(_RESPONSE_END) :]
            self._buffer[: len(kept)] = kept
            self._start = self._end = len(kept)
            return False
        self._opening = False
        self._forward(found + len(_RESPONSE_END))
        if self._connection.state is not State.OPEN:
            self._forwarding = _UNLIMITED
        elif not self._started:
            self._pause()
            return False
        return True

    def _read_frame(self) -> bool:
        buffer, start, end = self._buffer, self._start, self._end
        payload = start + 2
        if payload > end:
            return self._reserve(payload)
        first, length = buffer[start], buffer[start + 1]
        if length == 126 or length == 127:
            payload += 2 if length == 126 else 8
            if payload > end:
                return self._reserve(payload)
            length = int.from_bytes(buffer[start + 2 : payload])
        elif length > 127:
            length = _UNLIMITED  # is masked, as a server's frames must not be
        stop = payload + length
        if length > self._max_message_bytes or self._connection.state is not State.OPEN:
            self._forwarding = _UNLIMITED
        elif first in _MESSAGES and not self._fragmented:
            if stop > end:
                return self._reserve(stop)
            self._start = stop
            self.on_message(buffer[payload:stop])
        elif first in _FORWARDED:
            self._forwarding = stop - start
            if first in _FIRST_FRAGMENTS:
                self._fragmented = True
            elif first == _LAST_FRAGMENT:
                self._fragmented = False
        else:
            self._forwarding = _UNLIMITED
        return True

    def _forward(self, stop: int) -> None:
        """Leave what is before ``stop`` to websockets."""
        data = bytes(self._buffer[self._start : stop])
        self._start = stop
        self._connection.data_received(data)

    def _reserve(self, stop: int) -> bool:
        """Make sure that what begins at ``_start`` has room for more, if not as far as ``stop``."""
        buffer, begun = self._buffer, self._buffer[self._start : self._end]
        needed = stop - self._start
        if stop <= len(buffer):
            return False
        if needed > len(buffer) and (buffer is self._small or len(begun) == len(buffer)):
            # Not at once: memory is for what has come, not for what was announced.
            self._buffer = _allocate(min(needed, GROWTH * len(buffer)))
        elif self._start == 0:
            return False
        self._buffer[: len(begun)] = begun
        self._start, self._end = 0, len(begun)
        return False


def _allocate(size: int) -> memoryview:
    return memoryview(bytearray(size))
