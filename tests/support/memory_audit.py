"""Measures the memory of a process: its heap, and all containers reachable from skyfast's objects.

Containers that are added to skyfast later are found automatically.
"""

import ctypes
import functools
import inspect
import sys
import types
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_ENTRIES = 64
"""At most this many entries of a container are searched for further containers."""

MAX_FIELDS = 8
"""The values of a dict have separate paths if all keys are strings, and if there are at most this
many keys."""


class _MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    ]


def heap_bytes() -> dict[str, int]:
    """Return the memory held by malloc, and the memory in use. Return {} without glibc."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return {}
    mallinfo2.restype = _MallInfo
    info = mallinfo2()
    return {
        "bytes held by malloc": info.arena + info.hblkhd,
        "bytes of malloc in use": info.uordblks + info.hblkhd,
    }


def resident_bytes(pid: int | str = "self") -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def containers(**roots: object) -> dict[str, tuple[int, list[Any]]]:
    """Return all containers reachable from ``roots`` and skyfast's modules, by path.

    Several containers can have the same path, for example one for each analyzer. Each path has the
    total number of their entries, and a list of these containers.
    """
    result: dict[str, tuple[int, list[Any]]] = {}
    seen: set[int] = set()
    todo = deque((*_globals(), *roots.items()))
    while todo:
        path, thing = todo.popleft()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType):
            continue
        seen.add(id(thing))
        size = len(thing) if isinstance(thing, dict | list | set | deque | bytearray) else None
        if isinstance(thing, functools._lru_cache_wrapper):
            size = thing.cache_info().currsize
        if size is not None:
            count, others = result.get(path, (0, []))
            result[path] = count + size, [*others, thing]
        todo.extend((f"{path}{name}", part) for name, part in _parts(thing))
    return result


def _globals() -> Iterator[tuple[str, object]]:
    for module, loaded in list(sys.modules.items()):
        if module.split(".")[0] == "skyfast":
            for name, value in list(vars(loaded).items()):
                yield f"{module}.{name}", value


def _parts(thing: Any) -> Iterator[tuple[str, object]]:
    if isinstance(thing, dict):
        fields = len(thing) <= MAX_FIELDS and all(isinstance(key, str) for key in thing)
        for key, value in list(thing.items())[:MAX_ENTRIES]:
            yield f"[{key if fields else ''}]", value
    elif isinstance(thing, list | set | deque | tuple | frozenset):
        yield from (("[]", value) for value in list(thing)[:MAX_ENTRIES])
    if isinstance(thing, types.MethodType):
        yield "()", thing.__self__
    elif isinstance(thing, types.FunctionType):
        yield from inspect.getclosurevars(thing).nonlocals.items()
        if "__name__" not in thing.__globals__:  # the function was generated for a configuration
            named = list(thing.__globals__.items())
            yield from ((f":{name}", value) for name, value in named if name != "__builtins__")
    elif isinstance(thing, functools.partial):
        yield from (("()", part) for part in (thing.func, *thing.args))
    elif type(thing).__module__.startswith("skyfast"):
        yield from ((f".{name}", value) for name, value in _attributes(thing).items())


def _attributes(thing: object) -> dict[str, object]:
    slots: list[str] = []
    for kind in type(thing).__mro__:
        named = kind.__dict__.get("__slots__", ())
        slots += [named] if isinstance(named, str) else named
    kept = {name: getattr(thing, name) for name in slots if hasattr(thing, name)}
    return kept | getattr(thing, "__dict__", {})
