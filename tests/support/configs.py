"""Makes configurations for tests."""

from typing import Any

import yaml

from skyfast.config import loader, model, schema

_PATHS = {path.rpartition(".")[2]: path for path in schema.SCHEMA}


def make_config(*urls: str, **settings: Any) -> model.Config:
    """Return a configuration that subscribes to ``urls``, by default to a closed port.

    Each setting is named by the last part of its key, for example
    ``make_config(url, silence_timeout=1, cookie={"a": "b"})``.
    """
    settings["urls"] = list(urls) or ["ws://127.0.0.1:9/ws/subscriber/flow"]
    settings.setdefault("host_id", "skyfast-test")
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *sections, leaf = _PATHS[name].split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[leaf] = value
    return loader.parse(yaml.safe_dump(tree), {}, source="test.yml")
