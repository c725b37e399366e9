"""Logs in to analyzers, and creates the HTTP headers that authenticate requests.

This module imports aiohttp only when a request needs it. Most installations need no login, and
importing aiohttp takes longer than all other imports together.
"""

import asyncio
import base64
import contextlib
import ipaddress
import os
import socket
import ssl as ssl_module
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from skyfast.config.endpoint import Endpoint
from skyfast.config.model import Credentials
from skyfast.config.yaml_nodes import redact_url
from skyfast.runtime.logs import printable

if TYPE_CHECKING:
    import aiohttp

Headers = list[tuple[str, str]]
"""HTTP headers in the order of sending. A name can occur more than once."""

LOGIN_TIMEOUT_S: Final = 10.0
"""Timeout of ``POST /login``, from opening the connection until the response headers arrive."""

RESOLVE_TIMEOUT_S: Final = 10.0

LOGIN_PATH: Final = "/login"

TOKEN_COOKIE: Final = "authtoken"  # noqa: S105 - the name of a cookie, not a secret
"""The cookie that Skydive's ``/login`` sets."""

REDIRECTS: Final = (301, 302, 303, 307, 308)

USE_TLS: Final = "; use wss:// if the analyzer serves TLS"
USE_PLAIN: Final = "; the port does not serve TLS, use ws://"
NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
"""OpenSSL's error codes for data that is not TLS. The code depends on the version of OpenSSL."""


async def resolve(host: str, port: int) -> list[str]:
    """Return the IP addresses of ``host``, in the order that the operating system prefers.

    Each lookup runs in its own daemon thread, because Python does not wait for such threads at
    exit. A lookup in the event loop's executor would delay the exit if the name server does not
    respond.

    Raises:
        OSError: The resolution failed or took longer than RESOLVE_TIMEOUT_S.
        UnicodeError: ``host`` is not a valid host name.

    """
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    loop = asyncio.get_running_loop()
    resolution: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str], error: Exception | None) -> None:
        if resolution.done():  # pragma: no cover - the waiter was cancelled
            return
        if error is not None:
            resolution.set_exception(error)
        else:
            resolution.set_result(addresses)

    def run() -> None:
        addresses: list[str] = []
        error: Exception | None = None
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(address[0]) for *_, address in infos))
        except (OSError, UnicodeError) as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, addresses, error)

    threading.Thread(target=run, name=f"resolve {host}", daemon=True).start()
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            return await resolution
    except TimeoutError:
        problem = f"no response within {RESOLVE_TIMEOUT_S:g} s"
        raise socket.gaierror(socket.EAI_AGAIN, problem) from None


def http_connector(**options: Any) -> "aiohttp.TCPConnector":
    """Return an aiohttp connector that resolves names with `resolve`."""
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Resolver(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            return [
                ResolveResult(
                    hostname=host,
                    host=address,
                    port=port,
                    family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                    proto=0,
                    flags=socket.AI_NUMERICHOST,
                )
                for address in await resolve(host, port)
            ]

        async def close(self) -> None:  # pragma: no cover - aiohttp never calls it here
            pass

    return aiohttp.TCPConnector(resolver=Resolver(), **options)


def connection_error(error: BaseException) -> str:
    """Return why a connection failed, as text that is safe to log.

    An error's own text can lack the reason, as in ``Connect call failed ('127.0.0.1', 8082)``.
    Therefore, if the error has an ``errno``, the result is the operating system's message for this
    ``errno``.
    """
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, ssl_module.SSLError) and error.errno:
        # The error numbers of name resolution are negative, and unknown to `os.strerror`.
        system = os.strerror(error.errno) if error.errno > 0 else error.strerror or text
        text = system[:1].lower() + system[1:]
    return printable(text or type(error).__name__)


def redirect(location: str) -> str:
    """Return the log text for a redirect, without the credentials and the query of ``location``."""
    shown = printable(redact_url(location.partition("?")[0])) if location else "no location"
    return f", redirect to {shown} (not followed)"


class Authentication:
    """Authenticates requests to one analyzer.

    At first, requests have Basic authentication. After HTTP 401, skyfast logs in, and later
    requests have the login cookie. After another HTTP 401, skyfast logs in again. No request has
    both Basic authentication and the login cookie: Skydive would reject such a request when the
    cookie has expired, even with a valid password.

    The headers, cookies and passwords must not be logged.
    """

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        credentials: Credentials,
        cookies: Mapping[str, str],
        ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        """Credentials in the endpoint's URL take precedence over ``credentials``."""
        self.endpoint = endpoint
        self.problem = ""
        """Why the latest `reauthenticate` failed, or an empty string. Safe to log."""
        self._credentials = (
            Credentials(username=endpoint.username, password=endpoint.password)
            if endpoint.username
            else credentials
        )
        self._cookies = dict(cookies)
        self._ssl = ssl
        self._token = ""
        self._renewing = asyncio.Lock()

    def headers(self) -> Headers:
        if self._token:
            return _cookie_header({**self._cookies, TOKEN_COOKIE: self._token})
        headers = _cookie_header(self._cookies)
        user = self._credentials
        if user.username:
            secret = base64.b64encode(f"{user.username}:{user.password}".encode()).decode()
            headers.append(("Authorization", f"Basic {secret}"))
        return headers

    async def reauthenticate(self, rejected_headers: Headers) -> bool:
        """Log in, because a request with ``rejected_headers`` returned HTTP 401.

        Returns whether to send the request again with the new `headers`. If several requests are
        rejected at the same time, one call logs in, and the other calls wait for this login.
        """
        async with self._renewing:
            if self.headers() != rejected_headers:
                return True
            self._token = ""
            if self._credentials.username:
                self.problem = await self._log_in()
            else:
                self.problem = "no username is configured"
            return not self.problem

    def post(
        self,
        session: "aiohttp.ClientSession",
        path: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        **options: Any,
    ) -> "contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]":
        """Send a POST request to the analyzer's URL with ``path`` appended.

        ``session`` should have an `aiohttp.DummyCookieJar`, because other cookie jars add cookies
        to the request. Redirects are not followed, because another server would receive the
        credentials.
        """
        endpoint = self.endpoint
        scheme = "https" if endpoint.secure else "http"
        return session.post(
            f"{scheme}://{endpoint.authority}{endpoint.prefix}{path}",
            headers=[("Host", endpoint.at("").authority), *headers],
            allow_redirects=False,
            ssl=self._ssl or True,
            server_hostname=endpoint.host if endpoint.secure else None,
            **options,
        )

    async def _log_in(self) -> str:
        """Get a login cookie; return an error message that is safe to log, or "" after success."""
        import aiohttp

        request = f"POST {printable(self.endpoint.prefix)}{LOGIN_PATH}"
        form = {"username": self._credentials.username, "password": self._credentials.password}
        try:
            async with (
                aiohttp.ClientSession(
                    connector=http_connector(),
                    timeout=aiohttp.ClientTimeout(total=LOGIN_TIMEOUT_S),
                    cookie_jar=aiohttp.DummyCookieJar(),
                ) as session,
                self.post(
                    session, LOGIN_PATH, data=form, headers=_cookie_header(self._cookies)
                ) as response,
            ):
                token = response.cookies.get(TOKEN_COOKIE)
                if response.status in REDIRECTS:
                    location = response.headers.get("Location", "")
                    return f"{request} returned HTTP {response.status}{redirect(location)}"
                if response.status != 200 or token is None or not token.coded_value:
                    status = response.status
                    return f"{request} returned HTTP {status} without {TOKEN_COOKIE} cookie"
                # If the cookie's value is quoted, requests must contain the quotes, too.
                self._token = token.coded_value
                return ""
        except TimeoutError:
            return f"{request}: no response within {LOGIN_TIMEOUT_S:g} s"
        except (aiohttp.ClientError, OSError) as exc:
            return f"{request}: {connection_error(exc)}"


def _cookie_header(cookies: Mapping[str, str]) -> Headers:
    # RFC 6265, section 5.4: a request has a single Cookie header, with all cookies.
    line = "; ".join(f"{name}={value}" for name, value in cookies.items())
    return [("Cookie", line)] if line else []
