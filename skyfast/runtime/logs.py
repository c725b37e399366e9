"""Logging to standard error: one record per line, escaped, and limited in rate.

Messages and exceptions may quote data from the network. Both log formats, text and JSON, escape
this data, so that it cannot forge a record or move the cursor.
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
"""Maximum number of characters of a string from the network in a log line."""

MAX_TRACEBACK_LINES: Final = 100
"""Maximum number of lines of a traceback. If there are more, lines in the middle are omitted.

The traceback of a recursion error has thousands of lines."""

MAX_TRACEBACK_LINE: Final = 1000
"""Maximum number of characters of a traceback line.

An exception may quote a whole message of an analyzer."""

LOG_INTERVAL_S: Final = 60.0
"""Default of `LogLimit`: the minimum time between two log lines with the same cause."""

MAX_CAUSES: Final = 1000
"""Maximum number of causes that a `LogLimit` remembers. Further causes replace the oldest ones.

A cause can contain an address of an analyzer, and DNS can return ever new addresses."""

INDENT: Final = "  "
"""Prefix of all traceback lines except the first, so that no line looks like a record."""

_PRIORITIES: Final = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}
"""The syslog(3) priority of each log level."""

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


class _Formatter(logging.Formatter):
    """Formats a record as one line of text, followed by the traceback if there is an exception."""

    def __init__(self, form: str = "%(asctime)s %(levelname)s %(name)s: %(message)s") -> None:
        super().__init__(form)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return _time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = record.message.translate(_CONTROLS)
        return super().formatMessage(record)

    def formatException(self, ei: "logging._SysExcInfoType") -> str:  # noqa: N802
        first, *others = _truncate(super().formatException(ei))
        return "\n".join([first, *(INDENT + line for line in others)])


class _JournalFormatter(_Formatter):
    """Formats a record for the systemd journal: see sd-daemon(3).

    Each line starts with the priority, because the journal stores each line as a separate entry.
    Lines have no time, because the journal adds the time.
    """

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        begin = _priority(record.levelno)
        return "\n".join(begin + line for line in super().format(record).split("\n"))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = "\n".join(_truncate(self.formatException(record.exc_info)))
        # Replace lone surrogates, because some JSON parsers reject them.
        return json.dumps(
            {key: text.encode(errors="backslashreplace").decode() for key, text in entry.items()}
        )


def _formatter(form: Literal["text", "json"]) -> logging.Formatter:
    if form == "json":
        return _JsonFormatter()
    return _JournalFormatter() if is_journal() else _Formatter()


class _Handler(logging.StreamHandler[TextIO]):
    """The handler that `set_up` installs. `configure` sets the formatter of this handler."""


class WarningCounter(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def is_journal() -> bool:
    """Return whether standard error is connected to the systemd journal.

    JOURNAL_STREAM contains the device and the inode of the journal's socket (systemd.exec(5)).
    Compare both with standard error: a parent process may have passed on the variable, but
    redirected standard error.
    """
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def prefix(level: int) -> str:
    """Return the prefix for a line on standard error that is not a log record.

    If standard error is connected to the journal, the prefix is the priority of ``level``.
    Otherwise, the prefix is "".
    """
    return _priority(level) if is_journal() else ""


def _priority(level: int) -> str:
    nearest = max((known for known in _PRIORITIES if known <= level), default=logging.DEBUG)
    return f"<{_PRIORITIES[nearest]}>"


def _time(record: logging.LogRecord) -> str:
    """Return the time of a record in RFC 3339 format: UTC, with milliseconds."""
    created = datetime.fromtimestamp(record.created, UTC)
    return created.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _truncate(traceback: str) -> list[str]:
    """Return a limited number of truncated traceback lines, with escaped control characters."""
    lines = traceback.split("\n")
    if len(lines) > MAX_TRACEBACK_LINES:
        half = MAX_TRACEBACK_LINES // 2
        omitted = len(lines) - 2 * half
        lines = [*lines[:half], f"... {omitted} lines omitted ...", *lines[-half:]]
    return [
        (line if len(line) <= MAX_TRACEBACK_LINE else line[:MAX_TRACEBACK_LINE] + "...").translate(
            _CONTROLS
        )
        for line in lines
    ]


def set_up(configured: Logging) -> None:
    """Set up logging to standard error.

    The configured level applies only to skyfast. Libraries always have the level WARNING: at DEBUG,
    websockets would log every frame.
    """
    handler = _Handler(sys.stderr)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
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
        return  # SystemExit is not an error: it ends the thread
    error = args.exc_value or args.exc_type()
    log = logging.getLogger("skyfast")
    log.error(
        "a thread ended after an unhandled exception",
        exc_info=(args.exc_type, error, args.exc_traceback),
    )


def configure(configured: Logging) -> None:
    """Apply the configured format to all records, and the level to skyfast's own records."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.setFormatter(_formatter(configured.format))
    logging.getLogger("skyfast").setLevel(configured.level)


def write_notes(notes: Iterable[Note]) -> None:
    """Log the warnings and notices found while the configuration was loaded."""
    log = logging.getLogger("skyfast.config")
    for note in notes:
        log.log(note.level, "%s", note.text)


def printable(text: object) -> str:
    """Return ``str(text)`` for a log line: truncated, with control characters escaped.

    Use this function for strings from the network, and for exceptions that may quote such strings.
    """
    shown = str(text)
    if len(shown) > MAX_SHOWN:
        shown = shown[:MAX_SHOWN] + "..."
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown
    )


class LogLimit:
    """Logs at most one line per cause and interval.

    The next line shows how many lines were suppressed.

    The ``cause`` of a line is any hashable value. If an argument of the ``%`` format is a function,
    the function is called only if the line is logged.
    """

    def __init__(self, interval_s: float = LOG_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._causes: dict[object, tuple[float, int]] = {}

    def warn(self, log: logging.Logger, cause: object, text: str, *args: object) -> None:
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
        """``exc_info`` returns an exception to log. It is called only if the line is logged."""
        suppressed = self._next(cause)
        if suppressed is None:
            return
        suffix = f" ({suppressed} more suppressed)" if suppressed else ""
        values = tuple(arg() if callable(arg) else arg for arg in args)
        line = text % values if values else text
        log.log(level, "%s%s", line, suffix, exc_info=exc_info() if exc_info else None)

    def reset(self) -> None:
        """Log the next line of every cause, even before its interval has passed.

        The numbers of suppressed lines are kept.
        """
        self._causes = {
            cause: (-math.inf, suppressed) for cause, (_, suppressed) in self._causes.items()
        }

    def _next(self, cause: object) -> int | None:
        """Return the number of suppressed lines of ``cause``, or None to suppress this line."""
        now_s = time.monotonic()
        next_s, suppressed = self._causes.get(cause, (-math.inf, 0))
        if now_s < next_s:
            self._causes[cause] = (next_s, suppressed + 1)
            return None
        self._causes.pop(cause, None)
        self._causes[cause] = (now_s + self._interval_s, 0)
        if len(self._causes) > MAX_CAUSES:
            del self._causes[next(iter(self._causes))]
        return suppressed
