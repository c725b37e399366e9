"""The rules of the exposition formats."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from skyfast.stats import HistogramStats
from skyfast.text_format import (
    MetricFamily,
    bound_text,
    escaped,
    is_name,
    label_text,
    number_text,
    with_unknown_starts,
)
from tests.support import openmetrics_2


def test_help_type_and_unit_lines_depend_on_the_format():
    family = MetricFamily(name="x_bytes_total", type="counter", help='a "b" \\ c\nd')
    assert family.head(openmetrics=False) == (
        '# HELP x_bytes_total a "b" \\\\ c\\nd\n# TYPE x_bytes_total counter\n'
    )
    assert family.head(openmetrics=True) == (
        '# HELP x_bytes a \\"b\\" \\\\ c\\nd\n# TYPE x_bytes counter\n# UNIT x_bytes bytes\n'
    )
    gauge = MetricFamily(name="x", type="gauge", help="y")
    assert gauge.head(openmetrics=True) == "# HELP x y\n# TYPE x gauge\n"
    info = MetricFamily(name="x_info", type="info", help="y")
    assert info.head(openmetrics=False) == "# HELP x_info y\n# TYPE x_info gauge\n"
    assert info.head(openmetrics=True) == "# HELP x y\n# TYPE x info\n"


def test_families_in_openmetrics_2_have_the_names_of_their_samples():
    family = MetricFamily(name="x_bytes_total", type="counter", help='a "b" \\ c\nd')
    assert family.head(openmetrics=2) == (
        "# TYPE x_bytes_total counter\n# UNIT x_bytes_total bytes\n"
        '# HELP x_bytes_total a \\"b\\" \\\\ c\\nd\n'
    )
    info = MetricFamily(name="x_info", type="info", help="y")
    assert info.head(openmetrics=2) == "# TYPE x_info info\n# HELP x_info y\n"


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("x_bytes_total", "bytes"),
        ("x_timestamp_seconds", "seconds"),
        ("rtt_nanoseconds", "nanoseconds"),
        ("x_total_bytes", "bytes"),
        ("x_total", ""),
        ("x_megabytes", ""),
        ("bytes", ""),
        ("x_bytes_sent", ""),
    ],
)
def test_unit_is_the_suffix_of_the_name(name, unit):
    assert MetricFamily(name=name, type="counter", help="").unit == unit


def test_family_reserves_the_names_of_its_series():
    counter = MetricFamily(name="x_total", type="counter", help="")
    assert counter.reserved_names == ("x", "x_total", "x_created")
    gauge = MetricFamily(name="x_total", type="gauge", help="")
    assert gauge.reserved_names == ("x_total",)
    histogram = MetricFamily(name="x", type="histogram", help="")
    assert histogram.reserved_names == ("x", "x_bucket", "x_count", "x_sum", "x_created")
    info = MetricFamily(name="x_info", type="info", help="")
    assert info.reserved_names == ("x", "x_info")


@pytest.mark.parametrize("text", ["x", "_", "A_1", "__x"])
def test_valid_name_is_accepted(text):
    assert is_name(text)


@pytest.mark.parametrize("text", ["", "1x", "a-b", "a:b", "é", "x\n", "x "])
def test_invalid_name_is_rejected(text):
    assert not is_name(text)


def test_samples_are_rendered_after_help_and_type_lines():
    family = MetricFamily(name="x_seconds", type="gauge", help="Help.")
    samples = [({}, 2**63 - 1), ({"a": 'b"\\\n', "c": ""}, 0.1)]
    head = "# HELP x_seconds Help.\n# TYPE x_seconds gauge\n"
    lines = 'x_seconds 9223372036854775807\nx_seconds{a="b\\"\\\\\\n",c=""} 0.1\n'
    assert family.render(samples, openmetrics=False) == head + lines
    page = family.render(samples, openmetrics=True)
    assert page == head + "# UNIT x_seconds seconds\n" + lines
    (read,) = text_string_to_metric_families(page + "# EOF\n")
    assert [(sample.labels, sample.value) for sample in read.samples] == samples


def test_histogram_is_rendered_with_cumulative_buckets():
    family = MetricFamily(name="x_seconds", type="histogram", help="Help.")
    histogram = HistogramStats((0.5, 1.0, 1e6))
    for value in (0.25, 0.5, 2.0, 2e6):
        histogram.observe(value)
    page = family.render_histograms([({"a": "1"}, histogram)], openmetrics=True)
    assert page == (
        "# HELP x_seconds Help.\n# TYPE x_seconds histogram\n# UNIT x_seconds seconds\n"
        'x_seconds_bucket{a="1",le="0.5"} 2\n'
        'x_seconds_bucket{a="1",le="1.0"} 2\n'
        'x_seconds_bucket{a="1",le="1e+06"} 3\n'
        'x_seconds_bucket{a="1",le="+Inf"} 4\n'
        'x_seconds_sum{a="1"} 2000002.75\n'
        'x_seconds_count{a="1"} 4\n'
    )
    (read,) = text_string_to_metric_families(page + "# EOF\n")
    assert read.type == "histogram"


def test_histogram_is_one_sample_in_openmetrics_2():
    family = MetricFamily(name="x_seconds", type="histogram", help="Help.")
    histogram = HistogramStats((0.5, 1.0, 1e6))
    for value in (0.25, 0.5, 2.0, 2e6):
        histogram.observe(value)
    page = family.render_histograms(
        [({"a": "1"}, histogram), ({}, HistogramStats(()))], openmetrics=2
    )
    assert page == (
        "# TYPE x_seconds histogram\n# UNIT x_seconds seconds\n# HELP x_seconds Help.\n"
        'x_seconds{a="1"} {count:4,sum:2000002.75,bucket:[0.5:2,1.0:2,1e+06:3,+Inf:4]}\n'
        "x_seconds {count:0,sum:0.0,bucket:[+Inf:0]}\n"
    )
    openmetrics_2.families_of(page + "# EOF\n")


def test_unknown_start_times_of_counters_are_shown_as_0():
    page = (
        b"# HELP x Help of x_total 1\n# TYPE x counter\n"
        b'x_total{a="b} 1",c="\\"}\\n"} 2\nx_total 3\n# TYPE y_total gauge\n'
    )
    lines = page.splitlines(keepends=True)
    expected = [
        *lines[:3],
        b'x_created{a="b} 1",c="\\"}\\n"} 0\n',
        lines[3],
        b"x_created 0\n",
        lines[4],
    ]
    assert with_unknown_starts(page) == b"".join(expected)


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        (1, "1.0"),
        (0.005, "0.005"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (100000, "100000.0"),
        (1e6, "1e+06"),
        (1234567, "1234567.0"),
        (0.1 + 0.2, "0.30000000000000004"),
        (2.5e-7, "2.5e-07"),
        (1e300, "1e+300"),
    ],
)
def test_bucket_bound_is_written_as_in_openmetrics(bound, text):
    assert bound_text(bound) == text


def test_each_formatted_value_is_rendered_as_a_line():
    family = MetricFamily(name="x", type="gauge", help="Help.")
    assert family.lines([('{a="b"}', "1"), ("", "2.5")]) == 'x{a="b"} 1\nx 2.5\n'


def test_labels_are_escaped():
    assert escaped('a\\b"c\nd') == 'a\\\\b\\"c\\nd'
    assert label_text({}) == ""
    assert label_text({"a": "1", "b": '"'}) == '{a="1",b="\\""}'


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (10**18, "1" + "0" * 18), (0.5, "0.5")])
def test_numbers_are_exact(value, text):
    assert number_text(value) == text
