from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.needs import skip_unless


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 and model.test that signs itself, and its key."""
    skip_unless("openssl")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    where = [
        "-addext",
        "subjectAltName=IP:127.0.0.1,DNS:model.test",
        "-out",
        str(cert),
        "-keyout",
        str(key),
    ]
    subprocess.run(["openssl", *new, *where], check=True, capture_output=True)
    return cert, key
