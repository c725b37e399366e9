"""The command line: arguments, exit codes, and nothing that runs for long.

0: stopped by SIGTERM or SIGINT, or asked only to look. 1: cannot run. 2: a wrong argument
or configuration, told in one line.
"""

import argparse
import dataclasses
import math
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from skyfast import __version__, check, config, logs, memory, shard

if TYPE_CHECKING:
    from skyfast.recording import Playback

DEFAULT_PATH = "/etc/skydive/prom_sky_con.yml"

EXIT_OK = 0
EXIT_CANNOT_RUN = 1
EXIT_WRONG = 2

_LEVELS = ("debug", "info", "warning", "error")

MIN_SPEED = 0.001
MAX_SPEED = 1000.0
"""Lowest and highest ``--replay-speed``."""


class _HelpFormatter(argparse.HelpFormatter):
    """Has room for the longest option beside its help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=27)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        # Not "FILE [FILE ...]", which has no room.
        if action.nargs == argparse.ONE_OR_MORE:
            return f"{action.metavar}..."
        return super()._format_args(action, default_metavar)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_WRONG, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="skyfast",
        usage="%(prog)s [OPTION]... [CONFIG]",
        description="Prometheus exporter of Skydive's network flows.",
        epilog="Every key of the file can be overridden by an environment variable: "
        "SKYDIVE_PIPELINE_SUBSCRIBER_URL is pipeline.subscriber.url.",
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help=f"the file of prom_sky_con; - is standard input (default: {DEFAULT_PATH})",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="print the resulting configuration and its cost",
    )
    analyzers = parser.add_mutually_exclusive_group()
    analyzers.add_argument(
        "--demo",
        action="store_true",
        help="play the packaged recording; needs no CONFIG",
    )
    analyzers.add_argument(
        "--replay",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="play these recordings as analyzers; needs no CONFIG",
    )
    parser.add_argument(
        "--replay-speed",
        type=_speed,
        metavar="N",
        help="play them N times as fast (default: 1)",
    )
    parser.add_argument(
        "--record",
        type=_record,
        metavar="FILE",
        help="keep what the analyzers send; .gz for gzip",
    )
    parser.add_argument(
        "--record-anonymous",
        action="store_true",
        help="with pseudonyms for addresses and names",
    )
    parser.add_argument(
        "--log-level",
        choices=_LEVELS,
        type=str.lower,
        metavar="LEVEL",
        help=f"log from this on: {', '.join(_LEVELS)}",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="export part I, from 0, of N parts of the connections",
    )
    parser.add_argument(
        "--web.config.file",
        dest="web_config_file",
        default="",
        metavar="FILE",
        help="TLS and users of the pages, as for every exporter",
    )
    parser.add_argument("--version", action="version", version=f"skyfast {__version__}")
    return parser


def _shard(text: str) -> config.Shard:
    try:
        return shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _record(text: str) -> str:
    # As from a variable that is not set: nothing would be recorded, and nobody told.
    if not text:
        raise argparse.ArgumentTypeError("the name of the file is empty")
    return text


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not MIN_SPEED <= speed <= MAX_SPEED:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number from {MIN_SPEED:g} to {MAX_SPEED:g}"
        )
    return speed


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.replay_speed is not None and not arguments.replay:
        parser.error("--replay-speed is nothing without --replay")
    if arguments.record_anonymous and not arguments.record:
        parser.error("--record-anonymous is nothing without --record")
    if arguments.record and arguments.check:
        parser.error("--record has nothing to keep with --check")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments (default: the process's own); return its exit code."""
    arguments = _arguments(argv)
    memory.keep_to_itself()  # before any secret is read
    # Until the event loop takes over, a request to stop finds nothing to close.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(EXIT_OK))
    # And a request to reload waits for it, even where it comes while the file is being read.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        configuration = _load(arguments)
        logs.set_up(configuration.logging)
        logs.write_notes(configuration.notes)
        playback = _playback(arguments)
        if arguments.check:
            # The other files first, which can be wrong.
            reports = _check_web(arguments.web_config_file) + _check_replay(arguments, playback)
            sys.stdout.write(config.dump(configuration) + check.report(configuration) + reports)
            return EXIT_OK

        from skyfast import app

        is_over = app.run(
            configuration,
            lambda: _reload(arguments),
            app.Options(
                web_config_file=arguments.web_config_file,
                playback=playback,
                record_file=arguments.record or "",
                anonymous=arguments.record_anonymous,
            ),
        )
        return EXIT_OK if is_over else EXIT_CANNOT_RUN
    except config.ConfigError as error:
        sys.stderr.write(f"skyfast: {error}\n")
        return EXIT_WRONG


def _load(arguments: argparse.Namespace) -> config.Config:
    path = _path(arguments)
    if path is None:
        loaded = config.parse("", os.environ, source="the defaults")
    else:
        loaded = config.load(path, os.environ)
    if arguments.shard is not None:
        loaded = shard.sharded(loaded, arguments.shard)
    if arguments.log_level is None:
        return loaded
    logging = msgspec.structs.replace(loaded.logging, level=arguments.log_level.upper())
    return dataclasses.replace(loaded, logging=logging)


def _playback(arguments: argparse.Namespace) -> "Playback | None":
    """Return what is played in place of subscribing to analyzers; None where nothing is."""
    if not arguments.demo and not arguments.replay:
        return None
    from skyfast import recording

    if arguments.demo:
        return recording.demo()
    return recording.Playback(
        recordings=tuple(map(recording.Recording.load, arguments.replay)),
        speed=arguments.replay_speed or 1,
    )


def _check_replay(arguments: argparse.Namespace, playback: "Playback | None") -> str:
    """Return what recordings hold, as YAML comments; nothing where there are none."""
    if not playback or not arguments.replay:
        return ""
    return "".join(f"# Recording {one.path}: {one.summary()}.\n" for one in playback.recordings)


def _check_web(path: str) -> str:
    """Return what a web configuration comes to, as YAML comments; nothing where there is none."""
    if not path:
        return ""
    from skyfast import webconfig

    return f"# Web configuration: {webconfig.read(path).summary()}.\n"


def _reload(arguments: argparse.Namespace) -> config.Config:
    path = _path(arguments)
    if path == "-":
        raise config.ConfigError("standard input cannot be read again")
    if path is not None and Path(path).exists() and not Path(path).is_file():
        # A pipe is empty by now, or whoever reads it waits for ever.
        raise config.ConfigError(f"{path!r} is not a regular file and cannot be read again")
    return _load(arguments)


def _path(arguments: argparse.Namespace) -> str | None:
    """Return the configuration file's path; None where none is needed."""
    if (arguments.demo or arguments.replay) and arguments.config is None:
        return None
    path: str = arguments.config or DEFAULT_PATH
    return path
