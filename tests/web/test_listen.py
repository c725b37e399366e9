"""Where the page is served: several addresses, sockets of systemd, and ports that are taken."""

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

from skyfast.config.yaml_nodes import ConfigError
from skyfast.web import listen
from tests.support.paths import ROOT
from tests.support.process import WAIT_S, Skyfast, demo, run, running, write_config

pytestmark = pytest.mark.xdist_group("timing")

PORT = "SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PORT"
ADDRESS = "SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_LISTEN_ADDRESS"

needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


def served(skyfast: Skyfast) -> list[str]:
    return [found[1] for line in skyfast.log if (found := re.search(r"serving (\S+)$", line))]


async def answers(url: str) -> bool:
    def ask() -> bytes:
        with urllib.request.urlopen(f"{url}/self", timeout=WAIT_S) as answer:
            body: bytes = answer.read()
            return body

    return b"skyfast_build_info" in await asyncio.to_thread(ask)


@needs_ipv6
async def test_several_addresses_replace_the_configuration(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=1)
    options = ("--web.listen-address=127.0.0.1:0", "--web.listen-address", "[::1]:0")
    async with running(config, *options, quiet=False, **{ADDRESS: "192.0.2.1"}) as skyfast:
        await skyfast.logged("at most")
        first, second = served(skyfast)
        assert first.startswith("http://127.0.0.1:")
        assert second.startswith("http://[::1]:")
        assert await answers(first)
        assert await answers(second)


async def test_an_address_of_the_command_line_is_kept_by_a_reload(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    async with running(config, "--web.listen-address=127.0.0.1:0", quiet=False) as skyfast:
        text = config.read_text()
        assert "port: 0" in text
        config.write_text(text.replace("port: 0", "port: 1"))
        skyfast.process.send_signal(1)
        await skyfast.logged("configuration reloaded")
        assert await answers(f"{skyfast.url}/metrics")


def test_one_address_of_several_that_is_taken_ends_all(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        addresses = ("127.0.0.1:0", f"127.0.0.1:{port}")
        options = [f"--web.listen-address={each}" for each in addresses]
        done = run(str(write_config(tmp_path)), *options)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if "ERROR" in line)
    assert f"cannot serve http://127.0.0.1:{port}/metrics: [Errno 98]" in line
    assert "serving" not in done.stderr


def test_a_port_that_is_taken_is_one_line_with_its_cure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(str(write_config(tmp_path, port=port)))
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if "ERROR" in line)
    assert f"cannot serve http://127.0.0.1:{port}/metrics: [Errno 98] Address already in" in line
    assert line.endswith(
        f"; choose another port: pipeline.store.prom_sky_con.port, {PORT} or --web.listen-address"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.name.invalid"])
def test_an_address_that_is_not_this_machines_is_told_with_its_cure(
    tmp_path: Path, host: str
) -> None:
    done = run(str(write_config(tmp_path)), **{ADDRESS: host})
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if "ERROR" in line)
    assert line.endswith(
        "; choose another address: pipeline.store.prom_sky_con.listen_address,"
        f" {ADDRESS} or --web.listen-address"
    )


@contextlib.contextmanager
def default_port_taken() -> Iterator[None]:
    """Have somebody listen on port 9100; whoever it is."""
    with contextlib.ExitStack() as stack:
        for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server((host, 9100), family=family))
        yield


async def test_the_demo_takes_another_port_where_the_default_one_is_taken() -> None:
    with default_port_taken():
        async with demo(**{PORT: ""}) as skyfast:
            await skyfast.logged("port 9100 is in use; using a free port")
            assert not skyfast.url.endswith(":9100")
            assert await answers(f"{skyfast.url}/metrics")


@pytest.mark.parametrize("given", ["file", "variable", "option"])
def test_the_demo_takes_no_other_port_than_the_one_it_was_given(tmp_path: Path, given: str) -> None:
    file = tmp_path / "a.yml"
    file.write_text("pipeline.store.prom_sky_con.port: 9100\n")
    arguments = {"file": [str(file)], "option": ["--web.listen-address=:9100"]}.get(given, [])
    environ = {PORT: "9100"} if given == "variable" else {}
    with default_port_taken():
        done = run("--demo", *arguments, **environ)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr


# Sockets of systemd


def activation(*sockets: str, fds: int | None = None, pid: str = "os.getpid()") -> list[str]:
    """Return a command that becomes the one behind it, with sockets as systemd passes them."""
    code = f"""
import os, socket, sys
made = [{", ".join(sockets)}]
# None of them where one is put.
high = [os.dup2(each.fileno(), 100 + i) for i, each in enumerate(made)]
for i, each in enumerate(high):
    os.dup2(each, 3 + i)
    os.close(each)
os.environ |= {{"LISTEN_PID": str({pid}), "LISTEN_FDS": "{len(sockets) if fds is None else fds}"}}
os.execvp(sys.argv[1], sys.argv[1:])
"""
    return [sys.executable, "-c", code]


TCP = "socket.create_server(('127.0.0.1', 0))"
TCP6 = "socket.create_server(('::1', 0), family=socket.AF_INET6)"


@pytest.mark.parametrize("secure", [False, True])
async def test_the_page_is_served_on_sockets_of_systemd(tmp_path: Path, secure: bool) -> None:
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
            assert await answers(f"{skyfast.url}/metrics")
            await skyfast.get("/metrics")


@needs_ipv6
async def test_all_sockets_of_systemd_are_served(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=1)
    through = activation(TCP, TCP6)
    async with running(config, "--web.systemd-socket", quiet=False, through=through) as skyfast:
        await skyfast.logged("at most")
        first, second = served(skyfast)
        assert await answers(first)
        assert await answers(second)


NO_SOCKETS = {
    "none": ([], "no socket passed by the service manager (LISTEN_FDS is not set)"),
    "another process's": (
        activation(TCP, pid="1"),
        "no socket passed by the service manager (LISTEN_PID is 1)",
    ),
    "no number": (activation(TCP, fds=-1), "LISTEN_FDS is '-1', not a number from 1 to 64"),
    "too many": (activation(TCP, fds=65), "LISTEN_FDS is '65', not a number from 1 to 64"),
    "one that is not there": (activation(TCP, fds=60), "is not a socket: "),
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


@pytest.mark.parametrize(("through", "said"), NO_SOCKETS.values(), ids=NO_SOCKETS)
def test_what_is_no_socket_of_systemd_is_a_wrong_argument(
    tmp_path: Path, through: list[str], said: str
) -> None:
    skyfast = [sys.executable, "-m", "skyfast", str(write_config(tmp_path))]
    done = subprocess.run(
        [*through, *skyfast, "--web.systemd-socket"],
        env={name: text for name, text in os.environ.items() if not name.startswith("LISTEN_")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("skyfast: --web.systemd-socket: ")
    assert said in line


def test_variables_of_sockets_do_not_go_on_to_other_processes() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a", "HOME": "/"}
    with pytest.raises(ConfigError):
        listen.sockets(environ)
    assert environ == {"HOME": "/"}
