"""Polls the topology for the names of addresses and capture points.

* The required nodes and edges are read completely every `FULL_INTERVAL_S`.
* In between, only updated nodes and edges are read, every `INTERVAL_S`. Interfaces are always read
  completely, because a query for updated interfaces would not be cheaper.
* While flows have unknown addresses, a query is sent every `UNKNOWN_INTERVAL_S`. Queries for the
  pods with these addresses alternate with queries for updated pods.
* If no address is unknown, updated pods are read every `PODS_INTERVAL_S`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Final

from skyfast.config.model import Config
from skyfast.flows.catalog import INTERFACE_LABELS, LOCAL_LABELS
from skyfast.flows.plan import Names
from skyfast.flows.planner import shows_topology
from skyfast.flows.selection import ExportSelection
from skyfast.runtime.logs import LogLimit
from skyfast.skydive import topology_queries as queries
from skyfast.skydive.name_hints import find_hints
from skyfast.skydive.name_index import IndexChanges, NameIndex
from skyfast.skydive.name_resolver import Resolution, resolve
from skyfast.skydive.topology_client import TopologyClient
from skyfast.skydive.topology_graph import Node
from skyfast.skydive.topology_queries import MAX_VALUES, Query
from skyfast.skydive.topology_store import GraphReader, TopologyStore
from skyfast.stats import NAME_SKIPS, TopologyStats

log = logging.getLogger("skyfast.topology")

FULL_INTERVAL_S: Final = 300.0
"""Interval between two complete readings. Only a complete reading detects deleted nodes and
edges."""

INTERVAL_S: Final = 20.0
"""Interval between two readings of changes.

If the metrics of interfaces are disabled, the interfaces are read at this interval, too."""

UNKNOWN_INTERVAL_S: Final = 2.0
"""Interval between two queries while addresses are unknown."""

PODS_INTERVAL_S: Final = 5.0
"""Minimum interval between two readings of changed pods if no address is unknown.

These readings detect when a known address moves to another pod."""

OVERLAP_MS: Final = 120_000
"""Each query for changes also covers this much time before the previous query.

Without this overlap, skyfast could miss changes. ``UpdatedAt`` comes from the clock of the node's
host, and this clock can be behind. In addition, a change takes a few seconds to reach the
analyzer."""

PODS_OVERLAP_MS: Final = 10_000
"""Like `OVERLAP_MS`, but for queries that return only changed pods.

A shorter overlap is enough, because analyzers themselves set the ``UpdatedAt`` of pods."""

COMPLETE_WAIT_S: Final = 60.0
"""After a reload, skyfast waits up to this time for the responses to all queries. Meanwhile, the
old names stay.

Names that are resolved without all responses are less exact, and would soon change again."""

KINDS: Final = {
    queries.NAMED_INTERFACES: "interfaces",
    queries.NAMESPACES: "namespaces",
    queries.EDGES: "edges",
    queries.KUBERNETES: "kubernetes",
    queries.KUBERNETES_EDGES: "kubernetes_edges",
}
"""Maps each query to the value of the label ``query`` in self metrics."""


def needed(config: Config) -> tuple[Query, ...]:
    """Return the queries that labels and info series need; () if no names are needed."""
    local = (queries.NAMED_INTERFACES, queries.NAMESPACES, queries.EDGES)
    everything = (*local, queries.KUBERNETES, queries.KUBERNETES_EDGES)
    if config.topology.interface_info:
        return everything
    views = config.export.views
    labels = {label.name for view in views for label in view.labels if shows_topology(label)}
    if not labels:
        return ()
    if labels <= INTERFACE_LABELS:
        return (queries.NAMED_INTERFACES,)
    if labels <= INTERFACE_LABELS | LOCAL_LABELS:
        return local
    return everything


@dataclass(slots=True)
class _Progress:
    """The progress of one query."""

    tried: bool = False
    read: bool = False
    """Whether there was a complete response."""
    full_s: float | None = None
    """The monotonic time of the latest complete reading."""
    asked_ms: int = 0
    """The Unix time of the latest reading."""
    newest_ms: int = 0
    """The latest ``UpdatedAt`` of the nodes. Edges are ignored, because they are not newer than
    their nodes."""


class NamePoller:
    """Polls the topology, and applies changed names to a `NameIndex`.

    Worker threads decode the responses, resolve the names, and compare them with the index. The
    event loop applies the changes to the index. Then it calls ``renamed`` with each changed mapping
    and the changed keys of this mapping.
    """

    def __init__(
        self,
        *,
        wanted: tuple[Query, ...],
        export: ExportSelection,
        reads_interfaces: bool,
        index: NameIndex,
        stats: TopologyStats,
        now: Callable[[], float],
        renamed: Callable[[Names, Set[str]], object],
    ) -> None:
        """``wanted`` are the queries that `needed` returned.

        ``now`` is the clock of ``index``, in seconds. If ``reads_interfaces`` is false,
        `TopologyPoller` reads the interfaces and calls `received`.
        """
        self._wanted = wanted
        self._export = export
        self._polled = tuple(
            query for query in wanted if reads_interfaces or query != queries.NAMED_INTERFACES
        )
        self._index = index
        self._names = index.stats
        self._stats = stats
        self._now = now
        self._renamed = renamed
        self._store = TopologyStore()
        self._progress = {query: _Progress() for query in wanted}
        self._asks_changed_pods = False
        self._pods_asked_s = time.monotonic()
        self._is_complete_at_s = time.monotonic()
        if index.ready.is_set():
            self._is_complete_at_s += COMPLETE_WAIT_S
        self._changed = True
        self._wake = asyncio.Event()
        self._applying = asyncio.Lock()
        self._keeping = asyncio.Lock()
        self._limit = LogLimit()

    async def run(self, client: TopologyClient) -> None:
        """Poll until cancelled. Failures of analyzers are not raised."""
        self._names.is_read = False
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read_forever(client))
            tasks.create_task(self._resolve_forever(client))
            if queries.KUBERNETES in self._wanted:
                tasks.create_task(self._ask_unknown_forever(client))

    def interface_reader(self) -> GraphReader:
        return self._store.reader(queries.NAMED_INTERFACES, also_interfaces=True)

    async def received(self, reader: GraphReader) -> None:
        """Use the interfaces that `TopologyPoller` has read with ``reader``."""
        self._progress[queries.NAMED_INTERFACES].tried = True
        await self._keep(queries.NAMED_INTERFACES, reader, is_full=True)
        self._resolve_soon()

    def interfaces_failed(self) -> None:
        """Stop waiting for the interfaces, because no analyzer has answered the query."""
        self._progress[queries.NAMED_INTERFACES].tried = True
        self._resolve_soon()

    async def _read_forever(self, client: TopologyClient) -> None:
        clock = asyncio.get_running_loop().time
        begun = clock()
        while True:
            for query in self._polled:
                try:
                    await self._read(client, query)
                except Exception as error:  # noqa: BLE001 - logged and counted
                    client.unexpected(error)
            self._resolve_soon()
            await asyncio.sleep(INTERVAL_S - (clock() - begun) % INTERVAL_S)

    async def _read(self, client: TopologyClient, query: Query) -> None:
        """Read the changed elements of ``query``, or all elements if a complete reading is due."""
        progress = self._progress[query]
        now_s = time.monotonic()
        since_ms = self._since_ms(progress.asked_ms, OVERLAP_MS)
        is_full = (
            query == queries.NAMED_INTERFACES
            or not since_ms
            or progress.full_s is None
            or now_s - progress.full_s >= FULL_INTERVAL_S
        )
        if query == queries.KUBERNETES:
            self._pods_asked_s = now_s
        asked_ms = _unix_ms()
        asked = query if is_full else queries.changes(query, since_ms)
        progress.tried = True
        reader = await self._ask(client, asked, KINDS[query], kept=query)
        if reader is not None:
            await self._keep(query, reader, is_full=is_full)
            progress.asked_ms = asked_ms
            if is_full:
                progress.full_s = now_s

    def _since_ms(self, asked_ms: int, overlap_ms: int) -> int:
        """Return ``since_ms`` for `queries.changes`, or 0 if it is unknown.

        ``asked_ms`` is the time of the latest reading. The clock of this host or of another host
        can be wrong. Therefore the returned time is ``overlap_ms`` before the earlier of
        ``asked_ms`` and the newest ``UpdatedAt``.
        """
        newest_ms = max(progress.newest_ms for progress in self._progress.values())
        return max(0, min(newest_ms, asked_ms) - overlap_ms)

    async def _ask(
        self, client: TopologyClient, query: Query, kind: str, *, kept: Query
    ) -> GraphReader | None:
        """Send ``query``, which returns all or some of the elements that ``kept`` would return.

        Returns None if no analyzer responded.
        """
        begun = time.monotonic()
        reader = await client.ask(query, lambda: self._store.reader(kept, changes=query))
        if reader is not None:
            self._names.query_duration_s[kind] = time.monotonic() - begun
            self._stats.answers += 1
            self._stats.last_answer_timestamp_s = time.time()
        return reader

    async def _keep(self, query: Query, reader: GraphReader, *, is_full: bool) -> None:
        keep = self._store.replace if is_full else self._store.merge
        async with self._keeping:  # several tasks call this method at the same time
            if await asyncio.to_thread(keep, query, reader):
                self._changed = True
        progress = self._progress[query]
        progress.read |= is_full
        progress.newest_ms = max(progress.newest_ms, reader.newest_ms)
        self._names.elements = len(self._store)
        self._names.last_reading_timestamp_s = time.time()

    def _resolve_soon(self) -> None:
        """Wake `_resolve_forever` if names may have changed and every query has been sent.

        For `COMPLETE_WAIT_S` after a reload, every query must also have had a complete response.
        """
        waits = time.monotonic() < self._is_complete_at_s
        is_complete = all(
            progress.read if waits else progress.tried for progress in self._progress.values()
        )
        may_differ = self._changed or self._index.is_due(self._now())
        if may_differ and is_complete and self._store.is_answered:
            self._wake.set()

    async def _resolve_forever(self, client: TopologyClient) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            begun = time.monotonic()
            self._changed = False
            try:
                await self._resolve()
            except Exception as error:  # noqa: BLE001 - logged and counted
                client.unexpected(error)
                self._changed = True  # try again after the next reading
            duration_s = time.monotonic() - begun
            self._names.resolution_duration_s = duration_s
            # Even if the topology changes all the time, use at most half of a core.
            await asyncio.sleep(duration_s)

    async def _resolve(self) -> None:
        resolution = await asyncio.to_thread(self._resolution)
        async with self._applying:
            self._apply(await asyncio.to_thread(self._index.compare, resolution, self._now()))
        self._names.skipped = {**dict.fromkeys(NAME_SKIPS, 0), **resolution.skipped}
        self._names.resolutions += 1
        self._names.is_read = all(progress.read for progress in self._progress.values())
        kubernetes = self._progress.get(queries.KUBERNETES)
        if kubernetes is None or kubernetes.full_s is not None:
            self._update_hints(resolution)

    def _update_hints(self, resolution: Resolution) -> None:
        hints, names = find_hints(self._export, resolution), self._names
        if hints.without_pods and hints.without_pods != names.labels_without_pods:
            text = (
                "labels %s are empty: the topology has no pods;"
                " enable Skydive's Kubernetes probe (k8s) on an analyzer"
            )
            self._limit.warn(log, "no_pods", text, hints.without_pods)
        for key in hints.missing_labels:
            if key not in names.missing_pod_labels:
                self._limit.warn(log, f"label {key}", "no pod has the label '%s'", key)
        names.labels_without_pods = hints.without_pods
        names.missing_pod_labels = hints.missing_labels

    def _resolution(self) -> Resolution:
        return resolve(self._store.graph(), k8s_labels=self._index.k8s_labels)

    def _apply(self, changes: IndexChanges) -> None:
        if changes.left_out:
            text = "topology too large: %d nodes and addresses ignored"
            self._limit.warn(log, "left_out", text, changes.left_out)
        for names, keys in self._index.apply(changes):
            self._renamed(names, keys)
        self._count()

    def _count(self) -> None:
        index, stats = self._index, self._names
        stats.nodes, stats.addresses = len(index.nodes), len(index.addresses)
        stats.ambiguous, stats.unknown = index.ambiguous, index.addresses.unknown
        stats.dropped = dict(index.addresses.dropped)

    async def _ask_unknown_forever(self, client: TopologyClient) -> None:
        while True:
            await asyncio.sleep(UNKNOWN_INTERVAL_S)
            if not self._index.ready.is_set():
                continue
            try:
                await self._ask_unknown(client)
            except Exception as error:  # noqa: BLE001 - logged and counted
                client.unexpected(error)
            self._count()

    async def _ask_unknown(self, client: TopologyClient) -> None:
        """Alternate between two queries: for pods of unknown addresses, and for changed pods.

        A query for changed pods finds pods that got an address only after this address was queried.
        It also finds pods that have taken over a known address.
        """
        addresses, now = self._index.addresses, self._now()
        query = None
        if not (self._asks_changed_pods and addresses.has_recent_queries(now)):
            query = queries.by_pod_address(addresses.take_unknown(now, MAX_VALUES))
        is_by_address = self._asks_changed_pods = query is not None
        asked_ms = self._progress[queries.KUBERNETES].asked_ms
        since_ms = self._since_ms(asked_ms, PODS_OVERLAP_MS)
        is_due = time.monotonic() - self._pods_asked_s >= PODS_INTERVAL_S
        if query is None and (is_due or addresses.has_recent_queries(now)) and since_ms:
            query = queries.changes(queries.PODS, since_ms)
            self._pods_asked_s = time.monotonic()
        if query is None:
            return
        reader = await self._ask(client, query, "pods", kept=queries.KUBERNETES)
        if reader is None:
            return
        found = (
            list(reader.elements.values())
            if is_by_address
            else self._store.differing(queries.KUBERNETES, reader)
        )
        pods = [element for element in found if isinstance(element, Node)]
        if pods:
            await self._resolve_pods(client, pods, reader)

    async def _resolve_pods(
        self, client: TopologyClient, pods: list[Node], reader: GraphReader
    ) -> None:
        """Store the elements of ``reader``, and resolve the names of ``pods`` immediately."""
        edges = queries.by_child([pod.id for pod in pods if pod.id][:MAX_VALUES])
        kept = queries.KUBERNETES_EDGES
        edge_reader = (
            await self._ask(client, edges, "pod_edges", kept=kept) if edges is not None else None
        )
        await self._keep(queries.KUBERNETES, reader, is_full=False)
        if edge_reader is not None:
            await self._keep(kept, edge_reader, is_full=False)
        if any(_address(pod) in self._index.addresses for pod in pods):
            self._resolve_soon()  # a known address may have another owner now
        resolution = await asyncio.to_thread(self._resolution_of, pods)
        async with self._applying:
            changes = await asyncio.to_thread(self._index.compare_new, resolution, self._now())
            self._apply(changes)

    def _resolution_of(self, pods: list[Node]) -> Resolution:
        return resolve(self._store.graph_of(pods), k8s_labels=self._index.k8s_labels)


def _address(pod: Node) -> str | None:
    return pod.metadata.k8s.ip if pod.metadata.k8s else None


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000
