"""The configuration file: good and bad ones, changed, and trees of the known keys.

A case is the file. It either becomes a configuration that can be used, or there is one line that
says what is wrong with it.
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
from tests.fuzz.mutation import anything, copied, wrong_bytes, wrong_value
from tests.support.paths import DATA

SECRET = "hunter2-of-the-fuzzer"
ENVIRON = {"SKYDIVE_ANALYZERS": "192.0.2.9:8082", "SKYDIVE_HOST_ID": "fuzz"}
MAX_LINE_CHARS = 2000

# The secret alone, where only it can be meant: elsewhere it is a wrong value as any other.
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
    """Return the configurations of the other tests."""
    paths = [*(DATA / "config").glob("*/*.yml"), *(DATA / "configs").glob("*.yml")]
    return [path.read_bytes().decode(errors="replace") for path in sorted(paths)]


@cache
def example_trees() -> list[Any]:
    """Return what those of them say that are YAML, and no larger than they look."""
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
    """Reads files as skyfast does when it starts."""

    name: ClassVar[str] = "configuration"

    def open(self, opened: ExitStack) -> None:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        self._path = directory / "fuzz.yml"

    def generate(self, rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            text = _dumped(rng, _tree_of_keys(rng))
        else:
            text = rng.choice(examples())
            if rng.random() < 0.7:
                text = _dumped(rng, _changed(rng))
        return spoilt(rng, text)

    def run(self, case: bytes) -> None:
        self._path.write_bytes(case)
        try:
            made = loader.load(str(self._path), ENVIRON)
        except ConfigError as error:
            check_error(error, hides=SECRET if _HIDDEN.search(case) else None)
            return
        # What is accepted can be used, and shown, and read again.
        loader.parse(loader.dump(made), ENVIRON, source="the dump")
        plan = make_plan(made.export, names=NameIndex(keep_s=0, k8s_labels=made.export.k8s_labels))
        types = flow_types(plan, also=reads(made.filter))
        Table(
            plan,
            types,
            max_connections=made.limits.max_connections,
            max_flows=made.limits.max_flows,
            timeout_s=made.limits.timeout_s,
            view_timeouts_s=made.limits.view_timeouts_s,
        )
        make_flow_filter(
            made.filter,
            classifier(made.classify.cluster_net_masks),
            requirements=plan.requirements,
            skipped=dict.fromkeys(("no_network", "no_transport", "no_metric", "excluded"), 0),
            filtered={},
        )([types.Update()])


def check_error(error: ConfigError, *, hides: str | None) -> None:
    """Look whether an error is one line, without what it has to hide."""
    text = str(error)
    assert text, "something is said"
    assert text.isprintable(), repr(text)
    assert len(text) < MAX_LINE_CHARS, len(text)
    assert hides is None or hides not in text, text


def spoilt(rng: random.Random, text: str) -> bytes:
    """Return a file with what YAML makes of a text, and what no text is, in one of four."""
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(PIECES) + text[at:]
    if rng.random() < 0.02:
        text = BOMB + text
    if rng.random() < 0.02:
        text = rng.choice(("[" * 3000, "a: {b: " * 2000, "- " * 3000)) + text
    data = text.encode(errors="surrogatepass")
    if rng.random() < 0.15:
        data = wrong_bytes(rng, data)
    if rng.random() < 0.02:
        data = text.encode(rng.choice(("utf-16", "utf-16-le", "utf-32")), errors="replace")
    return data


def _dumped(rng: random.Random, tree: Any) -> str:
    text: str = yaml.safe_dump(
        tree,
        default_flow_style=rng.choice((False, False, True)),
        default_style=rng.choice((None, None, None, '"', "'")),
        allow_unicode=rng.random() < 0.5,
        sort_keys=False,
        width=rng.choice((80, 10_000)),
    )
    return text


def _changed(rng: random.Random) -> Any:
    """Return what a file says, with something else in it."""
    tree = copied(rng.choice(example_trees()))
    keys = [part for path in schema.SCHEMA for part in path.split(".")]
    keys += ["name", "labels", "metrics", "prefix", "path", "not", "regex", "timeout", "type"]
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        wrong_value(rng, tree, keys)
    return tree


@cache
def _examples_of(path: str) -> list[Any]:
    """Return the values that the other tests' files have for a key."""
    found = []
    for tree in example_trees():
        try:
            for part in path.split("."):
                tree = tree[part]
        except (KeyError, TypeError):
            continue
        found.append(tree)
    return found


def _tree_of_keys(rng: random.Random) -> Any:
    """Return a file of some known keys, with values that they have somewhere, or any."""
    tree: dict[str, Any] = {}
    for path in rng.sample(sorted(schema.SCHEMA), rng.randrange(1, 12)):
        *sections, name = path.split(".")
        branch = tree
        for section in sections:
            below = branch.setdefault(section, {})
            if not isinstance(below, dict):
                break
            branch = below
        values = _examples_of(path)
        value = copied(rng.choice(values)) if values and rng.random() < 0.7 else anything(rng)
        if name in {"password", "cookie"}:
            value = rng.choice((SECRET, SECRET + "\n", {"session": SECRET}, [SECRET]))
        branch[name] = value
    return tree
