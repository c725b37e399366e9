"""What the kernel tells of this process, in proc(5).

Every function raises OSError where there is no such file system.
"""

import os
import resource
from pathlib import Path

PROC = Path("/proc")


def open_fds() -> int:
    """Return the number of open file descriptors."""
    return len(list((PROC / "self/fd").iterdir())) - 1  # the listing's own


def memory_bytes() -> tuple[int, int]:
    """Return the process's virtual memory and what of it is resident."""
    page_bytes = resource.getpagesize()
    virtual_pages, resident_pages = map(int, (PROC / "self/statm").read_text().split()[:2])
    return virtual_pages * page_bytes, resident_pages * page_bytes


def start_time_s() -> float:
    """Return the Unix time at which the process began."""
    # Field 22 of `stat`, in clock ticks since the machine's start. Field 2 is the command in
    # parentheses and may hold anything, so counting begins behind it, at field 3.
    after_command = (PROC / "self/stat").read_text(errors="replace").rpartition(")")[2]
    ticks = int(after_command.split()[22 - 3])
    boot_line = next(
        line for line in (PROC / "stat").read_text().splitlines() if line.startswith("btime ")
    )
    return int(boot_line.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
