"""How the log looks: one line a record on standard error, with the time in UTC."""

import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

from skyfast.config import Note

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
    logging.getLogger("skyfast").setLevel(level)


def write_notes(notes: Iterable[Note]) -> None:
    """Log what was noticed while the configuration was read."""
    log = logging.getLogger("skyfast.config")
    for note in notes:
        log.log(note.level, "%s", note.text)
