"""Changes to the configuration for ``--shard I/N``.

The table selects the flows of a shard: see `skyfast.flows.plan.ShardSelector`. Only the first shard
exports families that describe the whole cluster, such as interfaces.
"""

import dataclasses
import logging
import re
from collections.abc import Iterator
from typing import Final

from skyfast.config.model import Config, Note
from skyfast.flows.catalog import ENDPOINTS, PROTOCOL
from skyfast.flows.planner import shown_field
from skyfast.flows.selection import Shard, ViewSpec

MAX_SHARDS: Final = 1024
"""Maximum number of shards. In practice, only a few are useful: each shard decodes all messages."""

_TEXT: Final = re.compile(r"(0|[1-9][0-9]{0,3})/([1-9][0-9]{0,3})", re.ASCII)


def parse(text: str) -> Shard:
    """Parse ``I/N``. If ``text`` is invalid, raise ValueError with the allowed range."""
    match = _TEXT.fullmatch(text)
    if match and int(match[1]) < int(match[2]) <= MAX_SHARDS:
        return Shard(int(match[1]), int(match[2]))
    raise ValueError(f"is not I/N with I from 0 to N - 1, and N up to {MAX_SHARDS}")


def sharded(config: Config, shard: Shard) -> Config:
    """Return the configuration for ``shard``, with a ``host_id`` that no other shard has.

    An analyzer accepts only one subscriber per ``host_id``.
    """
    if shard.count == 1:
        return config
    topology = config.topology
    if shard.index:
        topology = dataclasses.replace(topology, interfaces_interval_s=0.0)
    notes = (Note(level=logging.WARNING, text=text) for text in _overlaps(config))
    return dataclasses.replace(
        config,
        shard=shard,
        host_id=f"{config.host_id}-{shard.index}-of-{shard.count}",
        topology=topology,
        notes=(*config.notes, *notes),
    )


def _overlaps(config: Config) -> Iterator[str]:
    if not _is_disjoint(config.export.first_view, config):
        yield (
            "shards overlap: several shards export the same connections, each with a part of the"
            " traffic; to avoid this, select both addresses, both ports and the protocol as labels,"
            " and do not rewrite them"
        )
    views = [view.prefix for view in config.export.further_views if not _is_disjoint(view, config)]
    if views:
        yield (
            f"shards overlap in {', '.join(views)}: several shards export the same series, each"
            " with a part of the traffic; in queries, sum over the shards"
        )
    hidden = [
        view.prefix or "connections"
        for view, bounds in zip(config.export.views, config.limits.bounds, strict=True)
        if bounds.are_set and not _is_disjoint(view, config)
    ]
    if hidden:
        yield (
            f"shards overlap in {', '.join(hidden)}: each shard compares min_bytes and"
            " min_packets only with its own part of the traffic, so one shard can hide a connection"
            " that another shard exports"
        )


def _is_disjoint(view: ViewSpec, config: Config) -> bool:
    """Return whether each row of the view exists in only one shard."""
    paths = {shown_field(label) for label in view.labels if label.name not in config.export.rewrite}
    return paths >= {*ENDPOINTS, PROTOCOL}
