"""What a new configuration changes in a running daemon."""

import ssl
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from autoscaler.config import Config, load
from autoscaler.config_types import Address, Caps, TlsConfig
from autoscaler.reloading import Certificate, config_secrets, keys_that_need_a_restart
from autoscaler.spi import Secret
from tests.config_files import ENVIRON, minimal_document, write


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    return load(write(minimal_document(), tmp_path))


def test_what_is_in_force_at_once_needs_no_restart(config: Config) -> None:
    section = replace(
        config.autoscaler, admin_tokens=(Secret("another"),), caps=Caps(instances=1), public_url="https://x"
    )
    assert keys_that_need_a_restart(config, replace(config, autoscaler=section, pools=())) == []


def test_every_key_that_needs_a_restart_is_named(config: Config) -> None:
    section = replace(config.autoscaler, admin_listen=Address(host="127.0.0.1", port=1), store="sqlite:///x", name="u")
    forge = replace(config.forges[0], webhook_secrets=(Secret("another"),))
    other = replace(config.providers[0], name=type(config.providers[0].name)("other"))
    changed = replace(config, autoscaler=section, forges=(forge,), providers=(other,))
    assert keys_that_need_a_restart(config, changed) == [
        "autoscaler.name",
        "autoscaler.admin_listen",
        "autoscaler.store",
        "forge.github",
        "provider.here",
        "provider.other",
    ]


def test_secrets_of_a_configuration_are_known(config: Config) -> None:
    assert {secret.reveal() for secret in config_secrets(config)} == {
        ENVIRON["AUTOSCALER_ADMIN_TOKEN"],
        ENVIRON["GITHUB_WEBHOOK_SECRET"],
    }


def make_certificate(folder: Path, name: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip


def name_shown(context: ssl.SSLContext) -> bytes:
    """The certificate that a new connection gets, by a handshake in memory."""
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    sides = (client.wrap_bio(ours, theirs), context.wrap_bio(theirs, ours, server_side=True))
    for side in (*sides, *sides):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    shown = sides[0].getpeercert(binary_form=True)
    assert shown is not None
    return shown


def test_a_new_certificate_is_shown_and_a_broken_one_keeps_the_old(tmp_path: Path) -> None:
    files = TlsConfig(certificate=tmp_path / "cert.pem", private_key=tmp_path / "key.pem")
    make_certificate(tmp_path, "first")
    certificate = Certificate(files)
    assert certificate.context is not None
    assert b"first" in name_shown(certificate.context)
    make_certificate(tmp_path, "second")
    certificate.reload(files)
    assert b"second" in name_shown(certificate.context)
    files.private_key.write_text("garbage")
    with pytest.raises(OSError, match="PEM"):
        certificate.reload(files)
    assert b"second" in name_shown(certificate.context)
    assert certificate.pem == files.certificate.read_text()
