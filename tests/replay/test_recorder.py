"""The recorder: its file, and its behavior after errors."""

import errno
import gzip
import json
import logging
import os
import stat
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyfast.config.yaml_nodes import ConfigError
from skyfast.replay import recorder as record
from skyfast.replay import topology
from skyfast.replay.recorder import Recorder
from skyfast.replay.recording import Recording, parse
from skyfast.skydive.topology_queries import (
    INTERFACES,
    KUBERNETES,
    KUBERNETES_EDGES,
    NAMESPACES,
    Query,
    by_pod_address,
    changes,
)
from tests.support.waiting import WAIT_S

pytestmark = pytest.mark.xdist_group("timing")

MESSAGE = b'{"Namespace":"stats","n":%d}'


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_every_message_is_recorded(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / name
    start_ms = time.time_ns() // 1_000_000
    recorder = Recorder(str(path))
    assert caplog.messages == [f"recording to {path}"]
    buffer = bytearray(MESSAGE % 1)
    recorder.message(memoryview(buffer), "a:8082")
    buffer[:] = b"x" * len(buffer)  # the buffer is reused for the next message
    recorder.message(MESSAGE % 2, "b:8082")
    recorder.message(b"\xff", "a:8082")
    recorder.stop()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")
    loaded = Recording.load(str(path))
    assert (loaded.analyzers, loaded.truncated) == (("a:8082", "b:8082"), False)
    messages = [message for _, message in loaded]
    assert [message.data for message in messages] == [MESSAGE % 1, MESSAGE % 2, b"\xff"]
    assert all(start_ms <= message.at_ms <= time.time_ns() // 1_000_000 for message in messages)
    assert caplog.messages[-1] == f"recorded 3 messages to {path}"


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name, problem in (
        ("r.jsonl", "already exists"),
        ("link", "already exists"),
        ("none/r", "cannot be written: No such file"),
    ):
        with pytest.raises(ConfigError, match=problem):
            Recorder(str(tmp_path / name))
    assert path.read_text() == "precious"
    assert not (tmp_path / "elsewhere").exists()


def test_empty_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.gz"
    Recorder(str(path)).stop()
    assert not path.exists()


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_unfinished_recording_can_be_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Because of regular flushes, the file of a killed process can be read."""
    monkeypatch.setattr(record, "FLUSH_INTERVAL_S", 0.02)
    path = tmp_path / name
    recorder = Recorder(str(path))
    recorder.message(MESSAGE % 1, "a")
    until(lambda: path.stat().st_size > 20)
    assert Recording.load(str(path)).messages == 1
    size = path.stat().st_size
    time.sleep(0.2)  # ten flush intervals without new messages
    assert path.stat().st_size == size
    recorder.stop()


def test_messages_are_compressed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FLUSH_INTERVAL_S", 0.2)
    path = tmp_path / "r.jsonl.gz"
    recorder = Recorder(str(path))
    recorder.message(MESSAGE % 0, "a")
    until(lambda: path.stat().st_size > 20)  # wait for a flush
    for n in range(5000):
        recorder.message(MESSAGE % n, "a")
    recorder.stop()
    assert Recording.load(str(path)).messages == 5001
    # With a flush after each message, the file would be about four times as large.
    assert path.stat().st_size < 5001 * 6


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_file_size_is_limited(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(record, "MAX_FILE_BYTES", 100_000)
    path = tmp_path / name
    recorder = Recorder(str(path))
    for _ in range(500):
        # Random data compresses badly.
        recorder.message(b'{"a":"%b"}' % os.urandom(500).hex().encode(), "a")
    until(lambda: "maximum size reached" in caplog.text)
    size = path.stat().st_size
    recorder.message(MESSAGE % 1, "a")
    recorder.stop()
    # The line is logged after the whole file is written, including data buffered by gzip.
    assert 90_000 < size == path.stat().st_size < 250_000
    assert 50 < Recording.load(str(path)).messages < 450


def test_full_disk_stops_only_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(record, "FLUSH_INTERVAL_S", 0.02)
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(record.os, "open", lambda *_: full)
    recorder = Recorder(str(tmp_path / "r.jsonl"))
    recorder.message(MESSAGE % 1, "a")
    until(lambda: f"stopped: {os.strerror(errno.ENOSPC)}" in caplog.text)
    recorder.message(MESSAGE % 2, "a")
    recorder.stop()
    assert "recorded" not in caplog.messages[-1]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(full)


def test_slow_disk_drops_and_counts_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(record, "MAX_QUEUED_BYTES", 1000)
    resume, started = threading.Event(), threading.Event()

    def slow(data: bytes, analyzer: str) -> tuple[bytes, str]:
        started.set()
        assert resume.wait(WAIT_S)
        return data, analyzer

    path = tmp_path / "r.jsonl"
    recorder = Recorder(str(path), message_filter=slow)
    recorder.message(b'{"a":"%b"}' % (b"x" * 5000), "a")  # the filter blocks the writer
    assert started.wait(WAIT_S)
    start_s = time.monotonic()
    for n in range(100):
        recorder.message(MESSAGE % n, "a")
    assert time.monotonic() - start_s < WAIT_S / 2
    resume.set()
    recorder.stop()
    recorded = Recording.load(str(path)).messages
    assert 20 < recorded < 60
    dropped = f"{101 - recorded} messages or topology updates dropped"
    assert f"recorded {recorded} messages to {path}; {dropped}" in caplog.messages[-1]
    assert sum(f"writing to {path} is too slow" in text for text in caplog.messages) == 1


def test_stopped_recording_keeps_no_messages_in_memory(tmp_path: Path) -> None:
    resume, message = threading.Event(), os.urandom(1000)

    def broken(*_: object) -> None:
        assert resume.wait(WAIT_S)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = sys.getrefcount(message)
    recorder = Recorder(str(tmp_path / "r.jsonl"), message_filter=broken)
    for _ in range(10):
        recorder.message(message, "a")
    assert sys.getrefcount(message) == before + 10
    resume.set()
    until(lambda: sys.getrefcount(message) == before)
    recorder.message(message, "a")
    assert sys.getrefcount(message) == before
    recorder.stop()


def test_stop_of_the_recorder_times_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(record, "STOP_TIMEOUT_S", 0.05)
    resume = threading.Event()

    def slow(data: bytes, analyzer: str) -> tuple[bytes, str]:
        assert resume.wait(WAIT_S)
        return data, analyzer

    path = tmp_path / "r.jsonl"
    recorder = Recorder(str(path), message_filter=slow)
    recorder.message(MESSAGE % 1, "a")
    recorder.stop()
    assert caplog.messages[-1] == f"{path} is incomplete: writing took too long"
    resume.set()
    until(lambda: path.stat().st_size > 0)


def test_exception_in_message_filter_stops_the_recording(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    recorder = Recorder(str(tmp_path / "r.jsonl"), message_filter=broken)
    recorder.message(MESSAGE % 1, "a")
    until(lambda: "stopped after an unhandled exception" in caplog.text)
    recorder.stop()
    assert caplog.messages[-1] == "recording stopped after an unhandled exception"


def test_messages_rejected_by_the_filter_are_omitted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "r.jsonl"
    recorder = Recorder(
        str(path), message_filter=lambda data, name: (data, name * 2) if b"1" in data else None
    )
    recorder.message(MESSAGE % 1, "a")
    recorder.message(MESSAGE % 2, "a")
    recorder.stop()
    assert json.loads(path.read_bytes())["Recorded"]["Analyzer"] == "aa"
    assert caplog.messages[-1].endswith("; 1 unreadable message omitted")


def test_stop_ends_the_thread_of_the_recorder(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path / "r.jsonl.gz"))
    recorder.message(MESSAGE % 1, "a")
    recorder.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "skyfast-record"]
    assert gzip.decompress((tmp_path / "r.jsonl.gz").read_bytes())


# Topology


def node(name: str, updated_ms: int = 1, **metadata: object) -> bytes:
    fields = {"Name": name, "Type": "pod", **metadata}
    content = {"ID": name, "Metadata": fields, "Revision": updated_ms, "UpdatedAt": updated_ms}
    return json.dumps(content).encode()


def edge(parent: str, child: str) -> bytes:
    metadata = {"RelationType": "service", "Manager": "k8s"}
    content = {"ID": f"{parent}-{child}", "Parent": parent, "Child": child, "Metadata": metadata}
    return json.dumps(content).encode()


def respond(recorder: Recorder, query: Query, *elements: bytes, complete: bool = True) -> None:
    observer = recorder.observe(query)
    for element in elements:
        observer.add(element)
    if complete:
        observer.end()


def updates(path: Path) -> list[dict[str, Any]]:
    texts = [line for line in path.read_bytes().splitlines() if b'"Topology":' in line]
    assert all(parse(text).kind == "topology" for text in texts)
    return [json.loads(text)["Topology"] for text in texts]


def names(update: dict[str, Any]) -> list[str]:
    return [each["ID"] for each in update.get("Nodes", [])]


def test_topology_is_recorded_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "r.jsonl"
    recorder = Recorder(str(path))
    respond(recorder, KUBERNETES, node("a", MAC="x"), node("b"))
    respond(recorder, KUBERNETES, node("a", 2), node("b", 3))  # only UpdatedAt has changed
    respond(recorder, KUBERNETES, node("c"), complete=False)
    respond(recorder, KUBERNETES_EDGES, edge("a", "b"))
    recorder.message(MESSAGE % 1, "a")
    respond(recorder, KUBERNETES, node("b", 4, Manager="k8s"))
    pods = by_pod_address(["10.0.0.1"])
    assert pods is not None
    respond(recorder, pods, node("d"))
    respond(recorder, changes(KUBERNETES, 7), node("e"))
    respond(recorder, KUBERNETES, node("b", 4, Manager="k8s"), node("e"))
    respond(recorder, KUBERNETES_EDGES)
    recorder.stop()
    found = updates(path)
    assert found[0] == {
        "Nodes": [
            {"ID": name, "Metadata": {"Name": name, "Type": "pod"}, "UpdatedAt": 1} for name in "ab"
        ]
    }
    edges = {"ID": "a-b", "Parent": "a", "Child": "b", "Metadata": {"RelationType": "service"}}
    assert found[1] == {"Edges": [edges]}
    assert (names(found[2]), found[2]["Removed"]) == (["b"], ["a"])
    assert [names(update) for update in found[3:5]] == [["d"], ["e"]]
    assert found[5:] == [{"Removed": ["d"]}, {"Removed": ["a-b"]}]
    assert caplog.messages[-1] == f"recorded 1 message and 7 topology updates to {path}"
    loaded = Recording.load(str(path))
    assert (loaded.messages, loaded.updates) == (1, 7)


def test_unusable_elements_are_omitted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "r.jsonl"
    recorder = Recorder(str(path))
    recorder.message(MESSAGE % 1, "a")
    deep = b'{"ID":"deep","Metadata":{"K8s":{"Labels":' + b'{"a":' * 2000 + b"1" + b"}" * 2003
    invalid = b'{"ID":"x\xff","Metadata":{"Name":"\xff","Type":[{"a":1}],"IPV4":[["a"],"b",1]}}'
    respond(
        *(recorder, INTERFACES, b"x", b"[]", b"{}", b'{"ID":7}', b'{"ID":""}', b"\xff"),
        *(b'{"ID":"m","Metadata":7}', invalid, deep, b'{"ID":"n","Metadata":{"Name":1e400}}'),
    )
    recorder.stop()
    (found,) = updates(path)
    assert found["Nodes"][:2] == [
        {"ID": "m", "Metadata": 0},
        {"ID": "x\ufffd", "Metadata": {"Name": "\ufffd", "Type": [{}], "IPV4": [[], "b", 1]}},
    ]
    assert found["Nodes"][2]["ID"] == "deep"
    assert len(json.dumps(found["Nodes"][2])) < 300
    assert "unusable nodes and edges omitted" in caplog.messages[-1]


def test_number_of_recorded_elements_is_limited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(topology, "MAX_ELEMENTS", 3)
    monkeypatch.setattr(topology, "UPDATE_BYTES", 100)
    path = tmp_path / "r.jsonl"
    recorder = Recorder(str(path))
    recorder.message(MESSAGE % 1, "a")
    respond(recorder, KUBERNETES, node("a"), node("b"))
    respond(recorder, NAMESPACES, node("c"), node("d"))
    respond(recorder, KUBERNETES, node("a"))  # removes b, so there is space for d
    respond(recorder, NAMESPACES, *map(node, "cdef"))
    recorder.stop()
    found = updates(path)
    assert [names(update) for update in found] == [["a", "b"], ["c"], [], ["d"]]
    assert caplog.messages[-1].endswith("; 3 unusable nodes and edges omitted")


def test_responses_are_dropped_if_writing_is_too_slow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "MAX_QUEUED_BYTES", 1000)
    writing = threading.Event()

    def slow(data: bytes, analyzer: str) -> tuple[bytes, str]:
        writing.wait(5)
        return data, analyzer

    path = tmp_path / "r.jsonl"
    recorder = Recorder(str(path), message_filter=slow)
    recorder.message(MESSAGE % 1, "a")
    respond(recorder, KUBERNETES, node("a" * 300))
    respond(recorder, NAMESPACES, node("b" * 300))
    writing.set()
    recorder.stop()
    assert [len(update["Nodes"]) for update in updates(path)] == [1]
    assert any("writing to" in message for message in caplog.messages)


def test_large_topology_takes_several_updates_and_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tracemalloc makes writing slow.
    monkeypatch.setattr(record, "STOP_TIMEOUT_S", 60.0)
    path = tmp_path / "r.jsonl.gz"
    recorder = Recorder(str(path))
    recorder.message(MESSAGE % 1, "a")
    elements = [node(f"pod-{n}", Name="x" * 100) for n in range(20_000)]
    tracemalloc.start()
    try:
        respond(recorder, KUBERNETES, *elements)
        recorder.stop()
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 20_000 * 400
    loaded = Recording.load(str(path))
    assert 3 <= loaded.updates <= 8
    read = [message.update() for _, message in loaded if message.kind == "topology"]
    assert sum(len(update.nodes) for update in read) == 20_000
