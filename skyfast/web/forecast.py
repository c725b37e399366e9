"""Forecasts: how many series and bytes of the first view would remain with another ``min_bytes``.

A forecast is exact if no further report arrives before ``min_bytes`` is changed.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Final, Protocol

from skyfast.flows.selection import NO_BOUNDS, Bounds
from skyfast.web.scan_cache import ScanCache
from skyfast.wording import counted

LISTED: Final = (10_000, 100_000, 1_000_000, 10_000_000)
"""The values of ``min_bytes`` that every forecast lists."""

PROPOSED: Final = tuple(
    digit * 10**power for power in range(3, 16) for digit in (1, 2, 5) if power < 15 or digit == 1
)
"""The values of ``min_bytes`` that can be proposed: 1 kB, 2 kB, 5 kB, 10 kB … 1 PB."""

AGE_S: Final = 5.0
"""How long a forecast is cached."""

CONFIGURED: Final = " (configured)"

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


class ForecastTable(Protocol):
    """The table's methods for forecasts. They can be called from any thread."""

    def forecast(
        self, now: float, view: int, bounds: Iterable[tuple[int, int]], /
    ) -> Sequence[tuple[int, int, int]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundForecast:
    """How much of the first view would remain with a certain ``min_bytes``."""

    min_bytes: int
    connections: int
    """Number of connections that would remain."""
    series: int
    """Number of series that would remain."""
    bytes: int
    """Total bytes of the connections that would remain."""
    bytes_share: float
    """``bytes`` as a fraction of the bytes of all connections, from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How much of the first view would remain with different values of ``min_bytes``."""

    min_packets: int
    """The configured ``min_packets``. It applies to all forecasts except ``unbounded``."""
    unbounded: BoundForecast
    """The forecast without bounds."""
    current: BoundForecast
    """The forecast with the configured bounds."""
    bounds: tuple[BoundForecast, ...]
    """The forecasts for the values `LISTED` of ``min_bytes`` and for the configured ``min_bytes``.

    The forecasts are sorted by ``min_bytes``."""
    other_series: int
    """Number of series of all views except the first view."""
    max_series: int | None
    """The desired maximum number of series of all views together, or None for no maximum."""
    proposed: BoundForecast | None
    """The forecast for the proposed ``min_bytes``.

    * If ``max_series`` is None: None
    * If the views together have at most ``max_series`` series even without a bound: ``unbounded``
    * Otherwise: the forecast for the lowest value of `PROPOSED` that reduces the series of all
      views together to at most ``max_series``, or None if no value is high enough
    """
    text: str
    """The proposal as a sentence."""

    @property
    def hidden_connections(self) -> int | None:
        """Number of connections that the configured bounds hide, or None without bounds."""
        if not (self.current.min_bytes or self.min_packets):
            return None
        return self.unbounded.connections - self.current.connections


def make_forecast(
    table: ForecastTable, bounds: Sequence[Bounds], *, max_series: int, now: float
) -> Forecast:
    """Return a forecast of a table whose first view counts bytes. Slow and thread-safe.

    ``bounds`` are the configured bounds of each view. ``max_series`` is the desired maximum number
    of series, or 0 for no maximum.
    """
    first, *others = bounds
    listed = {*LISTED, *([first.min_bytes] if first.min_bytes else ())}
    wanted = {*listed, *(PROPOSED if max_series else ())}
    pairs = [NO_BOUNDS, first, *(Bounds(value, first.min_packets) for value in sorted(wanted))]
    shown = table.forecast(now, 0, pairs)
    total_bytes = shown[0][2]
    forecasts = [
        BoundForecast(
            min_bytes=pair.min_bytes,
            connections=connections,
            series=series,
            bytes=bytes_,
            bytes_share=bytes_ / total_bytes if total_bytes else 1.0,
        )
        for pair, (connections, series, bytes_) in zip(pairs, shown, strict=True)
    ]
    unbounded, current, *rest = forecasts
    other_series = sum(
        table.forecast(now, number, [bound])[0][1] for number, bound in enumerate(others, 1)
    )
    candidates = [unbounded, *(bound for bound in rest if bound.min_bytes in PROPOSED)]
    proposed = next(
        (bound for bound in candidates if max_series and bound.series + other_series <= max_series),
        None,
    )
    return Forecast(
        min_packets=first.min_packets,
        unbounded=unbounded,
        current=current,
        bounds=tuple(bound for bound in rest if bound.min_bytes in listed),
        other_series=other_series,
        max_series=max_series or None,
        proposed=proposed,
        text=_text(proposed, max_series, other_series, lowest=rest[-1].series),
    )


def _text(
    proposed: BoundForecast | None, max_series: int, other_series: int, *, lowest: int
) -> str:
    if not max_series:
        return "If you set max_series, skyfast proposes a value for min_bytes."
    if proposed is None:
        return (
            f"No value of 'min_bytes' brings the page within max_series ({max_series:,}):"
            f" at least {_sum(lowest, other_series)} would remain."
        )
    series = _sum(proposed.series, other_series)
    if not proposed.min_bytes:
        return f"min_bytes is not needed: {series} are within max_series ({max_series:,})."
    return (
        f"With 'min_bytes: {proposed.min_bytes}', {series} remain. This is within max_series"
        f" ({max_series:,}). The remaining connections have {percent(proposed.bytes_share)} of the"
        " bytes."
    )


def _sum(series: int, other_series: int) -> str:
    """Return the total as text: ``30 series (10 for connections and 20 for views)``."""
    text = f"{series + other_series:,} series"
    if other_series:
        text += f" ({series:,} for connections and {other_series:,} for views)"
    return text


def percent(share: float) -> str:
    """Return a share from 0 to 1 as text, such as ``12.5 %``, rounded as in ``data/status.js``."""
    return f"{Decimal(100 * share).quantize(Decimal('0.1'), ROUND_HALF_UP)} %"


def size(number: int) -> str:
    """Return a number of bytes as text, in the largest unit that needs no decimals: ``10 kB``."""
    power = 0
    while number >= 1000 and number % 1000 == 0 and power < len(_UNITS) - 1:
        number //= 1000
        power += 1
    return f"{number} {_UNITS[power]}"


def as_text(forecast: Forecast) -> list[str]:
    unbounded, current = forecast.unbounded, forecast.current
    found = f"{_connections(unbounded)} would have {unbounded.series} series"
    lines = [f"Without min_bytes and min_packets, {found}."]
    if forecast.other_series:
        lines.append(f"In addition, the views have {forecast.other_series} series.")
    if forecast.min_packets and not current.min_bytes:
        lines.append(_line(f"min_packets {forecast.min_packets}{CONFIGURED}", current))
    lines += [_line(f"min_bytes {listed(bound, forecast)}", bound) for bound in forecast.bounds]
    if forecast.min_packets:
        lines.append(
            "The numbers for each min_bytes include smaller connections that reach min_packets"
            f" ({forecast.min_packets} packets)."
        )
    return [*lines, forecast.text]


def listed(bound: BoundForecast, forecast: Forecast) -> str:
    """Return the ``min_bytes`` of a forecast as text: ``10 kB`` or ``10 kB (configured)``."""
    is_configured = bound.min_bytes == forecast.current.min_bytes
    return f"{size(bound.min_bytes)}{CONFIGURED if is_configured else ''}"


def _line(condition: str, bound: BoundForecast) -> str:
    return (
        f"  With {condition}: {_connections(bound)}, {bound.series} series,"
        f" {percent(bound.bytes_share)} of the bytes."
    )


def _connections(bound: BoundForecast) -> str:
    return counted(bound.connections, "connection")


class Forecaster:
    def __init__(
        self,
        table: ForecastTable,
        bounds: Sequence[Bounds],
        *,
        max_series: int,
        now: Callable[[], float],
    ) -> None:
        """The first view must count bytes.

        ``now`` returns the time of the table's clock in seconds.
        """
        self._table = table
        self._bounds = bounds
        self._max_series = max_series
        self._now = now
        self._results: ScanCache[None, Forecast] = ScanCache(
            keep_s=AGE_S, max_results=1, queue=True
        )

    def make(self) -> Forecast:
        """Return a new forecast. Slow and thread-safe."""
        return make_forecast(
            self._table, self._bounds, max_series=self._max_series, now=self._now()
        )

    async def get(self) -> Forecast:
        """Return a forecast, from the cache or from a new scan in a thread."""
        return await self._results.get(None, lambda: asyncio.to_thread(self.make))
