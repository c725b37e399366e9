"""Reads and writes own names: the names that users give to addresses.

`load` reads the file of ``names_file``, and adds the entries of the key ``names``.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from skyfast.config.errors import InvalidValue, Problems, error_context
from skyfast.config.file_state import FileState, file_state
from skyfast.config.parsers import MAX_ENTRIES, parse_str
from skyfast.config.yaml_nodes import ConfigError, YamlValue, file_name
from skyfast.flows.own_names import (
    InvalidEntryError,
    InvalidLinesError,
    OwnNameEntry,
    OwnNames,
    Prefix,
    make_entry,
    read_csv,
    read_prefix,
    release,
)
from skyfast.flows.planner import shows_only_own
from skyfast.flows.selection import ExportSelection
from skyfast.wording import counted

MAX_FILE_BYTES: Final = 16 << 20
"""Security limit: longer files are rejected. About 500,000 entries fit into a file."""

KEY_PREFIX: Final = "names_file: "
"""Prefix of errors about a file that is missing, unreadable or too long.

Errors about single lines of the file start with the path of the file instead."""

_NAME: Final = "name"
"""If an entry is a mapping, this key contains the name. All other keys are for labels with
``names_key``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NameSources:
    """The configured sources of own names."""

    entries: Mapping[str, tuple[Prefix, OwnNameEntry]]
    """Maps each address or network, as written in the configuration, to its parsed form and its
    names."""
    file: str
    """The path of a CSV file; empty if no file is configured."""

    @property
    def are_set(self) -> bool:
        return bool(self.entries or self.file)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedNames:
    """Own names, and the sources from which they were loaded."""

    own: OwnNames
    sources: NameSources
    keys: tuple[str, ...]
    """The keys that at least one entry has, in alphabetical order."""
    state: FileState | None
    """The state of the file before skyfast read the file; None if no file is configured."""
    timestamp_s: float = field(default_factory=time.time, compare=False)
    """The Unix time at which the names were loaded."""

    @property
    def missing_keys(self) -> tuple[str, ...]:
        """The keys that labels need, but that no entry has. Empty if no sources are configured."""
        keys = self.own.keys if self.sources.are_set else ()
        return tuple(key for key in keys if key not in self.keys)

    def summary(self) -> str:
        keys = f"with the keys {', '.join(self.keys)}" if self.keys else "without keys"
        return f"{counted(self.own.count, 'entry', 'entries')} {keys}"


def to_names(value: YamlValue) -> Mapping[str, tuple[Prefix, OwnNameEntry]]:
    """Accept a mapping of addresses and networks to names or to nested mappings.

    Example of a nested mapping: ``{name: db-1, team: storage}``. Labels with ``names_key: team``
    show the value of ``team``.
    """
    if not isinstance(value, dict):
        raise InvalidValue("is not a mapping of addresses and networks to names", value)
    if len(value) > MAX_ENTRIES:
        raise InvalidValue(f"has more than {MAX_ENTRIES} entries; use names_file", value)
    entries: dict[str, tuple[Prefix, OwnNameEntry]] = {}
    spellings: dict[Prefix, str] = {}
    problems = Problems()
    for text, node in value.items():
        with problems, error_context(node, text):
            try:
                prefix, entry = read_prefix(text), _to_entry(node.value)
            except InvalidEntryError as error:
                raise InvalidValue(str(error), shown=False) from None
            if prefix in spellings:
                raise InvalidValue(f"already set as {spellings[prefix]}", shown=False)
            spellings[prefix] = text
            entries[text] = prefix, entry
    problems.check()
    return entries


def _to_entry(value: YamlValue) -> OwnNameEntry:
    if not isinstance(value, dict):
        return make_entry(parse_str(value))
    texts: dict[str, str] = {}
    for key, node in value.items():
        with error_context(node, key):
            texts[key] = parse_str(node.value)
    name = texts.pop(_NAME, "")
    return make_entry(name, texts.items())


def show_names(entries: Mapping[str, tuple[Prefix, OwnNameEntry]]) -> dict[str, object]:
    return {text: _show_entry(entry) for text, (_, entry) in entries.items()}


def _show_entry(entry: OwnNameEntry) -> object:
    if not entry.values:
        return entry.name
    return {**({_NAME: entry.name} if entry.name else {}), **dict(entry.values)}


def load(
    sources: NameSources, export: ExportSelection, *, known: LoadedNames | None = None
) -> LoadedNames:
    """Read the own names that the labels of ``export`` show. Blocks while the file is read.

    If the sources, the keys and the file have not changed since ``known`` was loaded, return
    ``known``. Reading 100,000 entries takes about 0.5 s; meanwhile, other threads can run.

    Raises:
        ConfigError: The file cannot be read, is too long, or is invalid. If the file is invalid,
            the message contains the line number of each error.

    """
    state = file_state(sources.file) if sources.file else None
    if known and (known.sources, known.own.keys, known.state) == (
        sources,
        export.names_keys,
        state,
    ):
        return known
    entries = _read_file(sources.file) if sources.file else {}
    entries |= dict(sources.entries.values())
    keys = {key for entry in entries.values() for key, _ in entry.values}
    own = OwnNames(entries, export.names_keys)
    release(entries)
    return LoadedNames(
        own=own,
        sources=sources,
        keys=tuple(sorted(keys)),
        state=state,
    )


def _read_file(path: str) -> dict[Prefix, OwnNameEntry]:
    name = file_name(path)
    try:
        if not Path(path).is_file():  # a pipe cannot be read again
            raise ConfigError(f"{KEY_PREFIX}{name} is not an existing file")
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:  # pragma: no cover - root can read all files
        raise ConfigError(f"{KEY_PREFIX}{name} cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{KEY_PREFIX}{name} is longer than {MAX_FILE_BYTES} bytes")
    try:
        return read_csv(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}: line {line}: not UTF-8") from None
    except InvalidLinesError as error:
        raise ConfigError(*(f"{name}: line {n}: {text}" for n, text in error.problems)) from None


def labels_without_names(sources: NameSources, export: ExportSelection) -> str:
    """Return a list, as text, of the labels that are empty because there are no own names.

    Labels that can also show names from the topology are left out.
    """
    labels = dict.fromkeys(
        label.name for view in export.views for label in view.labels if shows_only_own(label)
    )
    return "" if sources.are_set else ", ".join(labels)
