"""What a log line looks like, and what cannot get into one."""

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
from skyfast.runtime.logs import MAX_CAUSES, MAX_SHOWN, LogLimit, printable

INFO = Logging(level="INFO", format="text")
JSON = Logging(level="INFO", format="json")


@pytest.fixture(autouse=True)
def _undo() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("skyfast")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    hooks = sys.excepthook, threading.excepthook
    yield
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_a_line_has_the_time_in_utc_the_level_and_the_module(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logs.set_up(INFO)
    logging.getLogger("skyfast.web").info("serving %s", "x")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO skyfast\.web: serving x\n",
        capfd.readouterr().err,
    )


def test_what_a_stranger_sent_cannot_forge_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(INFO)
    logging.getLogger("skyfast.web").warning("got %s", "a\nINFO b\r\x1b[31mred\x7f\x9bc\té")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(r"got a\x0aINFO b\x0d\x1b[31mred\x7f\x9bc\x09é")


def test_a_traceback_keeps_its_lines(capfd: pytest.CaptureFixture[str]) -> None:
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
    """Have standard error be the stream of the journal."""
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")


@pytest.mark.usefixtures("journal")
def test_the_journal_gets_priorities_and_no_time(capfd: pytest.CaptureFixture[str]) -> None:
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
def test_each_line_of_a_traceback_has_the_priority(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(INFO)
    raised("a\n<0>b")
    record, begin, *others = capfd.readouterr().err.splitlines()
    assert record == "<3>ERROR skyfast.x: failed"
    assert begin == "<3>Traceback (most recent call last):"
    assert len(others) >= 3
    assert all(line.startswith("<3>  ") for line in others)


@pytest.mark.usefixtures("journal")
def test_json_is_json_in_the_journal_too(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(JSON)
    logging.getLogger("skyfast.web").warning("x")
    assert json.loads(capfd.readouterr().err)["level"] == "WARNING"


@pytest.mark.parametrize("stream", [None, "", "1:2", "x"])
def test_another_stream_than_the_journals_has_times(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stream: str | None
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if stream is not None:
        monkeypatch.setenv("JOURNAL_STREAM", stream)
    logs.set_up(INFO)
    logging.getLogger("skyfast.web").warning("x")
    assert re.match(r"\d{4}-.*Z WARNING skyfast\.web: x$", capfd.readouterr().err)


@pytest.mark.parametrize("arguments", [["--chekc"], ["/no/such/file.yml"]])
def test_what_is_wrong_at_the_start_has_a_priority_too(arguments: list[str]) -> None:
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


def raised(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("skyfast.x").exception("failed")


def test_what_an_exception_quotes_cannot_forge_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(INFO)
    raised("a\n2026-01-01T00:00:00.000Z INFO skyfast.app: stopped\r\x1b[31mred")
    record, begin, *others = capfd.readouterr().err.split("\n")[:-1]
    assert record.endswith(" ERROR skyfast.x: failed")
    assert begin == "Traceback (most recent call last):"
    assert others
    assert all(line.startswith("  ") for line in others)
    assert others[-1].endswith(r" skyfast.app: stopped\x0d\x1b[31mred")


@pytest.mark.parametrize("configured", [INFO, JSON], ids=["text", "json"])
@pytest.mark.parametrize("text", ["line\n" * 10_000, "x" * 1_000_000], ids=["lines", "length"])
def test_an_exception_is_no_flood(
    capfd: pytest.CaptureFixture[str], configured: Logging, text: str
) -> None:
    logs.set_up(configured)
    raised(text)
    written = capfd.readouterr().err
    assert "failed" in written
    assert "raise ValueError" in written
    assert len(written) < 10_000


@pytest.mark.parametrize("excess", [0, 1, 2, 5000])
def test_of_a_long_traceback_the_first_and_the_last_lines_are_written(
    capfd: pytest.CaptureFixture[str], excess: int
) -> None:
    logs.set_up(JSON)
    quoted = [f"line {n}" for n in range(logs.MAX_TRACEBACK_LINES + excess)]
    error = ValueError("\n".join(quoted))
    logging.getLogger("skyfast.x").error("failed", exc_info=error)
    every = ["ValueError: line 0", *quoted[1:]]
    half = logs.MAX_TRACEBACK_LINES // 2
    left_out = [f"... {excess} lines left out ..."] if excess else []
    written = json.loads(capfd.readouterr().err)["exception"].split("\n")
    assert written == [*every[:half], *left_out, *every[-half:]]


@pytest.mark.parametrize("excess", [0, 1])
def test_of_a_long_line_of_a_traceback_the_beginning_is_written(
    capfd: pytest.CaptureFixture[str], excess: int
) -> None:
    logs.set_up(JSON)
    line = "ValueError: " + "x" * (logs.MAX_TRACEBACK_LINE - len("ValueError: "))
    error = ValueError(line.removeprefix("ValueError: ") + "y" * excess)
    logging.getLogger("skyfast.x").error("failed", exc_info=error)
    assert json.loads(capfd.readouterr().err)["exception"] == line + "..." * excess


def test_a_json_record_is_an_object_on_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(JSON)
    text = 'a\nb\r\x00\x1b[31m\x9b\u2028\u202e"\\é\ud800\U0001f600'
    logging.getLogger("skyfast.web").warning("got %s", text)
    raised(text)
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
for target in (lambda: 1 / 0, lambda: sys.exit(1)):  # the latter is no fault
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
{}["x\\ny"]
"""


def test_what_python_itself_says_is_a_record_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 1
    warning, thread, last = (json.loads(line) for line in done.stderr.splitlines())
    assert (warning["level"], warning["logger"]) == ("WARNING", "py.warnings")
    assert thread["message"] == "a thread has ended by a fault of skyfast's own"
    assert thread["exception"].endswith("ZeroDivisionError: division by zero")
    assert (last["level"], last["message"]) == ("CRITICAL", "stopped by a fault of its own")
    assert "KeyError" in last["exception"]


def test_the_format_can_be_changed(capfd: pytest.CaptureFixture[str]) -> None:
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


def test_the_level_is_ours_alone(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(Logging(level="DEBUG", format="text"))
    logging.getLogger("skyfast.x").debug("ours")
    logging.getLogger("websockets.client").debug("theirs")
    logging.getLogger("aiohttp").warning("warned")
    lines = capfd.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["ours", "warned"]


def test_notes_are_written_at_their_level(capfd: pytest.CaptureFixture[str]) -> None:
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
def test_what_is_logged_is_printable_and_bounded(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_a_log_limit_lets_a_line_through_when_its_time_has_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now_s)
    limit = LogLimit(interval_s=60.0)
    assert limit.admit("a") == ""
    assert limit.admit("a") is None
    now_s += 59
    assert limit.admit("a") is None
    assert limit.admit("b") == ""
    now_s += 1
    assert limit.admit("a") == " (2 more such events since the last line)"
    assert limit.admit("a") is None
    now_s += 60
    assert limit.admit("a") == " (1 more such events since the last line)"
    now_s += 60
    assert limit.admit("a") == ""


def test_a_log_limit_forgets_what_was_logged_longest_ago() -> None:
    limit = LogLimit(interval_s=60.0)
    assert limit.admit("first") == ""
    for cause in range(MAX_CAUSES - 1):
        assert limit.admit(cause) == ""
    assert limit.admit("first") is None
    assert limit.admit("one more") == ""
    assert limit.admit("first") == ""
    assert limit.admit(1) is None
    assert len(limit._causes) == MAX_CAUSES
