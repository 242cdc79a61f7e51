"""What we write on everything that we make on AWS. Keys have no "/" and no ":": machines read them as metadata."""

from collections.abc import Sequence

from autoscaler.spi import LaunchBatch

DEPLOYMENT = "autoscaler-deployment"
POOL = "autoscaler-pool"
BATCH = "autoscaler-batch"
STOPPABLE = "autoscaler-stoppable"
"""On machines that can be stopped: their spot request lives on until it is cancelled."""

Tags = list[dict[str, str]]


def tags_of(deployment: str, batch: LaunchBatch) -> Tags:
    name = f"autoscaler-{deployment}-{batch.pool}"
    named = {DEPLOYMENT: deployment, POOL: batch.pool, BATCH: batch.token, "Name": name}
    if batch.is_stoppable:
        named[STOPPABLE] = "yes"
    return [{"Key": key, "Value": value[:256]} for key, value in named.items()]


def specifications(tags: Tags, kinds: Sequence[str]) -> list[dict[str, object]]:
    return [{"ResourceType": kind, "Tags": tags} for kind in kinds]
