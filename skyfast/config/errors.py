"""Errors about values of the configuration, and the messages about these errors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from skyfast.config.yaml_nodes import (
    HIDDEN,
    MAX_PROBLEMS,
    ConfigError,
    YamlNode,
    YamlValue,
    describe,
    describe_path,
    join,
)


class InvalidValue(Exception):  # noqa: N818 - becomes a ConfigError
    """A key does not accept a value."""

    def __init__(
        self,
        problem: str,
        value: YamlValue = None,
        *,
        name: str = "",
        line: int | None = None,
        shown: bool = True,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.value = value
        self.name = name
        """The path from the key to the value; empty if the error is about the key's whole value."""
        self.line = line
        """The line of the value; None if messages show the line of the key."""
        self.shown = shown
        """Whether the message contains the value in addition to ``problem``."""
        self.others: list[InvalidValue] = []
        """Further errors, which are raised together with this error."""

    def all(self) -> "Iterator[InvalidValue]":
        """Yield this error and, recursively, the errors in ``others``."""
        yield self
        for other in self.others:
            yield from other.all()

    def message(self, path: str, *, hidden: bool) -> str:
        where = describe_path(join(path, self.name) if self.name else path)
        value = HIDDEN if hidden else describe(self.value)
        return f"{where}: {value} {self.problem}" if self.shown else f"{where}: {self.problem}"


@contextmanager
def error_context(node: YamlNode, name: str) -> Iterator[None]:
    """Add the line of ``node`` and the path ``name`` to errors raised in the ``with`` block."""
    try:
        yield
    except InvalidValue as error:
        for nested in error.all():
            nested.name = join(name, nested.name) if nested.name else name
            nested.line = nested.line or node.line
        raise


def hide_nothing(_: YamlValue) -> bool:
    return False


def hide_scalars(value: YamlValue) -> bool:
    """Return whether the value is a scalar. Messages never show what lists and mappings contain."""
    return isinstance(value, str | bool)


def hide_all(_: YamlValue) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Origin:
    """The place where a value is set: a line of a file, or an environment variable."""

    source: str
    """The name of the file or of the environment variable, as text for messages."""
    line: int | None = None
    """The line number in the file; None for an environment variable."""

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}: line {self.line}"

    def on_line(self, line: int | None) -> "Origin":
        """Return the origin of an item of a list or mapping, which is on ``line``.

        If ``line`` or the line of this origin is None, return this origin.
        """
        return self if self.line is None or line is None else Origin(self.source, line)

    def problems(
        self, error: InvalidValue, path: str, *, hides: Callable[[YamlValue], bool] = hide_nothing
    ) -> Iterator[tuple[int | None, str]]:
        """Yield the line and the message of each error about the key ``path``.

        ``hides`` returns whether to redact a value.
        """
        for nested in error.all():
            origin = self.on_line(nested.line)
            message = nested.message(path, hidden=hides(nested.value))
            yield origin.line, f"{origin}: {message}"

    def error(
        self, error: InvalidValue, path: str, *, hides: Callable[[YamlValue], bool] = hide_nothing
    ) -> ConfigError:
        return ConfigError(*(text for _, text in self.problems(error, path, hides=hides)))

    @contextmanager
    def errors_at(
        self, path: str, *, hides: Callable[[YamlValue], bool] = hide_nothing
    ) -> Iterator[None]:
        """Convert `InvalidValue` raised in the ``with`` block to a `ConfigError` about ``path``."""
        try:
            yield
        except InvalidValue as error:
            raise self.error(error, path, hides=hides) from None


class Problems:
    """Collects errors; `check` raises all of them together.

    If there are more than `MAX_PROBLEMS` errors, all of them are raised immediately.
    """

    def __init__(self) -> None:
        self._errors: list[InvalidValue] = []

    def __enter__(self) -> None:
        """Start a block that may raise `InvalidValue`."""

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> bool:
        """Collect an `InvalidValue` and continue after the block."""
        if not isinstance(error, InvalidValue):
            return False
        self._errors.append(error)
        if len(self._errors) > MAX_PROBLEMS:
            self.check()
        return True

    def check(self) -> None:
        if self._errors:
            first, *others = self._errors
            first.others += others
            raise first
