"""deploy/gcp/role.yaml grants what the adapter's calls need, and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from autoscaler.spi import CapacityType, MachineState, Provider, ProviderId, Shape, Verdict
from tests.gce_site import IMAGE, REGION, GceSite, batch, serving
from tests.polling import until

ROLE = Path(__file__).parents[2] / "deploy" / "gcp" / "role.yaml"
GRANTED = frozenset(yaml.safe_load(ROLE.read_text())["includedPermissions"])
ON_THE_RUNNERS_ACCOUNT = "iam.serviceAccounts.actAs"
"""deploy/gcp grants it on that account alone."""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[GceSite]:
    async with serving(tmp_path) as made:
        made.face.access.grant("token", allowed=GRANTED | {ON_THE_RUNNERS_ACCOUNT})
        yield made


async def test_the_role_allows_every_call_of_the_adapter_and_nothing_else(site: GceSite) -> None:
    networks = {REGION: {"subnetwork": "runners", "tags": ["ci"], "external_ip": True}}
    provider = site.provider(token="token", networks=networks)
    family = f"{IMAGE.rpartition('/')[0]}/family/runners"
    findings = await provider.check({"image": {"image": IMAGE}, "family": {"image": family}})
    assert [one.message for one in findings if one.verdict is not Verdict.OK] == []
    await live_and_die(provider)
    asked = {call.permission for call in site.face.calls} - {ON_THE_RUNNERS_ACCOUNT}
    assert asked == GRANTED


async def live_and_die(provider: Provider) -> None:
    """Everything that can be asked of two machines."""
    offered = [one for one in await provider.offerings(Shape()) if one.capacity_pool.capacity_type is CapacityType.SPOT]
    first, second = (await provider.launch(batch("b-1", count=2, offerings=offered, is_stoppable=True))).instances
    await until(lambda: in_state(provider, first.provider_id, MachineState.RUNNING))
    await provider.stop([first.provider_id])
    await until(lambda: in_state(provider, first.provider_id, MachineState.STOPPED))
    assert await provider.start([first.provider_id]) == {}
    await provider.interrupt([second.provider_id])
    async with asyncio.timeout(30):
        await provider.ack(await provider.notices())
    assert await provider.describe([first.provider_id])
    await provider.terminate([first.provider_id])
    await until(lambda: in_state(provider, first.provider_id, MachineState.TERMINATED))


async def in_state(provider: Provider, provider_id: ProviderId, state: MachineState) -> bool:
    return any(one.provider_id == provider_id and one.state is state for one in await provider.list_instances())
