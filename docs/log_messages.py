"""Finds the package's log messages at ``WARNING`` and above.

`docs.generate` checks that exactly these messages are explained in
`docs/reference/log_messages.yml`.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skyfast.skydive import subscription

SOURCES = Path(subscription.__file__).parent.parent
"""The folder of the package."""

LEVELS = {
    "warning": "warning",
    "error": "error",
    "exception": "error",
    "critical": "critical",
}
"""Maps the methods of a logger to their levels."""

ANALYZER = re.escape("analyzer ") + ".+" + re.escape(": ")
"""A prefix of many messages. The explanations omit this prefix."""

RECONNECT = "subscription"
"""The module that logs the reasons for reconnects."""


@dataclass(frozen=True, slots=True)
class LogMessage:
    """``pattern`` is a regular expression in which ``.+`` stands for the arguments.

    ``module`` is a path in the package, without the suffix.
    """

    pattern: str
    level: str
    module: str


def log_messages() -> list[LogMessage]:
    found = {
        re.escape(text): LogMessage(re.escape(text), "warning", RECONNECT)
        for text in subscription.REASON_TEXTS.values()
    }
    for path in sorted(SOURCES.rglob("*.py")):
        module = path.relative_to(SOURCES).with_suffix("").as_posix()
        for level, pattern in _Module(path).messages():
            # Remove the analyzer at the beginning, and arguments at the end.
            short = re.sub(r"(\.\+)+$", "", pattern.removeprefix(ANALYZER))
            if re.search(r"\w{4}", short):
                found[short] = LogMessage(short, level, module)
    return list(found.values())


class _Module:
    """The logging calls in a source file."""

    def __init__(self, path: Path) -> None:
        self._tree = ast.parse(path.read_text())
        self._parents = {
            child: parent
            for parent in ast.walk(self._tree)
            for child in ast.iter_child_nodes(parent)
        }

    def messages(self) -> Iterator[tuple[str, str]]:
        for call in ast.walk(self._tree):
            if isinstance(call, ast.Call):
                for level, text in self._logged(call):
                    for pattern in self._patterns(text, call):
                        yield level, pattern

    def _logged(self, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
        """Yield the level and the text, if the call logs or creates an object that is logged."""
        match call:
            case ast.Call(func=ast.Attribute(value=ast.Name("log"), attr=method), args=args):
                if method in LEVELS:
                    yield LEVELS[method], args[1] if ast.unparse(args[0]) == "'%s%s'" else args[0]
            case ast.Call(func=ast.Attribute(attr="warn"), args=[_, _, text, *_]):
                yield "warning", text
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(attr="_limit" | "_log_limit"), attr="log"),
                args=[_, level, _, text, *_],
            ):
                yield ("error" if ast.unparse(level) == "logging.ERROR" else "warning"), text
            case ast.Call(func=ast.Attribute(attr="_log")):
                if "logging.INFO" not in map(ast.unparse, call.args):
                    for text in filter(self._is_text, call.args[:]):
                        yield "warning", text
                        break
            case ast.Call(func=ast.Name("Note"), keywords=keywords):
                given = {each.arg: each.value for each in keywords}
                if ast.unparse(given["level"]) == "logging.WARNING":
                    yield "warning", given["text"]
            case ast.Call(func=ast.Name("QueryError"), args=[_, text]):
                yield "warning", text

    @staticmethod
    def _is_text(node: ast.expr) -> bool:
        return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Name) and node.id == "text")

    def _patterns(self, text: ast.expr, where: ast.AST) -> Iterator[str]:
        match text:
            case ast.Constant(str(words)):
                yield ".+".join(map(re.escape, re.split(r"%[\d.]*[sdfr]", words)))
            case ast.JoinedStr(values):
                yield "".join(
                    re.escape(str(each.value)) if isinstance(each, ast.Constant) else ".+"
                    for each in values
                )
            case ast.Name(name):
                for value in self._values(name, where):
                    yield from self._patterns(value, where)

    def _values(self, name: str, where: ast.AST) -> Iterator[ast.expr]:
        """Yield the possible values of a variable at a call.

        These are the last assigned value, and the values of a generator in a comprehension.
        """
        function = where
        while not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            function = self._parents[function]
        assigned = {
            node.lineno: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == name
            and node.lineno < where.lineno  # type: ignore[attr-defined]
        }
        if assigned:
            yield assigned[max(assigned)]
        for node in ast.walk(function):
            match node:
                case ast.comprehension(ast.Name(id), ast.Call(ast.Name(source))) if id == name:
                    yield from self._yielded(source)

    def _yielded(self, name: str) -> Iterator[ast.expr]:
        for function in ast.walk(self._tree):
            if isinstance(function, ast.FunctionDef) and function.name == name:
                for node in ast.walk(function):
                    if isinstance(node, ast.Yield) and node.value:
                        yield node.value
