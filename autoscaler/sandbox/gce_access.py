"""Who may do what in the sandbox's project: bearer tokens with their permissions, and a record of every call.

Without any granted token the face lets everybody in (AnonymousCredentials); with one, each call needs a known one.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from autoscaler.sandbox.gce_wire import GceError

_WHO = "autoscaler@sandbox.iam.gserviceaccount.com"
_ALL = frozenset({"*"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One permission that a call needed: the method as the API names it ("instances.insert"), the resource's path
    below the version, and the permission ("compute.instances.create")."""

    method: str
    resource: str
    permission: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls. `allowed` are globs of permissions."""

    email: str = _WHO
    allowed: frozenset[str] = _ALL

    def may(self, permission: str) -> bool:
        return any(fnmatchcase(permission, glob) for glob in self.allowed)


class GceAccess:
    """The tokens of one project, and what was asked for with them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._is_open = True
        self._callers: dict[str, Caller] = {}

    def grant(self, token: str, *, allowed: Collection[str] = _ALL, email: str = _WHO) -> None:
        """Makes a token, or changes what it may do. From the first one on, nobody gets in without."""
        self._is_open = False
        self._callers[_key(token)] = Caller(email=email, allowed=frozenset(allowed))

    def revoke(self, token: str) -> None:
        del self._callers[_key(token)]

    def caller(self, authorization: str) -> Caller:
        """Of an Authorization header. Raises GceError(401)."""
        if self._is_open:
            return Caller()
        kind, _, token = authorization.partition(" ")
        found = self._callers.get(_key(token.strip())) if kind.lower() == "bearer" else None
        if found is None:
            message = "Request had invalid authentication credentials. Expected OAuth 2 access token."
            raise GceError(401, "authError", message, location="Authorization")
        return found

    def need(self, caller: Caller, *, method: str, resource: str, permission: str) -> None:
        """Records the call. Raises GceError(403) where the caller has no such permission."""
        self.calls.append(Call(method=method, resource=resource, permission=permission))
        if not caller.may(permission):
            raise GceError(403, "forbidden", f"Required '{permission}' permission for '{resource}'")


def _key(token: str) -> str:
    """Tokens are kept as digests: no repr or traceback shows one."""
    return hashlib.sha256(token.encode()).hexdigest()
