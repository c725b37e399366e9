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
    """A label: a known label, a field, a pod label, or a value that users give to addresses.

    ``path`` is the field, ``k8s_label`` is the key of the pod label, and ``names_key`` is the key
    of the value in ``names`` or ``names_file``. With ``k8s_label`` or ``names_key``, the prefix
    ``initiator_`` or ``target_`` of ``name`` selects the address. If ``name`` has no such prefix,
    the entry stands for two labels, one for each address.
    """

    name: str
    path: FieldPath | None = None
    k8s_label: str = ""
    names_key: str = ""

    @property
    def is_known(self) -> bool:
        """Whether the label is one of `skyfast.flows.catalog.LABELS`."""
        return self.path is None and not self.has_key

    @property
    def has_key(self) -> bool:
        return bool(self.k8s_label or self.names_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """A metric: one or two fields of a flow, or a known metric.

    ``paths`` are the fields; the field of the initiator's direction is first. A known metric has no
    ``paths``. For a known histogram, ``type`` is "histogram", and ``buckets`` are the upper bounds
    of its buckets, without +Inf. For all other known metrics, ``type`` and ``help`` are ignored.
    """

    name: str
    paths: tuple[FieldPath, ...] = ()
    type: MetricType = "counter"
    help: str = ""
    buckets: tuple[float, ...] = ()

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
    """A view. The first view, whose rows are the connections, has an empty ``prefix``.

    ``labels`` contains ``direction`` if and only if the directions are split. ``amounts`` has
    "bytes" or "packets" if bounds need this amount, but no metric of the view shows it.
    """

    prefix: str
    labels: tuple[LabelSpec, ...]
    metrics: tuple[MetricSpec, ...]
    direction: Literal["split", "sum"]
    amounts: tuple[Amount, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Replaces addresses with networks of these prefix lengths; None keeps the address."""

    ipv4: int | None
    ipv6: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortGrouping:
    """Replaces ports above ``above`` with ``other``, except the ports in ``keep``.

    If ``above`` is None, all ports except those in ``keep`` are replaced. For ``keep``, None means
    an empty set.
    """

    above: int | None
    keep: frozenset[int] | None


RewriteSpec: TypeAlias = Mask | PortGrouping


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSelection:
    """What is exported: labels, metrics and views. A change requires a new table.

    The rows of ``first_view`` are the connections, and ``naming`` applies to its families.
    ``cluster_net_masks`` are the networks for the label ``tag``; if no view has this label, the
    tuple is empty.
    """

    first_view: ViewSpec
    further_views: tuple[ViewSpec, ...]
    include_icmp: bool
    include_other: bool
    rewrite: Mapping[str, RewriteSpec]
    overflow: Literal["drop", "other"]
    deduplicate: Literal["none", "first"]
    naming: Literal["compatible", "standard"]
    cluster_net_masks: tuple[Network, ...]

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
    """Return the configuration keys of fields that differ, including fields of ``first_view``."""
    of_first_view = _changed(old.first_view, new.first_view, fields(ViewSpec))
    rest = [field for field in fields(ExportSelection) if field.name != "first_view"]
    return [*of_first_view, *_changed(old, new, rest)]


def _changed(old: object, new: object, of: Iterable[Field[Any]]) -> list[str]:
    names = [field.name for field in of if getattr(old, field.name) != getattr(new, field.name)]
    return [_KEYS.get(name, name) for name in names]


_KEYS: Final = {"amounts": "min_bytes or min_packets", "further_views": "views"}
"""Maps fields to their configuration keys, if the key has another name than the field."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard number ``index``, counted from 0, of ``count``."""

    index: int
    count: int


UNSHARDED: Final = Shard(0, 1)
"""The only shard of an instance that runs without ``--shard``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition on a field of a flow; ``path`` is None for the tag.

    The condition matches if any of ``values``, ``ranges``, ``networks`` or ``pattern`` matches. A
    missing field matches none of the four. If ``negated`` is true, the condition matches if none of
    the four matches. Ranges include their first and last value. The pattern can match anywhere in
    the string. ``field`` is the name in the configuration.
    """

    field: str
    path: FieldPath | None
    negated: bool = False
    values: frozenset[str | int] = frozenset()
    ranges: tuple[tuple[int, int], ...] = ()
    networks: tuple[Network, ...] = ()
    pattern: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Matches flows for which all ``conditions`` match.

    ``name`` is a label value in ``skyfast_flows_filtered_total``.
    """

    name: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Drops a flow if one of these applies.

    * Its tag is in ``excluded_tags``.
    * A rule of ``drop`` matches.
    * ``keep`` is not empty, and no rule of ``keep`` matches.
    """

    excluded_tags: frozenset[str]
    keep: tuple[Rule, ...]
    drop: tuple[Rule, ...]
