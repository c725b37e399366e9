"""The cost of a configuration in series, for ``skyfast --check`` and the startup log."""

from collections.abc import Iterator
from typing import Final, Literal

from skyfast.config.model import Config, TableLimits
from skyfast.flows.catalog import DIRECTION, LABELS_BY_NAME, METRICS_BY_NAME, UNBOUNDED_FIELDS
from skyfast.flows.plan import Path
from skyfast.flows.planner import families
from skyfast.flows.selection import LabelChoice, MetricChoice, ViewChoice

_POINTS: Final = frozenset({("NodeTID",), ("UUID",)})
"""The fields that tell a conversation's capture points apart: each has flows of its own."""


def series(view: ViewChoice, *, naming: Literal["compatible", "standard"]) -> int:
    """Return how many series each row of a view has at most."""
    return sum(len(family.values) for family in families(view, naming=naming))


def most_connections(limits: TableLimits) -> int:
    """Return how many connections there can be: none is without a flow."""
    return min(limits.max_connections, limits.max_flows)


def double_counted(config: Config) -> list[str]:
    """Return where traffic that is captured at several interfaces is counted several times.

    That is in each view, the connections among them, in which the flows of one conversation's
    capture points can share a series. What has only gauges counts nothing.
    """
    export = config.export
    if export.deduplicate != "none":
        return []
    return [
        _where(view)
        for view in (export.main, *export.views)
        if any(_is_counted(metric) for metric in view.metrics)
        and not any(_path(label) in _POINTS for label in view.labels)
    ]


def report(config: Config) -> str:
    """Return YAML comments: the series of each view's rows, and labels to be afraid of."""
    return "".join(f"# {line}\n" for line in _lines(config))


def _lines(config: Config) -> Iterator[str]:
    export, limits = config.export, config.limits
    for view, timeout_s in zip(
        (export.main, *export.views), (0.0, *limits.view_timeouts_s), strict=True
    ):
        shown = families(view, naming=export.naming)
        count = series(view, naming=export.naming)
        labels = [label.name for label in view.labels if label.name != DIRECTION]
        if view.prefix:
            row = f"row of view {view.prefix} ({', '.join(labels)})"
            until = f"until {timeout_s:g} s after its last report"
            yield f"Each {row} costs up to {count} series {until}:"
        else:
            most = most_connections(limits) * count
            yield f"Each connection costs up to {count} series, at most {most} in total:"
        for family in shown:
            yield f"  {len(family.values)} {family.name}"
    for view in (export.main, *export.views):
        for label in view.labels:
            if reason := _unbounded_reason(label, config):
                yield f"Note: label {label.name} of {_where(view)} is unbounded: {reason}."
    for where in double_counted(config):
        yield (
            f"Warning: {where}: traffic captured at several interfaces is counted several times;"
            " set deduplicate: first or add the label node_tid."
        )


def _where(view: ViewChoice) -> str:
    return f"view {view.prefix}" if view.prefix else "connections"


def _is_counted(metric: MetricChoice) -> bool:
    if metric.paths:
        return metric.type == "counter"
    return metric.name == "flows" or METRICS_BY_NAME[metric.name].type == "counter"


def _path(label: LabelChoice) -> Path:
    """Return the field whose value a label shows; an empty one where it shows something else."""
    if label.path is not None:
        return label.path
    known = LABELS_BY_NAME[label.name]
    return () if known.lookup else known.path


def _unbounded_reason(label: LabelChoice, config: Config) -> str:
    """Return why a label has values without end, or nothing."""
    if label.name in config.export.rewrite:
        return ""
    path = LABELS_BY_NAME[label.name].path if label.path is None else label.path
    return UNBOUNDED_FIELDS.get(path, "")
