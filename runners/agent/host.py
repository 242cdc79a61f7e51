"""What the machine stands on: how it proves itself, where its tags are, who announces its end. One for each kind of
`--evidence`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from runners.agent.evidence import EvidenceSource, aws_source, gce_source, local_source
from runners.agent.metadata import AwsMetadata, GceMetadata
from runners.agent.notices import Watch, watch_aws, watch_file, watch_gce_maintenance, watch_gce_preemption


class Host(NamedTuple):
    """`find_batch` is asked where the boot document has no batch. `metadata` is the authority (host or host:port) that
    jobs must not reach; empty where there is none, and then the agent's user is the provider's business too."""

    evidence: EvidenceSource
    find_batch: Callable[[], str | None]
    watches: list[Watch]
    metadata: str = ""


def local_host(provider_id: str, key_fd: int, notice: str) -> Host:
    return Host(local_source(provider_id, key_fd), lambda: None, [watch_file(notice)] if notice else [])


def aws_host() -> Host:
    metadata = AwsMetadata()
    return Host(aws_source(metadata), metadata.batch, [watch_aws(metadata)], metadata.authority)


def gce_host(daemon_url: str) -> Host:
    metadata = GceMetadata()
    watches = [watch_gce_preemption(metadata), watch_gce_maintenance(metadata)]
    return Host(gce_source(metadata, daemon_url), metadata.batch, watches, metadata.authority)
