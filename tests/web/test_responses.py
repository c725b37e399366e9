import pytest

from skyfast.web.responses import encoding, prefers_openmetrics
from tests.support.web_fixtures import PROMETHEUS


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
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        *((accept, True) for accept in PROMETHEUS.values()),
        ("text/plain;version=0.0.4;q=1,application/openmetrics-text;version=1.0.0;q=0.9", False),
        ("text/plain, application/openmetrics-text", True),
        ("text/plain;q=0.5, application/openmetrics-text;q=0.4", False),
        ("application/openmetrics-text", True),
        ("APPLICATION/OpenMetrics-Text ; Version=1.0.0 ; Q=0.1", True),
        ('application/openmetrics-text; version="1.0.0"; charset="utf-8"', True),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;q=0", False),
        # The most specific range applies.
        ("application/openmetrics-text;q=0, application/openmetrics-text;version=1.0.0", True),
        ("application/openmetrics-text, application/openmetrics-text;version=1.0.0;q=0", False),
        ("application/openmetrics-text;q=0.5, text/*;q=0.6", False),
        ("application/openmetrics-text;q=0.5, text/*, text/plain;q=0.1", True),
        ("application/openmetrics-text;q=0.5, */*;q=0.6", False),
        ("application/*, text/plain;q=0.1", False),
        # Invalid entries are ignored.
        ("application/openmetrics-text;q=2", False),
        ("application/openmetrics-text;q=", False),
        ("application/openmetrics-text;version", False),
        ("application/openmetrics-text;;version=1.0.0;", True),
        ("openmetrics-text", False),
        ("application/openmetrics-text/x", False),
        (",;,=,/;q,application/openmetrics-text", True),
    ],
)
def test_openmetrics_needs_the_highest_preference(accept, chosen):
    assert prefers_openmetrics(accept) is chosen
