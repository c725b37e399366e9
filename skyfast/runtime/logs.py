"""Logging to standard error: one record per line, escaped, and limited in rate.

`set_up` is called once, `configure` with every configuration. What a stranger sent may reach a
message or an exception: neither form lets it forge a record or move a cursor.
"""

import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal, TextIO

from skyfast.config.model import Logging, Note

MAX_SHOWN: Final = 200
"""Characters of a text from the network that one log line shows."""

MAX_TRACEBACK_LINES: Final = 100
"""Of an exception; what is between the first and the last is left out. Recursion has thousands."""

MAX_TRACEBACK_LINE: Final = 1000
"""Characters of a line of these: an exception may quote a whole message."""

LOG_INTERVAL_S: Final = 60.0
"""Time between two log lines of one cause, for a `LogLimit` that has no other."""

MAX_CAUSES: Final = 1000
"""Causes that a `LogLimit` remembers; the one with the oldest line is forgotten beyond that.

Analyzers are causes, and where names have other addresses every day, these never end."""

INDENT: Final = "  "
"""Begins each line of a traceback but its first, so that none looks like a record."""

_PRIORITIES: Final = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}
"""The priorities of syslog(3), by level."""

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


class _Formatter(logging.Formatter):
    """Writes a record as a line for people; an exception follows it, on lines of its own."""

    def __init__(self, form: str = "%(asctime)s %(levelname)s %(name)s: %(message)s") -> None:
        super().__init__(form)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return _time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = record.message.translate(_CONTROLS)
        return super().formatMessage(record)

    def formatException(self, ei: "logging._SysExcInfoType") -> str:  # noqa: N802
        first, *others = _bounded(super().formatException(ei))
        return "\n".join([first, *(INDENT + line for line in others)])


class _JournalFormatter(_Formatter):
    """Writes a record for the journal: its priority begins each line, and no time is in it.

    See sd-daemon(3). The journal has its own time, and one entry a line.
    """

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        begin = _priority(record.levelno)
        return "\n".join(begin + line for line in super().format(record).split("\n"))


class _JsonFormatter(logging.Formatter):
    """Writes a record as a JSON object on one line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = "\n".join(_bounded(self.formatException(record.exc_info)))
        # Half of a surrogate pair would be JSON that not every reader takes.
        return json.dumps(
            {key: text.encode(errors="backslashreplace").decode() for key, text in entry.items()}
        )


def _formatter(form: Literal["text", "json"]) -> logging.Formatter:
    if form == "json":
        return _JsonFormatter()
    return _JournalFormatter() if is_journal() else _Formatter()


class _Handler(logging.StreamHandler[TextIO]):
    """The one that `set_up` makes and `configure` finds."""


class WarningCounter(logging.Handler):
    """Counts the records from WARNING on; ``count`` has their number."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record."""
        self.count += 1


def is_journal() -> bool:
    """Return whether standard error goes to the journal, by JOURNAL_STREAM of systemd.exec(5).

    A program that this one was started by may have passed the variable on, and not the stream.
    """
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def prefix(level: int) -> str:
    """Return what begins a line on standard error that is not a record: a priority, or nothing."""
    return _priority(level) if is_journal() else ""


def _priority(level: int) -> str:
    known = max((each for each in _PRIORITIES if each <= level), default=logging.DEBUG)
    return f"<{_PRIORITIES[known]}>"


def _time(record: logging.LogRecord) -> str:
    """Return a record's time by RFC 3339, in UTC and milliseconds."""
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bounded(traceback: str) -> list[str]:
    """Return a traceback's lines, not too many nor too long, without control characters."""
    lines = traceback.split("\n")
    if len(lines) > MAX_TRACEBACK_LINES:
        half = MAX_TRACEBACK_LINES // 2
        left_out = len(lines) - 2 * half
        lines = [*lines[:half], f"... {left_out} lines omitted ...", *lines[-half:]]
    return [
        (line if len(line) <= MAX_TRACEBACK_LINE else line[:MAX_TRACEBACK_LINE] + "...").translate(
            _CONTROLS
        )
        for line in lines
    ]


def set_up(configured: Logging) -> None:
    """Send records to standard error.

    The libraries' own come from WARNING on, whatever the level: at DEBUG, websockets would
    log every frame.
    """
    handler = _Handler(sys.stderr)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # What Python itself would write there is a record too.
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    configure(configured)


def _uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    log = logging.getLogger("skyfast")
    log.critical("exiting after an unhandled exception", exc_info=(kind, error, traceback))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:
        return  # which ends the thread, and is no fault
    error = args.exc_value or args.exc_type()
    log = logging.getLogger("skyfast")
    log.error(
        "a thread ended after an unhandled exception",
        exc_info=(args.exc_type, error, args.exc_traceback),
    )


def configure(configured: Logging) -> None:
    """Write records in another format, and skyfast's own from another level on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.setFormatter(_formatter(configured.format))
    logging.getLogger("skyfast").setLevel(configured.level)


def write_notes(notes: Iterable[Note]) -> None:
    """Log what was noticed while the configuration was read."""
    log = logging.getLogger("skyfast.config")
    for note in notes:
        log.log(note.level, "%s", note.text)


def printable(text: object) -> str:
    """Return ``str(text)`` for a log line: bounded, without control characters or line breaks.

    Texts from the network, and exceptions that may quote them, are logged through this.
    """
    shown = str(text)
    if len(shown) > MAX_SHOWN:
        shown = shown[:MAX_SHOWN] + "..."
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown
    )


class LogLimit:
    """Logs one line per cause and interval, with how many were left out since the last one.

    Each method takes the logger, what the line's cause is (any hashable value), and its text with
    the arguments of a ``%`` format. An argument that is a function is called for what to show, and
    only if the line is logged.
    """

    def __init__(self, interval_s: float = LOG_INTERVAL_S) -> None:
        """Begin with every cause allowed."""
        self._interval_s = interval_s
        self._causes: dict[object, tuple[float, int]] = {}

    def warn(self, log: logging.Logger, cause: object, text: str, *args: object) -> None:
        """Log a warning, if there was no line of this cause for the interval."""
        self.log(log, logging.WARNING, cause, text, *args)

    def log(
        self,
        log: logging.Logger,
        level: int,
        cause: object,
        text: str,
        *args: object,
        exc_info: "Callable[[], logging._SysExcInfoType] | None" = None,
    ) -> None:
        """Log at ``level``; ``exc_info`` is called for an exception to be logged as well."""
        left_out = self._admit(cause)
        if left_out is None:
            return
        suffix = f" ({left_out} more suppressed)" if left_out else ""
        values = tuple(arg() if callable(arg) else arg for arg in args)
        line = text % values if values else text
        log.log(level, "%s%s", line, suffix, exc_info=exc_info() if exc_info else None)

    def reset(self) -> None:
        """Allow the next line of every cause; what was counted so far is still added to it."""
        self._causes = {
            cause: (-math.inf, left_out) for cause, (_, left_out) in self._causes.items()
        }

    def _admit(self, cause: object) -> int | None:
        """Return None where the line is left out, and else how many were before it."""
        now_s = time.monotonic()
        next_s, left_out = self._causes.get(cause, (-math.inf, 0))
        if now_s < next_s:
            self._causes[cause] = (next_s, left_out + 1)
            return None
        self._causes.pop(cause, None)
        self._causes[cause] = (now_s + self._interval_s, 0)
        if len(self._causes) > MAX_CAUSES:
            del self._causes[next(iter(self._causes))]
        return left_out
