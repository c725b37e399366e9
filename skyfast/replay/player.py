"""Replays recordings through servers that behave like analyzers.

The servers provide flow subscriptions and the topology API.
"""

import asyncio
import contextlib
import gzip
import logging
import time
from collections.abc import Awaitable, Callable, Set
from itertools import count
from pathlib import Path
from socket import AF_INET, AF_INET6, create_connection, create_server
from typing import Any, Final

import msgspec
from aiohttp import WSCloseCode, web

from skyfast.config.endpoint import SUBSCRIBER_PATH, Endpoint
from skyfast.config.yaml_nodes import ConfigError
from skyfast.replay.recording import Playback, ScheduledMessage, for_namespaces
from skyfast.replay.topology import ReplayedTopology, Update, add_to_counters, selected
from skyfast.runtime.logs import printable
from skyfast.skydive.topology_queries import Query, parse
from skyfast.wording import counted

PING_INTERVAL_S: Final = 2.0
"""Interval of the pings to subscribers: Skydive's default for ``http.ws.ping_delay``."""

STOP_TIMEOUT_S: Final = 1.0
"""Timeout of the closing handshake, in seconds."""

START_WAIT_S: Final = 5.0
"""Maximum time from the first subscription to the start of the replay."""

PROBE_TIMEOUT_S: Final = 2.0
"""Timeout for connecting to a loopback address, in seconds."""

LOOPBACKS: Final = ("127.0.0.1", "::1")
"""Addresses for replayed analyzers; the first available one is used."""

log = logging.getLogger("skyfast.player")


class ReplayServer:
    """Serves the analyzers of a playback, each on an ephemeral port.

    The replay starts when all analyzers have a subscriber, or `START_WAIT_S` after the first
    subscription. As with real analyzers, a message is lost if its analyzer has no subscriber.
    """

    def __init__(
        self, playback: Playback, *, observe: Callable[[Update], object] | None = None
    ) -> None:
        """When an update of the topology takes effect, ``observe`` is called with the update."""
        self._playback = playback
        self._observe = observe
        self._topology = ReplayedTopology()
        self._began_ms = 0
        self._started_ms = 0
        self._analyzers = {
            (number, name): _Analyzer(name or Path(recording.path).name, self._answer)
            for number, recording in enumerate(playback.recordings)
            for name in recording.analyzers
        }
        self._playing: asyncio.Task[None] | None = None

    async def start(self) -> tuple[Endpoint, ...]:
        """Listen, and return the endpoint of each analyzer.

        The alias of an endpoint is the analyzer's recorded name. If no name was recorded, the alias
        is the file name.

        Raises:
            OSError: None of `LOOPBACKS` is available.
            ConfigError: A recording has changed since it was loaded.

        """
        host = await asyncio.to_thread(_loopback)
        self._began_ms = _unix_ms()
        for update in await asyncio.to_thread(self._playback.first_topology):
            self._apply(update)
        endpoints: list[Endpoint] = []
        names: set[str] = set()
        for number, recording in enumerate(self._playback.recordings):
            locations = []
            for name in recording.analyzers:
                analyzer = self._analyzers[number, name]
                port = await analyzer.start(host)
                alias = _unique(printable(analyzer.name), names)
                names.add(alias)
                endpoint = Endpoint(host, port, scheme="ws", resource=SUBSCRIBER_PATH, alias=alias)
                endpoints.append(endpoint)
                locations.append(f"{endpoint.name} is replayed at {endpoint.authority}")
            path, analyzers = printable(recording.path), ", ".join(locations)
            pace = _pace(self._playback)
            log.info("replaying %s (%s)%s; %s", path, recording.summary(), pace, analyzers)
        self._playing = asyncio.create_task(self._play())
        return tuple(endpoints)

    async def stop(self) -> None:
        if self._playing is not None:
            self._playing.cancel()
            await asyncio.wait([self._playing])
        await asyncio.gather(*(analyzer.stop() for analyzer in self._analyzers.values()))

    async def _play(self) -> None:
        await self._wait_for_subscribers()
        self._started_ms = _unix_ms()
        now = asyncio.get_running_loop().time
        began_s = now()
        loop = sent = 0
        while True:
            try:
                for scheduled in self._playback.schedule(loop):
                    await asyncio.sleep(max(began_s + scheduled.due_s - now(), 0))
                    if scheduled.message.kind != "topology":
                        await self._send(scheduled)
                        sent += 1
                    elif sent:
                        # `start` has already applied the updates that precede the first message.
                        self._apply(scheduled.message.update())
            except ConfigError as error:  # pragma: no cover - the file changed during playback
                log.error("a recording changed during the replay: %s", printable(error))
                return
            except Exception:
                log.exception("replay stopped after an unhandled exception")
                return
            if not self._playback.loop_s:
                messages = counted(sent, "message")
                log.info("replay finished: %s in %.0f s", messages, now() - began_s)
                return
            # If the process was paused, skip the loops that would have ended during the pause.
            loop = max(loop + 1, int((now() - began_s) / self._playback.loop_s))
            self._topology.rewind()

    async def _wait_for_subscribers(self) -> None:
        waiting = [
            asyncio.create_task(analyzer.subscribed.wait()) for analyzer in self._analyzers.values()
        ]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(waiting, timeout=START_WAIT_S)
        finally:
            for task in waiting:
                task.cancel()

    async def _send(self, scheduled: ScheduledMessage) -> None:
        analyzer = self._analyzers.get((scheduled.recording, scheduled.message.analyzer))
        if analyzer is None:
            path = self._playback.recordings[scheduled.recording].path
            raise ConfigError(f"{path}: unexpected analyzer {scheduled.message.analyzer}")
        await analyzer.send(scheduled.data(self._started_ms))

    def _apply(self, update: Update) -> None:
        self._topology.apply(update)
        if self._observe is not None:
            self._observe(update)

    async def _answer(self, query: Query) -> bytes:
        now_ms = _unix_ms()
        first_ms, speed, began_ms = self._playback.first_ms, self._playback.speed, self._began_ms
        is_loop, offsets = bool(self._playback.loop_s), self._topology.offsets()

        def present(element: dict[str, Any]) -> None:
            for name in ("CreatedAt", "UpdatedAt"):
                recorded_ms = element.get(name)
                if isinstance(recorded_ms, int) and recorded_ms:
                    # Map all times with one formula, so that their order does not change.
                    present_ms = began_ms + int((recorded_ms - first_ms) // speed)
                    element[name] = max(present_ms, 1)
            if is_loop:
                match element:
                    case {"ID": str(element_id), "Metadata": {"Metric": dict()}}:
                        add_to_counters(element, offsets.get(element_id, {}))
                        # A changed counter needs a new `UpdatedAt`.
                        element["UpdatedAt"] = now_ms

        # For a large topology, `selected` takes a fraction of a second. Run it in a thread, so that
        # the event loop is not blocked.
        elements = self._topology.elements(query)
        return await asyncio.to_thread(selected, elements, query, present)


class _Analyzer:
    def __init__(self, name: str, answer: Callable[[Query], Awaitable[bytes]]) -> None:
        self.name = name
        self.subscribed = asyncio.Event()
        self._answer = answer
        self._runner: web.AppRunner | None = None
        self._sockets: dict[web.WebSocketResponse, frozenset[str]] = {}

    async def start(self, host: str) -> int:
        app = web.Application()
        app.router.add_get(SUBSCRIBER_PATH, self._subscribe)
        app.router.add_post("/api/topology", self._topology_response)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_TIMEOUT_S)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        going_away = (socket.close(code=WSCloseCode.GOING_AWAY) for socket in self._sockets)
        await asyncio.gather(*going_away, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()

    async def send(self, data: bytes) -> None:
        for socket, namespaces in list(self._sockets.items()):
            # `_subscribe` removes disconnected subscribers.
            with contextlib.suppress(ConnectionError):
                for copy in for_namespaces(data, namespaces):
                    await _send(socket, copy)

    async def _subscribe(self, request: web.Request) -> web.WebSocketResponse:
        asked = request.headers.getall("X-Websocket-Namespace", []) or request.query.getall(
            "x-websocket-namespace", []
        )
        socket = web.WebSocketResponse(timeout=STOP_TIMEOUT_S, compress=False)
        host_id = self.name.encode("ascii", "replace").decode()
        socket.headers.update({"X-Host-ID": printable(host_id), "X-Service-Type": "analyzer"})
        await socket.prepare(request)
        self._sockets[socket] = frozenset(asked or ("flow", "stats"))
        self.subscribed.set()
        pings = asyncio.create_task(_ping(socket))
        try:
            async for _ in socket:
                pass
        finally:
            del self._sockets[socket]
            pings.cancel()
            # Ignore the exception of a ping that failed because the connection was lost.
            await asyncio.gather(pings, return_exceptions=True)
        return socket

    async def _topology_response(self, request: web.Request) -> web.Response:
        try:
            asked = msgspec.json.decode(await request.read(), type=dict[str, str])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise web.HTTPBadRequest from None
        query = parse(asked.get("GremlinQuery", ""))
        if query is None:
            raise web.HTTPBadRequest(text="a replayed analyzer supports only skyfast's own queries")
        body = await self._answer(query)
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            body = await asyncio.to_thread(gzip.compress, body, 1)
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)


async def _send(socket: web.WebSocketResponse, data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        await socket.send_bytes(data)
    else:
        await socket.send_str(text)


async def _ping(socket: web.WebSocketResponse) -> None:
    while True:
        await asyncio.sleep(PING_INTERVAL_S)
        await socket.ping()


def _unique(name: str, taken: Set[str]) -> str:
    """Return ``name``, with a number such as ``(2)`` appended if the name is in ``taken``."""
    if name not in taken:
        return name
    return next(unique for n in count(2) if (unique := f"{name} ({n})") not in taken)


def _pace(playback: Playback) -> str:
    speed = f", at {playback.speed:g} times the original speed" if playback.speed != 1 else ""
    loop = f", repeated every {playback.loop_s:g} s" if playback.loop_s else ""
    return speed + loop


def _loopback() -> str:
    """Return the first loopback address that accepts connections.

    The function connects, because listening works even if the loopback interface is down.
    """
    problems = []
    for host in LOOPBACKS:
        family = AF_INET6 if ":" in host else AF_INET
        try:
            with create_server((host, 0), family=family) as listener:
                create_connection(listener.getsockname()[:2], PROBE_TIMEOUT_S).close()
        except OSError as error:
            problems.append(f"{host}: {error.strerror or error}")
        else:
            return host
    raise OSError("; ".join(problems))


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000
