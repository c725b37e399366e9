"""Own names: the key ``names``, and the file of the key ``names_file``."""

from pathlib import Path

import pytest

from skyfast.config import loader, names
from skyfast.config.model import Config
from skyfast.config.names import LoadedNames
from skyfast.config.yaml_nodes import ConfigError
from skyfast.flows.own_names import OwnNameEntry, read_prefix
from tests.support.configs import make_config

SITE = {"name": "site", "names_key": "site"}


def load(config: Config, known: LoadedNames | None = None) -> LoadedNames:
    return names.load(config.names, config.export, known=known)


def problems(path: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(make_config(names_file=str(path)))
    return caught.value.problems


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "names.csv"


# The configuration.


def test_names_are_read_and_shown() -> None:
    given = {
        "10.0.0.0/8": "company",
        "2001:DB8::/32": {"name": "berlin", "Site": "ber"},
        "10.0.0.1": {"owner": "net"},
        "10.0.0.2": "010",
    }
    config = make_config(names=given)
    assert dict(config.names.entries.values()) == {
        read_prefix("10.0.0.0/8"): OwnNameEntry("company"),
        read_prefix("2001:db8::/32"): OwnNameEntry("berlin", (("Site", "ber"),)),
        read_prefix("10.0.0.1"): OwnNameEntry("", (("owner", "net"),)),
        read_prefix("10.0.0.2"): OwnNameEntry("010"),
    }
    assert names.show_names(config.names.entries) == given
    shown = loader.dump(config)
    assert loader.parse(shown, {}, source="test.yml").names == config.names


def test_too_many_names_in_the_configuration_are_rejected() -> None:
    given = {f"10.0.{number >> 8}.{number & 255}": "n" for number in range(4097)}
    with pytest.raises(ConfigError, match="has more than 4096 entries; use names_file"):
        make_config(names=given)


def test_every_invalid_name_is_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(names={"a": "x", "10.0.0.1": "y", "10.0.0.2": ""})
    assert len(caught.value.problems) == 2


def test_labels_determine_which_keys_of_own_names_are_used() -> None:
    config = make_config(
        labels=["initiator_network", SITE],
        views=[
            {"prefix": "x", "labels": [{"name": "target_who", "names_key": "owner"}, "node_tid"]},
            {"prefix": "y", "labels": [SITE, {"name": "team", "k8s_label": "team"}]},
        ],
    )
    assert config.export.names_keys == ("owner", "site")
    assert [label.name for label in config.export.first_view.labels] == [
        *("initiator_network", "initiator_site", "target_site", "direction")
    ]
    shown = loader.parse(loader.dump(config), {}, source="test.yml")
    assert shown.export == config.export


def test_labels_of_own_names_are_listed_if_no_names_are_configured() -> None:
    def without(**keys: object) -> str:
        config = make_config(**keys)
        return names.labels_without_names(config.names, config.export)

    labels = ["initiator_network", "initiator_name", SITE]
    assert without(labels=labels) == "initiator_network, initiator_site, target_site"
    assert without(labels=labels, names={"10.0.0.1": "a"}) == ""
    assert without(labels=["initiator_name"]) == ""
    assert load(make_config(labels=labels)).missing_keys == ()


# The file.


def test_names_file_is_read(file: Path) -> None:
    file.write_text("\ufeff10.0.0.0/8,company\r\n10.1.0.0/16,Zürich,site=zrh\r\n")
    loaded = load(make_config(labels=[SITE], names_file=str(file)))
    assert loaded.own["10.1.2.3"] == ("", "Zürich", "zrh")
    assert loaded.own["10.2.0.1"] == ("", "company", "")
    assert loaded.summary() == "2 entries with the keys site"
    assert loaded.missing_keys == ()


def test_entries_of_the_configuration_replace_those_of_the_file(file: Path) -> None:
    file.write_text("10.0.0.0/8,file,site=a\n10.1.0.0/16,file,site=b\n")
    config = make_config(names={"10.1.0.0/16": "inline"}, names_file=str(file), labels=[SITE])
    loaded = load(config)
    assert loaded.own["10.1.0.1"] == ("", "inline", "a")
    assert loaded.own["10.2.0.1"] == ("", "file", "a")
    assert loaded.own.count == 2


def test_missing_keys_that_labels_need_are_reported(file: Path) -> None:
    file.write_text("10.0.0.0/8,company,site=a\n")
    config = make_config(labels=[SITE, {"name": "x", "names_key": "Site"}], names_file=str(file))
    loaded = load(config)
    assert loaded.missing_keys == ("Site",)
    file.write_text("10.0.0.0/8,company\n")
    assert load(config).missing_keys == ("Site", "site")
    assert load(config).summary() == "1 entry without keys"


def test_errors_in_the_names_file_contain_the_line_numbers(file: Path) -> None:
    file.write_text("# names\n10.0.0.1,a\n10.0.0.x,b\n\n10.0.0.2\n")
    assert problems(file) == (
        f"{file}: line 3: '10.0.0.x' is not an address or network",
        f"{file}: line 5: '10.0.0.2' is not in the form prefix,name[,key=value…]",
    )
    file.write_bytes(b"10.0.0.1,a\n10.0.0.2,\xff\n")
    assert problems(file) == (f"{file}: line 2: not UTF-8",)
    file.write_bytes("10.0.0.1,a\n".encode("utf-16"))
    assert problems(file) == (f"{file}: line 1: not UTF-8",)


def test_names_file_must_exist(file: Path, tmp_path: Path) -> None:
    assert problems(file) == (f"names_file: {file} is not an existing file",)
    assert problems(tmp_path) == (f"names_file: {tmp_path} is not an existing file",)
    file.symlink_to(tmp_path / "gone")
    assert problems(file) == (f"names_file: {file} is not an existing file",)


def test_names_file_must_not_be_too_long(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_FILE_BYTES", 11)
    file.write_text("10.0.0.1,a\n")
    assert load(make_config(names_file=str(file))).own["10.0.0.1"][0] == "a"
    file.write_text("10.0.0.1,ab\n")
    assert problems(file) == (f"names_file: {file} is longer than 11 bytes",)


def test_unchanged_names_are_not_read_again(file: Path) -> None:
    file.write_text("10.0.0.0/8,company,site=a\n")
    config = make_config(labels=[SITE], names_file=str(file))
    loaded = load(config)
    assert load(config, loaded) is loaded
    other = make_config(labels=[{"name": "b", "names_key": "b"}], names_file=str(file))
    assert load(other, loaded).own.keys == ("b",)
    inline = make_config(labels=[SITE], names_file=str(file), names={"10.0.0.1": "a"})
    assert load(inline, loaded).own.count == 2
    file.write_text("10.0.0.0/8,firm,site=a\n")
    assert load(config, loaded).own["10.0.0.1"] == ("", "firm", "a")
