"""What the documentation names exists, and what exists is named there."""

import re
from pathlib import Path

import pytest

from skyfast import selfmetrics
from skyfast._table import Table
from skyfast.plan import default_plan
from skyfast.selfmetrics import Stats
from skyfast.topology import Interfaces
from skyfast.wire import flow_types

ROOT = Path(__file__).parent.parent
TOPOLOGY = Path(__file__).parent / "data" / "recordings" / "topology.json"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
METRICS = (ROOT / "docs" / "metrics.md").read_text()


def families() -> set[str]:
    """Return the names of all families of a page."""
    stats, plan = Stats(), default_plan()
    table = Table(plan, flow_types(plan), max_connections=1, max_flows=1, timeout_s=1)
    interfaces = Interfaces(interval_s=1, connection_timeout_s=1, stats=stats.topology)
    interfaces.update(TOPOLOGY.read_bytes(), 0)
    page = table.page(0).read(1 << 20) + interfaces.page(0) + selfmetrics.render(stats, table)
    return set(re.findall(r"^# TYPE (\S+)", page.decode(), re.MULTILINE))


def test_every_metric_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"`((?:skydive_network|skyfast|process)_\w+)`", METRICS))
    assert documented == families()


@pytest.mark.parametrize(
    "reason",
    [*selfmetrics.SKIP_REASONS, *selfmetrics.MESSAGE_ERRORS, *selfmetrics.RECONNECT_REASONS],
)
def test_every_reason_is_documented(reason: str) -> None:
    assert f"`{reason}`" in METRICS


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert targets >= {"run", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
