"""Methods on instances that change something, or read one: launches, ends, stops and starts."""

import json
from collections.abc import Callable, Sequence

from autoscaler.sandbox.gce_body import MachineBody, read_json
from autoscaler.sandbox.gce_launch import Launcher
from autoscaler.sandbox.gce_limits import GceMeter
from autoscaler.sandbox.gce_method import Ask, Method
from autoscaler.sandbox.gce_operations import Operation, Operations
from autoscaler.sandbox.gce_power import Power
from autoscaler.sandbox.gce_records import Record, Records
from autoscaler.sandbox.gce_wire import GceError

_ONE = "zones/{zone}/instances/{instance}"


class Instances:
    def __init__(
        self,
        records: Records,
        launcher: Launcher,
        power: Power,
        operations: Operations,
        *,
        meter: GceMeter,
        clock: Callable[[], float],
    ) -> None:
        self._records = records
        self._launcher = launcher
        self._power = power
        self._operations = operations
        self._meter = meter
        self._clock = clock

    def methods(self) -> Sequence[Method]:
        rows: tuple[tuple[str, str, str, str, Callable[[Ask], bytes]], ...] = (
            ("instances.insert", "POST", "zones/{zone}/instances", "create", self._insert),
            ("regionInstances.bulkInsert", "POST", "regions/{region}/instances/bulkInsert", "create", self._bulk),
            ("instances.get", "GET", _ONE, "get", self._get),
            ("instances.delete", "DELETE", _ONE, "delete", self._act(self._power.delete)),
            ("instances.stop", "POST", f"{_ONE}/stop", "stop", self._act(self._power.stop)),
            ("instances.start", "POST", f"{_ONE}/start", "start", self._act(self._power.start)),
            (
                *("instances.simulateMaintenanceEvent", "POST", f"{_ONE}/simulateMaintenanceEvent"),
                *("simulateMaintenanceEvent", self._act(self._power.simulate_maintenance)),
            ),
        )
        made = [
            Method(
                name=name,
                http=http,
                path=path,
                permission=f"compute.instances.{permission}",
                serve=serve,
                on=_ONE if path.startswith(_ONE) else None,
            )
            for name, http, path, permission, serve in rows
        ]
        path = f"{_ONE}/testIamPermissions"
        tester = Method(name="instances.testIamPermissions", http="POST", path=path, permission="", serve=self._test)
        return [*made, tester]

    def _get(self, ask: Ask) -> bytes:
        return self._records.render(self._record(ask), ask.base)

    def _test(self, ask: Ask) -> bytes:
        """Of a machine that need not exist: the project's policy decides."""
        return json.dumps(ask.allowed(read_json(ask.body))).encode()

    def _record(self, ask: Ask) -> Record:
        return self._records.get(ask.parts["zone"], ask.parts["instance"])

    def _insert(self, ask: Ask) -> bytes:
        before = self._operations.before(ask.request_id, ask.asked)
        if before is not None:
            return self._show(before, ask)
        record = self._launcher.read_insert(ask.parts["zone"], read_json(ask.body))
        _need_all(ask, record.body, f"{ask.path}/{record.name}")
        operation = self._launcher.insert(record, request_id=ask.request_id, asked=ask.asked, user=ask.caller.email)
        self._power.watch(record)
        return self._show(operation, ask)

    def _bulk(self, ask: Ask) -> bytes:
        before = self._operations.before(ask.request_id, ask.asked)
        if before is not None:
            return self._show(before, ask)
        region = ask.parts["region"]
        self._meter.charge_bulk(region, self._operations.running("bulkInsert", f"regions/{region}"))
        bulk = self._launcher.read_bulk_insert(region, read_json(ask.body))
        _need_all(ask, bulk.body, f"projects/{ask.parts['project']}")
        operation, made = self._launcher.bulk_insert(
            region, bulk, request_id=ask.request_id, asked=ask.asked, user=ask.caller.email
        )
        for record in made:
            self._power.watch(record)
        return self._show(operation, ask)

    def _act(self, act: Callable[..., Operation]) -> Callable[[Ask], bytes]:
        def serve(ask: Ask) -> bytes:
            before = self._operations.before(ask.request_id, ask.asked)
            if before is not None:
                return self._show(before, ask)
            operation = act(self._record(ask), request_id=ask.request_id, asked=ask.asked, user=ask.caller.email)
            return self._show(operation, ask)

        return serve

    def _show(self, operation: Operation, ask: Ask) -> bytes:
        return json.dumps(operation.show(self._clock(), ask.base)).encode()


def _need_all(ask: Ask, body: MachineBody, instance: str) -> None:
    """What else a launch needs, by what it asks for. Raises GceError(403)."""
    ask.need("compute.disks.create", instance.replace("/instances/", "/disks/"))
    ask.need("compute.images.useReadOnly", body.image)
    ask.need("compute.subnetworks.use", body.subnetwork)
    if body.has_external_ip:
        ask.need("compute.subnetworks.useExternalIp", body.subnetwork)
    asked = {"setMetadata": body.metadata, "setLabels": body.labels, "setTags": body.tags}
    for permission, has_any in asked.items():
        if has_any:
            ask.need(f"compute.instances.{permission}", instance)
    if body.service_account:
        ask.need("compute.instances.setServiceAccount", instance)
        try:
            ask.need("iam.serviceAccounts.actAs", body.service_account)
        except GceError as error:
            message = (
                f"The user does not have access to service account '{body.service_account}'. User: "
                f"'{ask.caller.email}'. Ask a project owner to grant you the iam.serviceAccountUser role on the "
                "service account"
            )
            raise GceError(error.status, error.reason, message) from error
