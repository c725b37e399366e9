"""Select the build of the compiled core under test, and configure Hypothesis.

In CI, Hypothesis is deterministic, so that a failure there can be reproduced elsewhere.
"""

import logging
import os
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support import core_builds
from tests.support.analyzer import FakeAnalyzer

core_builds.use_chosen()

# Other load on the machine must not fail a test.
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
    """Restore the log level after the test, because reloads in this process change it."""
    logger = logging.getLogger("skyfast")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
async def analyzer() -> AsyncIterator[FakeAnalyzer]:
    async with FakeAnalyzer() as analyzer:
        yield analyzer
