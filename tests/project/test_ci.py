"""Tests of the locked environment, ``.ci/run`` and the workflows, without running the workflows."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
CI = (ROOT / ".ci" / "run").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LOCK = (ROOT / "requirements.lock").read_text()
PYTHONS = [
    match[1]
    for classifier in PROJECT["project"]["classifiers"]
    if (match := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier))
]
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


@cache
def locked(text: str = LOCK) -> list[tuple[Requirement, str]]:
    """Return each requirement in a lock file, and its hashes."""
    entries = re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n", "", text))
    parts = [entry.partition(" \\\n") for entry in entries if entry.strip()]
    return [(Requirement(head), hashes) for head, _, hashes in parts]


def versions(python: str) -> dict[str, str]:
    """Map each package to the version that CI installs for this Python."""
    environment = default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    installed = {}
    for requirement, _ in locked():
        if requirement.marker is None or requirement.marker.evaluate(dict(environment)):
            assert requirement.name not in installed
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            installed[canonicalize_name(requirement.name)] = pin.version
    return installed


def groups() -> list[str]:
    (names,) = re.findall(r"^GROUPS := (.*)$", MAKEFILE, re.MULTILINE)
    listed: list[str] = names.split()
    return listed


def project_requirements() -> list[Requirement]:
    texts = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for group in groups():
        texts += PROJECT["dependency-groups"][group]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_satisfies_the_requirements(python: str) -> None:
    pinned = versions(python)
    for requirement in project_requirements():
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_lock_has_hashes_and_no_urls() -> None:
    assert len(locked()) > 30
    for _, hashes in locked():
        assert re.fullmatch(r"( {4}--hash=sha256:[0-9a-f]{64}( \\)?\n?)+", hashes)
    assert "://" not in LOCK
    assert "--index" not in LOCK


@pytest.mark.parametrize("name", ["build", "runtime"])
def test_other_lock_files_are_subsets_of_requirements_lock(name: str) -> None:
    whole = {
        (part.name, str(part.specifier)): set(re.findall(r"[0-9a-f]{64}", hashes))
        for part, hashes in locked()
    }
    parts = locked((ROOT / f"requirements-{name}.lock").read_text())
    for part, hashes in parts:
        assert whole[part.name, str(part.specifier)] == set(re.findall(r"[0-9a-f]{64}", hashes))
    texts = {
        "build": PROJECT["dependency-groups"]["build"],
        "runtime": PROJECT["project"]["dependencies"],
    }
    names = {canonicalize_name(part.name) for part, _ in parts}
    assert names >= {canonicalize_name(Requirement(text).name) for text in texts[name]}


def test_build_requirements_are_locked() -> None:
    assert {*PROJECT["build-system"]["requires"]} < {*PROJECT["dependency-groups"]["build"]}
    assert "build" in groups()


def test_ci_runs_existing_targets_and_ends_with_the_slow_tests() -> None:
    steps = re.findall(r"^make ([a-z-]+)", CI, re.MULTILINE)
    assert set(steps) <= TARGETS
    assert steps[0] == "locked"
    assert CI.rstrip().splitlines()[-1] == "make test-slow"
    assert "set -euo pipefail" in CI


def test_ci_script_stops_after_a_failing_step() -> None:
    failing = "make() { echo made $1; [ $1 != lint ]; }; " + CI.replace('"$(dirname "$0")/.."', ".")
    result = subprocess.run(
        ["bash", "-c", re.sub(r"(?m)^command -v.*$", "", failing)],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=ROOT,
    )
    assert result.returncode != 0
    assert result.stdout.splitlines()[-1] == "made lint"


GROUPED = """
import os, pathlib, pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(6))
def test_it(number):
    pathlib.Path(os.environ["PYTEST_XDIST_WORKER"] + ".ran").touch()
"""


def test_xdist_group_runs_in_one_process(tmp_path: Path) -> None:
    """With some versions of pytest and pytest-xdist, xdist groups have no effect."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(GROUPED)
    (options,) = re.findall(r"^PARALLEL_TESTS := \$\(BIN\)/pytest (.*)$", MAKEFILE, re.MULTILINE)
    subprocess.run(
        [sys.executable, "-m", "pytest", *options.replace("$(WORKERS)", "2").split()],
        capture_output=True,
        check=True,
        timeout=60,
        cwd=tmp_path,
        env={name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")},
    )
    assert len([*tmp_path.glob("*.ran")]) == 1


def test_every_test_is_run_by_a_target() -> None:
    options = PROJECT["tool"]["pytest"]["ini_options"]["addopts"]
    assert re.findall(r"-m '([^']*)'", options) == ["not slow and not nightly"]
    assert "$(PARALLEL_TESTS) $(PYTEST_ARGS)\n" in MAKEFILE
    assert "$(PARALLEL_TESTS) -m 'slow and not nightly' $(PYTEST_ARGS)\n" in MAKEFILE
    assert "pytest -q -m nightly\n" in MAKEFILE


@pytest.mark.parametrize("ci", [True, False])
def test_hypothesis_is_deterministic_in_ci(ci: bool) -> None:
    environ = {name: text for name, text in os.environ.items() if name != "CI"}
    script = "import tests.conftest; from hypothesis import settings as s; print(s().derandomize)"
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        cwd=ROOT,
        env=environ | {"CI": "true"} if ci else environ,
    )
    assert result.stdout.strip() == str(ci)


def workflows() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        yield path.name, yaml.safe_load(path.read_text())


def jobs() -> dict[str, dict[str, Any]]:
    by_name = {}
    for name, workflow in workflows():
        by_name |= {f"{name}:{job}": parts for job, parts in workflow["jobs"].items()}
    return by_name


JOBS = jobs()


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("name", JOBS)
def test_jobs_run_existing_targets(name: str) -> None:
    job = JOBS[name]
    assert job["timeout-minutes"] <= 360
    for command in commands(job):
        match = re.fullmatch(r"make ([a-z-]+)( [A-Z_]+=(\S+|'[^']*'))*", command)
        assert match or command.startswith("sudo apt-get ")
        assert match is None or match[1] in TARGETS
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+\.\d+)?", step["uses"])
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_only_jobs_that_publish_have_write_permissions() -> None:
    for _, workflow in workflows():
        assert workflow["permissions"] == {"contents": "read"}
    permissions = {name: job["permissions"] for name, job in JOBS.items() if "permissions" in job}
    assert permissions == {
        "release.yml:publish": {"id-token": "write"},
        "release.yml:image": {"contents": "read", "packages": "write"},
        "release.yml:chart": {"contents": "read", "packages": "write"},
        "release.yml:github": {"contents": "write"},
    }


def test_workflow_and_ci_script_have_the_same_steps() -> None:
    """The script runs the steps in sequence on one machine."""
    steps = re.findall(r"^make .*$", CI, re.MULTILINE)
    names = [step.split()[1] for step in steps]
    assert names == ["locked", "test", "lint", "sanitize", "fuzz", "tools", "test-slow"]
    make_commands = {
        command
        for name, job in JOBS.items()
        if name.startswith("ci.")
        for command in commands(job)
        if command.startswith("make ")
    }
    assert {*steps} == make_commands


def test_every_supported_python_is_tested_and_packaged() -> None:
    assert JOBS["ci.yml:test"]["strategy"]["matrix"]["python"] == PYTHONS
    wheels = JOBS["ci.yml:wheels"]["strategy"]["matrix"]
    assert JOBS["release.yml:wheels"]["strategy"]["matrix"] == wheels
    settings = PROJECT["tool"]["cibuildwheel"]
    assert [f"{python}-*" for python in wheels["python"]] == settings["build"].split()
    assert wheels["python"] == [f"cp{python.replace('.', '')}" for python in PYTHONS]
    libcs = {key.partition("-")[0] for key in settings["linux"] if key.endswith("-image")}
    assert set(wheels["libc"]) == libcs == {"manylinux", "musllinux"}
    assert len(wheels["machine"]) == len(settings["linux"]["archs"])
