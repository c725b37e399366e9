"""The configuration: a file and the environment become one frozen `Config`.

Whatever can be set has one entry in `SCHEMA`, and nowhere else: its path in the file, how
its text becomes a value, its default, and where `dump` finds it. The names of the
environment variables, the suggestions for misspelt keys and the tests of
``docs/configuration.md`` come from there too. Nothing here knows a socket or the event
loop; files are opened to read the configuration and to see that the certificates can be read.

How a file becomes a `Config`:

1. `skyfast.config.yaml_nodes` makes nodes of the text. Scalars stay the text that was written.
2. `_walk` descends along the keys of `SCHEMA` and nothing else, so an alias is never
   expanded more often than the schema has keys.
3. Environment variables replace what the file says; then each key's `Key.parse`, made in
   `skyfast.config.parsers` and `skyfast.config.labels`, checks its value, and `_build` combines
   what depends on one another.

All errors are one `ConfigError`, with a line each. It never holds a password or a cookie.
"""

import logging
import math
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, TypeVar

import yaml

from skyfast.config import hints, labels
from skyfast.config.model import (
    TLS,
    Classify,
    Config,
    Credentials,
    Logging,
    Note,
    Store,
    Subscriber,
    Web,
)
from skyfast.config.parsers import (
    ANALYZER_PORT,
    TAGS,
    Address,
    Invalid,
    Url,
    list_of,
    one_of,
    only,
    seconds,
    to_address,
    to_boolean,
    to_cookies,
    to_level,
    to_listen_address,
    to_network,
    to_readable_file,
    to_text,
    to_url,
    whole,
)
from skyfast.config.yaml_nodes import (
    HIDDEN,
    ConfigError,
    Node,
    Value,
    compose,
    describe,
    describe_path,
    file_name,
    join,
    kind_of,
    read_file,
    redact_url,
)
from skyfast.flows.catalog import DEFAULT_LABELS, DEFAULT_METRICS, DIRECTION
from skyfast.flows.selection import (
    Filter,
    LabelChoice,
    MetricChoice,
    Network,
    Rewrite,
    Rule,
    ViewChoice,
)

T = TypeVar("T")

MAX_ROWS = 1 << 27
"""The largest ``max_connections`` and ``max_flows``: see ``_table.pyx``."""

MAX_MESSAGE_BYTES = 1 << 30
"""The largest ``max_message_bytes``."""

MAX_SOCKETS = 65_536
"""The largest number of HTTP connections or of simultaneous scrapes."""


def load(path: str, environ: Mapping[str, str]) -> Config:
    """Read the file at ``path``, or standard input where that is ``-``.

    Raises:
        ConfigError: The file cannot be read, or what it or the environment says is wrong.

    """
    return parse(read_file(path), environ, source=path)


def parse(text: str, environ: Mapping[str, str], *, source: str) -> Config:
    """Make a `Config` of the YAML ``text``, which came from ``source``.

    Raises:
        ConfigError: What the text or the environment says is wrong.

    """
    file = file_name(source)
    problems = _Problems()
    found, unknown = _walk(compose(text, file=file), file=file, problems=problems)
    notes = _check_unknown(unknown, file=file, none_known=not found, problems=problems)
    notes += _check_variables(environ)
    for key in SCHEMA.values():
        if key.env and environ.get(key.env):
            origin = f"environment variable {key.env}"
            found[key.path] = _Found(origin, None, environ[key.env])
    settings = _Settings(found, problems)
    problems.check()
    return _build(settings, source=source, notes=notes, problems=problems)


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


def changed(old: Config, new: Config) -> tuple[str, ...]:
    """Return the paths of the keys by which two configurations differ, secrets among them."""
    return tuple(path for path, key in SCHEMA.items() if _compared(key, old) != _compared(key, new))


def _compared(key: "Key[Any]", config: Config) -> object:
    secret = _SECRETS.get(key.path)
    if secret is not None:
        return secret(config)
    return key.show(config) if key.show is not None else None


# What can be set -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Key(Generic[T]):
    """A key of the configuration file.

    ``parse`` turns what was written into a value or raises `Invalid`. ``default`` counts where
    the key is missing, null or empty; an empty list is a value of its own with ``can_be_empty``.
    ``show`` returns what `dump` writes, with secrets hidden; a key without it is expressed by
    others. ``secret`` keeps the value out of messages. ``env`` is the environment variable that
    overrides the key; what has a structure has none.
    """

    path: str
    parse: Callable[[Value], T]
    default: T
    show: Callable[[Config], object] | None
    secret: bool
    can_be_empty: bool
    env: str


_PREFIX: Final = "SKYDIVE_"
"""What the names of environment variables begin with."""

SCHEMA: dict[str, Key[Any]] = {}
"""Everything that can be set, by path, in the order in which it is shown."""


def _key(
    path: str,
    parse: Callable[[Value], T],
    default: T,
    show: Callable[[Config], object] | None,
    *,
    secret: bool = False,
    can_be_empty: bool = False,
    structured: bool = False,
) -> Key[T]:
    key = Key(
        path=path,
        parse=parse,
        default=default,
        show=show,
        secret=secret,
        can_be_empty=can_be_empty,
        env="" if structured else hints.variable(path, prefix=_PREFIX),
    )
    SCHEMA[path] = key
    return key


def _hidden(secret: str) -> str:
    return HIDDEN if secret else ""


def _shown_endpoint(url: str) -> str:
    """Hide the password, and only that, in an endpoint."""
    return re.sub(r"(//[^:@/]*:)[^/]+@", rf"\1{HIDDEN}@", url)


HOST_ID = _key("host_id", to_text, "", lambda c: c.host_id)
ANALYZERS: Key[tuple[Address, ...]] = _key(
    "analyzers", list_of(to_address), (), lambda c: list(c.analyzers)
)

USERNAME = _key("analyzer.auth.cluster.username", to_text, "", lambda c: c.credentials.username)
PASSWORD = _key(
    "analyzer.auth.cluster.password",
    to_text,
    "",
    lambda c: _hidden(c.credentials.password),
    secret=True,
)
CLIENT_CERT = _key("tls.client_cert", to_readable_file, "", lambda c: c.tls.client_cert)
CLIENT_KEY = _key("tls.client_key", to_readable_file, "", lambda c: c.tls.client_key)
CA_CERT = _key("tls.ca_cert", to_readable_file, "", lambda c: c.tls.ca_cert)
COOKIE: Key[Mapping[str, str]] = _key(
    "http.cookie",
    to_cookies,
    MappingProxyType({}),
    lambda c: {name: _hidden(value) for name, value in c.cookies.items()},
    secret=True,
    structured=True,
)
LEVEL = _key("logging.level", to_level, "INFO", lambda c: c.logging.level)
LOG_FORMAT: Key[Literal["text", "json"]] = _key(
    "logging.format", one_of("text", "json"), "text", lambda c: c.logging.format
)

URL: Key[Url | None] = _key("pipeline.subscriber.url", to_url, None, None)
URLS: Key[tuple[Url, ...]] = _key(
    "pipeline.subscriber.urls",
    list_of(to_url),
    (),
    lambda c: [_shown_endpoint(url) for url in c.subscriber.endpoints],
)
CAPTURE_ID = _key("pipeline.subscriber.capture_id", to_text, "", lambda c: c.subscriber.capture_id)
MESSAGE_BYTES = _key(
    "pipeline.subscriber.max_message_bytes",
    whole(1, MAX_MESSAGE_BYTES),
    64 << 20,
    lambda c: c.subscriber.max_message_bytes,
)
SILENCE_TIMEOUT = _key(
    "pipeline.subscriber.silence_timeout",
    seconds(zero=False),
    45.0,
    lambda c: labels.show_seconds(c.subscriber.silence_timeout_s),
)

CLASSIFY_TYPE = _key("pipeline.classify.type", only("subnet"), "subnet", lambda _: "subnet")
NET_MASKS: Key[tuple[Network, ...]] = _key(
    "pipeline.classify.cluster_net_masks",
    list_of(to_network),
    (),
    lambda c: [str(network) for network in c.classify.cluster_net_masks],
)
FILTER_TYPE = _key("pipeline.filter.type", only("subnet"), "subnet", lambda _: "subnet")
EXCLUDED_TAGS: Key[tuple[str, ...]] = _key(
    "pipeline.filter.excluded_tags",
    list_of(one_of(*TAGS)),
    (),
    lambda c: [tag for tag in TAGS if tag in c.filter.excluded_tags],
)
KEEP: Key[tuple[Rule, ...]] = _key(
    "pipeline.filter.keep",
    labels.to_rules,
    (),
    lambda c: labels.show_rules(c.filter.keep),
    structured=True,
)
DROP: Key[tuple[Rule, ...]] = _key(
    "pipeline.filter.drop",
    labels.to_rules,
    (),
    lambda c: labels.show_rules(c.filter.drop),
    structured=True,
)
TRANSFORM_TYPE = _key("pipeline.transform.type", only("none"), "none", lambda _: "none")
STORE_TYPE = _key(
    "pipeline.store.type", only("prom_sky_con"), "prom_sky_con", lambda _: "prom_sky_con"
)

PORT = _key("pipeline.store.prom_sky_con.port", whole(0, 65_535), 9100, lambda c: c.store.port)
LISTEN_ADDRESS = _key(
    "pipeline.store.prom_sky_con.listen_address",
    to_listen_address,
    "",
    lambda c: c.store.listen_address,
)
CONNECTION_TIMEOUT = _key(
    "pipeline.store.prom_sky_con.connection_timeout",
    seconds(zero=True),
    60.0,
    lambda c: labels.show_seconds(c.store.connection_timeout_s),
)
CONNECTION_GRACE = _key(
    "pipeline.store.prom_sky_con.connection_grace",
    seconds(zero=True),
    15.0,
    lambda c: labels.show_seconds(c.store.connection_grace_s),
)
FLOW_MEMORY = _key(
    "pipeline.store.prom_sky_con.flow_memory",
    seconds(zero=True),
    1290.0,
    lambda c: labels.show_seconds(c.store.flow_memory_s),
)
MAX_CONNECTIONS = _key(
    "pipeline.store.prom_sky_con.max_connections",
    whole(1, MAX_ROWS),
    1_000_000,
    lambda c: c.store.max_connections,
)
MAX_FLOWS: Key[int | None] = _key(
    "pipeline.store.prom_sky_con.max_flows", whole(1, MAX_ROWS), None, lambda c: c.store.max_flows
)
INTERFACES_INTERVAL = _key(
    "pipeline.store.prom_sky_con.interfaces_interval",
    seconds(zero=True),
    20.0,
    lambda c: labels.show_seconds(c.store.interfaces_interval_s),
)

LABELS: Key[tuple[LabelChoice, ...]] = _key(
    "pipeline.store.prom_sky_con.labels",
    labels.to_labels,
    tuple(LabelChoice(name=name) for name in DEFAULT_LABELS),
    lambda c: labels.show_labels(c.store.main.labels),
)
METRICS: Key[tuple[MetricChoice, ...]] = _key(
    "pipeline.store.prom_sky_con.metrics",
    labels.to_metrics,
    tuple(MetricChoice(name=name) for name in DEFAULT_METRICS),
    lambda c: labels.show_metrics(c.store.main.metrics),
)
DIRECTIONS: Key[Literal["split", "sum"]] = _key(
    "pipeline.store.prom_sky_con.direction",
    one_of("split", "sum"),
    "split",
    lambda c: c.store.main.direction,
)
VIEWS: Key[tuple[ViewChoice, ...]] = _key(
    "pipeline.store.prom_sky_con.views",
    labels.to_views,
    labels.DEFAULT_VIEWS,
    lambda c: labels.show_views(c.store.views),
    can_be_empty=True,
    structured=True,
)
INCLUDE_ICMP = _key(
    "pipeline.store.prom_sky_con.include_icmp",
    to_boolean,
    False,
    lambda c: c.store.include_icmp,
)
INCLUDE_OTHER = _key(
    "pipeline.store.prom_sky_con.include_other",
    to_boolean,
    False,
    lambda c: c.store.include_other,
)
REWRITE: Key[Mapping[str, Rewrite]] = _key(
    "pipeline.store.prom_sky_con.rewrite",
    labels.to_rewrites,
    MappingProxyType({}),
    lambda c: labels.show_rewrites(c.store.rewrites),
    structured=True,
)
OVERFLOW: Key[Literal["drop", "other"]] = _key(
    "pipeline.store.prom_sky_con.overflow",
    one_of("drop", "other"),
    "drop",
    lambda c: c.store.overflow,
)
DEDUPLICATE: Key[Literal["none", "first"]] = _key(
    "pipeline.store.prom_sky_con.deduplicate",
    one_of("none", "first"),
    "none",
    lambda c: c.store.deduplicate,
)
NAMING: Key[Literal["compatible", "standard"]] = _key(
    "pipeline.store.prom_sky_con.naming",
    one_of("compatible", "standard"),
    "compatible",
    lambda c: c.store.naming,
)

WEB_CONNECTIONS = _key(
    "web.max_connections", whole(1, MAX_SOCKETS), 256, lambda c: c.web.max_connections
)
WEB_SCRAPES = _key("web.max_scrapes", whole(1, MAX_SOCKETS), 8, lambda c: c.web.max_scrapes)
WEB_SCRAPES_PER_ADDRESS = _key(
    "web.max_scrapes_per_address",
    whole(1, MAX_SOCKETS),
    4,
    lambda c: c.web.max_scrapes_per_address,
)
WEB_SCRAPE_TIMEOUT = _key(
    "web.scrape_timeout",
    seconds(zero=False),
    60.0,
    lambda c: labels.show_seconds(c.web.scrape_timeout_s),
)

ENABLE_RELOAD = _key("web.enable_reload", to_boolean, False, lambda c: c.web.enable_reload)
HEALTH_WITHOUT_AUTH = _key(
    "web.health_without_auth", to_boolean, False, lambda c: c.web.health_without_auth
)

OPENMETRICS = _key("web.openmetrics", to_boolean, True, lambda c: c.web.openmetrics)

_SECRETS: Final[dict[str, Callable[[Config], object]]] = {
    PASSWORD.path: lambda c: c.credentials.password,
    COOKIE.path: lambda c: dict(c.cookies),
    URLS.path: lambda c: c.subscriber.endpoints,
}
"""The values of keys that `Key.show` hides."""

KNOWN: Final = hints.KnownKeys(
    SCHEMA, structured=[path for path, key in SCHEMA.items() if not key.env]
)
"""The tree of these keys."""

MAX_MISPLACED = 20
"""Sections that are noted at most below one unknown key."""

_STRICT = ("pipeline.", "web.")
"""Where an unknown key is an error. Elsewhere the file is Skydive's as well."""

_OF_GO_CORE = (
    "pipeline.mangle.",
    "pipeline.encode.",
    "pipeline.compress.",
    "pipeline.storeheader.",
    "pipeline.account.",
    "pipeline.write.",
    "pipeline.action.",
    "pipeline.transform.awsflowlogs.",
    "pipeline.transform.secadvisor.",
    "pipeline.transform.vpclogs.",
    "pipeline.store.buffered.",
    "pipeline.store.direct.",
    "pipeline.store.prom_sky_con.monitoring_port.",
)
"""Parts of the pipeline that the Go connector and others of its core know and skyfast does not."""

_OF_SKYDIVE = (
    *("agent.", "auth.", "cache.", "docker.", "dpdk.", "etcd.", "flow.", "graph.", "k8s."),
    *("netns.", "opencontrail.", "openstack.", "ovs.", "rbac.", "sflow.", "storage.", "ui."),
    *("analyzer.auth.api.", "analyzer.auth.cluster.backend.", "analyzer.flow.", "analyzer.listen."),
    *("analyzer.replication.", "analyzer.startup.", "analyzer.storage.", "analyzer.topology."),
    *("http.rest.", "http.ws."),
    *("logging.backends.", "logging.color.", "logging.encoder.", "logging.file.", "logging.id."),
    *("logging.stderr.", "logging.stdout.", "logging.syslog."),
    *("tls.require_client_cert.", "tls.server_cert.", "tls.server_key."),
)
"""What Skydive's own programs read from the same file."""


# From the file's keys to the configuration ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """A value that is set, and where: in the file's line, or in a variable, where that is None."""

    source: str
    line: int | None
    value: Value

    def origin(self, line: int | None = None) -> str:
        """Say where it is set; ``line`` is that of a part of it."""
        number = line or self.line
        return f"{self.source}: line {number}" if self.line and number else self.source


class _Problems:
    """Errors in the order of their lines, then errors without a line."""

    def __init__(self) -> None:
        self._found: list[tuple[float, str]] = []

    def add(self, text: str, line: int | None = None) -> None:
        self._found.append((math.inf if line is None else line, text))

    def __enter__(self) -> None:
        """Begin what can be wrong."""

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> bool:
        """Continue after an error."""
        if not isinstance(error, ConfigError):
            return False
        for problem in error.problems:
            self.add(problem)
        return True

    def check(self) -> None:
        """Raise `ConfigError` where there is anything."""
        if self._found:
            raise ConfigError(*(text for _, text in sorted(self._found, key=lambda each: each[0])))


def _walk(
    nodes: dict[str, Node], *, file: str, problems: _Problems
) -> tuple[dict[str, _Found], dict[str, Node]]:
    """Return the known keys' values and the unknown keys' nodes, both by path.

    A key with dots is a path, as in viper: ``pipeline.store: {…}`` works.
    """
    found: dict[str, _Found] = {}
    unknown: dict[str, Node] = {}

    def descend(nodes: dict[str, Node], parent: str) -> None:
        for name, node in nodes.items():
            path = join(parent, name.lower())
            origin = f"{file}: line {node.line}"
            if path in found:
                text = f"{origin}: {path}: is already set in line {found[path].line}"
                problems.add(text, node.line)
            elif path in SCHEMA:
                found[path] = _Found(file, node.line, node.value)
            elif path not in KNOWN.sections:
                unknown[path] = node
            elif isinstance(node.value, dict):
                descend(node.value, path)
            elif node.value is not None:
                # The value is not shown: "password:secret" lacks a space and is one text.
                text = f"{origin}: {path}: {kind_of(node.value)} is not a mapping of keys"
                problems.add(text, node.line)

    descend(nodes, "")
    return found, unknown


def _check_unknown(
    unknown: Mapping[str, Node], *, file: str, none_known: bool, problems: _Problems
) -> list[Note]:
    """Refuse unknown keys where a file is skyfast's own, and note them elsewhere.

    Where ``none_known``, the file has no known key.
    """
    notes = []
    ignored = []
    for path, node in unknown.items():
        origin = f"{file}: line {node.line}: {describe_path(path)}"
        if f"{path}.".startswith(_OF_GO_CORE):
            text = f"{origin}: is ignored: skyfast has nothing of that kind"
            notes.append(Note(level=logging.WARNING, text=text))
        elif path.startswith(_STRICT):
            problems.add(f"{origin}: is an unknown key; {_advice(path, node.value)}", node.line)
        elif f"{path}.".startswith(_OF_SKYDIVE):
            ignored.append(describe_path(path))
        elif meant := _meant(path, node):
            for below, line, near in meant:
                origin = f"{file}: line {line}: {describe_path(below)}"
                text = f"{origin}: is ignored; did you mean {near}?"
                notes.append(Note(level=logging.WARNING, text=text))
        else:
            ignored.append(describe_path(path))
    if none_known and ignored:
        text = f"{file}: has no key that skyfast knows"
        notes.append(Note(level=logging.WARNING, text=text))
    if ignored:
        text = f"{file}: ignored, for they mean nothing to skyfast: {', '.join(ignored)}"
        notes.append(Note(level=logging.DEBUG, text=text))
    return notes


def _meant(path: str, node: Node) -> list[tuple[str, int, str]]:
    """Return what an unknown key, or sections below it, may stand for: path, line, known paths."""
    if near := KNOWN.suggest(path, node.value, cutoff=hints.CLOSE):
        return [(path, node.line, " or ".join(near))]
    if not isinstance(node.value, dict):
        return []
    found = islice(KNOWN.misplaced(path, node.value), MAX_MISPLACED)
    return [(below, each.line, known) for below, each, known in found]


def _advice(path: str, value: Value) -> str:
    """Say which key was probably meant by one that is unknown, or else which there are."""
    if near := KNOWN.suggest(path, value, cutoff=hints.SIMILAR):
        return f"did you mean {' or '.join(near)}?"
    section = path.rpartition(".")[0]
    known = KNOWN.children(section) or KNOWN.children(section.partition(".")[0])
    return f"known are {', '.join(known)}"


def _check_variables(environ: Mapping[str, str]) -> list[Note]:
    """Note the variables that are no key's, and look as if they were meant to be."""
    notes = []
    known = {key.env: key.path for key in SCHEMA.values() if key.env}
    in_file_only = {
        hints.variable(key.path, prefix=_PREFIX): key.path for key in SCHEMA.values() if not key.env
    }
    sections = [hints.variable(f"{each}.", prefix=_PREFIX) for each in KNOWN.sections]
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in known or not environ[name]:
            continue
        shown = name if name.isprintable() else repr(name)
        origin = f"environment variable {describe_path(shown)}"
        if path := in_file_only.get(name):
            text = f"{origin}: is ignored: {path} can only be set in the file"
            notes.append(Note(level=logging.WARNING, text=text))
        elif f"{name}_".startswith(_variables(_OF_GO_CORE)):
            text = f"{origin}: is ignored: skyfast has nothing of that kind"
            notes.append(Note(level=logging.WARNING, text=text))
        elif f"{name}_".startswith(_variables(_OF_SKYDIVE)):
            continue
        elif near := hints.similar_variable(name, known, sections, prefix=_PREFIX):
            text = f"{origin}: is ignored; did you mean {near}?"
            notes.append(Note(level=logging.WARNING, text=text))
        elif name.startswith(f"{_PREFIX}PIPELINE_"):
            text = f"{origin}: is ignored: no key has this variable"
            notes.append(Note(level=logging.WARNING, text=text))
    return notes


def _variables(sections: Sequence[str]) -> tuple[str, ...]:
    return tuple(hints.variable(each, prefix=_PREFIX) for each in sections)


class _Settings:
    """The keys' values, each checked by itself."""

    def __init__(self, found: Mapping[str, _Found], problems: _Problems) -> None:
        """Check every value. Errors go to ``problems``, and such keys get their defaults."""
        self._found = {
            path: each for path, each in found.items() if _says_something(SCHEMA[path], each.value)
        }
        self._values = {
            path: _value(key, self._found.get(path), problems) for path, key in SCHEMA.items()
        }

    @property
    def given(self) -> frozenset[str]:
        """The paths of the keys that are set."""
        return frozenset(self._found)

    def __call__(self, key: Key[T]) -> T:
        value: T = self._values[key.path]
        return value

    def is_set(self, key: Key[Any], *place: str | int) -> bool:
        """Return whether something stands at ``place`` below the key."""
        found = self._found.get(key.path)
        return found is not None and len(_way(found.value, place)) == len(place)

    def error(self, key: Key[Any], problem: str, *place: str | int) -> ConfigError:
        """Return an error of a value that is wrong only beside others.

        ``place`` leads below the key, by positions in lists and keys of mappings, as far as
        the file goes.
        """
        found = self._found[key.path]
        way = _way(found.value, place)
        path = ".".join([key.path, *(each for each in place[: len(way)] if isinstance(each, str))])
        origin = found.origin(way[-1].line if way else None)
        value = way[-1].value if way else found.value
        return ConfigError(f"{origin}: {path}: {describe(value)} {problem}")


def _says_something(key: Key[Any], value: Value) -> bool:
    return value not in (None, "") and (value != [] or key.can_be_empty)


def _way(value: Value, place: Sequence[str | int]) -> list[Node]:
    """Return the nodes on the way to ``place``, as far as there are any."""
    way: list[Node] = []
    for each in place:
        if isinstance(value, list) and isinstance(each, int) and each < len(value):
            way.append(value[each])
        elif isinstance(value, dict) and (node := _below(value, each)):
            way.append(node)
        else:
            break
        value = way[-1].value
    return way


def _below(nodes: Mapping[str, Node], name: str | int) -> Node | None:
    return next((node for key, node in nodes.items() if key.lower() == name), None)


def _value(key: Key[T], found: _Found | None, problems: _Problems) -> T:
    if found is None:
        return key.default
    try:
        return key.parse(found.value)
    except Invalid as first:
        for bad in first.all():
            hidden = key.secret and isinstance(bad.value, str | bool)
            text = f"{found.origin(bad.line)}: {bad.told(key.path, hidden=hidden)}"
            problems.add(text, found.line and (bad.line or found.line))
        return key.default


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
        analyzers = (Address("127.0.0.1", ANALYZER_PORT),)
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


def _urls(url: Url | None, analyzers: tuple[Address, ...], *, secure: bool) -> tuple[Url, ...]:
    """Return a URL for every analyzer where ``url`` is missing or one of them, else ``url``.

    Skydive makes ``wss`` URLs where a client certificate is configured.
    """
    if url is None:
        first = analyzers[0]
        url = Url(scheme="wss" if secure else "ws", host=first.host, port=first.port)
    own = Address(url.host, url.port or ANALYZER_PORT).identity()
    if all(analyzer.identity() != own for analyzer in analyzers):
        return (url,)
    return tuple(
        # The URL's own host keeps its spelling, which a certificate may name.
        replace(url, host=url.host if each.identity() == own else each.host, port=each.port)
        for each in analyzers
    )


def _views(get: _Settings) -> tuple[ViewChoice, ...]:
    """Return the main view and the others."""
    direction = get(DIRECTIONS)
    chosen = get(LABELS)
    if direction == "sum" and not get.is_set(LABELS):
        chosen = tuple(label for label in chosen if label.name != DIRECTION)
    main = ViewChoice(
        prefix="", labels=chosen, metrics=get(METRICS), direction=direction, timeout_s=0.0
    )
    timeout_s = _connection_timeout_s(get) + get(CONNECTION_GRACE)
    try:
        return labels.settled((main, *get(VIEWS)), naming=get(NAMING), least_timeout_s=timeout_s)
    except labels.Misfit as bad:
        raise _misfit(get, bad) from None


def _misfit(get: _Settings, bad: labels.Misfit) -> ConfigError:
    """Return the error of an entry that was written, not of one that is there by default."""
    ways = [_way_to(place, bad.view) for place in bad.places]
    key, place = next((way for way in ways if get.is_set(way[0], *way[1])), ways[0])
    if bad.other is not None and not get.is_set(key):
        return _misfit(get, bad.other)
    return get.error(key, bad.problem, *place)


def _way_to(place: labels.Place, view: int) -> tuple[Key[Any], labels.Place]:
    """Return the key, and the place below it, of a place in a view."""
    if view:
        return VIEWS, (view - 1, *place)
    return (LABELS if place[0] == "labels" else METRICS), place[1:]


def _filter(get: _Settings) -> Filter:
    keep, drop, excluded_tags = get(KEEP), get(DROP), get(EXCLUDED_TAGS)
    names: set[str] = set()
    for key, rules in ((KEEP, keep), (DROP, drop)):
        for i, rule in enumerate(rules):
            if rule.name in names:
                raise get.error(key, "is the name of another rule", i, "name")
            names.add(rule.name)
    return Filter(excluded_tags=frozenset(excluded_tags), keep=keep, drop=drop)


def _connection_timeout_s(get: _Settings) -> float:
    return get(CONNECTION_TIMEOUT) or CONNECTION_TIMEOUT.default


def _build(get: _Settings, *, source: str, notes: list[Note], problems: _Problems) -> Config:
    with problems:
        tls = _tls(get)
    with problems:
        views = _views(get)
    with problems:
        filter_ = _filter(get)
    problems.check()
    analyzers, endpoints = _whom(get, notes, secure=bool(tls.client_cert))
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
        filter=filter_,
        store=Store(
            port=get(PORT),
            listen_address=get(LISTEN_ADDRESS),
            connection_timeout_s=_connection_timeout_s(get),
            connection_grace_s=get(CONNECTION_GRACE),
            flow_memory_s=get(FLOW_MEMORY),
            max_connections=max_connections,
            max_flows=get(MAX_FLOWS) or min(4 * max_connections, MAX_ROWS),
            interfaces_interval_s=get(INTERFACES_INTERVAL),
            main=views[0],
            views=views[1:],
            include_icmp=get(INCLUDE_ICMP),
            include_other=get(INCLUDE_OTHER),
            rewrites=get(REWRITE),
            overflow=get(OVERFLOW),
            deduplicate=get(DEDUPLICATE),
            naming=get(NAMING),
        ),
        web=Web(
            max_connections=get(WEB_CONNECTIONS),
            max_scrapes=get(WEB_SCRAPES),
            max_scrapes_per_address=get(WEB_SCRAPES_PER_ADDRESS),
            scrape_timeout_s=get(WEB_SCRAPE_TIMEOUT),
            enable_reload=get(ENABLE_RELOAD),
            health_without_auth=get(HEALTH_WITHOUT_AUTH),
            openmetrics=get(OPENMETRICS),
        ),
        logging=Logging(level=get(LEVEL), format=get(LOG_FORMAT)),
        notes=tuple(notes),
        given=get.given,
    )
