"""Builds the compiled modules. Everything else about the package is in pyproject.toml.

``SKYFAST_BUILD`` selects a build for tests: `checked`, `address` and `thread` use
``skyfast/_checked.pyx`` instead of ``skyfast/_table.pyx``; `coverage` uses the normal sources.
``tests/support/core_builds.py`` puts each of these builds in its own directory. ``SKYFAST_CFLAGS``
and ``SKYFAST_LDFLAGS`` contain additional flags.
"""

import os
import platform

from Cython.Build import cythonize
from setuptools import Extension, setup

# The extensions process untrusted input. tests/table/test_hardening.py checks these options.
HARDENED = [
    "-fstack-protector-strong",
    "-fstack-clash-protection",
    "-U_FORTIFY_SOURCE",  # removes the level that a distribution sets
    # Level 3 would check each copy at run time, which makes rendering 30 % slower.
    "-D_FORTIFY_SOURCE=2",
]
if platform.machine() in {"x86_64", "AMD64", "i686"}:
    HARDENED.append("-fcf-protection=full")

RELEASE = ["-O3", "-fvisibility=hidden", "-fno-plt", *HARDENED]
LINK = ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack"]

# Python's flags contain -fwrapv, with which the sanitizers do not report signed overflow. Fortified
# functions would bypass the sanitizers' replacements of these functions.
DEBUG = ["-g", "-O1", "-fno-omit-frame-pointer", "-fno-wrapv", "-U_FORTIFY_SOURCE"]
SANITIZERS = {
    "checked": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}

# gcov must count atomically, because several threads run the core.
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
