"""The keys of the configuration file.

Each key has one entry in `SCHEMA`: its path in the file, its parser, its default, and how
`skyfast.config.loader.dump` shows it. The names of environment variables, suggestions for
misspelled keys, and ``docs/reference/configuration.md`` are derived from these entries.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, TypeVar

from skyfast._table import MAX_ROWS
from skyfast.config import hints, labels, names, presets, rules, views
from skyfast.config.endpoint import MAX_PORT, Endpoint
from skyfast.config.model import Config
from skyfast.config.parsers import (
    byte_count,
    duration,
    integer,
    list_of,
    must_equal,
    one_of,
    parse_str,
    show_seconds,
    to_address,
    to_boolean,
    to_cookies,
    to_level,
    to_listen_address,
    to_network,
    to_readable_file,
    to_url,
)
from skyfast.config.yaml_nodes import HIDDEN, YamlValue
from skyfast.flows.own_names import OwnNameEntry, Prefix
from skyfast.flows.selection import TAGS, LabelSpec, MetricSpec, Network, RewriteSpec, Rule

T = TypeVar("T")

MAX_MESSAGE_BYTES = 1 << 30
"""The largest ``max_message_bytes``."""

MAX_SERIES_TARGET = 10**12
"""The largest ``max_series``."""

MAX_SOCKETS = 65_536
"""The largest ``web.max_connections`` and ``web.max_scrapes``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key(Generic[T]):
    """A key of the configuration file."""

    path: str
    """The path of the key in the file, such as ``logging.level``."""
    parse: Callable[[YamlValue], T]
    default: T
    """The value that skyfast uses if the key is missing, null or empty."""
    show: Callable[[Config], object] | None
    """Returns the value that `dump` writes for this key, with secrets hidden.

    None if `dump` does not write this key, because it writes the value under another key."""
    secret: bool
    """Whether messages hide the value of the key."""
    can_be_empty: bool
    """Whether an empty list in the configuration overrides ``default``."""
    env: str
    """The environment variable that overrides the key; empty for keys with structured values."""


ENV_PREFIX: Final = "SKYDIVE_"

SCHEMA: dict[str, Key[Any]] = {}
"""All keys by path, in the order in which `dump` shows them."""


def _key(
    path: str,
    parse: Callable[[YamlValue], T],
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
        env="" if structured else hints.variable(path, prefix=ENV_PREFIX),
    )
    SCHEMA[path] = key
    return key


def _hidden(secret: str) -> str:
    return HIDDEN if secret else ""


HOST_ID = _key("host_id", parse_str, "", lambda c: c.host_id)
ANALYZERS: Key[tuple[Endpoint, ...]] = _key(
    "analyzers", list_of(to_address), (), lambda c: list(c.analyzers)
)

USERNAME = _key("analyzer.auth.cluster.username", parse_str, "", lambda c: c.credentials.username)
PASSWORD = _key(
    "analyzer.auth.cluster.password",
    parse_str,
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

URL: Key[Endpoint | None] = _key("pipeline.subscriber.url", to_url, None, None)
URLS: Key[tuple[Endpoint, ...]] = _key(
    "pipeline.subscriber.urls",
    list_of(to_url),
    (),
    lambda c: [endpoint.redacted for endpoint in c.subscriber.endpoints],
)
CAPTURE_ID = _key(
    "pipeline.subscriber.capture_id", parse_str, "", lambda c: c.subscriber.capture_id
)
MESSAGE_BYTES = _key(
    "pipeline.subscriber.max_message_bytes",
    byte_count(1, MAX_MESSAGE_BYTES),
    64 << 20,
    lambda c: c.subscriber.max_message_bytes,
)
SILENCE_TIMEOUT = _key(
    "pipeline.subscriber.silence_timeout",
    duration(zero=False),
    45.0,
    lambda c: show_seconds(c.subscriber.silence_timeout_s),
)

CLASSIFY_TYPE = _key("pipeline.classify.type", must_equal("subnet"), "subnet", lambda _: "subnet")
NET_MASKS: Key[tuple[Network, ...]] = _key(
    "pipeline.classify.cluster_net_masks",
    list_of(to_network),
    (),
    lambda c: [str(network) for network in c.classify.cluster_net_masks],
)
FILTER_TYPE = _key("pipeline.filter.type", must_equal("subnet"), "subnet", lambda _: "subnet")
EXCLUDED_TAGS: Key[tuple[str, ...]] = _key(
    "pipeline.filter.excluded_tags",
    list_of(one_of(*TAGS)),
    (),
    lambda c: [tag for tag in TAGS if tag in c.filter.excluded_tags],
)
KEEP: Key[tuple[Rule, ...]] = _key(
    "pipeline.filter.keep",
    rules.to_rules,
    (),
    lambda c: rules.show_rules(c.filter.keep),
    structured=True,
)
DROP: Key[tuple[Rule, ...]] = _key(
    "pipeline.filter.drop",
    rules.to_rules,
    (),
    lambda c: rules.show_rules(c.filter.drop),
    structured=True,
)
TRANSFORM_TYPE = _key("pipeline.transform.type", must_equal("none"), "none", lambda _: "none")
STORE_TYPE = _key(
    "pipeline.store.type", must_equal("prom_sky_con"), "prom_sky_con", lambda _: "prom_sky_con"
)

PORT = _key("pipeline.store.prom_sky_con.port", integer(0, MAX_PORT), 9100, lambda c: c.web.port)
LISTEN_ADDRESS = _key(
    "pipeline.store.prom_sky_con.listen_address",
    to_listen_address,
    "",
    lambda c: c.web.listen_address,
)
CONNECTION_TIMEOUT = _key(
    "pipeline.store.prom_sky_con.connection_timeout",
    duration(zero=True),
    60.0,
    lambda c: show_seconds(c.limits.connection_timeout_s),
)
CONNECTION_GRACE = _key(
    "pipeline.store.prom_sky_con.connection_grace",
    duration(zero=True),
    15.0,
    lambda c: show_seconds(c.limits.connection_grace_s),
)
FLOW_MEMORY = _key(
    "pipeline.store.prom_sky_con.flow_memory",
    duration(zero=True),
    1290.0,
    lambda c: show_seconds(c.limits.flow_memory_s),
)
MAX_CONNECTIONS = _key(
    "pipeline.store.prom_sky_con.max_connections",
    integer(1, MAX_ROWS),
    1_000_000,
    lambda c: c.limits.max_connections,
)
MAX_FLOWS: Key[int | None] = _key(
    "pipeline.store.prom_sky_con.max_flows",
    integer(1, MAX_ROWS),
    None,
    lambda c: c.limits.max_flows,
)
MIN_BYTES = _key(
    "pipeline.store.prom_sky_con.min_bytes",
    views.to_min_bytes,
    0,
    lambda c: c.limits.bounds[0].min_bytes,
)
MIN_PACKETS = _key(
    "pipeline.store.prom_sky_con.min_packets",
    views.to_min_packets,
    0,
    lambda c: c.limits.bounds[0].min_packets,
)
MAX_SERIES = _key(
    "pipeline.store.prom_sky_con.max_series",
    integer(0, MAX_SERIES_TARGET),
    0,
    lambda c: c.max_series,
)
INTERFACES_INTERVAL = _key(
    "pipeline.store.prom_sky_con.interfaces_interval",
    duration(zero=True),
    20.0,
    lambda c: show_seconds(c.topology.interfaces_interval_s),
)
INTERFACE_INFO = _key(
    "pipeline.store.prom_sky_con.interface_info",
    to_boolean,
    False,
    lambda c: c.topology.interface_info,
)

PRESET: Key[str] = _key(
    "pipeline.store.prom_sky_con.preset",
    one_of(*presets.PRESETS),
    "compatible",
    lambda c: c.preset,
)
LABELS: Key[tuple[LabelSpec, ...]] = _key(
    "pipeline.store.prom_sky_con.labels",
    labels.to_labels,
    presets.COMPATIBLE.labels,
    lambda c: labels.show_labels(c.export.first_view.labels),
)
METRICS: Key[tuple[MetricSpec, ...]] = _key(
    "pipeline.store.prom_sky_con.metrics",
    labels.to_metrics,
    presets.COMPATIBLE.metrics,
    lambda c: labels.show_metrics(c.export.first_view.metrics),
)
NAMES: Key[Mapping[str, tuple[Prefix, OwnNameEntry]]] = _key(
    "pipeline.store.prom_sky_con.names",
    names.to_names,
    MappingProxyType({}),
    lambda c: names.show_names(c.names.entries),
    structured=True,
)
# The parser does not open this file, because the file can be long. `names.load` opens it later.
NAMES_FILE = _key("pipeline.store.prom_sky_con.names_file", parse_str, "", lambda c: c.names.file)
DIRECTIONS: Key[Literal["split", "sum"]] = _key(
    "pipeline.store.prom_sky_con.direction",
    one_of("split", "sum"),
    "split",
    lambda c: c.export.first_view.direction,
)
VIEWS: Key[tuple[views.ViewEntry, ...]] = _key(
    "pipeline.store.prom_sky_con.views",
    views.to_views,
    presets.COMPATIBLE.views,
    lambda c: views.show_views(
        c.export.further_views, c.limits.view_timeouts_s, c.limits.bounds[1:]
    ),
    can_be_empty=True,
    structured=True,
)
INCLUDE_ICMP = _key(
    "pipeline.store.prom_sky_con.include_icmp",
    to_boolean,
    False,
    lambda c: c.export.include_icmp,
)
INCLUDE_OTHER = _key(
    "pipeline.store.prom_sky_con.include_other",
    to_boolean,
    False,
    lambda c: c.export.include_other,
)
REWRITE: Key[Mapping[str, RewriteSpec]] = _key(
    "pipeline.store.prom_sky_con.rewrite",
    labels.to_rewrites,
    MappingProxyType({}),
    lambda c: labels.show_rewrites(c.export.rewrite),
    structured=True,
)
OVERFLOW: Key[Literal["drop", "other"]] = _key(
    "pipeline.store.prom_sky_con.overflow",
    one_of("drop", "other"),
    "drop",
    lambda c: c.export.overflow,
)
DEDUPLICATE: Key[Literal["none", "first"]] = _key(
    "pipeline.store.prom_sky_con.deduplicate",
    one_of("none", "first"),
    presets.COMPATIBLE.deduplicate,
    lambda c: c.export.deduplicate,
)
FROM_PRESET: Final[Mapping[str, Callable[[presets.Preset], object]]] = MappingProxyType(
    {
        LABELS.path: lambda preset: preset.labels,
        METRICS.path: lambda preset: preset.metrics,
        VIEWS.path: lambda preset: preset.views,
        DEDUPLICATE.path: lambda preset: preset.deduplicate,
    }
)
"""Maps each key whose default depends on the preset to a function that returns this default."""

NAMING: Key[Literal["compatible", "standard"]] = _key(
    "pipeline.store.prom_sky_con.naming",
    one_of("compatible", "standard"),
    "compatible",
    lambda c: c.export.naming,
)
START_TIMESTAMPS = _key(
    "pipeline.store.prom_sky_con.start_timestamps",
    to_boolean,
    False,
    lambda c: c.web.start_timestamps,
)

WEB_CONNECTIONS = _key(
    "web.max_connections", integer(1, MAX_SOCKETS), 256, lambda c: c.web.max_connections
)
WEB_SCRAPES = _key("web.max_scrapes", integer(1, MAX_SOCKETS), 8, lambda c: c.web.max_scrapes)
WEB_SCRAPES_PER_ADDRESS = _key(
    "web.max_scrapes_per_address",
    integer(1, MAX_SOCKETS),
    4,
    lambda c: c.web.max_scrapes_per_address,
)
WEB_SCRAPE_TIMEOUT = _key(
    "web.scrape_timeout",
    duration(zero=False),
    60.0,
    lambda c: show_seconds(c.web.scrape_timeout_s),
)

ENABLE_RELOAD = _key("web.enable_reload", to_boolean, False, lambda c: c.web.enable_reload)
HEALTH_WITHOUT_AUTH = _key(
    "web.health_without_auth", to_boolean, False, lambda c: c.web.health_without_auth
)

OPENMETRICS = _key("web.openmetrics", to_boolean, True, lambda c: c.web.openmetrics)
GZIP: Key[Literal["direct", "isal"]] = _key(
    "web.gzip", one_of("direct", "isal"), "direct", lambda c: c.web.gzip
)

SECRETS: Final[dict[str, Callable[[Config], object]]] = {
    PASSWORD.path: lambda c: c.credentials.password,
    COOKIE.path: lambda c: dict(c.cookies),
    URLS.path: lambda c: c.subscriber.endpoints,
}
"""Maps each secret key to a function that returns its value, which `Key.show` hides."""

KNOWN: Final = hints.KnownKeys(
    SCHEMA, structured=[path for path, key in SCHEMA.items() if not key.env]
)

STRICT_SECTIONS = ("pipeline.", "web.")
"""Sections in which unknown keys are errors. In other sections, unknown keys may be
keys of Skydive."""

SECTIONS_OF_GO_CORE = (
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
)
"""Sections that the common core of the Go connectors reads, but that skyfast does not support."""

MONITORING_PORT = "pipeline.store.prom_sky_con.monitoring_port"
"""The Go connector's key for names of addresses. skyfast has ``names_file`` instead."""

SECTIONS_OF_SKYDIVE = (
    *("agent.", "auth.", "cache.", "docker.", "dpdk.", "etcd.", "flow.", "graph.", "k8s."),
    *("netns.", "opencontrail.", "openstack.", "ovs.", "rbac.", "sflow.", "storage.", "ui."),
    *("analyzer.auth.api.", "analyzer.auth.cluster.backend.", "analyzer.flow.", "analyzer.listen."),
    *("analyzer.replication.", "analyzer.startup.", "analyzer.storage.", "analyzer.topology."),
    *("http.rest.", "http.ws."),
    *("logging.backends.", "logging.color.", "logging.encoder.", "logging.file.", "logging.id."),
    *("logging.stderr.", "logging.stdout.", "logging.syslog."),
    *("tls.require_client_cert.", "tls.server_cert.", "tls.server_key."),
)
"""Sections that Skydive's own programs read from the same file."""
