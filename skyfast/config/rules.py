"""Reads and writes the filter rules of a configuration."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from skyfast._table import MAX_NUMBER
from skyfast.config.endpoint import MAX_PORT
from skyfast.config.errors import InvalidValue, Problems, error_context
from skyfast.config.parsers import (
    MAX_ENTRIES,
    bounded_list_of,
    entry_of,
    mapping_of,
    one_of,
    parse_str,
    suggestion,
    to_network,
)
from skyfast.config.yaml_nodes import YamlValue
from skyfast.flows import addresses
from skyfast.flows.catalog import DIRECTION, LABELS, LABELS_BY_NAME
from skyfast.flows.fields import FIELDS, PATHS
from skyfast.flows.plan import FieldPath
from skyfast.flows.selection import KEEP, TAGS, Condition, Network, Rule

MAX_RULES = 256
"""Maximum number of rules in a list. Each rule has a series in ``skyfast_flows_filtered_total``."""

_RULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_RANGE = re.compile(r"([0-9]{1,19})(?: *- *([0-9]{1,19}))?")
_RULE_FIELDS: Mapping[str, FieldPath | None] = {
    **PATHS,
    **{
        label.name: label.path or None
        for label in LABELS
        if label.name != DIRECTION and label.lookup in ("", "classification")
    },
}
"""Maps each key of a condition to a field of the flow, or to None for the tag."""

_EXPECTED = (
    f"expected one of {', '.join(name for name in _RULE_FIELDS if name not in PATHS)},"
    " or a field of a flow such as Metric.ABBytes"
)
_WRITTEN = {name.lower(): name for name in _RULE_FIELDS}
_ENUMERATIONS: Mapping[FieldPath, tuple[str, ...]] = {
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


def _to_rule(value: YamlValue) -> Rule:
    if not isinstance(value, dict):
        raise InvalidValue("is not a rule: expected a mapping with name and conditions", value)
    name = ""
    conditions = []
    problems = Problems()
    for key, node in value.items():
        with problems, error_context(node, key):
            if key.lower() == "name":
                name = _to_rule_name(node.value)
            else:
                conditions.append(_to_field_condition(key, node.value))
    problems.check()
    if not name or not conditions:
        missing = "a condition" if name else "name"
        problem = f"missing {missing}; expected a rule with name and conditions"
        raise InvalidValue(problem, value, shown=False)
    return Rule(name=name, conditions=tuple(conditions))


to_rules = bounded_list_of(_to_rule, "rules", most=MAX_RULES)
"""Accepts a list of rules.

A rule is a mapping: the key ``name`` gives its name, and every other key is a condition."""


def _to_rule_name(value: YamlValue) -> str:
    text = parse_str(value)
    if not _RULE_NAME.fullmatch(text):
        problem = (
            "is not a valid rule name: use at most 64 characters (letters, digits, '_', '.' or"
            " '-'), and start with a letter or digit"
        )
        raise InvalidValue(problem, text)
    if text == KEEP:
        problem = "is a reserved name: skyfast uses it to count flows that match no keep rule"
        raise InvalidValue(problem, text)
    return text


def _to_field_condition(key: str, value: YamlValue) -> Condition:
    field = _WRITTEN.get(key.lower())
    if field is None and key.lower() in LABELS_BY_NAME:
        problem = f"unknown condition: the label is not part of a flow; {_EXPECTED}"
        raise InvalidValue(problem, shown=False)
    if field is None:
        advice = suggestion(key, _RULE_FIELDS, otherwise=_EXPECTED)
        raise InvalidValue(f"unknown condition; {advice}", shown=False)
    return _to_condition(field, value, known=("not", "regex"))


def _to_condition(field: str, value: YamlValue, *, known: tuple[str, ...]) -> Condition:
    path = _RULE_FIELDS[field]
    if not isinstance(value, dict):
        return _to_values(field, path, value)
    nodes = mapping_of(value, known=known, what="a condition")
    if len(nodes) != 1:
        keys = " or ".join(map(repr, known))
        problem = f"is not a condition: expected a value, a list, or a mapping with the key {keys}"
        raise InvalidValue(problem, value)
    if "regex" in nodes:
        pattern = entry_of(nodes, "regex", lambda text: _to_pattern(path, text))
        return Condition(field=field, path=path, pattern=pattern)
    condition = entry_of(nodes, "not", lambda below: _to_condition(field, below, known=("regex",)))
    return replace(condition, negated=True)


def _to_pattern(path: FieldPath | None, value: YamlValue) -> re.Pattern[str]:
    text = parse_str(value)
    if path is not None and FIELDS[path] is not str:
        raise InvalidValue("is a regular expression, but the field is a number", text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidValue(f"is not a valid regular expression: {error}", text) from None


def _to_values(field: str, path: FieldPath | None, value: YamlValue) -> Condition:
    """Parse one value, range or network, or a list of these."""
    to_entry = partial(_to_entry, path)
    if value == []:
        raise InvalidValue("contains no value", value)
    if isinstance(value, list):
        entries = bounded_list_of(to_entry, "values", most=MAX_ENTRIES)(value)
    else:
        entries = (to_entry(value),)
    ranges = tuple(entry for entry in entries if isinstance(entry, tuple))
    values = frozenset(entry for entry in entries if isinstance(entry, str | int))
    networks = tuple(entry for entry in entries if not isinstance(entry, str | int | tuple))
    return Condition(field=field, path=path, values=values, ranges=ranges, networks=networks)


def _to_entry(path: FieldPath | None, value: YamlValue) -> str | int | tuple[int, int] | Network:
    if path is None:
        return one_of(*TAGS)(value)
    if path in _ENUMERATIONS:
        return one_of(*_ENUMERATIONS[path])(value)
    if path in _ADDRESS_FIELDS:
        return _to_address_or_network(value)
    return _to_range(path, value) if FIELDS[path] is int else parse_str(value)


def _to_address_or_network(value: YamlValue) -> str | Network:
    text = parse_str(value)
    if "/" in text:
        return to_network(text)
    address = addresses.read(text)
    if address is None:
        raise InvalidValue("is neither an IP address nor a network such as 10.0.0.0/8", text)
    return addresses.write(address)


def _to_range(path: FieldPath, value: YamlValue) -> int | tuple[int, int]:
    most = MAX_PORT if path in _PORT_FIELDS else MAX_NUMBER
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if match and first > last:
        raise InvalidValue("is a range that ends before it begins", value)
    if first > last or last > most:
        problem = f"is neither an integer from 0 to {most} nor a range such as 8000-8999"
        raise InvalidValue(problem, value)
    return (first, last) if match and match[2] else first


def show_rules(rules: Sequence[Rule]) -> list[object]:
    return [
        {"name": rule.name}
        | {condition.field: _show_condition(condition) for condition in rule.conditions}
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
