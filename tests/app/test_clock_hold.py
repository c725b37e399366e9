"""While reports may be missing, `App` holds (stops) the clock of its table."""

import dataclasses
import logging
from collections.abc import Iterator

import pytest

from skyfast import app
from skyfast.app import App
from skyfast.config.model import Config
from skyfast.flows.selection import UNSHARDED, Shard
from skyfast.runtime.clock import Clock
from skyfast.skydive.reporting_gap import INCIDENT_UPDATES, SLACK_S
from tests.support.configs import make_config

UPDATE_S = 60.0
STEP_S = 0.5


class FakeSubscriptions:
    """Fake subscriptions. Those in ``delivering`` deliver messages."""

    def __init__(self, **_: object) -> None:
        self.delivering = {"one:8082", "two:8082"}
        self.subscribed = {"one:8082", "two:8082"}
        self.any_up = True

    def state(self, name: str) -> str:
        return "delivering again" if name in self.delivering else "silent"


class Running:
    """An app whose time advances only in `pass_time`."""

    def __init__(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(app, "Subscriptions", FakeSubscriptions)
        monkeypatch.setattr(app, "Clock", lambda: Clock(lambda: self.now_s))
        self.app = App(config, load=lambda: config)
        self.subscriptions: FakeSubscriptions = self.app.subscriptions  # type: ignore[assignment]
        self.pass_time(100)

    def pass_time(self, seconds: float) -> float:
        """Check for missing reports every `STEP_S`. Return how far the table's clock advanced."""
        before = self.app.clock.now()
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            self.app._look_for_gaps()
            self.app.clock.now()
        return self.app.clock.now() - before

    def deliver(self, *names: str) -> None:
        self.subscriptions.delivering = set(names)
        self.app._update_hold()  # the real subscriptions call it

    @property
    def page(self) -> dict[str, float]:
        stats = self.app.stats
        return {"held": stats.clock_held, "seconds": stats.clock_held_s}


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    yield Running(make_config(), monkeypatch)


def test_clock_is_held_until_all_connections_are_reported_again(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert running.pass_time(10) == 10
    running.deliver("one:8082")
    assert running.app.clock.held  # before the next check
    assert running.pass_time(20) == 0
    assert running.page == {"held": 1, "seconds": 20}
    running.deliver("one:8082", "two:8082")
    assert running.pass_time(UPDATE_S + SLACK_S) == pytest.approx(0)
    assert running.pass_time(10) == pytest.approx(10)
    assert running.page == {"held": 0, "seconds": 20 + UPDATE_S + SLACK_S}
    assert caplog.messages == [
        "expiry of connections paused: reports may be missing from two:8082 (silent)",
        "expiry of connections resumed",
    ]


def test_clock_is_held_for_a_limited_time_if_all_captures_have_ended(running: Running) -> None:
    running.deliver()
    assert running.pass_time(600) == pytest.approx(600 - INCIDENT_UPDATES * UPDATE_S)


def test_longest_hold_is_a_multiple_of_the_agents_update_interval(running: Running) -> None:
    running.app.stats.flow_update_s = 10.0
    running.deliver()
    assert running.pass_time(600) == pytest.approx(600 - INCIDENT_UPDATES * 10)


def test_ended_recording_does_not_hold_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    subscriber = dataclasses.replace(config.subscriber, silence_timeout_s=0.0)
    running = Running(dataclasses.replace(config, subscriber=subscriber), monkeypatch)
    running.deliver()
    assert running.pass_time(100) == 100


def test_clock_excludes_a_suspension_of_the_process_during_a_hold(running: Running) -> None:
    running.deliver("one:8082")
    running.now_s += 3600
    assert running.pass_time(10) == 0
    assert running.page["seconds"] == 10
    running.deliver("one:8082", "two:8082")
    assert running.pass_time(UPDATE_S + SLACK_S + 10) == pytest.approx(10)


@pytest.mark.parametrize(
    ("update_s", "timeout_s", "warns"), [(60, 60, False), (60, 59, True), (120, 60, True)]
)
def test_timeout_shorter_than_the_update_interval_causes_a_warning(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    update_s: float,
    timeout_s: float,
    warns: bool,
) -> None:
    running = Running(make_config(connection_timeout=timeout_s), monkeypatch)
    assert not caplog.messages  # the interval is not known yet
    running.app.stats.flow_update_s = update_s
    running.pass_time(10)
    text = (
        f"connection_timeout plus connection_grace is {timeout_s + 15} s, but must be at least"
        f" flow.update ({update_s} s) plus 15 s for delayed reports: otherwise, connections expire"
        " between two reports of a flow"
    )
    assert caplog.messages == [text] * warns
    # Small deviations cause no second warning.
    for deviation_s in (-0.02, 0.003, 0.4):
        running.app.stats.flow_update_s = update_s + deviation_s
        running.pass_time(10)
    assert caplog.messages == [text] * warns
    running.app.stats.flow_update_s = 300.0
    running.pass_time(10)
    assert len(caplog.messages) == warns + 1


@pytest.mark.parametrize("shard", [UNSHARDED, Shard(0, 2), Shard(1, 2)])
def test_every_shard_detects_received_packets_in_capture_statistics(
    monkeypatch: pytest.MonkeyPatch, shard: Shard
) -> None:
    running = Running(dataclasses.replace(make_config(), shard=shard), monkeypatch)
    analyzer = running.app.stats.analyzer("one:8082")
    for received in (1000, 2000, 2000):
        statistics = f'{{"CaptureID":"c","FlowCount":1,"PacketsReceived":{received}}}'
        message = f'{{"Namespace":"stats","Type":"stats","Obj":{statistics}}}'
        running.app._parts.ingest.message(message.encode(), analyzer)
    activity = running.app._activity
    assert (activity.reports, activity.changes) == (3, 2)
    assert running.app.stats.captures.captures == (0 if shard.index else 1)


def test_captures_do_not_expire_while_the_clock_is_held(running: Running) -> None:
    message = b'{"Namespace":"stats","Type":"stats","Obj":{"CaptureID":"c","FlowCount":%d}}'
    analyzer = running.app.stats.analyzer("one:8082")
    running.app._parts.ingest.message(message % 900, analyzer)
    running.deliver("one:8082")
    running.pass_time(100)
    running.app._parts.ingest.message(message % 3, analyzer)
    captures, now = running.app._parts.captures, running.app.clock.now()
    captures.expire(now)
    (capture,) = captures.first(10, now)
    assert (capture.flows, capture.reports) == (3, 2)
