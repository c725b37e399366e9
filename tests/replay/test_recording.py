"""Recording files: lines, errors, and the sending times of messages."""

import gzip
import json
import re
import tracemalloc
from pathlib import Path

import pytest

from skyfast.config.yaml_nodes import ConfigError
from skyfast.replay import recording
from skyfast.replay.recording import (
    MAX_GAP_MS,
    Playback,
    Recording,
    for_namespaces,
    message_line,
    parse,
    shift_times,
)

BASE_MS = 1_800_000_000_000

READABLE = {
    "a message": b'{"Namespace":"flow","Type":"store","Obj":[{"UUID":"a"}]}',
    "empty": b"{}",
    "empty with a space": b"{ }",
    "spaces around the key": b'{ "a" : 1 }',
    "an escape": rb'{"a":"\u00e9\"}"}',
    "UTF-8": '{"a":"é\u2028"}'.encode(),
}
BASE64 = {
    "binary": b"\x00\xff{",
    "truncated": b'{"Namespace":"flow",',
    "a list": b"[1]",
    "a string": b'"a"',
    "empty": b"",
    "a line feed": b'{\n"a":1}',
    "a carriage return": b'{\r"a":1}',
    "bad UTF-8": b'{"a":"\xff"}',
    "half a surrogate pair": rb'{"a":"\ud800"}',
    "too deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("data", [*READABLE.values(), *BASE64.values()])
def test_message_is_restored_byte_for_byte(data: bytes) -> None:
    written = message_line(data, at_ms=BASE_MS, analyzer='a"\\\n:8082')
    assert b"\n" not in written
    message = parse(written + b"\n")
    assert (message.data, message.at_ms, message.analyzer) == (data, BASE_MS, 'a"\\\n:8082')
    # Other tools can read the line.
    assert json.loads(written)["Recorded"]["At"] == BASE_MS


@pytest.mark.parametrize("data", READABLE.values(), ids=READABLE)
def test_json_message_stays_readable(data: bytes) -> None:
    read = json.loads(message_line(data, at_ms=BASE_MS, analyzer="a"))
    del read["Recorded"]
    assert read == json.loads(data)


def test_whitespace_around_a_message_is_removed() -> None:
    assert parse(message_line(b' {"a":1}\n', at_ms=BASE_MS, analyzer="a")).data == b'{"a":1}'


def test_line_that_another_tool_wrote_is_read_as_a_message() -> None:
    for data in (b'{"a":1}', b' {"a": 1}\r\n', rb'{"a":"\ud800"}'):
        message = parse(data)
        assert (message.data, message.at_ms, message.analyzer) == (data.strip(), None, "")


FLOW = b'{"UUID":"f1","Last":1800000000000,"Metric":{"ABBytes":1}}'


def test_bare_flow_is_wrapped_in_a_message() -> None:
    for flow in (FLOW, rb'{"NodeTID":"\ud800"}'):
        message = parse(flow + b"\r\n")
        assert message.data == b'{"Namespace":"flow","Type":"store","Obj":[%b]}' % flow
        assert (message.at_ms, message.kind) == (None, "flow")
    # A line of the recorder is not wrapped: it contains exactly what the analyzer sent.
    assert parse(message_line(FLOW, at_ms=BASE_MS, analyzer="a")).data == FLOW


GOOD = b'{"Namespace":"stats"}\n'
INVALID = {
    "empty": (b"", "{path} contains no messages"),
    "blank": (b"\n \n", "{path} contains no messages"),
    "other JSON objects": (
        b'{"a":1}\n{}\n',
        "{path} contains no messages and no flows, but 2 other lines",
    ),
    "not JSON": (GOOD + b"\nhost_id: a\n" + GOOD, "{path}: line 3: not a JSON object"),
    "a byte order mark": (
        b"\xef\xbb\xbf" + GOOD,
        "{path}: line 1: not a JSON object",
    ),
    "UTF-16": (GOOD.decode().encode("utf-16-le"), "{path}: line 1: not a JSON object"),
    "a list": (GOOD + b"[]\n", "{path}: line 2: not a JSON object"),
    "one unfinished line": (b'{"a"', "{path}: line 1: not a JSON object"),
    "invalid after a valid head": (
        b'{"Recorded":{"At":1,"Analyzer":"a"},"b\n',
        "{path}: line 1: not a JSON object",
    ),
    "invalid base64": (
        b'{"Recorded":{"At":1,"Analyzer":"a","Base64":"abc"}}\n',
        "{path}: line 1: invalid base64",
    ),
    "base64 after its padding": (
        b'{"Recorded":{"At":1,"Analyzer":"a","Base64":"AA==AA=="}}\n',
        "{path}: line 1: invalid base64",
    ),
    "data after base64": (
        b'{"Recorded":{"At":1,"Analyzer":"a","Base64":""}} 1\n',
        "{path}: line 1: not a JSON object",
    ),
    "a bad name": (
        b'{"Recorded":{"At":1,"Analyzer":"\xff"}}\n',
        "{path}: line 1: invalid analyzer name",
    ),
    "only a topology": (
        b'{"Recorded":{"At":1},"Topology":{"Nodes":[{"ID":"a"}]}}\n',
        "{path} contains no messages and no flows",
    ),
    "an invalid topology": (
        b'{"Recorded":{"At":1},"Topology":{"Removed":[7]}}\n' + GOOD,
        "{path}: line 1: invalid topology",
    ),
    "an unfinished topology": (
        b'{"Recorded":{"At":1},"Topology":{}x\n' + GOOD,
        "{path}: line 1: not a JSON object",
    ),
    "too many analyzers": (
        b"".join(message_line(b"{}", at_ms=1, analyzer=f"{i}") + b"\n" for i in range(65)),
        "{path} has more than 64 analyzers",
    ),
    "bad gzip": (
        gzip.compress(GOOD * 9)[:-8] + b"x" * 8,
        "{path}: line 10: invalid gzip data: CRC check failed",
    ),
    "invalid gzip header": (
        b"\x1f\x8b" + b"x" * 20,
        "{path}: line 1: invalid gzip data: Unknown compression method",
    ),
}


@pytest.mark.parametrize(("content", "problem"), INVALID.values(), ids=INVALID)
def test_error_contains_the_file_and_the_line_number(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="^" + re.escape(problem.format(path=path))) as raised:
        Recording.load(str(path))
    assert "\n" not in str(raised.value)


def test_summary_counts_kinds_of_lines(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + (FLOW + b"\n") * 2 + b'{"a":1}\n')
    loaded = Recording.load(path)
    assert (loaded.messages, loaded.flows, loaded.others) == (4, 2, 1)
    assert loaded.summary() == (
        "4 messages from 1 analyzer in 0 s; 2 of the messages are single flows;"
        " 1 of the messages has an unknown form"
    )


def test_line_length_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_LINE_BYTES", 30)
    path = write(tmp_path, GOOD + b'{"a":"' + b"x" * 30 + b'"}\n')
    with pytest.raises(ConfigError, match="line 2: longer than 30 bytes"):
        Recording.load(path)


def test_unreadable_file_is_an_error(tmp_path: Path) -> None:
    for path, problem in (("none", "No such file"), (".", "is not a regular file")):
        with pytest.raises(ConfigError, match=problem):
            Recording.load(str(tmp_path / path))


def write(directory: Path, content: bytes, name: str = "r.jsonl") -> str:
    path = directory / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_file_is_replayed_as_far_as_possible(tmp_path: Path, compressed: bool) -> None:
    content = b"".join(b'{"Namespace":"stats","n":%d}\n' % n for n in range(20_000))
    if compressed:
        content = gzip.compress(content)
    loaded = Recording.load(write(tmp_path, content[: len(content) // 2]))
    assert loaded.truncated
    assert 5_000 < loaded.messages < 15_000
    assert len(list(loaded)) == loaded.messages
    assert loaded.summary().endswith("; the file is truncated")


def test_last_line_needs_no_line_feed(tmp_path: Path) -> None:
    loaded = Recording.load(write(tmp_path, GOOD + GOOD.strip()))
    assert (loaded.messages, loaded.truncated) == (2, False)


def test_concatenated_files_are_one_recording(tmp_path: Path) -> None:
    first = message_line(b"{}", at_ms=BASE_MS, analyzer="a") + b"\n"
    second = message_line(b"{}", at_ms=BASE_MS + 7, analyzer="b") + b"\n"
    for content in (first + second, gzip.compress(first) + gzip.compress(second)):
        loaded = Recording.load(write(tmp_path, content))
        assert (loaded.analyzers, loaded.messages) == (("a", "b"), 2)
        assert loaded.last_ms - loaded.first_ms == 7


def test_replay_keeps_only_one_message_in_memory(tmp_path: Path) -> None:
    content = b'{"Namespace":"stats","text":"%b"}\n' % (b"x" * 100_000)
    path = write(tmp_path, gzip.compress(content * 300))
    tracemalloc.start()
    try:
        loaded = Recording.load(path)
        for _ in Playback(recordings=(loaded, loaded)).schedule():
            pass
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


# Sending times


def message_at(ms: int, name: str = "a", content: bytes = b"{}") -> bytes:
    return message_line(content, at_ms=BASE_MS + ms, analyzer=name) + b"\n"


def flow(*last_ms: int) -> bytes:
    flows = ",".join(f'{{"Last":{BASE_MS + ms}}}' for ms in last_ms)
    return f'{{"Namespace":"flow","Obj":[{flows}]}}\n'.encode()


def due(*paths: str, speed: float = 1) -> list[tuple[int, float]]:
    playback = Playback(recordings=tuple(map(Recording.load, paths)), speed=speed)
    return [(sending.recording, sending.due_s) for sending in playback.schedule()]


def test_recorded_intervals_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, message_at(0) + message_at(500) + message_at(500) + message_at(60_000))
    assert [s for _, s in due(path)] == [0, 0.5, 0.5, 60]
    assert [s for _, s in due(path, speed=4)] == [0, 0.125, 0.125, 15]


def test_clock_that_was_set_back_adds_no_waiting_time(tmp_path: Path) -> None:
    path = write(
        tmp_path, message_at(10_000) + message_at(11_000) + message_at(2_000) + message_at(3_000)
    )
    assert [s for _, s in due(path)] == [0, 1, 1, 2]


def test_flow_times_replace_missing_receive_times(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + flow(0, 1000) + GOOD + flow(500) + flow(3000, -9000))
    assert [s for _, s in due(path)] == [0, 0, 0, 0, 2]


def test_outlier_time_in_a_message_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, flow(0, 1000, 10**9) + flow(2000, 3000, 10**9))
    assert [s for _, s in due(path)] == [0, 2]
    path = write(tmp_path, flow(-(10**9), 0, 1000) + flow(3000))
    assert [s for _, s in due(path)] == [0, 2]
    close_path = write(tmp_path, flow(0, 0, MAX_GAP_MS, MAX_GAP_MS + 1))
    assert Recording.load(close_path).last_ms == BASE_MS + MAX_GAP_MS


def test_earlier_of_two_distant_times_is_used(tmp_path: Path) -> None:
    """The later time may be wrong. If it were used, all later messages would be sent at once."""
    path = write(tmp_path, flow(0, 10**9) + flow(2000) + flow(-(10**9), 5000) + flow(5000))
    assert [s for _, s in due(path)] == [0, 2, 2, 5]


def test_recordings_of_the_same_period_are_merged(tmp_path: Path) -> None:
    first = write(tmp_path, message_at(1000) + message_at(3000), "1")
    second = write(tmp_path, flow(0) + flow(2000), "2")
    assert due(first, second) == [(1, 0), (0, 1), (1, 2), (0, 3)]


def test_long_gap_is_shortened(tmp_path: Path) -> None:
    hour = 3_600_000
    first = write(tmp_path, message_at(0), "1")
    second = write(tmp_path, message_at(hour) + message_at(hour + 1000), "2")
    gap_s = MAX_GAP_MS / 1000
    assert due(first, second) == [(0, 0), (1, gap_s), (1, gap_s + 1)]


def test_recording_without_times_is_sent_at_once(tmp_path: Path) -> None:
    assert [s for _, s in due(write(tmp_path, GOOD * 3))] == [0, 0, 0]


def test_shift_times_changes_only_times() -> None:
    data = (
        b'{ "Start" : %d,"Last":0,"Metric":{"Last":%d},'
        b'"TCPMetric":{"ABSynStart":%d,"ABSawStart":%d},'
        b'"Text":"\\"Start\\":1800000000000","UUID":"0a","Last":18000000000000}\xff'
    )
    assert shift_times(
        data % (BASE_MS, BASE_MS + 5, BASE_MS, BASE_MS), lambda ms: ms + 7, mask=0
    ) == (data % (BASE_MS + 7, BASE_MS + 12, BASE_MS + 7, BASE_MS))


def test_messages_with_unknown_namespaces_go_to_all_subscribers() -> None:
    for data in (b"\xff", b"[]", b'{"Namespace":"topology"}', b"{}"):
        assert list(for_namespaces(data, frozenset({"flow"}))) == [data]


def test_undecodable_flow_message_goes_to_capture_subscribers() -> None:
    for rest in (b'"Obj":["\xff"]}', b'"Obj":[{"Last":1e999}]}', b'"Obj":[],"x":1e999}'):
        data = b'{"Namespace":"flow",' + rest
        assert list(for_namespaces(data, frozenset({"flow/1", "stats"}))) == [data]
    for rest in (b'"Obj":null}', b'"Type":"store"}', b'"Obj":7}'):
        assert not list(for_namespaces(b'{"Namespace":"flow",' + rest, frozenset({"flow/1"})))


def test_flows_of_a_capture_also_go_to_flow_subscribers() -> None:
    data = b'{"Namespace":"flow/1","Obj":[]}'
    for namespace, copies in (("flow", 1), ("flow/1", 1), ("flow/2", 0), ("stats", 0)):
        assert list(for_namespaces(data, frozenset({namespace}))) == [data] * copies


def test_topology_has_the_time_of_the_messages_around_it(tmp_path: Path) -> None:
    """A replay sends each update between the same messages as in the recording.

    This is true even if the clock was set back meanwhile. Updates before the first message get the
    time of this message.
    """
    update = recording.Update(removed=["x"])

    def topology(at_ms: int) -> bytes:
        return recording.topology_line(update, at_ms=BASE_MS + at_ms) + b"\n"

    def message(at_ms: int) -> bytes:
        return message_line(b"{}", at_ms=BASE_MS + at_ms, analyzer="a") + b"\n"

    lines = (topology(-9), topology(-5), message(0), topology(7), message(20), topology(10))
    path = write(tmp_path, b"".join((*lines, message(11), GOOD, topology(60))))
    loaded = Recording.load(path)
    assert (loaded.messages, loaded.updates, loaded.analyzers) == (4, 5, ("a", ""))
    assert (loaded.first_ms - BASE_MS, loaded.last_ms - BASE_MS) == (0, 21)
    assert [(at_ms - BASE_MS, message.kind[0]) for at_ms, message in loaded] == [
        *((0, "t"), (0, "t"), (0, "m"), (7, "t"), (20, "m"), (20, "t"), (21, "m"), (21, "m")),
        (70, "t"),
    ]
    playback = Playback(recordings=(loaded,))
    assert playback.first_topology() == [update, update]
    due = [round(sending.due_s * 1000) for sending in playback.schedule()]
    assert due == [0, 0, 0, 7, 20, 20, 21, 21, 70]
