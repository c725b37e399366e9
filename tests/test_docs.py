"""What the documentation names exists, and what exists is named there."""

import re
from pathlib import Path

import pytest

from skyfast import config, nodes, selfmetrics
from skyfast.captures import Captures
from skyfast.catalogue import LABELS, METRICS, STANDARD_PREFIX, families
from skyfast.selfmetrics import Stats
from skyfast.topology import Interfaces
from skyfast.wire import FIELDS
from tests.pages import FakeTable

ROOT = Path(__file__).parent.parent
TOPOLOGY = Path(__file__).parent / "data" / "recordings" / "topology.json"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
METRICS_PAGE = (ROOT / "docs" / "metrics.md").read_text()


CAPTURE = b'{"CaptureID":"c","PacketsReceived":1}'


def exported() -> set[str]:
    """Return the names of all families that any page can have, but for those a user names."""
    names = set()
    for naming in ("compatible", "standard"):
        metrics = [metric.name for metric in METRICS]
        text = f"pipeline.store.prom_sky_con: {{naming: {naming}, metrics: {metrics}}}"
        store = config.parse(text, {}, source="x.yml").store
        for view in (store.main, *store.views):
            names |= {family.name for family in families(view, naming=naming)}
        stats = Stats()
        interfaces = Interfaces(
            interval_s=1, connection_timeout_s=1, stats=stats.topology, naming=naming
        )
        interfaces.update(nodes.read(TOPOLOGY.read_bytes()), 0)
        captures = Captures(naming=naming, stats=stats.captures)
        captures.message(CAPTURE, 0)
        page = interfaces.page(0) + captures.page(0)
        page += selfmetrics.render(stats, FakeTable(), standard_names=naming == "standard")
        page += selfmetrics.render_label_values({"protocol": 1})
        names |= set(re.findall(r"^# TYPE (\S+)", page.decode(), re.MULTILINE))
    return names


def test_every_metric_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"`((?:skydive|skyfast|process)_\w+)`", METRICS_PAGE))
    assert documented == exported()


def table(heading: str) -> list[list[str]]:
    """Return the cells of the table that begins with the line ``heading``."""
    lines = METRICS_PAGE.splitlines()
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
    "reason",
    [*selfmetrics.SKIP_REASONS, *selfmetrics.MESSAGE_ERRORS, *selfmetrics.RECONNECT_REASONS],
)
def test_every_reason_is_documented(reason: str) -> None:
    assert f"`{reason}`" in METRICS_PAGE


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for file, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)", page.read_text()):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def anchors(page: Path) -> list[str]:
    """Return what links to a page's headings end with: those that repeat another get a number."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE):
        name = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        count = len([each for each in found if re.fullmatch(rf"{re.escape(name)}(-\d+)?", each)])
        found.append(f"{name}-{count}" if count else name)
    return found


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert targets >= {"run", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
