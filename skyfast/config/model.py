"""The configuration as frozen dataclasses, created by `skyfast.config.loader`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from skyfast.config.endpoint import Endpoint
from skyfast.config.names import NameSources
from skyfast.flows.selection import UNSHARDED, Bounds, ExportSelection, Filter, Network, Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """An empty ``username`` means no authentication."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """Paths of PEM files, or empty strings.

    ``client_cert`` and ``client_key`` are both set or both empty.
    """

    client_cert: str
    client_key: str
    ca_cert: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscriber:
    """``endpoints`` has one URL for each analyzer, in the order of the configuration.

    An empty ``capture_id`` means the flows of all captures.
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
    """The table's limits and timeouts, which can change at run time.

    ``view_timeouts_s`` are the timeouts of rows without reports, one for each view except the
    first. ``bounds`` has ``min_bytes`` and ``min_packets`` of each view, including the first.
    """

    max_connections: int
    max_flows: int
    connection_timeout_s: float
    connection_grace_s: float
    flow_memory_s: float
    view_timeouts_s: tuple[float, ...]
    bounds: tuple[Bounds, ...]

    @property
    def timeout_s(self) -> float:
        """The time from a connection's last report to its expiry."""
        return self.connection_timeout_s + self.connection_grace_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What skyfast reads from the topology, in addition to names for labels.

    ``interfaces_interval_s`` is the polling interval for interfaces; 0 disables it. If
    ``interface_info`` is true, info series describe the capture points.
    """

    interfaces_interval_s: float
    interface_info: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Web:
    """The settings of the HTTP server.

    An empty ``listen_address`` means all IPv4 and IPv6 addresses. ``port`` 0 means any free port.
    ``start_timestamps`` adds start times to pages in OpenMetrics 1.0.
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
    start_timestamps: bool
    gzip: Literal["direct", "isal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """``level`` is the name of a level in the standard library's `logging`."""

    level: str
    format: Literal["text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A message about the configuration, logged once."""

    level: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The effective configuration.

    ``source`` is the path of the file, or ``-``. ``analyzers`` are the configured analyzers as
    ``host:port``; there are none if only URLs are set. skyfast subscribes to
    ``subscriber.endpoints``. Forecasts propose a ``min_bytes`` with which the page has at most
    ``max_series`` series; if ``max_series`` is 0, they propose none. ``export`` already contains
    the values of ``preset``. ``shard`` comes from the command line. ``given`` are the paths of the
    keys that the file or an environment variable sets.

    ``replayed`` describes the recordings that replace the analyzers. In a replay, ``analyzers`` is
    empty, and ``subscriber.endpoints`` is empty until the replay starts.
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
    preset: str
    export: ExportSelection
    limits: TableLimits
    max_series: int
    topology: Topology
    names: NameSources
    web: Web
    logging: Logging
    notes: tuple[Note, ...]
    shard: Shard = UNSHARDED
    given: frozenset[str] = field(default=frozenset(), compare=False)
    replayed: str = ""
