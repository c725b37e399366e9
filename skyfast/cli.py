"""The command line: arguments, options and exit codes.

Exit codes:

* 0 after SIGTERM, SIGINT, ``--check``, ``--help``, ``--version`` or ``--print-completion``
* 1 if skyfast cannot run
* 2 for an invalid argument or configuration
"""

import argparse
import dataclasses
import difflib
import logging
import math
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from skyfast.config import (
    cost,
    loader,
    model,
    names,
    schema,
    sharding,
    traffic_warnings,
    yaml_nodes,
)
from skyfast.config.endpoint import Endpoint, parse_listen_address
from skyfast.config.errors import InvalidValue
from skyfast.config.parsers import LEVELS, to_level
from skyfast.flows import selection
from skyfast.runtime import build_info, logs, memory, names_file
from skyfast.web import listen
from skyfast.wording import counted

if TYPE_CHECKING:
    from skyfast.replay.recording import Playback, Recording

log = logging.getLogger(__name__)

DEFAULT_PATH = "/etc/skydive/prom_sky_con.yml"

EXIT_OK = 0
EXIT_CANNOT_RUN = 1
EXIT_INVALID = 2

MIN_SPEED = 0.001
"""Minimum of ``--replay-speed``."""

MAX_SPEED = 1000.0
"""Maximum of ``--replay-speed``."""

SHELLS = ("bash", "zsh", "fish")
"""Shells that have a completion file. ``make completion`` writes these files."""

COMPLETION = Path(__file__).with_name("data") / "completion"

MIN_SIMILARITY = 0.6
"""The ``cutoff`` of `difflib.get_close_matches` when skyfast suggests an option."""


class _HelpFormatter(argparse.HelpFormatter):
    """Prints the help of each option on the same line as the option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        # argparse's default, "FILE [FILE ...]", is too long.
        if action.nargs == argparse.ONE_OR_MORE:
            return f"{action.metavar}..."
        return super()._format_args(action, default_metavar)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _print_error(f"{message} (see {self.prog} --help)")
        sys.exit(EXIT_INVALID)

    def suggestion(self, unknown: str) -> str:
        """Return a hint such as ``; did you mean --check?``, or "" if no option is similar."""
        options = {
            _simplified(option): option
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--") and action.help != argparse.SUPPRESS
        }
        name = _simplified(unknown.partition("=")[0])
        near = difflib.get_close_matches(name, options, 1, MIN_SIMILARITY)
        return f"; did you mean {options[near[0]]}?" if near and unknown.startswith("-") else ""


def _simplified(option: str) -> str:
    return re.sub(r"[._]", "-", option.lstrip("-").lower())


def _print_error(text: str) -> None:
    sys.stderr.write(f"{logs.prefix(logging.ERROR)}skyfast: {text}\n")


def _print_warning(text: str) -> None:
    sys.stderr.write(f"{logs.prefix(logging.WARNING)}skyfast: warning: {text}\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="skyfast",
        usage="%(prog)s [CONFIG] [OPTION]...",
        description="Prometheus exporter for Skydive network flows.",
        epilog="Environment variables such as SKYDIVE_HOST_ID override keys of CONFIG.",
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help=f"configuration file, or - for standard input (default: {DEFAULT_PATH})",
    )
    parser.add_argument(
        "--config.file",
        dest="config_file",
        metavar="FILE",
        help="configuration file, instead of CONFIG",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="validate CONFIG; print settings and their cost",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="with --check, treat warnings as errors",
    )
    analyzers = parser.add_mutually_exclusive_group()
    analyzers.add_argument(
        "--demo",
        action="store_true",
        help="replay a packaged recording (CONFIG optional)",
    )
    analyzers.add_argument(
        "--replay",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="replay recordings (put CONFIG first)",
    )
    parser.add_argument(
        "--replay-speed",
        type=_speed,
        metavar="N",
        help="speed relative to the recording (default: 1)",
    )
    parser.add_argument(
        "--record",
        type=_record,
        metavar="FILE",
        help="record messages to FILE; *.gz is compressed",
    )
    parser.add_argument(
        "--record-anonymous",
        action="store_true",
        help="replace addresses and names in the recording",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="export only shard I of N, with I from 0 to N-1",
    )
    address = parser.add_mutually_exclusive_group()
    address.add_argument(
        listen.OPTION,
        dest="addresses",
        type=_address,
        action="append",
        metavar="ADDRESS",
        help="listen on ADDRESS, such as :9100; repeatable",
    )
    address.add_argument(
        listen.SOCKET_OPTION,
        dest="systemd_socket",
        action="store_true",
        help="listen on sockets passed by systemd",
    )
    parser.add_argument(
        "--web.config.file",
        dest="web_config_file",
        default="",
        metavar="FILE",
        help="file with TLS settings and HTTP users",
    )
    parser.add_argument(
        "--log.level",
        dest="log_level",
        type=_level,
        metavar="LEVEL",
        help=", ".join(LEVELS),
    )
    # The former name of --log.level still works.
    parser.add_argument("--log-level", dest="log_level", type=_level, help=argparse.SUPPRESS)
    parser.add_argument(
        "--log.format",
        dest="log_format",
        choices=("text", "json"),
        help="text or json",
        metavar="FORMAT",
    )
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        metavar="SHELL",
        help="print completions for bash, zsh or fish",
    )
    parser.add_argument(
        "--version",
        action="store_true",
        help="print the version and the build",
    )
    parser.add_argument("--json", action="store_true", help="print --version as JSON")
    return parser


def _level(text: str) -> str:
    try:
        return to_level(text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error.problem}") from None


def _address(text: str) -> Endpoint:
    try:
        return parse_listen_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _shard(text: str) -> selection.Shard:
    try:
        return sharding.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _record(text: str) -> str:
    # An unset shell variable in --record "$FILE" gives an empty name. Without this check, skyfast
    # would start without recording.
    if not text:
        raise argparse.ArgumentTypeError("the file name is empty")
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
    arguments, unknown = parser.parse_known_args(
        _join_negative_values(sys.argv[1:] if argv is None else argv)
    )
    if unknown:
        hint = parser.suggestion(unknown[0])
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if arguments.config is not None and arguments.config_file is not None:
        parser.error("give either CONFIG or --config.file, not both")
    if arguments.config_file is not None:
        arguments.config = arguments.config_file
    if arguments.replay_speed is not None and not arguments.replay:
        parser.error("--replay-speed requires --replay")
    if arguments.record_anonymous and not arguments.record:
        parser.error("--record-anonymous requires --record")
    if arguments.record and arguments.check:
        parser.error("--record cannot be combined with --check")
    if arguments.json and not arguments.version:
        parser.error("--json requires --version")
    if arguments.strict and not arguments.check:
        parser.error("--strict requires --check")
    if len(arguments.addresses or ()) > listen.MAX_SOCKETS:
        parser.error(f"{listen.OPTION}: more than {listen.MAX_SOCKETS} addresses")
    return arguments


def _join_negative_values(argv: list[str]) -> list[str]:
    """Turn ``--shard -1/3`` into ``--shard=-1/3``: argparse would parse ``-1/3`` as an option."""
    joined: list[str] = []
    for argument in argv:
        if joined and re.fullmatch(r"--[\w.-]+", joined[-1]) and re.match(r"-[0-9]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _arguments(argv)
    if arguments.version:
        build = build_info.read()
        sys.stdout.write(f"{build.to_json() if arguments.json else build.to_text()}\n")
        return EXIT_OK
    if arguments.print_completion:
        completion = COMPLETION.with_suffix(f".{arguments.print_completion}")
        sys.stdout.write(completion.read_text(encoding="utf-8"))
        return EXIT_OK
    try:
        is_debugged = memory.is_debug_allowed(os.environ)
    except ValueError as error:
        _print_error(str(error))
        return EXIT_INVALID
    if not is_debugged:
        memory.disable_core_dumps()  # before reading secrets, which core dumps would contain
    # Until the event loop runs, SIGINT and SIGTERM end the process at once: there is nothing to
    # close.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(EXIT_OK))
    # Block SIGHUP until the event loop runs, so that a request to reload during startup is kept.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        configuration = _first_load(arguments)
        if arguments.check:
            return _check(arguments, configuration)
        logs.set_up(configuration.logging)
        if is_debugged:
            log.warning("core dumps and debuggers are allowed (%s=1)", memory.DEBUG_VARIABLE)
        logs.write_notes(configuration.notes)
        playback = _playback(arguments)
        listen_at = _listen(arguments, configuration)

        from skyfast import runner

        is_over = runner.run(
            configuration,
            lambda: _reload(arguments),
            runner.Options(
                listen=listen_at,
                web_config_file=arguments.web_config_file,
                playback=playback,
                record_file=arguments.record or "",
                anonymous=arguments.record_anonymous,
            ),
        )
        return EXIT_OK if is_over else EXIT_CANNOT_RUN
    except yaml_nodes.ConfigError as error:
        for warning in error.warnings:
            _print_warning(warning)
        for problem in error.problems:
            _print_error(problem)
        return EXIT_INVALID


def _check(arguments: argparse.Namespace, configuration: model.Config) -> int:
    logging_ = configuration.logging
    if arguments.strict and logging.getLevelNamesMapping()[logging_.level] > logging.WARNING:
        logging_ = dataclasses.replace(logging_, level="WARNING")
    logs.set_up(logging_)
    warnings = logs.WarningCounter()
    logging.getLogger().addHandler(warnings)
    logs.write_notes(configuration.notes)
    traffic_warnings.write(configuration)
    # Check all files before printing, so that the output is empty if one of the files is invalid.
    files = _check_names(configuration) + _check_web(arguments.web_config_file)
    recordings = _check_replay(arguments, configuration)
    if arguments.strict and warnings.count:
        _print_error(f"{counted(warnings.count, 'warning')}; --strict treats warnings as errors")
        return EXIT_INVALID
    # Print the forecast (in `recordings`) last, so that it stays visible in a terminal.
    parts = loader.dump(configuration), cost.report(configuration) + files, recordings
    sys.stdout.write("\n".join(filter(None, parts)))
    if warnings.count:
        # On a terminal, the long output may have scrolled the warnings off the screen.
        sys.stdout.write(
            f"# {counted(warnings.count, 'warning')}: see the log on standard error.\n"
        )
    return EXIT_OK


def _listen(arguments: argparse.Namespace, configuration: model.Config) -> listen.Listen:
    if arguments.systemd_socket:
        return listen.Listen(sockets=listen.sockets(os.environ))
    addresses = tuple(arguments.addresses or ())
    is_default = not addresses and schema.PORT.path not in configuration.given
    return listen.Listen(addresses=addresses, any_port=arguments.demo and is_default)


def _first_load(arguments: argparse.Namespace) -> model.Config:
    try:
        return _load(arguments)
    except yaml_nodes.ConfigError as error:
        # Without CONFIG, FileNotFoundError means that there is no file at `DEFAULT_PATH`.
        if arguments.config is None and isinstance(error.__context__, FileNotFoundError):
            raise yaml_nodes.ConfigError(f"{error}; give a CONFIG, or try --demo") from None
        raise


def _load(arguments: argparse.Namespace) -> model.Config:
    path = _path(arguments)
    if path is None and arguments.demo:
        from skyfast.replay import recording

        text = recording.DEMO_CONFIG.read_text(encoding="utf-8")
        loaded = loader.parse(text, os.environ, source="the demo", replayed=_replayed(arguments))
    elif path is None:
        loaded = loader.parse("", os.environ, source="the defaults", replayed=_replayed(arguments))
    else:
        loaded = loader.load(path, os.environ, replayed=_replayed(arguments))
    if arguments.shard is not None:
        loaded = sharding.sharded(loaded, arguments.shard)
    changes = {"level": arguments.log_level, "format": arguments.log_format}
    changes = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(loaded, logging=dataclasses.replace(loaded.logging, **changes))


def _replayed(arguments: argparse.Namespace) -> str:
    """Return text that names the recordings to replay, or "" without a replay."""
    if arguments.demo:
        return "the packaged recording"
    return ", ".join(map(yaml_nodes.file_name, arguments.replay or ()))


def _playback(arguments: argparse.Namespace) -> "Playback | None":
    if not arguments.demo and not arguments.replay:
        return None
    from skyfast.replay import recording

    if arguments.demo:
        return recording.demo()
    return recording.Playback(
        recordings=tuple(map(_recording, arguments.replay)),
        speed=arguments.replay_speed or 1,
    )


def _recording(path: str) -> "Recording":
    from skyfast.replay.recording import Recording

    try:
        return Recording.load(path)
    except yaml_nodes.ConfigError as error:
        if not path.lower().endswith((".yml", ".yaml")):
            raise
        hint = "a configuration file must come before --replay"
        raise yaml_nodes.ConfigError(f"{error}; {hint}") from None


def _check_replay(arguments: argparse.Namespace, configuration: model.Config) -> str:
    """Return a summary of the recordings and a forecast, as YAML comments."""
    playback = _playback(arguments)
    if not playback or not arguments.replay:
        return ""
    from skyfast import dry_run
    from skyfast.web import empty_labels, forecast

    result = dry_run.run(configuration, playback)
    lines = [
        f"Recording {recording.path}: {recording.summary()}." for recording in playback.recordings
    ]
    if result.names and not result.has_topology:
        lines.append("The recordings contain no topology, so names from the topology are missing.")
    lines.append("At the end of the recordings:")
    lines += [f"{empty_labels.share_text(empty)}." for empty in result.empty if empty.bytes_share]
    lines += forecast.as_text(result.forecast)
    if result.names:
        empty_labels.EmptyLabelCheck().use(result.empty, result.names)
    return "".join(f"# {line}\n" for line in lines)


def _check_names(configuration: model.Config) -> str:
    """Return a summary of own names (given by users) as a YAML comment, or "" without names.

    Log warnings about labels that stay empty because names are missing.
    """
    sources, export = configuration.names, configuration.export
    loaded = names.load(sources, export)
    names_file.warn(labels=names.labels_without_names(sources, export), keys=loaded.missing_keys)
    if not loaded.sources.are_set:
        return ""
    return f"# Names from 'names' and 'names_file': {loaded.summary()}.\n"


def _check_web(path: str) -> str:
    if not path:
        return ""
    from skyfast.web import config_file

    return f"# Web configuration: {config_file.read(path).summary()}.\n"


def _reload(arguments: argparse.Namespace) -> model.Config:
    path = _path(arguments)
    if path == "-":
        raise yaml_nodes.ConfigError("standard input cannot be read again")
    if path is not None and Path(path).exists() and not Path(path).is_file():
        # Reading a pipe again would return nothing or block forever.
        raise yaml_nodes.ConfigError(f"{path!r} is not a regular file and cannot be read again")
    return _load(arguments)


def _path(arguments: argparse.Namespace) -> str | None:
    """Return the path of the configuration file, or None for a replay without CONFIG."""
    if (arguments.demo or arguments.replay) and arguments.config is None:
        return None
    path: str = arguments.config or DEFAULT_PATH
    return path
