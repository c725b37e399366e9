"""The configuration as frozen dataclasses, created by `skyfast.config.loader`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from skyfast.config.endpoint import Endpoint
from skyfast.flows.selection import ALONE, ExportSelection, Filter, Network, Shard


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

    ``endpoints`` are URLs in order, each analyzer once. ``capture_id`` is empty for the flows of
    all captures.
    """

    endpoints: tuple[Endpoint, ...]
    capture_id: str
    max_message_bytes: int
    silence_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Classify:
    """The networks that count as inside the cluster."""

    cluster_net_masks: tuple[Network, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLimits:
    """The table's bounds and times, which can change while it runs.

    ``view_timeouts_s`` is when a silent row of each view leaves, in the order of the selection's
    views.
    """

    max_connections: int
    max_flows: int
    connection_timeout_s: float
    connection_grace_s: float
    flow_memory_s: float
    view_timeouts_s: tuple[float, ...]

    @property
    def timeout_s(self) -> float:
        """When a connection leaves after its last report."""
        return self.connection_timeout_s + self.connection_grace_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """How often the topology is asked for interfaces; 0 switches them off."""

    interfaces_interval_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Web:
    """Where the page is served, and the bounds of the HTTP server.

    ``port`` 0 is any free port, and ``listen_address`` empty all addresses of both IP versions.
    """

    listen_address: str
    port: int
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
    export: ExportSelection
    limits: TableLimits
    topology: Topology
    web: Web
    logging: Logging
    notes: tuple[Note, ...]
    shard: Shard = ALONE
    given: frozenset[str] = field(default=frozenset(), compare=False)
