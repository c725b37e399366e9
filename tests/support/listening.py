"""skyfast's side of a modelled Skydive: detection of silence, and the clock of the table.

The detector (`skyfast.skydive.silence`), the decision when the clock is held
(`skyfast.skydive.reporting_gap`) and the clock are the real ones; `Listener` runs them in the
virtual time of a `Cluster`, as `skyfast.skydive.subscription` and `skyfast.app` do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from skyfast.runtime.clock import Clock
from skyfast.skydive.reporting_gap import ReportingGap
from skyfast.skydive.silence import Reporting, Silence
from tests.support.skydive import Analyzer, Cluster, Delivery, Subscriber

TICK_MS = 1_000
LOOK_MS = 500
LONGEST_S = 45.0


class Updates:
    """What is known of the agents' ``flow.update``."""

    flow_update_known = True

    def __init__(self, flow_update_s: float) -> None:
        self.flow_update_s = flow_update_s


class _Watched:
    """A subscription, and what was received since the latest look."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.silence: Silence | None = None
        self.session = 0
        self.received = False
        self.statistics = 0
        self.flows = False


class Listener:
    """Subscriptions to all analyzers of a cluster.

    `run` yields deliveries. ``clock`` is the table's; look at it at delivery, as skyfast does.
    """

    def __init__(self, cluster: Cluster, *, flow_update_s: float) -> None:
        self.cluster = cluster
        self.clock = Clock(lambda: cluster.now_ms / 1000)
        self.gap = ReportingGap()
        self.updates = Updates(flow_update_s)
        self.reporting = Reporting(updates=self.updates)
        self.reporting.analyzers = len(cluster.analyzers)
        self._watched = {
            analyzer.name: self._watch(analyzer, phase_ms=number * 100)
            for number, analyzer in enumerate(cluster.analyzers)
        }
        self._every(LOOK_MS, self._look, phase_ms=0)

    def history(self, analyzer: Analyzer) -> list[tuple[int, str]]:
        """Return the events of a subscription, and their times."""
        return self._watched[analyzer.name].subscriber.history

    def _watch(self, analyzer: Analyzer, *, phase_ms: int) -> _Watched:
        watched = _Watched(Subscriber(analyzer))
        watched.subscriber.start()
        self._every(TICK_MS, lambda: self._tick(watched), phase_ms=phase_ms)
        return watched

    def _every(self, period_ms: int, event: Callable[[], None], *, phase_ms: int) -> None:
        def run() -> None:
            event()
            self.cluster.at(self.cluster.now_ms + period_ms, run, order=3)

        self.cluster.at(self.cluster.now_ms + phase_ms, run, order=3)

    def run(self, until_ms: int) -> Iterator[Delivery]:
        """Let time pass, and yield what the subscriptions receive."""
        for delivery in self.cluster.run(until_ms):
            watched = self._watched[delivery.analyzer]
            if delivery.subscriber is watched.subscriber:
                watched.received = True
                if delivery.message["Type"] == "stats":
                    watched.statistics += 1
                    report = json.dumps(delivery.message["Obj"]).encode()
                    self.reporting.activity.message(report, self.clock.running())
                else:
                    watched.flows = True
                yield delivery

    def _tick(self, watched: _Watched) -> None:
        """Look whether a subscription is silent (`skyfast.skydive.subscription`)."""
        subscriber = watched.subscriber
        is_over = not subscriber.is_connected or watched.session != subscriber.session
        if watched.silence is not None and is_over:
            self.reporting.silences.discard(watched.silence)
            watched.silence = None
        if subscriber.is_connected and watched.silence is None:
            watched.session = subscriber.session
            watched.silence = Silence(self.reporting, longest_s=LONGEST_S, tick_s=TICK_MS / 1000)
            self.reporting.silences.add(watched.silence)
        if watched.silence is not None and watched.silence.update(
            received=watched.received,
            statistics=watched.statistics,
            flows=watched.flows,
            now_s=self.cluster.now_ms / 1000,
        ):
            subscriber.disconnect()
        watched.received, watched.statistics, watched.flows = False, 0, False
        self._look()

    def _look(self) -> None:
        """Hold the clock where reports may be missing (`skyfast.app`)."""
        delivering = {
            name
            for name, watched in self._watched.items()
            if watched.silence is not None
            and watched.subscriber.is_connected
            and watched.session == watched.subscriber.session
            and watched.silence.delivers
        }
        self.clock.hold(
            self.gap.update(
                self.clock.running(),
                delivering=delivering,
                subscribed=self._watched.keys(),
                flow_update_s=self.updates.flow_update_s,
            )
        )
        self.clock.now()
