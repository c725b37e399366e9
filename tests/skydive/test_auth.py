"""Who an analyzer is, and how we prove to it who we are."""

import asyncio
import socket
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
from tests.support.analyzer import Answer, FakeAnalyzer, Fault
from tests.support.certificates import Authority

NOBODY = Credentials(username="", password="")
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


# Where it listens ----------------------------------------------------------------------------


async def test_a_name_is_resolved_to_each_of_its_addresses_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def addresses(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert (host, port) == ("analyzer.test", 8082)
        first, second = ("2001:db8::7", port, 0, 0), ("192.0.2.7", port)
        return [(0, 0, 0, "", address) for address in (first, second, first)]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    assert await auth.resolve("analyzer.test", 8082) == ["2001:db8::7", "192.0.2.7"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_an_address_is_not_looked_up(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.delattr(socket, "getaddrinfo")
    assert await auth.resolve(address, 8082) == [address]


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("label too long")])
async def test_what_the_resolver_raises_is_raised(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(type(error), match=r"unknown|label"):
        await auth.resolve("analyzer.test", 8082)


async def test_a_name_server_that_does_not_answer_is_given_up(
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


# What is sent --------------------------------------------------------------------------------


def test_without_credentials_nothing_is_sent() -> None:
    assert authentication("ws://a:1/", credentials=NOBODY).headers() == []


def test_basic_is_encoded_as_utf_8() -> None:
    user = Credentials(username="prom", password="pä:ß")
    (header,) = authentication("ws://a:1/", credentials=user).headers()
    assert header == ("Authorization", "Basic cHJvbTpww6Q6w58=")


def test_cookies_are_one_header_beside_basic() -> None:
    headers = authentication("ws://a:1/", cookies={"a": "1", "b": "2"}).headers()
    assert ("Cookie", "a=1; b=2") in headers
    assert [name for name, _ in headers].count("Authorization") == 1


# Logging in ----------------------------------------------------------------------------------


async def test_the_login_cookie_replaces_basic(analyzer: FakeAnalyzer) -> None:
    proof = authentication(analyzer.url, cookies={"proxy": "p"})
    assert await proof.reauthenticate(proof.headers())
    assert proof.headers() == [("Cookie", "proxy=p; authtoken=token1==")]
    assert proof.problem == ""
    (request,) = analyzer.logins
    assert request.get("Authorization") is None
    assert request.cookies == {"proxy": "p"}
    assert request.get("Content-Type") == "application/x-www-form-urlencoded"


async def test_the_login_replaces_a_configured_token(analyzer: FakeAnalyzer) -> None:
    proof = authentication(analyzer.url, cookies={"authtoken": "configured"})
    assert await proof.reauthenticate(proof.headers())
    assert proof.headers() == [("Cookie", "authtoken=token1==")]


async def test_a_refused_cookie_makes_a_new_login(analyzer: FakeAnalyzer) -> None:
    proof = authentication(analyzer.url)
    for number in (1, 2, 3):
        assert await proof.reauthenticate(proof.headers())
        assert proof.headers() == [("Cookie", f"authtoken=token{number}==")]


async def test_requests_refused_together_share_one_login(analyzer: FakeAnalyzer) -> None:
    proof = authentication(analyzer.url)
    refused = proof.headers()
    assert all(await asyncio.gather(*(proof.reauthenticate(refused) for _ in range(3))))
    assert len(analyzer.logins) == 1


async def test_the_credentials_of_the_url_log_in(analyzer: FakeAnalyzer) -> None:
    url = analyzer.url.replace("ws://", "ws://prom:hunter2@")
    proof = authentication(url, credentials=Credentials(username="cluster", password="x"))
    assert await proof.reauthenticate(proof.headers())


async def test_without_a_user_name_nobody_logs_in(analyzer: FakeAnalyzer) -> None:
    proof = authentication(analyzer.url, credentials=NOBODY)
    assert not await proof.reauthenticate(proof.headers())
    assert proof.problem == "no username is configured"
    assert not analyzer.connections


async def test_a_login_keeps_to_the_prefix(analyzer: FakeAnalyzer) -> None:
    analyzer.prefix = "/skydive"
    proof = authentication(analyzer.url)
    assert await proof.reauthenticate(proof.headers())
    analyzer.login = Answer(status=404)
    assert not await proof.reauthenticate(proof.headers())
    assert proof.problem.startswith("POST /skydive/login returned HTTP 404")
    assert {*analyzer.paths} == {"/skydive/login"}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer(status=401), "POST /login returned HTTP 401 without authtoken cookie"),
        (Answer(status=404), "POST /login returned HTTP 404 without authtoken cookie"),
        (Answer(), "POST /login returned HTTP 200 without authtoken cookie"),
        (Answer(headers=(("Set-Cookie", "authtoken=; Path=/"),)), "without authtoken cookie"),
        (Fault.EOF, "POST /login: "),
        (Fault.RESET, "POST /login: "),
        (Fault.GARBAGE, "POST /login: "),
        (Fault.HANG, "POST /login did not respond within 0.2 s"),
    ],
    ids=str,
)
async def test_a_failed_login_says_why_and_leaves_basic(
    analyzer: FakeAnalyzer,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer | Fault,
    problem: str,
) -> None:
    monkeypatch.setattr(auth, "LOGIN_TIMEOUT_S", 0.2)
    proof = authentication(analyzer.url)
    basic = proof.headers()
    assert await proof.reauthenticate(basic)
    analyzer.login = answer
    assert not await proof.reauthenticate(proof.headers())
    assert problem in proof.problem
    assert proof.problem.isprintable()
    assert "hunter2" not in proof.problem
    assert proof.headers() == basic
    # And the next one can succeed again.
    analyzer.login = None
    assert await proof.reauthenticate(basic)


async def test_an_analyzer_that_does_not_listen_is_no_exception(analyzer: FakeAnalyzer) -> None:
    await analyzer.stop()
    proof = authentication(analyzer.url)
    assert not await proof.reauthenticate(proof.headers())
    assert "POST /login: " in proof.problem


async def test_a_login_finds_its_analyzer_by_name(
    analyzer: FakeAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = authentication(f"ws://analyzer.test:{analyzer.port}/ws/subscriber/flow")
    found = [(0, 0, 0, "", (analyzer.address, analyzer.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert await proof.reauthenticate(proof.headers())
    assert analyzer.logins[0].get("Host") == f"analyzer.test:{analyzer.port}"


async def test_a_redirected_login_gives_the_password_to_nobody(analyzer: FakeAnalyzer) -> None:
    async with FakeAnalyzer(username="prom", password="hunter2") as elsewhere:
        target = (("Location", f"{elsewhere.http_url}/login"),)
        analyzer.login = Answer(status=307, headers=target)
        proof = authentication(analyzer.url)
        assert not await proof.reauthenticate(proof.headers())
        assert not elsewhere.connections


async def test_a_login_is_encrypted_where_the_subscription_is(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = TLS(client_cert="", client_key="", ca_cert=authority.certificate)
    async with FakeAnalyzer(
        ssl=authority.server_context("analyzers.test"), username="prom", password="hunter2"
    ) as analyzer:
        url = f"dns+wss://analyzers.test:{analyzer.port}/ws/subscriber/flow"
        proof = Authentication(
            endpoint=parse_url(url).at(analyzer.address),
            credentials=USER,
            cookies={},
            ssl=client_context(tls),
        )
        assert await proof.reauthenticate(proof.headers())
        # Certificates are checked here too.
        untrusted = Authentication(
            endpoint=parse_url(analyzer.url),
            credentials=USER,
            cookies={},
            ssl=client_context(tls),
        )
        assert not await untrusted.reauthenticate(untrusted.headers())
        assert "certificate" in untrusted.problem
        assert len(analyzer.logins) == 1


def test_the_http_client_is_imported_only_when_it_is_needed() -> None:
    code = "import sys, skyfast.skydive.subscription; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


# TLS -----------------------------------------------------------------------------------------


def test_without_a_ca_certificate_the_system_is_trusted() -> None:
    context = client_context(TLS(client_cert="", client_key="", ca_cert=""))
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"


def test_an_encrypted_key_is_an_error_and_asks_nobody(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    client = authority.issue("client", password=b"secret")
    tls = TLS(client_cert=client.certificate, client_key=client.key, ca_cert="")
    with pytest.raises(ConfigError, match="the key is encrypted"):
        client_context(tls)
