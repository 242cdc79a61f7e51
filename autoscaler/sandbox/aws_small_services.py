"""Two small services of the sandbox's AWS: Systems Manager's parameters and Service Quotas."""

from autoscaler.sandbox.aws_access import Caller
from autoscaler.sandbox.aws_json import Json, text, texts
from autoscaler.sandbox.aws_query import AwsError
from autoscaler.sandbox.aws_setup import AwsSetup
from autoscaler.spi import CapacityType

SPOT_QUOTA = "L-34B43A08"
ON_DEMAND_QUOTA = "L-1216C47A"
_KINDS = {SPOT_QUOTA: CapacityType.SPOT, ON_DEMAND_QUOTA: CapacityType.ON_DEMAND}
_UNLIMITED = 1_000_000.0
_QUOTA_NAMES = {
    SPOT_QUOTA: "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests",
    ON_DEMAND_QUOTA: "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances",
}


class Ssm:
    """GetParameter and GetParameters, for images: parameters by region and name."""

    def __init__(self) -> None:
        self.parameters: dict[tuple[str, str], str] = {}

    def answer(self, caller: Caller, action: str, document: Json) -> Json:
        match action:
            case "GetParameter":
                name = text(document, "Name")
                caller.need("ssm:GetParameter", resource=parameter_arn(caller, name))
                if (caller.region, name) not in self.parameters:
                    raise AwsError("ParameterNotFound", "")
                return {"Parameter": self._show(caller, name)}
            case "GetParameters":
                names = texts(document, "Names")
                for name in names:
                    caller.need("ssm:GetParameters", resource=parameter_arn(caller, name))
                known = [name for name in names if (caller.region, name) in self.parameters]
                unknown = [name for name in names if name not in known]
                return {"Parameters": [self._show(caller, name) for name in known], "InvalidParameters": unknown}
            case _:
                raise AwsError("UnknownOperationException", f"The sandbox's SSM does not know {action}")

    def _show(self, caller: Caller, name: str) -> Json:
        parameter = {"Name": name, "Type": "String", "Value": self.parameters[caller.region, name], "Version": 1}
        return parameter | {"ARN": parameter_arn(caller, name), "LastModifiedDate": 0.0, "DataType": "text"}


def parameter_arn(caller: Caller, name: str) -> str:
    """AWS's own parameters are of no account."""
    account = "" if name.startswith("/aws/service/") else caller.account
    return f"arn:aws:ssm:{caller.region}:{account}:parameter/{name.lstrip('/')}"


class ServiceQuotas:
    """GetServiceQuota of EC2's vCPU quotas, as the account is set up."""

    def __init__(self, setup: AwsSetup) -> None:
        self._setup = setup

    def answer(self, caller: Caller, action: str, document: Json) -> Json:
        if action != "GetServiceQuota":
            raise AwsError("UnknownOperationException", f"The sandbox's Service Quotas do not know {action}")
        service, code = text(document, "ServiceCode"), text(document, "QuotaCode")
        caller.need("servicequotas:GetServiceQuota")
        kind = _KINDS.get(code)
        if service != "ec2" or kind is None:
            raise AwsError("NoSuchResourceException", "The request failed because the specified quota does not exist")
        quota = {
            "ServiceCode": service,
            "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
            "QuotaArn": f"arn:aws:servicequotas:{caller.region}:{caller.account}:ec2/{code}",
            "QuotaCode": code,
            "QuotaName": _QUOTA_NAMES.get(code, code),
            "Value": min(self._setup.quota(caller.region, kind), _UNLIMITED),
            "Unit": "None",
            "Adjustable": True,
            "GlobalQuota": False,
        }
        return {"Quota": quota}
