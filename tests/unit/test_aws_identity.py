"""AWS's signed identity documents: what is accepted, and every forgery that is not.

Messages are made by two other programs than the one that reads them: `cryptography` in DER, `openssl cms` in BER with
indefinite lengths as AWS does.
"""

import base64
import dataclasses
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from asn1crypto import cms
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.spi import Evidence, Identity, IdentityRefused, ProviderId, SettingsError, Verdict
from providers.aws_identity import Anchors, AwsIdentity, parse_anchors
from providers.aws_pkcs7 import NotSigned, parse_signed

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
ACCOUNT = "012345678901"


@dataclasses.dataclass(slots=True)
class SetClock:
    at: datetime = NOW

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclasses.dataclass(frozen=True, slots=True)
class Signer:
    """A region's key with its self-signed certificate, also as PEM files for openssl."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate
    folder: Path

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


def signer(folder: Path, *, bits: int = 2048, until: datetime = NOW + timedelta(days=60_000)) -> Signer:
    folder.mkdir()
    key = rsa.generate_private_key(65537, bits)
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Amazon Web Services LLC")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=365))
        .not_valid_after(until)
        .sign(key, hashes.SHA256())
    )
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return Signer(key, certificate, folder)


@pytest.fixture(scope="module")
def east(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return signer(tmp_path_factory.mktemp("east") / "s")


@pytest.fixture(scope="module")
def west(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return signer(tmp_path_factory.mktemp("west") / "s")


def document(**changes: object) -> bytes:
    said = {
        **{"accountId": ACCOUNT, "architecture": "x86_64", "availabilityZone": "us-east-1a", "billingProducts": None},
        **{"imageId": "ami-0a", "instanceId": "i-0123456789abcdef0", "instanceType": "m7i.large", "kernelId": None},
        **{"pendingTime": "2026-11-26T11:59:00Z", "privateIp": "10.0.0.209", "region": "us-east-1"},
        "version": "2017-09-30",
    }
    return json.dumps(said | changes, indent=2, separators=(",", " : ")).encode()


def der(content: bytes, by: Signer, *options: PKCS7Options) -> bytes:
    made = PKCS7SignatureBuilder().set_data(content).add_signer(by.certificate, by.key, hashes.SHA256())
    return made.sign(Encoding.DER, [PKCS7Options.Binary, *(options or (PKCS7Options.NoCerts,))])


def ber(content: bytes, by: Signer, *more: str, md: str = "sha256", certificates: bool = False) -> bytes:
    command = ["openssl", "cms", "-sign", "-binary", "-nodetach", "-stream", "-outform", "DER", "-md", md]
    command += ["-signer", str(by.folder / "certificate.pem"), "-inkey", str(by.folder / "key.pem"), *more]
    return subprocess.run(
        command if certificates else [*command, "-nocerts"], input=content, capture_output=True, check=True
    ).stdout


def wire(message: bytes) -> str:
    """As the metadata service gives it: base64 in lines."""
    return base64.encodebytes(message).decode()


Make = Callable[..., AwsIdentity]


@pytest.fixture
def make(east: Signer, west: Signer) -> Make:
    def identity(*, anchors: Anchors | None = None, clock: SetClock | None = None, trusts: bool = False) -> AwsIdentity:
        return AwsIdentity(
            account=ACCOUNT,
            regions=("us-east-1", "us-west-2"),
            anchors=parse_anchors({"us-east-1": east.pem, "us-west-2": west.pem}) if anchors is None else anchors,
            trusts_peer_address=trusts,
            clock=clock or SetClock(),
        )

    return identity


def evidence(text: str, peer: str = "192.0.2.1", **beside: str) -> Evidence:
    return Evidence(claim="ab" * 32, document={"rsa2048": text, **beside}, received_at=NOW, peer_address=peer)


def refusal(identity: AwsIdentity, text: str, peer: str = "192.0.2.1") -> str:
    with pytest.raises(IdentityRefused) as refused:
        identity.identify(evidence(text, peer))
    assert ACCOUNT not in str(refused.value)
    return refused.value.reason


@pytest.mark.parametrize("encode", [der, ber], ids=["der", "ber"])
def test_a_document_of_our_account_proves_its_machine(
    encode: Callable[[bytes, Signer], bytes], east: Signer, make: Make
) -> None:
    assert make().identify(evidence(wire(encode(document(), east)))) == Identity(
        provider_id=ProviderId("i-0123456789abcdef0"),
        machine_type="m7i.large",
        zone="us-east-1a",
        address="10.0.0.209",
        started_at=datetime(2026, 11, 26, 11, 59, tzinfo=UTC),
    )


def test_openssl_makes_what_aws_sends(east: Signer) -> None:
    """Indefinite lengths and a content in pieces: the form that certificate libraries refuse."""
    message = ber(document(), east)
    assert message[:2] == b"\x30\x80"
    assert message.count(b"\x24\x80") == 1


@pytest.mark.parametrize("encode", [der, ber], ids=["der", "ber"])
def test_a_changed_content_is_refused(encode: Callable[[bytes, Signer], bytes], east: Signer, make: Make) -> None:
    message = encode(document(), east).replace(b"i-0123456789abcdef0", b"i-0123456789abcdef1")
    assert refusal(make(), wire(message)) == "signature"


@pytest.mark.parametrize("encode", [der, ber], ids=["der", "ber"])
def test_each_changed_byte_of_a_message_is_refused_or_changes_nothing(
    encode: Callable[[bytes, Signer], bytes], east: Signer, make: Make
) -> None:
    message, identity = encode(document(), east), make()
    proved = identity.identify(evidence(wire(message)))
    for at in range(len(message)):
        changed = message[:at] + bytes([message[at] ^ 0x01]) + message[at + 1 :]
        try:
            assert identity.identify(evidence(wire(changed))) == proved
        except IdentityRefused as refused:
            assert refused.reason in ("signature", "region")  # noqa: PT017 - both outcomes are right


def test_an_attackers_own_embedded_certificate_is_worth_nothing(east: Signer, make: Make, tmp_path: Path) -> None:
    attacker = signer(tmp_path / "attacker")
    for message in (ber(document(), attacker, certificates=True), der(document(), attacker, PKCS7Options.NoAttributes)):
        assert refusal(make(), wire(message)) == "signature"
    both = ber(document(), east, "-certfile", str(attacker.folder / "certificate.pem"), certificates=True)
    assert make().identify(evidence(wire(both))).provider_id == "i-0123456789abcdef0", "certificates inside are ignored"


def test_a_certificate_with_our_serial_but_another_key_is_nothing(east: Signer, make: Make, tmp_path: Path) -> None:
    attacker = signer(tmp_path / "attacker")
    name = east.certificate.subject
    forged = (
        x509.CertificateBuilder(name, name, attacker.key.public_key(), east.certificate.serial_number)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=9))
        .sign(attacker.key, hashes.SHA256())
    )
    assert refusal(make(), wire(der(document(), dataclasses.replace(attacker, certificate=forged)))) == "signature"


def test_two_signers_are_refused(east: Signer, west: Signer, make: Make) -> None:
    other = ["-signer", str(west.folder / "certificate.pem"), "-inkey", str(west.folder / "key.pem")]
    assert refusal(make(), wire(ber(document(), east, *other))) == "signature"


def test_another_regions_certificate_is_refused(west: Signer, make: Make) -> None:
    assert refusal(make(), wire(der(document(), west))) == "signature"


def test_sha_1_is_refused(east: Signer, make: Make) -> None:
    assert refusal(make(), wire(ber(document(), east, md="sha1"))) == "signature"


def test_a_signature_over_the_bare_content_is_refused(east: Signer, make: Make) -> None:
    assert refusal(make(), wire(ber(document(), east, "-noattr"))) == "signature"
    assert refusal(make(), wire(der(document(), east, PKCS7Options.NoAttributes))) == "signature"


def test_a_detached_content_is_refused(east: Signer, make: Make) -> None:
    detached = der(document(), east, PKCS7Options.DetachedSignature)
    assert refusal(make(), wire(detached)) == "signature"


def test_a_signed_text_that_is_no_identity_document_is_refused(east: Signer, make: Make) -> None:
    assert refusal(make(), wire(der(b"not json", east))) == "signature"
    assert refusal(make(), wire(der(document(instanceId="i-../x"), east))) == "signature"


@pytest.mark.parametrize("trailing", [b"\x00", b"\x00\x00", b"\x30\x00"])
def test_trailing_bytes_are_refused(trailing: bytes, east: Signer, make: Make) -> None:
    assert refusal(make(), wire(der(document(), east) + trailing)) == "signature"


@pytest.mark.parametrize("nested", [b"\x30\x80" * 1500, b"\xa0\x80" * 1500, b"\x24\x80" * 1500])
def test_deep_nesting_is_refused(nested: bytes, east: Signer, make: Make) -> None:
    assert refusal(make(), base64.b64encode(nested).decode()) == "signature"
    whole = der(document(), east)
    assert refusal(make(), base64.b64encode(whole[:60] + nested[: 3000 - len(whole)]).decode()) == "signature"


def test_what_would_take_long_to_read_is_not_read(east: Signer, make: Make) -> None:
    assert make().identify(evidence(wire(der(document(kernelId="k" * 1000), east))))
    assert refusal(make(), wire(der(document(kernelId="k" * 2500), east))) == "signature"
    message = cms.ContentInfo.load(der(document(), east))
    attributes = message["content"]["signer_infos"][0]["signed_attrs"]
    for number in range(100):
        attributes.append({"type": f"1.2.3.{number}", "values": []})
    with pytest.raises(NotSigned, match="signed attributes"):
        parse_signed(message.dump(force=True))


@pytest.mark.parametrize("text", ["", "%%%", "YWJj" * 5000, "YWJj", "ÿ", "YWJ", "Y W J j"])
def test_what_is_no_message_is_refused(text: str, make: Make) -> None:
    assert refusal(make(), text) == "signature"


def test_another_document_beside_the_message_is_ignored(east: Signer, make: Make) -> None:
    beside = {"document": document(instanceId="i-00000000000000bad").decode()}
    proved = make().identify(evidence(wire(der(document(), east)), **beside))
    assert proved.provider_id == "i-0123456789abcdef0"


def test_another_account_is_refused(east: Signer, make: Make) -> None:
    assert refusal(make(), wire(der(document(accountId="12345678901"), east))) == "account", "no leading zero"
    assert refusal(make(), wire(der(document(accountId=12345678901), east))) == "signature"


def test_a_region_without_configuration_is_refused(east: Signer, make: Make) -> None:
    assert refusal(make(), wire(der(document(region="eu-west-1"), east))) == "region"
    assert refusal(make(anchors={}), wire(der(document(), east))) == "region"


def test_a_start_61_seconds_ahead_of_our_clock_is_refused(east: Signer, make: Make) -> None:
    text = wire(der(document(pendingTime="2026-11-26T12:01:00Z"), east))
    assert make().identify(evidence(text)).started_at == NOW + timedelta(seconds=60)
    assert refusal(make(), wire(der(document(pendingTime="2026-11-26T12:01:01Z"), east))) == "window"


def test_the_callers_address_counts_where_it_is_trusted(east: Signer, make: Make) -> None:
    text = wire(der(document(), east))
    for peer in ("10.0.0.209", "::ffff:10.0.0.209"):
        assert make(trusts=True).identify(evidence(text, peer)).address == "10.0.0.209"
    for peer in ("10.0.0.210", "", "nonsense"):
        assert refusal(make(trusts=True), text, peer) == "address"
    assert make().identify(evidence(text, "203.0.113.9")).address == "10.0.0.209"
    six = wire(der(document(privateIp="fd00:0::1"), east))
    assert make(trusts=True).identify(evidence(six, "fd00::1"))
    assert refusal(make(trusts=True), wire(der(document(privateIp=""), east)), "") == "address"


def test_a_renewed_certificate_works_beside_the_old_one(east: Signer, west: Signer, make: Make) -> None:
    rotating = make(anchors=parse_anchors({"us-east-1": west.pem + b"\n" + east.pem}))
    for by in (east, west):
        assert rotating.identify(evidence(wire(ber(document(), by)))).provider_id == "i-0123456789abcdef0"


def test_a_certificate_out_of_date_is_refused_and_told(make: Make, tmp_path: Path) -> None:
    ending = signer(tmp_path / "ending", until=NOW + timedelta(days=59))
    clock, anchors = SetClock(), parse_anchors({"us-east-1": ending.pem})
    identity = make(anchors=anchors, clock=clock)
    text = wire(der(document(), ending))
    assert identity.identify(evidence(text))
    assert [(one.verdict, one.key) for one in identity.problems()] == [
        (Verdict.WARNING, "trust_anchors.us-east-1"),
        (Verdict.REFUSED, "trust_anchors.us-west-2"),
    ]
    clock.at += timedelta(days=60)
    assert refusal(identity, text) == "signature"
    assert identity.problems()[0].verdict is Verdict.REFUSED
    clock.at = NOW - timedelta(days=400)
    assert refusal(identity, wire(der(document(pendingTime="2020-01-01T00:00:00Z"), ending))) == "signature"
    assert all(one.remedy for one in identity.problems())


def test_anchors_in_date_are_no_problem(make: Make) -> None:
    assert make().problems() == []


def test_weak_and_broken_anchors_are_configuration_errors(tmp_path: Path) -> None:
    weak = signer(tmp_path / "weak", bits=1024)
    for pem in (weak.pem, b"", b"no certificate"):
        with pytest.raises(SettingsError) as error:
            parse_anchors({"us-east-1": pem})
        assert error.value.key == "trust_anchors.us-east-1"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_whatever_is_sent_is_refused_and_nothing_else_happens(sent: bytes) -> None:
    identity = AwsIdentity(account=ACCOUNT, regions=(), anchors={}, trusts_peer_address=False, clock=SetClock())
    for message in (sent, b"\x30\x80\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02\xa0\x80" + sent):
        assert refusal(identity, wire(message)) == "signature"
