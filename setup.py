"""Builds the compiled modules. Everything else about the package is in pyproject.toml.

Environment variables:

* ``SKYFAST_BUILD`` selects a build for tests: see ``tests/support/core_builds.py``. The builds
  `checked`, `address` and `thread` contain ``skyfast/_checked.pyx`` instead of
  ``skyfast/_table.pyx``;
* ``SKYFAST_CFLAGS`` and ``SKYFAST_LDFLAGS``: additional flags;
* ``SKYFAST_COMMIT``: the commit in the build info, by default that of the checkout;
* ``SOURCE_DATE_EPOCH``: the time in the build info, for reproducible builds.
"""

import json
import os
import platform
import subprocess
import time
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

# The extensions process untrusted input. tests/table/test_hardening.py checks these options.
HARDENED = [
    "-fstack-protector-strong",
    "-fstack-clash-protection",
    "-U_FORTIFY_SOURCE",  # removes the definition that a distribution adds
    # With _FORTIFY_SOURCE=3, rendering is 30 % slower, because each copy is checked at run time.
    "-D_FORTIFY_SOURCE=2",
]
if platform.machine() in {"x86_64", "AMD64", "i686"}:
    HARDENED.append("-fcf-protection=full")

RELEASE = ["-O3", "-fvisibility=hidden", "-fno-plt", *HARDENED]
LINK = ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack"]

# With -fwrapv, one of Python's flags, the sanitizers do not report signed overflow. With
# _FORTIFY_SOURCE, they do not check calls of fortified functions.
DEBUG = ["-g", "-O1", "-fno-omit-frame-pointer", "-fno-wrapv", "-U_FORTIFY_SOURCE"]
SANITIZERS = {
    "checked": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}

# Several threads run the core, so counters must be atomic.
COUNTED = ["-O0", "--coverage", "-fprofile-update=atomic"]

TABLE, CHECKED_TABLE = "skyfast/_table.pyx", "skyfast/_checked.pyx"
build = os.environ.get("SKYFAST_BUILD", "")
if build == "coverage":
    table, c_files = TABLE, f"build/{build}"
    compile_args, link_args = COUNTED, ["--coverage"]
elif build:
    table, c_files = CHECKED_TABLE, f"build/{build}"
    compile_args, link_args = DEBUG + SANITIZERS[build], SANITIZERS[build]
else:
    table, c_files = TABLE, None
    compile_args, link_args = RELEASE, LINK

SOURCES = {
    "skyfast._table": table,
    "skyfast.skydive._json_split": "skyfast/skydive/_json_split.pyx",
}

ROOT = Path(__file__).parent
BUILD_INFO = Path("skyfast/data/build.json")


def commit() -> str:
    """Return the commit of the sources, or "" if it is unknown."""
    if given := os.environ.get("SKYFAST_COMMIT"):
        return given
    if (ROOT / BUILD_INFO).exists():  # in an sdist
        return json.loads((ROOT / BUILD_INFO).read_text()).get("commit", "")
    if not (ROOT / ".git").exists():
        return ""
    try:
        head = _git("rev-parse", "HEAD")
        return f"{head}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.CalledProcessError):  # no git, or another user owns the checkout
        return ""


def _git(*arguments):
    command = ["git", "-C", str(ROOT), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def write_build_info(path, **known) -> None:
    """Write the non-empty values to a new file.

    An existing file is deleted, because it can be a hard link to the file in the sources.
    """
    path.unlink(missing_ok=True)
    path.write_text(json.dumps({name: value for name, value in known.items() if value}) + "\n")


class BuildPy(build_py):
    """Adds the commit and the time of the build to the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            now_s = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
            built = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))
            path = Path(self.build_lib) / BUILD_INFO
            write_build_info(path, commit=commit(), built=built)


class Sdist(sdist):
    """Adds the commit to the sources."""

    def make_release_tree(self, base_dir, files) -> None:
        super().make_release_tree(base_dir, files)
        write_build_info(Path(base_dir) / BUILD_INFO, commit=commit())


setup(
    cmdclass={"build_py": BuildPy, "sdist": Sdist},
    ext_modules=cythonize(
        [
            Extension(
                name,
                [source],
                extra_compile_args=compile_args + os.environ.get("SKYFAST_CFLAGS", "").split(),
                extra_link_args=link_args + os.environ.get("SKYFAST_LDFLAGS", "").split(),
            )
            for name, source in SOURCES.items()
        ],
        compiler_directives={"language_level": "3"},
        build_dir=c_files,
    ),
)
