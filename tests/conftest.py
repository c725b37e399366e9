"""Selects the build of the compiled core to test, and configures Hypothesis.

In CI, Hypothesis is deterministic, so that failures can be reproduced on other machines.
"""

import logging
import os
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support import core_builds
from tests.support.analyzer import FakeAnalyzer

core_builds.use_chosen()

# Without deadlines, a busy machine causes no failures.
settings.register_profile("local", deadline=None)
settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci" if "CI" in os.environ else "local")


@pytest.fixture(autouse=True)
def _restore_log_level() -> Iterator[None]:
    """Restore the log level, because some tests change it by reloading an app."""
    logger = logging.getLogger("skyfast")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
async def analyzer() -> AsyncIterator[FakeAnalyzer]:
    async with FakeAnalyzer() as analyzer:
        yield analyzer
