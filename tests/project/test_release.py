"""The release: versions, notes, workflows, and the script that builds the image."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import skyfast
from tests.support import release, tools
from tests.support.paths import DEPLOY, ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = [ROOT / ".ci" / "run", DEPLOY / "docker" / "build-release"]
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
DIGEST = f"sha256:{'0' * 64}"
IMAGE = ("registry.example/skyfast", "1.2.3", "0123abc", "https://git.example/skyfast")

DOCKER = f"""#!/bin/sh
case "$*" in
    *imagetools*) [ -z "$FAIL" ] && echo {DIGEST} ;;
    *) printf '%s\\n' "$@" ;;
esac
"""
"""A replacement for docker that prints its arguments instead of building an image."""


def test_all_files_have_the_same_version() -> None:
    assert set(release.versions().values()) == {skyfast.__version__}


def test_release_requires_notes_and_the_version_of_its_tag() -> None:
    assert release.problems(f"v{skyfast.__version__}") == []
    problems = release.problems("v9.9.9")
    assert "CHANGELOG.md has no section 9.9.9" in problems
    assert len(problems) == len(release.versions()) + 1


def test_notes_are_the_section_of_the_changelog() -> None:
    notes = release.notes("0.1.0")
    assert notes in CHANGELOG
    assert "\n## " not in notes


def test_newest_release_in_the_changelog_is_the_current_version() -> None:
    releases = re.findall(r"(?m)^## (\S+) - \d{4}-\d\d-\d\d$", CHANGELOG)
    assert releases[0] == skyfast.__version__


def test_versions_compared_on_the_migration_page_are_releases() -> None:
    page = (ROOT / "docs" / "migrating.md").read_text()
    (heading,) = re.findall(r"(?m)^## From skyfast .*\n(?s:.*?)^\| \| (.*) \|$", page)
    before, after = heading.split(" | ")
    assert f"\n## {before}.0 - " in CHANGELOG
    assert f"\n## {after}.0 - " in CHANGELOG


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_matches_its_schema(workflow: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema=vendor.github-workflows"]
    result = subprocess.run([*command, workflow], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@tools.needs("actionlint")
def test_workflows_have_no_errors() -> None:
    assert tools.output("actionlint", *WORKFLOWS) == ""


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_no_errors(script: Path) -> None:
    result = subprocess.run(["shellcheck", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout


def build_image(directory: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    docker = directory / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [DEPLOY / "docker" / "build-release", *IMAGE],
        env={"PATH": path} | environ,
        capture_output=True,
        text=True,
        timeout=20,
    )


def test_image_is_built_on_pinned_bases(tmp_path: Path) -> None:
    result = build_image(tmp_path)
    assert result.returncode == 0, result.stderr
    words = result.stdout.split("\n")
    arguments = dict(
        words[index + 1].split("=", 1) for index, word in enumerate(words) if word == "--build-arg"
    )
    known = set(re.findall(r"(?m)^ARG (\w+)", DOCKERFILE))
    assert arguments.keys() == known - {"PYTHON"}
    (python,) = re.findall(r"(?m)^ARG PYTHON=(.*)$", DOCKERFILE)
    assert arguments["BUILD_BASE"] == f"python:{python}@{DIGEST}"
    assert arguments["BASE"] == f"python:{python}-slim@{DIGEST}"
    image, version, commit, source = IMAGE
    assert (arguments["VERSION"], arguments["SKYFAST_COMMIT"]) == (version, commit)
    assert arguments["SOURCE"] == source
    assert words[words.index("--tag") + 1] == f"{image}:{version}"
    assert words[words.index("--platform") + 1] == "linux/amd64,linux/arm64"
    assert words[words.index("--provenance") + 1] == "mode=max"


def test_image_is_not_built_without_a_digest(tmp_path: Path) -> None:
    result = build_image(tmp_path, FAIL="1")
    assert result.returncode != 0
    assert result.stdout == ""


@pytest.mark.slow
@tools.needs("helm")
def test_chart_is_packaged_and_pushed() -> None:
    result = subprocess.run(
        [
            "make",
            "--no-print-directory",
            "--dry-run",
            "chart-push",
            "CHARTS=oci://registry.example/charts",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *_, package, push = result.stdout.splitlines()
    assert package.split()[1:3] == ["package", "deploy/helm/skyfast"]
    (archive,) = re.findall(r"push (\S+)", push)
    assert Path(archive).name == f"skyfast-{skyfast.__version__}.tgz"
    assert push.endswith('"oci://registry.example/charts"')
