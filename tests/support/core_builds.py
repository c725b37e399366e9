"""Makes test builds of the compiled core, and runs commands with one of these builds.

``setup.py`` defines the builds. ``python -m tests.support.core_builds NAME COMMAND …`` runs a
command with the build NAME, and preloads the libraries of the build's sanitizer. The command and
its child processes use the build if they call `use_chosen`, as pytest does in
``tests/conftest.py``.
"""

import fcntl
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from tests.support.paths import ROOT

NAMES = ("checked", "address", "thread", "coverage")
SOURCES = (
    ROOT / "setup.py",
    *(path for end in ("pyx", "pxd", "pxi") for path in (ROOT / "skyfast").rglob(f"*.{end}")),
)
CORE = "skyfast._table"
SPLITTER = "skyfast.skydive._json_split"
CHOSEN = "SKYFAST_CORE"
"""The environment variable with the path of a test build. Default: the normal build."""

# The sanitizers do not search for leaks, because Python does not free all memory at exit. Instead,
# tests count the memory blocks of the core to find leaks.
_ENVIRON: dict[str, dict[str, str]] = {
    "checked": {},
    "coverage": {},
    "address": {
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1:"
        "quarantine_size_mb=32:malloc_context_size=6",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    },
    "thread": {"TSAN_OPTIONS": "halt_on_error=1:abort_on_error=1:second_deadlock_stack=1"},
}
_RUN_TIMES = {
    "checked": (),
    "coverage": (),
    "address": ("libasan.so", "libubsan.so"),
    "thread": ("libtsan.so",),
}
_PREFIXES = {"checked": (), "coverage": (), "address": (), "thread": ("setarch", "-R")}


IS_SLOW = CHOSEN in os.environ
"""Test builds make tests much slower."""


def built(name: str) -> Path:
    """Compile a test build if a source has changed, and return the path of its core."""
    directory = ROOT / "build" / name
    path = directory / "skyfast" / f"_table{sysconfig.get_config_var('EXT_SUFFIX')}"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:  # several test processes may build at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(name, directory, path)


def _made(name: str, directory: Path, path: Path) -> Path:
    newest = max(source.stat().st_mtime for source in SOURCES)
    if path.exists() and path.stat().st_mtime > newest:
        return path
    arguments = ("--build-lib", str(directory), "--build-temp", str(directory / "temp"), "--force")
    done = subprocess.run(
        (sys.executable, "setup.py", "--quiet", "build_ext", *arguments),
        cwd=ROOT,
        env=os.environ | {"SKYFAST_BUILD": name},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the build {name!r} failed:\n{done.stdout}{done.stderr}")
    return path


def load(path: Path) -> ModuleType:
    """Return the compiled core at ``path`` without replacing ``skyfast._table``."""
    return _load(CORE, path)


def _load(name: str, path: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def use_chosen() -> None:
    """If ``SKYFAST_CORE`` is set, import the compiled modules of that test build."""
    path = os.environ.get(CHOSEN)
    if path and getattr(sys.modules.get(CORE), "__file__", None) != path:
        assert CORE not in sys.modules, "the core is imported already"
        core = Path(path)
        sys.modules[CORE] = load(core)
        sys.modules[SPLITTER] = _load(SPLITTER, core.parent / "skydive" / splitter_name())
        import skyfast
        import skyfast.skydive

        skyfast._table = sys.modules[CORE]  # type: ignore[attr-defined]
        skyfast.skydive._json_split = sys.modules[SPLITTER]  # type: ignore[attr-defined]


def splitter_name() -> str:
    return f"_json_split{sysconfig.get_config_var('EXT_SUFFIX')}"


def _run_time(library: str) -> str:
    path = subprocess.run(
        (os.environ.get("CC", "gcc"), f"-print-file-name={library}"),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if not Path(path).is_absolute():
        raise RuntimeError(f"{library} is not installed")
    return path


def main(name: str, *command: str) -> None:
    """Replace this process with ``command``, which then uses the test build ``name``."""
    environ = os.environ | _ENVIRON[name] | {CHOSEN: str(built(name))}
    if libraries := [_run_time(library) for library in _RUN_TIMES[name]]:
        environ["LD_PRELOAD"] = " ".join(libraries)
    arguments = (*_PREFIXES[name], *command)
    os.execvpe(arguments[0], arguments, environ)


if __name__ == "__main__":
    main(*sys.argv[1:])
