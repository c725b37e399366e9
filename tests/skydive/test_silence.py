"""Detection of suspect and silent subscriptions, in a simulated cluster.

As in Skydive, each capture point sends statistics every 10 s, and flows at the interval
``flow.update``. Each message goes to a random analyzer.
"""

import json
import math
import random
from collections.abc import Iterable

import pytest

from skyfast.skydive.silence import (
    LOST,
    MAX_VALUES,
    MEMORY_S,
    SILENT_CHANCE,
    SUSPECT_CHANCE,
    WINDOW_S,
    WINDOWS,
    Activity,
    Reporting,
    SilenceDetector,
    is_improbable,
)
from skyfast.stats import Stats

TICK_S = 1.0
LONGEST_S = 45.0
UPDATE_S = 60.0


def report(received: int, *, capture: str = "c", flows: int = 1) -> bytes:
    return json.dumps(
        {"CaptureID": capture, "PacketsReceived": received, "FlowCount": flows}
    ).encode()


class CapturePoint:
    """A capture point: an agent's flow table and its packet socket."""

    def __init__(self, rng: random.Random, *, packets_s: int, total: int = 0) -> None:
        self._rng = rng
        self.packets_s = packets_s
        self.total = rng.randrange(10**6) if total == 0 else total
        self.phase = rng.randrange(60)
        self._readings: list[int] = []
        self._sent = self.total

    def tick(self, now: int) -> tuple[bytes | None, bool]:
        """Return statistics to send in this second, or None, and whether to send flows."""
        self.total += self.packets_s
        # A reading can be late for one report. It then becomes part of the next report.
        self._readings += [self.total] * self._rng.choice([0, 1, 2] if now % 7 == 0 else [1])
        statistics = None
        if (now + self.phase) % 10 == 0:
            statistics = report(sum(self._readings))
            self._readings = []
        sends_flows = (now + self.phase) % int(UPDATE_S) == 0 and self.total > self._sent
        if sends_flows:
            self._sent = self.total
        return statistics, sends_flows


class StatsCluster:
    """Analyzers, capture points, and a subscription to each analyzer."""

    def __init__(
        self,
        *,
        analyzers: int,
        points: int,
        packets_s: int = 100,
        seed: int = 1,
        lost: float = 0.0,
        stretch: float = 1.0,
        longest_s: float = LONGEST_S,
    ) -> None:
        self.rng = random.Random(seed)
        self.stats = Stats()
        self.stats.flow_update_s = UPDATE_S
        self.reporting = Reporting(updates=self.stats)
        self.reporting.analyzers = analyzers
        self.points = [CapturePoint(self.rng, packets_s=packets_s) for _ in range(points)]
        self.lost = lost
        self.now = 0
        self.mute: set[int] = set()
        """The indexes of the analyzers that send nothing."""
        self.flowless: set[int] = set()
        """The indexes of the analyzers that send no flows."""
        self.subscriptions = [
            SilenceDetector(self.reporting, longest_s=longest_s, stretch=stretch, tick_s=TICK_S)
            for _ in range(analyzers)
        ]
        self.reporting.detectors.update(self.subscriptions)
        self.suspicions = 0

    def tick(self) -> dict[int, str]:
        """Advance by one second; return the reasons for silence, by index of the subscription."""
        self.now += 1
        statistics = [0] * len(self.subscriptions)
        flows = [False] * len(self.subscriptions)
        for point in self.points:
            sent, sends_flows = point.tick(self.now)
            to = self.rng.randrange(len(self.subscriptions))
            if sent and to not in self.mute and self.rng.random() >= self.lost:
                statistics[to] += 1
                self.reporting.activity.message(sent, self.now)
            to = self.rng.randrange(len(self.subscriptions))
            if sends_flows and to not in self.mute | self.flowless:
                flows[to] = True
        silent = {}
        for number, subscription in enumerate(self.subscriptions):
            was_suspect = subscription.suspect
            reason = subscription.update(
                received=statistics[number] > 0 or flows[number],
                statistics=statistics[number],
                flows=flows[number],
                now_s=self.now,
            )
            self.suspicions += subscription.suspect and not was_suspect
            if reason:
                silent[number] = reason
        return silent

    def run(self, seconds: int) -> dict[int, tuple[int, str]]:
        """Return the first silent second and the reason, for each silent subscription."""
        silent: dict[int, tuple[int, str]] = {}
        for second in range(1, seconds + 1):
            for number, reason in self.tick().items():
                silent.setdefault(number, (second, reason))
        return silent

    def until_suspect(self, number: int) -> int:
        for second in range(1, 200):
            if self.subscriptions[number].suspect:
                return second - 1
            self.tick()
        return 200


def chance(seconds: float, *, points: int, analyzers: int, lost: float = 0.0) -> float:
    """Return the probability that one analyzer receives nothing for ``seconds``."""
    return math.pow(1 - (1 - lost) / analyzers, points * seconds / 10)


# No messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("analyzers", [1, 2, 3])
@pytest.mark.parametrize("points", [40, 400])
def test_silence_is_detected_early_with_many_capture_points(analyzers: int, points: int) -> None:
    cluster = StatsCluster(analyzers=analyzers, points=points)
    assert not cluster.run(100)
    cluster.mute = {0}
    last = cluster.now
    # A connection can expire 15 s after the last message, so the subscription must be suspect
    # earlier.
    assert cluster.until_suspect(0) in (13, 14)
    silent = cluster.run(30)
    assert set(silent) == {0}
    assert cluster.now - 30 - last + silent[0][0] in (20, 21)
    assert silent[0][1] == "no message for 20 s"
    assert not any(subscription.suspect for subscription in cluster.subscriptions[1:])


@pytest.mark.parametrize(
    ("points", "analyzers", "within_s"),
    [(1, 1, 31), (5, 1, 21), (5, 2, 43), (10, 2, 22), (10, 3, 37), (20, 2, 21), (20, 3, 22)],
)
def test_silence_is_detected_within_documented_times(
    points: int, analyzers: int, within_s: int
) -> None:
    """One of ten runs may take longer, if the other analyzers receive few messages by chance."""
    times = []
    for seed in range(10):
        cluster = StatsCluster(analyzers=analyzers, points=points, seed=seed)
        assert not cluster.run(150)
        silent_s = cluster.subscriptions[0].silent_s
        cluster.mute = {0}
        second, _ = cluster.run(120)[0]
        times.append(silent_s + second)
    assert min(times) >= 20
    assert sorted(times)[8] <= within_s


def test_all_subscriptions_fall_silent_at_once() -> None:
    cluster = StatsCluster(analyzers=3, points=40)
    assert not cluster.run(100)
    cluster.mute = {0, 1, 2}
    silent = cluster.run(30)
    assert set(silent) == {0, 1, 2}
    assert all(second <= 21 for second, _ in silent.values())


def test_silence_is_detected_while_another_subscription_recovers() -> None:
    cluster = StatsCluster(analyzers=3, points=40)
    assert not cluster.run(100)
    cluster.mute = {0, 1, 2}
    assert not cluster.run(18)
    cluster.mute = {0, 1}
    silent = cluster.run(12)
    assert set(silent) == {0, 1}


@pytest.mark.parametrize(
    ("points", "analyzers"), [(1, 1), (2, 1), (4, 2), (8, 3), (10, 2), (20, 3), (60, 10)]
)
def test_random_pauses_do_not_count_as_silence(points: int, analyzers: int) -> None:
    """False positives have a probability of 1e-6, so none is expected within 8,000 s."""
    # With this longest_s, detection depends only on the probabilities.
    cluster = StatsCluster(analyzers=analyzers, points=points, longest_s=10_000)
    assert not cluster.run(8_000)
    checks = 8_000 * analyzers
    assert cluster.suspicions <= 3 * SUSPECT_CHANCE * checks


@pytest.mark.parametrize("points", [1, 2, 10])
def test_lost_messages_do_not_count_as_silence(points: int) -> None:
    cluster = StatsCluster(analyzers=1, points=points, lost=LOST)
    assert not cluster.run(8_000)


@pytest.mark.parametrize(("points", "analyzers"), [(4, 2), (10, 3), (30, 10)])
def test_detection_times_match_the_probabilities(points: int, analyzers: int) -> None:
    """All subscriptions are silent, so no other subscription affects the times."""
    cluster = StatsCluster(analyzers=analyzers, points=points, longest_s=10_000)
    assert not cluster.run(300)
    cluster.mute = set(range(analyzers))
    last = cluster.now - max(subscription.silent_s for subscription in cluster.subscriptions)
    oldest = max(range(analyzers), key=lambda number: cluster.subscriptions[number].silent_s)
    cluster.until_suspect(oldest)
    suspect_s = max(15.0, cluster.now - last + TICK_S)
    assert chance(suspect_s + 3, points=points, analyzers=analyzers) <= SUSPECT_CHANCE
    if suspect_s > 16:
        assert chance(suspect_s - 3, points=points, analyzers=analyzers) >= SUSPECT_CHANCE / 2
    while oldest not in cluster.tick():
        assert cluster.now - last < 1000
    silent_s = cluster.now - last
    assert chance(silent_s + 3, points=points, analyzers=analyzers, lost=LOST) <= SILENT_CHANCE
    if silent_s > 21:
        assert chance(silent_s - 3, points=points, analyzers=analyzers) >= SILENT_CHANCE / 2


@pytest.mark.parametrize("stretch", [1.0, 1.3])
@pytest.mark.parametrize("longest_s", [10.0, 30.0])
def test_silence_timeout_is_the_upper_limit(stretch: float, longest_s: float) -> None:
    cluster = StatsCluster(analyzers=5, points=2, stretch=stretch, longest_s=longest_s)
    for number in range(5):  # all subscriptions have delivered, and none delivers again
        cluster.subscriptions[number].update(received=True, statistics=0, flows=False, now_s=0)
    cluster.mute = set(range(5))
    suspect_s = cluster.until_suspect(0)
    assert suspect_s + TICK_S == longest_s
    second, _ = cluster.run(60)[0]
    assert suspect_s + second == math.ceil(longest_s * stretch)


def test_timeout_0_disables_detection() -> None:
    cluster = StatsCluster(analyzers=1, points=10, longest_s=0.0)
    cluster.run(100)
    cluster.mute = {0}
    assert not cluster.run(10_000)
    assert cluster.subscriptions[0].delivers


def test_subscription_that_never_delivered_is_not_silent() -> None:
    cluster = StatsCluster(analyzers=2, points=10)
    cluster.mute = {0}
    assert not cluster.run(10_000)
    assert not cluster.subscriptions[0].delivers
    assert cluster.subscriptions[1].delivers


def test_ended_captures_lower_the_estimate_of_capture_points_but_are_not_silence() -> None:
    cluster = StatsCluster(analyzers=2, points=40)
    assert not cluster.run(300)
    del cluster.points[1:]
    # Both subscriptions now receive few messages, so long pauses are normal.
    silences = 0
    for _ in range(int(WINDOW_S * WINDOWS)):
        silences += len(cluster.tick())
    assert cluster.reporting.capture_points <= 40
    cluster.run(int(WINDOW_S))
    assert cluster.reporting.capture_points <= 2
    assert not silences


def test_silent_subscription_does_not_lower_the_estimate_of_capture_points() -> None:
    cluster = StatsCluster(analyzers=2, points=40)
    cluster.run(200)
    estimate = cluster.reporting.capture_points
    assert estimate == pytest.approx(40, rel=0.1)
    cluster.mute = {0}
    cluster.run(58)
    assert cluster.reporting.capture_points == pytest.approx(estimate, rel=0.1)


@pytest.mark.parametrize(("analyzers", "sent"), [(1, 0.5), (2, 10), (3, 18), (10, 66)])
def test_silence_is_improbable_if_enough_messages_were_sent(analyzers: int, sent: float) -> None:
    assert is_improbable(sent, SUSPECT_CHANCE, analyzers=analyzers)
    assert not is_improbable(0, SUSPECT_CHANCE, analyzers=analyzers)
    assert analyzers == 1 or not is_improbable(sent - 1, SUSPECT_CHANCE, analyzers=analyzers)
    assert not is_improbable(1, SILENT_CHANCE, analyzers=analyzers, lost=LOST)


# Statistics without flows ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("analyzers", "points", "within_s"), [(1, 1, 130), (1, 20, 130), (2, 20, 240), (3, 100, 320)]
)
def test_statistics_without_flows_count_as_silence(
    analyzers: int, points: int, within_s: int
) -> None:
    cluster = StatsCluster(analyzers=analyzers, points=points)
    assert not cluster.run(600)
    cluster.flowless = {0}
    silent = cluster.run(within_s)
    assert set(silent) == {0}
    second, reason = silent[0]
    # The detector measures the time since the last flow. This flow can have arrived up to UPDATE_S
    # before ``flowless`` was set.
    assert second >= (UPDATE_S + 15) * analyzers - UPDATE_S
    assert reason.startswith("no flows for ")
    assert reason.endswith("although captures receive packets")


def test_missing_flows_are_suspect_before_connections_expire() -> None:
    cluster = StatsCluster(analyzers=1, points=20)
    assert not cluster.run(600)
    while not cluster.flowless:
        before = cluster.subscriptions[0]._missing_flows.seconds
        cluster.tick()
        if cluster.subscriptions[0]._missing_flows.seconds <= before:
            cluster.flowless = {0}
    assert cluster.until_suspect(0) == UPDATE_S + 15 - TICK_S


@pytest.mark.parametrize("analyzers", [1, 2])
@pytest.mark.parametrize("points", [1, 20, 300])
def test_idle_network_is_not_silent(analyzers: int, points: int) -> None:
    cluster = StatsCluster(analyzers=analyzers, points=points, packets_s=0, longest_s=10_000)
    assert not cluster.run(800)
    for point in cluster.points:
        point.packets_s = 50
    assert not cluster.run(400)
    for point in cluster.points:
        point.packets_s = 0
    assert not cluster.run(800)


def test_occasional_packets_without_flows_do_not_count_as_silence() -> None:
    cluster = StatsCluster(analyzers=1, points=5, packets_s=0)
    cluster.flowless = {0}  # all flows are lost
    for _ in range(20):
        cluster.points[0].total += 1
        assert not cluster.run(300)


@pytest.mark.parametrize(("analyzers", "points"), [(1, 1), (2, 1), (2, 4), (3, 20)])
def test_random_pauses_do_not_count_as_missing_flows(analyzers: int, points: int) -> None:
    cluster = StatsCluster(analyzers=analyzers, points=points, longest_s=10_000)
    assert not cluster.run(12_000)


def test_missing_flows_are_ignored_until_flow_update_is_known() -> None:
    cluster = StatsCluster(analyzers=1, points=20)
    cluster.stats.observed_flow_update_s = None
    cluster.flowless = {0}
    assert not cluster.run(1000)


def test_longer_flow_update_delays_detection() -> None:
    cluster = StatsCluster(analyzers=1, points=20)
    cluster.run(100)
    cluster.stats.flow_update_s = 600
    cluster.flowless = {0}
    assert not cluster.run(600)
    assert cluster.run(200)


# Packets shown by statistics ------------------------------------------------------------------


def count_changes(
    activity: Activity, received: Iterable[int], *, every_s: int = 10, **more: object
) -> int:
    before = activity.changes
    for number, value in enumerate(received):
        activity.message(report(value, **more), number * every_s)  # type: ignore[arg-type]
    return activity.changes - before


def test_growing_totals_show_that_packets_arrive() -> None:
    assert count_changes(Activity(), range(1_000_000, 1_050_000, 500)) > 90


def test_repeated_totals_do_not_show_that_packets_arrive() -> None:
    assert count_changes(Activity(), [12340] * 50) == 1
    assert count_changes(Activity(), [1000, 900, 1000, 1100, 1000, 900, 1100] * 10) == 1


def test_totals_of_several_capture_points_are_remembered() -> None:
    assert count_changes(Activity(), [70010, 50030, 90070] * 20, every_s=3) == 3


def test_unusable_reports_do_not_show_that_packets_arrive() -> None:
    activity = Activity()
    assert count_changes(activity, [0] * 10) == 0
    assert count_changes(activity, range(1000, 2000, 100), flows=0) == 0
    activity.capture_id = "another"
    assert count_changes(activity, range(1000, 2000, 100)) == 0
    for data in (b"", b"[]", b'{"PacketsReceived":"x"}', b'{"PacketsReceived":1e999}', b"\xff"):
        activity.message(data, 0)
    assert activity.changes == 0


def test_remembered_values_are_limited_by_age_and_number() -> None:
    activity = Activity()
    for number in range(MAX_VALUES + 1000):
        activity.message(report(10**9 + 7919 * number), 0)
    assert activity.changes <= MAX_VALUES
    assert len(activity._values) == MAX_VALUES
    for rounds in range(1, 3):
        activity.message(report(5), rounds * MEMORY_S)
    assert len(activity._values) + len(activity._older) == 2
