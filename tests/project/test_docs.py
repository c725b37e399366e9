"""Checks that the documentation is complete, mentions only what exists, and contains valid code."""

import asyncio
import functools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs import generate
from docs.generate import DocumentationError
from skyfast import cli
from skyfast.config import cost, loader
from skyfast.config.names import load as load_names
from skyfast.flows.catalog import ADDRESS_NAMES
from skyfast.flows.own_names import OwnNames, read_csv
from skyfast.skydive.combined_names import CombinedNames
from skyfast.skydive.name_index import AddressNames
from skyfast.web.responses import openmetrics_version
from tests.support.documentation import PAGES, anchors, blocks, code, exported, queries_of
from tests.support.paths import DEPLOY, ROOT
from tests.support.process import demo
from tests.support.prometheus import ANSWER_S, growing, needs_prometheus, prometheus

PROMTOOL = shutil.which("promtool")
TOOL_S = 30.0


def test_generated_parts_are_current() -> None:
    """If this test fails, run ``make docs``."""
    assert generate.outdated_pages() == []


def test_every_generated_part_is_in_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert sorted(generate.PART.findall(text)) == sorted(generate.PARTS)


def test_description_of_an_unknown_name_is_an_error() -> None:
    with pytest.raises(DocumentationError, match=r"x\.yml: 'b' has no description; 'c' does not"):
        generate.check_names(["a", "c"], ["a", "b"], where="x.yml")


EXAMPLE_PREFIXES = {"skydive_ports", "skydive_services", "skydive_traffic", "skydive_workloads"}
"""Prefixes of views in examples."""


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda path: path.name
)
def test_mentioned_metrics_exist(page: Path) -> None:
    text = re.sub(r"(?ms)^ *```.*?```$", "", page.read_text())
    named = set(re.findall(r"`((?:skydive|skyfast|process)_\w+?)(?:\{[^`]*\})?`", text))
    assert named <= exported() | EXAMPLE_PREFIXES


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_are_valid(page: Path) -> None:
    for file, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)", page.read_text()):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def test_every_page_is_reachable_from_the_readme() -> None:
    seen: set[Path] = set()
    pending = [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        seen.add(page)
        links = re.findall(r"\]\((?!https?://)([^)#]+\.md)", page.read_text())
        pending += {(page.parent / file).resolve() for file in links} - seen
    assert not set(PAGES) - seen


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_rows_of_a_table_have_the_same_number_of_cells(page: Path) -> None:
    for table in re.findall(r"(?m)(?:^\|.*\n)+", page.read_text()):
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(cells) == 1, table


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_list_items_are_on_separate_lines(page: Path) -> None:
    prose = re.sub(r"(?ms)^ *```.*?```$|^    .*?$", "", page.read_text())
    assert not re.findall(r".*[.:] [*-] .*", prose)


NUMBER = r"([\d,.]+)"

COSTS = (
    ("docs/operating.md", f"{NUMBER} µs × reports/s", "known flows, 3 analyzers at once", 1e-3),
    ("docs/operating.md", f"{NUMBER} µs for a new flow", "new flows, growing table", 1e-3),
    ("docs/operating.md", rf"MiB \+ {NUMBER} bytes × live", "skyfast, 1,000,000 connections", 1),
    ("docs/operating.md", f"about {NUMBER} bytes in total", "skyfast, 1,000,000 connections", 1),
    (
        "docs/operating.md",
        rf"for scrapes \| {NUMBER} s × connections",
        "skyfast, gzip, CPU time",
        1,
    ),
    ("docs/operating.md", rf"a scrape \| {NUMBER} s × connections", "skyfast, gzip", 1),
    ("docs/operating.md", f"page .* {NUMBER} bytes × series;", "page size, no view", 2),
    *(
        ("docs/operating.md", expression, "compressed page, 100,000 connections", factor)
        for expression, factor in (
            (f"compressed, {NUMBER} bytes × series", 2),
            (f"compressed, {NUMBER} MB", 1),
        )
    ),
    ("docs/scaling.md", rf"scrape, compressed \| {NUMBER} s", "skyfast, gzip", 1),
    (
        "docs/scaling.md",
        rf"scrape, compressed \| \S+ s \| {NUMBER} s",
        *("skyfast, 1,000,000 connections, gzip", 1),
    ),
    ("docs/scaling.md", f"another {NUMBER} s of CPU time", "skyfast, gzip, CPU time", 1),
    (
        "docs/scaling.md",
        rf"by skyfast \| \S+ MB \| {NUMBER} MB",
        "compressed page, 100,000 connections",
        1,
    ),
    ("docs/migrating.md", f"500,000 series takes {NUMBER} s", "Go connector, gzip", 1),
    ("docs/migrating.md", f"The scrape takes {NUMBER} s", "skyfast, gzip", 1),
    ("docs/migrating.md", f"sent after {NUMBER} ms", "skyfast, gzip, first byte", 1),
    ("docs/reference/self-metrics.md", f"{NUMBER} s per 100,000", "skyfast, gzip", 1),
    (
        "docs/reference/self-metrics.md",
        f"{NUMBER} bytes per connection with one flow",
        *("skyfast, 1,000,000 connections", 1),
    ),
    (
        "deploy/kubernetes/deployment.yml",
        f"reports/s at {NUMBER} µs",
        *("known flows, 3 analyzers at once", 1e-3),
    ),
    ("deploy/kubernetes/deployment.yml", f"takes {NUMBER} µs", "new flows, growing table", 1e-3),
    (
        "deploy/kubernetes/deployment.yml",
        f"gzip scrape of {NUMBER} s",
        "skyfast, gzip, CPU time",
        1,
    ),
    (
        "deploy/kubernetes/deployment.yml",
        rf"\+ {NUMBER} bytes per connection",
        *("skyfast, 1,000,000 connections", 1),
    ),
)
"""Costs in the guides: a file, a pattern for the number, a measurement, and a factor. The number
must agree with the measurement multiplied by the factor.
"""


@pytest.mark.parametrize(("file", "expression", "measurement", "factor"), COSTS)
def test_documented_costs_agree_with_the_benchmarks(
    file: str, expression: str, measurement: str, factor: float
) -> None:
    """Benchmarks vary, so the documented costs may differ by a fifth."""
    (number,) = re.findall(expression, (ROOT / file).read_text())
    measured = generate.measured(measurement) * factor
    assert float(number.replace(",", "")) == pytest.approx(measured, rel=0.2)


def test_documented_cpu_time_of_uncompressed_pages_matches_the_table() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    (plain,) = re.findall(r"skyfast, uncompressed \| (\S+) s \| (\S+) s", text)
    (compressed,) = re.findall(r"`web.gzip: direct`\) \| (\S+) s \| (\S+) s", text)
    shares = [float(a) / float(b) for a, b in zip(plain, compressed, strict=True)]
    high, low = (round(100 * (1 - share)) for share in shares)
    assert f"takes {low} to {high} % less CPU time in\nskyfast" in text


# Code blocks


COMMANDS = {
    *(
        "curl",
        "docker",
        "echo",
        "export",
        "git",
        "grep",
        "helm",
        "install",
        "kill",
        "kubectl",
        "make",
        "mkdir",
        "pkill",
        "oc",
    ),
    *("pip", "prometheus", "promtool", "python", "python3", "skydive", "skyfast", "ss", "sudo"),
    *(
        "systemctl",
        "victoria-metrics",
        "vmagent",
        "/opt/skyfast/bin/pip",
        "/opt/skyfast/bin/skyfast",
    ),
}


def command(line: str) -> list[str]:
    """Return a known command and its arguments, or [] if the command is unknown."""
    words = line.split("#")[0].split()
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return words if words and words[0] in COMMANDS else []


def commands() -> list[Any]:
    selected = code("shell")
    for block in code(""):
        if command(block.values[0].splitlines()[0]):
            selected.append(block)
    return selected


@functools.cache
def options(program: str) -> set[str]:
    """Return the options in a program's help."""
    result = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=TOOL_S)
    return set(re.findall(r"(?m)(?<![\w-])--?[a-zA-Z][\w.-]*", result.stdout + result.stderr))


def test_code_blocks_of_every_language_exist() -> None:
    for languages in (("yaml",), ("promql",), ("json",), ("csv",)):
        assert code(*languages), languages
    assert len(commands()) > 20


@pytest.mark.parametrize("text", commands())
def test_commands_are_valid_and_use_existing_options(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=TOOL_S)
    makefile = (ROOT / "Makefile").read_text()
    for line in text.replace("\\\n", " ").splitlines():
        assert line.count(" # ") <= 1, f"joined lines: {line}"
        match command(line):
            case [("skyfast" | "/opt/skyfast/bin/skyfast"), *arguments]:
                known = set(re.findall(r"--[\w.-]+", cli._parser().format_help()))
                given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
                assert given <= known, line
            case ["make", *arguments]:
                for target in arguments:
                    if "=" not in target:
                        assert re.search(rf"(?m)^{target}:", makefile), line
            case ["python", "-m", module, *_] if module.startswith("benchmarks"):
                path = ROOT / module.replace(".", "/")
                assert path.is_dir() or path.with_suffix(".py").exists(), line
            case [("prometheus" | "victoria-metrics" | "vmagent") as program, *arguments]:
                if shutil.which(program):
                    known = {option.lstrip("-") for option in options(program)}
                    given = {word.strip("-").partition("=")[0] for word in arguments}
                    assert given <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_use_only_variables_that_the_page_sets(page: Path) -> None:
    text = "\n".join(text for language, text in blocks(page) if language in ("", "shell"))
    used = set(re.findall(r"(?<!\$)\$\{?([A-Z_]+)", text))
    assert used - {"PATH", "HOME"} <= set(re.findall(r"(?m)\b([A-Z_]+)=", text))


@pytest.mark.parametrize("text", code("yaml"))
def test_yaml_is_valid(text: str, tmp_path: Path) -> None:
    content = yaml.safe_load(text)
    assert content
    if text.startswith("# values of the chart\n"):
        pass  # values of the chart: see tests/deploy/test_chart.py
    elif isinstance(content, dict) and content.keys() & {"pipeline", "analyzers", "web", "logging"}:
        loader.parse(text, {}, source="x.yml")
    elif isinstance(content, dict) and content.keys() & {"scrape_configs", "rule_files"}:
        if PROMTOOL is None:
            pytest.skip("promtool is not installed (Debian: prometheus)")
        file = tmp_path / "prometheus.yml"
        shutil.copy(DEPLOY / "rules" / "alerts.yml", tmp_path)
        file.write_text(text)
        checked = subprocess.run(
            [PROMTOOL, "check", "config", file], capture_output=True, text=True, timeout=TOOL_S
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_documented_name_for_unlisted_addresses_is_used() -> None:
    page = ROOT / "docs" / "choosing-metrics.md"
    (text,) = (text for _, text in blocks(page) if "0.0.0.0/0" in text)
    config = loader.parse(text, {}, source="x.yml")
    names = CombinedNames(AddressNames(len(ADDRESS_NAMES)))
    names.use(load_names(config.names, config.export).own, extends=True)
    for address in ("198.51.100.1", "2001:db8::1"):
        found = names[address]
        assert found is not None
        assert found[0] == "internet"


@pytest.mark.parametrize("preset", ["services", "hosts"])
def test_documented_view_counts_the_traffic_that_presets_hide(preset: str) -> None:
    page = ROOT / "docs" / "scaling.md"
    (text,) = (text for _, text in blocks(page) if "preset: hosts" in text)
    text = text.replace("preset: hosts", f"preset: {preset}")
    assert not cost.hides_traffic(loader.parse(text, {}, source="x.yml"))
    without_views = text.partition("      views:")[0]
    assert cost.hides_traffic(loader.parse(without_views, {}, source="x.yml"))


def test_documented_requests_select_openmetrics() -> None:
    page = (ROOT / "docs" / "choosing-metrics.md").read_text()
    headers = re.findall(r"(?m)^    curl -H 'Accept: (.*)' \S+/metrics$", page)
    assert [openmetrics_version(header, with_first=True) for header in headers] == [2, 1]
    assert [openmetrics_version(header, with_first=False) for header in headers] == [2, 0]


def test_names_of_the_demo_are_configured_as_documented() -> None:
    page = ROOT / "docs" / "getting-started.md"
    (text,) = (text for _, text in blocks(page) if "- initiator_name" in text)
    documented = loader.parse(text, {}, source="x.yml").export
    demo_file = (ROOT / "skyfast" / "data" / "demo.yml").read_text()
    assert documented == loader.parse(demo_file, {}, source="x.yml").export


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md", "docs/deployment.md"])
def test_every_port_of_the_compose_file_is_documented(page: str) -> None:
    ports = re.findall(r"\$\{(\w+_PORT):-(\d+)\}", (DEPLOY / "compose" / "compose.yml").read_text())
    assert len(ports) == 3
    text = (ROOT / page).read_text()
    for variable, port in ports:
        assert f"`{variable}`" in text
        assert port in text


@pytest.mark.parametrize("text", code("csv"))
def test_documented_files_of_own_names_are_valid(text: str) -> None:
    assert read_csv(text)


def test_documented_own_names_match_the_documented_file() -> None:
    page = ROOT / "docs" / "own-names.md"
    (text,) = (text for language, text in blocks(page) if language == "csv")
    topology = AddressNames(len(ADDRESS_NAMES))
    names = CombinedNames(topology)
    names.use(OwnNames(read_csv(text), ("site", "owner")), extends=True)
    rows = re.findall(r"(?m)^\| `([\d.]+)` \|(.*)\|(.*)\|(.*)\|(.*)\|$", page.read_text())
    assert len(rows) == 4
    for address, *cells in rows:
        found = names[address]
        assert found is not None
        shown = (found[0], *found[len(ADDRESS_NAMES) :])
        assert shown == tuple(cell.strip(" `") for cell in cells), address


@pytest.mark.parametrize("text", code("json"))
def test_json_is_valid(text: str) -> None:
    json.loads(text)


@pytest.mark.parametrize("text", code("python"))
def test_python_is_valid(text: str) -> None:
    compile(text, "documentation", "exec")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("text", code("promql"))
def test_queries_are_valid_and_use_exported_metrics(text: str, tmp_path: Path) -> None:
    rules = [{"record": "a:query", "expr": query} for query in queries_of(text)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "documentation", "rules": rules}]}))
    assert PROMTOOL is not None
    checked = subprocess.run(
        [PROMTOOL, "check", "rules", "--lint=none", file],
        capture_output=True,
        text=True,
        timeout=TOOL_S,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert set(re.findall(r"\b(?:skydive|skyfast|process)_\w+", text)) <= exported()


@pytest.mark.slow
@needs_prometheus
async def test_queries_of_the_getting_started_page_return_data(tmp_path: Path) -> None:
    page = ROOT / "docs" / "getting-started.md"
    queries = [
        query
        for language, text in blocks(page)
        if language == "promql"
        for query in queries_of(text)
    ]
    assert len(queries) == 5
    async with (
        demo() as skyfast,
        prometheus(skyfast.url.partition("//")[2], tmp_path) as server,
        asyncio.timeout(ANSWER_S),
    ):
        for query in queries:
            assert await growing(server, query, 1)


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert targets >= {"run", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_tests_in_the_threat_model_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 50
    for file, test in named:
        assert re.search(rf"(?m)^(async )?def {test}\(", (ROOT / file).read_text()), test


def test_every_row_of_the_threat_model_lists_tests() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    rows = re.findall(r"(?m)^\| (?!---)(.*) \| (.*) \| (.*) \|$", page)
    model = [tests for _, _, tests in rows if tests != "Tests"]
    assert len(model) > 30
    assert all("::test_" in tests for tests in model)
