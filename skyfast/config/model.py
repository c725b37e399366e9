"""The configuration as frozen dataclasses, created by `skyfast.config.loader`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from skyfast.config.endpoint import Endpoint
from skyfast.config.names import NameSources
from skyfast.flows.selection import UNSHARDED, Bounds, ExportSelection, Filter, Network, Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    username: str
    """Empty if skyfast does not authenticate."""
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """Paths of PEM files. If a file is not configured, the path is empty."""

    client_cert: str
    client_key: str
    """The key of ``client_cert``: both paths are set, or both are empty."""
    ca_cert: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscriber:
    """The settings of the subscriptions to analyzers."""

    endpoints: tuple[Endpoint, ...]
    """The URL of each analyzer, in the order of the configuration; empty in a replay that has not
    started."""
    capture_id: str
    """The ID of the capture whose flows skyfast receives; empty for all captures."""
    max_message_bytes: int
    silence_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Classify:
    cluster_net_masks: tuple[Network, ...]
    """The networks whose addresses count as inside the cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLimits:
    """The limits and timeouts of the table. A reload can change all of them."""

    max_connections: int
    max_flows: int
    connection_timeout_s: float
    connection_grace_s: float
    flow_memory_s: float
    view_timeouts_s: tuple[float, ...]
    """For each view except the first, the time from a row's last report to the row's expiry."""
    bounds: tuple[Bounds, ...]
    """``min_bytes`` and ``min_packets`` of each view, including the first."""

    @property
    def timeout_s(self) -> float:
        """The time from a connection's last report to its expiry."""
        return self.connection_timeout_s + self.connection_grace_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Settings of two kinds of topology data: interface metrics and info series."""

    interfaces_interval_s: float
    """The interval at which skyfast polls interfaces; 0 if skyfast does not poll them."""
    interface_info: bool
    """Whether info series describe the capture points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Web:
    """The settings of the HTTP server."""

    listen_address: str
    """Empty for all IPv4 and IPv6 addresses."""
    port: int
    """0 for any free port."""
    max_connections: int
    max_scrapes: int
    max_scrapes_per_address: int
    scrape_timeout_s: float
    enable_reload: bool
    health_without_auth: bool
    openmetrics: bool
    start_timestamps: bool
    """Whether pages in OpenMetrics 1.0 contain start times."""
    gzip: Literal["direct", "isal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    level: str
    """The name of a level in the standard library's `logging`."""
    format: Literal["text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A message about the configuration, logged once."""

    level: int
    """A level of the standard library's `logging`."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The effective configuration."""

    source: str
    """The path of the configuration file; ``-`` for standard input."""
    host_id: str
    analyzers: tuple[str, ...]
    """The values of the key ``analyzers`` as ``host:port``; empty in a replay.

    skyfast subscribes to ``subscriber.endpoints``, not to these values."""
    credentials: Credentials
    tls: TLS
    cookies: Mapping[str, str] = field(repr=False)
    subscriber: Subscriber
    classify: Classify
    filter: Filter
    preset: str
    export: ExportSelection
    """The exported labels, metrics and views, including those that ``preset`` selects."""
    limits: TableLimits
    max_series: int
    """The desired maximum number of series of the page; 0 if no maximum is set.

    Forecasts propose a ``min_bytes`` with which the page has at most ``max_series`` series."""
    topology: Topology
    names: NameSources
    web: Web
    logging: Logging
    notes: tuple[Note, ...]
    shard: Shard = UNSHARDED
    """The shard that the command line selects."""
    given: frozenset[str] = field(default=frozenset(), compare=False)
    """The paths of the keys that the file or an environment variable sets."""
    replayed: str = ""
    """Text that describes the recordings of a replay; empty if skyfast subscribes to analyzers."""
