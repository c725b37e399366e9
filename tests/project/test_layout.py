"""Locations of files, and rules for imports that `make lint` does not check."""

import ast
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT, TESTS

PACKAGE = ROOT / "skyfast"
CORE = sorted(
    path for path in PACKAGE.rglob("*") if re.fullmatch(r"\.(pyx|pxd|pxi|pyi)", path.suffix)
)
TEST_FILES = sorted(TESTS.rglob("test_*.py"))


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, even conditionally."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_test_modules_do_not_import_each_other(path: Path) -> None:
    parts = {module for module in imported(path) if "test_" in module.rpartition(".")[2]}
    files = {TESTS.parent / f"{module.replace('.', '/')}.py" for module in parts}
    assert not {file for file in files if file.exists()}


def test_test_folders_mirror_the_package() -> None:
    """The folders in ``others`` test several parts of the package, or files outside the package."""
    others = {"app", "deploy", "faults", "fuzz", "project"}
    folders = {path.parent.relative_to(TESTS).parts[0] for path in TEST_FILES}
    assert {name for name in folders - others if not (ROOT / "skyfast" / name).is_dir()} == set()


def test_core_imports_nothing_from_the_package() -> None:
    statement = re.compile(r"^\s*(?:from\s+(\S+)\s+c?import|c?import\s+(.+))", re.MULTILINE)
    modules = {
        module.strip()
        for path in CORE
        for match in statement.finditer(path.read_text())
        for module in (match[1] or match[2]).split(",")
    }
    assert modules >= {"libc.stdint", "typing", "collections.abc"}
    assert {module for module in modules if module.startswith(("skyfast", "."))} == set()
