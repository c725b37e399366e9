"""Network interfaces, rendered as metric families; and the questions to the topology API.

:class:`Interfaces` holds the state and has neither clock nor socket: answers and ``now`` go in,
a page comes out. :class:`TopologyPoller` asks the analyzers, also for
:mod:`skyfast.skydive.name_index`. Nothing here knows of flows, so a topology API that fails cannot
harm them.
"""

import asyncio
import heapq
import logging
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from skyfast.config.model import Config
from skyfast.runtime.logs import LogLimit, printable
from skyfast.skydive import topology_nodes as nodes
from skyfast.skydive.auth import (
    NOT_TLS,
    REDIRECTS,
    USE_PLAIN,
    USE_TLS,
    Authentication,
    Endpoint,
    Headers,
    http_connector,
    redirect,
)
from skyfast.skydive.name_index import Lookup, Names
from skyfast.skydive.tls import client_context
from skyfast.skydive.topology_nodes import Answer, Counters, MalformedAnswerError, Node
from skyfast.stats import INTERFACE_SKIPS, Failure, TopologyStats
from skyfast.text_format import MetricFamily, label_text

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("skyfast.topology")

PATH: Final = "/api/topology"
"""Where an analyzer answers queries, below the prefix of its URL."""

QUERY: Final = "G.V().Has('EncapType', 'ether')"
"""The Gremlin query for the network interfaces of the page."""

QUERY_WITH_NAMES: Final = (
    "G.V().HasEither('EncapType', Ne(''), 'Type', 'ovsbridge', 'Type', 'ovsport')"
)
"""The Gremlin query for these and all else that has addresses or where flows are captured.

That is every device of Linux, as loopback and tunnels have other ``EncapType``s (``loopback``,
``gre``, ``sit``, ``none``, …), and Open vSwitch's bridges and ports, which have none: see
``CaptureTypes`` in Skydive's ``flow/probes/capabilities.go``. Since Skydive 0.21."""

NAMES_INTERVAL_S: Final = 20.0
"""How often names are asked for where the interfaces are switched off."""

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Longest answer that is read, before and after decompression: about 20,000 real interfaces.

This is a security limit: an answer may be a gzip bomb."""

REQUEST_TIMEOUT_S: Final = 10.0
"""How long one analyzer may take over its answer, a login included, before the next is asked."""

LOG_INTERVAL_S: Final = 60.0
"""An analyzer's failures of one reason are logged once in this time, in seconds."""

MAX_INTERFACES: Final = 20_000
"""Interfaces on the page at most; the others are counted as ``too_many``."""

MAX_LABEL_CHARS: Final = 1024
"""Longest label value, in characters; a node with a longer one is counted as ``text_too_long``."""

MAX_LABELS_CHARS: Final = 8 * 1024 * 1024
"""All label texts together, in characters; beyond this, nodes are counted as ``too_many``.

The page repeats them for every family, so this bounds the page's size where names are long."""

MAX_COUNTER: Final = 2**63 - 1
"""Skydive's counters are int64. A value outside 0 to this is left out as ``out_of_range``."""


MAX_BUSIEST: Final = 50
"""Interfaces that `Interfaces.busiest` returns at most."""

Naming = Literal["compatible", "standard"]


@dataclass(frozen=True, slots=True)
class Interface:
    """What is told of a single interface: its labels, and what its device has counted."""

    labels: dict[str, str]
    received_bytes: int
    transmitted_bytes: int
    dropped_packets: int
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family(MetricFamily):
    """``counter`` is the field of `Counters`; empty where Skydive has none, which shows 0."""

    counter: str


_COUNTERS: Final = (
    ("rx_bytes", "receive_bytes", "Bytes the interface has received."),
    ("tx_bytes", "transmit_bytes", "Bytes the interface has sent."),
    ("rx_packets", "receive_packets", "Packets the interface has received."),
    ("tx_packets", "transmit_packets", "Packets the interface has sent."),
    ("rx_dropped", "receive_dropped", "Received packets the interface has dropped."),
    ("tx_dropped", "transmit_dropped", "Packets to be sent the interface has dropped."),
    ("rx_errors", "receive_errors", "Packets received with an error."),
    ("tx_errors", "transmit_errors", "Packets whose sending failed."),
    ("rx_missed_errors", "receive_missed_errors", "Packets missed for lack of room to receive."),
    ("tx_missed_errors", "", "Always 0: Skydive has no such counter."),
    ("collisions", "collisions", "Collisions seen while sending."),
)
"""Part of the compatible and of the standard name, and what the counter counts.

The former is the field of `Counters` too; the one that Skydive lacks has no standard name."""

_FAMILIES: Final[dict[Naming, tuple[_Family, ...]]] = {
    "compatible": tuple(
        _Family(
            name=f"skydive_network_interface_{name}",
            type="counter",
            help=text,
            counter=name if standard else "",
        )
        for name, standard, text in _COUNTERS
    ),
    "standard": tuple(
        _Family(name=f"skydive_interface_{standard}_total", type="counter", help=text, counter=name)
        for name, standard, text in _COUNTERS
        if standard
    ),
}

_LABELS: Final = ("interface_name", "host", "interface_type", "ipv4", "ipv6", "node_tid")
_NO_TRAFFIC: Final = Counters()


@dataclass(frozen=True)
class _Page:
    """The families of an answer, and when it is too old to be shown."""

    text: bytes
    """In text format 0.0.4."""
    families: tuple[tuple[_Family, slice], ...]
    """Each with the place of its samples in ``text``."""
    busiest: tuple[Interface, ...]
    leaves_at: float

    @cached_property
    def openmetrics(self) -> bytes:
        """The same with the heads of OpenMetrics. Costs nothing until it is asked for."""
        text = memoryview(self.text)
        return b"".join(
            part
            for family, samples in self.families
            for part in (family.head(openmetrics=True).encode(), text[samples])
        )


_NOTHING: Final = _Page(b"", (), (), 0.0)


class Interfaces:
    """The interfaces of the last answer, rendered.

    An answer replaces everything: an interface that it does not name leaves at once. While no
    answer comes, the interfaces stay for three intervals or ``connection_timeout_s``, whichever
    is longer.

    An interface is known by its ``TID``, or by its node's ``ID`` where there is none: this is
    the label ``node_tid``. Nodes whose labels are all the same are one series, that of the
    newest ``UpdatedAt``. Counters are the devices' own: they start over when the device does.

    Any thread may call any method; an update takes long and holds up nobody.
    """

    def __init__(
        self,
        *,
        interval_s: float,
        connection_timeout_s: float,
        stats: TopologyStats,
        naming: Naming = "compatible",
    ) -> None:
        """Begin without interfaces. ``stats`` is kept up to date with every answer."""
        self.keep(interval_s=interval_s, connection_timeout_s=connection_timeout_s)
        self._stats = stats
        self._families = _FAMILIES[naming]
        # Replaced as one, so that readers need no lock.
        self._page = _NOTHING
        self._writing = threading.Lock()

    def keep(self, *, interval_s: float, connection_timeout_s: float) -> None:
        """Show each answer for these times, from the next one on."""
        self._lifetime_s = max(3 * interval_s, connection_timeout_s)

    def update(self, answer: Answer, now: float) -> None:
        """Show the interfaces of ``answer``.

        Nodes that cannot be shown are left out and counted in ``stats.skipped``.
        """
        skipped = dict.fromkeys(INTERFACE_SKIPS, 0)
        skipped["invalid"] = answer.invalid
        rows = _rows(answer.nodes, skipped)
        page = _render(self._families, rows, skipped, now + self._lifetime_s) if rows else _NOTHING
        with self._writing:
            self._page = page
            self._stats.skipped = skipped
            self._stats.interfaces = len(rows)

    def expire(self, now: float) -> None:
        """Forget the interfaces where the last answer is too old."""
        with self._writing:
            if now >= self._page.leaves_at:
                self._page = _NOTHING
                self._stats.interfaces = 0

    def page(self, now: float, openmetrics: bool = False) -> bytes:
        """Return the families, or nothing where there is no interface.

        In text format 0.0.4, or in OpenMetrics, without its end, which wants standard names.
        """
        page = self._page
        if now >= page.leaves_at:
            return b""
        return page.openmetrics if openmetrics else page.text

    def busiest(self, now: float) -> tuple[Interface, ...]:
        """Return those that have received and sent most bytes, `MAX_BUSIEST` of them, in order."""
        page = self._page
        return () if now >= page.leaves_at else page.busiest


class _Row(NamedTuple):
    text: str
    """The labels as the page has them, unique."""
    labels: tuple[str, ...]
    counters: Counters


def _rows(nodes: list[Node], skipped: dict[str, int]) -> list[_Row]:
    """Return what is shown; count what is not."""
    newest: dict[tuple[str, ...], Node] = {}
    for node in nodes:
        labels = _labels(node)
        if not labels[-1]:
            skipped["no_id"] += 1
        elif max(map(len, labels)) > MAX_LABEL_CHARS:
            skipped["text_too_long"] += 1
        elif labels not in newest:
            newest[labels] = node
        else:
            skipped["duplicate"] += 1
            if (node.updated_at or 0) > (newest[labels].updated_at or 0):
                newest[labels] = node
    rows: list[_Row] = []
    room = MAX_LABELS_CHARS
    for labels, node in newest.items():
        text = label_text(dict(zip(_LABELS, labels, strict=True)))
        if len(rows) == MAX_INTERFACES or len(text) > room:
            skipped["too_many"] += 1
            continue
        room -= len(text)
        rows.append(_Row(text, labels, node.metadata.metric or _NO_TRAFFIC))
    return rows


def _labels(node: Node) -> tuple[str, ...]:
    """Return the label values in the order of ``_LABELS``; what is missing is empty."""
    metadata = node.metadata
    return (
        metadata.name or "",
        node.host or "",
        metadata.type or "",
        metadata.ipv4[0] if metadata.ipv4 else "",
        metadata.ipv6[0] if metadata.ipv6 else "",
        node.tid,
    )


def _render(
    families: tuple[_Family, ...],
    rows: list[_Row],
    skipped: dict[str, int],
    leaves_at: float,
) -> _Page:
    parts: list[bytes] = []
    places: list[tuple[_Family, slice]] = []
    end = 0
    for family in families:
        head, samples = family.head(openmetrics=False).encode(), _samples(family, rows, skipped)
        begin = end + len(head)
        end = begin + len(samples)
        parts += (head, samples)
        places.append((family, slice(begin, end)))
    return _Page(b"".join(parts), tuple(places), _busiest(rows), leaves_at)


def _busiest(rows: list[_Row]) -> tuple[Interface, ...]:
    def traffic(row: _Row) -> int:
        return _sum(row.counters.rx_bytes, row.counters.tx_bytes)

    return tuple(
        Interface(
            labels=dict(zip(_LABELS, labels, strict=True)),
            received_bytes=_sum(counters.rx_bytes),
            transmitted_bytes=_sum(counters.tx_bytes),
            dropped_packets=_sum(counters.rx_dropped, counters.tx_dropped),
            errors=_sum(counters.rx_errors, counters.tx_errors),
        )
        for _, labels, counters in heapq.nlargest(MAX_BUSIEST, rows, key=traffic)
    )


def _sum(*values: int) -> int:
    """Return the sum of those that are believed."""
    return sum(value for value in values if 0 <= value <= MAX_COUNTER)


def _samples(family: _Family, rows: list[_Row], skipped: dict[str, int]) -> bytes:
    samples = []
    for labels, _, counters in rows:
        value = getattr(counters, family.counter) if family.counter else 0
        if 0 <= value <= MAX_COUNTER:
            samples.append((labels, str(value)))
        else:
            skipped["out_of_range"] += 1
    return family.lines(samples).encode()


class _FailedError(Exception):
    """An analyzer gave no topology; ``reason`` is one of ``TOPOLOGY_ERRORS``."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class TopologyPoller:
    """Asks for the interfaces, and for names where somebody looks them up, again and again.

    The analyzers of ``config.subscriber.endpoints`` are asked in their order until one answers.
    That one is asked first from then on. Of a name that stands for several addresses, one that
    the resolver gives is asked: every analyzer knows the whole topology.
    """

    def __init__(
        self,
        *,
        config: Config,
        interfaces: Interfaces,
        stats: TopologyStats,
        now: Callable[[], float],
        names: Names | None = None,
        renamed: Callable[[Lookup, Set[str]], object] | None = None,
    ) -> None:
        """Prepare; ``now`` is the clock of ``interfaces`` and ``names``, in seconds.

        Without ``names``, nobody looks them up and nothing is done for them. ``renamed`` is called
        on the event loop, with each of their mappings that has changed and the keys for which
        it has another answer now.

        Raises ConfigError where an analyzer wants TLS and ``config.tls`` names unusable files.
        """
        endpoints = [Endpoint.parse(url) for url in config.subscriber.endpoints]
        context = client_context(config.tls) if any(one.secure for one in endpoints) else None
        interval_s = config.topology.interfaces_interval_s
        self._interfaces = interfaces if interval_s else None
        self._names = names
        self._renamed = renamed
        self._gremlin = QUERY_WITH_NAMES if names else QUERY
        self._interval_s = interval_s or (NAMES_INTERVAL_S if names else 0.0)
        self._stats = stats
        self._now = now
        self._analyzers = [
            Authentication(
                endpoint=endpoint,
                credentials=config.credentials,
                cookies=config.cookies,
                ssl=context,
            )
            for endpoint in endpoints
        ]
        self._preferred: Authentication | None = None
        self._limit = LogLimit(LOG_INTERVAL_S)

    async def run(self) -> None:
        """Ask at once and then in every interval, until cancelled.

        The interval is ``interfaces_interval_s``, or that of names where it is 0. Returns where
        neither is wanted. No failure of an analyzer is raised.
        """
        if not self._interval_s:
            return
        import aiohttp

        clock = asyncio.get_running_loop().time
        async with aiohttp.ClientSession(
            # The next request comes when a kept connection has timed out, and POST is not retried.
            connector=http_connector(force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            # A few kilobytes can decompress to gigabytes: see `_gunzip`.
            auto_decompress=False,
        ) as session:
            begun = clock()
            while True:
                await self._refresh(session)
                await asyncio.sleep(self._interval_s - (clock() - begun) % self._interval_s)

    async def _refresh(self, session: "aiohttp.ClientSession") -> None:
        """Ask one analyzer after the other until one has answered."""
        for analyzer in sorted(self._analyzers, key=lambda one: one is not self._preferred):
            try:
                await self._ask(session, analyzer)
            except _FailedError as error:
                self._failed(analyzer.endpoint.name, error.reason, str(error))
            except Exception as error:
                # A fault of ours must not end the process: flows go on without interfaces.
                log.debug("analyzer %s: unexpected", analyzer.endpoint.name, exc_info=True)
                self._failed(analyzer.endpoint.name, "error", f"{type(error).__name__}: {error}")
            else:
                if analyzer is not self._preferred:
                    log.info("analyzer %s: the topology comes from here", analyzer.endpoint.name)
                self._preferred = analyzer
                return

    async def _ask(self, session: "aiohttp.ClientSession", analyzer: Authentication) -> None:
        """Use the answer of one analyzer, or raise _FailedError."""
        import aiohttp

        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                body, encoding = await self._query(session, analyzer)
        except TimeoutError:
            raise _FailedError("timeout", f"no answer in {REQUEST_TIMEOUT_S:g} s") from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            text = str(error) or type(error).__name__
            if isinstance(error, aiohttp.ServerDisconnectedError) and not analyzer.endpoint.secure:
                text += USE_TLS
            elif isinstance(error.__cause__, ssl.SSLError):
                # aiohttp's own text shows an object's address.
                not_tls = error.__cause__.reason in NOT_TLS
                text = f"{error.__cause__}{USE_PLAIN if not_tls else ''}"
            raise _FailedError("unreachable", text) from None
        except aiohttp.ClientError as error:
            raise _FailedError("malformed", str(error) or type(error).__name__) from None
        # Up to a second of work where there are 20,000 interfaces: decompression does not hold the
        # GIL, decoding does for 0.13 s at most, and the rest gives it away in between.
        now = self._now()
        answer = await asyncio.to_thread(_decoded, body, encoding)
        if self._names is not None:
            await self._update_names(self._names, answer, now)
        if self._interfaces is not None:
            if self._names is not None:
                answer = _only_interfaces(answer)
            await asyncio.to_thread(self._interfaces.update, answer, now)
        self._stats.answers += 1
        self._stats.last_answer_timestamp_s = time.time()

    async def _update_names(self, names: Names, answer: Answer, now: float) -> None:
        changes = await asyncio.to_thread(names.compare, answer.nodes, now)
        if changes.left_out:
            suffix = self._limit.admit("left_out")
            if suffix is not None:
                log.warning("%d nodes and addresses have no name%s", changes.left_out, suffix)
        for lookup, keys in names.apply(changes):
            if self._renamed is not None:
                self._renamed(lookup, keys)

    async def _query(
        self, session: "aiohttp.ClientSession", analyzer: Authentication
    ) -> tuple[bytes, str]:
        """Return an answer's body, as sent, and its ``Content-Encoding``."""
        credentials = analyzer.headers()
        status, body, encoding = await _post(session, analyzer, self._gremlin, credentials)
        if status == 401 and await analyzer.renew(credentials):
            status, body, encoding = await _post(
                session, analyzer, self._gremlin, analyzer.headers()
            )
        match status:
            case 200:
                return body, encoding
            case 401:
                problem = analyzer.problem or "also after a login"
                raise _FailedError("unauthorized", f"HTTP 401; {problem}")
            case 403:
                raise _FailedError("forbidden", "HTTP 403: the user may not read the topology")
            case 400 if not analyzer.endpoint.secure:
                raise _FailedError("status", f"HTTP {status}{USE_TLS}")
            case _:
                raise _FailedError("status", f"HTTP {status}")

    def _failed(self, analyzer: str, reason: str, text: str) -> None:
        self._stats.errors[reason] += 1
        text = f"analyzer {analyzer}: no topology: {printable(text)}"
        self._stats.last_failure = Failure(reason, text)
        suffix = self._limit.admit((analyzer, reason))
        if suffix is not None:
            log.warning("%s%s", text, suffix)


async def _post(
    session: "aiohttp.ClientSession", analyzer: Authentication, query: str, credentials: Headers
) -> tuple[int, bytes, str]:
    """Ask, and return the status, the body of a 200 as sent, and its ``Content-Encoding``."""
    async with analyzer.post(
        session,
        PATH,
        json={"GremlinQuery": query},
        headers=[("Accept-Encoding", "gzip"), *credentials],
    ) as response:
        if response.status in REDIRECTS:
            location = response.headers.get("Location", "")
            raise _FailedError("status", f"HTTP {response.status}{redirect(location)}")
        if response.status != 200:
            return response.status, b"", ""
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise _too_big()
        return response.status, bytes(body), response.headers.get("Content-Encoding", "")


def _decoded(body: bytes, encoding: str) -> Answer:
    """Return what an answer of that ``Content-Encoding`` says. Runs in a worker thread."""
    match encoding.lower():
        case "" | "identity":
            pass
        case "gzip":
            body = _gunzip(body)
        case _:
            raise _FailedError("malformed", f"Content-Encoding {encoding!r} was not asked for")
    try:
        return nodes.read(body)
    except MalformedAnswerError as error:
        raise _FailedError("malformed", str(error)) from None


def _only_interfaces(answer: Answer) -> Answer:
    """Return of an answer to `QUERY_WITH_NAMES` what `QUERY` would have given."""
    ether = [node for node in answer.nodes if node.metadata.encap_type == "ether"]
    return Answer(ether, answer.invalid)


def _gunzip(body: bytes) -> bytes:
    """Decompress an answer, and no more of it than is allowed."""
    unpacker = zlib.decompressobj(wbits=31)  # 31 is gzip
    try:
        answer = unpacker.decompress(body, MAX_ANSWER_BYTES + 1)
    except zlib.error as error:
        raise _FailedError("malformed", str(error)) from None
    if len(answer) > MAX_ANSWER_BYTES:
        raise _too_big()
    if not unpacker.eof:
        raise _FailedError("malformed", "gzip that breaks off")
    return answer


def _too_big() -> _FailedError:
    return _FailedError("too_big", f"an answer of more than {MAX_ANSWER_BYTES} bytes")
