"""Runs an `App`: starts the event loop, handles signals, and sets up replays and recordings."""

import asyncio
import dataclasses
import logging
import platform
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvloop

from skyfast import __version__
from skyfast.app import App
from skyfast.config.model import Config
from skyfast.runtime import logs, memory
from skyfast.web import listen
from skyfast.web.listen import AS_CONFIGURED, Listen, ListenError
from skyfast.web.status import Replay

if TYPE_CHECKING:
    from skyfast.replay.recorder import Recorder
    from skyfast.replay.recording import Playback
    from skyfast.web.auth import WebSecurity

SWITCH_INTERVAL_S = 0.001
"""How long a worker thread may keep the GIL while the event loop waits for it.

Python's default is 5 ms, and the event loop can wait several times in one iteration."""

log = logging.getLogger("skyfast.app")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Command line options that are not part of the configuration. No reload changes them."""

    listen: Listen = AS_CONFIGURED
    web_config_file: str = ""
    playback: "Playback | None" = None
    """What skyfast replays instead of subscribing to analyzers; None without a replay."""
    record_file: str = ""
    """The path of the recording to write; empty if skyfast does not record."""
    anonymous: bool = False
    """Whether pseudonyms replace the addresses and names in the recording to write."""


async def _serve(config: Config, load: Callable[[], Config], options: Options) -> bool:
    stopping = asyncio.Event()
    security = _web_security(options.web_config_file)
    log.info("skyfast %s, Python %s", __version__, platform.python_version())
    async with AsyncExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            _handle_signal(number, stopping.set, stack)
        recorder = _recorder(options, stack)
        try:
            adapt, replay = await _start_replay(options, stack, recorder)
        except OSError as error:
            log.error("cannot replay recordings: %s", error)
            return False
        app = App(
            adapt(config),
            load=lambda: adapt(load()),
            security=security,
            recorder=recorder,
            # In a replay, the player passes the whole topology to the recorder, because `app` may
            # query only a part of the topology.
            records_topology=options.playback is None,
            listen_at=options.listen,
            replay=replay,
        )
        reloads: set[asyncio.Task[str | None]] = set()

        def reload() -> None:
            task = asyncio.create_task(app.reload())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        _handle_signal(signal.SIGHUP, reload, stack)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        memory.freeze()
        try:
            await app.run(stopping)
        except ListenError as error:
            log.error("cannot listen on %s: %s%s", error.where, error.strerror, listen.hint(error))
            return False
        except BaseExceptionGroup:  # pragma: no cover - no known bug raises this
            log.critical("exiting after an unhandled exception", exc_info=True)
            return False
    log.info("stopped %s", app.summary())
    return True


def _handle_signal(
    number: signal.Signals, handler: Callable[[], object], stack: AsyncExitStack
) -> None:
    """Call ``handler`` in the event loop at each signal, until ``stack`` is closed.

    Afterwards, the signal is ignored. With `loop.add_signal_handler`, the default action would be
    restored when the loop closes. A second signal would then kill the process.
    """
    loop = asyncio.get_running_loop()
    signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler))
    stack.callback(signal.signal, number, signal.SIG_IGN)


def _web_security(path: str) -> "WebSecurity | None":
    if not path:
        return None
    from skyfast.web.auth import WebSecurity

    return WebSecurity(path)


def _recorder(options: Options, stack: AsyncExitStack) -> "Recorder | None":
    if not options.record_file:
        return None
    from skyfast.replay.recorder import Recorder

    rewrite = None
    if options.anonymous:
        from skyfast.replay.anonymizer import Anonymizer

        rewrite = Anonymizer()
    recorder = Recorder(
        options.record_file,
        message_filter=rewrite,
        topology_filter=rewrite.topology if rewrite else None,
    )
    stack.push_async_callback(asyncio.to_thread, recorder.stop)
    return recorder


async def _start_replay(
    options: Options, stack: AsyncExitStack, recorder: "Recorder | None"
) -> tuple[Callable[[Config], Config], Replay | None]:
    """Start the servers of the replay, if there is a replay.

    Return two values:

    * A function that takes a configuration, and returns a copy whose endpoints are the servers.
      Without a replay, the function returns its argument.
    * The `Replay`, or None without a replay.
    """
    if options.playback is None:
        return lambda config: config, None
    from skyfast.replay.player import ReplayServer

    player = ReplayServer(options.playback, observe=recorder.update if recorder else None)
    stack.push_async_callback(player.stop)
    # Disable the silence timeout, because replayed analyzers send nothing after the recording ends.
    changes: dict[str, Any] = {"endpoints": await player.start(), "silence_timeout_s": 0.0}
    replay = Replay(
        is_demo=options.playback.is_demo,
        recordings=tuple(
            logs.printable(recording.path) for recording in options.playback.recordings
        ),
    )

    def adapted(config: Config) -> Config:
        return dataclasses.replace(
            config, subscriber=dataclasses.replace(config.subscriber, **changes)
        )

    return adapted, replay


def run(config: Config, load: Callable[[], Config], options: Options) -> bool:
    """Run until SIGTERM or SIGINT, and return True. If an error occurs, log it and return False.

    On SIGHUP, this function calls ``load`` to get the new configuration. The caller must block
    SIGHUP; this function unblocks SIGHUP.

    Raises:
        ConfigError: A file that the configuration or the options refer to cannot be used.

    """
    memory.tune_malloc()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, load, options))
