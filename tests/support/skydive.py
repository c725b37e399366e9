"""A model of Skydive in plain Python: agents, analyzers and their messages, in virtual time.

The model follows Skydive's source code (v0.28, July 2024), but contains none of this code.
Docstrings name the Go functions that a method models. A `Cluster` runs an event queue, and yields
each message as a JSON object when a subscriber receives it.

Times are integers in milliseconds. ``now_ms`` is the true time. Each agent has its own wall clock,
which is ``offset_ms`` ahead and can step. Equal seeds give equal runs.

The model omits tunnels (``ParentUUID``), ``TCPMetric``, ``IPMetric``, and captures by eBPF, sFlow
and NetFlow. Go's tickers drop ticks while their reader is busy; the model's tickers do not.
"""

from __future__ import annotations

import heapq
import ipaddress
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from typing import Any, Protocol

JSON = dict[str, Any]

EPOCH_MS = 1_700_000_000_000
"""The Unix time at time 0 of a cluster."""

HOLD_MS = 15_000
"""``HoldTimeoutMilliseconds``: a flow that started with FIN or RST is removed this long after its
last packet."""

STATS_MS = 10_000
READING_MS = 1_000
"""``agent.capture.stats_update``: interval between readings of a socket's packet count."""

BULK_FLOWS = 100
BULK_MS = 5_000
MAX_BUFFERED_FLOWS = 100_000
PONG_TIMEOUT_MS = 7_000
"""``http.ws.pong_timeout`` plus ``http.ws.ping_delay``: without a pong for this time, an analyzer
drops the client."""

RECONNECT_MS = 1_000
"""Interval between an agent's attempts to connect to an analyzer."""

NOT_FINISHED, TIMEOUT, TCP_FIN, TCP_RST = range(4)
"""The values of ``FinishType``."""

COUNTERS = ("ABPackets", "ABBytes", "BAPackets", "BABytes")
ALL_NAMESPACES = ("flow", "stats")


# Packets


@dataclass(frozen=True)
class Conversation:
    """Two endpoints that exchange packets. A flow's ``A`` is the sender of its first packet.

    ``protocol`` is TCP, UDP, SCTP, ICMP or ARP. ``application`` is the last layer that Skydive
    recognizes, by default the protocol.
    """

    a: str = "10.0.0.1"
    b: str = "10.0.0.2"
    a_port: int = 40_000
    b_port: int = 443
    protocol: str = "TCP"
    application: str = ""

    @property
    def endpoints(self) -> tuple[tuple[str, int], tuple[str, int]]:
        return (self.a, self.a_port), (self.b, self.b_port)

    @property
    def layer(self) -> str:
        """The value of ``Application``."""
        return self.application or {"ICMP": self._icmp}.get(self.protocol, self.protocol)

    @property
    def _is_ipv6(self) -> bool:
        return ipaddress.ip_address(self.a).version == 6

    @property
    def _icmp(self) -> str:
        return "ICMPv6" if self._is_ipv6 else "ICMPv4"

    @property
    def path(self) -> str:
        """The value of ``LayersPath``."""
        if self.protocol == "ARP":
            return "Ethernet/ARP"
        transport = self._icmp if self.protocol == "ICMP" else self.protocol
        path = f"Ethernet/{'IPv6' if self._is_ipv6 else 'IPv4'}/{transport}"
        return path if self.layer == transport else f"{path}/{self.layer}"

    def layers(self, *, is_reply: bool) -> JSON:
        """Return the layer fields of a flow whose first packet is a request or a reply."""
        (a, a_port), (b, b_port) = reversed(self.endpoints) if is_reply else self.endpoints
        layers: JSON = {"Link": {"Protocol": "ETHERNET", "A": _mac(a), "B": _mac(b), "ID": 0}}
        if self.protocol != "ARP":
            family = "IPV6" if self._is_ipv6 else "IPV4"
            layers["Network"] = {"Protocol": family, "A": a, "B": b, "ID": 0}
        if self.protocol == "ICMP":
            layers["ICMP"] = {"Type": "ECHO"}
        elif self.protocol != "ARP":
            layers["Transport"] = {"Protocol": self.protocol, "A": a_port, "B": b_port, "ID": 0}
        return layers


@dataclass(frozen=True)
class Packet:
    """Equal packets of one conversation, with ``size`` bytes each.

    ``flags`` are TCP flags: any of the letters S, A, F and R.
    """

    conversation: Conversation
    size: int = 100
    is_reply: bool = False
    flags: str = "A"
    count: int = 1


def _hash(*parts: object) -> str:
    """Return a hash in Skydive's format: hexadecimal, without leading zeros."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return format(int.from_bytes(digest, "big"), "x")


def _mac(address: str) -> str:
    digits = blake2b(address.encode(), digest_size=5).hexdigest()
    return ":".join(("02", *(digits[i : i + 2] for i in range(0, 10, 2))))


# An agent's flow table


@dataclass(frozen=True, kw_only=True)
class FlowOptions:
    """The keys ``flow.*`` of an agent's configuration file.

    If ``expire_first`` is None, simultaneous expiry and update ticks have a random order, as in
    Go's ``select``.
    """

    update_ms: int = 60_000
    expire_ms: int = 600_000
    max_entries: int = 500_000
    protocol: str = "udp"
    application_timeout_ms: tuple[tuple[str, int], ...] = (("ARP", 10_000), ("DNS", 10_000))
    expire_first: bool | None = None


class Sender(Protocol):
    """Go's ``flow.Sender``."""

    def send_flows(self, flows: Sequence[JSON], /) -> None: ...

    def send_stats(self, stats: JSON, /) -> None: ...


@dataclass(eq=False)
class Flow:
    """An entry of a flow table: the fields of ``flow.Flow``, including ``XXX_state``."""

    uuid: str
    conversation: Conversation
    is_reply: bool
    layers: JSON
    tracking: JSON
    start_ms: int
    last_ms: int
    finish: int = NOT_FINISHED
    metric: Counter[str] = field(default_factory=Counter)
    rtt_ns: int = 0
    last_update: JSON | None = None
    previous: Counter[str] = field(default_factory=Counter)
    """``lastMetric``: the totals at the previous update tick."""
    update_version: int = 0
    first_packet_ns: int = 0
    """``rtt1stPacket``: the time of the packet whose reply determines the round-trip time."""

    def add(self, packet: Packet, wall_ms: int) -> None:
        """Count packets (``Flow.Update``)."""
        self.last_ms = wall_ms
        direction = "AB" if packet.is_reply == self.is_reply else "BA"
        self.metric[f"{direction}Packets"] += packet.count
        self.metric[f"{direction}Bytes"] += packet.count * packet.size
        self._measure_rtt(packet, wall_ms * 1_000_000)

    def _measure_rtt(self, packet: Packet, wall_ns: int) -> None:
        """Set the round-trip time (``updateRTT``). A clock step can make this time negative."""
        protocol = self.conversation.protocol
        is_answer = False
        if protocol == "ICMP":
            starts, is_answer = not packet.is_reply, packet.is_reply
        elif protocol == "TCP":
            starts = "S" in packet.flags
            is_answer = {"S", "A"} <= {*packet.flags} or "R" in packet.flags
        else:
            return
        if starts and not self.first_packet_ns:
            self.first_packet_ns = wall_ns
        elif is_answer and self.first_packet_ns:
            self.rtt_ns = wall_ns - self.first_packet_ns
            self.first_packet_ns = 0

    def update_metric(self, start_ms: int, last_ms: int) -> None:
        """Set ``LastUpdateMetric`` to the increase since the previous tick (``updateMetric``)."""
        if self.last_update is None:
            start_ms = self.start_ms
        self.last_update = {
            name: self.metric[name] - self.previous[name] for name in COUNTERS
        } | self._times(start_ms, last_ms)

    def zero_metric(self, start_ms: int, last_ms: int) -> None:
        """Set ``LastUpdateMetric`` after a tick without packets."""
        zeros: JSON = dict.fromkeys(COUNTERS, 0) | {"Start": start_ms, "Last": last_ms}
        self.last_update = (self.last_update or {}) | zeros

    def _times(self, start_ms: int, last_ms: int) -> JSON:
        times = {"Start": start_ms, "Last": last_ms}
        return times | {"RTT": self.rtt_ns} if self.rtt_ns else times

    def report(self, node_tid: str, capture_id: str) -> JSON:
        conversation = self.conversation
        totals = {name: self.metric[name] for name in COUNTERS}
        head = {"UUID": self.uuid, "LayersPath": conversation.path}
        last_update = (
            {} if self.last_update is None else {"LastUpdateMetric": dict(self.last_update)}
        )
        return {
            **head,
            "Application": conversation.layer,
            **self.layers,
            **last_update,
            "Metric": totals | self._times(self.start_ms, self.last_ms),
            "Start": self.start_ms,
            "Last": self.last_ms,
            **self.tracking,
            "ParentUUID": "",
            "NodeTID": node_tid,
            "CaptureID": capture_id,
            "RawPacketsCaptured": 0,
            **({"FinishType": self.finish} if self.finish else {}),
        }


class FlowTable:
    """The flows of a capture point (``flow.Table``). Times come from the agent's wall clock."""

    def __init__(
        self,
        sender: Sender,
        *,
        node_tid: str = "node-1",
        capture_id: str = "capture-1",
        options: FlowOptions | None = None,
    ) -> None:
        self.sender = sender
        self.node_tid = node_tid
        self.capture_id = capture_id
        self.options = options or FlowOptions()
        self.flows: OrderedDict[str, Flow] = OrderedDict()
        """Flows by key, the least recently used first."""
        self.last_update_ms = 0
        self.last_expire_ms = 0
        self.update_version = 0
        self.is_running = True
        self._timeouts_ms = dict(self.options.application_timeout_ms)
        self._dropped = 0
        self._packets = 0
        self._received = 0

    def packet(self, packet: Packet, wall_ms: int) -> Flow:
        """Count packets in their flow (``packetToFlow``).

        In a full table, a new flow evicts the least recently used flow, which gets no closing
        report (``getOrCreateFlow``). Only the first packet of a flow can set ``FinishType`` to FIN
        or RST (``newTransportLayer``).
        """
        conversation = packet.conversation
        key = _hash(conversation.protocol, sorted(conversation.endpoints))
        flow = self.flows.get(key)
        if flow is None:
            if len(self.flows) >= self.options.max_entries:
                self.flows.popitem(last=False)
                self._dropped += 1
            flow = self.flows[key] = self._new_flow(key, packet, wall_ms)
        self.flows.move_to_end(key)
        flow.add(packet, wall_ms)
        flow.update_version = self.update_version + 1
        self._packets += packet.count
        return flow

    def _new_flow(self, key: str, packet: Packet, wall_ms: int) -> Flow:
        """Models ``Init``, ``initFromPacket`` and ``setUUIDs``."""
        conversation, flags = packet.conversation, packet.flags
        finish = NOT_FINISHED
        if conversation.protocol == "TCP":
            finish = TCP_FIN if "F" in flags else TCP_RST if "R" in flags else NOT_FINISHED
        return Flow(
            uuid=_hash(key, wall_ms, self.node_tid),
            conversation=conversation,
            is_reply=packet.is_reply,
            layers=conversation.layers(is_reply=packet.is_reply),
            tracking={"TrackingID": key, "L3TrackingID": _hash("L3", key)},
            start_ms=wall_ms,
            last_ms=wall_ms,
            finish=finish,
        )

    def update_at(self, wall_ms: int) -> None:
        """Run an update tick (``updateAt``, ``update``).

        A flow with packets since the previous tick is reported. A flow without packets is closed
        after the timeout of its application, and keeps its ``LastUpdateMetric``.

        A flow with a ``FinishType`` is removed once its last packet is 15 s old, even if this tick
        has reported it.
        """
        reports = []
        for key, flow in list(self.flows.items()):
            timeout_ms = self._timeouts_ms.get(flow.conversation.layer, 0)
            silent_ms = wall_ms - flow.last_ms
            if flow.update_version > self.update_version:
                flow.update_metric(self.last_update_ms, wall_ms)
                reports.append(flow)
            elif silent_ms > timeout_ms > 0:
                flow.finish = TIMEOUT
                reports.append(flow)
                del self.flows[key]
            else:
                flow.zero_metric(self.last_update_ms, wall_ms)
            flow.previous = flow.metric.copy()
            if flow.finish != NOT_FINISHED and silent_ms >= HOLD_MS:
                self.flows.pop(key, None)
        self.last_update_ms = wall_ms
        self.update_version += 1
        if reports:
            self._send(reports)

    def expire_at(self, wall_ms: int) -> None:
        """Close the flows without packets since the previous expiry tick (``expireAt``)."""
        self._expire(self.last_expire_ms)
        self.last_expire_ms = wall_ms

    def stop(self) -> None:
        """Close all flows (``Stop``, ``expireNow``)."""
        self._expire(None)
        self.is_running = False

    def _expire(self, before_ms: int | None) -> None:
        """Close flows (``expire``). Flows that started with FIN or RST end without a report.

        Packets since the latest update tick become the ``LastUpdateMetric``. Without such packets,
        ``LastUpdateMetric`` stays unchanged.
        """
        reports = []
        for key, flow in list(self.flows.items()):
            if before_ms is None or flow.last_ms < before_ms:
                if flow.update_version > self.update_version:
                    flow.update_metric(self.last_update_ms, flow.last_ms)
                if flow.finish == NOT_FINISHED:
                    flow.finish = TIMEOUT
                    reports.append(flow)
                del self.flows[key]
        self._send(reports)

    def _send(self, flows: Iterable[Flow]) -> None:
        self.sender.send_flows([flow.report(self.node_tid, self.capture_id) for flow in flows])

    def read_packets(self, times: int = 1) -> None:
        """Read the socket's packet count (``updateStats`` of the probe, every second).

        Each reading is a running total. ``Run`` adds up ten readings, so ``PacketsReceived`` is
        about ten times too high.
        """
        self._received += times * self._packets

    def stats(self) -> None:
        """Report and reset the statistics (the ``statsTicker`` of ``Run``)."""
        self.sender.send_stats(
            {
                "CaptureID": self.capture_id,
                "FlowCount": len(self.flows),
                "FlowDropped": self._dropped,
                "KernelFlowDropped": 0,
                "PacketsDropped": 0,
                "PacketsReceived": self._received,
            }
        )
        self._dropped = self._received = 0


# Agents


class Agent:
    """The agent of a host, with its flow tables and connected analyzers (``FlowClientPool``).

    A monotonic clock decides when ticks are due. All reported times come from the wall clock.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        name: str = "agent-1",
        options: FlowOptions | None = None,
        offset_ms: int = 0,
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.options = options or FlowOptions()
        self.offset_ms = offset_ms
        self.analyzers: list[Analyzer] = []
        self.tables: list[FlowTable] = []
        self._readings: dict[FlowTable, int] = {}
        self.dropped = 0
        """Reports dropped because no analyzer was connected."""
        self.is_running = True

    @property
    def wall_ms(self) -> int:
        return EPOCH_MS + self.cluster.now_ms + self.offset_ms

    def capture(self, *, node_tid: str = "node-1", capture_id: str = "capture-1") -> FlowTable:
        """Start a capture and its tickers (``Run``)."""
        options = self.options
        table = FlowTable(self, node_tid=node_tid, capture_id=capture_id, options=options)
        self.tables.append(table)
        start_ms = self.cluster.now_ms
        self._readings[table] = start_ms // READING_MS

        def tick(period_ms: int, event: Callable[[], None], order: Callable[[], int]) -> None:
            def run(number: int) -> None:
                if table.is_running:
                    event()
                    schedule(number + 1)

            def schedule(number: int) -> None:
                time_ms = start_ms + number * period_ms
                self.cluster.at(time_ms, lambda: run(number), order=order())

            schedule(1)

        def expire_order() -> int:
            if options.expire_first is None:
                return self.cluster.random.choice((-1, 1))
            return -1 if options.expire_first else 1

        tick(options.update_ms, lambda: table.update_at(self.wall_ms), lambda: 0)
        tick(options.expire_ms, lambda: table.expire_at(self.wall_ms), expire_order)
        tick(STATS_MS, lambda: self._stats(table), lambda: 2)
        return table

    def packet(self, table: FlowTable, packet: Packet) -> Flow:
        self._read_packets(table)
        return table.packet(packet, self.wall_ms)

    def _read_packets(self, table: FlowTable) -> None:
        """Read the packet count for each second since the latest reading."""
        readings = self.cluster.now_ms // READING_MS
        table.read_packets(readings - self._readings[table])
        self._readings[table] = readings

    def _stats(self, table: FlowTable) -> None:
        self._read_packets(table)
        table.stats()

    def stop_capture(self, table: FlowTable) -> None:
        table.stop()
        self.tables.remove(table)

    def stop(self) -> None:
        """Stop cleanly, after sending closing reports (``Agent.Stop``)."""
        for table in list(self.tables):
            self.stop_capture(table)
        self._end()

    def kill(self) -> None:
        """Stop immediately, without closing reports."""
        for table in self.tables:
            table.is_running = False
        self.tables.clear()
        self._end()

    def _end(self) -> None:
        self.is_running = False
        self.analyzers.clear()
        self.cluster.agents.remove(self)

    def step_clock(self, by_ms: int) -> None:
        self.offset_ms += by_ms

    def on_connected(self, analyzer: Analyzer) -> None:
        """Add a running analyzer, if it is new (``OnConnected``)."""
        if self.is_running and analyzer.is_running and analyzer not in self.analyzers:
            self.analyzers.append(analyzer)

    def on_disconnected(self, analyzer: Analyzer) -> None:
        """Models ``OnDisconnected``."""
        if analyzer in self.analyzers:
            self.analyzers.remove(analyzer)

    def send_flows(self, flows: Sequence[JSON]) -> None:
        """Send all flows of one tick to one analyzer (``SendFlows``, ``sendFlows``).

        With UDP, each flow is a datagram. With WebSocket, a message has up to ten flows.
        """
        if not self.analyzers:
            self.dropped += len(flows)
            return
        analyzer = self.cluster.random.choice(self.analyzers)
        is_udp = self.options.protocol == "udp"
        batch_size = 1 if is_udp else 10
        for i in range(0, len(flows), batch_size):
            batch = flows[i : i + batch_size]
            if not (is_udp and self.cluster.loses(self, analyzer, batch)):
                analyzer.receive(Message(flows=batch), is_udp=is_udp)

    def send_stats(self, stats: JSON) -> None:
        """Models ``SendStats``."""
        if self.analyzers:
            analyzer = self.cluster.random.choice(self.analyzers)
            is_udp = self.options.protocol == "udp"
            if not (is_udp and self.cluster.loses(self, analyzer, ())):
                analyzer.receive(Message(stats=stats), is_udp=is_udp)


@dataclass(frozen=True)
class Message:
    """A message from an agent to an analyzer (``flow.Message``)."""

    flows: Sequence[JSON] = ()
    stats: JSON | None = None


# Analyzers


class HostIdConflictError(Exception):
    """The analyzer already has a client with this host ID: HTTP 409."""


class Analyzer:
    """An analyzer: the flow server and the endpoint for subscribers.

    A subscriber that reads too slowly blocks the flow server (see `stall`). Flows then wait in a
    channel of ``max_buffered_flows``. If the channel is full too, the reader of UDP datagrams ends
    and never starts again (``FlowServerUDPConn.Serve``). With WebSocket, only the flows that do not
    fit into the channel are lost (``FlowServerWebSocketConn.OnMessage``).

    While the reader is blocked or stopped, the kernel buffers ``receive_buffer`` datagrams.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        name: str = "analyzer-1",
        max_buffered_flows: int = MAX_BUFFERED_FLOWS,
        receive_buffer: int = 250,
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.max_buffered_flows = max_buffered_flows
        self.receive_buffer = receive_buffer
        self.lost: Counter[str] = Counter()
        """Flows lost in this analyzer, by cause."""
        self.is_running = False
        self.speakers: list[Subscriber] = []
        """The pool of connected subscribers."""
        self.namespaces: dict[str, list[Subscriber]] = {}
        """``nsSubscriber``: the namespaces for which messages are sent."""
        self._numbers = 0
        self.start()

    def start(self) -> None:
        """Agents connect within a second."""
        assert not self.is_running
        self.is_running = True
        self.is_stalled = False
        self.is_reading = True
        self._channel: deque[JSON] = deque()
        self._socket: deque[tuple[Message, bool]] = deque()
        self._flows: list[JSON] = []
        self._started_ms = self.cluster.now_ms
        for agent in self.cluster.agents:
            self._connect_soon(agent)

    def _connect_soon(self, agent: Agent) -> None:
        wait_ms = self.cluster.random.randrange(RECONNECT_MS)
        self.cluster.at(self.cluster.now_ms + wait_ms, lambda: agent.on_connected(self))

    def stop(self, *, is_noticed: bool = True) -> None:
        """Stop the analyzer, and lose its buffers.

        ``is_noticed=False`` is a power loss: no connection is closed, and agents keep sending until
        `notice` is called.
        """
        assert self.is_running
        self.is_running = False
        self.lost["stop"] += len(self._flows) + len(self._channel)
        self.lost["stop"] += sum(len(message.flows) for message, _ in self._socket)
        speakers, self.speakers = self.speakers, []
        self.namespaces.clear()
        if is_noticed:
            self.notice()
            for subscriber in speakers:
                subscriber.on_disconnected()

    def notice(self) -> None:
        """Disconnect all agents after the analyzer has stopped."""
        for agent in self.cluster.agents:
            agent.on_disconnected(self)

    def restart(self, *, after_ms: int = 0) -> None:
        """Stop now, and start ``after_ms`` later."""
        self.stop()
        self.cluster.at(self.cluster.now_ms + after_ms, self.start)

    # Flow server (flow_server.go)

    def receive(self, message: Message, *, is_udp: bool = True) -> None:
        if not self.is_running:
            self.lost["stopped"] += len(message.flows)
        elif is_udp and len(self._socket) >= self.receive_buffer:
            self.lost["receive buffer"] += len(message.flows)
        else:
            self._socket.append((message, is_udp))
            self._read()

    def stall(self) -> None:
        self.is_stalled = True

    def resume(self) -> None:
        self.is_stalled = False
        self._drain()
        self._read()

    def _read(self) -> None:
        """Models ``FlowServerUDPConn.Serve`` and ``FlowServerWebSocketConn.OnMessage``.

        The channel for stats has no buffer. While the flow server is blocked, a message with stats
        therefore blocks the reader.
        """
        while self._socket:
            message, is_udp = self._socket[0]
            if (is_udp and not self.is_reading) or (message.stats is not None and self.is_stalled):
                return
            self._socket.popleft()
            for number, flow in enumerate(message.flows):
                if len(self._channel) >= self.max_buffered_flows:
                    self.lost["channel"] += len(message.flows) - number
                    self.is_reading = self.is_reading and not is_udp
                    break
                self._channel.append(flow)
            if message.stats is not None:
                self._broadcast("stats", "stats", message.stats)
            self._drain()

    def _drain(self) -> None:
        """Send a batch after every 100 flows, and every 5 s (``FlowServer.Start``)."""
        while self._channel and not self.is_stalled:
            if not self._flows:
                self._schedule_deadline()
            self._flows.append(self._channel.popleft())
            if len(self._flows) >= BULK_FLOWS:
                self._handle_flows()

    def _schedule_deadline(self) -> None:
        """Schedule the next tick of ``dlTimer``, at a multiple of 5 s after the start."""
        started_ms = self._started_ms
        ticks = (self.cluster.now_ms - started_ms) // BULK_MS + 1
        self.cluster.at(started_ms + ticks * BULK_MS, lambda: self._deadline(started_ms))

    def _deadline(self, started_ms: int) -> None:
        if self.is_running and self._started_ms == started_ms and self._flows:
            if self.is_stalled:
                self._schedule_deadline()
            else:
                self._handle_flows()

    def _handle_flows(self) -> None:
        """Models ``handleFlows`` and ``FlowSubscriberEndpoint.SendFlows``."""
        flows, self._flows = self._flows, []
        self._broadcast("flow", "store", flows)
        by_capture: dict[str, list[JSON]] = {}
        for flow in flows:
            by_capture.setdefault(flow["CaptureID"], []).append(flow)
        for capture_id, captured in by_capture.items():
            self._broadcast(f"flow/{capture_id}", "store", captured)

    # Subscribers (flow_subscriber_endpoint.go, pool.go, message.go)

    def _broadcast(self, namespace: str, kind: str, obj: Any) -> None:
        """Send a message to every subscriber of ``namespace``, if ``nsSubscriber`` contains it.

        ``sendFlows`` and ``SendStats`` check ``nsSubscriber``. Then ``BroadcastMessage`` sends to
        the whole pool, and ``StructSpeaker.SendMessage`` skips speakers that did not ask for the
        namespace.
        """
        if namespace not in self.namespaces:
            return
        message = {
            "Namespace": namespace,
            "Type": kind,
            "UUID": self._message_uuid(),
            "Status": 200,
            "Obj": obj,
        }
        for subscriber in self.speakers:
            if not subscriber.namespaces or namespace in subscriber.namespaces:
                subscriber.send(message)

    def _message_uuid(self) -> str:
        self._numbers += 1
        digits = blake2b(f"{self.name} {self._numbers}".encode(), digest_size=16).hexdigest()
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

    def connect(self, subscriber: Subscriber) -> None:
        """Add a subscriber (``serveMessages``, ``OnConnected``).

        Only the first subscriber of a namespace is stored in ``nsSubscriber``.
        """
        if any(speaker.host_id == subscriber.host_id for speaker in self.speakers):
            raise HostIdConflictError(subscriber.host_id)
        for namespace in subscriber.namespaces or ALL_NAMESPACES:
            self.namespaces.setdefault(namespace, [subscriber])
        self.speakers.append(subscriber)

    def disconnect(self, subscriber: Subscriber) -> None:
        """Remove a subscriber, and empty ``nsSubscriber`` (``OnDisconnected``).

        The other subscribers receive nothing until another one connects.
        """
        if subscriber in self.speakers:
            self.namespaces.clear()
            self.speakers.remove(subscriber)


class Subscriber:
    """A subscription to one analyzer, of skyfast or of another program.

    Messages arrive in order, with a delay of ``delay_ms``, which tests can change. The subscription
    disconnects after ``silence_ms`` without a message. Without ``namespaces``, it receives the
    messages of all namespaces.

    ``history`` has pairs of a time and an event: connected, silent, disconnected or refused.
    """

    def __init__(
        self,
        analyzer: Analyzer,
        *,
        host_id: str = "skyfast",
        namespaces: Sequence[str] = ALL_NAMESPACES,
        delay_ms: int = 0,
        silence_ms: int | None = None,
        retry_ms: int = 1_000,
    ) -> None:
        self.analyzer = analyzer
        self.cluster = analyzer.cluster
        self.host_id = host_id
        self.namespaces = tuple(namespaces)
        self.delay_ms = delay_ms
        self.silence_ms = silence_ms
        self.retry_ms = retry_ms
        self.is_connected = False
        self.is_wanted = False
        self.history: list[tuple[int, str]] = []
        self.last_message_ms = 0
        """The time of the last message or, before any message, of the connection."""
        self.session = 0
        self._newest_ms = 0

    def start(self) -> None:
        """Connect, and reconnect after failures until `stop`."""
        self.is_wanted = True
        self._connect()

    def _connect(self) -> None:
        if not self.is_wanted or self.is_connected:
            return
        try:
            if not self.analyzer.is_running:
                raise ConnectionRefusedError
            self.analyzer.connect(self)
        except (ConnectionRefusedError, HostIdConflictError):
            self._note("refused")
            self._retry()
            return
        self.session += 1
        self.is_connected = True
        self._note("connected")
        self.last_message_ms = self._newest_ms = self.cluster.now_ms
        self._schedule_silence_check()

    def stop(self) -> None:
        self.is_wanted = False
        self.disconnect()

    def vanish(self) -> None:
        """Stop without closing the connection.

        The analyzer closes it, because pongs are missing.
        """
        self.is_wanted = False
        if self.is_connected:
            self.is_connected = False
            self._note("disconnected")
            session = self.session
            self.cluster.at(
                self.cluster.now_ms + PONG_TIMEOUT_MS, lambda: self._miss_pongs(session)
            )

    def _miss_pongs(self, session: int) -> None:
        if self.session == session and self in self.analyzer.speakers:
            self.analyzer.disconnect(self)

    def disconnect(self) -> None:
        """Close the connection, and reconnect unless `stop` was called."""
        if self.is_connected:
            self.analyzer.disconnect(self)
            self.on_disconnected()

    def on_disconnected(self) -> None:
        """Lose the connection and all delayed messages."""
        if self.is_connected:
            self.is_connected = False
            self._note("disconnected")
            self._retry()

    def _retry(self) -> None:
        if self.is_wanted:
            self.cluster.at(self.cluster.now_ms + self.retry_ms, self._connect)

    def _schedule_silence_check(self) -> None:
        silence_ms = self.silence_ms
        if silence_ms is None:
            return
        session, due_ms = self.session, self.last_message_ms + silence_ms

        def check() -> None:
            if self.session != session or not self.is_connected:
                return
            if self.last_message_ms + silence_ms > self.cluster.now_ms:
                self._schedule_silence_check()
            else:
                self._note("silent")
                self.disconnect()

        self.cluster.at(due_ms, check)

    def _note(self, event: str) -> None:
        self.history.append((self.cluster.now_ms, event))

    def send(self, message: JSON) -> None:
        if not self.is_connected:
            return
        session = self.session
        self._newest_ms = max(self._newest_ms, self.cluster.now_ms + self.delay_ms)
        delivery = Delivery(self._newest_ms, self.analyzer.name, self, message)

        def arrive() -> None:
            if self.session == session and self.is_connected:
                self.last_message_ms = self.cluster.now_ms
                self.cluster.deliver(delivery)

        self.cluster.at(self._newest_ms, arrive)


@dataclass(frozen=True)
class Delivery:
    time_ms: int
    analyzer: str
    subscriber: Subscriber = field(repr=False)
    message: JSON

    @property
    def flows(self) -> list[JSON]:
        return self.message["Obj"] if self.message["Type"] == "store" else []


# Clusters


class Cluster:
    """Agents, analyzers and the event queue.

    ``loses(agent, analyzer, flows)`` returns whether a datagram is lost. A datagram of stats has no
    flows.
    """

    def __init__(
        self,
        *,
        random: Random | None = None,
        loses: Callable[[Agent, Analyzer, Sequence[JSON]], bool] = lambda *_: False,
    ) -> None:
        self.random = random or Random(0)
        self.loses = loses
        self.now_ms = 0
        self.agents: list[Agent] = []
        self.analyzers: list[Analyzer] = []
        self._queue: list[tuple[int, int, int, Callable[[], None]]] = []
        self._events = 0
        self._delivered: deque[Delivery] = deque()

    def analyzer(self, **options: Any) -> Analyzer:
        options.setdefault("name", f"analyzer-{len(self.analyzers) + 1}")
        analyzer = Analyzer(self, **options)
        self.analyzers.append(analyzer)
        return analyzer

    def agent(self, **options: Any) -> Agent:
        """Add an agent, and connect it to all running analyzers."""
        agent = Agent(self, **options)
        self.agents.append(agent)
        for analyzer in self.analyzers:
            agent.on_connected(analyzer)
        return agent

    def at(self, time_ms: int, event: Callable[[], None], *, order: int = 0) -> None:
        """Simultaneous events with equal ``order`` run in the order of their scheduling."""
        self._events += 1
        heapq.heappush(self._queue, (max(time_ms, self.now_ms), order, self._events, event))

    def deliver(self, delivery: Delivery) -> None:
        self._delivered.append(delivery)

    def run(self, until_ms: int) -> Iterator[Delivery]:
        """Run all events until ``until_ms``, inclusive, and yield the deliveries."""
        while self._queue and self._queue[0][0] <= until_ms:
            self.now_ms, _, _, event = heapq.heappop(self._queue)
            event()
            while self._delivered:
                yield self._delivered.popleft()
        self.now_ms = max(self.now_ms, until_ms)


# Expected counters


@dataclass
class Known:
    """A flow's latest report, and the highest total of each counter."""

    report: JSON
    totals: Counter[str]
    first_ms: int
    last_ms: int
    closed_ms: int | None = None
    longest_gap_ms: int = 0
    """The longest time between two reports."""


def is_counted(report: JSON) -> bool:
    """Return whether a page without ``include_icmp`` shows the flow."""
    return "Network" in report and "Transport" in report and "Metric" in report


def known_flows(deliveries: Iterable[Delivery]) -> dict[str, Known]:
    """Return all delivered flows by ``UUID``."""
    flows: dict[str, Known] = {}
    for delivery in deliveries:
        for report in delivery.flows:
            totals = Counter({name: report["Metric"][name] for name in COUNTERS})
            known = flows.get(report["UUID"])
            if known is None:
                time_ms = delivery.time_ms
                known = flows[report["UUID"]] = Known(report, totals, time_ms, time_ms)
            else:
                known.totals |= totals
                known.report = report
                known.longest_gap_ms = max(known.longest_gap_ms, delivery.time_ms - known.last_ms)
                known.last_ms = delivery.time_ms
            if report.get("FinishType") == TIMEOUT and known.closed_ms is None:
                known.closed_ms = delivery.time_ms
    return flows


def label_values(report: JSON, paths: Iterable[Sequence[str]]) -> tuple[str, ...]:
    values = []
    for path in paths:
        value: Any = report
        for name in path:
            value = value.get(name, "") if isinstance(value, dict) else ""
        values.append(str(value))
    return tuple(values)


def expected_counters(
    flows: Iterable[Known], paths: Sequence[Sequence[str]]
) -> dict[tuple[str, ...], Counter[str]]:
    """Return the sums of the highest totals of all shown flows, by their values at ``paths``."""
    sums: dict[tuple[str, ...], Counter[str]] = {}
    for known in flows:
        if is_counted(known.report):
            values = label_values(known.report, paths)
            sums.setdefault(values, Counter()).update(known.totals)
    return sums
