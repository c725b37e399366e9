"""Presets: labels, metrics and views that a configuration selects by one name."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from skyfast.config.views import DEFAULT_VIEWS, ViewEntry
from skyfast.flows.catalog import DEFAULT_LABELS, DEFAULT_METRICS, DIRECTION
from skyfast.flows.selection import LabelSpec, MetricSpec, ViewSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Default values of four configuration keys. Each attribute has the name of its key."""

    labels: tuple[LabelSpec, ...]
    metrics: tuple[MetricSpec, ...]
    views: tuple[ViewEntry, ...]
    """All views except the first, whose rows are the connections."""
    deduplicate: Literal["none", "first"]


def _labels(*names: str) -> tuple[LabelSpec, ...]:
    return tuple(LabelSpec(name=name) for name in names)


def _metrics(*names: str) -> tuple[MetricSpec, ...]:
    return tuple(MetricSpec(name=name) for name in names)


_RTT_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

_SERVICES = ("initiator_name", "target_name", "target_port", "protocol")

COMPATIBLE: Final = Preset(
    labels=_labels(*DEFAULT_LABELS),
    metrics=_metrics(*DEFAULT_METRICS),
    views=DEFAULT_VIEWS,
    deduplicate="none",
)
"""The default: the labels and metrics of the Go connector ``prom_sky_con``."""

PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "compatible": COMPATIBLE,
        "services": Preset(
            labels=_labels(*_SERVICES, DIRECTION),
            metrics=_metrics("bytes", "packets"),
            views=(
                ViewEntry(
                    spec=ViewSpec(
                        prefix="skydive_services",
                        labels=_labels(*_SERVICES),
                        metrics=(
                            MetricSpec(name="rtt", type="histogram", buckets=_RTT_BUCKETS_S),
                            *_metrics("new_flows"),
                        ),
                        direction="sum",
                    )
                ),
            ),
            deduplicate="first",
        ),
        # No label of this preset identifies the capture point. Therefore, without deduplication,
        # traffic seen at several capture points would be counted several times.
        "hosts": Preset(
            labels=_labels("initiator_host", "target_host", "protocol", DIRECTION),
            metrics=_metrics("bytes", "packets"),
            views=(),
            deduplicate="first",
        ),
    }
)
