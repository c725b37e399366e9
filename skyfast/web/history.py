"""Stores the history that the status page shows.

`History` stores some values of the last ten minutes. `Churn` counts the connections that were
created or expired in the last three hours.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from skyfast.stats import AnalyzerStats, HistogramStats, Stats

INTERVAL_S: Final = 5.0
"""The time between two samples."""

SAMPLES: Final = 120
"""The number of intervals in ten minutes, which is the length of the history."""

CHURN_S: Final = 3 * 3600.0
"""The period over which created and expired connections are counted.

Prometheus keeps the series of an expired connection in memory for at most this long."""

CHURN_INTERVAL_S: Final = 60.0
"""The time between two counts of created and expired connections."""

MAX_GAP_S: Final = 2 * INTERVAL_S
"""If two samples are further apart, the process was paused, and the chart has a gap."""

RATE_INTERVALS: Final = 6
"""The number of intervals (half a minute) over which the analyzers' rates are averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Values of the last ten minutes. Each list has an entry for each interval, oldest first.

    The last entries are the current values that the status page shows. Otherwise, a current value
    could exceed the maximum of its chart.
    """

    interval_seconds: float
    age_seconds: list[float]
    """The time since the end of each interval."""
    connections: list[int]
    """Number of connections at the end of each interval."""
    flows_per_second: list[float]
    scrape_duration_seconds: list[float | None]
    """The duration of the last scrape in each interval, or None if there was no scrape."""
    scrape_bytes: list[int | None]
    """The size of the last scrape in each interval, or None if there was no scrape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    at_s: float
    connections: int
    flows: Mapping[str, int]
    """Number of flow reports received, by analyzer.

    A total over all analyzers would decrease when an analyzer is removed."""
    ages: Mapping[str, tuple[int, float, int, float]]
    """For each analyzer, four numbers about observed reports.

    The first two are the number of observed lags and their sum in seconds. The last two are the
    number of observed data ages and their sum in seconds."""
    scrapes: int
    scrape_duration_s: float
    scrape_bytes: int


class History:
    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES + 1)

    def add(self, stats: Stats, connections: int, *, now_s: float) -> None:
        """Take a sample at ``now_s``, which must be monotonic."""
        self._samples.append(_sample(stats, connections, now_s))

    def series(self, stats: Stats, connections: int, *, now_s: float) -> Series:
        """Return the history of the ten minutes before ``now_s``, ending with the current state.

        The last rate is the total of `rates`, because other parts of the page show the same total.
        The last interval is incomplete, so its rate would differ from this total.
        """
        every = [*self._samples, _sample(stats, connections, now_s)]
        rates = [sum(_rates(before, after).values(), 0.0) for before, after in pairwise(every)]
        rates[-1:] = [sum(self.rates().values(), 0.0)]
        pairs = [
            (before, after, rate)
            for (before, after), rate in zip(pairwise(every), rates, strict=True)
            if now_s - after.at_s <= INTERVAL_S * SAMPLES
        ]
        samples = [after for _, after, _ in pairs]
        scraped = [after.scrapes > before.scrapes for before, after, _ in pairs]
        return Series(
            interval_seconds=INTERVAL_S,
            age_seconds=[round(now_s - sample.at_s, 1) for sample in samples],
            connections=[sample.connections for sample in samples],
            flows_per_second=[round(rate, 1) for *_, rate in pairs],
            scrape_duration_seconds=[
                sample.scrape_duration_s if was else None
                for sample, was in zip(samples, scraped, strict=True)
            ],
            scrape_bytes=[
                sample.scrape_bytes if was else None
                for sample, was in zip(samples, scraped, strict=True)
            ],
        )

    def lags(self) -> Mapping[str, tuple[float | None, float | None]]:
        """Return each analyzer's mean lag and mean age of data in seconds, over ten minutes.

        A mean is None if no report was observed.
        """
        if len(self._samples) < 2:
            return {}
        before, after = self._samples[0].ages, self._samples[-1].ages
        lags = {}
        for name, ages in after.items():
            lag_count, lag_s, age_count, age_s = (
                new - old for new, old in zip(ages, before.get(name, (0, 0, 0, 0)), strict=True)
            )
            lags[name] = _mean(lag_s, lag_count), _mean(age_s, age_count)
        return lags

    def rates(self) -> Mapping[str, float]:
        """Return flow reports per second by analyzer, averaged over `RATE_INTERVALS` intervals."""
        if len(self._samples) < 2:
            return {}
        return _rates(
            self._samples[max(-len(self._samples), -1 - RATE_INTERVALS)], self._samples[-1]
        )


def _sample(stats: Stats, connections: int, now_s: float) -> _Sample:
    return _Sample(
        at_s=now_s,
        connections=connections,
        flows={name: analyzer.flows for name, analyzer in stats.analyzers.items()},
        ages={name: _ages(analyzer) for name, analyzer in stats.analyzers.items()},
        scrapes=stats.scrape.scrapes,
        scrape_duration_s=stats.scrape.last_duration_s,
        scrape_bytes=stats.scrape.last_bytes,
    )


def _ages(analyzer: AnalyzerStats) -> tuple[int, float, int, float]:
    return (*_observed(analyzer.delivery), *_observed(analyzer.packet_age))


def _observed(histogram: HistogramStats) -> tuple[int, float]:
    return sum(histogram.counts), histogram.sum


def _mean(sum_s: float, count: float) -> float | None:
    # If a removed analyzer returns, its counters start again at 0, so differences can be negative.
    return round(sum_s / count, 3) if count > 0 and sum_s >= 0 else None


def _rates(before: _Sample, after: _Sample) -> dict[str, float]:
    """Return flow reports per second, for each analyzer that is in both samples."""
    seconds = max(after.at_s - before.at_s, 1e-3)
    return {
        name: max(flows - before.flows[name], 0) / seconds
        for name, flows in after.flows.items()
        if name in before.flows
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnCounts:
    """How many connections were created, and how many expired, in the last ``seconds``."""

    created: int
    expired: int
    seconds: float


class Churn:
    def __init__(self) -> None:
        self._counts: deque[tuple[float, int, int]] = deque(
            maxlen=round(CHURN_S / CHURN_INTERVAL_S)
        )

    def add(self, created_total: int, expired_total: int, *, now_s: float) -> None:
        """Store the totals, at most once per `CHURN_INTERVAL_S`.

        ``now_s`` must be monotonic.
        """
        if not self._counts or now_s - self._counts[-1][0] >= CHURN_INTERVAL_S:
            self._counts.append((now_s, created_total, expired_total))

    def counts(self, created_total: int, expired_total: int, *, now_s: float) -> ChurnCounts:
        """Return the growth since the oldest stored totals that are at most `CHURN_S` old."""
        for since_s, created, expired in self._counts:
            if now_s - since_s <= CHURN_S:
                return ChurnCounts(
                    created=created_total - created,
                    expired=expired_total - expired,
                    seconds=now_s - since_s,
                )
        return ChurnCounts(created=0, expired=0, seconds=0.0)
