"""The known labels and metrics, and the plan that a configuration makes of them.

`LABELS` and `METRICS` are all that can be chosen by name. The configuration is checked against
them, `make_plan` builds from them, and a test compares them with the tables of
``docs/metrics.md``. What each field holds is said by Skydive's ``flow.proto``.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

from skyfast.flows.fields import FIELDS
from skyfast.flows.filters import Classifier, classifier
from skyfast.flows.plan import (
    Column,
    Conversation,
    Counter,
    Direction,
    Family,
    FlowCount,
    Gauge,
    Path,
    Plan,
    Requirement,
    Rewrite,
    Share,
    Value,
    View,
)
from skyfast.flows.rewrites import OTHER, FlowProtocol, fold, mask
from skyfast.flows.selection import Mask

if TYPE_CHECKING:
    from skyfast.config.model import Config, Store
    from skyfast.flows.selection import LabelChoice, MetricChoice, ViewChoice

DIRECTION: Final = "direction"
"""The label that is no field, but tells the initiator's series from the target's."""

COMPATIBLE_PREFIX: Final = "skydive_network_connection"
STANDARD_PREFIX: Final = "skydive_connection"
"""What the families of the main view begin with, in either naming."""

FIXED_PREFIXES: Final = (
    "skydive_network_interface_",
    "skydive_interface_",
    "skydive_capture_",
    "skyfast_",
    "process_",
)
"""What the other families of the page begin with."""

Cardinality = Literal["fine", "careful", "dangerous"]
"""How many values a label has: a handful; as many as the network has parts; without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLabel:
    """A label that can be chosen by name.

    ``path`` is the field that it comes from; it is empty where that is no single one. ``lookup``
    says where the label value is looked up by the field: in that mapping of `Names`, or
    ``classification``.
    """

    name: str
    path: Path
    cardinality: Cardinality
    help: str
    lookup: Literal["", "classification", "node_name", "node_host", "node_type", "owner"] = ""


INITIATOR_IP: Final = ("Network", "A")
TARGET_IP: Final = ("Network", "B")
INITIATOR_PORT: Final = ("Transport", "A")
TARGET_PORT: Final = ("Transport", "B")
PROTOCOL: Final = ("Transport", "Protocol")
NODE_TID: Final = ("NodeTID",)

LABELS: Final[tuple[KnownLabel, ...]] = (
    KnownLabel(
        name="initiator_ip",
        path=INITIATOR_IP,
        cardinality="careful",
        help="who sent the first packet that was seen",
    ),
    KnownLabel(
        name="target_ip",
        path=TARGET_IP,
        cardinality="careful",
        help="to whom it was sent",
    ),
    KnownLabel(
        name="initiator_port",
        path=INITIATOR_PORT,
        cardinality="dangerous",
        help="most clients take another one for each connection",
    ),
    KnownLabel(
        name="target_port",
        path=TARGET_PORT,
        cardinality="careful",
        help="the service; a port scan shows all 65,536",
    ),
    KnownLabel(
        name=DIRECTION,
        path=(),
        cardinality="fine",
        help="`initiator_to_target` or `target_to_initiator`",
    ),
    KnownLabel(
        name="node_tid",
        path=NODE_TID,
        cardinality="careful",
        help="the interface where it was captured: a conversation captured at two has two "
        "connections",
    ),
    KnownLabel(
        name="protocol",
        path=PROTOCOL,
        cardinality="fine",
        help="`TCP`, `UDP` or `SCTP`; with `include_icmp` `ICMPV4` and `ICMPV6` too, with "
        "`include_other` the last of its layers",
    ),
    KnownLabel(
        name="application",
        path=("Application",),
        cardinality="fine",
        help="the last layer that was recognized, such as `DNS`",
    ),
    KnownLabel(
        name="layers_path",
        path=("LayersPath",),
        cardinality="fine",
        help="all layers, such as `Ethernet/IPv4/TCP`",
    ),
    KnownLabel(
        name="link_a",
        path=("Link", "A"),
        cardinality="careful",
        help="the initiator's MAC address",
    ),
    KnownLabel(
        name="link_b",
        path=("Link", "B"),
        cardinality="careful",
        help="the target's MAC address",
    ),
    KnownLabel(
        name="vlan",
        path=("Link", "ID"),
        cardinality="careful",
        help="the VLAN's number, 0 without one; with QinQ 12 bits for each tag",
    ),
    KnownLabel(
        name="capture_id",
        path=("CaptureID",),
        cardinality="fine",
        help="the capture that saw it; a capture that is made anew has another",
    ),
    KnownLabel(
        name="tracking_id",
        path=("TrackingID",),
        cardinality="dangerous",
        help="one for each conversation",
    ),
    KnownLabel(
        name="l3_tracking_id",
        path=("L3TrackingID",),
        cardinality="dangerous",
        help="one for each conversation; it can change across a router",
    ),
    KnownLabel(
        name="parent_uuid",
        path=("ParentUUID",),
        cardinality="dangerous",
        help="the flow of the tunnel that it went through, empty without one",
    ),
    KnownLabel(
        name="tag",
        path=(),
        cardinality="fine",
        help="`internal`, `ingress`, `egress` or `other`, by `classify.cluster_net_masks`",
        lookup="classification",
    ),
    KnownLabel(
        name="icmp_type",
        path=("ICMP", "Type"),
        cardinality="fine",
        help="such as `ECHO`; empty for what is no ICMP",
    ),
    KnownLabel(
        name="node_name",
        path=NODE_TID,
        cardinality="careful",
        help="the name of that interface, from the topology",
        lookup="node_name",
    ),
    KnownLabel(
        name="node_host",
        path=NODE_TID,
        cardinality="fine",
        help="the host of that interface, from the topology",
        lookup="node_host",
    ),
    KnownLabel(
        name="node_type",
        path=NODE_TID,
        cardinality="fine",
        help="the type of that interface, from the topology",
        lookup="node_type",
    ),
    KnownLabel(
        name="initiator_name",
        path=INITIATOR_IP,
        cardinality="careful",
        help="the node that owns the initiator's address, from the topology",
        lookup="owner",
    ),
    KnownLabel(
        name="target_name",
        path=TARGET_IP,
        cardinality="careful",
        help="the node that owns the target's address, from the topology",
        lookup="owner",
    ),
)
"""Every label that can be chosen by name."""

LABELS_BY_NAME: Final = {label.name: label for label in LABELS}

DANGEROUS_FIELDS: Final = {
    **{label.path: label.help for label in LABELS if label.cardinality == "dangerous"},
    ("UUID",): "one for each flow",
    ("Start",): "one for each flow",
    ("ICMP", "ID"): "one for each ping",
}
"""The fields that have values without end, and why."""

DEFAULT_LABELS: Final = tuple(label.name for label in LABELS[:7])
"""The labels of the Go connector ``prom_sky_con``, in its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownMetric:
    """A metric that can be chosen by name.

    ``paths`` are the fields: that of both directions or one for each, none where skyfast itself
    counts. ``compatible`` is the family's name in the main view; ``standard`` is what follows
    the prefix where the naming is standard, and in every other view; ``unit`` is that of these. A
    value is shown divided by ten to the power of the naming's decimals. ``help`` can be followed
    by "on this connection".
    """

    name: str
    paths: tuple[Path, ...]
    type: Literal["counter", "gauge"]
    compatible: str
    standard: str
    unit: str
    help: str
    keep: Literal["latest", "least", "most"] = "latest"
    compatible_decimals: int = 0
    standard_decimals: int = 0


def _both(part: str, name: str) -> tuple[Path, Path]:
    return ((part, f"AB{name}"), (part, f"BA{name}"))


METRICS: Final[tuple[KnownMetric, ...]] = (
    KnownMetric(
        name="bytes",
        paths=_both("Metric", "Bytes"),
        type="counter",
        compatible="skydive_network_connection_total_bytes",
        standard="bytes_total",
        unit="bytes",
        help="Bytes transferred",
    ),
    KnownMetric(
        name="packets",
        paths=_both("Metric", "Packets"),
        type="counter",
        compatible="skydive_network_connection_total_packets",
        standard="packets_total",
        unit="packets",
        help="Packets transferred",
    ),
    KnownMetric(
        name="rtt",
        paths=(("Metric", "RTT"),),
        type="gauge",
        compatible="skydive_network_connection_rtt_nanoseconds",
        standard="rtt_seconds",
        standard_decimals=9,
        unit="seconds",
        help="Latest round-trip time measured",
    ),
    KnownMetric(
        name="flows",
        paths=(),
        type="gauge",
        compatible="skydive_network_connection_flows",
        standard="flows",
        unit="flows",
        help="Flows there are now",
    ),
    KnownMetric(
        name="start",
        paths=(("Start",),),
        type="gauge",
        keep="least",
        compatible="skydive_network_connection_start_timestamp_seconds",
        compatible_decimals=3,
        standard="start_timestamp_seconds",
        standard_decimals=3,
        unit="seconds",
        help="Unix time of the first packet seen",
    ),
    KnownMetric(
        name="last",
        paths=(("Last",),),
        type="gauge",
        keep="most",
        compatible="skydive_network_connection_last_timestamp_seconds",
        compatible_decimals=3,
        standard="last_timestamp_seconds",
        standard_decimals=3,
        unit="seconds",
        help="Unix time of the latest packet seen",
    ),
    KnownMetric(
        name="tcp_bytes",
        paths=_both("TCPMetric", "Bytes"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_bytes",
        standard="tcp_bytes_total",
        unit="bytes",
        help="Bytes of reassembled TCP streams",
    ),
    KnownMetric(
        name="tcp_packets",
        paths=_both("TCPMetric", "Packets"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_packets",
        standard="tcp_packets_total",
        unit="packets",
        help="Segments of reassembled TCP streams",
    ),
    KnownMetric(
        name="tcp_out_of_order",
        paths=_both("TCPMetric", "SegmentOutOfOrder"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_out_of_order",
        standard="tcp_out_of_order_total",
        unit="segments",
        help="TCP segments seen out of order",
    ),
    KnownMetric(
        name="tcp_skipped",
        paths=_both("TCPMetric", "SegmentSkipped"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_skipped",
        standard="tcp_skipped_total",
        unit="gaps",
        help="Gaps in TCP streams that were never filled",
    ),
    KnownMetric(
        name="tcp_skipped_bytes",
        paths=_both("TCPMetric", "SegmentSkippedBytes"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_skipped_bytes",
        standard="tcp_skipped_bytes_total",
        unit="bytes",
        help="Bytes that were missing in those gaps of TCP streams",
    ),
    KnownMetric(
        name="ip_fragments",
        paths=(("IPMetric", "Fragments"),),
        type="counter",
        compatible="skydive_network_connection_total_ip_fragments",
        standard="ip_fragments_total",
        unit="fragments",
        help="IP fragments seen",
    ),
    KnownMetric(
        name="ip_fragment_errors",
        paths=(("IPMetric", "FragmentErrors"),),
        type="counter",
        compatible="skydive_network_connection_total_ip_fragment_errors",
        standard="ip_fragment_errors_total",
        unit="fragments",
        help="IP fragments that could not be put together",
    ),
)
"""Every metric that can be chosen by name.

``TCPMetric`` has times and TTLs of the first SYN, FIN and RST beside the counters, and flags: these
are no running totals of what happened, so none is here.
"""

METRICS_BY_NAME: Final = {metric.name: metric for metric in METRICS}

DEFAULT_METRICS: Final = ("bytes", "packets", "rtt")
"""The metrics of the Go connector ``prom_sky_con``."""

RUNNING_TOTALS: Final = frozenset(
    {path for metric in METRICS if metric.type == "counter" for path in metric.paths}
    | {path for name in ("SawStart", "SawEnd") for path in _both("TCPMetric", name)}
    | {("RawPacketsCaptured",)}
)
"""The fields that only grow while a flow lives: those that a counter can be made of."""

LABEL_FIELDS: Final = frozenset(
    path
    for path in FIELDS
    if path[0] not in {"Metric", "LastUpdateMetric", "TCPMetric", "IPMetric"}
    and path not in {("Last",), ("RawPacketsCaptured",), ("FinishType",)}
)
"""The fields that stay as they are while a flow lives: those that a label can be made of."""

UNITS: Final = ("bytes", "seconds", "nanoseconds")
"""Units that a family's name can end with."""


class Names(Protocol):
    """What the topology calls nodes: an empty text for what it does not know.

    ``owner`` is asked with an address, the others with a ``NodeTID``.
    """

    @property
    def node_name(self) -> Rewrite: ...
    @property
    def node_host(self) -> Rewrite: ...
    @property
    def node_type(self) -> Rewrite: ...
    @property
    def owner(self) -> Rewrite: ...


def make_plan(config: "Config", *, names: Names) -> Plan:
    """Return the plan of the page that ``config`` wants. Topology labels come from ``names``.

    Views that have a label in common share its column.
    """
    store, shard = config.store, config.shard
    columns = _Columns(config, names)
    return Plan(
        views=tuple(_view(view, columns, store) for view in (store.main, *store.views)),
        requirements=(
            Requirement(paths=(("Network",),), reason="no_network"),
            *_transport(store),
            Requirement(paths=(("Metric",),), reason="no_metric"),
        ),
        conversation=_CONVERSATION if store.deduplicate == "first" else None,
        overflow=OTHER if store.overflow == "other" else None,
        share=(
            Share(conversation=_CONVERSATION, index=shard.index, count=shard.count)
            if shard.count > 1
            else None
        ),
    )


def _transport(store: "Store") -> tuple[Requirement, ...]:
    """Return what a flow must have beside its addresses: nothing where everything is included."""
    if store.include_icmp and store.include_other:
        return ()
    transport: tuple[Path, ...] = (("Transport",),)
    return (
        Requirement(
            paths=(*transport, ("ICMP",)) if store.include_icmp else transport,
            or_without=("ICMP",) if store.include_other else (),
            reason="no_transport",
        ),
    )


ENDPOINTS: Final = frozenset({INITIATOR_IP, TARGET_IP, INITIATOR_PORT, TARGET_PORT})
"""Both addresses and both ports."""

_CONVERSATION: Final = Conversation(
    protocol=PROTOCOL,
    ends=((INITIATOR_IP, INITIATOR_PORT), (TARGET_IP, TARGET_PORT)),
    point=NODE_TID,
)


class _Columns:
    """Makes the columns of the labels, one for each label."""

    def __init__(self, config: "Config", names: Names) -> None:
        self._config = config
        self._names = names
        self._made: dict[LabelChoice, Column] = {}

    def __getitem__(self, label: "LabelChoice") -> Column:
        if label not in self._made:
            self._made[label] = self._make(label)
        return self._made[label]

    def _make(self, label: "LabelChoice") -> Column:
        if label.path is not None:
            return Column(name=label.name, path=label.path)
        known = LABELS_BY_NAME[label.name]
        if known.lookup == "classification":
            return Column(
                name=known.name,
                path=(),
                rewrite=classifier(self._config.classify.cluster_net_masks),
                reads=Classifier.READS,
            )
        if known.lookup:
            names = getattr(self._names, known.lookup)
            return Column(name=known.name, path=known.path, rewrite=names, volatile=True)
        store = self._config.store
        if known.path == PROTOCOL and (store.include_icmp or store.include_other):
            rewrite = FlowProtocol(other=store.include_other)
            return Column(name=known.name, path=(), rewrite=rewrite, reads=rewrite.reads)
        return Column(name=known.name, path=known.path, rewrite=self._rewrite(known.name))

    def _rewrite(self, name: str) -> Rewrite | None:
        wanted = self._config.store.rewrites.get(name)
        if wanted is None:
            return None
        return mask(wanted) if isinstance(wanted, Mask) else fold(wanted)


def _view(view: "ViewChoice", columns: _Columns, store: "Store") -> View:
    chosen = tuple(columns[label] for label in view.labels if label.name != DIRECTION)
    names = [label.name for label in view.labels]
    split = view.direction == "split"
    return View(
        columns=chosen,
        direction=Direction(position=names.index(DIRECTION)) if split else None,
        families=families(view, naming=store.naming),
        # A flow without ports is not known by its addresses alone.
        complete=not (store.include_icmp or store.include_other)
        and {column.path for column in chosen if column.rewrite is None} >= ENDPOINTS,
    )


def families(view: "ViewChoice", *, naming: str) -> tuple[Family, ...]:
    """Return the families of a view. ``naming`` is that of the main one, which has no prefix."""
    return tuple(
        _custom(view, metric) if metric.paths else _known(view, metric.name, naming=naming)
        for metric in view.metrics
    )


def _known(view: "ViewChoice", name: str, *, naming: str) -> Family:
    metric = METRICS_BY_NAME[name]
    compatible = not view.prefix and naming == "compatible"
    values = _values(metric.paths, metric.type, metric.keep, direction=view.direction)
    return _family(
        name=(
            metric.compatible
            if compatible
            else f"{view.prefix or STANDARD_PREFIX}_{metric.standard}"
        ),
        help=metric.help
        + ("" if view.prefix else " on this connection")
        + (" in this direction." if len(values) == 2 else "."),
        type=metric.type,
        values=values,
        decimals=metric.compatible_decimals if compatible else metric.standard_decimals,
    )


def _custom(view: "ViewChoice", metric: "MetricChoice") -> Family:
    fields = " and ".join(map(".".join, metric.paths))
    return _family(
        name=f"{view.prefix}_{metric.name}" if view.prefix else metric.name,
        help=metric.help or f"Field {fields} of the flows.",
        type=metric.type,
        values=_values(metric.paths, metric.type, "latest", direction=view.direction),
        decimals=0,
    )


def _family(
    *,
    name: str,
    help: str,  # noqa: A002 - as in Family
    type: Literal["counter", "gauge"],  # noqa: A002
    values: tuple[Value, ...],
    decimals: int,
) -> Family:
    unit = next((unit for unit in UNITS if name.removesuffix("_total").endswith(f"_{unit}")), "")
    return Family(name=name, help=help, type=type, values=values, decimals=decimals, unit=unit)


def _values(
    paths: tuple[Path, ...],
    kind: Literal["counter", "gauge"],
    keep: Literal["latest", "least", "most"],
    *,
    direction: str,
) -> tuple[Value, ...]:
    """Return a family's values: one for each direction, or the sum of both."""
    if not paths:
        return (FlowCount(),)
    if kind == "gauge":
        return tuple(Gauge(path=path, keep=keep) for path in paths)
    if direction == "sum":
        return (_counter(paths),)
    return tuple(_counter((path,)) for path in paths)


def _counter(paths: tuple[Path, ...]) -> Counter:
    if all(path[0] == "Metric" for path in paths):
        # Every flow has Metric, else it is skipped.
        return Counter(paths=paths, amounts=tuple(("LastUpdateMetric", path[1]) for path in paths))
    optional = any(len(path) > 1 and path[0] != "Metric" for path in paths)
    return Counter(paths=paths, optional=optional)
