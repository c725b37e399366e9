"""Logs warnings about traffic that a configuration counts several times, or not at all."""

import logging

from skyfast.config import cost
from skyfast.config.model import Config

log = logging.getLogger("skyfast.config")


def write(config: Config, *, old: Config | None = None) -> None:
    """Log the warnings about ``config``, except those that also apply to ``old``."""
    known = cost.double_counted(old) if old else []
    for where in cost.double_counted(config):
        if where not in known:
            log.warning(
                "%s: traffic captured at several interfaces is counted several times; to avoid"
                " this, set deduplicate to 'first', or add the label node_tid",
                where,
            )
    if cost.hides_traffic(config) and not (old and cost.hides_traffic(old)):
        log.warning(
            "min_bytes or min_packets hides small connections, and no series counts their traffic;"
            " to count it, add a view with the metric bytes and without these two keys"
        )
