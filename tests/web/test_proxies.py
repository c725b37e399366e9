"""skyfast with real proxies: nginx, haproxy and Varnish."""

import asyncio
import json
import os
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message
from pathlib import Path

import bcrypt
import pytest

from tests.support.analyzer import FakeAnalyzer, FakeResponse
from tests.support.certificates import Authority
from tests.support.process import demo, running, write_config

MUST_RUN = bool(os.environ.get("CI"))
START_S = 15.0
ANSWER_S = 15.0

# In Debian, the proxies are in directories that are only on root's PATH.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
NGINX = shutil.which("nginx", path=_PATH)
HAPROXY = shutil.which("haproxy", path=_PATH)
VARNISH = shutil.which("varnishd", path=_PATH)

pytestmark = pytest.mark.slow

needs_nginx = pytest.mark.skipif(
    NGINX is None and not MUST_RUN, reason="nginx is not installed (Debian: nginx-light)"
)
needs_haproxy = pytest.mark.skipif(
    HAPROXY is None and not MUST_RUN, reason="haproxy is not installed (Debian: haproxy)"
)
needs_varnish = pytest.mark.skipif(
    VARNISH is None and not MUST_RUN, reason="varnishd is not installed (Debian: varnish)"
)


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


@asynccontextmanager
async def started(*command: str | None, port: int) -> AsyncIterator[None]:
    """Run a proxy that listens on ``port``, and stop it on exit."""
    program, *arguments = command
    assert program is not None
    process = await asyncio.create_subprocess_exec(
        program,
        *map(str, arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    try:
        async with asyncio.timeout(START_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except OSError:
                    assert process.returncode is None, (await errors).decode()
                    await asyncio.sleep(0.05)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()
        await errors


@asynccontextmanager
async def nginx(directory: Path, server: str) -> AsyncIterator[int]:
    """Run nginx with this ``server`` block, and yield the port that replaces ``$PORT``."""
    port = free_port()
    temporary = "".join(
        f"  {kind}_temp_path {directory}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = directory / "nginx.conf"
    config.write_text(
        f"daemon off;\nmaster_process off;\npid {directory}/nginx.pid;\n"
        "error_log stderr warn;\nevents {}\n"
        f"http {{\n{temporary}  access_log {directory}/access.log;\n"
        f"  server {{\n{server.replace('$PORT', str(port))}\n  }}\n}}\n"
    )
    command = (NGINX, "-p", str(directory), "-e", "stderr", "-c", str(config))
    async with started(*command, port=port):
        yield port


async def get(url: str) -> tuple[int, Message, bytes]:
    def ask() -> tuple[int, Message, bytes]:
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_S) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    return await asyncio.to_thread(ask)


# --- analyzers behind a proxy

TOPOLOGY = json.dumps(
    [{"ID": "n", "Host": "h", "Metadata": {"Name": "eth0", "Type": "device", "TID": "t"}}]
).encode()

PROXIED = """
    listen 127.0.0.1:$PORT;
    location /skydive/ {
      proxy_pass http://ANALYZER/;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "upgrade";
    }
    location / { return 401; }
"""


@needs_nginx
async def test_analyzer_can_have_a_path_prefix(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(60),
        FakeAnalyzer(username="prom", password="hunter2") as analyzer,
        nginx(tmp_path, PROXIED.replace("ANALYZER", analyzer.name)) as port,
    ):
        analyzer.accepts_basic = False
        analyzer.topology = FakeResponse(body=TOPOLOGY)
        config = write_config(tmp_path, f"ws://127.0.0.1:{port}/skydive/ws/subscriber/flow")
        user = {
            "SKYDIVE_ANALYZER_AUTH_CLUSTER_USERNAME": "prom",
            "SKYDIVE_ANALYZER_AUTH_CLUSTER_PASSWORD": "hunter2",
        }
        async with running(config, **user) as skyfast:
            await analyzer.subscriber()
            metrics = await skyfast.until(lambda metrics: metrics["skyfast_interfaces"] == 1)
            assert metrics[f'skyfast_up{{analyzer="127.0.0.1:{port}"}}'] == 1
    log = (tmp_path / "access.log").read_text().splitlines()
    assert {line.split('"')[1].split()[1] for line in log} == {
        "/skydive/ws/subscriber/flow",
        "/skydive/login",
        "/skydive/api/topology",
    }


@needs_nginx
async def test_unexpected_responses_of_a_proxy_are_explained(tmp_path: Path) -> None:
    """One proxy expects TLS, and the other redirects to a login page."""
    issued = Authority(tmp_path).issue("127.0.0.1")
    secure = (
        "    listen 127.0.0.1:$PORT ssl;\n"
        f"    ssl_certificate {issued.certificate};\n    ssl_certificate_key {issued.key};\n"
    )
    redirecting = (
        "    listen 127.0.0.1:$PORT;\n"
        "    location / { return 302 https://sso.test/login?state=secret; }\n"
    )
    for server, reasons in (
        (secure, ["; use wss:// if the analyzer serves TLS"] * 2),
        (redirecting, [", redirect to https://sso.test/login (not followed)"] * 2),
    ):
        async with asyncio.timeout(60), nginx(tmp_path, server) as port:
            config = write_config(tmp_path, f"ws://127.0.0.1:{port}/ws/subscriber/flow")
            async with running(config, quiet=False) as skyfast:
                topology = await skyfast.logged("topology query failed: HTTP ")
                subscription = await skyfast.logged("opening handshake failed")
        for line, reason in zip((topology, subscription), reasons, strict=True):
            assert reason in line
            assert "secret" not in line


# --- pages behind a proxy


@needs_nginx
async def test_pages_are_served_behind_nginx(tmp_path: Path) -> None:
    """One location uses HTTP/1.0, and the other uses HTTP/1.1 with keep-alive."""
    server = """
    listen 127.0.0.1:$PORT;
    location /skyfast/ { proxy_pass http://SKYFAST/; }
    location /kept/ {
      proxy_pass http://SKYFAST/; proxy_http_version 1.1; proxy_set_header Connection "";
    }
    """
    async with asyncio.timeout(60), demo() as skyfast:
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] > 10)
        target = skyfast.url.partition("//")[2]
        async with nginx(tmp_path, server.replace("SKYFAST", target)) as port:
            for folder in ("skyfast", "kept"):
                for path in ("metrics", "", "cardinality", "-/ready", "api/status"):
                    status, _, body = await get(f"http://127.0.0.1:{port}/{folder}/{path}")
                    assert status == 200
                    assert body


HAPROXY_CONFIG = """
defaults
  mode http
  timeout connect 2s
  timeout client 10s
  timeout server 10s
frontend all
  bind 127.0.0.1:{port}
  stats enable
  stats uri /stats
  default_backend plain
backend plain
  option httpchk
  server skyfast {target} check inter 200ms fall 1 rise 1
backend health
  option httpchk GET /-/healthy
  server skyfast {target} check inter 200ms fall 1 rise 1
"""


async def states(port: int, expected: dict[str, str]) -> dict[str, str]:
    """Wait until haproxy has checked all backends, and return the results by backend.

    Assert that each backend has the expected state.
    """
    async with asyncio.timeout(ANSWER_S):
        while True:
            *_, body = await get(f"http://127.0.0.1:{port}/stats;csv")
            names, *rows = body.decode().removeprefix("# ").splitlines()
            lines = [dict(zip(names.split(","), row.split(","), strict=False)) for row in rows]
            servers = {line["pxname"]: line for line in lines if line["svname"] == "skyfast"}
            # Before the first check, the server is up without a check result such as "L7OK".
            if all(line["check_status"].startswith("L7") for line in servers.values()):
                assert {name: line["status"] for name, line in servers.items()} == expected
                return {name: line["check_status"] for name, line in servers.items()}
            await asyncio.sleep(0.1)


@needs_haproxy
@pytest.mark.parametrize("users", [False, True], ids=["open", "with users"])
async def test_default_check_of_haproxy_fails_if_there_are_users(
    tmp_path: Path, users: bool
) -> None:
    """haproxy's default check is an OPTIONS request without credentials."""
    hashed = bcrypt.hashpw(b"hunter2", bcrypt.gensalt(4)).decode()
    web_config = tmp_path / "web.yml"
    web_config.write_text(f"basic_auth_users: {{alice: {hashed}}}\n")
    config = tmp_path / "haproxy.cfg"
    async with (
        asyncio.timeout(60),
        demo(
            web_config=web_config if users else None, SKYDIVE_WEB_HEALTH_WITHOUT_AUTH="true"
        ) as skyfast,
    ):
        port = free_port()
        config.write_text(HAPROXY_CONFIG.format(port=port, target=skyfast.url.partition("//")[2]))
        async with started(HAPROXY, "-db", "-f", str(config), port=port):
            reasons = await states(port, {"plain": "DOWN" if users else "UP", "health": "UP"})
            assert reasons == {"plain": "L7STS" if users else "L7OK", "health": "L7OK"}


@needs_varnish
async def test_varnish_caches_no_page(tmp_path: Path) -> None:
    """By default, Varnish caches a page for two minutes."""
    async with asyncio.timeout(60), demo() as skyfast:
        port = free_port()
        command = (
            *(VARNISH, "-F", "-j", "none", "-n", str(tmp_path / "varnish")),
            *("-a", f"127.0.0.1:{port}", "-b", skyfast.url.partition("//")[2]),
            *("-s", "default,16m"),
        )
        async with started(*command, port=port):
            for path in ("/metrics", "/metrics/self", "/-/ready", "/-/healthy", "/cardinality"):
                for _ in range(2):
                    status, headers, _ = await get(f"http://127.0.0.1:{port}{path}")
                    assert status == 200
                    # X-Varnish has two numbers if the response comes from the cache.
                    assert len(headers["X-Varnish"].split()) == 1, path
