"""The demo in ``deploy/compose``, without a container engine."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from skyfast import cli
from skyfast.config import loader
from tests.support.paths import DEPLOY
from tests.support.process import demo
from tests.support.prometheus import (
    ANSWER_S,
    ask,
    configured_prometheus,
    growing,
    needs_prometheus,
)

DIRECTORY = DEPLOY / "compose"
FILE = DIRECTORY / "compose.yml"
SERVICES: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]
PROMETHEUS = (DIRECTORY / "prometheus.yml").read_text()
(TARGET,) = yaml.safe_load(PROMETHEUS)["scrape_configs"][0]["static_configs"][0]["targets"]
VIEWS = DEPLOY / "grafana" / "views.yml"


def mounts(service: str) -> dict[str, Path]:
    """Map the mount points of a container to local files and directories."""
    found = {}
    for volume in SERVICES[service]["volumes"]:
        source, target, mode = volume.split(":")
        assert mode == "ro"
        found[target] = (DIRECTORY / source).resolve()
    return found


def in_container(service: str, path: str) -> Path:
    """Return the local file that is mounted at ``path``."""
    (mounted,) = [
        source / Path(path).relative_to(target)
        for target, source in mounts(service).items()
        if Path(path).is_relative_to(target)
    ]
    return mounted


def provisioned(directory: str) -> Any:
    (file,) = in_container("grafana", f"/etc/grafana/provisioning/{directory}").glob("*.yml")
    content = yaml.safe_load(file.read_text())
    assert content.pop("apiVersion") == 1
    ((entries,),) = content.values()
    return entries


def test_compose_file_matches_the_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema=vendor.compose-spec"]
    result = subprocess.run([*command, FILE], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_mounted_files_exist() -> None:
    for service in SERVICES:
        for source in mounts(service).values():
            assert source.exists(), source


def test_skyfast_runs_the_demo_with_the_views_of_the_dashboard() -> None:
    service = SERVICES["skyfast"]
    build = service["build"]
    context = (DIRECTORY / build["context"]).resolve()
    assert context == DEPLOY.parent
    assert (context / build["dockerfile"]).is_file()
    arguments = cli._parser().parse_args(service["command"])
    assert arguments.demo
    assert in_container("skyfast", arguments.config) == VIEWS
    (address,) = arguments.addresses
    assert (address.host, f"skyfast:{address.port}") == ("", TARGET)
    loader.load(str(VIEWS), {})


def test_ports_are_published_on_the_loopback_address_only() -> None:
    for service in SERVICES.values():
        (port,) = service["ports"]
        assert port.startswith("127.0.0.1:$")


def test_images_have_a_version() -> None:
    for name in ("prometheus", "grafana"):
        _, _, tag = SERVICES[name]["image"].partition(":")
        assert tag.removeprefix("v")[0].isdigit()


def test_grafana_has_the_data_source_and_the_dashboard() -> None:
    source = provisioned("datasources")
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert source["url"] == "http://prometheus:9090"
    interval = yaml.safe_load(PROMETHEUS)["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    provider = provisioned("dashboards")
    dashboards = in_container("grafana", provider["options"]["path"])
    assert {path.name for path in dashboards.glob("*.json")} == {"skyfast.json"}
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert in_container("grafana", home) == DEPLOY / "grafana" / "skyfast.json"


@pytest.mark.slow
@needs_prometheus
async def test_prometheus_scrapes_the_demo_and_evaluates_the_rules(tmp_path: Path) -> None:
    (tmp_path / "rules").symlink_to(in_container("prometheus", "/etc/prometheus/rules"))
    async with demo(VIEWS) as skyfast:
        assert PROMETHEUS.count(TARGET) == 1
        text = PROMETHEUS.replace(TARGET, skyfast.url.partition("//")[2])
        async with configured_prometheus(text, tmp_path) as server, asyncio.timeout(ANSWER_S):
            # The data of the row "Who talks to whom".
            workloads = 'skydive_workloads_bytes_total{initiator_workload!="",target_workload!=""}'
            await growing(server, workloads, 2)
            # All rules work, and no alert is pending or firing after the first scrape.
            states: set[tuple[str, str]] = set()
            while states != {("ok", "inactive")}:
                groups = json.loads(await ask(f"{server}/api/v1/rules"))["data"]["groups"]
                states = {
                    (rule["health"], rule["state"]) for group in groups for rule in group["rules"]
                }
                await asyncio.sleep(0.5)
