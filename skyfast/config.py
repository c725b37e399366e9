"""The configuration: a file and the environment become one frozen `Config`.

Whatever can be set has one entry in `SCHEMA`, and nowhere else: its path in the file, how
its text becomes a value, its default, and where `dump` finds it. The names of the
environment variables, the suggestions for misspelt keys and the tests of
``docs/configuration.md`` come from there too. Nothing here knows a socket or the event
loop; files are opened to read the configuration and to see that the certificates can be read.

How a file becomes a `Config`:

1. PyYAML parses the text to events, and `_Composer` makes nodes of them. Scalars stay the
   text that was written: what is a number or a text is decided by the key, not by YAML, so
   a password ``0123`` and an address ``10:30`` are not turned into integers. (PyYAML's own
   composer is not used: the compiled one recurses without a limit.)
2. `_walk` descends along the keys of `SCHEMA` and nothing else, so an alias is never
   expanded more often than the schema has keys.
3. Environment variables replace what the file says; then each key's `Key.parse` checks its
   value, and `_build` combines what depends on one another.

Every error is one `ConfigError` of one line. It never holds a password or a cookie.
"""

import difflib
import ipaddress
import logging
import math
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

import yaml

from skyfast.catalogue import DEFAULT_LABELS, DEFAULT_METRICS
from skyfast.selection import Condition as Condition
from skyfast.selection import Fold as Fold
from skyfast.selection import LabelChoice as LabelChoice
from skyfast.selection import Mask as Mask
from skyfast.selection import MetricChoice as MetricChoice
from skyfast.selection import Network as Network
from skyfast.selection import Rewrite as Rewrite
from skyfast.selection import Rule as Rule
from skyfast.selection import ViewChoice as ViewChoice

T = TypeVar("T")

MAX_FILE_BYTES = 1 << 20
"""A longer file is refused: this is a security limit."""

MAX_DEPTH = 64
"""Deeper nesting is refused: this is a security limit."""

MAX_ROWS = 1 << 30
"""The largest ``max_connections`` and ``max_flows``: a row's number has 31 bits."""

MAX_MESSAGE_BYTES = 1 << 30
"""The largest ``max_message_bytes``."""

MAX_SOCKETS = 65_536
"""The largest number of HTTP connections or of simultaneous scrapes."""

MAX_SECONDS = 31_536_000
"""The longest duration: a year."""

MAX_SHOWN = 80
"""Characters of a value that an error message shows."""

ANALYZER_PORT = 8082
"""Where an analyzer listens unless its address says otherwise."""

SUBSCRIBER_PATH = "/ws/subscriber/flow"
"""The path of an analyzer's flow subscription."""

SCHEMES = ("ws", "wss", "dns+ws", "dns+wss")
"""Schemes of a subscription; those with ``dns+`` stand for all addresses of a name."""

TAGS = ("internal", "ingress", "egress", "other")
"""What the classification can call a flow."""

LEVELS = {
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "NOTICE": "INFO",
    "WARNING": "WARNING",
    "ERROR": "ERROR",
    "CRITICAL": "CRITICAL",
}
"""Skydive's log levels, and what the standard library calls them."""

HIDDEN = "<hidden>"
"""Stands for a secret wherever the configuration is shown."""


class ConfigError(Exception):
    """The configuration cannot be used; ``str()`` is one line that says where and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The cluster user. An empty ``username`` means no authentication."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """Paths of PEM files; empty where not set. The two of the client come together."""

    client_cert: str
    client_key: str
    ca_cert: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscriber:
    """Who is subscribed to, and how.

    ``endpoints`` are URLs with a scheme of `SCHEMES`, an explicit port and a path, in
    order, each analyzer once. They can carry ``user:password@``, percent-encoded: show them
    through `redact_url`. ``capture_id`` is empty for the flows of all captures.
    """

    endpoints: tuple[str, ...] = field(repr=False)
    capture_id: str
    max_message_bytes: int
    silence_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Classify:
    """The networks that count as inside the cluster."""

    cluster_net_masks: tuple[Network, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which flows are dropped: those with ``excluded_tags``, of `TAGS`, and by rules.

    A flow is dropped by the first of ``drop`` that holds for it, and, where there is ``keep``, if
    none of those does.
    """

    excluded_tags: frozenset[str]
    keep: tuple[Rule, ...]
    drop: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """What is exported, the table's bounds and times, and where the page is served.

    ``port`` 0 is any free port, ``listen_address`` empty all addresses of both IP versions,
    and ``interfaces_interval_s`` 0 switches the interfaces off. ``rewrites`` are by label;
    ``naming`` is that of the main view's families.
    """

    port: int
    listen_address: str
    connection_timeout_s: float
    connection_grace_s: float
    max_connections: int
    max_flows: int
    interfaces_interval_s: float
    main: ViewChoice
    views: tuple[ViewChoice, ...]
    include_icmp: bool
    rewrites: Mapping[str, Rewrite]
    overflow: Literal["drop", "other"]
    deduplicate: Literal["none", "first"]
    naming: Literal["compatible", "standard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Web:
    """The bounds of the HTTP server."""

    max_connections: int
    max_scrapes: int
    max_scrapes_per_address: int
    scrape_timeout_s: float
    enable_reload: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """``level`` is a name of the standard library's `logging`."""

    level: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something noticed while reading, to be logged once. ``level`` is one of `logging`."""

    level: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What skyfast runs with.

    ``source`` is the file's path, or ``-``. ``analyzers`` are the listed ones as
    ``host:port``; they are empty where only URLs are given. Whom to talk to is said by
    ``subscriber.endpoints``.
    """

    source: str
    host_id: str
    analyzers: tuple[str, ...]
    credentials: Credentials
    tls: TLS
    cookies: Mapping[str, str] = field(repr=False)
    subscriber: Subscriber
    classify: Classify
    filter: Filter
    store: Store
    web: Web
    logging: Logging
    notes: tuple[Note, ...]


def load(path: str, environ: Mapping[str, str]) -> Config:
    """Read the file at ``path``, or standard input where that is ``-``.

    Raises:
        ConfigError: The file cannot be read, or what it or the environment says is wrong.

    """
    return parse(_read(path), environ, source=path)


def parse(text: str, environ: Mapping[str, str], *, source: str) -> Config:
    """Make a `Config` of the YAML ``text``, which came from ``source``.

    Raises:
        ConfigError: What the text or the environment says is wrong.

    """
    file = _file_name(source)
    found, strangers = _walk(_Composer(text, file=file).document(), file=file)
    notes = _judge(strangers, file=file)
    for key in SCHEMA.values():
        if key.env and environ.get(key.env):
            found[key.path] = _Found(f"environment variable {key.env}", environ[key.env])
    return _build(_Settings(found), source=source, notes=notes)


def dump(config: Config) -> str:
    """Return the effective configuration as YAML, in the file's own structure.

    It can be loaded again, and then means the same but for the secrets, which are hidden.
    """
    tree: dict[str, Any] = {}
    for key in SCHEMA.values():
        if key.show is None:
            continue
        *sections, name = key.path.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = key.show(config)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def redact_url(url: str) -> str:
    """Return ``url`` without its user and password. It need not be a valid URL."""
    before, at, after = url.rpartition("@")
    if not at:
        return url
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", before)
    return (scheme.group() if scheme else "") + after


# What a file holds ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Node:
    """A YAML value and its line, counted from 1: in a mapping, that of its key."""

    value: "Value"
    line: int


Value: TypeAlias = str | bool | list[_Node] | dict[str, _Node] | None
"""A YAML value: what looks like a number or a date stays text; mappings keep their keys' case."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NOT_YAML = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {
    spelling: value
    for value, words in ((True, ("true", "yes", "on")), (False, ("false", "no", "off")))
    for word in words
    for spelling in (word, word.capitalize(), word.upper())
}
_TAGS = {None, "!", *(f"tag:yaml.org,2002:{n}" for n in ("str", "int", "float", "seq", "map"))}


def _file_name(source: str) -> str:
    """Name the source in a message; a path can hold a line break."""
    if source == "-":
        return "standard input"
    return source if source and source.isprintable() else repr(source)


def _read(path: str) -> str:
    try:
        if path == "-":
            with open(0, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{_file_name(path)}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a null character in the path
        raise ConfigError(f"{_file_name(path)}: cannot be read: {error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{_file_name(path)}: is longer than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{_file_name(path)}: line {line}: is not UTF-8 (byte 0x{data[error.start]:02x})"
        ) from None


class _Composer:
    """Makes nodes of one document's events.

    An alias is the node that it names, not a copy of it, and can name only what is complete,
    so nodes form no cycles.
    """

    def __init__(self, text: str, *, file: str) -> None:
        self._text = text
        self._file = file
        self._anchors: dict[str, _Node] = {}

    def document(self) -> dict[str, _Node]:
        """Return the top level's mapping, empty for an empty file."""
        if match := _NOT_YAML.search(self._text):
            line = self._text.count("\n", 0, match.start()) + 1
            column = match.start() - self._text.rfind("\n", 0, match.start())
            raise ConfigError(
                f"{self._file}: line {line}, column {column}: not valid YAML:"
                f" the character U+{ord(match.group()):04X} is not allowed"
            )
        try:
            node = self._root(yaml.parse(self._text, Loader=_Loader))
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            # The parser in Python lets some errors of number conversions through.
            raise ConfigError(f"{self._file}: {_syntax_error(error)}") from None
        if node is None or node.value is None:
            return {}
        if not isinstance(node.value, dict):
            raise ConfigError(
                f"{self._file}: line {node.line}: {_kind(node.value)} is not a mapping of keys"
            )
        return node.value

    def _error(self, event: Any, path: str, text: str) -> ConfigError:
        return ConfigError(f"{self._file}: line {_line(event)}: {_shown_path(path)}: {text}")

    def _root(self, events: Iterator[Any]) -> _Node | None:
        root = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise self._error(event, "", "a second document begins here")
            if isinstance(event, yaml.NodeEvent):
                root = self._node(event, events, "", 1)
        return root

    def _node(self, event: Any, events: Iterator[Any], path: str, depth: int) -> _Node:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                # The name is not shown: an unquoted password can begin with an asterisk.
                raise self._error(event, path, "this YAML alias (*) names nothing above it")
            return self._anchors[event.anchor]
        if event.tag not in _TAGS:
            # Nor is the tag: an unquoted password can begin with an exclamation mark.
            raise self._error(event, path, "this YAML tag (!) is unknown")
        if depth > MAX_DEPTH:
            raise self._error(event, path, f"is nested deeper than {MAX_DEPTH} levels")
        value: Value
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(events, path, depth)
        else:
            value = self._mapping(events, path, depth)
        node = _Node(value, _line(event))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _sequence(self, events: Iterator[Any], path: str, depth: int) -> list[_Node]:
        nodes = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            nodes.append(self._node(event, events, path, depth + 1))
        return nodes

    def _mapping(self, events: Iterator[Any], path: str, depth: int) -> dict[str, _Node]:
        nodes: dict[str, _Node] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._error(event, path, "a key must be text")
            key = event.value
            below = _join(path, key.lower())
            if key == "<<" and event.implicit[0]:
                raise self._error(event, path, "YAML's merge keys (<<) are not supported")
            if first := lines.get(key.lower()):
                raise self._error(event, below, f"is already set in line {first}")
            lines[key.lower()] = _line(event)
            value = self._node(next(events), events, below, depth + 1).value
            nodes[key] = _Node(value, _line(event))
        return nodes


def _scalar(event: Any) -> str | bool | None:
    text: str = event.value
    if event.implicit[0] and event.tag is None:  # neither quoted nor tagged
        if text in _NULLS:
            return None
        if text in _BOOLS:
            return _BOOLS[text]
    return text


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _syntax_error(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = getattr(error, "problem", None) or "it cannot be parsed"
    # The parser in Python quotes the handle, and an unquoted password can look like one.
    return place + "not valid YAML: " + re.sub(r"(undefined tag handle).*", r"\1", problem)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# What a key accepts --------------------------------------------------------------------------


class _Invalid(Exception):  # noqa: N818 - never leaves this module
    """A value that its key does not accept: what is wrong, said of the value that is shown."""

    def __init__(self, problem: str, value: Value, *, name: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.value = value
        self.name = name


def _kind(value: Value) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "an empty entry" if value is None else "a single value"


def _shown(value: Value) -> str:
    """Show a value in a message: on one line, not too long, and without a URL's password."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return _kind(value)
    text = redact_url(value)
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")


def _shown_path(path: str) -> str:
    text = redact_url(path)
    if len(text) > MAX_SHOWN:
        text = text[:MAX_SHOWN] + "…"
    return (text if text.isprintable() else repr(text)) or "top level"


def _text(value: Value) -> str:
    if isinstance(value, bool):
        raise _Invalid("is not text; put it in quotes if it is meant as such", value)
    if not isinstance(value, str):
        raise _Invalid("is not text", value)
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", value):
        raise _Invalid("holds a control character", value)
    return value


def _number(value: Value) -> float:
    """Return what lies in no range, NaN, for everything that is not a number."""
    if not isinstance(value, str) or not value.isascii():
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def _whole(least: int, most: int) -> Callable[[Value], int]:
    def parse(value: Value) -> int:
        number = _number(value)
        if not (least <= number <= most and number.is_integer()):
            raise _Invalid(f"is not a whole number from {least} to {most}", value)
        return int(number)

    return parse


def _seconds(*, zero: bool) -> Callable[[Value], float]:
    allowed = "from 0" if zero else "above 0 and"

    def parse(value: Value) -> float:
        number = _number(value)
        if not (0 <= number <= MAX_SECONDS) or (number == 0 and not zero):
            raise _Invalid(f"is not a number of seconds {allowed} up to {MAX_SECONDS}", value)
        return number

    return parse


def _only(name: str) -> Callable[[Value], str]:
    """Accept the one type of a phase of the pipeline that skyfast has."""

    def parse(value: Value) -> str:
        if _text(value) != name:
            raise _Invalid(f"is not supported: skyfast has only {name}", value)
        return name

    return parse


def _tag(text: str) -> str:
    if text not in TAGS:
        near = difflib.get_close_matches(text.lower(), TAGS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise _Invalid(f"is not one of {', '.join(TAGS)}{hint}", text)
    return text


def _level(value: Value) -> str:
    text = _text(value)
    if text.upper() not in LEVELS:
        raise _Invalid(f"is not one of {', '.join(LEVELS)}", text)
    return LEVELS[text.upper()]


def _list_of(item: Callable[[str], T]) -> Callable[[Value], tuple[T, ...]]:
    """Accept a list, or a text that is split at spaces and commas."""

    def parse(value: Value) -> tuple[T, ...]:
        if isinstance(value, list):
            return tuple(item(_text(node.value)) for node in value)
        if not isinstance(value, str):
            raise _Invalid("is not a list", value)
        try:
            return tuple(item(_text(text)) for text in re.split(r"[\s,]+", value) if text)
        except _Invalid as bad:
            # A password with a comma was split too: only the whole text can be redacted.
            raise _Invalid(bad.problem, value if "@" in value else bad.value) from None

    return parse


def _cookies(value: Value) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise _Invalid("is not a mapping of cookies' names to values", value)
    return MappingProxyType({name: _cookie(name, node.value) for name, node in value.items()})


def _cookie(name: str, value: Value) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        raise _Invalid("has a name with characters that a cookie's cannot have", value, name=name)
    try:
        text = "" if value is None else _text(value)
    except _Invalid as bad:
        raise _Invalid(bad.problem, value, name=name) from None
    if ";" in text:
        raise _Invalid("holds a semicolon", value, name=name)
    return text


def _readable_file(value: Value) -> str:
    text = _text(value)
    try:
        if not Path(text).is_file():
            raise _Invalid("is not an existing file", text)
        Path(text).open("rb").close()
    except OSError as error:
        raise _Invalid(f"cannot be read: {error.strerror}", text) from None
    return text


def _network(text: str) -> Network:
    """Accept what Go's ``net.ParseCIDR`` does: an address with host bits, but no netmask."""
    try:
        if re.search(r"/[0-9]+$", text) and "%" not in text:
            return ipaddress.ip_network(text, strict=False)
    except ValueError:
        pass
    raise _Invalid("is not a network in CIDR notation such as 10.0.0.0/8 or fd00::/8", text)


def _host(text: str) -> str:
    """Return a host name in lower case or an IP address in its usual form, without brackets.

    Raises:
        ValueError: It is neither.

    """
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        if not re.fullmatch(r"[\w.-]+", text) or re.fullmatch(r"[0-9.]+", text):
            raise
    text.encode("idna")  # the lengths of a name's parts
    return text.lower()


def _listen_address(value: Value) -> str:
    text = _text(value)
    bracketed = re.fullmatch(r"\[(.*:.*)\]", text)
    try:
        return _host(bracketed.group(1) if bracketed else text)
    except ValueError:
        raise _Invalid(
            "is not an IP address or host name (leave it empty for all addresses)", text
        ) from None


@dataclass(frozen=True, slots=True)
class _Address:
    """An analyzer's host, as `_host` returns it, and port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def identity(self) -> tuple[str, int]:
        """Two addresses are one analyzer's where this is equal. No name is looked up."""
        local = self.host in ("localhost", "127.0.0.1", "::1")
        return ("localhost" if local else self.host, self.port)


def _analyzer(text: str) -> _Address:
    """Accept ``host``, ``host:port``, ``[v6]``, ``[v6]:port``, ``v6``, ``:port`` and ``port``.

    The last two mean ``localhost``, as in Skydive's ``AddressFromString``.
    """
    try:
        return _Address(str(ipaddress.IPv6Address(text)), ANALYZER_PORT)
    except ValueError:
        pass
    if re.fullmatch(r"[0-9]+", text):
        text = f":{text}"
    match = re.fullmatch(r"(?:\[(.*:.*)\]|([^\[\]:]*))(?::([0-9]{1,5}))?", text)
    try:
        if match and text and 1 <= int(match[3] or ANALYZER_PORT) <= 65_535:
            host = _host(match[1] or match[2] or "localhost")
            return _Address(host, int(match[3] or ANALYZER_PORT))
    except ValueError:
        pass
    raise _Invalid("is not an analyzer's address such as host:8082 or [2001:db8::1]:8082", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Url:
    """A subscription's URL. ``port`` is None where it was not written."""

    scheme: str
    userinfo: str = ""
    host: str
    port: int | None
    resource: str = SUBSCRIBER_PATH

    def address(self) -> _Address:
        """Return where it leads to, by the URL's own default ports."""
        return _Address(self.host, self.port or (443 if self.scheme.endswith("wss") else 80))

    def __str__(self) -> str:
        at = "@" if self.userinfo else ""
        return f"{self.scheme}://{self.userinfo}{at}{self.address()}{self.resource}"


_PORT_THAT_IS_NONE = re.compile(r"(://[^/?#@]*:)[^/?#@:]*[^/?#@:0-9][^/?#@:]*(?=[/?#]|$)")


def _url(text: str) -> _Url:
    if re.search(r"\s", text):
        raise _Invalid("holds a space", text)
    scheme, separator, _ = text.partition("://")
    if not separator or scheme.lower() not in SCHEMES:
        begins = ", ".join(f"{name}://" for name in SCHEMES)
        raise _Invalid(f"does not begin with one of {begins}", text)
    try:
        parts = urlsplit(text)
        host = _host(parts.hostname or "")
        port = parts.port
        unquote(parts.netloc, errors="strict")
    except ValueError:
        # Without its "@host", "user:password" reads like a host and a port that is no number.
        shown = _PORT_THAT_IS_NONE.sub(r"\1<hidden>", text)
        raise _Invalid("is not a valid URL: its host, port or user cannot be read", shown) from None
    if port == 0:
        raise _Invalid("has a port that is not from 1 to 65535", text)
    if "#" in text:
        raise _Invalid("has a fragment (#); write %23 in a password", text)
    if "@" in parts.path + parts.query:
        # "user:80/x@host" is a valid URL of the host "user" that would be shown with "x".
        raise _Invalid("has an @ after the host; write %40, %2F and %3F in a password", text)
    userinfo = parts.netloc.rpartition("@")[0]
    return _Url(
        scheme=scheme.lower(),
        userinfo=userinfo if not userinfo or ":" in userinfo else f"{userinfo}:",
        host=host,
        port=port,
        resource=(parts.path or SUBSCRIBER_PATH) + (f"?{parts.query}" if parts.query else ""),
    )


def _url_of_value(value: Value) -> _Url:
    return _url(_text(value))


# What can be set -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Key(Generic[T]):
    """A key of the configuration file.

    ``parse`` turns what was written into a value or raises `_Invalid`. ``default`` counts where
    the key is missing, null or empty. ``show`` returns what `dump` writes, with secrets hidden;
    a key without it is expressed by others. ``secret`` keeps the value out of messages.
    ``env`` is the environment variable that overrides the key; mappings have none.
    """

    path: str
    parse: Callable[[Value], T]
    default: T
    show: Callable[[Config], object] | None
    secret: bool
    env: str


SCHEMA: dict[str, Key[Any]] = {}
"""Everything that can be set, by path, in the order in which it is shown."""


def _key(
    path: str,
    parse: Callable[[Value], T],
    default: T,
    show: Callable[[Config], object] | None,
    *,
    secret: bool = False,
) -> Key[T]:
    env = "" if parse is _cookies else "SKYDIVE_" + re.sub(r"[.-]", "_", path).upper()
    key = Key(path=path, parse=parse, default=default, show=show, secret=secret, env=env)
    SCHEMA[path] = key
    return key


def _hidden(secret: str) -> str:
    return HIDDEN if secret else ""


def _shown_endpoint(url: str) -> str:
    """Hide the password, and only that, in an endpoint."""
    return re.sub(r"(//[^:@/]*:)[^/]+@", rf"\1{HIDDEN}@", url)


def _short(seconds: float) -> float:
    return int(seconds) if seconds.is_integer() else seconds


HOST_ID = _key("host_id", _text, "", lambda c: c.host_id)
ANALYZERS: Key[tuple[_Address, ...]] = _key(
    "analyzers", _list_of(_analyzer), (), lambda c: list(c.analyzers)
)

USERNAME = _key("analyzer.auth.cluster.username", _text, "", lambda c: c.credentials.username)
PASSWORD = _key(
    "analyzer.auth.cluster.password",
    _text,
    "",
    lambda c: _hidden(c.credentials.password),
    secret=True,
)
CLIENT_CERT = _key("tls.client_cert", _readable_file, "", lambda c: c.tls.client_cert)
CLIENT_KEY = _key("tls.client_key", _readable_file, "", lambda c: c.tls.client_key)
CA_CERT = _key("tls.ca_cert", _readable_file, "", lambda c: c.tls.ca_cert)
COOKIE: Key[Mapping[str, str]] = _key(
    "http.cookie",
    _cookies,
    MappingProxyType({}),
    lambda c: {name: _hidden(value) for name, value in c.cookies.items()},
    secret=True,
)
LEVEL = _key("logging.level", _level, "INFO", lambda c: c.logging.level)

URL: Key[_Url | None] = _key("pipeline.subscriber.url", _url_of_value, None, None)
URLS: Key[tuple[_Url, ...]] = _key(
    "pipeline.subscriber.urls",
    _list_of(_url),
    (),
    lambda c: [_shown_endpoint(url) for url in c.subscriber.endpoints],
)
CAPTURE_ID = _key("pipeline.subscriber.capture_id", _text, "", lambda c: c.subscriber.capture_id)
MESSAGE_BYTES = _key(
    "pipeline.subscriber.max_message_bytes",
    _whole(1, MAX_MESSAGE_BYTES),
    64 << 20,
    lambda c: c.subscriber.max_message_bytes,
)
SILENCE_TIMEOUT = _key(
    "pipeline.subscriber.silence_timeout",
    _seconds(zero=False),
    45.0,
    lambda c: _short(c.subscriber.silence_timeout_s),
)

CLASSIFY_TYPE = _key("pipeline.classify.type", _only("subnet"), "subnet", lambda _: "subnet")
NET_MASKS: Key[tuple[Network, ...]] = _key(
    "pipeline.classify.cluster_net_masks",
    _list_of(_network),
    (),
    lambda c: [str(network) for network in c.classify.cluster_net_masks],
)
FILTER_TYPE = _key("pipeline.filter.type", _only("subnet"), "subnet", lambda _: "subnet")
EXCLUDED_TAGS: Key[tuple[str, ...]] = _key(
    "pipeline.filter.excluded_tags",
    _list_of(_tag),
    (),
    lambda c: [tag for tag in TAGS if tag in c.filter.excluded_tags],
)
TRANSFORM_TYPE = _key("pipeline.transform.type", _only("none"), "none", lambda _: "none")
STORE_TYPE = _key(
    "pipeline.store.type", _only("prom_sky_con"), "prom_sky_con", lambda _: "prom_sky_con"
)

PORT = _key("pipeline.store.prom_sky_con.port", _whole(0, 65_535), 9100, lambda c: c.store.port)
LISTEN_ADDRESS = _key(
    "pipeline.store.prom_sky_con.listen_address",
    _listen_address,
    "",
    lambda c: c.store.listen_address,
)
CONNECTION_TIMEOUT = _key(
    "pipeline.store.prom_sky_con.connection_timeout",
    _seconds(zero=True),
    60.0,
    lambda c: _short(c.store.connection_timeout_s),
)
CONNECTION_GRACE = _key(
    "pipeline.store.prom_sky_con.connection_grace",
    _seconds(zero=True),
    15.0,
    lambda c: _short(c.store.connection_grace_s),
)
MAX_CONNECTIONS = _key(
    "pipeline.store.prom_sky_con.max_connections",
    _whole(1, MAX_ROWS),
    1_000_000,
    lambda c: c.store.max_connections,
)
MAX_FLOWS: Key[int | None] = _key(
    "pipeline.store.prom_sky_con.max_flows", _whole(1, MAX_ROWS), None, lambda c: c.store.max_flows
)
INTERFACES_INTERVAL = _key(
    "pipeline.store.prom_sky_con.interfaces_interval",
    _seconds(zero=True),
    20.0,
    lambda c: _short(c.store.interfaces_interval_s),
)

WEB_CONNECTIONS = _key(
    "web.max_connections", _whole(1, MAX_SOCKETS), 256, lambda c: c.web.max_connections
)
WEB_SCRAPES = _key("web.max_scrapes", _whole(1, MAX_SOCKETS), 8, lambda c: c.web.max_scrapes)
WEB_SCRAPES_PER_ADDRESS = _key(
    "web.max_scrapes_per_address",
    _whole(1, MAX_SOCKETS),
    4,
    lambda c: c.web.max_scrapes_per_address,
)
WEB_SCRAPE_TIMEOUT = _key(
    "web.scrape_timeout", _seconds(zero=False), 60.0, lambda c: _short(c.web.scrape_timeout_s)
)

_SECTIONS = {
    path.rsplit(".", depth)[0]: None  # a dict, to keep the order
    for path in SCHEMA
    for depth in range(path.count("."), 0, -1)
}
_NAMES = (*_SECTIONS, *SCHEMA)

_STRICT = ("pipeline.", "web.")
"""Where an unknown key is an error. Elsewhere the file is Skydive's as well."""

_FOREIGN = (
    "pipeline.mangle.",
    "pipeline.encode.",
    "pipeline.compress.",
    "pipeline.storeheader.",
    "pipeline.account.",
    "pipeline.write.",
    "pipeline.store.buffered.",
    "pipeline.store.direct.",
)
"""Parts of the pipeline that the Go connector's core knows and that have no use here."""


# From the file's keys to the configuration ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """A value that is set, and where."""

    origin: str
    value: Value


def _walk(nodes: dict[str, _Node], *, file: str) -> tuple[dict[str, _Found], dict[str, str]]:
    """Return the known keys' values and the unknown keys' places, both by path.

    A key with dots is a path, as in viper: ``pipeline.store: {…}`` works.
    """
    found: dict[str, _Found] = {}
    strangers: dict[str, str] = {}

    def descend(nodes: dict[str, _Node], parent: str) -> None:
        for name, node in nodes.items():
            path = _join(parent, name.lower())
            origin = f"{file}: line {node.line}"
            if path in found:
                first = found[path].origin.removeprefix(f"{file}: ")
                raise ConfigError(f"{origin}: {path}: is already set in {first}")
            if path in SCHEMA:
                found[path] = _Found(origin, node.value)
            elif path not in _SECTIONS:
                strangers[path] = origin
            elif isinstance(node.value, dict):
                descend(node.value, path)
            elif node.value is not None:
                # The value is not shown: "password:secret" lacks a space and is one text.
                raise ConfigError(f"{origin}: {path}: {_kind(node.value)} is not a mapping of keys")

    descend(nodes, "")
    return found, strangers


def _judge(strangers: Mapping[str, str], *, file: str) -> list[Note]:
    """Refuse unknown keys where a file is skyfast's own, and note them elsewhere."""
    notes = []
    ignored = []
    for path, origin in strangers.items():
        shown = _shown_path(path)
        if f"{path}.".startswith(_FOREIGN):
            text = f"{origin}: {shown}: is ignored: skyfast has nothing of that kind"
            notes.append(Note(level=logging.WARNING, text=text))
        elif path.startswith(_STRICT):
            raise ConfigError(f"{origin}: {shown}: is an unknown key; {_advice(path)}")
        elif near := _sibling(path, cutoff=0.8):
            text = f"{origin}: {shown}: is ignored; did you mean {near}?"
            notes.append(Note(level=logging.WARNING, text=text))
        else:
            ignored.append(shown)
    if ignored:
        text = f"{file}: ignored, for they mean nothing to skyfast: {', '.join(ignored)}"
        notes.append(Note(level=logging.DEBUG, text=text))
    return notes


def _siblings(path: str) -> list[str]:
    """Return the names that are known beside ``path``."""
    parent = path.rpartition(".")[0]
    return [n.rpartition(".")[2] for n in _NAMES if n.rpartition(".")[0] == parent]


def _sibling(path: str, *, cutoff: float) -> str | None:
    """Return the known path beside ``path`` with the most similar name."""
    parent, _, name = path.rpartition(".")
    near = difflib.get_close_matches(name, _siblings(path), 1, cutoff)
    return _join(parent, near[0]) if near else None


def _advice(path: str) -> str:
    """Suggest a key beside the unknown one, or else one of the same name in its section."""
    if near := _sibling(path, cutoff=0.6):
        return f"did you mean {near}?"
    section, _, name = path.rpartition(".")
    top = section.partition(".")[0]
    elsewhere = {n.rpartition(".")[2]: n for n in _NAMES if n.startswith(f"{top}.")}
    if similar := difflib.get_close_matches(name, elsewhere, 1, 0.8):
        return f"did you mean {elsewhere[similar[0]]}?"
    return f"known are {', '.join(_siblings(path) or _siblings(f'{top}.'))}"


class _Settings:
    """The keys' values, each checked by itself."""

    def __init__(self, found: Mapping[str, _Found]) -> None:
        self._found = found
        self._values = {path: _value(key, found.get(path)) for path, key in SCHEMA.items()}

    def __call__(self, key: Key[T]) -> T:
        value: T = self._values[key.path]
        return value

    def error(self, key: Key[Any], problem: str) -> ConfigError:
        """Return an error of a value that is wrong only beside others."""
        found = self._found[key.path]
        return ConfigError(f"{found.origin}: {key.path}: {_shown(found.value)} {problem}")


def _value(key: Key[T], found: _Found | None) -> T:
    if found is None or found.value in (None, "", []):
        return key.default
    try:
        return key.parse(found.value)
    except _Invalid as bad:
        path = _shown_path(_join(key.path, bad.name) if bad.name else key.path)
        scalar = isinstance(bad.value, str | bool)
        shown = HIDDEN if key.secret and scalar else _shown(bad.value)
        raise ConfigError(f"{found.origin}: {path}: {shown} {bad.problem}") from None


def _tls(get: _Settings) -> TLS:
    tls = TLS(client_cert=get(CLIENT_CERT), client_key=get(CLIENT_KEY), ca_cert=get(CA_CERT))
    if tls.client_cert and not tls.client_key:
        raise get.error(CLIENT_CERT, f"needs {CLIENT_KEY.path} beside it")
    if tls.client_key and not tls.client_cert:
        raise get.error(CLIENT_KEY, f"needs {CLIENT_CERT.path} beside it")
    return tls


def _whom(
    get: _Settings, notes: list[Note], *, secure: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the analyzers and the endpoints; add what is worth knowing to ``notes``."""
    analyzers, url, urls = get(ANALYZERS), get(URL), get(URLS)
    if not analyzers and url is None and not urls:
        analyzers = (_Address("127.0.0.1", ANALYZER_PORT),)
    if not urls:
        urls = _urls(url, analyzers, secure=secure)
        if len(analyzers) > 1 and len(urls) == 1:
            notes.append(
                Note(
                    level=logging.WARNING,
                    text=f"{URL.path} names none of the {len(analyzers)} {ANALYZERS.path}, so it"
                    f" alone is subscribed to: {redact_url(str(urls[0]))}",
                )
            )
    endpoints: dict[object, str] = {}
    for each in urls:
        # A name and its addresses cannot be compared, for no name is looked up here.
        identity = (each.scheme.startswith("dns+"), each.address().identity())
        if identity in endpoints:
            text = f"{each.address()} is named more than once; it is subscribed to once"
            notes.append(Note(level=logging.WARNING, text=text))
        endpoints.setdefault(identity, str(each))
    return tuple(dict.fromkeys(map(str, analyzers))), tuple(endpoints.values())


def _urls(url: _Url | None, analyzers: tuple[_Address, ...], *, secure: bool) -> tuple[_Url, ...]:
    """Return a URL for every analyzer where ``url`` is missing or one of them, else ``url``.

    Skydive makes ``wss`` URLs where a client certificate is configured.
    """
    if url is None:
        first = analyzers[0]
        url = _Url(scheme="wss" if secure else "ws", host=first.host, port=first.port)
    own = _Address(url.host, url.port or ANALYZER_PORT).identity()
    if all(analyzer.identity() != own for analyzer in analyzers):
        return (url,)
    return tuple(
        # The URL's own host keeps its spelling, which a certificate may name.
        replace(url, host=url.host if each.identity() == own else each.host, port=each.port)
        for each in analyzers
    )


def _build(get: _Settings, *, source: str, notes: list[Note]) -> Config:
    tls = _tls(get)
    analyzers, endpoints = _whom(get, notes, secure=bool(tls.client_cert))
    excluded_tags = get(EXCLUDED_TAGS)
    max_connections = get(MAX_CONNECTIONS)
    return Config(
        source=source,
        host_id=get(HOST_ID) or socket.gethostname(),
        analyzers=analyzers,
        credentials=Credentials(username=get(USERNAME), password=get(PASSWORD)),
        tls=tls,
        cookies=get(COOKIE),
        subscriber=Subscriber(
            endpoints=endpoints,
            capture_id=get(CAPTURE_ID),
            max_message_bytes=get(MESSAGE_BYTES),
            silence_timeout_s=get(SILENCE_TIMEOUT),
        ),
        classify=Classify(cluster_net_masks=get(NET_MASKS)),
        filter=Filter(excluded_tags=frozenset(excluded_tags), keep=(), drop=()),
        store=Store(
            port=get(PORT),
            listen_address=get(LISTEN_ADDRESS),
            connection_timeout_s=get(CONNECTION_TIMEOUT) or CONNECTION_TIMEOUT.default,
            connection_grace_s=get(CONNECTION_GRACE),
            max_connections=max_connections,
            max_flows=get(MAX_FLOWS) or min(4 * max_connections, MAX_ROWS),
            interfaces_interval_s=get(INTERFACES_INTERVAL),
            main=ViewChoice(
                prefix="",
                labels=tuple(LabelChoice(name=name) for name in DEFAULT_LABELS),
                metrics=tuple(MetricChoice(name=name) for name in DEFAULT_METRICS),
                direction="split",
                timeout_s=0.0,
            ),
            views=(
                ViewChoice(
                    prefix="skydive_traffic",
                    labels=tuple(
                        LabelChoice(name=name) for name in ("node_tid", "protocol", "direction")
                    ),
                    metrics=(MetricChoice(name="bytes"), MetricChoice(name="packets")),
                    direction="split",
                    timeout_s=3600.0,
                ),
            ),
            include_icmp=False,
            rewrites=MappingProxyType({}),
            overflow="drop",
            deduplicate="none",
            naming="compatible",
        ),
        web=Web(
            max_connections=get(WEB_CONNECTIONS),
            max_scrapes=get(WEB_SCRAPES),
            max_scrapes_per_address=get(WEB_SCRAPES_PER_ADDRESS),
            scrape_timeout_s=get(WEB_SCRAPE_TIMEOUT),
            enable_reload=False,
        ),
        logging=Logging(level=get(LEVEL)),
        notes=tuple(notes),
    )
