"""Reads and writes labels, metrics and label rewrites of a configuration.

Functions named ``to_…`` convert YAML values to the data of `skyfast.flows.selection`, or raise
`InvalidValue`. Functions named ``show_…`` return the values that `skyfast.config.loader.dump`
writes.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import cast

from skyfast._table import MAX_BOUNDS, MAX_VIEW_COLUMNS, MAX_VIEW_VALUES
from skyfast.config.endpoint import MAX_PORT
from skyfast.config.errors import InvalidValue
from skyfast.config.parsers import (
    MAX_ENTRIES,
    Entries,
    entry_error,
    integer,
    mapping_of,
    nearest,
    one_of,
    parse_str,
    refuse_size_unit,
    refuse_time_unit,
    show_seconds,
    suggestion,
    to_number,
    unique_list_of,
)
from skyfast.config.yaml_nodes import YamlValue
from skyfast.flows import own_names
from skyfast.flows.catalog import (
    ADDRESS_FIELDS,
    DIRECTION,
    HISTOGRAMS_BY_NAME,
    LABEL_FIELDS,
    LABELS,
    LABELS_BY_NAME,
    METRICS_BY_NAME,
    RUNNING_TOTALS,
)
from skyfast.flows.fields import FIELDS, PATHS
from skyfast.flows.plan import FieldPath
from skyfast.flows.selection import LabelSpec, Mask, MetricSpec, PortGrouping, RewriteSpec
from skyfast.text_format import MetricType, is_name


def to_label(value: YamlValue) -> LabelSpec:
    """Accept the name of a known label, or a mapping with ``name`` and one of `_SOURCES`."""
    if not isinstance(value, dict):
        return LabelSpec(name=_known_label(parse_str(value)))
    keys = {key.lower() for key in value}
    found = [source for source in _SOURCES if source in keys]
    nodes = mapping_of(
        value,
        known=("name", *_SOURCES),
        # If the mapping has no source, the error lists all sources.
        required=("name", found[0] if found else _ANY_SOURCE),
        what=f"a label with 'name' and {_ANY_SOURCE}",
    )
    if len(found) > 1:
        raise InvalidValue(f"has both {' and '.join(found)}; use only one of them", value)
    entries = Entries(nodes)
    if "path" in found:
        name = entries.of("name", _to_own_label)
        path = entries.of("path", _to_label_path)
        entries.check()
        return LabelSpec(name=name, path=path)
    name = entries.of("name", _to_pod_label if "k8s_label" in found else _to_names_label)
    k8s_label = entries.of("k8s_label", _to_k8s_label) if "k8s_label" in found else ""
    names_key = entries.of("names_key", to_names_key) if "names_key" in found else ""
    entries.check()
    return LabelSpec(name=name, k8s_label=k8s_label, names_key=names_key)


_SOURCES = ("path", "k8s_label", "names_key")
"""The keys that define the source of a label's value.

If a label is a mapping, it has exactly one of these keys. A known label has only a name."""

_ANY_SOURCE = "one of 'path', 'k8s_label' and 'names_key'"

_ONLY_HISTOGRAMS = "only a metric with type 'histogram' can have buckets"


def expand_label(label: LabelSpec) -> tuple[LabelSpec, ...]:
    """Return the labels that an entry of the configuration adds: usually one.

    If an entry has ``k8s_label`` or ``names_key``, and its name does not start with one of
    `PREFIXES`, the entry adds two labels. Example: ``team`` adds ``initiator_team`` and
    ``target_team``.
    """
    if not label.has_key or label.name.startswith(PREFIXES):
        return (label,)
    return tuple(replace(label, name=f"{prefix}{label.name}") for prefix in PREFIXES)


PREFIXES = tuple(f"{prefix}_" for prefix in ADDRESS_FIELDS)
"""``initiator_`` and ``target_``."""


def to_metric(value: YamlValue) -> MetricSpec:
    """Accept a metric in one of three forms.

    * the name of a known metric
    * ``{name: …, value: …, type: …, help: …}`` for a new metric
    * ``{name: …, type: histogram, buckets: […]}`` for a known histogram
    """
    if not isinstance(value, dict):
        return MetricSpec(name=_known_metric(parse_str(value)))
    if any(key.lower() == "type" and node.value == "histogram" for key, node in value.items()):
        return _to_histogram(value)
    nodes = mapping_of(
        value,
        known=("name", "value", "type", "help"),
        required=("name", "value", "type"),
        what="a metric with name, value and type",
        unknown=lambda name: _ONLY_HISTOGRAMS if name == "buckets" else "",
    )
    entries = Entries(nodes)
    kind = cast(MetricType, entries.of("type", one_of("counter", "gauge", "histogram")))
    to_path = _to_total if kind == "counter" else _to_number_path
    name = entries.of("name", _to_own_metric)
    paths = entries.of("value", unique_list_of(to_path, "field", most=2))
    help_ = entries.of("help", parse_str, "")
    entries.check()
    return MetricSpec(name=name, paths=paths, type=kind, help=help_)


_REFUSE_UNIT = {"seconds": refuse_time_unit, "bytes": refuse_size_unit}
"""Maps the unit of a histogram to a function that rejects bounds such as ``5ms`` and ``1kB``."""


def _to_histogram(value: YamlValue) -> MetricSpec:
    nodes = mapping_of(
        value,
        known=("name", "type", "buckets"),
        required=("name", "buckets"),
        what="a histogram with name, type and buckets",
    )
    entries = Entries(nodes)
    name = entries.of("name", one_of(*HISTOGRAMS_BY_NAME))
    unit = HISTOGRAMS_BY_NAME[name].unit if name in HISTOGRAMS_BY_NAME else ""
    buckets = entries.of("buckets", lambda value: _to_buckets(value, unit))
    entries.check()
    return MetricSpec(name=name, type="histogram", buckets=buckets)


def _to_buckets(value: YamlValue, unit: str) -> tuple[float, ...]:
    def to_bound(value: YamlValue) -> float:
        if unit in _REFUSE_UNIT:
            _REFUSE_UNIT[unit](value)
        return _to_bound(value)

    bounds = unique_list_of(to_bound, "bucket", most=MAX_BOUNDS)(value)
    for i, (before, bound) in enumerate(pairwise(bounds), 1):
        if bound < before:
            raise entry_error(f"is below the previous bucket, {before:g}", value, i)
    return bounds


def _to_bound(value: YamlValue) -> float:
    number = to_number(value)
    if not 0 < number < math.inf:
        advice = "; the bucket +Inf always exists" if number == math.inf else ""
        raise InvalidValue(f"is not a finite number above 0{advice}", value)
    return number


def _known_label(text: str) -> str:
    if text not in LABELS_BY_NAME:
        raise InvalidValue(f"is not a known label; {_label_advice(text)}", text)
    return text


_NODE = "node"
_PARTS = {
    prefix: tuple(
        label.name.removeprefix(f"{prefix}_")
        for label in LABELS
        if label.name.startswith(f"{prefix}_")
    )
    for prefix in (*ADDRESS_FIELDS, _NODE)
}
"""Maps each prefix (``initiator``, ``target`` or ``node``) to the words that can follow, such as
``pod``."""

_SYNONYMS = {
    **{prefix: prefix for prefix in _PARTS},
    **dict.fromkeys(("source", "src"), "initiator"),
    **dict.fromkeys(("destination", "dest", "dst"), "target"),
}
"""Maps the first word of an unknown label to the prefix that the user probably meant."""

_CUTOFF = 0.75
"""The ``cutoff`` of `difflib.get_close_matches` when skyfast suggests a label.

Only the words after the prefix, such as ``pod``, are compared."""

_OTHER_LABELS = tuple(label.name for label in LABELS if label.name.partition("_")[0] not in _PARTS)
_ALL_LABELS = "; ".join(
    [
        ", ".join(_OTHER_LABELS),
        f"{' or '.join(PREFIXES)} followed by one of {', '.join(_PARTS['initiator'])}",
        f"{_NODE}_ followed by one of {', '.join(_PARTS[_NODE])}",
    ]
)


def _label_advice(text: str) -> str:
    word, rest = [*re.split("[_-]", text, maxsplit=1), ""][:2]
    if prefix := _SYNONYMS.get(nearest(word, _SYNONYMS, cutoff=0.8)):
        return _part_advice(prefix, rest)
    parts = dict.fromkeys(part for parts in _PARTS.values() for part in parts)
    part = _similar_part(text, parts)
    is_part = part and part in text.lower()
    if not is_part and (near := nearest(text, _OTHER_LABELS)):
        return f"did you mean {near}?"
    if part:
        *others, last = [f"{prefix}_{part}" for prefix, parts in _PARTS.items() if part in parts]
        return f"did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
    return f"expected one of {_ALL_LABELS}"


def _part_advice(prefix: str, rest: str) -> str:
    """Return a hint for an unknown label ``prefix_rest`` whose ``prefix`` is known."""
    if near := _similar_part(rest, _PARTS[prefix]):
        return f"did you mean {prefix}_{near}?"
    advice = f"expected {prefix}_ followed by one of {', '.join(_PARTS[prefix])}"
    name = re.sub("[^A-Za-z0-9_]", "_", rest)
    if prefix in ADDRESS_FIELDS and _is_pod_label(name, rest):
        advice += f"; for a pod label write {{name: {name}, k8s_label: {rest}}}"
    return advice


def _similar_part(text: str, parts: Collection[str]) -> str:
    """Return the known word that the user probably meant by ``text``, or ""."""
    short = text.lower().removesuffix("_name")
    return short if short in parts else nearest(text, parts, cutoff=_CUTOFF)


def _is_pod_label(name: str, key: str) -> bool:
    """Return whether ``{name: …, k8s_label: …}`` with these values is valid."""
    try:
        _to_pod_label(name)
        _to_k8s_label(key)
    except InvalidValue:
        return False
    return True


def _known_metric(text: str) -> str:
    if text not in METRICS_BY_NAME and text in HISTOGRAMS_BY_NAME:
        advice = f"{{name: {text}, type: histogram, buckets: […]}}"
        raise InvalidValue(f"is a histogram: write {advice}", text)
    if text not in METRICS_BY_NAME:
        raise InvalidValue(f"is not a known metric; {suggestion(text, METRICS_BY_NAME)}", text)
    return text


def _to_own_label(value: YamlValue) -> str:
    text = _to_label_name(value)
    if text in LABELS_BY_NAME:
        raise InvalidValue("is a predefined label: to select it, write only its name", text)
    return text


def _to_pod_label(value: YamlValue) -> str:
    return _to_keyed_label(value, "pod label", "pod labels")


def _to_names_label(value: YamlValue) -> str:
    return _to_keyed_label(value, "label with names_key", "labels with names_key")


def _to_keyed_label(value: YamlValue, kind: str, kinds: str) -> str:
    text = _to_label_name(value)
    if text.startswith(f"{_NODE}_"):
        prefixes = " or ".join(PREFIXES)
        problem = f"must not start with node_: {kinds} start with {prefixes}, or have no prefix"
        raise InvalidValue(problem, text)
    if text in PREFIXES:
        raise InvalidValue(f"is a prefix without a name; write a name such as {text}team", text)
    for prefix in PREFIXES:
        if text.removeprefix(prefix) in (*ADDRESS_FIELDS, DIRECTION):
            problem = f"is misleading as the name of a {kind}: choose another name"
            raise InvalidValue(problem, text)
    for label in expand_label(LabelSpec(name=text, k8s_label=text)):
        if label.name in LABELS_BY_NAME:
            problem = "is" if label.name == text else f"stands for {label.name}, which is"
            raise InvalidValue(f"{problem} a predefined label: choose another name", text)
    return text


def _to_label_name(value: YamlValue) -> str:
    text = parse_str(value)
    if not is_name(text) or text.startswith("__"):
        raise InvalidValue(
            "is not a label name: use letters, digits and _, not starting with a digit or __", text
        )
    return text


_K8S_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_K8S_LABEL = re.compile(
    rf"(?:(?=[^/]{{1,253}}/){_DNS_LABEL}(?:\.{_DNS_LABEL})*/)?{_K8S_NAME}", re.ASCII
)
"""A Kubernetes label key: a name, optionally after a DNS name and a slash."""


def _to_k8s_label(value: YamlValue) -> str:
    text = parse_str(value)
    if not _K8S_LABEL.fullmatch(text):
        raise InvalidValue(
            "is not a valid Kubernetes label key; use a key such as team or app.kubernetes.io/name",
            text,
        )
    return text


def to_names_key(value: YamlValue) -> str:
    text = parse_str(value)
    if not own_names.is_key(text):
        raise InvalidValue(
            "is not a valid key: use letters, digits and _, not starting with a digit", text
        )
    return text


def _to_own_metric(value: YamlValue) -> str:
    text = to_metric_name(value)
    if text == "_total":
        raise InvalidValue("is the suffix of counter names, not a name", text)
    if text in METRICS_BY_NAME:
        raise InvalidValue("is a predefined metric: to select it, write only its name", text)
    return text


def to_metric_name(value: YamlValue) -> str:
    text = parse_str(value)
    if not is_name(text):
        raise InvalidValue(
            "is not a metric name: use letters, digits and _, not starting with a digit", text
        )
    return text


def _to_path(value: YamlValue) -> FieldPath:
    text = parse_str(value)
    if text not in PATHS:
        advice = suggestion(text, PATHS, otherwise="fields are written like NodeTID or Link.ID")
        raise InvalidValue(f"is not a flow field; {advice}", text)
    return PATHS[text]


def _to_label_path(value: YamlValue) -> FieldPath:
    path = _to_path(value)
    if path not in LABEL_FIELDS:
        raise InvalidValue("changes during the lifetime of a flow and cannot be a label", value)
    return path


def _to_number_path(value: YamlValue) -> FieldPath:
    path = _to_path(value)
    if FIELDS[path] is not int:
        raise InvalidValue("is a string field and cannot be a metric", value)
    return path


def _to_total(value: YamlValue) -> FieldPath:
    path = _to_number_path(value)
    if path not in RUNNING_TOTALS:
        raise InvalidValue("is not a running total: it can be a gauge, but not a counter", value)
    return path


# The purpose of these limits is to bound the time for parsing. `skyfast.config.views` checks the
# exact limits of each view.
to_labels = unique_list_of(to_label, "label", most=MAX_VIEW_COLUMNS + 1)
to_metrics = unique_list_of(to_metric, "metric", most=MAX_VIEW_VALUES)


def show_labels(labels: Sequence[LabelSpec]) -> list[object]:
    return [_show_label(label) for label in labels]


def _show_label(label: LabelSpec) -> object:
    if label.k8s_label:
        return {"name": label.name, "k8s_label": label.k8s_label}
    if label.names_key:
        return {"name": label.name, "names_key": label.names_key}
    if label.path is not None:
        return {"name": label.name, "path": ".".join(label.path)}
    return label.name


MAX_SHOWN = 1e15
"""Bucket bounds of at least this number are shown with an exponent."""


def show_metrics(metrics: Sequence[MetricSpec]) -> list[object]:
    return [_show_metric(metric) for metric in metrics]


def _show_metric(metric: MetricSpec) -> object:
    if metric.is_histogram:
        buckets = [show_seconds(bound) if bound < MAX_SHOWN else bound for bound in metric.buckets]
        return {"name": metric.name, "type": metric.type, "buckets": buckets}
    if not metric.paths:
        return metric.name
    paths = [".".join(path) for path in metric.paths]
    shown = {"name": metric.name, "value": paths if len(paths) > 1 else paths[0]}
    return {**shown, "type": metric.type, **({"help": metric.help} if metric.help else {})}


_ADDRESSES = ("initiator_ip", "target_ip")
_PORTS = ("initiator_port", "target_port")
_to_port = integer(0, MAX_PORT)


def to_rewrites(value: YamlValue) -> Mapping[str, RewriteSpec]:
    """Accept a mapping of labels to ``{mask: …, mask6: …}`` or ``{above: …, keep: […]}``."""
    known = (*_ADDRESSES, *_PORTS)
    nodes = mapping_of(value, known=known, what="a mapping of labels", unknown=_rewrite_advice)
    entries = Entries(nodes)
    rewrites = {
        name: entries.of(name, _to_mask if name in _ADDRESSES else _to_port_grouping)
        for name in (*_ADDRESSES, *_PORTS)
        if name in nodes
    }
    entries.check()
    return MappingProxyType(rewrites)


def _rewrite_advice(name: str) -> str:
    if name not in LABELS_BY_NAME:
        return ""
    known = ", ".join((*_ADDRESSES, *_PORTS))
    return f"only addresses and ports can be rewritten; expected one of {known}"


def _to_mask(value: YamlValue) -> RewriteSpec:
    what = "a mapping with the key 'mask' or 'mask6', such as {mask: 24}"
    nodes = mapping_of(value, known=("mask", "mask6"), what=what)
    if not nodes:
        raise InvalidValue("must contain the key 'mask' or 'mask6', such as {mask: 24}", value)
    entries = Entries(nodes)
    ipv4 = entries.of("mask", integer(0, 32)) if "mask" in nodes else None
    ipv6 = entries.of("mask6", integer(0, 128)) if "mask6" in nodes else None
    entries.check()
    return Mask(ipv4=ipv4, ipv6=ipv6)


def _to_port_grouping(value: YamlValue) -> RewriteSpec:
    what = "a mapping with the key 'above' or 'keep', such as {above: 1023}"
    nodes = mapping_of(value, known=("above", "keep"), what=what)
    if not nodes:
        raise InvalidValue("must contain the key 'above' or 'keep', such as {above: 1023}", value)
    to_ports = unique_list_of(_to_port, "port", most=MAX_ENTRIES)
    entries = Entries(nodes)
    above = entries.of("above", _to_port) if "above" in nodes else None
    keep = entries.of("keep", to_ports) if "keep" in nodes else None
    entries.check()
    return PortGrouping(above=above, keep=None if keep is None else frozenset(keep))


def show_rewrites(rewrites: Mapping[str, RewriteSpec]) -> dict[str, object]:
    return {name: _show_rewrite(rewrite) for name, rewrite in rewrites.items()}


def _show_rewrite(rewrite: RewriteSpec) -> dict[str, object]:
    entries: dict[str, object | None]
    if isinstance(rewrite, Mask):
        entries = {"mask": rewrite.ipv4, "mask6": rewrite.ipv6}
    else:
        keep = None if rewrite.keep is None else sorted(rewrite.keep)
        entries = {"above": rewrite.above, "keep": keep}
    return {name: entry for name, entry in entries.items() if entry is not None}
