"""The warnings of the status page."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from skyfast.stats import Failure, NameStats, OwnNameStats, Stats, TableCounts
from skyfast.web import empty_labels

MAX_NAMED: Final = 3
"""The maximum number of analyzers named by a warning."""

NEARLY_FULL: Final = 0.9
"""There is a warning if the table reaches this fraction of one of its limits."""

Severity = Literal["warning", "critical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    severity: Severity
    text: str


def current_notices(stats: Stats, table: TableCounts) -> Iterator[Notice]:
    down = [analyzer.name for analyzer in stats.analyzers.values() if not analyzer.up]
    if down and len(down) == len(stats.analyzers):
        is_expiring = table.connections and not stats.clock_held
        rest = ": connections expire" if is_expiring else ""
        yield Notice(severity="critical", text=f"Not subscribed to any analyzer{rest}.")
    elif down:
        others = len(down) - MAX_NAMED
        more = f" and {others:,} more" if others > 0 else ""
        yield Notice(
            severity="warning", text=f"Not subscribed to {', '.join(down[:MAX_NAMED])}{more}."
        )
    if stats.clock_held:
        text = "The expiry of connections is paused, because reports may be missing."
        yield Notice(severity="warning", text=text)
    for what, count, limit in (
        ("connections", table.connections, stats.max_connections),
        ("flows", table.flows, stats.max_flows),
    ):
        if count >= NEARLY_FULL * limit > 0:
            yield Notice(
                severity="critical" if count >= limit else "warning",
                text=f"The table has {count:,} of at most {limit:,} {what} (max_{what}).",
            )
    if names := stats.topology.names:
        yield from _name_notices(names)
    if own := stats.own_names:
        yield from _own_name_notices(own)
    if not stats.config.last_reload_successful and (failure := stats.config.last_failure):
        yield Notice(
            severity="warning",
            text=f"Reload of the configuration failed {_at(failure)}: {failure.text}",
        )


def _name_notices(names: NameStats) -> Iterator[Notice]:
    if names.labels_without_pods:
        yield Notice(
            severity="warning",
            text=f"Labels {names.labels_without_pods} are empty: the topology has no pods;"
            " enable Skydive's Kubernetes probe (k8s) on an analyzer.",
        )
    for key in names.missing_pod_labels:
        yield Notice(severity="warning", text=f"No pod has the label '{key}'.")
    for empty in names.empty_labels:
        text = f"{empty_labels.share_text(empty)}: {empty_labels.reason(empty, names)}."
        yield Notice(severity="warning", text=text)


def _own_name_notices(own: OwnNameStats) -> Iterator[Notice]:
    if own.labels_without_names:
        text = (
            f"Labels {own.labels_without_names} are empty: the configuration sets neither 'names'"
            " nor 'names_file'."
        )
        yield Notice(severity="warning", text=text)
    for key in own.missing_keys:
        text = (
            f"A label needs the key '{key}', but no entry of 'names' or 'names_file' has this key."
        )
        yield Notice(severity="warning", text=text)
    if not own.last_load_successful and (failure := own.last_failure):
        text = f"Reload of names_file failed {_at(failure)}: {failure.text}"
        yield Notice(severity="warning", text=text)


def _at(failure: Failure) -> str:
    when = datetime.fromtimestamp(int(failure.timestamp_s), UTC)
    return f"at {when:%Y-%m-%d %H:%M:%S} UTC"
