"""The addresses and sockets on which skyfast listens."""

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyfast.config.endpoint import Endpoint
from skyfast.config.yaml_nodes import ConfigError
from skyfast.web import listen
from tests.support.paths import ROOT
from tests.support.process import Skyfast, demo, run, running, write_config
from tests.support.waiting import WAIT_S

pytestmark = pytest.mark.xdist_group("timing")

PORT = "SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PORT"
ADDRESS = "SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_LISTEN_ADDRESS"

needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


def served(skyfast: Skyfast) -> list[str]:
    matches = (re.search(r"listening on \S+ \((\S+)/\)$", line) for line in skyfast.log)
    return [f"{match[1]}/metrics" for match in matches if match]


async def responds(url: str) -> bool:
    def ask() -> bytes:
        with urllib.request.urlopen(f"{url}/self", timeout=WAIT_S) as response:
            body: bytes = response.read()
            return body

    return b"skyfast_build_info" in await asyncio.to_thread(ask)


@needs_ipv6
async def test_addresses_of_the_command_line_replace_the_configured_address(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=1)
    options = ("--web.listen-address=127.0.0.1:0", "--web.listen-address", "[::1]:0")
    async with running(config, *options, quiet=False, **{ADDRESS: "192.0.2.1"}) as skyfast:
        await skyfast.logged("each connection costs")
        first, second = served(skyfast)
        assert first.startswith("http://127.0.0.1:")
        assert second.startswith("http://[::1]:")
        assert await responds(first)
        assert await responds(second)


async def test_address_from_the_command_line_survives_a_reload(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    async with running(config, "--web.listen-address=127.0.0.1:0", quiet=False) as skyfast:
        text = config.read_text()
        assert "port: 0" in text
        config.write_text(text.replace("port: 0", "port: 1"))
        skyfast.process.send_signal(1)
        await skyfast.logged("configuration reloaded")
        assert await responds(f"{skyfast.url}/metrics")


def test_one_address_in_use_prevents_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        addresses = ("127.0.0.1:0", f"127.0.0.1:{port}")
        options = [f"--web.listen-address={address}" for address in addresses]
        result = run(str(write_config(tmp_path)), *options)
    assert result.returncode == 1
    (line,) = (line for line in result.stderr.splitlines() if "ERROR" in line)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; set another port" in line
    assert "listening on 127" not in result.stderr


def test_port_in_use_is_reported_with_a_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(str(write_config(tmp_path, port=port)))
    assert result.returncode == 1
    (line,) = (line for line in result.stderr.splitlines() if "ERROR" in line)
    assert line.endswith(
        f"cannot listen on 127.0.0.1:{port}: Address already in use; set another port with"
        f" pipeline.store.prom_sky_con.port, {PORT} or --web.listen-address"
    )
    assert "Traceback" not in result.stderr


def test_ip_address_in_use_is_reported_with_its_host_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(str(write_config(tmp_path, port=port)), **{ADDRESS: "localhost"})
    assert result.returncode == 1
    (line,) = (line for line in result.stderr.splitlines() if "ERROR" in line)
    assert f"cannot listen on localhost:{port} (127.0.0.1): Address already in use; set" in line


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.name.invalid"])
def test_address_of_another_machine_is_reported_with_a_remedy(tmp_path: Path, host: str) -> None:
    result = run(str(write_config(tmp_path)), **{ADDRESS: host})
    assert result.returncode == 1
    (line,) = (line for line in result.stderr.splitlines() if "ERROR" in line)
    assert line.endswith(
        "; set another address with pipeline.store.prom_sky_con.listen_address,"
        f" {ADDRESS} or --web.listen-address"
    )


@contextlib.contextmanager
def port_9100_in_use() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server((host, 9100), family=family))
        yield


async def test_demo_uses_a_free_port_if_the_default_port_is_in_use() -> None:
    with port_9100_in_use():
        async with demo(**{PORT: ""}) as skyfast:
            await skyfast.logged("port 9100 is in use; using a free port")
            assert not skyfast.url.endswith(":9100")
            assert await responds(f"{skyfast.url}/metrics")


@pytest.mark.parametrize("origin", ["file", "variable", "option"])
def test_demo_uses_only_the_configured_port(tmp_path: Path, origin: str) -> None:
    file = tmp_path / "a.yml"
    file.write_text("pipeline.store.prom_sky_con.port: 9100\n")
    arguments = {"file": [str(file)], "option": ["--web.listen-address=:9100"]}.get(origin, [])
    environ = {PORT: "9100"} if origin == "variable" else {}
    with port_9100_in_use():
        result = run("--demo", *arguments, **environ)
    assert result.returncode == 1
    assert "Address already in use" in result.stderr


# Sockets passed by systemd


def activation(*sockets: str, fds: int | None = None, pid: str = "os.getpid()") -> list[str]:
    """Return a command that passes these sockets, as systemd does. Callers append the program."""
    code = f"""
import os, socket, sys
made = [{", ".join(sockets)}]
# Move them out of the way of their final descriptors.
high = [os.dup2(sock.fileno(), 100 + i) for i, sock in enumerate(made)]
for i, descriptor in enumerate(high):
    os.dup2(descriptor, 3 + i)
    os.close(descriptor)
os.environ |= {{"LISTEN_PID": str({pid}), "LISTEN_FDS": "{len(sockets) if fds is None else fds}"}}
os.execvp(sys.argv[1], sys.argv[1:])
"""
    return [sys.executable, "-c", code]


TCP = "socket.create_server(('127.0.0.1', 0))"
TCP6 = "socket.create_server(('::1', 0), family=socket.AF_INET6)"


@pytest.mark.parametrize("secure", [False, True])
async def test_page_is_served_on_a_systemd_socket(tmp_path: Path, secure: bool) -> None:
    options = ["--web.systemd-socket"]
    if secure:
        from tests.support.certificates import Authority

        issued = Authority(tmp_path).issue("127.0.0.1")
        web = tmp_path / "web.yml"
        files = {"cert_file": issued.certificate, "key_file": issued.key}
        web.write_text(f"tls_server_config: {files}\n".replace("'", '"'))
        options.append(f"--web.config.file={web}")
    config = write_config(tmp_path, port=1)
    async with running(config, *options, quiet=False, through=activation(TCP)) as skyfast:
        assert skyfast.url.startswith(f"{'https' if secure else 'http'}://127.0.0.1:")
        if not secure:
            assert await responds(f"{skyfast.url}/metrics")
            await skyfast.get("/metrics")


@needs_ipv6
async def test_page_is_served_on_all_systemd_sockets(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=1)
    through = activation(TCP, TCP6)
    async with running(config, "--web.systemd-socket", quiet=False, through=through) as skyfast:
        await skyfast.logged("each connection costs")
        first, second = served(skyfast)
        assert await responds(first)
        assert await responds(second)


INVALID_SOCKETS = {
    "none": ([], "no socket passed by the service manager (LISTEN_FDS is not set)"),
    "for another process": (
        activation(TCP, pid="1"),
        "no socket passed by the service manager (LISTEN_PID is 1, not the PID of skyfast)",
    ),
    "negative number": (activation(TCP, fds=-1), "LISTEN_FDS is '-1', not a number from 1 to 64"),
    "too many": (activation(TCP, fds=65), "LISTEN_FDS is '65', not a number from 1 to 64"),
    "closed descriptor": (activation(TCP, fds=60), "is not a socket: "),
    "a file": (activation("open('/dev/null')"), "descriptor 3 is not a socket: "),
    "a datagram socket": (
        activation("socket.socket(type=socket.SOCK_DGRAM)"),
        "descriptor 3 is not a listening TCP socket",
    ),
    "a connection": (
        activation("socket.socketpair()[0]"),
        "descriptor 3 is not a listening TCP socket",
    ),
    "not listening": (activation("socket.socket()"), "descriptor 3 is not a listening TCP socket"),
}


@pytest.mark.parametrize(("through", "expected"), INVALID_SOCKETS.values(), ids=INVALID_SOCKETS)
def test_invalid_systemd_sockets_are_rejected(
    tmp_path: Path, through: list[str], expected: str
) -> None:
    skyfast = [sys.executable, "-m", "skyfast", str(write_config(tmp_path))]
    result = subprocess.run(
        [*through, *skyfast, "--web.systemd-socket"],
        env={name: text for name, text in os.environ.items() if not name.startswith("LISTEN_")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("skyfast: --web.systemd-socket: ")
    assert expected in line


def test_socket_variables_are_removed_from_the_environment() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a", "HOME": "/"}
    with pytest.raises(ConfigError):
        listen.sockets(environ)
    assert environ == {"HOME": "/"}


def test_listening_on_all_addresses_is_shown_as_an_asterisk() -> None:
    assert listen.describe(Endpoint("", 9100)) == "*:9100"
    assert listen.describe(Endpoint("::1", 9100)) == "[::1]:9100"
    assert listen.url(Endpoint("", 9100), secure=True) == "https://127.0.0.1:9100/"
