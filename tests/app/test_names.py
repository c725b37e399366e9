"""Names of the topology, from the analyzer to the page."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Self, cast

import pytest

from skyfast import app as app_module
from skyfast import pipeline
from skyfast._table import Table
from skyfast.config.model import Config
from skyfast.flows.plan import Names
from skyfast.pipeline import Shared
from skyfast.runtime.clock import Clock
from skyfast.skydive import name_poller
from skyfast.skydive.silence import Activity
from skyfast.stats import NameStats, Stats
from skyfast.web import interface_info
from tests.support.analyzer import FakeAnalyzer
from tests.support.app_pages import between, rows, until_rows
from tests.support.configs import make_config
from tests.support.messages import flow, message
from tests.support.paths import DATA
from tests.support.tasks import running_app
from tests.support.waiting import WAIT_S, until


def configured(*urls: str, labels: list[Any], **settings: Any) -> Config:
    return make_config(*urls, labels=labels, metrics=["bytes"], direction="sum", port=0, **settings)


# Names that a reload keeps.


@pytest.fixture
def shared() -> Shared:
    return Shared(
        stats=Stats(), clock=Clock(), activity=Activity(), relabel=lambda _names, _keys: None
    )


TEAM = {"name": "team", "k8s_label": "team"}


@pytest.mark.parametrize(
    ("before", "after", "survive"),
    [
        (["initiator_name"], ["initiator_name"], True),
        (["initiator_name"], ["target_pod", "node_name"], True),
        (["initiator_name"], ["node_netns"], True),
        (["node_name"], ["node_host"], True),
        # The old configuration does not read the necessary part of the topology.
        (["node_name"], ["node_netns"], False),
        (["node_container"], ["node_pod"], False),
        # ``team`` makes the tuples of names longer.
        (["initiator_name"], ["initiator_name", TEAM], False),
        ([TEAM], [TEAM, "target_pod"], True),
        # The old configuration reads no names.
        (["initiator_ip"], ["initiator_name"], False),
    ],
)
def test_reload_keeps_the_names_if_they_suffice_for_the_new_labels(
    shared: Shared, before: list[Any], after: list[Any], survive: bool
) -> None:
    old = pipeline.build(configured(labels=[*before, "node_tid"]), None, shared)
    new = pipeline.build(configured(labels=[*after, "node_tid", "protocol"]), old, shared)
    assert (new.names is old.names) == survive
    assert new.names.k8s_labels == new.config.export.k8s_labels
    assert new.table is not old.table


def test_counters_of_names_exist_only_while_labels_show_names(shared: Shared) -> None:
    stats = shared.stats.topology
    first = pipeline.build(configured(labels=["initiator_ip"]), None, shared)
    first.record_limits(shared.stats)
    assert stats.names is None
    second = pipeline.build(configured(labels=["initiator_name"]), first, shared)
    second.take_over(first, shared)
    assert isinstance(stats.names, NameStats)
    stats.names.resolutions = 1
    third = pipeline.build(configured(labels=["target_name"]), second, shared)
    third.take_over(second, shared)
    assert stats.names.resolutions == 1
    fourth = pipeline.build(configured(labels=["initiator_ip"]), third, shared)
    fourth.take_over(third, shared)
    assert stats.names is None


def described(*labels: str, interface_info: bool = True) -> Config:
    return configured(labels=["node_tid", *labels], interface_info=interface_info)


def test_info_series_can_be_enabled_without_losing_connections(shared: Shared) -> None:
    first = pipeline.build(described(interface_info=False), None, shared)
    assert first.source.interface_info is None
    second = pipeline.build(described(), first, shared)
    second.take_over(first, shared)
    assert second.table is first.table
    assert second.source.interface_info is not None
    assert isinstance(shared.stats.topology.names, NameStats)
    second.names.nodes["node-1"] = ("eth0", *[""] * 7)
    third = pipeline.build(described(interface_info=False), second, shared)
    third.take_over(second, shared)
    assert third.table is first.table
    assert third.source.interface_info is None
    assert shared.stats.topology.names is None
    # The third configuration does not poll names, so the names from the second may be outdated now.
    fourth = pipeline.build(described(), third, shared)
    assert fourth.names.nodes == {}
    assert not fourth.names.ready.is_set()


@pytest.mark.parametrize("label", ["node_name", "node_netns", "initiator_pod"])
def test_table_keeps_its_names_when_info_series_are_enabled_or_disabled(
    shared: Shared, label: str
) -> None:
    """The table has a reference to the mapping of names, so reloads must not replace it."""
    first = pipeline.build(described(label, interface_info=False), None, shared)
    second = pipeline.build(described(label), first, shared)
    third = pipeline.build(described(label, interface_info=False), second, shared)
    assert first.names is second.names is third.names
    assert first.table is second.table is third.table
    fourth = pipeline.build(described(label, "protocol"), third, shared)
    assert fourth.table is not third.table
    assert (fourth.names is third.names) == (label == "initiator_pod")


# Names on the page of a running app.


def graph() -> dict[str, Any]:
    (recorded,) = json.loads((DATA / "topology-containers" / "graph.json").read_bytes())
    return recorded


async def test_pods_have_their_names_from_the_first_flow() -> None:
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = graph()
        config = configured(
            analyzer.url,
            labels=["initiator_name", "target_name", "target_pod", "target_service"],
        )
        async with running_app(config) as app:
            await analyzer.subscriber()
            await analyzer.send(message(flow("1", **between("172.31.255.4", "172.31.255.6"))))
            await until_rows(
                app,
                {
                    'initiator_name="client",target_name="shop/cart",'
                    'target_pod="cart-5c8d7f9b4-abcde",target_service="cart"': "300",
                },
            )


INFO = "skydive_network_interface_info{"
CART = "8c77788a-ddb5-5c8d-adc4-6b000e504453"


def info_of(node_tid: str, *names: str) -> dict[str, str]:
    """Return the only info series of a capture point."""
    values = (node_tid, *names, *[""] * (len(interface_info.LABELS) - len(names) - 1))
    pairs = zip(interface_info.LABELS, values, strict=True)
    return {",".join(f'{label}="{value}"' for label, value in pairs): "1"}


async def test_info_series_describe_the_capture_points_of_exported_flows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each capture point has one series, even if its names are unknown, change or disappear."""
    monkeypatch.setattr(name_poller, "INTERVAL_S", 0.05)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = graph()
        config = configured(
            analyzer.url, labels=["target_ip", "node_tid"], interface_info=True, views=[]
        )
        config = replace(config, topology=replace(config.topology, interfaces_interval_s=0.05))
        async with running_app(config) as app:
            await analyzer.subscriber()
            assert await rows(app, INFO) == {}
            flows = [
                flow(f"{number:x}", NodeTID=node_tid, **between("10.0.0.1", f"10.0.0.{number}"))
                for number, node_tid in enumerate((CART, CART, "unknown", ""), 1)
            ]
            await analyzer.send(message(*flows))
            netns = "k8s_cart_cart-5c8d7f9b4-abcde_shop_22222222-2222-4222-8222-222222222222_0"
            names = ("ag1", netns, "cart", "shop", "cart-5c8d7f9b4-abcde", "cart")
            others = {**info_of("unknown"), **info_of("")}
            await until_rows(app, {**info_of(CART, "eth0", *names), **others}, INFO)
            nodes = analyzer.graph["Nodes"]
            (cart,) = (node for node in nodes if node["Metadata"].get("TID") == CART)
            cart["Metadata"]["Name"] = "eth1"
            await until_rows(app, {**info_of(CART, "eth1", *names), **others}, INFO)
            nodes.remove(cart)
            resolutions = app.stats.topology.names
            assert resolutions is not None
            before = resolutions.resolutions
            await until(lambda: resolutions.resolutions > before)
            assert await rows(app, INFO) == {**info_of(CART, "eth1", *names), **others}
            assert len(await rows(app)) == len(flows)


async def test_info_series_of_a_view_outlive_the_connections() -> None:
    """Queries that join the info series must not lose series of the view."""
    async with FakeAnalyzer() as analyzer:
        config = configured(
            analyzer.url,
            labels=["target_ip"],
            interface_info=True,
            views=[{"prefix": "nodes", "labels": ["node_tid"], "metrics": ["bytes"]}],
            connection_timeout=0.5,
            connection_grace=0,
        )
        async with running_app(config) as app:
            await analyzer.subscriber()
            await analyzer.send(message(flow("1", NodeTID="unknown")))
            await until_rows(app, info_of("unknown"), INFO)
            await until_rows(app, {})
            assert await rows(app, INFO) == info_of("unknown")
            assert len(await rows(app, "nodes_bytes_total{")) == 2


async def test_flows_move_to_named_connections_in_small_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(name_poller, "UNKNOWN_INTERVAL_S", 0.05)
    monkeypatch.setattr(app_module, "RELABEL_FLOWS", 1)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = graph()
        config = configured(analyzer.url, labels=["target_pod"])
        async with running_app(config) as app:
            await analyzer.subscriber()
            late = {f"10.0.0.{number}": f"late-{number}" for number in range(3)}
            flows = [
                flow(f"{number:x}", **between("172.31.255.4", address))
                for number, address in enumerate(late, 1)
            ]
            await analyzer.send(message(*flows))
            await until_rows(app, {'target_pod=""': "900"})
            now_ms = 2_000_000_000_000
            for address, name in late.items():
                analyzer.graph["Nodes"].append(
                    {
                        "ID": name,
                        "Host": "an1",
                        "CreatedAt": now_ms,
                        "UpdatedAt": now_ms,
                        "Metadata": {
                            "Type": "pod",
                            "Manager": "k8s",
                            "Name": name,
                            "K8s": {
                                "Name": name,
                                "Namespace": "shop",
                                "IP": address,
                                "Status": "Running",
                            },
                        },
                    }
                )
            # The new connections start at 0, and the connection without a name keeps its bytes.
            await until_rows(app, {f'target_pod="{name}"': "0" for name in late.values()})


async def test_flows_get_their_names_after_an_allocation_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app_module, "RELABEL_RETRY_S", 0.01)
    monkeypatch.setattr(app_module, "RELABEL_FLOWS", 1)
    async with FakeAnalyzer() as analyzer:
        analyzer.graph = graph()
        config = configured(analyzer.url, labels=["target_pod"])
        async with running_app(config) as app:
            await analyzer.subscriber()
            flows = [
                flow(f"{number:x}", **between("172.31.255.4", f"10.0.0.{number}"))
                for number in range(1, 4)
            ]
            await analyzer.send(message(*flows))
            await until_rows(app, {'target_pod=""': "900"})
            addresses = [f"10.0.0.{number}" for number in range(1, 4)]
            parts = app._parts
            parts.names.addresses.update({address: (address,) * 8 for address in addresses})
            failing = _Failing(parts.table)
            app._parts = replace(parts, table=cast(Table, failing))
            app._rename(parts.names.combined, {*addresses})
            async with asyncio.timeout(WAIT_S):
                while failing.outcomes:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            await until_rows(app, {f'target_pod="{address}"': "0" for address in addresses})
            app._parts = parts
    assert "out of memory: names in labels are out of date" in caplog.text


class _Failing:
    """A table that runs out of memory in the second and third step of relabeling."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.outcomes = [True, False, False, True]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def relabel(self, names: Names, keys: Iterable[str]) -> Self:
        self._relabeling = self._table.relabel(names, keys)
        return self

    def step(self, budget: int, *, wall_ms: int) -> bool:
        if not self.outcomes or self.outcomes.pop(0):
            return self._relabeling.step(budget, wall_ms=wall_ms)
        raise MemoryError
