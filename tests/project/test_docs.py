"""What the documentation names exists, what exists is named there, and its code can be used."""

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
from skyfast.config import loader
from tests.support.documentation import PAGES, blocks, code, exported
from tests.support.paths import DEPLOY, ROOT
from tests.support.process import demo
from tests.support.prometheus import ANSWER_S, growing, needs_prometheus, prometheus

PROMTOOL = shutil.which("promtool")
TOOL_S = 30.0


def test_generated_parts_are_current() -> None:
    """Run ``make docs`` if this fails."""
    assert generate.outdated() == []


def test_every_generated_part_is_in_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert sorted(generate.PART.findall(text)) == sorted(generate.PARTS)


def test_a_description_of_something_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(DocumentationError, match=r"x\.yml: 'b' has no description; 'c' does not"):
        generate.check_names(["a", "c"], ["a", "b"], where="x.yml")


OF_EXAMPLES = {"skydive_services", "skydive_traffic"}
"""Prefixes of views in examples."""


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda path: path.name
)
def test_metrics_that_are_named_exist(page: Path) -> None:
    text = re.sub(r"(?ms)^ *```.*?```$", "", page.read_text())
    named = set(re.findall(r"`((?:skydive|skyfast|process)_\w+?)(?:\{[^`]*\})?`", text))
    assert named <= exported() | OF_EXAMPLES


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


def test_what_holds_the_threat_model_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 50
    for file, test in named:
        assert re.search(rf"(?m)^(async )?def {test}\(", (ROOT / file).read_text()), test


def test_every_line_of_the_threat_model_is_held() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    rows = re.findall(r"(?m)^\| (?!---)(.*) \| (.*) \| (.*) \|$", page)
    model = [tests for _, _, tests in rows if tests != "Tests"]
    assert len(model) > 30
    assert all("::test_" in tests for tests in model)
