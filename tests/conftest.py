"""Before any test: which build of the compiled core they are for, and what Hypothesis asks.

In CI that is the same each time, for a failure there must repeat elsewhere.
"""

import os

from hypothesis import HealthCheck, settings

from tests import builds

builds.use_chosen()

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
