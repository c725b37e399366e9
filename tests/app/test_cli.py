"""The command line: output, exit codes, and one-line errors."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import skyfast
from skyfast.config.parsers import LEVELS
from skyfast.config.yaml_nodes import MAX_PROBLEMS
from tests.support.paths import DATA, DEPLOY, ROOT
from tests.support.process import run

DEPLOYED = DEPLOY / "prom_sky_con.yml"
CONFIG = DATA / "config"
PASSWORD = "hunter2"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prom_sky_con.yml"
    path.write_text(
        f"analyzer: {{auth: {{cluster: {{username: me, password: {PASSWORD}}}}}}}\n"
        "pipeline: {store: {type: prom_sky_con, prom_sky_con: {port: 9123}}}\n"
    )
    return path


def test_version_is_printed() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"skyfast {skyfast.__version__}\n")


def test_version_is_printed_as_json() -> None:
    result = run("--version", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {
        "version": skyfast.__version__,
        "commit": None,
        "built": None,
        "python": platform.python_version(),
    }


def test_option_json_requires_option_version() -> None:
    assert run("--json").stderr == "skyfast: --json requires --version (see skyfast --help)\n"


def test_help_fits_a_screen_and_lists_every_option() -> None:
    result = run("--help", COLUMNS="80")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 29
    assert max(map(len, lines)) <= 80
    for option in (
        "CONFIG",
        "--check",
        "--demo",
        "--replay FILE",
        "--replay-speed",
        "--record FILE",
        "--record-anonymous",
        "--log.level",
        "--log.format",
        "--config.file",
        "--strict",
        "--web.listen-address",
        "--web.systemd-socket",
        "--shard I/N",
        "--web.config.file",
        "--print-completion SHELL",
        "--version",
        "--json",
        "/etc/skydive/",
    ):
        assert option in result.stdout


def test_check_prints_the_effective_configuration(file: Path) -> None:
    result = run("--check", str(file), SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_CONNECTION_TIMEOUT="99")
    assert (result.returncode, result.stderr) == (0, "")
    store = yaml.safe_load(result.stdout)["pipeline"]["store"]["prom_sky_con"]
    assert (store["port"], store["connection_timeout"]) == (9123, 99)
    assert PASSWORD not in result.stdout


HASH = "$2b$04$mIlnSfcSkY2lOMpwfcmuP.EFUAxUtPcAnLSWMMJXAf4g80v5YwCFm"


def test_check_validates_the_web_configuration(file: Path, tmp_path: Path) -> None:
    web = tmp_path / "web.yml"
    web.write_text(f"basic_auth_users:\n  alice: {HASH}\n")
    result = run("--check", "--web.config.file", str(web), str(file))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("# Web configuration: plain HTTP, 1 user.\n")
    assert HASH not in result.stdout
    web.write_text(f"basic_auth_users:\n  alice: {PASSWORD}\n")
    for arguments in (("--check",), ()):
        result = run(*arguments, f"--web.config.file={web}", str(file))
        assert (result.returncode, result.stdout) == (2, "")
        assert f"skyfast: {web}: line 2: basic_auth_users.alice: <hidden> is not" in result.stderr
        assert PASSWORD not in result.stderr
    assert run("--check", "--web.config.file=", str(file)).returncode == 0


def test_several_unknown_keys_of_the_web_configuration_are_listed(
    file: Path, tmp_path: Path
) -> None:
    web = tmp_path / "web.yml"
    web.write_text("tls: {}\nusers: {}\n")
    result = run("--check", "--web.config.file", str(web), str(file))
    assert (result.returncode, result.stdout) == (2, "")
    assert [line.split(": ")[3] for line in result.stderr.splitlines()] == ["tls", "users"]


def test_dash_means_standard_input(file: Path) -> None:
    result = run("--check", "-", stdin=file.read_text())
    assert (result.returncode, result.stderr) == (0, "")
    assert "9123" in result.stdout


def test_output_of_check_can_be_loaded(file: Path) -> None:
    once = run("--check", str(file)).stdout
    again = run("--check", "-", stdin=once)
    assert again.returncode == 0
    assert yaml.safe_load(again.stdout) == yaml.safe_load(once)


def comments(text: str) -> list[str]:
    """Return the comments in the output of ``--check``."""
    result = run("--check", "-", stdin=text)
    assert result.returncode == 0
    assert all(" WARNING skyfast.config: " in line for line in result.stderr.splitlines())
    return [line.removeprefix("# ") for line in result.stdout.splitlines() if line.startswith("#")]


def test_check_prints_the_cost_of_a_connection() -> None:
    text = """
        pipeline.store.prom_sky_con:
          max_connections: 1000
          labels: [target_ip, target_port]
          metrics: [bytes, rtt, {name: ttl, value: TCPMetric.ABSynTTL, type: gauge}]
          views: [{prefix: lab, labels: [node_host, tag], timeout: 90, direction: sum}]
    """
    assert comments(text) == [
        "All connections together cost at most 4000 series.",
        "Each connection costs up to 4 series:",
        "  2 skydive_network_connection_total_bytes",
        "  1 skydive_network_connection_rtt_nanoseconds",
        "  1 ttl",
        "All rows of view lab (node_host, tag) together cost at most 2000 series.",
        "Each row is removed 90 s after its last report, and costs up to 2 series:",
        "  1 lab_bytes_total",
        "  1 lab_packets_total",
        "All connections and all rows of views together cost at most 6000 series.",
        "Each connection takes 160 bytes of memory, plus address strings.",
        (
            "Labels with names from the topology take 4 bytes per row of view lab, 4 bytes per"
            " flow, and about 72 bytes for each distinct name, address and capture point. In"
            " addition, the names of each address and each capture point are stored for new flows:"
            " about 40 bytes for each address and each capture point."
        ),
        "These labels need topology queries for interfaces.",
        "No analyzers are configured: skyfast subscribes to 127.0.0.1:8082.",
        "2 warnings: see the log on standard error.",
    ]


def test_default_analyzer_is_mentioned_only_if_no_analyzer_is_configured() -> None:
    default = "No analyzers are configured: skyfast subscribes to 127.0.0.1:8082."
    assert default in comments("host_id: a\n")
    assert default not in comments("analyzers: [127.0.0.1:8082]\n")
    assert default not in comments("pipeline: {subscriber: {url: ws://127.0.0.1:8082}}\n")


def test_printed_number_of_series_is_limited_by_max_flows() -> None:
    store = "{max_connections: 1000, max_flows: 10}"
    (first, *_) = comments(f"pipeline: {{store: {{prom_sky_con: {store}}}}}")
    assert first == "All connections together cost at most 50 series."


REASON = "most clients use a new port for each connection"


@pytest.mark.parametrize(
    ("keys", "warnings"),
    [
        ("{}", [f"Note: label initiator_port of connections is unbounded: {REASON}."]),
        ("{rewrite: {initiator_port: {above: 1023}}}", []),
        ("{labels: [target_port, protocol]}", []),
        (
            "{labels: [{name: id, path: UUID}], views: [{prefix: a, labels: [initiator_port]}]}",
            [
                "Note: label id of connections is unbounded: a new value for each flow.",
                f"Note: label initiator_port of view a is unbounded: {REASON}.",
            ],
        ),
    ],
)
def test_check_prints_notes_about_unbounded_labels(keys: str, warnings: list[str]) -> None:
    printed = comments(f"pipeline.store.prom_sky_con: {keys}")
    assert [line for line in printed if line.startswith("Note: label")] == warnings


def test_check_warns_about_traffic_that_is_counted_several_times() -> None:
    views = "[{prefix: a, labels: [tag]}, {prefix: b, labels: [node_tid]}]"
    text = f"pipeline.store.prom_sky_con: {{labels: [protocol], views: {views}}}"
    result = run("--check", "-", stdin=text)
    assert [line.partition("skyfast.config: ")[2] for line in result.stderr.splitlines()] == [
        f"{export}: traffic captured at several interfaces is counted"
        " several times; to avoid this, set deduplicate to 'first', or add the label node_tid"
        for export in ("connections", "view a")
    ]
    assert "several times" not in result.stdout


def test_strict_option_treats_warnings_about_traffic_as_errors() -> None:
    result = run("--check", "--strict", "-", stdin="pipeline.store.prom_sky_con.labels: [protocol]")
    assert (result.returncode, result.stdout) == (2, "")
    first, last = result.stderr.splitlines()
    assert "WARNING skyfast.config: connections: traffic captured at several interfaces" in first
    assert last == "skyfast: 1 warning; --strict treats warnings as errors"


def test_log_lines_of_check_are_not_on_standard_output() -> None:
    text = "pipeline: {encode: {type: csv}}\nui: {theme: dark}\n"
    result = run("--check", "-", "--log-level", "debug", stdin=text)
    assert result.returncode == 0
    assert "WARNING skyfast.config" in result.stderr
    assert "DEBUG skyfast.config" in result.stderr
    yaml.safe_load(result.stdout)


ERRORS = {
    "an unknown option": (["--chekc"], "", "--chekc"),
    "two files": (["a", "b"], "", "b"),
    "an unknown level": (["--log-level", "loud"], "", "loud"),
    "replay without a file": (["--replay"], "", "--replay"),
    "demo and replay": (["--demo", "--replay", "x"], "", "--demo"),
    "speed without replay": (["--replay-speed", "2"], "", "--replay-speed"),
    "record without a file": (["--record"], "", "--record"),
    "record and check": (["--record", "x", "--check"], "", "--record"),
    "anonymous without record": (["--record-anonymous"], "", "--record"),
    "a speed of zero": (["--replay-speed", "0", "--replay", "x"], "", "'0'"),
    "a speed of NaN": (["--replay-speed", "nan", "--replay", "x"], "", "'nan'"),
    "a speed without digits": (["--replay-speed", "fast", "--replay", "x"], "", "'fast' is not"),
    "a speed that is too low": (["--replay-speed", "1e-300", "--replay", "x"], "", "'1e-300'"),
    "a recording with an empty name": (
        ["--record", "", "--demo"],
        "",
        "--record: the file name is empty",
    ),
    "a missing recording": (["--replay", "/nowhere"], "", "/nowhere"),
    "a missing file": (["/nowhere.yml"], "", "/nowhere.yml"),
    "a directory": (["/"], "", "/"),
    "a misspelled key": (["-"], "pipeline: {stroe: {}}", "pipeline.stroe"),
    "a negative number": (
        ["-"],
        "pipeline: {store: {prom_sky_con: {port: -1}}}",
        "pipeline.store.prom_sky_con.port",
    ),
    "invalid YAML": (["-"], "a: [", "not valid YAML"),
}


HINTS = {
    "an option": (["--chekc"], "--chekc; did you mean --check?"),
    "an option with one hyphen": (["-config.file", "x"], "did you mean --config.file?"),
    "an option of other exporters": (["--config=x"], "did you mean --config.file?"),
    "hyphens in place of dots": (
        ["--web-listen-address", ":1"],
        "did you mean --web.listen-address?",
    ),
    "an option without its prefix": (["--listen-address=:1"], "did you mean --web.listen-address?"),
    "an abbreviated level": (["--log.level", "warn"], "did you mean warning?"),
    "a port without a colon": (
        ["--web.listen-address", "9101"],
        "'9101' has no colon; did you mean :9101?",
    ),
    "a host without a port": (
        ["--web.listen-address", "localhost"],
        "did you mean localhost:9100?",
    ),
    "IPv6 without brackets": (["--web.listen-address", "::1"], "in brackets, with a port"),
    "a URL": (["--web.listen-address", "http://a:1"], "has a scheme; write only host:port"),
    "a port out of range": (["--web.listen-address", ":65536"], "is not an address such as"),
    "an invalid host name": (["--web.listen-address", "a b:1"], "is not an address such as"),
    "a negative share": (["--shard", "-1/3"], "--shard: '-1/3' is not I/N with I from 0"),
    "a negative speed": (["--replay-speed", "-1", "--replay", "x"], "'-1' is not a number from"),
    "two files": (["a", "--config.file", "b"], "either CONFIG or --config.file"),
    "conflicting listen options": (
        ["--web.listen-address=:1", "--web.systemd-socket"],
        "--web.systemd-socket: not allowed with argument --web.listen-address",
    ),
    "strict without check": (["--strict"], "--strict requires --check"),
    "too many addresses": (["--web.listen-address=:0"] * 65, "more than 64 addresses"),
}


@pytest.mark.parametrize(("arguments", "hint"), HINTS.values(), ids=HINTS)
def test_invalid_arguments_get_a_hint(arguments: list[str], hint: str) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert hint in line


def test_unknown_option_without_a_similar_name_gets_no_hint() -> None:
    assert run("--xyz").stderr == "skyfast: unrecognized arguments: --xyz (see skyfast --help)\n"


def test_configuration_file_can_be_given_as_an_option(file: Path) -> None:
    assert "9123" in run("--check", f"--config.file={file}").stdout
    assert "9123" in run("--check", "--config.file", "-", stdin=file.read_text()).stdout


def test_log_options_override_the_configuration(file: Path) -> None:
    options = ("--log.level", "Critical", "--log.format=json")
    shown = run("--check", str(file), *options, SKYDIVE_LOGGING_LEVEL="debug").stdout
    assert yaml.safe_load(shown)["logging"] == {"level": "CRITICAL", "format": "json"}
    listed = ", ".join(LEVELS)
    assert listed in run("--help").stdout
    assert f"'loud' is not one of {listed}" in run("--log.level", "loud").stderr
    for level in (*LEVELS, "WARNING"):
        result = run("--check", "--log.level", level, str(file))
        assert yaml.safe_load(result.stdout)["logging"]["level"] == LEVELS[level.lower()]


def test_all_problems_are_listed_in_the_order_of_the_file() -> None:
    text = """
pipeline:
  filter:
    drop:
      - {name: a, target_port: x, protocol: UPD}
      - {nmae: b}
  store:
    prom_sky_con:
      prot: 1
      port: 91OO
      labels: [target_ipp, node_tid, protcol]
      views: [{labels: [tag]}, {prefix: 1a, metrics: [x], labels: [y], timeout: 5m}]
web: {max_scrapes: 0}
tls: {client_cert: /nowhere}
"""
    result = run("--check", "-", stdin=text, SKYDIVE_PIPELINE_FILTER_EXCLUDED_TAGS="a b")
    assert (result.returncode, result.stdout) == (2, "")
    problems = [line.removeprefix("skyfast: ") for line in result.stderr.splitlines()]
    store = "pipeline.store.prom_sky_con"
    expected = [
        "line 5: pipeline.filter.drop[0].target_port: 'x' is neither",
        "line 5: pipeline.filter.drop[0].protocol: 'UPD' is not one of",
        "line 6: pipeline.filter.drop[1].nmae: unknown condition",
        f"line 9: {store}.prot: unknown key; did you mean {store}.port?",
        f"line 10: {store}.port: '91OO' is not an integer",
        f"line 11: {store}.labels[0]: 'target_ipp' is not a known label; did you mean target_ip?",
        f"line 11: {store}.labels[2]: 'protcol' is not a known label; did you mean protocol?",
        f"line 12: {store}.views[0]: missing prefix; expected a view with prefix and labels",
        f"line 12: {store}.views[1].prefix: '1a' is not a metric name",
        f"line 12: {store}.views[1].labels[0]: 'y' is not a known label",
        f"line 12: {store}.views[1].metrics[0]: 'x' is not a known metric",
        f"line 12: {store}.views[1].timeout: '5m' has a unit; times are in seconds: write 300",
        "line 13: web.max_scrapes: '0' is not an integer",
        "line 14: tls.client_cert: '/nowhere' is not an existing file",
    ]
    assert len(problems) == len(expected) + 1
    for line, start in zip(problems, expected, strict=False):
        assert line.startswith(f"standard input: {start}")
    assert problems[-1].startswith("environment variable SKYDIVE_PIPELINE_FILTER_EXCLUDED_TAGS: ")


def test_conflicts_between_valid_values_are_listed_together() -> None:
    text = f"""
tls: {{client_cert: {CONFIG}/certificate.pem}}
pipeline:
  filter: {{keep: [{{name: a, tag: other}}], drop: [{{name: a, tag: other}}]}}
  store: {{prom_sky_con: {{labels: [direction]}}}}
"""
    result = run("--check", "-", stdin=text)
    assert result.returncode == 2
    assert [line.split(": ")[3] for line in result.stderr.splitlines()] == [
        "tls.client_cert",
        "pipeline.store.prom_sky_con.labels",
        "pipeline.filter.drop[0].name",
    ]


def test_warnings_are_shown_in_addition_to_errors() -> None:
    text = "Logging: {levels: debug}\nweb: {port: 1}\n"
    result = run("--check", "-", stdin=text, SKYDIVE_LOGGING_FORMATT="json")
    assert result.returncode == 2
    of_file, of_environment, error = result.stderr.splitlines()
    warning = "skyfast: warning: "
    text = "standard input: line 1: logging.levels is ignored; did you mean logging.level?"
    assert of_file == warning + text
    assert of_environment.startswith(f"{warning}environment variable SKYDIVE_LOGGING_FORMATT is")
    assert error.startswith("skyfast: standard input: line 2: web.port: unknown key")
    conflict = f"loggings: {{}}\ntls: {{client_cert: {CONFIG}/certificate.pem}}\n"
    warning, error = run("-", stdin=conflict).stderr.splitlines()
    assert "loggings is ignored" in warning
    assert "requires tls.client_key" in error


def test_warning_about_misspelled_analyzers_mentions_the_default_analyzer() -> None:
    ignored = "line 1: analysers is ignored; did you mean analyzers?"
    text = "analysers: [a:1]\n"
    result = run("--check", "-", stdin=text)
    assert result.returncode == 0
    explained = f"{ignored} analyzers is not set: the default 127.0.0.1:8082 is used\n"
    assert result.stderr.endswith(explained)
    url = "pipeline: {subscriber: {url: 'ws://a:1/'}}\n"
    assert run("--check", "-", stdin=text + url).stderr.endswith(f"{ignored}\n")
    assert run("--check", "-", stdin=text, SKYDIVE_ANALYZERS="b").stderr.endswith(f"{ignored}\n")
    assert run("--check", "-", "--demo", stdin=text).stderr.endswith(f"{ignored}\n")


def test_list_of_problems_is_bounded() -> None:
    result = run("--check", "-", stdin=f"analyzers: [{', '.join(['a/b'] * 1000)}]\n")
    lines = result.stderr.splitlines()
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == "skyfast: further errors are not shown"


SUSPICIOUS = {
    "a section at the wrong level": (
        "store: {type: prom_sky_con, prom_sky_con: {port: 9101}}",
        {},
        "line 1: store is ignored; did you mean pipeline.store?",
    ),
    "a key at the wrong level": (
        "host_id: a\nport: 9101\n",
        {},
        "line 2: port is ignored; did you mean pipeline.store.prom_sky_con.port?",
    ),
    "a section within another": (
        "skyfast: {config: {pipeline: {store: {prom_sky_con: {port: 1}}}}}",
        {},
        "line 1: skyfast.config.pipeline is ignored; did you mean pipeline?",
    ),
    "a section with another name": (
        "exporter: {port: 1, connection_timeout: 2}",
        {},
        "line 1: exporter is ignored; did you mean pipeline.store.prom_sky_con?",
    ),
    "a key among those of Skydive": (
        "host_id: a\nanalyzer: {listen: ':8082', username: a}\n",
        {},
        "line 2: analyzer.username is ignored; did you mean analyzer.auth.cluster.username?",
    ),
    "a file of Prometheus": (
        "global: {scrape_interval: 15s, scrape_timeout: 10s}\nscrape_configs: []\n",
        {},
        "standard input contains no known key",
    ),
    "a file of Kubernetes": (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {labels: {app: x}}\ndata: {a.yml: '{}'}\n",
        {},
        "standard input contains no known key",
    ),
    "a file of Skydive without analyzers": (
        "agent: {listen: ':8081'}\nanalyzer: {listen: ':8082'}\n",
        {},
        "standard input contains no known key",
    ),
    "the Go connector's other port": (
        (CONFIG / "good" / "monitoring_port.yml").read_text(),
        {},
        "line 8: pipeline.store.prom_sky_con.monitoring_port is ignored: use names_file instead",
    ),
    "a phase of another exporter": (
        "pipeline: {action: {tid1: a}}",
        {},
        "line 1: pipeline.action is ignored: not supported by skyfast",
    ),
    "a misspelled variable of the store": (
        "",
        {"SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PROT": "9101"},
        "_CON_PROT is ignored; did you mean SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PORT?",
    ),
    "the variable of the Go connector's other port": (
        "",
        {"SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_MONITORING_PORT": "9200"},
        "_MONITORING_PORT is ignored: use names_file instead, see docs/migrating.md",
    ),
    "a misspelled variable": (
        "",
        {"SKYDIVE_WEB_MAX_SCRAPE": "1"},
        "SKYDIVE_WEB_MAX_SCRAPE is ignored; did you mean SKYDIVE_WEB_MAX_SCRAPES?",
    ),
    "a variable at the wrong level": (
        "",
        {"SKYDIVE_PROM_SKY_CON_PORT": "1"},
        "is ignored; did you mean SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_PORT?",
    ),
    "a variable of a misspelled section": (
        "",
        {"SKYDIVE_LOGING_LEVEL": "debug"},
        "SKYDIVE_LOGING_LEVEL is ignored; did you mean SKYDIVE_LOGGING_LEVEL?",
    ),
    "a variable of a list of mappings": (
        "",
        {"SKYDIVE_PIPELINE_STORE_PROM_SKY_CON_VIEWS": "[]"},
        "is ignored: pipeline.store.prom_sky_con.views can only be set in the file",
    ),
    "a variable of another exporter": (
        "",
        {"SKYDIVE_PIPELINE_WRITE_S3_REGION": "a"},
        "SKYDIVE_PIPELINE_WRITE_S3_REGION is ignored: not supported by skyfast",
    ),
    "a variable that matches no key": (
        "",
        {"SKYDIVE_PIPELINE_NOTHING": "a"},
        "SKYDIVE_PIPELINE_NOTHING is ignored: it matches no configuration key",
    ),
}


@pytest.mark.parametrize(("text", "environ", "expected"), SUSPICIOUS.values(), ids=SUSPICIOUS)
def test_probable_mistakes_cause_warnings(
    text: str, environ: dict[str, str], expected: str
) -> None:
    result = run("--check", "-", stdin=text, **environ)
    assert result.returncode == 0
    (warning,) = result.stderr.splitlines()
    assert " WARNING skyfast.config: " in warning
    assert expected in warning
    strict = run("--check", "--strict", "-", stdin=text, **environ)
    assert (strict.returncode, strict.stdout) == (2, "")
    warning, last = strict.stderr.splitlines()
    assert expected in warning
    assert last == "skyfast: 1 warning; --strict treats warnings as errors"
    quiet = run("--check", "--strict", "--log.level=critical", "-", stdin=text, **environ)
    assert quiet.returncode == 2


def test_warnings_are_counted(file: Path) -> None:
    text = (CONFIG / "good" / "transform_leftover.yml").read_text()
    result = run("--check", "--strict", "-", stdin=text)
    assert result.returncode == 2
    assert [line.split(": ")[3] for line in result.stderr.splitlines()[:-1]] == [
        "pipeline.transform.secadvisor is ignored",
        "pipeline.store.buffered is ignored",
    ]
    assert result.stderr.endswith("skyfast: 2 warnings; --strict treats warnings as errors\n")
    assert run("--check", "--strict", str(file)).returncode == 0


SKYDIVE_VARIABLES = {
    "SKYDIVE_AGENT_AUTH_CLUSTER_PASSWORD": "x",
    "SKYDIVE_ANALYZER_LISTEN": ":8082",
    "SKYDIVE_FLOW_PROTOCOL": "udp",
    "SKYDIVE_LOGGING_BACKENDS": "stderr",
    "SKYDIVE_TLS_SERVER_CERT": "x",
}
KUBERNETES_VARIABLES = {
    # Kubernetes sets these variables for services named skydive, skydive-analyzer and skydive-web.
    "SKYDIVE_PORT": "tcp://10.0.0.1:8082",
    "SKYDIVE_SERVICE_HOST": "10.0.0.1",
    "SKYDIVE_ANALYZER_PORT_8082_TCP_ADDR": "10.0.0.1",
    "SKYDIVE_ANALYZER_SERVICE_PORT_HTTP": "8082",
    "SKYDIVE_WEB_PORT": "tcp://10.0.0.1:80",
    "SKYDIVE_WEB_SERVICE_HOST": "10.0.0.1",
}


@pytest.mark.parametrize("name", ["go", "empty", "nulls", "skydive", "full", "default"])
def test_usual_configurations_cause_no_warnings(name: str) -> None:
    path = CONFIG / "good" / f"{name}.yml" if name != "default" else DEPLOYED
    result = subprocess.run(
        [sys.executable, "-m", "skyfast", "--check", "--strict", str(path)],
        env={**os.environ, **SKYDIVE_VARIABLES, **KUBERNETES_VARIABLES},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


@pytest.mark.parametrize(("arguments", "stdin", "expected"), ERRORS.values(), ids=ERRORS)
def test_each_error_is_printed_on_one_line(arguments: list[str], stdin: str, expected: str) -> None:
    result = run(*arguments, stdin=stdin)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("skyfast: ")
    assert expected in line


def test_replay_modules_are_imported_only_on_demand() -> None:
    names = ["player", "recorder", "recording", "anonymizer"]
    code = (
        "import sys, skyfast.runner, skyfast.cli;"
        f"print([name for name in {names} if f'skyfast.replay.{{name}}' in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert result.stdout == "[]\n"


def test_default_configuration_path_is_that_of_the_go_connector() -> None:
    if Path("/etc/skydive/prom_sky_con.yml").exists():
        pytest.skip("this machine has a configuration file at the default path")
    result = run()
    assert result.returncode == 2
    assert result.stderr == (
        "skyfast: /etc/skydive/prom_sky_con.yml cannot be read: No such file or directory;"
        " give a CONFIG, or try --demo\n"
    )


def test_missing_file_on_the_command_line_gets_no_hint(tmp_path: Path) -> None:
    result = run(str(tmp_path / "no.yml"))
    assert result.returncode == 2
    assert result.stderr.endswith("no.yml cannot be read: No such file or directory\n")


def test_unusable_certificate_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    text = (
        f"tls: {{ca_cert: {tmp_path}/ca.pem}}\n"
        "pipeline: {subscriber: {url: 'wss://127.0.0.1:9/'}, store: {prom_sky_con: {port: 0}}}\n"
    )
    result = run("-", stdin=text)
    assert result.returncode == 2
    assert "tls.ca_cert" in result.stderr.splitlines()[-1]


def test_invalid_shard_is_rejected_in_one_line() -> None:
    result = run("--shard", "3/3")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "--shard: '3/3' is not I/N" in result.stderr


def test_demo_has_labels_for_names_unless_a_configuration_file_is_given(tmp_path: Path) -> None:
    done = run("--demo", "--check", "--strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert "- initiator_name\n" in done.stdout
    own = tmp_path / "own.yml"
    own.write_text("host_id: own\n")
    done = run(str(own), "--demo", "--check")
    assert "- initiator_name\n" not in done.stdout
