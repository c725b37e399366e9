"""The Helm chart in ``deploy/helm``, compared with the manifests in ``deploy``."""

import json
import re
import shlex
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

import skyfast
from skyfast import cli
from skyfast.config import loader
from skyfast.flows import selection
from skyfast.web import config_file
from tests.support import tools
from tests.support.alerts import RULES
from tests.support.documentation import blocks
from tests.support.kubernetes import SERVICE_MONITOR, VERSIONS
from tests.support.paths import DEPLOY
from tests.support.prometheus import PROMTOOL, needs_promtool

CHART = DEPLOY / "helm" / "skyfast"
OPENSHIFT = CHART / "values-openshift.yaml"
KUBERNETES = DEPLOY / "kubernetes"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
HASH = "$2b$04$mIlnSfcSkY2lOMpwfcmuP.EFUAxUtPcAnLSWMMJXAf4g80v5YwCFm"

ALL: dict[str, Any] = {
    "image": {"digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": [{"name": "registry"}],
    "analyzers": ["analyzer-1:8082", "analyzer-2:8082"],
    "config": {
        "web": {"health_without_auth": True},
        "pipeline": {"store": {"prom_sky_con": {"max_connections": 3_000_000}}},
    },
    "credentials": {"secret": "skydive"},
    "web": {
        "config": {
            "tls_server_config": {
                "cert_file": "/etc/skyfast/tls/tls.crt",
                "key_file": "/etc/skyfast/tls/tls.key",
            },
            "basic_auth_users": {"prometheus": HASH},
        },
        "tlsSecret": "skyfast-tls",
    },
    "shards": 3,
    "extraEnv": [{"name": "SKYDIVE_LOGGING_FORMAT", "value": "json"}],
    "extraVolumes": [{"name": "names", "configMap": {"name": "names"}}],
    "extraVolumeMounts": [{"name": "names", "mountPath": "/etc/skyfast/names"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "net"},
    "priorityClassName": "high",
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "monitoring", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
        }
    ],
    "serviceAccount": {"create": True, "annotations": {"a": "b"}},
    "service": {"annotations": {"a": "b"}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "podDisruptionBudget": {"enabled": True},
}
"""Values that make the templates create all their objects and fields."""

pytestmark = pytest.mark.slow
needs_helm = tools.needs("helm")
Objects = dict[str, dict[str, Any]]


def values_file(directory: Path, values: dict[str, Any]) -> str:
    path = directory / "values.json"
    path.write_text(json.dumps(values))
    return f"--values={path}"


def render(*options: str, release: str = "skyfast") -> Objects:
    """Render the chart, and return its objects by kind."""
    text = tools.output("helm", "template", release, CHART, *options)
    documents = [document for document in yaml.safe_load_all(text) if document]
    objects = {document["kind"]: document for document in documents}
    assert len(objects) == len(documents)
    return objects


def configuration(objects: Objects) -> str:
    text: str = objects["ConfigMap"]["data"]["prom_sky_con.yml"]
    return text


def pod(objects: Objects) -> dict[str, Any]:
    workload = objects.get("Deployment") or objects["StatefulSet"]
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def container(objects: Objects) -> dict[str, Any]:
    (only,) = pod(objects)["containers"]
    assert isinstance(only, dict)
    return only


def test_chart_has_the_version_of_skyfast() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == skyfast.__version__


def test_schema_and_values_have_the_same_keys() -> None:
    def compare(values: dict[str, Any], schema: dict[str, Any]) -> None:
        properties = schema["properties"]
        assert properties.keys() - {"global"} == values.keys()
        for name, value in values.items():
            if "properties" in properties[name]:
                compare(value, properties[name])

    compare(VALUES, SCHEMA)


@needs_helm
def test_helm_lint_finds_no_problems(tmp_path: Path) -> None:
    for option in (f"--values={OPENSHIFT}", values_file(tmp_path, ALL)):
        tools.output("helm", "lint", "--strict", CHART, option)


@needs_helm
@pytest.mark.parametrize("version", VERSIONS)
def test_objects_match_their_schemas(version: str, tmp_path: Path) -> None:
    everything = render(values_file(tmp_path, ALL))
    assert everything.keys() == {
        *("ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "PrometheusRule", "Secret"),
        *("Service", "ServiceAccount", "ServiceMonitor", "StatefulSet"),
    }
    for objects in (everything, render(), render(f"--values={OPENSHIFT}")):
        for kind, document in objects.items():
            if kind == "ServiceMonitor":
                jsonschema.validate(document, SERVICE_MONITOR)
            elif kind != "PrometheusRule":
                kubernetes_validate.validate(document, version, strict=True)


# Comparison with the manifests


OF_HELM = ("app.kubernetes.io/instance", "app.kubernetes.io/managed-by")


def without_helm(value: Any) -> Any:
    """Return an object without the fields that only Helm or only kustomize sets."""
    if isinstance(value, list):
        return [without_helm(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {
        name: without_helm(item)
        for name, item in value.items()
        if name not in (*OF_HELM, "app.kubernetes.io/version", "helm.sh/chart", "imagePullPolicy")
        and not (name == "annotations" and item.keys() == {"checksum/config"})
        # The default of jobLabel is the name of the Service, skyfast.
        and name != "jobLabel"
        and (name, item) != ("type", "ClusterIP")  # the default
        # kustomize adds this label neither to pods nor to objects outside of kustomization.yml.
        and name != "app.kubernetes.io/part-of"
    }
    if kept.get("name", "").startswith("skyfast-"):
        kept["name"] = "skyfast"  # without the hash that kustomize adds to names of ConfigMaps
    return kept


def kustomized(directory: Path) -> Objects:
    text = tools.output("kustomize", "build", directory)
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def assert_equal_objects(helm: Objects, manifests: Objects) -> None:
    assert helm.keys() == manifests.keys()
    for kind in helm.keys() - {"ConfigMap"}:
        assert without_helm(helm[kind]) == without_helm(manifests[kind]), kind
    helm_file, file = configuration(helm), configuration(manifests)
    assert yaml.safe_load(helm_file) == yaml.safe_load(file)


@needs_helm
@tools.needs("kustomize")
def test_default_objects_equal_the_manifests() -> None:
    assert_equal_objects(render(), kustomized(KUBERNETES))


@needs_helm
@tools.needs("kustomize")
def test_objects_for_openshift_equal_the_overlay() -> None:
    objects = render(f"--values={OPENSHIFT}")
    del objects["ServiceMonitor"], objects["PrometheusRule"]
    assert_equal_objects(objects, kustomized(DEPLOY / "openshift"))


@needs_helm
def test_objects_of_shards_equal_the_manifests() -> None:
    objects = render("--set=shards=3,serviceMonitor.enabled=true")
    stateful_set = yaml.safe_load((KUBERNETES / "statefulset.yml").read_text())
    (spec,) = stateful_set["spec"]["template"]["spec"]["containers"]
    spec["image"] = container(objects)["image"]
    assert without_helm(objects["StatefulSet"]) == without_helm(stateful_set)
    monitor = yaml.safe_load((KUBERNETES / "servicemonitor-shards.yml").read_text())
    assert without_helm(objects["ServiceMonitor"]) == without_helm(monitor)


@needs_helm
def test_service_monitor_equals_the_manifest() -> None:
    objects = render("--set=serviceMonitor.enabled=true")
    monitor = yaml.safe_load((KUBERNETES / "servicemonitor.yml").read_text())
    assert without_helm(objects["ServiceMonitor"]) == without_helm(monitor)


# Values


@needs_helm
def test_helm_values_change_the_objects(tmp_path: Path) -> None:
    objects = render(values_file(tmp_path, ALL), release="prod")
    assert {document["metadata"]["name"] for document in objects.values()} == {
        "prod-skyfast",
        "prod-skyfast-web",
    }
    loaded = loader.parse(configuration(objects), {}, source="chart")
    assert [endpoint.host for endpoint in loaded.subscriber.endpoints] == [
        "analyzer-1",
        "analyzer-2",
    ]
    assert loaded.limits.max_connections == 3_000_000
    assert loaded.web.health_without_auth
    spec = pod(objects)
    assert spec["serviceAccountName"] == "prod-skyfast"
    for name in ("imagePullSecrets", "priorityClassName", "nodeSelector", "tolerations"):
        assert spec[name] == ALL[name]
    only = container(objects)
    assert only["image"] == f"{VALUES['image']['repository']}@{ALL['image']['digest']}"
    assert {env["valueFrom"]["secretKeyRef"]["name"] for env in only["env"][1:3]} == {"skydive"}
    assert only["env"][3:] == ALL["extraEnv"]
    shard, *arguments = only["args"]
    parsed = cli._parser().parse_args([shard.replace("$(SHARD)", "2"), *arguments])
    assert parsed.shard == selection.Shard(2, 3)
    (endpoint,) = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    for probe in ("livenessProbe", "readinessProbe"):
        assert only[probe]["httpGet"]["scheme"] == "HTTPS"
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert objects[kind]["metadata"]["labels"]["release"] == "prometheus"


@needs_helm
def test_web_configuration_is_mounted_at_the_path_in_the_option(tmp_path: Path) -> None:
    web = {"config": {"basic_auth_users": {"prometheus": HASH}}}
    config = {"web": {"health_without_auth": True}}
    objects = render(values_file(tmp_path, {"web": web, "config": config}))
    parsed = cli._parser().parse_args(container(objects)["args"])
    ((name, text),) = objects["Secret"]["stringData"].items()
    mounts = {mount["name"]: mount["mountPath"] for mount in container(objects)["volumeMounts"]}
    assert parsed.web_config_file == f"{mounts['web']}/{name}"
    (tmp_path / name).write_text(text)
    assert "prometheus" in text
    assert "1 user" in config_file.read(str(tmp_path / name)).summary()


@needs_helm
def test_changed_configuration_creates_a_new_pod() -> None:
    first, second = (
        render(*options)["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        for options in ((), ("--set=config.logging.level=DEBUG",))
    )
    assert first != second


@needs_helm
def test_analyzers_in_the_configuration_replace_the_default() -> None:
    urls = "config.pipeline.subscriber.urls={ws://a:8082/ws/subscriber/flow}"
    for option in ("analyzers={a}", "config.analyzers={a}", urls):
        loaded = loader.parse(configuration(render(f"--set={option}")), {}, source="chart")
        (endpoint,) = loaded.subscriber.endpoints
        assert (endpoint.host, endpoint.port) == ("a", 8082)


@needs_helm
def test_helm_values_for_openshift_remove_the_user(tmp_path: Path) -> None:
    user = {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
    fixed = values_file(tmp_path, {"podSecurityContext": user})
    assert pod(render(fixed))["securityContext"]["runAsUser"] == 65532
    context = pod(render(fixed, f"--values={OPENSHIFT}"))["securityContext"]
    assert not user.keys() & context.keys()
    assert context["runAsNonRoot"] is True


CONTRADICTIONS = {
    "podDisruptionBudget.enabled=true": "with one replica, a budget",
    "analyzers={a},config.analyzers={b}": "either in analyzers or in config",
    "config.pipeline.store.prom_sky_con.port=9200": "set service.port",
    "web.existingSecret=a": "requires web.scheme",
    "web.existingSecret=a,web.scheme=http,web.config.a=b": "either web.config or",
    "web.config.basic_auth_users.a=b": "config.web.health_without_auth",
    "web.config.tls_server_config.client_auth_type=RequireAndVerifyClientCert": "probes.enabled",
    "shards=0": "minimum",
    "analyser=a": "not allowed",
    "networkPolicy.dnsPorts={70000}": "dnsPorts",
}


@needs_helm
@pytest.mark.parametrize("values", CONTRADICTIONS)
def test_contradictory_helm_values_are_refused(values: str) -> None:
    result = tools.run("helm", "template", "skyfast", CHART, f"--set={values}")
    assert result.returncode != 0
    assert CONTRADICTIONS[values] in result.stderr


@needs_helm
@needs_promtool
def test_chart_has_the_alerting_rules(tmp_path: Path) -> None:
    spec = render("--set=prometheusRule.enabled=true")["PrometheusRule"]["spec"]
    assert spec == yaml.safe_load(RULES.read_text())
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(spec))
    assert PROMTOOL is not None
    subprocess.run([PROMTOOL, "check", "rules", path], check=True, capture_output=True, timeout=60)


@needs_helm
def test_package_contains_the_alerts(tmp_path: Path) -> None:
    """In the source tree, the file of alerts is a symbolic link."""
    tools.output("helm", "package", CHART, f"--destination={tmp_path}")
    with tarfile.open(tmp_path / f"skyfast-{skyfast.__version__}.tgz") as package:
        alerts = package.extractfile("skyfast/files/alerts.yml")
        assert alerts is not None
        assert alerts.read() == RULES.read_bytes()


@needs_helm
def test_documented_values_are_accepted(tmp_path: Path) -> None:
    page = DEPLOY.parent / "docs" / "deployment.md"
    (values,) = (text for _, text in blocks(page) if "# values of the chart\n" in text)
    objects = render(values_file(tmp_path, yaml.safe_load(values)))
    loader.parse(configuration(objects), {}, source="chart")
    for command in re.findall(r"helm install ((?:.*\\\n)*.*)\n", page.read_text()):
        release, chart, *options = shlex.split(command.replace("\\\n", " "))
        tools.output("helm", "template", release, DEPLOY.parent / chart, *options)
