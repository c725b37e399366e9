"""Names that users give to addresses and networks."""

import csv
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from heapq import merge
from io import StringIO
from itertools import accumulate, islice
from typing import Any, Final, TypeAlias

import msgspec

from skyfast.flows import addresses

MAX_NAME_CHARS: Final = 256
"""Maximum length of a name, a key or a value, in characters."""

MAX_KEYS: Final = 100
"""Maximum number of different keys in a file: the log and the status page list all of them."""

MAX_PROBLEMS: Final = 20
"""Number of invalid lines after which skyfast stops reading a file."""

Prefix: TypeAlias = int
"""An address or a network, as an integer:

* The low 8 bits are the length of the prefix.
* The next 32 bits (IPv4) or 128 bits (IPv6) are the first address.
* For IPv6, the bit above the first address is also set.

Sorted prefixes are in the order of their first addresses, and a network comes before the networks
that it contains."""

OwnNameTuple: TypeAlias = tuple[str, ...]
"""The own names of an address, in this order:

* the name that is given to exactly this address
* the name of the smallest network that contains the address and has a name
* for each selected key, the value of the longest prefix that contains the address and has the key

Names and values that do not exist are empty strings.
"""

_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_SHOWN: Final = 60

_IPV4_BYTES: Final = 4
_IPV4_BITS: Final = 32
_IPV6_BITS: Final = 128
_MAPPED_BITS: Final = _IPV6_BITS - _IPV4_BITS
"""Length of the prefix that all IPv4-mapped IPv6 addresses share."""

_LENGTH_BITS: Final = 8
_LENGTH_MASK: Final = (1 << _LENGTH_BITS) - 1
_IPV6: Final = 1 << _IPV6_BITS + _LENGTH_BITS
"""The bit that marks IPv6 addresses in a `Prefix`."""

_LENGTHS: Final = {str(bits): bits for bits in range(_IPV6_BITS + 1)}
_INDEXED_BITS: Final = 16
"""Number of low address bits that the index of IPv4 ranges ignores.

The index has one entry per /16 network."""

_SORTED_AT_ONCE: Final = 100_000
"""Number of prefixes that are sorted in one call, which takes about 20 ms."""

_FREED_AT_ONCE: Final = 10_000
"""Number of names that are freed in one step, which takes less than a millisecond."""

_WORD_BITS: Final = 64
_WORD: Final = (1 << _WORD_BITS) - 1


class InvalidEntryError(ValueError):
    """An entry is invalid."""


class InvalidLinesError(ValueError):
    """Lines of a file are invalid."""

    def __init__(self, problems: Sequence[tuple[int, str]]) -> None:
        super().__init__(problems)
        self.problems = problems
        """The line number and message of each error."""


class OwnNameEntry(msgspec.Struct, frozen=True, gc=False):
    """What users give to an address or network: a name, values of keys, or both."""

    name: str
    """Empty if users give only values."""
    values: tuple[tuple[str, str], ...] = ()
    """Pairs of a key and its value."""


def make_entry(name: str, values: Iterable[tuple[str, str]] = ()) -> OwnNameEntry:
    """Return an entry.

    Raises:
        InvalidEntryError: The entry is empty, repeats a key, or contains an invalid name, key or
            value.

    """
    entry = OwnNameEntry(name, tuple(values))
    if name:
        _check_text(name)
    for key, value in entry.values:
        _check_key(key)
        _check_text(value)
    _check_entry(entry)
    return entry


def _check_text(text: str) -> None:
    if not text or len(text) > MAX_NAME_CHARS or not text.isprintable():
        raise InvalidEntryError(
            f"{_shown(text)} is not a string of 1 to {MAX_NAME_CHARS} printable characters"
        )


def is_key(key: str) -> bool:
    return len(key) <= MAX_NAME_CHARS and _KEY.fullmatch(key) is not None


def _check_key(key: str) -> None:
    if not is_key(key):
        raise InvalidEntryError(
            f"{_shown(key)} is not a key: use letters, digits and _, not starting with a digit"
        )


def _check_entry(entry: OwnNameEntry) -> None:
    count = len(entry.values)
    if count == 0 and not entry.name:
        raise InvalidEntryError("an entry needs a name or a value")
    if count > 1 and len(dict(entry.values)) < count:
        raise InvalidEntryError("an entry contains a key twice")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")


def read_prefix(text: str) -> Prefix:
    """Parse an address, or a network such as ``10.0.0.0/8``.

    IPv4-mapped IPv6 addresses are returned as IPv4.

    Raises:
        InvalidEntryError: The text is neither an address nor a network, or it does not begin with
            the first address of its network.

    """
    address, slash, length = text.partition("/")
    packed = addresses.read(address)
    if packed is None:
        raise InvalidEntryError(f"{_shown(text)} is not an address or network")
    first = int.from_bytes(packed)
    of_family, most = (0, _IPV4_BITS) if len(packed) == _IPV4_BYTES else (_IPV6, _IPV6_BITS)
    bits = most
    if slash:
        bits = _LENGTHS.get(length, -1)
        if not of_family and ":" in address:
            bits -= _MAPPED_BITS
        if not 0 <= bits <= most:
            raise InvalidEntryError(f"{_shown(text)} is not an address or network")
        if first & (1 << most - bits) - 1:
            network = addresses.write(addresses.masked(packed, bits))
            raise InvalidEntryError(
                f"{_shown(text)} does not begin with the first address of its network; write"
                f" {network}/{bits}"
            )
    return of_family | first << _LENGTH_BITS | bits


def read_csv(text: str) -> dict[Prefix, OwnNameEntry]:
    """Parse lines of the form ``prefix,name[,key=value…]``.

    Empty lines and lines that start with ``#`` are ignored. Fields can be quoted as in RFC 4180,
    but cannot contain line breaks. Equal strings in the returned entries are the same object.

    Raises:
        InvalidLinesError: Lines are invalid or repeat a prefix.

    """
    entries: dict[Prefix, OwnNameEntry] = {}
    problems: list[tuple[int, str]] = []
    read_entry = _EntryReader()
    for number, line in enumerate(StringIO(text), 1):
        line = line.strip()
        if not line or line[0] == "#":
            continue
        try:
            first, comma, rest = line.partition(",")
            if not comma:
                problem = "is not in the form prefix,name[,key=value…]"
                raise InvalidEntryError(f"{_shown(line)} {problem}")
            first = first.rstrip()
            prefix = read_prefix(_unquoted(first) if first.startswith('"') else first)
            entry = read_entry(rest)
            if entries.setdefault(prefix, entry) is not entry:
                raise InvalidEntryError(f"{_shown(first)} is already on another line")
        except InvalidEntryError as error:
            problems.append((number, str(error)))
            if len(problems) == MAX_PROBLEMS:
                break
    read_entry.release()
    if problems:
        raise InvalidLinesError(problems)
    return entries


class _Names(dict[str, str]):
    """A cache that maps the second field of a line to the checked name."""

    __slots__ = ()

    def __missing__(self, field: str) -> str:
        name = field.strip()
        if name:
            _check_text(name)
        self[field] = name
        return name


class _Values(dict[str, tuple[str, str]]):
    """A cache that maps a field ``key=value`` to the checked key and value."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[str, str] = {}

    def __missing__(self, field: str) -> tuple[str, str]:
        key, equals, value = field.strip().partition("=")
        if not equals:
            raise InvalidEntryError(f"{_shown(field.strip())} is not in the form key=value")
        _check_text(value)
        if key not in self._keys:
            _check_key(key)
            if len(self._keys) >= MAX_KEYS:
                raise InvalidEntryError(f"{_shown(key)} is beyond the limit of {MAX_KEYS} keys")
            self._keys[key] = key
        self[field] = pair = (self._keys[key], value)
        return pair


class _EntryReader:
    """Parses the part of a line after the prefix. Each distinct field is checked only once."""

    def __init__(self) -> None:
        self._names = _Names()
        self._values = _Values()

    def __call__(self, text: str) -> OwnNameEntry:
        name, *fields = _split(text) if '"' in text else text.split(",")
        entry = OwnNameEntry(self._names[name], tuple(map(self._values.__getitem__, fields)))
        _check_entry(entry)
        return entry

    def release(self) -> None:
        release(self._names)
        release(self._values)


def release(mapping: dict[Any, Any]) -> None:
    """Free the entries of a mapping one by one, so that other threads are not blocked."""
    while mapping:
        mapping.popitem()


def _unquoted(prefix: str) -> str:
    """Return a prefix without the quotes around it. `read_prefix` rejects any further quotes."""
    if len(prefix) < 2 or not prefix.endswith('"'):
        raise InvalidEntryError(f"wrong quotes: {_shown(prefix)}")
    return prefix[1:-1]


def _split(text: str) -> list[str]:
    try:
        (fields,) = csv.reader([text], strict=True, skipinitialspace=True)
    except csv.Error as error:
        raise InvalidEntryError(f"wrong quotes: {error}") from None
    return fields


def _in_order(prefixes: Iterable[Prefix]) -> list[Prefix]:
    """Sort in chunks, because sorting all prefixes at once would block other threads."""
    rest = iter(prefixes)
    chunks = []
    while chunk := list(islice(rest, _SORTED_AT_ONCE)):
        chunk.sort()
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else list(merge(*chunks))


def _index(starts: "array[int]") -> "array[int]":
    """Return, for each /16 network, the number of IPv4 ranges that begin before it.

    The last element is the number of all IPv4 ranges.
    """
    counts = [0] * ((1 << _IPV4_BITS - _INDEXED_BITS) + 1)
    for start in starts:
        counts[(start >> _INDEXED_BITS) + 1] += 1
    return array("I", accumulate(counts))


def _ranges(
    entries: Mapping[Prefix, OwnNameEntry],
    ordered: Sequence[Prefix],
    most: int,
    keys: Sequence[str],
    numbers: dict[OwnNameTuple, int],
) -> tuple[list[int], "array[int]"]:
    """Divide the addresses of one IP version into ranges. Addresses in a range have equal names.

    ``ordered`` are the sorted prefixes of this IP version. An address has ``most`` bits.
    ``numbers`` maps each distinct tuple of names to its number; this function adds new tuples.

    Returns two lists: the first address of each range, and the number of the tuple of names for
    each range. The first range begins at address 0.
    """
    starts, names_of = [0], array("I", [0])
    mask = (1 << most) - 1
    positions = {key: number for number, key in enumerate(keys, 2)}
    # A stack of the networks that contain the current address, largest first. Each element has
    # three items: the first address after the network, the number of the tuple of names that
    # applies in the network, and the tuple itself.
    empty = next(iter(numbers))
    outer: list[tuple[int, int, OwnNameTuple]] = [(1 << most, 0, empty)]

    def begin(start: int, number: int) -> None:
        if start == 0:
            names_of[0] = number
            return
        if starts[-1] == start:
            starts.pop()
            names_of.pop()
        if names_of[-1] != number:
            starts.append(start)
            names_of.append(number)

    for prefix in ordered:
        first, bits = prefix >> _LENGTH_BITS & mask, prefix & _LENGTH_MASK
        while outer[-1][0] <= first:
            end = outer.pop()[0]
            begin(end, outer[-1][1])
        entry = entries[prefix]
        around = outer[-1][2]
        names = [*around]
        names[0] = entry.name if bits == most else ""
        if bits != most and entry.name:
            names[1] = entry.name
        if positions:
            for key, value in entry.values:
                if key in positions:
                    names[positions[key]] = value
        found = tuple(names)
        number = numbers.setdefault(found, len(numbers))
        begin(first, number)
        outer.append((first + (1 << most - bits), number, found))
    while len(outer) > 1:
        end = outer.pop()[0]
        if end <= mask:
            begin(end, outer[-1][1])
    return starts, names_of


class OwnNames:
    """An immutable mapping of addresses to the names that users gave to them.

    The networks are flattened into ranges that do not overlap, so a lookup is a binary search in
    compact arrays. For IPv4, the search covers only the ranges that begin in the address's /16
    network.
    """

    def __init__(self, entries: Mapping[Prefix, OwnNameEntry], keys: Sequence[str] = ()) -> None:
        """``keys`` are the selected keys: each `OwnNameTuple` contains their values."""
        self.keys = tuple(keys)
        self.count = len(entries)
        self.empty: OwnNameTuple = ("",) * (2 + len(keys))
        """The tuple for an address that has neither names nor values."""
        ordered = _in_order(entries)
        ipv6 = bisect_left(ordered, _IPV6)
        numbers: dict[OwnNameTuple, int] = {self.empty: 0}
        starts, self._numbers4 = _ranges(entries, ordered[:ipv6], _IPV4_BITS, self.keys, numbers)
        self._starts4 = array("I", starts)
        self._index4 = _index(self._starts4)
        starts, self._numbers6 = _ranges(entries, ordered[ipv6:], _IPV6_BITS, self.keys, numbers)
        self._high6 = array("Q", [start >> _WORD_BITS for start in starts])
        self._low6 = array("Q", [start & _WORD for start in starts])
        self._names = list(numbers)

    def release(self) -> None:
        """Free the memory in steps. Afterwards, the object must not be used for lookups."""
        while self._names:
            del self._names[-_FREED_AT_ONCE:]

    def __getitem__(self, address: str) -> OwnNameTuple:
        """Return the names of an address; all are empty if the address is unknown or invalid."""
        packed = addresses.read(address)
        return self.empty if packed is None else self.find(packed)

    def find(self, packed: bytes) -> OwnNameTuple:
        """Return the names of an address that is given as 4 or 16 bytes."""
        number = int.from_bytes(packed)
        if len(packed) == _IPV4_BYTES:
            half = number >> _INDEXED_BITS
            begin, end = self._index4[half], self._index4[half + 1]
            return self._names[self._numbers4[bisect_right(self._starts4, number, begin, end) - 1]]
        high = number >> _WORD_BITS
        end = bisect_right(self._high6, high)
        if self._high6[end - 1] == high:
            begin = bisect_left(self._high6, high, 0, end)
            end = bisect_right(self._low6, number & _WORD, begin, end)
        return self._names[self._numbers6[end - 1]]


NO_NAMES: Final = OwnNames({})


def changed_addresses(texts: Iterable[str], old: OwnNames, new: OwnNames) -> set[str]:
    changed: set[str] = set()
    for text in texts:
        packed = addresses.read(text)
        if packed is not None and old.find(packed) != new.find(packed):
            changed.add(text)
    return changed
