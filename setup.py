"""Builds the compiled modules; everything else about the package is in pyproject.toml.

``SKYFAST_BUILD`` names a build that is not for use but for tests: `checked`, `address` and
`thread` are made of ``skyfast/_checked.pyx`` in place of ``skyfast/_table.pyx``, `coverage` of the
usual sources. They belong in a directory of their own, which ``tests/support/core_builds.py`` takes
care of. ``SKYFAST_CFLAGS`` and ``SKYFAST_LDFLAGS`` are more flags.
"""

import os
import platform

from Cython.Build import cythonize
from setuptools import Extension, setup

# What strangers send ends up in this extension; tests/table/test_hardening.py checks the effects.
HARDENED = [
    "-fstack-protector-strong",
    "-fstack-clash-protection",
    "-U_FORTIFY_SOURCE",  # distributions set another level
    # 3 would check each copy of rendering while it runs: 30 % more a line. 2 knows them beforehand.
    "-D_FORTIFY_SOURCE=2",
]
if platform.machine() in {"x86_64", "AMD64", "i686"}:
    HARDENED.append("-fcf-protection=full")

RELEASE = ["-O3", "-fvisibility=hidden", "-fno-plt", *HARDENED]
LINK = ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack"]

# Python's own flags define signed overflow, and a sanitizer does not report what is defined.
# The fortified functions would be checked less well than those that the sanitizers replace.
DEBUG = ["-g", "-O1", "-fno-omit-frame-pointer", "-fno-wrapv", "-U_FORTIFY_SOURCE"]
SANITIZERS = {
    "checked": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}

# Counted by gcov, by several threads at once.
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

setup(
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
    )
)
