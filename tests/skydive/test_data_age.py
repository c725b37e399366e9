"""Histograms of how old reports are when they arrive."""

from types import SimpleNamespace
from typing import Any

import pytest

from skyfast.skydive.data_age import MAX_DRAWS, DataAge
from skyfast.stats import AGE_BOUNDS_S, AnalyzerStats, HistogramStats
from tests.support.messages import flow, later, message
from tests.support.sink import Sink

NOW_MS = 1_700_000_000_000


def report(last_ms: int | None, *, updated_ms: int | None = None, finish: int = 0) -> Any:
    """Return a decoded report, with a ``LastUpdateMetric`` if ``updated_ms`` is given."""
    decoded = SimpleNamespace(Last=last_ms, FinishType=finish)
    if updated_ms is not None:
        decoded.LastUpdateMetric = SimpleNamespace(Last=updated_ms)
    return decoded


def observed(*flows: Any) -> tuple[HistogramStats, HistogramStats]:
    """Return the histograms of packet ages and delivery delays after a message with ``flows``."""
    analyzer = AnalyzerStats("a:1")
    DataAge().observe(flows, analyzer, NOW_MS)
    return analyzer.packet_age, analyzer.delivery


def counts(histogram: HistogramStats) -> dict[float, int]:
    """Return the counts of the buckets that are not empty, by upper bound."""
    bounds = (*histogram.bounds, float("inf"))
    return {bound: n for bound, n in zip(bounds, histogram.counts, strict=True) if n}


def test_ages_are_the_times_since_the_latest_packet_and_update():
    age, delivery = observed(report(NOW_MS - 40_000, updated_ms=NOW_MS - 1_500))
    assert (counts(age), age.sum) == ({45: 1}, 40)
    assert (counts(delivery), delivery.sum) == ({2.5: 1}, 1.5)


def test_upper_bounds_of_buckets_are_inclusive():
    histogram = HistogramStats((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert (histogram.counts, histogram.sum) == ([2, 2, 1], 7.0)


@pytest.mark.parametrize("updated_ms", [None, 0, NOW_MS + 1])
def test_unknown_and_future_update_times_are_not_observed(updated_ms):
    age, delivery = observed(report(NOW_MS, updated_ms=updated_ms))
    assert (counts(age), counts(delivery)) == ({AGE_BOUNDS_S[0]: 1}, {})


@pytest.mark.parametrize("last_ms", [None, -1, 0, NOW_MS + 1])
def test_missing_and_future_packet_times_are_not_observed(last_ms):
    age, delivery = observed(report(last_ms, updated_ms=NOW_MS - 1_000))
    assert (counts(age), counts(delivery)) == ({}, {1: 1})


def test_closing_reports_are_not_observed():
    assert not any(map(counts, observed(report(NOW_MS, updated_ms=NOW_MS, finish=1))))
    assert not any(map(counts, observed()))


def test_another_report_is_sampled_instead_of_a_closing_report():
    closing, other = report(NOW_MS, finish=1), report(NOW_MS)
    draws = iter([0.4] * (MAX_DRAWS - 1) + [0.6])
    analyzer = AnalyzerStats("a:1")
    DataAge(chance=lambda: next(draws)).observe([closing, other], analyzer, NOW_MS)
    assert sum(analyzer.packet_age.counts) == 1


def test_every_report_of_a_message_can_be_sampled():
    analyzer = AnalyzerStats("a:1")
    ages = DataAge()
    flows = [report(NOW_MS - 1_000 * age_s) for age_s in (1, 100)]
    for _ in range(100):
        ages.observe(flows, analyzer, NOW_MS)
    assert counts(analyzer.packet_age).keys() == {1, 120}
    assert sum(analyzer.packet_age.counts) == 100


def test_each_message_is_observed_once():
    sink = Sink()
    sink.receive(message(flow("1"), flow("2")))
    sink.receive(message(later("1", 1000)))
    sink.receive(message(later("1", 1000), flow("3")))  # flow 3 is decoded twice
    sink.receive(message(later("1", 1000), b'{"UUID":5}'))  # the flows are decoded one by one
    assert sink.table.flows == 3
    assert sum(sink.analyzer.packet_age.counts) == 4
    assert sum(sink.analyzer.delivery.counts) >= 1


def test_messages_without_flows_are_not_observed():
    sink = Sink()
    sink.receive(message())
    sink.receive(b'{"Namespace":"stats","Type":"stats","Obj":[]}')
    assert not counts(sink.analyzer.packet_age)
