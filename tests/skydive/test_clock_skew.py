"""Flow times that differ too much from the local clock: counters and log lines."""

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


def flow_at(uuid: str, seconds: float, **fields: Any) -> dict[str, Any]:
    """Return a flow whose latest packet is ``seconds`` in the future (negative: in the past)."""
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
def test_implausible_time_is_counted(
    seconds: float, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()
    sink.receive(message(flow_at("1", 0), flow_at("2", seconds), flow_at("3", seconds)))
    counted = {reason: 2} if reason else {}
    assert {key: n for key, n in sink.analyzer.misdated.items() if n} == counted
    assert sink.table.flows == 3, "flows with implausible times are exported, too"
    assert len(lines(caplog)) == bool(reason)


# By default, a closing report arrives 10 to 20 minutes after the latest packet. A report with
# finish type 2 (FIN) or 3 (RST) is not a closing report: these types only show the flags of the
# flow's first packet.
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
def test_older_times_are_plausible_in_closing_reports(
    seconds: float, finish: int, *, is_behind: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()
    sink.receive(
        message(flow_at("1", 0), flow_at("2", seconds, FinishType=finish), flow_at("3", 0))
    )
    assert sink.analyzer.misdated == {"ahead": 0, "behind": int(is_behind)}
    assert len(lines(caplog)) == is_behind


def test_closing_report_does_not_hide_old_times_of_another_report() -> None:
    sink = Sink()
    closing = flow_at("1", -20 * 60.0, FinishType=1)
    sink.receive(
        message(closing, flow_at("2", -10 * 60.0), flow_at("3", -HOUR_S / 2, FinishType=1))
    )
    assert sink.analyzer.misdated == {"ahead": 0, "behind": 1}


def test_limit_follows_the_update_interval() -> None:
    sink = Sink()
    for flow_update_s, counted in ((300.0, 0), (60.0, 1)):
        sink.stats.flow_update_s = flow_update_s
        sink.receive(message(flow_at("1", -10 * 60.0)))
        assert sink.analyzer.misdated["behind"] == counted


class TimedFlow(msgspec.Struct):
    Last: int
    FinishType: int = 0
    NodeTID: str = "a"


class FakeTimes:
    """A fake table with the earliest and the latest time of ``flows``."""

    def __init__(self, flows: list[TimedFlow]) -> None:
        times = [flow.Last for flow in flows]
        self.times_ms = (min(times), max(times))


def test_time_at_the_limit_is_accepted() -> None:
    now_ms = 1_800_000_000_000
    first_ms, last_ms = now_ms - int(MAX_BEHIND_S * 1000), now_ms + int(MAX_AHEAD_S * 1000)
    for excess_ms, counted in ((0, 0), (1, 1)):
        times = first_ms - excess_ms, first_ms, now_ms, last_ms, last_ms + excess_ms
        flows = [TimedFlow(Last=last_ms) for last_ms in times]
        analyzer = AnalyzerStats("analyzer:8082")
        ClockSkewCheck(FakeTimes(flows), stats=Stats()).check(flows, b"", analyzer, now_ms)
        assert analyzer.misdated == {"ahead": counted, "behind": counted}


def test_clock_skew_of_an_interface_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Sink()
    for uuid in ("1", "2"):
        sink.receive(message(flow_at(uuid, 0), flow_at(uuid + "0", HOUR_S, NodeTID="\x1b[31m")))
    sink.receive(message(flow_at("1", 0), flow_at("30", -HOUR_S, NodeTID="another")))
    begin = "analyzer analyzer:8082: the latest packet of a flow from node_tid"
    assert lines(caplog) == [
        rf"{begin} \x1b[31m is dated 3600 s ahead of the local clock",
        f"{begin} another is dated 3600 s behind the local clock",
    ]


def test_log_line_contains_the_interface_even_if_no_label_needs_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Sink(**NO_NODE, drop=[{"name": "ssh", "target_port": 22}])
    skewed = flow_at("2", HOUR_S, NodeTID="skewed")
    dropped = skewed | {"UUID": "3", "NodeTID": "correct", "Transport": {"A": 1000, "B": 22}}
    sink.receive(message(dropped, flow_at("1", 0, NodeTID="correct"), skewed))
    (line,) = lines(caplog)
    assert "a flow from node_tid skewed is dated 3600 s ahead" in line


def test_valid_flow_in_a_message_with_an_invalid_flow_is_checked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for settings, interface in (({}, "node_tid tid"), (NO_NODE, "an unknown interface")):
        caplog.clear()
        sink = Sink(**settings)
        sink.receive(message(flow_at("1", HOUR_S), b'{"NodeTID":5,"UUID":5}'))
        assert sink.analyzer.misdated == {"ahead": 1, "behind": 0}
        (line,) = lines(caplog)
        assert f"a flow from {interface} is dated" in line


def test_flows_decoded_twice_are_checked_once() -> None:
    sink = Sink(**NO_NODE)
    sink.receive(message(flow_at("1", 0)))
    unknown = later("2", 1500, Last=int((time.time() + HOUR_S) * 1000))
    many = [flow_at("1", 0) for _ in range(300)]
    # The table reads the times of a whole batch before it stops at the unknown flow.
    sink.receive(message(flow_at("1", 0), unknown, *many, flow_at("1", -HOUR_S)))
    assert sink.analyzer.misdated == {"ahead": 1, "behind": 1}


def test_table_skips_flows_with_out_of_range_times() -> None:
    sink = Sink()
    huge = json.dumps(flow_at("2", 0)).encode().replace(b'"Last": ', b'"Last": ' + b"9" * 400)
    sink.receive(message(flow_at("1", HOUR_S), huge, flow_at("3", -HOUR_S), flow("4", Last=-1)))
    sink.receive(message(flow("5", Last=0)))
    assert sink.analyzer.misdated == {"ahead": 1, "behind": 1}
    assert sink.skipped == {"out_of_range": 2}


def test_excluded_flows_are_not_checked() -> None:
    sink = Sink(excluded_tags=["other"])
    sink.receive(message(flow_at("1", HOUR_S)))
    sink.receive(message(flow_at("1", 0)))
    assert sink.skipped == {"excluded": 2}
    assert sink.analyzer.misdated == {"ahead": 0, "behind": 0}
