"""The version of skyfast, and the commit and time of its build if they are known.

``setup.py`` writes `FILE` during a build. In an editable installation (``pip install --editable``),
`FILE` does not exist.
"""

import json
import platform
from dataclasses import dataclass
from pathlib import Path

from skyfast import __version__

FILE = Path(__file__).parents[1] / "data" / "build.json"

SHORT = 12
"""Number of digits of the commit hash in `BuildInfo.to_text`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInfo:
    """A build of skyfast. Values that are not known are empty."""

    version: str
    commit: str
    """The Git commit hash, followed by ``-dirty`` if the working tree had uncommitted changes."""
    built: str
    """The time of the build in UTC, in the format of RFC 3339."""

    def to_text(self) -> str:
        commit, dash, state = self.commit.partition("-")
        known = [
            f"commit {commit[:SHORT]}{dash}{state}" if commit else "",
            f"built {self.built}" if self.built else "",
        ]
        details = ", ".join(filter(None, known))
        return f"skyfast {self.version} ({details})" if details else f"skyfast {self.version}"

    def to_json(self) -> str:
        return json.dumps(
            {
                "version": self.version,
                "commit": self.commit or None,
                "built": self.built or None,
                "python": platform.python_version(),
            }
        )


def read() -> BuildInfo:
    try:
        build = json.loads(FILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        build = {}
    return BuildInfo(
        version=__version__, commit=build.get("commit", ""), built=build.get("built", "")
    )
