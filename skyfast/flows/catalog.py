"""The known labels and metrics.

`LABELS` and `METRICS` can be selected by name. The configuration is checked against them,
`skyfast.flows.planner` builds plans from them, and ``docs/reference/metrics.md`` lists them.
Skydive's ``flow.proto`` describes the fields.
"""

from dataclasses import dataclass
from typing import Final, Literal

from skyfast.flows.fields import FIELDS
from skyfast.flows.plan import Path

DIRECTION: Final = "direction"
"""The label that is no field, but tells the initiator's series from the target's."""

TAG: Final = "tag"
"""The label that is the classification by the cluster's networks."""

STANDARD_PREFIX: Final = "skydive_connection"
"""What the families of the main view begin with where the naming is standard."""

FIXED_PREFIXES: Final = (
    "skydive_network_interface_",
    "skydive_interface_",
    "skydive_capture_",
    "skyfast_",
    "process_",
)
"""What the other families of the page begin with."""

Cardinality = Literal["low", "medium", "unbounded"]
"""How many values a label has: a handful; as many as the network has parts; without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLabel:
    """A label that can be chosen by name.

    ``path`` is the field that it comes from; it is empty where that is no single one. ``lookup``
    says where the label value is looked up by the field: in that mapping of
    `skyfast.flows.planner.Names`, or ``classification``.
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
        cardinality="medium",
        help="the host that sent the first captured packet",
    ),
    KnownLabel(
        name="target_ip",
        path=TARGET_IP,
        cardinality="medium",
        help="the host that the packet was sent to",
    ),
    KnownLabel(
        name="initiator_port",
        path=INITIATOR_PORT,
        cardinality="unbounded",
        help="most clients use a new port for each connection",
    ),
    KnownLabel(
        name="target_port",
        path=TARGET_PORT,
        cardinality="medium",
        help="the service; a port scan creates all 65,536 values",
    ),
    KnownLabel(
        name=DIRECTION,
        path=(),
        cardinality="low",
        help="`initiator_to_target` or `target_to_initiator`",
    ),
    KnownLabel(
        name="node_tid",
        path=NODE_TID,
        cardinality="medium",
        help="the interface where the flow was captured; a conversation captured at two "
        "interfaces has two connections",
    ),
    KnownLabel(
        name="protocol",
        path=PROTOCOL,
        cardinality="low",
        help="`TCP`, `UDP` or `SCTP`; with `include_icmp` also `ICMPV4` and `ICMPV6`; with "
        "`include_other` also the last layer of other flows",
    ),
    KnownLabel(
        name="application",
        path=("Application",),
        cardinality="low",
        help="the last recognized layer, such as `DNS`",
    ),
    KnownLabel(
        name="layers_path",
        path=("LayersPath",),
        cardinality="low",
        help="all layers, such as `Ethernet/IPv4/TCP`",
    ),
    KnownLabel(
        name="link_a",
        path=("Link", "A"),
        cardinality="medium",
        help="the MAC address of the initiator",
    ),
    KnownLabel(
        name="link_b",
        path=("Link", "B"),
        cardinality="medium",
        help="the MAC address of the target",
    ),
    KnownLabel(
        name="vlan",
        path=("Link", "ID"),
        cardinality="medium",
        help="the VLAN number, or 0; with QinQ, 12 bits for each tag",
    ),
    KnownLabel(
        name="capture_id",
        path=("CaptureID",),
        cardinality="low",
        help="the capture; a capture that is created again gets a new ID",
    ),
    KnownLabel(
        name="tracking_id",
        path=("TrackingID",),
        cardinality="unbounded",
        help="a new value for each conversation",
    ),
    KnownLabel(
        name="l3_tracking_id",
        path=("L3TrackingID",),
        cardinality="unbounded",
        help="a new value for each conversation; can change across a router",
    ),
    KnownLabel(
        name="parent_uuid",
        path=("ParentUUID",),
        cardinality="unbounded",
        help="the flow of the tunnel, or empty",
    ),
    KnownLabel(
        name=TAG,
        path=(),
        cardinality="low",
        help="`internal`, `ingress`, `egress` or `other`: see `classify.cluster_net_masks`",
        lookup="classification",
    ),
    KnownLabel(
        name="icmp_type",
        path=("ICMP", "Type"),
        cardinality="low",
        help="the ICMP type, such as `ECHO`; empty for other protocols",
    ),
    KnownLabel(
        name="node_name",
        path=NODE_TID,
        cardinality="medium",
        help="the name of the interface, from the topology",
        lookup="node_name",
    ),
    KnownLabel(
        name="node_host",
        path=NODE_TID,
        cardinality="low",
        help="the host of the interface, from the topology",
        lookup="node_host",
    ),
    KnownLabel(
        name="node_type",
        path=NODE_TID,
        cardinality="low",
        help="the type of the interface, from the topology",
        lookup="node_type",
    ),
    KnownLabel(
        name="initiator_name",
        path=INITIATOR_IP,
        cardinality="medium",
        help="the node that has the initiator's address, from the topology",
        lookup="owner",
    ),
    KnownLabel(
        name="target_name",
        path=TARGET_IP,
        cardinality="medium",
        help="the node that has the target's address, from the topology",
        lookup="owner",
    ),
)
"""Every label that can be chosen by name."""

LABELS_BY_NAME: Final = {label.name: label for label in LABELS}

UNBOUNDED_FIELDS: Final = {
    **{label.path: label.help for label in LABELS if label.cardinality == "unbounded"},
    ("UUID",): "a new value for each flow",
    ("Start",): "a new value for each flow",
    ("ICMP", "ID"): "a new value for each ping",
}
"""The fields that have values without end, and why."""

DEFAULT_LABELS: Final = tuple(label.name for label in LABELS[:7])
"""The labels of the Go connector ``prom_sky_con``, in its order."""

ENDPOINTS: Final = frozenset({INITIATOR_IP, TARGET_IP, INITIATOR_PORT, TARGET_PORT})
"""Both addresses and both ports."""


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
        help="Latest measured round-trip time",
    ),
    KnownMetric(
        name="flows",
        paths=(),
        type="gauge",
        compatible="skydive_network_connection_flows",
        standard="flows",
        unit="flows",
        help="Current number of flows",
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
        help="Unix time of the first packet",
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
        help="Unix time of the latest packet",
    ),
    KnownMetric(
        name="tcp_bytes",
        paths=_both("TCPMetric", "Bytes"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_bytes",
        standard="tcp_bytes_total",
        unit="bytes",
        help="Bytes in reassembled TCP streams",
    ),
    KnownMetric(
        name="tcp_packets",
        paths=_both("TCPMetric", "Packets"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_packets",
        standard="tcp_packets_total",
        unit="packets",
        help="Segments in reassembled TCP streams",
    ),
    KnownMetric(
        name="tcp_out_of_order",
        paths=_both("TCPMetric", "SegmentOutOfOrder"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_out_of_order",
        standard="tcp_out_of_order_total",
        unit="segments",
        help="TCP segments received out of order",
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
        help="Bytes missing in gaps of TCP streams",
    ),
    KnownMetric(
        name="ip_fragments",
        paths=(("IPMetric", "Fragments"),),
        type="counter",
        compatible="skydive_network_connection_total_ip_fragments",
        standard="ip_fragments_total",
        unit="fragments",
        help="IP fragments",
    ),
    KnownMetric(
        name="ip_fragment_errors",
        paths=(("IPMetric", "FragmentErrors"),),
        type="counter",
        compatible="skydive_network_connection_total_ip_fragment_errors",
        standard="ip_fragment_errors_total",
        unit="fragments",
        help="IP fragments that could not be reassembled",
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
