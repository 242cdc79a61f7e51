"""A host with local machines for tests: providers over one state folder, and nothing left when the test is over."""

import hashlib
import hmac
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.spi import (
    BatchToken,
    Evidence,
    LaunchBatch,
    Offering,
    PoolName,
    ProviderError,
    ProviderId,
    ProviderName,
    ProviderSettings,
    Surroundings,
)
from providers.local import LocalProvider, create
from runners.agent.evidence import local_evidence
from runners.bootstrap import boot_document, build_agent
from tests.polling import until

IDLE_RUNNER = "#!/bin/bash\nwhile true; do sleep 1; done\n"


class LocalSite:
    """See `tests.contract.provider_contract.ProviderDriver`."""

    slots = 3

    def __init__(self, folder: Path, *, daemon_url: str = "http://127.0.0.1:9", **options: Any) -> None:
        self.state_dir = folder / "state"
        self.daemon_url = daemon_url
        self._calls = Calls()
        self._made: list[LocalProvider] = []
        self._options = {"slots": self.slots, "notice_s": 0, **options}
        self._runner = folder / "actions-runner"
        (self._runner / "bin").mkdir(parents=True)
        self.write_runner(IDLE_RUNNER)
        self.provider = self.restarted()

    @property
    def now(self) -> datetime:
        return datetime.now(UTC)

    def write_runner(self, script: str) -> None:
        (self._runner / "run.sh").write_text(script)
        (self._runner / "run.sh").chmod(0o755)

    def make(self, deployment: str, name: str = "local", **options: Any) -> LocalProvider:
        settings = ProviderSettings(
            name=ProviderName(name),
            kind="local",
            regions=(),
            endpoint_url="",
            options={"state_dir": str(self.state_dir), **self._options, **options},
        )
        surroundings = Surroundings(
            deployment=deployment,
            runner_prefix=f"{deployment}-",
            clock=SystemClock(),
            gates=self._calls,
            agent=build_agent().data,
        )
        provider = create(settings, surroundings)
        assert isinstance(provider, LocalProvider)
        self._made.append(provider)
        return provider

    def restarted(self) -> LocalProvider:
        return self.make("ours")

    def foreign(self) -> LocalProvider:
        return self.make("theirs")

    def batch(
        self, token: str, *, count: int, offerings: Sequence[Offering], image: Mapping[str, str] | None = None
    ) -> LaunchBatch:
        image = {"github_runner": str(self._runner)} if image is None else image
        document = boot_document(
            daemon_url=self.daemon_url,
            provider=ProviderName("local"),
            boot_timeout=timedelta(minutes=1),
            max_lifetime=timedelta(minutes=5),
            image=image,
        )
        return LaunchBatch(
            token=BatchToken(token),
            pool=PoolName("linux"),
            count=count,
            offerings=tuple(offerings),
            image=image,
            user_data=document,
            max_lifetime=timedelta(minutes=5),
        )

    def evidence(self, provider_id: ProviderId, *, claim: str, at: datetime) -> Evidence:
        master = (self.state_dir / "ours" / "master.key").read_bytes()
        key = hmac.new(master, provider_id.encode(), hashlib.sha256).digest()
        document = local_evidence(provider_id, key, claim, at.timestamp())
        return Evidence(claim=claim, document=document, received_at=at, peer_address="127.0.0.1")

    def supervisors(self) -> list[int]:
        """Pids of the supervisors of this site's machines."""
        return [pid for pid in _pids() if f"{self.state_dir}/".encode() in _arguments(pid)]

    def folder(self, provider_id: ProviderId) -> Path:
        return self.state_dir / "ours" / provider_id

    async def aclose(self) -> None:
        for provider in self._made:
            with suppress(ProviderError):
                await provider.terminate([machine.provider_id for machine in await provider.list_instances()])
        await until(lambda: not self.supervisors())
        await self._calls.aclose()


@asynccontextmanager
async def local_site(folder: Path, **options: Any) -> AsyncIterator[LocalSite]:
    site = LocalSite(folder, **options)
    try:
        yield site
    finally:
        await site.aclose()


def processes_with(mark: str) -> list[int]:
    """Processes, this one aside, that have `mark` in their arguments."""
    return [pid for pid in _pids() if mark.encode() in _arguments(pid) and pid != os.getpid()]


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
