"""The adapter for Google Cloud keeps the contract of every provider, by Google's own client against the sandbox."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autoscaler.spi import Evidence, LaunchBatch, Offering, Provider, ProviderId
from tests.contract.provider_contract import ProviderContract
from tests.gce_site import ACCOUNT, PROJECT, PUBLIC_URL, SLOTS, GceSite, batch, serving


class GceDriver:
    """See `tests.contract.provider_contract.ProviderDriver`."""

    slots = SLOTS

    def __init__(self, site: GceSite) -> None:
        self._site = site
        self.provider = self.restarted()

    @property
    def now(self) -> datetime:
        return datetime.now(UTC)

    def batch(self, token: str, *, count: int, offerings: Sequence[Offering]) -> LaunchBatch:
        return batch(token, count=count, offerings=offerings)

    def restarted(self) -> Provider:
        return self._site.provider(deployment="ours")

    def foreign(self) -> Provider:
        return self._site.provider(deployment="theirs")

    def evidence(self, provider_id: ProviderId, *, claim: str, at: datetime) -> Evidence:
        """What the metadata server would sign; machines that never were have one here as well."""
        zone, _, name = provider_id.rpartition("/")
        record = self._site.face.records.find(zone, name) if zone else None
        issued = int(at.timestamp())
        claims = {
            "iss": "https://accounts.google.com",
            "aud": f"{PUBLIC_URL}#{claim}",
            "email": ACCOUNT,
            "iat": issued,
            "exp": issued + 3600,
            "google": {
                "compute_engine": {
                    "project_id": PROJECT,
                    "zone": zone or "us-central1-a",
                    "instance_name": name,
                    "instance_id": record.number if record is not None else "4711",
                    "instance_creation_timestamp": issued,
                }
            },
        }
        token = self._site.notary.sign(claims)
        return Evidence(claim=claim, document={"token": token}, received_at=at, peer_address="127.0.0.1")


class TestGceProvider(ProviderContract):
    @pytest.fixture
    async def driver(self, tmp_path: Path) -> AsyncIterator[GceDriver]:
        async with serving(tmp_path) as site:
            yield GceDriver(site)
