"""One method of Compute Engine's API and one call of it: what the face and the handlers share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoscaler.sandbox.gce_access import Caller, GceAccess
from autoscaler.sandbox.gce_limits import RateGroup
from autoscaler.sandbox.gce_wire import PREFIX, Json, invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """`path` is below the project. `permission` is needed on `on`, by default what the path names; "" is none."""

    name: str
    http: str
    path: str
    permission: str
    serve: "Callable[[Ask], bytes]"
    on: str | None = None

    @property
    def group(self) -> RateGroup:
        verb = self.name.rpartition(".")[2]
        if self.name.endswith(("Operations.get", "Operations.wait")):
            return RateGroup.OPERATION_READS
        if verb in ("list", "aggregatedList"):
            return RateGroup.LISTS
        return RateGroup.READS if self.http == "GET" or verb == "testIamPermissions" else RateGroup.QUERIES

    @property
    def is_write(self) -> bool:
        return self.group is RateGroup.QUERIES

    @property
    def waits(self) -> bool:
        """It answers when the operation is done, or after two minutes."""
        return self.name.endswith(".wait")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One call. `parts` are the variables of the path, `origin` the face's own address."""

    method: Method
    caller: Caller
    access: GceAccess
    parts: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    origin: str

    @property
    def base(self) -> str:
        """The address of the project, with a slash at its end."""
        return f"{self.origin}{PREFIX}projects/{self.parts['project']}/"

    @property
    def path(self) -> str:
        """What the method's path names, below the API's version."""
        below = self.method.path.format_map(self.parts)
        return f"projects/{self.parts['project']}" + (f"/{below}" if below else "")

    @property
    def resource(self) -> str:
        """What the permission is needed on."""
        if self.method.on is None:
            return self.path
        below = self.method.on.format_map(self.parts)
        return f"projects/{self.parts['project']}" + (f"/{below}" if below else "")

    @property
    def request_id(self) -> str:
        return self.query.get("requestId", "")

    @property
    def asked(self) -> str:
        """What a request id is bound to."""
        return f"{self.method.name} {self.path}"

    def need(self, permission: str, resource: str) -> None:
        """Raises GceError(403)."""
        self.access.need(self.caller, method=self.method.name, resource=resource, permission=permission)

    def allowed(self, body: Json) -> Json:
        """What testIamPermissions answers: those of the asked permissions that the caller has."""
        asked: Sequence[str] = body.get("permissions", ())
        if not asked:
            raise invalid("permissions", asked, "At least one permission must be given.")
        held = [permission for permission in asked if self.caller.may(permission)]
        return {"permissions": held} if held else {}
