"""The resource usage of this process, from proc(5).

Every function raises OSError if proc(5) is not mounted.
"""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUsage:
    open_fds: int
    virtual_bytes: int
    resident_bytes: int
    start_time_s: float
    """The Unix time at which the process started."""


def process_usage() -> ProcessUsage:
    open_fds = len(list((PROC / "self/fd").iterdir())) - 1  # not counting the open directory
    virtual_bytes, resident_bytes = memory_bytes()
    return ProcessUsage(
        open_fds=open_fds,
        virtual_bytes=virtual_bytes,
        resident_bytes=resident_bytes,
        start_time_s=_start_time_s(),
    )


def memory_bytes() -> tuple[int, int]:
    """Return the virtual and the resident memory of the process, in bytes."""
    page_bytes = resource.getpagesize()
    virtual_pages, resident_pages = map(int, (PROC / "self/statm").read_text().split()[:2])
    return virtual_pages * page_bytes, resident_pages * page_bytes


def _start_time_s() -> float:
    # Field 22 of `stat` is the start time in clock ticks since boot. Field 2, the command in
    # parentheses, may contain spaces. Therefore split only the text after field 2 at spaces.
    after_command = (PROC / "self/stat").read_text(errors="replace").rpartition(")")[2]
    ticks = int(after_command.split()[22 - 3])
    boot_line = next(
        line for line in (PROC / "stat").read_text().splitlines() if line.startswith("btime ")
    )
    return int(boot_line.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
