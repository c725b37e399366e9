"""Name resolution, credentials, login and TLS of a connection to an analyzer."""

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from skyfast.config.endpoint import parse_url
from skyfast.config.model import TLS, Credentials
from skyfast.config.yaml_nodes import ConfigError
from skyfast.skydive import auth
from skyfast.skydive.auth import Authentication
from skyfast.skydive.tls import client_context
from tests.support.analyzer import FakeAnalyzer, FakeResponse, Fault
from tests.support.certificates import Authority

NO_CREDENTIALS = Credentials(username="", password="")
USER = Credentials(username="prom", password="hunter2")


@pytest.fixture
async def analyzer() -> AsyncIterator[FakeAnalyzer]:
    async with FakeAnalyzer(username="prom", password="hunter2") as analyzer:
        yield analyzer


def authentication(
    url: str,
    *,
    credentials: Credentials = USER,
    cookies: dict[str, str] | None = None,
) -> Authentication:
    return Authentication(endpoint=parse_url(url), credentials=credentials, cookies=cookies or {})


# Name resolution -----------------------------------------------------------------------------


async def test_resolve_returns_each_address_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def addresses(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert (host, port) == ("analyzer.test", 8082)
        first, second = ("2001:db8::7", port, 0, 0), ("192.0.2.7", port)
        return [(0, 0, 0, "", address) for address in (first, second, first)]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    assert await auth.resolve("analyzer.test", 8082) == ["2001:db8::7", "192.0.2.7"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_ip_address_is_not_resolved(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.delattr(socket, "getaddrinfo")
    assert await auth.resolve(address, 8082) == [address]


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("label too long")])
async def test_resolver_error_is_raised(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(type(error), match=r"unknown|label"):
        await auth.resolve("analyzer.test", 8082)


async def test_resolve_times_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(5) and [])
    monkeypatch.setattr(auth, "RESOLVE_TIMEOUT_S", 0.1)
    try:
        with pytest.raises(socket.gaierror, match=r"no response within 0\.1 s"):
            await auth.resolve("analyzer.test", 8082)
    finally:
        answered.set()


# Request headers -----------------------------------------------------------------------------


def test_no_headers_are_sent_without_credentials() -> None:
    assert authentication("ws://a:1/", credentials=NO_CREDENTIALS).headers() == []


def test_basic_auth_is_encoded_as_utf_8() -> None:
    user = Credentials(username="prom", password="pä:ß")
    (header,) = authentication("ws://a:1/", credentials=user).headers()
    assert header == ("Authorization", "Basic cHJvbTpww6Q6w58=")


def test_cookies_are_sent_in_one_header_in_addition_to_basic_auth() -> None:
    headers = authentication("ws://a:1/", cookies={"a": "1", "b": "2"}).headers()
    assert ("Cookie", "a=1; b=2") in headers
    assert [name for name, _ in headers].count("Authorization") == 1


# Login ---------------------------------------------------------------------------------------


async def test_login_cookie_replaces_basic_auth(analyzer: FakeAnalyzer) -> None:
    auth_state = authentication(analyzer.url, cookies={"proxy": "p"})
    assert await auth_state.reauthenticate(auth_state.headers())
    assert auth_state.headers() == [("Cookie", "proxy=p; authtoken=token1==")]
    assert auth_state.problem == ""
    (request,) = analyzer.logins
    assert request.get("Authorization") is None
    assert request.cookies == {"proxy": "p"}
    assert request.get("Content-Type") == "application/x-www-form-urlencoded"


async def test_login_cookie_replaces_configured_token(analyzer: FakeAnalyzer) -> None:
    auth_state = authentication(analyzer.url, cookies={"authtoken": "configured"})
    assert await auth_state.reauthenticate(auth_state.headers())
    assert auth_state.headers() == [("Cookie", "authtoken=token1==")]


async def test_rejected_cookie_triggers_new_login(analyzer: FakeAnalyzer) -> None:
    auth_state = authentication(analyzer.url)
    for number in (1, 2, 3):
        assert await auth_state.reauthenticate(auth_state.headers())
        assert auth_state.headers() == [("Cookie", f"authtoken=token{number}==")]


async def test_concurrent_rejections_share_one_login(analyzer: FakeAnalyzer) -> None:
    auth_state = authentication(analyzer.url)
    rejected = auth_state.headers()
    assert all(await asyncio.gather(*(auth_state.reauthenticate(rejected) for _ in range(3))))
    assert len(analyzer.logins) == 1


async def test_url_credentials_take_precedence_at_login(analyzer: FakeAnalyzer) -> None:
    url = analyzer.url.replace("ws://", "ws://prom:hunter2@")
    auth_state = authentication(url, credentials=Credentials(username="cluster", password="x"))
    assert await auth_state.reauthenticate(auth_state.headers())


async def test_no_login_is_sent_without_a_username(analyzer: FakeAnalyzer) -> None:
    auth_state = authentication(analyzer.url, credentials=NO_CREDENTIALS)
    assert not await auth_state.reauthenticate(auth_state.headers())
    assert auth_state.problem == "no username is configured"
    assert not analyzer.connections


async def test_login_uses_url_prefix(analyzer: FakeAnalyzer) -> None:
    analyzer.prefix = "/skydive"
    auth_state = authentication(analyzer.url)
    assert await auth_state.reauthenticate(auth_state.headers())
    analyzer.login = FakeResponse(status=404)
    assert not await auth_state.reauthenticate(auth_state.headers())
    assert auth_state.problem.startswith("POST /skydive/login returned HTTP 404")
    assert {*analyzer.paths} == {"/skydive/login"}


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (FakeResponse(status=401), "POST /login returned HTTP 401 without authtoken cookie"),
        (FakeResponse(status=404), "POST /login returned HTTP 404 without authtoken cookie"),
        (FakeResponse(), "POST /login returned HTTP 200 without authtoken cookie"),
        (FakeResponse(headers=(("Set-Cookie", "authtoken=; Path=/"),)), "without authtoken cookie"),
        (Fault.EOF, "POST /login: "),
        (Fault.RESET, "POST /login: "),
        (Fault.GARBAGE, "POST /login: "),
        (Fault.HANG, "POST /login: no response within 0.2 s"),
    ],
    ids=str,
)
async def test_failed_login_reports_problem_and_restores_basic_auth(
    analyzer: FakeAnalyzer,
    monkeypatch: pytest.MonkeyPatch,
    response: FakeResponse | Fault,
    problem: str,
) -> None:
    auth_state = authentication(analyzer.url)
    basic = auth_state.headers()
    assert await auth_state.reauthenticate(basic)
    analyzer.login = response
    with monkeypatch.context() as patch:
        if response is Fault.HANG:
            patch.setattr(auth, "LOGIN_TIMEOUT_S", 0.2)
        assert not await auth_state.reauthenticate(auth_state.headers())
    assert problem in auth_state.problem
    assert auth_state.problem.isprintable()
    assert "hunter2" not in auth_state.problem
    assert auth_state.headers() == basic
    analyzer.login = None
    assert await auth_state.reauthenticate(basic)


async def test_login_to_stopped_analyzer_does_not_raise(analyzer: FakeAnalyzer) -> None:
    await analyzer.stop()
    auth_state = authentication(analyzer.url)
    assert not await auth_state.reauthenticate(auth_state.headers())
    assert auth_state.problem == "POST /login: connection refused"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 8082)"),
            "connection refused",
        ),
        (socket.gaierror(-2, "Name or service not known"), "name or service not known"),
        (OSError("Multiple exceptions: a, b"), "Multiple exceptions: a, b"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong"), "[SSL: WRONG_VERSION_NUMBER] wrong"),
        (ValueError("forged\nline"), "forged\\nline"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_connection_errors_have_the_text_of_the_operating_system(
    error: Exception, text: str
) -> None:
    assert auth.connection_error(error) == text


async def test_login_resolves_host_name(
    analyzer: FakeAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth_state = authentication(f"ws://analyzer.test:{analyzer.port}/ws/subscriber/flow")
    addresses = [(0, 0, 0, "", (analyzer.address, analyzer.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    assert await auth_state.reauthenticate(auth_state.headers())
    assert analyzer.logins[0].get("Host") == f"analyzer.test:{analyzer.port}"


async def test_login_does_not_follow_redirects(analyzer: FakeAnalyzer) -> None:
    async with FakeAnalyzer(username="prom", password="hunter2") as elsewhere:
        target = (("Location", f"{elsewhere.http_url}/login"),)
        analyzer.login = FakeResponse(status=307, headers=target)
        auth_state = authentication(analyzer.url)
        assert not await auth_state.reauthenticate(auth_state.headers())
        assert not elsewhere.connections


async def test_login_uses_tls_of_the_subscription(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = TLS(client_cert="", client_key="", ca_cert=authority.certificate)
    async with FakeAnalyzer(
        ssl=authority.server_context("analyzers.test"), username="prom", password="hunter2"
    ) as analyzer:
        url = f"dns+wss://analyzers.test:{analyzer.port}/ws/subscriber/flow"
        auth_state = Authentication(
            endpoint=parse_url(url).at(analyzer.address),
            credentials=USER,
            cookies={},
            ssl=client_context(tls),
        )
        assert await auth_state.reauthenticate(auth_state.headers())
        # The certificate does not contain the IP address, so a login at this address fails.
        untrusted = Authentication(
            endpoint=parse_url(analyzer.url),
            credentials=USER,
            cookies={},
            ssl=client_context(tls),
        )
        assert not await untrusted.reauthenticate(untrusted.headers())
        assert "certificate" in untrusted.problem
        assert len(analyzer.logins) == 1


def test_http_client_is_imported_lazily() -> None:
    code = "import sys, skyfast.skydive.subscription; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


# TLS -----------------------------------------------------------------------------------------


def test_server_certificate_is_verified_without_ca_cert() -> None:
    context = client_context(TLS(client_cert="", client_key="", ca_cert=""))
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"


def test_encrypted_key_is_rejected_without_asking_for_a_password(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    client = authority.issue("client", password=b"secret")
    tls = TLS(client_cert=client.certificate, client_key=client.key, ca_cert="")
    with pytest.raises(ConfigError, match=r"^tls\.client_key: .* is encrypted; skyfast needs"):
        client_context(tls)
