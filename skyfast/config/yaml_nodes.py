"""Parses YAML into nodes whose scalars keep the text of the file.

The key, not YAML, decides whether a value is a number or a string. Therefore passwords such as
``0123`` and ``10:30`` do not become integers. PyYAML's compiled composer is not used, because it
recurses without a limit. This module also decides how much of a file an error message shows.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

MAX_FILE_BYTES = 1 << 20
"""Security limit: longer files are rejected."""

MAX_DEPTH = 64
"""Security limit: deeper nesting is rejected."""

HIDDEN = "<hidden>"
"""Replaces secrets wherever the configuration is shown."""

MAX_SHOWN = 80
"""Maximum number of characters of a value in an error message."""

MAX_PROBLEMS = 20
"""Maximum number of errors of a file that are reported."""


class ConfigError(Exception):
    """The configuration cannot be used. ``str()`` joins all errors in one line."""

    def __init__(self, *problems: str) -> None:
        if len(problems) > MAX_PROBLEMS:
            problems = (*problems[:MAX_PROBLEMS], "further errors are not shown")
        super().__init__("; ".join(problems))
        self.problems = problems
        """The first `MAX_PROBLEMS` errors, one line each. If there are more, one further line says
        so."""
        self.warnings: tuple[str, ...] = ()
        """Warnings about the configuration, one line each."""


@dataclass(frozen=True, slots=True)
class YamlNode:
    """A YAML value and its line."""

    value: "YamlValue"
    line: int
    """Line number, counted from 1. For a value in a mapping: the line number of the key."""


YamlValue: TypeAlias = str | bool | list[YamlNode] | dict[str, YamlNode] | None
"""A YAML value: numbers and dates stay strings, and keys keep their case."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NOT_YAML = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
BOOLS = {
    spelling: value
    for value, words in ((True, ("true", "yes", "on")), (False, ("false", "no", "off")))
    for word in words
    for spelling in (word, word.capitalize(), word.upper())
}
"""Maps the unquoted scalars that are booleans in YAML to their values."""

_TAGS = {None, "!", *(f"tag:yaml.org,2002:{n}" for n in ("str", "int", "float", "seq", "map"))}


def file_name(source: str) -> str:
    """Return the name of the source for messages, with line breaks in its path escaped."""
    if source == "-":
        return "standard input"
    return source if source and source.isprintable() else repr(source)


def read_file(path: str) -> str:
    """Return the text of the file at ``path``, or of standard input if ``path`` is ``-``.

    Raises:
        ConfigError: The file cannot be read, is too long, or is not UTF-8.

    """
    try:
        if path == "-":
            with open(0, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file_name(path)} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a null character in the path
        raise ConfigError(f"{file_name(path)} cannot be read: {error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{file_name(path)} is longer than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{file_name(path)}: line {line}: not UTF-8 (byte 0x{data[error.start]:02x})"
        ) from None


def compose(text: str, *, file: str) -> dict[str, YamlNode]:
    """Return the top-level mapping of the YAML ``text``, or an empty mapping for an empty text.

    Raises:
        ConfigError: The text is not valid YAML, or not a mapping.

    """
    return _Composer(text, file=file).document()


class _Composer:
    """Builds nodes from the events of one document.

    An alias and the node with its anchor have the same value object. Aliases can refer only to
    complete nodes, so nodes do not form cycles.
    """

    def __init__(self, text: str, *, file: str) -> None:
        self._text = text
        self._file = file
        self._anchors: dict[str, YamlNode] = {}
        self._problems: list[str] = []

    def document(self) -> dict[str, YamlNode]:
        if match := _NOT_YAML.search(self._text):
            line = self._text.count("\n", 0, match.start()) + 1
            column = match.start() - self._text.rfind("\n", 0, match.start())
            raise ConfigError(
                f"{self._file}: line {line}, column {column}: not valid YAML:"
                f" the character U+{ord(match.group()):04X} is not allowed"
            )
        try:
            node = self._root(yaml.parse(self._text, Loader=_Loader))
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            # PyYAML's pure Python parser does not catch some errors of number conversions.
            problem = f"{self._file}: {_syntax_error(error, self._text)}"
            raise ConfigError(*self._problems, problem) from None
        if self._problems:
            raise ConfigError(*self._problems)
        if node is None or node.value is None:
            return {}
        if not isinstance(node.value, dict):
            raise ConfigError(
                f"{self._file}: line {node.line}: expected 'key: value' pairs, but found"
                f" {kind_of(node.value)}"
            )
        return node.value

    def _error(self, event: Any, path: str, text: str) -> ConfigError:
        self._refuse(event, path, text)
        return ConfigError(*self._problems)

    def _refuse(self, event: Any, path: str, text: str) -> None:
        """Record an error after which parsing can continue."""
        self._problems.append(f"{self._file}: line {_line(event)}: {describe_path(path)}: {text}")

    def _root(self, events: Iterator[Any]) -> YamlNode | None:
        root = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                problem = "a second YAML document begins here; only one is allowed"
                raise self._error(event, "", problem)
            if isinstance(event, yaml.NodeEvent):
                root = self._node(event, events, "", 1)
        return root

    def _node(self, event: Any, events: Iterator[Any], path: str, depth: int) -> YamlNode:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                # Do not show the name, because an unquoted password can begin with an asterisk.
                self._refuse(event, path, "this YAML alias (*) has no anchor above it")
                return YamlNode(None, _line(event))
            return self._anchors[event.anchor]
        if event.tag not in _TAGS:
            # Do not show the tag, because an unquoted password can begin with an exclamation mark.
            self._refuse(event, path, "this YAML tag (!) is unknown")
        if depth > MAX_DEPTH:
            # Leave out list indexes, because the indexes of nested lists would fill the message.
            key = path.partition("[")[0]
            raise self._error(event, key, f"nested deeper than {MAX_DEPTH} levels")
        value: YamlValue
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(events, path, depth)
        else:
            value = self._mapping(events, path, depth)
        node = YamlNode(value, _line(event))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _sequence(self, events: Iterator[Any], path: str, depth: int) -> list[YamlNode]:
        nodes: list[YamlNode] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            below = join(path, index(len(nodes)))
            nodes.append(self._node(event, events, below, depth + 1))
        return nodes

    def _mapping(self, events: Iterator[Any], path: str, depth: int) -> dict[str, YamlNode]:
        nodes: dict[str, YamlNode] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._error(event, path, "a key must be text")
            key = event.value
            below = join(path, key.lower())
            if key == "<<" and event.implicit[0]:
                self._refuse(event, path, "YAML's merge keys (<<) are not supported")
            elif first := lines.get(key.lower()):
                self._refuse(event, below, f"already set on line {first}")
            lines.setdefault(key.lower(), _line(event))
            value = self._node(next(events), events, below, depth + 1).value
            nodes[key] = YamlNode(value, _line(event))
        return nodes


def _scalar(event: Any) -> str | bool | None:
    text: str = event.value
    if event.implicit[0] and event.tag is None:  # neither quoted nor tagged
        if text in _NULLS:
            return None
        if text in BOOLS:
            return BOOLS[text]
    return text


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _syntax_error(error: Exception, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it cannot be parsed"
    if mark is None:
        return f"not valid YAML: {problem}"
    context = getattr(error, "context_mark", None)
    lines = _LINE_BREAK.split(text)
    # PyYAML's message quotes the undefined tag handle, but the handle can be an unquoted password.
    explained = _explanation(problem, mark, context, lines) or re.sub(
        r"(undefined tag handle).*", r"\1", problem
    )
    return f"line {mark.line + 1}, column {mark.column + 1}: not valid YAML: {explained}"


_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_WITHOUT_SPACE = re.compile(r"\s*(?:- +)*[\w.-]+:[^\s:]\S*\s*")
_ENDS_FLOW = re.compile(r"expected ',' or '([\]}])'")


def _explanation(problem: str, mark: Any, context: Any, lines: list[str]) -> str:
    """Return the probable cause of a syntax error, or "" if it is unknown.

    Users can understand the text without knowing YAML's grammar. The text quotes at most one
    character of the file, because the file may contain passwords.
    """
    line = lines[mark.line] if mark.line < len(lines) else ""
    before, behind = line[: mark.column], line[mark.column :]
    above = next((i for i in reversed(range(min(mark.line, len(lines)))) if lines[i].strip()), None)
    if "cannot start any token" in problem:
        if "\t" in (before[len(before.rstrip()) :] + behind[:1]):
            return "a tab is not allowed here; indent with spaces"
        return f"a value cannot begin with {behind[:1]}; put the whole value in quotes"
    if "mapping values are not allowed" in problem:
        if ": " in before:
            return "the line has a second colon followed by a space; put the value in quotes"
        if above is not None and _WITHOUT_SPACE.fullmatch(lines[above]):
            return f"a space is missing after the colon on line {above + 1}"
        return "the key is indented deeper than the key above it, which already has a value"
    if "could not find expected ':'" in problem and context is not None:
        return f"line {context.line + 1} has no colon followed by a space"
    if "end of stream" in problem and context is not None:
        return f"the quote that starts on line {context.line + 1} is not closed"
    if (match := _ENDS_FLOW.search(problem)) and context is not None:
        opening = "[" if match[1] == "]" else "{"
        return f"the {opening} on line {context.line + 1} is not closed"
    if "expected key" in problem or "expected <block end>" in problem or "'-' ind" in problem:
        if before.strip():
            return "unexpected text after a value; put the whole value in quotes"
        return "the indentation matches no line above; indent all keys of a section equally"
    if "unknown escape character" in problem:
        return "an unknown escape (\\) in double quotes; use single quotes"
    return ""


def join(path: str, name: str) -> str:
    """Return the path of ``name`` below ``path``. ``name`` is a key, an `index` or a path."""
    return f"{path}.{name}" if path and not name.startswith("[") else path + name


def index(i: int) -> str:
    """Return ``[i]``: the part of a path for list entry number ``i``, counted from 0."""
    return f"[{i}]"


def kind_of(value: YamlValue) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "an empty entry" if value is None else "a single value"


def describe(value: YamlValue) -> str:
    """Format a value for a message: on one line, truncated, and without a URL's credentials."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return kind_of(value)
    text = redact_url(value)
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")


def describe_path(path: str) -> str:
    text = redact_url(path)
    if len(text) > MAX_SHOWN:
        text = text[:MAX_SHOWN] + "…"
    return (text if text.isprintable() else repr(text)) or "top level"


def redact_url(url: str) -> str:
    """Return ``url``, which may be invalid, without its user and password."""
    before, separator, after = url.rpartition("@")
    if not separator:
        return url
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", before)
    return (scheme.group() if scheme else "") + after
