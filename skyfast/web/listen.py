"""Listening addresses: ``--web.listen-address``, and sockets passed by systemd.

The configuration sets one address. The command line can set several addresses instead, or make
skyfast use the sockets that the service manager passes: see sd_listen_fds(3).
"""

import asyncio
import errno
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Final

from skyfast.config.endpoint import Endpoint
from skyfast.config.model import Config
from skyfast.config.schema import LISTEN_ADDRESS, PORT, Key
from skyfast.config.yaml_nodes import ConfigError

FIRST_DESCRIPTOR: Final = 3
"""The descriptor of the first passed socket (SD_LISTEN_FDS_START)."""

MAX_SOCKETS: Final = 64
"""The maximum number of passed sockets, and of listening addresses."""

OPTION: Final = "--web.listen-address"
SOCKET_OPTION: Final = "--web.systemd-socket"

_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
# On hosts without IPv6, `localhost` may still resolve to ::1. Then bind() fails with one of these
# errors.
_UNAVAILABLE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

_PORT_UNAVAILABLE: Final = (errno.EADDRINUSE, errno.EACCES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """How the command line changes where skyfast listens."""

    addresses: tuple[Endpoint, ...] = ()
    """Addresses that replace the address in the configuration; can be empty."""
    sockets: tuple[socket.socket, ...] = ()
    """Passed sockets, if there are any. skyfast then ignores all addresses."""
    any_port: bool = False
    """Whether to listen on a free port if the port of an address is in use."""

    @property
    def is_fixed(self) -> bool:
        """Whether the command line overrides the address in the configuration."""
        return bool(self.addresses or self.sockets)


AS_CONFIGURED: Final = Listen()
"""Listen on the address in the configuration."""


class ListenError(OSError):
    def __init__(self, error: OSError, address: Endpoint, ip_address: str = "") -> None:
        self.where = describe(address)
        """The listening address. If its host is a name, the IP address that failed follows."""
        if ip_address not in ("", address.host):
            self.where += f" ({ip_address})"
        self.is_name = isinstance(error, socket.gaierror)
        # Use os.strerror, because socket.create_server adds the address to the text of its errors.
        text = os.strerror(error.errno) if error.errno and not self.is_name else error.strerror
        super().__init__(error.errno, text)


def configured(config: Config) -> Endpoint:
    """Return the address in the configuration. An empty host means all addresses."""
    return Endpoint(config.web.listen_address, config.web.port)


def sockets(environ: MutableMapping[str, str]) -> tuple[socket.socket, ...]:
    """Return the sockets passed by the service manager. Delete `_VARIABLES` from ``environ``.

    Raises:
        ConfigError: No sockets were passed, or a socket is not a listening TCP socket.

    """
    pid, count = (environ.get(name, "") for name in _VARIABLES[:2])
    for name in _VARIABLES:
        environ.pop(name, None)
    if not count or pid != str(os.getpid()):
        reason = f"LISTEN_PID is {pid}, not the PID of skyfast"
        if not count or not pid:
            reason = f"{'LISTEN_PID' if count else 'LISTEN_FDS'} is not set"
        raise ConfigError(
            f"{SOCKET_OPTION}: no socket passed by the service manager ({reason});"
            " start skyfast through skyfast.socket"
        )
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= MAX_SOCKETS):
        raise ConfigError(
            f"{SOCKET_OPTION}: LISTEN_FDS is {count!r}, not a number from 1 to {MAX_SOCKETS}"
        )
    return tuple(map(_socket, range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count))))


def _socket(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        passed = socket.socket(fileno=descriptor)
    except OSError as error:
        text = f"{SOCKET_OPTION}: descriptor {descriptor} is not a socket: {error.strerror}"
        raise ConfigError(text) from None
    is_tcp = passed.family in (socket.AF_INET, socket.AF_INET6) and (
        passed.type == socket.SOCK_STREAM
    )
    if not is_tcp or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError(
            f"{SOCKET_OPTION}: descriptor {descriptor} is not a listening TCP socket:"
            " skyfast.socket needs ListenStream= with a port, and Accept=no"
        )
    return passed


def bound(listener: socket.socket) -> Endpoint:
    host, port = listener.getsockname()[:2]
    return Endpoint(host, port)


def describe(address: Endpoint) -> str:
    """Return ``host:port`` for the log. The host ``*`` means all addresses, IPv4 and IPv6."""
    return address.name if address.host else f"*:{address.port}"


def url(address: Endpoint, *, secure: bool) -> str:
    """Return the URL of the status page for clients on this machine."""
    host = "127.0.0.1" if address.host in {"", "0.0.0.0", "::"} else address.host  # noqa: S104
    return f"{'https' if secure else 'http'}://{Endpoint(host, address.port)}/"


def hint(error: ListenError) -> str:
    """Return a hint to set another address or port; "" if neither would help."""
    if error.errno in _PORT_UNAVAILABLE:
        return f"; set another port with {_settings(PORT)}"
    if error.is_name or error.errno == errno.EADDRNOTAVAIL:
        return f"; set another address with {_settings(LISTEN_ADDRESS)}"
    return ""


def _settings(key: Key[int] | Key[str]) -> str:
    return f"{key.path}, {key.env} or {OPTION}"


async def listening_sockets(address: Endpoint) -> list[socket.socket]:
    """Return sockets bound to ``address``. An empty host means all addresses, IPv4 and IPv6.

    All sockets have the same port: the port of ``address``, or a free port if that port is 0.

    Raises:
        ListenError: An address or the port is unavailable.

    """
    if address.host in ("", "::"):
        try:
            return [_listen_everywhere(address.port)]
        except OSError as error:
            raise ListenError(error, address) from None
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ListenError(error, address) from None
    port = address.port
    listeners: list[socket.socket] = []
    unavailable = None
    for family, _, _, _, sockaddr in dict.fromkeys(infos):
        try:
            listener = socket.create_server((sockaddr[0], port, *sockaddr[2:]), family=family)
        except OSError as error:
            failure = ListenError(error, address, str(sockaddr[0]))
            if error.errno in _UNAVAILABLE:
                unavailable = failure
                continue
            for listener in listeners:
                listener.close()
            raise failure from None
        port = listener.getsockname()[1]
        listeners.append(listener)
    if not listeners and unavailable:
        raise unavailable
    return listeners


def _listen_everywhere(port: int) -> socket.socket:
    # Use a single dual-stack socket: if `port` is 0, two sockets would get different ports.
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in _UNAVAILABLE:
                raise
    return socket.create_server(("", port))
