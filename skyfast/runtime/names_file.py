"""Reloads ``names_file``, a file with users' own names for addresses, when the file changes."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from skyfast.config import names
from skyfast.config.file_state import FileState, file_state
from skyfast.config.names import LoadedNames
from skyfast.config.yaml_nodes import ConfigError
from skyfast.flows.selection import ExportSelection
from skyfast.runtime.logs import LogLimit
from skyfast.stats import Failure, OwnNameStats, Stats

log = logging.getLogger("skyfast.names")

INTERVAL_S: Final = 2.0
"""Interval between checks for changes to the file."""


def warn(*, labels: str, keys: Sequence[str]) -> None:
    if labels:
        log.warning(
            "labels %s are empty: the configuration sets neither 'names' nor 'names_file'", labels
        )
    for key in keys:
        log.warning(
            "a label needs the key '%s', but no entry of 'names' or 'names_file' has this key", key
        )


class NamesFile:
    """Detects changes to ``names_file``. If the file is invalid, the current names stay in use."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._counts = OwnNameStats()
        self._limit = LogLimit()
        self._tried: FileState | None = None

    def use(self, loaded: LoadedNames, export: ExportSelection) -> None:
        """Update the self metrics about own names, and log new warnings."""
        counts = self._counts
        labels = names.labels_without_names(loaded.sources, export)
        keys = loaded.missing_keys
        warn(
            labels=labels if labels != counts.labels_without_names else "",
            keys=[key for key in keys if key not in counts.missing_keys],
        )
        counts.labels_without_names, counts.missing_keys = labels, keys
        counts.entries = loaded.own.count
        counts.keys = loaded.keys
        counts.file = loaded.sources.file
        counts.last_load_successful = 1
        counts.last_load_success_timestamp_s = loaded.timestamp_s
        self._tried = loaded.state
        is_used = loaded.sources.are_set or labels
        self._stats.own_names = counts if is_used else None

    async def refresh(self, loaded: LoadedNames, export: ExportSelection) -> LoadedNames | None:
        """Load the names if the file has changed since the last attempt.

        Returns None if the file is unchanged or invalid. If the file is invalid, the error is
        logged once per change.
        """
        sources = loaded.sources
        if not sources.file:
            return None
        state = await asyncio.to_thread(file_state, sources.file)
        if state == self._tried:
            return None
        self._tried = state
        begun_s = time.monotonic()
        try:
            found = await asyncio.to_thread(names.load, sources, export)
        except ConfigError as error:
            # The log message and the status page already name the key ``names_file``.
            self._refuse("configuration", str(error).removeprefix(names.KEY_PREFIX))
            return None
        except MemoryError:
            self._refuse("error", "out of memory")
            return None
        self.use(found, export)
        log.info("names_file reloaded in %.1f s: %s", time.monotonic() - begun_s, found.summary())
        return found

    def _refuse(self, reason: str, text: str) -> None:
        self._limit.log(log, logging.ERROR, text, "names_file not reloaded: %s", text)
        self._counts.last_load_successful = 0
        self._counts.last_failure = Failure(reason, text)
