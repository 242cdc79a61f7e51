"""What the sandbox's Compute Engine writes and reads, held against Google's discovery document without a server."""

import json
from dataclasses import replace

import pytest

from autoscaler.sandbox.cloud_account import CloudAccount
from autoscaler.sandbox.cloud_capacity import Capacity, Shortage
from autoscaler.sandbox.cloud_driver import CloudDriver
from autoscaler.sandbox.gce_body import MachineBody, read_body
from autoscaler.sandbox.gce_catalogue import CatalogueViews, Image
from autoscaler.sandbox.gce_filter import label_asked, parse
from autoscaler.sandbox.gce_ground import Ground, catalogue_of
from autoscaler.sandbox.gce_limits import GceLimits, GceMeter, RateGroup
from autoscaler.sandbox.gce_operations import REMEMBERED_S, Operation, Operations
from autoscaler.sandbox.gce_render import Showing, show
from autoscaler.sandbox.gce_shortage import fault_of
from autoscaler.sandbox.gce_wire import GceError, Json, PageRequest
from autoscaler.spi import CapacityType
from tests.gce_law import problems_of
from tests.gce_site import IMAGE, PROJECT, REGION, SMALL, SUBNETWORK, ZONES, supplies

BASE = f"http://127.0.0.1:1/compute/v1/projects/{PROJECT}/"
NOW = 1_790_000_000.0
STATUSES = ("PROVISIONING", "STAGING", "RUNNING", "STOPPING", "TERMINATED")


def properties(**changes: object) -> Json:
    made: Json = {
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": {"sourceImage": IMAGE, "diskSizeGb": "30"}}],
        "networkInterfaces": [{"subnetwork": SUBNETWORK}],
        "labels": {"autoscaler-deployment": "tests"},
        "metadata": {"items": [{"key": "startup-script", "value": "#!/bin/sh\n" + "# boot\n" * 100}]},
        "serviceAccounts": [{"email": "runners@example.com", "scopes": ["scope"]}],
        "scheduling": {"provisioningModel": "SPOT", "maxRunDuration": {"seconds": "3600"}},
        "tags": {"items": ["ci"]},
    }
    return made | changes


def body(**changes: object) -> MachineBody:
    return read_body(properties(**changes), "resource", knows_notice=True)


def showing(asked: MachineBody, status: str) -> Showing:
    return Showing(
        name="one",
        number="1234567890123456789",
        zone=ZONES[0],
        machine_type=SMALL,
        status=status,
        address="10.128.0.9",
        body=asked,
        image=Image(path=IMAGE, family="runners", disk_gb=20),
        network="default",
        created_at=NOW,
        started_at=NOW,
        stopped_at=NOW if status == "TERMINATED" else None,
    )


def ground(quota: float | None = None) -> tuple[Ground, CloudAccount]:
    account = CloudAccount(Capacity.of(supplies()), images=frozenset({IMAGE}))
    if quota is not None:
        account.capacity.quotas[REGION, CapacityType.SPOT] = quota
    return Ground(CloudDriver(account, clock=lambda: NOW)), account


def operation(**changes: object) -> Operation:
    made = Operation(
        name="operation-1",
        kind="insert",
        scope=f"zones/{ZONES[0]}",
        target=f"zones/{ZONES[0]}/instances/one",
        target_id="123",
        user="somebody@example.com",
        inserted_at=NOW,
        started_at=NOW + 1,
        done_at=NOW + 2,
        request_id="11111111-2222-4333-8444-555555555555",
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # fields of it, by name


# ---------------------------------------------------------------------- what is written


@pytest.mark.parametrize("status", STATUSES)
def test_an_instance_is_as_google_describes_it_and_as_large(status: str) -> None:
    shown = show(showing(body(), status), BASE)

    assert problems_of("Instance", shown) == []
    assert shown["status"] == status
    assert len(json.dumps(shown)) > 2500


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduling": {"provisioningModel": "STANDARD"}},
        {"scheduling": {"provisioningModel": "SPOT", "preemptionNoticeDuration": {"seconds": "120"}}},
        {"networkInterfaces": [{"subnetwork": SUBNETWORK, "accessConfigs": [{"type": "ONE_TO_ONE_NAT"}]}]},
        {"serviceAccounts": [], "tags": {}, "labels": {}, "metadata": {}},
    ],
)
def test_an_instance_keeps_what_was_asked(changes: Json) -> None:
    asked = body(**changes)

    shown = show(showing(asked, "RUNNING"), BASE)

    assert problems_of("Instance", shown) == []
    assert read_body(_given_back(shown), "resource", knows_notice=True).schedule == asked.schedule


def _given_back(shown: Json) -> Json:
    disk = {"boot": True, "initializeParams": {"sourceImage": IMAGE}}
    return {"disks": [disk], "networkInterfaces": [{"subnetwork": "x"}], "scheduling": shown["scheduling"]}


@pytest.mark.parametrize("shortage", list(Shortage))
def test_a_failed_operation_tells_why(shortage: Shortage) -> None:
    base, _ = ground(quota=8.0)
    fault = fault_of(shortage, project=PROJECT, zone=ZONES[0], machine_type=SMALL, body=body(), ground=base)

    shown = operation(faults=(fault,)).show(NOW + 3, BASE)

    assert problems_of("Operation", shown) == []
    assert (shown["status"], len(shown["error"]["errors"])) == ("DONE", 1)
    assert shown["httpErrorStatusCode"] == fault.http_status >= 400


def test_an_operation_goes_from_pending_to_done() -> None:
    made = operation()

    shown = [made.show(NOW + after, BASE) for after in (0.5, 1.5, 2.5)]

    assert [one["status"] for one in shown] == ["PENDING", "RUNNING", "DONE"]
    assert [key in one for one in shown for key in ("startTime", "endTime")] == [False, False, True, False, True, True]
    assert [problem for one in shown for problem in problems_of("Operation", one)] == []


def test_an_operation_waits_for_what_it_is_about() -> None:
    happened: list[bool] = []
    made = operation(waits_for=lambda: bool(happened))

    before = made.show(NOW + 9, BASE)["status"]
    happened.append(True)

    assert (before, made.show(NOW + 10, BASE)["status"]) == ("RUNNING", "DONE")


def test_the_catalogue_is_as_google_describes_it() -> None:
    base, account = ground()
    views = CatalogueViews(catalogue_of(account, project=PROJECT), BASE, base.quotas)
    subnetwork = f"projects/{PROJECT}/regions/{REGION}/subnetworks/runners"

    shown = {
        "Project": views.project(),
        "Zone": views.zone(ZONES[0]),
        "Region": views.region(REGION),
        "MachineType": views.machine_type(ZONES[0], SMALL),
        "Image": views.image(IMAGE),
        "Subnetwork": views.subnetwork(subnetwork),
    }

    assert {name: problems for name, one in shown.items() if (problems := problems_of(name, one))} == {}


def test_the_law_finds_what_breaks_it() -> None:
    wrong: Json = {"id": 3, "status": "UP", "colour": "red", "scheduling": {"maxRunDuration": {"seconds": 3}}}

    found = " ".join(problems_of("Instance", wrong))

    assert all(word in found for word in ("$.id", "$.status", "colour", "$.scheduling.maxRunDuration.seconds"))


# ---------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("", True),
        ('labels.team = "ci"', True),
        ("labels.team=ci", True),
        ('labels.team != "ci"', False),
        ('(labels.team = "x") OR (status = "RUNNING")', True),
        ('(labels.team = "ci") AND (status != "RUNNING")', False),
        ('labels.team = "ci" NOT status = "TERMINATED"', True),
        ("name eq m-[0-9]+", True),
        ("name ne m-.*", False),
        ("labels.team:*", True),
        ("labels.other:*", False),
        ("scheduling.preemptible = true", True),
    ],
)
def test_filters_choose(text: str, fits: bool) -> None:
    item = {"name": "m-1", "status": "RUNNING", "labels": {"team": "ci"}, "scheduling": {"preemptible": True}}

    assert parse(text)(item) is fits


@pytest.mark.parametrize("text", ["status", "status =", '(status = "x"', "a ~ b c", ")"])
def test_broken_filters_are_refused(text: str) -> None:
    with pytest.raises(GceError, match="filter"):
        parse(text)


def test_a_filter_for_one_label_is_known_as_such() -> None:
    assert label_asked('labels.autoscaler-batch = "b-1"') == ("autoscaler-batch", "b-1")
    assert label_asked('labels.a = "b" AND status = "RUNNING"') is None


def test_rows_that_go_between_pages_cost_no_other_its_place() -> None:
    rows = list("abcdef")
    first, token = PageRequest.parse({"maxResults": "2"}).cut(rows, str)

    rows.remove("b")
    rows.insert(0, "A")
    second, token = PageRequest.parse({"maxResults": "2", "pageToken": token}).cut(rows, str)
    third, end = PageRequest.parse({"maxResults": "2", "pageToken": token}).cut(rows, str)

    assert [*first, *second, *third] == list("abcdef")
    assert end == ""


@pytest.mark.parametrize("query", [{"maxResults": "501"}, {"maxResults": "x"}, {"pageToken": "%%%"}])
def test_bad_pages_are_refused(query: dict[str, str]) -> None:
    with pytest.raises(GceError, match="invalid"):
        PageRequest.parse(query)


# ---------------------------------------------------------------------- limits and repeats


def test_a_used_up_minute_is_full_again_at_the_next() -> None:
    now = [NOW - NOW % 60 + 50]
    meter = GceMeter(GceLimits(queries_per_minute=2), lambda: now[0])
    for _ in range(2):
        meter.charge(RateGroup.QUERIES, REGION)

    with pytest.raises(GceError, match="rateLimitExceeded"):
        meter.charge(RateGroup.QUERIES, REGION)
    meter.charge(RateGroup.QUERIES, "elsewhere")
    meter.charge(RateGroup.READS, REGION)
    now[0] += 10

    meter.charge(RateGroup.QUERIES, REGION)


def test_bulk_inserts_have_limits_of_their_own() -> None:
    meter = GceMeter(GceLimits(bulk_inserts_per_second=1), lambda: NOW)

    with pytest.raises(GceError, match="rateLimitExceeded"):
        meter.charge_bulk(REGION, running=10)
    meter.charge_bulk(REGION, running=9)
    with pytest.raises(GceError, match="rateLimitExceeded"):
        meter.charge_bulk(REGION, running=0)


def test_request_ids_are_known_for_an_hour_and_for_one_request() -> None:
    now = [NOW]
    operations = Operations(lambda: now[0])
    made = operations.add(operation(), asked="instances.insert x")

    assert operations.before(made.request_id, "instances.insert x") is made
    with pytest.raises(GceError, match="another request"):
        operations.before(made.request_id, "instances.insert y")
    with pytest.raises(GceError, match="UUID"):
        operations.before("00000000-0000-0000-0000-000000000000", "instances.insert x")
    now[0] += REMEMBERED_S + 1
    assert operations.before(made.request_id, "instances.insert x") is None
