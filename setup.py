"""Builds the compiled core; everything else about the package is in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

COMPILE = ["-O3", "-fvisibility=hidden", "-fno-plt"]
LINK: list[str] = []

setup(
    ext_modules=cythonize(
        [
            Extension(
                "skyfast._table",
                ["skyfast/_table.pyx"],
                extra_compile_args=COMPILE + os.environ.get("SKYFAST_CFLAGS", "").split(),
                extra_link_args=LINK + os.environ.get("SKYFAST_LDFLAGS", "").split(),
            )
        ],
        compiler_directives={"language_level": "3"},
    )
)
