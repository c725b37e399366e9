"""Own names (keys ``names`` and ``names_file``), from the file to the page."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from skyfast import app as app_module
from skyfast import pipeline
from skyfast.app import App
from skyfast.config import names as config_names
from skyfast.config.model import Config
from skyfast.config.sharding import sharded
from skyfast.config.yaml_nodes import ConfigError
from skyfast.flows.selection import Shard
from skyfast.pipeline import Shared
from skyfast.runtime import names_file
from skyfast.runtime.clock import Clock
from skyfast.skydive import name_poller
from skyfast.skydive.silence import Activity
from skyfast.stats import Stats
from skyfast.web import status_html
from skyfast.web.status import as_json
from skyfast.web.top import RESULT_AGE_S, Ranking, RankingQuery, Top
from tests.support.analyzer import FakeAnalyzer
from tests.support.app_pages import between, rows, until_rows
from tests.support.configs import make_config
from tests.support.messages import flow, message
from tests.support.paths import DATA
from tests.support.process import run
from tests.support.tasks import running_app
from tests.support.waiting import WAIT_S, until

SITE = {"name": "target_site", "names_key": "site"}
LABELS: list[Any] = ["target_network", SITE]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_file, "INTERVAL_S", 0.02)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "names.csv"
    path.write_text("10.0.0.0/8,company\n10.1.0.0/16,berlin,site=ber\n")
    return path


def replace(file: Path, text: str) -> None:
    other = file.with_suffix(".new")
    other.write_text(text)
    other.rename(file)


def configured(*urls: str, labels: list[Any], **settings: Any) -> Config:
    defaults = {"metrics": ["bytes"], "direction": "sum", "port": 0, "views": []}
    return make_config(*urls, labels=labels, **defaults | settings)


def row(network: str, site: str = "") -> str:
    return f'target_network="{network}",target_site="{site}"'


async def test_own_names_need_no_topology(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with FakeAnalyzer() as analyzer:
        config = configured(
            analyzer.url, labels=LABELS, names_file=str(file), interfaces_interval=0
        )
        async with running_app(config) as app:
            await analyzer.subscriber()
            await analyzer.send(
                message(
                    flow("1", **between("10.0.0.1", "10.1.0.1")),
                    flow("2", **between("10.0.0.1", "10.2.0.1")),
                    flow("3", **between("10.0.0.1", "192.0.2.1")),
                )
            )
            expected = {row("berlin", "ber"): "300", row("company"): "300", row(""): "300"}
            await until_rows(app, expected)
        assert analyzer.topology_requests == []
    assert "names from 'names' and 'names_file': 2 entries with the keys site" in caplog.text


async def test_flows_get_new_names_when_the_file_changes(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "RELABEL_FLOWS", 1)
    monkeypatch.setattr(app_module, "COMPARED_STRINGS", 2)

    def rows_of(*sites: str) -> list[str]:
        return [f'target_site="{site}",target_ip="10.1.0.{i}"' for i, site in enumerate(sites, 1)]

    async with FakeAnalyzer() as analyzer:
        config = configured(analyzer.url, labels=[SITE, "target_ip"], names_file=str(file))
        async with running_app(config) as app:
            await analyzer.subscriber()
            flows = [flow(f"{i}", **between("10.0.0.1", f"10.1.0.{i}")) for i in (1, 2, 3)]
            await analyzer.send(message(*flows))
            await until_rows(app, dict.fromkeys(rows_of("ber", "ber", "ber"), "300"))
            table = app._parts.table
            created = table.created_total
            # Only one flow moves. The old connection keeps the bytes counted so far.
            replace(file, "10.1.0.0/16,berlin,site=ber\n10.1.0.2,x,site=lab\n")
            first, moved, third = rows_of("ber", "lab", "ber")
            await until_rows(app, {first: "300", moved: "0", third: "300"})
            assert table.created_total == created + 1
            # The new connection gets the next bytes of this flow. New flows have the new names at
            # once.
            metric = {"ABPackets": 2, "ABBytes": 150, "BAPackets": 2, "BABytes": 200}
            grown = flow("2", Last=70_000, Metric=metric, **between("10.0.0.1", "10.1.0.2"))
            await analyzer.send(message(grown, flow("4", **between("10.1.0.2", "10.1.0.4"))))
            fourth = rows_of("", "", "", "ber")[3]
            await until_rows(app, {first: "300", moved: "50", third: "300", fourth: "300"})
            assert app._parts.table is table


async def test_flows_get_new_names_after_an_allocation_failed(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app_module, "RELABEL_RETRY_S", 0.01)
    changed_addresses, failures = app_module.changed_addresses, [MemoryError, MemoryError]

    def failing(*arguments: Any) -> set[str]:
        if failures:
            raise failures.pop()
        return changed_addresses(*arguments)

    monkeypatch.setattr(app_module, "changed_addresses", failing)
    async with FakeAnalyzer() as analyzer:
        config = configured(analyzer.url, labels=["target_network"], names_file=str(file))
        async with running_app(config) as app:
            await analyzer.subscriber()
            await analyzer.send(message(flow("1", **between("10.0.0.1", "10.1.0.1"))))
            await until_rows(app, {'target_network="berlin"': "300"})
            replace(file, "10.1.0.0/16,paris\n")
            await until_rows(app, {'target_network="paris"': "0"})
    assert not failures
    assert "out of memory: names in labels are out of date" in caplog.text


async def test_names_are_kept_while_the_file_is_invalid(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeAnalyzer() as analyzer:
        config = configured(analyzer.url, labels=LABELS, names_file=str(file))
        async with running_app(config) as app:
            await analyzer.subscriber()
            await analyzer.send(message(flow("1", **between("10.0.0.1", "10.1.0.1"))))
            await until_rows(app, {row("berlin", "ber"): "300"})
            replace(file, "10.0.0.0/8,company\n10.1.0.0/16\n")
            await until(lambda: "names_file not reloaded" in caplog.text)
            await analyzer.send(message(flow("2", **between("10.0.0.1", "10.1.0.2"))))
            await until_rows(app, {row("berlin", "ber"): "600"})
            report = await app.status.report()
            problem = f"{file}: line 2: '10.1.0.0/16' is not in the form prefix,name[,key=value…]"
            assert report.own_names is not None
            assert report.own_names.last_error is not None
            assert report.own_names.last_error.text == problem
            assert any(problem in text for text in report.warnings)
            assert json.loads(as_json(report))["own_names"]["last_load_successful"] is False
            replace(file, "10.1.0.0/16,mended,site=m\n")
            await until_rows(app, {row("mended", "m"): "0"})
            report = await app.status.report()
            assert report.own_names is not None
            assert report.own_names.last_load_successful
            assert report.own_names.keys == ("site",)
            assert not any("Reload of names_file failed" in text for text in report.warnings)
    assert caplog.text.count("names_file not reloaded") == 1


async def test_topology_names_and_own_names_are_combined(file: Path) -> None:
    (graph,) = json.loads((DATA / "topology-containers" / "graph.json").read_bytes())
    replace(file, "172.16.0.0/12,cluster\n172.31.255.4,mine\n")
    labels = ["initiator_name", "target_name", "target_pod", "target_network"]
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = graph
        config = configured(analyzer.url, labels=labels, names_file=str(file))
        async with running_app(config) as app:
            await analyzer.subscriber()
            await analyzer.send(
                message(
                    flow("1", **between("172.31.255.4", "172.31.255.6")),
                    flow("2", **between("172.31.255.4", "172.30.1.1")),
                )
            )
            mine = 'initiator_name="mine",target_name='
            pod = 'target_pod="cart-5c8d7f9b4-abcde",target_network="cluster"'
            unknown = f'{mine}"cluster",target_pod="",target_network="cluster"'
            await until_rows(app, {f'{mine}"shop/cart",{pod}': "300", unknown: "300"})
            replace(file, "172.31.255.6,cart\n")
            client = 'initiator_name="client",target_name='
            await until_rows(
                app,
                {
                    f'{client}"cart",target_pod="cart-5c8d7f9b4-abcde",target_network=""': "0",
                    f'{client}"",target_pod="",target_network=""': "0",
                },
            )


async def test_topology_names_can_change_while_own_names_are_used(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name_poller, "UNKNOWN_INTERVAL_S", 0.05)
    (graph,) = json.loads((DATA / "topology-containers" / "graph.json").read_bytes())
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = graph
        labels = ["target_pod", "target_network"]
        config = configured(analyzer.url, labels=labels, names_file=str(file))
        async with running_app(config) as app:
            await analyzer.subscriber()
            await analyzer.send(message(flow("1", **between("172.31.255.4", "10.1.0.1"))))
            await until_rows(app, {'target_pod="",target_network="berlin"': "300"})
            now_ms = 2_000_000_000_000
            k8s = {"Name": "late", "Namespace": "shop", "IP": "10.1.0.1", "Status": "Running"}
            metadata = {"Type": "pod", "Manager": "k8s", "Name": "late", "K8s": k8s}
            times = {"CreatedAt": now_ms, "UpdatedAt": now_ms}
            graph["Nodes"].append({"ID": "late", "Host": "an1", "Metadata": metadata, **times})
            await until_rows(app, {'target_pod="late",target_network="berlin"': "0"})


# Start and reload.


def test_invalid_names_file_prevents_the_start(file: Path) -> None:
    file.write_text("10.0.0.0/8,company\nx\n")
    config = configured(labels=LABELS, names_file=str(file))
    with pytest.raises(ConfigError, match=f"{file}: line 2: 'x' is not in the form prefix,name"):
        App(config, load=lambda: config)


async def test_reload_changes_the_names(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with FakeAnalyzer() as analyzer:

        def config_of(**keys: Any) -> Config:
            return configured(analyzer.url, labels=["target_name", "target_network"], **keys)

        configs = [config_of()]
        async with running_app(configs[0], load=lambda: configs[-1]) as app:
            await analyzer.subscriber()
            await analyzer.send(message(flow("1", **between("10.0.0.1", "10.1.0.1"))))
            await until_rows(app, {'target_name="",target_network=""': "300"})
            table = app._parts.table
            text = "labels target_network are empty: the configuration sets neither 'names' nor"
            assert caplog.text.count(text) == 1

            configs.append(config_of(names={"10.1.0.1": "host"}, names_file=str(file)))
            assert await app.reload() is None
            await until_rows(app, {'target_name="host",target_network="berlin"': "0"})
            assert app.stats.config.last_reload_changed == (
                "pipeline.store.prom_sky_con.names",
                "pipeline.store.prom_sky_con.names_file",
            )

            # From now on, the file is watched. A reload also reads the file, and fails if it is
            # invalid.
            replace(file, "10.1.0.0/16,paris\n")
            await until_rows(app, {'target_name="host",target_network="paris"': "0"})
            replace(file, "x\n")
            configs.append(config_of(names_file=str(file)))
            problem = "'x' is not in the form prefix,name[,key=value…]"
            assert await app.reload() == f"{file}: line 1: {problem}"
            assert await rows(app) == {'target_name="host",target_network="paris"': "0"}

            configs.append(config_of())
            assert await app.reload() is None
            await until_rows(app, {'target_name="",target_network=""': "0"})
            assert app._parts.table is table
            assert caplog.text.count(text) == 2


@pytest.fixture
def shared() -> Shared:
    return Shared(
        stats=Stats(), clock=Clock(), activity=Activity(), relabel=lambda _names, _keys: None
    )


@pytest.mark.parametrize(
    ("before", "after", "survive"),
    [
        (["target_network"], ["target_network"], True),
        (["target_name"], ["target_name", "target_network"], True),
        (["target_name", SITE], ["target_name", "target_network", SITE], True),
        # ``site`` makes the tuples of names longer.
        (["target_name"], ["target_name", SITE], False),
        # The old configuration reads no topology.
        (["target_network"], ["target_name"], False),
        (["target_network"], ["initiator_network"], False),
    ],
)
def test_reload_keeps_the_names_if_they_suffice_for_the_new_labels(
    shared: Shared, before: list[Any], after: list[Any], survive: bool
) -> None:
    names = {"10.0.0.0/8": {"name": "company", "site": "a"}}
    old = pipeline.build(configured(labels=before, names=names), None, shared)
    new = pipeline.build(configured(labels=after, names=names), old, shared)
    assert (new.names is old.names) == survive
    assert (new.table is old.table) == (before == after)
    new.take_over(old, shared)
    found = new.names.combined["10.0.0.1"]
    assert found is not None
    for column in new.plan.columns:
        if column.name == "target_network":
            assert found[column.index] == "company"
        elif column.name == "target_site":
            assert found[column.index] == "a"


def test_all_shards_have_the_same_own_names(file: Path) -> None:
    config = configured(labels=LABELS, names_file=str(file))
    shard = sharded(config, Shard(1, 2))
    assert shard.names == config.names
    loaded = config_names.load(shard.names, shard.export)
    assert loaded.own["10.1.0.1"] == ("", "berlin", "ber")


# The status page.


async def test_status_page_shows_own_names(file: Path) -> None:
    config = configured(labels=[*LABELS, {"name": "x", "names_key": "x"}], names_file=str(file))
    app = App(config, load=lambda: config)
    report = await app.status.report()
    page = status_html.as_html(report, app.status.ranking, RankingQuery(by="bytes"), None)
    assert "<p>own names (keys 'names' and 'names_file'): <span" in page
    assert (
        "A label needs the key &#x27;x&#x27;, but no entry of &#x27;names&#x27; or"
        " &#x27;names_file&#x27; has this key." in page
    )


async def test_status_page_shows_own_names_that_no_label_shows(file: Path) -> None:
    async with FakeAnalyzer() as analyzer:
        config = configured(
            analyzer.url, labels=["initiator_ip", "target_ip"], names_file=str(file)
        )
        async with running_app(config) as app:
            await analyzer.subscriber()
            await analyzer.send(message(flow("1", **between("10.0.0.1", "10.1.0.1"))))
            await until_rows(app, {'initiator_ip="10.0.0.1",target_ip="10.1.0.1"': "300"})
            ranking = app.status.ranking
            names = {"initiator_ip": "company", "target_ip": "berlin"}
            assert [entry.names for entry in (await top_of(ranking)).entries] == [names]
            assert await app.reload() is None
            assert app.status.ranking is ranking
            replace(file, "10.1.0.1,gateway\n")
            async with asyncio.timeout(WAIT_S):
                while app._parts.own.own.count != 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await asyncio.sleep(RESULT_AGE_S)
            names = {"target_ip": "gateway"}
            assert [entry.names for entry in (await top_of(ranking)).entries] == [names]


async def top_of(ranking: Ranking) -> Top:
    return (await ranking.top(ranking.query([]))).top


def test_topology_names_are_forgotten_when_the_topology_is_no_longer_read(shared: Shared) -> None:
    """The status page must not show outdated names."""
    names = {"10.0.0.0/8": "company"}
    labels = ["target_network", "target_ip", "node_tid"]
    before = configured(labels=labels, names=names, interface_info=True)
    old = pipeline.build(before, None, shared)
    old.names.addresses["10.0.0.1"] = ("pod", *[""] * 7)
    old.names.nodes["tid"] = ("eth0", *[""] * 7)
    old.names.ready.set()
    assert old.ranking.names is not None
    assert old.ranking.names.of_address("10.0.0.1") == "pod"
    new = pipeline.build(configured(labels=labels, names=names), old, shared)
    assert new.table is old.table
    new.take_over(old, shared)
    assert new.names is old.names
    assert new.ranking.names is not None
    assert new.ranking.names.of_address("10.0.0.1") == "company"
    assert str(new.ranking.names.of_node("tid")) == ""
    assert not new.names.ready.is_set()


# The command line.


def test_check_reads_the_names(file: Path) -> None:
    text = f"""
        pipeline.store.prom_sky_con:
          deduplicate: first
          labels: [initiator_network, {{name: site, names_key: site}}, {{name: x, names_key: x}}]
          names_file: {file}
    """
    result = run("--check", "-", stdin=text)
    assert result.returncode == 0
    assert "# Names from 'names' and 'names_file': 2 entries with the keys site.\n" in result.stdout
    assert "# Labels with names from 'names' and 'names_file' take" in result.stdout
    assert "topology queries" not in result.stdout
    assert result.stderr.count("\n") == 1
    warning = "a label needs the key 'x', but no entry of 'names' or 'names_file' has this key"
    assert warning in result.stderr
    assert run("--check", "--strict", "-", stdin=text).returncode == 2
    file.write_text("10.0.0.1,a\nx,b\n10.0.0.2\n")
    result = run("--check", "-", stdin=text)
    assert (result.returncode, result.stdout) == (2, "")
    assert [line.partition("line ")[2] for line in result.stderr.splitlines()] == [
        "2: 'x' is not an address or network",
        "3: '10.0.0.2' is not in the form prefix,name[,key=value…]",
    ]


def test_errors_of_the_file_are_reported_like_errors_of_the_configuration(tmp_path: Path) -> None:
    text = f"pipeline.store.prom_sky_con: {{names_file: {tmp_path}/x.csv, port: 0}}"
    result = run("-", stdin=text)
    assert result.returncode == 2
    assert f"skyfast: names_file: {tmp_path}/x.csv is not an existing file" in result.stderr


def test_check_warns_of_labels_without_any_names() -> None:
    text = "pipeline.store.prom_sky_con: {deduplicate: first, labels: [target_network]}"
    result = run("--check", "-", stdin=text)
    assert (
        "labels target_network are empty: the configuration sets neither 'names' nor 'names_file'"
        in result.stderr
    )
    assert "# Names from" not in result.stdout
