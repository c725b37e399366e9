"""Runs skyfast's silence detection and its clock in the virtual time of a simulated Skydive.

In production, `skyfast.skydive.subscription` and `skyfast.app` combine the same parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from skyfast.runtime.clock import Clock
from skyfast.skydive.reporting_gap import ReportingGap
from skyfast.skydive.silence import Reporting, SilenceDetector
from tests.support.skydive import Analyzer, Cluster, Delivery, Subscriber

TICK_MS = 1_000
HOLD_UPDATE_MS = 500
LONGEST_S = 45.0


class Updates:
    """A constant ``flow.update``."""

    flow_update_known = True

    def __init__(self, flow_update_s: float) -> None:
        self.flow_update_s = flow_update_s


class _Monitored:
    """A subscription, and what it has received since the latest silence check."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.detector: SilenceDetector | None = None
        self.session = 0
        self.received = False
        self.statistics = 0
        self.flows = False


class Listener:
    """Subscriptions to all analyzers of a cluster.

    Tests read ``clock`` at each delivery, because skyfast reads its clock at each message.
    """

    def __init__(self, cluster: Cluster, *, flow_update_s: float) -> None:
        self.cluster = cluster
        self.clock = Clock(lambda: cluster.now_ms / 1000)
        self.gap = ReportingGap()
        self.updates = Updates(flow_update_s)
        self.reporting = Reporting(updates=self.updates)
        self.reporting.analyzers = len(cluster.analyzers)
        self._monitored = {
            analyzer.name: self._monitor(analyzer, phase_ms=number * 100)
            for number, analyzer in enumerate(cluster.analyzers)
        }
        self._every(HOLD_UPDATE_MS, self._update_hold, phase_ms=0)

    def history(self, analyzer: Analyzer) -> list[tuple[int, str]]:
        """Return the times and events of the subscription to this analyzer."""
        return self._monitored[analyzer.name].subscriber.history

    def _monitor(self, analyzer: Analyzer, *, phase_ms: int) -> _Monitored:
        monitored = _Monitored(Subscriber(analyzer))
        monitored.subscriber.start()
        self._every(TICK_MS, lambda: self._tick(monitored), phase_ms=phase_ms)
        return monitored

    def _every(self, period_ms: int, event: Callable[[], None], *, phase_ms: int) -> None:
        def run() -> None:
            event()
            self.cluster.at(self.cluster.now_ms + period_ms, run, order=3)

        self.cluster.at(self.cluster.now_ms + phase_ms, run, order=3)

    def run(self, until_ms: int) -> Iterator[Delivery]:
        for delivery in self.cluster.run(until_ms):
            monitored = self._monitored[delivery.analyzer]
            if delivery.subscriber is monitored.subscriber:
                monitored.received = True
                if delivery.message["Type"] == "stats":
                    monitored.statistics += 1
                    report = json.dumps(delivery.message["Obj"]).encode()
                    self.reporting.activity.message(report, self.clock.running())
                else:
                    monitored.flows = True
                yield delivery

    def _tick(self, monitored: _Monitored) -> None:
        """Check for silence, like `skyfast.skydive.subscription`."""
        subscriber = monitored.subscriber
        is_over = not subscriber.is_connected or monitored.session != subscriber.session
        if monitored.detector is not None and is_over:
            self.reporting.detectors.discard(monitored.detector)
            monitored.detector = None
        if subscriber.is_connected and monitored.detector is None:
            monitored.session = subscriber.session
            monitored.detector = SilenceDetector(
                self.reporting, longest_s=LONGEST_S, tick_s=TICK_MS / 1000
            )
            self.reporting.detectors.add(monitored.detector)
        if monitored.detector is not None and monitored.detector.update(
            received=monitored.received,
            statistics=monitored.statistics,
            flows=monitored.flows,
            now_s=self.cluster.now_ms / 1000,
        ):
            subscriber.disconnect()
        monitored.received, monitored.statistics, monitored.flows = False, 0, False
        self._update_hold()

    def _update_hold(self) -> None:
        """Hold (stop) the clock while reports may be missing, like `skyfast.app`."""
        delivering = {
            name
            for name, monitored in self._monitored.items()
            if monitored.detector is not None
            and monitored.subscriber.is_connected
            and monitored.session == monitored.subscriber.session
            and monitored.detector.delivers
        }
        self.clock.hold(
            self.gap.update(
                self.clock.running(),
                delivering=delivering,
                subscribed=self._monitored.keys(),
                flow_update_s=self.updates.flow_update_s,
            )
        )
        self.clock.now()
