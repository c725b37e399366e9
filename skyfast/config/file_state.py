"""Detects whether files have changed since they were read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class FileState:
    """The attributes that show whether a file, or the target of a symbolic link, has changed."""

    modified_ns: int
    size_bytes: int
    inode: int


Files: TypeAlias = dict[str, FileState | None]
"""Maps the path of each file to its state before reading, or to None if there was no file."""


def file_state(path: str) -> FileState | None:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return FileState(stat.st_mtime_ns, stat.st_size, stat.st_ino)


def have_changed(files: Mapping[str, FileState | None]) -> bool:
    return any(file_state(path) != state for path, state in files.items())
