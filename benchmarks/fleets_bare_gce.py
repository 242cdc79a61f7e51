"""The baselines of `fleets-gce`: what google-cloud-compute alone needs for the same. Blocking."""

from google.cloud import compute_v1

from autoscaler.clock import SystemClock
from autoscaler.spi import ProviderName, ProviderSettings
from benchmarks.fleets_bare import Spent, spent
from benchmarks.gce_cloud_child import ACCOUNT, DEPLOYED_AS, NAME, PRICES, PROJECT, REGION, client, launch
from providers.gce_clients import PAGE, Sdk
from providers.gce_names import DEPLOYMENT
from providers.gce_settings import parse

_FILTER = f'labels.{DEPLOYMENT} = "{DEPLOYED_AS}"'


def bulks_in_turn(url: str, *, batch: int, total: int) -> Spent:
    """Bulk insert after bulk insert, each until Google's operation is done."""
    regional = client(compute_v1.RegionInstancesClient, url)
    operations = client(compute_v1.RegionOperationsClient, url)

    def one() -> int:
        begun = launch(regional, batch)
        operations.wait(project=PROJECT, region=REGION, operation=begun, retry=None)
        return batch

    return spent(lambda: sum(one() for _ in range(total // batch)))


def list_by_sdk(url: str) -> Spent:
    """The SDK's own pager and messages."""
    instances = client(compute_v1.InstancesClient, url)
    asked = compute_v1.AggregatedListInstancesRequest(project=PROJECT, filter=_FILTER, max_results=PAGE)
    return spent(lambda: sum(len(found.instances) for _, found in instances.aggregated_list(request=asked, retry=None)))


def list_leanly(url: str) -> Spent:
    """The same pages as the adapter reads them."""
    options = {
        "project": PROJECT,
        "networks": {REGION: {"subnetwork": "runners"}},
        "service_account": ACCOUNT,
        "prices": PRICES,
    }
    settings = ProviderSettings(
        name=ProviderName(NAME), kind=NAME, regions=(REGION,), endpoint_url=url, options=options
    )
    pages = Sdk(parse(settings), SystemClock()).pages

    def work() -> int:
        found = pages("aggregated/instances", filter=_FILTER)
        return sum(len(scope.get("instances", ())) for page in found for scope in page["items"].values())

    return spent(work)
