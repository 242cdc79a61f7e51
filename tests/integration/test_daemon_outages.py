"""Forges, clouds and stores that fail: the daemon says so, serves the rest, acknowledges nothing that is not durable,
and recovers by itself."""

import asyncio
import resource
from collections.abc import Iterator

import pytest

from tests.integration.daemon_kit import Daemon, Site, site
from tests.polling import until
from tests.postgres import PostgresServer, running_postgres

FAULTS = (
    ("server_error", "502", ""),
    ("garbage", "", ""),
    ("rate_limited", "", "nothing to do"),
    ("revoked", "", "credentials"),
    ("slow", "", ""),
)


async def test_a_failing_forge_is_on_record_while_the_other_is_served_and_it_recovers() -> None:
    """5xx, garbage, rate limits, a revoked token, 30 s for each answer: side by side, since all of it is waiting."""
    await asyncio.gather(*(_forge_fails(kind, word, remedy) for kind, word, remedy in FAULTS))


async def _forge_fails(kind: str, word: str, remedy: str) -> None:
    async with site() as here:
        daemon = here.daemon()
        await daemon.start()
        await daemon.ready(timeout_s=30)
        here.github_fault.kind = kind
        waiting = here.submit_github("true")
        await until(lambda: here.github_fault.calls >= 2, timeout_s=30)
        await here.succeed(here.submit_gitlab("true"))
        reason = await daemon.unwell("forge/github", timeout_s=40)
        assert word in reason["detail"], kind
        assert remedy in reason["remedy"], kind
        assert "forge/gitlab" not in (await daemon.readyz())[1]
        assert waiting[0] not in here.conclusions()
        here.github_fault.kind = ""
        await here.succeed(waiting, timeout_s=60)
        await daemon.ready()


async def test_a_forge_that_is_down_and_comes_back_finds_its_jobs_served() -> None:
    """Nobody listens at its address; the job came while it was away, so only the next listing tells of it."""
    async with site() as here:
        daemon = here.daemon()
        await daemon.start()
        await daemon.ready()
        port = int(here.urls["gitlab"].rpartition(":")[2])
        await here.gitlab.aclose()
        reason = await daemon.unwell("forge/gitlab")
        assert reason["detail"]
        await here.succeed(here.submit_github("true"))
        await here.gitlab.start(port=port)
        await here.succeed(here.submit_gitlab("true"))
        await daemon.ready()


async def test_a_scope_that_does_not_exist_is_on_record_all_the_time_while_the_others_are_served() -> None:
    async with site() as here:
        daemon = here.daemon()
        text = daemon.config.read_text()
        daemon.config.write_text(text.replace('scopes = ["acme"]', 'scopes = ["acme", "no-such-org"]'))
        await daemon.start()
        reason = await daemon.unwell("forge/github")
        assert "no-such-org" in reason["detail"]
        served = asyncio.create_task(here.succeed(here.submit_github("true")))
        unwell = []
        while not served.done():
            unwell.append("forge/github" in (await daemon.readyz())[1])
            await asyncio.sleep(0.02)
        await served
        assert all(unwell)
        assert len(unwell) > 10


async def test_a_failing_provider_is_on_record_and_recovers() -> None:
    async with site() as here:
        daemon = here.daemon()
        await daemon.start()
        await daemon.ready()
        folder = here.machines / "ours"
        away = here.machines / "away"
        folder.rename(away)
        folder.write_text("in the way")
        reason = await daemon.unwell("provider/here")
        assert reason["detail"]
        names = here.submit_github("true")
        folder.unlink()
        away.rename(folder)
        await here.succeed(names, timeout_s=40)
        await daemon.ready()


# ---------------------------------------------------------------------- stores


async def refused_deliveries(here: Site) -> list[int]:
    await here.github.webhooks_settled()
    hook = next(iter(here.github.world.hooks))
    return [row.status_code for row in here.github.deliveries.of_hook(hook) if row.status_code == 503]


async def test_a_full_disk_acknowledges_nothing_and_heals() -> None:
    """No file of the daemon may grow, its log included, until the limit is lifted (the kernel's limit on a process)."""
    async with site() as here:
        daemon = here.daemon()
        await daemon.start()
        await daemon.ready()
        limit(daemon, 1)
        names = here.submit_github("true")
        await daemon.unwell("store")
        assert await refused_deliveries(here)
        limit(daemon, -1)
        await here.succeed(names)
        await daemon.ready()


def limit(daemon: Daemon, size: int) -> None:
    """How large a file the daemon may write; -1 is no limit."""
    assert daemon.process is not None
    wanted = resource.RLIM_INFINITY if size < 0 else size
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (wanted, resource.RLIM_INFINITY))


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


async def test_a_database_that_goes_away_is_waited_for_with_503(own_postgres: PostgresServer) -> None:
    async with site() as here:
        daemon = here.daemon(store=own_postgres.dsn)
        await daemon.start()
        await here.succeed(here.submit_github("true"))
        await daemon.ready()
        own_postgres.stop("immediate")
        try:
            names = here.submit_github("true")

            async def is_standing_by() -> bool:
                _, reasons = await daemon.readyz()
                return "goes on by itself" in reasons.get("leader", {}).get("remedy", "")

            await until(is_standing_by)
            assert (await daemon.post("/webhooks/github", {}))[0] == 503, "it answers while it waits"
            assert (await daemon.get(f"{daemon.public}/healthz"))[0] == 200
        finally:
            own_postgres.start()
        await here.succeed(names)
        await daemon.ready()
        await here.nothing_left()
