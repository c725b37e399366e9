"""Notifies systemd of the state of the process, as sd_notify(3) does.

Nothing is sent unless systemd asks for it, by the variables NOTIFY_SOCKET, WATCHDOG_USEC and
WATCHDOG_PID; other service managers know the first of them, too.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping

from skyfast.runtime.logs import LogLimit, printable

log = logging.getLogger("skyfast.systemd")


class Manager:
    """The service manager that has started the process, or none.

    Every message is a datagram of its own socket, so it does not matter if the manager has made
    its own anew. None of them waits: one that cannot be sent is lost, and logged.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Take from ``environ`` who listens, and how often it wants to hear of the process."""
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._interval_s = _interval_s(environ) if self._address else 0.0
        self._status = ""  # while the page is served
        self._log_limit = LogLimit()

    def ready(self, status: str) -> None:
        """Tell that the page is served, and ``status`` to whoever asks."""
        self._status = status
        self._send("READY=1", _shown(status))

    def reloading(self) -> None:
        """Tell that the configuration is being read again; :meth:`reloaded` ends it."""
        if self._status:  # else the latter would tell too soon that the page is served
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self, problem: str | None) -> None:
        """Tell that the configuration was read again, or by what ``problem`` it could not be."""
        if self._status:
            problem = f"; not reloaded: {problem}" if problem else ""
            self._send("READY=1", _shown(self._status + problem))

    def stopping(self) -> None:
        """Tell that the process stops by itself, or as it was told to."""
        self._status = ""
        self._send("STOPPING=1", _shown("stopping"))

    async def keep_alive(self) -> None:
        """Tell that the event loop has its turns, at half the interval that is asked for.

        A loop that hangs does not, and systemd ends and restarts the process. Returns at once
        where nobody asks.
        """
        while self._interval_s:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._interval_s / 2)

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            text = f"cannot send {assignments[0]} to the service manager: {error}"
            self._log_limit.warn(log, "lost", text)


def _address(name: str) -> str:
    """Return a socket's address; empty where there is none, or of a kind that is not known."""
    if name.startswith("@"):
        return "\0" + name[1:]
    if name and not name.startswith("/"):
        log.warning("NOTIFY_SOCKET is not a path: %s", printable(name))
        return ""
    return name


def _interval_s(environ: Mapping[str, str]) -> float:
    """Return within how many seconds the manager wants to hear of this process; 0 is never."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    interval = environ.get("WATCHDOG_USEC", "")
    if not (interval.isascii() and interval.isdigit()):
        return 0.0
    return int(interval) / 1_000_000


def _shown(status: str) -> str:
    return f"STATUS={printable(status)}"
