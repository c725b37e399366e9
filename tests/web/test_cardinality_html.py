import html
import json
import re

import pytest

from skyfast.web.cardinality import (
    CardinalityReport,
    LabelCardinality,
    Remaining,
    ValueCount,
    ViewCardinality,
    WithoutLabel,
    as_json,
)
from skyfast.web.cardinality_html import as_html, change

HOSTILE = "<script>alert('\"&')</script>"


def label(name, *values, count=None, left=8):
    top = tuple(ValueCount(value=value, connections=connections) for value, connections in values)
    return LabelCardinality(
        name=name,
        values=count or len(values),
        top=top,
        without=Remaining(connections=left, series_at_most=3 * left),
    )


def report(*labels, connections=8, **others):
    return CardinalityReport(
        connections=connections,
        series_at_most=3 * connections,
        approximate=False,
        labels=labels,
        **others,
    )


def rows(page):
    """Return the text of the first four cells of each label's row."""
    lines = re.findall(r"<tr><th scope=.row.>(.*?)</tr>", page, re.DOTALL)
    return [
        [re.sub(r"<.*?>", "", cell).strip() for cell in re.split(r"</th>|</td>", line)[:4]]
        for line in lines
    ]


def summary(page):
    return re.sub(r"<.*?>", "", re.search(r"<summary>(.*?)</summary>", page)[1])


def test_html_is_escaped():
    page = as_html(report(label("x", (HOSTILE, 3), ("", 1)), views=(view(HOSTILE),)))
    assert page.count("<script") == 1  # the page's own script
    assert html.escape(HOSTILE) in page
    assert "(empty)" in page
    assert f'href="./?filter={"%3Cscript%3Ealert%28%27%22%26%27%29%3C%2Fscript%3E"}"' in page


def view(prefix):
    return ViewCardinality(
        prefix=prefix,
        connections=1,
        series_at_most=2,
        approximate=True,
        labels=(label("z", ("v", 1), left=1),),
    )


def test_labels_are_ordered_by_the_effect_of_their_removal():
    page = as_html(
        report(label("few", ("a", 4)), label("many", ("b", 2), count=9), label("best", left=1))
    )
    assert rows(page) == [
        ["best", "0", "1", "−88 %"],
        ["many", "9", "8", "0 %"],
        ["few", "1", "8", "0 %"],
    ]
    assert "8 connections, at most 24 series" in page


def test_each_view_has_a_table():
    page = as_html(report(label("few", ("a", 4)), views=(view("x"), view("y"))))
    assert re.findall(r'<h2 id="(\w+)">([\w ]+)</h2>', page) == [
        ("connections", "Connections"),
        ("x", "View x"),
        ("y", "View y"),
    ]
    assert page.count("1 row, at most 2 series; the numbers under 'rows without the label'") == 2
    assert page.count('"number">rows without the label</th>') == 2
    assert page.count('"number">connections without the label</th>') == 1


def test_rare_values_are_not_listed():
    """If many values are equally rare, none is listed: any choice of twenty would be random."""
    rare = [(f"port-{n}", 7) for n in range(20)]
    page = as_html(report(label("port", *rare, count=28_000), connections=200_000))
    assert "no value has more than 7 connections" in page
    assert "port-0" not in page
    frequent = [("80", 150_000), ("443", 1_000), ("22", 999)]
    page = as_html(report(label("port", *frequent, *rare[3:], count=28_000), connections=200_000))
    assert summary(page) == "80 150,000, 443 1,000 and 27,998 more"
    assert re.findall(r'filter=(\w+)">', page) == ["80", "443"]
    assert "and 27,998 less frequent values" in page
    # Widths of bars are relative to the largest bar, but at least 1 %.
    assert re.findall(r'width="([\d.]+)%"', page) == ["100.0", "100.0", "1.0"]


def test_all_values_of_a_label_with_few_values_are_listed():
    values = [(f"v{n}", 1) for n in range(20)]
    page = as_html(report(label("x", *values), connections=10**6))
    assert summary(page) == "v0 1, v1 1 and 18 more"
    assert page.count("?filter=v") == 20
    assert "less frequent" not in page


@pytest.mark.parametrize(
    ("left", "whole", "text"),
    [
        (0, 0, "0 %"),
        (8, 8, "0 %"),
        (9_999, 10_000, "0 %"),
        (9_994, 10_000, "−0.1 %"),
        (4, 8, "−50 %"),
        (2, 100, "−98 %"),
        (5, 1_000, "−99.5 %"),
        (1, 200_000, "−99.9 %"),
    ],
)
def test_relative_change_is_never_rounded_to_100_percent(left, whole, text):
    assert change(left, whole) == text


def test_html_shows_how_many_connections_there_would_be_without_a_label():
    without = WithoutLabel(label="many", connections=2, series_at_most=6)
    page = re.sub(r"<.*?>", "", as_html(report(label("many", ("a", 4)), without=without)))
    assert "Without many, there would be 2 connections (−75 %) with at most 6 series." in page


def test_report_of_an_empty_table_can_be_rendered():
    empty = report(label("x", left=0), connections=0)
    assert rows(as_html(empty)) == [["x", "0", "0", "0 %"]]
    assert "0 connections" in as_html(empty)
    assert json.loads(as_json(empty))["labels"] == [
        {"name": "x", "values": 0, "top": [], "without": {"connections": 0, "series_at_most": 0}}
    ]
