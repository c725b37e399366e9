"""Receives WebSocket messages directly from the buffer of the socket.

A message with 100 flows has about 80 KB. The websockets package would copy the message several
times. These copies would take more CPU time than the table takes to apply the message. To avoid the
copies, this module receives all bytes before websockets does. Nearly all messages are in a single
frame. This module passes such messages on as slices of the receive buffer. All other bytes go to
websockets unchanged: the opening handshake, pings and pongs, fragments, close frames, and invalid
frames. Only websockets sends responses, closes the connection and reports errors.

RFC 6455, section 5.2, specifies the frames.
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
"""Size of the receive buffer of a subscription. The buffer has space for three messages of 100
flows. Larger messages get a temporary buffer."""

GROWTH: Final = 4
"""The buffer of a large message grows by this factor whenever it is full."""

TURN_S: Final = 0.01
"""After this time, the receiver yields to the event loop, even if more messages are available."""

_MESSAGES: Final = (0x80 | Opcode.TEXT, 0x80 | Opcode.BINARY)
"""The first byte of a frame that is a complete message: FIN is set, and no reserved bit is set."""

_FIRST_FRAGMENTS: Final = (Opcode.TEXT, Opcode.BINARY)
_LAST_FRAGMENT: Final = 0x80 | Opcode.CONT
_FORWARDED: Final = (
    *_FIRST_FRAGMENTS,
    Opcode.CONT,
    _LAST_FRAGMENT,
    0x80 | Opcode.PING,
    0x80 | Opcode.PONG,
)
"""Frames with these first bytes (fragments, pings and pongs) are forwarded to websockets.

Close frames are not in this list. No message follows a close frame, so this frame and all later
bytes are forwarded without parsing."""

_RESPONSE_END: Final = b"\r\n\r\n"
"""The end of a successful opening handshake response, which has no body."""

_UNLIMITED: Final = sys.maxsize
"""More bytes than a connection can ever receive."""

_INT_BYTES: Final = 4
"""Size of the result of FIONREAD, which is a C int: see ioctl(2)."""

_DATA: Final = (Opcode.CONT, Opcode.TEXT, Opcode.BINARY)

_NO_BUFFER: Final = memoryview(b"")

MessageData = bytes | bytearray | memoryview

OnMessage = Callable[[MessageData], None]
"""A callback that receives the bytes of a message. It must copy the bytes that it needs later,
because the buffer is reused."""


class WebSocketConnection(ClientConnection):
    """A client connection that passes its messages on immediately, without a queue.

    This class uses only methods that subclasses of websockets' class may override or call. These
    are `process_event`, `state`, `recv`, `close`, and the callbacks of `asyncio.Protocol`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._receiver = _Receiver(self)
        self._fragments = bytearray()

    async def receive(self, on_message: OnMessage, *, max_message_bytes: int) -> Never:
        """Pass all messages to ``on_message``, starting with the first received message.

        ``max_message_bytes`` must equal the ``max_size`` that websockets uses for the connection.
        An exception of ``on_message`` ends the connection.

        Raises:
            ConnectionClosed: The connection has ended for any reason.

        """
        self._receiver.start(on_message, max_message_bytes)
        while True:
            await self.recv()  # never returns a message: `process_event` consumes all of them

    def backlog_bytes(self) -> int:
        """Return the number of unprocessed bytes in the socket and in the buffer."""
        client = self.transport.get_extra_info("socket")
        try:
            waiting = fcntl.ioctl(client.fileno(), termios.FIONREAD, bytes(_INT_BYTES))
        except (AttributeError, OSError, ValueError):  # pragma: no cover - closed
            return 0
        return int.from_bytes(waiting, sys.byteorder) + self._receiver.unprocessed_bytes

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection; discard messages that arrive before it is closed."""
        # Start the receiver even if `receive` was never called: messages before the analyzer's
        # close frame must be read first.
        self._receiver.start(_ignore, 0)
        await super().close(code, reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._receiver.connection_made(transport)
        # Event loops read no data before this call, so the receiver gets all bytes.
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
    pass


class _Receiver(asyncio.BufferedProtocol):
    """Owns the receive buffer of the transport, and parses the frames in it.

    ``_buffer[_start:_end]`` has been received but not processed. While the receiver waits for the
    event loop or for `start`, it does not read from the socket. Therefore backpressure reaches the
    analyzer.
    """

    def __init__(self, connection: WebSocketConnection) -> None:
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
        """From ``_start`` on, this many bytes are forwarded to websockets without parsing."""
        self._paused = False

    @property
    def unprocessed_bytes(self) -> int:
        """Number of received bytes that wait for the event loop; 0 if reading is not paused."""
        return self._end - self._start if self._paused else 0

    def start(self, on_message: OnMessage, max_message_bytes: int) -> None:
        """Start to pass messages on, beginning with the messages already received."""
        self.on_message = on_message
        self._max_message_bytes = max_message_bytes
        self._started = True
        self._resume()

    # Callbacks of the transport

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
        self._small = self._buffer = _NO_BUFFER  # free the buffer at once
        self._start = self._end = 0
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:  # pragma: no cover - only when the peer does not read
        self._connection.pause_writing()

    def resume_writing(self) -> None:  # pragma: no cover - likewise
        self._connection.resume_writing()

    # Sharing the event loop

    def _process(self) -> None:
        """Process the buffer for at most `TURN_S`."""
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
        """Process the rest of the buffer, because no more data will arrive."""
        while self._paused and self._started:
            self._paused = False
            self._process()
        self._paused = False
        if self._start < self._end:
            self._forward(self._end)  # websockets reports the incomplete frame

    # Parsing the buffer

    def _step(self) -> bool:
        """Process the next frame, or its received part; return False if more bytes are required."""
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
        """Forward the received part of the handshake response, which precedes the first frame."""
        index = bytes(self._buffer[: self._end]).find(_RESPONSE_END)
        if index < 0:
            self._forward(self._end)
            # Keep a possible start of _RESPONSE_END: the next data may complete it.
            kept = self._buffer[: self._end][1 - len(_RESPONSE_END) :]
            self._buffer[: len(kept)] = kept
            self._start = self._end = len(kept)
            return False
        self._opening = False
        self._forward(index + len(_RESPONSE_END))
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
            length = _UNLIMITED  # masked: invalid in frames from a server
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
        data = bytes(self._buffer[self._start : stop])
        self._start = stop
        self._connection.data_received(data)

    def _reserve(self, stop: int) -> bool:
        """Make space for the rest of the frame, up to ``stop``.

        Always returns False, because `_step` requires more bytes.
        """
        buffer, begun = self._buffer, self._buffer[self._start : self._end]
        needed = stop - self._start
        if stop <= len(buffer):
            return False
        if needed > len(buffer) and (buffer is self._small or len(begun) == len(buffer)):
            # Grow gradually: allocate for received data, not for the announced length.
            self._buffer = _allocate(min(needed, GROWTH * len(buffer)))
        elif self._start == 0:
            return False
        self._buffer[: len(begun)] = begun
        self._start, self._end = 0, len(begun)
        return False


def _allocate(size: int) -> memoryview:
    return memoryview(bytearray(size))
