"""Suggests the known key or variable that the user probably meant by an unknown name."""

import difflib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from skyfast.config.yaml_nodes import YamlNode, YamlValue, join

MAX_SUGGESTIONS: Final = 3
"""If more than this number of keys have the same name, none of these keys is suggested."""

MAX_SIBLINGS: Final = 3
"""Maximum number of similar names that `KnownKeys.suggest` considers."""

CUTOFF: Final = 0.8
"""The ``cutoff`` of `difflib.get_close_matches` when skyfast suggests a known name."""

LOW_CUTOFF: Final = 0.6
"""Like `CUTOFF`, but for sections that only skyfast uses.

All unknown names in these sections are mistakes, so less similarity is enough for a suggestion."""

MIN_SUFFIX: Final = 8
"""Minimum length of the part after ``SKYDIVE_`` in the name of an unknown variable.

If this part is shorter, `similar_variables` does not search for variables that end with it."""


class KnownKeys:
    """All keys of the configuration, and their sections."""

    def __init__(self, keys: Iterable[str], *, structured: Collection[str] = ()) -> None:
        """``structured`` are the keys whose values can be mappings."""
        self._keys = tuple(keys)
        self._structured = frozenset(structured)
        sections = {
            path.rsplit(".", depth)[0]: None  # a dict keeps the order, unlike a set
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
        """Return the names in a section, or at the top level if ``section`` is empty."""
        return self._children.get(section, [])

    def suggest(self, path: str, value: YamlValue, *, cutoff: float) -> tuple[str, ...]:
        """Return the known paths that the user may have meant by the unknown ``path``.

        The function tries these rules in order, and returns what the first matching rule finds:

        1. in the section of ``path``, a key or section with a similar name, preferably one that
           accepts ``value`` (``cutoff`` is the minimum similarity)
        2. keys and sections with the same name in other sections
        3. if ``value`` is a mapping, the section that contains the keys of the mapping
        4. keys and sections with a similar name in other sections
        """
        name = path.rpartition(".")[2]
        if near := self._siblings(path, cutoff=cutoff):
            return (next((one for one in near if self._fits(one, value)), near[0]),)
        if paths := self._elsewhere(name, value):
            return paths
        if section := self.section_of(value):
            return (section,)
        near = difflib.get_close_matches(name, self._by_name, 1, CUTOFF)
        return self._elsewhere(near[0], value) if near else ()

    def instead_of_section(self, section: str, value: YamlValue) -> str:
        """Return a key that accepts ``value`` and has a name similar to ``section``, or ""."""
        near = self._siblings(section, cutoff=CUTOFF)
        return next((one for one in near if one != section and self._fits(one, value)), "")

    def _siblings(self, path: str, *, cutoff: float) -> list[str]:
        """In the section of ``path``, return the known paths with similar names, best first."""
        parent, _, name = path.rpartition(".")
        near = difflib.get_close_matches(name, self.children(parent), MAX_SIBLINGS, cutoff)
        return [join(parent, one) for one in near]

    def _elsewhere(self, name: str, value: YamlValue) -> tuple[str, ...]:
        """Return the known paths that end with ``name`` and accept ``value``.

        If more than `MAX_SUGGESTIONS` paths match, return none of them.
        """
        paths = tuple(path for path in self._by_name.get(name, ()) if self._fits(path, value))
        return paths if len(paths) <= MAX_SUGGESTIONS else ()

    def _fits(self, path: str, value: YamlValue) -> bool:
        if path in self.sections:
            return value is None or isinstance(value, dict)
        return not isinstance(value, dict) or path in self._structured

    def section_of(self, value: YamlValue) -> str:
        """Return the section to which at least half of the keys of ``value`` belong, or "".

        Keys that exist in several sections belong to none of them. If ``value`` is not a mapping,
        return "".
        """
        if not isinstance(value, dict) or not value:
            return ""
        counts: dict[str, int] = defaultdict(int)
        for name, node in value.items():
            paths = self._elsewhere(name.lower(), node.value)
            if len(paths) == 1:
                counts[paths[0].rpartition(".")[0]] += 1
        section = max(counts, key=counts.__getitem__, default="")
        # A mapping with several keys needs two matches, because one match can be a coincidence.
        needed = max(len(value) / 2, min(len(value), 2))
        return section if section and counts[section] >= needed else ""

    def misplaced(
        self, path: str, nodes: Mapping[str, YamlNode]
    ) -> Iterator[tuple[str, YamlNode, str]]:
        """Find known sections that the file has below the unknown section ``path``.

        Yields three values for each misplaced section: its path in the file, its node, and its
        correct path. Each mapping is visited once, even if YAML aliases repeat it.
        """
        seen: set[int] = set()

        def descend(
            path: str, nodes: Mapping[str, YamlNode]
        ) -> Iterator[tuple[str, YamlNode, str]]:
            for name, node in nodes.items():
                if not isinstance(node.value, dict) or id(node.value) in seen:
                    continue
                seen.add(id(node.value))
                below = join(path, name.lower())
                named = self._elsewhere(name.lower(), node.value) if node.value else ()
                known = named[0] if len(named) == 1 and self._has_some(named[0], node.value) else ""
                if known := known or self.section_of(node.value):
                    yield below, node, known
                else:
                    yield from descend(below, node.value)

        yield from descend(path, nodes)

    def _has_some(self, section: str, nodes: Mapping[str, YamlNode]) -> bool:
        return any(name.lower() in self._children.get(section, ()) for name in nodes)


def variable(path: str, *, prefix: str) -> str:
    """Return the name of the environment variable of a key."""
    return prefix + path.replace(".", "_").replace("-", "_").upper()


def similar_variables(
    name: str, known: Mapping[str, str], sections: Iterable[str], *, prefix: str
) -> list[str]:
    """Return the known variables that the user may have meant by ``name``.

    All known variables start with ``prefix``. ``sections`` are longer prefixes, such as
    ``SKYDIVE_PIPELINE_``. The function uses the first of these rules that applies:

    1. If ``name`` starts with one of ``sections``: the most similar variable of this section
    2. If known variables end with the part of ``name`` after ``prefix``: all of these variables.
       Example: for ``SKYDIVE_MAX_CONNECTIONS``, both variables that end with ``_MAX_CONNECTIONS``
    3. The most similar variable

    If no variable is similar enough, the list is empty.
    """
    section = max((each for each in sections if name.startswith(each)), key=len, default="")
    suffix = name.removeprefix(prefix)
    if not section and len(suffix) >= MIN_SUFFIX:
        matches = [variable for variable in known if variable.endswith(f"_{suffix}")]
        if matches:
            return matches
    suffixes = {
        variable.removeprefix(section): variable
        for variable in known
        if variable.startswith(section)
    }
    cutoff = LOW_CUTOFF if section.count("_") > 1 else CUTOFF
    near = difflib.get_close_matches(name.removeprefix(section), suffixes, 1, cutoff)
    return [suffixes[suffix] for suffix in near]
