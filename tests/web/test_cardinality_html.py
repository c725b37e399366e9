import json
import re

from skyfast.web.cardinality import (
    CardinalityReport,
    LabelCardinality,
    ValueCount,
    WithoutLabel,
    as_json,
)
from skyfast.web.cardinality_html import as_html


def report(*values, without=None):
    top = tuple(ValueCount(value=value, connections=count) for value, count in values)
    return CardinalityReport(
        connections=8,
        series_at_most=24,
        labels=(
            LabelCardinality(name="few", values=1, top=top[:1]),
            LabelCardinality(name="many", values=9, top=top),
        ),
        without=without,
    )


def test_html_is_escaped():
    hostile = "<script>alert('\"&')</script>"
    html = as_html(report((hostile, 3), ("", 1)))
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#x27;&quot;&amp;&#x27;)&lt;/script&gt;" in html
    assert "<small>(empty)</small>" in html


def test_html_starts_with_the_label_with_the_most_values():
    html = as_html(report(("a", 4), ("b", 2)))
    assert re.findall(r"<h2>(\w+)</h2> ([^\n]+)", html) == [
        ("many", "9 values"),
        ("few", "1 value"),
    ]
    assert re.findall(r"<summary>(.*?)</summary>", html) == ["the 2 most frequent", "all"]
    assert re.search(r'<tr><td>a<td .*<rect height="100%" width="50.0%"/></svg><span>4<', html)
    assert "8 connections, at most 24 series" in html
    assert "<aside>" not in html


def test_html_shows_the_cardinality_without_a_label():
    without = WithoutLabel(label="many", connections=2, series_at_most=6)
    html = as_html(report(("a", 4), without=without))
    aside = re.search(r"<aside>(.*?)</aside>", html, re.DOTALL)[1]
    assert re.sub(r"<.*?>", "", aside) == (
        "Without many there would be 2 connections (75.0% fewer), at most 6 series."
    )


def test_report_of_an_empty_table_can_be_rendered():
    empty = CardinalityReport(
        connections=0,
        series_at_most=0,
        labels=(LabelCardinality(name="x", values=0, top=()),),
        without=WithoutLabel(label="x", connections=0, series_at_most=0),
    )
    assert "0 connections" in as_html(empty)
    assert json.loads(as_json(empty))["labels"] == [{"name": "x", "values": 0, "top": []}]
