"""The capture points of each capture, which skyfast finds in a sample of the flows."""

import json
from typing import Any

import pytest

from skyfast.skydive import capture_points
from skyfast.skydive.capture_points import (
    FORGET_INTERVAL_S,
    MAX_CAPTURES,
    MAX_POINTS,
    SILENCE_S,
    CapturePoints,
)
from tests.model import make_flow
from tests.support.messages import message


def flows(*points: tuple[str, str]) -> bytes:
    return message(
        *(
            make_flow(f"{n + 1:x}", node=tid) | {"CaptureID": capture_id}
            for n, (capture_id, tid) in enumerate(points)
        )
    )


def test_capture_points_are_sorted_and_expire() -> None:
    points = CapturePoints()
    assert points.of("c", 0) == []
    points.message(flows(("c", "b"), ("c", "a"), ("d", "a"), ("c", "b")), 0)
    points.message(bytearray(flows(("c", "a"))), 10)
    assert points.of("c", 10) == ["a", "b"]
    assert points.of("d", 10) == ["a"]
    assert points.of("c", SILENCE_S) == ["a"]
    assert points.of("c", SILENCE_S + 10) == []


def test_unusable_messages_are_ignored() -> None:
    points = CapturePoints()
    values: list[Any] = [None, 5, [], {}, {"Obj": 5}, {"Obj": [5]}, {"Obj": [{"CaptureID": 5}]}]
    values += [{"Obj": [{}, {"CaptureID": "c"}, {"NodeTID": "n"}]}, {"Obj": None}]
    values += [{"Obj": [{"CaptureID": "c", "NodeTID": "x" * 2000}]}]
    for value in values:
        points.message(json.dumps(value).encode(), 0)
    for text in (b"", b"{", b"\xff", b'{"Obj": [{"CaptureID": "\\ud800", "NodeTID": "n"}]}'):
        points.message(text, 0)
    assert points.of("c", 0) == []


def test_memory_is_bounded() -> None:
    points = CapturePoints()
    points.message(flows(*(("c", f"{n:03}") for n in range(5 * MAX_POINTS))), 0)
    assert points.of("c", 0) == [f"{n:03}" for n in range(4 * MAX_POINTS, 5 * MAX_POINTS)]
    points.message(flows(*((f"{n}", "n") for n in range(2 * MAX_CAPTURES))), 1)
    assert len(points._points) == MAX_CAPTURES
    assert points.of(f"{MAX_CAPTURES}", 1) == []
    # Captures without recent flows make room for new captures.
    points.message(flows(("0", "n"), ("new", "n")), SILENCE_S + 1)
    assert points.of("new", SILENCE_S + 1) == ["n"]
    assert set(points._points) == {"0", "new"}
    assert capture_points.MAX_ID_CHARS == 1024


def test_search_for_ended_captures_runs_at_most_once_per_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capture_points, "MAX_CAPTURES", 2)
    points = CapturePoints()
    points.message(flows(("a", "n"), ("b", "n"), ("c", "n")), 0)
    kept = points._points
    points.message(flows(("c", "n"), ("d", "n")), FORGET_INTERVAL_S - 1)
    assert points._points is kept
    points.message(flows(("b", "n")), SILENCE_S - 1)
    points.message(flows(("c", "n"), ("d", "n")), SILENCE_S - 1 + FORGET_INTERVAL_S)
    assert set(points._points) == {"b", "c"}


def test_ended_captures_and_points_are_forgotten() -> None:
    points = CapturePoints()
    points.message(flows(("ended", "n"), ("c", "old"), ("c", "new")), 0)
    points.message(flows(("c", "new")), SILENCE_S)
    assert {capture_id: set(known) for capture_id, known in points._points.items()} == {
        "c": {"new"}
    }
