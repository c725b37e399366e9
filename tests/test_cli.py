"""The command line, as a person uses it: output, exit codes, one line for what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import skyfast

DATA = Path(__file__).parent / "data" / "config"
PASSWORD = "hunter2"


def run(*arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``skyfast`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "skyfast", *arguments],
        input=stdin,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prom_sky_con.yml"
    path.write_text(
        f"analyzer: {{auth: {{cluster: {{username: me, password: {PASSWORD}}}}}}}\n"
        "pipeline: {store: {type: prom_sky_con, prom_sky_con: {port: 9123}}}\n"
    )
    return path


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"skyfast {skyfast.__version__}\n")


def test_help_fits_a_screen_and_names_every_option() -> None:
    done = run("--help", COLUMNS="80")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for option in (
        "CONFIG",
        "--check",
        "--demo",
        "--replay FILE",
        "--replay-speed",
        "--record FILE",
        "--record-anonymous",
        "--log-level",
        "--shard I/N",
        "--web.config.file",
        "--version",
        "/etc/skydive/",
    ):
        assert option in done.stdout


def test_check_prints_the_effective_configuration(file: Path) -> None:
    done = run("--check", str(file), SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_CONNECTION_TIMEOUT="99")
    assert (done.returncode, done.stderr) == (0, "")
    store = yaml.safe_load(done.stdout)["pipeline"]["store"]["prom_sky_con"]
    assert (store["port"], store["connection_timeout"]) == (9123, 99)
    assert PASSWORD not in done.stdout


HASH = "$2b$04$mIlnSfcSkY2lOMpwfcmuP.EFUAxUtPcAnLSWMMJXAf4g80v5YwCFm"


def test_check_looks_at_the_web_configuration_too(file: Path, tmp_path: Path) -> None:
    web = tmp_path / "web.yml"
    web.write_text(f"basic_auth_users:\n  alice: {HASH}\n")
    done = run("--check", "--web.config.file", str(web), str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("# Web configuration: plain HTTP, 1 user.\n")
    assert HASH not in done.stdout
    web.write_text(f"basic_auth_users:\n  alice: {PASSWORD}\n")
    for arguments in (("--check",), ()):
        done = run(*arguments, f"--web.config.file={web}", str(file))
        assert (done.returncode, done.stdout) == (2, "")
        assert f"skyfast: {web}: line 2: basic_auth_users.alice: <hidden> is not" in done.stderr
        assert PASSWORD not in done.stderr
    assert run("--check", "--web.config.file=", str(file)).returncode == 0


def test_a_dash_is_standard_input(file: Path) -> None:
    done = run("--check", "-", stdin=file.read_text())
    assert (done.returncode, done.stderr) == (0, "")
    assert "9123" in done.stdout


def test_check_prints_what_can_be_loaded_again(file: Path) -> None:
    once = run("--check", str(file)).stdout
    again = run("--check", "-", stdin=once)
    assert again.returncode == 0
    assert yaml.safe_load(again.stdout) == yaml.safe_load(once)


def comments(text: str) -> list[str]:
    """Return what ``--check`` says of a configuration, beside the configuration itself."""
    done = run("--check", "-", stdin=text)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.removeprefix("# ") for line in done.stdout.splitlines() if line.startswith("#")]


def test_check_tells_what_a_connection_costs() -> None:
    text = """
        pipeline.store.prom_sky_con:
          max_connections: 1000
          labels: [target_ip, target_port]
          metrics: [bytes, rtt, {name: ttl, value: TCPMetric.ABSynTTL, type: gauge}]
          views: [{prefix: lab, labels: [node_host, tag], timeout: 90, direction: sum}]
    """
    assert comments(text) == [
        "Each connection costs up to 4 series, all together up to 4000:",
        "  2 skydive_network_connection_total_bytes",
        "  1 skydive_network_connection_rtt_nanoseconds",
        "  1 ttl",
        "Each row of view lab (node_host, tag) costs up to 2 series, kept until silent for 90 s:",
        "  1 lab_bytes_total",
        "  1 lab_packets_total",
        *(
            f"Warning: {where}: traffic that is captured at several interfaces is counted several"
            " times: set deduplicate: first, or add the label node_tid."
            for where in ("connections", "view lab")
        ),
    ]


def test_there_are_no_more_connections_than_flows() -> None:
    store = "{max_connections: 1000, max_flows: 10}"
    (first, *_) = comments(f"pipeline: {{store: {{prom_sky_con: {store}}}}}")
    assert first == "Each connection costs up to 5 series, all together up to 50:"


DANGER = "most clients take another one for each connection"


@pytest.mark.parametrize(
    ("keys", "warnings"),
    [
        ("{}", [f"Warning: label initiator_port of the connections is dangerous: {DANGER}."]),
        ("{rewrite: {initiator_port: {above: 1023}}}", []),
        ("{labels: [target_port, protocol]}", []),
        (
            "{labels: [{name: id, path: UUID}], views: [{prefix: a, labels: [initiator_port]}]}",
            [
                "Warning: label id of the connections is dangerous: one for each flow.",
                f"Warning: label initiator_port of the view a is dangerous: {DANGER}.",
            ],
        ),
    ],
)
def test_check_warns_of_labels_without_end(keys: str, warnings: list[str]) -> None:
    said = comments(f"pipeline.store.prom_sky_con: {keys}")
    assert [line for line in said if line.startswith("Warning: label")] == warnings


def test_check_warns_where_traffic_counts_several_times() -> None:
    views = "[{prefix: a, labels: [tag]}, {prefix: b, labels: [node_tid]}]"
    said = comments(f"pipeline.store.prom_sky_con: {{labels: [protocol], views: {views}}}")
    assert [line for line in said if line.startswith("Warning")] == [
        f"Warning: {where}: traffic that is captured at several interfaces is counted several"
        " times: set deduplicate: first, or add the label node_tid."
        for where in ("connections", "view a")
    ]


def test_notes_go_to_the_log_and_not_into_the_configuration() -> None:
    text = "pipeline: {encode: {type: csv}}\nui: {theme: dark}\n"
    done = run("--check", "-", "--log-level", "debug", stdin=text)
    assert done.returncode == 0
    assert "WARNING skyfast.config" in done.stderr
    assert "DEBUG skyfast.config" in done.stderr
    yaml.safe_load(done.stdout)


WRONG = {
    "an unknown option": (["--chekc"], "", "--chekc"),
    "two files": (["a", "b"], "", "b"),
    "a level that is none": (["--log-level", "loud"], "", "loud"),
    "nothing to replay": (["--replay"], "", "--replay"),
    "two of a kind": (["--demo", "--replay", "x"], "", "--demo"),
    "a speed of nothing": (["--replay-speed", "2"], "", "--replay-speed"),
    "nothing to record": (["--record"], "", "--record"),
    "a recording of no run": (["--record", "x", "--check"], "", "--record"),
    "pseudonyms for nothing": (["--record-anonymous"], "", "--record"),
    "no speed": (["--replay-speed", "0", "--replay", "x"], "", "'0'"),
    "a speed that is no number": (["--replay-speed", "nan", "--replay", "x"], "", "'nan'"),
    "a speed that is no word": (["--replay-speed", "fast", "--replay", "x"], "", "'fast' is not"),
    "a speed without an end": (["--replay-speed", "1e-300", "--replay", "x"], "", "'1e-300'"),
    "a recording without a name": (["--record", "", "--demo"], "", "--record: the name"),
    "a recording that is not there": (["--replay", "/nowhere"], "", "/nowhere"),
    "a file that is not there": (["/nowhere.yml"], "", "/nowhere.yml"),
    "a directory": (["/"], "", "/"),
    "a misspelt key": (["-"], "pipeline: {stroe: {}}", "pipeline.stroe"),
    "a negative number": (
        ["-"],
        "pipeline: {store: {prom_sky_con: {port: -1}}}",
        "pipeline.store.prom_sky_con.port",
    ),
    "no YAML": (["-"], "a: [", "not valid YAML"),
}


@pytest.mark.parametrize(("arguments", "stdin", "named"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_in_one_line(arguments: list[str], stdin: str, named: str) -> None:
    done = run(*arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("skyfast: ")
    assert named in line


def test_what_few_need_is_imported_for_them_alone() -> None:
    names = ["player", "record", "recording", "anonymous"]
    code = (
        "import sys, skyfast.app, skyfast.cli;"
        f"print([name for name in {names} if f'skyfast.{{name}}' in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "[]\n"


def test_the_default_path_is_the_go_connectors() -> None:
    if Path("/etc/skydive/prom_sky_con.yml").exists():
        pytest.skip("this machine has a configuration of its own")
    done = run()
    assert done.returncode == 2
    assert "/etc/skydive/prom_sky_con.yml" in done.stderr


def test_an_unusable_certificate_is_a_wrong_configuration(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    text = (
        f"tls: {{ca_cert: {tmp_path}/ca.pem}}\n"
        "pipeline: {subscriber: {url: 'wss://127.0.0.1:9/'}, store: {prom_sky_con: {port: 0}}}\n"
    )
    done = run("-", stdin=text)
    assert done.returncode == 2
    assert "tls.ca_cert" in done.stderr.splitlines()[-1]


def test_a_share_that_there_is_not_is_told_in_one_line() -> None:
    done = run("--shard", "3/3")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--shard: '3/3' is not I/N" in done.stderr
