"""Operations of the sandbox's Compute Engine: what it does later than it answers.

    PENDING --started_at--> RUNNING --done_at, or what it waits for has happened--> DONE (with or without an error)

A repeated request id answers the same operation for an hour. Google keeps operations for two weeks; the sandbox for
`KEPT_S`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from autoscaler.sandbox.gce_wire import GceError, Json, instant, not_found, number_for

REMEMBERED_S = 3600.0
"""So long a request id is known (Google: at least 60 minutes)."""
KEPT_S = 3600.0
_NIL_UUID = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why an operation failed. `info_reason` and `metadatas` go into its errorInfo, `quota` into its quotaInfo."""

    code: str
    message: str
    http_status: int
    http_message: str
    info_reason: str = ""
    metadatas: Mapping[str, str] = field(default_factory=dict)
    quota: Json | None = None

    def error(self) -> Json:
        details: list[Json] = []
        if self.info_reason:
            info = {"reason": self.info_reason, "domain": "compute.googleapis.com", "metadatas": dict(self.metadatas)}
            details.append({"errorInfo": info})
        if self.quota is not None:
            details.append({"quotaInfo": self.quota})
        error: Json = {"code": self.code, "message": self.message}
        return error | ({"errorDetails": details} if details else {})


@dataclass(slots=True, kw_only=True)
class Operation:
    """One operation. `scope` is "zones/Z", "regions/R" or "global"; `waits_for` says when it is done where time alone
    does not. `metadata` is what only bulk inserts have."""

    name: str
    kind: str
    scope: str
    target: str
    target_id: str
    user: str
    inserted_at: float
    started_at: float
    done_at: float
    request_id: str = ""
    group: str = ""
    faults: tuple[Fault, ...] = ()
    waits_for: Callable[[], bool] | None = None
    metadata: Json | None = None
    is_done: bool = False
    shown: Json | None = None

    @property
    def path(self) -> str:
        return f"{self.scope}/operations/{self.name}"

    def settle(self, now: float) -> None:
        if not self.is_done and now >= self.done_at and (self.waits_for is None or self.waits_for()):
            self.is_done, self.done_at, self.waits_for = True, min(now, self.done_at), None

    def show(self, now: float, base: str) -> Json:
        """As the API shows it. `base` is the address up to "/compute/v1/projects/P/"."""
        self.settle(now)
        if self.shown is not None:
            return self.shown
        status = "DONE" if self.is_done else "RUNNING" if now >= self.started_at else "PENDING"
        shown: Json = {
            "kind": "compute#operation",
            "id": number_for(self.name),
            "name": self.name,
            "operationType": self.kind,
            "targetLink": base + self.target,
            "targetId": self.target_id,
            "status": status,
            "user": self.user,
            "progress": {"DONE": 100, "RUNNING": 50, "PENDING": 0}[status],
            "insertTime": instant(self.inserted_at),
            "creationTimestamp": instant(self.inserted_at),
            "selfLink": base + self.path,
        }
        kind, _, place = self.scope.partition("/")
        if place:
            shown[kind[:-1]] = base + self.scope
        if status != "PENDING":
            shown["startTime"] = instant(self.started_at)
        if self.request_id:
            shown["clientOperationId"] = self.request_id
        if self.group:
            shown["operationGroupId"] = self.group
        if self.metadata is not None:
            shown["instancesBulkInsertOperationMetadata"] = self.metadata
        if self.is_done:
            self._show_end(shown)
        return shown

    def _show_end(self, shown: Json) -> None:
        shown["endTime"] = instant(max(self.done_at, self.started_at))
        if self.faults:
            shown["error"] = {"errors": [fault.error() for fault in self.faults]}
            shown["httpErrorStatusCode"] = self.faults[0].http_status
            shown["httpErrorMessage"] = self.faults[0].http_message
        self.shown = shown


class Operations:
    """Every operation of the project, oldest first, and the request ids."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._numbers = itertools.count(1)
        self._all: dict[str, Operation] = {}
        self._requests: dict[str, tuple[float, str, Operation]] = {}

    def __iter__(self) -> Iterator[Operation]:
        return iter(list(self._all.values()))

    def add(self, operation: Operation, *, asked: str = "") -> Operation:
        """`asked` identifies what a request id was used for: the method and its path."""
        self._all[operation.path] = operation
        if operation.request_id:
            self._requests[operation.request_id] = (operation.inserted_at, asked, operation)
        self._forget()
        return operation

    def new_name(self) -> str:
        now = self._clock()
        number = next(self._numbers)
        return f"operation-{int(now * 1000)}-{number:013x}-{number * 2654435761 % 2**32:08x}-{number:08x}"

    def before(self, request_id: str, asked: str) -> Operation | None:
        """The operation that this request id has started. Raises GceError for an id that is none, or was used for
        something else."""
        if not request_id:
            return None
        if request_id == _NIL_UUID or not _is_uuid(request_id):
            raise GceError(400, "invalid", f"Invalid value for field 'requestId': '{request_id}'. Must be a UUID.")
        found = self._requests.get(request_id)
        if found is None or self._clock() - found[0] > REMEMBERED_S:
            return None
        if found[1] != asked:
            message = f"Invalid value for field 'requestId': '{request_id}'. It was used for another request."
            raise GceError(400, "invalid", message)
        return found[2]

    def get(self, scope: str, name: str, project: str) -> Operation:
        """Raises GceError(404)."""
        found = self._all.get(f"{scope}/operations/{name}")
        if found is None:
            raise not_found(f"projects/{project}/{scope}/operations/{name}")
        return found

    def running(self, kind: str, scope: str) -> int:
        now = self._clock()
        return sum(
            1
            for one in self._all.values()
            if one.kind == kind and one.scope == scope and not one.is_done and now < one.done_at
        )

    def _forget(self) -> None:
        """The oldest go first; those that have not ended stay."""
        horizon = self._clock() - KEPT_S
        for path, operation in list(itertools.islice(self._all.items(), 16)):
            if operation.is_done and operation.inserted_at < horizon:
                del self._all[path]
        for request_id, (at, _, _) in list(itertools.islice(self._requests.items(), 16)):
            if at < self._clock() - REMEMBERED_S:
                del self._requests[request_id]


def _is_uuid(text: str) -> bool:
    parts = text.split("-")
    is_hex = all(character in "0123456789abcdefABCDEF-" for character in text)
    return is_hex and [len(part) for part in parts] == [8, 4, 4, 4, 12]
