"""Parses addresses and URLs of analyzers, and addresses that the HTTP server listens on."""

import ipaddress
import re
from dataclasses import dataclass, field, replace
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from skyfast.config.yaml_nodes import HIDDEN

ANALYZER_PORT: Final = 8082
"""The default port of an analyzer."""

SUBSCRIBER_PATH: Final = "/ws/subscriber/flow"

DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}

FOLLOW_DNS: Final = "dns+"
"""If the scheme of a URL has this prefix, skyfast subscribes to all addresses of the host."""

SCHEMES: Final = (*DEFAULT_PORTS, *(FOLLOW_DNS + scheme for scheme in DEFAULT_PORTS))

MAX_PORT: Final = 65_535

_HOST_AND_PORT: Final = re.compile(
    r"(?:\[([^\[\]]*:[^\[\]]*)\]|([^\[\]:]*))(?::([0-9]{1,5}))?", re.ASCII
)
_SUBSCRIPTION: Final = re.compile(r"(.*)/ws/subscriber(?:/.*)?", re.ASCII)
_INVALID_PORT: Final = re.compile(r"(://[^/?#@]*:)[^/?#@:]*[^/?#@:0-9][^/?#@:]*(?=[/?#]|$)")
_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")


class EndpointError(ValueError):
    """A string is not a valid endpoint."""

    def __init__(self, problem: str, shown: str) -> None:
        super().__init__(problem)
        self.problem = problem
        """A predicate, such as "contains a space"."""
        self.shown = shown
        """The invalid string. An invalid port is hidden, but credentials are not."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a port, or the WebSocket URL of a subscription."""

    host: str
    """A host name or IP address in the form that `parse_host` returns.

    An empty host means all addresses of this machine. In a URL, the host is also the ``Host``
    header and the name that TLS verifies."""
    port: int
    scheme: str = ""
    """The scheme of a URL, such as ``wss``; empty if the endpoint is only a host and a port."""
    userinfo: str = field(default="", repr=False)
    """``user:password`` in percent-encoding, or empty."""
    resource: str = ""
    """The path and the query of a URL."""
    address: str = ""
    """The IP address to connect to; if it is empty, skyfast connects to ``host``."""
    alias: str = ""
    """In a replay: the recorded name of the analyzer, or the file name if no name was recorded.

    If two analyzers have the same name, a number is appended."""
    has_port: bool = field(default=True, compare=False)
    """False if a URL contains no port; ``port`` is then the default port of the scheme."""

    def __str__(self) -> str:
        """Return the URL without credentials, or ``host:port`` if there is no scheme."""
        return self._written(userinfo="")

    def at(self, address: str) -> Self:
        """Return a copy that connects to ``address``, or to the host if ``address`` is empty."""
        return replace(self, address=address)

    @property
    def connect_host(self) -> str:
        return self.address or self.host

    @property
    def name(self) -> str:
        """The name for labels and logs."""
        return self.alias or self.authority

    @property
    def authority(self) -> str:
        """``host:port`` to connect to, with IPv6 addresses in brackets."""
        host = self.connect_host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def identity(self) -> tuple[str, int]:
        """A key to compare endpoints by. The key is the same for all names of the local host."""
        return ("localhost" if self.host in _LOCAL_HOSTS else self.host, self.port)

    @property
    def secure(self) -> bool:
        return self.scheme.endswith("wss")

    @property
    def follows_dns(self) -> bool:
        """Whether skyfast looks up the host in DNS, and subscribes to each address of the host."""
        return self.scheme.startswith(FOLLOW_DNS)

    @property
    def url(self) -> str:
        """The subscription URL without credentials. The URL never contains ``address``."""
        return str(replace(self, scheme=self.scheme.removeprefix(FOLLOW_DNS)))

    @property
    def redacted(self) -> str:
        """The URL with the user, and with ``<hidden>`` in place of the password."""
        user, _, password = self.userinfo.partition(":")
        return self._written(userinfo=self.userinfo and f"{user}:{password and HIDDEN}@")

    def _written(self, *, userinfo: str) -> str:
        authority = self.at("").authority
        return f"{self.scheme}://{userinfo}{authority}{self.resource}" if self.scheme else authority

    @property
    def username(self) -> str:
        return unquote(self.userinfo.partition(":")[0])

    @property
    def password(self) -> str:
        return unquote(self.userinfo.partition(":")[2])

    @property
    def prefix(self) -> str:
        """The path prefix of the analyzer's ``/login`` and ``/api/topology``.

        Example: the prefix of ``ws://host/skydive/ws/subscriber`` is ``/skydive``. If the URL's
        path does not end with ``/ws/subscriber``, the whole path is the prefix. skyfast sends
        credentials only to paths below the prefix.
        """
        path = self.resource.partition("?")[0]
        match = _SUBSCRIPTION.fullmatch(path)
        return match[1] if match else path.rstrip("/")


def parse_host(text: str) -> str:
    """Return a host name in lower case, or an IP address in canonical form without brackets.

    Raises:
        ValueError: ``text`` is neither a host name nor an IP address.

    """
    try:
        address = str(ipaddress.ip_address(text))
    except ValueError:
        if not re.fullmatch(r"[\w.-]+", text) or re.fullmatch(r"[0-9.]+", text):
            raise
    else:
        # `ipaddress` accepts these characters in an IPv6 zone, but a URL's host ends before them.
        if re.search(r"[\s:/?#@%\[\]\\]", address.partition("%")[2]):
            raise ValueError(f"{text!r} has an invalid zone")
        return address
    text.encode("idna")  # checks the length of each DNS label
    return text.lower()


def parse_listen_host(text: str) -> str:
    """Like `parse_host`, but also accept an IPv6 address in brackets."""
    bracketed = re.fullmatch(r"\[(.*:.*)\]", text)
    return parse_host(bracketed[1] if bracketed else text)


def parse_listen_address(text: str) -> Endpoint:
    """Read ``host:port``, ``[IPv6]:port`` or ``:port``.

    Raises:
        ValueError: ``text`` is invalid. The message is a predicate, such as "has no port".

    """
    if "://" in text:
        raise ValueError("has a scheme; write only host:port")
    match = _HOST_AND_PORT.fullmatch(text)
    has_port = match is not None and match[3] is not None
    if match and has_port and int(match[3]) <= MAX_PORT:
        host = match[1] or match[2]
        try:
            return Endpoint(parse_host(host) if host else "", int(match[3]))
        except ValueError:
            pass
    elif re.fullmatch(r"[0-9]{1,5}", text):
        raise ValueError(f"has no colon; did you mean :{text}?")
    elif re.fullmatch(r"[0-9A-Fa-f:.]*::?[0-9A-Fa-f:.]*", text) and text.count(":") > 1:
        raise ValueError("is an IPv6 address; write it in brackets, with a port: [::1]:9100")
    elif not has_port and ":" not in text:
        raise ValueError(f"has no port; did you mean {text}:9100?")
    raise ValueError("is not an address such as :9100, 127.0.0.1:9100 or [::1]:9100")


def parse_analyzer(text: str) -> Endpoint:
    """Read ``host``, ``host:port``, ``[v6]``, ``[v6]:port``, ``v6``, ``:port`` or ``port``.

    ``:port`` and ``port`` mean a port of ``localhost``, as in Skydive's ``AddressFromString``.

    Raises:
        EndpointError: ``text`` is invalid.

    """
    if re.fullmatch(r"[0-9]+", text):
        text = f":{text}"
    match = _HOST_AND_PORT.fullmatch(text)
    try:
        if text.count(":") > 1 and not text.startswith("["):
            return Endpoint(parse_host(text), ANALYZER_PORT)
        if match and text and 1 <= int(match[3] or ANALYZER_PORT) <= MAX_PORT:
            host = parse_host(match[1] or match[2] or "localhost")
            return Endpoint(host, int(match[3] or ANALYZER_PORT))
    except ValueError:
        pass
    raise EndpointError("is not an analyzer address such as host:8082 or [2001:db8::1]:8082", text)


def parse_url(text: str) -> Endpoint:
    """Read the URL of a subscription.

    Raises:
        EndpointError: ``text`` is invalid.

    """
    if re.search(r"\s", text):
        raise EndpointError("contains a space", text)
    scheme, separator, _ = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES:
        begins = ", ".join(f"{name}://" for name in SCHEMES)
        raise EndpointError(f"does not begin with one of {begins}", text)
    try:
        parts = urlsplit(text)
        host = parse_host(parts.hostname or "")
        port = parts.port
        unquote(parts.netloc, errors="strict")
    except ValueError:
        # Hide invalid ports: in "ws://user:password", where "@host" is missing, the password is
        # parsed as a port.
        shown = _INVALID_PORT.sub(rf"\1{HIDDEN}", text)
        problem = "is not a valid URL: its host, port or user is invalid"
        raise EndpointError(problem, shown) from None
    if port == 0:
        raise EndpointError("has a port that is not from 1 to 65535", text)
    if "#" in text:
        raise EndpointError("has a fragment (#); in a password, write %23 for #", text)
    if "@" in parts.path + parts.query:
        # "ws://user:80/x@host" is a valid URL with the host "user" and the path "/x@host". But
        # "80/x" is probably a password, and messages would show a part of this password.
        problem = "has / or ? before an @; in a password, write %2F for /, %3F for ? and %40 for @"
        raise EndpointError(problem, text)
    userinfo = parts.netloc.rpartition("@")[0]
    return Endpoint(
        host=host,
        port=port or DEFAULT_PORTS[scheme.removeprefix(FOLLOW_DNS)],
        scheme=scheme,
        userinfo=userinfo if not userinfo or ":" in userinfo else f"{userinfo}:",
        resource=(parts.path or SUBSCRIBER_PATH) + (f"?{parts.query}" if parts.query else ""),
        has_port=port is not None,
    )
