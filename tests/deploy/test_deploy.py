"""Checks that the files in ``deploy/`` work, and that the packages are complete.

The tests do not need a running systemd, a container engine or a cluster.
"""

import ctypes
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.utils import canonicalize_name

import skyfast
from skyfast import cli
from skyfast.config import loader, schema
from skyfast.flows import selection
from tests.support import core_builds
from tests.support.kubernetes import SERVICE_MONITOR, VERSIONS
from tests.support.paths import DEPLOY, ROOT
from tests.support.process import START_S, STOP_S, demo

UNIT = DEPLOY / "systemd" / "skyfast.service"
SOCKET_UNIT = UNIT.with_suffix(".socket")
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
KUBERNETES = DEPLOY / "kubernetes"
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text()
INSTRUCTIONS = (ROOT / "docs" / "deployment.md").read_text()
RECORDINGS = (ROOT / "docs" / "recordings.md").read_text()
DROP_IN = re.compile(r"(?s)```ini\n(.*?)```")

EXPOSURE = 15
"""Maximum exposure in `systemd-analyze security`, from 0 to 100."""

BUILD_S = 300.0
SUFFIXES = {
    *(".css", ".html", ".js", ".json", ".py", ".pyi", ".typed", ".so", ".gz", ".yml"),
    *(".bash", ".fish", ".zsh"),
}
"""Suffixes of installed files."""

SOURCE = "https://git.example/skyfast"
BASE = f"python:3.13-slim@sha256:{'0' * 64}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PR_SET_MDWE = 65
EMPTY_PROCESS_MIB = 45
"""Memory of a process without connections, as measured by `make bench BENCH=memory`."""

PORT = "SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PORT"


def without_variables() -> dict[str, str]:
    """Return the environment without the variables of skyfast and Python."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SKYDIVE_", "PYTHON", "VIRTUAL_ENV"))
    }


# systemd


def unit_setting(name: str) -> list[str]:
    return re.findall(rf"(?m)^{name}=(.*)$", UNIT.read_text())


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Return the unit with the path of a program that exists on this machine."""
    path = tmp_path / UNIT.name
    path.write_text(with_existing_program(UNIT.read_text()))
    shutil.copy(SOCKET_UNIT, tmp_path)
    return path


def with_existing_program(text: str) -> str:
    (command,) = unit_setting("ExecStart")
    return text.replace(command.split()[0], sys.executable)


def analyze(*arguments: str | Path) -> str:
    result = subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@needs_systemd
def test_systemd_accepts_the_unit(unit: Path) -> None:
    assert analyze("verify", "--man=no", unit) == ""


@needs_systemd
def test_systemd_accepts_the_documented_drop_ins(unit: Path) -> None:
    directory = unit.parent / f"{unit.name}.d"
    directory.mkdir()
    drop_ins = [*DROP_IN.findall(INSTRUCTIONS), *DROP_IN.findall(RECORDINGS)]
    assert len(drop_ins) == 3
    for drop_in in drop_ins:
        (directory / "override.conf").write_text(with_existing_program(drop_in))
        assert analyze("verify", "--man=no", unit) == ""


def test_recording_drop_in_adds_only_the_recording(tmp_path: Path) -> None:
    (drop_in,) = DROP_IN.findall(RECORDINGS)
    (directory,) = re.findall(r"(?m)^StateDirectory=(\w+)$", drop_in)
    (command,) = re.findall(r"(?m)^ExecStart=(.+)$", drop_in)
    (program, *arguments) = unit_setting("ExecStart")[0].split()
    echo_program = tmp_path / "program"
    echo_program.write_text('#!/bin/sh\necho "$@"\n')
    echo_program.chmod(0o700)
    # systemd expands commands in this way: see systemd.service(5).
    shell = shlex.split(
        command.replace("$$", "$").replace("%%", "%").replace(program, str(echo_program))
    )
    result = subprocess.run(shell, capture_output=True, text=True, timeout=20, check=True)
    option, path, *others = result.stdout.split()
    assert (option, others) == ("--record", arguments)
    assert re.fullmatch(rf"/var/lib/{directory}/\d{{10}}\.jsonl\.gz", path)


def test_configuration_drop_in_sets_variables_that_skyfast_reads() -> None:
    drop_in, _ = DROP_IN.findall(INSTRUCTIONS)
    variables = re.findall(r"(?m)^Environment=(SKYDIVE_\w+)=", drop_in)
    assert variables
    assert set(variables) <= {key.env for key in schema.SCHEMA.values()}


def test_socket_drop_in_adds_only_the_socket() -> None:
    _, drop_in = DROP_IN.findall(INSTRUCTIONS)
    (command,) = re.findall(r"(?m)^ExecStart=(.+)$", drop_in)
    (program, path) = unit_setting("ExecStart")[0].split()
    assert command.split() == [program, "--web.systemd-socket", path]
    assert f"Requires={SOCKET_UNIT.name}\n" in drop_in
    assert f"ListenStream={schema.PORT.default}\n" in SOCKET_UNIT.read_text()


@needs_systemd
def test_systemd_accepts_the_socket_unit(unit: Path) -> None:
    assert analyze("verify", "--man=no", unit.with_suffix(".socket"), unit) == ""


@pytest.mark.parametrize(
    ("text", "problems"), [("host_id: a\n", 0), ("pipeline: {a: 1, b: 2}\n", 2)]
)
def test_reload_of_the_unit_starts_with_a_check(tmp_path: Path, text: str, problems: int) -> None:
    first, second = unit_setting("ExecReload")
    assert second == "/bin/kill -HUP $MAINPID"
    (program, path) = unit_setting("ExecStart")[0].split()
    file = tmp_path / "a.yml"
    file.write_text(text)
    command = first.replace(program, f"{sys.executable} -m skyfast").replace(path, str(file))
    result = subprocess.run(
        shlex.split(command), capture_output=True, text=True, timeout=20, cwd=ROOT, check=False
    )
    assert result.returncode == (2 if problems else 0)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == problems


def test_unit_matches_the_documented_installation() -> None:
    (command,) = unit_setting("ExecStart")
    (secrets,) = unit_setting("EnvironmentFile")
    assert f"    {command}\n" in INSTRUCTIONS
    assert f"install -m 600 /dev/null {secrets.removeprefix('-')}\n" in INSTRUCTIONS


@needs_systemd
def test_unit_is_hardened(unit: Path) -> None:
    assert "exposure" in analyze("security", "--offline=true", f"--threshold={EXPOSURE}", unit)


def test_skyfast_runs_with_memory_deny_write_execute() -> None:
    assert unit_setting("MemoryDenyWriteExecute") == ["yes"]
    libc = ctypes.CDLL(None, use_errno=True)

    def deny() -> None:
        if libc.prctl(PR_SET_MDWE, 1, 0, 0, 0):
            os._exit(77)  # no PR_SET_MDWE before Linux 6.3

    with subprocess.Popen(
        [sys.executable, "-m", "skyfast", "--demo"],
        stderr=subprocess.PIPE,
        env={**without_variables(), PORT: "0"},
        cwd=ROOT,
        text=True,
        preexec_fn=deny,
    ) as process:
        try:
            assert process.stderr is not None
            url = ""
            for line in process.stderr:
                if match := re.search(r"listening on \S+ \((http://\S+)\)", line):
                    url = f"{match[1]}metrics"
                    break
            if not url and process.wait(STOP_S) == 77:
                pytest.skip("the kernel has no PR_SET_MDWE")
            request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
            with urllib.request.urlopen(request, timeout=START_S) as page:
                assert page.status == 200
                page.read()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0


# Image


class Build:
    """Runs the steps of a Dockerfile, with all absolute paths moved below ``root``."""

    def __init__(self, root: Path, **arguments: str) -> None:
        self.root = root
        self.arguments = arguments
        self.known: dict[str, str] = {}
        self.stage = -1
        self.settings: dict[str, Any] = {"LABEL": {}, "ENV": {}}
        self.cwd = root
        # The base image is Python without packages.
        subprocess.run([sys.executable, "-m", "venv", root / "base"], check=True, timeout=BUILD_S)
        self.environ = {
            **{name: text for name, text in os.environ.items() if name.startswith("PIP_")},
            "PATH": f"{root}/base/bin:/usr/bin:/bin",
            "HOME": str(root),
            "SKYFAST_CFLAGS": "-O0",  # compiles faster
        }

    def here(self, text: str) -> str:
        """Return ``text`` with absolute paths moved below ``root``."""
        return re.sub(r"(?<![^\s=:'\"\[])/(?=\w)", f"{self.root}/", text)

    def run(self, dockerfile: str) -> None:
        uncommented = re.sub(r"(?m)^#.*\n", "", dockerfile)
        for line in uncommented.replace("\\\n", " ").splitlines():
            if line.strip():
                name, _, rest = line.partition(" ")
                getattr(self, f"do_{name.lower()}")(rest.strip())

    def do_arg(self, rest: str) -> None:
        name, _, default = rest.partition("=")
        text = self.arguments.get(name, self.expand(default.strip('"')))
        self.known[name] = text or self.known.get(name, "")
        if self.stage >= 0:
            self.environ[name] = self.known[name]

    def expand(self, text: str) -> str:
        return re.sub(r"\$\{(\w+)\}", lambda match: self.known[match[1]], text)

    def do_from(self, rest: str) -> None:
        base, *_ = self.expand(rest).split()
        self.settings["FROM"] = base
        self.stage += 1

    def do_workdir(self, rest: str) -> None:
        self.cwd = Path(self.here(rest))
        self.cwd.mkdir(parents=True)

    def do_copy(self, rest: str) -> None:
        if rest == ". .":
            copy_context(self.cwd)
            return
        origin, source, target = rest.split()
        # The scripts of the virtual environment contain its path.
        assert (origin, source) == ("--from=build", target)
        assert Path(self.here(source)).is_dir()

    def do_run(self, rest: str) -> None:
        assert self.stage == 0, "the last stage runs a command"
        subprocess.run(
            self.here(rest), shell=True, check=True, cwd=self.cwd, env=self.environ, timeout=BUILD_S
        )

    def do_label(self, rest: str) -> None:
        items = shlex.split(self.expand(rest))
        self.settings["LABEL"] |= dict(item.split("=", 1) for item in items)

    def do_env(self, rest: str) -> None:
        self.settings["ENV"] |= dict(item.split("=", 1) for item in shlex.split(rest))

    def do_healthcheck(self, rest: str) -> None:
        _, _, command = rest.partition("CMD ")
        self.settings["HEALTHCHECK"] = json.loads(command)

    def do_entrypoint(self, rest: str) -> None:
        self.settings["ENTRYPOINT"] = json.loads(rest)

    def do_cmd(self, rest: str) -> None:
        self.settings["CMD"] = json.loads(rest)

    def do_user(self, rest: str) -> None:
        self.settings["USER"] = rest

    def do_expose(self, rest: str) -> None:
        self.settings["EXPOSE"] = int(rest)

    def do_stopsignal(self, rest: str) -> None:
        self.settings["STOPSIGNAL"] = signal.Signals[rest]


def copy_context(target: Path) -> None:
    """Copy the files that ``.dockerignore`` allows: the last matching pattern decides."""
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"
    ]

    def ignored(path: str) -> bool:
        parents = [str(parent) for parent in (Path(path), *Path(path).parents)][:-1]
        is_ignored = False
        for pattern in patterns:
            glob = pattern.removeprefix("!").removeprefix("**/")
            deep = "**/" in pattern
            if any(
                fnmatch.fnmatchcase(Path(parent).name if deep else parent, glob)
                and (deep or parent.count("/") == glob.count("/"))
                for parent in parents
            ):
                is_ignored = pattern[0] != "!"
        return is_ignored

    top = [path.name for path in ROOT.iterdir() if not ignored(path.name)]
    files = [
        path.relative_to(ROOT)
        for name in top
        for path in ((ROOT / name).rglob("*") if (ROOT / name).is_dir() else [ROOT / name])
        if path.is_file()
    ]
    for file in files:
        if not ignored(str(file)):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, target / file)


@pytest.fixture(scope="module")
def image() -> Iterator[Build]:
    # This directory must be readable for the user of the image, unlike those of pytest's fixtures.
    with tempfile.TemporaryDirectory(prefix="skyfast-image-") as directory:
        Path(directory).chmod(0o755)
        build = Build(Path(directory), SKYFAST_COMMIT=COMMIT, SOURCE=SOURCE, BASE=BASE)
        build.run(DOCKERFILE.read_text())
        for intermediate in ("src", "wheels"):
            shutil.rmtree(build.root / intermediate)
        yield build


def in_image(
    image: Build, command: list[str], *, run_as: str = "", **environ: str
) -> subprocess.Popen[str]:
    """Start a command as in a container.

    ``run_as`` is ``UID:GID``, by default those of the image. If this process cannot switch users,
    the command runs as the current user.
    """
    uid, gid = map(int, (run_as or image.settings["USER"]).split(":"))
    python = Path(sys.base_prefix).resolve()
    everyone_can_enter = all(path.stat().st_mode & 1 for path in (python, *python.parents))
    user: dict[str, Any] = {}
    if os.geteuid() == 0 and everyone_can_enter:
        user = {"user": uid, "group": gid, "extra_groups": []}
    path = image.here(image.settings["ENV"]["PATH"]).replace("$PATH", "/usr/bin:/bin")
    program = shutil.which(command[0], path=path)
    assert program is not None
    return subprocess.Popen(
        [program, *command[1:]],
        env={**image.settings["ENV"], "PATH": path, **environ},
        cwd="/",
        stderr=subprocess.PIPE,
        text=True,
        **user,
    )


@pytest.mark.slow
@pytest.mark.xdist_group("image")
def test_image_serves_pages_is_healthy_and_stops(image: Build) -> None:
    (file,) = image.settings["CMD"]
    path = Path(image.here(file))
    path.parent.mkdir(parents=True)
    path.write_text((DEPLOY / "prom_sky_con.yml").read_text())
    path.chmod(0o644)
    command = [*image.settings["ENTRYPOINT"], str(path)]
    with in_image(image, command, **{PORT: "0"}) as process:
        try:
            assert process.stderr is not None
            port = next(
                match[1]
                for line in process.stderr
                if (match := re.search(r"listening on \S+ \(http://127\.0\.0\.1:(\d+)/\)", line))
            )
            assert health(image, port) == 0
        finally:
            process.send_signal(image.settings["STOPSIGNAL"])
        assert process.wait(STOP_S) == 0
    assert health(image, port) != 0


def health(image: Build, port: str) -> int:
    """Return the exit code of the health check for a port."""
    served = f" {image.settings['EXPOSE']},"
    check = [word.replace(served, f" {port},") for word in image.settings["HEALTHCHECK"]]
    assert check != image.settings["HEALTHCHECK"]
    with in_image(image, check) as process:
        process.communicate(timeout=STOP_S)
    return process.returncode


@pytest.mark.slow
@pytest.mark.xdist_group("image")
def test_image_runs_as_a_user_that_openshift_assigns(image: Build) -> None:
    with in_image(image, ["skyfast", "--demo", "--check"], run_as="1000660000:0") as process:
        _, errors = process.communicate(timeout=START_S)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.slow
@pytest.mark.xdist_group("image")
def test_image_contains_only_the_package_and_its_data(image: Build) -> None:
    (packages,) = (image.root / "opt" / "skyfast" / "lib").glob("python*/site-packages")
    files = [path for path in (packages / "skyfast").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} - {".pyc"} == SUFFIXES
    modules = {path.name for path in (ROOT / "skyfast").rglob("*.py")}
    assert {path.name for path in files} >= modules | {"py.typed", "_table.pyi"}
    data = {path.name for path in (ROOT / "skyfast" / "data").iterdir()}
    assert {path.name for path in files if path.parent.name == "data"} == data | {"build.json"}
    assert not (packages / "tests").exists()
    assert not (packages / "pip").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("image")
def test_image_contains_the_locked_versions(image: Build) -> None:
    (packages,) = (image.root / "opt" / "skyfast" / "lib").glob("python*/site-packages")
    lock = (ROOT / "requirements-runtime.lock").read_text()
    locked = {
        canonicalize_name(name): version
        for name, version in re.findall(r"(?m)^([\w.-]+)==([^ ]+)", lock)
    }
    installed = {
        canonicalize_name(part.name): part.version
        for part in metadata.distributions(path=[str(packages)])
    }
    assert installed.pop("skyfast") == skyfast.__version__
    assert installed
    assert installed.items() <= locked.items()


@pytest.mark.slow
@pytest.mark.xdist_group("image")
def test_image_contains_the_commit_of_its_source(image: Build) -> None:
    (packages,) = (image.root / "opt" / "skyfast" / "lib").glob("python*/site-packages")
    build = json.loads((packages / "skyfast" / "data" / "build.json").read_text())
    assert build["commit"] == COMMIT
    assert build["built"]


@pytest.mark.slow
@pytest.mark.xdist_group("image")
def test_image_has_metadata(image: Build) -> None:
    assert image.settings["EXPOSE"] == loader.parse("", {}, source="none").web.port
    labels = image.settings["LABEL"]
    assert {
        name.removeprefix("org.opencontainers.image."): text for name, text in labels.items()
    } == {
        "title": "skyfast",
        "description": metadata.metadata("skyfast")["Summary"],
        "licenses": "Apache-2.0",
        "version": skyfast.__version__,
        "revision": COMMIT,
        "source": SOURCE,
        "base.name": BASE,
    }
    assert image.settings["FROM"] == BASE
    assert int(image.settings["USER"].split(":")[0]) > 0


# Packages


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    excluded = shutil.ignore_patterns(
        *(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "results"),
        *("*.so", "*.c", "*.egg-info", "_table.html"),
    )
    shutil.copytree(ROOT, directory / "tree", ignore=excluded)
    return hook("build_sdist", directory / "tree", directory, SKYFAST_COMMIT=COMMIT)


def hook(name: str, tree: Path, target: Path, **environ: str) -> Path:
    """Build a package with the build backend of ``tree``, and return its path."""
    program = f"from setuptools import build_meta; build_meta.{name}({str(target)!r})"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=tree,
        env={**without_variables(), "SKYFAST_CFLAGS": "-O0"} | environ,
        capture_output=True,
        text=True,
        timeout=BUILD_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (package,) = [path for path in target.iterdir() if path.suffix in {".gz", ".whl"}]
    return package


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    (tree,) = directory.iterdir()
    (directory / "built").mkdir()
    return hook("build_wheel", tree, directory / "built", SOURCE_DATE_EPOCH="1800000000")


@pytest.mark.slow
@pytest.mark.xdist_group("sdist")
def test_wheel_contains_only_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    package_files = [name for name in names if name.startswith("skyfast/")]
    assert {Path(name).suffix for name in package_files} == SUFFIXES
    assert all(name.startswith("skyfast-") for name in set(names) - set(package_files))
    assert any(name.endswith("/licenses/LICENSE") for name in names)


IMPORT_ALL = """
import importlib, pkgutil, skyfast
for module in pkgutil.walk_packages(skyfast.__path__, "skyfast."):
    if module.name != "skyfast.__main__":  # importing it runs the program
        importlib.import_module(module.name)
    print(module.name)
"""


@pytest.mark.slow
@pytest.mark.xdist_group("sdist")
def test_wheel_runs_in_a_separate_environment(wheel: Path, tmp_path: Path) -> None:
    """The environment contains only the wheel and its dependencies, and is outside the checkout."""
    versions = tmp_path / "versions.txt"
    installed = metadata.distributions()
    versions.write_text(
        "".join(f"{part.name}=={part.version}\n" for part in installed if part.name != "skyfast")
    )
    python = tmp_path / "venv" / "bin" / "python"

    def run(*command: str | Path) -> str:
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=without_variables(),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=BUILD_S,
        ).stdout

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--only-binary", ":all:", "--constraint", versions, wheel)
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "skyfast").rglob("*.py")]
    modules = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    compiled = {"skyfast._table", "skyfast.skydive._json_split"}
    assert {"skyfast", *run(python, "-c", IMPORT_ALL).split()} == modules | compiled
    assert run(python.with_name("skyfast"), "--demo", "--check").startswith("# Replaying")
    build = json.loads(run(python.with_name("skyfast"), "--version", "--json"))
    assert (build["commit"], build["built"]) == (COMMIT, "2027-01-15T08:00:00Z")


@pytest.mark.slow
@pytest.mark.xdist_group("sdist")
def test_sdist_contains_all_sources(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {
        *(str(path.relative_to(ROOT)) for path in core_builds.SOURCES),
        *("Makefile", "CHANGELOG.md", ".dockerignore", "docs/deployment.md"),
        *("tests/deploy/test_deploy.py", "benchmarks/__main__.py"),
        *(str(path.relative_to(ROOT)) for path in DEPLOY.rglob("*") if path.is_file()),
    }
    assert not [name for name in names if name.endswith((".so", ".c", ".pyc"))]


# Kubernetes


def manifest(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((KUBERNETES / name).read_text())
    return document


MANIFESTS = [*manifest("kustomization.yml")["resources"], "statefulset.yml"]
MONITORS = ("servicemonitor.yml", "servicemonitor-shards.yml")


def pod_and_container() -> tuple[dict[str, Any], dict[str, Any]]:
    pod = manifest("deployment.yml")["spec"]["template"]["spec"]
    (spec,) = pod["containers"]
    return pod, spec


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def test_every_manifest_is_applied() -> None:
    others = {"kustomization.yml", "prom_sky_con.yml", *MONITORS}
    assert {path.name for path in KUBERNETES.iterdir()} == {*MANIFESTS, *others}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_matches_its_schema(name: str, version: str) -> None:
    kubernetes_validate.validate(manifest(name), version, strict=True)


def test_schemas_reject_an_invalid_manifest() -> None:
    invalid = manifest("deployment.yml")
    invalid["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessprobe"):
        kubernetes_validate.validate(invalid, VERSIONS[0], strict=True)


@pytest.mark.parametrize("name", MONITORS)
def test_service_monitor_matches_its_schema(name: str) -> None:
    monitor = manifest(name)
    jsonschema.validate(monitor, SERVICE_MONITOR)
    for endpoint in monitor["spec"]["endpoints"]:
        # Prometheus rejects timeouts longer than the interval.
        assert int(endpoint["scrapeTimeout"][:-1]) <= int(endpoint["interval"][:-1])


def test_manifests_refer_to_each_other() -> None:
    labels = manifest("deployment.yml")["spec"]["template"]["metadata"]["labels"]
    service = manifest("service.yml")
    monitor = manifest("servicemonitor.yml")["spec"]
    policy = manifest("networkpolicy.yml")["spec"]
    pod, spec = pod_and_container()
    assert selects(manifest("deployment.yml")["spec"]["selector"]["matchLabels"], labels)
    assert selects(service["spec"]["selector"], labels)
    assert selects(policy["podSelector"]["matchLabels"], labels)
    assert selects(monitor["selector"]["matchLabels"], service["metadata"]["labels"])
    (port,) = spec["ports"]
    assert port["containerPort"] == loader.parse("", {}, source="none").web.port
    (served,) = service["spec"]["ports"]
    assert (served["targetPort"], served["port"]) == (port["name"], port["containerPort"])
    assert [endpoint["port"] for endpoint in monitor["endpoints"]] == [served["name"]]
    assert policy["ingress"][0]["ports"][0]["port"] == port["name"]
    (generated,) = manifest("kustomization.yml")["configMapGenerator"]
    (volume,) = pod["volumes"]
    (mount,) = spec["volumeMounts"]
    assert (volume["configMap"]["name"], volume["name"]) == (generated["name"], mount["name"])
    assert spec["args"] == [f"{mount['mountPath']}/{name}" for name in generated["files"]]
    (image,) = manifest("kustomization.yml")["images"]
    assert image["name"] == spec["image"]


def test_shards_run_the_same_pod_as_the_deployment() -> None:
    single, shards = manifest("deployment.yml"), manifest("statefulset.yml")
    pod, spec = pod_and_container()
    template = shards["spec"]["template"]
    (shard,) = template["spec"]["containers"]
    option, *arguments = shard["args"]
    number, *environ = shard["env"]
    assert (arguments, environ) == (spec["args"], spec["env"])
    assert number["name"] == "SHARD"
    assert "pod-index" in number["valueFrom"]["fieldRef"]["fieldPath"]
    for index in range(shards["spec"]["replicas"]):
        parsed = cli._parser().parse_args([option.replace("$(SHARD)", str(index)), *arguments])
        assert parsed.shard == selection.Shard(index, shards["spec"]["replicas"])
    assert {**template["spec"], "containers": []} == {**pod, "containers": []}
    assert {**shard, "args": [], "env": []} == {**spec, "args": [], "env": []}
    assert template["metadata"] == single["spec"]["template"]["metadata"]
    assert selects(shards["spec"]["selector"]["matchLabels"], template["metadata"]["labels"])
    assert shards["spec"]["serviceName"] == manifest("service.yml")["metadata"]["name"]


def test_shards_are_scraped_with_their_own_instance_labels() -> None:
    single, shards = map(manifest, MONITORS)
    (single_endpoint,), (shard_endpoint,) = (
        monitor["spec"]["endpoints"] for monitor in (single, shards)
    )
    assert shard_endpoint["relabelings"][0]["sourceLabels"] == ["__meta_kubernetes_pod_name"]
    assert shard_endpoint["relabelings"][0]["targetLabel"] == "instance"
    assert shard_endpoint["relabelings"][1:] == single_endpoint["relabelings"][1:]
    assert {**shard_endpoint, "relabelings": []} == {**single_endpoint, "relabelings": []}
    assert shards["metadata"] == single["metadata"]


def test_pod_meets_the_restricted_profile() -> None:
    pod, spec = pod_and_container()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["securityContext"]["allowPrivilegeEscalation"] is False
    assert spec["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert all(not pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    assert all("hostPath" not in volume for volume in pod["volumes"])
    assert "hostPort" not in spec["ports"][0]
    # The image sets the user: the profile restricted-v2 of OpenShift rejects pods that set one. The
    # user is numeric, so that Kubernetes can check that it is not root.
    (user,) = re.findall(r"(?m)^USER (\d+):(\d+)$", DOCKERFILE.read_text())
    assert int(user[0]) > 0
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & pod["securityContext"].keys()


def test_network_policy_allows_dns_on_ports_53_and_5353() -> None:
    (rule,) = manifest("networkpolicy.yml")["spec"]["egress"]
    ports = {(port["protocol"], port["port"]) for port in rule["ports"]}
    assert ports >= {(protocol, port) for protocol in ("UDP", "TCP") for port in (53, 5353)}


def test_configuration_of_the_pod_is_valid() -> None:
    _, spec = pod_and_container()
    environ = {variable["name"]: "given" for variable in spec["env"]}
    loaded = loader.load(str(KUBERNETES / "prom_sky_con.yml"), environ)
    assert (loaded.credentials.username, loaded.credentials.password) == ("given", "given")
    assert not [note for note in loaded.notes if note.level >= 30]
    egress = [port["port"] for port in manifest("networkpolicy.yml")["spec"]["egress"][0]["ports"]]
    for endpoint in loaded.subscriber.endpoints:
        assert endpoint.port in egress


async def test_paths_of_probes_and_prometheus_are_served() -> None:
    _, spec = pod_and_container()
    paths = [spec[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")]
    paths += [endpoint["path"] for endpoint in manifest("servicemonitor.yml")["spec"]["endpoints"]]
    assert paths == ["/-/healthy", "/-/ready", "/metrics"]
    async with demo() as skyfast:
        await skyfast.until(lambda metrics: metrics["skyfast_connections"] > 0)
        for path in paths:
            assert await skyfast.get(path)


def figure(pattern: str) -> float:
    (value,) = re.findall(pattern, BENCHMARKS)
    return float(value.replace(",", ""))


def test_resources_follow_from_the_benchmarks() -> None:
    connection = figure(r"\| skyfast, 1,000,000 connections \| ([\d,.]+) bytes")
    peaks = r"additional memory during a scrape, \w+ \| ([\d.]+) MiB"
    page = max(map(float, re.findall(peaks, BENCHMARKS)))
    limits = loader.parse("", {}, source="none").limits
    web = loader.parse("", {}, source="none").web
    message = loader.parse("", {}, source="none").subscriber.max_message_bytes / 2**20
    peak = EMPTY_PROCESS_MIB + limits.max_flows * connection / 2**20 + web.max_scrapes * page
    _, spec = pod_and_container()
    limit = spec["resources"]["limits"]["memory"]
    assert limit == "1Gi"
    assert peak + 2 * message <= 1024 <= 1.5 * peak
    assert unit_setting("MemoryMax") == [limit.removesuffix("i")]
    typical = EMPTY_PROCESS_MIB + 100_000 * connection / 2**20 + page
    request = int(spec["resources"]["requests"]["memory"].removesuffix("Mi"))
    assert 1.3 * typical <= request <= 2 * typical
