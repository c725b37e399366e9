"""Specs for `tests.model`. `CONFIGURATIONS` has the specs of ``data/configs``."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tests.model import (
    BYTES,
    DIRECTION,
    FAMILIES,
    KNOWN_LABELS,
    LABELS,
    PACKETS,
    PROTOCOL_OR_ICMP,
    RTT,
    Family,
    Label,
    Mask,
    PortGrouping,
    Spec,
    View,
    tag_label,
    topology_labels,
)
from tests.support.paths import RECORDINGS

TOPOLOGY = (RECORDINGS / "topology.json").read_bytes()

COMPATIBLE = "skydive_network_connection"
STANDARD = "skydive_connection"


def _both(part: str, name: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (part, f"AB{name}"), (part, f"BA{name}")


def _counter(name: str, *paths: tuple[str, ...]) -> Family:
    return Family(f"{COMPATIBLE}_total_{name}", "counter", *paths)


METRICS = {
    "bytes": _counter("bytes", *_both("Metric", "Bytes")),
    "packets": _counter("packets", *_both("Metric", "Packets")),
    "rtt": Family(RTT, "gauge", ("Metric", "RTT")),
    "flows": Family(f"{COMPATIBLE}_flows", "gauge", ()),
    "new_flows": Family(f"{COMPATIBLE}_new_flows_total", "counter", ()),
    "start": Family(
        f"{COMPATIBLE}_start_timestamp_seconds", "gauge", ("Start",), keep="least", decimals=3
    ),
    "last": Family(
        f"{COMPATIBLE}_last_timestamp_seconds", "gauge", ("Last",), keep="most", decimals=3
    ),
    "tcp_bytes": _counter("tcp_bytes", *_both("TCPMetric", "Bytes")),
    "tcp_packets": _counter("tcp_packets", *_both("TCPMetric", "Packets")),
    "tcp_out_of_order": _counter("tcp_out_of_order", *_both("TCPMetric", "SegmentOutOfOrder")),
    "tcp_skipped": _counter("tcp_skipped", *_both("TCPMetric", "SegmentSkipped")),
    "tcp_skipped_bytes": _counter("tcp_skipped_bytes", *_both("TCPMetric", "SegmentSkippedBytes")),
    "ip_fragments": _counter("ip_fragments", ("IPMetric", "Fragments")),
    "ip_fragment_errors": _counter("ip_fragment_errors", ("IPMetric", "FragmentErrors")),
}
"""The known metrics in the compatible naming, by name."""

assert [METRICS[name].name for name in ("bytes", "packets", "rtt")] == [BYTES, PACKETS, RTT]


HISTOGRAMS = {
    "rtt": Family("rtt_seconds", "histogram", ("Metric", "RTT"), observes="first", decimals=9),
    "flow_bytes": Family("flow_bytes", "histogram", *_both("Metric", "Bytes"), observes="total"),
    "flow_duration": Family(
        "flow_duration_seconds", "histogram", ("Start",), observes="age", decimals=3
    ),
}
"""The known histograms, without buckets and without the prefix of a view."""


def histogram(prefix: str, name: str, *buckets: str) -> Family:
    """The buckets are upper bounds."""
    family = HISTOGRAMS[name]
    return replace(family, name=f"{prefix}_{family.name}", buckets=buckets)


def compatible(*names: str) -> tuple[Family, ...]:
    """Return families of the first view in the compatible naming."""
    return tuple(METRICS[name] for name in names)


def standard(prefix: str, *names: str) -> tuple[Family, ...]:
    """Return families of a view in the standard naming."""
    return tuple(_standard(prefix, METRICS[name]) for name in names)


def _standard(prefix: str, family: Family) -> Family:
    short = family.name.removeprefix(f"{COMPATIBLE}_")
    if family.type == "counter":
        short = short.removeprefix("total_").removesuffix("_total")
        return replace(family, name=f"{prefix}_{short}_total")
    if short == "rtt_nanoseconds":
        return replace(family, name=f"{prefix}_rtt_seconds", decimals=9)
    return replace(family, name=f"{prefix}_{short}")


def labelled(*names: str, others: Iterable[Label] = ()) -> tuple[Label, ...]:
    """Return the labels with these names, from `KNOWN_LABELS` or ``others``."""
    known = KNOWN_LABELS | {label.name: label for label in others}
    return tuple(known[name] for name in names)


def traffic(protocol: Label = KNOWN_LABELS["protocol"]) -> View:
    """Return the second view of the default configuration."""
    return View(
        (KNOWN_LABELS["node_tid"], protocol, DIRECTION),
        standard("skydive_traffic", "bytes", "packets"),
    )


DEFAULT = Spec(views=(View(LABELS, FAMILIES), traffic()))
"""The spec of the default configuration."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfiguration:
    """The spec of a file under ``data/configs``, and the recordings to replay with it."""

    spec: Spec
    recordings: Sequence[str]


ONE = ("one-analyzer.jsonl",)
TWO = ("two-analyzers-a.jsonl", "two-analyzers-b.jsonl")
ALL = (*ONE, *TWO)

_TOPOLOGY = topology_labels(json.loads(TOPOLOGY))
_MASKS = ("10.77.0.1/32", "10.99.0.2/32", "fd77::/64")
_TAG = tag_label(_MASKS)
_ICMP = (KNOWN_LABELS["icmp_type"], PROTOCOL_OR_ICMP)
_MASKED = (
    Label("initiator_ip", ("Network", "A"), rewrite=Mask(ipv4=24, ipv6=64)),
    Label("target_ip", ("Network", "B"), rewrite=Mask(ipv4=16)),
)
_FOLDED = (
    Label("initiator_port", ("Transport", "A"), number=True, rewrite=PortGrouping(above=1023)),
    Label(
        "target_port",
        ("Transport", "B"),
        number=True,
        rewrite=PortGrouping(keep=frozenset({53, 80, 4789})),
    ),
)
_OWN = (
    Label("link", ("Link", "Protocol")),
    Label("link_vlan", ("Link", "ID"), number=True),
    Label("address_family", ("Network", "Protocol")),
    Label("icmp_id", ("ICMP", "ID"), number=True),
)

CONFIGURATIONS = {
    "labels": ReplayConfiguration(
        recordings=ALL,
        spec=Spec(
            views=(
                View(
                    (
                        *labelled("initiator_ip", "target_ip", "target_port", "protocol"),
                        *labelled("node_name", "direction", others=_TOPOLOGY.values()),
                    ),
                    compatible("bytes", "packets", "rtt", "flows", "new_flows", "tcp_out_of_order"),
                ),
                traffic(),
            ),
        ),
    ),
    "sum": ReplayConfiguration(
        recordings=TWO,
        spec=Spec(
            views=(
                View(
                    labelled("application", "layers_path", "capture_id"),
                    compatible(
                        *("last", "start", "flows", "rtt", "bytes", "packets"),
                        *("tcp_bytes", "tcp_packets", "ip_fragments", "ip_fragment_errors"),
                    ),
                ),
            ),
        ),
    ),
    "icmp": ReplayConfiguration(
        recordings=ONE,
        spec=Spec(
            include_icmp=True,
            views=(
                View(
                    (
                        *labelled("protocol", "icmp_type", "initiator_ip", others=_ICMP),
                        *labelled("direction", "target_ip", "target_port", "node_tid"),
                    )
                ),
                traffic(PROTOCOL_OR_ICMP),
            ),
        ),
    ),
    "filters": ReplayConfiguration(
        recordings=ONE,
        spec=Spec(
            cluster_net_masks=_MASKS,
            excluded_tags=("internal",),
            keep=(
                {"name": "dns", "target_port": 53, "protocol": "UDP"},
                {"name": "inwards", "tag": ["ingress", "other"], "Network.Protocol": "IPV4"},
                {"name": "web", "target_port": [80, "8000-8999"], "initiator_port": "0-45000"},
            ),
            drop=(
                {"name": "iperf", "target_port": ["5201-5210", 7], "protocol": ["TCP", "UDP"]},
                {
                    "name": "tunnelled",
                    "ParentUUID": {"not": ""},
                    "initiator_ip": {"not": ["10.77.0.0/24", "fd77::1"]},
                },
                {"name": "vxlan", "layers_path": {"regex": "/VXLAN$"}},
                {"name": "one_packet", "Metric.ABPackets": "0-1", "application": {"not": "DNS"}},
            ),
            views=(
                View(
                    labelled("tag", "application", "target_port", "direction", others=[_TAG]),
                    compatible("packets", "flows"),
                ),
                traffic(),
            ),
        ),
    ),
    "rewrites": ReplayConfiguration(
        recordings=TWO,
        spec=Spec(
            views=(
                View(labelled(*(label.name for label in LABELS), others=_MASKED + _FOLDED)),
                traffic(),
            ),
        ),
    ),
    "overflow": ReplayConfiguration(
        recordings=ONE,
        spec=Spec(
            max_connections=40,
            max_flows=60,
            overflow="other",
            views=(
                View(),
                View(
                    labelled("application", "initiator_port"),
                    standard("ports", "bytes", "flows", "new_flows", "last"),
                ),
                View(
                    labelled("node_tid", "direction"),
                    standard("nodes", "bytes", "packets", "rtt", "flows"),
                ),
            ),
        ),
    ),
    "deduplicate": ReplayConfiguration(
        recordings=ONE,
        spec=Spec(
            deduplicate="first",
            views=(
                View(
                    labelled("target_ip", "target_port", "direction", "node_tid"),
                    compatible("bytes", "packets", "flows", "new_flows"),
                ),
                traffic(),
            ),
        ),
    ),
    "standard": ReplayConfiguration(
        recordings=TWO,
        spec=Spec(
            views=(
                View(
                    labelled("initiator_ip", "target_ip", "target_port", "protocol", "direction"),
                    standard(
                        STANDARD,
                        *("bytes", "packets", "rtt", "flows", "new_flows", "start", "last"),
                        *("tcp_out_of_order", "tcp_skipped", "tcp_skipped_bytes", "tcp_bytes"),
                    ),
                ),
                traffic(),
            ),
        ),
    ),
    "histograms": ReplayConfiguration(
        recordings=ALL,
        spec=Spec(
            views=(
                View(
                    labelled("initiator_ip", "target_ip", "target_port", "protocol", "direction"),
                    standard(STANDARD, "bytes"),
                ),
                View(
                    labelled("node_tid", "direction"),
                    (
                        *standard("node", "packets"),
                        histogram(
                            *("node", "rtt"),
                            *("1e-05", "0.0001", "0.001", "0.01", "0.1", "1.0"),
                        ),
                        histogram("node", "flow_bytes", "100.0", "1000.0", "10000.0", "1e+06"),
                        histogram("node", "flow_duration", "0.5", "1.0", "10.0", "60.0", "600.0"),
                    ),
                ),
                View(
                    labelled("application"),
                    (
                        histogram("application", "flow_duration", "1.0", "60.0"),
                        histogram("application", "flow_bytes", "1e+06"),
                        *standard("application", "new_flows"),
                    ),
                ),
            ),
        ),
    ),
    "views": ReplayConfiguration(
        recordings=ALL,
        spec=Spec(
            cluster_net_masks=_MASKS,
            views=(
                View(
                    (DIRECTION, *labelled("target_port", "protocol")),
                    compatible("bytes", "rtt"),
                ),
                View(
                    (
                        *labelled("initiator_name", "target_name", others=_TOPOLOGY.values()),
                        *labelled("target_ip"),
                    ),
                    standard("pair", "bytes", "rtt", "tcp_skipped_bytes"),
                    timeout_s=7200.0,
                ),
                View(
                    (
                        *labelled("node_host", "direction", others=_TOPOLOGY.values()),
                        *labelled("node_type", others=_TOPOLOGY.values()),
                    ),
                    standard("host", "bytes", "packets", "flows", "new_flows"),
                ),
                View(
                    labelled("tag", "link_a", "link_b", "vlan", others=[_TAG]),
                    standard("link", "packets", "start", "last", "flows"),
                    timeout_s=700.0,
                ),
            ),
        ),
    ),
    "bounds": ReplayConfiguration(
        recordings=ALL,
        spec=Spec(
            views=(
                View(
                    LABELS,
                    compatible("rtt", "flows"),
                    amounts=("bytes", "packets"),
                    min_bytes=20_000,
                    min_packets=200,
                ),
                View(
                    labelled("target_port", "protocol", "direction"),
                    standard("service", "packets"),
                    amounts=("bytes",),
                    min_packets=100,
                ),
                View(labelled("protocol"), standard("all", "bytes", "flows")),
            ),
        ),
    ),
    "own": ReplayConfiguration(
        recordings=TWO,
        spec=Spec(
            include_icmp=True,
            views=(
                View(
                    (
                        *labelled("address_family", "link", "direction", others=_OWN),
                        *labelled("icmp_id", "link_vlan", others=_OWN),
                    ),
                    (
                        Family("my_bytes", "counter", ("Metric", "ABBytes")),
                        Family(
                            "my_skipped",
                            "counter",
                            ("TCPMetric", "ABSegmentSkipped"),
                            ("TCPMetric", "BASegmentSkipped"),
                        ),
                        Family("my_captured", "counter", ("RawPacketsCaptured",)),
                        Family(
                            "my_ttl", "gauge", ("TCPMetric", "ABSynTTL"), ("TCPMetric", "BASynTTL")
                        ),
                        METRICS["packets"],
                    ),
                ),
                View(
                    labelled("address_family", others=_OWN),
                    (
                        Family("net_tcp_total", "counter", *_both("TCPMetric", "Packets")),
                        Family("net_finish", "gauge", ("FinishType",)),
                    ),
                ),
            ),
        ),
    ),
}
