"""Authentication at an analyzer.

For the subscriptions and for the topology poller. Nothing here decides when to connect or
what to log. aiohttp is imported with the first login: most installations have none, and
the import takes longer than all others.
"""

import asyncio
import base64
import contextlib
import ipaddress
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
"""HTTP headers in order; a name can come twice."""

LOGIN_TIMEOUT_S: Final = 10.0
"""How long ``POST /login`` may take, from the connection to the answer's head."""

RESOLVE_TIMEOUT_S: Final = 10.0
"""How long a name server may take."""

LOGIN_PATH: Final = "/login"
"""Where an analyzer takes user name and password, below the prefix of its URL."""

TOKEN_COOKIE: Final = "authtoken"  # noqa: S105 - its name, not its value
"""The cookie that Skydive's ``/login`` sets."""

REDIRECTS: Final = (301, 302, 303, 307, 308)

USE_TLS: Final = "; use wss:// if the analyzer serves TLS"
USE_PLAIN: Final = "; the port does not serve TLS, use ws://"
NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
"""How OpenSSL calls bytes of another protocol, by its versions."""


async def resolve(host: str, port: int) -> list[str]:
    """Return the IP addresses of ``host``, the best first.

    Each look-up has a daemon thread of its own. The threads of the event loop would do, but
    the end of the process waits for them, and so for a name server that does not answer.

    Raises:
        OSError: There are none, or none is found in RESOLVE_TIMEOUT_S.
        UnicodeError: ``host`` cannot be a name.

    """
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str], error: Exception | None) -> None:
        if answer.done():  # pragma: no cover - the waiter was cancelled
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(addresses)

    def run() -> None:
        addresses: list[str] = []
        error: Exception | None = None
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        except (OSError, UnicodeError) as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, addresses, error)

    threading.Thread(target=run, name=f"resolve {host}", daemon=True).start()
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            return await answer
    except TimeoutError:
        problem = f"no response within {RESOLVE_TIMEOUT_S:g} s"
        raise socket.gaierror(socket.EAI_AGAIN, problem) from None


def http_connector(**options: Any) -> "aiohttp.TCPConnector":
    """Return a connector, with aiohttp's ``options``, that finds addresses by `resolve`."""
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


def redirect(location: str) -> str:
    """Return what to log of a redirect, after its status, without the query and credentials."""
    shown = printable(redact_url(location.partition("?")[0])) if location else "no location"
    return f", redirect to {shown} (not followed)"


class Authentication:
    """What is sent to one analyzer as proof of who we are.

    This is Basic authentication until a request is answered 401, then the cookie of a
    login; a 401 on the cookie makes a new one. Never both: Skydive looks at the cookie first,
    and an expired token beats a good password. Cookies of the configuration are always sent.

    Headers, cookies and passwords of this object must not be logged.
    """

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        credentials: Credentials,
        cookies: Mapping[str, str],
        ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        """Begin with Basic. The endpoint's own credentials win over ``credentials``."""
        self.endpoint = endpoint
        self.problem = ""
        """Why the latest renewal failed, fit for a log; empty if it did not."""
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
        """Return the headers ``Authorization`` and ``Cookie``, as far as there are any."""
        if self._token:
            return _cookie_header({**self._cookies, TOKEN_COOKIE: self._token})
        headers = _cookie_header(self._cookies)
        user = self._credentials
        if user.username:
            secret = base64.b64encode(f"{user.username}:{user.password}".encode()).decode()
            headers.append(("Authorization", f"Basic {secret}"))
        return headers

    async def reauthenticate(self, rejected_headers: Headers) -> bool:
        """Log in, after a request with the headers ``rejected_headers`` was answered 401.

        Returns whether `headers` are now worth another try; if not, ``problem`` says why.
        Of requests that were rejected_headers together, one logs in and the others use its token.
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
        """Begin ``POST path``, below the prefix, to the analyzer.

        ``headers`` and ``options`` go to aiohttp.
        The session should have a `aiohttp.DummyCookieJar`: cookies are sent by `headers` alone.
        Redirects are not followed, so that credentials stay with the analyzer.
        """
        endpoint = self.endpoint
        scheme = "https" if endpoint.secure else "http"
        return session.post(
            f"{scheme}://{endpoint.name}{endpoint.prefix}{path}",
            headers=[("Host", endpoint.at("").name), *headers],
            allow_redirects=False,
            ssl=self._ssl or True,
            server_hostname=endpoint.host if endpoint.secure else None,
            **options,
        )

    async def _log_in(self) -> str:
        """Get a token; return "" or, fit for a log, what went wrong."""
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
                # As it was sent: a value in quotes is given back in quotes.
                self._token = token.coded_value
                return ""
        except TimeoutError:
            return f"{request} did not respond within {LOGIN_TIMEOUT_S:g} s"
        except (aiohttp.ClientError, OSError) as exc:
            return f"{request}: {printable(exc) or type(exc).__name__}"


def _cookie_header(cookies: Mapping[str, str]) -> Headers:
    # One header for all of them: RFC 6265, section 5.4.
    line = "; ".join(f"{name}={value}" for name, value in cookies.items())
    return [("Cookie", line)] if line else []
