"""Memory settings of the C library, the garbage collector and the kernel."""

import ctypes
import gc
import resource

# The names and numbers of mallopt(3), for glibc. Elsewhere the call does not exist.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

# Of prctl(2).
_PR_SET_DUMPABLE = 4

KEPT_BYTES = 16 << 20
"""Free memory at the top of the heap that is kept for the next message.

glibc's own 128 KiB is less than one message of 100 flows and what it is decoded into: the
heap's top would go back to the kernel after each, and be faulted in again for the next."""

HEAP_STEP_BYTES = 1 << 20
"""What the heap grows by."""

MAPPED_BYTES = 8 << 20
"""What is larger gets a mapping of its own, which goes back to the kernel when it is freed."""

HEAPS = 1
"""glibc would give threads heaps of their own, each with free memory that others cannot have.

Nearly all allocations hold the GIL anyway; with more heaps, a month of churn took 10 % more."""


def keep_heap() -> bool:
    """Let malloc keep what it will need again; return False where there is no such setting.

    Receiving messages of 80 KB takes two thirds of the CPU time afterwards.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # pragma: no cover - for C libraries other than glibc
        return False
    settings = (
        (_M_TRIM_THRESHOLD, KEPT_BYTES),
        (_M_TOP_PAD, HEAP_STEP_BYTES),
        (_M_MMAP_THRESHOLD, MAPPED_BYTES),
        (_M_ARENA_MAX, HEAPS),
    )
    taken = [mallopt(parameter, value) for parameter, value in settings]
    return all(taken)


def freeze() -> None:
    """Take what exists now out of the garbage collector's view: it lives as long as the process."""
    gc.collect()
    gc.freeze()


def keep_to_itself() -> None:
    """Let no core dump, and no other process of the same user, tell what is in memory.

    That is passwords, cookies, keys and all flows. As ssh-agent does, by both ways there are: the
    kernel disregards the limit where a program takes the dumps (core(5)). Root can still look.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
