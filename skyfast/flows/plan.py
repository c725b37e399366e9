"""The plan: which fields of a flow become labels and values, and how a page shows them.

The table is built from a plan and knows no label or metric by name; the decoder is built
from the paths that a plan mentions (`skyfast.flows.fields`). A plan is plain, immutable data, made
by `skyfast.flows.planner` of the labels and metrics of `skyfast.flows.catalog`.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from skyfast.text_format import MetricFamily

Path = tuple[str, ...]
"""Where a value stands in a flow: the names of the wire's fields from the outside in.

The empty path is the flow itself."""

INITIATOR_TO_TARGET = "initiator_to_target"
TARGET_TO_INITIATOR = "target_to_initiator"


class Rewrite(Protocol):
    """Makes a label value of what stands in the flow; a dict with ``__missing__`` is one.

    It is asked once for each flow that the table does not know, and must have an answer for
    everything: an exception ends the update of the whole message.
    """

    def __getitem__(self, value: Any, /) -> str | int: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """A label. Views that have it in common share the object: each is like itself only.

    Its value is what stands at ``path``, or what ``rewrite`` makes of that: the empty text where
    the part that holds it is missing. A rewrite of something that is no single value (of the
    flow itself, or of a part) says in ``reads`` which fields it needs. With ``dynamic``, answers
    of ``rewrite`` change: the table then remembers what it asked with, for `Table.relabel`.
    """

    name: str
    path: Path
    rewrite: Rewrite | None = None
    reads: tuple[Path, ...] = ()
    dynamic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """The label that tells a connection's two series of one family apart.

    ``position`` counts from 0 among all labels of the page, the columns keeping their order
    around it. ``values`` are its texts, the initiator's first.
    """

    name: str = "direction"
    position: int
    values: tuple[str, str] = (INITIATOR_TO_TARGET, TARGET_TO_INITIATOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A running total of a flow, summed by its deltas.

    ``paths`` are one total since the flow began or several that are added up; ``amounts`` what its
    latest update added to each, and empty where Skydive does not tell: then 0 is taken for it.
    With ``optional``, flows can lack it; a connection of only such flows has no series of it.
    """

    paths: tuple[Path, ...]
    amounts: tuple[Path, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A value of a flow of which a connection keeps one: none as long as all were zero.

    ``keep`` says which: that of the latest report, or the least or the most of all.
    """

    path: Path
    keep: Literal["latest", "least", "most"] = "latest"


@dataclass(frozen=True, slots=True)
class FlowCount:
    """How many flows a connection has now."""


Value = Counter | Gauge | FlowCount


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(MetricFamily):
    """A metric family of the flows.

    ``values`` is one where there is the initiator's direction only, or the view has no
    directions; two (initiator to target, target to initiator) where there are both. Values are
    shown divided by ten to the power of ``decimals``, exactly.
    """

    values: tuple[Value, ...]
    decimals: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A set of series with the same labels: one connection row a label tuple.

    ``identifies_connection`` says that the labels hold both addresses and both ports, so that the
    flow which creates a connection is the connection: its total may then be counted even where it
    is not the flow's first report. ``direction`` is None where both directions are added up.
    """

    columns: tuple[Column, ...]
    direction: Direction | None
    families: tuple[Family, ...]
    identifies_connection: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """Parts, at least one of which a flow must have; else it is skipped under ``reason``.

    Unless ``or_without`` is empty, a flow can lack them all where it has not that part either.
    """

    paths: tuple[Path, ...]
    reason: str
    or_without: Path = ()

    @property
    def reads(self) -> tuple[Path, ...]:
        """Every part that it looks at."""
        return (*self.paths, self.or_without) if self.or_without else self.paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What makes a conversation the same at every capture point, and what tells those apart.

    ``ends`` are the two sides, each the paths of address and port; which is which does not matter.
    """

    protocol: Path
    ends: tuple[tuple[Path, Path], tuple[Path, Path]]
    point: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """What it is known by: protocol, then address and port of either end."""
        return (self.protocol, *self.ends[0], *self.ends[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which conversations are kept: those whose hash leaves ``index`` when divided by ``count``.

    The hash is the same in every process and version, for the shares of several to be disjoint.
    """

    conversation: Conversation
    index: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the table keeps of a flow, and the families of its page.

    The rows of the first view leave with their last flow, those of the others have time-outs of
    their own. With ``conversation``, only the capture point that was first to report a conversation
    is kept, until it falls silent. With ``overflow``, what is not kept for lack of room is added up
    in one connection whose label values are this text. With ``share``, flows of other conversations
    than its own are skipped.
    """

    views: tuple[View, ...]
    requirements: tuple[Requirement, ...]
    conversation: Conversation | None = None
    overflow: str | None = None
    share: Share | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """Every column of any view, once."""
        return tuple(dict.fromkeys(column for view in self.views for column in view.columns))

    @property
    def counters(self) -> tuple[Counter, ...]:
        """Every counter of any view, once."""
        return tuple(value for value in self._values() if isinstance(value, Counter))

    @property
    def gauges(self) -> tuple[Gauge, ...]:
        """Every gauge of any view, once."""
        return tuple(value for value in self._values() if isinstance(value, Gauge))

    def _values(self) -> dict[Value, None]:
        return dict.fromkeys(
            value for view in self.views for family in view.families for value in family.values
        )
