"""Classes for the metrics of skyfast itself: a metric family, and how its samples are read.

`skyfast.web.self_metrics` lists the metrics.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from skyfast.runtime.process import ProcessUsage
from skyfast.stats import (
    AnalyzerStats,
    HistogramStats,
    NameStats,
    OwnNameStats,
    Stats,
    TableCounts,
)
from skyfast.text_format import MetricFamily, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What the samples are read from."""

    stats: Stats
    table: TableCounts
    views: Sequence[str]
    """The prefixes of all views except the first view, in the table's order."""
    process: ProcessUsage | None
    """None if the system does not report resource usage."""


Samples = Callable[[Sources], Iterable[Sample] | None]
"""Returns a family's samples, or None to leave the family out of the page."""

Histograms = Callable[[Sources], Iterable[tuple[Mapping[str, str], HistogramStats]]]
"""Returns a family's histograms, each with its labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfMetric:
    family: MetricFamily
    standard: MetricFamily
    """The family with its standard name."""
    samples: Samples

    def render(self, source: Sources, *, standard_names: bool, openmetrics: int) -> str:
        """Return the family as text, or "" if `samples` returns None."""
        samples = self.samples(source)
        if samples is None:
            return ""
        family = self.standard if standard_names else self.family
        return family.render(samples, openmetrics=openmetrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramMetric:
    family: MetricFamily
    histograms: Histograms

    def render(self, source: Sources, *, standard_names: bool, openmetrics: int) -> str:
        """Return the family as text. ``standard_names`` does not change the name of a histogram."""
        return self.family.render_histograms(self.histograms(source), openmetrics=openmetrics)


def metric(name: str, help_text: str, samples: Samples, *, standard_name: str = "") -> SelfMetric:
    """Declare a metric: a counter if its name ends with ``_total``, otherwise a gauge."""
    family = MetricFamily(
        name=name, type="counter" if name.endswith("_total") else "gauge", help=help_text
    )
    standard = replace(family, name=standard_name or name)
    return SelfMetric(family=family, standard=standard, samples=samples)


def histogram(name: str, help_text: str, histograms: Histograms) -> HistogramMetric:
    family = MetricFamily(name=name, type="histogram", help=help_text)
    return HistogramMetric(family=family, histograms=histograms)


def single(read: Callable[[Sources], float]) -> Samples:
    """One sample without labels."""
    return lambda source: [({}, read(source))]


def by_label(label: str, read: Callable[[Sources], Mapping[str, float]]) -> Samples:
    """One sample for each value of ``label``."""
    return lambda source: [({label: key}, value) for key, value in read(source).items()]


def of_names(read: Callable[[NameStats], float]) -> Samples:
    """One sample from `NameStats`. If no names from the topology are needed, there is no family."""
    return lambda source: (
        None if source.stats.topology.names is None else [({}, read(source.stats.topology.names))]
    )


def of_names_by_label(label: str, read: Callable[[NameStats], Mapping[str, float]]) -> Samples:
    return lambda source: (
        None
        if source.stats.topology.names is None
        else [({label: key}, value) for key, value in read(source.stats.topology.names).items()]
    )


def of_own_names(read: Callable[[OwnNameStats], float]) -> Samples:
    """One sample from `OwnNameStats`. If `Stats.own_names` is None, there is no family."""
    return lambda source: (
        None if source.stats.own_names is None else [({}, read(source.stats.own_names))]
    )


def by_view(read: Callable[[TableCounts], Sequence[int]]) -> Samples:
    """One sample for each view except the first view."""
    return by_label("view", lambda source: dict(zip(source.views, read(source.table), strict=True)))


def by_analyzer(read: Callable[[AnalyzerStats], float]) -> Samples:
    return by_label(
        "analyzer",
        lambda source: {
            analyzer.name: read(analyzer) for analyzer in source.stats.analyzers.values()
        },
    )


def by_analyzer_and_reason(read: Callable[[AnalyzerStats], Mapping[str, int]]) -> Samples:
    return lambda source: [
        ({"analyzer": analyzer.name, "reason": reason}, count)
        for analyzer in source.stats.analyzers.values()
        for reason, count in read(analyzer).items()
    ]


def histogram_by_analyzer(read: Callable[[AnalyzerStats], HistogramStats]) -> Histograms:
    return lambda source: [
        ({"analyzer": analyzer.name}, read(analyzer))
        for analyzer in source.stats.analyzers.values()
    ]


def of_process(read: Callable[[ProcessUsage], float]) -> Samples:
    return lambda source: None if source.process is None else [({}, read(source.process))]
