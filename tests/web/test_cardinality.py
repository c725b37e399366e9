import re

import pytest

from skyfast.web import cardinality
from skyfast.web.cardinality import Cardinality
from skyfast.web.cardinality_html import as_html
from skyfast.web.scan_cache import BusyError
from tests.model import make_flow
from tests.support.status_site import three_connections
from tests.support.table_adapter import Core
from tests.support.web_fixtures import FakeTable, on_both_loops, source


@on_both_loops
async def test_report_is_cached_briefly(monkeypatch):
    table = FakeTable()
    counts = source(table).cardinality
    first = await counts.report()
    assert await counts.report() is first
    assert (await counts.report("target_ip")).without.connections == 1
    assert await counts.report("target_ip") is await counts.report("target_ip")
    assert table.scans == ["cardinality", "cardinality target_ip"]
    monkeypatch.setattr(cardinality, "REPORT_AGE_S", 0)
    table = FakeTable()
    counts = source(table).cardinality
    for _ in range(2):
        await counts.report()
    assert len(table.scans) == 2


@on_both_loops
async def test_report_compares_connections_of_one_scan():
    core = Core()
    core.message([make_flow("1")], 0)
    counts = Cardinality(table=core.table, view=core.plan.views[0])
    assert (await counts.report()).connections == 1
    core.message([make_flow(f"{n:x}", a=f"10.0.0.{n}") for n in range(2, 102)], 0)
    report = await counts.report("protocol")
    assert report.connections == report.without.connections == 101
    assert "would be 101 connections (0 %)" in re.sub(r"<.*?>", "", as_html(report))
    for label in report.labels:
        assert sum(value.connections for value in label.top) <= report.connections
    (initiator, *_) = report.labels
    assert (initiator.name, initiator.values) == ("initiator_ip", 101)
    assert {label.name: label.without.connections for label in report.labels} == {
        label.name: 1 if label.name == "initiator_ip" else 101 for label in report.labels
    }
    assert report.labels[0].without.series_at_most == report.series_at_most / 101
    assert not report.approximate


async def test_report_has_every_view_with_the_numbers_of_the_metrics_page():
    view = {"prefix": "x", "labels": ["initiator_ip", "protocol", "direction"]}
    async with three_connections(views=[view | {"metrics": ["bytes"]}]) as site:
        report = await site.json("/cardinality?format=json")
        (shown,) = report["views"]
        assert (shown["prefix"], shown["connections"], shown["series_at_most"]) == ("x", 3, 6)
        without = {label["name"]: label["without"]["connections"] for label in shown["labels"]}
        assert without == {"initiator_ip": 1, "protocol": 3}
        text = (await site.get("/metrics"))[1]
        assert f'skyfast_view_connections{{view="x"}} {shown["connections"]}\n' in text
        assert text.count("\nx_bytes_total{") == shown["series_at_most"]
        for label in report["labels"]:
            values = f'skyfast_label_values{{label="{label["name"]}"}} {label["values"]}\n'
            assert values in text
        status = await site.json("/api/status")
        assert report["connections"] == status["table"]["connections"] == 3
        page = (await site.get("/cardinality"))[1]
        assert "View x</h2><p>3 rows, at most 6 series</p>" in page


@on_both_loops
async def test_listed_values_per_label_are_limited_to_twenty():
    table = FakeTable()
    table.values["target_ip"] = [(str(number), 1) for number in range(100)]
    _, label = (await source(table).cardinality.report()).labels
    assert (label.values, len(label.top)) == (100, 20)


@on_both_loops
async def test_failed_report_does_not_block_the_next_report():
    table = FakeTable()
    table.values = {}
    counts = source(table).cardinality
    for _ in range(2):
        try:
            await counts.report()
        except BusyError:
            pytest.fail("the failed report still blocks other requests")
        except KeyError:
            pass
