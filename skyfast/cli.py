"""The command line: arguments, exit codes, and nothing that runs for long.

0: stopped by SIGTERM or SIGINT, or asked only to look. 1: cannot run. 2: a wrong argument
or configuration, told in one line.
"""

import argparse
import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from skyfast import __version__, check, config, logs, shard

DEFAULT_PATH = "/etc/skydive/prom_sky_con.yml"

EXIT_OK = 0
EXIT_CANNOT_RUN = 1
EXIT_WRONG = 2

_LEVELS = ("debug", "info", "warning", "error")


class _HelpFormatter(argparse.HelpFormatter):
    """Has room for the longest option beside its help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=27)


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
        help="validate the configuration, print it and its cost, and exit",
    )
    parser.add_argument(
        "--demo",
        action="store_true",
        help="play a recording instead of subscribing; needs no CONFIG",
    )
    parser.add_argument(
        "--log-level",
        choices=_LEVELS,
        type=str.lower,
        metavar="LEVEL",
        help=f"least severe records to log: {', '.join(_LEVELS)}",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="export the I-th, from 0, of N parts of the connections",
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


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments (default: the process's own); return its exit code."""
    arguments = _parser().parse_args(argv)
    # Until the event loop takes over, a request to stop finds nothing to close.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(EXIT_OK))
    # And a request to reload waits for it, even where it comes while the file is being read.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        configuration = _load(arguments)
        logs.set_up(configuration.logging)
        logs.write_notes(configuration.notes)
        if arguments.check:
            # The web configuration first, which can be wrong.
            web_report = _check_web(arguments.web_config_file)
            sys.stdout.write(config.dump(configuration) + check.report(configuration) + web_report)
            return EXIT_OK

        from skyfast import app

        is_over = app.run(
            configuration,
            lambda: _reload(arguments),
            demo=arguments.demo,
            web_config_file=arguments.web_config_file,
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
    if arguments.demo and arguments.config is None:
        return None
    path: str = arguments.config or DEFAULT_PATH
    return path
