"""Configurations for the tests, made the way a user's are: as YAML through `config.parse`."""

from typing import Any

import yaml

from skyfast.config import loader, model, schema

_PATHS = {path.rpartition(".")[2]: path for path in schema.SCHEMA}


def make_config(*urls: str, **settings: Any) -> model.Config:
    """Return a configuration that subscribes to ``urls``, by default to nobody who listens.

    ``settings`` are named like the last part of the key's path in the file, so
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
