"""Failed TLS handshakes: their reasons, and the alerts sent to clients.

After a failed handshake, asyncio and uvloop close the connection, but do not send the alert that
OpenSSL has written. Therefore a `ServerContext` stores this alert in the `Handshake` of the
connection, and `Handshake.respond` sends the alert. This module is imported only with TLS.
"""

import asyncio
import contextlib
import re
import socket
import ssl
from contextvars import ContextVar
from typing import Final, cast

LINGER_TIMEOUT_S: Final = 1.0
"""How long a client may take to receive its alert or response. Meanwhile, data from the client is
discarded."""

MAX_DISCARDED_BYTES: Final = 64 * 1024
"""Maximum size of the data from the client that is discarded after a failed handshake."""

FIRST_BYTES: Final = 32
"""Maximum number of bytes in `Handshake.first`."""

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
    """Stores the client's first bytes and OpenSSL's alert in the `Handshake`."""

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
    """One client's handshake, from its beginning to `close`."""

    def __init__(self, client: socket.socket) -> None:
        """Prepare for the handshake. Afterwards, the calling task must start TLS on ``client``.

        A context variable of the task passes this object to `ServerContext`.
        """
        self.first = b""
        """The first bytes from the client, at most `FIRST_BYTES`."""
        self.alert = b""
        """After a failure, the TLS alert that OpenSSL has written."""
        self._client: socket.socket | None = None
        # Use a duplicate, because the event loop closes `client` before the alert is sent.
        with contextlib.suppress(OSError):  # if no descriptor is free, no alert is sent
            self._client = client.dup()
        _current.set(self)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def is_plain_http(self, error: BaseException) -> bool:
        return _reason(error) in _HTTP or _REQUEST.match(self.first) is not None

    def failure(self, error: BaseException) -> tuple[str, str]:
        """Return the reason of the failure, and a text for the log.

        The reason is one of `skyfast.stats.HANDSHAKE_FAILURES`. If the client has sent nothing, as
        in health checks of a TCP port, the reason and the text are empty.
        """
        if not self.first:
            return "", ""
        reason = _reason(error)
        details = f" ({reason})" if reason else ""
        if self.is_plain_http(error):
            return "plain_http", "plain HTTP request on an HTTPS port"
        if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError):
            return "disconnected", "connection closed by the client"
        if not self.first.startswith(_RECORD_HANDSHAKE):
            return "not_tls", "the client did not start a TLS handshake"
        if "_ALERT_" in reason:
            text = "rejected by the client, usually because it does not trust the certificate"
            return "rejected", text + details
        if reason in _UNSUPPORTED:
            return "unsupported", f"no common TLS version, cipher suite or curve{details}"
        if reason in _CERTIFICATE:
            verified = getattr(error, "verify_message", "")
            details = f" ({verified or reason})"
            return "client_certificate", f"client certificate missing or not trusted{details}"
        return "error", f"handshake error{details}"

    async def respond(self, data: bytes) -> None:
        """Send ``data``, and wait until the client has closed the connection."""
        client = self._client
        if client is None or not data:
            return
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_TIMEOUT_S):
                await loop.sock_sendall(client, data)
                client.shutdown(socket.SHUT_WR)
                # Closing a socket with unread data would reset the connection and lose the alert.
                discarded = 0
                while discarded < MAX_DISCARDED_BYTES:
                    read = await loop.sock_recv(client, MAX_DISCARDED_BYTES)
                    if not read:
                        return
                    discarded += len(read)


def _reason(error: BaseException) -> str:
    """Return OpenSSL's name of the error, or "" for other errors."""
    return (error.reason or "") if isinstance(error, ssl.SSLError) else ""
