"""Fuzzes the configuration file: with changed examples, and with trees of known keys.

A case is a file. Loading the file must result in a usable configuration, or in an error of one
line.
"""

import random
import re
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from skyfast._table import Table
from skyfast.config import loader, schema
from skyfast.config.yaml_nodes import ConfigError
from skyfast.flows.fields import flow_types
from skyfast.flows.filters import classifier, make_flow_filter, reads
from skyfast.flows.planner import make_plan
from skyfast.skydive.name_index import NameIndex
from tests.fuzz.driver import Target
from tests.fuzz.mutation import any_value, change_bytes, change_value, copy_tree
from tests.support.paths import DATA

SECRET = "hunter2-of-the-fuzzer"
ENVIRON = {"SKYDIVE_ANALYZERS": "192.0.2.9:8082", "SKYDIVE_HOST_ID": "fuzz"}
MAX_PROBLEM_CHARS = 700

# Errors must hide the secret if it occurs only as the value of the key ``password``.
_HIDDEN = re.compile(rb"\A(?:(?!hunter2).)*\bpassword: hunter2[\w-]+\n(?:(?!hunter2).)*\Z", re.S)

PIECES = (
    *("&a ", "*a", "*b", "<<: *a", "!!str ", "!!python/object:os.system ", "!!binary ", "? ", "- "),
    *("---\n", "...\n", "%YAML 1.1\n", "|\n", ">-\n", "# ", "{", "}", "[", "]", ": ", "\t", "''"),
    *("0x10", "0o17", "1_000", "190:20:30", "2001-12-14", "yes", "~", ".nan", "1e3", "\u2028"),
)
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@cache
def examples() -> list[str]:
    paths = [*(DATA / "config").glob("*/*.yml"), *(DATA / "configs").glob("*.yml")]
    return [path.read_bytes().decode(errors="replace") for path in sorted(paths)]


@cache
def example_trees() -> list[Any]:
    """Return the parsed examples, except those that are invalid, nested deeply or use anchors."""
    trees = []
    for text in examples():
        if "&" in text or "[[[[" in text:
            continue
        try:
            trees.append(yaml.safe_load(text))
        except (yaml.YAMLError, ValueError):
            continue
    return trees


class Configuration(Target):
    """Loads files as skyfast does at startup."""

    name: ClassVar[str] = "configuration"

    def open(self, opened: ExitStack) -> None:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        self._path = directory / "fuzz.yml"

    def generate(self, rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            text = _dump(rng, _tree_of_keys(rng))
        else:
            text = rng.choice(examples())
            if rng.random() < 0.7:
                text = _dump(rng, _changed_example(rng))
        return corrupt(rng, text)

    def run(self, case: bytes) -> None:
        self._path.write_bytes(case)
        try:
            config = loader.load(str(self._path), ENVIRON)
        except ConfigError as error:
            check_error(error, hides=SECRET if _HIDDEN.search(case) else None)
            return
        # An accepted configuration can be printed, read again, and used.
        loader.parse(loader.dump(config), ENVIRON, source="the dump")
        names = NameIndex.of(config.export, keep_s=0)
        plan = make_plan(config.export, names=names)
        types = flow_types(plan, also=reads(config.filter))
        Table(
            plan,
            types,
            max_connections=config.limits.max_connections,
            max_flows=config.limits.max_flows,
            timeout_s=config.limits.timeout_s,
            view_timeouts_s=config.limits.view_timeouts_s,
            bounds=config.limits.bounds,
        )
        make_flow_filter(
            config.filter,
            classifier(config.classify.cluster_net_masks),
            requirements=plan.requirements,
            skipped=dict.fromkeys(("no_network", "no_transport", "no_metric", "excluded"), 0),
            filtered={},
        )([types.Update()])


def check_error(error: ConfigError, *, hides: str | None) -> None:
    """Check that an error is a short line of text without the secret ``hides``."""
    text = str(error)
    assert text, "the error has no message"
    assert text.isprintable(), repr(text)
    assert max(map(len, error.problems)) < MAX_PROBLEM_CHARS, text
    assert hides is None or hides not in text, text


def corrupt(rng: random.Random, text: str) -> bytes:
    """Return ``text`` as bytes, sometimes with additional pieces of YAML or invalid bytes."""
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        index = rng.randrange(len(text) + 1)
        text = text[:index] + rng.choice(PIECES) + text[index:]
    if rng.random() < 0.02:
        text = BOMB + text
    if rng.random() < 0.02:
        text = rng.choice(("[" * 3000, "a: {b: " * 2000, "- " * 3000)) + text
    data = text.encode(errors="surrogatepass")
    if rng.random() < 0.15:
        data = change_bytes(rng, data)
    if rng.random() < 0.02:
        data = text.encode(rng.choice(("utf-16", "utf-16-le", "utf-32")), errors="replace")
    return data


def _dump(rng: random.Random, tree: Any) -> str:
    text: str = yaml.safe_dump(
        tree,
        default_flow_style=rng.choice((False, False, True)),
        default_style=rng.choice((None, None, None, '"', "'")),
        allow_unicode=rng.random() < 0.5,
        sort_keys=False,
        width=rng.choice((80, 10_000)),
    )
    return text


def _changed_example(rng: random.Random) -> Any:
    tree = copy_tree(rng.choice(example_trees()))
    keys = [part for path in schema.SCHEMA for part in path.split(".")]
    keys += ["name", "labels", "metrics", "prefix", "path", "not", "regex", "timeout", "type"]
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        change_value(rng, tree, keys)
    return tree


@cache
def _examples_of(path: str) -> list[Any]:
    """Return the values that the examples have for a key."""
    values = []
    for tree in example_trees():
        try:
            for part in path.split("."):
                tree = tree[part]
        except (KeyError, TypeError):
            continue
        values.append(tree)
    return values


def _tree_of_keys(rng: random.Random) -> Any:
    """Return a tree of known keys, with values from the examples or arbitrary values."""
    tree: dict[str, Any] = {}
    for path in rng.sample(sorted(schema.SCHEMA), rng.randrange(1, 12)):
        *sections, name = path.split(".")
        branch = tree
        for section in sections:
            child = branch.setdefault(section, {})
            if not isinstance(child, dict):
                break
            branch = child
        values = _examples_of(path)
        value = copy_tree(rng.choice(values)) if values and rng.random() < 0.7 else any_value(rng)
        if name in {"password", "cookie"}:
            value = rng.choice((SECRET, SECRET + "\n", {"session": SECRET}, [SECRET]))
        branch[name] = value
    return tree
