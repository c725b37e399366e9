"""Paths of the files that tests read."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

TESTS = ROOT / "tests"
DATA = TESTS / "data"
RECORDINGS = DATA / "recordings"
CONTAINER_TOPOLOGY = DATA / "topology-containers"
DEPLOY = ROOT / "deploy"
