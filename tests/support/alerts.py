"""The alerting rules in deploy/."""

from typing import Any

import yaml

from tests.support.paths import DEPLOY

RULES = DEPLOY / "rules" / "alerts.yml"


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]
