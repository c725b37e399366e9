"""The query parameters of ``/metrics/flows``, which select a part of the page or some metrics."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from skyfast._table import MAX_PARTS
from skyfast.runtime.logs import printable

PART: Final = "part"
"""The parameter that selects a part of the page. The value ``I/N`` selects part I of N parts, with
I from 0 to N - 1."""

NAME: Final = "name[]"
"""The parameter with the name of a family. Clients can repeat it to select several families."""

PARAMETERS: Final = (PART, NAME)

_PART: Final = re.compile(r"(0|[1-9][0-9]?)/([1-9][0-9]?)", re.ASCII)


class FlowQueryError(ValueError):
    """A query is invalid. The text is the reason and the allowed values, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowQuery:
    """Which part and which families of the page are shown."""

    part: int = 0
    """The index of the part, from 0 to ``parts`` - 1."""
    parts: int = 1
    """Number of parts of the page."""
    names: frozenset[str] | None = None
    """The names of the families to show, or None for all families."""

    def shows(self, name: str) -> bool:
        return self.names is None or name in self.names


ALL_FLOWS: Final = FlowQuery()


def parse(parameters: Iterable[tuple[str, str]], *, families: Collection[str]) -> FlowQuery:
    """Parse a query. ``families`` are the names of all families of the page.

    Raises FlowQueryError if the query is invalid.
    """
    part = None
    names = []
    for name, value in parameters:
        if name == PART:
            if part is not None:
                raise FlowQueryError(f"The parameter '{PART}' is repeated.")
            part = _parse_part(value)
        elif name == NAME:
            if value not in families:
                problem = f"unknown metric '{printable(value)}'"
                raise FlowQueryError(f"{NAME}: {problem}. Metrics: {', '.join(families)}.")
            names.append(value)
        else:
            known = ", ".join(PARAMETERS)
            raise FlowQueryError(f"Unknown parameter '{printable(name)}'. Parameters: {known}.")
    index, count = part or (0, 1)
    return FlowQuery(part=index, parts=count, names=frozenset(names) if names else None)


def _parse_part(text: str) -> tuple[int, int]:
    match = _PART.fullmatch(text)
    if match and int(match[1]) < int(match[2]) <= MAX_PARTS:
        return int(match[1]), int(match[2])
    raise FlowQueryError(f"{PART}: not I/N with I from 0 to N - 1, and N up to {MAX_PARTS}.")
