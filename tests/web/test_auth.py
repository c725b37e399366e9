"""Authentication and the limits on password guesses, on real sockets."""

import asyncio
import itertools
import threading
from http import HTTPStatus

import bcrypt

from skyfast.web import auth
from skyfast.web.auth import Rejection, WebSecurity
from tests.support.http_client import Site, request
from tests.support.waiting import until
from tests.support.web_configs import CHEAP, DEAR, PASSWORD, basic, users
from tests.support.web_fixtures import FLOWS, TEST_TIMEOUT_S, on_both_loops

# --- authentication


@on_both_loops
async def test_requests_without_valid_credentials_are_rejected(plain, caplog):
    async with Site(security=WebSecurity(plain(users()))) as site, await site.ask(b"") as client:
        for path in ("/metrics", "/", "/nowhere", "/-/healthy", "/-/ready"):
            for method in ("GET", "HEAD"):
                await client.send(request(path, method=method))
                response = await client.read_response(head=method == "HEAD")
                assert response.status == 401
                assert response.headers["www-authenticate"].startswith('Basic realm="skyfast"')
        for header in (basic(password="wrong"), basic("bob"), "Basic !", "Bearer x", "Basic"):
            await client.send(request("/metrics", authorization=header))
            assert (await client.read_response()).status == 401
        for scheme in ("Basic", "basic"):
            header = basic().replace("Basic", scheme)
            await client.send(request("/metrics/flows", authorization=header))
            assert (await client.read_response()).body == FLOWS
            await client.send(request("/metrics", authorization=header, method="HEAD"))
            assert (await client.read_response(head=True)).status == 200
    assert len(site.table.asked_at) == 2
    assert [r.getMessage() for r in caplog.records] == ["wrong user or password from 127.0.0.1"]


@on_both_loops
async def test_health_checks_can_skip_authentication(plain):
    async with Site(security=WebSecurity(plain(users())), health_without_auth=True) as site:
        for path in ("/-/healthy", "/-/ready"):
            assert (await site.get(path)).status == 200
        for path in ("/-/healthy/", "/metrics/self", "/", "/-/reload"):
            assert (await site.get(path)).status == 401


@on_both_loops
async def test_long_and_unusual_passwords_are_checked(plain):
    password = "ä" * 50
    hash_of_72_bytes = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()
    async with Site(security=WebSecurity(plain(users(ä=hash_of_72_bytes)))) as site:
        assert (await site.get("/", authorization=basic("ä", password))).status == 200
        for wrong_password in ("ä" * 30, "", "\0", "ä\0"):
            assert (await site.get("/", authorization=basic("ä", wrong_password))).status == 401


@on_both_loops
async def test_all_responses_have_the_configured_headers(plain):
    path = plain(
        "http_server_config: {headers: {X-Frame-Options: deny, Content-Security-Policy: x}}\n"
        + users()
    )
    async with Site(security=WebSecurity(path)) as site:
        for page in ("/", "/metrics", "/api/status", "/api/top", "/nowhere"):
            for header in (basic(), ""):
                response = await site.get(page, authorization=header)
                assert (response.status == 401) is (not header)
                assert response.headers["x-frame-options"] == "deny"
                assert response.headers["content-security-policy"] == "x"
                assert response.headers["x-content-type-options"] == "nosniff"


@on_both_loops
async def test_requests_over_the_rate_limit_are_rejected(plain):
    now_s = 0.0
    path = plain("rate_limit: {interval: 2s, burst: 3}")
    async with Site(security=WebSecurity(path, now=lambda: now_s)) as site:
        assert [(await site.get("/")).status for _ in range(5)] == [200, 200, 200, 429, 429]
        now_s = 0.9
        assert (await site.get("/")).headers["retry-after"] == "2"
        now_s = 2.0
        assert [(await site.get("/")).status for _ in range(2)] == [200, 429]
    async with Site(security=WebSecurity(plain("rate_limit: {interval: 1s, burst: 0}"))) as site:
        response = await site.get("/")
        assert response.status == 429
        assert "retry-after" not in response.headers  # waiting would not help


# --- limits on guesses


@on_both_loops
async def test_wrong_passwords_are_limited_per_address(plain, caplog):
    now_s = 0.0
    security = WebSecurity(plain(users()), now=lambda: now_s)
    async with Site(security=security) as site:
        assert (await site.get("/", authorization=basic())).status == 200

        async def guess(i, local="127.0.0.2"):
            header = basic(password=f"guess {i}")
            async with await site.ask(request("/", authorization=header), local=local) as client:
                return (await client.read_response()).status

        burst = auth.WRONG_BURST
        assert [await guess(i) for i in range(burst + 3)] == [401] * burst + [429] * 3
        assert await guess(0, "127.0.0.3") == 401
        valid_request = request("/", authorization=basic())
        async with await site.ask(valid_request, local="127.0.0.2") as client:
            # This password is cached, so it is not limited.
            assert (await client.read_response()).status == 200
        now_s = auth.WRONG_INTERVAL_S
        assert [await guess(i) for i in range(burst, burst + 2)] == [401, 429]
    assert "guess" not in caplog.text


@on_both_loops
async def test_outdated_password_does_not_block_other_clients(plain, monkeypatch):
    computed = []
    checkpw = bcrypt.checkpw
    monkeypatch.setattr(
        bcrypt, "checkpw", lambda *arguments: computed.append(1) or checkpw(*arguments)
    )
    async with Site(
        security=WebSecurity(plain(users(alice=CHEAP, bob=CHEAP)), now=lambda: 0.0)
    ) as site:
        for _ in range(5 * auth.WRONG_BURST):
            for stale in (basic(password="last year's"), basic("nobody")):
                assert (await site.get("/", authorization=stale)).status == 401
        assert len(computed) == 2
        for user in ("alice", "bob"):
            assert (await site.get("/", authorization=basic(user))).status == 200
        # The new web configuration makes a password valid that was cached as wrong.
        plain(users(alice=bcrypt.hashpw(b"last year's", bcrypt.gensalt(4)).decode()))
        assert (await site.get("/", authorization=basic(password="last year's"))).status == 200


@on_both_loops
async def test_header_retry_after_is_accurate(plain):
    now_s = 0.0
    async with Site(security=WebSecurity(plain(users()), now=lambda: now_s)) as site:
        for i in range(auth.WRONG_BURST):
            assert (await site.get("/", authorization=basic(password=f"{i}"))).status == 401
        for now_s, retry_after_s in ((0.0, 5), (1.5, 4), (4.5, 1)):
            response = await site.get("/", authorization=basic())
            assert (response.status, response.headers["retry-after"]) == (429, str(retry_after_s))
            assert now_s + retry_after_s >= auth.WRONG_INTERVAL_S
        now_s = 5.5
        assert (await site.get("/", authorization=basic())).status == 200


@on_both_loops
async def test_valid_passwords_are_not_limited(plain):
    hashes = {f"user{i}": CHEAP for i in range(2 * auth.WRONG_BURST)}
    async with Site(security=WebSecurity(plain(users(**hashes)), now=lambda: 0.0)) as site:
        for user in hashes:
            assert (await site.get("/", authorization=basic(user))).status == 200


@on_both_loops
async def test_guesses_do_not_delay_authenticated_clients(plain, monkeypatch):
    monkeypatch.setattr(auth, "WRONG_BURST", 1000)
    # No guess is hashed until ``computed`` is set, so the speed of the machine does not matter.
    computed = threading.Event()
    checkpw = bcrypt.checkpw

    def check(password, expected):
        assert not password.startswith(b"guess") or computed.wait(TEST_TIMEOUT_S)
        return checkpw(password, expected)

    monkeypatch.setattr(bcrypt, "checkpw", check)
    async with Site(security=WebSecurity(plain(users()))) as site:
        try:
            assert (await site.get("/", authorization=basic())).status == 200
            guesses = [
                asyncio.create_task(site.get("/", authorization=basic(password=f"guess {i}")))
                for i in range(3 * auth.MAX_CHECKS)
            ]
            # `MAX_CHECKS` guesses wait for their hashes, and all others are rejected at once.
            await until(lambda: sum(guess.done() for guess in guesses) == 2 * auth.MAX_CHECKS)
            for _ in range(3):
                assert (await site.get("/metrics/flows", authorization=basic())).body == FLOWS
            assert sum(guess.done() for guess in guesses) == 2 * auth.MAX_CHECKS
        finally:
            computed.set()
        statuses = [(await guess).status for guess in guesses]
        assert statuses.count(503) == 2 * auth.MAX_CHECKS
        assert statuses.count(401) == auth.MAX_CHECKS


@on_both_loops
async def test_rejecting_an_unknown_user_costs_as_much_as_rejecting_a_password(plain, monkeypatch):
    computed = []
    checkpw = bcrypt.checkpw
    monkeypatch.setattr(
        bcrypt,
        "checkpw",
        lambda *arguments: computed.append(arguments[1][:7]) or checkpw(*arguments),
    )
    async with Site(security=WebSecurity(plain(users(alice=DEAR)))) as site:
        for user in ("alice", "nobody"):
            for password in ("x", "y"):
                assert (await site.get("/", authorization=basic(user, password))).status == 401
        assert (await site.get("/", authorization=basic("nobody"))).status == 401
        for _ in range(3):
            assert (await site.get("/", authorization=basic())).status == 200
    assert computed == [b"$2b$10$"] * 6


@on_both_loops
async def test_caches_of_passwords_and_addresses_are_bounded(plain, monkeypatch):
    monkeypatch.setattr(auth, "MAX_ADDRESSES", 3)
    monkeypatch.setattr(auth, "MAX_VERIFIED", 2)
    monkeypatch.setattr(auth, "MAX_FAILED", 4)
    monkeypatch.setattr(auth, "WRONG_BURST", 1)
    hashes = {f"user{i}": CHEAP for i in range(4)}
    security = WebSecurity(plain(users(**hashes)), now=lambda: 0.0)

    async def authenticate(header, address):
        return await security.authenticate(header, address, public=False)

    numbers = itertools.count()

    async def guess(address):
        rejection = await authenticate(basic("user0", f"wrong {next(numbers)}"), address)
        return rejection.status

    assert [await guess(f"10.0.0.{i}") for i in range(5)] == [401] * 5
    assert [await guess(f"10.0.0.{i}") for i in (4, 3, 2)] == [429] * 3
    assert await guess("10.0.0.0") == 401
    # The first two addresses are in the same /64 network, so they share a limit.
    networks = ("2001:db8::1", "2001:db8::2:1", "2001:db8:0:1::1")
    assert [await guess(address) for address in networks] == [401, 429, 401]
    assert len(security._passwords._failed) == 4
    # Wrong passwords are cached per address: 192.0.2.2 causes a second check.
    wrong = basic("user0", "wrong")
    assert await authenticate(wrong, "192.0.2.1") == Rejection(HTTPStatus.UNAUTHORIZED)
    assert await authenticate(wrong, "192.0.2.1") == Rejection(HTTPStatus.UNAUTHORIZED)
    with monkeypatch.context() as patch:
        patch.setattr(auth, "MAX_CHECKS", 0)
        assert (await authenticate(wrong, "192.0.2.2")).status == 503
    for user in hashes:
        assert await authenticate(basic(user), "192.0.2.9") is None
    assert len(security._passwords._verified) == 2
    assert PASSWORD.encode() not in repr(vars(security._passwords)).encode()
    security.close()
