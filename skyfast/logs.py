"""The log: one line a record on standard error, in UTC, safe to look at, and never a flood."""

import logging
import math
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from skyfast.config import Note

MAX_SHOWN: Final = 200
"""Characters of a text from the network that one log line shows."""

# What a stranger sent may reach a message: it must neither forge a line nor move a cursor.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


class _Formatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        moment = datetime.fromtimestamp(record.created, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = record.message.translate(_CONTROLS)
        return super().formatMessage(record)


def set_up(level: str) -> None:
    """Send records from ``level`` on to standard error.

    The libraries' own come from WARNING on, whatever the level: at DEBUG, websockets would
    log every frame.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    set_level(level)


def set_level(level: str) -> None:
    """Change from which level on skyfast's own records are sent."""
    logging.getLogger("skyfast").setLevel(level)


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
    """Lets one line a cause and interval through, and counts the others."""

    def __init__(self, interval_s: float) -> None:
        """Begin with every cause allowed."""
        self._interval_s = interval_s
        self._causes: dict[object, tuple[float, int]] = {}

    def admit(self, cause: object) -> str | None:
        """Return None where the line is not to be logged, and else what to add to it."""
        now_s = time.monotonic()
        next_s, suppressed = self._causes.get(cause, (-math.inf, 0))
        if now_s < next_s:
            self._causes[cause] = (next_s, suppressed + 1)
            return None
        self._causes[cause] = (now_s + self._interval_s, 0)
        return f" ({suppressed} more such events since the last line)" if suppressed else ""

    def warn(self, log: logging.Logger, cause: object, text: str) -> None:
        """Log ``text`` as a warning, if there was none of this cause for the interval."""
        suffix = self.admit(cause)
        if suffix is not None:
            log.warning("%s%s", text, suffix)
