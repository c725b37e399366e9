"""The views whose rows can be ranked: their labels, metrics and ranking criteria."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from skyfast.flows.catalog import ADDRESS_NAMES, INITIATOR_IP, NODE_TID, TARGET_IP
from skyfast.flows.plan import Column, Counter, Family, View
from skyfast.text_format import MetricType

RATES: Final = ("bytes", "packets")
"""The metrics that can be ranked by rate: see the snapshots in `skyfast.web.top`."""

PER_SECOND: Final = "_per_second"

Unit = Literal["bytes", "seconds", "nanoseconds", "timestamp", ""]

Values = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedMetric:
    """A metric of a view, but not a histogram."""

    name: str
    """The name in the configuration."""
    family: str
    """The name on the metrics page."""
    type: MetricType
    unit: Unit
    directions: int
    """2 if each direction has its own value, otherwise 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingKey:
    """A ranking criterion: a metric, or the rate of a metric."""

    name: str
    metric: RankedMetric
    family: int
    """The index of the metric's family among the families of all views."""
    decimals: int
    """The table stores the values on the page as integers, multiplied by ``10 ** decimals``.

    For example, if ``decimals`` is 3, the value 1.5 on the page is 1500 in the table."""
    is_rate: bool
    """Whether rows are ranked by the rate of ``metric`` instead of its value."""
    is_complete: bool
    """Whether every row has a value of the criterion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedView:
    """A view whose rows can be ranked."""

    index: int
    """The index of the view in the table. The first view has index 0."""
    prefix: str
    """The prefix of the view, or "" for the first view."""
    labels: tuple[str, ...]
    """The names of all labels except ``direction``."""
    metrics: tuple[RankedMetric, ...]
    """All metrics except histograms."""
    histograms: tuple[str, ...]
    """The names of all histograms, which cannot be ranked."""
    decimals: tuple[int, ...]
    """The `RankingKey.decimals` of each metric in ``metrics``."""
    keys: Mapping[str, RankingKey]
    """The criteria by name: all metrics in the order of ``metrics``, then the rates."""
    addresses: Mapping[str, str]
    """Maps each label that shows an address to the label that shows the name of this address.

    If there is no such label, the value is "". If the ranking shows no names, the mapping is
    empty."""
    nodes: frozenset[str]
    """The labels with a ``NodeTID`` to which the ranking adds the name of the capture point.

    If the ranking shows no names, the set is empty."""

    def addresses_without_names(self, labels: Collection[str]) -> frozenset[str]:
        """Return the address labels whose name label (see `addresses`) is not in ``labels``."""
        return frozenset(label for label, name in self.addresses.items() if name not in labels)

    @property
    def default(self) -> str:
        """The default criterion: bytes, or the first metric if the view does not count bytes."""
        return "bytes" if "bytes" in self.keys else next(iter(self.keys))


def ranked_view(
    index: int,
    prefix: str,
    view: View,
    metrics: Sequence[str],
    *,
    first_family: int,
    has_names: bool,
) -> RankedView:
    """Return ``view`` with its ranking criteria.

    ``metrics`` are the names of the families of ``view`` in order. ``first_family`` is the index of
    the first of these families among the families of all views.
    """
    numbered = [
        (number, family, _metric(name, family))
        for number, (family, name) in enumerate(
            zip(view.families, metrics, strict=True), first_family
        )
        if family.type != "histogram"
    ]
    keys: dict[str, RankingKey] = {}
    for is_rate in (False, True):
        for number, family, metric in numbered:
            if is_rate and (metric.name not in RATES or metric.type != "counter"):
                continue
            name = metric.name + PER_SECOND if is_rate else metric.name
            key = RankingKey(
                name=name,
                metric=metric,
                family=number,
                decimals=family.decimals,
                is_rate=is_rate,
                is_complete=not is_rate
                and all(isinstance(v, Counter) and not v.optional for v in family.values),
            )
            keys.setdefault(name, key)
    return RankedView(
        index=index,
        prefix=prefix,
        labels=tuple(column.name for column in view.columns),
        metrics=tuple(metric for *_, metric in numbered),
        histograms=tuple(
            name
            for name, family in zip(metrics, view.families, strict=True)
            if family.type == "histogram"
        ),
        decimals=tuple(family.decimals for _, family, _ in numbered),
        keys=keys,
        addresses=_address_labels(view.columns) if has_names else {},
        nodes=frozenset(_node_labels(view.columns) if has_names else ()),
    )


def _address_labels(columns: Sequence[Column]) -> dict[str, str]:
    index = ADDRESS_NAMES.index("name")
    names = {
        column.path: column.name for column in columns if column.lookup and column.index == index
    }
    return {
        column.name: names.get(column.path, "")
        for column in columns
        if column.is_field and column.path in {INITIATOR_IP, TARGET_IP}
    }


def _node_labels(columns: Sequence[Column]) -> Iterable[str]:
    return (column.name for column in columns if column.is_field and column.path == NODE_TID)


def _metric(name: str, family: Family) -> RankedMetric:
    unit: Unit
    match family.unit:
        case "seconds" if "_timestamp_" in family.name:
            unit = "timestamp"
        case "bytes" | "seconds" | "nanoseconds":
            unit = family.unit
        case _:
            unit = ""
    return RankedMetric(
        name=name,
        family=family.name,
        type=family.type,
        unit=unit,
        directions=len(family.values),
    )


def values_by_metric(flat: Values, view: RankedView) -> dict[str, list[float | None]]:
    """Return the values of a row by metric, in the units of the metrics."""
    values: dict[str, list[float | None]] = {}
    start = 0
    for metric, decimals in zip(view.metrics, view.decimals, strict=True):
        end = start + metric.directions
        values[metric.name] = [
            None if value is None else scaled(value, decimals) for value in flat[start:end]
        ]
        start = end
    return values


def scaled(value: int, decimals: int) -> float:
    """Return the value as shown on the page: an integer if ``decimals`` is 0."""
    return value / 10**decimals if decimals else value
