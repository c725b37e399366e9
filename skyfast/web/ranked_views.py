"""The views whose rows can be ranked: their labels, metrics and ranking criteria."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from skyfast.flows.catalog import ADDRESS_NAMES, INITIATOR_IP, NODE_TID, TARGET_IP
from skyfast.flows.plan import Column, Counter, Family, View
from skyfast.text_format import MetricType

RATES: Final = ("bytes", "packets")
"""The metrics that can be ranked by rate. Each rate needs up to two snapshots of each view."""

PER_SECOND: Final = "_per_second"

Unit = Literal["bytes", "seconds", "nanoseconds", "timestamp", ""]

Values = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedMetric:
    """``directions`` is 2 if each direction has its own value."""

    name: str
    family: str
    type: MetricType
    unit: Unit
    directions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingKey:
    """A ranking criterion: ``metric``, or the rate of ``metric`` if ``is_rate``.

    ``family`` is the index of the metric's family among the families of all views. The values of
    the family are integers: the values on the page multiplied by ``10 ** decimals``.
    ``is_complete`` means that every row has a value of the criterion.
    """

    name: str
    metric: RankedMetric
    family: int
    decimals: int
    is_rate: bool
    is_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedView:
    """A view whose rows can be ranked; ``prefix`` is empty for the first view.

    ``labels`` are all label names except ``direction``. ``metrics`` exclude histograms, whose names
    are in ``histograms``. ``decimals`` are the `RankingKey.decimals` of each metric. ``keys`` are
    the criteria by name: all metrics in their order, then the rates.

    The ranking shows names for the values of the labels ``addresses`` and ``nodes``. ``addresses``
    are the labels with the initiator's or target's address, unless another label shows its name.
    ``nodes`` are the labels with a ``NodeTID``. If the ranking shows no names, both sets are empty.
    """

    index: int
    prefix: str
    labels: tuple[str, ...]
    metrics: tuple[RankedMetric, ...]
    histograms: tuple[str, ...]
    decimals: tuple[int, ...]
    keys: Mapping[str, RankingKey]
    addresses: frozenset[str]
    nodes: frozenset[str]

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
    """``metrics`` are the family names of ``view`` in order."""
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
        addresses=frozenset(_address_labels(view.columns) if has_names else ()),
        nodes=frozenset(_node_labels(view.columns) if has_names else ()),
    )


def _address_labels(columns: Sequence[Column]) -> Iterable[str]:
    index = ADDRESS_NAMES.index("name")
    named = {column.path for column in columns if column.lookup and column.index == index}
    for column in columns:
        if column.is_field and column.path in {INITIATOR_IP, TARGET_IP} - named:
            yield column.name


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
