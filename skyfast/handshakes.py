"""TLS handshakes that fail: why, and what the client gets to know of it.

The event loops close a connection without the alert that OpenSSL has written for the client. So the
objects of a `ServerContext` put it aside, together with the first bytes of the client, and a
`Handshake` sends it. Imported with TLS only.
"""

import asyncio
import contextlib
import re
import socket
import ssl
from contextvars import ContextVar
from typing import Final, cast

TELL_TIMEOUT_S: Final = 1.0
"""How long a client has to take its alert or answer. Meanwhile what it sends is thrown away..."""

MAX_DISCARDED_BYTES: Final = 64 * 1024
"""... up to so many bytes."""

FIRST_BYTES: Final = 32
"""How much of what a client has sent first is kept until the handshake is over."""

_REQUEST = re.compile(rb"[A-Z]{3,16} [/*h]")

_HTTP = ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST")
_UNSUPPORTED = (
    "UNSUPPORTED_PROTOCOL",
    "VERSION_TOO_LOW",
    "UNKNOWN_PROTOCOL",
    "INAPPROPRIATE_FALLBACK",
    "NO_SHARED_CIPHER",
    "NO_SHARED_GROUP",
    "NO_SUITABLE_GROUPS",
    "NO_SUITABLE_KEY_SHARE",
    "NO_SUITABLE_SIGNATURE_ALGORITHM",
    "NO_SHARED_SIGNATURE_ALGORITHMS",
)
_CERTIFICATE = ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "CERTIFICATE_VERIFY_FAILED")

_RECORD_HANDSHAKE = b"\x16"

_current: ContextVar["Handshake | None"] = ContextVar("_current", default=None)


class _ServerObject(ssl.SSLObject):
    """One connection's TLS: after a failure, its handshake knows what OpenSSL wrote."""

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    handshake: "Handshake | None"

    def do_handshake(self) -> None:
        handshake = self.handshake
        if handshake is None:
            super().do_handshake()
            return
        if not handshake.first and self.incoming.pending:
            data = self.incoming.read()
            self.incoming.write(data)
            handshake.first = data[:FIRST_BYTES]
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            handshake.alert = self.outgoing.read()
            raise


class ServerContext(ssl.SSLContext):
    """A server's context whose connections tell their `Handshake` how it went."""

    sslobject_class = _ServerObject

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        wrapped = cast(
            _ServerObject,
            super().wrap_bio(incoming, outgoing, server_side, server_hostname, session),
        )
        wrapped.incoming, wrapped.outgoing = incoming, outgoing
        wrapped.handshake = _current.get()
        return wrapped


class Handshake:
    """One client's handshake, from its beginning to `close`.

    ``first`` is what the client has sent first, ``alert`` what OpenSSL wrote when it failed.
    """

    def __init__(self, client: socket.socket) -> None:
        """Begin for ``client``. What the current task connects from now on belongs to this."""
        self.first = b""
        self.alert = b""
        self._client: socket.socket | None = None
        # The event loop closes its descriptor at once when the handshake fails.
        with contextlib.suppress(OSError):  # there is none left: then nothing is sent
            self._client = client.dup()
        _current.set(self)

    def close(self) -> None:
        """Give back what was needed for a failure."""
        if self._client is not None:
            self._client.close()

    def is_plain_http(self, error: BaseException) -> bool:
        """Return whether the client has sent an HTTP request in place of a handshake."""
        return _reason(error) in _HTTP or _REQUEST.match(self.first) is not None

    def failure(self, error: BaseException) -> tuple[str, str]:
        """Return why the handshake failed, and a text for the log.

        The first is one of ``selfmetrics.HANDSHAKE_FAILURES``, or empty where the client has sent
        nothing at all, such as a check whether the port is open.
        """
        if not self.first:
            return "", ""
        reason = _reason(error)
        details = f" ({reason})" if reason else ""
        if self.is_plain_http(error):
            return "plain_http", "it sent plain HTTP to the port of HTTPS"
        if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError):
            return "disconnected", "it closed the connection"
        if not self.first.startswith(_RECORD_HANDSHAKE):
            return "not_tls", "it does not speak TLS"
        if "_ALERT_" in reason:
            text = "it refused to go on, often because it does not trust the certificate"
            return "rejected", text + details
        if reason in _UNSUPPORTED:
            return "unsupported", f"no TLS version, cipher suite or curve in common{details}"
        if reason in _CERTIFICATE:
            verified = getattr(error, "verify_message", "")
            details = f" ({verified or reason})"
            return "client_certificate", f"its certificate is missing or not trusted{details}"
        return "error", f"it failed{details}"

    async def tell(self, data: bytes) -> None:
        """Send ``data`` to the client, and close the connection once that has arrived."""
        client = self._client
        if client is None or not data:
            return
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(TELL_TIMEOUT_S):
                await loop.sock_sendall(client, data)
                client.shutdown(socket.SHUT_WR)
                # With something unread, closing would reset the connection and destroy the alert.
                discarded = 0
                while discarded < MAX_DISCARDED_BYTES:
                    read = await loop.sock_recv(client, MAX_DISCARDED_BYTES)
                    if not read:
                        return
                    discarded += len(read)


def _reason(error: BaseException) -> str:
    """Return OpenSSL's name for what went wrong, empty for other errors."""
    return (error.reason or "") if isinstance(error, ssl.SSLError) else ""
