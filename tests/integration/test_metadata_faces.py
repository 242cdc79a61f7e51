"""The sandbox's metadata services, asked by the agent's own clients and with plain requests."""

import base64
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from asn1crypto import cms

from autoscaler.sandbox.cloud_account import CloudAccount, CloudTimes
from autoscaler.sandbox.cloud_capacity import Capacity, Supply
from autoscaler.sandbox.cloud_faults import CloudFaults
from autoscaler.sandbox.cloud_identity import AwsNotary, GoogleNotary
from autoscaler.sandbox.cloud_machines import Machine, Wish
from autoscaler.sandbox.gce_metadata_face import GceFacts, GceMetadataFace
from autoscaler.sandbox.imds_face import Imds
from autoscaler.sandbox.metadata_site import MetadataSite
from autoscaler.spi import CapacityPool, CapacityType, ProviderName
from tests.polling import until

T0 = 1_800_000_000.0
POOL = CapacityPool(
    provider=ProviderName("aws"), region="us-east-1", zone="us-east-1a", machine_type="m7i.large",
    capacity_type=CapacityType.SPOT,
)  # fmt: skip
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
GOOGLE = {"Metadata-Flavor": "Google"}
INSTANCE = "/computeMetadata/v1/instance"


class Cloud:
    def __init__(self) -> None:
        self.now = T0
        self.account = CloudAccount(Capacity.of([Supply(pool=POOL, cpus=2, memory_gib=8)]), times=CloudTimes())
        made = self.account.launch(POOL, Wish(image="ami-1", user_data="hello", tags={"autoscaler-batch": "b-1"}), T0)
        assert isinstance(made, Machine)
        self.machine = made
        self.account.advance(T0 + 10)


class Asked:
    def __init__(self, site: MetadataSite, session: aiohttp.ClientSession) -> None:
        self._url = f"http://{site.authority}"
        self._session = session

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self._session.get(self._url + path, headers=headers) as answer:
            return answer.status, await answer.text()

    async def put(self, path: str, **headers: str) -> tuple[int, str]:
        async with self._session.put(self._url + path, headers=headers) as answer:
            return answer.status, await answer.text()


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
async def imds(cloud: Cloud) -> AsyncIterator[Asked]:
    face = Imds(cloud.machine, AwsNotary(("us-east-1",)), account="123456789012", clock=lambda: cloud.now)
    site = await MetadataSite(face.app()).start()
    async with aiohttp.ClientSession() as session:
        yield Asked(site, session)
    await site.aclose()


async def token_of(imds: Asked, ttl: str = "60") -> dict[str, str]:
    status, token = await imds.put("/latest/api/token", **{TTL: ttl})
    assert status == 200
    return {TOKEN: token}


async def test_without_a_session_token_nothing_is_told(cloud: Cloud, imds: Asked) -> None:
    assert (await imds.get("/latest/meta-data/instance-id"))[0] == 401
    for ttl in ("0", "21601", "x", ""):
        assert (await imds.put("/latest/api/token", **{TTL: ttl}))[0] == 400
    token = await token_of(imds)
    assert await imds.get("/latest/meta-data/instance-id", **token) == (200, cloud.machine.id)
    cloud.now += 60
    assert (await imds.get("/latest/meta-data/instance-id", **token))[0] == 401


async def test_a_notice_appears_where_the_agent_looks(cloud: Cloud, imds: Asked) -> None:
    token = await token_of(imds)
    assert (await imds.get("/latest/meta-data/spot/instance-action", **token))[0] == 404
    assert (await imds.get("/latest/meta-data/events/recommendations/rebalance", **token))[0] == 404
    cloud.account.rebalance(cloud.machine.id, T0 + 20)
    cloud.account.reclaim(cloud.machine.id, T0 + 30)
    _, action = await imds.get("/latest/meta-data/spot/instance-action", **token)
    assert json.loads(action) == {"action": "terminate", "time": "2027-01-15T08:02:30Z"}
    assert (await imds.get("/latest/meta-data/events/recommendations/rebalance", **token))[0] == 200
    assert await imds.get("/latest/meta-data/tags/instance/autoscaler-batch", **token) == (200, "b-1")
    assert await imds.get("/latest/user-data", **token) == (200, "hello")


async def test_the_identity_document_is_inside_the_signed_message(cloud: Cloud, imds: Asked) -> None:
    token = await token_of(imds)
    _, text = await imds.get("/latest/dynamic/instance-identity/rsa2048", **token)
    _, document = await imds.get("/latest/dynamic/instance-identity/document", **token)
    signed = base64.b64decode(text)
    assert signed[:2] == b"\x30\x80", "BER of indefinite length, as EC2's"
    message = cms.ContentInfo.load(signed, strict=True)
    content = message["content"]
    assert content["encap_content_info"]["content"].native == document.encode()
    assert len(content["signer_infos"]) == 1
    assert not content["certificates"]
    assert json.loads(document)["instanceId"] == cloud.machine.id


async def test_a_folder_lists_what_is_in_it_now(cloud: Cloud, imds: Asked) -> None:
    token = await token_of(imds)
    _, listed = await imds.get("/latest/meta-data/", **token)
    assert {"instance-id", "placement/", "tags/"} < set(listed.split("\n"))
    assert "spot/" not in listed
    assert await imds.get("/latest/meta-data/tags/instance", **token) == (200, "autoscaler-batch")
    cloud.account.reclaim(cloud.machine.id, T0 + 30)
    assert (await imds.get("/latest/meta-data/spot/", **token))[1].split("\n") == [
        "instance-action",
        "termination-time",
    ]
    assert (await imds.get("/latest/meta-data/autoscaling/target-lifecycle-state", **token))[0] == 404


async def test_a_session_token_is_not_given_through_a_proxy(imds: Asked) -> None:
    assert (await imds.put("/latest/api/token", **{TTL: "60", "X-Forwarded-For": "10.0.0.1"}))[0] == 403


async def test_metadata_services_refuse_by_share_and_recover(cloud: Cloud) -> None:
    faults = CloudFaults(unauthorized=1.0)
    face = Imds(cloud.machine, AwsNotary(("us-east-1",)), account="1", faults=faults, clock=lambda: cloud.now)
    site = await MetadataSite(face.app()).start()
    async with aiohttp.ClientSession() as session:
        asked = Asked(site, session)
        token = await token_of(asked)
        assert (await asked.get("/latest/meta-data/instance-id", **token))[0] == 401
        faults.end()
        assert (await asked.get("/latest/meta-data/instance-id", **token))[0] == 200
    await site.aclose()


@pytest.fixture
async def google(cloud: Cloud) -> AsyncIterator[Asked]:
    facts = GceFacts(
        number="4711", name="r-1", zone="us-central1-a", project="p", project_number=99, machine_type="n2-standard-4",
        created_at=T0, attributes={"autoscaler-batch": "b-1"}, service_account="runner@p.iam.gserviceaccount.com",
    )  # fmt: skip
    face = GceMetadataFace(cloud.machine, lambda: facts, GoogleNotary(), clock=lambda: cloud.now)
    site = await MetadataSite(face.app()).start()
    async with aiohttp.ClientSession() as session:
        yield Asked(site, session)
    await site.aclose()


async def test_googles_server_answers_only_with_its_header(google: Asked) -> None:
    assert (await google.get(f"{INSTANCE}/id"))[0] == 403
    assert await google.get(f"{INSTANCE}/id", **GOOGLE) == (200, "4711")
    assert await google.get(f"{INSTANCE}/attributes/autoscaler-batch", **GOOGLE) == (200, "b-1")
    assert (await google.get(f"{INSTANCE}/attributes/nothing", **GOOGLE))[0] == 404


async def test_googles_server_lists_folders_and_knows_the_project(google: Asked) -> None:
    assert (await google.get(f"{INSTANCE}/attributes/", **GOOGLE)) == (200, "autoscaler-batch\n")
    assert (await google.get("/computeMetadata/v1/project/project-id", **GOOGLE)) == (200, "p")
    email = "runner@p.iam.gserviceaccount.com"
    assert (await google.get(f"{INSTANCE}/service-accounts/default/email", **GOOGLE)) == (200, email)
    assert (await google.get(f"{INSTANCE}/id", **GOOGLE, **{"X-Forwarded-For": "10.0.0.1"}))[0] == 403
    assert (await google.get("/computeMetadata/v2/instance/id", **GOOGLE))[0] == 404


async def test_who_knows_an_older_value_is_answered_at_once(google: Asked) -> None:
    waiting = f"{INSTANCE}/preempted?wait_for_change=true&timeout_sec=60&last_etag=0"
    assert await google.get(waiting, **GOOGLE) == (200, "FALSE")
    assert (await google.get(f"{INSTANCE}/preempted?wait_for_change=true&timeout_sec=x", **GOOGLE))[0] == 400


async def test_who_waits_for_a_preemption_is_answered_when_it_comes(cloud: Cloud, google: Asked) -> None:
    waiting = f"{INSTANCE}/preempted?wait_for_change=true&timeout_sec=1"
    assert await google.get(waiting, **GOOGLE) == (200, "FALSE")
    cloud.account.reclaim(cloud.machine.id, T0 + 30)
    assert await until(lambda: google.get(f"{INSTANCE}/preempted", **GOOGLE)) == (200, "TRUE")


async def test_an_identity_token_names_the_machine_and_its_audience(google: Asked) -> None:
    _, token = await google.get(f"{INSTANCE}/service-accounts/default/identity?audience=a%23b&format=full", **GOOGLE)
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert (claims["aud"], claims["google"]["compute_engine"]["instance_id"]) == ("a#b", "4711")
    _, short = await google.get(f"{INSTANCE}/service-accounts/default/identity?audience=a", **GOOGLE)
    assert "google" not in json.loads(base64.urlsafe_b64decode(short.split(".")[1] + "=="))
