"""What the kernel reports about this process in proc(5).

Every function raises OSError where there is no such file system.
"""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUsage:
    """What the process has now, and the Unix time at which it began."""

    open_fds: int
    virtual_bytes: int
    resident_bytes: int
    start_time_s: float


def process_usage() -> ProcessUsage:
    """Return what the process has now."""
    open_fds = len(list((PROC / "self/fd").iterdir())) - 1  # the listing's own
    virtual_bytes, resident_bytes = memory_bytes()
    return ProcessUsage(
        open_fds=open_fds,
        virtual_bytes=virtual_bytes,
        resident_bytes=resident_bytes,
        start_time_s=_start_time_s(),
    )


def memory_bytes() -> tuple[int, int]:
    """Return the process's virtual memory and what of it is resident."""
    page_bytes = resource.getpagesize()
    virtual_pages, resident_pages = map(int, (PROC / "self/statm").read_text().split()[:2])
    return virtual_pages * page_bytes, resident_pages * page_bytes


def _start_time_s() -> float:
    """Return the Unix time at which the process began."""
    # Field 22 of `stat`, in clock ticks since the machine's start. Field 2 is the command in
    # parentheses and may hold anything, so counting begins behind it, at field 3.
    after_command = (PROC / "self/stat").read_text(errors="replace").rpartition(")")[2]
    ticks = int(after_command.split()[22 - 3])
    boot_line = next(
        line for line in (PROC / "stat").read_text().splitlines() if line.startswith("btime ")
    )
    return int(boot_line.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
