"""The web configuration file, and its effect on a server that listens on real sockets."""

import asyncio
import contextlib
import logging
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from skyfast.config.yaml_nodes import ConfigError
from skyfast.web import config_file, connections, self_metrics, server
from skyfast.web.auth import WebSecurity
from skyfast.web.handshakes import ServerContext
from tests.support.certificates import Authority
from tests.support.http_client import Client, Site, request
from tests.support.process import demo
from tests.support.prometheus import ANSWER_S, growing, needs_prometheus, number, prometheus
from tests.support.waiting import until
from tests.support.web_configs import CHEAP, DEAR, PASSWORD, basic, users
from tests.support.web_fixtures import BIG, FakeTable, on_both_loops

FORBIDDEN = "Forbidden: the client certificate has none of the names in client_allowed_sans.\n"


def trusting(authority, **settings):
    """Return a client's TLS context that trusts the certificate authority."""
    context = ssl.create_default_context(cafile=authority.certificate)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    for name, value in settings.items():
        setattr(context, name, value)
    return context


class Secure:
    """Like `Client`, but over TLS."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.buffer = bytearray()

    @classmethod
    async def open(cls, port, context):
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def receive(self, size=2**18):
        data = await self.reader.read(size)
        self.buffer += data
        return bool(data)

    async def ask(self, *arguments, **headers):
        self.writer.write(request(*arguments, **headers))
        return await self.read_response(head=headers.get("method") == "HEAD")

    def certificate(self):
        return self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)

    read, read_until, read_rest = Client.read, Client.read_until, Client.read_rest
    read_head, read_chunks = Client.read_head, Client.read_chunks
    read_response = Client.read_response


async def gets_no_response(port, context):
    try:
        async with await Secure.open(port, context) as client:
            await client.ask("/-/healthy")
    except (OSError, asyncio.IncompleteReadError):
        return True
    return False


# --- reading the file

OPTIONAL = "client_auth_type: VerifyClientCertIfGiven"
TLS = "cert_file: ca-127.0.0.1.crt, key_file: ca-127.0.0.1.key"

INVALID_FILES = {
    "unknown section": ("tls_config: {}", "line 1: tls_config: unknown key; did you mean"),
    "unknown key": (
        f"tls_server_config: {{{TLS},\n certfile: x}}",
        "line 2: tls_server_config.cer",
    ),
    "not a mapping": (
        "basic_auth_users: alice:hunter2",
        "line 1: basic_auth_users: expected 'key: value' pairs, with a space after the colon",
    ),
    "a list at the top level": (
        "- hunter2",
        "line 1: expected 'key: value' pairs, but found a list",
    ),
    "missing key": ("tls_server_config: {cert_file: ca.crt}", "key_file or key is missing"),
    "missing certificate": (
        "tls_server_config: {key_file: ca.crt}",
        "cert_file or cert is missing",
    ),
    "missing file": ("tls_server_config: {cert_file: no.crt, key_file: no.key}", "cert_file: '"),
    "mismatched key": (
        "tls_server_config: {cert_file: ca.crt, key_file: ca-127.0.0.1.key}",
        "(KEY_VALUES_MISMATCH)",
    ),
    "key and key_file": (
        f"tls_server_config: {{{TLS}, key: hunter2}}",
        "key: set either key or key_file, not both",
    ),
    "mismatched inline key": (
        "tls_server_config: {cert_file: ca-127.0.0.1.crt, key: hunter2}",
        "ca-127.0.0.1.crt' and the value of key are not a matching PEM certificate and key",
    ),
    "client_auth_type": (
        f"tls_server_config: {{{TLS}, client_auth_type: RequireAnyClientCert}}",
        "'RequireAnyClientCert' accepts any certificate, so it does not authenticate clients",
    ),
    "client_auth_type that only requests": (
        f"tls_server_config: {{{TLS}, client_auth_type: RequestClientCert}}",
        "'RequestClientCert' accepts any certificate, so it does not authenticate clients",
    ),
    "client_auth_type misspelled": (
        f"tls_server_config: {{{TLS}, client_auth_type: NoClientCerts}}",
        "did you mean NoClientCert?",
    ),
    "authority without type": (
        f"tls_server_config: {{{TLS}, client_ca_file: ca.crt}}",
        (
            "client_ca_file: client certificates are not verified: set client_auth_type to"
            " VerifyClientCertIfGiven or RequireAndVerify"
        ),
    ),
    "empty authority": (
        f"tls_server_config: {{{TLS}, {OPTIONAL}, client_ca_file: /dev/null}}",
        "'/dev/null' does not contain PEM certificates",
    ),
    "two authorities": (
        f"tls_server_config: {{{TLS}, {OPTIONAL}, client_ca_file: ca.crt, client_ca: x}}",
        "client_ca: set either client_ca or client_ca_file, not both",
    ),
    "authority that is not a string": (
        f"tls_server_config: {{{TLS}, {OPTIONAL}, client_ca: [x]}}",
        "client_ca: the value is not text in PEM format",
    ),
    "names without certificates": (
        f"tls_server_config: {{{TLS}, client_allowed_sans: [x]}}",
        "requires client_auth_type: RequireAndVerifyClientCert",
    ),
    "empty list of names": (
        f"tls_server_config: {{{TLS}, client_allowed_sans: []}}",
        "must contain at least one name: an empty list would reject every client",
    ),
    "old version": (
        f"tls_server_config: {{{TLS}, min_version: TLS10}}",
        "'TLS10' is not supported; use TLS12 or TLS13",
    ),
    "unknown version": (
        f"tls_server_config: {{{TLS}, max_version: TLS14}}",
        "is not one of TLS12, TLS13",
    ),
    "versions in the wrong order": (
        f"tls_server_config: {{{TLS}, min_version: TLS13, max_version: TLS12}}",
        "min_version: 'TLS13' is above max_version",
    ),
    "unknown suite": (
        f"tls_server_config: {{{TLS}, cipher_suites: [TLS_NULL]}}",
        "'TLS_NULL' is not one",
    ),
    "suites of TLS 1.3": (
        f"tls_server_config: {{{TLS}, cipher_suites: [TLS_AES_128_GCM_SHA256]}}",
        "set min_version to TLS13",
    ),
    "unknown curve": (
        f"tls_server_config: {{{TLS}, curve_preferences: [P256]}}",
        "'P256' is not one of",
    ),
    "unknown header": (
        "http_server_config: {headers: {X-Powered-By: x}}",
        "X-Powered-By: unknown key",
    ),
    "invalid header value": (
        "http_server_config: {headers: {X-Frame-Options: allow}}",
        "X-Frame-Options: 'allow' is not one of deny, sameorigin",
    ),
    "password in place of a hash": (
        "basic_auth_users:\n  alice: hunter2",
        "line 2: basic_auth_users.alice: <hidden> is not a bcrypt hash",
    ),
    "empty hash": ("basic_auth_users: {alice: }", "<hidden> is not a bcrypt hash"),
    "almost a hash": (
        f"basic_auth_users: {{alice: {CHEAP[:28]}/{CHEAP[29:]}}}".replace("$04$", "$03$"),
        "<hidden> is not a bcrypt hash",
    ),
    "user name in front of a hash": (
        f"basic_auth_users: {{alice: 'alice:{CHEAP}'}}",
        '<hidden> is not a bcrypt hash: run htpasswd -nBC 10 "", and copy only the part after',
    ),
    "hash with a low cost": (
        f"basic_auth_users: {{alice: {CHEAP.replace('$04$', '$03$')}}}",
        "<hidden> has a bcrypt cost below 4",
    ),
    "hash with a high cost": (
        f"basic_auth_users: {{alice: {CHEAP.replace('$04$', '$19$')}}}",
        "<hidden> has a bcrypt cost above 18",
    ),
    "colon in a user name": (
        f"basic_auth_users: {{'a:b': {CHEAP}}}",
        "a user name cannot contain a colon",
    ),
    "invalid interval": ("rate_limit: {interval: 5, burst: 1}", "'5' is not a duration such as 1s"),
    "missing burst": ("rate_limit: {interval: 1s}", "rate_limit: burst (at least 1) is missing"),
    "invalid YAML": ("rate_limit: [", "not valid YAML"),
}


@pytest.mark.parametrize(("text", "message"), INVALID_FILES.values(), ids=INVALID_FILES)
def test_error_is_one_line_without_secrets(text, message, file, plain):
    file()
    path = plain(text)
    with pytest.raises(ConfigError) as caught:
        config_file.read(path)
    line = str(caught.value)
    assert line.startswith(path)
    assert message in line
    assert "\n" not in line
    assert "hunter2" not in line
    assert CHEAP[10:] not in line


def test_encrypted_key_is_rejected(tmp_path, authority, plain):
    issued = authority.issue("localhost", password=b"hunter2")
    path = plain(f"tls_server_config: {{cert_file: {issued.certificate}, key_file: {issued.key}}}")
    with pytest.raises(ConfigError, match="key_file: the key is encrypted"):
        config_file.read(path)
    key = textwrap.indent(Path(issued.key).read_text(), "    ")
    path = plain(f"tls_server_config:\n  cert_file: {issued.certificate}\n  key: |\n{key}")
    with pytest.raises(ConfigError, match=r"config\.key: the key is encrypted"):
        config_file.read(path)


def test_certificate_and_key_that_do_not_match_are_both_named(authority, plain):
    certificate, key = authority.issue("localhost").certificate, authority.issue("other").key
    path = plain(f"tls_server_config: {{cert_file: {certificate}, key_file: {key}}}")
    problem = re.escape(f"'{certificate}' and '{key}' are not a matching PEM certificate and key")
    with pytest.raises(ConfigError, match=f"cert_file: {problem}"):
        config_file.read(path)


def test_inline_authority_that_is_not_a_certificate_is_rejected(authority, plain):
    issued = authority.issue("localhost")
    path = plain(
        f"tls_server_config: {{cert_file: {issued.certificate}, key_file: {issued.key},"
        " client_auth_type: RequireAndVerifyClientCert, client_ca: hunter2}"
    )
    with pytest.raises(ConfigError, match="client_ca: the value does not contain PEM") as error:
        config_file.read(path)
    assert "hunter2" not in str(error.value)


def test_standard_input_is_rejected():
    with pytest.raises(ConfigError, match="standard input"):
        config_file.read("-")


VALID_FILES = {
    "nothing": ("", "plain HTTP, no users"),
    "users": (users(), "plain HTTP, 1 user"),
    "TLS": (f"tls_server_config: {{{TLS}}}", "HTTPS, TLSv1_2 to TLSv1_3, no users"),
    "everything": (
        f"""
tls_server_config:
  {TLS.replace(", ", chr(10) + "  ")}
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  client_allowed_sans: [prometheus.example, "2001:DB8::0:1"]
  min_version: TLS13
  max_version: TLS13
  cipher_suites: [TLS_AES_128_GCM_SHA256]
  prefer_server_cipher_suites: false
  curve_preferences: [CurveP384]
http_server_config:
  http2: false
  headers: {{Strict-Transport-Security: max-age=1, X-XSS-Protection: ""}}
basic_auth_users: {{alice: {CHEAP}, bob: {CHEAP.replace("$2b", "$2y")}}}
rate_limit: {{interval: 1m0.5s, burst: 20}}
""",
        "HTTPS, TLSv1_3, client certificates required, 2 users, one request every 60.5 s",
    ),
    "no rate limit": ("rate_limit: {interval: 0, burst: 0}", "plain HTTP, no users"),
}


@pytest.mark.parametrize(("text", "summary"), VALID_FILES.values(), ids=VALID_FILES)
def test_valid_file_is_accepted_with_a_summary(text, summary, file, plain):
    file()
    config = config_file.read(plain(text))
    assert config.summary() == summary
    assert CHEAP[10:] not in repr(config)


PEM_SUITES = (
    *("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    *("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    *("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"),
    *("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA"),
    *("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA"),
)
SYSTEM = (
    "client_auth_type: without client_ca_file, the system's certificate authorities are trusted"
)
TOOLKIT = {
    "verified by the system": (f"{OPTIONAL}", [SYSTEM]),
    "required by the system": ("client_auth_type: RequireAndVerifyClientCert", [SYSTEM]),
    "all suites": (f"{OPTIONAL}, cipher_suites: [{', '.join(PEM_SUITES)}]", [SYSTEM]),
    "some suites": (
        f"cipher_suites: [{', '.join(PEM_SUITES[2:4])}], min_version: TLS12, max_version: TLS12",
        [],
    ),
    "suites without order": (
        f"cipher_suites: [{PEM_SUITES[2]}], max_version: TLS12, prefer_server_cipher_suites: false",
        [],
    ),
    "all curves": (
        "curve_preferences: [CurveP256, CurveP384, CurveP521, X25519]",
        ["curve_preferences: only CurveP256 is offered"],
    ),
    "a curve": ("min_version: TLS13, curve_preferences: [CurveP521]", []),
    "HTTP/2": ("}, http_server_config: {http2: true", ["http2: HTTP/2 is not supported"]),
    "costs": (
        "}, basic_auth_users: {"
        + ", ".join(f"user{cost}: {CHEAP.replace('$04$', f'${cost}$')}" for cost in (12, 16, 18)),
        ["basic_auth_users.user18: the bcrypt cost is 18: the user's first request"],
    ),
    "burst of zero": ("}, rate_limit: {interval: 1s, burst: 0", ["burst: 0 rejects every request"]),
}


@pytest.mark.parametrize(("text", "warnings"), TOOLKIT.values(), ids=TOOLKIT)
def test_valid_files_of_exporter_toolkit_are_accepted(text, warnings, file, plain, caplog):
    """Other tests cover the only exception: client certificates that are not verified."""
    file()
    path = plain(f"{{tls_server_config: {{{TLS}, {text}}}}}".replace(", }", "}"))
    config = config_file.read(path)
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert messages == [f"web configuration: {warning}" for warning in config.warnings]
    assert len(messages) == len(warnings)
    for line, warning in zip(messages, warnings, strict=True):
        assert re.match(rf"web configuration: {re.escape(path)}: line \d+: \S*{warning}", line)


def test_several_curves_are_offered_if_python_supports_them(file, monkeypatch):
    offered = []
    monkeypatch.setattr(ServerContext, "set_groups", lambda _, names: offered.append(names), False)
    config = config_file.read(file(tls="curve_preferences: [X25519, CurveP384]"))
    assert offered == ["X25519:secp384r1"]
    assert not config.warnings


def test_tls_1_2_defaults_to_authenticated_encryption(file):
    config = config_file.read(file())
    names = [item["name"] for item in config.tls.get_ciphers() if item["protocol"] != "TLSv1.3"]
    assert len(names) == 6
    assert all("GCM" in name or "POLY1305" in name for name in names)


def test_configured_suites_replace_the_default_suites_of_tls_1_2(file):
    suite = "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA"
    config = config_file.read(file(tls=f"cipher_suites: [{suite}, TLS_AES_128_GCM_SHA256]"))
    names = [item["name"] for item in config.tls.get_ciphers() if item["protocol"] != "TLSv1.3"]
    assert names == ["ECDHE-ECDSA-AES256-SHA"]


def inline(key, path):
    lines = Path(path).read_text().splitlines()
    return f"  {key}: |\n" + "".join(f"    {line}\n" for line in lines)


@on_both_loops
async def test_certificate_and_key_can_be_inline(authority, plain):
    issued = authority.issue("127.0.0.1")
    path = plain(
        f"tls_server_config:\n{inline('cert', issued.certificate)}{inline('key', issued.key)}"
    )
    async with (
        Site(security=WebSecurity(path)) as site,
        await Secure.open(site.port, trusting(authority)) as client,
    ):
        assert (await client.ask("/-/healthy")).status == 200


# --- TLS


@on_both_loops
async def test_pages_are_served_over_tls(file, authority):
    async with (
        Site(FakeTable(BIG), security=WebSecurity(file())) as site,
        await Secure.open(site.port, trusting(authority)) as client,
    ):
        head = await client.ask("/metrics/flows", method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert (await client.ask("/metrics/flows")).body == BIG
        assert (await client.ask("/-/healthy")).text == "skyfast is healthy.\n"
        assert (await client.ask("/nowhere")).status == 404
        last = await client.ask("/metrics/flows", connection="close")
        assert last.body == BIG
        assert await client.reader.read() == b""
    assert site.scrape.scrapes == 2


@on_both_loops
async def test_clients_below_the_minimum_version_are_rejected(file, authority):
    old = trusting(authority, maximum_version=ssl.TLSVersion.TLSv1_2)
    async with Site(security=WebSecurity(file())) as site:
        assert not await gets_no_response(site.port, old)
    async with Site(security=WebSecurity(file(tls="min_version: TLS13"))) as site:
        assert await gets_no_response(site.port, old)
        assert not await gets_no_response(site.port, trusting(authority))


@on_both_loops
async def test_client_certificate_needs_trusted_issuer_and_allowed_name(tmp_path, file, authority):
    path = file(
        tls="client_auth_type: RequireAndVerifyClientCert\nclient_ca_file: ca.crt\n"
        "client_allowed_sans: [prometheus.example, '2001:DB8::0:1']"
    )
    stranger = Authority(tmp_path, "stranger")

    def presenting(issued):
        context = trusting(authority)
        context.load_cert_chain(issued.certificate, issued.key)
        return context

    async with Site(security=WebSecurity(path)) as site:
        assert await gets_no_response(site.port, trusting(authority))
        assert await gets_no_response(site.port, presenting(stranger.issue("prometheus.example")))
        context = presenting(authority.issue("other.example"))
        async with await Secure.open(site.port, context) as client:
            response = await client.ask("/metrics")
            assert (response.status, response.headers["connection"]) == (403, "close")
            assert response.text == FORBIDDEN
        assert site.scrape.handshakes_failed["client_certificate"] == 3
        assert not site.table.asked_at
        for name in ("prometheus.example", "2001:db8::1"):
            assert not await gets_no_response(site.port, presenting(authority.issue(name)))


@pytest.mark.xdist_group("timing")
@on_both_loops
async def test_handshakes_have_a_timeout_and_count_as_connections(file, authority, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 1.0)
    async with Site(security=WebSecurity(file()), max_connections=2) as site:
        begin_s = time.monotonic()
        silent = [await Client.open(site.port) for _ in range(3)]
        # The third connection exceeds the limit, so the oldest one is closed.
        assert await silent[0].end() in ("closed", "reset")
        assert site.scrape.connections_rejected == 1
        assert len(site.server._connections._open) == 2
        for client in silent[1:]:
            await client.end()
        assert time.monotonic() - begin_s > 0.9
        for client in silent:
            client.sock.close()
        assert not await gets_no_response(site.port, trusting(authority))


@on_both_loops
async def test_system_authority_can_issue_client_certificates(
    tmp_path, file, authority, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", authority.certificate)
    path = file(tls="client_auth_type: RequireAndVerifyClientCert")
    async with Site(security=WebSecurity(path)) as site:
        for issuer, status in ((authority, 200), (Authority(tmp_path, "stranger"), 0)):
            issued = issuer.issue("prometheus.example")
            context = trusting(authority)
            context.load_cert_chain(issued.certificate, issued.key)
            if not status:
                assert await gets_no_response(site.port, context)
                continue
            async with await Secure.open(site.port, context) as client:
                assert (await client.ask("/-/healthy")).status == status


def alert(data):
    """Return the ``description`` of an unencrypted TLS alert."""
    assert data[:1] == b"\x15"
    assert data[5:6] == b"\x02"  # fatal
    return data[6]


async def hello(site, **settings):
    """Return the response to the ClientHello of a client with these settings."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for name, value in settings.items():
        if name == "ciphers":
            context.set_ciphers(value)
        else:
            setattr(context, name, value)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    async with await site.ask(outgoing.read()) as client:
        await client.receive()
        return bytes(client.buffer)


def client_without_the_authority_rejects(port):
    # asyncio's TLS clients do not send an alert.
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        try:
            ssl.create_default_context().wrap_socket(client, server_hostname="127.0.0.1")
        except ssl.SSLCertVerificationError:
            return True
    return False


@on_both_loops
async def test_failed_handshake_is_reported_to_the_client_and_logged(file, authority, caplog):
    path = file(tls="min_version: TLS13")
    cbc = {"ciphers": "ECDHE-ECDSA-AES128-SHA", "maximum_version": ssl.TLSVersion.TLSv1_2}
    async with Site(security=WebSecurity(path)) as site:
        old = {"maximum_version": ssl.TLSVersion.TLSv1_2}
        assert alert(await hello(site, **old)) == 70  # protocol_version
        for greeting in (b"SSH-2.0-OpenSSH\r\n", bytes(32)):
            async with await site.ask(greeting) as client:
                await client.end()
        assert await asyncio.to_thread(client_without_the_authority_rejects, site.port)
        await until(lambda: sum(site.scrape.handshakes_failed.values()) == 4)
        assert site.scrape.handshakes_failed["unsupported"] == 1
        assert site.scrape.handshakes_failed["not_tls"] == 2
        assert site.scrape.handshakes_failed["rejected"] == 1
        # A disconnect before the first byte does not count as a failed handshake.
        async with await site.ask(b"") as client:
            client.sock.shutdown(socket.SHUT_WR)
            await client.end()
        async with await site.ask(b"\x16\x03\x01") as client:
            client.sock.shutdown(socket.SHUT_WR)
            await client.end()
        await until(lambda: site.scrape.handshakes_failed["disconnected"] == 1)
        assert sum(site.scrape.handshakes_failed.values()) == 5
        assert not await gets_no_response(site.port, trusting(authority))
    async with Site(security=WebSecurity(file())) as site:
        assert alert(await hello(site, **cbc)) == 40  # handshake_failure
    async with Site(security=WebSecurity(file(tls=f"cipher_suites: [{PEM_SUITES[9]}]"))) as site:
        assert (await hello(site, **cbc))[:1] == b"\x16"
    lines = [record.getMessage() for record in caplog.records]
    begin = "TLS handshake failed for 127.0.0.1: "
    untrusted = "usually because it does not trust the certificate (TLSV1_ALERT_UNKNOWN_CA)"
    assert lines == [
        f"{begin}no common TLS version, cipher suite or curve (UNSUPPORTED_PROTOCOL)",
        f"{begin}the client did not start a TLS handshake",
        f"{begin}rejected by the client, {untrusted}",
        f"{begin}no common TLS version, cipher suite or curve (NO_SHARED_CIPHER)",
    ]


@on_both_loops
async def test_client_without_a_valid_certificate_gets_an_alert(tmp_path, file, authority, caplog):
    """With TLS 1.3, the client completes the handshake before it receives the alert."""
    path = file(tls="client_auth_type: RequireAndVerifyClientCert\nclient_ca_file: ca.crt")
    stranger = Authority(tmp_path, "stranger").issue("prometheus.example")
    async with Site(security=WebSecurity(path)) as site:
        for version, reason in (("1_2", "HANDSHAKE_FAILURE"), ("1_3", "CERTIFICATE_REQUIRED")):
            context = trusting(authority, maximum_version=ssl.TLSVersion[f"TLSv{version}"])
            with pytest.raises(ssl.SSLError, match=reason):
                async with await Secure.open(site.port, context) as client:
                    await client.ask("/-/healthy")
        context.load_cert_chain(stranger.certificate, stranger.key)
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            async with await Secure.open(site.port, context) as client:
                await client.ask("/-/healthy")
        assert site.scrape.handshakes_failed["client_certificate"] == 3
        assert "skyfast_tls_handshakes_failed_total" in selfmetrics_of(site)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith(
        "client certificate missing or not trusted (PEER_DID_NOT_RETURN_A_CERTIFICATE)"
    )


def selfmetrics_of(site):
    return self_metrics.render(site.stats, site.table).decode()


@on_both_loops
async def test_plain_http_on_the_tls_port_gets_a_response(file, authority, caplog):
    async with Site(security=WebSecurity(file())) as site:
        for method in ("GET", "HEAD", "POST", "OPTIONS", "DELETE"):
            for version in ("1.0", "1.1"):
                response = await site.get("/metrics", method=method, version=version)
                assert response.status == 400
                assert response.headers["connection"] == "close"
                assert method == "HEAD" or response.text == (
                    "Bad Request: plain HTTP request on an HTTPS port.\n"
                )
        # This request is too long for a single read.
        async with await site.ask(request("/metrics", x="y" * 50_000)) as client:
            assert (await client.read_response()).status == 400
            assert await client.end() == "closed"
        assert site.scrape.handshakes_failed["plain_http"] == 11
        assert not await gets_no_response(site.port, trusting(authority))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "TLS handshake failed for 127.0.0.1: plain HTTP request on an HTTPS port"


@on_both_loops
async def test_stalled_handshake_is_counted(file, authority, monkeypatch, caplog):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.2)
    async with Site(security=WebSecurity(file())) as site:
        async with await site.ask(b"\x16\x03\x01\x02\x00\x01"), await site.ask(b""):
            await until(lambda: site.scrape.handshakes_failed["timeout"] == 1)
            await until(lambda: not site.server._connections._open)
        assert sum(site.scrape.handshakes_failed.values()) == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "TLS handshake failed for 127.0.0.1: timed out after 0.2 s"


@on_both_loops
async def test_stop_does_not_wait_for_clients(file, authority, monkeypatch):
    monkeypatch.setattr(server, "STOP_TIMEOUT_S", 60.0)
    async with contextlib.AsyncExitStack() as stack:
        site = await stack.enter_async_context(Site(security=WebSecurity(file())))
        idle = await Secure.open(site.port, trusting(authority))
        await stack.enter_async_context(idle)
        await idle.ask("/-/healthy")
        handshaking = await stack.enter_async_context(await Client.open(site.port))
        await until(lambda: len(site.server._connections._open) == 2)
        await site.server.stop()  # does not take STOP_TIMEOUT_S: the test would time out
        assert await handshaking.end() in ("closed", "reset")
        assert await idle.reader.read() == b""


@on_both_loops
async def test_unread_page_is_aborted(file, authority):
    async with Site(FakeTable(BIG), security=WebSecurity(file()), scrape_timeout_s=0.3) as site:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", site.port))
        reader, writer = await asyncio.open_connection(
            sock=raw, ssl=trusting(authority), server_hostname="127.0.0.1", limit=1024
        )
        writer.write(request("/metrics/flows"))
        await until(lambda: site.scrape.failures["deadline"] == 1)
        with contextlib.suppress(OSError):
            page = await reader.read(2 * len(BIG))
            assert len(page) < len(BIG)
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


# --- files that change


@on_both_loops
async def test_new_certificate_is_used_and_connections_stay_open(file, authority, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    security = WebSecurity(file())
    certificate, key = tmp_path / "ca-127.0.0.1.crt", tmp_path / "ca-127.0.0.1.key"
    async with (
        Site(security=security) as site,
        await Secure.open(site.port, trusting(authority)) as old,
    ):
        first = old.certificate()
        old_key = key.read_bytes()
        authority.issue("127.0.0.1")
        renewed, new_key = certificate.read_text(), key.read_bytes()
        # The old key does not match the new certificate: skyfast keeps the old pair, and logs one
        # error.
        key.write_bytes(old_key)
        for _ in range(3):
            async with await Secure.open(site.port, trusting(authority)) as client:
                assert client.certificate() == first
        key.write_bytes(new_key)
        async with await Secure.open(site.port, trusting(authority)) as client:
            assert client.certificate() == ssl.PEM_cert_to_DER_cert(renewed)
        assert (await old.ask("/-/healthy")).status == 200
    messages = [r.getMessage() for r in caplog.records if r.name == "skyfast.web_config"]
    assert len(messages) == 2
    assert "KEY_VALUES_MISMATCH" in messages[0]
    assert "web configuration reloaded" in messages[1]


@on_both_loops
async def test_users_can_change_but_cannot_all_be_removed(plain, caplog):
    path = plain(users(alice=CHEAP, bob=CHEAP))
    async with Site(security=WebSecurity(path)) as site:
        for user in ("alice", "bob"):
            assert (await site.get("/", authorization=basic(user))).status == 200
        plain(users(alice=CHEAP))
        assert (await site.get("/", authorization=basic("alice"))).status == 200
        # The password of the removed user bob is still cached as valid.
        assert (await site.get("/", authorization=basic("bob"))).status == 401
        for broken in ("", users(alice="hunter2"), "tls_server_config: {"):
            plain(broken)
            for _ in range(2):
                assert (await site.get("/")).status == 401
                assert (await site.get("/", authorization=basic("alice"))).status == 200
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 3
    assert "basic_auth_users cannot be removed without a restart" in errors[0]
    assert "hunter2" not in caplog.text


# --- the running process


async def curl(*arguments):
    """Return curl's output: the body and the status."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-s", "-m", "10", "-w", "%{http_code}", *arguments),
        stdout=asyncio.subprocess.PIPE,
    )
    body, _ = await process.communicate()
    return body.decode()


async def test_sighup_reloads_the_web_configuration(file, authority, tmp_path):
    web_file = Path(file(users()))
    async with demo(web_config=web_file, quiet=False) as skyfast, asyncio.timeout(30):
        assert skyfast.url.startswith("https://127.0.0.1:")
        ask = ("--cacert", authority.certificate, f"{skyfast.url}/-/healthy")
        assert (await curl(*ask)).endswith("401")
        assert (await curl("-u", f"alice:{PASSWORD}", *ask)).endswith("healthy.\n200")
        file(users(alice="hunter2"))
        skyfast.process.send_signal(signal.SIGHUP)
        await until(lambda: any("configuration not reloaded" in line for line in skyfast.log))
        assert (await curl("-u", f"alice:{PASSWORD}", *ask)).endswith("200")
        file(users(bob=CHEAP))
        skyfast.process.send_signal(signal.SIGHUP)
        await until(lambda: any("configuration reloaded" in line for line in skyfast.log))
        assert (await curl("-u", f"bob:{PASSWORD}", *ask)).endswith("200")
        assert (await curl("-u", f"alice:{PASSWORD}", *ask)).endswith("401")
    (message,) = [line for line in skyfast.log if "not reloaded" in line]
    assert f"{web_file}: line 5: basic_auth_users.alice: <hidden> is not a bcrypt" in message
    log = "\n".join(skyfast.log)
    assert not any(secret in log for secret in ("hunter2", PASSWORD, CHEAP))


@pytest.mark.slow
@needs_prometheus
async def test_prometheus_scrapes_over_https_with_a_password(file, authority, tmp_path):
    how = (
        f"scheme: https, tls_config: {{ca_file: {authority.certificate}}},"
        f" basic_auth: {{username: alice, password: {PASSWORD}}}, "
    )
    async with (
        demo(web_config=Path(file(users(alice=DEAR)))) as skyfast,
        prometheus(skyfast.url.partition("//")[2], tmp_path, how=how) as server,
        asyncio.timeout(ANSWER_S),
    ):
        (up,) = await growing(server, 'up{job="skyfast"}', 1)
        assert number(up) == 1
        await growing(server, "skydive_network_connection_total_bytes", 20)


def test_modules_of_the_web_configuration_are_imported_only_on_demand():
    code = (
        "import sys, skyfast.runner, skyfast.cli;"
        "sys.exit(bool({'bcrypt', 'skyfast.web.auth', 'skyfast.web.config_file'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 0
