"""The HTTP server: routes, start and stop.

`skyfast.web.exposition` renders the metrics pages. `skyfast.web.connections` limits and closes
connections.
"""

import asyncio
import contextlib
import errno
import logging
import math
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import HttpVersion11, hdrs, web

from skyfast.config.endpoint import Endpoint
from skyfast.config.model import Config, Web
from skyfast.runtime.logs import LogLimit, printable
from skyfast.stats import ScrapeStats
from skyfast.web import (
    cardinality,
    cardinality_html,
    exposition,
    flow_query,
    help_html,
    not_found_html,
    status,
    status_html,
)
from skyfast.web.connections import (
    HttpConnection,
    HttpConnections,
    connection_of,
    make_manager,
)
from skyfast.web.exposition import CONTENT_TYPES, Exposition, Part
from skyfast.web.flow_query import ALL_FLOWS, FlowQuery, FlowQueryError
from skyfast.web.listen import (
    AS_CONFIGURED,
    Listen,
    ListenError,
    bound,
    configured,
    listening_sockets,
)
from skyfast.web.responses import (
    busy_response,
    encoding,
    header_value,
    html_response,
    json_response,
    openmetrics_version,
    prefers_html,
    response_headers,
    text_response,
    wants_json,
)
from skyfast.web.scan_cache import BusyError
from skyfast.web.status import Status
from skyfast.web.top import PARAMETERS, RankingQueryError
from skyfast.wording import counted

if TYPE_CHECKING:
    from skyfast.web.auth import WebSecurity


RESPONSE_TIMEOUT_S = 10.0
"""Timeout of responses other than metrics pages."""

RANKING_TIMEOUT_S = 5.0
"""Timeout of the ranking. After this time, the status page is sent without a ranking."""

MAX_STATUS_PAGES = 8
"""Maximum number of status pages rendered at once. Further requests get HTTP status 503."""

MAX_SCRAPE_TIMEOUT_S = 600.0
"""The longest timeout that a scraper can request."""

STOP_TIMEOUT_S = 1.0
"""Timeout of `WebServer.stop`."""

ACCEPT_PAUSE_S = 0.1
"""How long to wait after ``accept`` fails, for example because no file descriptor is free."""

BACKLOG = 256
"""Maximum number of connections that the kernel queues while the event loop is busy."""

CHALLENGE = 'Basic realm="skyfast", charset="UTF-8"'

FORBIDDEN = "the client certificate has none of the names in client_allowed_sans"
"""The reason in the response to a client whose certificate has none of the allowed SANs."""

SCRAPE_TIMEOUT_HEADER = "X-Prometheus-Scrape-Timeout-Seconds"

FLOWS_PATH = "/metrics/flows"
"""The path of the only page that accepts the parameter ``part``: see `flow_query`."""

_READ_METHODS = (hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS)
_RELOAD_METHODS = (hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_OPTIONS)

ReloadFunction = Callable[[], Awaitable[str | None]]
"""Reloads the configuration. Returns the text of the error, or None on success."""

log = logging.getLogger("skyfast.web")


class WebServer:
    def __init__(
        self,
        *,
        config: Config,
        exposition: Exposition,
        status: Status,
        ready: Callable[[], bool],
        stats: ScrapeStats,
        reload: ReloadFunction | None = None,
        security: "WebSecurity | None" = None,
        listen_at: Listen = AS_CONFIGURED,
    ) -> None:
        """Create a server that does not listen yet: see `start`.

        * ``ready`` returns whether skyfast is subscribed to an analyzer.
        * ``reload`` is called for requests to ``/-/reload``. If ``reload`` is None, these requests
          are refused.
        * ``security`` is closed by `stop`. If ``security`` is None, the server uses plain HTTP
          without authentication.
        """
        self._listen_at = listen_at
        self.addresses = list(listen_at.addresses) or [configured(config)]
        """The listening addresses. If a port is 0, `start` replaces the 0 with a free port."""
        self._limits = config.web
        self._reload = reload
        self._security = security
        self._exposition = exposition
        self._status = status
        self._ready = ready
        self._stats = stats
        self._scrapers: Counter[str] = Counter()
        self._status_pages = 0
        # Rendering HTML holds the GIL, so more threads would only slow down the event loop. In the
        # default executor, rendering would delay other tasks.
        self._html_executor = ThreadPoolExecutor(1, thread_name_prefix="skyfast-status")
        self._connections = HttpConnections(limit=config.web.max_connections, stats=stats)
        self._servers: list[asyncio.Server] = []
        self._acceptors: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._log_limit = LogLimit()

    @property
    def port(self) -> int:
        return self.addresses[0].port

    def configure(self, limits: Web, *, reload: ReloadFunction | None) -> None:
        """Apply new limits. Responses in progress keep the limits they started with."""
        self._limits = limits
        self._connections.limit = limits.max_connections
        self._reload = reload

    async def start(self) -> None:
        """Start listening. Raises ListenError if an address or port is unavailable."""
        loop = asyncio.get_running_loop()
        manager = make_manager(self._handle)
        listeners = await self._listen()
        for listener in listeners:
            if self._security is not None and self._security.config.tls is not None:
                accepting = self._accept(listener, manager, self._security)
                self._acceptors.append(asyncio.create_task(accepting))
                continue
            server = await loop.create_server(
                lambda: HttpConnection(manager, loop=loop, connections=self._connections),
                sock=listener,
                backlog=BACKLOG,
            )
            self._servers.append(server)

    async def _listen(self) -> list[socket.socket]:
        if self._listen_at.sockets:
            self.addresses = [bound(socket_) for socket_ in self._listen_at.sockets]
            return list(self._listen_at.sockets)
        listeners: list[socket.socket] = []
        for i, address in enumerate(self.addresses):
            try:
                try:
                    listening = await listening_sockets(address)
                except ListenError as error:
                    if error.errno != errno.EADDRINUSE or not self._listen_at.any_port:
                        raise
                    listening = await listening_sockets(Endpoint(address.host, 0))
            except ListenError:
                for listener in listeners:
                    listener.close()
                raise
            self.addresses[i] = Endpoint(address.host, bound(listening[0]).port)
            listeners += listening
        return listeners

    async def stop(self) -> None:
        """Close all connections within `STOP_TIMEOUT_S`. Reset connections with open responses."""
        for server in self._servers:
            server.close()
        for acceptor in self._acceptors:
            acceptor.cancel()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._connections.close()
                if self._tasks:
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            log.warning("HTTP server stopped; unfinished responses: %d", len(self._tasks))
        self._html_executor.shutdown(wait=False, cancel_futures=True)
        if self._security is not None:
            self._security.close()

    async def _accept(
        self, listener: socket.socket, manager: web.Server, security: "WebSecurity"
    ) -> None:
        """Accept TLS connections.

        `asyncio.Server` is not suitable, for two reasons:

        * It uses one SSL context for all connections, but the web configuration can change.
        * It reports a connection only after the handshake, but ``web.max_connections`` must also
          limit connections that are still in the handshake.
        """
        loop = asyncio.get_running_loop()
        with listener:
            listener.listen(BACKLOG)
            listener.setblocking(False)
            while True:
                try:
                    client, _ = await loop.sock_accept(listener)
                except OSError as error:  # pragma: no cover - no descriptor is free
                    self._log_limit.warn(log, "accept", f"cannot accept a connection: {error}")
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                connection = HttpConnection(manager, loop=loop, connections=self._connections)
                connection.start_tls(client, security)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Handle a request. Send the complete response, so that aiohttp itself sends nothing."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        connection = connection_of(request)
        connection.begin_response(RESPONSE_TIMEOUT_S)
        if request.version < HttpVersion11 or hdrs.UPGRADE in request.headers:
            connection.close()
        try:
            rejection = await self._rejection(request)
            response = rejection if rejection is not None else await self._route(request)
            if not response.prepared:
                response.headers.update(self._configured_headers())
            await response.prepare(request)
            await response.write_eof()
        finally:
            connection.end_response()
        return response

    async def _rejection(self, request: web.BaseRequest) -> web.Response | None:
        if self._security is None:
            return None
        connection = connection_of(request)
        if connection.is_forbidden:
            response = text_response(f"Forbidden: {FORBIDDEN}.", HTTPStatus.FORBIDDEN)
            response.force_close()
            return response
        is_health = (route := ROUTES.get(request.path)) is not None and route.is_health
        rejection = await self._security.authenticate(
            request.headers.get(hdrs.AUTHORIZATION),
            connection.address,
            public=self._limits.health_without_auth and is_health,
        )
        if rejection is None:
            return None
        response = text_response(f"{rejection.status.phrase}.", rejection.status)
        if rejection.status is HTTPStatus.UNAUTHORIZED:
            response.headers[hdrs.WWW_AUTHENTICATE] = CHALLENGE
        elif rejection.retry_after_s is not None:
            response.headers[hdrs.RETRY_AFTER] = str(rejection.retry_after_s)
        return response

    def _configured_headers(self) -> Mapping[str, str]:
        return {} if self._security is None else self._security.config.headers

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        route = ROUTES.get(request.path)
        if route is None:
            return _not_found(request)
        allowed = ", ".join(route.methods)
        if request.method == hdrs.METH_OPTIONS:
            headers = response_headers({hdrs.ALLOW: allowed})
            return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)
        if request.method not in route.methods:
            response = text_response(
                f"Method not allowed. Allowed methods: {allowed}.", HTTPStatus.METHOD_NOT_ALLOWED
            )
            response.headers[hdrs.ALLOW] = allowed
            return response
        if flow_query.PART in request.query and request.path != FLOWS_PATH:
            return text_response(
                f"Only {FLOWS_PATH} accepts the parameter '{flow_query.PART}'.",
                HTTPStatus.BAD_REQUEST,
            )
        return await route.handle(self, request)

    async def _health(self, _: web.BaseRequest) -> web.Response:
        return text_response("skyfast is healthy.")

    async def _readiness(self, _: web.BaseRequest) -> web.Response:
        if not self._ready():
            return text_response(
                "Not ready: not subscribed to any analyzer.", HTTPStatus.SERVICE_UNAVAILABLE
            )
        return text_response("skyfast is ready.")

    async def _reload_config(self, _: web.BaseRequest) -> web.Response:
        """Reload the configuration, and respond as Prometheus does."""
        if self._reload is None:
            return text_response(
                "Lifecycle API is not enabled. To enable it, set web.enable_reload to true.",
                HTTPStatus.FORBIDDEN,
            )
        # If the client disconnects, the reload continues.
        task = asyncio.ensure_future(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        error = await asyncio.shield(task)
        if error is not None:
            return text_response(
                f"failed to reload config: {error}", HTTPStatus.INTERNAL_SERVER_ERROR
            )
        return text_response("Configuration reloaded.")

    async def _status_page(self, request: web.BaseRequest) -> web.Response:
        """Return the status page. Unknown parameters are ignored."""
        ranking = self._status.ranking
        parameters = [(name, text) for name, text in request.query.items() if name in PARAMETERS]
        try:
            query = ranking.query(parameters, n=status_html.DEFAULT_ROWS, any_by=True)
        except RankingQueryError as error:
            return text_response(str(error), HTTPStatus.BAD_REQUEST)
        if self._status_pages >= MAX_STATUS_PAGES:
            return busy_response("too many status pages are being rendered")
        self._status_pages += 1
        try:
            top = None
            with contextlib.suppress(BusyError, TimeoutError):
                async with asyncio.timeout(RANKING_TIMEOUT_S):
                    top = (await ranking.top(query)).top
            report = await self._status.report()
            # Render in a thread: rendering hundreds of rows takes tens of milliseconds.
            text = await asyncio.get_running_loop().run_in_executor(
                self._html_executor, status_html.as_html, report, ranking, query, top
            )
        finally:
            self._status_pages -= 1
        return html_response(text)

    async def _api_status(self, request: web.BaseRequest) -> web.Response:
        if request.query:
            return text_response("This page accepts no parameters.", HTTPStatus.BAD_REQUEST)
        return json_response(status.as_json(await self._status.report()))

    async def _api_top(self, request: web.BaseRequest) -> web.Response:
        ranking = self._status.ranking
        try:
            query = ranking.query(list(request.query.items()))
            return json_response((await ranking.top(query)).json)
        except RankingQueryError as error:
            return text_response(str(error), HTTPStatus.BAD_REQUEST)
        except BusyError:
            return busy_response("too many rankings are in progress")

    async def _cardinality(self, request: web.BaseRequest) -> web.Response:
        counts = self._exposition.source.cardinality
        label = request.query.get("without") or None
        if label is not None and label not in counts.labels:
            return text_response(
                f"Unknown label '{printable(label)}'. Labels: {', '.join(counts.labels)}.",
                HTTPStatus.BAD_REQUEST,
            )
        try:
            report = await counts.report(label)
        except BusyError:
            return busy_response("another report is in progress")
        if wants_json(request):
            response = json_response(cardinality.as_json(report))
        else:
            response = html_response(cardinality_html.as_html(report))
        response.headers[hdrs.VARY] = hdrs.ACCEPT
        return response

    async def _help(self, _: web.BaseRequest) -> web.Response:
        return html_response(help_html.as_html())

    async def _flows_page(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            query = flow_query.parse(
                request.query.items(), families=self._exposition.source.flow_families
            )
        except FlowQueryError as error:
            return text_response(str(error), HTTPStatus.BAD_REQUEST)
        return await self._page(request, Part.FLOWS, query)

    async def _page(
        self, request: web.BaseRequest, part: Part, query: FlowQuery = ALL_FLOWS
    ) -> web.StreamResponse:
        openmetrics = 0
        vary: str = hdrs.ACCEPT_ENCODING
        if self._limits.openmetrics:
            openmetrics = openmetrics_version(
                header_value(request, hdrs.ACCEPT),
                with_first=self._exposition.source.standard_names,
            )
            vary = f"{hdrs.ACCEPT}, {hdrs.ACCEPT_ENCODING}"
        headers = response_headers(
            {
                hdrs.CONTENT_TYPE: CONTENT_TYPES[openmetrics],
                hdrs.VARY: vary,
                **self._configured_headers(),
            }
        )
        coding = encoding(header_value(request, hdrs.ACCEPT_ENCODING))
        if coding is None:
            response = text_response(
                "Accept-Encoding allows none of the supported encodings: identity, gzip.",
                HTTPStatus.NOT_ACCEPTABLE,
            )
            response.headers[hdrs.VARY] = vary
            return response
        if coding == "gzip":
            headers[hdrs.CONTENT_ENCODING] = coding
        if request.method == hdrs.METH_HEAD:
            # Send no page in response to HEAD. The client would mistake the page for the next
            # response.
            return web.StreamResponse(headers=headers)
        if part is Part.SELF:
            # The limits of concurrent scrapes do not apply to /metrics/self: this page is small,
            # and must stay available under overload.
            self_page = await self._exposition.self_page(openmetrics=openmetrics)
            body = exposition.compress(self_page) if coding == "gzip" else self_page
            return web.Response(body=body, headers=headers)
        connection = connection_of(request)
        if limit := self._scrape_limit(connection.address, parts=query.parts):
            self._stats.rejected += 1
            self._log_limit.warn(
                log, "crowd", f"scrape from {connection.address} rejected: {limit}"
            )
            return busy_response(limit)
        self._scrapers[connection.address] += 1
        try:
            return await self._stream(request, web.StreamResponse(headers=headers), part, query)
        finally:
            self._scrapers -= Counter((connection.address,))

    def _scrape_limit(self, address: str, *, parts: int) -> str:
        """Return which limit of concurrent scrapes is reached, as text; "" if no limit is reached.

        ``parts`` is the number of parts in which the scraper reads the page.
        """
        if self._scrapers.total() >= (limit := self._limits.max_scrapes):
            where, key = "", "web.max_scrapes"
        elif self._scrapers[address] >= (limit := self._limits.max_scrapes_per_address):
            where, key = " to this address", "web.max_scrapes_per_address"
        else:
            return ""
        pages = counted(limit, "page is", "pages are")
        text = f"{pages} being served{where}, which is the maximum ({key})"
        if parts > limit:
            text += f"; to scrape {parts} parts at the same time, set {key} to at least {parts}"
        return text

    async def _stream(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        part: Part,
        query: FlowQuery,
    ) -> web.StreamResponse:
        """Send the page. If an error occurs after the first byte, reset the TCP connection."""
        timeout_s = _scrape_timeout_s(
            request.headers.get(SCRAPE_TIMEOUT_HEADER), default_s=self._limits.scrape_timeout_s
        )
        connection = connection_of(request)
        connection.begin_response(timeout_s)
        start_s = time.perf_counter()
        page = self._exposition.stream(
            part,
            gzip=hdrs.CONTENT_ENCODING in response.headers,
            direct=self._limits.gzip == "direct",
            openmetrics=CONTENT_TYPES.index(response.headers[hdrs.CONTENT_TYPE]),
            query=query,
        )
        try:
            async with page:
                async for chunk in page:
                    await response.prepare(request)
                    await response.write(chunk)
                await response.prepare(request)
                await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            # The client, a timeout or stop() has closed the connection.
            if connection.timed_out:
                self._log_limit.warn(
                    log,
                    "late",
                    f"scrape from {connection.address} timed out after {timeout_s:g} s:"
                    f" {page.page_bytes} bytes rendered",
                )
            self._stats.failures["deadline" if connection.timed_out else "disconnected"] += 1
            raise
        except Exception:
            self._stats.failures["error"] += 1
            if response.prepared:
                connection.reset()
            raise
        if Part.FLOWS in part:
            self._stats.scrapes += 1
            duration_s = time.perf_counter() - start_s
            self._stats.durations.observe(duration_s)
            self._stats.last_duration_s = duration_s
            self._stats.last_bytes = page.page_bytes
        return response


@dataclass(frozen=True, slots=True)
class Route:
    handle: Callable[[WebServer, web.BaseRequest], Awaitable[web.StreamResponse]]
    methods: tuple[str, ...] = _READ_METHODS
    is_health: bool = False
    """Whether the path needs no authentication if ``web.health_without_auth`` is set."""


def _page(part: Part) -> Route:
    return Route(lambda server, request: server._page(request, part))


ROUTES: Final[Mapping[str, Route]] = {
    "/": Route(WebServer._status_page),
    "/metrics": _page(Part.ALL),
    FLOWS_PATH: Route(WebServer._flows_page),
    "/metrics/interfaces": _page(Part.INTERFACES),
    "/metrics/captures": _page(Part.CAPTURES),
    "/metrics/self": _page(Part.SELF),
    "/cardinality": Route(WebServer._cardinality),
    "/help": Route(WebServer._help),
    "/api/status": Route(WebServer._api_status),
    "/api/top": Route(WebServer._api_top),
    "/-/healthy": Route(WebServer._health, is_health=True),
    "/-/ready": Route(WebServer._readiness, is_health=True),
    "/-/reload": Route(WebServer._reload_config, _RELOAD_METHODS),
    "*": Route(WebServer._health),  # the target of "OPTIONS *" (RFC 9110, section 9.3.7)
}
"""The routes by path. Requests for other paths get status 404."""


def _not_found(request: web.BaseRequest) -> web.Response:
    """Return a response with status 404: an HTML page for browsers, otherwise plain text."""
    if prefers_html(header_value(request, hdrs.ACCEPT)):
        response = html_response(not_found_html.as_html(request.path), HTTPStatus.NOT_FOUND)
    else:
        response = text_response("Page not found.", HTTPStatus.NOT_FOUND)
    response.headers[hdrs.VARY] = hdrs.ACCEPT
    return response


def _scrape_timeout_s(value: str | None, *, default_s: float) -> float:
    """Return the timeout that a scraper requests, or ``default_s`` if ``value`` is invalid."""
    try:
        timeout_s = float(value or "")
    except ValueError:
        return default_s
    return min(timeout_s, MAX_SCRAPE_TIMEOUT_S) if 0 < timeout_s < math.inf else default_s
