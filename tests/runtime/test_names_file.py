"""skyfast reads ``names_file`` again when the file changes."""

import os
from pathlib import Path

import pytest

from skyfast.config import names
from skyfast.config.model import Config
from skyfast.config.names import LoadedNames
from skyfast.runtime.names_file import NamesFile
from skyfast.stats import OwnNameStats, Stats
from tests.support.configs import make_config

SITE = {"name": "site", "names_key": "site"}


class WatchedNames:
    """The watcher of ``file``, and the current names."""

    def __init__(self, file: Path, **keys: object) -> None:
        self.config: Config = make_config(names_file=str(file), labels=[SITE], **keys)
        self.stats = Stats()
        self.file = NamesFile(self.stats)
        self.loaded: LoadedNames = names.load(self.config.names, self.config.export)
        self.file.use(self.loaded, self.config.export)

    async def refresh(self) -> bool:
        """Read the file if it has changed, and return whether the names are new."""
        found = await self.file.refresh(self.loaded, self.config.export)
        self.loaded = found or self.loaded
        return found is not None

    def __getitem__(self, address: str) -> tuple[str, ...]:
        return self.loaded.own[address]

    @property
    def counts(self) -> OwnNameStats:
        assert self.stats.own_names is not None
        return self.stats.own_names


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "names.csv"
    path.write_text("10.0.0.0/8,old,site=a\n")
    return path


def write(file: Path, text: str) -> None:
    file.write_text(text)


def remove(file: Path) -> None:
    file.unlink()


def replace_atomically(file: Path, text: str) -> None:
    other = file.with_suffix(".new")
    other.write_text(text)
    other.rename(file)


async def test_replaced_file_is_read(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    reader = WatchedNames(file)
    assert not await reader.refresh()
    replace_atomically(file, "10.0.0.0/8,new,site=b\n10.0.0.1,host\n")
    assert await reader.refresh()
    assert not await reader.refresh()
    assert reader["10.0.0.1"] == ("host", "new", "b")
    assert reader.counts.entries == 2
    assert "names_file reloaded in 0.0 s: 2 entries with the keys site" in caplog.text


async def test_file_that_was_written_in_place_is_read(file: Path) -> None:
    reader = WatchedNames(file)
    write(file, "10.0.0.0/8,new\n")
    assert await reader.refresh()
    assert reader["10.0.0.1"] == ("", "new", "")


def mount_version(directory: Path, number: int) -> Path:
    """Mount a version of a ConfigMap as Kubernetes does, and return the path of its file.

    The file is a link to ``..data/names.csv``, and ``..data`` is a link to the current version.
    """
    version = directory / f"..version{number}"
    version.mkdir()
    (version / "names.csv").write_text(f"10.0.0.0/8,name{number},site=a\n")
    os.utime(version / "names.csv", ns=(1, 1))
    (directory / "..tmp").symlink_to(version.name)
    (directory / "..tmp").rename(directory / "..data")
    file = directory / "names.csv"
    if number == 1:
        file.symlink_to("..data/names.csv")
    return file


async def test_config_map_is_read(tmp_path: Path) -> None:
    reader = WatchedNames(mount_version(tmp_path, 1))
    assert reader["10.0.0.1"] == ("", "name1", "a")
    mount_version(tmp_path, 2)
    assert await reader.refresh()
    assert reader["10.0.0.1"] == ("", "name2", "a")


async def test_invalid_file_leaves_the_names_in_use(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = WatchedNames(file)
    first_s = reader.counts.last_load_success_timestamp_s
    replace_atomically(file, "10.0.0.0/8,new\n10.0.0,x\n")
    for _ in range(3):
        assert not await reader.refresh()
    problem = f"{file}: line 2: '10.0.0' is not an address or network"
    assert caplog.text.count(f"names_file not reloaded: {problem}") == 1
    assert reader["10.0.0.1"] == ("", "old", "a")
    counts = reader.counts
    assert counts.last_load_successful == 0
    assert counts.last_load_success_timestamp_s == first_s
    assert counts.last_failure is not None
    assert (counts.last_failure.reason, counts.last_failure.text) == ("configuration", problem)
    remove(file)
    assert not await reader.refresh()
    assert f"names_file not reloaded: {file} is not an existing file" in caplog.text
    assert counts.last_failure.text == f"{file} is not an existing file"
    replace_atomically(file, "10.0.0.0/8,mended,site=a\n")
    assert await reader.refresh()
    assert reader["10.0.0.1"] == ("", "mended", "a")
    assert counts.last_load_successful == 1
    assert counts.last_load_success_timestamp_s > first_s


async def test_file_that_does_not_fit_into_memory_leaves_the_names_in_use(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    reader = WatchedNames(file)
    write(file, "10.0.0.0/8,new\n")
    monkeypatch.setattr(names, "load", fail)
    assert not await reader.refresh()
    assert "names_file not reloaded: out of memory" in caplog.text
    assert reader["10.0.0.1"] == ("", "old", "a")


async def test_missing_key_is_logged_again_only_after_an_entry_had_it(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = WatchedNames(file)
    assert caplog.text == ""
    text = "a label needs the key 'site', but no entry of 'names' or 'names_file' has this key"
    for count in (1, 2):
        for name in ("x", "y"):
            replace_atomically(file, f"10.0.0.0/8,{name}\n")
            assert await reader.refresh()
            assert reader.counts.missing_keys == ("site",)
            assert caplog.text.count(text) == count
        replace_atomically(file, "10.0.0.0/8,x,site=a\n")
        assert await reader.refresh()
        assert reader.counts.missing_keys == ()


async def test_metrics_of_own_names_exist_only_if_own_names_are_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stats = Stats()
    file = NamesFile(stats)
    for keys, counts in (
        ({}, False),
        ({"names": {"10.0.0.1": "a"}}, True),
        ({"labels": ["initiator_network"]}, True),
        ({}, False),
    ):
        config = make_config(**keys)
        loaded = names.load(config.names, config.export)
        file.use(loaded, config.export)
        assert (stats.own_names is not None) == counts
        assert await file.refresh(loaded, config.export) is None
    assert caplog.messages == [
        (
            "labels initiator_network are empty:"
            " the configuration sets neither 'names' nor 'names_file'"
        )
    ]
