import mmap
import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from skyfast import __version__
from skyfast.runtime import process
from skyfast.stats import (
    CAPTURE_SKIPS,
    HANDSHAKE_FAILURES,
    INTERFACE_SKIPS,
    LOOKUP_DROPS,
    MESSAGE_ERRORS,
    NAME_SKIPS,
    RECONNECT_REASONS,
    SCRAPE_FAILURES,
    SKIP_REASONS,
    TOPOLOGY_ERRORS,
    NameStats,
    Stats,
)
from skyfast.web.self_metrics import render, render_hidden, render_label_values
from tests.support.web_fixtures import FakeTable

pytestmark = pytest.mark.xdist_group("timing")

PROMTOOL = shutil.which("promtool")


def samples(stats=None, table=None):
    """Parse a page with the Prometheus client library, and map each series to its value."""
    text = render(stats or Stats(), table or FakeTable()).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def by_reason(name, values):
    return {key[-1][1]: value for key, value in values.items() if key[0] == name}


def test_known_series_exist_from_the_start():
    stats = Stats()
    stats.analyzer("a:1")
    table = FakeTable()
    table.skipped = table.finished = {}
    values = samples(stats, table)
    analyzer = ("analyzer", "a:1")
    for name in ("up", "flows_total", "received_bytes_total", "last_message_timestamp_seconds"):
        assert values[f"skyfast_{name}", analyzer] == 0
    for kind, type_ in (("flow", "store"), ("stats", "stats")):
        key = ("skyfast_messages_total", analyzer, ("namespace", kind), ("type", type_))
        assert values[key] == 0
    for name, reasons in (
        ("skyfast_message_errors_total", MESSAGE_ERRORS),
        ("skyfast_reconnects_total", RECONNECT_REASONS),
        ("skyfast_flows_skipped_total", SKIP_REASONS),
        ("skyfast_topology_errors_total", TOPOLOGY_ERRORS),
        ("skyfast_interfaces_skipped", INTERFACE_SKIPS),
        ("skyfast_scrapes_failed_total", SCRAPE_FAILURES),
        ("skyfast_tls_handshakes_failed_total", HANDSHAKE_FAILURES),
        ("skyfast_capture_reports_skipped_total", CAPTURE_SKIPS),
    ):
        assert by_reason(name, values) == dict.fromkeys(reasons, 0), name


def test_flow_update_known_is_true_after_flow_update_s_is_set():
    stats = Stats()
    assert (stats.flow_update_s, stats.flow_update_known) == (60.0, False)
    stats.flow_update_s = 60.0
    assert (stats.flow_update_s, stats.flow_update_known) == (60.0, True)
    stats.flow_update_s = 10.0
    assert stats.flow_update_s == 10.0


def test_page_without_analyzers_has_no_up_series():
    assert not [key for key in samples() if key[0] == "skyfast_up"]


def test_page_shows_the_counters():
    stats = Stats()
    analyzer = stats.analyzer("a:1")
    analyzer.up = 1
    analyzer.flows = 11
    analyzer.received_bytes = 12
    analyzer.last_message_timestamp_s = 1700000000.25
    analyzer.messages["other", "other"] = 13
    analyzer.errors["malformed"] = 14
    analyzer.reconnects["silent"] = 15
    stats.analyzer("b:2").flows = 16
    stats.flows_skipped["late"] = 100
    stats.topology.interfaces = 18
    stats.topology.answers = 19
    stats.topology.last_answer_timestamp_s = 1700000001.5
    stats.topology.skipped["duplicate"] = 20
    stats.topology.errors["timeout"] = 21
    stats.flows_filtered = {"keep": 27, "no-dns": 28}
    stats.values_skipped = {"Start": 0, "Metric.RTT": 10}
    stats.captures.captures = 29
    stats.captures.skipped["no_id"] = 30
    stats.config.last_reload_successful = 0
    stats.config.last_reload_success_timestamp_s = 1700000002.5
    stats.max_connections, stats.max_flows = 31, 32
    stats.clock_held, stats.clock_held_s = 1, 33.5
    stats.scrape.scrapes = 22
    stats.scrape.last_duration_s = 0.125
    stats.scrape.last_bytes = 23
    stats.scrape.rejected = 24
    stats.scrape.failures["deadline"] = 25
    stats.scrape.connections_rejected = 26
    stats.scrape.handshakes_failed["rejected"] = 33
    values = samples(stats, FakeTable())
    a = ("analyzer", "a:1")
    expected = {
        ("skyfast_build_info", ("python", platform.python_version()), ("version", __version__)): 1,
        ("skyfast_up", a): 1,
        ("skyfast_flows_total", a): 11,
        ("skyfast_flows_total", ("analyzer", "b:2")): 16,
        ("skyfast_received_bytes_total", a): 12,
        ("skyfast_last_message_timestamp_seconds", a): 1700000000.25,
        ("skyfast_messages_total", a, ("namespace", "other"), ("type", "other")): 13,
        ("skyfast_message_errors_total", a, ("reason", "malformed")): 14,
        ("skyfast_reconnects_total", a, ("reason", "silent")): 15,
        # The table has counted 8 late flows, and the ingest 100.
        ("skyfast_flows_skipped_total", ("reason", "late")): 108,
        ("skyfast_flows_skipped_total", ("reason", "no_network")): 9,
        ("skyfast_flows_finished_total", ("reason", "fin")): 10,
        ("skyfast_values_skipped_total", ("field", "Metric.RTT")): 24,
        ("skyfast_values_skipped_total", ("field", "Start")): 0,
        ("skyfast_connections",): 2,
        ("skyfast_flows",): 3,
        ("skyfast_connections_limit",): 31,
        ("skyfast_clock_held",): 1,
        ("skyfast_clock_held_seconds_total",): 33.5,
        ("skyfast_flows_limit",): 32,
        ("skyfast_table_bytes",): 4,
        ("skyfast_connections_created_total",): 5,
        ("skyfast_connections_expired_total",): 6,
        ("skyfast_connections_rejected_total",): 7,
        ("skyfast_interfaces",): 18,
        ("skyfast_topology_answers_total",): 19,
        ("skyfast_topology_last_answer_timestamp_seconds",): 1700000001.5,
        ("skyfast_interfaces_skipped", ("reason", "duplicate")): 20,
        ("skyfast_topology_errors_total", ("reason", "timeout")): 21,
        ("skyfast_scrapes_total",): 22,
        ("skyfast_last_scrape_duration_seconds",): 0.125,
        ("skyfast_last_scrape_bytes",): 23,
        ("skyfast_scrapes_rejected_total",): 24,
        ("skyfast_scrapes_failed_total", ("reason", "deadline")): 25,
        ("skyfast_http_connections_rejected_total",): 26,
        ("skyfast_tls_handshakes_failed_total", ("reason", "rejected")): 33,
        ("skyfast_flows_filtered_total", ("rule", "keep")): 27,
        ("skyfast_flows_filtered_total", ("rule", "no-dns")): 28,
        ("skyfast_connections_overflowed_total",): 11,
        ("skyfast_captures",): 29,
        ("skyfast_capture_reports_skipped_total", ("reason", "no_id")): 30,
        ("skyfast_config_last_reload_successful",): 0,
        ("skyfast_config_last_reload_success_timestamp_seconds",): 1700000002.5,
    }
    assert {key: values.get(key) for key in expected} == expected


def test_metrics_of_names_are_shown_only_if_labels_need_names():
    stats = Stats()
    assert not [name for name, *_ in samples(stats) if "_name" in name]
    stats.topology.names = NameStats(
        addresses=1,
        nodes=2,
        ambiguous=3,
        unknown=4,
        elements=5,
        resolutions=6,
        resolution_duration_s=0.5,
        last_reading_timestamp_s=1700000000.25,
        query_duration_s={"edges": 1.5},
    )
    stats.topology.names.skipped["wrong_type"] = 7
    stats.topology.names.dropped["unknown"] = 8
    found = samples(stats)
    assert by_reason("skyfast_names_skipped", found).keys() == {*NAME_SKIPS}
    assert by_reason("skyfast_name_lookups_dropped_total", found).keys() == {*LOOKUP_DROPS}
    expected = {
        ("skyfast_names", ("kind", "address")): 1,
        ("skyfast_names", ("kind", "capture_point")): 2,
        ("skyfast_names_ambiguous",): 3,
        ("skyfast_names_unknown",): 4,
        ("skyfast_names_elements",): 5,
        ("skyfast_names_resolutions_total",): 6,
        ("skyfast_names_resolution_duration_seconds",): 0.5,
        ("skyfast_names_last_reading_timestamp_seconds",): 1700000000.25,
        ("skyfast_names_query_duration_seconds", ("query", "edges")): 1.5,
        ("skyfast_names_skipped", ("reason", "wrong_type")): 7,
        ("skyfast_name_lookups_dropped_total", ("reason", "unknown")): 8,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_page_shows_the_counters_of_views():
    table = FakeTable()
    table.view_connections = (12, 13)
    table.view_rejected_totals = (0, 3)
    page = render(Stats(), table, views=("skydive_traffic", "x"))
    assert b'\nskyfast_view_connections{view="skydive_traffic"} 12\n' in page
    assert b'\nskyfast_view_connections{view="x"} 13\n' in page
    assert b'\nskyfast_view_connections_rejected_total{view="x"} 3\n' in page


def test_start_counts_as_a_successful_reload():
    values = samples()
    assert values["skyfast_config_last_reload_successful",] == 1
    began = values["skyfast_config_last_reload_success_timestamp_seconds",]
    assert abs(time.time() - began) < 5


def test_hidden_connections_are_rendered_for_views_with_bounds():
    assert render_hidden({"": None, "a": None}) == b""
    assert render_hidden({"": (3, 500), "a": None, "b": (0, 2**70)}).decode() == (
        "# HELP skyfast_hidden_connections Hidden connections: they have no series, because they"
        " reach neither min_bytes nor min_packets.\n"
        "# TYPE skyfast_hidden_connections gauge\n"
        'skyfast_hidden_connections{view=""} 3\n'
        'skyfast_hidden_connections{view="b"} 0\n'
        "# HELP skyfast_hidden_bytes Bytes of the hidden connections, both directions together.\n"
        "# TYPE skyfast_hidden_bytes gauge\n"
        'skyfast_hidden_bytes{view=""} 500\n'
        f'skyfast_hidden_bytes{{view="b"}} {2**70}\n'
    )


def test_numbers_of_label_values_are_rendered():
    assert render_label_values({"target_ip": 3, "protocol": 2}).decode() == (
        "# HELP skyfast_label_values Number of distinct values of each exported label.\n"
        "# TYPE skyfast_label_values gauge\n"
        'skyfast_label_values{label="target_ip"} 3\n'
        'skyfast_label_values{label="protocol"} 2\n'
    )


def test_openmetrics_page_has_the_same_samples():
    stats = Stats()
    stats.analyzer('a\\b"c\nd').messages["other", "other"] = 2**63 - 1
    stats.flows_filtered = {"keep": 1}
    table = FakeTable()
    table.view_connections = (12,)
    table.view_rejected_totals = (1,)
    pages = {
        openmetrics: (
            render(stats, table, views=("v",), standard_names=True, openmetrics=openmetrics)
            + render_label_values({"target_ip": 3}, openmetrics=openmetrics)
        ).decode()
        for openmetrics in (False, True)
    }
    families = list(openmetrics_families(pages[True] + "# EOF\n"))
    values = {
        (sample.name, *sorted(sample.labels.items()))
        for family in families
        for sample in family.samples
    }
    expected = {
        (sample.name, *sorted(sample.labels.items()))
        for family in text_string_to_metric_families(pages[False])
        for sample in family.samples
    }
    assert values == expected
    assert ("skyfast_table_flows",) in values
    units = {family.name: family.unit for family in families if family.unit}
    assert units["process_cpu_seconds"] == "seconds"
    assert units["skyfast_received_bytes"] == "bytes"
    assert units["skyfast_config_last_reload_success_timestamp_seconds"] == "seconds"
    assert all(name.endswith(f"_{unit}") for name, unit in units.items())
    assert not {family.type for family in families} - {"counter", "gauge", "histogram"}


def test_integers_are_exact():
    table = FakeTable()
    table.created_total = 2**63 - 1
    assert b"\nskyfast_connections_created_total 9223372036854775807\n" in render(Stats(), table)


def test_label_values_are_escaped():
    stats = Stats()
    stats.analyzer('a\\b"c\nd').up = 1
    assert b'\nskyfast_up{analyzer="a\\\\b\\"c\\nd"} 1\n' in render(stats, FakeTable())
    assert samples(stats)["skyfast_up", ("analyzer", 'a\\b"c\nd')] == 1


def test_invalid_utf8_in_a_name_is_replaced():
    """Names of analyzers can come from environment variables, which can be invalid UTF-8."""
    stats = Stats()
    stats.analyzer(b"caf\xe9:1".decode(errors="surrogateescape"))
    assert ("skyfast_up", ("analyzer", "caf?:1")) in samples(stats)


def test_every_family_occurs_once_with_a_help_and_a_type():
    stats = Stats()
    stats.analyzer("a:1")
    text = render(stats, FakeTable()).decode()
    names = re.findall(r"^# HELP (\S+) \S.*\.$", text, re.MULTILINE)
    types = re.findall(r"^# TYPE (\S+) (counter|gauge|histogram)$", text, re.MULTILINE)
    assert names == [name for name, _ in types]
    assert len(names) == len(set(names))
    family, suffix = None, ""
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            family, type_ = line.split()[2:]
            suffix = "_(bucket|sum|count)" if type_ == "histogram" else ""
        elif not line.startswith("#"):
            assert re.match(rf"{family}{suffix}[ {{]", line)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_accepts_the_page():
    stats = Stats()
    stats.analyzer("a:1")
    result = subprocess.run(
        [PROMTOOL, "check", "metrics"],
        input=render(stats, FakeTable()) + render_label_values({"target_ip": 3}),
        capture_output=True,
        timeout=10,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_process_metrics_show_the_used_resources():
    before = samples()
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    # The memory of ``mmap`` is new. An allocation on the heap could reuse free memory.
    ballast = mmap.mmap(-1, 50_000_000)
    ballast.write(b"x" * len(ballast))
    busy_until = time.process_time() + 0.05
    while time.process_time() < busy_until:
        pass
    after = samples()
    assert after["process_open_fds",] - before["process_open_fds",] == len(descriptors)
    assert after["process_cpu_seconds_total",] - before["process_cpu_seconds_total",] >= 0.05
    for name in ("process_resident_memory_bytes", "process_virtual_memory_bytes"):
        assert after[name,] - before[name,] > 0.9 * len(ballast)
    assert after["process_max_fds",] > after["process_open_fds",]
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_process_start_time_matches_ps():
    ps = shutil.which("ps")
    if ps is None:
        pytest.skip("ps is not installed")
    elapsed_s = int(subprocess.check_output([ps, "-o", "etimes=", "-p", str(os.getpid())]))
    assert abs(time.time() - elapsed_s - samples()["process_start_time_seconds",]) < 2


def test_command_name_can_contain_spaces_and_parentheses(tmp_path, monkeypatch):
    """`/proc/PID/stat` does not escape the name of the command."""
    own = tmp_path / "self"
    (own / "fd").mkdir(parents=True)
    (own / "statm").write_text("300 200 100 0 0 0 0\n")
    numbers = " ".join(map(str, range(4, 53)))
    (own / "stat").write_text(f"42 (a) b) 3 (c) S {numbers}\n")
    (tmp_path / "stat").write_text("cpu 1 2 3\nbtime 1700000000\nprocesses 5\n")
    monkeypatch.setattr(process, "PROC", tmp_path)
    values = samples()
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    assert values["process_start_time_seconds",] == 1700000000 + 22 / ticks_per_second
    assert values["process_virtual_memory_bytes",] == 300 * os.sysconf("SC_PAGE_SIZE")
    assert values["process_resident_memory_bytes",] == 200 * os.sysconf("SC_PAGE_SIZE")


def test_some_process_metrics_exist_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "PROC", tmp_path)
    names = {key[0] for key in samples() if key[0].startswith("process_")}
    assert names == {"process_cpu_seconds_total", "process_max_fds"}
