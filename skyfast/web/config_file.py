"""The web configuration file: TLS, users, headers and a rate limit of the HTTP server.

The file has the format of Prometheus's exporter-toolkit (see its ``docs/web-configuration.md``).
Settings that Python's `ssl` or aiohttp does not support cause errors or warnings. This module is
imported only with ``--web.config.file``.
"""

import ipaddress
import logging
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from skyfast.config.errors import InvalidValue, Origin, hide_all, hide_nothing
from skyfast.config.file_state import Files, file_state
from skyfast.config.parsers import integer, list_of, mapping_of, one_of, parse_str, to_boolean
from skyfast.config.yaml_nodes import (
    ConfigError,
    YamlNode,
    YamlValue,
    compose,
    file_name,
    join,
    read_file,
)
from skyfast.skydive.tls import NOT_A_PAIR, EncryptedKeyError, failure, refuse_password
from skyfast.web.handshakes import ServerContext

T = TypeVar("T")

MIN_COST = 4
"""The lowest cost of bcrypt."""

MAX_COST = 18
"""The highest accepted cost of bcrypt. With this cost, checking a password takes about 15 s."""

SLOW_COST = 16
"""The highest cost of bcrypt without a warning. With this cost, a password check takes about 4 s.

A check that takes longer than 10 s continues after the deadline of the response. The next request
with the same credentials uses the result of the check.
"""


_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_OLD_VERSIONS = ("TLS10", "TLS11")

# TLS 1.3 suites are always offered, as in Prometheus: Go cannot configure TLS 1.3 suites.
_CIPHERS_13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
_CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
}

# The default suites of TLS 1.2: those with authenticated encryption and forward secrecy.
_DEFAULT_CIPHERS = [cipher for name, cipher in _CIPHERS.items() if "_CBC_" not in name]

_CURVES = {
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
    "X25519": "X25519",
}

_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_UNVERIFIED = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")

_SECTIONS = ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")

_TLS_KEYS = (
    *("cert_file", "key_file", "cert", "key"),
    *("client_auth_type", "client_ca_file", "client_ca", "client_allowed_sans"),
    *("min_version", "max_version"),
    *("cipher_suites", "prefer_server_cipher_suites", "curve_preferences"),
)

HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
"""The headers that can be set, with their allowed values. An empty tuple allows any value."""

_NOT_A_HASH = (
    'is not a bcrypt hash: run htpasswd -nBC 10 "", and copy only the part after the colon'
)
_HASH = re.compile(r"\$2[aby]\$(\d\d)\$([./A-Za-z0-9]{53})", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_BURST = 1 << 30

log = logging.getLogger("skyfast.web_config")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Allows one request per ``interval_s``, and bursts of at most ``burst`` requests."""

    interval_s: float
    burst: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    tls: ssl.SSLContext | None
    allowed_sans: frozenset[str]
    """A client certificate must have one of these SANs. An empty set allows any SAN."""
    users: Mapping[bytes, bytes] = field(repr=False)
    """The password hashes by user name; empty if no authentication is required."""
    headers: Mapping[str, str]
    rate_limit: RateLimit | None
    warnings: tuple[str, ...]
    """The texts of warnings about settings, each with file, line and key."""
    files: Files = field(repr=False)

    def summary(self) -> str:
        """Return a summary of the configuration in one line, without secrets."""
        parts = ["plain HTTP"]
        if self.tls is not None:
            minimum, maximum = self.tls.minimum_version.name, self.tls.maximum_version.name
            parts = ["HTTPS", minimum if minimum == maximum else f"{minimum} to {maximum}"]
            if self.tls.verify_mode is not ssl.CERT_NONE:
                required = self.tls.verify_mode is ssl.CERT_REQUIRED
                parts.append(f"client certificates {'required' if required else 'verified'}")
        if self.users:
            parts.append(f"{len(self.users)} user{'s' if len(self.users) > 1 else ''}")
        else:
            parts.append("no users")
        if self.rate_limit:
            parts.append(f"one request every {self.rate_limit.interval_s:g} s")
        return ", ".join(parts)


def read(path: str, *, files: Files | None = None) -> WebConfig:
    """Read the file at ``path``, and the certificate and key files that it names (blocking).

    Adds the paths of all these files to ``files``, even if a file is invalid. Logs warnings.

    Raises:
        ConfigError: A file is invalid. The message contains file, line and key, but no secrets.

    """
    if path == "-":
        raise ConfigError(
            "--web.config.file: standard input is not supported, because skyfast reads the file"
            " again when it changes"
        )
    config = _Reader(path, {} if files is None else files).read()
    for warning in config.warnings:
        log.warning("web configuration: %s", warning)
    return config


class _Reader:
    def __init__(self, path: str, files: Files) -> None:
        self._path = path
        self._name = file_name(path)
        self._files = files
        self._warnings: list[str] = []
        files[path] = file_state(path)

    def read(self) -> WebConfig:
        top = compose(read_file(self._path), file=self._name)
        with self.errors_at(YamlNode(top, 1), ""):
            sections = mapping_of(top, known=_SECTIONS, what="a web configuration")
        tls, sans = None, frozenset[str]()
        if node := sections.get("tls_server_config"):
            tls, sans = self._tls(node)
        users: dict[bytes, bytes] = {}
        if node := sections.get("basic_auth_users"):
            users = self._users(node)
        rate_limit = None
        if node := sections.get("rate_limit"):
            rate_limit = self._rate_limit(node)
        headers: dict[str, str] = {}
        if node := sections.get("http_server_config"):
            headers = self._http(node)
        return WebConfig(
            tls=tls,
            allowed_sans=sans,
            users=users,
            headers=headers,
            rate_limit=rate_limit,
            warnings=tuple(self._warnings),
            files=self._files,
        )

    def origin(self, node: YamlNode) -> Origin:
        return Origin(self._name, node.line)

    def errors_at(
        self, node: YamlNode, path: str, *, secret: bool = False
    ) -> AbstractContextManager[None]:
        """Convert an `InvalidValue` to a ConfigError about ``node``, whose key path is ``path``."""
        return self.origin(node).errors_at(path, hides=hide_all if secret else hide_nothing)

    def add_warning(self, node: YamlNode, path: str, text: str) -> None:
        self._warnings.append(f"{self.origin(node)}: {path}: {text}")

    def _section(self, node: YamlNode, path: str, known: Sequence[str]) -> "_Section":
        return _Section(self, path, self._mapping(node, path, known), node)

    def _mapping(self, node: YamlNode, path: str, known: Sequence[str]) -> dict[str, YamlNode]:
        with self.errors_at(node, path):
            _check_mapping(node.value)
            return mapping_of(node.value, known=known, what="a mapping")

    def file(self, value: YamlValue) -> str:
        """Return the path of the file that ``value`` names. Check that the file is readable.

        A relative path starts at the directory of the web configuration file.
        """
        path = str(Path(self._path).parent / parse_str(value))
        self._files[path] = file_state(path)
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise InvalidValue(f"cannot be read: {error.strerror}", path) from None
        return path

    def _tls(self, node: YamlNode) -> tuple[ssl.SSLContext | None, frozenset[str]]:
        section = self._section(node, "tls_server_config", _TLS_KEYS)
        if not section.nodes:
            return None, frozenset()
        context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_RENEGOTIATION
        minimum = section.get("min_version", _to_version, ssl.TLSVersion.TLSv1_2)
        maximum = section.get("max_version", _to_version, ssl.TLSVersion.TLSv1_3)
        if minimum > maximum:
            raise section.error("min_version", "is above max_version")
        context.minimum_version, context.maximum_version = minimum, maximum
        self._ciphers(section, context, minimum)
        self._load_certificate(section, context)
        return context, self._clients(section, context)

    def _ciphers(
        self, section: "_Section", context: ServerContext, minimum: ssl.TLSVersion
    ) -> None:
        suites = section.names("cipher_suites", one_of(*_CIPHERS, *_CIPHERS_13))
        chosen = [_CIPHERS[name] for name in suites if name in _CIPHERS]
        if not suites:
            context.set_ciphers(":".join(_DEFAULT_CIPHERS))
        elif chosen:
            try:
                context.set_ciphers(":".join(chosen))
            except ssl.SSLError as error:  # pragma: no cover - OpenSSL lacks a suite
                raise section.error(
                    "cipher_suites",
                    f"contains no suite that OpenSSL supports{failure(error)}",
                ) from None
        elif minimum < ssl.TLSVersion.TLSv1_3:
            raise section.error(
                "cipher_suites", "contains only TLS 1.3 suites; set min_version to TLS13"
            )
        if section.get("prefer_server_cipher_suites", to_boolean, True):
            context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        else:
            context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        curves = section.names("curve_preferences", one_of(*_CURVES))
        set_groups = getattr(context, "set_groups", None)  # since Python 3.15
        if len(curves) > 1 and set_groups is None:
            text = f"only {curves[0]} is offered: this Python version supports a single curve"
            section.add_warning("curve_preferences", text)
        if curves:
            try:
                if set_groups is None:
                    context.set_ecdh_curve(_CURVES[curves[0]])
                else:
                    set_groups(":".join(_CURVES[curve] for curve in curves))
            except (ssl.SSLError, ValueError) as error:  # pragma: no cover - OpenSSL lacks a curve
                raise section.error(
                    "curve_preferences",
                    f"contains a curve that OpenSSL does not support{failure(error)}",
                ) from None

    def _load_certificate(self, section: "_Section", context: ssl.SSLContext) -> None:
        with ExitStack() as stack:
            paths: list[str] = []
            shown: list[str] = []
            for name in ("cert", "key"):
                path = section.get(f"{name}_file", self.file, "")
                text = section.get(name, _to_pem, "", secret=True)
                if path and text:
                    raise section.error(
                        name, f"set either {name} or {name}_file, not both", shown=False
                    )
                if not path and not text:
                    raise section.missing(f"{name}_file or {name}")
                # OpenSSL loads certificates only from files, so use an in-memory file.
                paths.append(path or stack.enter_context(_in_memory(text)))
                shown.append(repr(path) if path else f"the value of {name}")
            try:
                context.load_cert_chain(paths[0], paths[1], password=refuse_password)
            except EncryptedKeyError as error:
                key = "key_file" if section.has("key_file") else "key"
                raise section.error(key, f"the key {error}", shown=False) from None
            except (OSError, ValueError) as error:
                key = "cert_file" if section.has("cert_file") else "cert"
                problem = f"{' and '.join(shown)} {NOT_A_PAIR}{failure(error)}"
                raise section.error(key, problem, shown=False) from None

    def _clients(self, section: "_Section", context: ssl.SSLContext) -> frozenset[str]:
        """Set up the verification of client certificates. Return the allowed SANs."""
        mode = section.get("client_auth_type", _to_client_auth, ssl.CERT_NONE)
        path = section.get("client_ca_file", self.file, "")
        text = section.get("client_ca", _to_pem, "")
        key = "client_ca_file" if path else "client_ca"
        if path and text:
            raise section.error(
                "client_ca", "set either client_ca or client_ca_file, not both", shown=False
            )
        if (path or text) and mode is ssl.CERT_NONE:
            allowed = " or ".join(name for name, used in _CLIENT_AUTH.items() if used)
            problem = f"client certificates are not verified: set client_auth_type to {allowed}"
            raise section.error(key, problem, shown=False)
        if mode is not ssl.CERT_NONE:
            try:
                if path or text:
                    context.load_verify_locations(cafile=path or None, cadata=text or None)
                else:
                    context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
            except (OSError, ValueError) as error:
                subject = "" if path else "the value "
                problem = f"{subject}does not contain PEM certificates{failure(error)}"
                raise section.error(key, problem, shown=bool(path)) from None
            context.verify_mode = mode
            # As in Go and in skyfast.skydive.tls, authorities need not be self-signed, and can lack
            # extensions that Python 3.13 requires.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        sans = section.names("client_allowed_sans", parse_str)
        if section.has("client_allowed_sans") and not sans:
            problem = "must contain at least one name: an empty list would reject every client"
            raise section.error("client_allowed_sans", problem, shown=False)
        if sans and mode is not ssl.CERT_REQUIRED:
            raise section.error(
                "client_allowed_sans", "requires client_auth_type: RequireAndVerifyClientCert"
            )
        if mode is not ssl.CERT_NONE and not (path or text or sans):
            text = (
                "without client_ca_file, the system's certificate authorities are trusted: anyone"
                " can get a certificate from them"
            )
            section.add_warning("client_auth_type", text)
        return frozenset(map(normalize_san, sans))

    def _http(self, node: YamlNode) -> dict[str, str]:
        path = "http_server_config"
        section = self._section(node, path, ("http2", "headers"))
        if section.get("http2", to_boolean, False):
            section.add_warning("http2", "HTTP/2 is not supported; clients use HTTP/1.1 instead")
        headers = {}
        if headers_node := section.nodes.get("headers"):
            path = join(path, "headers")
            nodes = self._mapping(headers_node, path, [name.lower() for name in HEADERS])
            for name, values in HEADERS.items():
                if entry := nodes.get(name.lower()):
                    with self.errors_at(entry, join(path, name)):
                        if text := parse_str(entry.value):
                            headers[name] = one_of(*values)(text) if values else text
        return headers

    def _users(self, node: YamlNode) -> dict[bytes, bytes]:
        path = "basic_auth_users"
        users = {}
        with self.errors_at(node, path, secret=True):
            _check_mapping(node.value)
        assert isinstance(node.value, dict)  # noqa: S101 - for mypy
        for name, entry in node.value.items():
            with self.errors_at(entry, join(path, name), secret=True):
                if ":" in parse_str(name):
                    raise InvalidValue("a user name cannot contain a colon", shown=False)
                users[name.encode()] = hashed = _to_hash(entry.value)
            if (cost := _cost(hashed)) > SLOW_COST:
                text = (
                    f"the bcrypt cost is {cost}: the user's first request after skyfast starts"
                    " may time out before the password is checked; later requests succeed"
                )
                self.add_warning(entry, join(path, name), text)
        return users

    def _rate_limit(self, node: YamlNode) -> RateLimit | None:
        section = self._section(node, "rate_limit", ("interval", "burst"))
        interval_s = section.get("interval", _to_duration_s, 0.0)
        burst = section.get("burst", integer(0, _MAX_BURST), 0)
        if not interval_s:
            return None
        if not section.has("burst"):
            raise section.missing("burst (at least 1)")
        if not burst:
            section.add_warning("burst", "0 rejects every request")
        return RateLimit(interval_s, burst)


@dataclass(frozen=True, slots=True)
class _Section:
    reader: _Reader
    path: str
    nodes: dict[str, YamlNode]
    node: YamlNode

    def has(self, key: str) -> bool:
        return key in self.nodes and self.nodes[key].value != ""

    def get(
        self, key: str, parse: Callable[[YamlValue], T], default: T, *, secret: bool = False
    ) -> T:
        if not self.has(key):
            return default
        with self.reader.errors_at(self.nodes[key], join(self.path, key), secret=secret):
            return parse(self.nodes[key].value)

    def names(self, key: str, parse: Callable[[YamlValue], str]) -> tuple[str, ...]:
        nothing: tuple[str, ...] = ()
        return self.get(key, list_of(parse), nothing)

    def error(self, key: str, problem: str, *, shown: bool = True) -> ConfigError:
        node = self.nodes[key]
        refused = InvalidValue(problem, node.value, shown=shown)
        return self.reader.origin(node).error(refused, join(self.path, key))

    def add_warning(self, key: str, text: str) -> None:
        self.reader.add_warning(self.nodes[key], join(self.path, key), text)

    def missing(self, what: str) -> ConfigError:
        refused = InvalidValue(f"{what} is missing", shown=False)
        return self.reader.origin(self.node).error(refused, self.path)


def _check_mapping(value: YamlValue) -> None:
    # Never show the value: without the space after the colon, "alice:hash" is a string that
    # contains a password hash.
    if not isinstance(value, dict):
        problem = "expected 'key: value' pairs, with a space after the colon"
        raise InvalidValue(problem, shown=False)


def _to_version(value: YamlValue) -> ssl.TLSVersion:
    text = parse_str(value)
    if text in _OLD_VERSIONS:
        raise InvalidValue("is not supported; use TLS12 or TLS13", text)
    return _VERSIONS[one_of(*_VERSIONS)(text)]


def _to_client_auth(value: YamlValue) -> ssl.VerifyMode:
    text = parse_str(value)
    if text in _UNVERIFIED:
        raise InvalidValue(
            "accepts any certificate, so it does not authenticate clients, and Python does not"
            " support it; use RequireAndVerifyClientCert",
            text,
        )
    return _CLIENT_AUTH[one_of(*_CLIENT_AUTH)(text)]


def _to_pem(value: YamlValue) -> str:
    if not isinstance(value, str) or not value.isascii():
        raise InvalidValue("the value is not text in PEM format", shown=False)
    return value


def _to_hash(value: YamlValue) -> bytes:
    import bcrypt

    text = value if isinstance(value, str) else ""
    match = _HASH.fullmatch(text)
    try:
        # For some invalid hashes that match the pattern, bcrypt raises ValueError. The check is
        # fast, because the lowest cost replaces the cost of the hash.
        if not match or not bcrypt.hashpw(b"", f"$2b$04${match[2]}".encode()):
            raise InvalidValue(_NOT_A_HASH)
    except ValueError:
        raise InvalidValue(_NOT_A_HASH) from None
    cost = int(match[1])
    if cost < MIN_COST:
        raise InvalidValue(f"has a bcrypt cost below {MIN_COST}, the minimum of bcrypt")
    if cost > MAX_COST:
        raise InvalidValue(f"has a bcrypt cost above {MAX_COST}, which takes too long to check")
    return text.encode()


def _cost(hashed: bytes) -> int:
    return int(hashed.split(b"$")[2])


def _to_duration_s(value: YamlValue) -> float:
    """Parse a duration in the format of Go's ``time.ParseDuration``, and return the seconds."""
    text = parse_str(value)
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidValue("is not a duration such as 1s or 500ms", text)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def normalize_san(san: str) -> str:
    """Return an IP address in canonical form, and any other SAN unchanged."""
    try:
        return str(ipaddress.ip_address(san.strip()))
    except ValueError:
        return san


@contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """Yield the path of an in-memory file that contains ``text``."""
    descriptor = os.memfd_create("skyfast")
    try:
        with open(descriptor, "w", closefd=False) as file:
            file.write(text)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
