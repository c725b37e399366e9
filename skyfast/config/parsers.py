"""Parsers for single values of the configuration.

Each parser takes a `skyfast.config.yaml_nodes.YamlValue` and returns the parsed value or raises
`InvalidValue`.
"""

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import Decimal
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
from skyfast.config.errors import InvalidValue, Problems, error_context
from skyfast.config.yaml_nodes import BOOLS, YamlNode, YamlValue, index
from skyfast.flows.selection import Network

S = TypeVar("S", bound=str)
T = TypeVar("T")

MAX_SECONDS = 31_536_000
"""The longest duration: a year."""

MAX_ENTRIES = 4096
"""Maximum number of values of a filter condition, of ports in a ``keep`` list, and of entries in
``names``."""


LEVELS = {
    "debug": "DEBUG",
    "info": "INFO",
    "notice": "INFO",
    "warning": "WARNING",
    "error": "ERROR",
    "critical": "CRITICAL",
}
"""Maps Skydive's log levels, in lower case, to names of levels in the standard library."""


_UNITS_S = {
    unit: seconds
    for seconds, units in (
        (0.000_001, ("us", "µs")),
        (0.001, ("ms",)),
        (1, ("s", "sec", "secs", "second", "seconds")),
        (60, ("m", "min", "mins", "minute", "minutes")),
        (3600, ("h", "hour", "hours")),
        (86_400, ("d", "day", "days")),
    )
    for unit in units
}
_TIME = re.compile(
    rf"([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?) *({'|'.join(_UNITS_S)})", re.ASCII | re.IGNORECASE
)
_MULTIPLE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) *([kmgt])", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(
    r"([0-9]{1,15}(?:\.[0-9]{1,9})?) *(?:([kmgtp])(i?)b?|b|bytes?)", re.ASCII | re.IGNORECASE
)


def nearest(text: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the known name most similar to ``text``, ignoring case, or "" if none is similar.

    ``cutoff`` is the minimum similarity: see `difflib.get_close_matches`.
    """
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(text.lower(), names, 1, cutoff)
    return names[near[0]] if near else ""


def suggestion(text: str, known: Collection[str], *, otherwise: str = "") -> str:
    """Return a hint for ``text``, which is not in ``known``.

    The hint contains the known name that is most similar to ``text``. If no name is similar, the
    hint is ``otherwise``. If ``otherwise`` is empty, the hint lists all known names.
    """
    if near := nearest(text, known):
        return f"did you mean {near}?"
    return otherwise or f"expected {'one of ' if len(known) > 1 else ''}{', '.join(known)}"


def parse_str(value: YamlValue) -> str:
    if isinstance(value, bool):
        raise InvalidValue("is not text; put it in quotes to make it text", value)
    if not isinstance(value, str):
        raise InvalidValue("is not text", value)
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", value):
        raise InvalidValue("contains a control character", value)
    return value


def to_number(value: YamlValue) -> float:
    """Return ``value`` as a number, or NaN if it is not a number. NaN is outside every range."""
    if not isinstance(value, str) or not value.isascii():
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def integer(least: int, most: int) -> Callable[[YamlValue], int]:
    def parse(value: YamlValue) -> int:
        refuse_number_unit(value)
        number = to_number(value)
        if not (least <= number <= most and number.is_integer()):
            raise InvalidValue(f"is not an integer from {least} to {most}", value)
        return int(number)

    return parse


def refuse_time_unit(value: YamlValue) -> None:
    if isinstance(value, str) and (match := _TIME.fullmatch(value)):
        number = float(match[1]) * _UNITS_S[match[2].lower()]
        raise InvalidValue(f"has a unit; times are in seconds: write {number:g}", value)


def refuse_number_unit(value: YamlValue) -> None:
    if isinstance(value, str) and (match := _MULTIPLE.fullmatch(value)):
        number = Decimal(match[1]) * 1000 ** " kmgt".index(match[2].lower())
        raise InvalidValue(f"has a unit: write {round(number)}", value)


def refuse_size_unit(value: YamlValue) -> None:
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        power = " kmgtp".index((match[2] or " ").lower())
        number = round(Decimal(match[1]) * (1024 if match[3] else 1000) ** power)
        raise InvalidValue(f"has a unit; sizes are in bytes: write {number}", value)


def byte_count(least: int, most: int) -> Callable[[YamlValue], int]:
    parse_integer = integer(least, most)

    def parse(value: YamlValue) -> int:
        refuse_size_unit(value)
        return parse_integer(value)

    return parse


def duration(*, zero: bool) -> Callable[[YamlValue], float]:
    allowed = "from 0" if zero else "above 0 and"

    def parse(value: YamlValue) -> float:
        refuse_time_unit(value)
        number = to_number(value)
        if not (0 <= number <= MAX_SECONDS) or (number == 0 and not zero):
            raise InvalidValue(f"is not a number of seconds {allowed} up to {MAX_SECONDS}", value)
        return number

    return parse


def show_seconds(number: float) -> float:
    """Return whole seconds as an integer, and any other number unchanged."""
    return int(number) if number.is_integer() else number


def must_equal(name: str) -> Callable[[YamlValue], str]:
    """Return a parser that accepts only ``name``, for keys that have only one valid value."""

    def parse(value: YamlValue) -> str:
        if isinstance(value, bool) or parse_str(value) != name:
            raise InvalidValue(f"is not supported: must be {name}", value)
        return name

    return parse


def to_boolean(value: YamlValue) -> bool:
    if isinstance(value, str):
        value = BOOLS.get(value, value)
    if not isinstance(value, bool):
        raise InvalidValue("is neither true nor false", value)
    return value


def one_of(*names: S) -> Callable[[YamlValue], S]:
    by_name = {str(name): name for name in names}

    def parse(value: YamlValue) -> S:
        text = _parse_choice(value, by_name)
        if text not in by_name:
            near = nearest(text, by_name)
            hint = f"; did you mean {near}?" if near else ""
            raise InvalidValue(f"is not one of {', '.join(names)}{hint}", text)
        return by_name[text]

    return parse


def _parse_choice(value: YamlValue, choices: Iterable[str]) -> str:
    if isinstance(value, bool):  # `parse_str` would suggest quotes, but quotes would not help
        raise InvalidValue(f"is not one of {', '.join(choices)}", value)
    return parse_str(value)


def to_level(value: YamlValue) -> str:
    text = _parse_choice(value, LEVELS)
    if text.lower() not in LEVELS:
        near = nearest(text, LEVELS)
        hint = f"; did you mean {near}?" if near else ""
        raise InvalidValue(f"is not one of {', '.join(LEVELS)}{hint}", text)
    return LEVELS[text.lower()]


def list_of(item: Callable[[YamlValue], T]) -> Callable[[YamlValue], tuple[T, ...]]:
    """Return a parser for lists, and for strings that are split at spaces and commas."""

    def parse(value: YamlValue) -> tuple[T, ...]:
        if isinstance(value, list):
            problems, entries = Problems(), []
            for i, node in enumerate(value):
                with problems, error_context(node, index(i)):
                    entries.append(item(node.value))
            problems.check()
            return tuple(entries)
        if not isinstance(value, str):
            raise InvalidValue("is not a list", value)
        try:
            return tuple(item(text) for text in re.split(r"[\s,]+", value) if text)
        except InvalidValue as error:
            # A comma in the password of a URL splits the URL into two entries. Show the whole
            # string instead of an entry: messages leave out the credentials of a whole URL.
            error.value = value if "@" in value else error.value
            raise

    return parse


def unique_list_of(
    item: Callable[[YamlValue], T], kind: str, *, most: int
) -> Callable[[YamlValue], tuple[T, ...]]:
    """Return a parser like `list_of`, for 1 to ``most`` items that are all different."""
    entries = list_of(item)

    def parse(value: YamlValue) -> tuple[T, ...]:
        if isinstance(value, list):
            _check_count(value, value, most)
        parsed = entries(value)
        if not parsed:
            raise InvalidValue(f"contains no {kind}", value)
        _check_count(parsed, value, most)
        for i, entry in enumerate(parsed):
            if entry in parsed[:i]:
                raise entry_error(f"repeats a {kind}", value, i)
        return parsed

    return parse


def entry_error(problem: str, value: YamlValue, i: int) -> InvalidValue:
    """Return an error about entry ``i`` of ``value``.

    ``value`` is a list, or a string that `list_of` splits into a list. For a string, the error
    shows the whole string.
    """
    if not isinstance(value, list):
        return InvalidValue(problem, value)
    return InvalidValue(problem, value[i].value, name=index(i), line=value[i].line)


def bounded_list_of(
    item: Callable[[YamlValue], T], kind: str, *, most: int
) -> Callable[[YamlValue], tuple[T, ...]]:
    """Return a parser for lists of up to ``most`` items. Unlike `list_of`, it rejects strings."""
    entries = list_of(item)

    def parse(value: YamlValue) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise InvalidValue(f"is not a list of {kind}", value)
        _check_count(value, value, most)
        return entries(value)

    return parse


def _check_count(entries: Sequence[object], value: YamlValue, most: int) -> None:
    if len(entries) > most:
        raise InvalidValue(f"has more than {most} entries", value)


def mapping_of(
    value: YamlValue,
    *,
    known: Collection[str],
    required: Collection[str] = (),
    what: str,
    unknown: Callable[[str], str] | None = None,
) -> dict[str, YamlNode]:
    """Accept a mapping with keys in ``known``; return its nodes, with the keys in lower case.

    Keys with a null value are left out. ``unknown`` returns the error text for an unknown key; if
    this text is empty, the default text is used.
    """
    if not isinstance(value, dict):
        raise InvalidValue(f"is not {what}", value)
    nodes, problems = {}, Problems()
    for name, node in value.items():
        with problems:
            if name.lower() not in known:
                problem = unknown(name.lower()) if unknown is not None else ""
                problem = problem or f"unknown key; {suggestion(name, known)}"
                raise InvalidValue(problem, name=name, line=node.line, shown=False)
        if node.value is not None:
            nodes[name.lower()] = node
    # If one key is unknown and another key is missing, the user probably misspelled the missing
    # key. Therefore report unknown keys first.
    problems.check()
    if missing := [name for name in required if name not in nodes]:
        raise InvalidValue(f"missing {' and '.join(missing)}; expected {what}", value, shown=False)
    return nodes


def entry_of(
    nodes: Mapping[str, YamlNode],
    name: str,
    parse: Callable[[YamlValue], T],
    default: T | None = None,
) -> T:
    """Return a parsed entry of a mapping, or the default if the entry is missing or empty."""
    if name not in nodes or (default is not None and nodes[name].value in ("", [])):
        return cast(T, default)
    with error_context(nodes[name], name):
        return parse(nodes[name].value)


class Entries:
    """The entries of a mapping; `check` raises the errors of all entries together."""

    def __init__(self, nodes: Mapping[str, YamlNode]) -> None:
        self._nodes = nodes
        self._problems = Problems()

    def of(self, name: str, parse: Callable[[YamlValue], T], default: T | None = None) -> T:
        """Parse an entry as `entry_of` does.

        If the entry is invalid, this method returns None, and `check` raises the error.
        """
        with self._problems:
            return entry_of(self._nodes, name, parse, default)
        return cast(T, None)

    def check(self) -> None:
        self._problems.check()


def to_cookies(value: YamlValue) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise InvalidValue("is not a mapping of cookie names to values", value)
    return MappingProxyType({name: _to_cookie(name, node.value) for name, node in value.items()})


def _to_cookie(name: str, value: YamlValue) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        raise InvalidValue("the name of this cookie has invalid characters", name=name, shown=False)
    try:
        text = "" if value is None else parse_str(value)
    except InvalidValue as error:
        raise InvalidValue(error.problem, value, name=name) from None
    if ";" in text:
        raise InvalidValue("contains a semicolon", value, name=name)
    return text


def to_readable_file(value: YamlValue) -> str:
    text = parse_str(value)
    try:
        if not Path(text).is_file():
            raise InvalidValue("is not an existing file", text)
        Path(text).open("rb").close()
    except OSError as error:  # pragma: no cover - root can read all files
        raise InvalidValue(f"cannot be read: {error.strerror}", text) from None
    return text


def to_network(value: YamlValue) -> Network:
    """Accept a network as Go's ``net.ParseCIDR`` does: host bits are allowed, netmasks are not."""
    text = parse_str(value)
    try:
        if re.search(r"/[0-9]+$", text) and "%" not in text:
            return ipaddress.ip_network(text, strict=False)
    except ValueError:
        pass
    raise InvalidValue("is not a network in CIDR notation such as 10.0.0.0/8 or fd00::/8", text)


def to_listen_address(value: YamlValue) -> str:
    text = parse_str(value)
    try:
        return parse_listen_host(text)
    except ValueError:
        raise InvalidValue(
            "is not an IP address or host name (leave it empty for all addresses)", text
        ) from None


def to_address(value: YamlValue) -> Endpoint:
    return _to_endpoint(value, parse_analyzer)


def to_url(value: YamlValue) -> Endpoint:
    return _to_endpoint(value, parse_url)


def _to_endpoint(value: YamlValue, parse: Callable[[str], Endpoint]) -> Endpoint:
    try:
        return parse(parse_str(value))
    except EndpointError as error:
        raise InvalidValue(error.problem, error.shown) from None
