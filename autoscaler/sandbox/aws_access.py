"""Who may do what in the sandbox's AWS account: keys, assumed roles, permissions, and a record of every call.

Owns authentication (the signature is checked for real) and authorization. Each service words its refusals its own
way. `AwsAccess.calls` keeps what was asked for as IAM sees it: permission and condition keys, so that a test can hold
a policy against it.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from autoscaler.sandbox.aws_query import AwsError
from autoscaler.sandbox.aws_signature import (
    MAX_SKEW_S,
    SignedRequest,
    is_true,
    parse_authorization,
    skew_s,
)
from autoscaler.spi import Secret

_XML_SERVICES = frozenset({"sts", "iam"})
_NO_CONTEXT: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One permission that a call needed: "ec2:RunInstances", its resource's ARN, its condition keys.

    `names_nothing`: the resource does not exist, so that conditions on it cannot be looked at and hold."""

    permission: str
    region: str
    access_key: str
    resource: str = "*"
    context: Mapping[str, str] = field(default_factory=dict)
    is_dry_run: bool = False
    names_nothing: bool = False

    @property
    def service(self) -> str:
        return self.permission.split(":")[0]

    @property
    def action(self) -> str:
        return self.permission.split(":")[1]


Policy = Callable[[Call], bool]


def anything(_: Call) -> bool:
    return True


def only(*permissions: str) -> Policy:
    """A policy of permission globs: "ec2:Describe*"."""
    return lambda call: any(fnmatchcase(call.permission, permission) for permission in permissions)


def all_but(*permissions: str) -> Policy:
    return lambda call: not only(*permissions)(call)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One access key, of a user or of an assumed role (then with a session token)."""

    access_key: str
    secret: Secret
    arn: str
    allows: Policy = anything
    session_token: str = field(default="", repr=False)
    expires_at: float = float("inf")


class AwsAccess:
    """The keys of one account. `skew_s` is how far AWS's clock is ahead of the world's."""

    def __init__(self, clock: Callable[[], float], *, account: str, skew_s: Callable[[], float] = lambda: 0.0) -> None:
        self.account = account
        self._skew_s = skew_s
        self.calls: list[Call] = []
        self.regions: Callable[[], Sequence[str]] | None = None
        """Where EC2 can be called; everywhere where nothing is said."""
        self.roles: dict[str, Policy] = {}
        self._clock = clock
        self._keys: dict[str, Key] = {}

    @property
    def now(self) -> float:
        """What time it is in the world."""
        return self._clock()

    @property
    def aws_now(self) -> float:
        """What time AWS thinks it is: signatures are held against it, answers are dated by it."""
        return self._clock() + self._skew_s()

    def grant(self, access_key: str, secret: str, *, allows: Policy = anything, user: str = "autoscaler") -> Key:
        """Makes a user's key, or changes what it may do."""
        arn = f"arn:aws:iam::{self.account}:user/{user}"
        key = Key(access_key=access_key, secret=Secret(secret), arn=arn, allows=allows)
        self._keys[access_key] = key
        return key

    def allows(self, call: Call) -> bool:
        """Whether the key of a recorded call may make it now."""
        return self._keys[call.access_key].allows(call)

    def assume(self, role_arn: str, *, session: str, duration_s: float) -> tuple[Key, Secret]:
        """A temporary key of a role in `roles`. Raises KeyError: no such role."""
        allows = self.roles[role_arn]
        name = role_arn.rpartition("/")[2]
        key = Key(
            access_key=f"ASIA{secrets.token_hex(8).upper()}",
            secret=Secret(secrets.token_urlsafe(30)),
            arn=f"arn:aws:sts::{self.account}:assumed-role/{name}/{session}",
            allows=allows,
            session_token=secrets.token_urlsafe(60),
            expires_at=self.now + duration_s,
        )
        self._keys[key.access_key] = key
        return key, key.secret

    def caller(self, request: SignedRequest) -> "Caller":
        """Raises AwsError in the words of the service that is called."""
        signature = parse_authorization(request.headers.get("authorization", ""))
        words = _Words(signature.service)
        key = self._keys.get(signature.access_key)
        if key is None or key.session_token != request.headers.get("x-amz-security-token", ""):
            raise words.unknown_key()
        if self.regions is not None and signature.service == "ec2" and signature.region not in self.regions():
            # What EC2 says in a region that the account has not opted in to.
            raise words.unknown_key()
        if not is_true(signature, request, secret=key.secret):
            raise words.wrong_signature()
        ahead_s = skew_s(request, self.aws_now)
        if abs(ahead_s) > MAX_SKEW_S:
            raise words.skewed(is_ahead=ahead_s > 0)
        if key.expires_at <= self.now:
            raise AwsError("ExpiredToken", "The security token included in the request is expired", status=403)
        return Caller(access=self, key=key, region=signature.region, service=signature.service)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls which service in which region."""

    access: AwsAccess
    key: Key
    region: str
    service: str

    @property
    def now(self) -> float:
        return self.access.now

    @property
    def account(self) -> str:
        return self.access.account

    def need(
        self,
        permission: str,
        *,
        resource: str = "*",
        context: Mapping[str, str] = _NO_CONTEXT,
        is_dry_run: bool = False,
        names_nothing: bool = False,
    ) -> None:
        """Records the call. Raises AwsError where the key's policy does not allow it."""
        call = Call(
            permission=permission,
            region=self.region,
            access_key=self.key.access_key,
            resource=resource,
            context=context,
            is_dry_run=is_dry_run,
            names_nothing=names_nothing,
        )
        self.access.calls.append(call)
        if not self.key.allows(call):
            raise _Words(self.service).denied(self.key.arn, permission, resource)


@dataclass(frozen=True, slots=True)
class _Words:
    """How one service says no to a caller."""

    service: str

    def unknown_key(self) -> AwsError:
        if self.service == "ec2":
            return _ec2_auth_failure()
        code = "InvalidClientTokenId" if self.service in _XML_SERVICES else "UnrecognizedClientException"
        return AwsError(
            code,
            "The security token included in the request is invalid.",
            status=403 if self.service in (*_XML_SERVICES, "sqs", "fis") else 400,
            query_code="InvalidClientTokenId",
        )

    def wrong_signature(self) -> AwsError:
        if self.service == "ec2":
            return _ec2_auth_failure()
        return self._signature_error(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
            "Access Key and signing method. Consult the service documentation for details."
        )

    def skewed(self, *, is_ahead: bool) -> AwsError:
        if self.service == "ec2":
            return AwsError("RequestExpired", "Request has expired.")
        return self._signature_error("Signature not yet current" if is_ahead else "Signature expired")

    def _signature_error(self, message: str) -> AwsError:
        code = "SignatureDoesNotMatch" if self.service in _XML_SERVICES else "InvalidSignatureException"
        status = 403 if self.service in (*_XML_SERVICES, "sqs", "fis") else 400
        return AwsError(code, message, status=status, query_code="SignatureDoesNotMatch")

    def denied(self, arn: str, permission: str, resource: str) -> AwsError:
        about = f"User: {arn} is not authorized to perform: {permission} on resource: {resource}"
        why = f"because no identity-based policy allows the {permission} action"
        if self.service == "ec2":
            message = f"You are not authorized to perform this operation. {about} {why}"
            return AwsError("UnauthorizedOperation", message, status=403)
        code = "AccessDenied" if self.service in _XML_SERVICES else "AccessDeniedException"
        status = 403 if self.service in (*_XML_SERVICES, "sqs", "fis") else 400
        return AwsError(code, f"{about} {why}", status=status, query_code="AccessDenied")


def _ec2_auth_failure() -> AwsError:
    return AwsError("AuthFailure", "AWS was not able to validate the provided access credentials", status=401)


def tag_context(tags: Mapping[str, str], *, kind: str) -> dict[str, str]:
    """Condition keys of tags: kind "RequestTag" for those that a call sets, "ResourceTag" for those that are there."""
    return {f"aws:{kind}/{key}": value for key, value in sorted(tags.items())}


def permissions(calls: Sequence[Call]) -> set[str]:
    """Every permission that was needed."""
    return {call.permission for call in calls}
