"""The alerting rules in ``deploy/rules``, and their unit tests for promtool."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.alerts import RULES, alerts
from tests.support.paths import DEPLOY
from tests.support.prometheus import PROMTOOL, needs_promtool

UNIT_TESTS = DEPLOY / "rules" / "tests" / "alerts.yml"
SEVERITIES = {"critical", "warning", "info"}


@needs_promtool
@pytest.mark.parametrize("command", [["check", "rules", RULES], ["test", "rules", UNIT_TESTS]])
def test_promtool_accepts_the_rules_and_their_unit_tests(command: list[str | Path]) -> None:
    assert PROMTOOL is not None
    result = subprocess.run(
        [PROMTOOL, *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_names_of_alerts_are_unique() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len({*names}) == len(names) > 0


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_alert_has_a_severity_and_a_description(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in SEVERITIES
    assert re.fullmatch(r"[1-9]\d*m", alert["for"])
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description"}
    assert not notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    assert len(notes["summary"]) < 100 < len(notes["description"])


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_alert_fires_in_a_unit_test(alert: dict[str, Any]) -> None:
    tests = yaml.safe_load(UNIT_TESTS.read_text())["tests"]
    fire = [
        case
        for test in tests
        for case in test["promql_expr_test"]
        for sample in case["exp_samples"]
        if f'alertname="{alert["alert"]}"' in sample["labels"]
    ]
    assert fire


def test_every_unit_test_starts_before_the_alert_fires() -> None:
    """The key ``for`` delays the alert, so the first check expects no alert."""
    for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"]:
        assert test["promql_expr_test"][0]["exp_samples"] == [], test["name"]
