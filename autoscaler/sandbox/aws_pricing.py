"""AWS's price list (Pricing API): on-demand prices as products with terms, as JSON texts in a JSON answer.

Beside each Linux product stand those that a careless reader would take for it: Windows, dedicated tenancy, unused
capacity reservations, SQL Server images.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from autoscaler.sandbox.aws_access import Caller
from autoscaler.sandbox.aws_json import Json
from autoscaler.sandbox.aws_query import AwsError

PRICING_REGIONS = ("us-east-1", "eu-central-1", "ap-south-1")
_PAGE = 100
_OFFER = "JRTCXEVQGN"
_RATE = "6YS6EN2CT7"
# operating system, tenancy, software, capacity status, price against Linux, usage operation
_KINDS = (
    ("Linux", "Shared", "NA", "Used", 1.0, "RunInstances"),
    ("Linux", "Shared", "NA", "UnusedCapacityReservation", 1.0, "RunInstances"),
    ("Linux", "Shared", "NA", "AllocatedCapacityReservation", 0.0, "RunInstances"),
    ("Linux", "Dedicated", "NA", "Used", 1.06, "RunInstances"),
    ("Linux", "Shared", "SQL Std", "Used", 3.5, "RunInstances:0004"),
    ("Windows", "Shared", "NA", "Used", 1.9, "RunInstances:0002"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A machine type in a region, at what it costs on demand."""

    region: str
    machine_type: str
    cpus: float
    memory_gib: float
    usd_hour: float


class Pricing:
    """GetProducts of AmazonEC2, with TERM_MATCH filters. `prices` is asked at each call."""

    def __init__(self, prices: Callable[[], Sequence[Priced]]) -> None:
        self._prices = prices

    def answer(self, caller: Caller, action: str, document: Json) -> Json:
        if action != "GetProducts" or caller.region not in PRICING_REGIONS:
            raise AwsError("UnknownOperationException", f"{action} is not offered in {caller.region}")
        caller.need("pricing:GetProducts")
        if document.get("ServiceCode") != "AmazonEC2":
            raise AwsError("NotFoundException", "The requested resource can't be found.")
        wanted = {}
        for filter_ in document.get("Filters", []):
            if filter_.get("Type") != "TERM_MATCH":
                raise AwsError("InvalidParameterException", "The filter type is not known here.")
            wanted[filter_["Field"]] = filter_["Value"]
        found = [product for product in self._products() if _matches(product["product"], wanted)]
        size = min(_PAGE, int(document.get("MaxResults", _PAGE)))
        start = _start(document.get("NextToken", ""))
        answer: Json = {
            "FormatVersion": "aws_v1",
            "PriceList": [json.dumps(product) for product in found[start : start + size]],
        }
        if start + size < len(found):
            answer["NextToken"] = f"page:{start + size}"
        return answer

    def _products(self) -> Iterator[Json]:
        for priced in self._prices():
            for kind in _KINDS:
                yield _product(priced, kind)


def _start(token: str) -> int:
    if not token:
        return 0
    name, _, number = token.partition(":")
    if name != "page" or not number.isdigit():
        raise AwsError("InvalidNextTokenException", "The pagination token is invalid.")
    return int(number)


def _matches(product: Json, wanted: Mapping[str, str]) -> bool:
    """A filter's field is an attribute, or one of the product's own: its family, its SKU."""
    attributes = {**product["attributes"], "productFamily": product["productFamily"], "sku": product["sku"]}
    return all(attributes.get(field) == value for field, value in wanted.items())


def _product(priced: Priced, kind: tuple[str, str, str, str, float, str]) -> Json:
    system, tenancy, software, status, factor, operation = kind
    name = f"{priced.region}/{priced.machine_type}/{'/'.join(kind[:4])}"
    sku = hashlib.sha256(name.encode()).hexdigest()[:16].upper()
    usd = f"{priced.usd_hour * factor:.10f}"
    attributes = {
        "servicecode": "AmazonEC2",
        "servicename": "Amazon Elastic Compute Cloud",
        "location": priced.region,
        "locationType": "AWS Region",
        "regionCode": priced.region,
        "instanceType": priced.machine_type,
        "instanceFamily": "General purpose",
        "currentGeneration": "Yes",
        "vcpu": f"{priced.cpus:g}",
        "memory": f"{priced.memory_gib:g} GiB",
        "operatingSystem": system,
        "tenancy": tenancy,
        "preInstalledSw": software,
        "capacitystatus": status,
        "licenseModel": "No License required",
        "marketoption": "OnDemand",
        "operation": operation,
        "usagetype": f"BoxUsage:{priced.machine_type}",
    }
    rate = {
        "unit": "Hrs",
        "endRange": "Inf",
        "beginRange": "0",
        "description": f"${usd} per On Demand {system} {priced.machine_type} Instance Hour",
        "rateCode": f"{sku}.{_OFFER}.{_RATE}",
        "appliesTo": [],
        "pricePerUnit": {"USD": usd},
    }
    term = {
        "priceDimensions": {f"{sku}.{_OFFER}.{_RATE}": rate},
        "sku": sku,
        "effectiveDate": "2026-11-01T00:00:00Z",
        "offerTermCode": _OFFER,
        "termAttributes": {},
    }
    return {
        "product": {"productFamily": "Compute Instance", "attributes": attributes, "sku": sku},
        "serviceCode": "AmazonEC2",
        "terms": {"OnDemand": {f"{sku}.{_OFFER}": term}},
        "version": "20261120000000",
        "publicationDate": "2026-11-20T00:00:00Z",
    }
