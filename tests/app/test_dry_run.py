"""``--check --replay FILE``: the forecast has the numbers of the page after the replay."""

import json

import pytest
import yaml

from skyfast import dry_run
from skyfast.config import loader
from skyfast.replay import recording
from skyfast.replay.recording import Playback, Recording
from tests.model import make_flow, read_page
from tests.support.messages import message
from tests.support.model_specs import CONFIGURATIONS, DEFAULT, ReplayConfiguration
from tests.support.paths import DATA, RECORDINGS, ROOT
from tests.support.process import run
from tests.support.table_adapter import read_all

CASES = {
    "defaults": ReplayConfiguration(spec=DEFAULT, recordings=("one-analyzer.jsonl",)),
    **CONFIGURATIONS,
}


def playback_of(*paths, speed=1):
    return Playback(recordings=tuple(Recording.load(str(path)) for path in paths), speed=speed)


def config_of(text="", **store):
    tree = yaml.safe_load(text) or {}
    section = tree.setdefault("pipeline", {}).setdefault("store", {})
    section.setdefault("prom_sky_con", {}).update(store)
    return loader.parse(yaml.safe_dump(tree), {}, source="x.yml", replayed="recordings")


@pytest.mark.parametrize("name", CASES)
def test_forecast_equals_the_page_of_the_dry_run(name):
    file = DATA / "configs" / f"{name}.yml"
    config = config_of(file.read_text() if file.exists() else "", max_series=40)
    playback = playback_of(*(RECORDINGS / path for path in CASES[name].recordings))
    rehearsal = dry_run._DryRun(config)
    made = rehearsal.run(playback).forecast
    table, now = rehearsal._parts.table, rehearsal._shared.clock.now()
    limits = dry_run.pipeline._table_limits(config.limits)
    families = CASES[name].spec.views[0].families
    for one in (made.unbounded, made.current, *made.bounds, *filter(None, [made.proposed])):
        main = config.limits.bounds[0]._replace(min_bytes=one.min_bytes)
        if one is made.unbounded:
            main = type(main)()
        table.set_limits(**limits | {"bounds": (main, *config.limits.bounds[1:])})
        page = read_page(read_all(table.page(now)), all_families(name))
        assert sum(len(page[family.name]) for family in families) == one.series
        others = [f for view in CASES[name].spec.views[1:] for f in view.families]
        assert sum(len(page[family.name]) for family in others) == made.other_series


def all_families(name):
    return [family for view in CASES[name].spec.views for family in view.families]


def test_dry_run_has_the_connections_of_a_replay():
    """With a long timeout, no connection expires: there are 831, as on the golden page."""
    playback = playback_of(RECORDINGS / "one-analyzer.jsonl")
    made = dry_run.run(config_of(connection_timeout=600), playback).forecast
    assert made.unbounded.connections == 831
    # With the default timeout, some connections expire.
    assert dry_run.run(config_of(), playback).forecast.unbounded.connections < 831
    fast = playback_of(RECORDINGS / "one-analyzer.jsonl", speed=1000)
    assert dry_run.run(config_of(connection_timeout=600), fast).forecast == made


def test_dry_run_counts_bytes_that_are_not_exported():
    playback = playback_of(RECORDINGS / "one-analyzer.jsonl")
    with_bytes = dry_run.run(config_of(), playback).forecast
    without = dry_run.run(config_of(metrics=["rtt"]), playback).forecast
    assert without.unbounded.bytes == with_bytes.unbounded.bytes
    assert [one.bytes for one in without.bounds] == [one.bytes for one in with_bytes.bounds]


def test_dry_run_counts_only_flows_of_the_configured_capture(tmp_path):
    path = tmp_path / "bug.jsonl"
    flows = [
        {**make_flow("1"), "CaptureID": "x"},
        {**make_flow("2", a="10.0.0.9"), "CaptureID": "y"},
    ]
    path.write_text(f"{json.dumps(json.loads(message(*flows)))}\n")
    made = dry_run.run(
        config_of("pipeline: {subscriber: {capture_id: x}}"), playback_of(path)
    ).forecast
    assert made.unbounded.connections == 1


def test_dry_run_uses_the_names_of_the_topology(tmp_path):
    """If the pods had no names, all flows would share one connection."""
    playback = Playback(recordings=recording.demo().recordings)
    by_name = dry_run.run(config_of(labels=["initiator_pod", "target_pod"]), playback).forecast
    assert by_name.unbounded.connections > 1


def test_missing_names_are_reported():
    demo = ROOT / "skyfast" / "data" / "recording.jsonl.gz"
    text = "pipeline: {store: {prom_sky_con: {preset: services}}}"
    done = run("--check", "-", "--replay", RECORDINGS / "one-analyzer.jsonl", stdin=text)
    empty = "100.0 % of the bytes have an empty initiator_name and an empty target_name"
    none = "The recordings contain no topology, so names from the topology are missing."
    assert f"# {none}\n# At the end of the recordings:\n# {empty}.\n# Without" in done.stdout
    assert done.stderr.endswith(f"WARNING skyfast.topology: {empty}: the topology is empty\n")
    strict = ("--check", "--strict", "-", "--replay")
    assert run(*strict, RECORDINGS / "one-analyzer.jsonl", stdin=text).returncode == 2
    named = run(*strict, demo, stdin=text)
    assert (named.returncode, named.stderr) == (0, "")
    assert "initiator_name and" not in named.stdout
    assert none not in named.stdout
    unnamed = run(*strict, demo, stdin=text.replace("services", "compatible"))
    assert none not in unnamed.stdout


def test_dry_run_counts_the_names_that_it_reads():
    playback = Playback(recordings=recording.demo().recordings)
    result = dry_run.run(config_of(preset="services"), playback)
    assert result.has_topology
    assert result.names.addresses > 10
    assert result.names.nodes > 10
    (empty,) = result.empty
    assert empty.labels == ("initiator_name", "target_name")
    assert empty.bytes_share < 0.1
    assert dry_run.run(config_of(), playback).names is None
    assert dry_run.run(config_of(), playback).empty == []


def test_check_prints_the_forecast():
    done = run("--check", "--replay", RECORDINGS / "one-analyzer.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    *_, blank, summary, head, unbounded, views, a, b, c, d, proposal = done.stdout.splitlines()
    # The output has two blank lines: this one, and one before the cost.
    assert blank == ""
    assert done.stdout.count("\n\n") == 2
    assert summary.startswith("# Recording ")
    assert head == "# At the end of the recordings:"
    assert unbounded == (
        "# Without min_bytes and min_packets, 407 connections would have 1932 series."
    )
    assert views == "# In addition, the views have 16 series."
    assert [line.partition(":")[0] for line in (a, b, c, d)] == [
        f"#   With min_bytes {size}" for size in ("10 kB", "100 kB", "1 MB", "10 MB")
    ]
    assert proposal == "# If you set max_series, skyfast proposes a value for min_bytes."
