"""Whether flows are dated as they can be, and who is named where they are not."""

import json
import time
from typing import Any

import msgspec
import pytest

from skyfast.skydive.clock_skew import MAX_AHEAD_S, MAX_CLOSING_BEHIND_S, ClockSkewCheck
from skyfast.stats import AnalyzerStats, Stats
from tests.support.messages import flow, later, message
from tests.support.sink import Sink

SLACK_S = 10.0
HOUR_S = 3600.0
MAX_BEHIND_S = 2 * Stats().flow_update_s + 60
NO_NODE = {"labels": ["initiator_ip"], "views": []}


def dated(uuid: str, seconds: float, **fields: Any) -> dict[str, Any]:
    """Return a flow whose latest packet was seen so many seconds from now."""
    return flow(uuid, Last=int((time.time() + seconds) * 1000), **fields)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [
        (0, None),
        (MAX_AHEAD_S - SLACK_S, None),
        (SLACK_S - MAX_BEHIND_S, None),
        (MAX_AHEAD_S + SLACK_S, "ahead"),
        (-MAX_BEHIND_S - SLACK_S, "behind"),
        pytest.param(-time.time() + 1, "behind", id="the year 1970"),
    ],
)
def test_a_time_that_cannot_be_is_counted(
    seconds: float, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()
    sink.take(message(dated("1", 0), dated("2", seconds), dated("3", seconds)))
    counted = {reason: 2} if reason else {}
    assert {key: n for key, n in sink.analyzer.misdated.items() if n} == counted
    assert sink.table.flows == 3, "they are used all the same"
    assert len(lines(caplog)) == bool(reason)


# The report that ends a flow comes 10 to 20 minutes after the latest packet by default. Those of
# flows whose first packet had FIN (2) or RST (3) are as any other.
@pytest.mark.parametrize(
    ("seconds", "finish", "is_behind"),
    [
        (-11 * 60.0, 1, False),
        (-21 * 60.0, 1, False),
        (SLACK_S - MAX_CLOSING_BEHIND_S, 1, False),
        (-MAX_CLOSING_BEHIND_S - SLACK_S, 1, True),
        (-11 * 60.0, 2, True),
        (-11 * 60.0, 3, True),
        (SLACK_S - MAX_BEHIND_S, 2, False),
    ],
)
def test_a_closing_report_may_come_late(
    seconds: float, finish: int, *, is_behind: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()
    sink.take(message(dated("1", 0), dated("2", seconds, FinishType=finish), dated("3", 0)))
    assert sink.analyzer.misdated == {"ahead": 0, "behind": int(is_behind)}
    assert len(lines(caplog)) == is_behind


def test_a_closing_report_does_not_hide_another_that_is_behind() -> None:
    sink = Sink()
    closing = dated("1", -20 * 60.0, FinishType=1)
    sink.take(message(closing, dated("2", -10 * 60.0), dated("3", -HOUR_S / 2, FinishType=1)))
    assert sink.analyzer.misdated == {"ahead": 0, "behind": 1}


def test_agents_that_report_less_often_are_allowed_more() -> None:
    sink = Sink()
    for flow_update_s, counted in ((300.0, 0), (60.0, 1)):
        sink.stats.flow_update_s = flow_update_s
        sink.take(message(dated("1", -10 * 60.0)))
        assert sink.analyzer.misdated["behind"] == counted


class Flow(msgspec.Struct):
    Last: int
    FinishType: int = 0
    NodeTID: str = "a"


class Dated:
    """Stands for a table: what it knows of its latest update."""

    def __init__(self, flows: list[Flow]) -> None:
        times = [one.Last for one in flows]
        self.times_ms = (min(times), max(times))


def test_a_time_at_the_bound_is_well() -> None:
    now_ms = 1_800_000_000_000
    first_ms, last_ms = now_ms - int(MAX_BEHIND_S * 1000), now_ms + int(MAX_AHEAD_S * 1000)
    for beyond_ms, counted in ((0, 0), (1, 1)):
        times = first_ms - beyond_ms, first_ms, now_ms, last_ms, last_ms + beyond_ms
        flows = [Flow(Last=each) for each in times]
        analyzer = AnalyzerStats("analyzer:8082")
        dates = ClockSkewCheck(Dated(flows), stats=Stats(), wall_clock=lambda: now_ms / 1000)
        dates.check(flows, b"", analyzer)
        assert analyzer.misdated == {"ahead": counted, "behind": counted}


def test_the_interface_is_named_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    for uuid in ("1", "2"):
        sink.take(message(dated(uuid, 0), dated(uuid + "0", HOUR_S, NodeTID="\x1b[31m")))
    sink.take(message(dated("1", 0), dated("30", -HOUR_S, NodeTID="another")))
    assert lines(caplog) == [
        r"analyzer analyzer:8082: a flow from node_tid \x1b[31m is 3600 s ahead of the local clock",
        "analyzer analyzer:8082: a flow from node_tid another is 3600 s behind the local clock",
    ]


def test_it_is_named_where_it_is_no_label(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink(**NO_NODE)
    sink.take(message(dated("1", 0, NodeTID="well"), dated("2", HOUR_S, NodeTID="wrong")))
    (line,) = lines(caplog)
    assert "a flow from node_tid wrong is 3600 s ahead" in line


def test_flows_of_a_message_that_is_not_all_good_are_looked_at_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for settings, interface in (({}, "node_tid tid"), (NO_NODE, "an unknown interface")):
        caplog.clear()
        sink = Sink(**settings)
        sink.take(message(dated("1", HOUR_S), b'{"NodeTID":5,"UUID":5}'))
        assert sink.analyzer.misdated == {"ahead": 1, "behind": 0}
        (line,) = lines(caplog)
        assert f"a flow from {interface} is" in line


def test_all_flows_of_a_message_that_is_decoded_twice_are_looked_at_once() -> None:
    sink = Sink(**NO_NODE)
    sink.take(message(dated("1", 0)))
    unknown = later("2", 1500, Last=int((time.time() + HOUR_S) * 1000))
    many = [dated("1", 0) for _ in range(300)]
    # The table has seen what stops it, and what is right behind that, already.
    sink.take(message(dated("1", 0), unknown, *many, dated("1", -HOUR_S)))
    assert sink.analyzer.misdated == {"ahead": 1, "behind": 1}


def test_numbers_that_are_no_times_are_left_to_the_table() -> None:
    sink = Sink()
    huge = json.dumps(dated("2", 0)).encode().replace(b'"Last": ', b'"Last": ' + b"9" * 400)
    sink.take(message(dated("1", HOUR_S), huge, dated("3", -HOUR_S), flow("4", Last=-1)))
    sink.take(message(flow("5", Last=0)))
    assert sink.analyzer.misdated == {"ahead": 1, "behind": 1}
    assert sink.skipped == {"out_of_range": 2}


def test_what_the_rules_drop_is_not_counted() -> None:
    sink = Sink(excluded_tags=["other"])
    sink.take(message(dated("1", HOUR_S)))
    sink.take(message(dated("1", 0)))
    assert sink.skipped == {"excluded": 2}
    assert sink.analyzer.misdated == {"ahead": 0, "behind": 0}
