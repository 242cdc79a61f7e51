"""The adapter for Google Cloud keeps the contract of every provider, by Google's own client against the sandbox."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autoscaler.spi import Evidence, LaunchBatch, Offering, Provider, ProviderId
from tests.contract.provider_contract import ProviderContract
from tests.gce_site import SLOTS, GceSite, batch, serving


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
        return self._site.evidence(provider_id, claim=claim, at=at)


class TestGceProvider(ProviderContract):
    @pytest.fixture
    async def driver(self, tmp_path: Path) -> AsyncIterator[GceDriver]:
        async with serving(tmp_path) as site:
            yield GceDriver(site)
