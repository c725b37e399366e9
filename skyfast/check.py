"""What a configuration costs, told by ``skyfast --check`` and at the start."""

from collections.abc import Iterator
from typing import Literal

from skyfast.catalogue import DANGEROUS_FIELDS, DIRECTION, LABELS_BY_NAME, families
from skyfast.config import Config, LabelChoice, Store, ViewChoice


def series(view: ViewChoice, *, naming: Literal["compatible", "standard"]) -> int:
    """Return how many series each row of a view has at most."""
    return sum(len(family.values) for family in families(view, naming=naming))


def most_connections(store: Store) -> int:
    """Return how many connections there can be: none is without a flow."""
    return min(store.max_connections, store.max_flows)


def report(config: Config) -> str:
    """Return YAML comments: the series of each view's rows, and labels to be afraid of."""
    return "".join(f"# {line}\n" for line in _lines(config))


def _lines(config: Config) -> Iterator[str]:
    store = config.store
    for view in (store.main, *store.views):
        shown = families(view, naming=store.naming)
        count = series(view, naming=store.naming)
        labels = [label.name for label in view.labels if label.name != DIRECTION]
        if view.prefix:
            kept = f"kept until silent for {view.timeout_s:g} s"
            row = f"row of view {view.prefix} ({', '.join(labels)})"
            yield f"Each {row} costs up to {count} series, {kept}:"
        else:
            most = most_connections(store) * count
            yield f"Each connection costs up to {count} series, all together up to {most}:"
        for family in shown:
            yield f"  {len(family.values)} {family.name}"
    for view in (store.main, *store.views):
        for label in view.labels:
            if danger := _danger(label, config):
                where = f"view {view.prefix}" if view.prefix else "connections"
                yield f"Warning: label {label.name} of the {where} is dangerous: {danger}."


def _danger(label: LabelChoice, config: Config) -> str:
    """Return why a label has values without end, or nothing."""
    if label.name in config.store.rewrites:
        return ""
    path = LABELS_BY_NAME[label.name].path if label.path is None else label.path
    return DANGEROUS_FIELDS.get(path, "")
