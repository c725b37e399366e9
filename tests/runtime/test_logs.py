"""The format of log lines, escaping, and the log limit."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from skyfast.config.model import Logging, Note
from skyfast.runtime import logs
from skyfast.runtime.logs import LOG_INTERVAL_S, MAX_CAUSES, MAX_SHOWN, LogLimit, printable

INFO = Logging(level="INFO", format="text")
JSON = Logging(level="INFO", format="json")


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("skyfast")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    hooks = sys.excepthook, threading.excepthook
    yield
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_text_line_has_utc_time_level_and_logger(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logs.set_up(INFO)
    logging.getLogger("skyfast.web").info("serving %s", "x")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO skyfast\.web: serving x\n",
        capfd.readouterr().err,
    )


def test_message_text_cannot_forge_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(INFO)
    logging.getLogger("skyfast.web").warning("got %s", "a\nINFO b\r\x1b[31mred\x7f\x9bc\té")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(r"got a\x0aINFO b\x0d\x1b[31mred\x7f\x9bc\x09é")


def test_traceback_keeps_its_lines(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(INFO)
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("skyfast.x").exception("failed")
    written = capfd.readouterr().err
    assert "\nTraceback (most recent call last):\n" in written
    assert "left out" not in written


@pytest.fixture
def journal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variable that systemd sets if standard error is connected to the journal."""
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")


@pytest.mark.usefixtures("journal")
def test_journal_lines_have_priority_and_no_time(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(Logging(level="DEBUG", format="text"))
    log = logging.getLogger("skyfast.web")
    for level in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        log.log(logging.getLevelNamesMapping()[level], "serving %s", "x")
    assert capfd.readouterr().err.splitlines() == [
        "<7>DEBUG skyfast.web: serving x",
        "<6>INFO skyfast.web: serving x",
        "<4>WARNING skyfast.web: serving x",
        "<3>ERROR skyfast.web: serving x",
        "<2>CRITICAL skyfast.web: serving x",
    ]


@pytest.mark.usefixtures("journal")
def test_each_traceback_line_has_a_priority(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(INFO)
    log_exception("a\n<0>b")
    record, first_line, *others = capfd.readouterr().err.splitlines()
    assert record == "<3>ERROR skyfast.x: failed"
    assert first_line == "<3>Traceback (most recent call last):"
    assert len(others) >= 3
    assert all(line.startswith("<3>  ") for line in others)


@pytest.mark.usefixtures("journal")
def test_json_lines_have_no_priority_in_the_journal(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(JSON)
    logging.getLogger("skyfast.web").warning("x")
    assert json.loads(capfd.readouterr().err)["level"] == "WARNING"


@pytest.mark.parametrize("stream", [None, "", "1:2", "x"])
def test_lines_have_time_outside_the_journal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stream: str | None
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if stream is not None:
        monkeypatch.setenv("JOURNAL_STREAM", stream)
    logs.set_up(INFO)
    logging.getLogger("skyfast.web").warning("x")
    assert re.match(r"\d{4}-.*Z WARNING skyfast\.web: x$", capfd.readouterr().err)


@pytest.mark.parametrize("arguments", [["--chekc"], ["/no/such/file.yml"]])
def test_startup_error_has_a_priority(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    status = os.fstat(writing)
    with os.fdopen(reading) as written:
        done = subprocess.run(
            [sys.executable, "-m", "skyfast", *arguments],
            env={**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
            stderr=writing,
            timeout=20,
            check=False,
        )
        os.close(writing)
        assert done.returncode == 2
        (line,) = written.read().splitlines()
    assert line.startswith("<3>skyfast: ")


def log_exception(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("skyfast.x").exception("failed")


def test_exception_text_cannot_forge_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(INFO)
    log_exception("a\n2026-01-01T00:00:00.000Z INFO skyfast.app: stopped\r\x1b[31mred")
    record, first_line, *others = capfd.readouterr().err.split("\n")[:-1]
    assert record.endswith(" ERROR skyfast.x: failed")
    assert first_line == "Traceback (most recent call last):"
    assert others
    assert all(line.startswith("  ") for line in others)
    assert others[-1].endswith(r" skyfast.app: stopped\x0d\x1b[31mred")


@pytest.mark.parametrize("configured", [INFO, JSON], ids=["text", "json"])
@pytest.mark.parametrize("text", ["line\n" * 10_000, "x" * 1_000_000], ids=["lines", "length"])
def test_exception_output_is_limited(
    capfd: pytest.CaptureFixture[str], configured: Logging, text: str
) -> None:
    logs.set_up(configured)
    log_exception(text)
    written = capfd.readouterr().err
    assert "failed" in written
    assert "raise ValueError" in written
    assert len(written) < 10_000


@pytest.mark.parametrize("excess", [0, 1, 2, 5000])
def test_long_traceback_keeps_first_and_last_lines(
    capfd: pytest.CaptureFixture[str], excess: int
) -> None:
    logs.set_up(JSON)
    quoted = [f"line {n}" for n in range(logs.MAX_TRACEBACK_LINES + excess)]
    error = ValueError("\n".join(quoted))
    logging.getLogger("skyfast.x").error("failed", exc_info=error)
    all_lines = ["ValueError: line 0", *quoted[1:]]
    half = logs.MAX_TRACEBACK_LINES // 2
    omitted = [f"... {excess} lines omitted ..."] if excess else []
    written = json.loads(capfd.readouterr().err)["exception"].split("\n")
    assert written == [*all_lines[:half], *omitted, *all_lines[-half:]]


@pytest.mark.parametrize("excess", [0, 1])
def test_long_traceback_line_is_cut(capfd: pytest.CaptureFixture[str], excess: int) -> None:
    logs.set_up(JSON)
    line = "ValueError: " + "x" * (logs.MAX_TRACEBACK_LINE - len("ValueError: "))
    error = ValueError(line.removeprefix("ValueError: ") + "y" * excess)
    logging.getLogger("skyfast.x").error("failed", exc_info=error)
    assert json.loads(capfd.readouterr().err)["exception"] == line + "..." * excess


def test_json_record_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(JSON)
    text = 'a\nb\r\x00\x1b[31m\x9b\u2028\u202e"\\é\ud800\U0001f600'
    logging.getLogger("skyfast.web").warning("got %s", text)
    log_exception(text)
    written = capfd.readouterr().err
    assert written.isascii()
    assert not any(ord(char) < 0x20 or ord(char) == 0x7F for char in written if char != "\n")
    first, second = (json.loads(line) for line in written.split("\n")[:-1])
    assert list(first) == ["time", "level", "logger", "message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert (first["level"], first["logger"]) == ("WARNING", "skyfast.web")
    assert first["message"] == f"got {text}".replace("\ud800", "\\ud800")
    assert list(second) == ["time", "level", "logger", "message", "exception"]
    assert second["message"] == "failed"
    assert second["exception"].startswith("Traceback (most recent call last):\n")
    assert "ValueError: a\nb\\x0d" in second["exception"]


FAULTS = """
import sys, threading, warnings
from skyfast.runtime import logs
from skyfast.config.loader import Logging
logs.set_up(Logging(level="INFO", format="json"))
warnings.warn("a\\nb")
for target in (lambda: 1 / 0, lambda: sys.exit(1)):  # SystemExit in a thread is not an error
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
{}["x\\ny"]
"""


def test_warnings_and_unhandled_exceptions_are_logged() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 1
    warning, thread, last = (json.loads(line) for line in done.stderr.splitlines())
    assert (warning["level"], warning["logger"]) == ("WARNING", "py.warnings")
    assert thread["message"] == "a thread ended after an unhandled exception"
    assert thread["exception"].endswith("ZeroDivisionError: division by zero")
    assert (last["level"], last["message"]) == ("CRITICAL", "exiting after an unhandled exception")
    assert "KeyError" in last["exception"]


def test_format_and_level_can_be_changed(capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("skyfast.x")
    logs.set_up(INFO)
    log.info("one")
    logs.configure(JSON)
    log.info("two")
    logs.configure(Logging(level="ERROR", format="text"))
    log.info("three")
    log.error("four")
    one, two, four = capfd.readouterr().err.splitlines()
    assert one.endswith(" INFO skyfast.x: one")
    assert json.loads(two)["message"] == "two"
    assert four.endswith(" ERROR skyfast.x: four")


def test_level_applies_to_skyfast_only(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(Logging(level="DEBUG", format="text"))
    logging.getLogger("skyfast.x").debug("ours")
    logging.getLogger("websockets.client").debug("theirs")
    logging.getLogger("aiohttp").warning("warned")
    lines = capfd.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["ours", "warned"]


def test_notes_about_the_configuration_are_logged_at_their_level(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logs.set_up(INFO)
    logs.write_notes([Note(level=logging.DEBUG, text="low"), Note(level=30, text="100 % high")])
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("WARNING skyfast.config: 100 % high")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä€ text", "plain ä€ text"),
        ("\x1b[31m\r\n\t\0", r"\x1b[31m\r\n\t\x00"),
        ("\u2028\u202e\u200b", r"\u2028\u202e\u200b"),
        ("\udcff", r"\udcff"),
        (ValueError("x\ny"), r"x\ny"),
        ("x" * MAX_SHOWN, "x" * MAX_SHOWN),
        ("x" * (MAX_SHOWN + 1), "x" * MAX_SHOWN + "..."),
    ],
)
def test_printable_escapes_and_truncates_its_argument(text: object, shown: str) -> None:
    assert printable(text) == shown


class Limited:
    """A log limit with a manual clock, and its logged lines."""

    LOG = logging.getLogger("skyfast.limited")

    def __init__(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, **options: float
    ) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(logs.time, "monotonic", lambda: self.now_s)
        caplog.set_level(logging.INFO, "skyfast.limited")
        self._caplog = caplog
        self.limit = LogLimit(**options)

    def warn(self, cause: object) -> str | None:
        self.limit.warn(self.LOG, cause, "it happened")
        return self.line()

    def line(self) -> str | None:
        """Return the line logged since the last call, or None."""
        messages = [record.getMessage() for record in self._caplog.records]
        self._caplog.clear()
        assert len(messages) <= 1
        return messages[0] if messages else None


@pytest.fixture
def limited(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Limited:
    return Limited(caplog, monkeypatch)


def test_cause_is_logged_once_per_interval(limited: Limited) -> None:
    assert limited.warn("a") == "it happened"
    assert limited.warn("a") is None
    limited.now_s += LOG_INTERVAL_S - 1
    assert limited.warn("a") is None
    assert limited.warn("b") == "it happened"
    limited.now_s += 1
    assert limited.warn("a") == "it happened (2 more suppressed)"
    assert limited.warn("a") is None
    limited.now_s += LOG_INTERVAL_S
    assert limited.warn("a") == "it happened (1 more suppressed)"
    limited.now_s += LOG_INTERVAL_S
    assert limited.warn("a") == "it happened"


def test_interval_of_a_log_limit_can_be_set(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = Limited(caplog, monkeypatch, interval_s=5.0)
    assert limited.warn("a") == "it happened"
    limited.now_s += 4
    assert limited.warn("a") is None
    limited.now_s += 1
    assert limited.warn("a") == "it happened (1 more suppressed)"


def test_reset_of_a_log_limit_allows_another_line_per_cause_and_keeps_counts(
    limited: Limited,
) -> None:
    for cause in ("a", "a", "b"):
        limited.warn(cause)
    limited.limit.reset()
    assert limited.warn("a") == "it happened (1 more suppressed)"
    assert limited.warn("b") == "it happened"
    assert limited.warn("a") is None


def test_log_limit_keeps_the_level_and_the_logger_of_a_line(
    limited: Limited, caplog: pytest.LogCaptureFixture
) -> None:
    for level in (logging.INFO, logging.WARNING, logging.ERROR):
        limited.limit.log(limited.LOG, level, level, "it happened")
    levels = [(record.levelno, record.name) for record in caplog.records]
    assert levels == [(level, "skyfast.limited") for level in (20, 30, 40)]


def test_log_limit_formats_lines_that_have_arguments(limited: Limited) -> None:
    limited.limit.warn(limited.LOG, 1, "%s had %d, 100 %% of it", "it", 7)
    assert limited.line() == "it had 7, 100 % of it"
    limited.limit.warn(limited.LOG, 2, "100 % of %s")
    assert limited.line() == "100 % of %s"


def test_callable_arguments_are_called_only_for_logged_lines(limited: Limited) -> None:
    calls: list[str] = []

    def text() -> str:
        calls.append("text")
        return "100 %s"

    def error() -> tuple[type[ValueError], ValueError, None]:
        calls.append("error")
        return ValueError, ValueError("x"), None

    for _ in range(3):
        limited.limit.log(limited.LOG, logging.ERROR, "a", "it is %s", text, exc_info=error)
    assert calls == ["text", "error"]
    assert limited.line() == "it is 100 %s"


def test_log_limit_logs_the_exception_of_a_line(
    limited: Limited, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError("x")
    limited.limit.log(
        limited.LOG, logging.ERROR, "a", "it", exc_info=lambda: (ValueError, error, None)
    )
    (record,) = caplog.records
    assert record.exc_info == (ValueError, error, None)


def test_log_limit_forgets_oldest_causes(limited: Limited) -> None:
    assert limited.warn("first")
    for cause in range(MAX_CAUSES - 1):
        assert limited.warn(cause)
    assert limited.warn("first") is None
    assert limited.warn("one more")
    assert limited.warn("first") == "it happened"
    assert limited.warn(1) is None
    assert len(limited.limit._causes) == MAX_CAUSES
