"""Lost reports are detected in a sample of the messages, without false positives.

A report has a *gap* if its totals have increased by more than its ``LastUpdateMetric`` shows.
"""

import json
from typing import Any

import pytest

from skyfast.skydive.report_checks import (
    FIRST_PROBABILITY,
    MAX_SAMPLES_AT_ONCE,
    MAX_UNSETTLED,
    RATE_PERIOD_S,
    SAMPLES_PER_S,
    SETTLE_S,
    UPDATE_PERIOD_S,
    UPDATE_PERIODS,
)
from tests.model import make_flow
from tests.support.sink import Sink

TICK_MS = 60_000
START_MS = 1_000_000


@pytest.fixture
def sink() -> Sink:
    """Return an ingest that checks every message, unless the rate limit is exceeded."""
    sink = Sink()
    sink.chance = 0.0
    sink.table.raise_horizon(0.0)
    sink.now = 1_000.0
    return sink


def send(sink: Sink, *flows: dict[str, Any]) -> None:
    message = {"Namespace": "flow", "Type": "store", "Obj": list(flows)}
    sink.now += 1  # one message per second is far below the limit of checked messages
    sink.receive(json.dumps(message).encode())


def report(update: int, total: int, delta: int, uuid: str = "a1", **fields: Any) -> dict[str, Any]:
    """Return report number ``update`` of a flow, counted from 0."""
    end_ms = START_MS + (update + 1) * TICK_MS
    started = {"update_start": end_ms - TICK_MS if update else START_MS, "update_last": end_ms}
    fields = {"start": START_MS, "last": end_ms - 500} | started | fields
    return make_flow(uuid, (total, 0, 1, 0), last_update=(delta, 0, 1 if delta else 0, 0), **fields)


def closing(update: int, total: int, delta: int, **fields: Any) -> dict[str, Any]:
    """Return a closing report that repeats the values of report number ``update``."""
    last_ms = START_MS + update * TICK_MS + 500
    return report(update, total, delta, finish=1, last=last_ms, **fields)


def gaps(sink: Sink) -> tuple[int, int, int]:
    """Advance the clock until late reports can no longer close a gap, and return the counts.

    The counts are: checked reports, lost reports, and gaps that skyfast itself caused.
    """
    sink.now += SETTLE_S
    sink.checker.tick()
    counts = sink.analyzer.report_gaps
    return sink.analyzer.reports_checked, counts["lost"], counts["ours"]


def test_a_complete_sequence_of_reports_has_no_gap(sink: Sink) -> None:
    for update in range(5):
        send(sink, report(update, 10 * (update + 1), 10))
    send(sink, closing(4, 50, 10))
    assert gaps(sink) == (5, 0, 0)


def test_idle_flow_has_no_gap(sink: Sink) -> None:
    send(sink, report(0, 10, 10))
    send(sink, report(7, 15, 5))
    assert gaps(sink) == (2, 0, 0)


def test_report_after_a_lost_report_has_a_gap(sink: Sink) -> None:
    send(sink, report(0, 10, 10))
    send(sink, report(2, 30, 10))
    assert gaps(sink) == (2, 1, 0)
    send(sink, report(3, 40, 10))
    assert gaps(sink) == (3, 1, 0)


def test_next_report_of_a_dormant_flow_is_checked(sink: Sink) -> None:
    send(sink, report(0, 10, 10))
    sink.now += 100
    sink.table.expire(sink.now, 1000)
    assert sink.table.dormant_flows == 1
    send(sink, report(2, 30, 10))
    assert gaps(sink) == (2, 1, 0)


def test_closing_report_with_higher_totals_has_a_gap(sink: Sink) -> None:
    send(sink, report(0, 10, 10))
    send(sink, closing(1, 20, 10))
    assert gaps(sink) == (2, 1, 0)


def test_unknown_flow_with_earlier_traffic_has_a_gap(sink: Sink) -> None:
    sink.now = 10_000.0
    send(sink, report(1, 20, 10))
    assert gaps(sink) == (1, 1, 0)
    # The closing report is the only report of this flow.
    send(sink, closing(0, 10, 10, uuid="b2"))
    assert gaps(sink) == (2, 2, 0)
    # A flow that may have been counted before is not checked.
    sink.table.raise_horizon(sink.now)
    send(sink, report(1, 20, 10, uuid="c3"))
    assert gaps(sink) == (2, 2, 0)


def test_restarted_flows_and_late_reports_are_not_checked(sink: Sink) -> None:
    send(sink, report(0, 10, 10))
    reset = report(1, 5, 5)
    reset["Metric"]["ABPackets"] = 9
    send(sink, reset)
    send(sink, report(0, 10, 10, last=5))
    assert gaps(sink) == (1, 0, 0)


def test_late_report_closes_the_gap_that_its_absence_caused(sink: Sink) -> None:
    send(sink, report(0, 10, 10))
    send(sink, report(2, 30, 10))
    sink.checker.tick()
    sink.chance = 1.0  # the sample does not contain the message with the late report
    send(sink, report(1, 20, 10))
    assert gaps(sink) == (2, 0, 0)


def test_repeated_closing_report_closes_no_gap(sink: Sink) -> None:
    send(sink, report(0, 10, 10))
    send(sink, closing(1, 20, 10))
    send(sink, closing(1, 20, 10))
    assert gaps(sink) == (2, 1, 0)


def test_two_reports_of_a_flow_in_one_message_have_no_gap(sink: Sink) -> None:
    send(sink, report(0, 10, 10))
    send(sink, report(1, 20, 10), report(2, 30, 10))
    assert gaps(sink) == (2, 0, 0)


@pytest.mark.parametrize("uuid", ["b2", "a1"])
def test_gap_after_skipped_report_is_not_counted_as_lost(sink: Sink, uuid: str) -> None:
    send(sink, report(0, 10, 10))
    bad_report = report(1, 20, 10, uuid=uuid)
    bad_report["Metric"]["ABBytes"] = -1
    send(sink, bad_report)
    send(sink, report(2, 30, 10))
    assert gaps(sink) == (2, 0, 1)


def test_gap_of_dormant_flow_after_skipped_report_is_not_counted_as_lost(sink: Sink) -> None:
    send(sink, report(0, 10, 10))
    sink.now += 40
    bad_report = report(1, 20, 10)
    bad_report["Metric"]["ABBytes"] = -1
    send(sink, bad_report)
    sink.now += 60
    sink.table.expire(sink.now, 1000)
    assert sink.table.dormant_flows == 1
    send(sink, report(2, 30, 10))
    assert gaps(sink) == (2, 0, 1)


def test_gap_after_dropped_message_is_not_counted_as_lost(sink: Sink) -> None:
    send(sink, report(0, 10, 10))
    sink.receive(b"{")
    sink.stats.analyzers[sink.analyzer.name] = sink.analyzer
    send(sink, report(2, 30, 10))
    assert gaps(sink) == (2, 0, 1)


def test_skipped_flows_without_addresses_do_not_explain_a_gap(sink: Sink) -> None:
    send(sink, report(0, 10, 10))
    arp = report(1, 1, 1, uuid="b2")
    del arp["Network"], arp["Transport"]
    send(sink, arp)
    send(sink, report(2, 30, 10))
    assert gaps(sink) == (2, 1, 0)


def test_flow_update_is_the_second_longest_interval_of_the_last_hour(sink: Sink) -> None:
    assert sink.stats.flow_update_s == 60.0
    send(sink, report(0, 10, 10))
    # A first or a closing report does not show the value of flow.update.
    send(sink, closing(0, 10, 10) | {"UUID": "b2"})
    idle = closing(9, 10, 0, uuid="c3")
    idle["LastUpdateMetric"]["Start"] -= 1_000
    send(sink, idle)
    assert not sink.stats.flow_update_known
    short = report(1, 20, 10)
    short["LastUpdateMetric"]["Start"] = short["LastUpdateMetric"]["Last"] - 10_000
    send(sink, short)
    assert sink.stats.flow_update_s == sink.table.flow_update_s == 10.0
    for update in (2, 3):
        sink.now += UPDATE_PERIOD_S
        send(sink, report(update, 10 * (update + 1), 10))
    assert sink.stats.flow_update_s == sink.table.flow_update_s == 60.0
    # A clock adjustment makes one update interval look longer.
    sink.now += UPDATE_PERIOD_S
    late = report(4, 50, 10)
    late["LastUpdateMetric"]["Start"] -= 1_800_000
    send(sink, late)
    assert sink.stats.flow_update_s == 60.0
    for update in range(5, 5 + UPDATE_PERIODS + 1):
        sink.now += UPDATE_PERIOD_S
        short = report(update, 10 * update, 10)
        short["LastUpdateMetric"]["Start"] = short["LastUpdateMetric"]["Last"] - 10_000
        send(sink, short)
    assert sink.stats.flow_update_s == sink.table.flow_update_s == 10.0


@pytest.mark.parametrize("start", [0, START_MS + 61_000, START_MS + 200_000])
def test_impossible_times_do_not_set_flow_update(sink: Sink, start: int) -> None:
    send(sink, report(0, 10, 10))
    bad_report = report(1, 20, 10)
    bad_report["LastUpdateMetric"] |= {"Start": start, "Last": START_MS + 61_000}
    if start == 0:
        bad_report["LastUpdateMetric"]["Last"] = 3_600_001
    send(sink, bad_report)
    assert not sink.stats.flow_update_known


def test_rate_of_checked_messages_is_limited() -> None:
    sink = Sink()
    sink.table.raise_horizon(0.0)
    draws = iter(range(10**9))
    sink.checker._chance = lambda: next(draws) % 1_000 / 1_000
    chosen = []
    for number in range(60_000):
        sink.now = 100.0 + number / 1_000
        if number % 1_000 == 0:
            sink.checker.tick()
        if sink.checker.should_check():
            chosen.append(sink.now)
    # After the first period, the checker knows the rate of 1,000 messages per second.
    later = [now for now in chosen if now >= 100.0 + RATE_PERIOD_S]
    assert len(later) == pytest.approx(50 * SAMPLES_PER_S, rel=0.1)
    # The limit also applies to the first second.
    first = [now for now in chosen if now < 101.0]
    assert len(first) <= MAX_SAMPLES_AT_ONCE + SAMPLES_PER_S
    assert FIRST_PROBABILITY < 1


def test_messages_without_flows_do_not_use_up_the_limit(sink: Sink) -> None:
    statistics = {"Namespace": "stats", "Type": "stats", "Obj": {"CaptureID": "c"}}
    for _ in range(2 * MAX_SAMPLES_AT_ONCE):
        sink.receive(json.dumps(statistics).encode())
    send(sink, report(0, 10, 10))
    assert gaps(sink) == (1, 0, 0)


def test_number_of_unsettled_gaps_is_limited(sink: Sink) -> None:
    count = MAX_UNSETTLED + 50
    flows = [report(0, 10, 10, uuid=f"{n + 1:x}") for n in range(100)]
    send(sink, *flows)
    for lost in range(2, 2 + 2 * (count // 100 + 1), 2):
        sink.now += 2
        send(sink, *(report(lost, 10 * (lost + 1), 10, uuid=f"{n + 1:x}") for n in range(100)))
    # Each flow has at most one unsettled gap, even if several of its reports are missing.
    assert len(sink.checker._unsettled) <= 100
    assert gaps(sink)[1] > 0


def test_unknown_flows_are_not_checked_with_deduplication() -> None:
    sink = Sink(deduplicate="first")
    sink.chance = 0.0
    sink.table.raise_horizon(0.0)
    sink.now = 10_000.0
    send(sink, report(1, 20, 10))
    assert gaps(sink) == (0, 0, 0)


def test_reports_are_not_checked_if_no_metric_needs_flow_totals() -> None:
    sink = Sink(metrics=["flows"], views=[])
    sink.chance = 0.0
    send(sink, report(0, 10, 10))
    send(sink, report(2, 30, 10))
    assert gaps(sink) == (0, 0, 0)


@pytest.mark.parametrize("part", ["Metric", "Network", "Transport", "LastUpdateMetric", "UUID"])
def test_flows_without_a_required_object_are_not_checked(sink: Sink, part: str) -> None:
    send(sink, report(0, 10, 10))
    flow = report(1, 20, 10, uuid="b2")
    del flow[part]
    send(sink, flow, report(1, 20, 10))
    assert gaps(sink) == (2, 0, 0)
    assert sum(sink.skipped.values()) == (part != "LastUpdateMetric")
