"""Errors of a configuration: values that are refused, and how an error says where and why."""

from collections.abc import Iterator
from contextlib import contextmanager

from skyfast.config.yaml_nodes import (
    HIDDEN,
    MAX_PROBLEMS,
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
