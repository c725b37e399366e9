"""Replays recordings without sockets and without waiting, for ``skyfast --check --replay``.

Names from the topology, messages and expiry have the same effect as with ``skyfast --replay``. Time
is simulated: between two recorded messages, the clock advances without waiting.
"""

from collections.abc import Set
from dataclasses import dataclass, replace

from skyfast import pipeline
from skyfast.config.model import Config
from skyfast.flows.plan import Names
from skyfast.flows.planner import hidden_amounts
from skyfast.flows.selection import Bounds
from skyfast.pipeline import Parts, Shared
from skyfast.replay.recording import Playback, for_namespaces
from skyfast.replay.topology import ReplayedTopology, decode_element
from skyfast.runtime.clock import Clock
from skyfast.skydive import name_poller
from skyfast.skydive.name_resolver import resolve
from skyfast.skydive.silence import Activity
from skyfast.skydive.topology_store import TopologyStore
from skyfast.stats import EmptyLabels, NameStats, Stats
from skyfast.web import empty_labels
from skyfast.web.forecast import Forecast, make_forecast

STEP_S = 1.0
"""Maximum step of the simulated time. A longer gap between two messages is split into steps.

`Clock` would treat a step above `PAUSE_S` as a pause of the process."""

EXPIRY_ROWS = 1 << 20
"""Maximum number of rows that a call of `Table.expire` visits.

The number is high, because no other task has to run between two calls."""

RELABEL_FLOWS = 1 << 20
"""Maximum number of flows that a call of `Relabeling.step` moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The state at the end of the recordings."""

    forecast: Forecast
    empty: list[EmptyLabels]
    """For each set of labels, the share of bytes for which all labels of the set are empty.

    The list has no elements if neither labels nor info series need names from the topology."""
    names: NameStats | None
    """None if neither labels nor info series need names from the topology."""
    has_topology: bool
    """Whether the recordings contain updates of the topology."""


def run(config: Config, playback: Playback) -> Result:
    """Replay the recordings. Raises ConfigError if a file cannot be read."""
    return _DryRun(config).run(playback)


class _DryRun:
    """A replay in which the first view always counts bytes, because the forecast needs them."""

    def __init__(self, config: Config) -> None:
        first_view = config.export.first_view
        amounts = {*first_view.amounts, *hidden_amounts(first_view, Bounds(min_bytes=1))}
        first_view = replace(first_view, amounts=tuple(sorted(amounts)))
        self._config = config = replace(
            config, export=replace(config.export, first_view=first_view)
        )
        self._now_s = 0.0
        self._began_s = 0.0
        clock = Clock(lambda: self._now_s)
        self._shared = Shared(
            stats=Stats(),
            clock=clock,
            activity=Activity(),
            relabel=self._relabel,
            wall_clock=lambda: self._began_s + self._now_s,
        )
        self._parts: Parts = pipeline.build(config, None, self._shared)
        self._topology = ReplayedTopology()
        self._has_topology = self._has_new_topology = False
        self._resolved_at_s = -name_poller.INTERVAL_S

    def run(self, playback: Playback) -> Result:
        playback = replace(playback, speed=1, loop_s=0)
        self._began_s = playback.first_ms / 1000
        table, clock = self._parts.table, self._shared.clock
        analyzer = self._shared.stats.analyzer("")
        capture_id = self._config.subscriber.capture_id
        namespaces = frozenset({f"flow/{capture_id}" if capture_id else "flow", "stats"})
        table.raise_horizon(clock.now())
        for scheduled in playback.schedule():
            self._advance(scheduled.due_s)
            if scheduled.message.kind == "topology":
                self._topology.apply(scheduled.message.update())
                self._has_topology = self._has_new_topology = True
                continue
            if self._now_s - self._resolved_at_s >= name_poller.INTERVAL_S:
                self._resolve()
            data = scheduled.data(playback.first_ms)
            for copy in for_namespaces(data, namespaces):
                self._parts.ingest.message(copy, analyzer)
        self._resolve()
        limits = self._config.limits
        made = make_forecast(
            table, limits.bounds, max_series=self._config.max_series, now=clock.now()
        )
        is_named = bool(name_poller.needed(self._config))
        views = self._parts.ranking.views.values()
        return Result(
            forecast=made,
            empty=empty_labels.find(table, views) if is_named else [],
            names=self._parts.names.stats if is_named else None,
            has_topology=self._has_topology,
        )

    def _advance(self, until_s: float) -> None:
        while self._now_s < until_s:
            self._now_s = min(self._now_s + STEP_S, until_s)
            while self._parts.table.expire(self._shared.clock.now(), EXPIRY_ROWS):
                pass

    def _resolve(self) -> None:
        """Resolve names from the current topology and relabel flows, as the poller does."""
        wanted = name_poller.needed(self._config)
        self._resolved_at_s = self._now_s
        if not self._has_new_topology or not wanted:
            return
        self._has_new_topology = False
        store, names = TopologyStore(), self._parts.names
        for query in wanted:
            reader = store.reader(query)
            for element in self._topology.elements(query):
                decoded = decode_element(element)
                if isinstance(decoded, dict) and query.matches(decoded):
                    reader.add(element)
            store.replace(query, reader)
        resolution = resolve(store.graph(), k8s_labels=names.k8s_labels)
        for changed, keys in names.apply(names.compare(resolution, self._shared.clock.now())):
            self._relabel(changed, keys)
        names.stats.nodes, names.stats.addresses = len(names.nodes), len(names.addresses)

    def _relabel(self, names: Names, keys: Set[str]) -> None:
        relabeling = self._parts.table.relabel(names, keys)
        while relabeling.step(RELABEL_FLOWS):
            pass
