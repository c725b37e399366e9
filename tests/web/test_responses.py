import pytest

from skyfast.web.responses import encoding, openmetrics_version
from tests.support.web_fixtures import PROMETHEUS, PROMETHEUS_OPENMETRICS_2


@pytest.mark.parametrize(
    ("accept_encoding", "chosen"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("gzip, deflate, br, zstd", "gzip"),
        ("deflate, br", "identity"),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", "gzip"),
        ("gzip;q=1", "gzip"),
        ("gzip;q=0.001", "gzip"),
        ("gzip ; q=1.000", "gzip"),
        ("gzip;Q=0.5", "gzip"),
        ("gzip;q=0", "identity"),
        ("gzip;q=0.000", "identity"),
        ("gzip;q=0, *", "identity"),
        ("*", "gzip"),
        ("*;q=0.5", "gzip"),
        ("deflate, *;q=0", None),
        ("*;q=0", None),
        ("*;q=0, identity", "identity"),
        ("*;q=0, gzip", "gzip"),
        ("identity", "identity"),
        ("identity, gzip", "gzip"),
        ("identity;q=1, gzip;q=0.5", "identity"),
        ("identity;q=0.5, gzip;q=1", "gzip"),
        ("identity;q=0", None),
        ("identity;q=0, gzip", "gzip"),
        ("identity;q=0, gzip;q=0", None),
        ("identity;q=0, *", "gzip"),
        # Invalid entries are ignored.
        ("gzip;q=2", "identity"),
        ("gzip;q=-1", "identity"),
        ("gzip;q=0.1234", "identity"),
        ("gzip;q=nan", "identity"),
        ("gzip;level=9", "identity"),
        ("gzip;q=abc, identity;q=xyz", "identity"),
        ("gzip br", "identity"),
        (",, ,gzip,", "gzip"),
        ("\x00gzip", "identity"),
    ],
)
def test_encoding_is_negotiated(accept_encoding, chosen):
    assert encoding(accept_encoding) == chosen


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, 0),
        ("", 0),
        ("*/*", 0),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", 0),
        *((accept, 1) for accept in PROMETHEUS.values()),
        ("text/plain;version=0.0.4;q=1,application/openmetrics-text;version=1.0.0;q=0.9", 0),
        ("text/plain, application/openmetrics-text", 1),
        ("text/plain;q=0.5, application/openmetrics-text;q=0.4", 0),
        ("application/openmetrics-text", 1),
        ("APPLICATION/OpenMetrics-Text ; Version=1.0.0 ; Q=0.1", 1),
        ('application/openmetrics-text; version="1.0.0"; charset="utf-8"', 1),
        ("application/openmetrics-text;version=0.0.1", 0),
        ("application/openmetrics-text;version=2.0.0", 2),
        ("application/openmetrics-text;q=0", 0),
        # The most specific media range applies.
        ("application/openmetrics-text;q=0, application/openmetrics-text;version=1.0.0", 1),
        ("application/openmetrics-text, application/openmetrics-text;version=1.0.0;q=0", 0),
        ("application/openmetrics-text;q=0.5, text/*;q=0.6", 0),
        ("application/openmetrics-text;q=0.5, text/*, text/plain;q=0.1", 1),
        ("application/openmetrics-text;q=0.5, */*;q=0.6", 0),
        ("application/*, text/plain;q=0.1", 0),
        # Only an explicit 2.0.0 selects OpenMetrics 2.0. Of versions with the same weight, the
        # newest is chosen.
        (PROMETHEUS_OPENMETRICS_2, 2),
        ("application/openmetrics-text;version=2.0.0;q=0.5, */*;q=0.4", 2),
        ("application/openmetrics-text;version=2.0.0;q=0.3, */*;q=0.4", 0),
        ("application/openmetrics-text;version=2.0.0, application/openmetrics-text", 2),
        ("application/openmetrics-text;q=0.9, application/openmetrics-text;version=2.0.0;q=0.8", 1),
        ("application/openmetrics-text;version=2.0.0;q=0.5, text/plain;q=0.6", 0),
        ("application/openmetrics-text;version=2.0.0;q=0, application/openmetrics-text", 1),
        ("application/openmetrics-text;version=2.0.1", 0),
        # Invalid entries are ignored.
        ("application/openmetrics-text;q=2", 0),
        ("application/openmetrics-text;q=", 0),
        ("application/openmetrics-text;version", 0),
        ("application/openmetrics-text;;version=1.0.0;", 1),
        ("openmetrics-text", 0),
        ("application/openmetrics-text/x", 0),
        (",;,=,/;q,application/openmetrics-text", 1),
    ],
)
def test_openmetrics_is_chosen_only_if_it_has_the_highest_weight(accept, chosen):
    assert openmetrics_version(accept, with_first=True) == chosen


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (PROMETHEUS["3"], 0),
        (PROMETHEUS_OPENMETRICS_2, 2),
        (
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,"
                "application/openmetrics-text;version=2.0.0;q=0.4,text/plain;q=0.3"
            ),
            2,
        ),
        ("application/openmetrics-text", 0),
    ],
)
def test_openmetrics_1_is_not_chosen_if_it_is_disabled(accept, chosen):
    assert openmetrics_version(accept, with_first=False) == chosen
