"""The messages and the topology of a replay, and its server."""

import asyncio
import gzip
import itertools
import json
import logging
import re
import time
import urllib.request
from collections import defaultdict
from contextlib import asynccontextmanager

import pytest
import websockets

from skyfast.replay import recording
from skyfast.replay.player import ReplayServer
from skyfast.replay.recording import Playback, Recording, for_namespaces
from skyfast.replay.topology import ReplayedTopology, add_to_counters, selected
from skyfast.skydive.topology_queries import (
    EDGES,
    INTERFACES,
    KUBERNETES,
    KUBERNETES_EDGES,
    NAMED_INTERFACES,
    NAMESPACES,
    by_pod_address,
    changes,
)
from tests.support.paths import CONTAINER_TOPOLOGY, RECORDINGS

STARTED_MS = 1_800_000_000_000
COUNTERS = ("ABPackets", "ABBytes", "BAPackets", "BABytes")
LOOP_S = 30.0

FLOWS = {"one analyzer": 858, "demo": 70}
CONNECTIONS = {"one analyzer": 831, "demo": 41}


def one_analyzer():
    loaded = Recording.load(str(RECORDINGS / "one-analyzer.jsonl"))
    return Playback(recordings=(loaded,), speed=5, loop_s=LOOP_S)


PLAYBACKS = {"one analyzer": one_analyzer(), "demo": recording.demo()}


@pytest.fixture(params=PLAYBACKS)
def name(request):
    return request.param


@pytest.fixture
def playback(name):
    return PLAYBACKS[name]


def play(playback, loops):
    """Return the messages of the first ``loops`` loops, each with its sending time in seconds."""
    return [
        (sending.due_s, json.loads(sending.data(STARTED_MS)))
        for loop in range(loops)
        for sending in messages(playback, loop)
    ]


def messages(playback, loop):
    return [sent for sent in playback.schedule(loop) if sent.message.kind == "message"]


def reports(messages):
    """Return the flows of ``messages``, each with its sending time."""
    return [
        (sent_s, flow)
        for sent_s, message in messages
        if message["Type"] == "store"
        for flow in message["Obj"]
    ]


def labels(flow):
    network, transport = flow["Network"], flow["Transport"]
    addresses = (network["A"], network["B"], transport["A"], transport["B"])
    return (*addresses, transport["Protocol"], flow["NodeTID"])


def connections(messages):
    """Map each connection to its reports: pairs of the sending time and the counters' growth."""
    totals = defaultdict(lambda: dict.fromkeys(COUNTERS, 0))
    increases = defaultdict(list)
    for sent_s, flow in reports(messages):
        if "Network" in flow and "Transport" in flow:
            previous, current = totals[flow["UUID"]], flow["Metric"]
            delta = sum(current[name] - previous[name] for name in COUNTERS)
            previous.update((name, current[name]) for name in COUNTERS)
            increases[labels(flow)].append((sent_s, delta))
    return increases


def graph_of_containers():
    (graph,) = json.loads((CONTAINER_TOPOLOGY / "graph.json").read_bytes())
    return graph


def test_demo_has_the_topology_of_its_containers_and_pods():
    """The demo contains only the fields that skyfast reads."""
    graph = graph_of_containers()
    recorded = {each["ID"]: each for each in (*graph["Nodes"], *graph["Edges"])}
    updates = recording.demo().first_topology()
    elements = [
        json.loads(bytes(raw)) for update in updates for raw in (*update.nodes, *update.edges)
    ]
    assert len({element["ID"] for element in elements}) == len(elements) == 256

    def is_part(part, whole):
        if isinstance(part, dict):
            return all(is_part(value, whole[key]) for key, value in part.items())
        if isinstance(part, list):
            return len(part) == len(whole) and all(map(is_part, part, whole))
        return part == whole

    for element in elements:
        assert is_part(element, recorded[element["ID"]])
        assert not {"MAC", "Features", "Path", "Image"} & element["Metadata"].keys()
    nodes = {element["Metadata"].get("TID") for element in elements}
    assert {flow["NodeTID"] for _, flow in reports(play(recording.demo(), 1))} <= nodes


def test_messages_are_sent_after_the_times_that_they_contain(playback):
    for sent_s, flow in reports(play(playback, 2)):
        sent_ms = STARTED_MS + sent_s * 1000
        for times in (flow, flow["Metric"], flow["LastUpdateMetric"]):
            assert times["Start"] <= times["Last"] <= sent_ms


def test_flows_start_shortly_before_their_reports_are_sent(playback):
    for sent_s, flow in reports(play(playback, 3)):
        age_s = (STARTED_MS + sent_s * 1000 - flow["Start"]) / 1000
        assert 0 <= age_s <= 43


def test_messages_are_sent_in_order_without_long_gaps(playback):
    sent = [sent_s for sent_s, _ in play(playback, 3)]
    assert sent == sorted(sent)
    assert max(after - before for before, after in itertools.pairwise(sent)) <= 5
    statistics = [s for s, message in play(playback, 3) if message["Type"] == "stats"]
    assert max(after - before for before, after in itertools.pairwise(statistics)) <= 6


def test_each_loop_has_its_own_flows(name, playback):
    loops = [
        {flow["UUID"] for _, flow in reports(play(playback, 1))},
        {flow["UUID"] for _, flow in reports(play(playback, 2))},
        {flow["UUID"] for _, flow in reports(play(playback, 3))},
    ]
    assert [len(flows) for flows in loops] == [FLOWS[name] * n for n in (1, 2, 3)]
    for uuid in loops[2]:
        assert uuid == f"{int(uuid, 16):x}"
        assert int(uuid, 16) < 2**64


def test_tunnel_flow_keeps_its_outer_flow():
    for loop in range(2):
        sent = [
            (0.0, json.loads(sending.data(STARTED_MS)))
            for sending in messages(one_analyzer(), loop)
        ]
        flows = {flow["UUID"] for _, flow in reports(sent)}
        parents = {flow["ParentUUID"] for _, flow in reports(sent)} - {""}
        assert parents
        assert parents <= flows


def test_first_update_of_each_flow_equals_its_total():
    seen = set()
    for _, flow in reports(play(one_analyzer(), 2)):
        if flow["UUID"] not in seen:
            seen.add(flow["UUID"])
            assert flow["LastUpdateMetric"]["Start"] == flow["Start"]
            for name in COUNTERS:
                assert flow["LastUpdateMetric"][name] == flow["Metric"][name]


def test_values_except_times_and_uuids_are_sent_as_recorded(playback):
    def without_times_and_ids(message):
        message.pop("UUID")
        for flow in message["Obj"] if message["Type"] == "store" else ():
            for name in ("UUID", "ParentUUID"):
                del flow[name]
            for times in (flow, flow["Metric"], flow["LastUpdateMetric"]):
                del times["Start"], times["Last"]
            for name in [name for name in flow.get("TCPMetric") or () if name.endswith("Start")]:
                del flow["TCPMetric"][name]
        return message

    for sending in messages(playback, 7):
        recorded = json.loads(sending.message.data)
        assert without_times_and_ids(json.loads(sending.data(STARTED_MS))) == without_times_and_ids(
            recorded
        )


def test_connections_never_end_and_grow_every_minute(playback):
    """``rate(...[1m])`` must not be 0: with scrapes every 15 s, it compares samples 45 s apart."""
    loops = 4
    for connection_reports in connections(play(playback, loops)).values():
        assert all(delta >= 0 for _, delta in connection_reports)
        increased_s = [sent_s for sent_s, delta in connection_reports if delta]
        gaps = [after - before for before, after in itertools.pairwise(increased_s)]
        assert max(gaps) < 45
        assert increased_s[0] < playback.loop_s
        assert increased_s[-1] > (loops - 1) * playback.loop_s - 1


@pytest.mark.xdist_group("timing")
def test_number_of_connections_is_constant_and_some_grow_within_three_seconds(name, playback):
    assert len(connections(play(playback, 3))) == CONNECTIONS[name]
    assert len(connections(play(playback, 1))) == CONNECTIONS[name]
    early = [
        [sent_s for sent_s, delta in connection_reports if delta and sent_s < 3]
        for connection_reports in connections(play(playback, 1)).values()
    ]
    assert max(map(len, early)) >= 2


def test_messages_are_filtered_by_namespace():
    sent = [message for _, message in play(one_analyzer(), 1)]

    def received(*namespaces):
        return [
            json.loads(copy)
            for message in sent
            for copy in for_namespaces(json.dumps(message).encode(), frozenset(namespaces))
        ]

    both = received("flow", "stats")
    assert both == sent
    assert {message["Type"] for message in received("stats")} == {"stats"}
    assert {message["Type"] for message in received("flow")} == {"store"}
    assert received("topology") == []
    all_flows = [flow for message in received("flow") for flow in message["Obj"]]
    capture = all_flows[-1]["CaptureID"]
    capture_messages = received(f"flow/{capture}")
    assert {message["Namespace"] for message in capture_messages} == {f"flow/{capture}"}
    assert [flow for message in capture_messages for flow in message["Obj"]] == [
        flow for flow in all_flows if flow["CaptureID"] == capture
    ]
    assert received("flow/none") == []
    assert len(received("flow", f"flow/{capture}")) == len(received("flow")) + len(capture_messages)


def test_interface_counters_of_the_demo_grow_by_the_same_amount_in_each_loop():
    """Each loop starts with the last values of the previous loop."""
    playback, topology = recording.demo(), ReplayedTopology()
    ends = []
    for loop in range(4):
        if loop:
            topology.rewind()
        totals = received_bytes(topology)
        for scheduled in playback.schedule(loop):
            if scheduled.message.kind == "topology":
                topology.apply(scheduled.message.update())
                now = received_bytes(topology)
                for name, total in totals.items():
                    assert now[name] >= total
                totals = now
        ends.append(totals)
    growth = [
        {name: after[name] - before[name] for name in before}
        for before, after in itertools.pairwise(ends)
    ]
    assert growth[0] == growth[1] == growth[2]
    assert 20e6 < growth[0]["v2"] < 25e6
    (host,) = (name for name, total in ends[0].items() if total > 10**9)
    assert growth[0][host] == 0


def received_bytes(topology):
    """Map interfaces to received bytes.

    The key is the name, or the ID for eth0, because many containers have an interface eth0.
    """
    offsets, totals = topology.offsets(), {}

    def present(node):
        add_to_counters(node, offsets.get(node["ID"], {}))

    for node in json.loads(selected(topology.elements(INTERFACES), INTERFACES, present)):
        metadata = node["Metadata"]
        name = metadata["Name"] if metadata["Name"] != "eth0" else node["ID"]
        totals[name] = metadata.get("Metric", {}).get("RxBytes", 0)
    return totals


# Server


@asynccontextmanager
async def served(playback=None):
    player = ReplayServer(playback or one_analyzer())
    endpoint, *_ = await player.start()
    try:
        yield player, endpoint.port
    finally:
        await player.stop()


def subscribe(port, *namespaces, **options):
    return websockets.connect(
        f"ws://127.0.0.1:{port}/ws/subscriber/flow",
        additional_headers=[
            ("X-Host-ID", "test"),
            ("X-Client-Type", "skyfast"),
            *(("X-Websocket-Namespace", namespace) for namespace in namespaces),
        ],
        compression=None,
        proxy=None,
        **options,
    )


@pytest.mark.xdist_group("timing")
async def test_flow_grows_within_five_seconds_of_the_start():
    async with served() as (_, port), asyncio.timeout(5):
        start_ms = time.time() * 1000
        totals = defaultdict(set)
        async with subscribe(port, "flow", "stats") as socket:
            assert socket.response.headers["X-Host-ID"] == "one-analyzer.jsonl"
            assert socket.response.headers["X-Service-Type"] == "analyzer"
            while not any(len(values) > 1 for values in totals.values()):
                text = await socket.recv()
                assert isinstance(text, str)
                for flow in json.loads(text)["Obj"] if '"store"' in text else ():
                    assert start_ms - 10_000 < flow["Last"] <= time.time() * 1000
                    totals[flow["UUID"]].add(flow["Metric"]["ABBytes"])


async def test_namespace_is_read_from_headers_and_query():
    async with served() as (_, port), asyncio.timeout(5):
        async with subscribe(port, "stats") as socket:
            assert json.loads(await socket.recv())["Namespace"] == "stats"
        query = f"ws://127.0.0.1:{port}/ws/subscriber/flow?x-websocket-namespace=stats"
        async with websockets.connect(query, proxy=None) as socket:
            assert json.loads(await socket.recv())["Namespace"] == "stats"


async def test_later_subscriber_receives_the_current_loop():
    async with served() as (_, port), asyncio.timeout(5), subscribe(port, "flow") as first:
        first_message = await first.recv()
        async with subscribe(port, "flow") as second:
            later_message = await second.recv()
            assert later_message != first_message
            while await first.recv() != later_message:
                pass


async def test_server_sends_pings(monkeypatch):
    monkeypatch.setattr("skyfast.replay.player.PING_INTERVAL_S", 0.05)
    pinged = asyncio.Event()

    class Client(websockets.ClientConnection):
        def process_event(self, event):
            if getattr(event, "opcode", None) == websockets.frames.Opcode.PING:
                pinged.set()
            super().process_event(event)

    async with served() as (_, port), subscribe(port, "flow", create_connection=Client):
        await asyncio.wait_for(pinged.wait(), 2)


async def test_stop_closes_subscriptions_and_the_port():
    player = ReplayServer(one_analyzer())
    (endpoint,) = await player.start()
    port = endpoint.port
    async with subscribe(port, "stats") as socket:
        await socket.recv()
        async with asyncio.timeout(2):
            await player.stop()
            with pytest.raises(websockets.ConnectionClosed) as closed:
                while True:
                    await socket.recv()
        assert closed.value.rcvd.code == 1001
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)


async def logged(caplog, count):
    while True:
        if len(caplog.messages) >= count:
            return
        await asyncio.sleep(0.01)


def stats(n, analyzer="a"):
    data = b'{"Namespace":"stats","n":%d}' % n
    return recording.message_line(data, at_ms=n, analyzer=analyzer) + b"\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (stats(1) + stats(2, "b"), "unexpected analyzer b"),
        (stats(1) + b"x\n", "line 2: not a JSON object"),
    ],
    ids=["another analyzer", "invalid line"],
)
async def test_changed_file_stops_the_replay_and_is_logged(tmp_path, caplog, content, problem):
    path = tmp_path / "r.jsonl"
    path.write_bytes(stats(1) + stats(2))
    player = ReplayServer(recording.Playback(recordings=(recording.Recording.load(str(path)),)))
    path.write_bytes(content)
    (endpoint,) = await player.start()
    try:
        async with asyncio.timeout(5), subscribe(endpoint.port) as socket:
            assert json.loads(await socket.recv())["n"] == 1
            await logged(caplog, 1)
    finally:
        await player.stop()
    assert caplog.messages == [f"a recording changed during the replay: {path}: {problem}"]


async def test_end_of_replay_is_logged_with_its_duration(tmp_path, caplog):
    caplog.set_level(logging.INFO, "skyfast.player")
    path = tmp_path / "r.jsonl"
    path.write_bytes(stats(1) + stats(2) + stats(1002))
    player = ReplayServer(recording.Playback(recordings=(recording.Recording.load(str(path)),)))
    (endpoint,) = await player.start()
    try:
        async with asyncio.timeout(5), subscribe(endpoint.port) as socket:
            assert [json.loads(await socket.recv())["n"] for _ in range(3)] == [1, 2, 1002]
            await logged(caplog, 2)
    finally:
        await player.stop()
    begin, end = caplog.messages
    assert begin == (
        f"replaying {path} (3 messages from 1 analyzer in 1 s);"
        f" a is replayed at {endpoint.authority}"
    )
    assert re.fullmatch(r"replay finished: 3 messages in [1-9] s", end)


async def test_endpoints_have_their_recorded_names_and_duplicates_get_a_number(tmp_path):
    contents = {
        "x": stats(1, "a (2)") + stats(2),
        "y": stats(1),
        "z": b'{"Namespace":"stats"}\n',
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    recordings = tuple(recording.Recording.load(str(tmp_path / name)) for name in contents)
    names = []
    for _ in range(2):
        player = ReplayServer(recording.Playback(recordings=recordings))
        try:
            endpoints = await player.start()
        finally:
            await player.stop()
        assert [endpoint.authority for endpoint in endpoints] == [
            f"{endpoint.host}:{endpoint.port}" for endpoint in endpoints
        ]
        names.append([endpoint.name for endpoint in endpoints])
    # The names do not depend on the random ports.
    assert names[0] == names[1]
    assert sorted(names[0]) == ["a", "a (2)", "a (3)", "z"]


async def test_exception_in_the_player_is_logged_at_once(monkeypatch, caplog):
    monkeypatch.setattr("skyfast.replay.player.for_namespaces", lambda *_: 1 / 0)
    async with served() as (_, port), asyncio.timeout(5), subscribe(port):
        await logged(caplog, 1)
    assert caplog.messages == ["replay stopped after an unhandled exception"]


def ask(port, body, **headers):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/topology", data=body, headers=headers
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.headers, answer.read()


def query(port, gremlin):
    return json.loads(ask(port, json.dumps({"GremlinQuery": gremlin}).encode())[1])


async def test_demo_answers_queries_and_its_counters_grow():
    body = json.dumps({"GremlinQuery": INTERFACES.gremlin}).encode()
    async with served(recording.demo()) as (player, port):
        other = list(player._analyzers.values())[1]
        async with subscribe(port, "stats") as socket, asyncio.timeout(10):
            other.subscribed.set()
            await socket.recv()
            first = json.loads((await asyncio.to_thread(ask, port, body))[1])
            grown = set()
            while not grown >= {"v1", "v2"}:
                headers, packed = await asyncio.to_thread(
                    ask, port, body, **{"Accept-Encoding": "gzip"}
                )
                assert headers["Content-Encoding"] == "gzip"
                second = json.loads(gzip.decompress(packed))
                before = {node["ID"]: node["Metadata"].get("Metric") for node in first}
                grown = {
                    node["Metadata"]["Name"]
                    for node in second
                    if node["Metadata"].get("Metric") != before[node["ID"]]
                }
                await asyncio.sleep(0.05)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            await asyncio.to_thread(ask, port, b'{"GremlinQuery": "G.V()"}')
        with pytest.raises(urllib.error.HTTPError, match="400"):
            await asyncio.to_thread(ask, port, b"\xff[")
    assert all(abs(node["UpdatedAt"] / 1000 - time.time()) < 10 for node in second)


async def test_counters_continue_in_the_next_loop(tmp_path):
    base_ms = 1_700_000_000_000

    def interface(total):
        metric = {"RxBytes": total, "TxBytes": None}
        metadata = {"Name": "eth0", "EncapType": "ether", "Metric": metric}
        return {"ID": "a", "UpdatedAt": 1, "Metadata": metadata}

    path = tmp_path / "r.jsonl"
    path.write_bytes(
        update(base_ms, interface(1000))
        + stats(base_ms)
        + update(base_ms + 100, interface(1700))
        + stats(base_ms + 100)
    )
    loaded = Recording.load(str(path))
    totals = []
    playback = Playback(recordings=(loaded,), loop_s=0.2)
    async with served(playback) as (_, port), asyncio.timeout(10), subscribe(port):
        while not totals or totals[-1] < 1000 + 5 * 700:
            (node,) = await asyncio.to_thread(query, port, INTERFACES.gremlin)
            assert node["Metadata"]["Metric"]["TxBytes"] is None
            assert abs(node["UpdatedAt"] / 1000 - time.time()) < 5
            totals.append(node["Metadata"]["Metric"]["RxBytes"])
    assert totals == sorted(totals)
    assert {(total - 1000) % 700 for total in totals} == {0}


QUERIES = (
    *(INTERFACES, NAMED_INTERFACES, NAMESPACES, KUBERNETES, EDGES, KUBERNETES_EDGES),
    by_pod_address(["10.78.0.11", "172.31.255.7", "192.0.2.200"]),
)


@pytest.mark.parametrize("asked", QUERIES, ids=lambda asked: asked.gremlin[:40])
async def test_all_queries_are_answered_from_the_topology(asked):
    graph = graph_of_containers()
    elements = graph["Edges" if asked.edges else "Nodes"]
    async with served(recording.demo()) as (_, port):
        answer = await asyncio.to_thread(query, port, asked.gremlin)
    expected = {element["ID"] for element in elements if asked.matches(element)}
    assert expected
    assert {element["ID"] for element in answer} == expected


def pod(name, updated_ms):
    return {
        "ID": name,
        "UpdatedAt": updated_ms,
        "Metadata": {"Type": "pod", "K8s": {"Name": name}},
    }


def update(at_ms, *nodes, removed=()):
    content = {"Nodes": [*nodes], "Removed": [*removed]}
    text = json.dumps({"Recorded": {"At": at_ms}, "Topology": content}, separators=(",", ":"))
    return text.encode() + b"\n"


async def test_topology_changes_as_in_the_recording(tmp_path):
    base_ms = 1_700_000_000_000
    path = tmp_path / "r.jsonl"
    path.write_bytes(
        update(base_ms - 60_000, pod("a", base_ms - 70_000), pod("b", base_ms - 80_000))
        + stats(base_ms)
        + stats(base_ms + 1000)
        + update(base_ms + 1000, pod("c", base_ms + 900), 7, {"ID": 5}, removed=["b", "x"])
        + stats(base_ms + 1001)
    )
    loaded = Recording.load(str(path))
    assert (loaded.messages, loaded.updates, loaded.analyzers) == (3, 2, ("a",))
    assert loaded.summary() == "3 messages from 1 analyzer in 1 s; 2 topology updates"
    updates = []
    player = ReplayServer(Playback(recordings=(loaded,)), observe=updates.append)
    (endpoint,) = await player.start()
    try:
        port = endpoint.port
        before = await asyncio.to_thread(query, port, KUBERNETES.gremlin)
        started_ms = time.time() * 1000
        assert len(updates) == 1
        async with asyncio.timeout(5), subscribe(port) as socket:
            assert [json.loads(await socket.recv())["n"] - base_ms for _ in range(3)] == [
                *(0, 1000, 1001)
            ]
        after = await asyncio.to_thread(query, port, KUBERNETES.gremlin)
        since = changes(KUBERNETES, round(started_ms) - 5_000)
        changed = await asyncio.to_thread(query, port, since.gremlin)
    finally:
        await player.stop()
    assert [node["ID"] for node in before] == ["a", "b"]
    assert [node["ID"] for node in after] == ["a", "c"]
    assert [node["ID"] for node in changed] == ["c"]
    assert len(updates) == 2
    # All times are shifted so that the first message gets the start time of the replay.
    updated_ms = [node["UpdatedAt"] for node in after]
    assert updated_ms[1] - updated_ms[0] == 70_900
    assert abs(updated_ms[1] - 900 - started_ms) < 2_000
