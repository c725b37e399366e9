"""An analyzer played from a recording, for trying skyfast where there is no Skydive.

It serves what skyfast uses of a real one: the flow subscription and the topology API. What to
play is a pure function of the recording, the number of the loop and the time; only
:class:`DemoAnalyzer` has a clock and a socket.

The recording is 139 s long and is played five times as fast, again and again. So every
connection is reported at least once every ``LOOP_S`` seconds: well within the default
``connection_timeout``, so that it never leaves, and often enough for a ``rate()`` over one
minute to see it grow at a scrape interval of 15 s.
"""

import asyncio
import gzip
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final
from uuid import UUID

import msgspec
from aiohttp import WSCloseCode, web

from skyfast.topology import QUERY, QUERY_WITH_NAMES

SPEED: Final = 5
"""How many recorded seconds go by in one second."""

LOOP_S: Final = 30.0
"""Time from the start of one loop to the start of the next, in seconds."""

PING_INTERVAL_S: Final = 2.0
"""How often an analyzer pings its subscribers: ``http.ws.ping_delay``'s default."""

STOP_TIMEOUT_S: Final = 1.0
"""How long a subscriber may take over the closing handshake, in seconds."""

_LOOP_MS = round(LOOP_S * 1000)
_UUID_STEP = 0x9E3779B97F4A7C15  # odd, so that 2^64 loops go by before a mask comes back
_TIMES = ("Start", "Last")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Messages of an analyzer, in the order in which they were sent.

    ``sent_ms`` holds the recorded time of each, in Unix milliseconds. It was not written down
    with the messages, so it is taken from their flows: nothing is sent before it has happened.
    """

    messages: tuple[bytes, ...]
    sent_ms: tuple[int, ...]

    def due_s(self, index: int) -> float:
        """Return how long after the start of a loop message ``index`` is sent, in seconds."""
        return (self.sent_ms[index] - self.sent_ms[0]) / SPEED / 1000

    def replay(self, index: int, *, loop: int, started_ms: int) -> dict[str, Any]:
        """Return message ``index`` as it is sent in loop ``loop``, decoded.

        ``started_ms`` is when loop 0 started, in Unix milliseconds. All times move to the
        present. Flows and messages get the loop's own ``UUID``: every loop is new traffic under
        the same labels, and its totals begin at zero.
        """
        message: dict[str, Any] = msgspec.json.decode(self.messages[index])
        mask = loop * _UUID_STEP % 2**64
        base_ms = started_ms + loop * _LOOP_MS
        message["UUID"] = str(UUID(int=UUID(message["UUID"]).int ^ mask))
        if message["Type"] == "store":
            for flow in message["Obj"]:
                for name in ("UUID", "ParentUUID"):
                    if flow[name]:
                        flow[name] = f"{int(flow[name], 16) ^ mask:x}"
                for times in (flow, flow["Metric"], flow["LastUpdateMetric"]):
                    for name in _TIMES:
                        times[name] = base_ms + (times[name] - self.sent_ms[0]) // SPEED
        return message


def load_recording() -> Recording:
    """Return the recording that is part of the package."""
    messages = tuple(_packaged("recording.jsonl.gz").splitlines())
    newest_ms = [_newest_ms(message) for message in messages]
    # The file begins with messages that carry no time: they belong to the first that does.
    sent_ms = [next(ms for ms in newest_ms if ms)]
    for ms in newest_ms[1:]:
        sent_ms.append(max(ms, sent_ms[-1]))
    return Recording(messages=messages, sent_ms=tuple(sent_ms))


def load_topology() -> list[dict[str, Any]]:
    """Return the recorded answer of the topology API, decoded."""
    nodes: list[dict[str, Any]] = msgspec.json.decode(_packaged("topology.json.gz"))
    return nodes


def _packaged(name: str) -> bytes:
    return gzip.decompress(files("skyfast").joinpath("data", name).read_bytes())


def _newest_ms(line: bytes) -> int:
    """Return the newest time in a message, in Unix milliseconds, or 0 when it has none."""
    message = msgspec.json.decode(line)
    if message["Type"] != "store":
        return 0
    newest_ms: int = max(
        times["Last"]
        for flow in message["Obj"]
        for times in (flow, flow["Metric"], flow["LastUpdateMetric"])
    )
    return newest_ms


def grown(nodes: list[dict[str, Any]], *, started_ms: int, now_ms: int) -> list[dict[str, Any]]:
    """Return ``nodes`` with counters as they are at ``now_ms``; both times in Unix milliseconds.

    Every loop adds the recorded totals once more, spread evenly over its time.
    """
    played_ms = max(now_ms - started_ms, 0)
    return [
        node
        | {
            "CreatedAt": started_ms - (node["UpdatedAt"] - node["CreatedAt"]),
            "UpdatedAt": now_ms,
            "Metadata": node["Metadata"]
            | {
                "Metric": {
                    name: total + total * played_ms // _LOOP_MS
                    for name, total in node["Metadata"]["Metric"].items()
                }
            },
        }
        for node in nodes
    ]


def addressed(message: dict[str, Any], namespaces: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Yield ``message`` once for each of ``namespaces`` that it belongs to.

    ``flow/CAPTURE_ID`` holds the flows of one capture, under that name.
    """
    for namespace in sorted(namespaces):
        kind, _, capture_id = namespace.partition("/")
        if kind != message["Namespace"]:
            continue
        if not capture_id:
            yield message
        elif flows := [flow for flow in message["Obj"] if flow["CaptureID"] == capture_id]:
            yield message | {"Namespace": namespace, "Obj": flows}


class DemoAnalyzer:
    """The analyzer, on a port of its own choice. The first subscriber starts the recording."""

    def __init__(self, *, host: str = "127.0.0.1") -> None:
        """Prepare to listen on the address ``host``."""
        self._host = host
        self._recording = load_recording()
        self._topology = load_topology()
        self._runner: web.AppRunner | None = None
        self._sockets: set[web.WebSocketResponse] = set()
        # When loop 0 started: on the event loop's clock, and on the wall clock.
        self._started: tuple[float, int] | None = None

    async def start(self) -> int:
        """Listen, and return the TCP port."""
        app = web.Application()
        app.router.add_get("/ws/subscriber/flow", self._subscribe)
        app.router.add_post("/api/topology", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_TIMEOUT_S)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """Close every subscription and stop to listen."""
        going_away = (socket.close(code=WSCloseCode.GOING_AWAY) for socket in self._sockets)
        await asyncio.gather(*going_away, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()

    async def _subscribe(self, request: web.Request) -> web.WebSocketResponse:
        asked = request.headers.getall("X-Websocket-Namespace", []) or request.query.getall(
            "x-websocket-namespace", []
        )
        namespaces = frozenset(asked or ("flow", "stats"))
        socket = web.WebSocketResponse(timeout=STOP_TIMEOUT_S, compress=False)
        socket.headers.update({"X-Host-ID": "demo", "X-Service-Type": "analyzer"})
        await socket.prepare(request)
        self._sockets.add(socket)
        senders = [
            asyncio.create_task(self._play(socket, namespaces)),
            asyncio.create_task(_ping(socket)),
        ]
        try:
            async for _ in socket:
                pass
        finally:
            self._sockets.discard(socket)
            for sender in senders:
                sender.cancel()
            # A sender that fails has lost its socket, which ends the loop above as well.
            await asyncio.gather(*senders, return_exceptions=True)
        return socket

    async def _play(self, socket: web.WebSocketResponse, namespaces: frozenset[str]) -> None:
        """Send what is due from now on, for ever."""
        now = asyncio.get_running_loop().time
        joined = now()
        if self._started is None:
            self._started = (joined, time.time_ns() // 1_000_000)
        started, started_ms = self._started
        loop = int((joined - started) / LOOP_S)
        while True:
            for index in range(len(self._recording.messages)):
                due = started + loop * LOOP_S + self._recording.due_s(index)
                if due < joined:
                    continue
                await asyncio.sleep(due - now())
                message = self._recording.replay(index, loop=loop, started_ms=started_ms)
                for copy in addressed(message, namespaces):
                    await socket.send_str(msgspec.json.encode(copy).decode())
            # After a pause of the process the loops that were missed are left out.
            loop = max(loop + 1, int((now() - started) / LOOP_S))

    async def _answer(self, request: web.Request) -> web.Response:
        """Answer the query that was recorded, and the one for these nodes among others."""
        try:
            asked = msgspec.json.decode(await request.read(), type=dict[str, str])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise web.HTTPBadRequest from None
        if asked.get("GremlinQuery") not in {QUERY, QUERY_WITH_NAMES}:
            raise web.HTTPBadRequest(text="the demo analyzer knows skyfast's own queries alone")
        now_ms = time.time_ns() // 1_000_000
        started_ms = now_ms if self._started is None else self._started[1]
        nodes = grown(self._topology, started_ms=started_ms, now_ms=now_ms)
        response = web.Response(
            body=msgspec.json.encode(nodes), content_type="application/json", charset="utf-8"
        )
        response.enable_compression()
        return response


async def _ping(socket: web.WebSocketResponse) -> None:
    while True:
        await asyncio.sleep(PING_INTERVAL_S)
        await socket.ping()
