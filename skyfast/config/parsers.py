"""Parsers for single values of the configuration.

Each takes a `skyfast.config.yaml_nodes.Value`, and returns what is meant or raises `Invalid`.
Nothing here knows a key. What has a structure of its own is in `skyfast.config.labels`.
"""

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar, cast

from skyfast.config.endpoint import (
    Endpoint,
    EndpointError,
    parse_analyzer,
    parse_listen_host,
    parse_url,
)
from skyfast.config.errors import Invalid, Problems, within
from skyfast.config.yaml_nodes import BOOLS, Node, Value
from skyfast.flows.selection import Network

S = TypeVar("S", bound=str)
T = TypeVar("T")

MAX_SECONDS = 31_536_000
"""The longest duration: a year."""

MAX_ENTRIES = 4096
"""Entries of one condition, and ports of one list."""


LEVELS = {
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "NOTICE": "INFO",
    "WARNING": "WARNING",
    "ERROR": "ERROR",
    "CRITICAL": "CRITICAL",
}
"""Skydive's log levels, and what the standard library calls them."""


_UNITS_S = {
    unit: seconds
    for seconds, units in (
        (0.001, ("ms",)),
        (1, ("s", "sec", "secs", "second", "seconds")),
        (60, ("m", "min", "mins", "minute", "minutes")),
        (3600, ("h", "hour", "hours")),
        (86_400, ("d", "day", "days")),
    )
    for unit in units
}
_WITH_UNIT = re.compile(
    rf"([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?) *({'|'.join(_UNITS_S)})", re.ASCII | re.IGNORECASE
)


def nearest(text: str, known: Iterable[str]) -> str:
    """Return the known name that is most like ``text``, whatever its case, or nothing."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(text.lower(), names, 1)
    return names[near[0]] if near else ""


def suggestion(text: str, known: Collection[str], *, otherwise: str = "") -> str:
    """Return what to say beside ``text``, which is none of ``known``.

    Where none is similar, this is ``otherwise``, or all of them.
    """
    if near := nearest(text, known):
        return f"did you mean {near}?"
    return otherwise or f"expected one of {', '.join(known)}"


def to_text(value: Value) -> str:
    if isinstance(value, bool):
        raise Invalid("is not text; put it in quotes to make it text", value)
    if not isinstance(value, str):
        raise Invalid("is not text", value)
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", value):
        raise Invalid("contains a control character", value)
    return value


def to_number(value: Value) -> float:
    """Return what lies in no range, NaN, for everything that is not a number."""
    if not isinstance(value, str) or not value.isascii():
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def whole(least: int, most: int) -> Callable[[Value], int]:
    def parse(value: Value) -> int:
        number = to_number(value)
        if not (least <= number <= most and number.is_integer()):
            raise Invalid(f"is not a whole number from {least} to {most}", value)
        return int(number)

    return parse


def seconds(*, zero: bool) -> Callable[[Value], float]:
    allowed = "from 0" if zero else "above 0 and"

    def parse(value: Value) -> float:
        if isinstance(value, str) and (with_unit := _WITH_UNIT.fullmatch(value)):
            number = float(with_unit[1]) * _UNITS_S[with_unit[2].lower()]
            raise Invalid(f"has a unit; times are in seconds: write {number:g}", value)
        number = to_number(value)
        if not (0 <= number <= MAX_SECONDS) or (number == 0 and not zero):
            raise Invalid(f"is not a number of seconds {allowed} up to {MAX_SECONDS}", value)
        return number

    return parse


def show_seconds(number: float) -> float:
    """Return a time as it is written."""
    return int(number) if number.is_integer() else number


def only(name: str) -> Callable[[Value], str]:
    """Accept the one type of a phase of the pipeline that skyfast has."""

    def parse(value: Value) -> str:
        if to_text(value) != name:
            raise Invalid(f"is not supported: must be {name}", value)
        return name

    return parse


def to_boolean(value: Value) -> bool:
    if isinstance(value, str):
        value = BOOLS.get(value, value)
    if not isinstance(value, bool):
        raise Invalid("is neither true nor false", value)
    return value


def one_of(*names: S) -> Callable[[Value], S]:
    """Accept one of these texts."""
    by_name = {str(name): name for name in names}

    def parse(value: Value) -> S:
        text = to_text(value)
        if text not in by_name:
            near = nearest(text, by_name)
            hint = f"; did you mean {near}?" if near else ""
            raise Invalid(f"is not one of {', '.join(names)}{hint}", text)
        return by_name[text]

    return parse


def to_level(value: Value) -> str:
    text = to_text(value)
    if text.upper() not in LEVELS:
        near = nearest(text, LEVELS)
        hint = f"; did you mean {near}?" if near else ""
        raise Invalid(f"is not one of {', '.join(LEVELS)}{hint}", text)
    return LEVELS[text.upper()]


def list_of(item: Callable[[Value], T]) -> Callable[[Value], tuple[T, ...]]:
    """Accept a list, or a text that is split at spaces and commas."""

    def parse(value: Value) -> tuple[T, ...]:
        if isinstance(value, list):
            problems, entries = Problems(), []
            for node in value:
                with problems:
                    entries.append(_entry(item, node))
            problems.check()
            return tuple(entries)
        if not isinstance(value, str):
            raise Invalid("is not a list", value)
        try:
            return tuple(item(text) for text in re.split(r"[\s,]+", value) if text)
        except Invalid as bad:
            # A password with a comma was split too: only the whole text can be redacted.
            bad.value = value if "@" in value else bad.value
            raise

    return parse


def _entry(item: Callable[[Value], T], node: Node) -> T:
    with within(node):
        return item(node.value)


def unique_list_of(
    item: Callable[[Value], T], kind: str, *, most: int
) -> Callable[[Value], tuple[T, ...]]:
    """Accept a list like `list_of`, not empty, of at most so many, and none twice."""
    entries = list_of(item)

    def parse(value: Value) -> tuple[T, ...]:
        if isinstance(value, list):
            _check_count(value, value, most)
        parsed = entries(value)
        if not parsed:
            raise Invalid(f"contains no {kind}", value)
        _check_count(parsed, value, most)
        for i, each in enumerate(parsed):
            if each in parsed[:i]:
                node = value[i] if isinstance(value, list) else None
                raise Invalid(
                    f"repeats a {kind}",
                    node.value if node else value,
                    line=node.line if node else None,
                )
        return parsed

    return parse


def bounded_list_of(
    item: Callable[[Value], T], kind: str, *, most: int
) -> Callable[[Value], tuple[T, ...]]:
    """Accept a list, which can be empty, of at most so many."""
    entries = list_of(item)

    def parse(value: Value) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise Invalid(f"is not a list of {kind}", value)
        _check_count(value, value, most)
        return entries(value)

    return parse


def _check_count(entries: Sequence[object], value: Value, most: int) -> None:
    if len(entries) > most:
        raise Invalid(f"has more than {most} entries", value)


def mapping_of(
    value: Value, *, known: Collection[str], required: Collection[str] = (), what: str
) -> dict[str, Node]:
    """Accept a mapping with these keys; return them in lower case with their values.

    A key whose value is null is the same as none.
    """
    if not isinstance(value, dict):
        raise Invalid(f"is not {what}", value)
    nodes, problems = {}, Problems()
    for name, node in value.items():
        with problems:
            if name.lower() not in known:
                problem = f"is an unknown key; {suggestion(name, known)}"
                raise Invalid(problem, name=name, line=node.line, shown=False)
        if node.value is not None:
            nodes[name.lower()] = node
    # Where a key is unknown, it is probably the one that is missing.
    problems.check()
    if missing := [name for name in required if name not in nodes]:
        raise Invalid(f"missing {' and '.join(missing)}; expected {what}", value, shown=False)
    return nodes


def entry_of(
    nodes: Mapping[str, Node], name: str, parse: Callable[[Value], T], default: T | None = None
) -> T:
    """Return an entry of a mapping; where it is missing or empty, the default."""
    if name not in nodes or (default is not None and nodes[name].value in ("", [])):
        return cast(T, default)
    with within(nodes[name], name):
        return parse(nodes[name].value)


class Entries:
    """The entries of a mapping. All are read before an error is raised."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes
        self._problems = Problems()

    def of(self, name: str, parse: Callable[[Value], T], default: T | None = None) -> T:
        """Return an entry like `entry_of`; where it is refused, something not to be used."""
        with self._problems:
            return entry_of(self._nodes, name, parse, default)
        return cast(T, None)

    def check(self) -> None:
        """Raise `Invalid` where any entry was refused."""
        self._problems.check()


def to_cookies(value: Value) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise Invalid("is not a mapping of cookie names to values", value)
    return MappingProxyType({name: _to_cookie(name, node.value) for name, node in value.items()})


def _to_cookie(name: str, value: Value) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        raise Invalid("has invalid characters in its name", value, name=name)
    try:
        text = "" if value is None else to_text(value)
    except Invalid as bad:
        raise Invalid(bad.problem, value, name=name) from None
    if ";" in text:
        raise Invalid("contains a semicolon", value, name=name)
    return text


def to_readable_file(value: Value) -> str:
    text = to_text(value)
    try:
        if not Path(text).is_file():
            raise Invalid("is not an existing file", text)
        Path(text).open("rb").close()
    except OSError as error:  # pragma: no cover - deleted between two looks, or root reads all
        raise Invalid(f"cannot be read: {error.strerror}", text) from None
    return text


def to_network(value: Value) -> Network:
    """Accept what Go's ``net.ParseCIDR`` does: an address with host bits, but no netmask."""
    text = to_text(value)
    try:
        if re.search(r"/[0-9]+$", text) and "%" not in text:
            return ipaddress.ip_network(text, strict=False)
    except ValueError:
        pass
    raise Invalid("is not a network in CIDR notation such as 10.0.0.0/8 or fd00::/8", text)


def to_listen_address(value: Value) -> str:
    text = to_text(value)
    try:
        return parse_listen_host(text)
    except ValueError:
        raise Invalid(
            "is not an IP address or host name (leave it empty for all addresses)", text
        ) from None


def to_address(value: Value) -> Endpoint:
    return _to_endpoint(value, parse_analyzer)


def to_url(value: Value) -> Endpoint:
    return _to_endpoint(value, parse_url)


def _to_endpoint(value: Value, parse: Callable[[str], Endpoint]) -> Endpoint:
    try:
        return parse(to_text(value))
    except EndpointError as error:
        raise Invalid(error.problem, error.shown) from None
