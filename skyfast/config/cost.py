"""The cost of a configuration in series and bytes, for ``skyfast --check`` and the startup log."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from skyfast._table import Table
from skyfast.config.loader import uses_default_analyzer
from skyfast.config.model import Config
from skyfast.flows.catalog import (
    DIRECTION,
    INTERFACE_INFO,
    INTERFACE_LABELS,
    LOCAL_LABELS,
    METRICS_BY_NAME,
    UNBOUNDED_FIELDS,
)
from skyfast.flows.fields import flow_types
from skyfast.flows.plan import FieldPath, Histogram, Names
from skyfast.flows.planner import (
    AMOUNTS,
    amount_counters,
    families,
    hidden_amounts,
    key_fields,
    make_plan,
    shown_field,
    shows_topology,
)
from skyfast.flows.selection import Bounds, ExportSelection, LabelSpec, MetricSpec, ViewSpec

_CAPTURE_POINT_FIELDS: Final = frozenset({("NodeTID",), ("UUID",)})
"""Fields that have a different value at each capture point.

Each capture point reports a conversation as a flow of its own, with its own UUID."""


NEW_FLOWS_BYTES: Final = 8
"""Bytes per row for the counter of new flows."""

VALUE_BYTES: Final = 8
"""Bytes per row for each counter. The counter's latest total in a flow takes as many bytes."""

BUCKET_BYTES: Final = 8
"""Bytes per row for each bucket of a histogram. The sum of the histogram takes as many bytes."""

OBSERVED_BYTES: Final = 4
"""Bytes per flow for the flags that show which of its events histograms have observed.

Without histograms, flows have no such flags."""

CELL_BYTES: Final = 4
"""Bytes for each label value of a row, and for each flow field by which names are looked up."""

KUBERNETES_NOTE: Final = (
    "Names of pods, workloads and services need Skydive's Kubernetes probe (k8s) on an analyzer."
)

STRING_BYTES: Final = 72
"""Bytes for each distinct string of up to 48 bytes, including an index entry.

The strings are label values, and the addresses and capture points whose names are looked up."""

NAMES_BYTES: Final = 36
"""Bytes for each address or capture point whose names are stored for new flows.

An index entry is included. Each label that shows one of the names takes another `CELL_BYTES`.
"""


def series(view: ViewSpec, *, naming: Literal["compatible", "standard"]) -> int:
    """Return the maximum number of series of one row of the view."""
    return sum(family.series for family in families(view, naming=naming))


def most_connections(*, max_connections: int, max_flows: int) -> int:
    """Return the maximum number of connections.

    Every connection has at least one flow, so ``max_flows`` also limits connections.
    """
    return min(max_connections, max_flows)


def most_series(counts: Sequence[int], *, max_connections: int, max_flows: int) -> int:
    """Return the number of series if the table and all views are full.

    ``counts`` has the maximum number of series per row for each view. Rows of the first view expire
    with their flows, so ``max_flows`` also limits these rows. In other views, ``max_flows`` does
    not limit the rows, because these rows outlive their flows.
    """
    first, *others = counts
    most = most_connections(max_connections=max_connections, max_flows=max_flows)
    return most * first + max_connections * sum(others)


class _NoNames:
    def __getitem__(self, key: str, /) -> tuple[str, ...]:
        return ()

    def resolve(self, key: str, other: str, point: str, /) -> tuple[str, ...]:
        return ()


class _NoNameSource:
    """A source without names, for a table without flows."""

    combined: Final[Names] = _NoNames()
    nodes: Final[Names] = combined


def row_bytes(config: Config) -> int:
    """Return the memory of a connection with one flow, in bytes.

    Strings are not included, and neither are rows of views other than the first.
    """
    plan = make_plan(config.export, names=_NoNameSource(), shard=config.shard)
    table = Table(
        plan,
        flow_types(plan),
        max_connections=1,
        max_flows=1,
        timeout_s=config.limits.timeout_s,
        view_timeouts_s=config.limits.view_timeouts_s,
    )
    return table.row_bytes


def double_counted(config: Config) -> list[str]:
    """Return the names of the views that may count the same traffic several times.

    Several capture points can report the same conversation. If no label of a view identifies the
    capture point, a row of the view counts the conversation several times. Views that have only
    gauges are left out. The first view is called "connections".
    """
    export = config.export
    if export.deduplicate != "none":
        return []
    return [
        _view_name(view)
        for view in export.views
        if any(_is_counted(metric) for metric in view.metrics)
        and not any(shown_field(label) in _CAPTURE_POINT_FIELDS for label in view.labels)
    ]


def hides_traffic(config: Config) -> bool:
    """Return whether ``min_bytes`` and ``min_packets`` can hide traffic from all views.

    If a view without these bounds counts bytes or packets, that view shows all traffic, so the
    result is False.
    """
    views, bounds = config.export.views, config.limits.bounds
    return any(bound.are_set for bound in bounds) and not any(
        _counts_traffic(view)
        for view, bound in zip(views, bounds, strict=True)
        if not bound.are_set
    )


def report(config: Config) -> str:
    """Return YAML comments: the cost of each view in series and bytes, and notes."""
    return "".join(f"# {line}\n" for line in _lines(config))


def _lines(config: Config) -> Iterator[str]:
    export, limits = config.export, config.limits
    maximum = {"max_connections": limits.max_connections, "max_flows": limits.max_flows}
    views = export.views
    counts = [series(view, naming=export.naming) for view in views]
    for view, count, timeout_s, bounds in zip(
        views, counts, (0.0, *limits.view_timeouts_s), limits.bounds, strict=True
    ):
        shown = families(view, naming=export.naming)
        labels = [label.name for label in view.labels if label.name != DIRECTION]
        if view.prefix:
            rows, row = f"rows of view {view.prefix} ({', '.join(labels)})", "row"
            most = limits.max_connections * count
            removed = f" is removed {timeout_s:g} s after its last report, and"
        else:
            rows, row = "connections", "connection"
            most = most_connections(**maximum) * count
            removed = ""
        yield f"All {rows} together cost at most {most} series."
        yield f"Each {row}{removed} costs up to {count} series:"
        for family in shown:
            yield f"  {family.series} {family.name}"
        yield from _bounds(view, bounds)
    if export.further_views:
        most = most_series(counts, **maximum)
        yield f"All connections and all rows of views together cost at most {most} series."
    yield f"Each connection takes {row_bytes(config)} bytes of memory, plus address strings."
    of_labels = [*_names(export)]
    yield from of_labels
    if config.topology.interface_info:
        name = INTERFACE_INFO[export.naming].name
        queried = _queried(namespaces=True, kubernetes=True)
        yield f"Each value of node_tid costs one series of {name}."
        yield f"These series need topology queries for {queried}."
        yield from () if KUBERNETES_NOTE in of_labels else (KUBERNETES_NOTE,)
    yield from _new_flows(export)
    yield from _histograms(export)
    for view in export.views:
        for label in view.labels:
            if reason := _unbounded_reason(label, config):
                yield f"Note: label {label.name} of {_view_name(view)} is unbounded: {reason}."
    if uses_default_analyzer(config):
        default = config.subscriber.endpoints[0].name
        yield f"No analyzers are configured: skyfast subscribes to {default}."


def _bounds(view: ViewSpec, bounds: Bounds) -> Iterator[str]:
    if bounds.are_set:
        amounts = [
            f"{bound} {unit}"
            for bound, unit in ((bounds.min_bytes, "bytes"), (bounds.min_packets, "packets"))
            if bound
        ]
        yield f"A {_row(view)} has no series until it has {' or '.join(amounts)}."
    if view.amounts:
        counters = [c for name in view.amounts for c in amount_counters(name, view.direction)]
        bytes_ = VALUE_BYTES * len(counters)
        yield (
            f"Counting {' and '.join(view.amounts)} for these bounds takes"
            f" {bytes_} bytes of memory per {_row(view)}, and another {bytes_} bytes per flow."
        )


def _names(export: ExportSelection) -> Iterator[str]:
    chosen: list[LabelSpec] = []
    bytes_ = []
    for view in export.views:
        if labels := [label for label in view.labels if key_fields(label)]:
            chosen += labels
            bytes_.append(f"{CELL_BYTES * len(labels)} bytes per {_row(view)}")
    if not chosen:
        return
    keys = {field for label in chosen for field in key_fields(label)}
    bytes_.append(f"{CELL_BYTES * len(keys)} bytes per flow")
    bytes_.append(f"about {STRING_BYTES} bytes for each distinct name, address and capture point")
    names: dict[FieldPath, set[str]] = defaultdict(set)
    for label in chosen:
        names[key_fields(label)[0]].add(label.name)
    most = NAMES_BYTES + CELL_BYTES * max(map(len, names.values()))
    of_topology = [label for label in chosen if shows_topology(label)]
    sources = "the topology" if of_topology else "'names' and 'names_file'"
    if of_topology and len(of_topology) < len(chosen):
        sources += ", 'names' and 'names_file'"
    yield (
        f"Labels with names from {sources} take {', '.join(bytes_[:-1])}, and {bytes_[-1]}."
        " In addition, the names of each address and each capture point are stored for new flows:"
        f" about {most} bytes for each address and each capture point."
    )
    if not of_topology:
        return
    others = {label.name for label in of_topology} - INTERFACE_LABELS
    kubernetes = bool(others - LOCAL_LABELS)
    queried = _queried(namespaces=bool(others), kubernetes=kubernetes)
    yield f"These labels need topology queries for {queried}."
    if kubernetes:
        yield KUBERNETES_NOTE


def _queried(*, namespaces: bool, kubernetes: bool) -> str:
    nodes = "interfaces"
    if namespaces:
        nodes += ", namespaces, containers, VMs"
    if kubernetes:
        nodes += ", pods, workloads, services"
    return f"{nodes} and edges" if namespaces else nodes


def _new_flows(export: ExportSelection) -> Iterator[str]:
    rows = [
        f"{NEW_FLOWS_BYTES} bytes per {_row(view)}"
        for view in export.views
        if any(metric.name == "new_flows" for metric in view.metrics)
    ]
    if rows:
        yield f"The metric new_flows takes {', '.join(rows)}."


def _histograms(export: ExportSelection) -> Iterator[str]:
    rows = []
    for view in export.further_views:
        histograms = [
            value
            for family in families(view, naming=export.naming)
            for value in family.values
            if isinstance(value, Histogram)
        ]
        if histograms:
            # Each histogram also stores the bucket +Inf and the sum.
            bytes_ = sum(BUCKET_BYTES * (len(value.bounds) + 2) for value in histograms)
            rows.append(f"{bytes_} bytes per {_row(view)}")
    if rows:
        yield f"Histograms take {', '.join(rows)}, and {OBSERVED_BYTES} bytes per flow."


def _view_name(view: ViewSpec) -> str:
    return f"view {view.prefix}" if view.prefix else "connections"


def _row(view: ViewSpec) -> str:
    return f"row of view {view.prefix}" if view.prefix else "connection"


def _counts_traffic(view: ViewSpec) -> bool:
    """Return whether the view counts bytes or packets, and does so for both directions."""
    return len(hidden_amounts(view, Bounds(min_bytes=1, min_packets=1))) < len(AMOUNTS)


def _is_counted(metric: MetricSpec) -> bool:
    if metric.paths:
        return metric.type == "counter"
    if metric.is_histogram:
        return True
    return metric.name == "flows" or METRICS_BY_NAME[metric.name].type == "counter"


def _unbounded_reason(label: LabelSpec, config: Config) -> str:
    if label.name in config.export.rewrite:
        return ""
    return UNBOUNDED_FIELDS.get(shown_field(label), "")
