import asyncio
import contextlib
import dataclasses
import errno
import json
import logging
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
import zlib

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as text_string_to_openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from skyfast import __version__
from skyfast.skydive.captures import Captures
from skyfast.stats import CaptureStats
from skyfast.text_format import MetricFamily
from skyfast.web import connections, server
from skyfast.web.exposition import FIRST_CHUNK_BYTES
from tests.support import openmetrics_2
from tests.support.http_client import OWN, PAGES, PATHS, SMALL_RECEIVE_BUFFER, Client, Site, request
from tests.support.waiting import PROMPT_S, until
from tests.support.web_fixtures import (
    BIG,
    CAPTURES,
    FLOWS,
    INTERFACES,
    PROMETHEUS,
    PROMETHEUS_OPENMETRICS_2,
    FakeTable,
    on_both_loops,
    page_threads,
    source,
)

pytestmark = pytest.mark.xdist_group("timing")

PROMTOOL = shutil.which("promtool")


# --- pages


@on_both_loops
async def test_page_contains_all_parts():
    async with Site() as site:
        response = await site.get("/metrics")
        assert response.status == 200
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert response.headers["vary"] == "Accept, Accept-Encoding"
        assert response.headers["server"] == f"skyfast/{__version__}"
        assert "content-encoding" not in response.headers
        assert response.body.startswith(
            FLOWS + INTERFACES + CAPTURES + b"# HELP skyfast_build_info "
        )
        families = {family.name for family in text_string_to_metric_families(response.text)}
        assert {
            "skydive_network_connection_total_bytes",
            "skydive_network_interface_rx_bytes",
            "skyfast_connections",
            "process_cpu_seconds",
        } <= families


@on_both_loops
async def test_each_part_of_the_page_has_its_own_path():
    async with Site() as site:
        assert (await site.get("/metrics/flows")).body == FLOWS
        assert (await site.get("/metrics/interfaces")).body == INTERFACES
        assert (await site.get("/metrics/captures")).body == CAPTURES
        own = await site.get("/metrics/self")
        assert own.body.startswith(b"# HELP skyfast_build_info ")
        assert own.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert len(site.table.asked_at) == 1


@on_both_loops
async def test_page_of_an_empty_part_is_empty():
    async with Site(FakeTable(b""), parts={"interfaces": b"", "captures": b""}) as site:
        for path in ("/metrics/flows", "/metrics/interfaces", "/metrics/captures"):
            response = await site.get(path)
            assert (response.status, response.body) == (200, b"")
            response = await site.get(path, accept_encoding="gzip")
            assert zlib.decompress(response.body, wbits=31) == b""


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
@on_both_loops
async def test_promtool_complains_only_about_compatible_names():
    async with Site() as site:
        page = (await site.get()).body
    promtool = await asyncio.create_subprocess_exec(
        PROMTOOL,
        "check",
        "metrics",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    complaints, _ = await promtool.communicate(page)
    assert {line.split()[0] for line in complaints.decode().splitlines()} == {
        "skydive_network_connection_total_bytes",
        "skydive_network_interface_rx_bytes",
    }


@on_both_loops
async def test_compatible_names_are_not_served_in_openmetrics_1():
    async with Site() as site:
        for accept in (
            "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5",
            "application/vnd.google.protobuf",
            "text/html",
            "image/png;q=1, */*;q=0",
        ):
            for path in PAGES:
                response = await site.get(path, accept=accept)
                assert response.status == 200
                assert (
                    response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
                )
                assert response.headers["vary"] == "Accept, Accept-Encoding"
                assert b"# EOF" not in response.body


@on_both_loops
async def test_openmetrics_is_negotiated():
    openmetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    async with Site(parts={"standard_names": True}) as site:
        for accept, chosen in (
            ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", True),
            ("text/plain, application/openmetrics-text;q=0.5", False),
            ("*/*", False),
        ):
            for path in PAGES:
                for method in ("GET", "HEAD"):
                    response = await site.get(path, method=method, accept=accept)
                    assert (response.headers["content-type"] == openmetrics) == chosen
                    assert response.headers["vary"] == "Accept, Accept-Encoding"
                    if method == "GET":
                        assert response.body.endswith(b"\n# EOF\n") == chosen
                        assert response.body.count(b"# EOF") == chosen
        response = await site.get("/metrics/flows")
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        async with await site.ask(
            b"GET /metrics/flows HTTP/1.1\r\nHost: x\r\n"
            b"Accept: text/plain;q=0.1\r\nAccept: application/openmetrics-text\r\n\r\n"
        ) as client:
            assert (await client.read_response()).headers["content-type"] == openmetrics
        compressed = await site.get(accept="application/openmetrics-text", accept_encoding="gzip")
        assert zlib.decompress(compressed.body, wbits=31).endswith(b"\n# EOF\n")
        refused = await site.get(accept_encoding="br, *;q=0")
        assert refused.headers["vary"] == "Accept, Accept-Encoding"


@on_both_loops
@pytest.mark.parametrize("standard_names", [False, True])
async def test_openmetrics_2_is_negotiated(standard_names):
    async with Site(parts={"standard_names": standard_names, "captures": b""}) as site:
        for path in PAGES:
            for method in ("GET", "HEAD"):
                response = await site.get(path, method=method, accept=PROMETHEUS_OPENMETRICS_2)
                assert response.headers["content-type"] == (
                    "application/openmetrics-text; version=2.0.0; charset=utf-8"
                )
                assert response.headers["vary"] == "Accept, Accept-Encoding"
            response = await site.get(path, accept=PROMETHEUS_OPENMETRICS_2)
            assert response.body.endswith(b"# EOF\n")
            if path == "/metrics/self":
                families = openmetrics_2.families_of(response.body.decode())
                assert families["process_cpu_seconds_total"].metadata["UNIT"] == "seconds"
                kinds = {family.metadata["TYPE"] for family in families.values()}
                assert kinds == {"counter", "gauge", "histogram"}


@on_both_loops
async def test_openmetrics_can_be_disabled():
    async with Site(parts={"standard_names": True}, openmetrics=False) as site:
        for accept in (*PROMETHEUS.values(), PROMETHEUS_OPENMETRICS_2):
            for path in PAGES:
                response = await site.get(path, accept=accept)
                assert (
                    response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
                )
                assert response.headers["vary"] == "Accept-Encoding"
                assert b"# EOF" not in response.body
        limits = dataclasses.replace(site.config.web, openmetrics=True)
        site.server.configure(limits, reload=None)
        response = await site.get(accept=PROMETHEUS["3"])
        assert response.body.endswith(b"\n# EOF\n")


@on_both_loops
async def test_reference_parser_reads_openmetrics():
    captures = Captures(naming="standard", stats=CaptureStats())
    captures.message(b'{"CaptureID":"c-1","FlowCount":3,"FlowDropped":4}', 100)
    name = "skydive_x_bytes_total"
    flows = MetricFamily(name=name, type="counter", help="Bytes.").head(openmetrics=True)
    flows += f'{name}{{initiator_ip="10.0.0.1"}} 7\n'
    table = FakeTable(flows.encode())
    table.view_connections = (2,)
    table.view_rejected_totals = (0,)
    parts = {"interfaces": b"", "views": ("skydive_traffic",), "standard_names": True}
    async with Site(table, parts=parts) as site:
        site.exposition.source = dataclasses.replace(site.exposition.source, captures=captures)
        for path in PAGES:
            response = await site.get(path, accept=PROMETHEUS["2.42"])
            families = {
                family.name: family for family in text_string_to_openmetrics_families(response.text)
            }
            if path == "/metrics":
                assert families["skydive_x_bytes"].unit == "bytes"
                assert families["skydive_capture_flows_dropped"].samples[0].value == 4
                assert families["skyfast_label_values"].samples
                assert families["skyfast_view_connections"].samples[0].value == 2
                assert families["process_cpu_seconds"].type == "counter"


@on_both_loops
async def test_new_source_applies_to_new_pages():
    async with Site() as site:
        accept = {"accept": "application/openmetrics-text"}
        assert (await site.get("/metrics/flows", **accept)).body == FLOWS
        site.exposition.source = source(FakeTable(b"new 1\n"), standard_names=True)
        assert (await site.get("/metrics/flows", **accept)).body == b"new 1\n# EOF\n"


@on_both_loops
async def test_pages_can_be_compressed():
    async with Site(FakeTable(BIG)) as site:
        plain = await site.get("/metrics/flows")
        response = await site.get("/metrics/flows", accept_encoding="gzip")
        assert response.headers["content-encoding"] == "gzip"
        assert response.headers["vary"] == "Accept, Accept-Encoding"
        assert zlib.decompress(response.body, wbits=31) == plain.body == BIG
        assert len(response.body) < len(BIG) / 5
        own = await site.get("/metrics/self", accept_encoding="gzip")
        assert own.headers["content-encoding"] == "gzip"
        assert own.headers["vary"] == "Accept, Accept-Encoding"
        assert zlib.decompress(own.body, wbits=31).startswith(b"# HELP skyfast_build_info ")


@on_both_loops
async def test_gzip_is_negotiated():
    async with Site() as site:
        for accepted, coding in (
            ("", None),
            ("deflate, br", None),
            ("gzip;q=0", None),
            ("*", "gzip"),
            ("identity;q=0, gzip", "gzip"),
        ):
            for path in ("/metrics", "/metrics/self"):
                response = await site.get(path, accept_encoding=accepted)
                assert response.headers.get("content-encoding") == coding, accepted
        async with await site.ask(
            b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
            b"Accept-Encoding: gzip;q=0.5\r\nAccept-Encoding: identity;q=1\r\n\r\n"
        ) as client:
            assert "content-encoding" not in (await client.read_response()).headers


@on_both_loops
async def test_page_without_an_acceptable_encoding_is_rejected():
    async with Site() as site:
        for method in ("GET", "HEAD"):
            response = await site.get(accept_encoding="br, *;q=0", method=method)
            assert response.status == 406
            assert response.headers["vary"] == "Accept, Accept-Encoding"
        assert not site.table.asked_at


@on_both_loops
async def test_status_page_is_the_start_page():
    async with Site() as site:
        response = await site.get("/")
        assert response.status == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        assert __version__ in response.text
        links = set(re.findall(r'<a [^>]*href="([^"?#]+)', response.text)) - {"./"}
        # A proxy can serve the pages below a path, so the links are relative.
        assert {f"/{link}" for link in links} == set(PATHS) - {"/"}
        for link in links:
            assert (await site.get(f"/{link}")).status == 200


@on_both_loops
async def test_pages_for_browsers_load_no_resources():
    async with Site() as site:
        for path in ("/", "/cardinality", "/help", "/no/such/page"):
            response = await site.get(path, accept="text/html")
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; style-src 'sha256-")
            assert "unsafe" not in policy
            assert not re.findall(r" src=|url\(|@import|https?://(?!www\.w3\.org)", response.text)
            assert not re.findall(r" (?:style|on\w+)=", response.text)


@on_both_loops
async def test_health_and_readiness_have_their_own_pages():
    subscribed = False
    async with Site(ready=lambda: subscribed) as site:
        response = await site.get("/-/healthy")
        assert (response.status, response.text) == (200, "skyfast is healthy.\n")
        response = await site.get("/-/ready")
        assert (response.status, response.text) == (
            503,
            "Not ready: not subscribed to any analyzer.\n",
        )
        assert (await site.get("/-/ready", method="HEAD")).status == 503
        subscribed = True
        response = await site.get("/-/ready")
        assert (response.status, response.text) == (200, "skyfast is ready.\n")


@on_both_loops
async def test_cardinality_has_the_negotiated_format():
    async with Site() as site:
        page = await site.get("/cardinality")
        assert page.status == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["vary"] == "Accept"
        assert '<th scope="row">target_ip</th>' in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        for headers in ({"accept": "text/html, */*"}, {"accept": "*/*"}):
            assert (await site.get("/cardinality", **headers)).text == page.text
        expected = {
            "connections": 2,
            "series_at_most": 6,
            "approximate": False,
            "labels": [
                {
                    "name": "initiator_ip",
                    "values": 1,
                    "top": [{"value": "10.0.0.1", "connections": 2}],
                    "without": {"connections": 2, "series_at_most": 6},
                },
                {
                    "name": "target_ip",
                    "values": 2,
                    "top": [
                        {"value": "10.0.0.2", "connections": 1},
                        {"value": "10.0.0.3", "connections": 1},
                    ],
                    "without": {"connections": 1, "series_at_most": 3},
                },
            ],
            "views": [],
            "without": None,
            "forecast": None,
        }
        for path, headers in (
            ("/cardinality?format=json", {}),
            ("/cardinality?format=json", {"accept": "text/html"}),
            ("/cardinality", {"accept": "application/json"}),
            ("/cardinality?without=", {"accept": "application/json, text/html;q=0.9"}),
        ):
            response = await site.get(path, **headers)
            assert response.headers["content-type"] == "application/json"
            assert json.loads(response.body) == expected
        html = await site.get("/cardinality?format=html", accept="application/json")
        assert html.text == page.text
        # One scan in another thread served all requests.
        assert site.table.scans == ["cardinality"]
        assert threading.current_thread() not in site.table.threads


@on_both_loops
async def test_not_found_page_for_browsers_links_to_other_pages():
    async with Site() as site:
        for path, root in (("/x", "./"), ("/api/x", "../"), ("/a/b/c%3Cb%3E", "../../")):
            response = await site.get(path, accept="text/html,*/*;q=0.8")
            assert (response.status, response.headers["vary"]) == (404, "Accept")
            assert response.headers["content-type"] == "text/html; charset=utf-8"
            links = re.findall(r'href="([^d][^"]*)"', response.text)
            assert [*dict.fromkeys(links)] == [
                root,
                *(f"{root}{page}" for page in ("cardinality", "help", "metrics")),
            ]
            assert "<b>" not in response.text
        response = await site.get("/x", accept="*/*")
        assert (response.status, response.text) == (404, "Page not found.\n")


@on_both_loops
async def test_cardinality_after_removal_of_a_label_can_be_estimated():
    async with Site() as site:
        response = await site.get("/cardinality?without=target_ip&format=json")
        without = {"label": "target_ip", "connections": 1, "series_at_most": 3}
        assert json.loads(response.body)["without"] == without
        page = await site.get("/cardinality?without=target_ip")
        assert "Without <code>target_ip</code>, there would be <strong>1 connection" in page.text
        for label in ("nothing", "direction", "%3Cb%3E%0A"):
            response = await site.get(f"/cardinality?without={label}")
            assert response.status == 400
            assert response.headers["content-type"] == "text/plain; charset=utf-8"
            assert response.text.endswith(". Labels: initiator_ip, target_ip.\n")
            assert response.text.count("\n") == 1
        assert site.table.scans == ["cardinality target_ip"]


@on_both_loops
async def test_one_cardinality_scan_runs_at_a_time():
    """A scan continues after its client disconnects. Until the scan ends, other requests fail."""
    async with Site(FakeTable(pause_scans=True)) as site:
        async with await site.ask(request("/cardinality")):
            await until(lambda: site.table.scans)
            for path in ("/cardinality", "/cardinality?without=target_ip"):
                response = await site.get(path)
                assert response.status == 503
                assert response.headers["retry-after"] == "1"
                assert response.text == "Busy: another report is in progress. Try again.\n"
            for path in ("/metrics/flows", "/-/healthy"):
                assert (await site.get(path)).status == 200
        assert (await site.get("/cardinality")).status == 503
        site.table.resume.set()
        await until(lambda: not site.exposition.source.cardinality._reports.is_scanning)
        assert (await site.get("/cardinality")).status == 200
        assert site.table.scans == ["cardinality"]


@on_both_loops
async def test_slow_cardinality_report_is_aborted(monkeypatch):
    monkeypatch.setattr(server, "RESPONSE_TIMEOUT_S", 0.1)
    async with Site(FakeTable(pause_scans=True)) as site:
        with pytest.raises(ConnectionError):
            await site.get("/cardinality")
        site.table.resume.set()


@on_both_loops
async def test_failing_cardinality_report_gets_status_500(caplog):
    table = FakeTable()
    table.values = {}
    async with Site(table) as site:
        for _ in range(2):
            assert (await site.get("/cardinality")).status == 500
        table.values = FakeTable().values
        await asyncio.sleep(0)
        assert (await site.get("/-/healthy")).status == 200
    assert [record.getMessage() for record in caplog.records] == ["GET /cardinality failed"] * 2


# --- reloading


@on_both_loops
async def test_response_to_a_reload_contains_its_result():
    outcomes = [None, "skyfast.yml: port: 70000 is not from 0 to 65535", None]

    async def reload():
        await asyncio.sleep(0)
        return outcomes.pop(0)

    async with Site(reload=reload) as site:
        response = await site.get("/-/reload", method="POST")
        assert (response.status, response.text) == (200, "Configuration reloaded.\n")
        response = await site.get("/-/reload", method="PUT")
        assert response.status == 500
        assert response.text == (
            "failed to reload config: skyfast.yml: port: 70000 is not from 0 to 65535\n"
        )
        for method in ("GET", "HEAD", "DELETE"):
            response = await site.get("/-/reload", method=method)
            assert (response.status, response.headers["allow"]) == (405, "POST, PUT, OPTIONS")
        body = b"name=value"
        async with await site.ask(
            request("/-/reload", method="POST", content_length=len(body)) + body
        ) as client:
            assert (await client.read_response()).status == 200
        assert outcomes == []


@on_both_loops
async def test_reload_is_disabled_by_default():
    async with Site() as site:
        for method in ("POST", "PUT"):
            response = await site.get("/-/reload", method=method)
            assert response.status == 403
            assert response.text == (
                "Lifecycle API is not enabled. To enable it, set web.enable_reload to true.\n"
            )
        response = await site.get("/-/reload")
        assert (response.status, response.headers["allow"]) == (405, "POST, PUT, OPTIONS")


@on_both_loops
async def test_reload_completes_without_its_client():
    started, may_end = asyncio.Event(), asyncio.Event()
    ended = False

    async def reload():
        nonlocal ended
        started.set()
        await may_end.wait()
        ended = True

    async with Site(reload=reload) as site:
        async with await site.ask(request("/-/reload", method="POST")):
            await started.wait()
        await asyncio.sleep(0.05)
        may_end.set()
        await until(lambda: ended)


@on_both_loops
async def test_failing_reload_gets_status_500(caplog):
    async def reload():
        raise ValueError("unexpected")

    async with Site(reload=reload) as site:
        response = await site.get("/-/reload", method="POST")
        assert (response.status, response.text) == (500, "Internal Server Error.\n")
    assert caplog.records[0].getMessage() == "POST /-/reload failed"


@on_both_loops
async def test_new_limits_take_effect_after_a_reload():
    async def reload():
        return None

    async with Site(FakeTable(BIG), max_scrapes=1) as site, await site.begin_scrape():
        assert (await site.get("/metrics/flows")).status == 503
        limits = dataclasses.replace(site.config.web, max_scrapes=2, max_connections=2)
        site.server.configure(limits, reload=reload)
        assert (await site.get("/metrics/flows")).status == 200
        assert (await site.get("/-/reload", method="POST")).status == 200
        async with await site.ask(b""), await site.ask(b""):
            await until(lambda: site.scrape.connections_rejected == 1)


@on_both_loops
async def test_unknown_path_gets_status_404():
    async with Site() as site:
        for path in ("/metric", "/metrics/", "//metrics", "/metrics/x", "/-/", "/favicon.ico"):
            for method in ("GET", "POST"):
                response = await site.get(path, method=method)
                assert response.status == 404
                assert response.headers["content-type"] == "text/plain; charset=utf-8"
                assert response.text == "Page not found.\n"


@on_both_loops
async def test_query_string_and_absolute_url_are_accepted():
    async with Site() as site:
        for path in ("/metrics/interfaces", "/metrics/captures"):
            body = INTERFACES if path == "/metrics/interfaces" else CAPTURES
            assert (await site.get(f"{path}?name[]=x&debug=1")).body == body
        assert (await site.get("/metrics?name[]=x&debug=1")).body.startswith(FLOWS)
        assert (await site.get("/metrics/flows?")).body == FLOWS
        assert (await site.get("http://x/metrics/flows")).body == FLOWS


# --- the query of /metrics/flows

FAMILIES = "skydive_network_connection_total_bytes, skydive_network_connection_rtt_nanoseconds"


@on_both_loops
async def test_query_selects_a_part_and_families():
    (bytes_, rtt) = FAMILIES.split(", ")
    async with Site() as site:
        for query, part, parts, names in (
            ("", 0, 1, None),
            ("part=0/1", 0, 1, None),
            ("part=3/64", 3, 64, None),
            ("part=3%2F64", 3, 64, None),
            (f"name[]={bytes_}", 0, 1, {bytes_}),
            (f"name%5B%5D={bytes_}&part=1/2&name[]={rtt}&name[]={rtt}", 1, 2, {bytes_, rtt}),
        ):
            response = await site.get(f"/metrics/flows?{query}")
            assert (response.status, response.body) == (200, FLOWS)
            assert site.table.queries.pop() == {
                "created": False,
                "part": part,
                "parts": parts,
                "names": names,
            }
            response = await site.get(f"/metrics/flows?{query}", method="HEAD")
            assert response.status == 200
            assert not site.table.queries


NOT_A_PART = "part: not I/N with I from 0 to N - 1, and N up to 64."


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        *((f"part={text}", NOT_A_PART) for text in ("", "0", "1/1", "0/0", "0/65", "64/64")),
        *((f"part={text}", NOT_A_PART) for text in ("-1/2", "+0/2", "00/2", "0/02", "0/2/3")),
        *((f"part={text}", NOT_A_PART) for text in ("0/%D9%A2", "0%2F2%0A", "0 /2", "99999/99999")),
        ("part=0/2&part=0/2", "The parameter 'part' is repeated."),
        ("name[]=x", f"name[]: unknown metric 'x'. Metrics: {FAMILIES}."),
        ("name[]=", f"name[]: unknown metric ''. Metrics: {FAMILIES}."),
        ("name[]=%1b[1m", rf"name[]: unknown metric '\x1b[1m'. Metrics: {FAMILIES}."),
        ("name=x", "Unknown parameter 'name'. Parameters: part, name[]."),
        ("part=0/2&debug", "Unknown parameter 'debug'. Parameters: part, name[]."),
    ],
)
@on_both_loops
async def test_invalid_queries_are_rejected(query, problem):
    async with Site() as site:
        for method in ("GET", "HEAD"):
            path = f"/metrics/flows?{query.replace(' ', '%20')}"
            response = await site.get(path, method=method)
            assert response.status == 400
            assert response.text == ("" if method == "HEAD" else f"{problem}\n")
        assert not site.table.asked_at
        assert site.scrape.rejected == 0


@on_both_loops
async def test_only_the_page_of_flows_has_parts():
    async with Site() as site:
        for path in (*PATHS, "/metrics/flows/"):
            response = await site.get(f"{path}?part=0/2")
            if path == "/metrics/flows":
                assert response.status == 200
            elif path == "/metrics/flows/":
                assert response.status == 404
            else:
                assert response.status == 400
                assert response.text == "Only /metrics/flows accepts the parameter 'part'.\n"


@on_both_loops
async def test_each_part_ends_with_eof_and_counts_towards_max_scrapes_per_address():
    async with Site(
        FakeTable(BIG), max_scrapes_per_address=2, parts={"standard_names": True}
    ) as site:
        accept = {"accept": "application/openmetrics-text;version=1.0.0"}
        response = await site.get("/metrics/flows?part=1/3", accept_encoding="gzip", **accept)
        assert zlib.decompress(response.body, wbits=31) == BIG + b"# EOF\n"
        await until(lambda: site.scrape.scrapes == 1)
        paths = [f"/metrics/flows?part={part}/3" for part in range(3)]
        async with (
            await site.begin_scrape(paths[0], local="127.0.0.2"),
            await site.begin_scrape(paths[1], local="127.0.0.2"),
            await site.ask(request(paths[2]), local="127.0.0.2") as third,
        ):
            response = await third.read_response()
            assert response.status == 503
            assert response.text == (
                "Busy: 2 pages are being served to this address, which is the maximum"
                " (web.max_scrapes_per_address); to scrape 3 parts at the same time, set"
                " web.max_scrapes_per_address to at least 3. Try again.\n"
            )
            async with await site.ask(request("/metrics/flows?part=0/2"), local="127.0.0.2") as a:
                response = await a.read_response()
                assert response.text == (
                    "Busy: 2 pages are being served to this address, which is the maximum"
                    " (web.max_scrapes_per_address). Try again.\n"
                )
        assert site.scrape.rejected == 2


@on_both_loops
async def test_methods_other_than_get_head_and_options_are_not_allowed():
    async with Site() as site:
        for path in PATHS:
            for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE"):
                response = await site.get(path, method=method)
                assert (response.status, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert (await site.get("*")).status == 400
        assert not site.table.asked_at


def test_every_route_is_tested():
    assert set(server.ROUTES) == {*PATHS, "/-/reload", "*"}


@on_both_loops
async def test_response_to_options_lists_the_allowed_methods():
    """Some proxies use OPTIONS for health checks."""
    allowed = dict.fromkeys((*PATHS, "*"), "GET, HEAD, OPTIONS")
    allowed["/-/reload"] = "POST, PUT, OPTIONS"
    async with Site() as site:
        for path, methods in allowed.items():
            for version in ("1.0", "1.1"):
                async with await site.ask(
                    request(path, method="OPTIONS", version=version)
                ) as client:
                    status, headers = await client.read_head()
                    assert (status, headers["allow"]) == (204, methods)
                    assert not {"content-length", "content-type"} & {*headers}
        assert (await site.get("/nowhere", method="OPTIONS")).status == 404
        assert not site.table.asked_at


@on_both_loops
async def test_responses_forbid_caching():
    async with Site(max_scrapes=1) as site:
        for path in (*PATHS, "/nowhere", "/-/reload"):
            for method in ("GET", "HEAD", "DELETE"):
                response = await site.get(path, method=method)
                assert response.headers["cache-control"] == "no-store", path


@on_both_loops
async def test_head_gets_the_response_of_get_without_the_body():
    """All requests use one connection, so a body after HEAD would break the next response."""
    async with Site() as site, await site.ask(b"") as client:
        for path in (*PATHS, "/nothing"):
            for headers in ({}, {"accept_encoding": "gzip"}):
                await client.send(request(path, method="HEAD", **headers))
                head = await client.read_response(head=True)
                await client.send(request(path, **headers))
                get = await client.read_response()
                assert head.status == get.status
                for response in (head, get):
                    # Only GET has a Transfer-Encoding: the length of a page is not known in
                    # advance.
                    for name in ("date", "transfer-encoding"):
                        response.headers.pop(name, None)
                if path == "/metrics/self":
                    del get.headers["content-length"]
                if path in OWN:
                    for response in (head, get):
                        assert int(response.headers.pop("content-length")) > 0
                assert head.headers == get.headers
                assert get.body
        pages_of_flows = 2 * 2
        assert len(site.table.asked_at) == pages_of_flows
        assert site.scrape.scrapes == pages_of_flows


@on_both_loops
async def test_pipelined_requests_are_answered_in_order():
    requests = [
        request("/metrics/flows"),
        request("/metrics", method="HEAD"),
        request("/-/healthy"),
        request("/metrics/interfaces", accept_encoding="gzip"),
        request("/nothing", method="HEAD"),
        request("/metrics", method="POST", content_length=5) + b"hello",
        request("/metrics/flows"),
    ]
    async with Site() as site, await site.ask(b"".join(requests)) as client:
        assert (await client.read_response()).body == FLOWS
        assert (await client.read_response(head=True)).status == 200
        assert (await client.read_response()).text == "skyfast is healthy.\n"
        assert zlib.decompress((await client.read_response()).body, wbits=31) == INTERFACES
        assert (await client.read_response(head=True)).status == 404
        assert (await client.read_response()).status == 405
        assert (await client.read_response()).body == FLOWS


@pytest.mark.parametrize("version", ["0.9", "2.0"])
async def test_unsupported_http_versions_get_an_http_1_0_response(version):
    async with Site() as site:
        client = await site.ask(request("/-/healthy", version=version))
        async with client:
            assert (await client.read_until(b" ")) == b"HTTP/1.0 "
            assert await client.end() == "closed"


@on_both_loops
async def test_http_1_0_pages_end_with_the_connection():
    """Pages have no Content-Length, so HTTP/1.0 cannot keep the connection open."""
    async with Site(FakeTable(BIG)) as site:
        for path in (*PATHS, "/nowhere"):
            for method in ("GET", "HEAD"):
                response = await site.get(
                    path, method=method, version="1.0", connection="keep-alive"
                )
                assert "keep-alive" not in response.headers.get("connection", ""), path
        for headers in ({}, {"connection": "keep-alive"}):
            response = await site.get("/metrics/flows", version="1.0", **headers)
            assert response.status == 200
            assert "transfer-encoding" not in response.headers
            assert "keep-alive" not in response.headers.get("connection", "")
            assert response.body == BIG
            assert (await site.get("/-/healthy", version="1.0", **headers)).status == 200
            assert (await site.get(method="HEAD", version="1.0", **headers)).status == 200


@on_both_loops
async def test_half_closed_client_gets_a_response():
    async with Site(FakeTable(BIG)) as site:
        for version in ("1.0", "1.1"):
            async with await site.ask(request("/metrics/flows", version=version)) as client:
                client.sock.shutdown(socket.SHUT_WR)
                assert (await client.read_response()).body == BIG
                assert await client.end() == "closed"
        async with await site.ask(b"") as client:
            client.sock.shutdown(socket.SHUT_WR)
            assert await client.end() == "closed"


@on_both_loops
async def test_request_to_upgrade_is_ignored():
    async with Site() as site:
        for protocol in ("h2c", "websocket"):
            response = await site.get(
                "/metrics/flows", connection="Upgrade", upgrade=protocol, http2_settings="AAMAAABk"
            )
            assert (response.status, response.body) == (200, FLOWS)
            assert response.headers["connection"] == "close"


@on_both_loops
async def test_aiohttp_client_reads_compressed_pages():
    async with Site(FakeTable(BIG)) as site, aiohttp.ClientSession() as session:
        for _ in range(3):
            url = f"http://127.0.0.1:{site.port}/metrics/flows"
            async with session.get(url) as response:
                assert response.headers["Content-Encoding"] == "gzip"
                assert await response.read() == BIG


@on_both_loops
async def test_scrapes_are_measured():
    async with Site() as site:
        for path in ("/metrics/self", "/metrics/interfaces", "/", "/nothing"):
            await site.get(path)
        await site.get("/metrics", method="HEAD")
        assert site.scrape.scrapes == 0
        page = await site.get("/metrics/flows", accept_encoding="gzip")
        await until(lambda: site.scrape.scrapes == 1)
        assert site.scrape.last_bytes == len(FLOWS) > len(page.body)
        assert 0 < site.scrape.last_duration_s < 5
        page = await site.get("/metrics")
        await until(lambda: site.scrape.scrapes == 2)
        assert site.scrape.last_bytes == len(page.body)
        assert not site.scrape.rejected
        assert not any(site.scrape.failures.values())


# --- invalid requests


@on_both_loops
async def test_bad_request_closes_the_connection(caplog):
    async with Site() as site:
        for bad in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client\r\n\r\n",
            b"hello\r\n\r\n",
            b"GET /metrics HTTP/9.9\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        ):
            async with await site.ask(bad) as client:
                response = await client.read_response()
                assert (response.status, response.text) == (400, "Bad Request.\n"), bad
                assert response.headers["server"] == f"skyfast/{__version__}"
                assert response.headers["connection"] == "close"
                await client.end()
        assert (await site.get("/metrics/flows")).body == FLOWS
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


TOO_LARGE = {
    "line": (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n", 414, "request line longer than 4096 bytes"),
    "value": (b"GET / HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n", 431, "longer than 8190 bytes"),
    "name": (b"GET / HTTP/1.1\r\n" + b"x" * 9000 + b": \r\n", 431, "longer than 8190 bytes"),
    "number": (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200, 431, "more than 128 headers"),
    "huge value": (b"GET / HTTP/1.1\r\nX: " + b"x" * 900_000, 431, "longer than 8190 bytes"),
    "head": (
        b"GET / HTTP/1.1\r\n" + (b"x: " + b"x" * 8000 + b"\r\n") * 100,
        431,
        "request head longer than 65536 bytes",
    ),
}


@pytest.mark.parametrize("part", TOO_LARGE)
@on_both_loops
async def test_oversized_request_head_gets_a_response(part):
    head, status, reason = TOO_LARGE[part]
    async with Site() as site:
        for before in (b"", request("/-/healthy")):
            async with await site.ask(before) as client:
                if before:
                    await client.read_response()
                # The server responds before it has received all of these pieces.
                for start in range(0, len(head), 60_000):
                    await client.send(head[start : start + 60_000])
                    await asyncio.sleep(0.002)
                await client.send(b"\r\n\r\n")
                response = await client.read_response()
                assert response.status == status
                assert response.text.endswith(f"{reason}.\n")
                assert response.headers["connection"] == "close"
                assert await client.end() == "closed"


@on_both_loops
async def test_request_bodies_are_ignored():
    async with Site() as site, await site.ask(b"") as client:
        for path in ("/metrics/flows", "/-/healthy"):
            for body in (b"x", b"x" * 50_000):
                await client.send(request(path, content_length=len(body)) + body)
                assert (await client.read_response()).status == 200
        await client.send(
            request("/metrics/flows", transfer_encoding="chunked") + b"1\r\nx\r\n0\r\n\r\n"
        )
        assert (await client.read_response()).body == FLOWS
        bomb = zlib.compress(b"0" * 50_000_000)
        await client.send(
            request("/metrics/flows", content_encoding="deflate", content_length=len(bomb)) + bomb
        )
        assert (await client.read_response()).body == FLOWS


@on_both_loops
async def test_large_body_is_not_read():
    async with Site() as site, await site.ask(request(content_length=10**9)) as client:
        assert (await client.read_response()).status == 200
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                await client.send(b"x" * 1_000_000)
                await asyncio.sleep(0)


@on_both_loops
async def test_missing_body_times_out():
    async with Site() as site, await site.ask(request(content_length=10)) as client:
        assert (await client.read_response()).status == 200
        begin = time.monotonic()
        assert await client.end() == "closed"
        assert time.monotonic() - begin < connections.BODY_TIMEOUT_S + 1


@on_both_loops
async def test_endless_pipelining_is_aborted():
    """While a client does not read its page, the server stores no further requests."""
    pipelined = request("/-/healthy") * 10_000
    sent_bytes = 0
    site = Site(FakeTable(BIG), scrape_timeout_s=0.5)
    async with site, await site.begin_scrape() as client:
        with pytest.raises(ConnectionError):
            while True:
                await client.send(pipelined)
                await asyncio.sleep(0)
                sent_bytes += len(pipelined)
    assert sent_bytes < 20_000_000  # more than the kernel can buffer


@on_both_loops
async def test_endless_headers_are_aborted():
    async with Site() as site, await site.ask(b"GET /metrics HTTP/1.1\r\n") as client:
        with pytest.raises(ConnectionError):
            for i in range(1_000_000):
                await client.send(b"X-%d: %s\r\n" % (i, b"x" * 1000))


@on_both_loops
async def test_slow_request_head_times_out(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.3)
    async with Site() as site:
        for before in (b"", request("/-/healthy")):
            async with await site.ask(before) as client:
                if before:
                    await client.read_response()
                begin = time.monotonic()
                with pytest.raises(ConnectionError):
                    for byte in request("/metrics", x="x" * 1000):
                        await client.send(bytes([byte]))
                        await asyncio.sleep(0.01)
                assert 0.2 < time.monotonic() - begin < PROMPT_S


@on_both_loops
async def test_idle_connections_outlast_the_usual_scrape_intervals():
    """Waiting for this deadline would take over five minutes, so the test only reads it."""
    async with Site() as site, await site.ask(request("/metrics/flows")) as client:
        await client.read_response()
        (connection,) = site.server._connections._open
        await until(lambda: not connection._responding)
        left_s = connection._deadline.when() - asyncio.get_running_loop().time()
        assert 325 < left_s <= 330


@on_both_loops
async def test_idle_connections_are_closed_cleanly(monkeypatch):
    async with Site() as site:
        monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.15)
        monkeypatch.setattr(connections, "IDLE_TIMEOUT_S", 60.0)
        begin = time.monotonic()
        async with await site.ask(b"") as client:
            assert await client.end() == "closed"
            assert time.monotonic() - begin > 0.1
        monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.5)
        monkeypatch.setattr(connections, "IDLE_TIMEOUT_S", 1.5)
        async with await site.ask(request("/metrics/flows")) as client:
            assert (await client.read_response()).body == FLOWS
            await asyncio.sleep(0.7)
            await client.send(request("/metrics/flows"))
            assert (await client.read_response()).body == FLOWS
            begin = time.monotonic()
            assert await client.end() == "closed"
            assert time.monotonic() - begin > 1.4


@on_both_loops
async def test_unread_small_responses_are_aborted(monkeypatch):
    """The deadline of pages does not apply to small responses."""
    monkeypatch.setattr(server, "RESPONSE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(connections, "IDLE_TIMEOUT_S", 0.3)
    async with Site() as site:
        client = await Client.open(site.port, receive_buffer=SMALL_RECEIVE_BUFFER)
        async with client:
            with pytest.raises(ConnectionError):
                while True:
                    await client.send(request("/") * 20)
                    await asyncio.sleep(0.001)


@on_both_loops
async def test_clients_that_reset_their_connection_immediately_have_no_effect(caplog):
    async with Site() as site:
        for data in (b"", b"GET", request("/")):
            for _ in range(50):
                sock = socket.create_connection(("127.0.0.1", site.port))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.send(data)
                sock.close()
        assert (await site.get("/metrics/flows")).body == FLOWS
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


# --- deadlines


@on_both_loops
async def test_first_chunk_is_sent_before_the_page_is_complete():
    table = FakeTable(BIG, pause_at=FIRST_CHUNK_BYTES)
    async with Site(table) as site, await site.ask(request("/metrics/flows")) as client:
        await client.read_head()
        assert int(await client.read_until(b"\r\n"), 16) == FIRST_CHUNK_BYTES
        assert await client.read(FIRST_CHUNK_BYTES) == BIG[:FIRST_CHUNK_BYTES]
        table.resume.set()


@on_both_loops
async def test_event_loop_runs_while_a_page_is_rendered():
    table = FakeTable(BIG, pause_at=0)
    async with Site(table) as site, await site.ask(request("/metrics/flows")) as client:
        await until(lambda: table.asked_at)
        assert (await site.get("/-/healthy")).status == 200
        assert (await site.get("/metrics/self")).status == 200
        table.resume.set()
        assert (await client.read_response()).body == BIG


@on_both_loops
async def test_stalled_reader_is_disconnected_at_the_deadline(caplog):
    async with Site(FakeTable(BIG), scrape_timeout_s=0.4) as site:
        begin = time.monotonic()
        async with await site.begin_scrape() as client:
            await until(lambda: any(site.scrape.failures.values()))
            assert 0.3 < time.monotonic() - begin < PROMPT_S
            await until(lambda: not page_threads())
            # Rendering stopped because the queue and the kernel's buffers were full.
            assert site.table.rendered_bytes < len(BIG) / 2
            assert await client.end() == "reset"
        assert site.scrape.failures == {"deadline": 1, "disconnected": 0, "error": 0}
        assert site.scrape.scrapes == 0
        (record,) = caplog.records
        assert re.fullmatch(
            r"scrape from 127\.0\.0\.1 timed out after 0\.4 s: \d+ bytes rendered",
            record.getMessage(),
        )


@on_both_loops
async def test_slow_reader_is_disconnected_at_the_deadline():
    site = Site(FakeTable(BIG), scrape_timeout_s=0.5)
    async with site, await site.begin_scrape() as client:
        begin = time.monotonic()
        while not site.scrape.failures["deadline"]:
            assert await client.receive(1)
            await asyncio.sleep(0.05)
        assert 0.3 < time.monotonic() - begin < PROMPT_S
        assert await client.end() == "reset"
        await until(lambda: not page_threads())
        assert site.table.rendered_bytes < len(BIG)


@on_both_loops
async def test_slow_rendering_is_aborted_at_the_deadline():
    table = FakeTable(BIG, pause_at=FIRST_CHUNK_BYTES)
    async with Site(table, scrape_timeout_s=0.15) as site:
        for version in ("1.1", "1.0"):
            for headers in ({}, {"accept_encoding": "gzip"}):
                table.resume.clear()
                client = await site.ask(request("/metrics/flows", version=version, **headers))
                async with client:
                    # The reset shows the client that the page is incomplete, even in HTTP/1.0.
                    with pytest.raises(ConnectionError):
                        await client.read_response()
                table.resume.set()
                await until(lambda: not page_threads())
        await until(lambda: site.scrape.failures["deadline"] == 4)


@on_both_loops
async def test_connection_is_reset_if_the_end_of_the_page_is_not_read(monkeypatch):
    """The server has rendered the whole page, but its end is still in the buffer."""
    monkeypatch.setattr(connections, "IDLE_TIMEOUT_S", 0.15)
    monkeypatch.setattr(connections, "WRITE_BUFFER_BYTES", 2 * len(BIG))
    for version in ("1.1", "1.0"):
        async with Site(FakeTable(BIG)) as site:
            client = await site.ask(
                request("/metrics/flows", version=version), receive_buffer=SMALL_RECEIVE_BUFFER
            )
            async with client:
                await until(lambda site=site: site.scrape.scrapes)
                await asyncio.sleep(0.25)
                assert await client.end() == "reset"


@on_both_loops
async def test_scraper_can_set_the_deadline():
    async with Site(FakeTable(BIG)) as site:
        begin = time.monotonic()
        async with await site.begin_scrape(x_prometheus_scrape_timeout_seconds="0.25") as client:
            await until(lambda: site.scrape.failures["deadline"])
            assert 0.15 < time.monotonic() - begin < PROMPT_S
            assert await client.end() == "reset"


@on_both_loops
async def test_invalid_deadline_means_the_default(caplog):
    invalid_values = ("", "soon", "0", "-1", "nan", "inf", "1e999")
    async with Site(FakeTable(BIG), scrape_timeout_s=0.25, max_scrapes_per_address=8) as site:
        begin = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            for value in invalid_values:
                headers = {"x_prometheus_scrape_timeout_seconds": value}
                client = await site.begin_scrape(**headers)
                await stack.enter_async_context(client)
            await until(lambda: site.scrape.failures["deadline"] == len(invalid_values))
        assert 0.2 < time.monotonic() - begin < PROMPT_S
    assert "timed out after 0.25 s" in caplog.text


@on_both_loops
async def test_deadline_has_a_maximum(monkeypatch):
    monkeypatch.setattr(server, "MAX_SCRAPE_TIMEOUT_S", 0.25)
    async with (
        Site(FakeTable(BIG)) as site,
        await site.begin_scrape(x_prometheus_scrape_timeout_seconds="100000"),
    ):
        await until(lambda: site.scrape.failures["deadline"])


@on_both_loops
async def test_aiohttp_client_detects_an_aborted_page():
    table = FakeTable(BIG, pause_at=FIRST_CHUNK_BYTES)
    async with Site(table, scrape_timeout_s=0.3) as site, aiohttp.ClientSession() as session:
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            async with session.get(f"http://127.0.0.1:{site.port}/metrics/flows") as response:
                await response.read()
        table.resume.set()


# --- disconnected readers and failing rendering


@on_both_loops
async def test_disconnected_reader_ends_rendering():
    async with Site(FakeTable(BIG), max_scrapes_per_address=1) as site:
        for count in (1, 2):
            client = await site.begin_scrape()
            assert page_threads()
            client.sock.close()
            await until(lambda count=count: site.scrape.failures["disconnected"] == count)
            await until(lambda: not page_threads())
        assert site.table.rendered_bytes < len(BIG)
        assert (await site.get("/metrics/flows")).status == 200
        assert site.scrape.failures == {"deadline": 0, "disconnected": 2, "error": 0}


@on_both_loops
async def test_immediate_rendering_error_gets_status_500(caplog):
    async with Site(FakeTable(break_at=0)) as site:
        for headers in ({}, {"accept_encoding": "gzip"}):
            response = await site.get(**headers)
            assert (response.status, response.text) == (500, "Internal Server Error.\n")
            assert "content-encoding" not in response.headers
        assert site.scrape.failures["error"] == 2
        assert (await site.get("/metrics/self")).status == 200
        assert site.scrape.scrapes == 0
    record = caplog.records[0]
    assert record.getMessage() == "GET /metrics failed"
    assert "rendering broke" in record.exc_text


@on_both_loops
async def test_rendering_error_in_the_middle_of_a_page_aborts_the_page(caplog):
    async with Site(FakeTable(BIG, break_at=len(BIG) // 2), max_scrapes=1) as site:
        for version in ("1.1", "1.0"):
            async with await site.ask(request("/metrics/flows", version=version)) as client:
                with pytest.raises(ConnectionError):
                    await client.read_response()
        assert site.scrape.failures == {"deadline": 0, "disconnected": 0, "error": 2}
        site.table.break_at = None
        assert (await site.get("/metrics/flows")).body == BIG
    assert [record.getMessage() for record in caplog.records] == ["GET /metrics/flows failed"] * 2


# --- concurrency limits


@on_both_loops
async def test_concurrent_pages_are_limited():
    async with Site(FakeTable(BIG), max_scrapes=2) as site:
        first, second = await site.begin_scrape(), await site.begin_scrape()
        async with first, second:
            response = await site.get("/metrics/interfaces")
            assert response.status == 503
            assert int(response.headers["retry-after"]) > 0
            assert (
                response.text
                == "Busy: 2 pages are being served, which is the maximum (web.max_scrapes)."
                " Try again.\n"
            )
            for path in ("/metrics/self", "/", "/-/healthy"):
                assert (await site.get(path)).status == 200
            assert (await site.get(method="HEAD")).status == 200
            assert site.scrape.rejected == 1
            assert len(page_threads()) == 2
            first.sock.close()
            await until(lambda: len(page_threads()) == 1)
            assert (await site.get("/metrics/interfaces")).status == 200


@on_both_loops
async def test_concurrent_pages_per_address_are_limited():
    async with (
        Site(FakeTable(BIG), max_scrapes_per_address=1) as site,
        await site.begin_scrape(local="127.0.0.2"),
    ):
        assert (await site.get("/metrics/flows")).status == 200
        async with await site.ask(local="127.0.0.2") as client:
            response = await client.read_response()
            assert response.status == 503
            assert response.text == (
                "Busy: 1 page is being served to this address, which is the maximum"
                " (web.max_scrapes_per_address). Try again.\n"
            )
            assert site.scrape.rejected == 1
            await client.send(request("/metrics/self"))
            assert (await client.read_response()).status == 200


@on_both_loops
async def test_rejected_scrapes_are_logged_once_per_minute(caplog):
    async with Site(FakeTable(BIG), max_scrapes=1) as site, await site.begin_scrape():
        for _ in range(20):
            assert (await site.get()).status == 503
    assert site.scrape.rejected == 20
    assert len(caplog.records) == 1


@on_both_loops
async def test_flood_of_connections_does_not_block_other_clients(caplog):
    async with Site(max_connections=100) as site, contextlib.AsyncExitStack() as stack:
        kept = await stack.enter_async_context(await site.ask(b""))
        idle = []
        for i in range(1000):
            idle.append(await stack.enter_async_context(await site.ask(b"GET" if i % 2 else b"")))
            if i % 50 == 0:
                # The connections that have been idle longest are closed. This request keeps
                # ``kept`` open.
                await kept.send(request("/metrics/flows"))
                assert (await kept.read_response()).body == FLOWS
                assert (await site.get("/metrics/flows")).body == FLOWS
        await until(lambda: sum(client.is_open() for client in idle) <= 100)
        assert (await site.get("/metrics/flows")).body == FLOWS
        assert site.scrape.connections_rejected >= 900
        (record,) = caplog.records
        assert record.getMessage() == (
            "HTTP connection from 127.0.0.1 closed: 100 connections are open, which is the"
            " maximum (web.max_connections)"
        )


@on_both_loops
async def test_pages_complete_during_a_flood():
    async with Site(FakeTable(BIG), max_connections=2) as site:
        async with contextlib.AsyncExitStack() as stack:
            pages = [await stack.enter_async_context(await site.begin_scrape()) for _ in range(2)]
            for _ in range(10):
                client = await stack.enter_async_context(await site.ask(b""))
                assert await client.end() == "closed"
            assert site.scrape.connections_rejected == 10
            for page in pages:
                assert await page.read_chunks() == BIG
        await until(lambda: site.scrape.scrapes == 2)


# --- start and stop


@on_both_loops
async def test_stop_aborts_pages_and_closes_idle_connections(monkeypatch):
    monkeypatch.setattr(server, "STOP_TIMEOUT_S", 60.0)
    async with Site(FakeTable(BIG)) as site, contextlib.AsyncExitStack() as stack:
        silent = await stack.enter_async_context(await site.ask(b""))
        idle = await stack.enter_async_context(await site.ask(request("/-/healthy")))
        await idle.read_response()
        running = [await stack.enter_async_context(await site.begin_scrape()) for _ in range(3)]
        begin = time.monotonic()
        await site.server.stop()
        assert time.monotonic() - begin < PROMPT_S
        assert await silent.end() == "closed"
        assert await idle.end() == "closed"
        for client in running:
            assert await client.end() == "reset"
        await until(lambda: not page_threads())
        with pytest.raises(ConnectionRefusedError):
            await site.ask()
    # The port is free, although connections were open when the first server stopped.
    async with Site(port=site.port) as second_site:
        assert (await second_site.get("/metrics/flows")).body == FLOWS


@on_both_loops
async def test_stop_does_not_wait_for_rendering(monkeypatch, caplog):
    monkeypatch.setattr(server, "STOP_TIMEOUT_S", 0.2)
    table = FakeTable(BIG, pause_at=0)
    async with Site(table) as site, await site.ask() as client:
        await until(lambda: table.asked_at)
        begin = time.monotonic()
        await site.server.stop()
        assert time.monotonic() - begin < PROMPT_S
        assert await client.end() == "reset"
        table.resume.set()
    assert "HTTP server stopped; unfinished responses: 1" in caplog.text


@on_both_loops
async def test_server_can_be_stopped_without_a_start():
    await Site().server.stop()


@on_both_loops
async def test_port_in_use_is_an_error():
    for address in ("127.0.0.1", "", "::"):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            site = Site(listen_address=address, port=port)
            with pytest.raises(OSError, match="ddress already in use") as raised:
                await site.server.start()
            assert raised.value.errno == errno.EADDRINUSE
            await site.server.stop()


@on_both_loops
async def test_address_of_another_machine_is_an_error():
    for address in ("192.0.2.1", "name.invalid"):
        with pytest.raises(OSError):
            await Site(listen_address=address).server.start()


@pytest.mark.parametrize("address", ["", "::"])
@on_both_loops
async def test_listening_on_all_addresses_includes_ipv4_and_ipv6(address):
    async with Site(FakeTable(BIG), listen_address=address, max_scrapes_per_address=1) as site:
        hosts = ["127.0.0.1", "::1"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]
        for host in hosts:
            async with await site.ask(request("/metrics/flows"), host=host) as client:
                assert (await client.read_response()).body == BIG
        # On a dual-stack socket, IPv4 clients have IPv4-mapped addresses.
        async with await site.begin_scrape():
            assert (await site.get()).status == 503
            async with await site.begin_scrape(local="127.0.0.2"):
                pass


@pytest.mark.parametrize("error", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, None])
@on_both_loops
async def test_server_listens_on_all_ipv4_addresses_if_there_is_no_ipv6(monkeypatch, error):
    create_server = socket.create_server

    def no_ipv6(address, *, family=socket.AF_INET, **options):
        if family == socket.AF_INET6:
            raise OSError(error, "no IPv6")
        return create_server(address, family=family, **options)

    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: error is not None)
    monkeypatch.setattr(socket, "create_server", no_ipv6)
    async with Site(listen_address="") as site:
        assert (await site.get("/metrics/flows")).body == FLOWS


@on_both_loops
async def test_listen_address_can_be_a_host_name():
    async with Site(listen_address="localhost") as site:
        assert (await site.get("/metrics/flows")).body == FLOWS


@pytest.fixture
def name_with_two_addresses(monkeypatch):
    def getaddrinfo(host, port, *_):
        assert host == "two.example"
        stream = (socket.SOCK_STREAM, 6, "")
        return [
            (socket.AF_INET6, *stream, ("::1", port, 0, 0)),
            (socket.AF_INET, *stream, ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return "two.example"


async def test_server_listens_on_all_addresses_of_a_name(name_with_two_addresses):
    async with Site(listen_address=name_with_two_addresses) as site:
        for host in ["127.0.0.1", "::1"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]:
            async with await site.ask(request("/metrics/flows"), host=host) as client:
                assert (await client.read_response()).body == FLOWS


async def test_start_fails_if_one_address_of_a_name_is_in_use(name_with_two_addresses):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        site = Site(listen_address=name_with_two_addresses, port=taken.getsockname()[1])
        with pytest.raises(OSError, match="ddress already in use"):
            await site.server.start()


@pytest.mark.parametrize("families", [{socket.AF_INET}, set()])
async def test_addresses_of_other_machines_are_skipped(
    monkeypatch, name_with_two_addresses, families
):
    create_server = socket.create_server

    def without(address, *, family):
        if family not in families:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return create_server(address, family=family)

    monkeypatch.setattr(socket, "create_server", without)
    site = Site(listen_address=name_with_two_addresses)
    if not families:
        with pytest.raises(OSError, match="Cannot assign requested address"):
            await site.server.start()
        return
    async with site:
        assert (await site.get("/metrics/flows")).body == FLOWS
