"""The values of each preset, and the keys that replace them."""

import pytest
import yaml

from skyfast.config import loader
from skyfast.config.loader import changed
from skyfast.config.model import Config
from skyfast.config.presets import PRESETS
from skyfast.config.yaml_nodes import ConfigError
from skyfast.flows.planner import families
from skyfast.flows.selection import ViewSpec

PREFIX = "pipeline.store.prom_sky_con"


def parse(environ: dict[str, str] | None = None, **keys: object) -> Config:
    """Return a configuration with these keys in the section ``prom_sky_con``."""
    text = yaml.safe_dump({"pipeline": {"store": {"prom_sky_con": keys}}})
    return loader.parse(text, environ or {}, source="x.yml")


def labels_of(view: ViewSpec) -> str:
    return " ".join(label.name for label in view.labels)


def metrics_of(view: ViewSpec) -> str:
    return " ".join(family.name for family in families(view, naming="standard"))


def test_preset_compatible_is_the_default() -> None:
    assert parse(preset="compatible").export == loader.parse("", {}, source="x.yml").export


def test_preset_services_exports_names_and_the_target_port() -> None:
    export = parse(preset="services").export
    assert (
        labels_of(export.first_view) == "initiator_name target_name target_port protocol direction"
    )
    assert metrics_of(export.first_view) == (
        "skydive_connection_bytes_total skydive_connection_packets_total"
    )
    (view,) = export.further_views
    assert labels_of(view) == "initiator_name target_name target_port protocol"
    assert metrics_of(view) == "skydive_services_rtt_seconds skydive_services_new_flows_total"
    assert view.metrics[0].is_histogram
    assert export.deduplicate == "first"


def test_preset_hosts_exports_the_hosts_of_both_ends() -> None:
    export = parse(preset="hosts").export
    assert labels_of(export.first_view) == "initiator_host target_host protocol direction"
    assert metrics_of(export.first_view) == (
        "skydive_connection_bytes_total skydive_connection_packets_total"
    )
    assert export.further_views == ()
    assert export.deduplicate == "first"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", ["target_name", "direction"]),
        ("metrics", ["packets"]),
        ("views", []),
        ("deduplicate", "none"),
    ],
)
@pytest.mark.parametrize("preset", ["services", "hosts"])
def test_configured_key_replaces_the_whole_value_of_the_preset(
    preset: str, key: str, value: object
) -> None:
    result = parse(preset=preset, **{key: value})
    for path in (f"{PREFIX}.{name}" for name in ("labels", "metrics", "views", "deduplicate")):
        origin = parse(**{key: value}) if path == f"{PREFIX}.{key}" else parse(preset=preset)
        assert path not in changed(origin, result)


def test_environment_variables_select_a_preset_and_replace_its_labels() -> None:
    environ = {
        "SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PRESET": "hosts",
        "SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_LABELS": "target_host",
    }
    result = parse(environ, preset="services")
    assert labels_of(result.export.first_view) == "target_host direction"
    assert result.export.further_views == ()


def test_preset_with_summed_directions_has_no_direction_label() -> None:
    result = parse(preset="hosts", direction="sum")
    assert labels_of(result.export.first_view) == "initiator_host target_host protocol"


@pytest.mark.parametrize("preset", PRESETS)
def test_effective_configuration_contains_the_values_of_the_preset(preset: str) -> None:
    result = parse(preset=preset)
    dumped = loader.dump(result)
    without_preset = dumped.replace(f"preset: {preset}\n", "preset: compatible\n")
    for text in (dumped, without_preset):
        assert loader.parse(text, {}, source="x.yml").export == result.export


def test_changed_preset_is_reported_with_the_keys_that_it_changes() -> None:
    assert set(changed(parse(), parse(preset="services"))) == {
        f"{PREFIX}.{key}" for key in ("preset", "labels", "metrics", "views", "deduplicate")
    }


def test_unknown_preset_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'service' is not one of .*; did you mean services\?"):
        parse(preset="service")


def test_error_for_a_conflict_with_the_preset_contains_the_configured_key() -> None:
    metric = {"name": "skydive_services_new_flows_total", "value": "Metric.ABBytes"}
    with pytest.raises(ConfigError, match=r"prom_sky_con\.metrics\[0\]\.name"):
        parse(preset="services", metrics=[{**metric, "type": "counter"}])
