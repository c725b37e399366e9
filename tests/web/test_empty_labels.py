"""Warnings about labels that are empty for most of the traffic."""

import asyncio
import json
import weakref
from pathlib import Path
from typing import Any, cast

import pytest

from skyfast import app as app_module
from skyfast import dry_run, pipeline
from skyfast.config.model import Config
from skyfast.replay.recording import Playback, Recording
from skyfast.stats import EmptyLabels, NameStats
from skyfast.web import empty_labels
from skyfast.web.empty_labels import EmptyLabelCheck, is_suspicious
from skyfast.web.top import Ranking
from tests.support.analyzer import FakeAnalyzer, FakeResponse
from tests.support.app_pages import between, until_rows
from tests.support.configs import make_config
from tests.support.messages import METRIC, flow, message
from tests.support.paths import DATA
from tests.support.tasks import running_app
from tests.support.waiting import until

ENDS = ("initiator_name", "target_name")
NO_NAMES = "100.0 % of the bytes have an empty initiator_name and an empty target_name"


def configured(*urls: str, labels: Any = ENDS, **settings: Any) -> Config:
    settings = {"metrics": ["bytes"], "direction": "sum", "port": 0, **settings}
    return make_config(*urls, labels=[*labels], **settings)


def found(
    tmp_path: Path, *flows: dict[str, Any], min_share: float = 0.0, **settings: Any
) -> dict[str, float]:
    """Replay flows without a topology. Map each set of empty labels to its share of the bytes."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(message(*flows) + b"\n")
    config = configured(**settings)
    rehearsal = dry_run._DryRun(config)
    rehearsal.run(Playback(recordings=(Recording.load(str(path)),)))
    parts = rehearsal._parts
    shares = empty_labels.find(parts.table, parts.ranking.views.values(), min_share=min_share)
    return {",".join(empty.labels): empty.bytes_share for empty in shares}


def sized(uuid: str, a: str, b: str, size: int) -> dict[str, Any]:
    return flow(uuid, **between(a, b), Metric=METRIC | {"ABBytes": size, "BABytes": 0})


FLOWS = (
    sized("1", "10.0.0.1", "10.1.0.1", 60),
    sized("2", "10.0.0.1", "192.0.2.1", 30),
    sized("3", "192.0.2.1", "192.0.2.2", 910),
)


def test_share_is_the_fraction_of_bytes_with_empty_labels(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"names": {"10.0.0.0/8": "inside"}}
    assert found(tmp_path, *FLOWS, **settings) == {"initiator_name,target_name": 0.91}
    assert found(tmp_path, *FLOWS, **settings, labels=["target_name"]) == {"target_name": 0.94}
    # If ``min_share`` is above 0.5, only the largest group of connections is searched.
    assert found(tmp_path, *FLOWS, **settings, min_share=0.9) == {
        "initiator_name,target_name": 0.91
    }
    assert found(tmp_path, *FLOWS, **settings, min_share=0.92) == {}
    assert found(tmp_path, *FLOWS[:2], **settings) == {"initiator_name,target_name": 0}
    assert found(tmp_path, *FLOWS[:2], **settings, min_share=0.9) == {}


def test_empty_labels_are_searched_in_the_first_view_with_bytes(tmp_path: Path) -> None:
    views = [
        {"prefix": "a", "labels": ["node_name"], "metrics": ["packets"], "direction": "sum"},
        {"prefix": "b", "labels": [*ENDS, "node_name", "initiator_host"], "direction": "sum"},
    ]
    assert found(tmp_path, *FLOWS, views=views) == {
        "initiator_name,target_name": 1,
        "initiator_host": 1,
        "node_name": 1,
    }
    assert found(tmp_path, *FLOWS, metrics=["packets"]) == {}
    assert found(tmp_path, labels=ENDS) == {}  # no traffic


@pytest.mark.parametrize(
    ("labels", "share", "warns"),
    [
        (ENDS, 0.9, True),
        (ENDS, 0.899, False),
        (("node_host",), 0.9, True),
        # Most initiators may be outside of the topology, so only a share of 100 % is suspicious.
        (("initiator_host",), 0.999, False),
        (("initiator_host",), 1.0, True),
    ],
)
def test_share_of_bytes_decides_whether_empty_labels_are_suspicious(
    labels: tuple[str, ...], share: float, warns: bool
) -> None:
    assert is_suspicious(EmptyLabels(labels=labels, bytes_share=share)) == warns


def test_warnings_are_logged_once_with_their_reason(caplog: pytest.LogCaptureFixture) -> None:
    names, check = NameStats(addresses=1), EmptyLabelCheck()
    of_ends = EmptyLabels(labels=ENDS, bytes_share=0.95)
    of_nodes = EmptyLabels(labels=("node_name",), bytes_share=1.0)
    for _ in range(2):
        check.use([of_ends, EmptyLabels(labels=("node_host",), bytes_share=0.1), of_nodes], names)
        assert names.empty_labels == (of_ends, of_nodes)
    why = "the topology has no such names for the"
    ends = "an empty initiator_name and an empty target_name"
    assert [record.getMessage() for record in caplog.records] == [
        (
            f"95.0 % of the bytes have {ends}: {why} addresses of this traffic, or the addresses"
            " are ambiguous"
        ),
        f"100.0 % of the bytes have an empty node_name: {why} capture points of this traffic",
    ]
    check.use([], names)
    assert names.empty_labels == ()


class FakeRanking:
    """The check compares only the identity of rankings."""


def test_table_is_searched_if_its_names_were_read_in_two_successive_rounds() -> None:
    check, old, new = EmptyLabelCheck(), FakeRanking(), FakeRanking()
    rounds = [(old, False), (old, True), (old, True), (new, True), (new, False), (new, True)]
    due = [check.is_due(cast("Ranking", ranking), is_read=is_read) for ranking, is_read in rounds]
    assert due == [False, False, True, False, False, False]
    assert check.is_due(cast("Ranking", new), is_read=True)
    reference = weakref.ref(new)
    del new, rounds[:]
    assert reference() is None


# The running program.


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(empty_labels, "INTERVAL_S", 0.02)
    monkeypatch.setattr(empty_labels, "MAX_LOAD", 1.0)


async def warnings_of(app: app_module.App) -> list[str]:
    return (await app.status.report()).warnings


async def until_checked(monkeypatch: pytest.MonkeyPatch, rounds: int = 3) -> None:
    """Wait until empty labels were searched ``rounds`` times."""
    searched = 0
    find = empty_labels.find

    def counting(*arguments: Any, **options: Any) -> list[EmptyLabels]:
        nonlocal searched
        searched += 1
        return find(*arguments, **options)

    monkeypatch.setattr(empty_labels, "find", counting)
    await until(lambda: searched >= rounds)


@pytest.mark.usefixtures("fast")
async def test_empty_topology_causes_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = {"Nodes": [], "Edges": []}
        configs = [configured(analyzer.url)]
        async with running_app(configs[0], load=lambda: configs[-1]) as app:
            await analyzer.subscriber()
            assert await warnings_of(app) == []
            await analyzer.send(message(flow("1")))
            names = app.stats.topology.names
            assert names is not None
            await until(lambda: names.empty_labels)
            assert f"{NO_NAMES}: the topology is empty." in await warnings_of(app)
            assert caplog.text.count(f"{NO_NAMES}: the topology is empty") == 1
            # After the reload, the labels of the new table have not been checked yet.
            configs.append(configured(analyzer.url, labels=[*ENDS, "node_tid"]))
            assert await app.reload() is None
            assert names.empty_labels == ()


@pytest.mark.usefixtures("fast")
async def test_traffic_with_outside_addresses_causes_no_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The initiators are outside of the topology, but the targets have names."""
    async with FakeAnalyzer() as analyzer:
        (analyzer.graph,) = json.loads((DATA / "topology-containers" / "graph.json").read_bytes())
        async with running_app(configured(analyzer.url)) as app:
            await analyzer.subscriber()
            await analyzer.send(message(flow("1", **between("198.51.100.1", "10.77.0.2"))))
            await until(lambda: app._parts.table.connections)
            await until_checked(monkeypatch)
            assert await warnings_of(app) == []


@pytest.mark.usefixtures("fast")
async def test_empty_labels_are_not_searched_before_the_topology_has_been_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "NAMES_WAIT_S", 0.01)
    async with FakeAnalyzer() as analyzer:
        monkeypatch.setattr(analyzer, "_topology", lambda _: FakeResponse(status=500))
        async with running_app(configured(analyzer.url)) as app:
            await analyzer.subscriber()
            await analyzer.send(message(flow("1")))
            await until_rows(app, {'initiator_name="",target_name=""': "300"})
            await asyncio.sleep(0.2)
            names = app.stats.topology.names
            assert names is not None
            assert not names.is_read
            assert names.empty_labels == ()
