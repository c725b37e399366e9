"""Pages after replays of recorded messages, compared with the model and with ``golden/``.

Each recording is replayed with the defaults or with a configuration in ``data/configs``. To update
``golden/``, set ``UPDATE_GOLDEN=1``.
"""

import asyncio
import heapq
import itertools
import json
import os
import re
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import pytest
import yaml
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as text_string_to_openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from tests.model import (
    BYTES,
    INTERFACE_FAMILIES,
    PACKETS,
    RTT,
    STANDARD_INTERFACE_FAMILIES,
    SUFFIXES,
    Model,
    escape,
    interface_page,
    read_page,
)
from tests.support import openmetrics_2
from tests.support.analyzer import FakeAnalyzer, FakeResponse
from tests.support.golden import golden_lines, recorded
from tests.support.model_specs import (
    CONFIGURATIONS,
    DEFAULT,
    ONE,
    TOPOLOGY,
    TWO,
    ReplayConfiguration,
)
from tests.support.paths import DATA, ROOT, TESTS
from tests.support.process import PROBLEM, running
from tests.support.prometheus import lint, needs_promtool
from tests.support.table_adapter import read_created, read_inline_starts, without_start
from tests.support.web_fixtures import PROMETHEUS, PROMETHEUS_OPENMETRICS_2

GOLDEN = TESTS / "golden"
BUILD = ROOT / "build" / "golden"
REPLAYS = {
    "one-analyzer": ReplayConfiguration(spec=DEFAULT, recordings=ONE),
    "two-analyzers": ReplayConfiguration(spec=DEFAULT, recordings=TWO),
    **CONFIGURATIONS,
}
PARTS = 3
PART_PATHS = [f"/metrics/flows?part={part}/{PARTS}" for part in range(PARTS)]
WITH_START_TIMESTAMPS = "standard"
"""The name of the replay whose pages in OpenMetrics 1.0 have start timestamps."""
CONNECTIONS = {"one-analyzer": 831, "two-analyzers": 530}

# Counters without the usual suffix _total. The Go connector has the names that start with skydive_,
# and dashboards depend on them. The names that start with my_ come from a configuration of these
# tests.
INHERITED = re.compile(
    r"skydive_network_(connection_total|interface)_\w+"
    r"|skydive_capture_(flows_dropped|kernel_flows_dropped|reports)"
    r"|my_\w+"
)
NO_TOTAL = ' counter metrics should have "_total" suffix'
NO_BASE_UNIT = f'{RTT} use base unit "seconds" instead of "nanoseconds"'


def settings(name, urls):
    """Return the configuration of a replay, including the file of this name in ``data/configs``."""
    file = DATA / "configs" / f"{name}.yml"
    tree = yaml.safe_load(file.read_text()) if name in CONFIGURATIONS else {}
    pipeline = tree.setdefault("pipeline", {})
    pipeline["subscriber"] = {"urls": urls}
    store = pipeline.setdefault("store", {}).setdefault("prom_sky_con", {})
    store |= {"listen_address": "127.0.0.1", "port": 0, "connection_timeout": 600}
    if name == WITH_START_TIMESTAMPS:
        store["start_timestamps"] = True
    return yaml.safe_dump(tree)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The model and the pages after a replay.

    ``flows`` is the number of flows that each analyzer sent. ``prometheus_page`` is ``page`` in the
    format that Prometheus 2.42 requests. ``openmetrics_2_page`` is ``page`` in OpenMetrics 2.0.
    ``flow_parts`` and ``prometheus_parts`` are the responses to `PART_PATHS` in the formats of
    ``page`` and ``prometheus_page``.
    """

    model: Model
    flows: dict[str, int]
    page: bytes
    flow_page: bytes
    flow_parts: list[bytes]
    prometheus_parts: list[bytes]
    interface_page: bytes
    prometheus_page: bytes
    openmetrics_2_page: bytes
    metrics: dict[str, float]

    @property
    def is_standard(self):
        return b"skydive_interface_" in self.interface_page

    @property
    def interface_families(self):
        return STANDARD_INTERFACE_FAMILIES if self.is_standard else INTERFACE_FAMILIES

    @property
    def names(self):
        """The names of all samples of flows and interfaces."""
        return sample_names([*self.model.families, *self.interface_families])

    @property
    def samples(self):
        """The expected value of each series of flows and interfaces."""
        pages = self.model.page(0)
        pages |= interface_page(json.loads(TOPOLOGY), self.interface_families)
        lines = (line.rpartition(" ") for lines in pages.values() for line in lines)
        return {series: float(number) for series, _, number in lines}


def sample_names(families):
    return {
        f"{family.name}{suffix}"
        for family in families
        for suffix in SUFFIXES.get(family.type, ("",))
    }


async def replay(name, directory):
    """Send every message to both skyfast and a model, and return the results of both."""
    names = REPLAYS[name].recordings
    model = Model(REPLAYS[name].spec)
    async with AsyncExitStack() as stack:
        analyzers = [await stack.enter_async_context(FakeAnalyzer(host_id=n)) for n in names]
        for analyzer in analyzers:
            analyzer.topology = FakeResponse(body=TOPOLOGY, compress=True)
        config = directory / "prom_sky_con.yml"
        config.write_text(settings(name, [analyzer.url for analyzer in analyzers]))
        # skyfast may log a warning that the table is full.
        is_full = name == "overflow"
        skyfast = await stack.enter_async_context(running(config, quiet=not is_full))
        for analyzer in analyzers:
            await analyzer.subscriber()

        messages = dict.fromkeys((analyzer.name for analyzer in analyzers), 0)
        flows = messages.copy()
        previous = analyzers[0]
        for _, index, line, obj in heapq.merge(
            *(recorded(name, n) for n, name in enumerate(names))
        ):
            analyzer = analyzers[index]
            if analyzer is not previous:
                # Messages on two sockets have no defined order, so wait for those of the previous
                # analyzer.
                await skyfast.until(partial(all_read, messages))
                previous = analyzer
            await analyzer.send(line)
            messages[analyzer.name] += 1
            flows[analyzer.name] += len(obj)
            model.message(obj, 0)
        await skyfast.until(partial(all_read, messages))
        metrics = await skyfast.until(lambda metrics: metrics["skyfast_interfaces"] > 0)
        if is_full:
            problems = [line for line in skyfast.log if PROBLEM.search(line)]
            assert all("table full" in line for line in problems), problems
        return Replay(
            model=model,
            flows=flows,
            page=await skyfast.get("/metrics"),
            flow_page=await skyfast.get("/metrics/flows"),
            flow_parts=[await skyfast.get(path) for path in PART_PATHS],
            prometheus_parts=[
                await skyfast.get(path, accept=PROMETHEUS["2.42"]) for path in PART_PATHS
            ],
            interface_page=await skyfast.get("/metrics/interfaces"),
            prometheus_page=await skyfast.get("/metrics", accept=PROMETHEUS["2.42"]),
            openmetrics_2_page=await skyfast.get("/metrics", accept=PROMETHEUS_OPENMETRICS_2),
            metrics=metrics,
        )


def all_read(messages, metrics):
    return messages == {
        analyzer: sum(
            value
            for series, value in metrics.items()
            if series.startswith(f'skyfast_messages_total{{analyzer="{analyzer}"')
        )
        for analyzer in messages
    }


@pytest.fixture(scope="module", params=REPLAYS)
def replayed(request, tmp_path_factory):
    name = request.param
    return name, asyncio.run(replay(name, tmp_path_factory.mktemp(name)))


def test_series_of_flows_match_the_model(replayed):
    name, result = replayed
    page = read_page(result.flow_page, result.model.families)
    assert page == result.model.page(0)
    if name in CONNECTIONS:
        # These numbers are in the descriptions of the recordings.
        assert len(page[BYTES]) == len(page[PACKETS]) == 2 * CONNECTIONS[name]
        assert page[RTT]


def test_series_of_interfaces_match_the_topology(replayed):
    _, result = replayed
    families = result.interface_families
    expected = interface_page(json.loads(TOPOLOGY), families)
    assert read_page(result.interface_page, families) == expected


def test_page_has_flows_interfaces_captures_and_self_metrics_in_order(replayed):
    _, result = replayed
    parts = split(result)
    assert [part for part, _ in parts] == ["flows", "interfaces", "captures", "self"]
    pages = dict(parts)
    assert read_page(pages["flows"], result.model.families) == result.model.page(0)
    interfaces = read_page(pages["interfaces"], result.interface_families)
    assert interfaces == interface_page(json.loads(TOPOLOGY), result.interface_families)


def test_page_matches_the_golden_file(replayed):
    """`tests.support.golden.golden_lines` describes the format of the golden files."""
    name, result = replayed
    families = [
        *families_of(result.flow_page, result.model.families),
        *families_of(result.interface_page, result.interface_families),
    ]
    full_page = BUILD / f"{name}.txt"
    full_page.parent.mkdir(parents=True, exist_ok=True)
    full_page.write_text(
        "".join(f"{line}\n" for parts in families for part in parts for line in part)
    )
    check_golden(GOLDEN / f"{name}.txt", families, full_page)


def check_golden(golden, families, full_page):
    lines = [*golden_lines(families)]
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text("\n".join(lines) + "\n")
    assert lines == golden.read_text().splitlines(), f"the full page is in {full_page}"


def families_of(page, declared):
    """Return each family on a page as a pair: its HELP and TYPE lines, and its sorted samples."""
    heads = [line for line in page.decode().splitlines() if line.startswith("#")]
    return [
        (heads[2 * n : 2 * n + 2], sorted(samples))
        for n, samples in enumerate(read_page(page, declared).values())
    ]


def test_parts_of_the_page_match_the_model_and_the_golden_file(replayed):
    name, result = replayed
    families = result.model.families
    for part, page in enumerate(result.flow_parts):
        assert read_page(page, families) == result.model.page(0, part=part, parts=PARTS)
    for whole, *parts in zip(
        families_of(result.flow_page, families),
        *(families_of(page, families) for page in result.flow_parts),
        strict=True,
    ):
        assert all(heads == whole[0] for heads, _ in parts)
        assert sorted(line for _, samples in parts for line in samples) == whole[1]
    if name == "standard":
        full_page = BUILD / "part.txt"
        full_page.parent.mkdir(parents=True, exist_ok=True)
        full_page.write_bytes(result.flow_parts[1])
        check_golden(GOLDEN / "part.txt", families_of(result.flow_parts[1], families), full_page)


def test_parsers_read_the_parts_of_a_page(replayed):
    _, result = replayed
    names = sample_names(result.model.families)
    expected = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for lines in result.model.page(0).values()
        for line in lines
    }
    values = {}
    for page in result.flow_parts:
        for family in text_string_to_metric_families(page.decode()):
            for sample in family.samples:
                name = family.name if family.name in names else sample.name
                values[series(name, sample.labels)] = sample.value
    assert values == expected
    if result.is_standard:
        values = {
            series(sample.name, sample.labels): sample.value
            for page in result.prometheus_parts
            for family in text_string_to_openmetrics_families(page.decode())
            for sample in family.samples
            if not sample.name.endswith("_created")
        }
        assert values == expected


def test_prometheus_client_reads_the_same_values(replayed):
    _, result = replayed
    values = {}
    for family in text_string_to_metric_families(result.page.decode()):
        for sample in family.samples:
            # The parser appends _total to the names of all counters.
            name = family.name if family.name in result.names else sample.name
            if name in result.names:
                values[series(name, sample.labels)] = sample.value
    assert values == result.samples


def test_openmetrics_parser_reads_the_same_values(replayed):
    _, result = replayed
    page = result.prometheus_page.decode()
    if not result.is_standard:
        assert "# EOF" not in page
        return
    values = {
        series(sample.name, sample.labels): sample.value
        for family in text_string_to_openmetrics_families(page)
        for sample in family.samples
        if sample.name in result.names
    }
    assert values == result.samples


def test_openmetrics_1_has_start_timestamps_if_configured(replayed):
    name, result = replayed
    created = read_created(result.prometheus_page.decode())
    if name != WITH_START_TIMESTAMPS:
        assert not created
        return
    known = {series: start_ms for series, start_ms in created.items() if start_ms}
    assert known == result.model.starts(0)
    assert known.keys() == {
        line.rpartition(" ")[0]
        for family in result.model.families
        if family.type == "counter"
        for line in result.model.page(0)[family.name]
    }
    prefixes = {series.split("_")[1] for series in created.keys() - known.keys()}
    assert prefixes == {"interface", "capture"}
    check_flow_families(f"{name}-openmetrics-1", result.prometheus_page, "# HELP", result)


def test_openmetrics_2_has_the_same_values_and_start_timestamps(replayed):
    name, result = replayed
    page = result.openmetrics_2_page.decode()
    families = openmetrics_2.families_of(page)
    lines = (
        line.rpartition(" ")
        for family in families.values()
        for series, (value, _) in family.samples.items()
        for line in without_start(f"{series} {value}")
    )
    values = {series: float(value) for series, _, value in lines}
    assert {
        series: value
        for series, value in values.items()
        if series.partition("{")[0] in result.names
    } == result.samples
    assert read_inline_starts(page) == result.model.starts(0)
    # Names and types are those of the text format, which has gauges instead of the type "info".
    types = {
        family.name: family.metadata["TYPE"].replace("info", "gauge")
        for family in families.values()
    }
    types_in_text = re.findall(r"^# TYPE (\w+) (\w+)$", result.page.decode(), re.MULTILINE)
    assert types == dict(types_in_text)
    if name in (WITH_START_TIMESTAMPS, "two-analyzers", "histograms"):
        check_flow_families(f"{name}-openmetrics-2", result.openmetrics_2_page, "# TYPE", result)


def check_flow_families(file, page, first, result):
    """Compare the families of flows on a page with a golden file.

    ``first`` is the start of each family's first line.
    """
    families = []
    for line in page.decode().splitlines():
        if line.startswith(first):
            families.append(([], []))
        families[-1][0 if line.startswith("#") else 1].append(line)
    flows = families[: len(result.model.families)]
    full_page = BUILD / f"{file}.txt"
    full_page.parent.mkdir(parents=True, exist_ok=True)
    full_page.write_bytes(page)
    check_golden(
        GOLDEN / f"{file}.txt", [(head, sorted(lines)) for head, lines in flows], full_page
    )


@needs_promtool
def test_promtool_complains_only_about_compatible_names(replayed):
    _, result = replayed
    complaints = set(lint(result.page))
    of_parts = {complaint for page in result.flow_parts for complaint in lint(page)}
    assert of_parts <= complaints
    if result.is_standard:
        assert complaints == set()
        return
    counters = re.findall(r"^# TYPE (\w+) counter$", result.page.decode(), re.MULTILINE)
    shown = set(re.findall(r"^\w+", result.page.decode(), re.MULTILINE))
    expected = {
        f"{name}{NO_TOTAL}" for name in counters if name in shown and INHERITED.fullmatch(name)
    }
    assert expected
    assert complaints == expected | ({NO_BASE_UNIT} if RTT in shown else set())


def test_self_metrics_account_for_every_report(replayed):
    _, result = replayed
    metrics, model = result.metrics, result.model
    for analyzer, flows in result.flows.items():
        assert metrics[f'skyfast_flows_total{{analyzer="{analyzer}"}}'] == flows
        assert metrics[f'skyfast_up{{analyzer="{analyzer}"}}'] == 1
    for name, label, expected in (
        ("skipped", "reason", model.skipped),
        ("finished", "reason", model.finished),
        ("filtered", "rule", model.filtered),
    ):
        prefix = f'skyfast_flows_{name}_total{{{label}="'
        counts = {
            series.removeprefix(prefix).removesuffix('"}'): int(value)
            for series, value in metrics.items()
            if series.startswith(prefix)
        }
        assert +Counter(counts) == expected
    assert metrics["skyfast_connections"] == model.connections
    assert metrics["skyfast_connections_created_total"] == model.created_total
    assert metrics["skyfast_connections_rejected_total"] == model.rejected_total
    assert metrics["skyfast_connections_overflowed_total"] == model.overflowed_total
    # In OpenMetrics, skyfast_flows is the family of the counter skyfast_flows_total. Therefore,
    # with standard naming, the gauge has the name skyfast_table_flows.
    assert metrics["skyfast_table_flows" if result.is_standard else "skyfast_flows"] == model.flows
    views = [n for series, n in metrics.items() if series.startswith("skyfast_view_connections{")]
    assert views == list(model.view_connections)
    errors = [value for series, value in metrics.items() if "_errors_total{" in series]
    assert errors
    assert not any(errors)


def split(result):
    """Return the parts of the page as pairs: the kind, such as "flows", and the text."""
    families = result.model.families
    flows = {family.name for family in families} | sample_names(families)
    interfaces = {family.name for family in result.interface_families}

    def part(line):
        name = line.split(" ")[2] if line.startswith("#") else re.match(r"\w+", line)[0]
        if name in flows:
            return "flows"
        if name in interfaces:
            return "interfaces"
        return "captures" if name.startswith("skydive_capture_") else "self"

    lines = result.page.decode().splitlines(keepends=True)
    return [(name, "".join(part).encode()) for name, part in itertools.groupby(lines, key=part)]


def series(name, labels):
    """Return a series in the notation of the page."""
    pairs = ",".join(f'{label}="{escape(value)}"' for label, value in labels.items())
    return f"{name}{{{pairs}}}"
