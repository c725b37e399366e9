"""Reads and writes labels, metrics and label rewrites of a configuration.

The functions called ``to_…`` turn what stands in a file into `skyfast.flows.selection`'s data, or
raise `Invalid`; those called ``show_…`` return what `skyfast.config.loader.dump` writes. The same
holds for `skyfast.config.views` and `skyfast.config.rules`.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, cast

from skyfast._table import MAX_VIEW_COLUMNS, MAX_VIEW_VALUES
from skyfast.config.endpoint import MAX_PORT
from skyfast.config.errors import Invalid
from skyfast.config.parsers import (
    MAX_ENTRIES,
    Entries,
    mapping_of,
    one_of,
    suggestion,
    to_text,
    unique_list_of,
    whole,
)
from skyfast.config.yaml_nodes import Value
from skyfast.flows.catalog import LABEL_FIELDS, LABELS_BY_NAME, METRICS_BY_NAME, RUNNING_TOTALS
from skyfast.flows.fields import FIELDS, PATHS
from skyfast.flows.plan import Path
from skyfast.flows.selection import Fold, LabelChoice, Mask, MetricChoice, Rewrite
from skyfast.text_format import is_name


def to_label(value: Value) -> LabelChoice:
    """Accept the name of a known label, or ``{name: …, path: …}``."""
    if not isinstance(value, dict):
        return LabelChoice(name=_known(to_text(value), LABELS_BY_NAME, "label"))
    nodes = mapping_of(
        value, known=("name", "path"), required=("name", "path"), what="a label with name and path"
    )
    entries = Entries(nodes)
    name = entries.of("name", _to_own_label)
    path = entries.of("path", _to_label_path)
    entries.check()
    return LabelChoice(name=name, path=path)


def to_metric(value: Value) -> MetricChoice:
    """Accept the name of a known metric, or ``{name: …, value: …, type: …, help: …}``."""
    if not isinstance(value, dict):
        return MetricChoice(name=_known(to_text(value), METRICS_BY_NAME, "metric"))
    nodes = mapping_of(
        value,
        known=("name", "value", "type", "help"),
        required=("name", "value", "type"),
        what="a metric with name, value and type",
    )
    entries = Entries(nodes)
    kind = cast(Literal["counter", "gauge"], entries.of("type", one_of("counter", "gauge")))
    to_path = _to_total if kind == "counter" else _to_number_path
    name = entries.of("name", _to_own_metric)
    paths = entries.of("value", unique_list_of(to_path, "field", most=2))
    help_ = entries.of("help", to_text, "")
    entries.check()
    return MetricChoice(name=name, paths=paths, type=kind, help=help_)


def _known(text: str, names: Mapping[str, object], kind: str) -> str:
    if text not in names:
        raise Invalid(f"is not a known {kind}; {suggestion(text, names)}", text)
    return text


def _to_own_label(value: Value) -> str:
    text = to_text(value)
    if not is_name(text) or text.startswith("__"):
        raise Invalid(
            "is not a label name: use letters, digits and _, not starting with a digit or __", text
        )
    if text in LABELS_BY_NAME:
        raise Invalid("is a known label: write it without a path", text)
    return text


def _to_own_metric(value: Value) -> str:
    text = to_metric_name(value)
    if text == "_total":
        raise Invalid("is the suffix of counter names, not a name", text)
    if text in METRICS_BY_NAME:
        raise Invalid("is a known metric: write it without a value", text)
    return text


def to_metric_name(value: Value) -> str:
    text = to_text(value)
    if not is_name(text):
        raise Invalid(
            "is not a metric name: use letters, digits and _, not starting with a digit", text
        )
    return text


def _to_path(value: Value) -> Path:
    text = to_text(value)
    if text not in PATHS:
        advice = suggestion(text, PATHS, otherwise="fields are written like NodeTID or Link.ID")
        raise Invalid(f"is not a flow field; {advice}", text)
    return PATHS[text]


def _to_label_path(value: Value) -> Path:
    path = _to_path(value)
    if path not in LABEL_FIELDS:
        raise Invalid("changes during the lifetime of a flow and cannot be a label", value)
    return path


def _to_number_path(value: Value) -> Path:
    path = _to_path(value)
    if FIELDS[path] is not int:
        raise Invalid("is a string field and cannot be a metric", value)
    return path


def _to_total(value: Value) -> Path:
    path = _to_number_path(value)
    if path not in RUNNING_TOTALS:
        raise Invalid("is not a running total: it can be a gauge, but not a counter", value)
    return path


# Of a view, without ``direction``; a counter with two directions is two values.
to_labels = unique_list_of(to_label, "label", most=MAX_VIEW_COLUMNS + 1)
to_metrics = unique_list_of(to_metric, "metric", most=MAX_VIEW_VALUES)


def show_labels(labels: Sequence[LabelChoice]) -> list[object]:
    """Return what `to_labels` makes ``labels`` of."""
    return [
        label.name if label.path is None else {"name": label.name, "path": ".".join(label.path)}
        for label in labels
    ]


def show_metrics(metrics: Sequence[MetricChoice]) -> list[object]:
    """Return what `to_metrics` makes ``metrics`` of."""
    return [_show_metric(metric) if metric.paths else metric.name for metric in metrics]


def _show_metric(metric: MetricChoice) -> dict[str, object]:
    paths = [".".join(path) for path in metric.paths]
    shown = {"name": metric.name, "value": paths if len(paths) > 1 else paths[0]}
    return {**shown, "type": metric.type, **({"help": metric.help} if metric.help else {})}


_ADDRESSES = ("initiator_ip", "target_ip")
_PORTS = ("initiator_port", "target_port")
_to_port = whole(0, MAX_PORT)


def to_rewrites(value: Value) -> Mapping[str, Rewrite]:
    """Accept a mapping of labels to ``{mask: …, mask6: …}`` or ``{above: …, keep: […]}``."""
    nodes = mapping_of(value, known=(*_ADDRESSES, *_PORTS), what="a mapping of labels")
    entries = Entries(nodes)
    rewrites = {
        name: entries.of(name, _to_mask if name in _ADDRESSES else _to_fold)
        for name in (*_ADDRESSES, *_PORTS)
        if name in nodes
    }
    entries.check()
    return MappingProxyType(rewrites)


def _to_mask(value: Value) -> Rewrite:
    what = "an address rewrite with mask or mask6"
    nodes = mapping_of(value, known=("mask", "mask6"), what=what)
    if not nodes:
        raise Invalid(f"is not {what}", value)
    entries = Entries(nodes)
    ipv4 = entries.of("mask", whole(0, 32)) if "mask" in nodes else None
    ipv6 = entries.of("mask6", whole(0, 128)) if "mask6" in nodes else None
    entries.check()
    return Mask(ipv4=ipv4, ipv6=ipv6)


def _to_fold(value: Value) -> Rewrite:
    what = "a port rewrite with above or keep"
    nodes = mapping_of(value, known=("above", "keep"), what=what)
    if not nodes:
        raise Invalid(f"is not {what}", value)
    to_ports = unique_list_of(_to_port, "port", most=MAX_ENTRIES)
    entries = Entries(nodes)
    above = entries.of("above", _to_port) if "above" in nodes else None
    keep = entries.of("keep", to_ports) if "keep" in nodes else None
    entries.check()
    return Fold(above=above, keep=None if keep is None else frozenset(keep))


def show_rewrites(rewrites: Mapping[str, Rewrite]) -> dict[str, object]:
    """Return what `to_rewrites` makes ``rewrites`` of."""
    return {name: _show_rewrite(rewrite) for name, rewrite in rewrites.items()}


def _show_rewrite(rewrite: Rewrite) -> dict[str, object]:
    entries: dict[str, object | None]
    if isinstance(rewrite, Mask):
        entries = {"mask": rewrite.ipv4, "mask6": rewrite.ipv6}
    else:
        keep = None if rewrite.keep is None else sorted(rewrite.keep)
        entries = {"above": rewrite.above, "keep": keep}
    return {name: entry for name, entry in entries.items() if entry is not None}
