"""The alerting rules under ``deploy/rules``, and their unit tests, which promtool runs."""

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
def test_promtool_finds_them_right(command: list[str | Path]) -> None:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_are_different() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len({*names}) == len(names) > 0


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in SEVERITIES
    assert re.fullmatch(r"[1-9]\d*m", alert["for"])
    notes = alert["annotations"]
    assert notes.keys() == {"summary", "description"}
    assert not notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    assert len(notes["summary"]) < 100 < len(notes["description"])


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_has_a_unit_test_in_which_it_fires(alert: dict[str, Any]) -> None:
    tests = yaml.safe_load(UNIT_TESTS.read_text())["tests"]
    fire = [
        case
        for test in tests
        for case in test["promql_expr_test"]
        for sample in case["exp_samples"]
        if f'alertname="{alert["alert"]}"' in sample["labels"]
    ]
    assert fire


def test_every_unit_test_waits_first() -> None:
    """Before its time, nothing fires: so ``for`` is tested too."""
    for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"]:
        assert test["promql_expr_test"][0]["exp_samples"] == [], test["name"]
