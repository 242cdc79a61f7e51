"""What the sandbox's Compute Engine refuses, in the words of the real one, and the faults of its calls."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions as api_errors
from google.auth.exceptions import RefreshError
from google.cloud import compute_v1 as gce

from tests.gce_site import (
    FAMILY,
    IMAGE,
    PROJECT,
    SLOTS,
    SUBNETWORK,
    ask,
)
from tests.integration.gce_cloud import ZONE, Cloud, bulk_body, lawful_cloud


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with lawful_cloud(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"image": f"projects/{PROJECT}/global/images/gone"}, "notFound", "images/gone"),
        ({"machine_type": "x9-huge"}, "invalid", "does not exist in zone"),
        ({"subnetwork": SUBNETWORK + "x"}, "invalid", "subnetwork resource cannot be found"),
        ({"labels": {"Bad": "x"}}, "invalid", "Label keys"),
        ({"max_run_duration": gce.Duration(seconds=5)}, "invalid", "30 seconds"),
        ({"automatic_restart": True}, "invalid", "Spot VMs"),
        ({"preemption_notice_duration": gce.Duration(seconds=60)}, "invalid", "preemptionNoticeDuration"),
        ({"host_error_timeout_seconds": 90}, "badRequest", "Cannot find field"),
    ],
)
async def test_a_bad_machine_is_refused_with_its_reason(
    cloud: Cloud, changes: dict[str, Any], reason: str, says: str
) -> None:
    with pytest.raises(api_errors.ClientError) as refused:
        await cloud.insert("one", **changes)

    assert refused.value.errors[0]["reason"] == reason
    assert says in refused.value.message
    assert await cloud.listed() == []


async def test_the_notice_before_preemption_can_be_unknown(cloud: Cloud) -> None:
    notice = gce.Duration(seconds=120)
    await cloud.insert("one", preemption_notice_duration=notice)
    cloud.site.face.behaviour.knows_preemption_notice = False

    with pytest.raises(api_errors.BadRequest, match="preemptionNoticeDuration"):
        await cloud.insert("two", preemption_notice_duration=notice)

    assert [one.scheduling.preemption_notice_duration.seconds for one in await cloud.listed()] == [120]


async def test_calls_beyond_the_minutes_quota_are_refused(cloud: Cloud) -> None:
    cloud.site.face.limits.reads_per_minute = 2

    async def read_often() -> None:
        for _ in range(5):  # a new minute may begin in between
            await cloud.status("one")

    with pytest.raises(api_errors.Forbidden) as refused:
        await read_often()

    assert refused.value.errors[0]["reason"] == "rateLimitExceeded"


async def test_a_token_may_do_only_what_it_is_allowed(cloud: Cloud) -> None:
    cloud.site.face.access.grant("known", allowed=["compute.instances.list"])
    clients = {token: cloud.site.client(gce.InstancesClient, token=token) for token in ("known", "strange")}

    with pytest.raises(api_errors.Forbidden, match=r"compute\.instances\.get"):
        await ask(clients["known"].get, project=PROJECT, zone=ZONE, instance="one")
    with pytest.raises(RefreshError):  # a 401: the client tries to renew its token
        await ask(clients["strange"].get, project=PROJECT, zone=ZONE, instance="one")

    (call,) = cloud.site.face.calls
    path = f"projects/{PROJECT}/zones/{ZONE}/instances/one"
    assert (call.method, call.permission, call.resource) == ("instances.get", "compute.instances.get", path)


async def test_a_launch_needs_each_permission_that_it_draws_on(cloud: Cloud) -> None:
    await cloud.insert("one")

    assert {call.permission for call in cloud.site.face.calls if call.method == "instances.insert"} == {
        *(
            f"compute.instances.{verb}"
            for verb in ("create", "setLabels", "setMetadata", "setServiceAccount", "setTags")
        ),
        *("compute.disks.create", "compute.images.useReadOnly", "compute.subnetworks.use"),
        "iam.serviceAccounts.actAs",
    }


async def test_a_lost_answer_has_taken_effect(cloud: Cloud) -> None:
    cloud.faults.lost_answer = 1.0

    with pytest.raises(Exception, match="Connection"):
        await cloud.insert("one")

    cloud.faults.lost_answer = 0.0
    assert [one.name for one in await cloud.listed()] == ["one"]


async def test_throttled_and_failing_calls_take_no_effect(cloud: Cloud) -> None:
    cloud.faults.throttle = 1.0
    with pytest.raises((api_errors.Forbidden, api_errors.TooManyRequests)) as refused:
        await cloud.insert("one")
    cloud.faults.throttle, cloud.faults.internal_error = 0.0, 1.0
    with pytest.raises(api_errors.ServiceUnavailable):
        await cloud.insert("one")
    cloud.faults.internal_error = 0.0

    assert refused.value.errors[0]["reason"] == "rateLimitExceeded"
    assert await cloud.listed() == []


async def test_an_image_that_is_obsolete_makes_no_machine_and_is_not_its_familys(cloud: Cloud) -> None:
    catalogue = cloud.site.face.catalogue
    catalogue.add_images([replace(catalogue.images[IMAGE], state="OBSOLETE")])

    with pytest.raises(api_errors.BadRequest, match="obsolete"):
        await cloud.insert("one")
    with pytest.raises(api_errors.NotFound):
        await cloud.insert("one", image=FAMILY)


async def test_a_zone_that_is_down_has_no_capacity(cloud: Cloud) -> None:
    cloud.site.face.catalogue.down.add(ZONE)

    alone = await cloud.insert("one")
    bulk = await cloud.bulk(bulk_body(SLOTS + 1))

    assert alone.error.errors[0].code == "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"
    assert not bulk.error.errors
    assert ZONE not in {one.zone.rpartition("/")[2] for one in await cloud.listed()}
