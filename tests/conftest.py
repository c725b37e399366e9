"""Before any test: which build of the compiled core they are for, and what Hypothesis asks.

In CI that is the same each time, for a failure there must repeat elsewhere.
"""

import logging
import os
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support import core_builds
from tests.support.analyzer import FakeAnalyzer

core_builds.use_chosen()

settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
if "CI" in os.environ:
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _level_of_the_log() -> Iterator[None]:
    """Give the log back its level, which a reload within this process changes."""
    ours = logging.getLogger("skyfast")
    level = ours.level
    yield
    ours.setLevel(level)


@pytest.fixture
async def analyzer() -> AsyncIterator[FakeAnalyzer]:
    async with FakeAnalyzer() as analyzer:
        yield analyzer
