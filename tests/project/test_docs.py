"""What the documentation names exists, what exists is named there, and its code can be used."""

import ast
import asyncio
import functools
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from skyfast import cli
from skyfast.config import loader
from skyfast.flows.catalog import LABELS, METRICS, STANDARD_PREFIX
from skyfast.flows.fields import FIELDS
from skyfast.skydive import subscription as subscriber
from skyfast.stats import (
    CAPTURE_SKIPS,
    HANDSHAKE_FAILURES,
    INTERFACE_SKIPS,
    MESSAGE_ERRORS,
    MISDATED_REASONS,
    RECONNECT_REASONS,
    RELOAD_FAILURES,
    SCRAPE_FAILURES,
    SKIP_REASONS,
    TOPOLOGY_ERRORS,
)
from tests.support.documentation import PAGES, blocks, code, exported
from tests.support.paths import DEPLOY, ROOT
from tests.support.process import demo
from tests.support.prometheus import ANSWER_S, growing, needs_prometheus, prometheus
from tests.support.table_adapter import Core

METRICS_PAGE = (ROOT / "docs" / "metrics.md").read_text()
OPERATING_PAGE = (ROOT / "docs" / "operating.md").read_text()

PROMTOOL = shutil.which("promtool")
TOOL_S = 30.0


def test_every_metric_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"`((?:skydive|skyfast|process)_\w+)`", METRICS_PAGE))
    assert documented == exported()


def table(heading: str, page: str = METRICS_PAGE) -> list[list[str]]:
    """Return the cells of the table that begins with the line ``heading``."""
    lines = page.splitlines()
    begin = lines.index(heading) + 2
    rows = []
    for line in lines[begin:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def field(path: tuple[str, ...]) -> str:
    return f"`{'.'.join(path)}`" if path else ""


def test_table_of_labels_is_the_catalogue() -> None:
    assert table("| label | field | type | cardinality | what |") == [
        [
            f"`{label.name}`",
            field(label.path),
            "integer" if not label.lookup and FIELDS.get(label.path) is int else "text",
            label.cardinality,
            label.help,
        ]
        for label in LABELS
    ]


def test_table_of_metrics_is_the_catalogue() -> None:
    assert table("| metric | fields | type | unit | series | what |") == [
        [
            f"`{metric.name}`",
            ", ".join(map(field, metric.paths)),
            metric.type,
            metric.unit,
            str(len(metric.paths) or 1),
            metric.help,
        ]
        for metric in METRICS
    ]


def test_table_of_names_is_the_catalogue() -> None:
    assert table("| metric | `naming: compatible` | `naming: standard` |") == [
        [f"`{metric.name}`", f"`{metric.compatible}`", f"`{STANDARD_PREFIX}_{metric.standard}`"]
        for metric in METRICS
    ]


@pytest.mark.parametrize(
    ("metric", "reasons"),
    [
        ("skyfast_flows_skipped_total", SKIP_REASONS),
        ("skyfast_flows_misdated_total", MISDATED_REASONS),
        ("skyfast_flows_finished_total", tuple(Core().finished)),
        ("skyfast_message_errors_total", MESSAGE_ERRORS),
        ("skyfast_reconnects_total", RECONNECT_REASONS),
        ("skyfast_topology_errors_total", TOPOLOGY_ERRORS),
        ("skyfast_interfaces_skipped", INTERFACE_SKIPS),
        ("skyfast_config_reload_failures_total", RELOAD_FAILURES),
        ("skyfast_scrapes_failed_total", SCRAPE_FAILURES),
        ("skyfast_tls_handshakes_failed_total", HANDSHAKE_FAILURES),
        ("skyfast_capture_reports_skipped_total", CAPTURE_SKIPS),
    ],
)
def test_every_reason_is_documented_and_no_other(metric: str, reasons: tuple[str, ...]) -> None:
    rows = table(f"| `{metric}` | |")
    assert sorted(re.findall(r"`(\w+)`", "".join(row[0] for row in rows))) == sorted(reasons)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for file, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)", page.read_text()):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def test_every_page_is_led_to_from_the_readme() -> None:
    seen: set[Path] = set()
    ahead = [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        links = re.findall(r"\]\((?!https?://)([^)#]+\.md)", page.read_text())
        ahead += {(page.parent / file).resolve() for file in links} - seen
    assert not set(PAGES) - seen


def anchors(page: Path) -> list[str]:
    """Return what links to a page's headings end with: those that repeat another get a number."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE):
        name = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        count = len([each for each in found if re.fullmatch(rf"{re.escape(name)}(-\d+)?", each)])
        found.append(f"{name}-{count}" if count else name)
    return found


# Code blocks


COMMANDS = {
    *("curl", "docker", "echo", "export", "git", "grep", "install", "kill", "kubectl", "make"),
    *("pip", "prometheus", "promtool", "python", "python3", "skydive", "skyfast", "ss", "sudo"),
    *("systemctl", "victoria-metrics", "/opt/skyfast/bin/pip", "/opt/skyfast/bin/skyfast"),
}


def command(line: str) -> list[str]:
    """Return the words of a line that is a command, without what it sets; else nothing."""
    words = line.split("#")[0].split()
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return words if words and words[0] in COMMANDS else []


def commands() -> list[Any]:
    found = code("shell")
    for block in code(""):
        if command(block.values[0].splitlines()[0]):
            found.append(block)
    return found


@functools.cache
def options(of: str) -> set[str]:
    """Return the options that a program names in its help."""
    done = subprocess.run([of, "--help"], capture_output=True, text=True, timeout=TOOL_S)
    return set(re.findall(r"(?m)(?<![\w-])--?[a-zA-Z][\w.-]*", done.stdout + done.stderr))


def test_there_are_code_blocks_of_every_kind() -> None:
    for languages in (("yaml",), ("promql",), ("json",)):
        assert code(*languages), languages
    assert len(commands()) > 20


@pytest.mark.parametrize("text", commands())
def test_commands_are_ones_of_the_shell_and_have_the_options_they_are_given(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=TOOL_S)
    makefile = (ROOT / "Makefile").read_text()
    for line in text.replace("\\\n", " ").splitlines():
        match command(line):
            case [("skyfast" | "/opt/skyfast/bin/skyfast"), *arguments]:
                known = set(re.findall(r"--[\w.-]+", cli._parser().format_help()))
                given = {each.partition("=")[0] for each in arguments if each.startswith("--")}
                assert given <= known, line
            case ["make", *arguments]:
                for target in arguments:
                    if "=" not in target:
                        assert re.search(rf"(?m)^{target}:", makefile), line
            case ["python", "-m", module, *_] if module.startswith("benchmarks"):
                path = ROOT / module.replace(".", "/")
                assert path.is_dir() or path.with_suffix(".py").exists(), line
            case [("prometheus" | "victoria-metrics") as program, *arguments]:
                if shutil.which(program):
                    known = {option.lstrip("-") for option in options(program)}
                    given = {each.strip("-").partition("=")[0] for each in arguments}
                    assert given <= known, line


@pytest.mark.parametrize("text", code("yaml"))
def test_yaml_is_what_it_is_meant_to_be(text: str, tmp_path: Path) -> None:
    content = yaml.safe_load(text)
    assert content
    if isinstance(content, dict) and content.keys() & {"pipeline", "analyzers", "web", "logging"}:
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


@pytest.mark.parametrize("text", code("json"))
def test_json_is_json(text: str) -> None:
    json.loads(text)


@pytest.mark.parametrize("text", code("python"))
def test_python_compiles(text: str) -> None:
    compile(text, "documentation", "exec")


def queries_of(text: str) -> list[str]:
    """Return the queries of a block: each begins at the left, and has a comment above it."""
    return re.split(r"(?m)\n+(?=\S)", re.sub(r"(?m)^#.*\n", "", text).strip())


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("text", code("promql"))
def test_queries_are_of_promql_and_ask_for_what_there_is(text: str, tmp_path: Path) -> None:
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
async def test_the_first_graph_has_something_to_show(tmp_path: Path) -> None:
    (text,) = (
        text
        for language, text in blocks(ROOT / "docs" / "getting-started.md")
        if language == "promql"
    )
    async with (
        demo() as skyfast,
        prometheus(skyfast.url.partition("//")[2], tmp_path) as server,
        asyncio.timeout(ANSWER_S),
    ):
        queries = queries_of(text)
        assert len(queries) == 4
        for query in queries:
            assert await growing(server, query, 1)


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert targets >= {"run", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


FIGURES = [
    ("skyfast, known flows", "CPU time of a known flow", 1, "{:.1f} µs", 1e-3),
    ("Go connector, known flows", "CPU time of a known flow", 2, "{:.1f} µs", 1e-3),
    ("skyfast, new flows", "CPU time of a new flow", 1, "{:.1f} µs", 1e-3),
    ("Go connector, new flows", "CPU time of a new flow", 2, "{:.1f} µs", 1e-3),
    ("page, gzip", "a page of 100,000", 1, "{:.2f} s", 1),
    ("Go connector, gzip", "a page of 100,000", 2, "{:.1f} s", 1),
    ("the same, first byte", "its first byte", 1, "{:.3f} s", 1e-3),
]


@pytest.mark.parametrize(("measured", "row", "column", "form", "factor"), FIGURES)
def test_the_figures_of_the_readme_are_those_of_the_benchmarks(
    measured: str, row: str, column: int, form: str, factor: float
) -> None:
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text()
    (figure,) = re.findall(rf"\| {measured} \| ([\d,.]+) ", benchmarks)
    shown = form.format(float(figure.replace(",", "")) * factor)
    rows = table("| | skyfast | Go connector |", (ROOT / "README.md").read_text())
    (cells,) = (cells for cells in rows if cells[0].startswith(row))
    assert cells[column] == shown


# What goes wrong


class Lines:
    """The log lines of a module from WARNING on, as patterns in which `.+` is what differs."""

    LEVELS = ("warning", "error", "critical", "exception")

    def __init__(self, module: Path) -> None:
        self._tree = ast.parse(module.read_text())
        self._parents = {
            child: parent
            for parent in ast.walk(self._tree)
            for child in ast.iter_child_nodes(parent)
        }

    def __iter__(self) -> Iterator[str]:
        for call in ast.walk(self._tree):
            if isinstance(call, ast.Call) and (text := self._text(call)):
                yield from self._patterns(text, call)

    @classmethod
    def _text(cls, call: ast.Call) -> ast.expr | None:
        """Return the text of a call that logs, or that makes what is logged."""
        match call:
            case ast.Call(func=ast.Attribute(value=ast.Name("log"), attr=level), args=args):
                text = args[1] if ast.unparse(args[0]) == "'%s%s'" else args[0]
                return text if level in cls.LEVELS else None
            case ast.Call(func=ast.Attribute(attr="warn"), args=[_, _, text, *_]):
                return text
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(attr="_limit" | "_log_limit"), attr="log"),
                args=[_, _, _, text, *_],
            ):
                return text
            case ast.Call(func=ast.Attribute(attr="_log")):
                is_quiet = "logging.INFO" in map(ast.unparse, call.args)
                return None if is_quiet else next(filter(cls._is_text, call.args), None)
            case ast.Call(func=ast.Name("Note"), keywords=keywords):
                given = {each.arg: each.value for each in keywords}
                return given["text"] if ast.unparse(given["level"]) == "logging.WARNING" else None
            case ast.Call(func=ast.Name("_FailedError"), args=[_, text]):
                return text
        return None

    @staticmethod
    def _is_text(node: ast.expr) -> bool:
        return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Name) and node.id == "text")

    def _patterns(self, text: ast.expr, where: ast.AST) -> Iterator[str]:
        match text:
            case ast.Constant(str(words)):
                yield ".+".join(map(re.escape, re.split(r"%[\d.]*[sdfr]", words)))
            case ast.JoinedStr(values):
                yield "".join(
                    re.escape(str(each.value)) if isinstance(each, ast.Constant) else ".+"
                    for each in values
                )
            case ast.Name(name):
                for value in self._values(name, where):
                    yield from self._patterns(value, where)

    def _values(self, name: str, where: ast.AST) -> Iterator[ast.expr]:
        """Yield what a name stands for in a call: what was last assigned, or is iterated over."""
        function = where
        while not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            function = self._parents[function]
        assigned = {
            node.lineno: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == name
            and node.lineno < where.lineno
        }
        if assigned:
            yield assigned[max(assigned)]
        for node in ast.walk(function):
            match node:
                case ast.comprehension(ast.Name(id), ast.Call(ast.Name(source))) if id == name:
                    yield from self._yielded(source)

    def _yielded(self, name: str) -> Iterator[ast.expr]:
        for function in ast.walk(self._tree):
            if isinstance(function, ast.FunctionDef) and function.name == name:
                for node in ast.walk(function):
                    if isinstance(node, ast.Yield) and node.value:
                        yield node.value


ANALYZER = re.escape("analyzer ") + ".+" + re.escape(": ")


@functools.cache
def logged() -> dict[str, str]:
    """Return all patterns that say something by themselves, with the module that logs them.

    They are without the analyzer's name before them, and what may follow them.
    """
    found = {re.escape(text): "subscriber" for text in subscriber.REASON_TEXTS.values()}
    for module in sorted((ROOT / "skyfast").rglob("*.py")):
        for line in Lines(module):
            found[re.sub(r"(\.\+)+$", "", line.removeprefix(ANALYZER))] = module.stem
    return {line: module for line, module in found.items() if re.search(r"\w{4}", line)}


def documented() -> list[str]:
    """Return the lines that docs/operating.md explains."""
    lines = []
    for rows in re.findall(r"(?m)^\| line \|.*\n\|.*\n((?:\|.*\n)+)", OPERATING_PAGE):
        lines += [row.split("|")[1].strip(" `") for row in rows.splitlines()]
    return lines


@pytest.mark.parametrize(("pattern", "module"), logged().items())
def test_every_line_of_the_log_from_warning_on_is_explained(pattern: str, module: str) -> None:
    assert any(re.match(pattern, line) for line in documented()), f"{module}.py: {pattern}"


@pytest.mark.parametrize("line", documented())
def test_no_line_is_explained_that_is_never_logged(line: str) -> None:
    assert any(re.match(pattern, line) for pattern in logged())


def test_what_holds_the_threat_model_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 50
    for file, test in named:
        assert re.search(rf"(?m)^(async )?def {test}\(", (ROOT / file).read_text()), test


def test_every_line_of_the_threat_model_is_held() -> None:
    rows = re.findall(r"(?m)^\| (?!---|what)(.*) \|$", (ROOT / "SECURITY.md").read_text())
    model = [row for row in rows if row.count(" | ") == 2 and not re.match(r"\d|version", row)]
    assert len(model) > 30
    assert all("::test_" in row for row in model)


def test_every_metric_of_skyfast_itself_is_explained() -> None:
    rows = table("| metric | well | else |", OPERATING_PAGE)
    explained = set(itertools.chain.from_iterable(re.findall(r"`(\w+)`", row[0]) for row in rows))
    own = {name for name in exported() if name.startswith(("skyfast_", "process_"))}
    assert explained == own
