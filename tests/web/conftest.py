from pathlib import Path

import pytest

from tests.support.certificates import Authority


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def file(tmp_path, authority):
    issued = authority.issue("127.0.0.1")
    path = tmp_path / "web.yml"

    def write(text="", *, tls=""):
        path.write_text(
            "tls_server_config:\n"
            f"  cert_file: {Path(issued.certificate).name}\n  key_file: {issued.key}\n"
            + "".join(f"  {line}\n" for line in tls.splitlines())
            + text
        )
        return str(path)

    return write


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "web.yml"

    def write(text):
        path.write_text(text)
        return str(path)

    return write
