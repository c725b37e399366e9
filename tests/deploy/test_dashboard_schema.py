"""The Grafana dashboard, checked against Grafana's TypeScript types."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import DEPLOY, ROOT

NODE = shutil.which("node")
MODULES = ROOT / "tests" / "node" / "node_modules"
TSC = MODULES / "typescript" / "bin" / "tsc"
TIMEOUT_S = 120.0

NAMES = {"bargauge": "BarGauge", "stat": "Stat", "table": "Table", "timeseries": "TimeSeries"}
"""For each type of panel, the name in the path of its TypeScript module."""

EXPORT_KEYS = ("__inputs", "__elements", "__requires")
"""Keys of exported dashboards that are not part of the schema."""

HEAD = """\
import type { AnnotationQuery, Dashboard, Panel, VariableModel } from "@grafana/schema";

// JSON has the values of enumerations as plain text.
type Plain<T> = T extends string ? `${T}` : T extends (infer E)[] ? Plain<E>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

// The schema does not contain the keys of data sources and of kinds of variables.
type Annotation = AnnotationQuery & { expr?: string; step?: string; titleFormat?: string;
  textFormat?: string; tagKeys?: string; useValueForTime?: boolean };
type Variable = VariableModel & { definition?: string; auto?: boolean; auto_count?: number;
  auto_min?: string };
type Exported = Omit<Dashboard, "annotations" | "templating">
  & { annotations: { list: Annotation[] }; templating: { list: Variable[] } };
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (NODE is None or not TSC.exists()) and not os.environ.get("CI"),
        reason="TypeScript is not installed (install npm, then run make test-slow)",
    ),
]


def all_panels(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        if panel["type"] != "row":
            yield panel
        yield from all_panels(panel.get("panels", []))


def source(dashboard: dict[str, Any]) -> str:
    """Return a program that compiles only if the dashboard fits the types."""
    rest = {key: value for key, value in dashboard.items() if key not in EXPORT_KEYS}
    lines = [HEAD]
    for type_, name in NAMES.items():
        path = (
            f"@grafana/schema/dist/esm/raw/composable/{type_}/panelcfg/x/{name}PanelCfg_types.gen"
        )
        lines.append(f'import type * as {name} from "{path}";')
    lines.append(f"const dashboard: Plain<Exported> = {json.dumps(rest)};")
    for number, panel in enumerate(all_panels(dashboard["panels"])):
        name = NAMES[panel["type"]]
        # Only the schemas of these two panel types describe options of fields.
        options = {f"options: Partial<Plain<{name}.Options>>": panel["options"]}
        if panel["type"] in ("table", "timeseries"):
            custom = panel["fieldConfig"]["defaults"].get("custom", {})
            options[f"custom: Partial<Plain<{name}.FieldConfig>>"] = custom
        options["panel: Plain<Panel>"] = panel
        lines += [
            f"const {what.replace(':', f'_{number}:', 1)} = {json.dumps(value)};"
            for what, value in options.items()
        ]
    return "\n".join(lines)


def compiler_errors(program: str, directory: Path) -> list[str]:
    file = directory / "dashboard.ts"
    file.write_text(program)
    if not (directory / "node_modules").exists():
        (directory / "node_modules").symlink_to(MODULES)
    assert NODE is not None
    options = ("--noEmit", "--strict", "--module", "esnext", "--moduleResolution", "bundler")
    result = subprocess.run(
        [NODE, TSC, *options, "--target", "es2022", "--pretty", "false", file],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=directory,
    )
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEPLOY / "grafana" / "skyfast.json").read_text())
    return content


def test_dashboard_fits_the_types_of_grafana(dashboard: dict[str, Any], tmp_path: Path) -> None:
    assert compiler_errors(source(dashboard), tmp_path) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("unknown panel option", lambda panel: panel["options"].update(legendd={})),
        ("wrong value", lambda panel: panel["fieldConfig"]["defaults"].update(decimals="2")),
        ("wrong color mode", lambda panel: panel["fieldConfig"]["defaults"].update(color="red")),
        (
            "unknown style",
            lambda panel: panel["fieldConfig"]["defaults"]["custom"].update(lineWidth="1"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_type_check_finds_mistakes(
    dashboard: dict[str, Any], tmp_path: Path, name: str, change: Any
) -> None:
    wrong = json.loads(json.dumps(dashboard))
    panel = next(panel for panel in all_panels(wrong["panels"]) if panel["type"] == "timeseries")
    change(panel)
    assert compiler_errors(source(wrong), tmp_path), name
