"""The plan: which fields of a flow become labels and values, and how a page spells them.

The table is built from a plan and knows no label or metric by name; the decoder is built
from the paths that a plan mentions (`skyfast.wire`). A plan is plain, immutable data: what a
configuration can change about the exported metrics is changed here and nowhere else.
"""

from dataclasses import dataclass

Path = tuple[str, ...]
"""Where a value stands in a flow: the names of the wire's fields from the outside in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A label whose value comes from the flow."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """The label that tells a connection's two series of one family apart.

    ``position`` counts from 0 among all labels of the page, the columns keeping their order
    around it. ``values`` are its texts, the initiator's first.
    """

    name: str
    position: int
    values: tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A running total of a flow, summed by its deltas.

    ``path`` is the total since the flow began, ``amount`` what its latest update added.
    """

    path: Path
    amount: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A value of a flow of which a connection keeps the latest that was not zero."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A metric family of the page.

    ``values`` are indexes into the plan's counters followed by its gauges: one for a family
    that has the initiator's direction only, two (initiator to target, target to initiator)
    for one that has both. A family with ``omit_zero`` has no series where its value is zero.
    """

    name: str
    help: str
    type: str
    values: tuple[int, ...]
    omit_zero: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A field without which a flow is skipped, counted under ``reason``."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the table keeps of a flow, and the families of its page.

    ``complete`` says that the labels hold both addresses and both ports, so that the flow which
    creates a connection is the connection: its total may then be counted even where it is not
    the flow's first report.
    """

    columns: tuple[Column, ...]
    direction: Direction
    counters: tuple[Counter, ...]
    gauges: tuple[Gauge, ...]
    families: tuple[Family, ...]
    requirements: tuple[Requirement, ...]
    complete: bool


INITIATOR_TO_TARGET = "initiator_to_target"
TARGET_TO_INITIATOR = "target_to_initiator"

_COLUMNS = (
    Column(name="initiator_ip", path=("Network", "A")),
    Column(name="target_ip", path=("Network", "B")),
    Column(name="initiator_port", path=("Transport", "A")),
    Column(name="target_port", path=("Transport", "B")),
    Column(name="node_tid", path=("NodeTID",)),
    Column(name="protocol", path=("Transport", "Protocol")),
)

_COUNTERS = tuple(
    Counter(path=("Metric", name), amount=("LastUpdateMetric", name))
    for name in ("ABBytes", "BABytes", "ABPackets", "BAPackets")
)


def default_plan() -> Plan:
    """Return the plan with the names and labels of the Go connector ``prom_sky_con``."""
    return Plan(
        columns=_COLUMNS,
        direction=Direction(
            name="direction", position=4, values=(INITIATOR_TO_TARGET, TARGET_TO_INITIATOR)
        ),
        counters=_COUNTERS,
        gauges=(Gauge(path=("Metric", "RTT")),),
        families=(
            Family(
                name="skydive_network_connection_total_bytes",
                help="Bytes transferred on this connection in this direction.",
                type="counter",
                values=(0, 1),
            ),
            Family(
                name="skydive_network_connection_total_packets",
                help="Packets transferred on this connection in this direction.",
                type="counter",
                values=(2, 3),
            ),
            Family(
                name="skydive_network_connection_rtt_nanoseconds",
                help="Latest round-trip time measured on this connection.",
                type="gauge",
                values=(4,),
                omit_zero=True,
            ),
        ),
        requirements=(
            Requirement(path=("Network",), reason="no_network"),
            Requirement(path=("Transport",), reason="no_transport"),
            Requirement(path=("Metric",), reason="no_metric"),
        ),
        complete=True,
    )
