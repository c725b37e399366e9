"""The C library accepts the settings of its allocator, and they have an effect."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.xdist_group("timing")

CHURN = """
import resource, sys
from skyfast.runtime import memory
if sys.argv[1] == "kept":
    assert memory.tune_malloc()
list(b"x" * 84_000 for _ in range(40))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    blocks = [bytes(84_000) for _ in range(20)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CHURN, mode], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_reused_without_page_faults() -> None:
    assert faults("kept") < faults("given back") / 10
