"""Suggestions for unknown keys and variables: the known one that was probably meant.

Everything follows from the tree of known keys; no key is named here.
"""

import difflib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from skyfast.config.yaml_nodes import Node, Value, join

MAX_SUGGESTIONS: Final = 3
"""Known keys of one name that a message lists; where there are more, none is."""

CLOSE: Final = 0.8
"""How similar a name is that is certainly misspelt: the ratio of `difflib`."""

SIMILAR: Final = 0.6
"""The same where it is certain that a key of ours is meant."""

MIN_END: Final = 8
"""Characters of a variable that are taken for the end of a known one, not for a chance."""


class KnownKeys:
    """The tree of all keys and of the sections that hold them, by path."""

    def __init__(self, keys: Iterable[str], *, structured: Collection[str] = ()) -> None:
        """Take the paths of keys; ``structured`` are those whose value can be a mapping."""
        self._keys = tuple(keys)
        self._structured = frozenset(structured)
        sections = {
            path.rsplit(".", depth)[0]: None  # a dict, to keep the order
            for path in self._keys
            for depth in range(path.count("."), 0, -1)
        }
        self.sections: Collection[str] = sections.keys()
        self._children: dict[str, list[str]] = defaultdict(list)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for path in (*sections, *self._keys):
            parent, _, name = path.rpartition(".")
            self._children[parent].append(name)
            self._by_name[name].append(path)

    def children(self, section: str) -> list[str]:
        """Return the names that are known in a section; in the whole file where it is empty."""
        return self._children.get(section, [])

    def suggest(self, path: str, value: Value, *, cutoff: float) -> tuple[str, ...]:
        """Return the known paths that ``path``, with this value, may stand for.

        The first that there are of: a name beside it that is at least so similar; the same name at
        another level; the section that has what stands below it; a similar name at another level.
        """
        parent, _, name = path.rpartition(".")
        if near := difflib.get_close_matches(name, self.children(parent), 1, cutoff):
            return (join(parent, near[0]),)
        if found := self._elsewhere(name, value):
            return found
        if section := self.section_of(value):
            return (section,)
        near = difflib.get_close_matches(name, self._by_name, 1, CLOSE)
        return self._elsewhere(near[0], value) if near else ()

    def _elsewhere(self, name: str, value: Value) -> tuple[str, ...]:
        """Return the paths that have this name, where they can have such a value."""
        found = tuple(path for path in self._by_name.get(name, ()) if self._fits(path, value))
        return found if len(found) <= MAX_SUGGESTIONS else ()

    def _fits(self, path: str, value: Value) -> bool:
        if path in self.sections:
            return value is None or isinstance(value, dict)
        return not isinstance(value, dict) or path in self._structured

    def section_of(self, value: Value) -> str:
        """Return the section that has at least half of the keys of a mapping, or nothing.

        Names that several sections have do not count.
        """
        if not isinstance(value, dict) or not value:
            return ""
        counts: dict[str, int] = defaultdict(int)
        for name, node in value.items():
            found = self._elsewhere(name.lower(), node.value)
            if len(found) == 1:
                counts[found[0].rpartition(".")[0]] += 1
        section = max(counts, key=counts.__getitem__, default="")
        # One of two can be a chance.
        needed = max(len(value) / 2, min(len(value), 2))
        return section if section and counts[section] >= needed else ""

    def misplaced(self, path: str, nodes: Mapping[str, Node]) -> Iterator[tuple[str, Node, str]]:
        """Yield known sections that stand below an unknown one: path, node and known path.

        Each mapping is looked at once, however many aliases it has.
        """
        seen: set[int] = set()

        def descend(path: str, nodes: Mapping[str, Node]) -> Iterator[tuple[str, Node, str]]:
            for name, node in nodes.items():
                if not isinstance(node.value, dict) or id(node.value) in seen:
                    continue
                seen.add(id(node.value))
                below = join(path, name.lower())
                named = [each for each in self._elsewhere(name.lower(), node.value) if node.value]
                known = named[0] if len(named) == 1 and self._has_some(named[0], node.value) else ""
                if known := known or self.section_of(node.value):
                    yield below, node, known
                else:
                    yield from descend(below, node.value)

        yield from descend(path, nodes)

    def _has_some(self, section: str, nodes: Mapping[str, Node]) -> bool:
        return any(name.lower() in self._children.get(section, ()) for name in nodes)


def variable(path: str, *, prefix: str) -> str:
    """Return the environment variable of a key."""
    return prefix + path.replace(".", "_").replace("-", "_").upper()


def similar_variable(
    name: str, known: Mapping[str, str], sections: Iterable[str], *, prefix: str
) -> str:
    """Return the known variable that ``name`` only nearly is, or nothing.

    ``known`` are all by name, and ``sections`` what several of them begin with. What two names
    begin with in common makes them similar and says nothing, so it is left out. What ends a
    single known one will do; ``prefix`` begins all of them.
    """
    begins = max((each for each in sections if name.startswith(each)), key=len, default="")
    end = name.removeprefix(prefix)
    if not begins and len(end) >= MIN_END:
        ends = [each for each in known if each.endswith(f"_{end}")]
        if len(ends) == 1:
            return ends[0]
    rests = {each.removeprefix(begins): each for each in known if each.startswith(begins)}
    cutoff = SIMILAR if begins.count("_") > 1 else CLOSE
    near = difflib.get_close_matches(name.removeprefix(begins), rests, 1, cutoff)
    return rests[near[0]] if near else ""
