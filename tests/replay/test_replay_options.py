"""``--replay`` and ``--record`` with the real process."""

import asyncio
import gzip
import heapq
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from skyfast.replay.recording import Recording
from tests.model import BYTES, PACKETS, RTT, Model, read_page
from tests.support.analyzer import FakeAnalyzer
from tests.support.golden import recorded
from tests.support.model_specs import DEFAULT, ONE, TWO
from tests.support.paths import CONTAINER_TOPOLOGY, DATA, RECORDINGS, ROOT
from tests.support.process import Skyfast, replay, running


def expected(*names: str) -> dict[str, set[str]]:
    """Return the page after a replay of the recordings."""
    model = Model(DEFAULT)
    for _, _, _, flows in heapq.merge(*(recorded(name, n) for n, name in enumerate(names))):
        model.message(flows, 0)
    return model.page(0)


def all_received(messages: int) -> Callable[[Mapping[str, float]], bool]:
    def received(metrics: Mapping[str, float]) -> bool:
        return messages == sum(
            number for series, number in metrics.items() if "skyfast_messages_total{" in series
        )

    return received


async def page(skyfast: Skyfast, messages: int) -> dict[str, set[str]]:
    """Wait for ``messages`` messages, and return the page of flows."""
    await skyfast.until(all_received(messages))
    return read_page(await skyfast.get("/metrics/flows"), Model(DEFAULT).families)


async def test_recording_is_replayed_completely() -> None:
    # The silence timeout must not cause a reconnect after the end of a recording.
    short_timeout = {"SKYDIVE_PIPELINE_SUBSCRIBER_SILENCE_TIMEOUT": "0.1"}
    async with replay(RECORDINGS / ONE[0], **short_timeout) as skyfast:
        assert await page(skyfast, 50) == expected(*ONE)
        await skyfast.logged("replay finished: 50 messages")
        await asyncio.sleep(2.2)  # silence is checked every second
        metrics = await skyfast.self_metrics()
        assert metrics["skyfast_connections"] == 831
        assert not any(n for series, n in metrics.items() if "skyfast_reconnects_total{" in series)
    assert any(
        "one-analyzer.jsonl (50 messages from 1 analyzer in 139 s)" in line for line in skyfast.log
    )


async def test_two_recordings_replay_as_two_analyzers(tmp_path: Path) -> None:
    packed = tmp_path / "b.gz"
    packed.write_bytes(gzip.compress((RECORDINGS / TWO[1]).read_bytes()))
    async with replay(RECORDINGS / TWO[0], packed, "--replay-speed=60") as skyfast:
        replayed = await page(skyfast, 37 + 33)
        metrics = await skyfast.self_metrics()
    assert metrics["skyfast_connections"] == 530
    # RTT values depend on the order of messages, which is undefined on two sockets.
    original = expected(*TWO)
    assert {name: replayed[name] for name in (BYTES, PACKETS)} == {
        name: original[name] for name in (BYTES, PACKETS)
    }
    assert len(replayed[RTT]) == len(original[RTT])
    flows = {
        series: n for series, n in metrics.items() if series.startswith("skyfast_flows_total{")
    }
    assert flows == {
        'skyfast_flows_total{analyzer="two-analyzers-a.jsonl"}': 710,
        'skyfast_flows_total{analyzer="b.gz"}': 459,
    }
    assert any("subscribing to two-analyzers-a.jsonl, b.gz with" in line for line in skyfast.log)


async def test_unusual_messages_are_replayed_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    flow = (
        b'{"UUID":"a","Network":{"A":"10.0.0.1","B":"10.0.0.2"},"Metric":{"ABBytes":7},'
        b'"Transport":{"Protocol":"TCP","A":1,"B":2},"Start":1,"Last":2,"NodeTID":"n"}'
    )
    lines = (
        b'{"Recorded":{"At":1800000000000,"Analyzer":"a:8082","Base64":"AP8="}}',
        b'{"Recorded":{"At":1800000000001,"Analyzer":"b:8082"},"Namespace":"topology","Type":"x"}',
        b'{"Recorded":{"At":1800000000002,"Analyzer":"b:8082"}}',
        b'{"Recorded":{"At":1800000000003,"Analyzer":"a:8082"},'
        + b'"Namespace":"flow/9","Type":"store","Obj":[%b]}' % flow,
    )
    path.write_bytes(b"\n".join(lines))
    async with replay(path, quiet=False) as skyfast:
        metrics = await skyfast.until(all_received(3))
        assert metrics["skyfast_connections"] == 1
        errors = [n for series, n in metrics.items() if 'reason="malformed"' in series and n]
        assert errors == [1]
        series = read_page(await skyfast.get("/metrics/flows"), Model(DEFAULT).families)
        assert any(line.endswith(" 7") for line in series[BYTES])
    assert any("from 2 analyzers" in line for line in skyfast.log)


async def test_bare_flows_are_replayed() -> None:
    path = DATA / "flows/bare-flows.jsonl"
    done = run("--check", "--replay", path)
    assert done.returncode == 0
    assert "3 messages from 1 analyzer in 0 s; 3 of the messages are single flows" in done.stdout
    async with replay(path) as skyfast:
        metrics = await skyfast.until(all_received(3))
        assert metrics["skyfast_connections"] == 3
        series = read_page(await skyfast.get("/metrics/flows"), Model(DEFAULT).families)
        values = sorted(line.rpartition(" ")[2] for line in series[BYTES])
        assert values == ["10"] * 3 + ["20"] * 3


NETWORK_NAMESPACE = ("unshare", "--net", "--map-root-user")


def has_network_namespaces() -> bool:
    try:
        return subprocess.run([*NETWORK_NAMESPACE, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(
    not has_network_namespaces(), reason="this user cannot create network namespaces"
)
@pytest.mark.parametrize("arguments", [["--demo"], ["--replay", RECORDINGS / ONE[0]]])
def test_missing_loopback_address_is_reported_in_one_line(arguments: list[object]) -> None:
    done = subprocess.run(
        [*NETWORK_NAMESPACE, sys.executable, "-m", "skyfast", *map(str, arguments)],
        env={**os.environ, "SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=20,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = (line for line in done.stderr.splitlines() if " INFO " not in line)
    assert re.search(r"cannot replay recordings: 127\.0\.0\.1: [A-Z].+; ::1: [A-Z]", line)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_replay_works_with_ipv6_only() -> None:
    """The IPv4 loopback address is replaced with one that no interface has."""
    code = (
        "import sys; from skyfast import cli; from skyfast.replay import player;"
        "player.LOOPBACKS = ('192.0.2.1', '::1'); sys.exit(cli.main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "--demo"],
        env={**os.environ, "SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PORT": "0"},
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stderr is not None
        lines = []
        try:
            for line in process.stderr:
                lines.append(line)
                if "subscribed to" in line or "Traceback" in line:
                    break
            assert "analyzer 127.0.0.1:2808" in lines[-1]
            assert any(" is replayed at [::1]:" in line for line in lines)
        finally:
            process.terminate()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "skyfast", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("check", [["--check"], []])
def test_invalid_recording_is_reported_in_one_line(tmp_path: Path, check: list[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"Namespace":"stats"}\nhost_id: me\n')
    done = run(*check, "--replay", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"skyfast: {path}: line 2: not a JSON object\n"


@pytest.mark.parametrize("name", ["my.yml", "my.YAML"])
@pytest.mark.parametrize("check", [["--check"], []])
def test_configuration_file_after_the_option_replay_is_rejected(
    tmp_path: Path, name: str, check: list[str]
) -> None:
    path = tmp_path / name
    path.write_text("host_id: me\n")
    done = run(*check, "--replay", RECORDINGS / TWO[0], path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"skyfast: {path}: line 1: not a JSON object;"
        " a configuration file must come before --replay\n"
    )


def test_option_check_summarizes_recordings() -> None:
    done = run("--check", "--replay", *(RECORDINGS / name for name in TWO))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    first, a, b = lines[0], *(line for line in lines if line.startswith("# Recording "))
    recordings = ", ".join(str(RECORDINGS / name) for name in TWO)
    assert first == f"# Replaying {recordings} instead of subscribing."
    assert "analyzers: []" in done.stdout
    assert ":8082" not in done.stdout
    assert a.endswith("two-analyzers-a.jsonl: 37 messages from 1 analyzer in 120 s.")
    assert b.endswith("two-analyzers-b.jsonl: 33 messages from 1 analyzer in 120 s.")


def numbers(page: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Map each family on a page to its sorted values, without labels."""
    return {name: sorted(line.rpartition(" ")[2] for line in page[name]) for name in page}


async def test_replayed_recording_gives_the_same_page(tmp_path: Path) -> None:
    path = tmp_path / "bug.jsonl"
    async with replay(RECORDINGS / ONE[0], f"--record={path}") as skyfast:
        first = await page(skyfast, 50)
    assert any(line.endswith(f"recorded 50 messages to {path}") for line in skyfast.log)
    async with replay(path, "--replay-speed=1") as skyfast:
        assert await page(skyfast, 50) == first == expected(*ONE)


async def test_anonymized_recording_gives_the_same_totals(tmp_path: Path) -> None:
    path = tmp_path / "bug.jsonl.gz"
    recordings = [RECORDINGS / name for name in TWO]
    async with replay(*recordings, f"--record={path}", "--record-anonymous") as skyfast:
        first = await page(skyfast, 37 + 33)
        connections = (await skyfast.self_metrics())["skyfast_connections"]
    assert path.stat().st_mode & 0o777 == 0o600
    text = gzip.decompress(path.read_bytes())
    # Recorded addresses, and the start of a UUID. A random pseudonym hardly ever matches.
    assert not re.search(rb"\b10\.(?:77|99)\.0\.[12]\b|\bfd77::[12]\b|dfb29c54-c71c", text)
    async with replay(path, "--replay-speed=1") as skyfast:
        second = await page(skyfast, 37 + 33)
        metrics = await skyfast.self_metrics()
    assert metrics["skyfast_connections"] == connections == 530
    assert numbers(second) == numbers(first)
    assert not set(first[BYTES]) & set(second[BYTES])
    assert any("from 2 analyzers" in line for line in skyfast.log)


NAMED = """
pipeline:
  subscriber: {{urls: ["{url}"]}}
  store:
    prom_sky_con:
      port: 0
      listen_address: 127.0.0.1
      connection_timeout: 600
      labels: [initiator_name, initiator_pod, target_name, target_ip, target_port, protocol,
               direction, node_tid, node_netns, {{name: app, k8s_label: app}}]
"""
FAST = ("--replay-speed=300", "--replay")
DEMO = ROOT / "skyfast" / "data" / "recording.jsonl.gz"


SECRET = re.compile(
    # Addresses, UUIDs, container IDs, and names in the demo.
    rb"\b10\.\d+\.\d+\.\d+|\b(?:172|192)\.\d+\.\d+\.\d+|fd7[78]:[0-9a-f:]+|[0-9a-f]{64}"
    rb"|[0-9a-f]{2}(?::(?!ff:ff)[0-9a-f]{2}){5}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    rb"|\b(?:shop|default|kube-system|ag1|node-1|labcluster|web|client|db|h[12]|n[123]|v[12]|vx[12])\b"
    # More names, but not after a letter or digit: a random pseudonym can end with "api".
    rb"|(?<![0-9a-z])(?:frontend|cart|coredns|api|cache|kube-proxy|kube-dns|nginx|sidecar)[\w-]*"
)


def recorded_messages() -> list[bytes]:
    return [message.data for _, message in Recording.load(str(DEMO)) if message.kind == "message"]


async def flows_page(skyfast: Skyfast, messages: int) -> list[str]:
    """Wait for ``messages`` messages, and return the samples of flows."""
    await skyfast.until(all_received(messages))
    lines = (await skyfast.get("/metrics/flows")).decode().splitlines()
    return sorted(line for line in lines if line.startswith("skydive_network_connection"))


async def test_replayed_topology_gives_the_same_names(tmp_path: Path) -> None:
    path, config = tmp_path / "bug.jsonl", tmp_path / "names.yml"
    messages = recorded_messages()
    async with FakeAnalyzer() as analyzer:
        (analyzer.graph,) = json.loads((CONTAINER_TOPOLOGY / "graph.json").read_bytes())
        config.write_text(NAMED.format(url=analyzer.url))
        async with running(config, f"--record={path}") as skyfast:
            await analyzer.subscriber()
            for message in messages:
                await analyzer.send(message.decode())
            first = await flows_page(skyfast, len(messages))
    assert any('initiator_name="shop/api"' in line and 'app="api"' in line for line in first)
    assert any("and 5 topology updates to" in line for line in skyfast.log)
    async with running(config, *FAST, str(path)) as skyfast:
        assert await flows_page(skyfast, len(messages)) == first
    again = tmp_path / "again.jsonl"
    # The topology is recorded, although this configuration needs no names.
    async with replay(path, f"--record={again}", quiet=False) as skyfast:
        await skyfast.until(all_received(len(messages)))
    lines = [
        [line for line in file.read_bytes().splitlines() if b'"Topology":' in line]
        for file in (path, again)
    ]
    assert [line.partition(b"}")[2] for line in lines[0]] == [
        line.partition(b"}")[2] for line in lines[1]
    ]


async def test_anonymized_recording_has_no_names_but_the_same_connections(tmp_path: Path) -> None:
    path, config = tmp_path / "bug.jsonl.gz", tmp_path / "names.yml"
    config.write_text(NAMED.format(url="ws://127.0.0.1:9/ws/subscriber/flow"))
    async with replay(DEMO, f"--record={path}", "--record-anonymous", quiet=False) as skyfast:
        await skyfast.until(all_received(117))
    text = gzip.decompress(path.read_bytes())
    secrets = set(SECRET.findall(gzip.decompress(DEMO.read_bytes())))
    assert {b"shop", b"frontend-7d9f8b6c5d-x2x4q", b"10.78.0.11", b"coredns"} <= secrets
    assert not secrets & set(SECRET.findall(text))
    pages = []
    for recorded_path in (DEMO, path):
        async with running(config, *FAST, str(recorded_path)) as skyfast:
            pages.append(await flows_page(skyfast, 117))
    assert len(pages[0]) == len(pages[1])
    assert not {*pages[0]} & {*pages[1]}
    # Equal names have equal pseudonyms, and empty names stay empty.
    for label in ("initiator_name", "initiator_pod", "target_name", "node_netns", "app"):
        counts = [
            sorted(Counter(re.findall(rf'\b{label}="([^"]*)"', "\n".join(page))).items())
            for page in pages
        ]
        assert sorted(n for _, n in counts[0]) == sorted(n for _, n in counts[1])
        assert dict(counts[0]).get("") == dict(counts[1]).get("")


def test_record_does_not_overwrite_a_file(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    done = run("--demo", f"--record={path}")
    assert done.returncode == 2
    assert done.stderr.endswith(f"skyfast: '{path}' already exists and is not overwritten\n")
    assert path.read_text() == "precious"
