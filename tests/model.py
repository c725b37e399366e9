"""The table's rules in plain Python: slow, obvious, and written without a look at the core.

The tests feed the same flows to this model and to skyfast and compare what comes out. A change
here is a change of what the page promises, so it comes with a worked example in
``test_model.py``. Flows are the decoded JSON objects of the wire; times are seconds.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

JSON = Mapping[str, Any]

COUNTERS = ("ABBytes", "BABytes", "ABPackets", "BAPackets")
AMOUNT = (*COUNTERS, "Start", "Last")
MAX_NUMBER = 2**62
MAX_SUM = 2**63 - 1
MAX_TEXT_BYTES = 1024
TIMEOUT_S = 75.0
FINISHES = {1: "timeout", 2: "fin", 3: "rst"}


@dataclass(frozen=True)
class Label:
    """One label: its name, and where in a flow its value is. An empty path is the direction."""

    name: str
    path: tuple[str, ...]
    number: bool = False


@dataclass(frozen=True)
class Family:
    """One metric: the field that is its value from initiator to target, and the way back."""

    name: str
    type: str
    forward: str
    backward: str | None


DIRECTION = Label("direction", ())
LABELS = (
    Label("initiator_ip", ("Network", "A")),
    Label("target_ip", ("Network", "B")),
    Label("initiator_port", ("Transport", "A"), number=True),
    Label("target_port", ("Transport", "B"), number=True),
    DIRECTION,
    Label("node_tid", ("NodeTID",)),
    Label("protocol", ("Transport", "Protocol")),
)
DIRECTIONS = ("initiator_to_target", "target_to_initiator")
ENDPOINTS = {("Network", "A"), ("Network", "B"), ("Transport", "A"), ("Transport", "B")}

BYTES = "skydive_network_connection_total_bytes"
PACKETS = "skydive_network_connection_total_packets"
RTT = "skydive_network_connection_rtt_nanoseconds"
FAMILIES = (
    Family(BYTES, "counter", "ABBytes", "BABytes"),
    Family(PACKETS, "counter", "ABPackets", "BAPackets"),
    Family(RTT, "gauge", "RTT", None),
)

Values = tuple[str | int, ...]


@dataclass(eq=False)
class Connection:
    """What Prometheus sees: one row for each tuple of label values."""

    values: Values
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    rtt_ns: int = 0

    def add(self, amounts: Mapping[str, int]) -> None:
        for name, amount in amounts.items():
            self.totals[name] = min(MAX_SUM, self.totals[name] + amount)

    def value(self, name: str) -> int:
        return self.rtt_ns if name == "RTT" else self.totals[name]


@dataclass(eq=False)
class Flow:
    """What Skydive sends: one capture point's view of one conversation."""

    connection: Connection
    totals: dict[str, int]
    last_ms: int
    deadline_s: float


class Model:
    """The table, with the core's names for what both have.

    ``skipped`` counts the flows that changed nothing, by reason; ``finished`` the reports of
    flows that ended, by the kind of the end, whether there was news or room or not.
    """

    def __init__(
        self,
        *,
        labels: Sequence[Label] = LABELS,
        families: Sequence[Family] = FAMILIES,
        max_connections: int = 1_000_000,
        max_flows: int = 4_000_000,
        timeout_s: float = TIMEOUT_S,
        cluster_net_masks: Iterable[str] = (),
        excluded_tags: Iterable[str] = (),
    ) -> None:
        self.labels = tuple(label for label in labels if label != DIRECTION)
        self.names = tuple(label.name for label in labels)
        self.is_complete = {label.path for label in labels} >= ENDPOINTS
        self.direction_at = labels.index(DIRECTION)
        self.families = tuple(families)
        self.max_connections = max_connections
        self.max_flows = max_flows
        self.timeout_s = timeout_s
        self.masks = [ipaddress.ip_network(mask) for mask in cluster_net_masks]
        self.excluded_tags = frozenset(excluded_tags)

        self._connections: dict[Values, Connection] = {}
        # A text is a key of its own; canonical hexadecimal texts and 64-bit keys are one to one.
        self._flows: dict[str, Flow] = {}
        self.skipped: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.created_total = self.expired_total = self.rejected_total = 0

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def flows(self) -> int:
        return len(self._flows)

    def message(self, flows: Iterable[JSON], now: float) -> None:
        """Take the flows of one message."""
        for flow in flows:
            self.report(flow, now)

    def report(self, flow: JSON, now: float) -> str | None:
        """Take one flow, and return why it changed nothing, or None."""
        reason = self._unusable(flow)
        if reason is None:
            known = self._flows.get(flow["UUID"])
            reason = self._add(flow, now) if known is None else self._update(known, flow, now)
        if reason is not None:
            self.skipped[reason] += 1
        if reason in (None, "late", "table_full") and flow.get("FinishType"):
            self.finished[FINISHES.get(flow["FinishType"], "other")] += 1
        return reason

    def expire(self, now: float) -> None:
        """Drop the flows whose time is over, and the connections they leave without any."""
        self._flows = {uuid: flow for uuid, flow in self._flows.items() if flow.deadline_s > now}
        held = {id(flow.connection) for flow in self._flows.values()}
        kept = {values: c for values, c in self._connections.items() if id(c) in held}
        self.expired_total += len(self._connections) - len(kept)
        self._connections = kept

    def alive(self, now: float) -> list[Connection]:
        """Return the connections that a page made at ``now`` shows."""
        held = {id(flow.connection) for flow in self._flows.values() if flow.deadline_s > now}
        return [c for c in self._connections.values() if id(c) in held]

    def page(self, now: float) -> dict[str, set[str]]:
        """Return the sample lines of every family."""
        alive = self.alive(now)
        return {
            family.name: {line for connection in alive for line in self.lines(family, connection)}
            for family in self.families
        }

    def lines(self, family: Family, connection: Connection) -> Iterator[str]:
        """Yield the lines of one connection in one family, in the page's order."""
        if family.forward == "RTT" and not connection.rtt_ns:
            return
        fields = (family.forward, family.backward)
        for direction, name in zip(DIRECTIONS, fields, strict=True):
            if name is not None:
                values = [str(value) for value in connection.values]
                values.insert(self.direction_at, direction)
                pairs = zip(self.names, values, strict=True)
                labels = ",".join(f'{label}="{escape(value)}"' for label, value in pairs)
                yield f"{family.name}{{{labels}}} {connection.value(name)}"

    def values(self, flow: JSON) -> Values:
        """Return the label values that say which connection a flow belongs to."""
        return tuple(_at(flow, label) for label in self.labels)

    def tag(self, flow: JSON) -> str:
        """Return the word of the classification: which of a flow's ends are in the cluster."""
        try:
            a, b = (ipaddress.ip_address(flow["Network"].get(end, "")) for end in "AB")
        except ValueError:
            return "other"
        if self._is_inside(a):
            return "internal" if self._is_inside(b) else "egress"
        return "ingress" if self._is_inside(b) else "other"

    def _is_inside(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in mask for mask in self.masks)

    def _unusable(self, flow: JSON) -> str | None:
        texts = [flow.get("UUID") or ""]
        texts += [_at(flow, label) for label in self.labels if not label.number]
        if any(re.search("[\ud800-\udfff]", text) for text in texts):
            return "invalid"
        for name, reason in (
            ("UUID", "no_uuid"),
            ("Network", "no_network"),
            ("Transport", "no_transport"),
            ("Metric", "no_metric"),
        ):
            if flow.get(name) is None or flow[name] == "":
                return reason
        if self.excluded_tags and self.tag(flow) in self.excluded_tags:
            return "excluded"
        is_known = flow["UUID"] in self._flows
        numbers = [flow["Metric"].get(name, 0) for name in (*COUNTERS, "RTT")]
        numbers += [flow.get("Last", 0), flow.get("FinishType", 0)]
        if not is_known:
            numbers += (_at(flow, label) for label in self.labels if label.number)
        if not _in_range(numbers):
            return "out_of_range"
        # A known flow stays with its connection: its labels are not looked at again.
        looked_at = texts[:1] if is_known else texts
        if any(len(text.encode()) > MAX_TEXT_BYTES for text in looked_at):
            return "text_too_long"
        return None

    def _add(self, flow: JSON, now: float) -> str | None:
        values = self.values(flow)
        connection = self._connections.get(values)
        if connection is None and len(self._connections) >= self.max_connections:
            self.rejected_total += 1
            return "table_full"
        if len(self._flows) >= self.max_flows:
            return "table_full"
        amounts = self._news(flow, creates=connection is None)
        if amounts is None:
            return "out_of_range"
        if connection is None:
            connection = self._connections[values] = Connection(values)
            self.created_total += 1
        connection.add(amounts)
        connection.rtt_ns = flow["Metric"].get("RTT", 0) or connection.rtt_ns
        self._flows[flow["UUID"]] = Flow(
            connection, _counters(flow["Metric"]), flow.get("Last", 0), now + self.timeout_s
        )
        return None

    def _news(self, flow: JSON, *, creates: bool) -> dict[str, int] | None:
        """Return what an unknown flow adds; None where what tells it is out of range."""
        totals = _counters(flow["Metric"])
        newest = flow.get("LastUpdateMetric")
        if creates and self.is_complete:
            return totals  # rule (b): no other flow can have been in this connection
        if not _in_range([flow.get("Start", 0)]):
            return None
        if newest is None or newest.get("Start", 0) == flow.get("Start", 0):
            return totals  # rule (a): its first report
        if not _in_range(newest.get(name, 0) for name in AMOUNT):
            return None
        if flow.get("FinishType", 0) and newest.get("Last", 0) != flow.get("Last", 0):
            return {}  # rule (c): a closing report that repeats the one before
        return _counters(newest)  # rule (c)

    def _update(self, known: Flow, flow: JSON, now: float) -> str | None:
        totals = _counters(flow["Metric"])
        last_ms = flow.get("Last", 0)
        is_newer = last_ms > known.last_ms
        if not is_newer and all(totals[name] <= known.totals[name] for name in COUNTERS):
            return "late"
        if is_newer and any(totals[name] < known.totals[name] for name in COUNTERS):
            amounts = known.totals = totals
        else:
            amounts = {name: max(0, totals[name] - known.totals[name]) for name in COUNTERS}
            known.totals = {name: max(totals[name], known.totals[name]) for name in COUNTERS}
        known.last_ms = max(last_ms, known.last_ms)
        known.deadline_s = now + self.timeout_s
        known.connection.add(amounts)
        known.connection.rtt_ns = flow["Metric"].get("RTT", 0) or known.connection.rtt_ns
        return None


def make_flow(
    uuid: str = "a1",
    total: Sequence[int] = (100, 200, 1, 2),
    *,
    newest: Sequence[int] | None = None,
    newest_start: int = 1_000,
    newest_last: int | None = None,
    start: int = 1_000,
    last: int = 2_000,
    rtt: int = 0,
    finish: int = 0,
    a: str = "10.0.0.1",
    b: str = "10.0.0.2",
    ports: tuple[int, int] = (40_000, 443),
    protocol: str = "TCP",
    node: str = "node-1",
) -> dict[str, Any]:
    """Return a flow as an analyzer sends it, a first report unless said otherwise.

    ``total`` and ``newest`` (the ``LastUpdateMetric``; the total if left out) are in the order of
    ``COUNTERS``. Fields that the wire leaves out when they are zero are left out.
    """
    metric = dict(zip(COUNTERS, total, strict=True)) | {"Start": start, "Last": last}
    amount = dict(zip(COUNTERS, total if newest is None else newest, strict=True))
    amount |= {"Start": newest_start, "Last": last if newest_last is None else newest_last}
    if rtt:
        metric["RTT"] = amount["RTT"] = rtt
    flow = {
        "UUID": uuid,
        "Network": {"Protocol": "IPV4", "A": a, "B": b, "ID": 0},
        "Transport": {"Protocol": protocol, "A": ports[0], "B": ports[1], "ID": 0},
        "LastUpdateMetric": amount,
        "Metric": metric,
        "Start": start,
        "Last": last,
        "NodeTID": node,
    }
    if finish:
        flow["FinishType"] = finish
    return flow


def escape(value: str) -> str:
    """Write a label value as the text format 0.0.4 wants it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def read_page(page: bytes, families: Sequence[Family] = FAMILIES) -> dict[str, set[str]]:
    """Take a page of connections apart into each family's sample lines.

    Asserts what holds for every page: the families in their order, each under its ``HELP`` and
    ``TYPE``, nothing else in between, a line break at the end, and no series twice.
    """
    text = page.decode()
    assert text.endswith("\n")
    lines = iter(text.removesuffix("\n").split("\n"))
    found: dict[str, set[str]] = {}
    line = next(lines, None)
    for family in families:
        assert line is not None, f"{family.name} is missing"
        assert re.fullmatch(rf"# HELP {family.name} \S.*", line), line
        assert next(lines) == f"# TYPE {family.name} {family.type}"
        samples = found[family.name] = set()
        series = set()
        for line in lines:
            if not line.startswith(family.name + "{"):
                break
            name, _, value = line.rpartition(" ")
            assert re.fullmatch("0|[1-9][0-9]*", value), line
            assert name not in series, f"{name} is there twice"
            series.add(name)
            samples.add(line)
        else:
            line = None
    assert line is None, f"after the last family: {line!r}"
    return found


def _at(flow: JSON, label: Label) -> Any:
    value: Any = flow
    for name in label.path:
        value = (value or {}).get(name)
    return value if value is not None else 0 if label.number else ""


def _in_range(numbers: Iterable[int]) -> bool:
    return all(0 <= number <= MAX_NUMBER for number in numbers)


def _counters(metric: JSON) -> dict[str, int]:
    return {name: metric.get(name, 0) for name in COUNTERS}


INTERFACE_COUNTERS = {
    "rx_bytes": "RxBytes",
    "tx_bytes": "TxBytes",
    "rx_packets": "RxPackets",
    "tx_packets": "TxPackets",
    "rx_dropped": "RxDropped",
    "tx_dropped": "TxDropped",
    "rx_errors": "RxErrors",
    "tx_errors": "TxErrors",
    "rx_missed_errors": "RxMissedErrors",
    "tx_missed_errors": "",  # Skydive has no such counter.
    "collisions": "Collisions",
}
INTERFACE_FAMILIES = tuple(
    Family(f"skydive_network_interface_{name}", "counter", field, None)
    for name, field in INTERFACE_COUNTERS.items()
)


def interface_page(nodes: Sequence[JSON]) -> dict[str, set[str]]:
    """Return the sample lines of the interfaces in an answer of the topology API."""
    page: dict[str, set[str]] = {family.name: set() for family in INTERFACE_FAMILIES}
    newest: dict[str, JSON] = {}
    for node in sorted(nodes, key=lambda node: node["UpdatedAt"]):
        data = node["Metadata"]
        values = {
            "interface_name": data.get("Name", ""),
            "host": node.get("Host", ""),
            "interface_type": data.get("Type", ""),
            "ipv4": (data.get("IPV4") or [""])[0],
            "ipv6": (data.get("IPV6") or [""])[0],
            "node_tid": data.get("TID") or node["ID"],
        }
        labels = ",".join(f'{name}="{escape(value)}"' for name, value in values.items())
        newest[labels] = data.get("Metric") or {}
    for family in INTERFACE_FAMILIES:
        for labels, counters in newest.items():
            page[family.name].add(f"{family.name}{{{labels}}} {counters.get(family.forward, 0)}")
    return page
