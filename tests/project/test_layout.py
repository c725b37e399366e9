"""Where files are, and what they import."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT, TESTS

PACKAGE = ROOT / "skyfast"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (*sorted(PACKAGE.rglob("*.py")), *sorted(PACKAGE.rglob("*.pyi")))
}
CORE = sorted(
    path for path in PACKAGE.rglob("*") if re.fullmatch(r"\.(pyx|pxd|pxi|pyi)", path.suffix)
)
TEST_FILES = sorted(TESTS.rglob("test_*.py"))

LAYERS = (
    ("__main__",),
    ("cli",),
    ("app",),
    ("pipeline",),
    ("web", "replay"),
    ("skydive",),
    ("runtime",),
    ("config", "stats"),
    ("flows",),
    ("text_format", "_table"),
)
"""Folders and modules of the package, from the top down: each imports none that is above it, and
none that stands beside it in its layer."""


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, also those under a condition."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_tests_share_helpers_and_not_each_other(path: Path) -> None:
    parts = {module for module in imported(path) if "test_" in module.rpartition(".")[2]}
    files = {TESTS.parent / f"{module.replace('.', '/')}.py" for module in parts}
    assert not {file for file in files if file.exists()}


def test_folders_of_tests_mirror_those_of_the_package() -> None:
    """Beside them there are those for what is not one folder's, or not of the package."""
    others = {"app", "deploy", "faults", "fuzz", "project"}
    folders = {path.parent.relative_to(TESTS).parts[0] for path in TEST_FILES}
    assert {name for name in folders - others if not (ROOT / "skyfast" / name).is_dir()} == set()


def layer(module: str) -> int:
    """Return where a module of the package stands, counted from the top."""
    part = module.split(".")[1]
    return next(i for i, parts in enumerate(LAYERS) if part in parts)


def own_imports(module: str) -> set[str]:
    """Return the modules of the package that one imports, also for the type checker alone."""
    return (imported(MODULES[module]) & MODULES.keys()) - {"skyfast"}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"skyfast"}))
def test_imports_lead_downwards(module: str) -> None:
    part = module.split(".")[1]
    others = {other for other in own_imports(module) if other.split(".")[1] != part}
    assert {other for other in others if layer(other) <= layer(module)} == set()


def test_no_modules_import_one_another() -> None:
    TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()


def test_the_core_imports_nothing_of_the_package() -> None:
    statement = re.compile(r"^\s*(?:from\s+(\S+)\s+c?import|c?import\s+(.+))", re.MULTILINE)
    found = {
        module.strip()
        for path in CORE
        for match in statement.finditer(path.read_text())
        for module in (match[1] or match[2]).split(",")
    }
    assert found >= {"libc.stdint", "typing", "collections.abc"}
    assert {module for module in found if module.startswith(("skyfast", "."))} == set()
