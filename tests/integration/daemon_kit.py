"""The daemon as a real process between the sandbox's forges and local machines, for tests of its whole behaviour.

`Site` is one host: a GitHub and a GitLab served by this process, a folder of machines, and any number of daemons, each
a child process with its own configuration. Everything is on free ports of 127.0.0.1; waits are bounded conditions;
nothing is left running. A `Fault` in front of GitHub makes it slow, broken or rate limited, and well again.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.sandbox.github_face import GitHubFace
from autoscaler.sandbox.github_limits import Limits
from autoscaler.sandbox.github_model import JobRecord
from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.gitlab_face import GitLabFace
from autoscaler.sandbox.gitlab_world import GitLabWorld
from autoscaler.sandbox.workload import JobSpec, RunSpec
from autoscaler.spi import ProviderName, ProviderSettings, Surroundings
from providers.local import create
from tests.integration.daemon_config import CONFIG, POOLS, pool_text
from tests.polling import until

__all__ = ["POOLS", "Daemon", "Fault", "Site", "arguments_of", "environment_of", "pids", "pool_text", "site"]

IMAGES = Path(__file__).parents[2] / "autoscaler" / "sandbox" / "images"
GITHUB_REPO, GITLAB_REPO = "acme/shop", "tools/etl"


@dataclass(slots=True)
class Fault:
    """What a forge does instead of answering: nothing while `kind` is empty. `calls` counts what it did it to."""

    kind: str = ""
    calls: int = 0

    @property
    def middleware(self) -> Any:
        @web.middleware
        async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not self.kind or request.path.startswith("/_broker"):
                return await handler(request)
            self.calls += 1
            match self.kind:
                case "slow":
                    with contextlib.suppress(TimeoutError):
                        await until(lambda: self.kind != "slow", timeout_s=30)
                    return await handler(request)
                case "rate_limited":
                    headers = {"Retry-After": "1", "X-RateLimit-Remaining": "0", "RateLimit-Remaining": "0"}
                    body = {"message": "You have exceeded a secondary rate limit. Please wait."}
                    return web.json_response(body, status=403, headers=headers)
                case "server_error":
                    return web.Response(status=502, text="<html>Bad gateway</html>", content_type="text/html")
                case "garbage":
                    return web.Response(text='{"workflow_runs": [{"id": "no', content_type="application/json")
                case "revoked":
                    return web.json_response({"message": "Bad credentials"}, status=401)
                case _:
                    raise AssertionError(self.kind)

        return refuse


@dataclass(slots=True, kw_only=True)
class Daemon:
    """One daemon: its configuration file, its process while it runs, and its listeners."""

    config: Path
    public: str
    admin: str
    admin_token: str
    client: aiohttp.ClientSession
    process: asyncio.subprocess.Process | None = None

    @property
    def log_file(self) -> Path:
        return self.config.with_suffix(".log")

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    async def start(self, *, wait: bool = True) -> None:
        """Start the process; with `wait`, until it serves."""
        with self.log_file.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "autoscaler", "run", "--config", str(self.config)),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            await self.serving()

    async def serving(self) -> None:
        """Until it is the one daemon of its store and answers."""

        async def serves() -> bool:
            assert self.process is not None
            assert self.process.returncode is None, self.log[-3000:]
            status, body = await self.get(f"{self.admin}/api/v1/status")
            return status == 200 and bool(body)

        await until(serves, timeout_s=20)

    def signal(self, number: int) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def kill(self) -> None:
        """As kill -9 does."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """As systemd does; its exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: int) -> int:
        assert self.process is not None
        self.signal(number)
        try:
            async with asyncio.timeout(25):
                return await self.process.wait()
        except TimeoutError:
            self.process.kill()
            raise
        finally:
            await self.process.wait()

    async def get(self, url: str) -> tuple[int, Any]:
        """(status, JSON); (0, None) while nobody listens."""
        headers = {"Authorization": f"Bearer {self.admin_token}"}
        try:
            async with self.client.get(url, headers=headers) as answer:
                text = await answer.text()
                return answer.status, json.loads(text) if "json" in answer.content_type else text
        except (aiohttp.ClientError, OSError):
            return 0, None

    async def api(self, path: str) -> Any:
        status, body = await self.get(f"{self.admin}/api/v1/{path}")
        return body if status == 200 else None

    async def post(self, path: str, body: Any, *, key: str = "", raw: bytes | None = None) -> tuple[int, Any]:
        """A call to the public listener: (status, JSON or text); (0, "") while nobody listens."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        data = json.dumps(body).encode() if raw is None else raw
        try:
            async with self.client.post(self.public + path, data=data, headers=headers) as answer:
                text = await answer.text()
                return answer.status, json.loads(text) if text and "json" in answer.content_type else text
        except (aiohttp.ClientError, OSError):
            return 0, ""

    async def readyz(self) -> tuple[int, dict[str, Any]]:
        """(status, reasons by name)."""
        status, body = await self.get(f"{self.admin}/readyz")
        return status, {reason["name"]: reason for reason in (body or {}).get("reasons", ())}

    async def ready(self, *, timeout_s: float = 15) -> None:
        async def is_ready() -> bool:
            return (await self.readyz())[0] == 200

        await until(is_ready, timeout_s=timeout_s)

    async def unwell(self, name: str, *, timeout_s: float = 15) -> dict[str, Any]:
        """The reason of this name, once readiness gives it."""

        async def reason() -> Any:
            status, reasons = await self.readyz()
            return reasons.get(name) if status == 503 else None

        found: dict[str, Any] = await until(reason, timeout_s=timeout_s)
        return found


@dataclass(slots=True, kw_only=True)
class Site:
    """See the module docstring."""

    folder: Path
    client: aiohttp.ClientSession
    github: GitHubFace
    gitlab: GitLabFace
    github_fault: Fault
    secrets: Mapping[str, str]
    urls: Mapping[str, str]
    daemons: list[Daemon] = field(default_factory=list)

    @property
    def machines(self) -> Path:
        return self.folder / "machines"

    def daemon(
        self,
        name: str = "ours",
        *,
        pools: str = POOLS,
        store: str = "",
        poll: str = "1s",
        boot_s: float = 0,
        **more: Any,
    ) -> Daemon:
        """A daemon that is not started yet. The first one gets the forges' webhooks."""
        public, admin = (self.urls["public"], free_port()) if not self.daemons else (free_port(), free_port())
        folder = self.folder / f"{name}-{len(self.daemons)}"
        folder.mkdir()
        for key, value in self.secrets.items():
            path = folder / key
            path.touch(mode=0o600)
            path.write_text(value)
        config = folder / "config.toml"
        made = Daemon(
            config=config,
            public=f"http://127.0.0.1:{public}",
            admin=f"http://127.0.0.1:{admin}",
            admin_token=self.secrets["admin-token"],
            client=self.client,
            **more,
        )
        config.write_text(
            CONFIG.format(
                name=name,
                public=public,
                admin=admin,
                folder=folder,
                store=store or f"sqlite:///{folder}/autoscaler.db",
                github=self.urls["github"],
                gitlab=self.urls["gitlab"],
                machines=self.machines,
                images=IMAGES,
                pools=pools,
                poll=poll,
                boot_s=boot_s,
            )
        )
        self.daemons.append(made)
        return made

    # ------------------------------------------------------------------ the forges

    def submit_github(self, *scripts: str, labels: Sequence[str] = ("linux",)) -> list[str]:
        """A run of parallel jobs, one per script; their keys."""
        return self._submit(self.github, GITHUB_REPO, scripts, labels)

    def submit_gitlab(self, *scripts: str, labels: Sequence[str] = ("data",)) -> list[str]:
        return self._submit(self.gitlab, GITLAB_REPO, scripts, labels)

    def _submit(
        self, face: GitHubFace | GitLabFace, repo: str, scripts: Sequence[str], labels: Sequence[str]
    ) -> list[str]:
        keys = [f"job-{secrets.token_hex(3)}" for _ in scripts]
        jobs = tuple(
            JobSpec(key=key, name=key, labels=tuple(labels), script=(script,))
            for key, script in zip(keys, scripts, strict=True)
        )
        face.submit(RunSpec(repo=repo, workflow="ci", jobs=jobs))
        return keys

    def github_records(self) -> list[JobRecord]:
        return self.github.world.job_records()

    def conclusions(self) -> dict[str, str]:
        """How every job ended so far: name -> GitHub's conclusion or GitLab's status."""
        ended = {
            record.name: str(record.conclusion) for record in self.github_records() if record.conclusion is not None
        }
        statuses = {outcome.key: outcome.status for outcome in self.gitlab.world.outcomes()}
        over = ("success", "failed", "canceled")
        return ended | {name: str(status) for name, status in statuses.items() if status in over}

    async def succeed(self, names: Sequence[str], *, timeout_s: float = 30) -> None:
        """Until each of these jobs ended in success."""

        def all_done() -> bool:
            ended = self.conclusions()
            return all(ended.get(name) == "success" for name in names)

        try:
            await until(all_done, timeout_s=timeout_s)
        except TimeoutError:
            tail = "\n".join(daemon.log[-3000:] for daemon in self.daemons)
            raise AssertionError(f"{names}: {self.conclusions()}\n{tail}") from None

    async def nothing_left(self, *, timeout_s: float = 20) -> None:
        """Until no machine process and no runner of ours is left anywhere."""
        await until(
            lambda: not self.supervisors() and not self.github.world.runners and not self.gitlab.world.list_runners(),
            timeout_s=timeout_s,
        )

    # ------------------------------------------------------------------ the machines

    def supervisors(self, deployment: str = "") -> list[int]:
        """Pids of the supervisors of this site's machines."""
        mark = f"{self.machines}/{deployment}".encode()
        return [pid for pid in pids() if mark in arguments_of(pid) and b"local_supervisor" in arguments_of(pid)]

    async def aclose(self) -> None:
        for daemon in self.daemons:
            if daemon.process is not None and daemon.process.returncode is None:
                await daemon.stop()
        await self._end_machines()
        await self.github.aclose()
        await self.gitlab.aclose()

    async def _end_machines(self) -> None:
        calls = Calls()
        for folder in self.machines.glob("*"):
            if not (folder / "master.key").exists():
                continue
            settings = ProviderSettings(
                name=ProviderName("here"),
                kind="local",
                regions=(),
                endpoint_url="",
                options={"state_dir": str(self.machines), "isolation": "process"},
            )
            around = Surroundings(
                deployment=folder.name, runner_prefix=f"{folder.name}--", clock=SystemClock(), gates=calls
            )
            provider = create(settings, around)
            await provider.terminate([machine.provider_id for machine in await provider.list_instances()])
        await until(lambda: not self.supervisors())
        await calls.aclose()


@contextlib.asynccontextmanager
async def site(**options: Any) -> AsyncIterator[Site]:
    """A host with both forges up. The first daemon made gets their webhooks."""
    folder = Path(tempfile.mkdtemp(prefix="site-"))
    folder.chmod(0o755)  # machines run as another user
    given = {
        "webhook-secret": secrets.token_urlsafe(24),
        "github-token": "ghp_" + secrets.token_hex(18),
        "gitlab-token": "glpat-" + secrets.token_urlsafe(16),
        "admin-token": secrets.token_urlsafe(24),
    }
    public = free_port()
    hook = f"http://127.0.0.1:{public}/webhooks/"
    fault = Fault()
    github = GitHubFace(
        GitHubWorld([GITHUB_REPO]),
        webhook_url=hook + "github",
        webhook_secret=given["webhook-secret"],
        tokens=[given["github-token"]],
        limits=Limits(primary_per_hour=100_000),
        middlewares=[fault.middleware],
        **options,
    )
    world = GitLabWorld(seed=1)
    world.add_group(GITLAB_REPO.partition("/")[0])
    world.add_project(GITLAB_REPO, time.time())
    gitlab = GitLabFace(
        world,
        tokens={given["gitlab-token"]: ["api"]},
        webhook_url=hook + "gitlab",
        webhook_token=given["webhook-secret"],
    )
    urls = {"github": await github.start(), "gitlab": await gitlab.start(), "public": str(public)}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=35)) as client:
        made = Site(
            folder=folder,
            client=client,
            github=github,
            gitlab=gitlab,
            github_fault=fault,
            secrets=given,
            urls=urls,
        )
        try:
            yield made
        finally:
            await made.aclose()
            shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pids() -> list[int]:
    """Every process, this one aside."""
    return [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit() and int(one.name) != os.getpid()]


def arguments_of(pid: int) -> bytes:
    return _read(pid, "cmdline")


def environment_of(pid: int) -> bytes:
    return _read(pid, "environ")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
