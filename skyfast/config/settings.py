"""The values that a configuration sets, by key, and the problems found while reading them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from skyfast.config import schema
from skyfast.config.errors import InvalidValue, Origin, hide_nothing, hide_scalars
from skyfast.config.presets import PRESETS
from skyfast.config.schema import (
    SCHEMA,
    Key,
)
from skyfast.config.yaml_nodes import (
    ConfigError,
    YamlNode,
    YamlValue,
    index,
    join,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SetValue:
    origin: Origin
    value: YamlValue


class SortedProblems:
    """Errors in the order of their lines. Errors without a line are last."""

    def __init__(self) -> None:
        self._errors: list[tuple[float, str]] = []

    def add(self, text: str, line: int | None = None) -> None:
        self._errors.append((math.inf if line is None else line, text))

    def __enter__(self) -> None:
        """Start a block that may raise `ConfigError`."""

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> bool:
        """Collect a `ConfigError` and continue after the block."""
        if not isinstance(error, ConfigError):
            return False
        for problem in error.problems:
            self.add(problem)
        return True

    def check(self) -> None:
        if self._errors:
            self._errors.sort(key=lambda error: error[0])
            raise ConfigError(*(text for _, text in self._errors))


class Settings:
    """The values of all keys. Each value is checked by itself, not against other values."""

    def __init__(self, values: Mapping[str, SetValue], problems: SortedProblems) -> None:
        """Add errors about invalid values to ``problems``, and use defaults for these values."""
        self._set_values = {
            path: value for path, value in values.items() if _is_set(SCHEMA[path], value.value)
        }
        self._values = {
            path: _value(key, self._set_values.get(path), problems) for path, key in SCHEMA.items()
        }
        preset = PRESETS[self._values[schema.PRESET.path]]
        for path, value_of in schema.FROM_PRESET.items():
            if path not in self._set_values:
                self._values[path] = value_of(preset)

    @property
    def given(self) -> frozenset[str]:
        return frozenset(self._set_values)

    def __call__(self, key: Key[T]) -> T:
        value: T = self._values[key.path]
        return value

    def is_set(self, key: Key[Any], *subpath: str | int) -> bool:
        """Return whether the configuration sets the value at ``subpath``, a path below the key."""
        value = self._set_values.get(key.path)
        return value is not None and len(_nodes_along(value.value, subpath)) == len(subpath)

    def error(self, key: Key[Any], problem: str, *subpath: str | int) -> ConfigError:
        """Return an error about a value that conflicts with another value.

        ``subpath`` is the path below the key, as list indexes and mapping keys. If only the
        beginning of this path exists in the configuration, the error names only this beginning.
        """
        value = self._set_values[key.path]
        nodes = _nodes_along(value.value, subpath)
        path = key.path
        for step in subpath[: len(nodes)]:
            path = join(path, index(step) if isinstance(step, int) else step)
        if nodes:
            error = InvalidValue(problem, nodes[-1].value, line=nodes[-1].line)
        else:
            error = InvalidValue(problem, value.value)
        return value.origin.error(error, path)


def _is_set(key: Key[Any], value: YamlValue) -> bool:
    return value not in (None, "") and (value != [] or key.can_be_empty)


def _nodes_along(value: YamlValue, subpath: Sequence[str | int]) -> list[YamlNode]:
    """Return the existing nodes on the path ``subpath``, outermost first."""
    nodes: list[YamlNode] = []
    for step in subpath:
        if isinstance(value, list) and isinstance(step, int) and step < len(value):
            nodes.append(value[step])
        elif isinstance(value, dict) and (node := _below(value, step)):
            nodes.append(node)
        else:
            break
        value = nodes[-1].value
    return nodes


def _below(nodes: Mapping[str, YamlNode], name: str | int) -> YamlNode | None:
    return next((node for key, node in nodes.items() if key.lower() == name), None)


def _value(key: Key[T], value: SetValue | None, problems: SortedProblems) -> T:
    if value is None:
        return key.default
    try:
        return key.parse(value.value)
    except InvalidValue as error:
        hides = hide_scalars if key.secret else hide_nothing
        for line, text in value.origin.problems(error, key.path, hides=hides):
            problems.add(text, line)
        return key.default
