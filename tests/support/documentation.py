"""The pages of the documentation, and their code blocks."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skyfast.config import loader
from skyfast.flows.catalog import INTERFACE_INFO, METRICS
from skyfast.flows.planner import families
from skyfast.skydive import topology_nodes
from skyfast.skydive.captures import Captures
from skyfast.skydive.interfaces import Interfaces
from skyfast.stats import NameStats, OwnNameStats, Stats
from skyfast.web import self_metrics
from tests.support.paths import RECORDINGS, ROOT
from tests.support.web_fixtures import FakeTable

TOPOLOGY = RECORDINGS / "topology.json"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
CAPTURE = b'{"CaptureID":"c","PacketsReceived":1}'


@functools.cache
def exported() -> set[str]:
    """Return all metric families, except those whose names users choose."""
    names = set()
    for naming in ("compatible", "standard"):
        metrics = [metric.name for metric in METRICS]
        text = f"pipeline.store.prom_sky_con: {{naming: {naming}, metrics: {metrics}}}"
        export = loader.parse(text, {}, source="x.yml").export
        for view in export.views:
            names |= {family.name for family in families(view, naming=naming)}
        names.add(INTERFACE_INFO[naming].name)
        stats = Stats()
        stats.topology.names = NameStats()
        stats.own_names = OwnNameStats()
        interfaces = Interfaces(
            interval_s=1, connection_timeout_s=1, stats=stats.topology, naming=naming
        )
        interfaces.update(topology_nodes.read(TOPOLOGY.read_bytes()), 0)
        captures = Captures(naming=naming, stats=stats.captures)
        captures.message(CAPTURE, 0)
        page = interfaces.page(0) + captures.page(0)
        page += self_metrics.render(stats, FakeTable(), standard_names=naming == "standard")
        page += self_metrics.render_hidden({"": (1, 1)})
        page += self_metrics.render_label_values({"protocol": 1})
        names |= set(re.findall(r"^# TYPE (\S+)", page.decode(), re.MULTILINE))
    return names


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each code block. Indented blocks have no language ("")."""
    text = page.read_text()
    fenced = r"(?ms)^( *)```(\w*)\n(.*?)^\1```$"
    for indent, language, code in re.findall(fenced, text):
        yield language, re.sub(rf"(?m)^{indent}", "", code)
    outside = re.sub(fenced, "", text)
    for code in re.findall(r"(?m)^\n((?: {4}.*\n)(?:(?: {4}.*)?\n)*)", outside):
        yield "", re.sub(r"(?m)^ {4}", "", code).strip("\n")


def queries_of(text: str) -> list[str]:
    """Return the queries of a code block, in which continuation lines are indented."""
    return re.split(r"(?m)\n+(?=\S)", re.sub(r"(?m)^#.*\n", "", text).strip())


def code(*languages: str) -> list[Any]:
    """Return all code blocks in these languages, as pytest parameters."""
    parameters = []
    for page in PAGES:
        texts = (text for language, text in blocks(page) if language in languages)
        parameters += [
            pytest.param(text, id=f"{page.stem}-{number}") for number, text in enumerate(texts, 1)
        ]
    return parameters


def anchors(page: Path) -> list[str]:
    """Return the anchors of a page's headings, with numbers if headings repeat."""
    known: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE):
        name = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        count = len(
            [anchor for anchor in known if re.fullmatch(rf"{re.escape(name)}(-\d+)?", anchor)]
        )
        known.append(f"{name}-{count}" if count else name)
    return known
