"""The formats of the values on the status page.

``data/status.js`` implements the same formats, and a test compares their output.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final

from skyfast.web.forecast import percent

EMPTY: Final = "–"

MAX_POINTS: Final = 3
"""The maximum number of capture points that a table cell lists."""

REASONS: Final = {
    "late": "repeated",
    "no_network": "ARP",
    "no_transport": "ICMP",
    "duplicate": "at another interface",
    "other_shard": "of other shards",
    "no_uuid": "without UUID",
    "no_metric": "without metrics",
    "out_of_range": "out of range",
    "text_too_long": "text too long",
    "table_full": "table full",
}
"""Plain words for the reasons of skipped reports."""

MAX_TIMESTAMP_S: Final = 2**33
"""The latest time that is shown as a date. Python and JavaScript can format all earlier times."""


def _short(number: float, unit: str, prefixes: str) -> str:
    power = 0
    while number >= 1000 and power < len(prefixes) - 1:
        number /= 1000
        power += 1
    digits = (
        0 if number >= 100 or (power == 0 and number == int(number)) else 1 if number >= 10 else 2
    )
    rounded = Decimal(number).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{rounded} {prefixes[power].strip()}{unit}".strip()


def count(value: Any) -> str:
    return f"{int(value):,}"


def _number(value: Any) -> str:
    return count(value) if value >= 1000 else _short(value, "", " ")


def _tenths(value: Any) -> str:
    if value >= 1000:
        return count(value)
    return str(Decimal(value).quantize(Decimal("0.1"), ROUND_HALF_UP))


def _bytes(value: Any) -> str:
    return _short(value, "B", " kMGTPE")


def _seconds(value: Any) -> str:
    if value >= 1:
        return _short(value, "s", " ")
    return _short(value * 1e9, "s", "nµm ") if value else "0 s"


def _nanoseconds(value: Any) -> str:
    return _seconds(value / 1e9)


def _timestamp(value: Any) -> str:
    if value > MAX_TIMESTAMP_S:
        return count(value)
    return f"{datetime.fromtimestamp(int(value), UTC):%Y-%m-%d %H:%M:%S}"


def duration(value: Any) -> str:
    seconds = max(int(value), 0)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def _expired(value: Any, _: float) -> str:
    series = count(value["expired_series_at_most"])
    return f"{series} in {duration(value['window_seconds'])}"


def _memory(value: Any, _: float) -> str:
    return f"{_bytes(value['memory_bytes_low'])} to {_bytes(value['memory_bytes_high'])}"


def _reasons(value: Any, _: float) -> str:
    return ", ".join(f"{REASONS.get(reason, reason)} {count(n)}" for reason, n in value.items())


def _error(value: Any, now_s: float) -> str:
    return f"{value['text']} ({duration(now_s - value['timestamp_seconds'])} ago)"


def _reload(value: Any, now_s: float) -> str:
    if not value["successes_total"]:
        since = duration(now_s - value["last_success_timestamp_seconds"])
        return f"loaded at the start, {since} ago; never reloaded"
    ago = duration(now_s - value["last_success_timestamp_seconds"])
    return f"last reloaded {ago} ago, changed keys: {', '.join(value['changed']) or EMPTY}"


def _point(value: Any) -> str:
    return str(value["name"] or value["node_tid"])


def _points(value: Any, _: float) -> str:
    more = f" and {len(value) - MAX_POINTS} more" if len(value) > MAX_POINTS else ""
    return ", ".join(map(_point, value[:MAX_POINTS])) + more


_FORMATS: Final[dict[str, Callable[[Any, float], str]]] = {
    "text": lambda value, _: str(value),
    "state": lambda value, _: "up" if value else "down",
    "health": lambda value, _: f"{value['state']}: {value['text']}",
    "count": lambda value, _: count(value),
    "number": lambda value, _: _number(value),
    "tenths": lambda value, _: _tenths(value),
    "bytes": lambda value, _: _bytes(value),
    "seconds": lambda value, _: _seconds(value),
    "nanoseconds": lambda value, _: _nanoseconds(value),
    "timestamp": lambda value, _: _timestamp(value),
    "duration": lambda value, _: duration(value),
    "since": lambda value, now_s: duration(now_s - value),
    "ago": lambda value, now_s: f"{duration(now_s - value)} ago",
    "error": _error,
    "last-error": lambda value, now_s: f", last error: {_error(value, now_s)}",
    "reload": _reload,
    "reload-state": lambda value, _: "loaded" if value["successful"] else "last reload failed",
    "list": lambda value, _: ", ".join(value),
    "points": _points,
    "reasons": _reasons,
    "hidden": lambda value, _: "hidden" if value else "exported",
    "percent": lambda value, _: percent(value),
    "expired": _expired,
    "memory-range": _memory,
    "bytes-rate": lambda value, _: f"{_bytes(value)}/s",
    "number-rate": lambda value, _: f"{_number(value)}/s",
}

STATES: Final = ("state", "health", "reload-state")
COLOURS: Final = {"ready": "good", "degraded": "warn", "not ready": "bad"}
TEXTS: Final = (
    *STATES,
    "text",
    "error",
    "last-error",
    "reload",
    "list",
    "points",
    "reasons",
    "hidden",
)
"""The formats that produce text. Table cells with text are aligned to the left."""


def formatted(value: Any, format_: str, now_s: float) -> str:
    """Return ``value`` as text, not escaped. ``now_s`` is the Unix time of the page."""
    if value in (None, "", {}, [], ()):
        return "" if format_ == "last-error" else EMPTY
    return _FORMATS[format_](value, now_s)
