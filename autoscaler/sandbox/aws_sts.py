"""STS and IAM of the sandbox's AWS: who am I, take a role, does this instance profile exist."""

import hashlib

from autoscaler.sandbox.aws_access import Caller
from autoscaler.sandbox.aws_query import AwsError, Parameters, Xml, instant

_ROLE_S = 3600
_LEAST_ROLE_S = 900
_LONGEST_ROLE_S = 43_200


class Sts:
    """GetCallerIdentity needs no permission; AssumeRole one for the role."""

    def answer(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        match parameters.action:
            case "GetCallerIdentity":
                user_id = f"AIDA{caller.key.access_key[4:]}"
                return {"Arn": caller.key.arn, "UserId": user_id, "Account": caller.account}
            case "AssumeRole":
                return self._assume(caller, parameters)
            case action:
                raise AwsError("InvalidAction", f"Could not find operation {action} for version 2011-06-15")

    def _assume(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        arn = parameters.required("RoleArn")
        session = parameters.required("RoleSessionName")
        duration_s = parameters.integer("DurationSeconds", _ROLE_S)
        if not _LEAST_ROLE_S <= duration_s <= _LONGEST_ROLE_S:
            raise AwsError("ValidationError", "DurationSeconds must be between 900 and 43200")
        caller.need("sts:AssumeRole", resource=arn)
        try:
            key, secret = caller.access.assume(arn, session=session, duration_s=duration_s)
        except KeyError:
            about = f"User: {caller.key.arn} is not authorized to perform: sts:AssumeRole on resource: {arn}"
            raise AwsError("AccessDenied", about, status=403) from None
        return {
            "Credentials": {
                "AccessKeyId": key.access_key,
                "SecretAccessKey": secret.reveal(),
                "SessionToken": key.session_token,
                "Expiration": instant(key.expires_at),
            },
            "AssumedRoleUser": {"AssumedRoleId": f"AROA{key.access_key[4:]}:{session}", "Arn": key.arn},
            "PackedPolicySize": 1,
        }


class Iam:
    """Instance profiles by name, with the name of their role; whether the role that spot needs was ever made."""

    def __init__(self) -> None:
        self.has_spot_role = True
        self.instance_profiles: dict[str, str] = {}

    def answer(self, caller: Caller, parameters: Parameters) -> dict[str, Xml]:
        if parameters.action != "GetInstanceProfile":
            raise AwsError("InvalidAction", f"Could not find operation {parameters.action} for version 2010-05-08")
        name = parameters.required("InstanceProfileName")
        arn = profile_arn(caller.account, name)
        caller.need("iam:GetInstanceProfile", resource=arn)
        role = self.instance_profiles.get(name)
        if role is None:
            raise AwsError("NoSuchEntity", f"Instance Profile {name} cannot be found.", status=404)
        made = instant(0)
        return {
            "InstanceProfile": {
                "Path": "/",
                "InstanceProfileName": name,
                "InstanceProfileId": profile_id(name),
                "Arn": arn,
                "CreateDate": made,
                "Roles": [
                    {
                        "Path": "/",
                        "RoleName": role,
                        "RoleId": f"AROA{_letters(role)}",
                        "Arn": role_arn(caller.account, role),
                        "CreateDate": made,
                    }
                ],
            }
        }


def role_arn(account: str, name: str) -> str:
    return f"arn:aws:iam::{account}:role/{name}"


def profile_arn(account: str, name: str) -> str:
    return f"arn:aws:iam::{account}:instance-profile/{name}"


def profile_id(name: str) -> str:
    return f"AIPA{_letters(name)}"


def _letters(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:17].upper()
