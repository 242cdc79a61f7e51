"""`autoscaler plan` against served forges, a local provider and real stores: it sees what is to do and does nothing."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web

from autoscaler.dry_run import dry_run
from autoscaler.model import Instance, InstanceState
from autoscaler.sandbox.github_auth import AppIdentity
from autoscaler.sandbox.github_face import GitHubFace
from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.gitlab_face import GitLabFace
from autoscaler.sandbox.gitlab_world import GitLabWorld
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.spi import BatchToken, ForgeJob, ForgeName, InstanceId, JobStatus, PoolName, ProviderName, Webhook
from autoscaler.store import Changes, StoreError
from autoscaler.store.postgres import PostgresStore
from autoscaler.store.sqlite import SqliteStore
from tests.postgres import postgres_dsn, postgres_server

__all__ = ["postgres_dsn", "postgres_server"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
GITLAB_TOKEN = "glpat-token-of-the-dry-run"

CONFIG = """
[autoscaler]
name = "acme"
listen = "127.0.0.1:0"
public_url = "http://127.0.0.1:8480"
store = "{store}"
admin_tokens = [{{ file = "gitlab-token" }}]

[[forge]]
name = "github"
kind = "github"
url = "{github}"
api_url = "{github}"
credentials = {{ app_id = {app_id}, private_key = {{ file = "app.pem" }} }}
webhook_secret = {{ file = "hook-secret" }}
scopes = ["acme"]

[[forge]]
name = "gitlab"
kind = "gitlab"
url = "{gitlab}"
credentials = {{ token = {{ file = "gitlab-token" }} }}
webhook_secret = {{ file = "hook-secret" }}
scopes = ["tools"]

[[provider]]
name = "here"
kind = "local"
state_dir = "{folder}/machines"
isolation = "process"
capacity_pools = [
    {{ machine_type = "m", zone = "z", cpus = 4, memory_gib = 9, arch = "x86_64", price_usd_hour = 0.1, slots = 9 }},
]

[[image]]
name = "runner"
[image.references.local]
github_runner = "/opt/actions-runner"
gitlab_runner = "/usr/bin/gitlab-runner"

[[pool]]
name = "small"
forges = ["github"]
labels = ["linux"]
image = "runner"
providers = ["here"]
max = 2

[[pool]]
name = "data"
forges = ["gitlab"]
labels = ["data"]
image = "runner"
providers = ["here"]
"""


@dataclass
class Site:
    """Both forges, each writing down what it is asked, and the configuration that names them."""

    github: GitHubFace
    gitlab: GitLabFace
    github_url: str
    folder: Path
    app_id: int
    asked: list[tuple[str, str]] = field(default_factory=list)

    def config(self, store: str = "") -> Path:
        path = self.folder / "config.toml"
        store = store or f"sqlite:///{self.folder / 'store.db'}"
        text = CONFIG.format(
            store=store,
            github=self.github_url,
            gitlab=self.gitlab.world.base_url,
            app_id=self.app_id,
            folder=self.folder,
        )
        path.write_text(text)
        return path

    @property
    def writes(self) -> list[tuple[str, str]]:
        """What changes a forge: everything but reads and the making of access tokens."""
        return [(method, path) for method, path in self.asked if method != "GET" and "/access_tokens" not in path]

    def files(self) -> dict[str, bytes]:
        """Every file below the folder, by name."""
        return {str(path): path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}


class WrittenGitLab(GitLabFace):
    """A GitLab face with a middleware around everything."""

    watch: object = None

    def app(self) -> web.Application:
        app = super().app()
        app.middlewares.append(self.watch)  # type: ignore[arg-type]
        return app


@asynccontextmanager
async def site_in(folder: Path) -> AsyncIterator[Site]:
    asked: list[tuple[str, str]] = []

    @web.middleware
    async def write_down(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked.append((request.method, request.path))
        return await handler(request)

    app, private_key = AppIdentity.generate()
    for name, secret in (
        ("app.pem", private_key),
        ("hook-secret", "hook-secret-of-plan"),
        ("gitlab-token", GITLAB_TOKEN),
    ):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(secret)
    github = GitHubFace(GitHubWorld(["acme/shop", "acme/api"]), app=app, middlewares=[write_down])
    world = GitLabWorld()
    world.add_group("tools")
    world.add_project("tools/etl", time.time())
    gitlab = WrittenGitLab(world, tokens={GITLAB_TOKEN: ["api"]})
    gitlab.watch = write_down
    github_url = await github.start()
    await gitlab.start()
    try:
        yield Site(github=github, gitlab=gitlab, github_url=github_url, folder=folder, app_id=app.app_id, asked=asked)
    finally:
        await github.aclose()
        await gitlab.aclose()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_in(tmp_path) as one:
        yield one


def run_of(repo: str, *labels: str, jobs: int = 1) -> RunSpec:
    specs = tuple(JobSpec(key=f"j{n}", name=f"test-{n}", labels=labels, script=("true",)) for n in range(jobs))
    return RunSpec(repo=repo, workflow="ci", jobs=specs)


def instance(number: int, state: InstanceState = InstanceState.LAUNCHED) -> Instance:
    now = datetime.now(UTC) - timedelta(hours=1)
    return Instance(
        id=InstanceId(f"i-{number}"),
        pool=PoolName("small"),
        provider=ProviderName("here"),
        token=BatchToken(f"b-{number}"),
        state=state,
        since=now,
        created_at=now,
        version=1,
    )


async def test_queued_jobs_become_launches_with_their_reason(site: Site) -> None:
    site.github.submit(run_of("acme/shop", "linux"))
    site.gitlab.submit(run_of("tools/etl", "data"))
    document, text = await dry_run(site.config())
    launches = {action["subject"]: action for action in document["actions"] if action["action"] == "launch"}
    assert launches.keys() == {"small", "data"}
    assert launches["small"]["count"] == 1
    assert launches["small"]["reason"] == "1 queued job has no machine"
    assert launches["small"]["offerings"] == [{"capacity_pool": "here/z/m/spot", "usd_per_hour": 0.1}]
    assert "nothing was changed" in text
    assert "because 1 queued job has no machine" in text


async def test_demand_beyond_the_cap_is_blocked_and_foreign_labels_are_unserved(site: Site) -> None:
    site.github.submit(run_of("acme/shop", "linux", jobs=5))
    site.github.submit(run_of("acme/api", "linux", "large"))
    document, text = await dry_run(site.config())
    assert document["blocked"] == [{"pool": "small", "jobs": 3, "reason": "pool small is at its max of 2 instances"}]
    (unserved,) = document["unserved"]
    assert (unserved["repo"], unserved["labels"]) == ("acme/api", ["large", "linux"])
    assert "large (pool small is nearest)" in unserved["reason"]
    assert "Blocked:\n  small: 3 jobs: pool small is at its max" in text
    assert "Served by no pool:" in text


async def test_nothing_is_written_to_forges_provider_or_store(site: Site) -> None:
    store = SqliteStore(str(site.folder / "store.db"))
    await store.open()
    assert await store.acquire_lease("a daemon that ran")
    await store.commit(Changes(instances=[instance(1)]))
    await store.aclose()
    site.github.submit(run_of("acme/shop", "linux", jobs=3))
    site.gitlab.submit(run_of("tools/etl", "data"))
    config = site.config()
    await dry_run(config)  # the local provider makes its folder when it is first named
    before = site.files()
    site.asked.clear()
    document, _ = await dry_run(config)
    assert {action["action"] for action in document["actions"]} >= {"launch", "terminate"}
    assert site.writes == []
    assert len(site.asked) > 3
    assert site.files() == before
    assert not list((site.folder / "machines" / "acme").glob("local-*"))


async def test_a_live_daemons_store_is_read_beside_it(site: Site) -> None:
    store = SqliteStore(str(site.folder / "store.db"))
    await store.open()
    try:
        assert await store.acquire_lease("the daemon")
        await store.commit(Changes(instances=[instance(1), instance(2)]))
        document, _ = await dry_run(site.config())
        assert document["instances"] == {"launched": 2}
        assert document["store_is_new"] is False
        (terminate,) = [action for action in document["actions"] if action["action"] == "terminate"]
        assert terminate["subject"] == "i-1, i-2"
        assert "its agent said nothing within" in terminate["reason"]
        assert await store.holds_lease()
        await store.commit(Changes(instances=[instance(3)]))
    finally:
        await store.aclose()


async def test_webhooks_that_no_tick_has_seen_count_and_stay(site: Site) -> None:
    store = SqliteStore(str(site.folder / "store.db"))
    await store.open()
    try:
        seen = ForgeJob(
            forge=ForgeName("gitlab"),
            forge_job_id=str(site.gitlab.submit(run_of("tools/etl", "data"))),
            repo="tools/etl",
            run_id="1",
            run_attempt=1,
            workflow="",
            name="of a webhook alone",
            status=JobStatus.QUEUED,
            labels=None,
        )
        unknown = replace(seen, forge=ForgeName("github"), forge_job_id="77", repo="acme/shop", labels=("linux",))
        webhook = Webhook(delivery_id="d-1", outcome="accepted", event="test", jobs=(seen, unknown))
        await store.accept(ForgeName("github"), webhook, datetime.now(UTC))
        document, _ = await dry_run(site.config())
        settle = next(action for action in document["actions"] if action["action"] == "settle")
        assert (settle["subject"], settle["reason"]) == ("github:77", "a complete listing does not show it any more")
        assert document["jobs"] == {"queued": 2}
        assert [row.webhook.delivery_id for row in (await store.load()).inbox] == ["d-1"]
    finally:
        await store.aclose()


async def test_a_store_that_does_not_exist_is_empty_and_stays_away(site: Site) -> None:
    document, _ = await dry_run(site.config())
    assert document["store_is_new"] is True
    assert not list(site.folder.glob("store.db*"))


async def test_an_unused_store_file_is_empty(site: Site) -> None:
    (site.folder / "store.db").touch()
    document, _ = await dry_run(site.config())
    assert document["store_is_new"] is True
    assert (site.folder / "store.db").read_bytes() == b""


async def test_a_file_that_is_no_store_is_an_error(site: Site) -> None:
    (site.folder / "store.db").write_bytes(b"not a database, but long enough to look at" * 99)
    with pytest.raises(StoreError):
        await dry_run(site.config())


async def test_postgresql_is_read_and_never_migrated(site: Site, postgres_dsn: str) -> None:
    document, _ = await dry_run(site.config(postgres_dsn))
    assert document["store_is_new"] is True
    store = PostgresStore(postgres_dsn)
    await store.open()
    try:
        assert await store.acquire_lease("the daemon")
        assert (await store.load()).is_new
        await store.commit(Changes(instances=[instance(1)]))
        document, _ = await dry_run(site.config(postgres_dsn))
        assert document["instances"] == {"launched": 1}
        assert await store.holds_lease()
    finally:
        await store.aclose()


async def test_a_forge_that_refuses_is_a_warning_that_says_what_cannot_be_judged(site: Site) -> None:
    site.github.submit(run_of("acme/shop", "linux"))
    (site.folder / "gitlab-token").write_text("glpat-revoked-token-value")
    document, text = await dry_run(site.config())
    assert {warning["target"] for warning in document["warnings"]} == {"gitlab"}
    assert {warning["call"] for warning in document["warnings"]} == {"list_jobs", "list_runners"}
    assert "its new jobs are not seen" in text
    assert "check its credentials and permissions" in text
    assert "glpat-revoked-token-value" not in text + json.dumps(document)
    assert [action["subject"] for action in document["actions"] if action["action"] == "launch"] == ["small"]


async def test_a_failed_listing_of_jobs_gives_no_machine_up(site: Site) -> None:
    store = SqliteStore(str(site.folder / "store.db"))
    await store.open()
    assert await store.acquire_lease("a daemon that ran")
    await store.commit(Changes(instances=[instance(1, InstanceState.READY)]))
    await store.aclose()
    surplus, _ = await dry_run(site.config())
    assert [action["action"] for action in surplus["actions"]] == ["terminate"]
    await site.github.aclose()
    document, _ = await dry_run(site.config())
    assert document["actions"] == []


async def test_the_command_prints_one_document_and_logs_to_stderr(site: Site) -> None:
    site.github.submit(run_of("acme/shop", "linux"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "autoscaler", "plan", "--config", str(site.config()), "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert json.loads(output)["actions"][0]["action"] == "launch"


async def test_a_bad_configuration_exits_with_2(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "autoscaler", "plan", "--config", str(tmp_path / "none.toml")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 2
    assert output == b""
    assert b"none.toml" in errors
