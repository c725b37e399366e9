"""The known labels and metrics.

A configuration selects them by name, and ``docs/reference/metrics.md`` lists them. Skydive's
``flow.proto`` describes the fields of flows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from skyfast.flows.fields import FIELDS
from skyfast.flows.plan import FieldPath
from skyfast.text_format import MetricFamily, MetricType

DIRECTION: Final = "direction"
"""The label that distinguishes the series of the two directions of traffic."""

TAG: Final = "tag"
"""The label that classifies flows by the cluster's networks."""

NODE_TID_LABEL: Final = "node_tid"
"""The label that identifies the capture point."""

STANDARD_PREFIX: Final = "skydive_connection"
"""The prefix of families in the first view (the connections), if ``naming`` is ``standard``."""

FIXED_PREFIXES: Final = (
    "skydive_network_interface_",
    "skydive_interface_",
    "skydive_capture_",
    "skyfast_",
    "process_",
)
"""The prefixes of families that are not computed from flows."""

Cardinality = Literal["low", "medium", "unbounded"]
"""How many values a label can have: a few (low), a number limited by the size of the network
(medium), or an unlimited number (unbounded)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelDef:
    """A label that can be selected by name."""

    name: str
    path: FieldPath
    """The field that the label shows, or by which the label's value is looked up.

    Empty for `DIRECTION` and `TAG`, which do not come from a single field."""
    cardinality: Cardinality
    help: str
    lookup: Literal["", "classification", "address", "node"] = ""
    """How the label's value is found.

    * "": The label shows the field at ``path``, or is `DIRECTION`.
    * "classification": The label is `TAG`.
    * "address": The label shows a name of the address at ``path``: see `NameSource.combined` in
      `skyfast.flows.planner`.
    * "node": The label shows a name of the capture point at ``path``: see `NameSource.nodes`.
    """
    index: int = 0
    """The index of the label's value in the tuple that the lookup returns.

    If the label shows an own name, the index is counted from the first own name in the tuple."""
    is_own: bool = False
    """Whether the label shows an own name (a name given by users)."""


INITIATOR_IP: Final = ("Network", "A")
TARGET_IP: Final = ("Network", "B")
INITIATOR_PORT: Final = ("Transport", "A")
TARGET_PORT: Final = ("Transport", "B")
PROTOCOL: Final = ("Transport", "Protocol")
NODE_TID: Final = ("NodeTID",)

ADDRESS_NAMES: Final = (
    *("name", "host", "namespace", "pod", "workload", "workload_kind", "container", "service"),
)
"""The kinds of names that the topology has for an address.

Each tuple of `NameSource.combined` begins with names of these kinds, in this order."""

NETWORK: Final = "network"
"""The last word in the names of the labels ``initiator_network`` and ``target_network``."""

NODE_NAMES: Final = (
    *("name", "host", "type", "netns", "namespace", "pod", "workload", "container"),
)
"""The kinds of names that the topology has for a capture point.

Each tuple of `NameSource.nodes` has names of these kinds, in this order."""

INTERFACE_LABELS: Final = frozenset({"node_name", "node_host", "node_type"})
"""The labels whose values come only from the topology's interfaces."""

LOCAL_LABELS: Final = frozenset({"node_netns", "node_container"})
"""The labels that need the topology's network namespaces and containers, but not its Kubernetes
objects."""

CONTAINER_POD_LABELS: Final = frozenset(
    f"{prefix}_{name}"
    for prefix in ("initiator", "target", "node")
    for name in ("namespace", "pod")
)
"""The labels that show the namespace or name of a pod.

If the topology has no Kubernetes pods, the values come from container labels, which the container
runtime sets."""

POD_LABELS: Final = CONTAINER_POD_LABELS | {
    *("initiator_workload", "initiator_workload_kind", "initiator_service"),
    *("target_workload", "target_workload_kind", "target_service"),
    "node_workload",
}
"""The labels that need the topology's Kubernetes pods.

If the topology has no pods, all of these labels except `CONTAINER_POD_LABELS` are empty."""

ADDRESS_FIELDS: Final = {"initiator": INITIATOR_IP, "target": TARGET_IP}
"""Maps the first word of a label's name to the address field that the label needs."""

_Name = tuple[Cardinality, str]

_ADDRESS_HELP: Final[dict[str, _Name]] = {
    "name": (
        "medium",
        (
            "the name of the {end}'s address: from `names` or `names_file`, otherwise from the"
            " topology, otherwise the value of `{end}_network`"
        ),
    ),
    "host": ("low", "the host that has the {end}'s address; for a pod, the host that runs the pod"),
    "namespace": ("low", "the Kubernetes namespace of the {end}'s pod or service"),
    "pod": ("medium", "the {end}'s pod; most pods get a new name when they are replaced"),
    "workload": (
        "medium",
        "the Deployment, StatefulSet, DaemonSet, CronJob or other owner of the {end}'s pod",
    ),
    "workload_kind": (
        "low",
        "the kind of the {end}'s workload, such as `Deployment` or `StaticPod`",
    ),
    "container": ("medium", "the {end}'s container; empty if the pod has several containers"),
    "service": (
        "medium",
        (
            "the Kubernetes service with the {end}'s address, or the only service that selects the"
            " {end}'s pod"
        ),
    ),
    NETWORK: (
        "medium",
        (
            "the name of the smallest network in `names` or `names_file` that contains the {end}'s"
            " address"
        ),
    ),
}

_NODE_HELP: Final[dict[str, _Name]] = {
    "name": ("medium", "the name of the interface, from the topology"),
    "host": ("low", "the host of the interface, from the topology"),
    "type": ("low", "the type of the interface, from the topology"),
    "netns": (
        "medium",
        "the network namespace of the interface; empty for the host's own namespace",
    ),
    "namespace": ("low", "the Kubernetes namespace of the interface's pod"),
    "pod": ("medium", "the pod that has the interface"),
    "workload": ("medium", "the workload of the pod that has the interface"),
    "container": (
        "medium",
        "the container that has the interface; empty if several containers share it",
    ),
}


def _address_labels(end: str, path: FieldPath) -> Iterator[LabelDef]:
    for index, name in [*enumerate(ADDRESS_NAMES), (0, NETWORK)]:
        cardinality, text = _ADDRESS_HELP[name]
        yield LabelDef(
            name=f"{end}_{name}",
            path=path,
            cardinality=cardinality,
            help=text.format(end=end),
            lookup="address",
            index=index,
            is_own=name == NETWORK,
        )


def _node_labels() -> Iterator[LabelDef]:
    for index, name in enumerate(NODE_NAMES):
        cardinality, text = _NODE_HELP[name]
        yield LabelDef(
            name=f"node_{name}",
            path=NODE_TID,
            cardinality=cardinality,
            help=text,
            lookup="node",
            index=index,
        )


LABELS: Final[tuple[LabelDef, ...]] = (
    LabelDef(
        name="initiator_ip",
        path=INITIATOR_IP,
        cardinality="medium",
        help="the address that sent the first captured packet",
    ),
    LabelDef(
        name="target_ip",
        path=TARGET_IP,
        cardinality="medium",
        help="the address that the first captured packet was sent to",
    ),
    LabelDef(
        name="initiator_port",
        path=INITIATOR_PORT,
        cardinality="unbounded",
        help="most clients use a new port for each connection",
    ),
    LabelDef(
        name="target_port",
        path=TARGET_PORT,
        cardinality="medium",
        help="the port of the service; a port scan creates all 65,536 values",
    ),
    LabelDef(
        name=DIRECTION,
        path=(),
        cardinality="low",
        help="`initiator_to_target` or `target_to_initiator`",
    ),
    LabelDef(
        name=NODE_TID_LABEL,
        path=NODE_TID,
        cardinality="medium",
        help="the interface where the flow was captured; if a conversation is captured at two "
        "interfaces, it is exported as two connections",
    ),
    LabelDef(
        name="protocol",
        path=PROTOCOL,
        cardinality="low",
        help="`TCP`, `UDP` or `SCTP`; with `include_icmp`, also `ICMPV4` and `ICMPV6`; with "
        "`include_other`, other flows have the last element of their `LayersPath`, such as `GRE`",
    ),
    LabelDef(
        name="application",
        path=("Application",),
        cardinality="low",
        help="the last recognized layer, such as `DNS`",
    ),
    LabelDef(
        name="layers_path",
        path=("LayersPath",),
        cardinality="low",
        help="all layers, such as `Ethernet/IPv4/TCP`",
    ),
    LabelDef(
        name="link_a",
        path=("Link", "A"),
        cardinality="medium",
        help="the MAC address of the initiator",
    ),
    LabelDef(
        name="link_b",
        path=("Link", "B"),
        cardinality="medium",
        help="the MAC address of the target",
    ),
    LabelDef(
        name="vlan",
        path=("Link", "ID"),
        cardinality="medium",
        help="the VLAN number, or 0 if there is none; for QinQ, a single number "
        "that contains all VLAN tags, 12 bits each",
    ),
    LabelDef(
        name="capture_id",
        path=("CaptureID",),
        cardinality="low",
        help="the ID of the capture; if a capture is deleted and created again, its ID changes",
    ),
    LabelDef(
        name="tracking_id",
        path=("TrackingID",),
        cardinality="unbounded",
        help="an ID that is unique to a conversation",
    ),
    LabelDef(
        name="l3_tracking_id",
        path=("L3TrackingID",),
        cardinality="unbounded",
        help="an ID that is unique to a conversation; if a router is between two capture points, "
        "the same conversation can have a different ID at each",
    ),
    LabelDef(
        name="parent_uuid",
        path=("ParentUUID",),
        cardinality="unbounded",
        help="the UUID of the tunnel's own flow, for a flow inside a tunnel; otherwise empty",
    ),
    LabelDef(
        name=TAG,
        path=(),
        cardinality="low",
        help="`internal`, `ingress`, `egress` or `other`: see `classify.cluster_net_masks`",
        lookup="classification",
    ),
    LabelDef(
        name="icmp_type",
        path=("ICMP", "Type"),
        cardinality="low",
        help="the ICMP type, such as `ECHO`; empty for other protocols",
    ),
    *_node_labels(),
    *(label for end, path in ADDRESS_FIELDS.items() for label in _address_labels(end, path)),
)

LABELS_BY_NAME: Final = {label.name: label for label in LABELS}

UNBOUNDED_FIELDS: Final = {
    **{label.path: label.help for label in LABELS if label.cardinality == "unbounded"},
    ("UUID",): "a new value for each flow",
    ("Start",): "a new value for each flow",
    ("ICMP", "ID"): "a new value for each ping",
}
"""Maps each field with an unlimited number of values to a text that explains why."""

DEFAULT_LABELS: Final = tuple(label.name for label in LABELS[:7])
"""The labels of the Go connector ``prom_sky_con``, in its order."""

ENDPOINTS: Final = frozenset({INITIATOR_IP, TARGET_IP, INITIATOR_PORT, TARGET_PORT})


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDef:
    """A metric that can be selected by name."""

    name: str
    paths: tuple[FieldPath, ...]
    """A field for each direction, or one field if the metric has no direction. Empty if skyfast
    itself counts the value."""
    type: MetricType
    compatible: str
    """The name of the family in the first view (the connections), if ``naming`` is
    ``compatible``."""
    standard: str
    """The name of the family if ``compatible`` does not apply, without the prefix.

    In the first view, the prefix is `STANDARD_PREFIX`. In any other view, it is the view's
    prefix."""
    unit: str
    """The unit of the values in the family that ``standard`` names."""
    help: str
    keep: Literal["latest", "least", "most"] = "latest"
    """Which value a row keeps if the metric is a gauge: see `skyfast.flows.plan.Gauge`."""
    compatible_decimals: int = 0
    """Pages divide the values by ``10 ** compatible_decimals`` in the family that ``compatible``
    names."""
    standard_decimals: int = 0
    """Pages divide the values by ``10 ** standard_decimals`` in the family that ``standard``
    names."""


def _both(part: str, name: str) -> tuple[FieldPath, FieldPath]:
    return ((part, f"AB{name}"), (part, f"BA{name}"))


METRICS: Final[tuple[MetricDef, ...]] = (
    MetricDef(
        name="bytes",
        paths=_both("Metric", "Bytes"),
        type="counter",
        compatible="skydive_network_connection_total_bytes",
        standard="bytes_total",
        unit="bytes",
        help="Bytes transferred",
    ),
    MetricDef(
        name="packets",
        paths=_both("Metric", "Packets"),
        type="counter",
        compatible="skydive_network_connection_total_packets",
        standard="packets_total",
        unit="packets",
        help="Packets transferred",
    ),
    MetricDef(
        name="rtt",
        paths=(("Metric", "RTT"),),
        type="gauge",
        compatible="skydive_network_connection_rtt_nanoseconds",
        standard="rtt_seconds",
        standard_decimals=9,
        unit="seconds",
        help="Latest measured round-trip time",
    ),
    MetricDef(
        name="flows",
        paths=(),
        type="gauge",
        compatible="skydive_network_connection_flows",
        standard="flows",
        unit="flows",
        help="Current number of flows",
    ),
    MetricDef(
        name="new_flows",
        paths=(),
        type="counter",
        compatible="skydive_network_connection_new_flows_total",
        standard="new_flows_total",
        unit="flows",
        help="New flows",
    ),
    MetricDef(
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
    MetricDef(
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
    MetricDef(
        name="tcp_bytes",
        paths=_both("TCPMetric", "Bytes"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_bytes",
        standard="tcp_bytes_total",
        unit="bytes",
        help="Bytes in reassembled TCP streams",
    ),
    MetricDef(
        name="tcp_packets",
        paths=_both("TCPMetric", "Packets"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_packets",
        standard="tcp_packets_total",
        unit="packets",
        help="Segments in reassembled TCP streams",
    ),
    MetricDef(
        name="tcp_out_of_order",
        paths=_both("TCPMetric", "SegmentOutOfOrder"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_out_of_order",
        standard="tcp_out_of_order_total",
        unit="segments",
        help="TCP segments received out of order",
    ),
    MetricDef(
        name="tcp_skipped",
        paths=_both("TCPMetric", "SegmentSkipped"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_skipped",
        standard="tcp_skipped_total",
        unit="gaps",
        help="Unfilled gaps in TCP streams",
    ),
    MetricDef(
        name="tcp_skipped_bytes",
        paths=_both("TCPMetric", "SegmentSkippedBytes"),
        type="counter",
        compatible="skydive_network_connection_total_tcp_skipped_bytes",
        standard="tcp_skipped_bytes_total",
        unit="bytes",
        help="Bytes missing in gaps of TCP streams",
    ),
    MetricDef(
        name="ip_fragments",
        paths=(("IPMetric", "Fragments"),),
        type="counter",
        compatible="skydive_network_connection_total_ip_fragments",
        standard="ip_fragments_total",
        unit="fragments",
        help="IP fragments",
    ),
    MetricDef(
        name="ip_fragment_errors",
        paths=(("IPMetric", "FragmentErrors"),),
        type="counter",
        compatible="skydive_network_connection_total_ip_fragment_errors",
        standard="ip_fragment_errors_total",
        unit="fragments",
        help="IP fragments that could not be reassembled",
    ),
)
"""Other fields of ``TCPMetric``, such as the times of the first SYN, FIN and RST, are not in this
list. A configuration can select these fields by their paths: see `MetricSpec.paths`."""

METRICS_BY_NAME: Final = {metric.name: metric for metric in METRICS}


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramDef:
    """A histogram that can be selected by name, in every view except the first (the connections).

    `skyfast.flows.plan.Histogram` and `MetricDef` explain the attributes.
    """

    name: str
    paths: tuple[FieldPath, ...]
    observes: Literal["first", "total", "age"]
    standard: str
    unit: str
    help: str
    standard_decimals: int = 0


HISTOGRAMS: Final[tuple[HistogramDef, ...]] = (
    HistogramDef(
        name="rtt",
        paths=(("Metric", "RTT"),),
        observes="first",
        standard="rtt_seconds",
        standard_decimals=9,
        unit="seconds",
        help="First measured round-trip time of each flow",
    ),
    HistogramDef(
        name="flow_bytes",
        paths=_both("Metric", "Bytes"),
        observes="total",
        standard="flow_bytes",
        unit="bytes",
        help="Bytes of each closed flow",
    ),
    HistogramDef(
        name="flow_duration",
        paths=(("Start",),),
        observes="age",
        standard="flow_duration_seconds",
        standard_decimals=3,
        unit="seconds",
        help="Time from the first to the last packet of each closed flow",
    ),
)

HISTOGRAMS_BY_NAME: Final = {histogram.name: histogram for histogram in HISTOGRAMS}

INTERFACE_INFO: Final = {
    naming: MetricFamily(
        name=name,
        type="info",
        help="Names of a capture point. The value is always 1.",
    )
    for naming, name in (
        ("compatible", "skydive_network_interface_info"),
        ("standard", "skydive_interface_info"),
    )
}
"""Maps each value of ``naming`` to the family that describes the capture points."""

DEFAULT_METRICS: Final = ("bytes", "packets", "rtt")
"""The metrics of the Go connector ``prom_sky_con``."""

RUNNING_TOTALS: Final = frozenset(
    {path for metric in METRICS if metric.type == "counter" for path in metric.paths}
    | {path for name in ("SawStart", "SawEnd") for path in _both("TCPMetric", name)}
    | {("RawPacketsCaptured",)}
)
"""The fields that can be counters, because they never decrease during the lifetime of a flow."""

LABEL_FIELDS: Final = frozenset(
    path
    for path in FIELDS
    if path[0] not in {"Metric", "LastUpdateMetric", "TCPMetric", "IPMetric"}
    and path not in {("Last",), ("RawPacketsCaptured",), ("FinishType",)}
)
"""The fields that can be labels, because they do not change during the lifetime of a flow."""
