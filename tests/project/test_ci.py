"""What runs where nobody watches: the locked environment, ``.ci/run``, the workflows.

That is: as far as can be seen without the machines that run the workflows.
"""

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
    found[1]
    for classifier in PROJECT["project"]["classifiers"]
    if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier))
]
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


@cache
def locked() -> list[tuple[Requirement, str]]:
    """Return what the lock file asks for, with the rest of each entry: its hashes."""
    entries = re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n", "", LOCK))
    parts = [entry.partition(" \\\n") for entry in entries if entry.strip()]
    return [(Requirement(head), hashes) for head, _, hashes in parts]


def versions(python: str) -> dict[str, str]:
    """Return what is installed where CI runs on this Python: version by name."""
    environment = default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    found = {}
    for requirement, _ in locked():
        if requirement.marker is None or requirement.marker.evaluate(dict(environment)):
            assert requirement.name not in found
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            found[canonicalize_name(requirement.name)] = pin.version
    return found


def groups() -> list[str]:
    (names,) = re.findall(r"^GROUPS := (.*)$", MAKEFILE, re.MULTILINE)
    listed: list[str] = names.split()
    return listed


def asked_for() -> list[Requirement]:
    texts = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for group in groups():
        texts += PROJECT["dependency-groups"][group]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_what_the_project_asks_for(python: str) -> None:
    pinned = versions(python)
    for requirement in asked_for():
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_everything_in_the_lock_has_hashes_and_no_place() -> None:
    assert len(locked()) > 30
    for _, hashes in locked():
        assert re.fullmatch(r"( {4}--hash=sha256:[0-9a-f]{64}( \\)?\n?)+", hashes)
    assert "://" not in LOCK
    assert "--index" not in LOCK


def test_what_builds_the_project_is_among_what_is_locked() -> None:
    assert {*PROJECT["build-system"]["requires"]} < {*PROJECT["dependency-groups"]["build"]}
    assert "build" in groups()


def test_ci_calls_what_there_is_and_ends_with_the_tests() -> None:
    steps = re.findall(r"^make ([a-z-]+)", CI, re.MULTILINE)
    assert set(steps) <= TARGETS
    assert steps[0] == "locked"
    assert CI.rstrip().splitlines()[-1] == "make test-slow"
    assert "set -euo pipefail" in CI


def test_a_step_that_fails_fails_the_run() -> None:
    """Where ``make`` fails, nothing behind it is done."""
    failing = "make() { echo made $1; [ $1 != lint ]; }; " + CI.replace('"$(dirname "$0")/.."', ".")
    done = subprocess.run(
        ["bash", "-c", re.sub(r"(?m)^command -v.*$", "", failing)],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=ROOT,
    )
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1] == "made lint"


GROUPED = """
import os, pathlib, pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(6))
def test_it(number):
    pathlib.Path(os.environ["PYTEST_XDIST_WORKER"] + ".ran").touch()
"""


def test_tests_of_one_group_run_in_one_process(tmp_path: Path) -> None:
    """Not a matter of course: some versions of pytest and pytest-xdist silently ignore groups."""
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
    """By one of `test`, whose choice is pytest's default, `test-slow` and `nightly`."""
    options = PROJECT["tool"]["pytest"]["ini_options"]["addopts"]
    assert re.findall(r"-m '([^']*)'", options) == ["not slow and not nightly"]
    assert "$(PARALLEL_TESTS) $(PYTEST_ARGS)\n" in MAKEFILE
    assert "$(PARALLEL_TESTS) -m 'slow and not nightly' $(PYTEST_ARGS)\n" in MAKEFILE
    assert "pytest -q -m nightly\n" in MAKEFILE


@pytest.mark.parametrize("ci", [True, False])
def test_hypothesis_repeats_itself_in_ci(ci: bool) -> None:
    environ = {name: text for name, text in os.environ.items() if name != "CI"}
    script = "import tests.conftest; from hypothesis import settings as s; print(s().derandomize)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        cwd=ROOT,
        env=environ | {"CI": "true"} if ci else environ,
    )
    assert done.stdout.strip() == str(ci)


def workflows() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        yield path.name, yaml.safe_load(path.read_text())


def jobs() -> dict[str, dict[str, Any]]:
    found = {}
    for name, workflow in workflows():
        found |= {f"{name}:{job}": parts for job, parts in workflow["jobs"].items()}
    return found


JOBS = jobs()


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_calls_what_there_is(name: str) -> None:
    job = JOBS[name]
    assert job["timeout-minutes"] <= 360
    for command in commands(job):
        made = re.fullmatch(r"make ([a-z-]+)( [A-Z_]+=(\S+|'[^']*'))*", command)
        assert made or command.startswith("sudo apt-get ")
        assert made is None or made[1] in TARGETS
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+\.\d+)?", step["uses"])
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_workflows_may_only_read() -> None:
    for _, workflow in workflows():
        assert workflow["permissions"] == {"contents": "read"}
    assert not [job for job in JOBS.values() if "permissions" in job]


def test_the_workflow_has_the_steps_of_ci() -> None:
    """Which is one machine's, in a row: what passes there passes here, and the other way round."""
    steps = re.findall(r"^make .*$", CI, re.MULTILINE)
    names = [step.split()[1] for step in steps]
    assert names == ["locked", "test", "lint", "sanitize", "fuzz", "test-slow"]
    made = {
        command
        for name, job in JOBS.items()
        if name.startswith("ci.")
        for command in commands(job)
        if command.startswith("make ")
    }
    assert {*steps} == made


def test_every_supported_python_is_tested_and_packaged() -> None:
    assert JOBS["ci.yml:test"]["strategy"]["matrix"]["python"] == PYTHONS
    wheels = JOBS["ci.yml:wheels"]["strategy"]["matrix"]
    settings = PROJECT["tool"]["cibuildwheel"]
    assert [f"{python}-*" for python in wheels["python"]] == settings["build"].split()
    assert wheels["python"] == [f"cp{python.replace('.', '')}" for python in PYTHONS]
    libcs = {key.partition("-")[0] for key in settings["linux"] if key.endswith("-image")}
    assert set(wheels["libc"]) == libcs == {"manylinux", "musllinux"}
    assert len(wheels["machine"]) == len(settings["linux"]["archs"])
