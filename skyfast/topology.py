"""Network interfaces: asked from the topology API, kept, and rendered as metric families.

:class:`Interfaces` holds the state and has neither clock nor socket: answers and ``now`` go in,
a page comes out. :class:`TopologyPoller` asks the analyzers. Nothing here knows of flows, so
a topology API that fails cannot harm them.
"""

import asyncio
import logging
import re
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from skyfast.config import Config
from skyfast.ingest import pruned
from skyfast.login import Authentication, Endpoint, Headers, http_connector
from skyfast.logs import LogLimit, printable
from skyfast.selfmetrics import INTERFACE_SKIPS, TopologyStats, label_text
from skyfast.tls import client_context

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

PATH: Final = "/api/topology"
"""Where an analyzer answers queries."""

QUERY: Final = "G.V().Has('EncapType', 'ether')"
"""The Gremlin query for every network interface."""

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


class MalformedAnswerError(ValueError):
    """An answer is no JSON list, so nothing of it can be used."""


class _Counters(msgspec.Struct, gc=False, rename="pascal"):
    """``Metric``: each counter is left out where it is zero."""

    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    rx_dropped: int = 0
    tx_dropped: int = 0
    rx_errors: int = 0
    tx_errors: int = 0
    rx_missed_errors: int = 0
    collisions: int = 0


class _Metadata(msgspec.Struct, gc=False, rename="pascal"):
    name: str | None = None
    type: str | None = None
    tid: str | None = msgspec.field(default=None, name="TID")
    ipv4: list[str] | None = msgspec.field(default=None, name="IPV4")
    ipv6: list[str] | None = msgspec.field(default=None, name="IPV6")
    metric: _Counters | None = None


class _Node(msgspec.Struct, gc=False, rename="pascal"):
    metadata: _Metadata
    id: str | None = msgspec.field(default=None, name="ID")
    host: str | None = None
    updated_at: int | None = None


_decode_nodes = msgspec.json.Decoder(list[_Node] | None).decode
_decode_node = msgspec.json.Decoder(_Node).decode
_split = msgspec.json.Decoder(list[msgspec.Raw] | None).decode


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    help: str
    counter: str
    """The field of :class:`_Counters`; empty where Skydive has none, which shows 0."""


_FAMILIES: Final = tuple(
    _Family(f"skydive_network_interface_{name}", help_, counter)
    for name, help_, counter in (
        ("rx_bytes", "Bytes the interface has received.", "rx_bytes"),
        ("tx_bytes", "Bytes the interface has sent.", "tx_bytes"),
        ("rx_packets", "Packets the interface has received.", "rx_packets"),
        ("tx_packets", "Packets the interface has sent.", "tx_packets"),
        ("rx_dropped", "Received packets the interface has dropped.", "rx_dropped"),
        ("tx_dropped", "Packets to be sent the interface has dropped.", "tx_dropped"),
        ("rx_errors", "Packets received with an error.", "rx_errors"),
        ("tx_errors", "Packets whose sending failed.", "tx_errors"),
        ("rx_missed_errors", "Packets missed for lack of room to receive.", "rx_missed_errors"),
        ("tx_missed_errors", "Always 0: Skydive has no such counter.", ""),
        ("collisions", "Collisions seen while sending.", "collisions"),
    )
)

_LABELS: Final = ("interface_name", "host", "interface_type", "ipv4", "ipv6", "node_tid")
_NO_TRAFFIC: Final = _Counters()

# JSON text up to half a surrogate pair, as group 1, or that half: an escape that stands for no
# character. Possessive, so that no input makes it backtrack.
_HALF_PAIRS: Final = re.compile(
    r"((?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])"
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})++)"
    r"|\\u[0-9a-fA-F]{4}",
    re.DOTALL,
)


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
        self, *, interval_s: float, connection_timeout_s: float, stats: TopologyStats
    ) -> None:
        """Begin without interfaces. ``stats`` is kept up to date with every answer."""
        self._lifetime_s = max(3 * interval_s, connection_timeout_s)
        self._stats = stats
        # A page and when it is too old: replaced as one, so that readers need no lock.
        self._page: tuple[bytes, float] = (b"", 0.0)
        self._writing = threading.Lock()

    def update(self, answer: bytes, now: float) -> None:
        """Show the interfaces of ``answer``, the JSON text of a list of nodes.

        Nodes that cannot be shown are left out and counted in ``stats.skipped``. Raises
        MalformedAnswerError, and changes nothing, where ``answer`` as a whole is not usable.
        """
        skipped = dict.fromkeys(INTERFACE_SKIPS, 0)
        rows = _rows(_nodes(answer, skipped), skipped)
        page = b"".join(_render(family, rows, skipped) for family in _FAMILIES) if rows else b""
        with self._writing:
            self._page = (page, now + self._lifetime_s)
            self._stats.skipped = skipped
            self._stats.interfaces = len(rows)

    def expire(self, now: float) -> None:
        """Forget the interfaces where the last answer is too old."""
        with self._writing:
            if not self.page(now):
                self._page = (b"", 0.0)
                self._stats.interfaces = 0

    def page(self, now: float) -> bytes:
        """Return the families in text format 0.0.4, or nothing where there is no interface."""
        page, leaves_at = self._page
        return page if now < leaves_at else b""


def _nodes(answer: bytes, skipped: dict[str, int]) -> list[_Node]:
    """Return the usable nodes of ``answer``, and count the others."""
    try:
        return _decode_nodes(answer) or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Rare, so it may be slow: node by node, with every text made readable.
        text = _HALF_PAIRS.sub(_readable, answer.decode(errors="replace")).encode()
    try:
        parts = _parts(text)
    except msgspec.MsgspecError as error:
        raise MalformedAnswerError(str(error)) from None
    nodes = []
    for part in parts:
        try:
            nodes.append(_decode_node(part))
        except msgspec.MsgspecError:
            skipped["invalid"] += 1
    return nodes


def _parts(text: bytes) -> list[msgspec.Raw]:
    try:
        return _split(text) or []
    except RecursionError:
        return _split(pruned(text)) or []


def _readable(match: re.Match[str]) -> str:
    return match[1] or "\ufffd"


def _rows(nodes: list[_Node], skipped: dict[str, int]) -> list[tuple[str, _Counters]]:
    """Return the label text, unique, and the counters of what is shown; count what is not."""
    newest: dict[tuple[str, ...], _Node] = {}
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
    rows: list[tuple[str, _Counters]] = []
    room = MAX_LABELS_CHARS
    for labels, node in newest.items():
        text = label_text(dict(zip(_LABELS, labels, strict=True)))
        if len(rows) == MAX_INTERFACES or len(text) > room:
            skipped["too_many"] += 1
            continue
        room -= len(text)
        rows.append((text, node.metadata.metric or _NO_TRAFFIC))
    return rows


def _labels(node: _Node) -> tuple[str, ...]:
    """Return the label values in the order of ``_LABELS``; what is missing is empty."""
    metadata = node.metadata
    return (
        metadata.name or "",
        node.host or "",
        metadata.type or "",
        metadata.ipv4[0] if metadata.ipv4 else "",
        metadata.ipv6[0] if metadata.ipv6 else "",
        metadata.tid or node.id or "",
    )


def _render(family: _Family, rows: list[tuple[str, _Counters]], skipped: dict[str, int]) -> bytes:
    lines = [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} counter"]
    for labels, counters in rows:
        value = getattr(counters, family.counter) if family.counter else 0
        if 0 <= value <= MAX_COUNTER:
            lines.append(f"{family.name}{labels} {value}")
        else:
            skipped["out_of_range"] += 1
    return ("\n".join(lines) + "\n").encode()


class _FailedError(Exception):
    """An analyzer gave no interfaces; ``reason`` is one of ``TOPOLOGY_ERRORS``."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class TopologyPoller:
    """Asks for the interfaces, again and again.

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
    ) -> None:
        """Prepare; ``now`` is the clock of ``interfaces``, in seconds.

        Raises ConfigError where an analyzer wants TLS and ``config.tls`` names unusable files.
        """
        endpoints = [Endpoint.parse(url) for url in config.subscriber.endpoints]
        ssl = client_context(config.tls) if any(one.secure for one in endpoints) else None
        self._interfaces = interfaces
        self._stats = stats
        self._now = now
        self._interval_s = config.store.interfaces_interval_s
        self._analyzers = [
            Authentication(
                endpoint=endpoint, credentials=config.credentials, cookies=config.cookies, ssl=ssl
            )
            for endpoint in endpoints
        ]
        self._preferred: Authentication | None = None
        self._limit = LogLimit(LOG_INTERVAL_S)

    async def run(self) -> None:
        """Ask at once and then every ``interfaces_interval_s``, until cancelled.

        Returns where that is 0. No failure of an analyzer is raised.
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
                    log.info("analyzer %s: interfaces come from here", analyzer.endpoint.name)
                self._preferred = analyzer
                return

    async def _ask(self, session: "aiohttp.ClientSession", analyzer: Authentication) -> None:
        """Update the interfaces from one analyzer, or raise _FailedError."""
        import aiohttp

        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                body, encoding = await self._query(session, analyzer)
        except TimeoutError:
            raise _FailedError("timeout", f"no answer in {REQUEST_TIMEOUT_S:g} s") from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            raise _FailedError("unreachable", str(error) or type(error).__name__) from None
        except aiohttp.ClientError as error:
            raise _FailedError("malformed", str(error) or type(error).__name__) from None
        # Up to half a second of work where there are 20,000 interfaces: decompression does not hold
        # the GIL, decoding does for 0.13 s at most, and rendering gives it away in between.
        await asyncio.to_thread(self._update, body, encoding, self._now())
        self._stats.answers += 1
        self._stats.last_answer_timestamp_s = time.time()

    async def _query(
        self, session: "aiohttp.ClientSession", analyzer: Authentication
    ) -> tuple[bytes, str]:
        """Return an answer's body, as sent, and its ``Content-Encoding``."""
        credentials = analyzer.headers()
        status, body, encoding = await _post(session, analyzer, credentials)
        if status == 401 and await analyzer.renew(credentials):
            status, body, encoding = await _post(session, analyzer, analyzer.headers())
        match status:
            case 200:
                return body, encoding
            case 401:
                problem = analyzer.problem or "also after a login"
                raise _FailedError("unauthorized", f"HTTP 401; {problem}")
            case 403:
                raise _FailedError("forbidden", "HTTP 403: the user may not read the topology")
            case _:
                raise _FailedError("status", f"HTTP {status}")

    def _update(self, body: bytes, encoding: str, now: float) -> None:
        """Use an answer that was received at ``now``. Runs in a worker thread."""
        match encoding.lower():
            case "" | "identity":
                answer = body
            case "gzip":
                answer = _gunzip(body)
            case _:
                raise _FailedError("malformed", f"Content-Encoding {encoding!r} was not asked for")
        try:
            self._interfaces.update(answer, now)
        except MalformedAnswerError as error:
            raise _FailedError("malformed", str(error)) from None

    def _failed(self, analyzer: str, reason: str, text: str) -> None:
        self._stats.errors[reason] += 1
        suffix = self._limit.admit((analyzer, reason))
        if suffix is not None:
            log.warning("analyzer %s: no interfaces: %s%s", analyzer, printable(text), suffix)


async def _post(
    session: "aiohttp.ClientSession", analyzer: Authentication, credentials: Headers
) -> tuple[int, bytes, str]:
    """Ask, and return the status, the body of a 200 as sent, and its ``Content-Encoding``."""
    async with analyzer.post(
        session,
        PATH,
        json={"GremlinQuery": QUERY},
        headers=[("Accept-Encoding", "gzip"), *credentials],
    ) as response:
        if response.status != 200:
            return response.status, b"", ""
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise _too_big()
        return response.status, bytes(body), response.headers.get("Content-Encoding", "")


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
