"""Records the messages and the topology of analyzers to a file, in parallel with the export.

The event loop copies each message into a queue. A thread writes the messages to the file, and finds
the changes of the topology. If the queue is full, messages are dropped, counted and logged. When
the file reaches its maximum size or the disk fails, the recording stops and the export continues.
:mod:`skyfast.replay.recording` describes the format.
"""

import contextlib
import io
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from isal import igzip

from skyfast.config.yaml_nodes import ConfigError
from skyfast.replay.recording import message_line, topology_line
from skyfast.replay.topology import ObservedResponse, ResponseChanges, Update
from skyfast.runtime.logs import LogLimit, printable
from skyfast.skydive.topology_queries import Query
from skyfast.wording import counted

MAX_FILE_BYTES: Final = 1 << 30
"""Recording stops at this file size. Data that is still buffered can make the file larger."""

MAX_QUEUED_BYTES: Final = 64 << 20
"""Maximum size of the queue. An empty queue accepts a message of any size."""

BUFFER_BYTES: Final = 1 << 18

FLUSH_INTERVAL_S: Final = 1.0
"""Interval of flushes. If the process is killed, messages that were written after the latest flush
are lost."""

STOP_TIMEOUT_S: Final = 2.0
"""How long `Recorder.stop` waits for the queue to be written."""

log = logging.getLogger("skyfast.recorder")

MessageFilter = Callable[[bytes, str], tuple[bytes, str] | None]
"""Takes a message and its analyzer's name. Returns what to record, or None to omit the message."""

TopologyFilter = Callable[[Update], Update]

_Entry = tuple[bytes, int, str] | tuple[ObservedResponse | Update, int]
"""An entry of the queue: a message with its time and analyzer, or topology data with its time."""


class Recorder:
    """Writes a recording.

    All methods except `stop` must be called on the event loop. `stop` must be called last, and may
    be called by any thread.
    """

    def __init__(
        self,
        path: str,
        *,
        message_filter: MessageFilter | None = None,
        topology_filter: TopologyFilter | None = None,
    ) -> None:
        """Create the file, readable only by its owner. The suffix ``.gz`` selects compression.

        Raises:
            ConfigError: The file already exists or cannot be created.

        """
        self._path = path
        self._message_filter = message_filter
        self._topology_filter = topology_filter
        self._response_changes = ResponseChanges()
        self._file = _create(path)
        self._writer = (
            igzip.IGzipFile("", "wb", fileobj=self._file)  # type: ignore[no-untyped-call]
            if path.endswith(".gz")
            else self._file
        )
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._limit = LogLimit()
        # Modified only by the thread of the event loop:
        self._queued_bytes = 0
        self._dropped = 0
        # Modified only by the writing thread:
        self._dequeued_bytes = 0
        self._message_count = 0
        self._update_count = 0
        self._unreadable_count = 0
        self._is_stopped = False
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="skyfast-record", daemon=True)
        self._thread.start()
        log.info("recording to %s", printable(path))

    def message(self, data: bytes | bytearray | memoryview, analyzer: str) -> None:
        """Queue a copy of a message, or drop and count the message if the queue is full."""
        if self._has_capacity(len(data)):
            self._queue.put((bytes(data), _unix_ms(), analyzer))

    def observe(self, query: Query) -> ObservedResponse:
        """Return an observer of one response to ``query``, which records the topology changes."""
        return ObservedResponse(query, self._store_response)

    def update(self, update: Update) -> None:
        """Queue an update of a replayed topology."""
        if self._has_capacity(_size(update)):
            self._queue.put((update, _unix_ms()))

    def _store_response(self, response: ObservedResponse) -> None:
        if self._has_capacity(len(response)):
            self._queue.put((response, _unix_ms()))

    def _has_capacity(self, size: int) -> bool:
        if self._is_stopped:
            return False
        waiting = self._queued_bytes - self._dequeued_bytes
        if waiting and waiting + size > MAX_QUEUED_BYTES:
            self._dropped += 1
            text = f"message not recorded: writing to {printable(self._path)} is too slow"
            self._limit.warn(log, "dropped", text)
            return False
        self._queued_bytes += size
        return True

    def stop(self) -> None:
        """Write the queue, close the file and log a summary. This blocks.

        A file without messages is removed.
        """
        self._queue.put(None)
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():  # pragma: no cover - the test kills the process
            log.error("%s is incomplete: writing took too long", printable(self._path))
        elif self._failed:
            pass  # already logged
        elif not self._message_count:
            Path(self._path).unlink(missing_ok=True)
            log.warning("nothing was recorded; removed %s", printable(self._path))
        else:
            log.info("recorded %s", self._summary())

    def _summary(self) -> str:
        updates = (
            f" and {counted(self._update_count, 'topology update')}" if self._update_count else ""
        )
        text = f"{counted(self._message_count, 'message')}{updates} to {printable(self._path)}"
        if self._unreadable_count:
            text += f"; {counted(self._unreadable_count, 'unreadable message')} omitted"
        if self._dropped:
            dropped = counted(
                self._dropped, "message or topology update", "messages or topology updates"
            )
            text += f"; {dropped} dropped: writing was too slow"
        if self._response_changes.left_out:
            text += f"; {self._response_changes.left_out} unusable nodes and edges omitted"
        return text

    # The writing thread

    def _run(self) -> None:
        try:
            is_full = self._write_all()
            self._is_stopped = True
            self._writer.close()
            self._file.close()
            if is_full:
                log.warning("recording to %s stopped: maximum size reached", printable(self._path))
        except OSError as error:
            self._failed = True
            reason = printable(error.strerror or error)
            log.error("recording to %s stopped: %s", printable(self._path), reason)
        except Exception:
            self._failed = True
            log.exception("recording stopped after an unhandled exception")
        finally:
            self._is_stopped = True
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()

    def _write_all(self) -> bool:
        """Write entries until the file is full (return True) or `stop` is called (return False)."""
        flush_at_s = time.monotonic() + FLUSH_INTERVAL_S
        unflushed = False
        while True:
            try:
                entry = self._queue.get(timeout=FLUSH_INTERVAL_S)
            except queue.Empty:
                pass
            else:
                if entry is None:
                    return False
                self._write_entry(entry)
                unflushed = True
            # Flush only after writes, because a gzip flush writes some bytes even without data.
            if unflushed and time.monotonic() >= flush_at_s:
                self._writer.flush()
                unflushed = False
                flush_at_s = time.monotonic() + FLUSH_INTERVAL_S
            if self._file.tell() >= MAX_FILE_BYTES:
                return True

    def _write_entry(self, entry: _Entry) -> None:
        match entry:
            case bytes() as data, at_ms, str() as analyzer:
                self._write(data, at_ms, analyzer)
            case ObservedResponse() as response, at_ms:
                self._dequeued_bytes += len(response)
                for update in self._response_changes.of(response):
                    self._write_update(update, at_ms)
            case Update() as update, at_ms:
                self._dequeued_bytes += _size(update)
                self._write_update(update, at_ms)

    def _write_update(self, update: Update, at_ms: int) -> None:
        if self._topology_filter is not None:
            update = self._topology_filter(update)
        self._writer.write(topology_line(update, at_ms=at_ms) + b"\n")
        self._update_count += 1

    def _write(self, data: bytes, at_ms: int, analyzer: str) -> None:
        self._dequeued_bytes += len(data)
        if self._message_filter is not None:
            filtered = self._message_filter(data, analyzer)
            if filtered is None:
                self._unreadable_count += 1
                return
            data, analyzer = filtered
        self._writer.write(message_line(data, at_ms=at_ms, analyzer=analyzer) + b"\n")
        self._message_count += 1


def _size(update: Update) -> int:
    return sum(len(bytes(raw)) for raw in update.nodes + update.edges)


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000


def _create(path: str) -> io.BufferedWriter:
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return io.BufferedWriter(io.FileIO(os.open(path, flags, 0o600), "wb"), BUFFER_BYTES)
    except FileExistsError:
        raise ConfigError(f"{path!r} already exists and is not overwritten") from None
    except OSError as error:
        raise ConfigError(f"{path!r} cannot be written: {error.strerror}") from None
