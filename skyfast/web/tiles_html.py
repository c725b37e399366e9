"""The tiles of the status page: current values, and charts of the last ten minutes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from skyfast.web.elements_html import Elements
from skyfast.web.formats import formatted
from skyfast.web.history import INTERVAL_S, MAX_GAP_S, SAMPLES, Series

# The size of a sparkline's coordinate system.
_WIDTH: Final = 600
_HEIGHT: Final = 40


@dataclass(frozen=True, slots=True)
class Tile:
    title: str
    key: str
    """The path of the current value in the report."""
    format: str
    """The format of the value: see `skyfast.web.formats`."""
    series: str
    """The field of `Series` with the values of the last ten minutes."""
    is_bars: bool = False


def as_html(tile: Tile, elements: Elements, history: Series) -> str:
    values: list[float | None] = getattr(history, tile.series)
    highest = max((value for value in values if value is not None), default=None)
    area, line = (_bars if tile.is_bars else _line)(history.age_seconds, values)
    return (
        f"<li><h2>{tile.title}</h2>{elements.value(tile.key, tile.format, tag='b')}"
        f"{elements.hidden(tile.key)}\n"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{tile.title}, the last ten minutes" data-series="{tile.series}">'
        f'<path class="gap" d="{_gaps(history.age_seconds)}"/>'
        f'<path class="area" d="{area}"/>'
        f'<path class="line{" bars" if tile.is_bars else ""}" d="{line}"/></svg>\n'
        f'<p class="foot"><span>10 minutes</span><span>highest <span'
        f' data-highest="{tile.series}" data-format="{tile.format}">'
        f"{formatted(highest, tile.format, 0)}</span></span></p></li>\n"
    )


def _x(age_s: float) -> str:
    return f"{max(_WIDTH - age_s * _WIDTH / (INTERVAL_S * SAMPLES), 0):.1f}"


def _gaps(ages_s: Sequence[float]) -> str:
    """Return an SVG path of the areas that have no samples because the process was paused."""
    return "".join(
        f"M{_x(before_s)} 0H{_x(after_s)}V{_HEIGHT}H{_x(before_s)}Z"
        for before_s, after_s in pairwise(ages_s)
        if before_s - after_s > MAX_GAP_S
    )


def _segments(
    ages_s: Sequence[float], values: Sequence[float | None]
) -> list[list[tuple[str, str]]]:
    """Return the coordinates of the values in segments. Gaps over `MAX_GAP_S` separate segments.

    The x axis covers the last ten minutes, and the y axis goes from 0 to the highest value.
    """
    highest = max((value for value in values if value is not None), default=0) or 1
    segments: list[list[tuple[str, str]]] = []
    before_s = math.inf
    for age_s, value in zip(ages_s, values, strict=True):
        if value is None:
            continue
        if before_s - age_s > MAX_GAP_S:
            segments.append([])
        before_s = age_s
        segments[-1].append((_x(age_s), f"{_HEIGHT - value * _HEIGHT / highest:.1f}"))
    return segments


def _line(ages_s: Sequence[float], values: Sequence[float | None]) -> tuple[str, str]:
    area, line = "", ""
    for segment in _segments(ages_s, values):
        path = "L".join(f"{x} {y}" for x, y in segment)
        area += f"M{segment[0][0]} {_HEIGHT}L{path}L{segment[-1][0]} {_HEIGHT}Z"
        line += f"M{path}"
    return area, line


def _bars(ages_s: Sequence[float], values: Sequence[float | None]) -> tuple[str, str]:
    points = [point for segment in _segments(ages_s, values) for point in segment]
    return "", "".join(f"M{x} {_HEIGHT}V{y}" for x, y in points)
