"""Configuration errors: rejected values, and messages with their location and reason."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from skyfast.config.yaml_nodes import (
    HIDDEN,
    MAX_PROBLEMS,
    ConfigError,
    Node,
    Value,
    describe,
    describe_path,
    join,
)


class Invalid(Exception):  # noqa: N818 - becomes a ConfigError
    """A value that its key does not accept: what is wrong, said of the value that is shown.

    ``name`` is the place below the key. ``line``, where it is known, is better than the key's.
    Without ``shown``, the problem is said of the place itself.
    """

    def __init__(
        self,
        problem: str,
        value: Value = None,
        *,
        name: str = "",
        line: int | None = None,
        shown: bool = True,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.value = value
        self.name = name
        self.line = line
        self.shown = shown
        self.others: list[Invalid] = []
        """What is wrong beside it."""

    def all(self) -> "Iterator[Invalid]":
        """Yield it and the others."""
        yield self
        for other in self.others:
            yield from other.all()

    def told(self, path: str, *, hidden: bool) -> str:
        """Say what is wrong at ``path``; ``hidden`` stands for a value that is a secret."""
        where = describe_path(join(path, self.name) if self.name else path)
        value = HIDDEN if hidden else describe(self.value)
        return f"{where}: {value} {self.problem}" if self.shown else f"{where}: {self.problem}"


@contextmanager
def within(node: Node, name: str = "") -> Iterator[None]:
    """Say of what is refused here that it stands in ``node``, below ``name``."""
    try:
        yield
    except Invalid as bad:
        for each in bad.all():
            each.name = join(name, each.name) if each.name else name
            each.line = each.line or node.line
        raise


def nothing(_: Value) -> bool:
    """Hide no value."""
    return False


def scalars(value: Value) -> bool:
    """Hide single values, and show what kind of value another one is."""
    return isinstance(value, str | bool)


def everything(_: Value) -> bool:
    """Hide every value."""
    return True


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something is set: in a line of a file, or in a variable, which has no line.

    ``source`` is what messages call the file or the variable.
    """

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}: line {self.line}"

    def part(self, line: int | None) -> "Origin":
        """Return the origin of a part of it; where ``line`` is None, that is its own."""
        return self if self.line is None or line is None else Origin(self.source, line)

    def problems(
        self, refused: Invalid, path: str, *, hides: Callable[[Value], bool] = nothing
    ) -> Iterator[tuple[int | None, str]]:
        """Yield line and text of each problem at ``path``, without the values that ``hides``."""
        for each in refused.all():
            origin = self.part(each.line)
            yield origin.line, f"{origin}: {each.told(path, hidden=hides(each.value))}"

    def error(
        self, refused: Invalid, path: str, *, hides: Callable[[Value], bool] = nothing
    ) -> ConfigError:
        """Return the error that says what is refused at ``path``."""
        return ConfigError(*(text for _, text in self.problems(refused, path, hides=hides)))

    @contextmanager
    def refusing(self, path: str, *, hides: Callable[[Value], bool] = nothing) -> Iterator[None]:
        """Make a `ConfigError` of what is refused at ``path``."""
        try:
            yield
        except Invalid as refused:
            raise self.error(refused, path, hides=hides) from None


class Problems:
    """Collects what is refused, to raise all of it at once: what is behind too many is not read."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._found: list[Invalid] = []

    def __enter__(self) -> None:
        """Begin what can be refused."""

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> bool:
        """Go on behind what is refused."""
        if not isinstance(error, Invalid):
            return False
        self._found.append(error)
        if len(self._found) > MAX_PROBLEMS:
            self.check()
        return True

    def check(self) -> None:
        """Raise `Invalid` where anything was collected."""
        if self._found:
            first, *others = self._found
            first.others += others
            raise first
