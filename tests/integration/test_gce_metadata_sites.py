"""A machine that the adapter launched proves itself with the token of its own metadata server."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from autoscaler.sandbox.gce_metadata_sites import GceMetadataSites
from autoscaler.spi import Evidence, IdentityRefused, Shape
from tests.gce_site import PUBLIC_URL, batch, serving

CLAIM = "cd" * 32


async def read(authority: str, path: str, **query: str) -> str:
    url = f"http://{authority}/computeMetadata/v1/instance/{path}"
    headers = {"Metadata-Flavor": "Google"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url, params=query) as answer:
        assert answer.status == 200
        return await answer.text()


async def test_a_launched_machine_is_known_by_its_token(tmp_path: Path) -> None:
    async with serving(tmp_path) as site:
        provider = site.provider()
        offerings = await provider.offerings(Shape())
        (launched,) = (await provider.launch(batch("b-1", count=1, offerings=offerings[:1]))).instances
        sites = GceMetadataSites(site.driver, site.face, site.notary)
        server, environment = await sites(site.machine(launched.provider_id))
        try:
            authority = environment["GCE_METADATA_HOST"]
            audience = f"{PUBLIC_URL}#{CLAIM}"
            token = await read(authority, "service-accounts/default/identity", audience=audience, format="full")
            script = await read(authority, "attributes/startup-script")
            preempted = await read(authority, "preempted")
        finally:
            await server.aclose()

        evidence = Evidence(
            claim=CLAIM, document={"token": token}, received_at=datetime.now(UTC), peer_address=launched.address
        )
        identity = await provider.identify(evidence)

        assert identity.provider_id == launched.provider_id
        assert script.startswith("#!/bin/sh")
        assert preempted == "FALSE"
        with pytest.raises(IdentityRefused):
            await provider.identify(replace(evidence, claim="ef" * 32))
