"""Checks a release before its publication, for ``make release-check TAG=v1.2.3``."""

import re
import sys

import yaml

import skyfast
from tests.support.paths import DEPLOY, ROOT

NOTES = ROOT / "build" / "release-notes.md"


def versions() -> dict[str, str]:
    """Return the version in each file."""
    chart = yaml.safe_load((DEPLOY / "helm" / "skyfast" / "Chart.yaml").read_text())
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yml").read_text())
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    (image,) = kustomization["images"]
    return {
        "skyfast/__init__.py": skyfast.__version__,
        "Chart.yaml: version": chart["version"],
        "Chart.yaml: appVersion": chart["appVersion"],
        "kustomization.yml: newTag": image["newTag"],
        "Dockerfile: VERSION": "".join(re.findall(r"(?m)^ARG VERSION=(.*)$", dockerfile)),
    }


def notes(version: str) -> str:
    """Return the changelog's section about a version, or ""."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for section in re.split(r"(?m)^## ", changelog)[1:]:
        heading, _, text = section.partition("\n")
        if heading.partition(" - ")[0] == version:
            return text.strip() + "\n"
    return ""


def problems(tag: str) -> list[str]:
    """Return the reasons against a release with this tag."""
    version = tag.removeprefix("v")
    found = [
        f"{place} is {text}, not {version}" for place, text in versions().items() if text != version
    ]
    if not notes(version):
        found.append(f"CHANGELOG.md has no section {version}")
    return found


def main(arguments: list[str]) -> int:
    (tag,) = arguments
    if found := problems(tag):
        sys.stderr.write("".join(f"{problem}\n" for problem in found))
        return 1
    NOTES.parent.mkdir(exist_ok=True)
    NOTES.write_text(notes(tag.removeprefix("v")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
