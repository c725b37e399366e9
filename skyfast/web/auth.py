"""Authentication of HTTP clients: passwords, client certificates, and the rate limit.

This module is imported only with ``--web.config.file``.

Password guessing must neither succeed nor slow down other clients:

* A single thread with low priority computes the password hashes.
* At most `MAX_CHECKS` password checks run or are queued.
* The results of the checks are cached, so that the same credentials are checked only once. The
  cache contains keyed hashes instead of credentials.
* Each client address can try new credentials only at a limited rate.
"""

import asyncio
import base64
import binascii
import hashlib
import ipaddress
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from skyfast.runtime.logs import LogLimit
from skyfast.web.config_file import RateLimit, WebConfig, normalize_san
from skyfast.web.config_watcher import WebConfigFile

MAX_PASSWORD_BYTES = 72
"""bcrypt uses only this many bytes of a password, and ignores the rest."""

MAX_CHECKS = 16
"""Maximum number of password checks that run or are queued. Further requests get status 503."""

MAX_VERIFIED = 128
"""Maximum number of valid credentials in the cache. The least recently used are dropped first."""

MAX_FAILED = 4096
"""Maximum number of invalid credentials in the cache. The least recently used are dropped first."""

MAX_ADDRESSES = 4096
"""Maximum number of client addresses whose attempts are counted.

The addresses that have not tried new credentials for the longest time are dropped first."""

WRONG_BURST = 10
"""Maximum number of different wrong passwords that an address can try in a burst."""

WRONG_INTERVAL_S = 5.0
"""After a burst, an address can try one more password per interval of this length."""

IPV6_PREFIX = 64
"""All addresses of an IPv6 network with this prefix length count as one client."""

CHECK_NICENESS = 10

log = logging.getLogger("skyfast.web_config")


class _Bucket:
    """A token bucket, initially full."""

    __slots__ = ("_at_s", "_tokens", "limit")

    def __init__(self, limit: RateLimit, now_s: float) -> None:
        self.limit = limit
        self._tokens = float(limit.burst)
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        more = (now_s - self._at_s) / self.limit.interval_s
        self._tokens = min(self.limit.burst, self._tokens + more)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def wait_s(self) -> int | None:
        """Return the seconds until the next token, rounded up; None if there is never a token."""
        if not self.limit.burst:
            return None
        return max(math.ceil((1 - self._tokens) * self.limit.interval_s), 1)

    def refund(self) -> None:
        self._tokens = min(self.limit.burst, self._tokens + 1)


@dataclass(frozen=True, slots=True)
class Rejection:
    """The response to a rejected HTTP request."""

    status: HTTPStatus
    retry_after_s: int | None = None
    """The time after which the client can retry; None if a retry cannot succeed."""


class PasswordChecker:
    """Checks users and passwords. Runs on the event loop, but computes hashes in a thread."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        import bcrypt

        self._check_password = bcrypt.checkpw
        self._now = now
        self._secret = secrets.token_bytes(32)
        # The least recently used item is the first in each of these three dicts.
        self._verified: dict[bytes, None] = {}
        self._failed: dict[bytes, None] = {}
        self._buckets: dict[str, _Bucket] = {}
        self._check_s = 1.0  # duration of the latest check
        self._checks: dict[bytes, asyncio.Task[bool]] = {}
        self._log_limit = LogLimit()
        self._thread = ThreadPoolExecutor(
            1, "skyfast-password", initializer=partial(os.nice, CHECK_NICENESS)
        )

    def close(self) -> None:
        """Stop the thread after its current check."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def authenticate(
        self, users: Mapping[bytes, bytes], authorization: str | None, address: str
    ) -> Rejection | None:
        """Return None if the header ``authorization`` is valid, otherwise a rejection."""
        user, password = _credentials(authorization)
        if user is None:
            return Rejection(HTTPStatus.UNAUTHORIZED)
        known = users.get(user)
        # For an unknown user, compare the password with the hash of a configured user. Otherwise, a
        # fast response would reveal that the user does not exist.
        expected = known or self._dummy_hash(user, users)
        digest = self._digest(b"known" if known else b"", user, expected, password)
        if digest in self._verified:
            self._verified[digest] = self._verified.pop(digest)
            return None
        client = _client(address)
        # Without the address in the digest, a fast response would reveal that another client has
        # tried the same credentials.
        failed = self._digest(client.encode(), digest)
        if failed in self._failed:
            self._failed[failed] = self._failed.pop(failed)
            self._log_failure(address)
            return Rejection(HTTPStatus.UNAUTHORIZED)
        if digest not in self._checks:
            if len(self._checks) >= MAX_CHECKS:
                wait_s = max(math.ceil(len(self._checks) * self._check_s), 1)
                return Rejection(HTTPStatus.SERVICE_UNAVAILABLE, wait_s)
            bucket = self._bucket(client)
            if not bucket.take(self._now()):
                self._log_limit.warn(log, "often", f"too many wrong passwords from {address}")
                return Rejection(HTTPStatus.TOO_MANY_REQUESTS, bucket.wait_s())
            task = asyncio.create_task(
                self._check(digest, password, expected, client, known=known is not None)
            )
            self._checks[digest] = task
            task.add_done_callback(lambda _: self._checks.pop(digest, None))
        # The check continues even if the client disconnects.
        if await asyncio.shield(self._checks[digest]):
            return None
        _remember(self._failed, failed, MAX_FAILED)
        self._log_failure(address)
        return Rejection(HTTPStatus.UNAUTHORIZED)

    def _log_failure(self, address: str) -> None:
        self._log_limit.warn(log, "wrong", f"wrong user or password from {address}")

    async def _check(
        self, digest: bytes, password: bytes, expected: bytes, client: str, *, known: bool
    ) -> bool:
        loop = asyncio.get_running_loop()
        matches, self._check_s = await loop.run_in_executor(
            self._thread, self._timed_check, password, expected
        )
        if not matches or not known:
            # The failure is stored here, because the client may already have disconnected.
            _remember(self._failed, self._digest(client.encode(), digest), MAX_FAILED)
            return False
        if bucket := self._buckets.get(client):
            bucket.refund()
        _remember(self._verified, digest, MAX_VERIFIED)
        return True

    def _timed_check(self, password: bytes, expected: bytes) -> tuple[bool, float]:
        begin_s = time.monotonic()
        matches = self._check_password(password, expected)
        return matches, time.monotonic() - begin_s

    def _bucket(self, client: str) -> _Bucket:
        bucket = self._buckets.pop(client, None)
        if bucket is None:
            if len(self._buckets) >= MAX_ADDRESSES:
                del self._buckets[next(iter(self._buckets))]
            bucket = _Bucket(RateLimit(WRONG_INTERVAL_S, WRONG_BURST), self._now())
        self._buckets[client] = bucket
        return bucket

    def _dummy_hash(self, user: bytes, users: Mapping[bytes, bytes]) -> bytes:
        hashes = list(users.values())
        return hashes[int.from_bytes(self._digest(user)) % len(hashes)]

    def _digest(self, *parts: bytes) -> bytes:
        keyed = hashlib.blake2b(key=self._secret, digest_size=32)
        for part in parts:
            keyed.update(len(part).to_bytes(8, "big") + part)
        return keyed.digest()


def _remember(memory: dict[bytes, None], digest: bytes, limit: int) -> None:
    """Put ``digest`` at the end of ``memory``. Keep at most ``limit`` digests."""
    memory.pop(digest, None)
    if len(memory) >= limit:
        del memory[next(iter(memory))]
    memory[digest] = None


def _credentials(authorization: str | None) -> tuple[bytes | None, bytes]:
    """Return user and password. The user is None if the header is missing or invalid."""
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None, b""
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None, b""
    if not colon or b"\0" in password:
        return None, b""
    return user, password[:MAX_PASSWORD_BYTES]


def _client(address: str) -> str:
    """Return the key of a client: an IPv4 address, or the network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    network = ipaddress.IPv6Network((parsed.packed, IPV6_PREFIX), strict=False)
    return str(network)


class WebSecurity:
    """TLS, authentication and rate limit, according to the web configuration in use."""

    def __init__(self, path: str, *, now: Callable[[], float] = time.monotonic) -> None:
        """Read the file at ``path`` (blocking). Raises ConfigError if the file is invalid."""
        self._now = now
        self._passwords: PasswordChecker | None = None
        self._bucket: _Bucket | None = None
        self._file = WebConfigFile(path, on_change=self._prepare)

    @property
    def config(self) -> WebConfig:
        return self._file.config

    def read(self) -> WebConfig:
        """Read the file again without applying it: see `WebConfigFile.read`."""
        return self._file.read()

    def use(self, config: WebConfig) -> None:
        self._file.use(config)

    async def refresh(self) -> WebConfig:
        return await self._file.refresh()

    def _prepare(self, config: WebConfig) -> None:
        if config.rate_limit != (self._bucket.limit if self._bucket else None):
            self._bucket = _Bucket(config.rate_limit, self._now()) if config.rate_limit else None
        if config.users and self._passwords is None:
            self._passwords = PasswordChecker(now=self._now)

    def close(self) -> None:
        if self._passwords is not None:
            self._passwords.close()

    async def authenticate(
        self, authorization: str | None, address: str, *, public: bool
    ) -> Rejection | None:
        """Return None if a request is authorized, otherwise a rejection.

        A ``public`` request needs no authentication, but counts towards the rate limit.
        """
        config = await self.refresh()
        if self._bucket is not None and not self._bucket.take(self._now()):
            return Rejection(HTTPStatus.TOO_MANY_REQUESTS, self._bucket.wait_s())
        if public or not config.users or self._passwords is None:
            return None
        return await self._passwords.authenticate(config.users, authorization, address)

    def allows_certificate(self, certificate: Mapping[str, Any] | None) -> bool:
        """Return whether a client certificate has an allowed SAN. True if all SANs are allowed.

        ``certificate`` is the result of `ssl.SSLSocket.getpeercert`.
        """
        allowed = self.config.allowed_sans
        names = (certificate or {}).get("subjectAltName", ())
        return not allowed or any(normalize_san(name) in allowed for _, name in names)
