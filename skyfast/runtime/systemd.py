"""Notifies systemd of the state of the process, as sd_notify(3) does.

The environment variable NOTIFY_SOCKET requests notifications, and WATCHDOG_USEC and WATCHDOG_PID
request keep-alive notifications. Other service managers also set NOTIFY_SOCKET.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping

from skyfast.runtime.logs import LogLimit, printable

log = logging.getLogger("skyfast.systemd")


class Notifier:
    """Sends notifications to the service manager, if there is one.

    Each notification uses a new socket, because the service manager may recreate its own socket.
    Sending never blocks: a notification that cannot be sent is dropped, and a warning is logged.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._interval_s = _interval_s(environ) if self._address else 0.0
        self._status = ""  # empty before `ready` and after `stopping`
        self._log_limit = LogLimit()

    def ready(self, status: str) -> None:
        """Notify that skyfast serves pages. The command ``systemctl status`` shows ``status``."""
        self._status = status
        self._send("READY=1", _status_line(status))

    def reloading(self) -> None:
        # Before `ready`, send nothing: READY=1 at the end of this reload would be too early.
        if self._status:
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self, problem: str | None) -> None:
        """Notify that the reload has finished. If the reload failed, ``problem`` is the error."""
        if self._status:
            problem = f"; not reloaded: {problem}" if problem else ""
            self._send("READY=1", _status_line(self._status + problem))

    def stopping(self) -> None:
        self._status = ""
        self._send("STOPPING=1", _status_line("stopping"))

    async def watchdog(self) -> None:
        """Send keep-alive notifications at half the watchdog interval.

        If the event loop hangs, the notifications stop, and systemd restarts the process.
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
    """Return the address of the socket; "" if there is no socket or its type is unsupported."""
    if name.startswith("@"):
        return "\0" + name[1:]
    if name and not name.startswith("/"):
        log.warning("NOTIFY_SOCKET is not a path: %s", printable(name))
        return ""
    return name


def _interval_s(environ: Mapping[str, str]) -> float:
    """Return the watchdog interval for this process in seconds; 0 if the watchdog is disabled."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    interval = environ.get("WATCHDOG_USEC", "")
    if not (interval.isascii() and interval.isdigit()):
        return 0.0
    return int(interval) / 1_000_000


def _status_line(status: str) -> str:
    return f"STATUS={printable(status)}"
