"""What the configuration says of labels, metrics, views, rewriting and rules, read and written.

The functions called ``to_…`` turn what stands in a file into `skyfast.flows.selection`'s data, or
raise `Invalid`; those called ``show_…`` return what `skyfast.config.loader.dump` writes. `settled`
checks what depends on one another.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeVar, cast

import msgspec

from skyfast.config.parsers import (
    MAX_ENTRIES,
    MAX_PORT,
    TAGS,
    Entries,
    Invalid,
    Problems,
    bounded_list_of,
    entry_of,
    mapping_of,
    one_of,
    seconds,
    show_seconds,
    suggestion,
    to_network,
    to_text,
    unique_list_of,
    whole,
    within,
)
from skyfast.config.yaml_nodes import Value
from skyfast.flows import addresses
from skyfast.flows.catalog import (
    DIRECTION,
    FIXED_PREFIXES,
    LABEL_FIELDS,
    LABELS,
    LABELS_BY_NAME,
    METRICS_BY_NAME,
    RUNNING_TOTALS,
    families,
)
from skyfast.flows.fields import FIELDS, PATHS
from skyfast.flows.plan import Family, FlowCount, Path
from skyfast.flows.selection import (
    KEEP,
    Condition,
    Fold,
    LabelChoice,
    Mask,
    MetricChoice,
    Network,
    Rewrite,
    Rule,
    ViewChoice,
)

T = TypeVar("T")
Place: TypeAlias = tuple[str | int, ...]
"""What leads to an entry: positions in lists and keys of mappings."""

MAX_VIEWS = 15
"""Views beside the main one: the table has room for 16."""

MAX_LABELS = 32
"""Labels of a view, without ``direction``."""

MAX_VALUES = 32
"""Values that a view keeps of a connection: a counter of two directions is two."""

MAX_ALL_LABELS = 64
"""Different labels of all views; those from the topology count twice."""

MAX_ALL_VALUES = 64
"""Different values of all views."""

MAX_RULES = 256
"""Rules of one list: each is a series of ``skyfast_flows_filtered_total``."""


MAX_INTEGER = 1 << 62
"""The largest number that a flow can hold."""


VIEW_TIMEOUT_S = 3600.0
"""When a view's silent rows leave, unless the view says otherwise."""

DEFAULT_VIEWS = (
    ViewChoice(
        prefix="skydive_traffic",
        labels=tuple(LabelChoice(name=name) for name in ("node_tid", "protocol", DIRECTION)),
        metrics=(MetricChoice(name="bytes"), MetricChoice(name="packets")),
        direction="split",
        timeout_s=0.0,
    ),
)
"""The views beside the main one where none are written: few series, so that none is short-lived."""

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_RULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_RANGE = re.compile(r"([0-9]{1,19})(?: *- *([0-9]{1,19}))?")

# Labels and metrics ------------------------------------------------------------------------


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
    if not _NAME.fullmatch(text) or text.startswith("__"):
        raise Invalid(
            "is not a label name: letters, digits and _, beginning with neither digit nor __", text
        )
    if text in LABELS_BY_NAME:
        raise Invalid("is a known label, which is written without a path", text)
    return text


def _to_own_metric(value: Value) -> str:
    text = to_metric_name(value)
    if text == "_total":
        raise Invalid("is how names of counters end, and no name", text)
    if text in METRICS_BY_NAME:
        raise Invalid("is a known metric, which is written without a value", text)
    return text


def to_metric_name(value: Value) -> str:
    text = to_text(value)
    if not _NAME.fullmatch(text):
        raise Invalid("is not a metric name: letters, digits and _, beginning with no digit", text)
    return text


def _to_path(value: Value) -> Path:
    text = to_text(value)
    if text not in PATHS:
        advice = suggestion(text, PATHS, otherwise="they are written like NodeTID or Link.ID")
        raise Invalid(f"is not a field of a flow; {advice}", text)
    return PATHS[text]


def _to_label_path(value: Value) -> Path:
    path = _to_path(value)
    if path not in LABEL_FIELDS:
        raise Invalid("changes while a flow lives, so it cannot be a label", value)
    return path


def _to_number_path(value: Value) -> Path:
    path = _to_path(value)
    if FIELDS[path] is not int:
        raise Invalid("is a text, so it cannot be a metric", value)
    return path


def _to_total(value: Value) -> Path:
    path = _to_number_path(value)
    if path not in RUNNING_TOTALS:
        raise Invalid("is no running total, so it can be a gauge, but no counter", value)
    return path


to_labels = unique_list_of(to_label, "label", most=MAX_LABELS + 1)
to_metrics = unique_list_of(to_metric, "metric", most=MAX_VALUES)


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


# Views ---------------------------------------------------------------------------------------


def _to_view(value: Value) -> ViewChoice:
    nodes = mapping_of(
        value,
        known=("prefix", "labels", "metrics", "direction", "timeout"),
        required=("prefix", "labels"),
        what="a view with prefix and labels",
    )
    entries = Entries(nodes)
    prefix = entries.of("prefix", to_metric_name)
    labels = entries.of("labels", to_labels)
    metrics = entries.of("metrics", to_metrics, DEFAULT_VIEWS[0].metrics)
    direction = cast(
        Literal["split", "sum"], entries.of("direction", one_of("split", "sum"), "split")
    )
    timeout_s = entries.of("timeout", seconds(zero=False), 0.0)
    entries.check()
    return ViewChoice(
        prefix=prefix, labels=labels, metrics=metrics, direction=direction, timeout_s=timeout_s
    )


to_views = bounded_list_of(_to_view, "views", most=MAX_VIEWS)
"""Accepts a list of views. Those without a time-out have 0."""


def show_views(views: Sequence[ViewChoice]) -> list[object]:
    """Return what `to_views` makes ``views`` of."""
    return [
        {
            "prefix": view.prefix,
            "labels": show_labels(view.labels),
            "metrics": show_metrics(view.metrics),
            "direction": view.direction,
            "timeout": show_seconds(view.timeout_s),
        }
        for view in views
    ]


class Misfit(Exception):  # noqa: N818 - becomes a ConfigError
    """An entry of the ``view``-th view is wrong beside others.

    ``places`` lead to it, the best one first: not all of them need to have been written. ``other``
    says the same of the entry that it is wrong beside.
    """

    def __init__(
        self, problem: str, view: int, *places: Place, other: "Misfit | None" = None
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.view = view
        self.places = places
        self.other = other


def settled(
    views: Sequence[ViewChoice], *, naming: str, least_timeout_s: float
) -> tuple[ViewChoice, ...]:
    """Return the views, of which the first is the main one, with what they leave open filled in.

    Raises:
        Misfit: They cannot be on one page.

    """
    done = tuple(
        _settled(view, number, naming=naming, least_timeout_s=least_timeout_s)
        for number, view in enumerate(views)
    )
    _check_names(done, naming=naming)
    _check_sizes(done, naming=naming)
    return done


def _settled(view: ViewChoice, number: int, *, naming: str, least_timeout_s: float) -> ViewChoice:
    split = view.direction == "split"
    names = [label.name for label in view.labels]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise Misfit("has the name of another label", number, ("labels", i, "name"))
    if DIRECTION in names and not split:
        raise Misfit(
            f"cannot be a label where {DIRECTION} is sum",
            number,
            ("labels", names.index(DIRECTION)),
        )
    if names == [DIRECTION]:
        raise Misfit("names no label of a flow", number, ("labels",))
    for i, metric in enumerate(view.metrics):
        own = bool(metric.paths)
        if own and metric.type == "gauge" and len(metric.paths) > 1 and not split:
            problem = f"has two fields, but where {DIRECTION} is sum a gauge can have one"
            raise Misfit(problem, number, ("metrics", i, "value"))
        total = metric.name.endswith("_total")
        if own and metric.type == "counter" and not total and (view.prefix or naming == "standard"):
            where = "in a view" if view.prefix else "where naming is standard"
            problem = f"is a counter, whose name ends with _total {where}"
            raise Misfit(problem, number, ("metrics", i, "name"))
    if view.prefix and 0 < view.timeout_s < least_timeout_s:
        problem = (
            f"is less than connection_timeout and connection_grace together, {least_timeout_s:g}"
        )
        raise Misfit(problem, number, ("timeout",))
    timeout_s = view.timeout_s or (max(VIEW_TIMEOUT_S, least_timeout_s) if view.prefix else 0.0)
    labels = view.labels
    if split and DIRECTION not in names:
        labels = (*labels, LabelChoice(name=DIRECTION))
    return msgspec.structs.replace(view, labels=labels, timeout_s=timeout_s)


def _check_names(views: Sequence[ViewChoice], *, naming: str) -> None:
    """Refuse families that are called like others of the page."""
    taken: dict[str, tuple[str, int, int]] = {}
    for number, view in enumerate(views):
        for i, family in enumerate(families(view, naming=naming)):
            for prefix in FIXED_PREFIXES:
                if family.name.startswith(prefix):
                    problem = f"makes the family {family.name}, but {prefix}* has another meaning"
                    raise _wrong_metric(problem, number, i)
            for name in _sample_names(family):
                if name in taken:
                    first, its_view, at = taken[name]
                    other = _clash(first, family.name)
                    raise _wrong_metric(
                        _clash(family.name, first),
                        number,
                        i,
                        other=_wrong_metric(other, its_view, at),
                    )
            taken |= dict.fromkeys(_sample_names(family), (family.name, number, i))


def _clash(name: str, other: str) -> str:
    clash = "which is there already" if name == other else f"which clashes with {other}"
    return f"makes the family {name}, {clash}"


def _wrong_metric(problem: str, view: int, i: int, *, other: Misfit | None = None) -> Misfit:
    """Return what is wrong with the name that a view's ``i``-th metric gets."""
    places: tuple[Place, ...] = (("metrics", i, "name"), ("metrics", i), ("prefix",))
    return Misfit(problem, view, *places, other=other)


def _sample_names(family: Family) -> tuple[str, ...]:
    """Return the names that OpenMetrics reserves for a family."""
    if family.type == "gauge":
        return (family.name,)
    name = family.name.removesuffix("_total")
    return (name, f"{name}_total", f"{name}_created")


def _check_sizes(views: Sequence[ViewChoice], *, naming: str) -> None:
    """Refuse what is more than the table has room for."""
    labels: dict[LabelChoice, int] = {}
    values: set[object] = set()
    for number, view in enumerate(views):
        own_labels = [label for label in view.labels if label.name != DIRECTION]
        if len(own_labels) > MAX_LABELS:
            raise Misfit(f"has more than {MAX_LABELS} labels", number, ("labels",))
        own_values = {
            value
            for family in families(view, naming=naming)
            for value in family.values
            if not isinstance(value, FlowCount)
        }
        if len(own_values) > MAX_VALUES:
            problem = f"has more than {MAX_VALUES} values; a counter of two directions is two"
            raise Misfit(problem, number, ("metrics",))
        labels |= {label: 2 if _is_volatile(label) else 1 for label in own_labels}
        if sum(labels.values()) > MAX_ALL_LABELS:
            problem = (
                f"and the views before have more than {MAX_ALL_LABELS} different labels;"
                " one from the topology counts twice"
            )
            raise Misfit(problem, number, ("labels",))
        values |= own_values
        if len(values) > MAX_ALL_VALUES:
            problem = f"and the views before have more than {MAX_ALL_VALUES} different values"
            raise Misfit(problem, number, ("metrics",))


def _is_volatile(label: LabelChoice) -> bool:
    return label.path is None and LABELS_BY_NAME[label.name].lookup not in ("", "classification")


# Rewriting -----------------------------------------------------------------------------------

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
    what = "what an address can be rewritten by: mask, mask6"
    nodes = mapping_of(value, known=("mask", "mask6"), what=what)
    if not nodes:
        raise Invalid(f"is not {what}", value)
    entries = Entries(nodes)
    ipv4 = entries.of("mask", whole(0, 32)) if "mask" in nodes else None
    ipv6 = entries.of("mask6", whole(0, 128)) if "mask6" in nodes else None
    entries.check()
    return Mask(ipv4=ipv4, ipv6=ipv6)


def _to_fold(value: Value) -> Rewrite:
    what = "what a port can be rewritten by: above, keep"
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


# Rules ---------------------------------------------------------------------------------------

_RULE_FIELDS: Mapping[str, Path | None] = {
    **PATHS,
    **{
        label.name: label.path or None
        for label in LABELS
        if label.name != DIRECTION and label.lookup in ("", "classification")
    },
}
"""What a condition can be on: fields, and labels of a flow itself; None is the tag."""

_WRITTEN = {name.lower(): name for name in _RULE_FIELDS}
_ENUMERATIONS: Mapping[Path, tuple[str, ...]] = {
    ("Link", "Protocol"): ("ETHERNET",),
    ("Network", "Protocol"): ("IPV4", "IPV6"),
    ("Transport", "Protocol"): ("TCP", "UDP", "SCTP"),
    ("ICMP", "Type"): (
        *("UNKNOWN", "DESTINATION_UNREACHABLE", "ECHO", "NEIGHBOR", "ADDRESS_MASK", "INFO"),
        *("PARAMETER_PROBLEM", "REDIRECT", "ROUTER", "SOURCE_QUENCH", "TIME_EXCEEDED"),
        *("TIMESTAMP", "PACKET_TOO_BIG"),
    ),
}
_ADDRESS_FIELDS = frozenset({("Network", "A"), ("Network", "B")})
_PORT_FIELDS = frozenset({("Transport", "A"), ("Transport", "B")})


def _to_rule(value: Value) -> Rule:
    if not isinstance(value, dict):
        raise Invalid("is not a rule: a mapping with name and conditions", value)
    name = ""
    conditions = []
    problems = Problems()
    for key, node in value.items():
        with problems, within(node, key):
            if key.lower() == "name":
                name = _to_rule_name(node.value)
            else:
                conditions.append(_to_field_condition(key, node.value))
    problems.check()
    if not name or not conditions:
        missing = "a condition" if name else "name"
        problem = f"{missing} is missing: a rule with name and conditions is needed"
        raise Invalid(problem, value, shown=False)
    return Rule(name=name, conditions=tuple(conditions))


to_rules = bounded_list_of(_to_rule, "rules", most=MAX_RULES)
"""Accepts a list of mappings with ``name`` and conditions by field."""


def _to_rule_name(value: Value) -> str:
    text = to_text(value)
    if not _RULE_NAME.fullmatch(text):
        problem = (
            "is not a rule's name: up to 64 letters, digits and _ . -, beginning with neither"
            " of these three"
        )
        raise Invalid(problem, text)
    if text == KEEP:
        raise Invalid("is what flows are counted under that no keep rule holds for", text)
    return text


def _to_field_condition(key: str, value: Value) -> Condition:
    field = _WRITTEN.get(key.lower())
    if field is None and key.lower() in LABELS_BY_NAME:
        raise Invalid("cannot be a condition, for no flow has it", shown=False)
    if field is None:
        advice = suggestion(key, _RULE_FIELDS, otherwise="it is neither a label nor a field")
        raise Invalid(f"cannot be a condition; {advice}", shown=False)
    return _to_condition(field, value, known=("not", "regex"))


def _to_condition(field: str, value: Value, *, known: tuple[str, ...]) -> Condition:
    path = _RULE_FIELDS[field]
    if not isinstance(value, dict):
        return _to_values(field, path, value)
    nodes = mapping_of(value, known=known, what="a condition")
    if len(nodes) != 1:
        raise Invalid(f"is not a value, a list, or a mapping with {' or '.join(known)}", value)
    if "regex" in nodes:
        pattern = entry_of(nodes, "regex", lambda text: _to_pattern(path, text))
        return Condition(field=field, path=path, pattern=pattern)
    condition = entry_of(nodes, "not", lambda below: _to_condition(field, below, known=("regex",)))
    return msgspec.structs.replace(condition, negated=True)


def _to_pattern(path: Path | None, value: Value) -> re.Pattern[str]:
    text = to_text(value)
    if path is not None and FIELDS[path] is not str:
        raise Invalid("is a regular expression, but the field is a number", text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise Invalid(f"is not a regular expression: {error}", text) from None


def _to_values(field: str, path: Path | None, value: Value) -> Condition:
    """Make a condition of one entry or a list: whatever each of them is."""
    to_entry = partial(_to_entry, path)
    if value == []:
        raise Invalid("names no value", value)
    if isinstance(value, list):
        found = bounded_list_of(to_entry, "values", most=MAX_ENTRIES)(value)
    else:
        found = (to_entry(value),)
    ranges = tuple(each for each in found if isinstance(each, tuple))
    values = frozenset(each for each in found if isinstance(each, str | int))
    networks = tuple(each for each in found if not isinstance(each, str | int | tuple))
    return Condition(field=field, path=path, values=values, ranges=ranges, networks=networks)


def _to_entry(path: Path | None, value: Value) -> str | int | tuple[int, int] | Network:
    """Accept what a field of this kind can be."""
    if path is None:
        return one_of(*TAGS)(value)
    if path in _ENUMERATIONS:
        return one_of(*_ENUMERATIONS[path])(value)
    if path in _ADDRESS_FIELDS:
        return _to_address_or_network(value)
    return _to_range(path, value) if FIELDS[path] is int else to_text(value)


def _to_address_or_network(value: Value) -> str | Network:
    text = to_text(value)
    if "/" in text:
        return to_network(text)
    address = addresses.read(text)
    if address is None:
        raise Invalid("is neither an IP address nor a network such as 10.0.0.0/8", text)
    return addresses.write(address)


def _to_range(path: Path, value: Value) -> int | tuple[int, int]:
    most = MAX_PORT if path in _PORT_FIELDS else MAX_INTEGER
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if match and first > last:
        raise Invalid("is a range that ends before it begins", value)
    if first > last or last > most:
        problem = f"is neither a whole number from 0 to {most} nor a range such as 8000-8999"
        raise Invalid(problem, value)
    return (first, last) if match and match[2] else first


def show_rules(rules: Sequence[Rule]) -> list[object]:
    """Return what `to_rules` makes ``rules`` of."""
    return [
        {"name": rule.name, **{each.field: _show_condition(each) for each in rule.conditions}}
        for rule in rules
    ]


def _show_condition(condition: Condition) -> object:
    if condition.pattern is not None:
        shown: object = {"regex": condition.pattern.pattern}
    else:
        shown = [
            *sorted(condition.values, key=lambda value: (str(type(value)), value)),
            *(f"{first}-{last}" for first, last in condition.ranges),
            *map(str, condition.networks),
        ]
    return {"not": shown} if condition.negated else shown
