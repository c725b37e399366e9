"""Where the files are that tests read."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
"""The checkout."""

TESTS = ROOT / "tests"
DATA = TESTS / "data"
RECORDINGS = DATA / "recordings"
CONTAINER_TOPOLOGY = DATA / "topology-containers"
DEPLOY = ROOT / "deploy"
