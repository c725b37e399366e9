"""Maps keys to one or more values, without a list for each key."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class MultiMap(Generic[K, V]):
    """Maps each key to its values, in the order in which the values were added.

    Values are distinguished by identity: two equal objects are two values.

    A list for each of 100,000 keys would slow down the garbage collector, which visits all lists
    without releasing the GIL.
    """

    __slots__ = ("_all", "_first", "_others")

    def __init__(self, pairs: Iterable[tuple[K, V]] = ()) -> None:
        self._first: dict[K, V] = {}
        self._others: dict[K, dict[int, V]] = {}
        self._all: dict[K, tuple[V, ...]] = {}  # filled by `get`
        for key, value in pairs:
            self.add(key, value)

    def add(self, key: K, value: V) -> None:
        first = self._first.setdefault(key, value)
        if first is not value:
            self._others.setdefault(key, {})[id(value)] = value
            self._all.pop(key, None)

    def get(self, key: K) -> tuple[V, ...]:
        try:
            first = self._first[key]
        except KeyError:
            return ()
        if key not in self._others:
            return (first,)
        if key not in self._all:
            self._all[key] = (first, *self._others[key].values())
        return self._all[key]

    def keys(self) -> Iterable[K]:
        return self._first.keys()
