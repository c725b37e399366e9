"""The configuration: frozen dataclasses, made by `skyfast.config.loader` and read by all parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from skyfast.flows.selection import Filter, Network, Rewrite, ViewChoice


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
    flow_memory_s: float
    max_connections: int
    max_flows: int
    interfaces_interval_s: float
    main: ViewChoice
    views: tuple[ViewChoice, ...]
    include_icmp: bool
    include_other: bool
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
    health_without_auth: bool
    openmetrics: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """How the log looks. ``level`` is a name of the standard library's `logging`."""

    level: str
    format: Literal["text", "json"]


@dataclass(frozen=True, slots=True)
class Shard:
    """Which of several instances this is: the ``index``-th, counted from 0, of ``count``."""

    index: int
    count: int


ALONE: Final = Shard(0, 1)
"""The only instance that there is."""


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
    ``subscriber.endpoints``. ``shard`` is not of the file. ``given`` are the paths of the keys
    that the file or a variable sets.
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
    shard: Shard = ALONE
    given: frozenset[str] = field(default=frozenset(), compare=False)
