"""Random operations that compare the compiled table with the model.

With few UUIDs, few labels and small numbers, many reports are late, restart flows or reuse rows.
``HYPOTHESIS_PROFILE=thorough`` runs fifty times as many examples.
"""

import pytest
from hypothesis import HealthCheck, settings

from tests.support import core_builds
from tests.support.table_machine import (
    IS_THOROUGH,
    DeduplicatingMachine,
    HistogramMachine,
    RelabelingMachine,
    TableMachine,
)

COMMON = settings(
    max_examples=10_000 if IS_THOROUGH else 30 if core_builds.IS_SLOW else 200,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestTable = pytest.mark.slow(TableMachine.TestCase)
TestTable.settings = COMMON
TestDeduplication = pytest.mark.slow(DeduplicatingMachine.TestCase)
TestDeduplication.settings = COMMON
TestRelabeling = pytest.mark.slow(RelabelingMachine.TestCase)
TestRelabeling.settings = COMMON
TestHistograms = pytest.mark.slow(HistogramMachine.TestCase)
TestHistograms.settings = COMMON
