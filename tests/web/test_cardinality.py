import json
import re

import pytest

from skyfast.web import cardinality
from skyfast.web.cardinality import (
    BusyError,
    Cardinality,
    Label,
    Report,
    Value,
    Without,
    as_html,
    as_json,
)
from tests.model import make_flow
from tests.support.table_adapter import Core
from tests.support.web_fixtures import FakeTable, on_both_loops, source


def report(*values, without=None):
    top = tuple(Value(value=value, connections=count) for value, count in values)
    return Report(
        connections=8,
        series_at_most=24,
        labels=(Label(name="few", values=1, top=top[:1]), Label(name="many", values=9, top=top)),
        without=without,
    )


def test_html_is_escaped():
    evil = "<script>alert('\"&')</script>"
    html = as_html(report((evil, 3), ("", 1)))
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#x27;&quot;&amp;&#x27;)&lt;/script&gt;" in html
    assert "<small>(empty)</small>" in html


def test_html_begins_with_the_label_that_has_most_values():
    html = as_html(report(("a", 4), ("b", 2)))
    assert re.findall(r"<h2>(\w+)</h2> ([^\n]+)", html) == [
        ("many", "9 values"),
        ("few", "1 value"),
    ]
    assert re.findall(r"<summary>(.*?)</summary>", html) == ["the 2 most frequent", "all"]
    assert re.search(r'<tr><td>a<td .*<rect height="100%" width="50.0%"/></svg><span>4<', html)
    assert "8 connections, at most 24 series" in html
    assert "<aside>" not in html


def test_html_of_what_would_be_left():
    without = Without(label="many", connections=2, series_at_most=6)
    html = as_html(report(("a", 4), without=without))
    aside = re.search(r"<aside>(.*?)</aside>", html, re.DOTALL)[1]
    assert re.sub(r"<.*?>", "", aside) == (
        "Without many there would be 2 connections (75.0% fewer), at most 6 series."
    )


def test_an_empty_table():
    empty = Report(
        connections=0,
        series_at_most=0,
        labels=(Label(name="x", values=0, top=()),),
        without=Without(label="x", connections=0, series_at_most=0),
    )
    assert "0 connections" in as_html(empty)
    assert json.loads(as_json(empty))["labels"] == [{"name": "x", "values": 0, "top": []}]


@on_both_loops
async def test_a_report_is_kept_for_a_moment(monkeypatch):
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
async def test_a_report_is_of_one_moment():
    """What would be left is not compared with connections that there were some seconds ago."""
    core = Core()
    core.message([make_flow("1")], 0)
    counts = Cardinality(table=core.table, view=core.plan.views[0])
    assert (await counts.report()).connections == 1
    core.message([make_flow(f"{n:x}", a=f"10.0.0.{n}") for n in range(2, 102)], 0)
    report = await counts.report("protocol")
    assert report.connections == report.without.connections == 101
    assert "(0.0% fewer)" in re.sub(r"<.*?>", "", as_html(report))
    for label in report.labels:
        assert sum(value.connections for value in label.top) <= report.connections
    (initiator, *_) = report.labels
    assert (initiator.name, initiator.values) == ("initiator_ip", 101)


@on_both_loops
async def test_no_more_than_twenty_values():
    table = FakeTable()
    table.values["target_ip"] = [(str(number), 1) for number in range(100)]
    _, label = (await source(table).cardinality.report()).labels
    assert (label.values, len(label.top)) == (100, 20)


@on_both_loops
async def test_a_fault_ends_with_the_report():
    table = FakeTable()
    table.values = {}
    counts = source(table).cardinality
    for _ in range(2):
        try:
            await counts.report()
        except BusyError:
            pytest.fail("the report that failed is not over")
        except KeyError:
            pass
