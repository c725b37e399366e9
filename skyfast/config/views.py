"""Reads, writes and checks the views of a configuration.

`resolve_views` checks entries against each other and against the limits of the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, cast

from skyfast._table import MAX_COLUMNS, MAX_VALUES, MAX_VIEW_COLUMNS, MAX_VIEW_VALUES, MAX_VIEWS
from skyfast.config.labels import (
    PREFIXES,
    expand_label,
    show_labels,
    show_metrics,
    to_labels,
    to_metric_name,
    to_metrics,
)
from skyfast.config.parsers import (
    Entries,
    bounded_list_of,
    byte_count,
    duration,
    integer,
    mapping_of,
    one_of,
    show_seconds,
)
from skyfast.config.yaml_nodes import YamlValue
from skyfast.flows.catalog import DIRECTION, FIXED_PREFIXES
from skyfast.flows.plan import Counter, FieldPath, Gauge, Histogram
from skyfast.flows.planner import (
    amount_counters,
    families,
    hidden_amounts,
    key_fields,
    shows_topology,
)
from skyfast.flows.selection import NO_BOUNDS, Bounds, LabelSpec, MetricSpec, ViewSpec
from skyfast.text_format import MetricFamily

KeyPath: TypeAlias = tuple[str | int, ...]
"""The path to an entry: list positions and mapping keys."""

VIEW_TIMEOUT_S = 3600.0
"""Default time after which a row of a view expires if it gets no reports."""

MAX_BOUND = 10**15
"""The largest ``min_bytes`` and ``min_packets``."""

to_min_bytes = byte_count(0, MAX_BOUND)
to_min_packets = integer(0, MAX_BOUND)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewEntry:
    """A view of a configuration."""

    spec: ViewSpec
    timeout_s: float = 0.0
    """The time from a row's last report to the row's expiry; 0 if no timeout is configured.

    The first view, whose rows are the connections, cannot have a timeout: connections expire with
    their flows."""
    bounds: Bounds = NO_BOUNDS


DEFAULT_VIEWS = (
    ViewEntry(
        spec=ViewSpec(
            prefix="skydive_traffic",
            labels=tuple(LabelSpec(name=name) for name in ("node_tid", "protocol", DIRECTION)),
            metrics=(MetricSpec(name="bytes"), MetricSpec(name="packets")),
            direction="split",
        )
    ),
)
"""The default views in addition to the first view, whose rows are the connections.

These views have few series, so their rows can be kept longer than connections."""


def _to_view(value: YamlValue) -> ViewEntry:
    nodes = mapping_of(
        value,
        known=(
            *("prefix", "labels", "metrics", "direction", "timeout"),
            *("min_bytes", "min_packets"),
        ),
        required=("prefix", "labels"),
        what="a view with prefix and labels",
    )
    entries = Entries(nodes)
    prefix = entries.of("prefix", to_metric_name)
    labels = entries.of("labels", to_labels)
    metrics = entries.of("metrics", to_metrics, DEFAULT_VIEWS[0].spec.metrics)
    direction = cast(
        Literal["split", "sum"], entries.of("direction", one_of("split", "sum"), "split")
    )
    timeout_s = entries.of("timeout", duration(zero=False), 0.0)
    bounds = Bounds(
        min_bytes=entries.of("min_bytes", to_min_bytes, 0),
        min_packets=entries.of("min_packets", to_min_packets, 0),
    )
    entries.check()
    spec = ViewSpec(prefix=prefix, labels=labels, metrics=metrics, direction=direction)
    return ViewEntry(spec=spec, timeout_s=timeout_s, bounds=bounds)


to_views = bounded_list_of(_to_view, "views", most=MAX_VIEWS - 1)
"""Accepts a list of all views except the first."""


def show_views(
    views: Sequence[ViewSpec], timeouts_s: Sequence[float], bounds: Sequence[Bounds]
) -> list[object]:
    return [
        {
            "prefix": view.prefix,
            "labels": show_labels(view.labels),
            "metrics": show_metrics(view.metrics),
            "direction": view.direction,
            "timeout": show_seconds(timeout_s),
            "min_bytes": bound.min_bytes,
            "min_packets": bound.min_packets,
        }
        for view, timeout_s, bound in zip(views, timeouts_s, bounds, strict=True)
    ]


class ViewError(Exception):
    """An entry of a view conflicts with another entry or with a limit."""

    def __init__(
        self, problem: str, view: int, *key_paths: KeyPath, other: "ViewError | None" = None
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.view = view
        """The index of the view in the list of all views; 0 for the connections."""
        self.key_paths = key_paths
        """Paths below the view, to entries that can be the cause. Messages name the first of these
        paths that the configuration sets."""
        self.other = other
        """The error about the other entry if two entries conflict, otherwise None."""


def resolve_views(
    views: Sequence[ViewEntry],
    *,
    naming: str,
    least_timeout_s: float,
    others: Sequence[MetricFamily] = (),
) -> tuple[ViewEntry, ...]:
    """Return the entries in the order of ``views``, with defaults filled in.

    ``least_timeout_s`` is the shortest timeout that a view can have. ``others`` are the metric
    families of the page that do not belong to a view.

    Raises:
        ViewError: The views conflict with each other, or exceed a limit.

    """
    done = tuple(
        _resolve_view(entry, number, naming=naming, least_timeout_s=least_timeout_s)
        for number, entry in enumerate(views)
    )
    specs = [entry.spec for entry in done]
    _check_names(specs, naming=naming, others=others)
    _check_sizes(specs, naming=naming)
    return done


def _resolve_view(
    entry: ViewEntry, number: int, *, naming: str, least_timeout_s: float
) -> ViewEntry:
    view = entry.spec
    split = view.direction == "split"
    labels = _labels(view, number)
    names = [label.name for label in labels]
    if DIRECTION in names and not split:
        raise ViewError(
            f"cannot be a label if {DIRECTION} is 'sum'",
            number,
            ("labels", view.labels.index(LabelSpec(name=DIRECTION))),
        )
    if names == [DIRECTION]:
        raise ViewError("contains no label other than direction", number, ("labels",))
    for i, metric in enumerate(view.metrics):
        if metric.is_histogram and not view.prefix:
            problem = (
                "is only possible in views: a connection can expire before its flows are closed"
            )
            raise ViewError(problem, number, ("metrics", i, "type"))
        if metric.is_histogram and "le" in names:
            problem = "cannot be a label of a view with histograms: histograms use le for buckets"
            raise ViewError(problem, number, ("labels", names.index("le"), "name"))
        own = bool(metric.paths)
        if own and metric.type == "gauge" and len(metric.paths) > 1 and not split:
            problem = f"has two fields; if {DIRECTION} is 'sum', a gauge can have only one field"
            raise ViewError(problem, number, ("metrics", i, "value"))
        total = metric.name.endswith("_total")
        if own and metric.type == "counter" and not total and (view.prefix or naming == "standard"):
            where = "in a view" if view.prefix else "if naming is 'standard'"
            problem = f"is a counter: {where}, its name must end with _total"
            raise ViewError(problem, number, ("metrics", i, "name"))
    if view.prefix and 0 < entry.timeout_s < least_timeout_s:
        problem = f"is less than connection_timeout + connection_grace ({least_timeout_s:g} s)"
        raise ViewError(problem, number, ("timeout",))
    timeout_s = entry.timeout_s or (max(VIEW_TIMEOUT_S, least_timeout_s) if view.prefix else 0.0)
    if split and DIRECTION not in names:
        labels.append(LabelSpec(name=DIRECTION))
    amounts = hidden_amounts(view, entry.bounds)
    return replace(
        entry,
        spec=replace(view, labels=tuple(labels), amounts=amounts),
        timeout_s=timeout_s,
    )


def _labels(view: ViewSpec, number: int) -> list[LabelSpec]:
    """Return the labels of a view, with each entry expanded by `expand_label`.

    Raises ViewError if two labels have the same name.
    """
    labels: dict[str, LabelSpec] = {}
    for i, entry in enumerate(view.labels):
        for label in expand_label(entry):
            if label.name in labels:
                problem = "is already the name of another label"
                if label != entry:
                    problem = f"stands for {label.name}, which is the name of another label"
                raise ViewError(problem, number, ("labels", i, "name"))
            labels[label.name] = label
    return list(labels.values())


def _check_names(views: Sequence[ViewSpec], *, naming: str, others: Sequence[MetricFamily]) -> None:
    reserved = {name: family.name for family in others for name in family.reserved_names}
    taken: dict[str, tuple[str, int, int]] = {}
    for number, view in enumerate(views):
        for i, family in enumerate(families(view, naming=naming)):
            for prefix in FIXED_PREFIXES:
                if family.name.startswith(prefix):
                    problem = (
                        f"creates the family {family.name}, but the prefix {prefix} is reserved"
                    )
                    raise _metric_error(problem, number, i)
            for name in family.reserved_names:
                if name in reserved:
                    raise _metric_error(_clash(family.name, reserved[name]), number, i)
                if name in taken:
                    first, its_view, its_number = taken[name]
                    other = _clash(first, family.name)
                    raise _metric_error(
                        _clash(family.name, first),
                        number,
                        i,
                        other=_metric_error(other, its_view, its_number),
                    )
            taken |= dict.fromkeys(family.reserved_names, (family.name, number, i))


def _clash(name: str, other: str) -> str:
    clash = "which already exists" if name == other else f"which conflicts with {other}"
    return f"creates the family {name}, {clash}"


def _metric_error(problem: str, view: int, i: int, *, other: ViewError | None = None) -> ViewError:
    key_paths: tuple[KeyPath, ...] = (("metrics", i, "name"), ("metrics", i), ("prefix",))
    return ViewError(problem, view, *key_paths, other=other)


def _check_sizes(views: Sequence[ViewSpec], *, naming: str) -> None:
    labels: set[LabelSpec] = set()
    keys: set[FieldPath] = set()
    values: set[object] = set()
    for number, view in enumerate(views):
        own_labels = [label for label in view.labels if label.name != DIRECTION]
        if len(own_labels) > MAX_VIEW_COLUMNS:
            problem = f"has {len(own_labels)} labels; the limit is {MAX_VIEW_COLUMNS}"
            if any(label.has_key for label in own_labels):
                key = "k8s_label" if any(label.k8s_label for label in own_labels) else "names_key"
                prefixes = " or ".join(PREFIXES)
                problem += (
                    f"; an entry with {key} counts twice, unless its name starts with {prefixes}"
                )
            raise ViewError(problem, number, ("labels",))
        all_values = [value for f in families(view, naming=naming) for value in f.values]
        own_values = {value for value in all_values if isinstance(value, (Counter, Gauge))}
        for amount in view.amounts:
            own_values |= {*amount_counters(amount, view.direction)}
        if len(own_values) > MAX_VIEW_VALUES:
            problem = (
                f"has more than {MAX_VIEW_VALUES} counters and gauges; a metric with two directions"
                " has two counters"
            )
            if view.amounts:
                problem += (
                    f"; min_bytes and min_packets add counters of {' and '.join(view.amounts)}"
                )
            raise ViewError(problem, number, ("metrics",))
        labels |= {*own_labels}
        keys |= {field for label in own_labels for field in key_fields(label)}
        if len(labels) + len(keys) > MAX_COLUMNS:
            problem = (
                f"is too long: view {view.prefix} and the preceding views have more than"
                f" {MAX_COLUMNS} different labels"
            )
            if keys:
                fields = " and ".join(".".join(field) for field in sorted(keys))
                source = " from the topology" if any(map(shows_topology, labels)) else ""
                problem += f", including the fields by which names{source} are looked up ({fields})"
            raise ViewError(problem, number, ("labels",))
        values |= own_values
        # Fields that only histograms need also count towards `MAX_VALUES`: the table reads these
        # fields without storing them.
        values |= {
            gauge if value.observes == "first" else ("closing", gauge)
            for value in all_values
            if isinstance(value, Histogram)
            for gauge in value.gauges
        }
        if len(values) > MAX_VALUES:
            problem = (
                f"is too long: the metrics of view {view.prefix} and of the preceding views"
                f" have more than {MAX_VALUES} different counters and gauges"
            )
            raise ViewError(problem, number, ("metrics",))
