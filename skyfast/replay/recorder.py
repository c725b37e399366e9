"""Records the messages of analyzers to a file while they are exported.

The event loop copies each message into a queue and does nothing else for it; a thread writes. What
finds no room in the queue is dropped, counted and said. The file has a largest size, and when it
is reached or the disk fails, recording ends and exporting goes on. Its form is that of
:mod:`skyfast.replay.recording`.
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
from skyfast.replay.recording import line
from skyfast.runtime.logs import LogLimit, printable

MAX_FILE_BYTES: Final = 1 << 30
"""Size of the file at which recording ends. What is buffered by then comes behind it."""

MAX_QUEUED_BYTES: Final = 64 << 20
"""Messages that wait to be written. One that is larger is let in where no other waits."""

BUFFER_BYTES: Final = 1 << 18
"""What is written at once."""

FLUSH_INTERVAL_S: Final = 1.0
"""So much of the end is lost when the process is killed."""

STOP_TIMEOUT_S: Final = 2.0
"""How long stopping waits for what is not written yet."""

log = logging.getLogger("skyfast.recorder")

MessageFilter = Callable[[bytes, str], tuple[bytes, str] | None]
"""Makes of a message and its analyzer's name what is kept of them; None where nothing is."""


class Recorder:
    """The file, its queue and its thread. `message` is for the event loop alone."""

    def __init__(self, path: str, *, message_filter: MessageFilter | None = None) -> None:
        """Create the file, for its owner's eyes only, as gzip where its name ends in ``.gz``.

        Raises:
            ConfigError: It exists already, or cannot be created.

        """
        self._path = path
        self._message_filter = message_filter
        self._file = _create(path)
        self._out = (
            igzip.IGzipFile("", "wb", fileobj=self._file)  # type: ignore[no-untyped-call]
            if path.endswith(".gz")
            else self._file
        )
        self._queue: queue.SimpleQueue[tuple[bytes, int, str] | None] = queue.SimpleQueue()
        self._limit = LogLimit()
        # Each is changed by one thread: these two by the event loop's ...
        self._queued_bytes = 0
        self._dropped = 0
        # ... and these by the one that writes.
        self._taken_bytes = 0
        self._kept = 0
        self._left_out = 0
        self._over = False
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="skyfast-record", daemon=True)
        self._thread.start()
        log.info("recording to %s", printable(path))

    def message(self, data: bytes | bytearray | memoryview, analyzer: str) -> None:
        """Keep a copy of a message, or count it as dropped where too much is waiting."""
        if self._over:
            return
        waiting = self._queued_bytes - self._taken_bytes
        if waiting and waiting + len(data) > MAX_QUEUED_BYTES:
            self._dropped += 1
            text = f"message not recorded: writing to {printable(self._path)} is too slow"
            self._limit.warn(log, "dropped", text)
            return
        self._queued_bytes += len(data)
        self._queue.put((bytes(data), time.time_ns() // 1_000_000, analyzer))

    def stop(self) -> None:
        """Write what is waiting, close the file and log what is in it. This blocks.

        A file without a message is removed.
        """
        self._queue.put(None)
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():  # pragma: no cover - the test kills the process
            log.error("%s is incomplete: writing took too long", printable(self._path))
        elif self._failed:
            pass  # which was logged
        elif not self._kept:
            Path(self._path).unlink(missing_ok=True)
            log.warning("nothing was recorded; removed %s", printable(self._path))
        else:
            log.info("recorded %s", self._summary())

    def _summary(self) -> str:
        text = f"{self._kept} messages to {printable(self._path)}"
        if self._left_out:
            text += f"; {self._left_out} unreadable messages omitted"
        if self._dropped:
            text += f"; {self._dropped} dropped because writing was too slow"
        return text

    # The thread's

    def _run(self) -> None:
        try:
            is_full = self._write_all()
            self._over = True
            self._out.close()
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
            self._over = True
            with contextlib.suppress(OSError):
                self._file.close()
            # What still waits is not wanted any more.
            with contextlib.suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()

    def _write_all(self) -> bool:
        """Write what comes until the end, or until the file is full, and return whether it is."""
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
                self._write(*entry)
                unflushed = True
            # Of gzip, each flush is some bytes more, also where there is nothing to write.
            if unflushed and time.monotonic() >= flush_at_s:
                self._out.flush()
                unflushed = False
                flush_at_s = time.monotonic() + FLUSH_INTERVAL_S
            if self._file.tell() >= MAX_FILE_BYTES:
                return True

    def _write(self, data: bytes, at_ms: int, analyzer: str) -> None:
        self._taken_bytes += len(data)
        if self._message_filter is not None:
            filtered = self._message_filter(data, analyzer)
            if filtered is None:
                self._left_out += 1
                return
            data, analyzer = filtered
        self._out.write(line(data, at_ms=at_ms, analyzer=analyzer) + b"\n")
        self._kept += 1


def _create(path: str) -> io.BufferedWriter:
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return io.BufferedWriter(io.FileIO(os.open(path, flags, 0o600), "wb"), BUFFER_BYTES)
    except FileExistsError:
        raise ConfigError(f"{path!r} already exists and is not overwritten") from None
    except OSError as error:
        raise ConfigError(f"{path!r} cannot be written: {error.strerror}") from None
