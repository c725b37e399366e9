"""The version, commit and time of a build."""

import json
from pathlib import Path

import pytest

import skyfast
from skyfast.runtime import build_info

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BUILT = "2026-11-29T18:00:00Z"


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ({"commit": COMMIT, "built": BUILT}, f" (commit 0123456789ab, built {BUILT})"),
        ({"commit": f"{COMMIT}-dirty"}, " (commit 0123456789ab-dirty)"),
        ({"built": BUILT}, f" (built {BUILT})"),
        ({}, ""),
    ],
)
def test_known_values_are_shown(
    known: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "build.json"
    file.write_text(json.dumps(known))
    monkeypatch.setattr(build_info, "FILE", file)
    build = build_info.read()
    assert build.to_text() == f"skyfast {skyfast.__version__}{text}"
    shown = json.loads(build.to_json())
    assert {name: shown[name] or None for name in ("commit", "built")} == {
        name: known.get(name) for name in ("commit", "built")
    }


def test_build_is_unknown_if_its_file_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_info, "FILE", tmp_path / "build.json")
    assert build_info.read().to_text() == f"skyfast {skyfast.__version__}"
