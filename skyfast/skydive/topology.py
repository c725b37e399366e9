"""Polls the topology API of the analyzers for interface metrics and names.

This module is independent of flows, so that failures of the topology API cannot affect flows.
"""

import asyncio
import time
from collections.abc import Callable, Set

from skyfast.config.model import Config
from skyfast.flows.plan import Names
from skyfast.skydive.interfaces import Interfaces
from skyfast.skydive.name_index import NameIndex
from skyfast.skydive.name_poller import NamePoller
from skyfast.skydive.topology_client import Observer, TopologyClient
from skyfast.skydive.topology_nodes import NodesReader, NodesResponse
from skyfast.skydive.topology_queries import INTERFACES, NAMED_INTERFACES, Query
from skyfast.stats import TopologyStats


class TopologyPoller:
    """Polls interfaces and names.

    If both interface metrics and names are enabled, one query reads the interfaces for both.
    """

    def __init__(
        self,
        *,
        config: Config,
        interfaces: Interfaces,
        stats: TopologyStats,
        now: Callable[[], float],
        names: NameIndex | None = None,
        wanted: tuple[Query, ...] = (),
        renamed: Callable[[Names, Set[str]], object] = lambda _names, _keys: None,
        observe: Callable[[Query], Observer] | None = None,
    ) -> None:
        """``now`` is the clock of ``interfaces`` and ``names``, in seconds.

        * ``names``: if None, only interfaces are polled.
        * ``wanted``: the queries that ``names`` needs.
        * ``renamed``: called on the event loop with each changed mapping of ``names``, and with the
          changed keys of this mapping.
        * ``observe``: called with each query. Returns an observer, which gets a copy of the
          response.

        Raises:
            ConfigError: An analyzer uses TLS, and a file in ``config.tls`` is unusable.

        """
        self._interval_s = config.topology.interfaces_interval_s
        self._interfaces = interfaces
        self._stats = stats
        self._now = now
        self._client = TopologyClient(config=config, stats=stats, observe=observe)
        self._names = (
            NamePoller(
                wanted=wanted,
                export=config.export,
                reads_interfaces=not self._interval_s,
                index=names,
                stats=stats,
                now=now,
                renamed=renamed,
            )
            if names is not None
            else None
        )

    async def run(self) -> None:
        """Poll until cancelled. Failures of analyzers are not raised.

        Returns at once if neither interfaces nor names are used.
        """
        if not self._interval_s and self._names is None:
            return
        async with self._client, asyncio.TaskGroup() as tasks:
            if self._interval_s:
                tasks.create_task(self._poll_interfaces())
            if self._names is not None:
                tasks.create_task(self._names.run(self._client))

    async def _poll_interfaces(self) -> None:
        clock = asyncio.get_running_loop().time
        begun = clock()
        while True:
            try:
                await self._read_interfaces()
            except Exception as error:  # noqa: BLE001 - logged and counted
                self._client.unexpected(error)
            await asyncio.sleep(self._interval_s - (clock() - begun) % self._interval_s)

    async def _read_interfaces(self) -> None:
        if self._names is None:
            reader = await self._client.ask(INTERFACES, NodesReader)
            if reader is None:
                return
            response, now = reader.response(), self._now()
        else:
            named = await self._client.ask(NAMED_INTERFACES, self._names.interface_reader)
            if named is None:
                self._names.interfaces_failed()
                return
            response, now = _only_interfaces(named.response()), self._now()
            await self._names.received(named)
        # For 20,000 interfaces, this takes up to a second. Meanwhile, the event loop can get the
        # GIL.
        await asyncio.to_thread(self._interfaces.update, response, now)
        self._stats.answers += 1
        self._stats.last_answer_timestamp_s = time.time()


def _only_interfaces(response: NodesResponse) -> NodesResponse:
    """Reduce a `NAMED_INTERFACES` response to the nodes that `INTERFACES` would have returned."""
    ether = [node for node in response.nodes if node.metadata.encap_type == "ether"]
    return NodesResponse(ether, response.invalid, response.too_long, response.excess)
