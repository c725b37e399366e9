"""What a configuration selects: labels, metrics, views, rewrites and filter rules.

Plain data, made by `skyfast.config.loader`. `skyfast.flows.planner` makes the table's plan of it,
and `skyfast.flows.filters` uses the rules. Nothing here knows a file or a flow.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, Final, Literal, TypeAlias

from skyfast.flows.plan import Path

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

KEEP = "keep"
"""The rule name under which flows are counted that none of the keep rules holds for."""

TAGS = ("internal", "ingress", "egress", "other")
"""What the classification can call a flow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelChoice:
    """A label: a known one where ``path`` is None, else what stands at ``path`` in a flow."""

    name: str
    path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChoice:
    """A metric: a known one where ``paths`` is empty, else one or two fields of a flow.

    Two fields are the initiator's direction and the target's. ``type`` and ``help`` are those of a
    metric that is not known.
    """

    name: str
    paths: tuple[Path, ...] = ()
    type: Literal["counter", "gauge"] = "counter"
    help: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewChoice:
    """A set of series with the same labels.

    The main view has an empty ``prefix``. ``labels`` holds ``direction`` exactly where the
    directions are split.
    """

    prefix: str
    labels: tuple[LabelChoice, ...]
    metrics: tuple[MetricChoice, ...]
    direction: Literal["split", "sum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Addresses shown as the networks of these prefix lengths; None is the address itself."""

    ipv4: int | None
    ipv6: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Ports shown as ``other``: those ``above`` a port, or all, but never those to ``keep``.

    One of the two can be None.
    """

    above: int | None
    keep: frozenset[int] | None


Rewrite: TypeAlias = Mask | Fold


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSelection:
    """What is exported: another selection needs a new table.

    ``main`` is the view whose rows are the connections, and ``naming`` that of its families.
    ``rewrite`` is by label. ``cluster_net_masks`` are the networks by which the label ``tag`` is
    told; without that label they change nothing that is exported, and it is empty.
    """

    main: ViewChoice
    views: tuple[ViewChoice, ...]
    include_icmp: bool
    include_other: bool
    rewrite: Mapping[str, Rewrite]
    overflow: Literal["drop", "other"]
    deduplicate: Literal["none", "first"]
    naming: Literal["compatible", "standard"]
    cluster_net_masks: tuple[Network, ...]


def changed_fields(old: ExportSelection, new: ExportSelection) -> list[str]:
    """Return the names of the fields by which two selections differ, of the main view its own."""
    main = _changed(old.main, new.main, fields(ViewChoice))
    rest = [each for each in fields(ExportSelection) if each.name != "main"]
    return [*main, *_changed(old, new, rest)]


def _changed(old: object, new: object, of: Iterable[Field[Any]]) -> list[str]:
    return [each.name for each in of if getattr(old, each.name) != getattr(new, each.name)]


@dataclass(frozen=True, slots=True)
class Shard:
    """Which of several instances this is: the ``index``-th, counted from 0, of ``count``."""

    index: int
    count: int


ALONE: Final = Shard(0, 1)
"""The only instance that there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What a field of a flow must be; ``path`` None is the classification's tag.

    It holds where any of ``values``, ``ranges`` (both ends included), ``networks`` or ``pattern``
    (found anywhere in the text) fits, or none where ``negated``. A field that a flow lacks fits
    nothing. ``field`` is the name that was written.
    """

    field: str
    path: Path | None
    negated: bool = False
    values: frozenset[str | int] = frozenset()
    ranges: tuple[tuple[int, int], ...] = ()
    networks: tuple[Network, ...] = ()
    pattern: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Flows for which all ``conditions`` hold; ``name`` is a label value."""

    name: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which flows are dropped: those with ``excluded_tags``, of `TAGS`, and by rules.

    A flow is dropped by the first of ``drop`` that holds for it, and, where there is ``keep``, if
    none of those does.
    """

    excluded_tags: frozenset[str]
    keep: tuple[Rule, ...]
    drop: tuple[Rule, ...]
