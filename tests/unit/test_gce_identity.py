"""Identity tokens of Google: what is accepted, and each way in which a hello is refused.

Keys are real ones, made here, and served by a real HTTP server on this host; machines come from a server that answers
as the API does.
"""

import base64
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import google.auth.crypt
import google.auth.jwt
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from autoscaler.calls import Calls
from autoscaler.spi import Evidence, IdentityRefused, ProviderId, ProviderName, ProviderSettings, Surroundings
from providers.gce import GceProvider, create

PROJECT = "my-project-123"
URL = "https://ci.example.com"
CLAIM = "ab" * 32
NAME = "ours-1234-0"
ZONE = "us-central1-a"
CREATED = datetime(2026, 11, 26, 14, 0, tzinfo=UTC)


class SetClock:
    """Time stands still unless a test moves it."""

    def __init__(self) -> None:
        self.at = CREATED + timedelta(minutes=1)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class Key:
    """An RSA key with its self-signed certificate, as a cloud's CA for identity tokens has it."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens")])
        builder = x509.CertificateBuilder(name, name, private.public_key(), 1, CREATED, CREATED + timedelta(days=9999))
        self.pem = builder.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        plain = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        self._signer = google.auth.crypt.RSASigner.from_string(plain, key_id=key_id)

    def token(self, claims: Mapping[str, Any]) -> str:
        encoded: bytes = google.auth.jwt.encode(self._signer, claims)
        return encoded.decode()


GOOD, OTHER = Key("good"), Key("other")


@dataclass
class Cloud:
    """The key document and one instance, as HTTP shows them."""

    keys: dict[str, str] = field(default_factory=lambda: {"good": GOOD.pem})
    instance: dict[str, Any] = field(default_factory=dict)
    key_reads: int = 0
    is_down: bool = False
    speaks_no_http: bool = False
    max_age_s: int = 3600
    public_url: str = URL

    async def show_keys(self, request: web.Request) -> web.Response:
        self.key_reads += 1
        if self.is_down:
            return web.Response(status=503)
        if self.speaks_no_http and request.transport is not None:
            request.transport.write(b"220 mail.example.com ESMTP\r\n")
            request.transport.close()
        return web.json_response(self.keys, headers={"Cache-Control": f"public, max-age={self.max_age_s}"})

    async def show_instance(self, request: web.Request) -> web.Response:
        if request.match_info["name"] != self.instance["name"]:
            return web.json_response({"error": {"code": 404, "message": "not found", "errors": []}}, status=404)
        return web.json_response(self.instance)


@dataclass(frozen=True, kw_only=True)
class Site:
    cloud: Cloud
    clock: SetClock
    provider: GceProvider

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(self.clock.now().timestamp())
        engine = {
            "instance_id": "4711",
            "instance_name": NAME,
            "project_id": PROJECT,
            "project_number": 1,
            "zone": ZONE,
            "instance_creation_timestamp": int(CREATED.timestamp()),
        }
        claims: dict[str, Any] = {
            "iss": "https://accounts.google.com",
            "aud": f"{URL}#{CLAIM}",
            "iat": now,
            "exp": now + 3600,
            "google": {"compute_engine": {**engine, **changes.pop("engine", {})}},
        }
        return claims | changes

    def evidence(self, token: str, **changes: Any) -> Evidence:
        made = Evidence(claim=CLAIM, document={"token": token}, received_at=self.clock.now(), peer_address="192.0.2.9")
        return replace(made, **changes)

    async def refusal(self, token: str) -> str:
        with pytest.raises(IdentityRefused) as refused:
            await self.provider.identify(self.evidence(token))
        return refused.value.reason


def instance_json() -> dict[str, Any]:
    texts = {"autoscaler-deployment": "ours", "autoscaler-pool": "linux", "autoscaler-batch": "b-1"}
    return {
        "id": "4711",
        "name": NAME,
        "zone": f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/zones/{ZONE}",
        "machineType": f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/zones/{ZONE}/machineTypes/e2-small",
        "status": "RUNNING",
        "creationTimestamp": "2026-11-26T06:00:00.000-08:00",
        "metadata": {"items": [{"key": key, "value": value} for key, value in texts.items()]},
        "networkInterfaces": [{"networkIP": "10.0.0.7"}],
        "scheduling": {"provisioningModel": "SPOT"},
    }


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as made:
        yield made


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Site]:
    cloud, clock, calls = Cloud(instance=instance_json()), SetClock(), Calls()
    app = web.Application()
    app.router.add_get("/certs", cloud.show_keys)
    app.router.add_get(f"/compute/v1/projects/{PROJECT}/zones/{ZONE}/instances/{{name}}", cloud.show_instance)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    settings = ProviderSettings(
        name=ProviderName("gce"),
        kind="gce",
        regions=("us-central1",),
        endpoint_url=url,
        options={
            "project": PROJECT,
            "service_account": "runner@example.iam.gserviceaccount.com",
            "networks": {"us-central1": {"subnetwork": "ci"}},
            "prices": {"e2-small": {"spot": 0.01}},
            "trust_anchors": f"{url}/certs",
            **options,
        },
    )
    around = Surroundings(
        deployment="ours", runner_prefix="ours-", clock=clock, gates=calls, public_url=lambda: cloud.public_url
    )
    provider = create(settings, around)
    assert isinstance(provider, GceProvider)
    try:
        yield Site(cloud=cloud, clock=clock, provider=provider)
    finally:
        await provider.aclose()
        await calls.aclose()
        await runner.cleanup()


async def test_a_machine_of_ours_proves_itself(site: Site) -> None:
    identity = await site.provider.identify(site.evidence(GOOD.token(site.claims())))
    assert identity.provider_id == f"{ZONE}/{NAME}"
    assert (identity.zone, identity.address, identity.started_at) == (ZONE, "10.0.0.7", CREATED)


async def test_a_creation_says_nothing_of_a_later_start(site: Site) -> None:
    site.cloud.instance["lastStartTimestamp"] = "2026-11-26T07:30:00.000-08:00"
    identity = await site.provider.identify(site.evidence(GOOD.token(site.claims())))
    assert identity.started_at is None


async def test_a_machine_that_was_launched_before_a_reload_still_proves_itself(site: Site) -> None:
    token = GOOD.token(site.claims())
    await site.provider.identify(site.evidence(token))
    site.cloud.public_url = "https://elsewhere.example.com"
    await site.provider.identify(site.evidence(token))
    await site.provider.identify(site.evidence(GOOD.token(site.claims(aud=f"https://elsewhere.example.com#{CLAIM}"))))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://evil.example.com"}, "signature"),
        ({"aud": URL}, "signature"),
        ({"aud": f"{URL}#{'cd' * 32}"}, "signature"),
        ({"aud": f"https://evil.example.com#{CLAIM}"}, "signature"),
        ({"google": {}}, "signature"),
        ({"google": {"compute_engine": "yes"}}, "signature"),
        ({"google": "yes"}, "signature"),
        ({"iat": "now"}, "signature"),
        ({"engine": {"project_id": "other-project"}}, "account"),
        ({"engine": {"zone": "europe-west1-b"}}, "region"),
        ({"engine": {"zone": 5}}, "region"),
        ({"engine": {"instance_id": "4712"}}, "unknown"),
        ({"engine": {"instance_name": "another"}}, "unknown"),
        ({"engine": {"instance_name": "../../x"}}, "unknown"),
    ],
)
async def test_a_signed_token_of_something_else_is_refused(site: Site, changes: dict[str, Any], reason: str) -> None:
    assert await site.refusal(GOOD.token(site.claims(**changes))) == reason


@pytest.mark.parametrize("age_s", [331, -31, 3700])
async def test_an_old_token_and_one_of_the_future_are_refused(site: Site, age_s: int) -> None:
    issued = int(site.clock.now().timestamp()) - age_s
    assert await site.refusal(GOOD.token(site.claims(iat=issued, exp=issued + 3600))) == "window"


async def test_an_expired_token_is_refused(site: Site) -> None:
    now = int(site.clock.now().timestamp())
    assert await site.refusal(GOOD.token(site.claims(iat=now - 100, exp=now - 31))) == "window"


async def test_the_key_of_somebody_else_is_refused(site: Site) -> None:
    forged = Key("good")
    assert await site.refusal(forged.token(site.claims())) == "signature"
    assert await site.refusal(OTHER.token(site.claims())) == "signature"


async def test_a_token_without_a_signature_is_refused(site: Site) -> None:
    head = encoded({"alg": "none", "kid": "good"})
    body = encoded(site.claims())
    for token in ("", "x", "a.b.c", f"{head}.{body}.", f"{head}.{body}.AAAA", "." * 3, "a" * 100_000):
        assert await site.refusal(token) == "signature"


@pytest.mark.parametrize("part", ["head", "body"])
async def test_a_token_that_is_nested_deeply_is_refused(site: Site, part: str) -> None:
    nested = base64.urlsafe_b64encode(b"[" * 5001).rstrip(b"=").decode()
    head, body = encoded({"alg": "RS256", "kid": "good"}), encoded(site.claims())
    token = f"{nested}.{body}.AAAA" if part == "head" else f"{head}.{nested}.AAAA"
    assert await site.refusal(token) == "signature"


async def test_a_token_signed_with_the_public_key_as_a_shared_secret_is_refused(site: Site) -> None:
    head, body = encoded({"alg": "HS256", "kid": "good"}), encoded(site.claims())
    mac = hmac.new(GOOD.pem.encode(), f"{head}.{body}".encode(), "sha256").digest()
    assert await site.refusal(f"{head}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}") == "signature"


async def test_each_bit_of_a_token_counts(site: Site) -> None:
    token = GOOD.token(site.claims())
    for at in (5, len(token) // 2, len(token) - 1):
        for other in "A0_w":
            if token[at] != other:
                assert await site.refusal(f"{token[:at]}{other}{token[at + 1 :]}") == "signature"


async def test_a_machine_of_another_deployment_or_one_that_is_off_is_unknown(site: Site) -> None:
    site.cloud.instance["metadata"]["items"][0]["value"] = "theirs"
    assert await site.refusal(GOOD.token(site.claims())) == "unknown"
    site.cloud.instance = {**instance_json(), "status": "TERMINATED"}
    assert await site.refusal(GOOD.token(site.claims())) == "unknown"


async def test_the_callers_address_counts_where_it_is_trusted() -> None:
    async with serving(trust_peer_address=True) as site:
        token = GOOD.token(site.claims())
        assert await site.refusal(token) == "address"
        evidence = replace(site.evidence(token), peer_address="10.0.0.7")
        assert (await site.provider.identify(evidence)).address == "10.0.0.7"


async def test_keys_are_read_once_while_they_are_fresh(site: Site) -> None:
    for _ in range(3):
        await site.provider.identify(site.evidence(GOOD.token(site.claims())))
    assert site.cloud.key_reads == 1
    site.clock.at += timedelta(seconds=site.cloud.max_age_s)
    await site.provider.identify(site.evidence(GOOD.token(site.claims())))
    assert site.cloud.key_reads == 2


async def test_a_new_key_is_found_and_a_stranger_cannot_make_us_ask_for_ever(site: Site) -> None:
    await site.provider.identify(site.evidence(GOOD.token(site.claims())))
    site.cloud.keys["other"] = OTHER.pem
    for _ in range(5):
        assert await site.refusal(OTHER.token(site.claims())) == "signature"
    assert site.cloud.key_reads == 1
    site.clock.at += timedelta(minutes=1)
    await site.provider.identify(site.evidence(OTHER.token(site.claims())))
    assert site.cloud.key_reads == 2


async def test_old_keys_serve_while_new_ones_cannot_be_had(site: Site) -> None:
    await site.provider.identify(site.evidence(GOOD.token(site.claims())))
    site.cloud.is_down = True
    site.clock.at += timedelta(hours=2)
    await site.provider.identify(site.evidence(GOOD.token(site.claims())))
    assert any(trouble.startswith("identity") for trouble in site.provider.status().troubles)
    site.cloud.is_down, site.cloud.speaks_no_http = False, True
    site.clock.at += timedelta(minutes=1)
    await site.provider.identify(site.evidence(GOOD.token(site.claims())))
    site.cloud.speaks_no_http = False
    site.clock.at += timedelta(minutes=1)
    await site.provider.identify(site.evidence(GOOD.token(site.claims())))
    assert not any(trouble.startswith("identity") for trouble in site.provider.status().troubles)


async def test_a_clock_that_is_off_is_told_with_its_remedy(site: Site) -> None:
    site.clock.at = datetime.now(UTC) + timedelta(minutes=10)
    await site.provider.identify(site.evidence(GOOD.token(site.claims())))
    (trouble,) = site.provider.status().troubles
    assert trouble.startswith("clock: ")
    assert "NTP" in trouble
    site.clock.at = datetime.now(UTC)
    await site.provider.describe([ProviderId(f"{ZONE}/{NAME}")])
    assert site.provider.status().troubles == ()


async def test_keys_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"good": GOOD.pem}))
    async with serving(trust_anchors=str(path)) as site:
        await site.provider.identify(site.evidence(GOOD.token(site.claims())))


def encoded(part: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
