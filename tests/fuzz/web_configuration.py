"""Fuzzes the web configuration file: see `tests.fuzz.configuration`."""

import random
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import yaml

from skyfast.config.yaml_nodes import ConfigError
from skyfast.web import config_file
from tests.fuzz.configuration import SECRET, check_error, corrupt
from tests.fuzz.driver import Target
from tests.fuzz.mutation import any_value, change_value, copy_tree
from tests.support.certificates import Authority

HASH = "$2b$04$abcdefghijklmnopqrstuuWGOmPBTv3nJqYtaoS9MKY4Aj.PzwVq6"

GOOD: dict[str, Any] = {
    "tls_server_config": {
        "cert_file": "ca-127.0.0.1.crt",
        "key_file": "ca-127.0.0.1.key",
        "client_ca_file": "ca.crt",
        "client_auth_type": "RequireAndVerifyClientCert",
        "client_allowed_sans": ["127.0.0.1", "prometheus.example"],
        "min_version": "TLS12",
        "max_version": "TLS13",
        "cipher_suites": ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"],
        "curve_preferences": ["CurveP256"],
        "prefer_server_cipher_suites": True,
    },
    "http_server_config": {
        "http2": False,
        "headers": {
            "Strict-Transport-Security": "max-age=31536000",
            "X-Frame-Options": "deny",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'self'",
        },
    },
    "basic_auth_users": {"alice": HASH, "bob": HASH},
    "rate_limit": {"interval": "1s", "burst": 20},
}

VALUES = (
    *("TLS10", "TLS13", "VerifyClientCertIfGiven", "NoClientCert", "1h30m", "0s", "-1s", "1e9h"),
    *("X25519", "CurveP521", "TLS_RSA_WITH_AES_128_CBC_SHA", "missing.pem", ".", "/dev/null", HASH),
    *("ca.crt", "ca-127.0.0.1.key", HASH[:-1], HASH.replace("$04$", "$31$"), "a\r\nb: c"),
)


# Errors must hide the secret if it occurs only as the hash of the user ``carol``.
_HIDDEN = re.compile(
    rb"\A(?:(?!hunter2).)*^basic_auth_users:\n  carol: hunter2[\w-]+\n(?:(?!hunter2).)*\Z",
    re.DOTALL | re.MULTILINE,
)


def _keys() -> list[str]:
    keys = list(GOOD)
    for section in GOOD.values():
        keys += section
    return [*keys, "cert", "key", "client_ca", "http2"]


class WebConfiguration(Target):
    """Loads files as ``--web.config.file`` does."""

    name: ClassVar[str] = "web_configuration"

    def open(self, stack: ExitStack) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        Authority(directory).issue("127.0.0.1")
        self._path = directory / "fuzz.yml"

    def generate(self, rng: random.Random) -> bytes:
        tree = {key: copy_tree(GOOD[key]) for key in GOOD if rng.random() < 0.7}
        for section in tree.values():
            for key in list(section):
                if rng.random() < 0.3:
                    del section[key]
                elif rng.random() < 0.1:
                    section[key] = rng.choice((*VALUES, [rng.choice(VALUES)], any_value(rng)))
        for _ in range(rng.choice((0, 0, 1, 2))):
            change_value(rng, tree, _keys())
        if rng.random() < 0.1:
            tree["basic_auth_users"] = {"carol": SECRET}
        flow_style = rng.choice((False, False, True))
        return corrupt(rng, yaml.safe_dump(tree, default_flow_style=flow_style, sort_keys=False))

    def run(self, case: bytes) -> None:
        self._path.write_bytes(case)
        try:
            config = config_file.read(str(self._path))
        except ConfigError as error:
            check_error(error, hides=SECRET if _HIDDEN.search(case) else None)
            return
        assert config.summary().isprintable()
        # Headers and allowed names are not secret, even if they look like a hash.
        public = (config.headers, config.allowed_sans, config.rate_limit)
        assert repr(config).count(HASH) == sum(repr(value).count(HASH) for value in public)
        for name, value in config.headers.items():
            assert "\n" not in name + value
            assert "\r" not in name + value
