"""The selection made by a configuration: labels, metrics, views, rewrites and filter rules.

`skyfast.flows.planner` creates the table's plan from this data, and `skyfast.flows.filters`
compiles the rules.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from skyfast.flows.plan import FieldPath
from skyfast.text_format import MetricType

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

KEEP = "keep"
"""The rule name under which ``skyfast_flows_filtered_total`` counts flows that match no keep rule.

No rule of a configuration can have this name."""

TAGS = ("internal", "ingress", "egress", "other")
"""The tags that the classification assigns to flows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSpec:
    """A label: a known label, a field, a pod label, or a value that users give to addresses."""

    name: str
    """The name. If ``k8s_label`` or ``names_key`` is set, the prefix ``initiator_`` or ``target_``
    selects the address, and a name without such a prefix stands for two labels, one for each
    address."""
    path: FieldPath | None = None
    """The field, if the label is a field; otherwise None."""
    k8s_label: str = ""
    """The key, if the label is a pod label; otherwise empty."""
    names_key: str = ""
    """The key in ``names`` or ``names_file``, if the label is a value that users give; otherwise
    empty."""

    @property
    def is_known(self) -> bool:
        """Whether the label is one of `skyfast.flows.catalog.LABELS`."""
        return self.path is None and not self.has_key

    @property
    def has_key(self) -> bool:
        return bool(self.k8s_label or self.names_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """A metric: one or two fields of a flow, or a known metric."""

    name: str
    paths: tuple[FieldPath, ...] = ()
    """The fields; the field of the initiator's direction is first. Empty for a known metric."""
    type: MetricType = "counter"
    """The type of a metric with ``paths``; "histogram" for a known histogram. Ignored for all other
    known metrics."""
    help: str = ""
    """The help text of a metric with ``paths``; ignored for known metrics."""
    buckets: tuple[float, ...] = ()
    """For a known histogram, the upper bounds of its buckets, without +Inf."""

    @property
    def is_histogram(self) -> bool:
        return self.type == "histogram"


class Bounds(NamedTuple):
    """The numbers of bytes and packets that a row of a view must reach before it has series.

    If both bounds are set, reaching one of them is enough. 0 means no bound.
    """

    min_bytes: int = 0
    min_packets: int = 0

    @property
    def are_set(self) -> bool:
        return self.min_bytes > 0 or self.min_packets > 0


NO_BOUNDS: Final = Bounds()

Amount: TypeAlias = Literal["bytes", "packets"]
"""The name of a metric that can have a bound. The bound applies to the sum of both directions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSpec:
    """A selected view."""

    prefix: str
    """Empty for the first view, whose rows are the connections."""
    labels: tuple[LabelSpec, ...]
    """The labels. They include ``direction`` if and only if the directions have separate series."""
    metrics: tuple[MetricSpec, ...]
    direction: Literal["split", "sum"]
    amounts: tuple[Amount, ...] = ()
    """The amounts that bounds need but no metric of the view shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Replaces addresses with their networks."""

    ipv4: int | None
    """The prefix length of the networks of IPv4 addresses; None keeps the addresses."""
    ipv6: int | None
    """The prefix length of the networks of IPv6 addresses; None keeps the addresses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortGrouping:
    """Replaces ports with ``other``."""

    above: int | None
    """Ports above this number are replaced, except the ports in ``keep``. If None, all ports are
    replaced, except the ports in ``keep``."""
    keep: frozenset[int] | None
    """Ports that are never replaced; None stands for an empty set."""


RewriteSpec: TypeAlias = Mask | PortGrouping


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSelection:
    """What is exported: labels, metrics and views. A change requires a new table."""

    first_view: ViewSpec
    """The view whose rows are the connections."""
    further_views: tuple[ViewSpec, ...]
    include_icmp: bool
    include_other: bool
    rewrite: Mapping[str, RewriteSpec]
    overflow: Literal["drop", "other"]
    deduplicate: Literal["none", "first"]
    naming: Literal["compatible", "standard"]
    """The naming of metric families, including self metrics. Families of further views always have
    standard names."""
    cluster_net_masks: tuple[Network, ...]
    """The networks for the label ``tag``; empty if no view has this label."""

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        return (self.first_view, *self.further_views)

    @property
    def k8s_labels(self) -> tuple[str, ...]:
        """The keys of the exported pod labels, sorted and without duplicates."""
        keys = {label.k8s_label for view in self.views for label in view.labels if label.k8s_label}
        return tuple(sorted(keys))

    @property
    def names_keys(self) -> tuple[str, ...]:
        """The exported keys of own names, sorted and without duplicates."""
        keys = {label.names_key for view in self.views for label in view.labels if label.names_key}
        return tuple(sorted(keys))


def changed_fields(old: ExportSelection, new: ExportSelection) -> list[str]:
    """Return the configuration keys whose values differ, including keys of ``first_view``."""
    of_first_view = _changed(old.first_view, new.first_view, fields(ViewSpec))
    rest = [field for field in fields(ExportSelection) if field.name != "first_view"]
    return [*of_first_view, *_changed(old, new, rest)]


def _changed(old: object, new: object, of: Iterable[Field[Any]]) -> list[str]:
    names = [field.name for field in of if getattr(old, field.name) != getattr(new, field.name)]
    return [_KEYS.get(name, name) for name in names]


_KEYS: Final = {"amounts": "min_bytes or min_packets", "further_views": "views"}
"""Maps a field to its configuration key, if the two have different names."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several shards."""

    index: int
    """The number of this shard, counted from 0."""
    count: int
    """The number of all shards."""


UNSHARDED: Final = Shard(0, 1)
"""The only shard of an instance that runs without ``--shard``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition on a field or on the tag of a flow.

    The condition matches if any of ``values``, ``ranges``, ``networks`` or ``pattern`` matches the
    field. None of the four matches a missing field.
    """

    field: str
    """The name of the field in the configuration."""
    path: FieldPath | None
    """The path of the field; None for the tag."""
    negated: bool = False
    """Whether the condition is inverted: it then matches if none of ``values``, ``ranges``,
    ``networks`` and ``pattern`` matches."""
    values: frozenset[str | int] = frozenset()
    ranges: tuple[tuple[int, int], ...] = ()
    """The first and the last number of each range."""
    networks: tuple[Network, ...] = ()
    pattern: re.Pattern[str] | None = None
    """Can match anywhere in the field's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Matches flows for which all ``conditions`` match."""

    name: str
    """The value of the label ``rule`` in ``skyfast_flows_filtered_total``."""
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Decides which flows are dropped.

    A flow is dropped in each of these cases:

    * The flow's tag is in ``excluded_tags``.
    * A rule of ``drop`` matches.
    * ``keep`` is not empty, and no rule of ``keep`` matches.
    """

    excluded_tags: frozenset[str]
    keep: tuple[Rule, ...]
    drop: tuple[Rule, ...]
