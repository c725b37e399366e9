"""What a log line looks like, and what cannot get into one."""

import logging
import re
from collections.abc import Iterator

import pytest

from skyfast import logs
from skyfast.config import Note


@pytest.fixture(autouse=True)
def _undo() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("skyfast")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_a_line_has_the_time_in_utc_the_level_and_the_module(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logs.set_up("INFO")
    logging.getLogger("skyfast.web").info("serving %s", "x")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO skyfast\.web: serving x\n",
        capfd.readouterr().err,
    )


def test_what_a_stranger_sent_cannot_forge_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up("INFO")
    logging.getLogger("skyfast.web").warning("got %s", "a\nINFO b\r\x1b[31mred\x7f\x9bc\té")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(r"got a\x0aINFO b\x0d\x1b[31mred\x7f\x9bc\x09é")


def test_a_traceback_keeps_its_lines(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up("INFO")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("skyfast.x").exception("failed")
    assert "\nTraceback (most recent call last):\n" in capfd.readouterr().err


def test_the_level_is_ours_alone(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up("DEBUG")
    logging.getLogger("skyfast.x").debug("ours")
    logging.getLogger("websockets.client").debug("theirs")
    logging.getLogger("aiohttp").warning("warned")
    lines = capfd.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["ours", "warned"]


def test_notes_are_written_at_their_level(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up("INFO")
    logs.write_notes([Note(level=logging.DEBUG, text="low"), Note(level=30, text="100 % high")])
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("WARNING skyfast.config: 100 % high")
