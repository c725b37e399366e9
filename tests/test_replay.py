"""Recordings of real analyzers, replayed to the running process: its page, value by value.

The page is compared with the model, and with the files under ``golden/``, which
``UPDATE_GOLDEN=1`` writes anew.
"""

import asyncio
import heapq
import itertools
import json
import os
import re
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.analyzer import Answer, FakeAnalyzer
from tests.model import (
    BYTES,
    FAMILIES,
    INTERFACE_FAMILIES,
    PACKETS,
    RTT,
    Model,
    escape,
    interface_page,
    read_page,
)
from tests.process import running

HERE = Path(__file__).parent
DATA = HERE / "data" / "recordings"
GOLDEN = HERE / "golden"
TOPOLOGY = (DATA / "topology.json").read_bytes()
RECORDINGS = {
    "one-analyzer": ["one-analyzer.jsonl"],
    "two-analyzers": ["two-analyzers-a.jsonl", "two-analyzers-b.jsonl"],
}
CONNECTIONS = {"one-analyzer": 831, "two-analyzers": 530}

CONFIG = """\
pipeline:
  subscriber:
    urls: [{urls}]
  store:
    type: prom_sky_con
    prom_sky_con:
      listen_address: 127.0.0.1
      port: 0
      connection_timeout: 3600
"""


def recorded(name, which):
    """Yield the messages of one analyzer with the time they were sent at, in Unix ms.

    ``LastUpdateMetric.Last`` is the time of the agent's update. What is no flow has no time of
    its own, and is sent with what came before it.
    """
    sent_ms = 0
    for line in (DATA / name).read_text().splitlines():
        message = json.loads(line)
        flows = message["Obj"] if message["Type"] == "store" else []
        sent_ms = max([sent_ms, *(flow["LastUpdateMetric"]["Last"] for flow in flows)])
        yield sent_ms, which, line, flows


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came out of it. ``flows`` are those sent, by analyzer."""

    model: Model
    flows: dict[str, int]
    page: bytes
    flow_page: bytes
    interface_page: bytes
    metrics: dict[str, float]


async def replay(names, directory):
    """Send every message to a running skyfast, and to a model; return what both say."""
    model = Model()
    async with AsyncExitStack() as stack:
        analyzers = [await stack.enter_async_context(FakeAnalyzer(host_id=n)) for n in names]
        for analyzer in analyzers:
            analyzer.topology = Answer(body=TOPOLOGY, compress=True)
        config = directory / "prom_sky_con.yml"
        config.write_text(CONFIG.format(urls=", ".join(analyzer.url for analyzer in analyzers)))
        skyfast = await stack.enter_async_context(running(config))
        for analyzer in analyzers:
            await analyzer.subscriber()

        messages = dict.fromkeys((analyzer.name for analyzer in analyzers), 0)
        flows = messages.copy()
        previous = analyzers[0]
        for _, which, line, obj in heapq.merge(
            *(recorded(name, n) for n, name in enumerate(names))
        ):
            analyzer = analyzers[which]
            if analyzer is not previous:
                # Two sockets have no order between them: what was sent must have been read.
                await skyfast.until(partial(all_read, messages))
                previous = analyzer
            await analyzer.send(line)
            messages[analyzer.name] += 1
            flows[analyzer.name] += len(obj)
            model.message(obj, 0)
        await skyfast.until(partial(all_read, messages))
        metrics = await skyfast.until(lambda metrics: metrics["skyfast_interfaces"] > 0)
        return Replay(
            model=model,
            flows=flows,
            page=await skyfast.get("/metrics"),
            flow_page=await skyfast.get("/metrics/flows"),
            interface_page=await skyfast.get("/metrics/interfaces"),
            metrics=metrics,
        )


def all_read(messages, metrics):
    return messages == {
        analyzer: sum(
            value
            for series, value in metrics.items()
            if series.startswith(f'skyfast_messages_total{{analyzer="{analyzer}"')
        )
        for analyzer in messages
    }


@pytest.fixture(scope="module", params=RECORDINGS)
def replayed(request, tmp_path_factory):
    names = RECORDINGS[request.param]
    return request.param, asyncio.run(replay(names, tmp_path_factory.mktemp(request.param)))


def test_flows_are_those_of_the_model(replayed):
    name, result = replayed
    page = read_page(result.flow_page)
    assert page == result.model.page(0)
    # As many as the recording's own description says.
    assert len(page[BYTES]) == len(page[PACKETS]) == 2 * CONNECTIONS[name]
    assert page[RTT]


def test_interfaces_are_those_of_the_topology(replayed):
    _, result = replayed
    expected = interface_page(json.loads(TOPOLOGY))
    assert read_page(result.interface_page, INTERFACE_FAMILIES) == expected


def test_the_page_is_flows_then_interfaces_then_self_metrics(replayed):
    _, result = replayed
    parts = split(result.page)
    assert [prefix for prefix, _ in parts] == [
        "skydive_network_connection_",
        "skydive_network_interface_",
        "skyfast_",
        "process_",
    ]
    assert read_page(parts[0][1]) == result.model.page(0)
    assert read_page(parts[1][1], INTERFACE_FAMILIES) == interface_page(json.loads(TOPOLOGY))


def test_the_page_is_the_golden_one(replayed):
    name, result = replayed
    lines = []
    for part, families in (
        (result.flow_page, FAMILIES),
        (result.interface_page, INTERFACE_FAMILIES),
    ):
        page = read_page(part, families)
        heads = [line for line in part.decode().splitlines() if line.startswith("#")]
        for n, samples in enumerate(page.values()):
            lines += [*heads[2 * n : 2 * n + 2], *sorted(samples)]
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text("\n".join(lines) + "\n")
    assert lines == golden.read_text().splitlines()


def test_another_reader_finds_the_same(replayed):
    _, result = replayed
    found = {}
    for family in text_string_to_metric_families(result.page.decode()):
        lines = found[family.name] = set()
        for sample in family.samples:
            labels = ",".join(f'{name}="{escape(value)}"' for name, value in sample.labels.items())
            lines.add(f"{family.name}{{{labels}}} {sample.value:.0f}")
    expected = result.model.page(0) | interface_page(json.loads(TOPOLOGY))
    assert {name: found[name] for name in expected} == expected


def test_the_self_metrics_account_for_every_report(replayed):
    _, result = replayed
    metrics, model = result.metrics, result.model
    for analyzer, flows in result.flows.items():
        assert metrics[f'skyfast_flows_total{{analyzer="{analyzer}"}}'] == flows
        assert metrics[f'skyfast_up{{analyzer="{analyzer}"}}'] == 1
    for name, expected in (("skipped", model.skipped), ("finished", model.finished)):
        prefix = f'skyfast_flows_{name}_total{{reason="'
        counts = {
            series.removeprefix(prefix).removesuffix('"}'): int(value)
            for series, value in metrics.items()
            if series.startswith(prefix)
        }
        assert +Counter(counts) == expected
    assert metrics["skyfast_connections"] == model.connections
    assert metrics["skyfast_connections_created_total"] == model.created_total
    assert metrics["skyfast_flows"] == model.flows
    errors = [value for series, value in metrics.items() if "_errors_total{" in series]
    assert errors
    assert not any(errors)


def split(page):
    """Return the parts of a page as pairs of a prefix and the lines whose names begin with it."""

    def prefix(line):
        name = line.split(" ")[2] if line.startswith("#") else line
        return re.match(r"skydive_network_[a-z]+_|[a-z]+_", name)[0]

    lines = page.decode().splitlines(keepends=True)
    return [(name, "".join(part).encode()) for name, part in itertools.groupby(lines, key=prefix)]
