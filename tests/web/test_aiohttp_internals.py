"""The docstring of `skyfast.web.connections` lists the internals of aiohttp that it uses."""

import ast
import inspect
import re
from pathlib import Path

import aiohttp
import aiohttp.abc
import aiohttp.http
import aiohttp.http_exceptions
import aiohttp.web
import pytest

from skyfast.web import connections
from skyfast.web.connections import HttpConnection
from tests.support.paths import ROOT

BASE = aiohttp.web.RequestHandler
LISTED = set(re.findall(r"``((?:web|http|http_exceptions)\.[\w.]+)``", connections.__doc__))
LISTED_OF_BASE = {name.rpartition(".")[2] for name in LISTED if name.count(".") == 2} & {*dir(BASE)}

DOCUMENTED = ("aiohttp", "aiohttp.abc", "aiohttp.hdrs", "aiohttp.web")
"""The documented modules of aiohttp."""

OTHERS = sorted({*(ROOT / "skyfast").rglob("*.py")} - {Path(connections.__file__)})

PRIVATE = {
    name
    for module in (aiohttp, aiohttp.abc, aiohttp.http, aiohttp.web)
    for value in vars(module).values()
    if isinstance(value, type) and value.__module__.startswith("aiohttp")
    for name in dir(value)
    if re.match(r"_(?!_)", name)
}


def tree(path):
    return ast.parse(Path(path).read_text())


def imported(module):
    """Yield each import from aiohttp as a pair of the module and the name."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "aiohttp":
            for alias in node.names:
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "aiohttp":
                    yield alias.name, ""


def attributes(module):
    """Yield the names of all attributes in a module, except those of ``self`` and ``cls``."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in {"self", "cls"}:
            yield node.attr


def bases(module):
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            yield from map(ast.unparse, node.bases)


@pytest.mark.parametrize("name", sorted(LISTED))
def test_listed_internals_of_aiohttp_exist(name):
    target = aiohttp
    for part in name.split("."):
        target = getattr(target, part)


def test_parameters_passed_to_aiohttp_exist():
    assert {*connections._OPTIONS} <= {*inspect.signature(BASE).parameters}
    server = inspect.signature(aiohttp.web.Server).parameters
    assert {"request_factory", "handler_cancellation"} <= {*server}
    request = inspect.signature(aiohttp.web.BaseRequest).parameters.values()
    assert sum(item.kind is item.POSITIONAL_OR_KEYWORD for item in request) == 6


def test_locked_version_is_the_tested_version():
    (locked,) = re.findall(r"(?m)^aiohttp==(\S+)", (ROOT / "requirements.lock").read_text())
    assert re.search(rf"tested with aiohttp {re.escape(locked)}\b", connections.__doc__)


def test_inherited_attributes_in_use_are_listed():
    (connection,) = [
        node
        for node in tree(connections.__file__).body
        if isinstance(node, ast.ClassDef) and node.name == HttpConnection.__name__
    ]
    used = {
        node.attr
        for node in ast.walk(connection)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"self", "super()"}
    }
    named = used | {*vars(HttpConnection)}
    ordinary = {name for name in named if name.startswith("__")}
    assert (named & {*dir(BASE)}) - ordinary == LISTED_OF_BASE


def test_other_internals_in_use_are_listed():
    module = tree(connections.__file__)
    undocumented = {
        f"{origin.removeprefix('aiohttp.')}.{name}"
        for origin, name in imported(module)
        if origin not in DOCUMENTED
    }
    listed = {name for name in LISTED if not name.startswith("web.")}
    assert undocumented == {".".join(name.split(".")[:2]) for name in listed}
    private = {*attributes(module)} & PRIVATE
    assert private == {"_replace"}
    assert [base for base in bases(module) if base.startswith("web.")] == ["web.RequestHandler"]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_relies_on_internals(path):
    module = tree(path)
    names = {*imported(module)}
    if not names:
        return
    assert {origin for origin, _ in names} <= {*DOCUMENTED}
    assert not {name for _, name in names if name.startswith("_")}
    assert not {*attributes(module)} & PRIVATE
    # `attributes` does not find names in annotations that are strings.
    assert not re.findall(r"\baiohttp(?:\.\w+)*\._\w+", path.read_text())
    for base in bases(module):
        # aiohttp allows subclasses only of the abstract classes in aiohttp.abc.
        assert not base.startswith(("aiohttp.", "web."))
        assert ("aiohttp", base) not in names
        assert ("aiohttp.web", base) not in names
