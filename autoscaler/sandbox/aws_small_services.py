"""Two small services of the sandbox's AWS: Systems Manager's parameters and Service Quotas."""

from autoscaler.sandbox.aws_access import Caller
from autoscaler.sandbox.aws_json import Json, text
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
    """GetParameter, for public images: parameters by region and name."""

    def __init__(self) -> None:
        self.parameters: dict[tuple[str, str], str] = {}

    def answer(self, caller: Caller, action: str, document: Json) -> Json:
        if action != "GetParameter":
            raise AwsError("UnknownOperationException", f"The sandbox's SSM does not know {action}")
        name = text(document, "Name")
        arn = f"arn:aws:ssm:{caller.region}:{caller.account}:parameter/{name.lstrip('/')}"
        caller.need("ssm:GetParameter", resource=arn)
        value = self.parameters.get((caller.region, name))
        if value is None:
            raise AwsError("ParameterNotFound", "")
        parameter = {"Name": name, "Type": "String", "Value": value, "Version": 1, "ARN": arn}
        return {"Parameter": parameter | {"LastModifiedDate": 0.0, "DataType": "text"}}


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
