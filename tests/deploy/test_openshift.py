"""The overlay for OpenShift in ``deploy/openshift``, rendered by kustomize."""

import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support import tools
from tests.support.kubernetes import VERSIONS
from tests.support.paths import DEPLOY

pytestmark = [pytest.mark.slow, tools.needs("kustomize")]

USER = {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}


def build(directory: Path) -> dict[str, dict[str, Any]]:
    text = tools.output("kustomize", "build", directory)
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_match_their_schemas(version: str) -> None:
    objects = build(DEPLOY / "openshift")
    assert objects.keys() == build(DEPLOY / "kubernetes").keys()
    for document in objects.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_prometheus_of_user_workload_monitoring_may_scrape() -> None:
    policy = build(DEPLOY / "openshift")["NetworkPolicy"]["spec"]
    base = build(DEPLOY / "kubernetes")["NetworkPolicy"]["spec"]
    (rule,) = policy["ingress"]
    assert rule["from"] == [
        {
            "namespaceSelector": {
                "matchLabels": {"kubernetes.io/metadata.name": "openshift-user-workload-monitoring"}
            }
        }
    ]
    assert policy["egress"] == base["egress"]


@pytest.mark.parametrize("name", ["deployment.yml", "statefulset.yml"])
def test_overlay_removes_the_user_of_the_pod(name: str, tmp_path: Path) -> None:
    """The profile restricted-v2 assigns a user to each pod, and rejects pods that set another."""
    for directory in ("kubernetes", "openshift"):
        shutil.copytree(DEPLOY / directory, tmp_path / directory)
    manifest = tmp_path / "kubernetes" / name
    workload = yaml.safe_load(manifest.read_text())
    workload["spec"]["template"]["spec"]["securityContext"] |= USER
    manifest.write_text(yaml.safe_dump(workload))
    base = tmp_path / "kubernetes" / "kustomization.yml"
    base.write_text(base.read_text().replace("deployment.yml", name))
    kind = workload["kind"]
    contexts = [
        build(tmp_path / directory)[kind]["spec"]["template"]["spec"]["securityContext"]
        for directory in ("kubernetes", "openshift")
    ]
    assert contexts[0].items() >= USER.items()
    assert not USER.keys() & contexts[1].keys()
    assert contexts[1]["runAsNonRoot"] is True
